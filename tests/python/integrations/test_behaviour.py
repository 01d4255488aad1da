"""What docs/integrations.md says of errors, retries, timeouts and streams, library by library."""

from __future__ import annotations

import importlib
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from hub_app import FILES, PIECE, REPOSITORY, HubServer
from model_app import ModelServer, each
from support import Face, keywords, with_client

import enclavia
from enclavia.testing import Fault, LocalEnclave

PATIENT: dict[str, Any] = {"patience": 0}  # one attempt to connect
WITH_READ = httpx2.Timeout(5, read=0.2)


def wrong_pins() -> enclavia.Pcrs:
    return enclavia.Pcrs(pcr0=b"\1" * 48, pcr1=b"\2" * 48, pcr2=b"\3" * 48)


def causes(error: BaseException | None) -> list[type]:
    found = []
    while error is not None:
        found.append(type(error))
        error = error.__cause__
    return found


@pytest.fixture
def model() -> ModelServer:
    return ModelServer()


@pytest.fixture
def enclave(model: ModelServer) -> Iterator[LocalEnclave]:
    with LocalEnclave(model.app) as enclave:
        yield enclave


@pytest.fixture
def losing(enclave: LocalEnclave, model: ModelServer) -> LocalEnclave:
    """Every request reaches the workload, and its connection is lost before the answer."""
    model.before_answer = lambda count: enclave.drop_connections()
    return enclave


# ---------------------------------------------------------------------------------------------
# LangChain

BOTH = pytest.mark.parametrize("kind", ["sync", "asyncio"])


class Chat:
    """A ChatOpenAI that has a client of one kind; the other kind's is not used."""

    def __init__(self, face: Face, **options: Any) -> None:
        langchain_openai = pytest.importorskip(
            "langchain_openai", reason="langchain-openai is missing"
        )
        pytest.importorskip("langsmith").configure(enabled=False)
        name = "http_async_client" if face.is_async else "http_client"
        options[name] = face.client
        base_url = str(face.client.base_url.join("/v1"))
        self.face = face
        self.chat = langchain_openai.ChatOpenAI(
            model="m", base_url=base_url, api_key="key", **options
        )

    async def ask(self) -> Any:
        chat = self.chat
        return await self.face.call(
            chat.ainvoke("a b") if self.face.is_async else chat.invoke("a b")
        )

    def stream(self) -> Any:
        return self.chat.astream("a b") if self.face.is_async else self.chat.stream("a b")


@BOTH
@pytest.mark.parametrize(("options", "sent"), [({"max_retries": 0}, 1), ({}, 3)])
def test_langchain_lost_connections(
    kind: str, options: dict[str, Any], sent: int, losing: LocalEnclave, model: ModelServer
) -> None:
    openai = pytest.importorskip("openai")

    async def case(face: Face) -> None:
        with pytest.raises(openai.APIConnectionError) as caught:
            await Chat(face, **options).ask()
        theirs, sdks, ours = causes(caught.value)
        assert theirs.__name__ == "OpenAIConnectionError"
        assert (sdks, ours) == (openai.APIConnectionError, enclavia.ConnectionClosed)
        assert face.client.stats.retries == 0

    with_client(kind, losing, case)
    assert len(model.asked) == sent


@BOTH
def test_langchain_another_enclave(kind: str, enclave: LocalEnclave, model: ModelServer) -> None:
    openai = pytest.importorskip("openai")

    async def case(face: Face) -> None:
        face.client = type(face.client)(
            enclave.url, **(keywords(enclave) | {"pcrs": wrong_pins()}), **PATIENT
        )
        with pytest.raises(openai.APIConnectionError) as caught:
            await Chat(face, max_retries=0).ask()
        assert causes(caught.value)[-1] is enclavia.PcrMismatch
        with pytest.raises(openai.APIConnectionError) as caught:
            [chunk async for chunk in each(Chat(face, max_retries=0).stream())]
        assert causes(caught.value)[-1] is enclavia.PcrMismatch

    with_client(kind, enclave, case)
    assert model.asked == []


@BOTH
def test_langchain_timeouts(kind: str, enclave: LocalEnclave) -> None:
    """LangChain's own hold, and without any of its own it asks for none."""
    openai = pytest.importorskip("openai")

    async def case(face: Face) -> None:
        met = timeouts_met(face)
        await Chat(face).ask()
        await Chat(face, timeout=60).ask()
        assert met == [dict.fromkeys(FOUR), dict.fromkeys(FOUR, 60)]
        enclave.set_faults(Fault.SILENT_STREAMS)
        enclave.drop_connections()
        with pytest.raises(openai.APITimeoutError) as caught:
            await Chat(face, timeout=WITH_READ, max_retries=0).ask()
        assert type(caught.value).__name__ == "OpenAITimeoutError"
        assert causes(caught.value)[-1] is enclavia.ReadTimeout

    with_client(kind, enclave, case)


