"""Whose turn it is: carries out what :mod:`enclavia._pool.choose` chose, and what follows from a
channel that opened, could not be opened, or is gone.

Decides who connects, who takes over from a connector that left, and who is told of a failure. Calls
the queue, the members and the outage, and never the pool, which calls it under its lock.

The handler of a signal may raise after any call in here. Therefore:

1. A counter changes on the line next to what it counts, without a call in between. A ticket or a
   lease that is lost all the same comes back when it is collected.
2. What is to be woken or closed stays noted until that was done. Doing it twice is harmless.
3. Whatever else an interruption leaves half done is found and completed by :meth:`Turns.repair`.

Calls: _errors. Locks: the pool's is held.
"""

from __future__ import annotations

from typing import Generic, cast

from .._errors import ReconnectDisabled
from .choose import Do, choose, may_take_last
from .kinds import GRANTED, C, Job, L, Member, Phase, PoolLimits, State
from .members import Members
from .outage import Outage
from .outbox import Outbox
from .queue import Queue
from .ticket import Lease, Owner, Ticket

__all__ = ["Turns"]


class Turns(Generic[C, L]):
    def __init__(
        self,
        limits: PoolLimits,
        queue: Queue[C, L],
        members: Members[C, L],
        outage: Outage,
        outbox: Outbox[C, L],
    ) -> None:
        self._limits = limits
        self._queue = queue
        self._members = members
        self._outage = outage
        self._outbox = outbox

    # -- serving ----------------------------------------------------------------------------

    def lend_at_once(self, owner: Owner[C, L], job: Job, now: float) -> Lease[C, L] | None:
        """One request after another over one channel: what :meth:`_serve` would come to, where
        there is nobody to wait behind and nothing else to decide."""
        members = self._members.all
        if len(members) != 1 or self._queue.places:
            return None
        member = members[0]
        if not may_take_last(job, member, self._limits, now):
            return None
        return _lend_kept(owner, member)

    def lend_kept(self, owner: Owner[C, L], job: Job, now: float) -> Lease[C, L] | None:
        """As :meth:`lend_at_once`, over whichever of several channels :meth:`_serve` would take.
        Nothing where something else would have to be done first."""
        if self._queue.places:
            return None
        choice = choose(job, self._members.all, self._limits, self._outage.outlook(now))
        if choice.do is not Do.REUSE:
            return None
        member = cast("Member[C, L]", choice.member)
        return _lend_kept(owner, member)

    def serve_all(self, now: float) -> None:
        """One after the other; whoever comes later waits behind."""
        while (ticket := self._queue.first_waiting()) is not None:
            if not self._serve(ticket, now):
                break
        phase = Phase.POOL if self._members.any_open() else Phase.CONNECT
        if self._outage.enters(phase, now):
            self._queue.wake_all()

    def _serve(self, ticket: Ticket[C, L], now: float) -> bool:
        """Gives the ticket what it needs, or says that it has to wait."""
        members = self._members
        outlook = self._outage.outlook(now)
        while True:
            choice = choose(ticket.job, members.all, self._limits, outlook)
            do, member = choice.do, cast("Member[C, L]", choice.member)
            if do is Do.DROP:
                members.drop_newest(member)
            elif do is Do.SHARE:
                member.spare = False
            else:
                break
        if do is Do.WAIT:
            return False
        if do is Do.REUSE:
            self._grant(ticket, _lend_kept(ticket.owner, member))
        elif do is Do.OPEN:
            if member.load >= self._limits.max_in_flight:
                members.drop_oldest(member)
            self._grant(ticket, _lend(ticket.owner, member, None))
        elif do is Do.REFUSE:
            self._queue.fail(ticket, _lost_for_good())
        else:
            self._queue.make_connector(ticket, members.add(spare=do is Do.CONNECT_SPARE))
        return True

    def _grant(self, ticket: Ticket[C, L], lease: Lease[C, L]) -> None:
        """To one that is in the queue."""
        ticket.lease = lease
        ticket.state = GRANTED
        self._outbox.wake(ticket)
        self._queue.drop(ticket.order)

    # -- giving back ------------------------------------------------------------------------

    def give_back(
        self, lease: Lease[C, L], link: L | None, now: float, answered: float | None = None
    ) -> None:
        if lease.released:
            return
        member = lease.member
        lease.released = True
        member.in_use -= 1
        member.used = now
        lease.link = None
        if member.gone:
            self._members.close_if_unused(member)
        if link is not None:
            self._members.keep(member, link, now if answered is None else answered)

    def give_up(self, ticket: Ticket[C, L], why: Exception, now: float) -> None:
        """The ticket's caller no longer wants it, or cannot be told of it."""
        self._queue.drop(ticket.order)
        member = ticket.member
        if ticket.state is State.CONNECT and member is not None and not member.open:
            self.hand_over(member)
        ticket.error = why
        ticket.state = State.FAILED
        lease, ticket.lease = ticket.lease, None
        if lease is not None:
            self.give_back(lease, lease.link, now, lease.idle_since)

    def fail_waiting(self, ticket: Ticket[C, L], error: Exception, now: float) -> None:
        """Its caller is told that it waits in vain. Nothing where it does not wait any more."""
        if ticket.state in (State.WAITING, State.CONNECT):
            self._outbox.wake(ticket)
            self.give_up(ticket, error, now)

    def forget(self, order: int) -> None:
        """Of a ticket that was lost."""
        self._queue.drop(order)
        for member in list(self._members.all):
            if member.connector == order and not member.open:
                self.hand_over(member)

    # -- connecting -------------------------------------------------------------------------

    def probe_connectors(self) -> None:
        """Waking one for nothing does no harm, and shows whether it can be woken: a connector in
        an event loop that was closed would be waited for in vain."""
        for member in self._members.all:
            if not member.open and member.connector is not None:
                connector = self._queue.find(member.connector)
                if connector is not None:
                    self._outbox.wake(connector)

    def starting(self, ticket: Ticket[C, L], handle: C) -> None:
        if ticket.state is State.CONNECT and ticket.member is not None:
            ticket.member.handle = handle
        else:
            self._outbox.close(handle)

    def starting_over(self, ticket: Ticket[C, L]) -> None:
        if ticket.state is State.CONNECT and ticket.member is not None:
            self._members.drop_handle(ticket.member)
            ticket.member.handle = None

    def connected(self, ticket: Ticket[C, L], now: float) -> None:
        member = ticket.member
        # Otherwise closed meanwhile.
        if ticket.state is State.CONNECT and member is not None and member.handle is not None:
            outage, alone = self._outage, not self._members.any_open()
            outage.reconnects += alone and outage.connects > 0
            outage.connects += 1
            member.open = True
            member.used = now
            member.connector = None
            outage.failures = 0
            outage.last_error = None
            self._queue.wait_again(ticket)

    def connect_failed(self, ticket: Ticket[C, L], error: Exception, now: float) -> None:
        member = ticket.member
        if ticket.state is not State.CONNECT or member is None:
            return  # closed meanwhile
        self._members.drop_handle(member)
        member.handle = None
        if member.spare and len(self._members.all) > 1:
            self._members.all.remove(member)
            self._outage.put_off_spare(now)
            self._queue.wait_again(ticket)
            return
        member.spare = False
        next_attempt = now + self._outage.failed(error)
        if self._members.any_open():
            self._members.all.remove(member)
            self._outage.put_off_another(next_attempt)
            self._queue.wait_again(ticket)
        elif self._outage.is_final:
            self._members.all.remove(member)
            self._queue.fail_all(_lost_for_good())
        elif getattr(error, "retryable", False):
            self._try_again(ticket, member, error, next_attempt)
        else:
            self._members.all.remove(member)
            self._outage.failures = 0
            self._queue.fail_all(error)

    def _try_again(
        self, ticket: Ticket[C, L], member: Member[C, L], error: Exception, next_attempt: float
    ) -> None:
        """For those who can wait so long; the others are told why the last attempt failed."""
        member.not_before = next_attempt
        for each in self._queue.tickets():
            if self._outage.is_too_late(each.since, next_attempt):
                self._queue.fail(each, error)
        if ticket.state is State.CONNECT:
            self._outbox.wake(ticket)
        else:
            self.hand_over(member)

    def hand_over(self, member: Member[C, L]) -> None:
        """The connector is gone: the next in line goes on, or nobody needs it any more."""
        if member not in self._members.all:
            return
        member.connector = None
        for ticket in self._queue.tickets():
            if ticket.state is State.WAITING and not member.spare:
                self._queue.make_connector(ticket, member)
                return
        self._members.give_up(member)

    # -- after an interruption --------------------------------------------------------------

    def repair(self) -> None:
        """Nobody is left asleep who was served, and no channel is left to a connector that does
        not know of it."""
        self._queue.wake_all()
        for member in list(self._members.all):
            if member.gone:
                self._members.retire(member)
            elif not member.open and not self._queue.has_connector(member):
                self.hand_over(member)


def _lend(owner: Owner[C, L], member: Member[C, L], link: L | None) -> Lease[C, L]:
    lease = Lease(owner, member, link)
    member.in_use += 1
    lease.released = False
    return lease


def _lend_kept(owner: Owner[C, L], member: Member[C, L]) -> Lease[C, L]:
    """The connection that was used last."""
    since, link = member.idle.pop()
    lease = _lend(owner, member, link)
    lease.idle_since = since
    return lease


def _lost_for_good() -> ReconnectDisabled:
    return ReconnectDisabled(
        "expected the connection to the enclave to last, because auto_reconnect=False, got its "
        "end: make a new client to connect and verify again"
    )
