"""A client in the cells of a real Jupyter kernel."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Connection, byte_enclave, eventually, ok

from enclavia.testing import Fault, LocalEnclave

jupyter = pytest.importorskip("jupyter_client", reason="jupyter-client is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

CELL_SECONDS = 60.0
ROOT = Path(__file__).resolve().parents[3]


class Notebook:
    """Runs cells, and keeps what they show."""

    def __init__(self) -> None:
        path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
        self.manager, self.client = jupyter.manager.start_new_kernel(
            kernel_name="python3", env={**os.environ, "PYTHONPATH": path}
        )

    def run(self, code: str) -> dict[str, Any]:
        """The data of the cell's result; an error of the cell is an error of the test."""
        shown: dict[str, Any] = {}
        failed = self._execute(code, shown)
        assert failed is None, failed
        return shown

    def error_of(self, code: str) -> str:
        """The name of the exception that ended the cell."""
        return str(self.failure_of(code)["ename"])

    def failure_of(self, code: str) -> dict[str, Any]:
        failed = self._execute(code, {})
        assert failed is not None, "the cell came to its end"
        return failed

    def _execute(self, code: str, shown: dict[str, Any]) -> dict[str, Any] | None:
        def hook(message: dict[str, Any]) -> None:
            if message["msg_type"] in ("execute_result", "display_data"):
                shown.update(message["content"]["data"])
            elif message["msg_type"] == "stream":
                name = message["content"]["name"]
                shown[name] = shown.get(name, "") + message["content"]["text"]

        reply = self.client.execute_interactive(code, timeout=CELL_SECONDS, output_hook=hook)
        content: dict[str, Any] = reply["content"]
        return content if content["status"] == "error" else None

    def interrupt_when(self, ready: threading.Event) -> threading.Thread:
        """The stop button."""

        def press() -> None:
            assert ready.wait(CELL_SECONDS)
            time.sleep(0.1)
            self.manager.interrupt_kernel()

        thread = threading.Thread(target=press)
        thread.start()
        return thread

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    notebook = Notebook()
    yield notebook
    notebook.close()


@pytest.fixture
def slow() -> threading.Event:
    """Set when a request for /slow has come."""
    return threading.Event()


@pytest.fixture
def gave_up() -> list[bool]:
    """Not empty when the workload, and not the client, ended a request for /slow."""
    return []


@pytest.fixture
def enclave(
    slow: threading.Event, gave_up: list[bool], notebook: Notebook
) -> Iterator[LocalEnclave]:
    def script(connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            if b"/slow" in head:
                slow.set()
                try:
                    connection.wait_closed()
                except TimeoutError:
                    gave_up.append(True)
                return
            connection.send(ok(head.split()[1]))

    with byte_enclave(script) as (enclave, _):
        notebook.run(
            "import asyncio, enclavia\n"
            f"url, root = {enclave.url!r}, {enclave.root!r}\n"
            f"pcrs = enclavia.Pcrs(pcr0={enclave.pcrs.pcr0!r}, pcr1={enclave.pcrs.pcr1!r}, "
            f"pcr2={enclave.pcrs.pcr2!r})"
        )
        yield enclave


CONNECT = "client = enclavia.Client.connect(url, pcrs=pcrs, root=root)"


def test_cells(notebook: Notebook, enclave: LocalEnclave) -> None:
    notebook.run(CONNECT)
    page = notebook.run("client.attestation")["text/html"]
    assert "Enclave attestation" in page
    assert enclave.pcrs.pcr0.hex() in page
    assert notebook.run("client.get('/cell').text")["text/plain"] == "'/cell'"
    enclave.drop_connections()  # a coffee later
    assert notebook.run("client.get('/again').text")["text/plain"] == "'/again'"
    assert notebook.run("client.stats.reconnects")["text/plain"] == "1"
    notebook.run("client.close()")


def test_a_client_shows_what_it_is(notebook: Notebook, enclave: LocalEnclave) -> None:
    notebook.run(CONNECT)
    page = notebook.run("client")["text/html"]
    assert enclave.pcrs.pcr0.hex() in page
    assert "matched pins" in page
    assert "1 channel, verified" in page
    assert "Client statistics" in notebook.run("client.stats")["text/html"]
    notebook.run("client.close()")


@pytest.mark.parametrize("awaits", [False, True], ids=["blocking", "awaiting"])
def test_a_traceback_leaves_the_inside_out(
    notebook: Notebook, enclave: LocalEnclave, awaits: bool
) -> None:
    enclave.set_faults(Fault.WRONG_PCRS)
    kind = "AsyncClient" if awaits else "Client"
    notebook.run(f"client = enclavia.{kind}(url, pcrs=pcrs, root=root)")
    failed = notebook.failure_of(f"{'await ' * awaits}client.get('/')")
    assert failed["ename"] == "PcrMismatch"
    shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(failed["traceback"]))
    assert "client.get('/')" in shown
    # IPython shows the last frame always: the one that raises.
    inside = re.findall(r"enclavia/(_\w+/\w+\.py)", shown)
    assert len(inside) <= 1, shown
    all_frames = "''.join(traceback.format_exception(sys.last_value))"
    plain = notebook.run(f"import sys, traceback\n{all_frames}")["text/plain"]
    assert plain.count("enclavia/_exchange/") > 3
    notebook.run(f"{'await client.aclose' if awaits else 'client.close'}()")


