"""Every program of docs/integrations.md is run as it stands, and reaches nothing but its enclave.

A local enclave stands in for the one of the page: its URL is put in place of the example's, and its
root in place of AWS's. The environment is that of a developer who uses all the libraries' services.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import docs_app
import pytest
from hub_app import FILES, HubServer
from model_app import ModelServer
from repository import ROOT, SUPPORT
from store_app import Store
from support import HANG

from enclavia.testing import LocalEnclave

PAGE = ROOT / "docs" / "integrations.md"
URL_IN_DOCS = '"wss://<id>.enclaves.beta.enclavia.io"'
KEY = "key-of-the-workload"

# Each would have a library send something elsewhere, or by another way. 127.0.0.1:9 is refused like
# any other address.
TEMPTING = {
    "ALL_PROXY": "http://127.0.0.1:9",
    "ANTHROPIC_API_KEY": "sk-ant-outside",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_TOKEN": "hf_outside",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "LANGCHAIN_API_KEY": "lsv2_outside",
    "LANGCHAIN_TRACING_V2": "true",
    "LANGSMITH_API_KEY": "lsv2_outside",
    "LANGSMITH_TRACING": "true",
    "OPENAI_API_KEY": "sk-outside",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
}

_FENCE = re.compile(
    r"(?:^<!-- run only with: (?P<needs>[\w.]+) -->\n)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Program(NamedTuple):
    heading: str
    code: str
    needs: str | None


def programs() -> tuple[str, dict[str, Program]]:
    """What every program begins with, and the programs by heading."""
    text = PAGE.read_text()
    beginning: list[str] = []
    found = {}
    for match in _FENCE.finditer(text):
        heading = re.findall(r"^## (.*)$", text[: match.start()], re.MULTILINE)[-1:]
        if match["needs"] is None:
            beginning.append(match["code"])
        else:
            found[heading[0]] = Program(heading[0], match["code"], match["needs"])
    return "\n".join(beginning), found


BEGINNING, PROGRAMS = programs()


class Ran(NamedTuple):
    code: int
    out: str
    err: str
    tunnel: list[str]  # connections of the extension's
    outside: list[str]  # what else tried to reach something, one line each

    def well(self) -> Ran:
        assert self.code == 0, self.out + self.err
        return self


class Desk:
    """Where programs are run."""

    def __init__(self, folder: Path, watch: Path) -> None:
        self.folder = folder
        self.watch = watch
        self.python = sys.executable

    def write(
        self, heading: str, enclave: LocalEnclave, instead: dict[str, str], more: str
    ) -> Path:
        code = BEGINNING + PROGRAMS[heading].code
        for old, new in instead.items():
            assert old in code, f"the program no longer says {old!r}"
            code = code.replace(old, new)
        return self.write_code(code + textwrap.dedent(more), enclave)

    def write_code(self, code: str, enclave: LocalEnclave) -> Path:
        root = self.folder / "root.pem"
        root.write_bytes(enclave.root or b"")
        (self.folder / "status.json").write_text(json.dumps(enclave.pcrs.as_dict()))
        code = code.replace(URL_IN_DOCS, repr(enclave.url))
        code = code.replace("pcrs=pcrs", f"pcrs=pcrs, root={str(root)!r}")
        program = self.folder / "program.py"
        program.write_text(code)
        return program

    def run(self, program: Path, *, tempting: dict[str, str] = TEMPTING) -> Ran:
        log = self.folder / "connections"
        log.unlink(missing_ok=True)
        kept = ("LD_LIBRARY_PATH", "PATH", "VIRTUAL_ENV")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        ended = subprocess.run(
            [self.python, str(SUPPORT / "only_the_tunnel.py"), str(program)],
            cwd=self.folder,
            env=environment
            | tempting
            | {
                "CONNECT_WATCH_LOG": str(log),
                "HOME": str(self.folder),
                "LD_PRELOAD": str(self.watch),
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            timeout=3 * HANG,
        )
        lines = log.read_text().splitlines() if log.exists() else []
        return Ran(
            ended.returncode,
            ended.stdout,
            ended.stderr,
            [line for line in lines if line.startswith("tunnel ")],
            [line for line in lines if not line.startswith("tunnel ")],
        )


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not sys.platform.startswith("linux") or "ENCLAVIA_SANITIZED" in os.environ:
        pytest.skip("a library is preloaded, which is written for Linux without sanitizers")
    out = tmp_path_factory.mktemp("watch") / "connect_watch.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(out)]
    subprocess.run([*command, str(SUPPORT / "connect_watch.c"), "-ldl"], check=True)
    return out


@pytest.fixture
def desk(tmp_path: Path, watch: Path) -> Desk:
    return Desk(tmp_path, watch)


Run = Callable[..., Ran]


@pytest.fixture
def run(desk: Desk) -> Run:
    """Runs a page's program against an enclave that serves an app."""

    def run(
        heading: str,
        app: Any,
        *,
        instead: dict[str, str] | None = None,
        more: str = "",
        tempting: dict[str, str] = TEMPTING,
        ready: Callable[[LocalEnclave], None] = lambda enclave: None,
    ) -> Ran:
        needs = PROGRAMS[heading].needs
        assert needs is not None
        if heading == "LlamaIndex":
            desk.python = with_llama_index()
        elif importlib.util.find_spec(needs) is None:
            pytest.skip(f"{needs} is not installed (pip install --group integrations)")
        with LocalEnclave(app) as enclave:
            ready(enclave)
            program = desk.write(heading, enclave, instead or {}, more)
            return desk.run(program, tempting=tempting)

    return run


