"""What waiting looks like to code that is written once for threads and event loops.

Everything that may wait goes through :class:`Io`. In an event loop it suspends; in a thread it
blocks, and :func:`run` steps through a coroutine that therefore never suspends. May call nothing
of this package but the C core's types.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import httpx2

from .. import _core
from .._arguments import byte_view

__all__ = ["Body", "Io", "Waiter", "expected_body", "now", "piece_of", "run"]
# Goes on while the machine sleeps, where the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

T = TypeVar("T")
W = TypeVar("W", bound="Waiter")


def now() -> float:
    return time.clock_gettime(_CLOCK)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs what only blocks."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    coroutine.close()
    raise RuntimeError("a blocking transport must not be given something to await")


class Waiter(Protocol):
    def set(self) -> None: ...


class Body(Protocol):
    """A request body that is produced piece by piece."""

    async def next(self, timeout: float | None) -> bytes | None:
        """None at the end. Raises WriteTimeout where it can tell that nothing comes."""

    async def close(self) -> None: ...


class Io(Protocol[W]):
    """Everything that may wait. A wait says False where its time was up."""

    def waiter(self) -> W: ...
    async def wait(self, waiter: W, timeout: float | None) -> bool: ...
    async def wait_open(self, channel: _core.Channel, timeout: float | None) -> bool: ...
    async def reserve(self, channel: _core.Channel, timeout: float | None) -> _core.Slot: ...
    async def read(self, stream: _core.Stream, n: int, timeout: float | None) -> bytes: ...
    async def wait_stream(self, stream: _core.Stream, what: int, timeout: float | None) -> bool: ...
    def body(self, request: httpx2.Request) -> Body: ...


def expected_body(request: object, kind: str) -> str:
    """Says that the request's body is not of this kind, which also a request of httpx's has not."""
    if type(request).__module__.partition(".")[0] == "httpx":
        return (
            "expected a request of httpx2, got one of httpx: the transports for clients of httpx "
            "are in enclavia.httpx"
        )
    if kind == "sync":
        return "expected a request with a sync body, got an async one: AsyncClient sends those"
    return "expected a request with an async body, got a sync one: Client sends those"


def piece_of(chunk: object) -> bytes:
    """A piece of a request's body as bytes: its producer may use the same buffer for the next one,
    and the length of a buffer that has other items than bytes is not its number of bytes."""
    if type(chunk) is bytes:
        return chunk
    if isinstance(chunk, str | int):
        instead = (
            "encode the text, or open the file in binary mode ('rb')"
            if isinstance(chunk, str)
            else "give a whole body as bytes(…)"
        )
        raise TypeError(
            "content: expected pieces that are bytes or another buffer, got "
            f"{type(chunk).__name__}: {instead}"
        )
    return b"" if chunk is None else bytes(byte_view("content", chunk))
