"""The pool's door: which channel, which workload connection, whose turn, who connects.

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

Here stands who may come in and when: the pool's lock, what comes back by itself, and closing. What
is decided inside stands in the files below, each of which calls only those under it:

    turns     whose turn it is, who connects, what follows from a failure
    queue     who waits           members   channels and kept connections
    choose    which connection    outage    when it may be tried again
    outbox    who is to be woken, and what is to be closed
    guard  ticket  kinds          the lock's decorator, and the state that all share

Calls: _errors. Locks: ``_lock``, which guards all of the pool's state, and none while something is
woken or closed.
"""

from __future__ import annotations

import collections
import functools
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic

from .._errors import StateError
from .guard import carried_out, refused
from .kinds import C, Job, L, Member, Phase, PoolLimits, PoolStats, State, Wakeable
from .members import Members
from .outage import Outage
from .outbox import Outbox
from .queue import Queue
from .ticket import Lease, Ticket
from .turns import Turns

__all__ = ["Pool"]


# A call that interrupts another one of the same thread (see guard.py) only notes what it asks for.
# The interrupted call does it before it ends.


def _withdraw_later(pool: Pool[C, L], ticket: Ticket[C, L], now: float) -> None:
    why = StateError("the request was withdrawn")
    pool._lost.append(functools.partial(pool._turns.give_up, ticket, why, now))


def _release_later(pool: Pool[C, L], *args: Any, **keywords: Any) -> None:  # noqa: ANN401
    pool._lost.append(functools.partial(pool._turns.give_back, *args, **keywords))


def _fail_later(pool: Pool[C, L], ticket: Ticket[C, L], error: Exception, now: float) -> None:
    pool._lost.append(functools.partial(pool._turns.fail_waiting, ticket, error, now))


def _settle_later(pool: Pool[C, L], now: float) -> None:
    pool._lost.append(None)


def _close_later(pool: Pool[C, L], error: Exception) -> list[C]:
    """The channels there are now are the caller's to close; the pool closes those, and any that is
    being added to them just now."""
    pool._lost.append(functools.partial(pool._close_all, error))
    return pool._members.handles()


