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
import functools
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, cast

from .._errors import ReconnectDisabled, StateError
from .choose import Do, Outlook, at_limit, choose, has_expired, may_take_last
from .guard import carried_out, refused
from .kinds import C, Job, L, Member, Phase, PoolLimits, PoolStats, State, Wakeable
from .ticket import Lease, Ticket

__all__ = ["Pool"]


# A call that interrupts another one of the same thread (see guard.py) only notes what it asks for.
# The interrupted call does it before it ends.


def _withdraw_later(pool: Pool[C, L], ticket: Ticket[C, L], now: float) -> None:
    why = StateError("the request was withdrawn")
    pool._lost.append(functools.partial(pool._give_up, ticket, why, now))


def _release_later(pool: Pool[C, L], *args: Any, **keywords: Any) -> None:  # noqa: ANN401
    pool._lost.append(functools.partial(pool._give_back, *args, **keywords))


def _settle_later(pool: Pool[C, L], now: float) -> None:
    pool._lost.append(None)


def _close_later(pool: Pool[C, L], error: Exception) -> list[C]:
    """The channels there are now are the caller's to close; the pool closes those, and any that is
    being added to them just now."""
    pool._lost.append(functools.partial(pool._close_all, error))
    return [member.handle for member in pool._members if member.handle is not None]