@BOTH
def test_langchain_streams(kind: str, enclave: LocalEnclave, model: ModelServer) -> None:
    model.go_on.clear()

    async def case(face: Face) -> None:
        words = []
        async for chunk in each(Chat(face).stream()):
            words.append(chunk.content)
            if words == ["a "]:
                assert not model.go_on.is_set(), "the first word must not wait for the others"
                model.go_on.set()
        assert "".join(words) == "a b "

    with_client(kind, enclave, case)


@BOTH
def test_langchain_tools(kind: str, enclave: LocalEnclave) -> None:
    def weather(city: str) -> str:
        """The weather in a city."""
        return city

    async def case(face: Face) -> None:
        chat = Chat(face)
        chat.chat = chat.chat.bind_tools([weather])
        calls = (await chat.ask()).tool_calls
        assert [(call["name"], call["args"]) for call in calls] == [("weather", {"city": "b"})]

    with_client(kind, enclave, case)


FOUR = ("connect", "pool", "read", "write")


def timeouts_met(face: Face) -> list[dict[str, Any]]:
    """Of each request as it is sent."""
    met: list[dict[str, Any]] = []

    def note(request: httpx2.Request) -> None:
        met.append(request.extensions["timeout"])

    async def note_async(request: httpx2.Request) -> None:
        note(request)

    face.client.event_hooks = {"request": [note_async if face.is_async else note]}
    return met


# ---------------------------------------------------------------------------------------------
# OpenAI Agents


def agent_over(client: enclavia.AsyncClient, **options: Any) -> tuple[Any, Any]:
    agents = pytest.importorskip("agents", reason="openai-agents is missing")
    openai = pytest.importorskip("openai")
    agents.set_tracing_disabled(True)
    base_url = client.base_url.join("/v1")
    sdk = openai.AsyncOpenAI(base_url=base_url, api_key="key", http_client=client, **options)
    model = agents.OpenAIChatCompletionsModel(model="m", openai_client=sdk)
    return agents.Runner, agents.Agent(name="x", model=model)


@pytest.mark.parametrize(("options", "sent"), [({"max_retries": 0}, 1), ({}, 3)])
def test_agents_lost_connections(
    options: dict[str, Any], sent: int, losing: LocalEnclave, model: ModelServer
) -> None:
    openai = pytest.importorskip("openai")

    async def case(face: Face) -> None:
        runner, agent = agent_over(face.client, **options)
        with pytest.raises(openai.APIConnectionError) as caught:
            await runner.run(agent, "a b")
        assert causes(caught.value) == [openai.APIConnectionError, enclavia.ConnectionClosed]
        assert face.client.stats.retries == 0

    with_client("asyncio", losing, case)
    assert len(model.asked) == sent


def test_agents_streams_and_timeouts(enclave: LocalEnclave, model: ModelServer) -> None:
    """The timeouts are the client's."""
    openai = pytest.importorskip("openai")
    model.go_on.clear()

    async def case(face: Face) -> None:
        runner, agent = agent_over(face.client, max_retries=0)
        words = []
        async for event in runner.run_streamed(agent, "a b").stream_events():
            if event.type == "raw_response_event" and hasattr(event.data, "delta"):
                words.append(event.data.delta)
                assert words != ["a "] or not model.go_on.is_set()
                model.go_on.set()
        assert words == ["a ", "b "]
        enclave.set_faults(Fault.SILENT_STREAMS)
        enclave.drop_connections()
        face.client.timeout = WITH_READ
        runner, agent = agent_over(face.client, max_retries=0)
        with pytest.raises(openai.APITimeoutError) as caught:
            await runner.run(agent, "a b")
        assert causes(caught.value)[-1] is enclavia.ReadTimeout

    with_client("asyncio", enclave, case)


# ---------------------------------------------------------------------------------------------
# MCP


class Tools:
    """An MCP server of the SDK itself."""

    def __init__(self) -> None:
        mcp_server = pytest.importorskip("mcp.server", reason="mcp is missing")
        self.calls = 0
        self.within_call: Callable[[], None] = lambda: None
        server = mcp_server.MCPServer("sums")

        @server.tool()
        def add(a: int, b: int) -> int:
            self.calls += 1
            self.within_call()
            return a + b

        self.app = server.streamable_http_app()


