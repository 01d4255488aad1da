"""Waiting in an event loop: for what the C core announces, by one descriptor per event loop, and
for sockets of a forwarder.

The only module that imports anyio, which costs time: imported where something is awaited, and not
before.

Decides which task waits for the core's descriptor, and which task is woken. Calls: _arguments,
_core, _errors. Locks: none.
"""

from __future__ import annotations

import abc
import asyncio
import collections
import functools
import inspect
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx2

from .. import _core
from .._arguments import byte_view, is_async
from .._errors import PoolTimeout, StateError, WriteTimeout
from .face import (
    Ended,
    Io,
    Register,
    deadline_of,
    expect_verified,
    expected_body,
    piece_of,
    time_left,
)
from .fetching import Answer, Fetch, fetch
from .late import SHORTEST, nothing_read, nothing_sent, stated

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .local import AnyChannel, AnySlot, AnyStream

__all__ = [
    "LoopHub",
    "LoopIo",
    "Telling",
    "Waiter",
    "bounded",
    "expect_wanted",
    "loop_hub",
    "run_blocking",
    "running_hub",
]

T = TypeVar("T")


class Waiter:
    """One waiting task. ``done``: what it waits for is there."""

    __slots__ = ("_hub", "done", "token", "wake")

    def __init__(self, hub: LoopHub, token: int) -> None:
        self._hub = hub
        self.token = token
        self.done = False
        self.wake: Callable[[], None] | None = None
        """While it sleeps."""

    def set(self) -> None:
        """Wakes the task. From any thread, any event loop or none.

        Raises :class:`StateError` where the waiter's event loop is closed: nobody will ever run
        the task, and whoever gave it something has to take it back. Nothing else is raised, and
        after an error nothing is left to be done here."""
        self._hub.post(self)


class Telling:
    """A function that is to be called once. Whoever holds this has to end it, also after the
    call."""

    __slots__ = ("_waiter", "_waiting", "_watch")

    def __init__(self, waiter: Waiter, watch: _core.Watch, waiting: dict[int, Waiter]) -> None:
        self._waiter = waiter
        self._watch = watch
        self._waiting = waiting

    def end(self) -> None:
        """The function is not called from now on. Ending twice does no harm."""
        self._waiting.pop(self._waiter.token, None)
        self._watch.end()


class LoopHub(abc.ABC):
    def __init__(self) -> None:
        self._notifier = _core.Notifier()
        self._waiting: dict[int, Waiter] = {}
        self._posted: collections.deque[Waiter] = collections.deque()
        self._token = 0

    def waiter(self) -> Waiter:
        self._token += 1
        return Waiter(self, self._token)

    def post(self, waiter: Waiter) -> None:
        """As :meth:`Waiter.set`."""
        if self._is_running():
            self._finish(waiter)
        else:
            self._posted.append(waiter)
            self._notifier.wake()

    @abc.abstractmethod
    def _is_running(self) -> bool:
        """Whether the caller is run by this hub's loop. A loop may be run by one thread now and
        by another later: so the running loop is asked for, and never a thread."""

    def reserve(self, channel: _core.Channel, waiter: Waiter) -> _core.Slot:
        return channel.reserve(self._notifier, waiter.token)

    def start_attest(self, channel: _core.Channel, waiter: Waiter) -> int:
        return channel.start_attest(self._notifier, waiter.token)

    async def wait(self, register: Register, timeout: float | None) -> bool:
        """False where it did not come in time. However this ends, by an event, a timeout, a
        cancellation, or as garbage of a loop that was closed, the registration ends with it. What
        was announced before is nobody's then, and ignored."""
        waiter = self.waiter()
        watch = register(self._notifier, waiter.token)
        try:
            return await self.wait_for(waiter, timeout)
        finally:
            watch.end()

    def tell_readable(self, stream: _core.Stream, told: Callable[[], None]) -> Telling:
        """Calls a function in this loop, once reading from the stream would not wait, instead of
        waking a task. It must not raise."""
        waiter = self.waiter()
        watch = stream.notify(_core.READABLE, self._notifier, waiter.token)
        waiter.wake = told
        self._waiting[waiter.token] = waiter
        return Telling(waiter, watch, self._waiting)

    @abc.abstractmethod
    async def wait_for(self, waiter: Waiter, timeout: float | None) -> bool: ...

    def _finish(self, waiter: Waiter) -> None:
        waiter.done = True
        if waiter.wake is not None:
            waiter.wake()

    def _deliver(self) -> None:
        for token in self._notifier.drain():
            waiter = self._waiting.get(token)
            if waiter is not None:
                self._finish(waiter)
        while self._posted:
            self._finish(self._posted.popleft())