class Pool(Generic[C, L]):
    def __init__(self, limits: PoolLimits, jitter: Callable[[], float] = random.random) -> None:
        # Reentrant, so that a thread that interrupts itself learns of it by _inside, which the lock
        # guards: whether the pool's state is being changed.
        self._lock = threading.RLock()
        self._inside = False
        self._outbox: Outbox[C, L] = Outbox()
        self._queue: Queue[C, L] = Queue(self._outbox)
        self._members: Members[C, L] = Members(limits, self._outbox)
        self._outage = Outage(limits, jitter)
        self._turns = Turns(limits, self._queue, self._members, self._outage, self._outbox)
        # A lease's member, a ticket's order, what is to be done later because it was asked for in
        # the middle of something else, or None: a destructor was interrupted.
        self._lost: collections.deque[Member[C, L] | int | functools.partial[None] | None] = (
            collections.deque()
        )
        self._orders = 0
        self._last_now = 0.0
        self._closed: Exception | None = None
        self._closing: list[weakref.ref[C]] = []

    # -- asked by the transports ------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed is not None

    @property
    def spent(self) -> bool:
        """There was a channel, none is left, and there may be no other. Takes no lock: another
        thread may just now change it."""
        return self._outage.is_final and not any(member.alive for member in list(self._members.all))

    @property
    def phase(self) -> Phase:
        return self._outage.phase

    @property
    def failures(self) -> int:
        """How many attempts to connect have failed since one came to an end."""
        return self._outage.failures

    @property
    def last_error(self) -> Exception | None:
        """Why the last attempt to connect failed, where none succeeded since."""
        return self._outage.last_error

    @carried_out(interrupting=None)
    def alone(self, ticket: Ticket[C, L]) -> bool:
        """Whether nobody else waits for what this ticket waits for."""
        return all(order == ticket.order for order in self._queue.places)

    @carried_out(interrupting=None)
    def handles(self) -> list[C]:
        return self._members.handles()

    @carried_out(interrupting=None)
    def stats(self) -> PoolStats:
        members = self._members.all
        return PoolStats(
            channels=sum(member.open for member in members),
            streams_active=sum(member.in_use for member in members),
            streams_idle=sum(len(member.idle) for member in members),
            waiting=len(self._queue.places),
            connects=self._outage.connects,
            reconnects=self._outage.reconnects,
        )

    # -- told by the transports -------------------------------------------------------------

    @carried_out(interrupting=refused)
    def request(self, job: Job, now: float) -> Ticket[C, L]:
        self._orders += 1
        ticket: Ticket[C, L] = Ticket(self, job, self._orders, now)
        lease = None if self._lost else self._turns.lend_at_once(self, job, now)
        if lease is not None:
            ticket.lease = lease
            ticket.state = State.GRANTED
            return ticket
        self._queue.add(ticket)
        self._decide(now)
        if ticket.state is State.WAITING:
            self._turns.probe_connectors()
        return ticket

    @carried_out(interrupting=refused)
    def lend_kept(self, job: Job, now: float) -> Lease[C, L] | None:
        """A connection that was kept, where :meth:`request` would grant one at once; None
        otherwise. Needs no ticket, because nothing is waited for."""
        if not self._lost and (lease := self._turns.lend_at_once(self, job, now)) is not None:
            return lease
        self._decide(now)
        return self._turns.lend_kept(self, job, now)

    @carried_out(interrupting=refused)
    def watch(self, ticket: Ticket[C, L], waiter: Wakeable) -> None:
        """The waiter is set when the ticket changed; look at the ticket after this, then wait."""
        ticket.waiter = waiter

    @carried_out(interrupting=_withdraw_later)
    def withdraw(self, ticket: Ticket[C, L], now: float) -> None:
        """The caller gave up."""
        self._withdraw(ticket, StateError("the request was withdrawn"), now)

    @carried_out(interrupting=_fail_later)
    def fail(self, ticket: Ticket[C, L], error: Exception, now: float) -> None:
        """Somebody else than its caller ends its wait: the caller is woken, and finds the error.
        Nothing where it does not wait any more."""
        self._turns.fail_waiting(ticket, error, now)
        self._decide(now)

    @carried_out(interrupting=refused)
    def starting(self, ticket: Ticket[C, L], handle: C) -> None:
        """The connector has begun; whoever takes its place goes on with this one. Look at the
        ticket after this: where the pool was closed meanwhile, so is the handle."""
        self._turns.starting(ticket, handle)

    @carried_out(interrupting=refused)
    def starting_over(self, ticket: Ticket[C, L]) -> None:
        """The connector gives its handle up, which is closed, and will begin with another one in
        the same attempt. Whoever takes its place begins anew."""
        self._turns.starting_over(ticket)

    @carried_out(interrupting=refused)
    def connected(self, ticket: Ticket[C, L], now: float) -> None:
        self._turns.connected(ticket, now)
        self._decide(now)

    @carried_out(interrupting=refused)
    def connect_failed(self, ticket: Ticket[C, L], error: Exception, now: float) -> None:
        """Either everybody who waits is told, or the same ticket tries again after a while."""
        self._turns.connect_failed(ticket, error, now)
        self._decide(now)

    @carried_out(interrupting=_release_later)
    def release(
        self, lease: Lease[C, L], link: L | None, now: float, answered: float | None = None
    ) -> None:
        """``link``: the connection, where another request can use it; closed by the caller
        otherwise. ``answered``: when its last answer began to come; its server may have sent all
        of that at once and counts its idle time from then, however long the reading took. Giving
        back twice does nothing."""
        self._turns.give_back(lease, link, now, answered)
        if self._queue.places or link is None or not lease.member.alive:
            self._decide(now)

    @carried_out(interrupting=_settle_later)
    def settle(self, now: float) -> None:
        """Looks at everything once more: expiry, channels that went away."""
        self._decide(now)

    # -- closing ----------------------------------------------------------------------------

    @carried_out(interrupting=_close_later)
    def close(self, error: Exception) -> list[C]:
        """Fails who waits and whoever asks from now on. The channels are the caller's to close;
        another call returns those of them that are still there."""
        self._begin_close(error)
        left = self._left()  # before the members go, which may be all that holds them
        self._decide(self._last_now)
        return left

    def _begin_close(self, error: Exception) -> None:
        self._closing += [weakref.ref(handle) for handle in self._members.handles()]
        self._closed = error

    def _close_all(self, error: Exception) -> None:
        self._begin_close(error)
        self._outbox.close_all(self._left())

    def _left(self) -> list[C]:
        """Channels that the client had when it was closed, and that are still there."""
        return [handle for each in self._closing if (handle := each()) is not None]

    # -- deciding ---------------------------------------------------------------------------

    def _decide(self, now: float) -> None:
        self._last_now = now
        if self._lost:
            self._collect_lost()
        if self._closed is not None:
            self._members.shut_all()
            self._queue.fail_all(self._closed)
            return
        self._members.purge(now)
        self._turns.serve_all(now)

    def _withdraw(self, ticket: Ticket[C, L], why: Exception, now: float) -> None:
        self._turns.give_up(ticket, why, now)
        self._decide(now)

    def _repair(self) -> None:
        self._turns.repair()
        if self._closed is not None:
            self._outbox.close_all(self._left())

    # -- what comes back by itself ----------------------------------------------------------

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
            self._outbox.flush(self._forsake)

    def _collect_lost(self) -> None:
        while self._lost:
            item = self._lost[0]
            if item is None:
                self._repair()
            elif isinstance(item, functools.partial):
                item()
            elif isinstance(item, Member):
                # No call between these two, and so no interruption.
                item.in_use -= 1
                del self._lost[0]
                self._members.close_if_unused(item)
                continue
            else:
                self._turns.forget(item)
            del self._lost[0]

    # -- in order again ---------------------------------------------------------------------

    def _mend(self) -> None:
        """After an exception anywhere in here, which was most likely a signal's."""
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

    def _carry_out(self) -> None:
        """Without the lock: what is woken or closed may come back here."""
        self._outbox.flush(self._forsake)
        self._reap()

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
