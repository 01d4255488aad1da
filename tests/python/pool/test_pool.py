"""The pool's decisions, told to it and read from it, without a socket or a clock."""

from __future__ import annotations

import gc
import random
import threading
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import enclavia
from enclavia._pool.choose import is_long
from enclavia._pool.kinds import Job, Phase, PoolLimits, State
from enclavia._pool.pool import Pool
from enclavia._pool.ticket import Lease, Ticket

GET = Job()
POST = Job(repeatable=False)
LONG = Job(repeatable=False, body_size=100_000_000)


class Channel:
    def __init__(self) -> None:
        self.alive = True
        self.closed = False

    def close(self) -> None:
        self.alive = False
        self.closed = True


class Link:
    def __init__(self) -> None:
        self.fresh = True
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Waiter:
    def __init__(self) -> None:
        self.count = 0

    def set(self) -> None:
        self.count += 1


AnyPool = Pool[Channel, Link]
AnyTicket = Ticket[Channel, Link]
AnyLease = Lease[Channel, Link]


def make(**limits: Any) -> AnyPool:
    return Pool(PoolLimits(**limits), jitter=lambda: 1.0)


def opened(pool: AnyPool, now: float = 0.0) -> tuple[Channel, AnyLease]:
    """A pool's first request connects, and has its lease."""
    ticket = pool.request(GET, now)
    assert ticket.state is State.CONNECT
    channel = Channel()
    pool.starting(ticket, channel)
    pool.connected(ticket, now)
    assert ticket.state is State.GRANTED
    return channel, ticket.take()


def take(pool: AnyPool, job: Job = GET, now: float = 0.0) -> AnyLease:
    ticket = pool.request(job, now)
    assert ticket.state is State.GRANTED, ticket.state
    return ticket.take()


class TestAConnectionThatIsIdle:
    """Taking it at once must not pass over what taking it in turn looks at."""

    def test_not_over_the_limit(self) -> None:
        pool = make(max_connections=1)
        _, lease = opened(pool)
        pool.release(lease, Link(), 0)
        new = take(pool, POST, 2)  # too old for a request that cannot be repeated
        assert new.link is None and pool.stats().streams_idle == 1
        assert pool.request(GET, 2).state is State.WAITING

    def test_not_beside_a_long_body(self) -> None:
        pool = make()
        _, lease = opened(pool)
        other = take(pool)
        pool.release(lease, Link(), 0)
        assert pool.request(LONG, 0).state is State.CONNECT  # the spare channel
        pool.release(other, None, 0)

    def test_not_after_a_sleep(self) -> None:
        pool = make(keepalive_expiry=None, channel_expiry=45)
        channel, lease = opened(pool)
        pool.release(lease, Link(), 0)
        assert pool.request(GET, 46).state is State.CONNECT
        assert channel.closed