_AWAKE_SECONDS: Final = 0.3


def _is_kernel() -> bool:
    """Whether this is the thread in which a notebook's kernel runs its cells.

    ipykernel's handler of SIGINT, which the stop button sends, cancels the cell that awaits. It
    does not wake the event loop, which goes on sleeping until something happens: the cell would end
    when the answer comes, and not before."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread and "ipykernel" in sys.modules


class AsyncioHub(LoopHub):
    """For asyncio and uvloop, whose own futures and timers cost a third of what anyio's do. The
    descriptor stays registered as long as there is the loop, which then lets go of this object:
    registering is two system calls each time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        # The loop has this object; a reference back would keep both.
        self._loop = weakref.ref(loop)
        self._wakes = _is_kernel()
        self._awake = False
        self._listen(loop)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_reader(self._notifier.fileno(), self._deliver)

    def post(self, waiter: Waiter) -> None:
        loop = self._loop()
        if loop is None or loop.is_closed():
            raise StateError("the event loop of a waiting task was closed: the task is never run")
        super().post(waiter)

    def _stay_awake(self) -> None:
        """Wakes the loop now and then, as long as anybody waits. See :func:`_is_kernel`."""
        loop = self._loop()
        self._awake = bool(self._waiting) and loop is not None
        if self._awake and loop is not None:
            loop.call_later(_AWAKE_SECONDS, self._stay_awake)

    def _is_running(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop()
        except RuntimeError:
            return False

    async def wait_for(self, waiter: Waiter, timeout: float | None) -> bool:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if waiter.done:
            future.set_result(None)
        waiter.wake = wake = functools.partial(_set, future)
        self._waiting[waiter.token] = waiter
        timer = None if timeout is None else loop.call_later(timeout, wake)
        if self._wakes and not self._awake:
            self._stay_awake()
        try:
            await future
        finally:
            del self._waiting[waiter.token]
            if timer is not None:
                timer.cancel()
        return waiter.done


class PageHub(AsyncioHub):
    """For the event loop of a browser's page, which has no descriptors: the core calls a function
    when something is there."""

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_due = False
        self._notifier.on_wake(functools.partial(_plan, weakref.ref(self)))

    def plan(self) -> None:
        """Delivers soon. May be called from within a call of the core's."""
        loop = self._loop()
        if not self._is_due and loop is not None and not loop.is_closed():
            self._is_due = True
            loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._is_due = False
        super()._deliver()


def _plan(of: weakref.ref[PageHub]) -> None:
    hub = of()
    if hub is not None:
        hub.plan()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class LeaderHub(LoopHub):
    """For every loop that anyio knows.

    There is no background task. Whoever waits while nobody else does becomes the leader: it waits
    for the descriptor, and wakes the others. When it got what it wanted, or was cancelled, it makes
    another waiter the leader. So nothing outlives the tasks that wait, and no two tasks ever wait
    for one descriptor.
    """

    def __init__(self) -> None:
        super().__init__()
        self._leader: Waiter | None = None

    def _is_running(self) -> bool:
        try:
            return _leader_hubs.get(None) is self
        except RuntimeError:  # no event loop runs in this thread
            return False

    def post(self, waiter: Waiter) -> None:
        super().post(waiter)
        if waiter is self._leader:
            self._notifier.wake()

    async def wait_for(self, waiter: Waiter, timeout: float | None) -> bool:
        self._waiting[waiter.token] = waiter
        try:
            with anyio.move_on_after(timeout):
                while not waiter.done:
                    if self._leader is None:
                        await self._lead(waiter)
                    else:
                        await self._follow(waiter)
        finally:
            del self._waiting[waiter.token]
            if self._leader is None:
                # This one may have been made the leader and cancelled before it could start.
                self._promote(waiter)
        return waiter.done

    async def _lead(self, leader: Waiter) -> None:
        self._leader = leader
        try:
            while not leader.done:
                await anyio.wait_readable(self._notifier.fileno())
                self._deliver()
        finally:
            self._leader = None

    async def _follow(self, waiter: Waiter) -> None:
        event = anyio.Event()
        waiter.wake = event.set
        try:
            await event.wait()
        finally:
            waiter.wake = None

    def _promote(self, former: Waiter) -> None:
        for waiter in self._waiting.values():
            if waiter is not former and not waiter.done:
                if waiter.wake is not None:
                    waiter.wake()
                return


# A loop is run by one thread at a time, so no two threads ever look for the same key. The loop
# keeps its hub, as a reader of a descriptor, until it is closed. A reference from here would keep
# whatever a closed loop has left behind: a hub leads to its waiting tasks, and they to their loop.
_asyncio_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[AsyncioHub]] = (
    weakref.WeakKeyDictionary()
)
_leader_hubs: anyio.lowlevel.RunVar[LeaderHub] = anyio.lowlevel.RunVar("enclavia hub")
# Nothing of a page's loop keeps its hub. That loop lives as long as the page.
_page_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, PageHub] = (
    weakref.WeakKeyDictionary()
)