async def call_add(face: Face) -> Any:
    import mcp
    from mcp.client.streamable_http import streamable_http_client

    url = str(face.client.base_url.join("/mcp"))
    async with mcp.Client(streamable_http_client(url, http_client=face.client)) as server:
        return await server.call_tool("add", {"a": 1, "b": 2})


def ours_in(group: BaseException) -> list[type]:
    assert isinstance(group, ExceptionGroup)
    matched, others = group.split(enclavia.EnclaviaError)
    assert matched is not None
    assert others is None
    return [type(error) for error in matched.exceptions]


@pytest.mark.parametrize("kind", ["asyncio", "trio"])
def test_mcp_errors(kind: str) -> None:
    tools = Tools()
    with LocalEnclave(tools.app) as enclave:
        tools.within_call = enclave.drop_connections

        async def lost(face: Face) -> None:
            with pytest.raises(ExceptionGroup) as caught:
                await call_add(face)
            assert ours_in(caught.value) == [enclavia.ConnectionClosed]
            assert tools.calls == 1, "a call was sent twice"

        with_client(kind, enclave, lost)
        tools.within_call = lambda: None

        async def another(face: Face) -> None:
            with pytest.raises(ExceptionGroup) as caught:
                await call_add(face)
            assert ours_in(caught.value) == [enclavia.PcrMismatch]

        with_client(kind, enclave, another, **PATIENT, pcrs=wrong_pins())
        enclave.set_faults(Fault.SILENT_STREAMS)

        async def silent(face: Face) -> None:
            with pytest.raises(ExceptionGroup) as caught:
                await call_add(face)
            assert ours_in(caught.value) == [enclavia.ReadTimeout]

        with_client(kind, enclave, silent, timeout=WITH_READ)
        assert tools.calls == 1


class Forgetful:
    """Keeps no tokens of an OAuth login."""

    async def get_tokens(self) -> None:
        return None

    async def set_tokens(self, tokens: Any) -> None:
        raise AssertionError("there was a login")

    async def get_client_info(self) -> None:
        return None

    async def set_client_info(self, client_info: Any) -> None:
        raise AssertionError("there was a login")