class TestConnecting:
    def test_one_attempt_for_all(self) -> None:
        pool = make()
        first, *others = [pool.request(GET, 0) for _ in range(5)]
        waiters = [Waiter() for _ in others]
        for ticket, waiter in zip(others, waiters, strict=True):
            pool.watch(ticket, waiter)
        assert first.state is State.CONNECT
        assert [ticket.state for ticket in others] == [State.WAITING] * 4
        assert others[0].phase is Phase.CONNECT
        pool.starting(first, Channel())
        pool.connected(first, 1)
        assert [ticket.state for ticket in (first, *others)] == [State.GRANTED] * 5
        assert all(waiter.count for waiter in waiters)
        assert pool.stats().connects == 1

    @pytest.mark.parametrize("retryable", [False])
    def test_final_failure_is_everybodys(self, retryable: bool) -> None:
        pool = make()
        tickets = [pool.request(GET, 0) for _ in range(3)]
        channel = Channel()
        pool.starting(tickets[0], channel)
        error = enclavia.PcrMismatch("other", index=1, retryable=retryable)
        pool.connect_failed(tickets[0], error, 1)
        errors = [ticket.error for ticket in tickets]
        assert [ticket.state for ticket in tickets] == [State.FAILED] * 3
        assert all(isinstance(each, enclavia.PcrMismatch) and each.index == 1 for each in errors)
        assert len({id(each) for each in errors}) == 3
        assert channel.closed
        assert pool.stats().waiting == 0
        assert pool.request(GET, 2).state is State.CONNECT

    def test_the_first_connect_goes_on_too(self) -> None:
        pool = make()
        ticket, other = pool.request(GET, 0), pool.request(GET, 0)
        error = enclavia.ConnectError("refused")
        for attempt, pause in ((1, 0.05), (2, 0.1), (3, 0.2), (4, 0.4)):
            pool.starting(ticket, Channel())
            pool.connect_failed(ticket, error, attempt)
            assert ticket.state is State.CONNECT
            assert ticket.member is not None
            assert ticket.member.handle is None
            assert ticket.member.not_before == pytest.approx(attempt + pause)
            assert other.state is State.WAITING

    def test_without_patience_there_is_one_attempt(self) -> None:
        pool = make(patience=0)
        ticket, other = pool.request(GET, 0), pool.request(GET, 0)
        pool.connect_failed(ticket, enclavia.ConnectError("refused"), 0)
        assert ticket.state is other.state is State.FAILED
        assert pool.request(GET, 0).state is State.CONNECT

    def test_whose_patience_is_over_leaves_the_rest_to_the_others(self) -> None:
        pool = make(patience=1)
        first, second = pool.request(GET, 0), pool.request(GET, 0.9)
        waiter = Waiter()
        pool.watch(first, waiter)
        pool.connect_failed(first, enclavia.ConnectError("refused"), 0.9)
        assert first.state is State.CONNECT and second.state is State.WAITING
        pool.connect_failed(first, enclavia.ConnectError("refused"), 0.95)  # the next is too late
        assert (first.state, second.state) == (State.FAILED, State.CONNECT)
        assert isinstance(first.error, enclavia.ConnectError) and waiter.count
        assert second.member is not None
        assert second.member.not_before == pytest.approx(1.05)

    def test_patience_begins_when_the_channel_is_lost(self) -> None:
        pool = make(patience=1, max_in_flight=1)
        channel, lease = opened(pool)
        ticket = pool.request(GET, 0)
        assert ticket.state is State.WAITING
        channel.alive = False
        pool.release(lease, None, 100)
        assert ticket.state is State.CONNECT
        pool.connect_failed(ticket, enclavia.ConnectError("refused"), 100.5)
        assert ticket.state is State.CONNECT
        pool.connect_failed(ticket, enclavia.ConnectError("refused"), 101)
        assert ticket.state is State.FAILED

    def test_reconnecting_goes_on_until_nobody_waits(self) -> None:
        pool = make()
        channel, lease = opened(pool)
        pool.release(lease, None, 0)
        channel.alive = False
        ticket = pool.request(GET, 1)
        assert ticket.state is State.CONNECT
        assert ticket.member is not None
        pauses = []
        for attempt in range(10):
            pool.connect_failed(ticket, enclavia.ConnectError("refused"), 0)
            assert ticket.state is State.CONNECT, attempt
            pauses.append(ticket.member.not_before)
        assert pauses[:3] == pytest.approx([0.05, 0.1, 0.2])
        assert pauses[-1] == 2.0
        pool.withdraw(ticket, 1)
        assert pool.stats().waiting == 0
        assert pool.request(GET, 2).state is State.CONNECT

    def test_pause_has_jitter(self) -> None:
        pool: AnyPool = Pool(PoolLimits(), jitter=random.Random(1).random)
        pauses = set()
        for _ in range(20):
            ticket = pool.request(GET, 0)
            pool.connect_failed(ticket, enclavia.ConnectError("refused"), 0)
            assert ticket.member is not None
            pauses.add(ticket.member.not_before)
            pool.withdraw(ticket, 0)
            pool._outage.failures = 0
        assert len(pauses) == 20
        assert all(0.025 <= pause <= 0.05 for pause in pauses)

    def test_another_takes_the_attempt_over(self) -> None:
        pool = make()
        first, second = pool.request(GET, 0), pool.request(GET, 0)
        channel = Channel()
        pool.starting(first, channel)
        pool.withdraw(first, 1)
        assert second.state is State.CONNECT
        assert second.member is not None
        assert second.member.handle is channel
        assert not channel.closed
        pool.connected(second, 2)
        assert second.state is State.GRANTED

    def test_an_attempt_nobody_waits_for_is_closed(self) -> None:
        pool = make()
        ticket = pool.request(GET, 0)
        channel = Channel()
        pool.starting(ticket, channel)
        pool.withdraw(ticket, 1)
        assert channel.closed
        assert pool.handles() == []

    def test_a_lost_connector_is_replaced(self) -> None:
        """As after a KeyboardInterrupt between two lines: nobody withdrew the ticket."""
        pool = make()
        first, second = pool.request(GET, 0), pool.request(GET, 0)
        del first
        gc.collect()
        assert second.state is State.CONNECT

    def test_counts_reconnects(self) -> None:
        pool = make()
        for number in range(3):
            channel, lease = opened(pool)
            pool.release(lease, None, 0)
            assert (pool.stats().connects, pool.stats().reconnects) == (number + 1, number)
            channel.alive = False


