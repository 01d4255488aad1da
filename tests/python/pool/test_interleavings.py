"""Two, three and four callers of one client, in every order in which their steps can be taken, and
interrupted at every place where a signal's handler may raise.

What is run is the pool, the engine and the transport as they are. Around them, connections open at
once or as the scenario says, locks and waits are the scheduler's (scheduler.py), and time stands
still.

``ENCLAVIA_INTERLEAVINGS=20`` tries about twenty times as much.
"""

from __future__ import annotations

import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scheduler import AllSchedules, Event, Lock, RandomSchedule, Scheduler, Stuck, schedules
from stepped import Config, Core, undisturbed

import enclavia
from enclavia import _pool
from enclavia._client import transport, transport_base
from enclavia._client.settings import Settings
from enclavia._client.transport import EnclaveTransport
from enclavia._client.transport_base import TransportBase
from enclavia._exchange import (
    connecting,
    connections,
    engine,
    exchange,
    pinning,
    tunnel,
    validity,
    verified,
    waiting,
)
from enclavia._exchange.engine import Engine
from enclavia._exchange.timeouts import Timeouts
from enclavia._io import face
from enclavia._io.face import run
from enclavia._pool.kinds import Job, PoolLimits, State
from enclavia._pool.ticket import Lease

# Of a caller that was interrupted before it took its first step.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")

EFFORT = int(os.environ.get("ENCLAVIA_INTERLEAVINGS", "1"))
WATCHED = frozenset(
    str(module.__file__)
    for module in (
        connecting,
        connections,
        engine,
        pinning,
        tunnel,
        validity,
        verified,
        waiting,
        transport,
        transport_base,
    )
    if module.__file__
) | frozenset(map(str, Path(_pool.__path__[0]).glob("*.py")))
NO_LIMIT = Timeouts()
GET = Job()
LONG = Job(repeatable=False, body_size=100_000_000)


class Cancelled(BaseException):
    """As asyncio's: raised by a wait."""


class Link:
    fresh = True

    def close(self) -> None:
        self.fresh = False


class Io:
    """Waits that are the scheduler's."""

    def __init__(self, world: World) -> None:
        self._world = world

    def waiter(self) -> Event:
        return Event(self._world.scheduler)

    async def wait(self, waiter: Event, timeout: float | None) -> bool:
        if timeout is None:
            waiter.wait()
            return True
        # A pause, which passes without anybody's doing.
        self._world.scheduler.point()
        if not waiter.is_set():
            self._world.now += timeout
        return waiter.is_set()

    async def wait_open(self, core: Core, timeout: float | None) -> bool:
        self._world.scheduler.block(lambda: True, cancellable=True)
        return True


class World:
    """One client, and its callers."""

    def __init__(self, scheduler: Scheduler, **limits: Any) -> None:
        self.scheduler = scheduler
        self.now = 100.0
        self.failures: list[Exception] = []
        self.cores: weakref.WeakSet[Core] = weakref.WeakSet()
        self.kept: list[object] = []
        self.limits = PoolLimits(**{"max_in_flight": 1, "max_channels": 1, **limits})
        settings = Settings(Config(self.reach), self.limits, 2, NO_LIMIT)  # type: ignore[arg-type]
        self.transport = EnclaveTransport.__new__(EnclaveTransport)
        self.transport._make_io = lambda: Io(self)  # type: ignore[assignment, method-assign]
        TransportBase.__init__(self.transport, settings)  # type: ignore[arg-type]
        self.pool: Any = self.engine.pool
        self.pool._lock = Lock(scheduler)
        self.pool._outage.jitter = lambda: 1.0
        self.opened_before = False

    def reach(self) -> Core:
        core = Core(self.failures.pop() if self.failures else None)
        self.cores.add(core)
        return core

    @property
    def engine(self) -> Engine:
        return self.transport._current

    def connected(self) -> World:
        """Before the callers begin."""
        self.pool.release(self.obtain(), None, self.now)
        return self

    def obtain(self, job: Job = GET) -> Lease[Any, Any]:
        return run(self.engine.connections.obtain(job, NO_LIMIT))

    # What a caller may do.

    def request(self, job: Job = GET, keep: bool = True) -> None:
        """As an answer that was read to its end."""
        lease = self.obtain(job)
        assert lease.tunnel.core.state != "failed"
        self.scheduler.point()
        self.pool.release(lease, Link() if keep else None, self.now)  # type: ignore[arg-type]

    def forget(self) -> None:
        """As an answer that was dropped."""
        lease = self.obtain()
        self.scheduler.point()
        del lease

    def lose_the_channel(self) -> None:
        lease = self.obtain()
        lease.tunnel.core.state = "closed"
        self.scheduler.point()
        self.pool.release(lease, None, self.now)

    def observe(self) -> None:
        self.pool.stats()
        self.pool.handles()
        self.pool.settle(self.now)

    def close(self) -> None:
        self.transport.close()

    def cancel(self, name: str) -> None:
        self.scheduler.point()
        self.scheduler.cancel(name, Cancelled())

    def die_waiting(self) -> None:
        """As a task that waits for its turn in an event loop that is closed, and is still there."""
        ticket = self.pool.request(GET, self.now)
        if ticket.state in (State.WAITING, State.CONNECT):
            self.pool.watch(ticket, Event(self.scheduler, dead=True))
            if ticket.state is State.WAITING:
                self.kept.append(ticket)
                return
        self.pool.withdraw(ticket, self.now)


