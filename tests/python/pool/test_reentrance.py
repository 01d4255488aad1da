"""Destructors and the handlers of signals run in the middle of any function, and may end a request
or close the client there: also in the middle of the pool, in the thread that holds its lock."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support import answering, byte_enclave, keywords, ok

import enclavia
from enclavia import _pool
from enclavia._errors import StateError
from enclavia._pool.kinds import Job, PoolLimits, State
from enclavia._pool.pool import Pool
from enclavia._pool.ticket import Lease, Ticket

ENDS_WITHIN = 60  # seconds after which a run is taken for one that never ends
FILES = {threading.__file__, *map(str, Path(_pool.__path__[0]).glob("*.py"))}


class Channel:
    def __init__(self) -> None:
        self.alive = True

    def close(self) -> None:
        self.alive = False


class Link:
    fresh = True

    def close(self) -> None:
        pass


class World:
    """Two slots in use and three requests that wait; then the calls that are interrupted."""

    def __init__(self) -> None:
        self.pool: Pool[Channel, Link] = Pool(PoolLimits(max_in_flight=2, max_channels=1))
        first = self.pool.request(Job(), 0.0)
        self.channel = Channel()
        self.pool.starting(first, self.channel)
        self.pool.connected(first, 0.0)
        self.leases = [first.take(), self.pool.request(Job(), 0.0).take()]
        self.tickets: list[Ticket[Channel, Link]] = []
        self.events: list[threading.Event] = []
        for _ in range(3):
            self.ask()

    def ask(self) -> None:
        ticket, event = self.pool.request(Job(), 0.0), threading.Event()
        self.tickets.append(ticket)
        self.events.append(event)
        self.pool.watch(ticket, event)

    def act(self) -> None:
        self.pool.release(self.leases[0], None, 1.0)
        self.pool.settle(1.0)
        self.ask()
        self.pool.withdraw(self.tickets[2], 1.0)
        self.pool.stats()

    def finish(self) -> None:
        """Nobody who was served is asleep, and no slot is lost."""
        for lease in self.leases:
            self.pool.release(lease, None, 2.0)
        for _ in range(len(self.tickets)):
            for ticket, event in zip(self.tickets, self.events, strict=True):
                if ticket.state is State.GRANTED and ticket.lease is not None:
                    assert event.is_set()
                    self.pool.release(ticket.take(), None, 2.0)
        assert not any(t.state in (State.WAITING, State.CONNECT) for t in self.tickets)
        stats = self.pool.stats()
        assert (stats.streams_active, stats.waiting) == (0, 0)


def withdraw(world: World) -> None:
    world.pool.withdraw(world.tickets[0], 1.0)


def release(world: World) -> None:
    world.pool.release(world.leases[1], None, 1.0)


def settle(world: World) -> None:
    world.pool.settle(1.0)


def look(world: World) -> None:
    world.pool.stats()
    world.pool.handles()
    world.pool.alone(world.tickets[0])


def forget(world: World) -> None:
    lease: Lease[Channel, Link] = world.leases.pop()
    del lease


def close(world: World) -> None:
    for channel in world.pool.close(enclavia.StateError("closed")):
        channel.close()


def request(world: World) -> None:
    """It would wait for the one that it interrupts: either it is served at once, or refused."""
    with contextlib.suppress(StateError):
        world.pool.withdraw(world.pool.request(Job(), 1.0), 1.0)


def interrupt(world: World, point: int, act: Callable[[World], None]) -> int:
    """Runs ``act`` before the given line of the pool's code, or of an event's; says how many lines
    there were, which differs where destructors of earlier worlds run in between: ``act`` may not
    have run where there were fewer than ``point``."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            lines += 1
            if lines == point:
                act(world)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        world.act()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("act", [withdraw, release, settle, look, forget, close, request])
def test_the_pool_is_interrupted_by_its_own_thread(act: Callable[[World], None]) -> None:
    reached = [0]
    errors: list[BaseException] = []

    def run() -> None:
        try:
            lines = 1
            while reached[0] < lines:
                reached[0] += 1
                world = World()
                lines = interrupt(world, reached[0], act)
                if act is close and reached[0] <= lines:
                    assert world.pool.closed
                    assert not world.channel.alive
                world.finish()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ENDS_WITHIN)
    assert not thread.is_alive(), f"line {reached[0]} is never left"
    assert not errors, f"line {reached[0]}: {errors[0]!r}"
    assert reached[0] > 50


def test_a_request_in_the_middle_of_another_is_refused() -> None:
    refused: list[StateError] = []

    def ask(world: World) -> None:
        try:
            ticket = world.pool.request(Job(), 1.0)
        except StateError as error:
            refused.append(error)
        else:
            world.pool.withdraw(ticket, 1.0)

    lines = interrupt(World(), 0, ask)
    for point in range(1, lines + 1):
        interrupt(World(), point, ask)
    assert refused
    assert "signal's handler" in str(refused[0])


def test_a_signals_handler_closes_the_client() -> None:
    """As the handler of SIGTERM in a server does, wherever the main thread is at that moment."""
    with byte_enclave(answering(*[ok(b"fine")] * 2000)) as (enclave, _):
        for _ in range(8):
            client = enclavia.Client(enclave.url, **keywords(enclave))
            assert client.get("/").is_success
            pid, closes = os.getpid(), client.close
            before = signal.signal(signal.SIGUSR1, lambda *_, close=closes: close())
            sender = threading.Timer(0.005, os.kill, (pid, signal.SIGUSR1))
            try:
                sender.start()
                with pytest.raises(enclavia.EnclaviaError):
                    all(client.get("/").is_success for _ in itertools.count())
            finally:
                sender.join()
                signal.signal(signal.SIGUSR1, before)
            assert client.stats.channels == 0