class TestWithoutReconnecting:
    def test_the_first_connect_is_none(self) -> None:
        pool = make(reconnect=False)
        ticket = pool.request(GET, 0)
        pool.connect_failed(ticket, enclavia.ConnectError("refused"), 0)
        assert ticket.state is State.CONNECT

    def test_what_was_lost_stays_lost(self) -> None:
        pool = make(reconnect=False, max_in_flight=1)
        channel, lease = opened(pool)
        waiting = pool.request(GET, 0)
        channel.alive = False
        pool.release(lease, None, 0)
        for ticket in (waiting, pool.request(GET, 1)):
            assert ticket.state is State.FAILED
            assert isinstance(ticket.error, enclavia.ReconnectDisabled)
            assert not ticket.error.retryable
        assert channel.closed
        assert pool.stats().waiting == 0

    def test_a_second_channel_is_not_another_try(self) -> None:
        """It was on its way when the first one was lost, and failed."""
        pool = make(reconnect=False, max_channels=3, max_in_flight=1)
        channel, _lease = opened(pool)
        second = pool.request(GET, 0)
        assert second.state is State.CONNECT
        channel.alive = False
        pool.settle(0)
        pool.connect_failed(second, enclavia.ConnectError("refused"), 0)
        assert second.state is State.FAILED
        assert isinstance(second.error, enclavia.ReconnectDisabled)

    def test_a_second_channel_serves_who_waits(self) -> None:
        pool = make(reconnect=False, max_channels=3, max_in_flight=1)
        channel, _lease = opened(pool)
        second = pool.request(GET, 0)
        channel.alive = False
        pool.settle(0)
        pool.starting(second, Channel())
        pool.connected(second, 0)
        assert second.state is State.GRANTED

    def test_an_idle_channel_is_kept(self) -> None:
        pool = make(reconnect=False, keepalive_expiry=None, channel_expiry=45)
        channel, lease = opened(pool)
        pool.release(lease, None, 0)
        assert take(pool, now=1000).tunnel is channel


class TestSlots:
    def test_never_more_than_max_in_flight(self) -> None:
        pool = make(max_in_flight=3)
        _, first = opened(pool)
        leases = [first, take(pool), take(pool)]
        waiting = [pool.request(GET, 0) for _ in range(4)]
        assert [ticket.state for ticket in waiting] == [State.WAITING] * 4
        assert waiting[0].phase is Phase.POOL
        pool.release(leases.pop(), None, 0)
        assert [ticket.state for ticket in waiting] == [State.GRANTED] + [State.WAITING] * 3
        pool.release(leases.pop(), None, 0)
        assert waiting[1].state is State.GRANTED
        assert pool.stats().streams_active == 3

    def test_in_order(self) -> None:
        pool = make(max_in_flight=1)
        _, lease = opened(pool)
        tickets = [pool.request(GET, 0) for _ in range(10)]
        for ticket in tickets:
            assert ticket.state is State.WAITING
            pool.release(lease, None, 0)
            assert ticket.state is State.GRANTED
            lease = ticket.take()

    def test_giving_up_the_place(self) -> None:
        pool = make(max_in_flight=1)
        _, lease = opened(pool)
        first, second = pool.request(GET, 0), pool.request(GET, 0)
        pool.withdraw(first, 0)
        pool.release(lease, None, 0)
        assert second.state is State.GRANTED

    def test_withdrawn_though_granted(self) -> None:
        """Cancelled in the moment in which it was its turn: the next one gets it."""
        pool = make(max_in_flight=1)
        _, lease = opened(pool)
        first, second = pool.request(GET, 0), pool.request(GET, 0)
        pool.release(lease, None, 0)
        assert first.state is State.GRANTED
        pool.withdraw(first, 0)
        assert second.state is State.GRANTED
        assert pool.stats().streams_active == 1

    def test_lost_tickets_and_leases_come_back(self) -> None:
        pool = make(max_in_flight=1)
        _, lease = opened(pool)
        lost, second, third = (pool.request(GET, 0) for _ in range(3))
        del lost
        gc.collect()
        assert pool.stats().waiting == 2
        del lease
        gc.collect()
        assert second.state is State.GRANTED
        del second
        gc.collect()
        assert third.state is State.GRANTED

    def test_given_back_twice(self) -> None:
        pool = make(max_in_flight=2)
        _, lease = opened(pool)
        pool.release(lease, None, 0)
        pool.release(lease, None, 0)
        assert pool.stats().streams_active == 0

    def test_max_connections(self) -> None:
        pool = make(max_connections=2)
        _, first = opened(pool)
        second = take(pool)
        third = pool.request(GET, 0)
        assert third.state is State.WAITING
        pool.release(first, None, 0)
        assert third.state is State.GRANTED
        pool.release(second, None, 0)


