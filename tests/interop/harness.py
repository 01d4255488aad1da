"""Starts and stops the other side: the Rust programs of ``peer/`` and a workload of our own."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from enclavia import _core

HERE = Path(__file__).resolve().parent
BUILD_LIMIT = 1800.0
START_LIMIT = 20.0
STOP_LIMIT = 5.0

#: What ``enclave-peer`` takes without ``--seed``.
DEFAULT_SEED = 0x11


def build_programs() -> Path:
    """The directory with both Rust programs; ENCLAVIA_INTEROP_BIN names one that is ready."""
    prebuilt = os.environ.get("ENCLAVIA_INTEROP_BIN")
    if prebuilt:
        return Path(prebuilt)
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("no cargo to build the Rust peer with, and ENCLAVIA_INTEROP_BIN is not set")
    crate = HERE / "peer"
    target = crate / "target"
    command = [cargo, "build", "--release", "--locked", "--quiet", "--target-dir", str(target)]
    built = subprocess.run(
        command, cwd=crate, capture_output=True, text=True, timeout=BUILD_LIMIT, check=False
    )
    if built.returncode != 0:
        pytest.fail(f"cargo build of the Rust peer failed:\n{built.stderr[-4000:]}")
    return target / "release"


def trusting(program: Path, root: bytes, out: Path) -> Path:
    """A copy of the published client's program that differs in nothing but the bytes of the
    certificate it trusts, which is compiled in and cannot be told."""
    code = program.read_bytes()
    held = re.findall(rb"-----BEGIN CERTIFICATE-----\n[\w+/=\n]+-----END CERTIFICATE-----", code)
    found = [base64.b64decode(b"".join(pem.split(b"\n")[1:-1])) for pem in held]
    if found != [_core.AWS_ROOT_G1]:
        raise RuntimeError(f"{program}: expected AWS's root once, found {len(held)} certificates")
    first, *digits, last = root.strip().split(b"\n")
    root = b"\n".join([first, b"".join(digits), last])  # on one line it takes less room
    if len(root) > len(held[0]):
        raise RuntimeError(f"a root of {len(root)} bytes has no room in {len(held[0])}")
    out.write_bytes(code.replace(held[0], root.ljust(len(held[0]), b"\n")))
    out.chmod(0o755)
    return out


class Server:
    """A child that prints ``listening <port>`` and ends when its standard input does.

    The pipe is the leash: it also breaks when the test run is killed.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **(env or {})},
        )
        try:
            word, port = self._line().split()
            if word != "listening":
                raise RuntimeError(f"{command[0]}: expected 'listening <port>', got {word!r}")
            self.port = int(port)
        except BaseException:
            self.kill()
            raise

    def _line(self) -> str:
        out = self._process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], START_LIMIT)
        line = out.readline() if ready else b""
        if not line:
            raise RuntimeError(f"{self._process.args!r}: no answer on standard output")
        return line.decode()

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> int:
        """The exit status. Idempotent; also after kill()."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
        status = self._process.wait(STOP_LIMIT)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return status

    def kill(self) -> None:
        """As a crash does: no goodbye on any connection."""
        self._process.kill()
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class WorkloadServer(Server):
    def __init__(self, port: int = 0) -> None:
        super().__init__([sys.executable, str(HERE / "workload.py")], env={"PORT": str(port)})

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class Peer(Server):
    """``enclave-peer`` in front of a workload. Options as on its command line; True is a switch."""

    def __init__(self, programs: Path, workload: str, **options: int | float | bool) -> None:
        self.seed = int(options.get("seed", DEFAULT_SEED))
        command = [str(programs / "enclave-peer"), "--workload", workload]
        for name, value in options.items():
            flag = "--" + name.replace("_", "-")
            command += [flag] if value is True else [flag, str(value)]
        super().__init__(command)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def drop_connections(self) -> None:
        self._tell("drop")

    def stats(self) -> dict[str, Any]:
        """``accepted`` and ``open`` connections, ``slots_open`` over all of them, ``ended``: reason
        to count, and how often a connection's loop was ``out_of_steps``."""
        self._tell("stats")
        answer: dict[str, Any] = json.loads(self._line())
        return answer


class ReferenceClient:
    """The published Rust client; each call is one run of it and returns its JSON line."""

    def __init__(
        self, programs: Path, timeout: float = 120, env: dict[str, str] | None = None
    ) -> None:
        self._program = str(programs / "reference-client")
        self._timeout = timeout
        self._env = {**os.environ, **(env or {})}

    def __call__(self, command: str, url: str, *rest: str | int) -> dict[str, Any]:
        words = [self._program, command, url, *(str(word) for word in rest)]
        ran = subprocess.run(
            words, capture_output=True, text=True, timeout=self._timeout, check=False, env=self._env
        )
        if not ran.stdout:
            raise RuntimeError(f"{words!r} ended with {ran.returncode}: {ran.stderr[-2000:]}")
        report: dict[str, Any] = json.loads(ran.stdout)
        return report