def with_llama_index() -> str:
    """An interpreter that has LlamaIndex, which cannot be installed beside the OpenAI SDK 3."""
    python = os.environ.get("ENCLAVIA_LLAMAINDEX_PYTHON")
    if python is None:
        pytest.skip("LlamaIndex needs an environment of its own: make test-llamaindex")
    return python


@pytest.fixture
def model() -> ModelServer:
    return ModelServer()


def keys(model: ModelServer) -> set[str]:
    """The keys that the workload was sent."""
    return {
        request["headers"].get("x-api-key") or request["headers"]["authorization"][7:]
        for request in model.asked
    }


def test_every_program_is_known() -> None:
    text = PAGE.read_text()
    assert len(re.findall(r"^```py", text, re.MULTILINE)) == len(list(_FENCE.finditer(text)))
    tested = set(re.findall(r"run\(\s*\"([^\"]+)\",", Path(__file__).read_text()))
    assert set(PROGRAMS) == tested


# ---------------------------------------------------------------------------------------------
# The programs as they stand


def reached_only_the_tunnel(ran: Ran) -> None:
    ran.well()
    assert ran.outside == []
    assert ran.tunnel, "the watch has seen nothing at all"


def test_langchain(run: Run, model: ModelServer) -> None:
    """And then with what the page names in place of tiktoken's tables."""
    ran = run(
        "LangChain",
        model.app,
        more="""
        import openai
        from langchain_openai import OpenAIEmbeddings

        async_client = AsyncClient(url, pcrs=pcrs)
        with Client(url, pcrs=pcrs) as client:
            there = {
                "base_url": str(client.base_url.join("/v1")),
                "api_key": "key-of-the-workload",
                "http_client": client,
                "http_async_client": async_client,
            }
            print(ChatOpenAI(custom_get_token_ids=lambda text: [1, 2], **there).get_num_tokens("x"))
            try:
                OpenAIEmbeddings(check_embedding_ctx_length=False, **there).embed_query("x")
            except openai.NotFoundError:
                print("asked")
        """,
    )
    reached_only_the_tunnel(ran)
    assert ran.out == "Say it back  ['Say ', 'it ', 'back ', '', '']\n2\nasked\n"
    assert [request.get("stream", False) for request in model.asked] == [False, True]
    assert keys(model) == {KEY}


def test_llama_index(run: Run, model: ModelServer) -> None:
    ran = run("LlamaIndex", model.app)
    reached_only_the_tunnel(ran)
    assert ran.out.split() == ["Say", "it", "back"] * 2
    assert [request.get("stream", False) for request in model.asked] == [False, True]
    assert keys(model) == {KEY}


