"""Which channel, which workload connection, whose turn, who connects: decided here, done elsewhere.

One object, shared by the blocking and the awaiting transport. It does no I/O and reads no clock:
what it is told comes with the time, and what it decides is read from a ticket. Waiting for a
ticket's waiter, connecting and closing is the transport's part.

    ticket = pool.request(job, now)        in order, first come first served
    ticket.state   WAITING   wait for ticket.waiter, at most as long as ticket.phase allows
                   CONNECT   open ticket.member for all who wait, then report the outcome
                   GRANTED   ticket.take() is a lease: one connection of the workload
                   FAILED    ticket.error

A long body goes over a channel on which nothing else is going on, because a server can lose what
it has read in part when an answer is ready first: alone a body may be sent as fast as it goes,
beside others it is sent with care (csrc/channel/pace.h). So one of several channels is spare: it is
opened when a long body meets a channel in use, and carries nothing but long bodies.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import copy
import enum
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar, cast

__all__ = ["Job", "Lease", "Member", "Phase", "Pool", "PoolLimits", "PoolStats", "State", "Ticket"]


if TYPE_CHECKING:

    class ChannelHandle(Protocol):
        @property
        def alive(self) -> bool: ...
        def close(self) -> None: ...

    class LinkHandle(Protocol):
        """A workload connection kept for another request."""

        @property
        def fresh(self) -> bool:
            """Nothing came on it since it was put away."""

        def close(self) -> None: ...

    class Wakeable(Protocol):
        def set(self) -> None: ...


C = TypeVar("C", bound="ChannelHandle")
L = TypeVar("L", bound="LinkHandle")


class PoolLimits(NamedTuple):
    max_channels: int = 2
    """One of several is the spare one."""
    long_body: int = 256 * 1024
    spare_backoff: float = 30.0
    """How long a spare channel that could not be had is not asked for again: the server may have
    no room for it, and it is a wish, not a need."""
    max_in_flight: int = 64
    """Per channel, connections kept for reuse included: each holds one of the server's slots."""
    max_connections: int | None = None
    """In use at once, over all channels."""
    max_idle: int | None = None
    keepalive_expiry: float | None = 4.0
    channel_expiry: float = 45.0
    """A channel unused for longer is replaced. The server closes one after 30 s."""
    careful_expiry: float = 1.0
    """A request that cannot be repeated takes only a connection used that recently: workloads
    close idle ones after two seconds or more, and a close may be on its way unseen."""
    retries: int = 2
    backoff_base: float = 0.05
    backoff_cap: float = 2.0


class Job(NamedTuple):
    """What is known of a request before it is sent."""

    repeatable: bool = True
    body_size: int | None = 0
    """None where it is not known."""


class State(enum.Enum):
    WAITING = enum.auto()
    CONNECT = enum.auto()
    GRANTED = enum.auto()
    FAILED = enum.auto()


class Phase(enum.Enum):
    """What a waiting request waits for, and so which of its timeouts counts."""

    CONNECT = "connect"
    POOL = "pool"


class PoolStats(NamedTuple):
    channels: int
    streams_active: int
    streams_idle: int
    waiting: int
    connects: int
    reconnects: int


class Member(Generic[C, L]):
    """One channel: on its way, open, or gone."""

    def __init__(self, spare: bool = False) -> None:
        self.handle: C | None = None
        self.spare = spare
        self.open = False
        self.gone = False
        self.in_use = 0
        self.used = 0.0
        self.idle: list[tuple[float, L]] = []
        self.connector: int | None = None
        self.not_before = 0.0

    @property
    def alive(self) -> bool:
        return self.open and self.handle is not None and self.handle.alive

    @property
    def load(self) -> int:
        return self.in_use + len(self.idle)


class Lease(Generic[C, L]):
    """The right to one workload connection: ``link`` is one to be reused, or None for a new one.
    Given back with :meth:`Pool.release`; a lost one comes back by itself."""

    __slots__ = ("__weakref__", "_pool", "link", "member", "released")

    def __init__(self, pool: Pool[C, L], member: Member[C, L], link: L | None) -> None:
        self._pool = pool
        self.member = member
        self.link = link
        self.released = True  # until it is granted

    @property
    def handle(self) -> C:
        return cast(C, self.member.handle)

    def __del__(self) -> None:
        if not self.released:
            self._pool.lost_lease(self.member)


