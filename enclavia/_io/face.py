"""What waiting looks like to code that is written once for threads and event loops.

Everything that may wait goes through :class:`Io`. In an event loop it suspends; in a thread it
blocks, and :func:`run` steps through a coroutine that therefore never suspends. Knows nothing of
what is above it.

Decides how a timeout becomes a deadline, and what may be a piece of a request's body. Calls:
_arguments, _core, _errors. Locks: none.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar

import httpx2

from .. import _core
from .._arguments import byte_view
from .._errors import ConnectTimeout
from .late import SHORTEST, stated

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .fetching import Answer, Fetch
    from .local import AnyChannel, AnySlot, AnyStream

__all__ = [
    "READ_SIZE",
    "Ended",
    "Io",
    "Register",
    "Waiter",
    "deadline_of",
    "expect_verified",
    "expected_body",
    "now",
    "piece_of",
    "positive",
    "run",
    "time_left",
]


def _clock() -> int:
    """One that goes on while the machine sleeps, where the system has it. Pyodide names one that it
    does not have."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    try:
        time.clock_gettime(clock)
    except OSError:
        return time.CLOCK_MONOTONIC
    return clock


_CLOCK = _clock()

READ_SIZE: Final = 65_536

T = TypeVar("T")
W = TypeVar("W", bound="Waiter")


# A request asks half a dozen times what time it is: no function of Python's around it.
now: Callable[[], float] = functools.partial(time.clock_gettime, _CLOCK)


def deadline_of(timeout: float | None) -> float | None:
    return None if timeout is None else now() + timeout


def time_left(deadline: float | None) -> float | None:
    return None if deadline is None else max(SHORTEST, deadline - now())


def expect_verified(channel: AnyChannel, waited: float | None) -> None:
    """After a wait of so many seconds, which is over: says what is missing, and closes."""
    try:
        channel.wait_open(0 if _core.WEB else SHORTEST)
    except ConnectTimeout as error:
        raise ConnectTimeout(f"{error} within {stated(waited)} s") from None


def positive(seconds: float | None) -> float | None:
    """In C a timeout of 0 asks for what is there already; here it is a deadline like any other."""
    return seconds if seconds is None or seconds > SHORTEST else SHORTEST


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs what only blocks."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    except BaseException:
        # IPython and pytest leave frames that have this name out of the tracebacks that they show,
        # here and in other functions on a request's way; Python's own tracebacks have them all. It
        # is set where that costs nothing as long as all goes well.
        __tracebackhide__ = True
        raise
    coroutine.close()
    raise RuntimeError("a blocking transport must not be given something to await")


Register = Callable[[_core.Notifier, int], _core.Watch]
"""Registers a wait in C. What it returns owns the registration and takes it back when it ends."""


class Waiter(Protocol):
    def set(self) -> None:
        """Wakes who waits for it."""


class Ended(Exception):
    """Nobody wants the result of a step any more. Never leaves the package."""


class Io(Protocol[W]):
    """Everything that may wait. A wait says False, or None, where its time was up.

    Whatever a wait has asked for in the C core is taken back by it, however it ends.
    """

    awaits: ClassVar[bool]
    """Whether it suspends, so that functions of the caller's may be async."""
    reads_by_blocking: ClassVar[bool]
    """Whether a stream's own ``read`` may be called with a timeout, which blocks the thread."""

    def loop(self) -> object | None:
        """What lives as long as the event loop that runs here, and is one for each; None in a
        thread without."""

    def waiter(self) -> W: ...
    async def wait(self, waiter: W, timeout: float | None) -> bool: ...
    async def wait_open(self, channel: AnyChannel, timeout: float | None) -> bool:
        """Until it is open or closed."""

    async def wait_stage(self, channel: _core.Channel, seen: int, timeout: float | None) -> bool:
        """Until more than ``seen`` stages of connecting are reached, or it is open or closed."""

    async def wait_verified(self, channel: _core.Channel, timeout: float | None) -> None:
        """Until it is open; raises why it is not."""

    async def reserve(self, channel: AnyChannel, timeout: float | None) -> AnySlot:
        """A granted slot. Raises PoolTimeout, or why the channel closed."""

    async def answer(self, request: _core.Request, timeout: float | None) -> bytes | None: ...
    async def attest(
        self, channel: _core.Channel, timeout: float | None
    ) -> _core.RawAttestation | None: ...
    async def read(self, stream: AnyStream, n: int, timeout: float | None) -> bytes:
        """1 to n bytes, none at the end. Raises ReadTimeout."""

    async def write(self, stream: AnyStream, data: Buffer, timeout: float | None) -> int:
        """All of data. Raises WriteTimeout."""

    async def wait_stream(self, stream: AnyStream, what: int, timeout: float | None) -> bool: ...
    async def tell(
        self, function: Callable[[Any], object], value: object, timeout: float | None
    ) -> bool:
        """Calls a function of the caller's, to its end. False where one that is awaited did not
        come to it in time; one that blocks cannot be broken off. Raises what it raises."""

    def body_of(self, request: httpx2.Request) -> Any:  # noqa: ANN401 - of the kind it can step
        """The request's body. Raises TypeError where it is of the other kind."""

    def pieces_of(self, body: Any) -> Any: ...  # noqa: ANN401
    async def next_piece(self, pieces: Any, timeout: float | None) -> bytes | None:  # noqa: ANN401
        """None at the end. Raises WriteTimeout where it can tell that nothing comes."""

    async def close_pieces(self, pieces: Any) -> None: ...  # noqa: ANN401
    async def call(
        self, function: Callable[..., T], *arguments: object, timeout: float | None
    ) -> T | None:
        """What a blocking function of somebody else's returns; None where a thread of an event loop
        does not have it in time, whose end then nobody waits for. A thread runs it itself, to its
        end. No lock is held meanwhile."""

    async def fetch(self, wanted: Fetch, timeout: float | None) -> Answer | None:
        """One GET. None where there is no answer in time. Raises what httpx2 raises."""

    async def unless(
        self,
        ended: Callable[[], bool],
        watch: Callable[[Any], None],
        step: Callable[[Io[Any]], Coroutine[Any, Any, T]],
    ) -> T:
        """Runs ``step`` with what it is to wait by. Raises Ended where it waits when ``ended`` has
        become true. ``watch`` is given an object whose ``set`` has to be called after that, from
        any thread; calling it before does nothing. In a thread, a function of the caller's cannot
        be broken off, and is run to its end."""


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