def _asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs here, where the task that asks is asyncio's: another library's tasks may
    run in callbacks of an asyncio loop."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return None if asyncio.current_task(loop) is None else loop


def loop_hub() -> LoopHub:
    """The one of the running event loop."""
    if _core.WEB:
        return _page_hub()
    loop = _asyncio_loop()
    return _leader_hub() if loop is None else _asyncio_hub(loop)


def running_hub() -> AsyncioHub:
    """The one of the running event loop, which is asyncio's or uvloop's. For callbacks, which have
    no task to wait in. Whoever keeps it must not outlive the loop."""
    return _asyncio_hub(asyncio.get_running_loop())


def _asyncio_hub(loop: asyncio.AbstractEventLoop) -> AsyncioHub:
    known = _asyncio_hubs.get(loop)
    hub = None if known is None else known()
    if hub is None:
        hub = AsyncioHub(loop)
        _asyncio_hubs[loop] = weakref.ref(hub)
    return hub


def _page_hub() -> PageHub:
    """A page has one event loop, which is asyncio's; blocking code that waits in it is no task."""
    loop = asyncio.get_running_loop()
    hub = _page_hubs.get(loop)
    if hub is None:
        _page_hubs[loop] = hub = PageHub(loop)
    return hub


def _leader_hub() -> LeaderHub:
    try:
        hub = _leader_hubs.get()
    except LookupError:
        hub = LeaderHub()
        _leader_hubs.set(hub)
    return hub