@pytest.mark.parametrize(("retries", "sent"), [("max_retries=0,", 1), ("", 12)])
def test_llama_index_lost_connections(
    retries: str, sent: int, run: Run, model: ModelServer
) -> None:
    def lose_all(enclave: LocalEnclave) -> None:
        model.before_answer = lambda count: enclave.drop_connections()

    ran = run(
        "LlamaIndex",
        model.app,
        instead={
            "max_retries=0,": retries,
            "import httpx\n": "import time, httpx\ntime.sleep = lambda seconds: None\n",
            'print(Settings.llm.complete("Say it back"))': """
import openai
try:
    Settings.llm.complete("Say it back")
except openai.APIConnectionError as error:
    print(type(error.__cause__), type(error.__cause__.__cause__))
raise SystemExit
""",
        },
        ready=lose_all,
    )
    assert "<class 'httpx.ReadError'> <class 'enclavia.ConnectionClosed'>" in ran.out, ran
    assert len(model.asked) == sent


def mcp_app() -> Any:
    """A server of the same SDK."""
    server = pytest.importorskip("mcp.server", reason="mcp is not installed").MCPServer("sums")

    @server.tool()
    def add(a: int, b: int) -> int:
        return a + b

    return server.streamable_http_app()


def test_mcp(run: Run) -> None:
    ran = run("MCP", mcp_app())
    reached_only_the_tunnel(ran)
    assert ran.out == "(['add'], {'result': 3})\n"


def test_openai_agents(run: Run, model: ModelServer) -> None:
    ran = run("OpenAI Agents", model.app)
    reached_only_the_tunnel(ran)
    assert ran.out == "rain in Ghent \n"
    assert [request["messages"][-1]["role"] for request in model.asked] == ["user", "tool"]
    assert keys(model) == {KEY}


def test_anthropic(run: Run, model: ModelServer) -> None:
    ran = run("Anthropic", model.app)
    reached_only_the_tunnel(ran)
    assert ran.out == "rain in Ghent \n"
    assert len(model.asked) == 2
    assert keys(model) == {KEY}


def test_fastapi(run: Run) -> None:
    ran = run(
        "FastAPI",
        docs_app.app,
        more="""
        from fastapi.testclient import TestClient

        with TestClient(app) as web:
            for number in range(2):
                print(web.post("/scores", json={"id": number}).json())
        """,
    )
    reached_only_the_tunnel(ran)
    assert ran.out == "{'score': 0}\n{'score': 1}\n"
    assert len(ran.tunnel) == 1, "one client serves all requests"


def test_fastapi_errors(run: Run) -> None:
    """Where the enclave is another one there is no service; where it cannot be reached, a 503."""
    ran = run(
        "FastAPI",
        docs_app.app,
        more="""
        from fastapi.testclient import TestClient

        with TestClient(app) as web:
            away = AsyncClient("ws://127.0.0.1:1", pcrs=pcrs, patience=0)
            app.dependency_overrides[enclave] = lambda: away
            answer = web.post("/scores", json={"id": 1})
            print(answer.status_code, answer.json())
        pcrs = Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)
        try:
            with TestClient(app):
                print("it started")
        except enclavia.PcrMismatch:
            print("not started")
        """,
    )
    reached_only_the_tunnel(ran)
    assert ran.out == "503 {'detail': 'ConnectError'}\nnot started\n"


def test_hugging_face_hub(run: Run) -> None:
    server = HubServer()
    server.offers_xet = True
    ran = run("Hugging Face hub", server.app)
    reached_only_the_tunnel(ran)
    weights = FILES["weights.bin"]
    assert ran.out == f"{len(weights)}\n{len(weights) - 2} {weights[-2:]!r}\n"
    assert all("authorization" not in request for request in server.asked)