def test_the_source_is_shown(notebook: Notebook) -> None:
    notebook.run("import enclavia")
    for name in ("Client", "AsyncClient", "Pcrs", "ConnectError"):
        found = notebook.run(
            f"get_ipython().inspector.info(enclavia.{name}, detail_level=1)['source']"
        )
        assert f"class {name}" in found["text/plain"]


def test_nothing_is_printed(notebook: Notebook, enclave: LocalEnclave) -> None:
    shown = notebook.run(
        f"{CONNECT}\nfor _ in range(3): client.get('/')\nclient.close()\nimport gc; gc.collect();"
    )
    assert not {"stdout", "stderr"} & set(shown), shown


def test_blocking_client_inside_the_running_loop(notebook: Notebook, enclave: LocalEnclave) -> None:
    shown = notebook.run(
        "loop = asyncio.get_running_loop()\n"
        "with enclavia.Client(url, pcrs=pcrs, root=root) as client:\n"
        "    text = client.get('/blocking').text\n"
        "text"
    )
    assert shown["text/plain"] == "'/blocking'"


def test_await_in_cells(notebook: Notebook, enclave: LocalEnclave) -> None:
    notebook.run("client = await enclavia.AsyncClient.connect(url, pcrs=pcrs, root=root)")
    assert "Enclave attestation" in notebook.run("client.attestation")["text/html"]
    shown = notebook.run(
        "answers = await asyncio.gather(*(client.get(f'/{n}') for n in range(100)))\n"
        "[answer.text for answer in answers] == [f'/{n}' for n in range(100)]"
    )
    assert shown["text/plain"] == "True"
    assert notebook.run("(await client.get('/next')).text")["text/plain"] == "'/next'"
    notebook.run("await client.aclose()")


def test_interrupted_cell(
    notebook: Notebook, enclave: LocalEnclave, slow: threading.Event, gave_up: list[bool]
) -> None:
    notebook.run(CONNECT)
    presser = notebook.interrupt_when(slow)
    assert notebook.error_of("client.get('/slow', timeout=None)") == "KeyboardInterrupt"
    presser.join()
    assert not gave_up, "the cell waited on"
    eventually(lambda: enclave.stats()["slots_open"] == 0)
    assert notebook.run("client.get('/after').text")["text/plain"] == "'/after'"
    assert notebook.run("client.stats.reconnects")["text/plain"] == "0", "the channel was lost"
    notebook.run("client.close()")


