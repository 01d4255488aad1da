"""Runs the program as a user does: in a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from repository import ROOT
from support import HANG

from enclavia.testing import LocalEnclave

PROGRAM = [sys.executable, "-m", "enclavia"]

OK, REFUSED, UNREACHABLE, HTTP_STATUS = 0, 1, 2, 22
USAGE, CANNOT_WRITE, INTERRUPTED, BROKEN_PIPE = 64, 73, 130, 141


class Ended(NamedTuple):
    code: int
    out: bytes
    err: str

    def expect(self, code: int, *said: str) -> Ended:
        """That it ended so, and says so in whole lines without a traceback."""
        assert self.code == code, (self.code, self.out, self.err)
        assert "Traceback" not in self.err, self.err
        for words in said:
            assert words in self.err, (words, self.err)
        return self

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def environment(**more: str) -> dict[str, str]:
    """Without the variables that the program reads."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ENCLAVIA_", "_ENCLAVIA", "COVERAGE")) and name != "NO_COLOR"
    }
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def started(
    *arguments: str | bytes | Path,
    cwd: Path | None = None,
    before: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [*before, *PROGRAM, *arguments],
        cwd=cwd,
        env=environment(**(env or {})),
        **{**streams, **options},
    )


def ended(process: subprocess.Popen[bytes], given: bytes | None = None) -> Ended:
    """Kills it where it hangs, which fails the test."""
    try:
        out, err = process.communicate(given, timeout=HANG)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, out or b"", (err or b"").decode())


def cli(*arguments: str | bytes | Path, given: bytes | None = None, **options: Any) -> Ended:
    """One run, to its end, in a process that was forked from one that has the program loaded:
    starting an interpreter for each would take most of the tests' time."""
    if set(options) - {"cwd", "env"}:
        if given is not None:
            options["stdin"] = subprocess.PIPE
        return ended(started(*arguments, **options), given)
    return _loaded().run([os.fsencode(each) for each in arguments], given, **options)


class _Loaded:
    """The process that forks. It has one thread, and is told of each run by a line of JSON with
    the run's three streams beside it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _LOADED, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment(),
            )
        ours.settimeout(HANG)

    def run(
        self,
        arguments: list[bytes],
        given: bytes | None,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Ended:
        told = [
            [each.decode("latin-1") for each in arguments],
            str(cwd or ROOT),
            environment(**(env or {})),
        ]
        with contextlib.ExitStack() as files:
            stdin, stdout, stderr = (files.enter_context(tempfile.TemporaryFile()) for _ in "012")
            stdin.write(given or b"")
            stdin.seek(0)
            message = json.dumps(told).encode()
            streams = [each.fileno() for each in (stdin, stdout, stderr)]
            socket.send_fds(self._socket, [struct.pack("!I", len(message))], streams)
            self._socket.sendall(message)
            answer = self._socket.recv(4, socket.MSG_WAITALL)
            code = struct.unpack("!i", answer)[0]
            for each in (stdout, stderr):
                each.seek(0)
            return Ended(code, stdout.read(), stderr.read().decode())


_LOADED = """
import json, os, socket, struct, sys
import enclavia, enclavia._cli.app, enclavia._cli.main
import enclavia._cli.verification, enclavia._cli.requests, enclavia._cli.documents
import enclavia._cli.pins, enclavia._cli.doctor
told = socket.socket(fileno=int(sys.argv[1]))
while True:
    head, streams, _, _ = socket.recv_fds(told, 4, 3)
    if not head:
        break
    size = struct.unpack("!I", head)[0]
    arguments, cwd, environ = json.loads(told.recv(size, socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        told.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environ)
        sys.argv = ["enclavia-client"]
        sys.exit(enclavia._cli.main.main([os.fsdecode(a.encode("latin-1")) for a in arguments]))
    for stream in streams:
        os.close(stream)
    told.sendall(struct.pack("!i", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


@functools.cache
def _loaded() -> _Loaded:
    loaded = _Loaded()
    atexit.register(_end, loaded)
    return loaded


def _end(loaded: _Loaded) -> None:
    loaded._socket.close()
    loaded.process.wait(HANG)


def interrupted(process: subprocess.Popen[bytes], number: int = signal.SIGINT) -> Ended:
    process.send_signal(number)
    return ended(process)


def pins_of(enclave: LocalEnclave, folder: Path) -> list[str]:
    """Writes what an enclave's clients need; returns the options that say so."""
    (folder / "pcrs.json").write_text(json.dumps(enclave.pcrs.as_dict()))
    options = ["--pcrs", str(folder / "pcrs.json")]
    if enclave.root is not None:
        (folder / "root.pem").write_bytes(enclave.root)
        options += ["--root", str(folder / "root.pem")]
    return options


def other_pins(folder: Path) -> list[str]:
    """Pins that no enclave of the tests has; the root is to be added."""
    path = folder / "other.json"
    path.write_text(json.dumps({f"PCR{n}": f"{n + 1:02x}" * 48 for n in range(3)}))
    return ["--pcrs", str(path)]