def test_hugging_face_datasets(run: Run, tmp_path: Path) -> None:
    ran = run("Hugging Face datasets", docs_app.app)
    reached_only_the_tunnel(ran)
    assert ran.out == "{'id': 0, 'text': '…'}\n{'id': 1, 'text': '…'}\n"
    assert not list(tmp_path.rglob("*.parquet")) and not list(tmp_path.rglob("*.arrow"))


def test_hugging_face_datasets_on_the_disk(run: Run) -> None:
    """And by two processes, each of which verifies for itself."""
    ran = run(
        "Hugging Face datasets",
        docs_app.app,
        instead={"streaming=True,": 'cache_dir="cache", num_proc=2,', ".take(2)": ".select([0])"},
    )
    reached_only_the_tunnel(ran)
    assert ran.out == "{'id': 0, 'text': '…'}\n"


def test_zarr(run: Run) -> None:
    store = Store()
    ran = run("zarr", store)
    reached_only_the_tunnel(ran)
    assert ran.out == "[[1. 1.]\n [0. 0.]]\n"
    chunks = [each for each in store.methods if "/c/" in each]
    # zarr asks for them at once: which comes first is chance.
    assert sorted(each for each in chunks if each.startswith("GET")) == [
        "GET /files/grid.zarr/c/0/0",
        "GET /files/grid.zarr/c/1/0",
    ]


def test_zarr_takes_no_error_for_a_chunk_that_is_not_there(run: Run) -> None:
    """Only 404 means that. Anything else taken for it would be wrong data."""
    store = Store()

    def answer(method: str, path: str, environ: Any) -> Any:
        forbidden = method == "GET" and path.endswith("/c/0/0")
        return (403, {}, b"") if forbidden else Store.answer(store, method, path, environ)

    store.answer = answer  # type: ignore[method-assign]
    ran = run(
        "zarr",
        store,
        instead={"    print(grid[24:26, :2])": "    grid[24:26, :2]"},
    )
    assert ran.code == 1
    assert "PermissionError" in ran.err


# ---------------------------------------------------------------------------------------------
# What the page warns of does happen: what is turned off there is turned on again

WITHOUT_PROXY = {name: value for name, value in TEMPTING.items() if "PROXY" not in name}


def until_seen(*tries: str) -> str:
    """Code that ends the program once all this was noted, so that no retries are waited for."""
    return textwrap.dedent(
        f"""
        import os, pathlib, threading, time

        def until_seen():
            log = pathlib.Path(os.environ["CONNECT_WATCH_LOG"])
            while not log.exists() or not all(what in log.read_text() for what in {tries!r}):
                time.sleep(0.01)
            os._exit(0)

        threading.Thread(target=until_seen, daemon=True).start()
        """
    )


def tried(ran: Ran, *tries: str) -> bool:
    return all(any(what in line for line in ran.outside) for what in tries)


def test_langchain_would_leave(run: Run, model: ModelServer) -> None:
    """LangSmith, an async call without an async client, and the tables to count tokens by."""
    tries = ("'api.smith.langchain.com'", "socket.connect ('127.0.0.1', ", "'openaipublic.blob")
    ran = run(
        "LangChain",
        model.app,
        instead={"langsmith.configure(enabled=False)": until_seen(*tries)},
        more="""
        import openai
        from langchain_core.tracers.langchain import wait_for_all_tracers

        client = Client(url, pcrs=pcrs)
        base_url = str(client.base_url.join("/v1"))
        one_sided = ChatOpenAI(
            model="gpt-4o", base_url=base_url, api_key="k", max_retries=0, http_client=client
        )
        try:
            asyncio.run(one_sided.ainvoke("x"))
        except openai.APIConnectionError:
            pass
        try:
            one_sided.get_num_tokens("x")
        except OSError:
            pass
        wait_for_all_tracers()
        """,
        tempting=WITHOUT_PROXY,
    )
    assert tried(ran, *tries), ran


