"""``forward``: the options of the program reach the forwarder, and it ends as services do."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from command_line import INTERRUPTED, USAGE, cli, started
from repository import ROOT
from support import HANG, ByteServer, Connection, answering, eventually

from enclavia.testing import LocalEnclave

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TOKEN = "a-token-of-this-test-alone"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="enclavia-") as made:
        yield Path(made)


@pytest.fixture
def arguments(folder: Path) -> Iterator[list[str]]:
    with ByteServer(answering(OK)) as server, LocalEnclave(server.address) as enclave:
        yield arguments_of(enclave, folder)


def arguments_of(enclave: LocalEnclave, folder: Path) -> list[str]:
    lines = [f"{name}: {value}" for name, value in enclave.pcrs.as_dict().items()]
    (folder / "pins").write_text("\n".join(lines))
    (folder / "root").write_bytes(enclave.root or b"")
    pins = ["--pcrs", str(folder / "pins"), "--root", str(folder / "root")]
    return ["forward", enclave.url, *pins, "--socket", str(folder / "f")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, INTERRUPTED)])
def test_all_its_sockets(
    folder: Path, arguments: list[str], number: signal.Signals, code: int
) -> None:
    (folder / "token").write_text(f"{TOKEN}\n")
    more = ["--http", "--listen", "127.0.0.1:0", "--token-file", str(folder / "token")]
    process = started(*arguments, *more, cwd=folder)
    assert process.stdout is not None
    lines = [process.stdout.readline().decode() for _ in range(4)]
    assert lines[0] == f"via   unix:{folder}/f\n"
    assert lines[1] == f"http  {folder}/f.http\n"
    assert lines[3].startswith("verified i-")
    address = lines[2].removeprefix("tcp   ").strip()
    with httpx2.Client(trust_env=False, timeout=HANG) as client:
        assert client.get(f"http://{address}/").status_code == 407
        token = {"Proxy-Authorization": f"Bearer {TOKEN}"}
        assert client.get(f"http://{address}/", headers=token).text == "ok"
    again = cli(*arguments, cwd=folder)
    again.expect(USAGE, "expected no other forwarder")
    process.send_signal(number)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == code
    assert b"draining" in out
    assert not (folder / "f").exists()


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 0),
        (signal.SIGTERM, signal.SIGINT, 0),
        (signal.SIGINT, signal.SIGINT, INTERRUPTED),
    ],
)
def test_a_second_signal_ends_what_the_first_one_waits_for(
    folder: Path, first: signal.Signals, second: signal.Signals, code: int
) -> None:
    asked = threading.Event()

    def script(connection: Connection) -> None:
        connection.head()
        asked.set()
        connection.wait_closed(HANG)

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:
        arguments = arguments_of(enclave, folder)
        process = started(*arguments, "--drain", "1000000", cwd=folder)
        assert process.stdout is not None
        process.stdout.readline()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(folder / "f"))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert asked.wait(HANG)
            process.send_signal(first)
            eventually(lambda: not (folder / "f").exists())
            process.send_signal(second)
            process.communicate(timeout=HANG)
    assert process.returncode == code


def test_a_port_for_everybody_is_told_as_it_is(folder: Path, arguments: list[str]) -> None:
    process = started(*arguments, "--listen", "127.0.0.1:0", "--way", "stream", cwd=folder)
    assert process.stdout is not None
    lines = [process.stdout.readline().decode() for _ in range(3)]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=HANG)
    port = lines[1].rpartition(":")[2].strip()
    assert f"every user of this machine may use 127.0.0.1:{port}\n" in err.decode()


def test_one_that_is_ended_while_it_connects_tells_no_error(folder: Path) -> None:
    """That it was ended is what it was told to do."""
    pins = [f"PCR{index}: {'ab' * 48}" for index in range(3)]
    (folder / "pins").write_text("\n".join(pins))
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        where = ["--pcrs", str(folder / "pins"), "--socket", str(folder / "f")]
        process = started("forward", url, *where, cwd=folder)
        silent.settimeout(HANG)
        with silent.accept()[0]:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=HANG)
    assert (process.returncode, err) == (0, b"")
    assert out.endswith(b"draining\n")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--listen", "127.0.0.1:0"], "expected a token for HTTP at a TCP port, got none"),
        (["--listen", "nowhere"], "expected a token"),
        (["--listen", "nowhere", "--way", "stream"], "listen: expected 'HOST:PORT'"),
        (["--socket", "f"], "expected an absolute path"),
        (["--socket", ""], "expected a value, got an empty one"),
        (["--socket", "/" + "x" * 100], "at most 94 bytes"),
        (["--max-channels", "0"], "--max-channels"),
        (["--drain", "-1"], "--drain: expected 0 to 9.22337e+09 seconds, got -1"),
        (["--drain", "nan"], "--drain: expected 0 to 9.22337e+09 seconds, got nan"),
        (["--drain", "inf"], "--drain: expected 0 to 9.22337e+09 seconds, got inf"),
        (["--drain", "1e300"], "--drain: expected 0 to 9.22337e+09 seconds, got 1e+300"),
        (["--drain", "soon"], "--drain"),
        (["--way", "stream"], "--way: expected --listen HOST:PORT beside it, got none"),
        (["--way", "http"], "--way: expected --listen HOST:PORT beside it, got none"),
        (["--token-file", "t"], "--token-file: expected --listen HOST:PORT beside it, got none"),
        (
            ["--listen", "127.0.0.1:0", "--way", "stream", "--token-file", "t"],
            "--token-file: expected --way http, got stream",
        ),
    ],
)
def test_refused(folder: Path, arguments: list[str], more: list[str], said: str) -> None:
    cli(*arguments, *more, cwd=folder).expect(USAGE, said)


def test_an_empty_token_of_the_environment_is_named(folder: Path, arguments: list[str]) -> None:
    refused = cli(
        *arguments, "--listen", "127.0.0.1:0", cwd=folder, env={"ENCLAVIA_FORWARD_TOKEN": ""}
    )
    refused.expect(USAGE, "ENCLAVIA_FORWARD_TOKEN: expected a value, got an empty one")


def test_a_place_that_cannot_be_had(folder: Path, arguments: list[str]) -> None:
    """Which is no enclave that cannot be reached: the exit code is that of usage."""
    with ByteServer(answering(OK)) as taken:
        place = taken.address
        refused = cli(*arguments, "--listen", place, "--way", "stream", cwd=folder)
    refused.expect(USAGE, f"expected to listen at {place}, got: Address already in use: choose")
    folder.chmod(0o1777)
    cli(*arguments, cwd=folder).expect(USAGE, "whose owner alone may have access to it")


def test_a_missing_library_is_one_line(folder: Path, arguments: list[str]) -> None:
    (folder / "prometheus_client.py").write_text("raise ImportError('hidden by a test')")
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    refused = cli(*arguments, cwd=folder, env={"PYTHONPATH": path})
    refused.expect(USAGE, "prometheus_client, which is not installed: pip install 'enclavia[forw")
    assert refused.err.count("\n") == 1
    assert not (folder / "f").exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_the_unit_is_one(folder: Path) -> None:
    unit = ROOT / "docs" / "examples" / "enclavia-forward.service"
    checked = subprocess.run(
        ["systemd-analyze", "--user", "verify", unit],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    options = re.findall(r"(--[\w-]+)", re.findall(r"^ExecStart=.*", unit.read_text(), re.M)[0])
    assert options == ["--pcrs"]