Scenario = tuple[dict[str, Any], list[Callable[[World], object]]]

SCENARIOS: dict[str, Scenario] = {
    "two requests": ({}, [World.request, World.request]),
    "two first requests": ({"connected": False}, [World.request, World.request]),
    "one forgets": ({}, [World.forget, World.request]),
    "both forget": ({}, [World.forget, World.forget]),
    "one looks": ({}, [World.forget, World.observe]),
    "closed": ({}, [World.close, World.request]),
    "closed at first": ({"connected": False}, [World.close, World.request]),
    "closed twice": ({}, [World.close, World.close]),
    "closed and forgotten": ({}, [World.close, World.forget]),
    "cancelled": ({}, [lambda world: world.cancel("1"), World.request]),
    "the first is refused": (
        {"connected": False, "failures": 1},
        [World.request, World.request],
    ),
    "the channel goes": ({}, [World.lose_the_channel, World.request]),
    "a closed loop": ({}, [World.request, World.die_waiting]),
    "a long body": ({"max_channels": 3}, [World.request, lambda world: world.request(LONG)]),
}
OF_THREE: dict[str, Scenario] = {
    "two wait": ({}, [World.forget, World.request, World.request]),
    "one waits, one looks": ({}, [World.forget, World.request, World.observe]),
    "two slots": ({"max_in_flight": 2}, [World.request, World.forget, World.request]),
    "two wait for a closed loop": ({}, [World.request, World.die_waiting, World.request]),
    "one is cancelled": (
        {},
        [lambda world: world.cancel("1"), World.request, World.request],
    ),
    "the connector is cancelled": (
        {"connected": False},
        [lambda world: world.cancel("1"), World.request, World.request],
    ),
    "closed with two": ({"connected": False}, [World.close, World.request, World.request]),
    "refused for three": (
        {"connected": False, "failures": 2},
        [World.request, World.request, World.forget],
    ),
}
OF_FOUR: dict[str, Scenario] = {
    "everything": (
        {"max_channels": 3},
        [World.request, World.forget, World.lose_the_channel, lambda world: world.request(LONG)],
    ),
    "everything, closed": (
        {"connected": False, "failures": 1},
        [World.request, World.forget, World.observe, World.close],
    ),
    "everything, cancelled": (
        {"max_in_flight": 2, "connected": False},
        [lambda world: world.cancel("1"), World.request, World.forget, World.request],
    ),
    "everything, with a closed loop": (
        {},
        [World.request, World.die_waiting, World.lose_the_channel, World.forget],
    ),
}
ALL = {**SCENARIOS, **OF_THREE, **OF_FOUR}


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    with undisturbed():
        yield


def play(
    scenario: Scenario,
    choose: Any,
    monkeypatch: pytest.MonkeyPatch,
    interrupt: int | None = None,
    preempt_at_events: bool = False,
) -> Scheduler:
    """Runs the scenario once, and looks at what is left."""
    options, jobs = scenario
    limits = dict(options)
    connected, failures = limits.pop("connected", True), limits.pop("failures", 0)
    scheduler = Scheduler(choose, WATCHED)
    world = World(scheduler, **limits)
    for module in (connecting, connections, exchange, engine, face, tunnel, waiting):
        monkeypatch.setattr(module, "now", lambda: world.now)
    if connected:
        world.connected()
    world.failures = [enclavia.ConnectError("refused") for _ in range(failures)]
    for number, job in enumerate(jobs):
        scheduler.spawn(str(number), functools.partial(job, world))
    scheduler.run(interrupt, preempt_at_events)
    what = f"asleep, and nobody is left to wake them ({scheduler.interrupted or 'no interruption'})"
    assert not scheduler.stuck, what
    closed = any(job is World.close for job in jobs)
    for name, error in scheduler.errors.items():
        expected = isinstance(error, Cancelled) or (
            isinstance(error, KeyboardInterrupt) and name == "0" and scheduler.interrupted
        )
        assert expected or (closed and isinstance(error, enclavia.StateError)), repr(error)
    with explained(scheduler.interrupted):
        check(world, closed and (not scheduler.interrupted or world.pool.closed))
    scheduler.forget()
    world.__dict__.clear()
    return scheduler


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        error.add_note(f"interrupted at: {place or 'no place'}")
        raise


