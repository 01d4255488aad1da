"""Waiting in a browser, as blocking code does it: the whole stack of Python is set aside while the
page's event loop goes on (JavaScript Promise Integration, JSPI).

Pyodide has one thread, and a program that blocked it would wait for ever: nothing is received
meanwhile. ``pyodide.ffi.run_sync`` waits for an awaitable in a function that is not async. That
needs a browser that has JSPI, and Python that JavaScript called in the way that allows it.

Decides whether blocking code can wait here. Calls: _core, _errors. Locks: none.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .. import _core
from .._errors import StateError
from .face import run
from .late import nothing_sent
from .loops import LoopIo, loop_hub
from .threads import StepIo, ThreadIo

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .fetching import Answer, Fetch
    from .local import AnyChannel, AnySlot, AnyStream

__all__ = ["SwitchIo", "SwitchStream", "expect_can_wait"]

T = TypeVar("T")

_LOOP = LoopIo()


def expect_can_wait() -> None:
    """Raises StateError where blocking code cannot wait here."""
    from pyodide.ffi import can_run_sync

    if not can_run_sync():
        raise StateError(
            "expected a runtime in which blocking code can wait (WebAssembly's JavaScript Promise "
            "Integration, JSPI, in a call by runPythonAsync or callPromising), got one in which "
            "it cannot: use AsyncClient and await it"
        )


def switch(waiting: Coroutine[Any, Any, T]) -> T:
    """What it awaits to; the event loop runs meanwhile."""
    from pyodide.ffi import run_sync

    try:
        expect_can_wait()
    except BaseException:
        waiting.close()
        raise
    result: T = run_sync(waiting)
    return result


class SwitchIo(ThreadIo):
    """As :class:`ThreadIo`, of which it takes what does not wait."""

    awaits: ClassVar = False
    reads_by_blocking: ClassVar = False

    def waiter(self) -> Any:  # noqa: ANN401 - another waiter than a thread's
        # Whoever is about to connect makes one first: so nothing is begun that could not be
        # waited for.
        expect_can_wait()
        return loop_hub().waiter()

    async def wait(self, waiter: Any, timeout: float | None) -> bool:  # noqa: ANN401
        return switch(_LOOP.wait(waiter, timeout))

    async def wait_open(self, channel: AnyChannel, timeout: float | None) -> bool:
        return switch(_LOOP.wait_open(channel, timeout))

    async def wait_stage(self, channel: _core.Channel, seen: int, timeout: float | None) -> bool:
        return switch(_LOOP.wait_stage(channel, seen, timeout))

    async def wait_verified(self, channel: _core.Channel, timeout: float | None) -> None:
        switch(_LOOP.wait_verified(channel, timeout))

    async def reserve(self, channel: AnyChannel, timeout: float | None) -> AnySlot:
        return switch(_LOOP.reserve(channel, timeout))

    async def answer(self, request: _core.Request, timeout: float | None) -> bytes | None:
        return switch(_LOOP.answer(request, timeout))

    async def attest(
        self, channel: _core.Channel, timeout: float | None
    ) -> _core.RawAttestation | None:
        return switch(_LOOP.attest(channel, timeout))

    async def read(self, stream: AnyStream, n: int, timeout: float | None) -> bytes:
        data = stream.read(n, 0)
        return switch(_LOOP.read(stream, n, timeout)) if data is None else data

    async def write(self, stream: AnyStream, data: Buffer, timeout: float | None) -> int:
        sent = stream.write(data, 0)
        if sent < memoryview(data).nbytes:
            if timeout is not None and timeout <= 0:
                raise nothing_sent(timeout)
            sent += switch(_LOOP.write(stream, memoryview(data).cast("B")[sent:], timeout))
        return sent

    async def wait_stream(self, stream: AnyStream, what: int, timeout: float | None) -> bool:
        return switch(_LOOP.wait_stream(stream, what, timeout))

    async def fetch(self, wanted: Fetch, timeout: float | None) -> Answer | None:
        return switch(_LOOP.fetch(wanted, timeout))

    def _step_io(self, ended: Callable[[], bool]) -> StepIo:
        return _SwitchStepIo(ended)


class SwitchStream:
    """A stream of the core's, whose calls wait as blocking code does here."""

    def __init__(self, core: _core.Stream) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what does not wait is the core's
        return getattr(self._core, name)

    def read(self, n: int, timeout: float | None) -> bytes | None:
        data = self._core.read(n, 0)
        return data if data is not None or timeout == 0 else run(_IO.read(self._core, n, timeout))

    def readinto(self, buffer: Buffer, timeout: float | None) -> int | None:
        count = self._core.readinto(buffer, 0)
        if count is not None or timeout == 0:
            return count
        return switch(_LOOP.readinto(self._core, buffer, timeout))

    def write(self, data: Buffer, timeout: float | None) -> int:
        return (
            self._core.write(data, 0) if timeout == 0 else run(_IO.write(self._core, data, timeout))
        )


class _SwitchStepIo(StepIo, SwitchIo):
    """What :class:`StepIo` adds, on top of this module's waits."""


_IO = SwitchIo()