class TestReuse:
    def test_the_one_used_last(self) -> None:
        pool = make()
        _, first = opened(pool)
        second = take(pool)
        old, new = Link(), Link()
        pool.release(first, old, 1)
        pool.release(second, new, 2)
        assert take(pool, now=3).link is new
        assert pool.stats().streams_idle == 1

    def test_not_one_that_was_closed(self) -> None:
        pool = make()
        _, first = opened(pool)
        second = take(pool)
        good, stale = Link(), Link()
        pool.release(first, good, 1)
        pool.release(second, stale, 2)
        stale.fresh = False
        assert take(pool, now=3).link is good
        assert stale.closed

    def test_not_one_that_expired(self) -> None:
        pool = make(keepalive_expiry=5)
        _, lease = opened(pool)
        link = Link()
        pool.release(lease, link, 10)
        lease = take(pool, now=15)
        assert lease.link is link
        pool.release(lease, link, 20)
        assert take(pool, now=25.1).link is None
        assert link.closed

    def test_for_ever_where_asked(self) -> None:
        pool = make(keepalive_expiry=None, channel_expiry=1e9)
        _, lease = opened(pool)
        link = Link()
        pool.release(lease, link, 0)
        assert take(pool, now=1e6).link is link

    def test_what_cannot_be_repeated_takes_no_chances(self) -> None:
        pool = make(careful_expiry=1)
        _, lease = opened(pool)
        link = Link()
        pool.release(lease, link, 0)
        assert take(pool, POST, now=1.1).link is None
        assert not link.closed
        lease = take(pool, GET, now=1.2)
        assert lease.link is link
        pool.release(lease, link, 2)
        assert take(pool, POST, now=2.9).link is link

    def test_an_answer_that_took_long_to_read(self) -> None:
        """The workload had sent all of it long before, and may be about to hang up."""
        pool = make(careful_expiry=1, keepalive_expiry=4)
        _, lease = opened(pool)
        other = take(pool)
        slow, quick = Link(), Link()
        pool.release(other, quick, 5.4, 5.3)
        pool.release(lease, slow, 5.5, 1.6)
        assert take(pool, POST, now=5.55).link is quick
        assert take(pool, POST, now=5.55).link is None
        assert not slow.closed
        assert take(pool, GET, now=5.7).link is None
        assert slow.closed

    def test_max_idle(self) -> None:
        pool = make(max_idle=1)
        _, first = opened(pool)
        second = take(pool)
        kept, closed = Link(), Link()
        pool.release(first, kept, 0)
        pool.release(second, closed, 0)
        assert (kept.closed, closed.closed) == (False, True)

    def test_an_idle_one_makes_room(self) -> None:
        """All slots held by connections too old for this request: the oldest is closed."""
        pool = make(max_in_flight=2, careful_expiry=1)
        _, first = opened(pool)
        second = take(pool)
        old, older = Link(), Link()
        pool.release(first, older, 0)
        pool.release(second, old, 1)
        lease = take(pool, POST, now=3)
        assert lease.link is None
        assert (older.closed, old.closed) == (True, False)

    def test_goes_to_who_waits(self) -> None:
        pool = make(max_in_flight=1)
        _, lease = opened(pool)
        waiting = pool.request(GET, 0)
        link = Link()
        pool.release(lease, link, 0)
        assert waiting.state is State.GRANTED
        assert waiting.take().link is link

    def test_withdrawn_unused(self) -> None:
        pool = make()
        _, lease = opened(pool)
        link = Link()
        pool.release(lease, link, 0)
        ticket = pool.request(GET, 1)
        pool.withdraw(ticket, 1)
        assert not link.closed
        assert take(pool, now=1).link is link


