"""Any history of a pool, drawn and in threads, keeps its rules."""

from __future__ import annotations

import gc
import random
import threading

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pool_parts import (
    GET,
    AnyLease,
    AnyPool,
    AnyTicket,
    Channel,
    Link,
    make,
    opened,
)

import enclavia
from enclavia._pool.choose import is_long
from enclavia._pool.kinds import Job, PoolLimits, State
from enclavia._pool.pool import Pool


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens in whatever order: no slot is lost, no channel overfilled, nobody waits
    while there is room, and those who wait are served in order."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = PoolLimits(max_channels=3, max_in_flight=3, keepalive_expiry=5, patience=3)
        self.pool: AnyPool = Pool(self.limits, jitter=lambda: 0.5)
        self.now = 0.0
        self.tickets: list[AnyTicket] = []
        self.leases: list[AnyLease] = []

    def collect(self) -> None:
        for ticket in list(self.tickets):
            if ticket.state is State.GRANTED:
                self.tickets.remove(ticket)
                self.leases.append(ticket.take())
            elif ticket.state is State.FAILED:
                self.tickets.remove(ticket)

    @rule(repeatable=st.booleans(), size=st.sampled_from([0, 0, 1000, 10_000_000, None]))
    def request(self, repeatable: bool, size: int | None) -> None:
        self.tickets.append(self.pool.request(Job(repeatable, size), self.now))
        self.collect()

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), reuse=st.booleans())
    def release(self, data: st.DataObject, reuse: bool) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        link = (lease.link or Link()) if reuse else None
        self.pool.release(lease, link, self.now)
        self.collect()

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def lose_lease(self, data: st.DataObject) -> None:
        self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.collect()

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), lost=st.booleans())
    def give_up(self, data: st.DataObject, lost: bool) -> None:
        ticket = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
        if not lost:
            self.pool.withdraw(ticket, self.now)
        del ticket
        self.collect()

    def connectors(self) -> list[AnyTicket]:
        return [ticket for ticket in self.tickets if ticket.state is State.CONNECT]

    @precondition(lambda self: self.connectors())
    @rule(outcome=st.sampled_from(["open", "refused", "final"]))
    def connect(self, outcome: str) -> None:
        ticket = self.connectors()[0]
        assert ticket.member is not None
        if ticket.member.handle is None:
            self.pool.starting(ticket, Channel())
        if outcome == "open":
            self.pool.connected(ticket, self.now)
        elif outcome == "refused":
            self.pool.connect_failed(ticket, enclavia.ConnectError("no"), self.now)
        else:
            self.pool.connect_failed(ticket, enclavia.PcrMismatch("no"), self.now)
        self.collect()

    @precondition(lambda self: self.pool.handles())
    @rule(data=st.data())
    def channel_dies(self, data: st.DataObject) -> None:
        handles = self.pool.handles()
        handles[data.draw(st.integers(0, len(handles) - 1))].alive = False
        self.pool.settle(self.now)
        self.collect()

    @precondition(lambda self: any(member.idle for member in self.pool._members.all))
    @rule()
    def workload_closes_idle(self) -> None:
        for member in self.pool._members.all:
            for _, link in member.idle:
                link.fresh = False

    @invariant()
    def slots_are_accounted_for(self) -> None:
        members = self.pool._members.all
        assert len(members) <= self.limits.max_channels
        assert all(member.load <= self.limits.max_in_flight for member in members)
        for member in members:
            held = sum(lease.member is member for lease in self.leases)
            assert member.in_use == held
        assert self.pool.stats().waiting == len(self.tickets)

    @invariant()
    def somebody_connects_or_there_is_a_reason_to_wait(self) -> None:
        waiting = [ticket for ticket in self.tickets if ticket.state is State.WAITING]
        if not waiting:
            return
        if self.connectors():
            return
        ready = [member for member in self.pool._members.all if member.open]
        assert ready
        if not is_long(waiting[0].job, self.limits) and not all(m.spare for m in ready):
            ready = [member for member in ready if not member.spare]
        assert all(member.load == self.limits.max_in_flight for member in ready)
        assert not any(member.idle for member in ready)

    @invariant()
    def leases_use_what_is_open(self) -> None:
        links = [lease.link for lease in self.leases if lease.link is not None]
        assert len(links) == len({id(link) for link in links})
        idle = {id(link) for member in self.pool._members.all for _, link in member.idle}
        assert not idle & {id(link) for link in links}


TestAnyHistory = AnyHistory.TestCase


TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_many_threads() -> None:
    """Requests, releases and losses from threads, with collections in between."""
    pool = make(max_in_flight=4)
    _, lease = opened(pool)
    pool.release(lease, None, 0)
    in_use = 0
    most = 0
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        nonlocal in_use, most
        dice = random.Random(seed)
        try:
            for _ in range(200):
                ticket = pool.request(GET, 0)
                event = threading.Event()
                while True:
                    pool.watch(ticket, event)
                    if ticket.state is State.GRANTED:
                        break
                    assert event.wait(10)
                    event.clear()
                mine = ticket.take()
                with lock:
                    in_use += 1
                    most = max(most, in_use)
                with lock:
                    in_use -= 1
                if dice.random() < 0.2:
                    del mine
                else:
                    pool.release(mine, Link() if dice.random() < 0.5 else None, 0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert most <= 4
    gc.collect()
    assert pool.stats().streams_active == 0
    assert pool.stats().waiting == 0