def test_openai_agents_would_leave(run: Run, model: ModelServer) -> None:
    """Traces, and the SDK's WebSockets."""
    tries = ("'api.openai.com'", "realtime/realtime.py", "responses/responses.py")
    ran = run(
        "OpenAI Agents",
        model.app,
        instead={"agents.set_tracing_disabled(True)": until_seen(*tries)},
        more="""
        import openai

        with Client(url, pcrs=pcrs) as client:
            sdk = openai.OpenAI(
                base_url=client.base_url.join("/v1"), api_key="k", http_client=client
            )
            for manager in sdk.realtime.connect(model="m"), sdk.responses.connect():
                try:
                    manager.enter()
                except OSError:
                    pass
        agents.flush_traces()
        """,
        tempting=WITHOUT_PROXY,
    )
    assert tried(ran, *tries), ran


def test_llama_index_would_leave(run: Run, model: ModelServer) -> None:
    """An async call without an async client, and a model that nobody has set."""
    tries = ("socket.connect ('127.0.0.1', ", "'api.openai.com'")
    ran = run(
        "LlamaIndex",
        model.app,
        instead={"async_http_client=httpx.AsyncClient(transport=async_transport, timeout=60),": ""},
        more=until_seen(*tries)
        + """
import asyncio

try:
    asyncio.run(Settings.llm.acomplete("x"))
except Exception as error:
    print(type(error))
os.environ.pop("OPENAI_BASE_URL")
Settings._llm = None
try:
    Settings.llm.complete("x")
except Exception as error:
    print(type(error))
""",
        tempting=WITHOUT_PROXY,
    )
    assert tried(ran, *tries), ran


def test_mcp_would_leave(run: Run) -> None:
    there = "socket.connect ('127.0.0.1', "
    ran = run("MCP", mcp_app(), instead={", http_client=client)": ")"}, tempting=WITHOUT_PROXY)
    assert tried(ran, there), ran


def test_hugging_face_hub_would_leave(run: Run) -> None:
    """Which Python's audit hook does not see."""
    server = HubServer()
    server.offers_xet = True
    there = "getaddrinfo storage.invalid by "
    ran = run(
        "Hugging Face hub",
        server.app,
        instead={'os.environ["HF_HUB_DISABLE_XET"] = "1"': until_seen(there)},
        tempting=WITHOUT_PROXY,
    )
    assert tried(ran, there), ran
    assert not tried(ran, "socket."), ran


def test_hugging_face_datasets_would_leave(run: Run) -> None:
    """To have its downloads counted."""
    ran = run(
        "Hugging Face datasets",
        docs_app.app,
        instead={'os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"': ""},
        tempting=WITHOUT_PROXY,
    )
    assert tried(ran, "socket.getaddrinfo 's3.amazonaws.com'"), ran


# ---------------------------------------------------------------------------------------------
# The watch itself


@pytest.mark.parametrize(
    ("code", "noted"),
    [
        ("socket.create_connection(there)", "socket.connect"),
        ("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', there)", "socket.sendto"),
        ("socket.socket(type=socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, there)", "socket.sendmsg"),
        ("socket.getaddrinfo('name.invalid', 1)", "socket.getaddrinfo"),
        ("socket.gethostbyname('name.invalid')", "socket.gethostbyname"),
        ("native.connect(udp.fileno(), address, 16)", "connect 127.0.0.1:9 by "),
        ("native.sendto(udp.fileno(), b'x', 1, 0, address, 16)", "sendto 127.0.0.1:9 by "),
        ("native.getaddrinfo(b'name.invalid', None, None, None)", "getaddrinfo name.invalid by "),
        (
            "subprocess.run([sys.executable, '-c', 'import socket; "
            'socket.create_connection(("127.0.0.1", 9))\'])',
            "connect 127.0.0.1:9 by ",
        ),
    ],
)
def test_the_watch_sees(code: str, noted: str, desk: Desk) -> None:
    beginning = """
import ctypes, socket, struct, subprocess, sys

there = ("127.0.0.1", 9)
native = ctypes.CDLL(None)
udp = socket.socket(type=socket.SOCK_DGRAM)
address = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(9), socket.inet_aton("127.0.0.1"))
"""
    program = desk.folder / "program.py"
    program.write_text(beginning + code)
    ran = desk.run(program)
    assert [line.startswith(noted) for line in ran.outside] == [True], ran
    assert not ran.tunnel