class TestChannels:
    def test_a_dead_one_is_replaced(self) -> None:
        pool = make()
        channel, lease = opened(pool)
        idle, busy = take(pool), take(pool)
        link = Link()
        pool.release(idle, link, 0)
        channel.alive = False
        ticket = pool.request(GET, 1)
        assert ticket.state is State.CONNECT
        assert link.closed
        pool.release(lease, Link(), 2)
        assert not channel.closed  # somebody still reads from it
        del busy
        gc.collect()
        assert channel.closed
        assert pool.stats().streams_idle == 0

    def test_connection_of_a_dead_one_is_not_kept(self) -> None:
        pool = make()
        channel, lease = opened(pool)
        pool.settle(0)
        channel.alive = False
        link = Link()
        pool.release(lease, link, 0)
        assert link.closed

    def test_one_long_unused_is_replaced(self) -> None:
        """As after a night's sleep: it looks open, and nobody is there."""
        pool = make(channel_expiry=45)
        channel, first = opened(pool, 0)
        second = take(pool, now=1)
        pool.release(second, None, 2)
        assert take(pool, now=100).tunnel is channel  # the first request is still under way
        gc.collect()
        pool.release(first, Link(), 100)
        assert pool.stats().streams_active == 0
        lease = take(pool, now=144)
        assert lease.tunnel is channel
        pool.release(lease, Link(), 144)
        assert pool.request(GET, 190).state is State.CONNECT
        assert channel.closed

    def test_a_second_one_when_the_first_is_full(self) -> None:
        pool = make(max_channels=3, max_in_flight=1)
        first_channel, _first = opened(pool)
        ticket, later = pool.request(GET, 0), pool.request(GET, 0)
        assert ticket.state is State.CONNECT
        assert later.state is State.WAITING
        pool.starting(ticket, Channel())
        pool.connected(ticket, 0)
        second = ticket.take()
        assert second.tunnel is not first_channel
        assert later.state is State.WAITING
        pool.release(second, None, 0)
        assert later.take().tunnel is second.tunnel

    def test_a_second_one_is_a_wish(self) -> None:
        """The server takes no more connections: the request waits for the first one."""
        pool = make(max_channels=3, max_in_flight=1)
        _, lease = opened(pool)
        ticket = pool.request(GET, 0)
        pool.connect_failed(ticket, enclavia.UpgradeRejected("full", status=503), 0)
        assert ticket.state is State.WAITING
        assert pool.request(GET, 0.01).state is State.WAITING
        pool.release(lease, None, 0)
        assert ticket.state is State.GRANTED

    def test_phase_change_wakes(self) -> None:
        pool = make(max_in_flight=1)
        channel, lease = opened(pool)
        ticket = pool.request(GET, 0)
        waiter = Waiter()
        pool.watch(ticket, waiter)
        assert ticket.phase is Phase.POOL
        channel.alive = False
        pool.release(lease, None, 0)
        assert ticket.state is State.CONNECT
        assert waiter.count

    def test_close(self) -> None:
        pool = make(max_in_flight=2)
        channel, lease = opened(pool)
        idle = take(pool)
        link = Link()
        pool.release(idle, link, 0)
        blocked = take(pool, POST, now=9)
        waiting = pool.request(GET, 9)
        assert waiting.state is State.WAITING
        assert pool.close(enclavia.StateError("closed")) == [channel]
        assert link.closed
        assert isinstance(waiting.error, enclavia.StateError)
        pool.release(lease, Link(), 0)
        pool.release(blocked, None, 0)

    def test_connected_too_late(self) -> None:
        pool = make()
        ticket = pool.request(GET, 0)
        channel = Channel()
        pool.starting(ticket, channel)
        assert pool.close(enclavia.StateError("closed")) == [channel]
        pool.connected(ticket, 1)
        assert ticket.state is State.FAILED
        assert pool.handles() == []


