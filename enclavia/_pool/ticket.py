"""A request's place in the queue, and the right to a connection that it turns into.

Both come back by themselves where their caller was interrupted and lost them: that is all that
they ask of whoever gave them out.

They decide nothing. Calls: nothing of the package. Locks: none, because destructors run anywhere.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol

from .kinds import CONNECT, WAITING, C, Job, L, Member, Phase, State, Wakeable

__all__ = ["Lease", "Owner", "Ticket"]


class Owner(Protocol[C, L]):
    """Who gives out tickets and leases. Both methods are called by destructors, at any place of
    any thread."""

    @property
    def phase(self) -> Phase: ...
    def lost_lease(self, member: Member[C, L]) -> None: ...
    def lost_ticket(self, order: int) -> None: ...


class Lease(Generic[C, L]):
    """The right to one workload connection: ``link`` is one to be reused, or None for a new one.
    Given back with :meth:`enclavia._pool.pool.Pool.release`; a lost one comes back by itself."""

    __slots__ = ("__weakref__", "_owner", "idle_since", "link", "member", "released")

    def __init__(self, owner: Owner[C, L], member: Member[C, L], link: L | None) -> None:
        self._owner = owner
        self.member = member
        self.link = link
        self.idle_since: float | None = None
        """When the last answer over ``link`` began to come, for whoever gives it back unused: its
        server counts from then. None of a new one."""
        self.released = True  # until it is granted

    @property
    def tunnel(self) -> C:
        return self.member.handle  # type: ignore[return-value]  # a cast is a call

    def __del__(self) -> None:
        if not self.released:
            self._owner.lost_lease(self.member)


class Ticket(Generic[C, L]):
    """One request's place in the queue."""

    __slots__ = (
        "__weakref__", "error", "job", "lease", "member", "order", "owner", "since", "state",
        "trace", "waiter",
    )  # fmt: skip

    def __init__(self, owner: Owner[C, L], job: Job, order: int, since: float) -> None:
        self.owner = owner
        self.job = job
        self.order = order
        self.since = since
        self.state: State = WAITING
        self.waiter: Wakeable | None = None
        self.member: Member[C, L] | None = None
        self.lease: Lease[C, L] | None = None
        self.error: Exception | None = None
        self.trace: Any = None  # whom to tell of its waiting; the pool never looks at it

    @property
    def phase(self) -> Phase:
        return self.owner.phase if self.state is WAITING else Phase.CONNECT

    def take(self) -> Lease[C, L]:
        lease, self.lease = self.lease, None
        return lease  # type: ignore[return-value]  # as above

    def __del__(self) -> None:
        if self.state is WAITING or self.state is CONNECT:
            self.owner.lost_ticket(self.order)
