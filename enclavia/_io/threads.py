"""Waiting in a thread: for what the C core announces, by one descriptor per thread, and for sockets
of a forwarder.

Knows the C core and the errors; nothing above it.

Decides when a thread needs a new descriptor: after a fork, and where a signal's handler or a
destructor waits in the middle of another wait. Calls: _core, _errors. Locks: none.
"""

from __future__ import annotations

import functools
import inspect
import os
import select
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import httpx2

from .. import _core
from .._errors import ReadTimeout
from .face import Ended, Io, Register, deadline_of, expected_body, piece_of, positive, time_left
from .late import nothing_read, nothing_sent
from .polling import poll_descriptor, poll_until

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .fetching import Answer, Fetch
    from .local import AnyChannel, AnySlot, AnyStream

__all__ = ["StepIo", "ThreadHub", "ThreadIo", "thread_hub"]

T = TypeVar("T")


class ThreadHub:
    """Waits for one thing at a time, as a thread does."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._notifier = _core.Notifier()
        self._poll = select.poll()
        self._poll.register(self._notifier.fileno(), select.POLLIN)
        self._token = 0
        self.busy = False

    def wait(self, register: Register, timeout: float | None) -> bool:
        """False where it did not come in time. However this ends, also by Ctrl-C, the registration
        ends with it."""
        self.busy = True
        try:
            return self._wait(register, timeout)
        finally:
            self.busy = False

    def _wait(self, register: Register, timeout: float | None) -> bool:
        self._token = token = self._token + 1
        deadline = None if timeout is None else time.monotonic() + timeout
        watch = register(self._notifier, token)
        try:
            while poll_until(self._poll, deadline):
                # Tokens of waits that were given up before may come late.
                if token in self._notifier.drain():
                    return True
            return False
        finally:
            watch.end()


_local = threading.local()


def thread_hub() -> ThreadHub:
    hub: ThreadHub | None = getattr(_local, "hub", None)
    if hub is None or hub.busy or hub.pid != os.getpid():
        # A forked child shares its parent's descriptor: it needs one of its own. So does the
        # handler of a signal, or a destructor, that waits for something else while this thread
        # waits: it would take what was announced for the wait that it interrupted.
        _local.hub = hub = ThreadHub()
    return hub


class ThreadIo:
    """Waiting, as a thread does it: by blocking."""

    awaits: ClassVar = False
    reads_by_blocking: ClassVar = True

    def loop(self) -> None:
        return None

    def waiter(self) -> threading.Event:
        return threading.Event()

    async def wait(self, waiter: threading.Event, timeout: float | None) -> bool:
        return waiter.wait(timeout)

    async def wait_open(self, channel: AnyChannel, timeout: float | None) -> bool:
        if not isinstance(channel, _core.Channel):  # a forwarder's
            deadline = deadline_of(timeout)
            while not channel.advance():
                sock, what = channel.waits_for()
                if not poll_descriptor(sock.fileno(), what, time_left(deadline)):
                    return False
            return True
        return thread_hub().wait(channel.notify_open, timeout)

    async def wait_stage(self, channel: _core.Channel, seen: int, timeout: float | None) -> bool:
        return thread_hub().wait(functools.partial(channel.notify_stage, seen), timeout)

    async def reserve(self, channel: AnyChannel, timeout: float | None) -> AnySlot:
        slot = channel.reserve(None, 0)
        if not slot.granted:
            try:
                slot.wait(timeout)
            except BaseException:
                slot.release()
                raise
        return slot

    async def wait_verified(self, channel: _core.Channel, timeout: float | None) -> None:
        channel.wait_open(timeout)

    async def answer(self, request: _core.Request, timeout: float | None) -> bytes | None:
        try:
            return request.result(positive(timeout))
        except ReadTimeout:
            return None

    async def attest(
        self, channel: _core.Channel, timeout: float | None
    ) -> _core.RawAttestation | None:
        number = channel.start_attest(None, 0)
        try:
            return channel.finish_attest(number, positive(timeout))
        except BaseException as error:
            channel.abandon_attest(number)
            if isinstance(error, ReadTimeout):
                return None
            raise

    async def read(self, stream: AnyStream, n: int, timeout: float | None) -> bytes:
        try:
            data = stream.read(n, timeout)
        except ReadTimeout:
            data = None
        if data is None:
            raise nothing_read(timeout)
        return data

    async def write(self, stream: AnyStream, data: Buffer, timeout: float | None) -> int:
        sent = stream.write(data, timeout)
        if timeout is not None and timeout <= 0 and sent < memoryview(data).nbytes:
            raise nothing_sent(timeout)
        return sent

    async def wait_stream(self, stream: AnyStream, what: int, timeout: float | None) -> bool:
        if not isinstance(stream, _core.Stream):  # a forwarder's
            return stream.wait(what, timeout)
        return thread_hub().wait(
            lambda notifier, token: stream.notify(what, notifier, token), timeout
        )

    async def tell(
        self, function: Callable[[Any], object], value: object, timeout: float | None
    ) -> bool:
        result = function(value)
        if inspect.isawaitable(result):  # nothing of it would ever run
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError(
                "expected a plain function, because this client blocks, got one that returned an "
                f"awaitable ({type(result).__name__}): an async client awaits it"
            )
        return True

    def body_of(self, request: httpx2.Request) -> httpx2.SyncByteStream:
        if not isinstance(request.stream, httpx2.SyncByteStream):
            raise TypeError(expected_body(request, "sync"))
        return request.stream

    def pieces_of(self, body: httpx2.SyncByteStream) -> Iterator[bytes]:
        return iter(body)

    async def next_piece(self, pieces: Iterator[bytes], timeout: float | None) -> bytes | None:
        try:
            return piece_of(next(pieces))
        except StopIteration:
            return None

    async def close_pieces(self, pieces: Iterator[bytes]) -> None:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()

    async def call(
        self, function: Callable[..., T], *arguments: object, timeout: float | None
    ) -> T | None:
        return function(*arguments)

    async def fetch(self, wanted: Fetch, timeout: float | None) -> Answer | None:
        from .fetching import fetch_in_thread

        return fetch_in_thread(wanted, self.waiter(), timeout)

    async def unless(
        self,
        ended: Callable[[], bool],
        watch: Callable[[Any], None],
        step: Callable[[Io[Any]], Coroutine[Any, Any, T]],
    ) -> T:
        waits = self._step_io(ended)
        try:
            watch(waits)
            return await step(waits)
        finally:
            # Whoever was given it keeps it, and would be kept in turn by what ``ended`` looks at.
            waits.ended = _never

    def _step_io(self, ended: Callable[[], bool]) -> StepIo:
        return StepIo(ended)


def _never() -> bool:
    return False


class StepIo(ThreadIo):
    """The waits of one step. :meth:`set` ends them: another thread calls it, or in a browser the
    event loop."""

    def __init__(self, ended: Callable[[], bool]) -> None:
        self.ended = ended
        self._waiters: list[threading.Event] = []

    def set(self) -> None:
        if self.ended():
            for waiter in self._waiters.copy():
                waiter.set()

    def waiter(self) -> threading.Event:
        waiter = super().waiter()
        self._waiters.append(waiter)
        return waiter

    async def wait(self, waiter: threading.Event, timeout: float | None) -> bool:
        self._expect_wanted()
        in_time = await super().wait(waiter, timeout)
        self._expect_wanted()
        return in_time

    async def fetch(self, wanted: Fetch, timeout: float | None) -> Answer | None:
        self._expect_wanted()
        answer = await super().fetch(wanted, timeout)
        self._expect_wanted()
        return answer

    def _expect_wanted(self) -> None:
        if self.ended():
            raise Ended