class TestLongBodies:
    def second(self, pool: AnyPool, job: Job = LONG, now: float = 0.0) -> tuple[Channel, AnyLease]:
        ticket = pool.request(job, now)
        assert ticket.state is State.CONNECT
        channel = Channel()
        pool.starting(ticket, channel)
        pool.connected(ticket, now)
        return channel, ticket.take()

    @pytest.mark.parametrize("size", [None, 256 * 1024 + 1])
    def test_one_beside_others_has_a_channel_of_its_own(self, size: int | None) -> None:
        pool = make()
        first, _lease = opened(pool)
        spare, _long = self.second(pool, Job(body_size=size))
        assert pool.stats().reconnects == 0
        others = [take(pool) for _ in range(63)]
        assert {lease.tunnel for lease in others} == {first}
        assert pool.request(GET, 0).state is State.WAITING
        assert take(pool, LONG).tunnel is spare

    def test_shorter_ones_share(self) -> None:
        pool = make()
        first, _lease = opened(pool)
        assert take(pool, Job(body_size=256 * 1024)).tunnel is first

    def test_with_nothing_beside_it_the_first_channel_does(self) -> None:
        pool = make()
        first, lease = opened(pool)
        link = Link()
        pool.release(lease, link, 0)
        long = take(pool, LONG)
        assert long.tunnel is first
        assert long.link is link
        assert take(pool).tunnel is first

    def test_the_spare_channel_is_kept_for_the_next(self) -> None:
        pool = make()
        first, _lease = opened(pool)
        spare, long = self.second(pool)
        pool.release(long, Link(), 0)
        assert take(pool).tunnel is first
        assert take(pool, LONG).tunnel is spare

    def test_others_do_not_wait_while_it_connects(self) -> None:
        pool = make()
        first, _lease = opened(pool)
        ticket, other = pool.request(LONG, 0), pool.request(LONG, 0)
        assert ticket.state is State.CONNECT
        assert ticket.phase is Phase.CONNECT
        assert other.take().tunnel is first
        assert take(pool).tunnel is first

    @pytest.mark.parametrize("error", [enclavia.ConnectTimeout("no"), enclavia.PcrMismatch("no")])
    def test_without_room_on_the_server_it_shares(self, error: Exception) -> None:
        pool = make()
        first, _lease = opened(pool)
        ticket = pool.request(LONG, 0)
        channel = Channel()
        pool.starting(ticket, channel)
        pool.connect_failed(ticket, error, 3)
        assert channel.closed
        assert ticket.take().tunnel is first
        assert pool.last_error is None
        assert take(pool, LONG, 20).tunnel is first
        assert pool.request(LONG, 34).state is State.CONNECT

    def test_given_up_while_it_connects(self) -> None:
        pool = make(max_in_flight=1)
        _first, lease = opened(pool)
        ticket, waiting = pool.request(LONG, 0), pool.request(GET, 0)
        channel = Channel()
        pool.starting(ticket, channel)
        pool.withdraw(ticket, 1)
        assert channel.closed
        assert waiting.state is State.WAITING
        pool.release(lease, None, 1)
        assert waiting.state is State.GRANTED

    def test_no_second_channel_where_one_is_allowed(self) -> None:
        pool = make(max_channels=1)
        first, _lease = opened(pool)
        assert take(pool, LONG).tunnel is first

    def test_the_spare_channel_stands_in_for_a_lost_one(self) -> None:
        pool = make()
        first, _lease = opened(pool)
        spare, _long = self.second(pool)
        first.alive = False
        assert take(pool).tunnel is spare
        assert pool.request(LONG, 0).state is State.CONNECT

    def test_the_spare_channel_serves_while_the_lost_one_is_replaced(self) -> None:
        pool = make()
        first, _lease = opened(pool)
        pending = pool.request(LONG, 0)
        first.alive = False
        ticket = pool.request(GET, 0)
        assert ticket.state is State.CONNECT
        spare = Channel()
        pool.starting(pending, spare)
        pool.connected(pending, 0)
        assert pending.take().tunnel is spare
        assert take(pool).tunnel is spare

    def test_the_only_one_left_is_everybodys(self) -> None:
        """It fails like the first: those who wait are told."""
        pool = make(patience=0)
        first, _lease = opened(pool)
        pending = pool.request(LONG, 0)
        first.alive = False
        pool.settle(0)
        pool.connect_failed(pending, enclavia.ConnectError("refused"), 0)
        assert pending.state is State.FAILED

    def test_the_limit_of_connections_counts(self) -> None:
        pool = make(max_connections=1)
        _first, _lease = opened(pool)
        assert pool.request(LONG, 0).state is State.WAITING


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
