"""Waiting in an event loop for what the C core announces. One descriptor per event loop.

There is no background task. Whoever waits while nobody else does becomes the leader: it waits for
the descriptor, and wakes the others. When it got what it wanted, or was cancelled, it makes
another waiter the leader. So nothing outlives the tasks that wait, in asyncio, uvloop and trio
alike, and no two tasks ever wait for one descriptor, which asyncio refuses.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

import anyio
import anyio.lowlevel

from . import _core

__all__ = ["LoopHub", "Waiter", "loop_hub"]

Register = Callable[[_core.Notifier, int], None]


class Waiter:
    """One waiting task. ``done``: what it waits for is there."""

    __slots__ = ("_event", "_hub", "done", "token")

    def __init__(self, hub: LoopHub, token: int) -> None:
        self._hub = hub
        self.token = token
        self.done = False
        self._event: anyio.Event | None = None

    def set(self) -> None:
        """From any thread, any event loop or none."""
        self._hub.post(self)

    def wake(self) -> None:
        if self._event is not None:
            self._event.set()

    async def sleep(self) -> None:
        self._event = anyio.Event()
        try:
            await self._event.wait()
        finally:
            self._event = None


class LoopHub:
    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._notifier = _core.Notifier()
        self._waiting: dict[int, Waiter] = {}
        self._posted: collections.deque[Waiter] = collections.deque()
        self._leader: Waiter | None = None
        self._token = 0

    def adopt(self) -> None:
        self._thread = threading.get_ident()

    def waiter(self) -> Waiter:
        self._token += 1
        return Waiter(self, self._token)

    def post(self, waiter: Waiter) -> None:
        if threading.get_ident() == self._thread:
            self._finish(waiter)
            if waiter is self._leader:
                self._notifier.wake()
        else:
            self._posted.append(waiter)
            self._notifier.wake()

    def _finish(self, waiter: Waiter) -> None:
        waiter.done = True
        waiter.wake()

    def reserve(self, channel: _core.Channel, waiter: Waiter) -> _core.Slot:
        return channel.reserve(self._notifier, waiter.token)

    def start_attest(self, channel: _core.Channel, waiter: Waiter) -> int:
        return channel.start_attest(self._notifier, waiter.token)

    async def wait(self, register: Register, timeout: float | None) -> bool:
        """False where it did not come in time. What comes later is nobody's, and ignored."""
        waiter = self.waiter()
        register(self._notifier, waiter.token)
        return await self.wait_for(waiter, timeout)

    async def wait_for(self, waiter: Waiter, timeout: float | None) -> bool:
        self._waiting[waiter.token] = waiter
        try:
            with anyio.move_on_after(timeout):
                while not waiter.done:
                    if self._leader is None:
                        await self._lead(waiter)
                    else:
                        await waiter.sleep()
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

    def _deliver(self) -> None:
        for token in self._notifier.drain():
            waiter = self._waiting.get(token)
            if waiter is not None:
                self._finish(waiter)
        while self._posted:
            self._finish(self._posted.popleft())

    def _promote(self, former: Waiter) -> None:
        for waiter in self._waiting.values():
            if waiter is not former and not waiter.done:
                waiter.wake()
                return


_hubs: anyio.lowlevel.RunVar[LoopHub] = anyio.lowlevel.RunVar("enclavia hub")


def loop_hub() -> LoopHub:
    try:
        hub = _hubs.get()
    except LookupError:
        hub = LoopHub()
        _hubs.set(hub)
    hub.adopt()
    return hub
