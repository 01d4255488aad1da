"""Channels, links and waiters for a pool that is told everything: no socket, no clock."""

from __future__ import annotations

from typing import Any

from enclavia._pool.kinds import Job, PoolLimits, State
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