class LoopIo:
    """Waiting, as a task does it: the event loop goes on meanwhile. An operation is tried first,
    and only what would wait registers for being told."""

    awaits: ClassVar = True
    reads_by_blocking: ClassVar = False

    def loop(self) -> LoopHub | None:
        try:
            return loop_hub()
        except RuntimeError:  # no event loop runs in this thread
            return None

    def waiter(self) -> Waiter:
        return loop_hub().waiter()

    async def wait(self, waiter: Waiter, timeout: float | None) -> bool:
        return await loop_hub().wait_for(waiter, timeout)

    async def wait_open(self, channel: AnyChannel, timeout: float | None) -> bool:
        if not isinstance(channel, _core.Channel):  # a forwarder's
            deadline = deadline_of(timeout)
            while not channel.advance():
                sock, what = channel.waits_for()
                if not await _wait_descriptor(sock.fileno(), what, time_left(deadline)):
                    return False
            return True
        return await loop_hub().wait(channel.notify_open, timeout)

    async def wait_stage(self, channel: _core.Channel, seen: int, timeout: float | None) -> bool:
        return await loop_hub().wait(functools.partial(channel.notify_stage, seen), timeout)

    async def wait_verified(self, channel: _core.Channel, timeout: float | None) -> None:
        if await loop_hub().wait(channel.notify_open, timeout):
            channel.wait_open(0)
        else:
            expect_verified(channel, timeout)

    async def reserve(self, channel: AnyChannel, timeout: float | None) -> AnySlot:
        if not isinstance(channel, _core.Channel):  # a forwarder's
            return channel.reserve(None, 0)
        hub = loop_hub()
        waiter = hub.waiter()
        slot = hub.reserve(channel, waiter)
        if slot.granted:
            return slot
        try:
            in_time = await hub.wait_for(waiter, timeout)
            if in_time:
                # Returns at once: it is granted, or raises why the channel closed.
                slot.wait(SHORTEST)
        except BaseException:
            slot.release()
            raise
        if not in_time:
            slot.release()
            raise PoolTimeout(f"expected a free slot within {stated(timeout)} s, got none")
        return slot

    async def answer(self, request: _core.Request, timeout: float | None) -> bytes | None:
        answer = request.result(0)
        if answer is None and await loop_hub().wait(request.notify, timeout):
            answer = request.result(0)
        return answer

    async def attest(
        self, channel: _core.Channel, timeout: float | None
    ) -> _core.RawAttestation | None:
        hub = loop_hub()
        waiter = hub.waiter()
        number = hub.start_attest(channel, waiter)
        raw = None
        try:
            raw = channel.finish_attest(number, 0)
            if raw is None and await hub.wait_for(waiter, timeout):
                raw = channel.finish_attest(number, 0)
        finally:
            if raw is None:
                channel.abandon_attest(number)
        return raw

    async def read(self, stream: AnyStream, n: int, timeout: float | None) -> bytes:
        data = stream.read(n, 0)
        if data is None:
            deadline = deadline_of(timeout)
            while data is None:
                if not await self.wait_stream(stream, _core.READABLE, time_left(deadline)):
                    raise nothing_read(timeout)
                data = stream.read(n, 0)
        return data

    async def readinto(self, stream: AnyStream, buffer: Buffer, timeout: float | None) -> int:
        view = byte_view("buffer", buffer, writable=True)
        deadline = deadline_of(timeout)
        while (count := stream.readinto(view, 0)) is None:
            if not await self.wait_stream(stream, _core.READABLE, time_left(deadline)):
                raise nothing_read(timeout)
        return count

    async def write(self, stream: AnyStream, data: Buffer, timeout: float | None) -> int:
        view = byte_view("data", data)
        total = len(view)
        view = view[stream.write(view, 0) :]
        deadline = deadline_of(timeout)
        while view:
            if not await self.wait_stream(stream, _core.WRITABLE, time_left(deadline)):
                raise nothing_sent(timeout)
            if sent := stream.write(view, 0):
                view = view[sent:]
                deadline = deadline_of(timeout)
        return total

    async def wait_stream(self, stream: AnyStream, what: int, timeout: float | None) -> bool:
        if not isinstance(stream, _core.Stream):  # a forwarder's
            sock = stream.socket
            if sock is None:
                return True  # what is tried next says why
            return await _wait_descriptor(sock.fileno(), what, timeout)
        return await loop_hub().wait(
            lambda notifier, token: stream.notify(what, notifier, token), timeout
        )

    async def tell(
        self, function: Callable[[Any], object], value: object, timeout: float | None
    ) -> bool:
        """One that blocks runs in a thread, so that the loop goes on meanwhile; after ``timeout``
        nobody waits for its end any more."""
        with anyio.move_on_after(timeout):
            if is_async(function):
                result = function(value)
            else:
                done = await self.call(_wrapped, function, value, timeout=None)
                result = None if done is None else done[0]
            if inspect.isawaitable(result):
                await result
            return True
        return False

    def body_of(self, request: httpx2.Request) -> httpx2.AsyncByteStream:
        if not isinstance(request.stream, httpx2.AsyncByteStream):
            raise TypeError(expected_body(request, "async"))
        return request.stream

    def pieces_of(self, body: httpx2.AsyncByteStream) -> AsyncIterator[bytes]:
        return body.__aiter__()

    async def next_piece(self, pieces: AsyncIterator[bytes], timeout: float | None) -> bytes | None:
        piece = b""
        with anyio.move_on_after(timeout) as scope:
            try:
                piece = piece_of(await anext(pieces))
            except StopAsyncIteration:
                return None
        if not piece and scope.cancelled_caught:
            raise WriteTimeout(f"expected more of the request body within {stated(timeout)} s")
        return piece

    async def close_pieces(self, pieces: AsyncIterator[bytes]) -> None:
        if isinstance(pieces, AsyncGenerator):
            with anyio.CancelScope(shield=True):
                await pieces.aclose()

    async def call(
        self, function: Callable[..., T], *arguments: object, timeout: float | None
    ) -> T | None:
        if _core.WEB:  # which has no threads: the page stands still meanwhile
            return function(*arguments)
        with anyio.move_on_after(timeout):
            # A limiter of its own: a function that hangs must not take a thread that others need.
            return await anyio.to_thread.run_sync(
                function,
                *arguments,
                abandon_on_cancel=True,
                limiter=anyio.CapacityLimiter(1),
            )
        return None

    async def fetch(self, wanted: Fetch, timeout: float | None) -> Answer | None:
        with anyio.move_on_after(timeout):
            return await fetch(wanted)
        return None

    async def unless(
        self,
        ended: Callable[[], bool],
        watch: Callable[[Any], None],
        step: Callable[[Io[Any]], Coroutine[Any, Any, T]],
    ) -> T:
        waiter = self.waiter()
        with anyio.CancelScope() as scope:
            waiter.wake = lambda: scope.cancel() if ended() else None
            try:
                watch(waiter)
                if not ended():
                    return await step(self)
            finally:
                waiter.wake = None
        raise Ended


