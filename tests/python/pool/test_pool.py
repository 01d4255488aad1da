"""The pool's decisions, told to it and read from it, without a socket or a clock: which connection
a request takes, and who connects."""

from __future__ import annotations

import gc
import random

import pytest
from pool_parts import (
    GET,
    LONG,
    POST,
    AnyPool,
    Channel,
    Link,
    Waiter,
    make,
    opened,
    take,
)

import enclavia
from enclavia._pool.kinds import Phase, PoolLimits, State
from enclavia._pool.pool import Pool


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

    def test_given_back_unused_it_is_as_old_as_before(self) -> None:
        pool = make()
        _, lease = opened(pool)
        pool.release(lease, Link(), 0)
        pool.withdraw(pool.request(GET, 1.9), 1.9)
        pool.withdraw(pool.request(GET, 1.9), 1.9)
        kept = pool.lend_kept(GET, 1.9)
        assert kept is not None and kept.idle_since == 0
        pool.release(kept, kept.link, 1.9, kept.idle_since)
        assert take(pool, POST, 2).link is None  # too old for a request that cannot be repeated


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
