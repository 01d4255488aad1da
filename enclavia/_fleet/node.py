"""The forwarder of a machine for the workers there: found where one runs, started where none does.

It is a process of its own, because a worker computes, and would hold up the other workers of the
machine while it does. It ends when the worker that started it closes this or dies; another worker
then starts the next one, which the clients' patience covers.

Decides who starts a forwarder, and when. Calls: _channel, _core, _errors, _forward,
_interpreter, _io. Locks:
``_lock``, around the process while it is started, looked at and ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final, TextIO

from .. import _core, _errors
from .._channel.socket_path import CONTROL, default_path
from .._channel.url import EnclaveURL
from .._errors import ConnectError, EnclaviaError, StateError
from .._forward.forwarder import FORWARDER_DEFAULTS, Forwarder
from .._interpreter import python_command
from .._io.local import Place
from .._io.polling import poll_descriptor

__all__ = ["NodeForwarder", "main"]

_PROGRAM: Final = "from enclavia._fleet.node import main; main()"
_PICKLERS: Final = ("cloudpickle", "pyspark.cloudpickle", "ray.cloudpickle")
_START_SECONDS: Final = 60.0
_WATCH_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 10.0
_PARENT_CHECK_SECONDS: Final = 1.0


class NodeForwarder:
    """While this is open, this process sees to it that a forwarder to ``url`` runs here."""

    def __init__(self, url: EnclaveURL, options: Mapping[str, Any]) -> None:
        """``options``: of a client; those that a forwarder has too are given to it. What may be a
        function is not: it might not be found in another process, and the clients have it too."""
        self._url = url
        self._options = {
            name: value
            for name, value in options.items()
            if name in FORWARDER_DEFAULTS and name not in ("retries", "timeout", "on_attestation")
        }
        self._path = default_path(url)
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._watch: threading.Thread | None = None

    @property
    def via(self) -> str:
        """What a client is given."""
        return f"unix:{self._path}"

    @property
    def pid(self) -> int | None:
        """Of the forwarder that this process has started; None where another one has."""
        process = self._process
        return None if process is None else process.pid

    def open(self) -> None:
        """A forwarder listens when this returns. Raises :class:`ConnectError` where the place is
        not safe, ``ImportError`` where the extra ``forward`` is missing."""
        self._ensure()
        self._watch = threading.Thread(
            target=self._keep, name="enclavia-fleet-forwarder", daemon=True
        )
        self._watch.start()

    def close(self) -> None:
        """Has the forwarder that this process has started drain and end. May be called again."""
        self._closing.set()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.join()
        with self._lock:
            self._end()

    def _keep(self) -> None:
        """Starts another one when the one of another worker has ended. The pauses differ, so that
        not all workers of a machine start one at once; of two, one gets the path."""
        while not self._closing.wait(_WATCH_SECONDS * random.uniform(0.5, 1.5)):  # noqa: S311
            # What is wrong is told by the clients' own errors, and may pass.
            with contextlib.suppress(EnclaviaError, OSError, ImportError):
                self._ensure()

    def _ensure(self) -> None:
        with self._lock:
            if self._process is not None:
                if self._process.poll() is None:
                    return
                self._end()
            if not self._runs():
                self._start()

    def _runs(self) -> bool:
        place = Place(self._path + CONTROL, frozenset((os.geteuid(),)))
        try:
            place.connect().close()
        except ConnectError as error:
            if not error.retryable:
                raise
            return False
        return True

    def _start(self) -> None:
        command = python_command(_PROGRAM)
        try:
            process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise ConnectError(
                f"expected a forwarder that {command[0]!r} starts (sys.executable), got: {error}"
            ) from error
        self._process = process
        try:
            said = self._handed_over(process)
        except BaseException:
            self._end()
            raise
        if said.get("state") != "ready":
            self._end()
            if said.get("state") != "taken":
                raise _error_of(said)

    def _handed_over(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """What the new process says of itself, having been told what to be."""
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - both pipes
        try:
            process.stdin.write(_pickled((str(self._url), self._options)))
            process.stdin.flush()
        except OSError as error:
            raise ConnectError(f"expected a forwarder that starts, got: {error}") from error
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConnectError(
                "expected settings that another process can be given (pins from a function that "
                f"can be imported, or one that cloudpickle takes), got others: {error}",
                retryable=False,
            ) from error
        if not poll_descriptor(process.stdout.fileno(), _core.READABLE, _START_SECONDS):
            raise ConnectError(
                f"expected a forwarder that starts within {_START_SECONDS:g} s, got no word of it"
            )
        line = process.stdout.readline()
        if not line:
            raise ConnectError(
                "expected a forwarder that starts, got its end: its output on stderr says why"
            )
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise ConnectError(
                f"expected a forwarder that says whether it started, got {line[:80]!r}: something "
                "prints on standard output while Python starts (sitecustomize, usercustomize)",
                retryable=False,
            ) from error
        return said

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pickled(what: object) -> bytes:
    """Dask, Ray and Spark bring functions that have no name to their workers by one of these; what
    came to a worker so goes on to the forwarder so."""
    for name in _PICKLERS:
        dumps = getattr(sys.modules.get(name), "dumps", None)
        if dumps is not None:
            data: bytes = dumps(what)
            return data
    return pickle.dumps(what)


def _error_of(said: Mapping[str, Any]) -> Exception:
    cls: object = getattr(_errors, str(said.get("type")), None)
    message = f"the forwarder of this machine did not start: {said.get('message')}"
    if said.get("type") == "ImportError":
        return ImportError(message)
    if isinstance(cls, type) and issubclass(cls, EnclaviaError):
        return cls(message, retryable=said.get("retryable") is True)
    return ConnectError(message, retryable=False)


def main() -> None:
    """What the forwarder's process runs: until its parent closes the pipe, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: for the job, which then ends this
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parent = os.getppid()
    answers = _answers()
    try:
        url, options = pickle.load(sys.stdin.buffer)  # noqa: S301 - of our parent
        forwarder = Forwarder(url, **options)
        forwarder.start()
    except StateError:
        _say(answers, state="taken")
        return
    except EnclaviaError as error:
        what = {"type": type(error).__name__, "message": error.message}
        _say(answers, **what, retryable=error.retryable)
        return
    except (ImportError, AttributeError, OSError, ValueError, TypeError) as error:
        kind = "ImportError" if isinstance(error, ImportError) else "ConnectError"
        _say(answers, type=kind, message=str(error), retryable=False)
        return
    try:
        _say(answers, state="ready")
        # Other children of the parent may hold its end of the pipe open.
        while os.getppid() == parent and forwarder.running:
            if poll_descriptor(0, _core.READABLE, _PARENT_CHECK_SECONDS):
                break
    finally:
        forwarder.stop(_DRAIN_SECONDS)


def _answers() -> TextIO:
    """Where the parent reads, which was standard output until now. Standard output leads to
    standard error from now on: what a function for pins prints is no answer, and would fill a pipe
    that the parent reads no more once the forwarder runs."""
    answers = os.fdopen(fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3), "w", encoding="ascii")
    # Where standard error was closed, what is printed goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else 2, 1)
    return answers


def _say(answers: TextIO, **what: object) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        print(json.dumps(what), file=answers, flush=True)