async def wants_a_login(scope: Any, receive: Any, send: Any) -> None:
    """Names a server elsewhere, where the client is to log in."""
    if scope["type"] == "http":
        elsewhere = b'Bearer resource_metadata="https://login.invalid/metadata"'
        headers = [(b"www-authenticate", elsewhere), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def test_mcp_logs_in_nowhere_else() -> None:
    auth = pytest.importorskip("mcp.client.auth", reason="mcp is missing")
    metadata = importlib.import_module("mcp.shared.auth").OAuthClientMetadata(
        redirect_uris=["http://127.0.0.1:9/"]
    )
    with LocalEnclave(wants_a_login) as enclave:

        async def case(face: Face) -> None:
            url = str(face.client.base_url.join("/mcp"))
            face.client.auth = auth.OAuthClientProvider(url, metadata, Forgetful())
            with pytest.raises(ExceptionGroup) as caught:
                await call_add(face)
            assert ours_in(caught.value) == [enclavia.ForeignURL]

        with_client("asyncio", enclave, case)


def test_an_agents_server_takes_a_function_that_makes_a_client() -> None:
    agents_mcp = pytest.importorskip("agents.mcp", reason="openai-agents is missing")
    tools = Tools()
    with LocalEnclave(tools.app) as enclave:
        made: list[enclavia.AsyncClient] = []

        def make(**_: Any) -> enclavia.AsyncClient:
            made.append(enclavia.AsyncClient(enclave.url, **keywords(enclave)))
            return made[-1]

        async def case(face: Face) -> None:
            url = str(face.client.base_url.join("/mcp"))
            params = {"url": url, "httpx_client_factory": make}
            async with agents_mcp.MCPServerStreamableHttp(params=params) as server:
                assert [tool.name for tool in await server.list_tools()] == ["add"]
                await server.call_tool("add", {"a": 1, "b": 2})

        with_client("asyncio", enclave, case)
        assert tools.calls == 1
        assert sum(client.stats.requests for client in made) > 0
        assert all(client.is_closed for client in made)


# ---------------------------------------------------------------------------------------------
# Hugging Face hub


class Hub:
    """huggingface_hub with clients of ours, in a new cache."""

    def __init__(self, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch) -> None:
        self.library = pytest.importorskip("huggingface_hub", reason="huggingface_hub is missing")
        self.http = importlib.import_module("huggingface_hub.utils._http")
        # Between its own attempts it waits for seconds.
        unhurried = types.SimpleNamespace(sleep=lambda seconds: None, time=time.time)
        monkeypatch.setattr(self.http, "time", unhurried)
        monkeypatch.setattr("huggingface_hub.file_download.time", unhurried)
        self.errors = importlib.import_module("huggingface_hub.errors")
        self.enclave = enclave
        self.url, self.keywords = enclave.url, keywords(enclave, **PATIENT)
        self.endpoint = f"https://{enclave.host}:{enclave.port}"
        self.cache = tempfile.TemporaryDirectory()
        self.made: list[enclavia.Client] = []
        self.with_client()

    def with_client(self, **options: Any) -> None:
        def make() -> enclavia.Client:
            client = enclavia.Client(self.url, **(self.keywords | options))
            self.made.append(client)
            return client

        self.library.set_client_factory(make)

    def get(self, name: str = "weights.bin", **options: Any) -> bytes:
        api = self.library.HfApi(endpoint=self.endpoint, token=False)
        path = api.hf_hub_download(REPOSITORY, name, cache_dir=self.cache.name, **options)
        with open(path, "rb") as file:
            return file.read()

    def close(self) -> None:
        self.library.set_client_factory(self.http.default_client_factory)
        for client in self.made:
            client.close()
        self.cache.cleanup()


@pytest.fixture
def files() -> HubServer:
    return HubServer()


@pytest.fixture
def hub(files: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with LocalEnclave(files.app) as enclave:
        hub = Hub(enclave, monkeypatch)
        yield hub
        hub.close()


def test_hub_another_enclave_is_an_error_also_beside_a_cached_file(hub: Hub) -> None:
    assert hub.get() == FILES["weights.bin"]
    hub.with_client(pcrs=wrong_pins())
    with pytest.raises(enclavia.PcrMismatch):
        hub.get()


def test_hub_unreachable_gives_the_cached_file_or_says_why_there_is_none(hub: Hub) -> None:
    assert hub.get() == FILES["weights.bin"]
    hub.enclave.stop()
    hub.with_client()
    assert hub.get() == FILES["weights.bin"]
    with pytest.raises(hub.errors.LocalEntryNotFoundError) as caught:
        hub.get("config.json")
    assert causes(caught.value)[-1] is enclavia.ConnectError
    assert len(hub.made) > 2, "the library closes its client and has another made"


def test_hub_answers_that_stop_are_continued(
    hub: Hub, files: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last piece that the library has written, which are of 10 MB."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", PIECE)
    files.ends_early = 1
    assert hub.get() == FILES["weights.bin"]
    assert [r.get("range") for r in files.asked if r["method"] == "GET"] == [
        None,
        f"bytes={PIECE}-",
    ]


def test_hub_lost_connections_end_a_download(hub: Hub, files: HubServer) -> None:
    """Once its head is there; before, our client would send the GET again."""

    def drop(response: httpx2.Response) -> None:
        if response.request.method == "GET":
            hub.enclave.drop_connections()

    files.go_on.clear()
    hub.with_client(event_hooks={"response": [drop]})
    with pytest.raises(enclavia.ConnectionClosed):
        hub.get()
    assert len([r for r in files.asked if r["method"] == "GET"]) == 1
    files.go_on.set()
    hub.with_client()
    assert hub.get() == FILES["weights.bin"]


def test_hub_refuses_the_real_one(hub: Hub) -> None:
    with pytest.raises(enclavia.ForeignURL):
        hub.library.hf_hub_download(REPOSITORY, "config.json", cache_dir=hub.cache.name)


def test_hub_whole_repositories(hub: Hub) -> None:
    api = hub.library.HfApi(endpoint=hub.endpoint, token=False)
    folder = api.snapshot_download(REPOSITORY, cache_dir=hub.cache.name)
    for name, content in FILES.items():
        with open(f"{folder}/{name}", "rb") as file:
            assert file.read() == content


def test_hub_sends_its_timeouts(hub: Hub) -> None:
    """10 s for metadata and 10 s for files, whatever the client's are."""
    met = []
    hub.http.get_session().event_hooks = {
        "request": [lambda request: met.append(request.extensions["timeout"])]
    }
    hub.get()
    assert met == [dict.fromkeys(FOUR, 10), dict.fromkeys(FOUR, 10)]