def _wrapped(function: Callable[[Any], object], value: object) -> tuple[object]:
    """Told apart from no result at all."""
    return (function(value),)


async def bounded(call: Callable[[], Awaitable[T]], timeout: float | None) -> T:
    """What it awaits to, or TimeoutError, after which it is cancelled."""
    with anyio.fail_after(timeout):
        return await call()


async def expect_wanted() -> None:
    """Ends a task that was cancelled where nothing that it does suspends."""
    await anyio.lowlevel.checkpoint_if_cancelled()


async def run_blocking(call: Callable[..., T], *arguments: object) -> T:
    """Runs what blocks, in a thread; a cancellation waits for its end. A task that asyncio itself
    cancels (``Task.cancel``, ``asyncio.timeout``, Ctrl-C) is cancelled then, and what the call has
    returned is lost: a call that opens something has to leave it where the caller finds it. In a
    browser, which has no threads, it runs here."""
    if _core.WEB:
        return call(*arguments)
    with anyio.CancelScope(shield=True):
        # A limiter of its own: the threads that all share may wait for this very task.
        work = anyio.to_thread.run_sync(call, *arguments, limiter=anyio.CapacityLimiter(1))
        result = await (work if _asyncio_loop() is None else _to_its_end(work))
    return result  # noqa: RET504 - a with that may swallow an error has no value of its own


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """A shield of anyio's holds off anyio's cancellations, and none of asyncio's: those would leave
    the thread alone with what the caller takes for finished, and closes or uses again."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # looked at, or asyncio's log would say that nobody has
    raise cancelled


async def _wait_descriptor(descriptor: int, what: int, timeout: float | None) -> bool:
    """Until the descriptor is readable or writable, as ``what`` says; False where it is not in
    time. Registered for as long as this waits, and not longer."""
    loop = _asyncio_loop()
    if loop is None:
        return await _wait_by_anyio(descriptor, what, timeout)
    future = loop.create_future()
    timer = None if timeout is None else loop.call_later(timeout, _set, future)
    came: list[int] = []
    told = functools.partial(_came, future, came)
    if what & _core.READABLE:
        loop.add_reader(descriptor, told)
    if what & _core.WRITABLE:
        loop.add_writer(descriptor, told)
    try:
        await future
    finally:
        if what & _core.READABLE:
            loop.remove_reader(descriptor)
        if what & _core.WRITABLE:
            loop.remove_writer(descriptor)
        if timer is not None:
            timer.cancel()
    return bool(came)


def _came(future: asyncio.Future[None], came: list[int]) -> None:
    came.append(1)
    _set(future)


async def _wait_by_anyio(descriptor: int, what: int, timeout: float | None) -> bool:
    """The same in every other loop that anyio knows."""
    came = False

    async def wait(until: Callable[[int], Awaitable[None]], scope: anyio.CancelScope) -> None:
        nonlocal came
        await until(descriptor)
        came = True
        scope.cancel()

    with anyio.move_on_after(timeout):
        async with anyio.create_task_group() as group:
            if what & _core.READABLE:
                group.start_soon(wait, anyio.wait_readable, group.cancel_scope)
            if what & _core.WRITABLE:
                group.start_soon(wait, anyio.wait_writable, group.cancel_scope)
    return came