def check(world: World, closed: bool) -> None:
    pool = world.pool
    assert not pool._lock.taken
    assert not pool._outbox.to_wake
    assert not pool._outbox.to_close
    assert not pool._lost
    stats = pool.stats()
    assert stats.streams_active == 0
    assert stats.waiting == 0
    if closed:
        assert [core.state for core in world.cores if core.state == "open"] == []
        with pytest.raises(enclavia.StateError):
            world.obtain()
        assert pool.handles() == []
        return
    assert all(member.open and member.in_use == 0 for member in pool._members.all)
    assert len(pool._members.all) <= world.limits.max_channels
    # Every slot can be had, at once and together.
    leases = [world.obtain() for _ in range(world.limits.max_in_flight)]
    assert pool.stats().streams_active == len(leases)
    for lease in leases:
        pool.release(lease, None, world.now)
    assert pool.stats().streams_active == 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_schedule_of_two(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of those in which a caller that could go on is not let to at most so many times."""
    count = 0
    at_most = 2 if "failures" in SCENARIOS[name][0] else 3  # every attempt multiplies them
    for choose in schedules(preemptions=at_most if EFFORT == 1 else at_most + 2):
        play(SCENARIOS[name], choose, monkeypatch)
        count += 1
    assert count > 20


@pytest.mark.parametrize("name", OF_THREE)
def test_schedules_of_three(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for choose in schedules(preemptions=1 if EFFORT == 1 else 3):
        play(OF_THREE[name], choose, monkeypatch)


@pytest.mark.parametrize("name", ALL)
def test_random_schedules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers change not only at locks and waits, but wherever CPython lets them."""
    for seed in range(60 * EFFORT):
        play(
            ALL[name],
            RandomSchedule(seed, preempting=0.2 if seed % 2 else 0.05),
            monkeypatch,
            preempt_at_events=True,
        )


@pytest.mark.parametrize("name", ALL)
def test_interrupted_anywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the first caller, at each place of the pool, the engine and the transport."""
    for seed in range(4 * EFFORT):
        place = 0
        # Up to the interruption the schedule is the same for each place.
        while play(
            ALL[name], RandomSchedule(seed, 0.9 if seed % 2 else 0.3), monkeypatch, place
        ).interrupted:
            place += 1
        assert place > 3 or "cancelled" in name  # whose first caller does hardly anything


class TestAForkedChild:
    """Its threads begin at once, with a client of the parent's."""

    def test_has_one_engine_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pid = os.getpid()
        for choose in schedules(preemptions=2 if EFFORT == 1 else 4):
            scheduler = Scheduler(choose, frozenset({str(transport_base.__file__)}))
            monkeypatch.setattr(os, "getpid", lambda: pid)
            world = World(scheduler).connected()
            parents = world.engine
            if hasattr(transport_base, "_fork_lock"):
                monkeypatch.setattr(transport_base, "_fork_lock", Lock(scheduler))
            monkeypatch.setattr(os, "getpid", lambda: pid + 1)
            for name in "ab":
                scheduler.spawn(name, functools.partial(getattr, world.transport, "_engine"))
            scheduler.run(preempt_at_events=True)
            assert not scheduler.errors
            assert scheduler.result("a") is scheduler.result("b") is not parents
            assert world.transport._engine is scheduler.result("a")


class TestTheScheduler:
    """That it finds what it is there for."""

    def test_all_orders(self) -> None:
        seen = set()
        for choose in schedules(preemptions=None):
            scheduler = Scheduler(choose)
            steps: list[str] = []

            def walk(name: str, scheduler: Scheduler = scheduler, steps: Any = steps) -> None:
                for _ in range(3):
                    scheduler.point()
                    steps.append(name)

            for name in "ab":
                scheduler.spawn(name, functools.partial(walk, name))
            scheduler.run()
            seen.add("".join(steps))
        assert len(seen) == 20  # 6 over 3

    def test_a_wait_that_nobody_ends(self) -> None:
        scheduler = Scheduler(AllSchedules(None))
        scheduler.spawn("a", Event(scheduler).wait)
        scheduler.spawn("b", lambda: None)
        scheduler.run()
        assert scheduler.stuck == ["a"]
        assert isinstance(scheduler.errors["a"], Stuck)

    def test_two_locks_in_two_orders(self) -> None:
        def both(one: Lock, two: Lock) -> None:
            with one, two:
                pass

        outcomes = set()
        for choose in schedules(preemptions=2):
            scheduler = Scheduler(choose)
            one, two = Lock(scheduler), Lock(scheduler)
            scheduler.spawn("a", functools.partial(both, one, two))
            scheduler.spawn("b", functools.partial(both, two, one))
            scheduler.run()
            outcomes.add(len(scheduler.stuck))
        assert outcomes == {0, 2}

    def test_a_signal_after_any_call(self) -> None:
        """Among them the call that took a lock, which is what ``with`` is safe from."""

        def careless(lock: Lock) -> None:
            if lock.acquire(False):
                try:
                    len("")
                finally:
                    lock.release()

        def careful(lock: Lock) -> None:
            with lock:
                len("")

        left_taken = {careless: 0, careful: 0}
        for job in left_taken:
            place, more = 0, True
            while more:
                scheduler = Scheduler(AllSchedules(0), frozenset({__file__}))
                lock = Lock(scheduler)
                scheduler.spawn("a", functools.partial(job, lock))
                scheduler.run(interrupt=place)
                left_taken[job] += lock.taken
                place, more = place + 1, bool(scheduler.interrupted)
            assert place > 3
        assert left_taken == {careless: 1, careful: 0}