class Ticket(Generic[C, L]):
    """One request's place in the queue."""

    __slots__ = (
        "__weakref__", "_pool", "error", "job", "lease", "member", "order", "state", "waiter"
    )  # fmt: skip

    def __init__(self, pool: Pool[C, L], job: Job, order: int) -> None:
        self._pool = pool
        self.job = job
        self.order = order
        self.state = State.WAITING
        self.waiter: Wakeable | None = None
        self.member: Member[C, L] | None = None
        self.lease: Lease[C, L] | None = None
        self.error: Exception | None = None

    @property
    def phase(self) -> Phase:
        return self._pool.phase if self.state is State.WAITING else Phase.CONNECT

    def take(self) -> Lease[C, L]:
        lease, self.lease = self.lease, None
        return cast("Lease[C, L]", lease)

    def __del__(self) -> None:
        if self.state in (State.WAITING, State.CONNECT):
            self._pool.lost_ticket(self.order)


class Pool(Generic[C, L]):
    def __init__(self, limits: PoolLimits, jitter: Callable[[], float] = random.random) -> None:
        self._limits = limits
        self._jitter = jitter
        self._lock = threading.Lock()
        self._members: list[Member[C, L]] = []
        # Weak: a ticket whose caller was interrupted between two lines must not keep a slot.
        self._queue: collections.OrderedDict[int, weakref.ref[Ticket[C, L]]] = (
            collections.OrderedDict()
        )
        self._lost: collections.deque[Member[C, L] | int] = collections.deque()
        self._to_wake: collections.deque[Wakeable] = collections.deque()
        self._to_close: collections.deque[C | L] = collections.deque()
        self._orders = 0
        self._failures = 0
        self._grow_after = 0.0
        self._spare_after = 0.0
        self._last_now = 0.0
        self._connects = 0
        self._reconnects = 0
        self.last_error: Exception | None = None
        self.phase = Phase.CONNECT

    # -- asked and told by the transports ---------------------------------------------------

    def request(self, job: Job, now: float) -> Ticket[C, L]:
        with self._lock:
            self._orders += 1
            ticket: Ticket[C, L] = Ticket(self, job, self._orders)
            if self._serve_at_once(ticket, now):
                return ticket
            self._queue[ticket.order] = weakref.ref(ticket)
            self._decide(now)
        self._carry_out()
        return ticket

    def watch(self, ticket: Ticket[C, L], waiter: Wakeable) -> None:
        """The waiter is set when the ticket changed; look at the ticket after this, then wait."""
        with self._lock:
            ticket.waiter = waiter

    def withdraw(self, ticket: Ticket[C, L], now: float) -> None:
        """The caller gave up."""
        with self._lock:
            self._queue.pop(ticket.order, None)
            if ticket.state is State.CONNECT and ticket.member is not None:
                self._hand_over(ticket.member)
            ticket.state = State.FAILED
            lease, ticket.lease = ticket.lease, None
            if lease is not None:
                self._give_back(lease, lease.link, now)
            self._decide(now)
        self._carry_out()

    def starting(self, ticket: Ticket[C, L], handle: C) -> None:
        """The connector has begun; whoever takes its place goes on with this one."""
        with self._lock:
            if ticket.member is not None:
                ticket.member.handle = handle

    def connected(self, ticket: Ticket[C, L], now: float) -> None:
        with self._lock:
            member = ticket.member
            # Otherwise closed meanwhile.
            if ticket.state is State.CONNECT and member is not None and member.handle is not None:
                alone = not any(other.open for other in self._members)
                self._reconnects += alone and self._connects > 0
                self._connects += 1
                self._failures = 0
                self.last_error = None
                member.open = True
                member.used = now
                member.connector = None
                self._wait_again(ticket)
            self._decide(now)
        self._carry_out()

    def connect_failed(self, ticket: Ticket[C, L], error: Exception, now: float) -> None:
        """Either everybody who waits is told, or the same ticket tries again after a while."""
        with self._lock:
            # Otherwise closed meanwhile.
            if ticket.state is State.CONNECT and ticket.member is not None:
                self._after_failure(ticket, ticket.member, error, now)
            self._decide(now)
        self._carry_out()

    def release(
        self, lease: Lease[C, L], link: L | None, now: float, answered: float | None = None
    ) -> None:
        """``link``: the connection, where another request can use it; closed by the caller
        otherwise. ``answered``: when its last answer began to come; its server may have sent all
        of that at once and counts its idle time from then, however long the reading took. Giving
        back twice does nothing."""
        with self._lock:
            self._give_back(lease, link, now, answered)
            if self._queue or link is None or not lease.member.alive:
                self._decide(now)
        if self._to_wake or self._to_close or self._lost:
            self._carry_out()

    def lost_lease(self, member: Member[C, L]) -> None:
        self._lost.append(member)
        self._reap()

    def lost_ticket(self, order: int) -> None:
        self._lost.append(order)
        self._reap()

    def alone(self, ticket: Ticket[C, L]) -> bool:
        """Whether nobody else waits for what this ticket waits for."""
        with self._lock:
            return all(order == ticket.order for order in self._queue)

    def settle(self, now: float) -> None:
        """Looks at everything once more: expiry, channels that went away."""
        with self._lock:
            self._decide(now)
        self._carry_out()

    def close(self, error: Exception) -> list[C]:
        """Fails who waits, forgets everything; the channels are the caller's to close."""
        with self._lock:
            handles = [member.handle for member in self._members if member.handle is not None]
            for member in self._members:
                self._to_close.extend(link for _, link in member.idle)
                member.idle.clear()
                member.open = False
            self._members.clear()
            self._fail_all(error)
        self._carry_out()
        return handles

    def handles(self) -> list[C]:
        with self._lock:
            return [member.handle for member in self._members if member.handle is not None]

    def stats(self) -> PoolStats:
        with self._lock:
            return PoolStats(
                channels=sum(member.open for member in self._members),
                streams_active=sum(member.in_use for member in self._members),
                streams_idle=sum(len(member.idle) for member in self._members),
                waiting=len(self._queue),
                connects=self._connects,
                reconnects=self._reconnects,
            )

    # -- deciding ---------------------------------------------------------------------------

    def _serve_at_once(self, ticket: Ticket[C, L], now: float) -> bool:
        """One request after another over one channel: what :meth:`_decide` would come to, where
        there is nobody to wait behind and nothing else to decide."""
        if self._queue or self._lost or len(self._members) != 1:
            return False
        member, limits = self._members[0], self._limits
        if member.spare or not member.idle or self._at_limit() or self._is_long(ticket.job):
            return False
        expiry = limits.keepalive_expiry
        used, link = member.idle[-1]
        if (
            (expiry is not None and member.idle[0][0] + expiry < now)
            or (not ticket.job.repeatable and used < now - limits.careful_expiry)
            or not member.alive
            or self._slept(member, now)
            or not link.fresh
        ):
            return False
        member.idle.pop()
        self._grant(ticket, member, link)
        return True

    def _serve(self, ticket: Ticket[C, L], now: float) -> bool:
        """Gives the ticket what it needs, or says that it has to wait."""
        ready = [member for member in self._members if member.open]
        if self._is_long(ticket.job) and ready:
            return self._serve_long(ticket, ready, now)
        ready = self._shared(ready)
        if not self._at_limit() and (
            self._serve_idle(ticket, ready, now) or self._serve_new(ticket, ready)
        ):
            return True
        return self._serve_connect(ticket, ready, now)

    def _is_long(self, job: Job) -> bool:
        return job.body_size is None or job.body_size > self._limits.long_body

    def _shared(self, ready: list[Member[C, L]]) -> list[Member[C, L]]:
        """Those for requests of all kinds; the spare one where no other is open."""
        shared = [member for member in ready if not member.spare]
        if shared or not ready:
            return shared
        if all(member.spare for member in self._members):
            ready[0].spare = False
        return ready

    def _serve_long(self, ticket: Ticket[C, L], ready: list[Member[C, L]], now: float) -> bool:
        if self._at_limit():
            return False
        ready = sorted(ready, key=lambda member: (member.in_use > 0, not member.spare))
        if ready[0].in_use and self._may_have_spare(now):
            member: Member[C, L] = Member(spare=True)
            self._members.append(member)
            self._make_connector(ticket, member)
            return True
        for member in ready:
            if self._serve_idle(ticket, [member], now) or self._serve_new(ticket, [member]):
                return True
        return False

    def _may_have_spare(self, now: float) -> bool:
        return (
            self._limits.max_channels > 1
            and now >= self._spare_after
            and not any(member.spare for member in self._members)
        )

    def _serve_idle(self, ticket: Ticket[C, L], ready: list[Member[C, L]], now: float) -> bool:
        """The connection used last: it is the least likely to be closed meanwhile."""
        oldest = float("-inf") if ticket.job.repeatable else now - self._limits.careful_expiry
        if len(ready) > 1:
            ready = sorted(ready, key=lambda member: -member.idle[-1][0] if member.idle else 0.0)
        for member in ready:
            while member.idle and member.idle[-1][0] >= oldest:
                _, link = member.idle.pop()
                if link.fresh:
                    self._grant(ticket, member, link)
                    return True
                self._to_close.append(link)
        return False

    def _serve_new(self, ticket: Ticket[C, L], ready: list[Member[C, L]]) -> bool:
        for member in sorted(ready, key=lambda member: member.load):
            if member.load >= self._limits.max_in_flight and member.idle:
                self._to_close.append(member.idle.pop(0)[1])
            if member.load < self._limits.max_in_flight:
                self._grant(ticket, member, None)
                return True
        return False

    def _serve_connect(self, ticket: Ticket[C, L], ready: list[Member[C, L]], now: float) -> bool:
        members = [member for member in self._members if not member.spare]
        if len(ready) < len(members):  # one is on its way
            return False
        most = max(1, self._limits.max_channels - 1)
        if ready and (self._at_limit() or len(ready) >= most or now < self._grow_after):
            return False
        member: Member[C, L] = Member()
        self._members.append(member)
        self._make_connector(ticket, member)
        return True

    def _at_limit(self) -> bool:
        limit = self._limits.max_connections
        return limit is not None and sum(member.in_use for member in self._members) >= limit

    def _after_failure(
        self, ticket: Ticket[C, L], member: Member[C, L], error: Exception, now: float
    ) -> None:
        if member.handle is not None:
            self._to_close.append(member.handle)
            member.handle = None
        if member.spare and any(other is not member for other in self._members):
            self._members.remove(member)
            self._spare_after = now + self._limits.spare_backoff
            self._wait_again(ticket)
            return
        member.spare = False
        self._failures += 1
        self.last_error = error
        pause = self._pause()
        if any(other.open for other in self._members):
            # A second channel is a wish, not a need.
            self._members.remove(member)
            self._grow_after = now + pause
            self._wait_again(ticket)
        elif self._connect_again(error):
            member.not_before = now + pause
            self._wake(ticket)
        else:
            self._members.remove(member)
            self._failures = 0
            self._fail_all(error)

    def _connect_again(self, error: Exception) -> bool:
        """While connecting for the first time, as often as asked for; a connection that was there
        before is sought until those who wait for it give up."""
        if not getattr(error, "retryable", False) or self._limits.retries == 0:
            return False
        return self._connects > 0 or self._failures <= self._limits.retries

    def _pause(self) -> float:
        exponent = min(self._failures - 1, 16)
        pause: float = min(self._limits.backoff_base * 2**exponent, self._limits.backoff_cap)
        return pause * (0.5 + 0.5 * self._jitter())

    # -- carrying it out, in here ------------------------------------------------------------

    # A signal's handler may raise between any two calls in here. So counters change next to what
    # they count, without a call between them; what is lost otherwise comes back when it is
    # collected; and what is still to be carried out stays noted until it was.

    def _decide(self, now: float) -> None:
        self._last_now = now
        self._collect_lost()
        self._purge(now)
        while (ticket := self._first_waiting()) is not None:
            if not self._serve(ticket, now):
                break  # whoever comes later waits behind
        self._tell_phase()

    def _first_waiting(self) -> Ticket[C, L] | None:
        if not self._queue:
            return None
        served: list[int] = []
        found: Ticket[C, L] | None = None
        for order, reference in self._queue.items():
            ticket = reference()
            if ticket is None or ticket.state not in (State.WAITING, State.CONNECT):
                served.append(order)
            elif ticket.state is State.WAITING:
                found = ticket
                break
        for order in served:
            self._queue.pop(order, None)
        return found

    def _tickets(self) -> Iterator[Ticket[C, L]]:
        for order, reference in list(self._queue.items()):
            ticket = reference()
            if ticket is None:
                self._queue.pop(order, None)
            else:
                yield ticket

    def _tell_phase(self) -> None:
        phase = Phase.CONNECT
        for member in self._members:
            if member.open:
                phase = Phase.POOL
                break
        if phase is not self.phase:
            self.phase = phase
            for ticket in self._tickets():
                self._wake(ticket)

    def _purge(self, now: float) -> None:
        expiry = self._limits.keepalive_expiry
        for member in list(self._members):
            if not member.open:
                continue
            handle = cast(C, member.handle)
            if not handle.alive or self._slept(member, now):
                member.open = False
                self._members.remove(member)
                self._to_close.extend(link for _, link in member.idle)
                member.idle.clear()
                member.gone = True
                self._close_if_unused(member)
                continue
            if expiry is not None:
                while member.idle and member.idle[0][0] + expiry < now:
                    self._to_close.append(member.idle.pop(0)[1])

    def _slept(self, member: Member[C, L], now: float) -> bool:
        """So long unused that it is not to be relied on: where a machine slept or a router forgot
        the connection, the next request would wait for its timeout in vain."""
        return member.in_use == 0 and now - member.used > self._limits.channel_expiry

    def _grant(self, ticket: Ticket[C, L], member: Member[C, L], link: L | None) -> None:
        lease = Lease(self, member, link)
        member.in_use += 1
        lease.released = False
        ticket.lease = lease
        ticket.state = State.GRANTED
        self._queue.pop(ticket.order, None)
        self._wake(ticket)

    def _give_back(
        self, lease: Lease[C, L], link: L | None, now: float, answered: float | None = None
    ) -> None:
        if lease.released:
            return
        member = lease.member
        lease.released = True
        member.in_use -= 1
        member.used = now
        lease.link = None
        self._close_if_unused(member)
        if link is None:
            return
        limit = self._limits.max_idle
        idle = sum(len(other.idle) for other in self._members)
        if member.open and (limit is None or idle < limit):
            since = now if answered is None else answered
            if not member.idle or member.idle[-1][0] <= since:
                member.idle.append((since, link))
            else:
                bisect.insort(member.idle, (since, link), key=lambda entry: entry[0])
        else:
            self._to_close.append(link)

    def _close_if_unused(self, member: Member[C, L]) -> None:
        """Not before: who still reads from a channel that went away must learn why it did."""
        if member.gone and member.in_use == 0 and member.handle is not None:
            self._to_close.append(member.handle)

    def _make_connector(self, ticket: Ticket[C, L], member: Member[C, L]) -> None:
        member.connector = ticket.order
        ticket.member = member
        ticket.state = State.CONNECT
        self._wake(ticket)

    def _hand_over(self, member: Member[C, L]) -> None:
        """The connector is gone: the next in line goes on, or nobody needs it any more."""
        member.connector = None
        for ticket in self._tickets():
            if ticket.state is State.WAITING and not member.spare:
                self._make_connector(ticket, member)
                return
        self._members.remove(member)
        if member.handle is not None:
            self._to_close.append(member.handle)

    def _wait_again(self, ticket: Ticket[C, L]) -> None:
        ticket.member = None
        ticket.state = State.WAITING
        self._wake(ticket)

    def _fail_all(self, error: Exception) -> None:
        for ticket in self._tickets():
            # Its own copy for each: a traceback and a request are hung onto it.
            ticket.error = copy.copy(error)
            ticket.state = State.FAILED
            self._wake(ticket)
        self._queue.clear()

    def _wake(self, ticket: Ticket[C, L]) -> None:
        if ticket.waiter is not None:
            self._to_wake.append(ticket.waiter)

    def _reap(self) -> None:
        """Runs in destructors, at any place of any thread: whoever holds the lock does it."""
        while self._lost and self._lock.acquire(blocking=False):
            try:
                self._decide(self._last_now)
            finally:
                self._lock.release()
            self._flush()

    def _collect_lost(self) -> None:
        while self._lost:
            item = self._lost.popleft()
            if isinstance(item, Member):
                item.in_use -= 1
                self._close_if_unused(item)
                continue
            self._queue.pop(item, None)
            for member in list(self._members):
                if member.connector == item:
                    self._hand_over(member)

    def _carry_out(self) -> None:
        """Without the lock: what is woken or closed may come back here."""
        self._flush()
        self._reap()

    def _flush(self) -> None:
        while self._to_wake:
            with contextlib.suppress(IndexError):  # another thread took it
                self._to_wake.popleft().set()
        while self._to_close:
            with contextlib.suppress(IndexError):
                self._to_close.popleft().close()
