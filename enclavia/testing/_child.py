"""A local enclave in a process of its own: what runs there, and how its parent talks to it.

The two share one pipe. The parent sends ``(number, method, arguments)``, the child answers
``(number, True, result)`` or ``(number, False, exception)``, so that an answer which nobody waits
for any more is told from the next one. The child ends when the pipe does, or its parent.

Decides when the other process counts as dead. Calls: _identity, _interpreter. Locks: ``_lock``, one
on each side: around who waits for which answer, and around one question.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any

from .._identity.pcrs import Pcrs
from .._interpreter import python_command
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
        self._line: _Line | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Facts:
        with self._lock:
            ours, theirs = Pipe()
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
                    python_command(_PROGRAM, str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            self._line = _Line(ours)
            try:
                facts: Facts = self._line.ask(_START_SECONDS, "start", self._options)
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

    def upgrade(
        self,
        app: Callable[..., Any] | str | tuple[str, int] | None,
        pcrs: Pcrs | None,
        boot: bool,
    ) -> Facts:
        try:
            pickle.dumps(app)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                "an app for another process must be importable there: give 'module:attribute', "
                f"'host:port' or a function of a module ({error})"
            ) from None
        facts: Facts = self._call("upgrade", app, pcrs, boot)
        return facts

    def revoke(self) -> Facts:
        facts: Facts = self._call("revoke")
        return facts

    def rollback(self) -> Facts:
        facts: Facts = self._call("rollback")
        return facts

    def set_backend_faults(self, mask: int) -> None:
        self._call("set_backend_faults", mask)

    def drop_connections(self, reset: bool) -> None:
        self._call("drop_connections", reset)

    def stats(self) -> dict[str, int]:
        found: dict[str, int] = self._call("stats")
        return found

    def settle(self, seconds: float) -> None:
        self._call("settle", seconds)

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is there no more, although nobody has stopped it. Does not wait."""
        process = self._process
        return process is not None and process.poll() is not None

    def _call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401
        with self._lock:
            if self._line is None:
                raise RuntimeError("this enclave is stopped")
            return self._line.ask(_CALL_SECONDS, method, *arguments)

    def _end(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class _Line:
    """The parent's end of the pipe.

    Each question is asked by a thread of its own. A signal's handler raises in the main thread
    only, so Ctrl-C ends the wait for an answer, and never the sending or receiving of a message in
    the middle of it.
    """

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()  # one question at a time
        self._numbers = itertools.count()

    def ask(self, seconds: float, method: str, *arguments: object) -> Any:  # noqa: ANN401
        question = (next(self._numbers), method, arguments)
        answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        thread = threading.Thread(
            target=self._exchange,
            args=(seconds, question, answer),
            name="enclavia-testing",
            daemon=True,
        )
        thread.start()
        good, result = answer.get()
        thread.join()
        if not good:
            raise result
        return result

    def _exchange(
        self,
        seconds: float,
        question: tuple[int, str, tuple[object, ...]],
        answer: queue.SimpleQueue[tuple[bool, Any]],
    ) -> None:
        try:
            with self._lock:
                self._pipe.send(question)
                answer.put(self._receive(seconds, question[0]))
        except (OSError, EOFError):
            ended = RuntimeError(
                "the enclave's process ended: it was killed, or its output on stderr says why; "
                "stop() and start() make another enclave"
            )
            answer.put((False, ended))
        except Exception as error:
            answer.put((False, error))

    def _receive(self, seconds: float, expected: int) -> tuple[bool, Any]:
        deadline = time.monotonic() + seconds
        while self._pipe.poll(max(0.0, deadline - time.monotonic())):
            number, good, result = self._pipe.recv()
            if number == expected:
                return good, result
            # The answer to a question whose time was up.
        return False, TimeoutError(f"the enclave's process did not answer within {seconds:g} s")

    def close(self) -> None:
        # Ends the exchange that may be under way, and only then the descriptor it uses.
        with (
            socket.socket(fileno=os.dup(self._pipe.fileno())) as end,
            contextlib.suppress(OSError),  # the process ended before
        ):
            end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._pipe.close()


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
            number, method, arguments = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer = (number, True, getattr(runner, method)(*arguments))
        except Exception as error:
            answer = (number, False, _picklable(error))
        pipe.send(answer)


def main(descriptor: int) -> None:
    """What the child process runs."""
    # A terminal's Ctrl-C and a notebook's stop button reach the whole process group, and are meant
    # for the parent, which ends this where it wants to. (A handler, because a signal that is
    # ignored stays so in the programs that the app starts.)
    signal.signal(signal.SIGINT, lambda *_: None)
    parent = os.getppid()
    with Connection(descriptor) as pipe:
        number, _, (options,) = pipe.recv()
        try:
            runner = Runner(pickle.loads(options))  # noqa: S301 - of our parent
            facts = runner.start()
        except Exception as error:
            pipe.send((number, False, _picklable(error)))
            return
        try:
            pipe.send((number, True, facts))
            _serve(pipe, runner, parent)
        finally:
            runner.stop()
