"""Who waits, in the order in which they asked, and what a ticket is told when it no longer does.

Decides which ticket is served next: the first that still waits. Chooses no connection for it. Runs
under the pool's lock; its outbox wakes the callers afterwards.

Calls: nothing of the package. Locks: the pool's is held.
"""

from __future__ import annotations

import collections
import copy
import weakref
from collections.abc import Iterator
from typing import Generic

from .kinds import C, L, Member, State
from .outbox import Outbox
from .ticket import Ticket

__all__ = ["Queue"]


class Queue(Generic[C, L]):
    def __init__(self, outbox: Outbox[C, L]) -> None:
        # Weak: a ticket whose caller was interrupted between two lines must not keep a slot.
        self.places: collections.OrderedDict[int, weakref.ref[Ticket[C, L]]] = (
            collections.OrderedDict()
        )
        self._wake = outbox.wake

    def add(self, ticket: Ticket[C, L]) -> None:
        self.places[ticket.order] = weakref.ref(ticket)

    def drop(self, order: int) -> None:
        self.places.pop(order, None)

    def find(self, order: int) -> Ticket[C, L] | None:
        reference = self.places.get(order)
        return None if reference is None else reference()

    def tickets(self) -> Iterator[Ticket[C, L]]:
        for order, reference in list(self.places.items()):
            ticket = reference()
            if ticket is None:
                self.drop(order)
            else:
                yield ticket

    def first_waiting(self) -> Ticket[C, L] | None:
        if not self.places:
            return None
        served: list[int] = []
        found: Ticket[C, L] | None = None
        for order, reference in self.places.items():
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
            self.drop(order)
        return found

    # -- what becomes of a ticket -----------------------------------------------------------

    def make_connector(self, ticket: Ticket[C, L], member: Member[C, L]) -> None:
        """It keeps its place, and connects for all who wait."""
        member.connector = ticket.order
        ticket.member = member
        ticket.state = State.CONNECT
        self._wake(ticket)

    def has_connector(self, member: Member[C, L]) -> bool:
        return any(
            ticket.member is member and ticket.state is State.CONNECT for ticket in self.tickets()
        )

    def wait_again(self, ticket: Ticket[C, L]) -> None:
        ticket.member = None
        ticket.state = State.WAITING
        self._wake(ticket)

    def fail(self, ticket: Ticket[C, L], error: Exception) -> None:
        # A copy for each ticket: a traceback and a request are hung onto it. It has no cause.
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        ticket.error = own
        ticket.state = State.FAILED
        self._wake(ticket)
        self.drop(ticket.order)

    def fail_all(self, error: Exception) -> None:
        for ticket in self.tickets():
            self.fail(ticket, error)

    def wake_all(self) -> None:
        for ticket in self.tickets():
            self._wake(ticket)
