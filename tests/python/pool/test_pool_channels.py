"""The pool's decisions about slots, links used again, further channels, and long bodies."""

from __future__ import annotations

import gc

import pytest
from pool_parts import (
    GET,
    LONG,
    POST,
    AnyLease,
    AnyPool,
    Channel,
    Link,
    Waiter,
    make,
    opened,
    take,
)

import enclavia
from enclavia._pool.kinds import Job, Phase, State


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

    def test_a_connector_that_starts_over_closes_what_it_had(self) -> None:
        pool = make()
        ticket, next_one = pool.request(GET, 0), pool.request(GET, 0)
        refused = Channel()
        pool.starting(ticket, refused)
        pool.starting_over(ticket)
        assert refused.closed
        assert pool.handles() == []
        pool.withdraw(ticket, 0)
        assert next_one.state is State.CONNECT  # who takes its place has nothing of it
        assert next_one.member is not None
        assert next_one.member.handle is None

    def test_starting_over_too_late(self) -> None:
        pool = make()
        ticket = pool.request(GET, 0)
        channel = Channel()
        pool.starting(ticket, channel)
        pool.close(enclavia.StateError("closed"))
        pool.starting_over(ticket)
        assert ticket.state is State.FAILED


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