def test_interrupted_cell_that_awaits(
    notebook: Notebook, enclave: LocalEnclave, slow: threading.Event, gave_up: list[bool]
) -> None:
    """ipykernel cancels the cell, but does not wake its event loop."""
    notebook.run("client = await enclavia.AsyncClient.connect(url, pcrs=pcrs, root=root)")
    presser = notebook.interrupt_when(slow)
    ended = notebook.error_of("await client.get('/slow', timeout=None)")
    assert ended in ("CancelledError", "KeyboardInterrupt")
    presser.join()
    assert not gave_up, "the cell waited on"
    eventually(lambda: enclave.stats()["slots_open"] == 0)
    assert notebook.run("(await client.get('/after')).text")["text/plain"] == "'/after'"
    assert notebook.run("client.stats.reconnects")["text/plain"] == "0", "the channel was lost"
    notebook.run("await client.aclose()")


def test_cancelled_by_another_cell(
    notebook: Notebook, enclave: LocalEnclave, slow: threading.Event
) -> None:
    """What runs beside the cells, which the stop button does not reach."""
    notebook.run("client = await enclavia.AsyncClient.connect(url, pcrs=pcrs, root=root)")
    notebook.run("task = asyncio.ensure_future(client.get('/slow', timeout=None))")
    assert slow.wait(CELL_SECONDS)
    notebook.run("task.cancel()")
    eventually(lambda: enclave.stats()["slots_open"] == 0)
    assert notebook.run("task.cancelled()")["text/plain"] == "True"
    assert notebook.run("(await client.get('/after')).text")["text/plain"] == "'/after'"
    assert notebook.run("client.stats.reconnects")["text/plain"] == "0", "the channel was lost"
    notebook.run("await client.aclose()")


def test_interrupted_while_connecting(
    notebook: Notebook, enclave: LocalEnclave, slow: threading.Event
) -> None:
    enclave.set_faults(Fault.SILENT_ATTESTATION)
    notebook.run("client = enclavia.Client(url, pcrs=pcrs, root=root)")
    slow.set()
    presser = notebook.interrupt_when(slow)
    assert notebook.error_of("client.get('/', timeout=30)") == "KeyboardInterrupt"
    presser.join()
    enclave.set_faults()
    assert notebook.run("client.get('/after').text")["text/plain"] == "'/after'"
    notebook.run("client.close()")


def test_kernel_ends_with_an_open_client(enclave: LocalEnclave) -> None:
    notebook = Notebook()
    try:
        notebook.run(
            "import enclavia\n"
            f"client = enclavia.Client({enclave.url!r}, debug_mode=False, root={enclave.root!r}, "
            f"pcrs=enclavia.Pcrs(pcr0={enclave.pcrs.pcr0!r}, pcr1={enclave.pcrs.pcr1!r}, "
            f"pcr2={enclave.pcrs.pcr2!r}))\n"
            "client.get('/')"
        )
        # Not killed because it took too long.
        notebook.manager.shutdown_wait_time = 2 * CELL_SECONDS
        process = notebook.manager.provisioner.process
        notebook.manager.shutdown_kernel(now=False)
        assert process.returncode == 0
    finally:
        notebook.close()
    eventually(lambda: enclave.stats()["connections_open"] == 0)


def test_the_example_notebook(notebook: Notebook, tmp_path: Path) -> None:
    """docs/examples/notebook.ipynb, cell by cell, as it is kept: without outputs."""
    kept = json.loads((ROOT / "docs" / "examples" / "notebook.ipynb").read_text())
    codes = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in codes)
    notebook.run(f"import os\nos.chdir({str(tmp_path)!r})")
    shown = [notebook.run("".join(cell["source"])) for cell in codes]
    assert "<table" in shown[1]["text/html"]
    assert shown[2]["text/plain"] == "'hello from the enclave'"
    assert "Warning" not in str(shown[3]), "the bar is drawn without a word about widgets"
    assert (tmp_path / "model.bin").stat().st_size == 20_480_000
    assert shown[4]["stdout"].startswith("PCR0: expected 0101")
    assert shown[5]["stdout"] == "hello from the enclave\n"
