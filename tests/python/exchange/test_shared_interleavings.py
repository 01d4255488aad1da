"""Copies that take, close and lose shared connections while these end, in every order in which
their steps can be taken, and interrupted at every place where a signal's handler may raise.

The pool, the engine, the exchange and what is shared are as they are; waits and locks are the
scheduler's (scheduler.py), channels open at once, and time stands still: connections that nobody
uses have been unused for long enough whenever they are looked at.

``ENCLAVIA_INTERLEAVINGS=20`` tries about twenty times as much.
"""

from __future__ import annotations

import functools
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from scheduler import Event, Lock, RandomSchedule, Scheduler, schedules
from stepped import Config, Core, undisturbed

import enclavia
from enclavia._exchange import (
    connecting,
    connections,
    engine,
    exchange,
    pinning,
    shared,
    tunnel,
    validity,
    verified,
    waiting,
)
from enclavia._exchange.connections import Connections
from enclavia._exchange.engine import Engine
from enclavia._exchange.exchange import Exchange
from enclavia._exchange.retry import RetryPolicy
from enclavia._exchange.shared import SharedConnections, SharedPools
from enclavia._exchange.timeouts import Timeouts
from enclavia._http1.head import Head
from enclavia._io.face import run
from enclavia._pool import guard, outbox, pool, queue, turns
from enclavia._pool.kinds import Job, PoolLimits

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")

NO_LIMIT = Timeouts()
EFFORT = int(os.environ.get("ENCLAVIA_INTERLEAVINGS", "1"))
WATCHED = frozenset(
    str(module.__file__)
    for module in (
        guard,
        outbox,
        pool,
        queue,
        turns,
        connecting,
        connections,
        engine,
        exchange,
        pinning,
        shared,
        tunnel,
        validity,
        verified,
        waiting,
    )
)


