"""A local enclave in a process of its own: what runs there, and how its parent talks to it.

The two share one pipe. The parent sends ``(method, arguments)``, the child answers
``(True, result)`` or ``(False, exception)``. The child ends when the pipe does, or its parent.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any

from .._pcrs import Pcrs
from ._runner import Facts, Faults, Options, Runner

if TYPE_CHECKING:
    from ._pki import EnclavePki

__all__ = ["ChildRunner"]

_PROGRAM = "import sys; from enclavia.testing._child import main; main(int(sys.argv[1]))"
_START_SECONDS = 60.0
_CALL_SECONDS = 60.0
_STOP_SECONDS = 10.0
_PARENT_CHECK_SECONDS = 1.0


class ChildRunner:
    """The parent's end; offers what :class:`Runner` does."""

    def __init__(self, options: Options) -> None:
        try:
            self._options = pickle.dumps(options)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                "an app for another process must be importable there: give 'module:attribute', "
                f"'host:port' or a function of a module ({error})"
            ) from None
        if getattr(options.app, "__module__", None) == "__main__":
            raise TypeError(
                "an app for another process must be importable there, and __main__ is not: give "
                "'module:attribute'"
            )
        self._lock = threading.Lock()  # guards both below
        self._pipe: Connection[Any, Any] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Facts:
        with self._lock:
            ours, theirs = Pipe()
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
                    [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                )
            self._pipe = ours
            try:
                facts: Facts = self._answer(_START_SECONDS, self._options)
            except BaseException:
                self._end()
                raise
            return facts

    def stop(self) -> None:
        with self._lock:
            self._end()

    def restart(self) -> Facts:
        facts: Facts = self._call("restart")
        return facts

    def set_faults(self, faults: Faults) -> None:
        self._call("set_faults", faults)

    def set_identity(self, pcrs: Pcrs | None, pki: EnclavePki | None) -> Facts:
        facts: Facts = self._call("set_identity", pcrs, pki)
        return facts

    def drop_connections(self, reset: bool) -> None:
        self._call("drop_connections", reset)

    def stats(self) -> dict[str, int]:
        found: dict[str, int] = self._call("stats")
        return found

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def _call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401
        with self._lock:
            return self._answer(_CALL_SECONDS, (method, arguments))

    def _answer(self, seconds: float, question: object) -> Any:  # noqa: ANN401
        if self._pipe is None:
            raise RuntimeError("this enclave is stopped")
        try:
            self._pipe.send(question)
            if not self._pipe.poll(seconds):
                raise TimeoutError(f"the enclave's process did not answer within {seconds:g} s")
            good, result = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("the enclave's process ended (its output says why)") from None
        if not good:
            raise result
        return result

    def _end(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _serve(pipe: Connection[Any, Any], runner: Runner, parent: int) -> None:
    while True:
        # Other children of the parent may hold its end of the pipe open.
        while not pipe.poll(_PARENT_CHECK_SECONDS):
            if os.getppid() != parent:
                return
        try:
            method, arguments = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer = (True, getattr(runner, method)(*arguments))
        except Exception as error:
            answer = (False, _picklable(error))
        pipe.send(answer)


def main(descriptor: int) -> None:
    """What the child process runs."""
    parent = os.getppid()
    with contextlib.suppress(KeyboardInterrupt), Connection(descriptor) as pipe:
        try:
            runner = Runner(pickle.loads(pipe.recv()))  # noqa: S301 - of our parent
            facts = runner.start()
        except Exception as error:
            pipe.send((False, _picklable(error)))
            return
        try:
            pipe.send((True, facts))
            _serve(pipe, runner, parent)
        finally:
            runner.stop()