class Pool(Generic[C, L]):
    def __init__(self, limits: PoolLimits, jitter: Callable[[], float] = random.random) -> None:
        self._limits = limits
        self._jitter = jitter
        # Reentrant, so that a thread that interrupts itself learns of it by _inside, which the lock
        # guards: whether the pool's state is being changed.
        self._lock = threading.RLock()
        self._inside = False
        self._members: list[Member[C, L]] = []
        # Weak: a ticket whose caller was interrupted between two lines must not keep a slot.
        self._queue: collections.OrderedDict[int, weakref.ref[Ticket[C, L]]] = (
            collections.OrderedDict()
        )
        # A lease's member, a ticket's order, what is to be done later because it was asked for in
        # the middle of something else, or None: a destructor was interrupted.
        self._lost: collections.deque[Member[C, L] | int | functools.partial[None] | None] = (
            collections.deque()
        )
        # Taken away only after it was done, so that an interruption in between loses nothing:
        # doing it twice does no harm. Dictionaries, because two threads may be at it.
        self._to_wake: dict[Wakeable, Ticket[C, L]] = {}
        self._to_close: dict[C | L, None] = {}
        self._flushing: dict[int, None] = {}
        self._orders = 0
        self._failures = 0
        self._grow_after = 0.0
        self._spare_after = 0.0
        self._last_now = 0.0
        self._down_since = 0.0
        self._closed: Exception | None = None
        self._closing: list[weakref.ref[C]] = []
        self._connects = 0
        self._reconnects = 0
        self.last_error: Exception | None = None
        self.phase = Phase.CONNECT

    # -- asked and told by the transports ---------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed is not None

    @carried_out(interrupting=refused)
    def request(self, job: Job, now: float) -> Ticket[C, L]:
        self._orders += 1
        ticket: Ticket[C, L] = Ticket(self, job, self._orders, now)
        if not self._serve_at_once(ticket, now):
            self._queue[ticket.order] = weakref.ref(ticket)
            self._decide(now)
            if ticket.state is State.WAITING:
                self._probe_connectors()
        return ticket

    @carried_out(interrupting=refused)
    def watch(self, ticket: Ticket[C, L], waiter: Wakeable) -> None:
        """The waiter is set when the ticket changed; look at the ticket after this, then wait."""
        ticket.waiter = waiter

    @carried_out(interrupting=_withdraw_later)
    def withdraw(self, ticket: Ticket[C, L], now: float) -> None:
        """The caller gave up."""
        self._withdraw(ticket, StateError("the request was withdrawn"), now)

    @carried_out(interrupting=refused)
    def starting(self, ticket: Ticket[C, L], handle: C) -> None:
        """The connector has begun; whoever takes its place goes on with this one. Look at the
        ticket after this: where the pool was closed meanwhile, so is the handle."""
        if ticket.state is State.CONNECT and ticket.member is not None:
            ticket.member.handle = handle
        else:
            self._to_close[handle] = None

    @carried_out(interrupting=refused)
    def connected(self, ticket: Ticket[C, L], now: float) -> None:
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

    @carried_out(interrupting=refused)
    def connect_failed(self, ticket: Ticket[C, L], error: Exception, now: float) -> None:
        """Either everybody who waits is told, or the same ticket tries again after a while."""
        # Otherwise closed meanwhile.
        if ticket.state is State.CONNECT and ticket.member is not None:
            self._after_failure(ticket, ticket.member, error, now)
        self._decide(now)

    @carried_out(interrupting=_release_later)
    def release(
        self, lease: Lease[C, L], link: L | None, now: float, answered: float | None = None
    ) -> None:
        """``link``: the connection, where another request can use it; closed by the caller
        otherwise. ``answered``: when its last answer began to come; its server may have sent all
        of that at once and counts its idle time from then, however long the reading took. Giving
        back twice does nothing."""
        self._give_back(lease, link, now, answered)
        if self._queue or link is None or not lease.member.alive:
            self._decide(now)

    def lost_lease(self, member: Member[C, L]) -> None:
        self._lose(member)

    def lost_ticket(self, order: int) -> None:
        self._lose(order)

    def _lose(self, item: Member[C, L] | int) -> None:
        # No exception leaves a destructor: nobody would hear that this was interrupted.
        try:
            self._lost.append(item)
            self._reap()
        except BaseException:
            self._lost.append(None)
            self._reap()
            raise

    @carried_out(interrupting=None)
    def alone(self, ticket: Ticket[C, L]) -> bool:
        """Whether nobody else waits for what this ticket waits for."""
        return all(order == ticket.order for order in self._queue)

    @carried_out(interrupting=_settle_later)
    def settle(self, now: float) -> None:
        """Looks at everything once more: expiry, channels that went away."""
        self._decide(now)

    @carried_out(interrupting=_close_later)
    def close(self, error: Exception) -> list[C]:
        """Fails who waits and whoever asks from now on. The channels are the caller's to close;
        another call returns those of them that are still there."""
        self._begin_close(error)
        left = self._left()  # before the members go, which may be all that holds them
        self._decide(self._last_now)
        return left

    @carried_out(interrupting=None)
    def handles(self) -> list[C]:
        return [member.handle for member in self._members if member.handle is not None]

    @carried_out(interrupting=None)
    def stats(self) -> PoolStats:
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
        member = self._members[0]
        if at_limit(self._members, self._limits) or not may_take_last(
            ticket.job, member, self._limits, now
        ):
            return False
        _, link = member.idle.pop()
        self._grant(ticket, member, link)
        return True

    def _serve(self, ticket: Ticket[C, L], now: float) -> bool:
        """Gives the ticket what it needs, or says that it has to wait."""
        outlook = Outlook(now, self._grow_after, self._spare_after, self._is_over())
        while True:
            choice = choose(ticket.job, self._members, self._limits, outlook)
            do, member = choice.do, cast("Member[C, L]", choice.member)
            if do is Do.DROP:
                self._to_close[member.idle.pop()[1]] = None
            elif do is Do.SHARE:
                member.spare = False
            else:
                break
        if do is Do.WAIT:
            return False
        if do is Do.REUSE:
            self._grant(ticket, member, member.idle.pop()[1])
        elif do is Do.OPEN:
            if member.load >= self._limits.max_in_flight:
                self._to_close[member.idle.pop(0)[1]] = None
            self._grant(ticket, member, None)
        elif do is Do.REFUSE:
            self._fail(ticket, _lost_for_good())
        else:
            new: Member[C, L] = Member(spare=do is Do.CONNECT_SPARE)
            self._members.append(new)
            self._make_connector(ticket, new)
        return True

    def _after_failure(
        self, ticket: Ticket[C, L], member: Member[C, L], error: Exception, now: float
    ) -> None:
        if member.handle is not None:
            self._to_close[member.handle] = None
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
        elif self._is_over():
            self._members.remove(member)
            self._fail_all(_lost_for_good())
        elif getattr(error, "retryable", False):
            member.not_before = now + pause
            self._fail_impatient(error, member.not_before)
            if ticket.state is State.CONNECT:
                self._wake(ticket)
            else:
                self._hand_over(member)
        else:
            self._members.remove(member)
            self._failures = 0
            self._fail_all(error)

    def _probe_connectors(self) -> None:
        """Waking one for nothing does no harm, and shows whether it can be woken: a connector in
        an event loop that was closed would be waited for in vain."""
        for member in self._members:
            if not member.open and member.connector is not None:
                reference = self._queue.get(member.connector)
                connector = None if reference is None else reference()
                if connector is not None:
                    self._wake(connector)

    def _is_over(self) -> bool:
        """There was a channel, and there may be no other."""
        return self._connects > 0 and not self._limits.reconnect

    def _fail_impatient(self, error: Exception, next_attempt: float) -> None:
        """Tells those for whom the next attempt would be too late why the last one failed."""
        patience = self._limits.patience
        if patience is None:
            return
        for ticket in self._tickets():
            if next_attempt > max(ticket.since, self._down_since) + patience:
                self._fail(ticket, error)

    def _pause(self) -> float:
        exponent = min(self._failures - 1, 16)
        pause: float = min(self._limits.backoff_base * 2**exponent, self._limits.backoff_cap)
        return pause * (0.5 + 0.5 * self._jitter())

    # -- carrying it out, in here ------------------------------------------------------------

    # A signal's handler may raise after any call in here. Therefore:
    #
    # 1. A counter changes on the line next to what it counts, without a call in between. A ticket
    #    or a lease that is lost all the same comes back when it is collected.
    # 2. What is to be woken or closed stays noted until that was done. Doing it twice is harmless.
    # 3. Whatever else an interruption leaves half done is found and completed by :meth:`_mend`.

    def _decide(self, now: float) -> None:
        self._last_now = now
        self._collect_lost()
        if self._closed is not None:
            self._shut(self._closed)
            return
        self._purge(now)
        while (ticket := self._first_waiting()) is not None:
            if not self._serve(ticket, now):
                break  # whoever comes later waits behind
        self._tell_phase(now)

    def _begin_close(self, error: Exception) -> None:
        self._closing += [
            weakref.ref(member.handle) for member in self._members if member.handle is not None
        ]
        self._closed = error

    def _close_all(self, error: Exception) -> None:
        self._begin_close(error)
        self._to_close.update((handle, None) for handle in self._left())

    def _left(self) -> list[C]:
        """Channels that the client had when it was closed, and that are still there."""
        return [handle for each in self._closing if (handle := each()) is not None]

    def _shut(self, error: Exception) -> None:
        for member in self._members:
            member.open = False
            self._to_close.update((link, None) for _, link in member.idle)
            member.idle.clear()
        self._members.clear()
        self._fail_all(error)

    def _mend(self) -> None:
        """After an exception anywhere in here, which was most likely a signal's: nobody is left
        asleep who was served, and no channel is left to a connector that does not know of it."""
        with self._lock:
            if self._inside:
                self._lost.append(None)  # left to whoever was interrupted by this
                return
            self._inside = True
            try:
                self._repair()
                self._decide(self._last_now)
            finally:
                self._inside = False
        self._carry_out()

    def _repair(self) -> None:
        for ticket in self._tickets():
            self._wake(ticket)
        for member in list(self._members):
            if member.gone:
                self._retire(member)
            elif not member.open and not self._has_connector(member):
                self._hand_over(member)
        if self._closed is not None:
            self._to_close.update((handle, None) for handle in self._left())

    def _has_connector(self, member: Member[C, L]) -> bool:
        return any(
            ticket.member is member and ticket.state is State.CONNECT for ticket in self._tickets()
        )

    def _first_waiting(self) -> Ticket[C, L] | None:
        if not self._queue:
            return None
        served: list[int] = []
        found: Ticket[C, L] | None = None
        for order, reference in self._queue.items():
            ticket = reference()
            if ticket is None:
                served.append(order)
            elif ticket.state not in (State.WAITING, State.CONNECT):
                self._wake(ticket)  # who served it was interrupted before that
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

    def _tell_phase(self, now: float) -> None:
        phase = Phase.CONNECT
        for member in self._members:
            if member.open:
                phase = Phase.POOL
                break
        if phase is not self.phase:
            self.phase = phase
            self._down_since = now
            for ticket in self._tickets():
                self._wake(ticket)

    def _purge(self, now: float) -> None:
        expiry = self._limits.keepalive_expiry
        for member in list(self._members):
            if not member.open:
                continue
            handle = cast(C, member.handle)
            if not handle.alive or has_expired(member, self._limits, now):
                self._retire(member)
                continue
            if expiry is not None:
                while member.idle and member.idle[0][0] + expiry < now:
                    self._to_close[member.idle.pop(0)[1]] = None

    def _retire(self, member: Member[C, L]) -> None:
        member.open = False
        member.gone = True
        self._to_close.update((link, None) for _, link in member.idle)
        member.idle.clear()
        self._close_if_unused(member)
        self._members.remove(member)

    def _grant(self, ticket: Ticket[C, L], member: Member[C, L], link: L | None) -> None:
        lease = Lease(self, member, link)
        member.in_use += 1
        lease.released = False
        ticket.lease = lease
        ticket.state = State.GRANTED
        self._wake(ticket)
        self._queue.pop(ticket.order, None)

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
            self._to_close[link] = None

    def _withdraw(self, ticket: Ticket[C, L], why: Exception, now: float) -> None:
        self._give_up(ticket, why, now)
        self._decide(now)

    def _give_up(self, ticket: Ticket[C, L], why: Exception, now: float) -> None:
        self._queue.pop(ticket.order, None)
        member = ticket.member
        if ticket.state is State.CONNECT and member is not None and not member.open:
            self._hand_over(member)
        ticket.error = why
        ticket.state = State.FAILED
        lease, ticket.lease = ticket.lease, None
        if lease is not None:
            self._give_back(lease, lease.link, now)

    def _close_if_unused(self, member: Member[C, L]) -> None:
        """Not before: who still reads from a channel that went away must learn why it did."""
        if member.gone and member.in_use == 0 and member.handle is not None:
            self._to_close[member.handle] = None

    def _make_connector(self, ticket: Ticket[C, L], member: Member[C, L]) -> None:
        member.connector = ticket.order
        ticket.member = member
        ticket.state = State.CONNECT
        self._wake(ticket)

    def _hand_over(self, member: Member[C, L]) -> None:
        """The connector is gone: the next in line goes on, or nobody needs it any more."""
        if member not in self._members:
            return
        member.connector = None
        for ticket in self._tickets():
            if ticket.state is State.WAITING and not member.spare:
                self._make_connector(ticket, member)
                return
        if member.handle is not None:
            self._to_close[member.handle] = None
        self._members.remove(member)

    def _wait_again(self, ticket: Ticket[C, L]) -> None:
        ticket.member = None
        ticket.state = State.WAITING
        self._wake(ticket)

    def _fail(self, ticket: Ticket[C, L], error: Exception) -> None:
        # A copy for each ticket: a traceback and a request are hung onto it.
        ticket.error = copy.copy(error)
        ticket.state = State.FAILED
        self._wake(ticket)
        self._queue.pop(ticket.order, None)

    def _fail_all(self, error: Exception) -> None:
        for ticket in self._tickets():
            self._fail(ticket, error)

    def _wake(self, ticket: Ticket[C, L]) -> None:
        if ticket.waiter is not None:
            self._to_wake[ticket.waiter] = ticket

    def _reap(self) -> None:
        """Runs in destructors, at any place of any thread: so it never waits for the lock. Whoever
        holds it does the same afterwards."""
        while self._lost:
            # ``if acquire(): try:`` would leave the lock taken where a signal's handler raises
            # after the call and before the ``try``. In a ``for`` there is no such place.
            for _ in iter(functools.partial(self._lock.acquire, False), False):
                try:
                    if self._inside:
                        return
                    self._inside = True
                    try:
                        self._decide(self._last_now)
                    finally:
                        self._inside = False
                finally:
                    self._lock.release()
                break
            else:
                return
            self._flush()

    def _collect_lost(self) -> None:
        while self._lost:
            item = self._lost[0]
            if item is None:
                self._repair()
                del self._lost[0]
                continue
            if isinstance(item, functools.partial):
                item()
                del self._lost[0]
                continue
            if isinstance(item, Member):
                # No call between these two, and so no interruption.
                item.in_use -= 1
                del self._lost[0]
                self._close_if_unused(item)
                continue
            self._queue.pop(item, None)
            for member in list(self._members):
                if member.connector == item and not member.open:
                    self._hand_over(member)
            del self._lost[0]

    def _carry_out(self) -> None:
        """Without the lock: what is woken or closed may come back here."""
        self._flush()
        self._reap()

    def _flush(self) -> None:
        # A destructor or a signal's handler may come by here while this thread sets an event, and
        # would wait for ever for the lock of that event. What it adds is carried out here too.
        thread = threading.get_ident()
        if thread in self._flushing:
            return
        self._flushing[thread] = None
        try:
            self._flush_all()
        finally:
            del self._flushing[thread]

    def _flush_all(self) -> None:
        while self._to_wake or self._to_close:
            for waiter, ticket in list(self._to_wake.items()):
                try:
                    waiter.set()
                except Exception as error:
                    self._forsake(ticket, waiter, error)
                self._to_wake.pop(waiter, None)
            for handle in list(self._to_close):
                with contextlib.suppress(Exception):  # whoever comes by here did not open it
                    handle.close()
                self._to_close.pop(handle, None)

    def _forsake(self, ticket: Ticket[C, L], waiter: Wakeable, why: Exception) -> None:
        """Nobody can be told of what the ticket got, because its event loop was closed. So the
        next in line gets it."""
        with self._lock:
            self._inside = True
            try:
                if ticket.waiter is waiter:
                    error = StateError(f"nothing is left to wake this request: {why}")
                    self._withdraw(ticket, error, self._last_now)
                    ticket.waiter = None
            finally:
                self._inside = False


def _lost_for_good() -> ReconnectDisabled:
    return ReconnectDisabled(
        "expected the connection to the enclave to last, because auto_reconnect=False, got its "
        "end: make a new client to connect and verify again"
    )