class Io:
    """Waits that are the scheduler's."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def loop(self) -> None:
        return None

    def waiter(self) -> Event:
        return Event(self._scheduler)

    async def wait(self, waiter: Event, timeout: float | None) -> bool:
        assert timeout is None
        waiter.wait()
        return True

    async def wait_open(self, core: Core, timeout: float | None) -> bool:
        self._scheduler.point()
        return True


class Stream:
    """An answer that has come, as soon as it is looked for."""

    readable = False

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class World:
    """Two copies of one client, which have one slot together."""

    def __init__(self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scheduler = scheduler
        self.now = 100.0
        self.cores: weakref.WeakSet[Core] = weakref.WeakSet()
        self.pools = SharedPools(thread=False)
        self.pools._lock = Lock(scheduler)
        self.made: weakref.WeakSet[Any] = weakref.WeakSet()
        self.answered: list[str] = []
        self.copies = {name: self._copy() for name in "ab"}
        for module in (connecting, connections, exchange, engine, tunnel, shared, waiting):
            monkeypatch.setattr(module, "now", lambda: self.now)
        monkeypatch.setattr(Exchange, "_begin", _begin)
        monkeypatch.setattr(Exchange, "_pull", functools.partialmethod(_pull, scheduler))

    def reach(self) -> Core:
        core = Core()
        self.cores.add(core)
        return core

    def _copy(self) -> Engine:
        io: Any = Io(self.scheduler)
        config: Any = Config(self.reach)

        def make() -> Connections:
            made = Connections(config, PoolLimits(max_in_flight=1, max_channels=1), io)
            made.pool._lock = Lock(self.scheduler)  # type: ignore[assignment]
            self.made.add(made.pool)
            return made

        return Engine(
            config,
            RetryPolicy(0),
            NO_LIMIT,
            SharedConnections(lambda: "key", 0.0, io, make, self.pools),
        )

    # What may be done with a copy.

    def request(self, name: str) -> None:
        request = httpx2.Request("GET", "https://enclave/")
        answer = run(self.copies[name].handle(request))
        assert answer.head.status == 200
        self.answered.append(name)

    def unread(self, name: str) -> None:
        """An answer that is dropped where it was begun."""
        copy = self.copies[name]
        use = copy.use()
        self.scheduler.point()
        lease = run(use.connections.obtain(Job(), NO_LIMIT))
        self.scheduler.point()
        del lease

    def close(self, name: str) -> None:
        assert self.copies[name].close() == []

    def forget(self, name: str) -> None:
        del self.copies[name]

    def stats(self, name: str) -> None:
        self.copies[name].stats()

    def look(self, _: str = "") -> None:
        self.pools.look()

    def look_twice(self, _: str = "") -> None:
        self.pools.look()
        self.pools.look()


async def _begin(self: Exchange, lease: object) -> None:
    self._stream = Stream()  # type: ignore[assignment]


async def _pull(self: Exchange, scheduler: Scheduler) -> None:
    stream: Any = self.stream
    scheduler.point()
    if stream.closed:
        raise ValueError("this stream is closed")
    self._answer = Head(200, b"OK", b"HTTP/1.1", ())
    self._settle()


Step = tuple[Callable[[World, str], object], str]

SCENARIOS: dict[str, list[list[Step]]] = {
    "taken while it ends": [
        [(World.request, "a"), (World.forget, "a")],
        [(World.look_twice, "")],
        [(World.request, "b")],
    ],
    "two first requests": [[(World.request, "a")], [(World.request, "b")]],
    "one closes": [[(World.close, "a")], [(World.request, "b")], [(World.look, "")]],
    "one closes under its request": [[(World.request, "a")], [(World.close, "a")]],
    "both close": [
        [(World.request, "a"), (World.close, "a")],
        [(World.request, "b"), (World.close, "b")],
    ],
    "closed twice": [[(World.request, "a"), (World.close, "a")], [(World.close, "a")]],
    "one closes while both request": [
        [(World.request, "a")],
        [(World.request, "b")],
        [(World.close, "a")],
    ],
    "an answer is dropped": [[(World.unread, "a")], [(World.request, "b")]],
    "an answer is dropped, and its copy": [
        [(World.unread, "a"), (World.forget, "a"), (World.look, "")],
        [(World.request, "b"), (World.close, "b"), (World.look, "")],
    ],
    "one looks": [[(World.stats, "a")], [(World.request, "b"), (World.forget, "b")]],
    "everything": [
        [(World.request, "a"), (World.close, "a")],
        [(World.unread, "b"), (World.request, "b")],
        [(World.look_twice, "")],
        [(World.stats, "b"), (World.close, "a")],
    ],
}


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    with undisturbed():
        yield


def play(
    name: str,
    choose: Any,
    monkeypatch: pytest.MonkeyPatch,
    interrupt: int | None = None,
    preempt_at_events: bool = False,
) -> Scheduler:
    scheduler = Scheduler(choose, WATCHED)
    # Undone each time: what is to be undone keeps what it has replaced, and so this world.
    with monkeypatch.context() as patched:
        return play_in(World(scheduler, patched), name, interrupt, preempt_at_events)


def play_in(world: World, name: str, interrupt: int | None, preempt_at_events: bool) -> Scheduler:
    scheduler = world.scheduler
    closed = {each for steps in SCENARIOS[name] for do, each in steps if do is World.close}

    def work(steps: list[Step]) -> None:
        for do, each in steps:
            do(world, each)

    for number, steps in enumerate(SCENARIOS[name]):
        scheduler.spawn(str(number), functools.partial(work, steps))
    scheduler.run(interrupt, preempt_at_events)
    note = f"interrupted at: {scheduler.interrupted or 'no place'}"
    assert not scheduler.stuck, note
    for number, error in scheduler.errors.items():
        if isinstance(error, KeyboardInterrupt) and number == "0" and scheduler.interrupted:
            continue
        # A request of a copy that is never closed has an answer, whatever becomes of the others.
        about = {each for _, each in SCENARIOS[name][int(number)]}
        assert isinstance(error, enclavia.StateError) and about & closed, (repr(error), note)
    check(world, note)
    scheduler.forget()
    world.__dict__.clear()
    return scheduler


def check(world: World, note: str) -> None:
    lock: Any = world.pools._lock
    assert not lock.taken, note
    for made in list(world.made):
        stats = made.stats()
        assert (stats.streams_active, stats.waiting) == (0, 0), note
        assert not made._lock.taken and not made._outbox.to_wake and not made._lost, note
    # Whoever comes now is answered, and shares.
    world.copies = {each: world._copy() for each in "cd"}
    for each in "cd":
        world.request(each)
    assert world.copies["c"].connections is world.copies["d"].connections
    # And nothing outlives those who use it.
    world.copies.clear()
    gc.collect()  # an error that was interrupted on its way may be in a circle with its request
    world.pools.look()
    assert not world.pools._kept, note
    assert all(made.closed for made in list(world.made)), note
    assert [core.state for core in world.cores if core.state == "open"] == [], note


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_schedule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of those in which one that could go on is not let to at most so many times."""
    count = 0
    for choose in schedules(preemptions=1 if EFFORT == 1 else 2):
        play(name, choose, monkeypatch)
        count += 1
    assert count > 10


@pytest.mark.parametrize("name", SCENARIOS)
def test_random_schedules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They change not only at locks and waits, but wherever CPython lets them."""
    for seed in range(16 * EFFORT):
        play(
            name,
            RandomSchedule(seed, preempting=0.2 if seed % 2 else 0.05),
            monkeypatch,
            preempt_at_events=True,
        )


@pytest.mark.parametrize("name", SCENARIOS)
def test_interrupted_anywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the first thread, at each place."""
    for seed in range(2 * EFFORT):
        place = 0
        while play(
            name, RandomSchedule(seed, 0.9 if seed % 2 else 0.3), monkeypatch, place
        ).interrupted:
            place += 1
        assert place > 3
