"""The pool's channels, and the connections that are kept on each for another request.

Decides what is kept, for how long, and when a channel is closed: once it is gone and nobody reads
from it any more. Knows no tickets. Runs under the pool's lock; its outbox closes things afterwards.

Calls: nothing of the package. Locks: the pool's is held.
"""

from __future__ import annotations

import bisect
from typing import Generic, cast

from .choose import has_expired
from .kinds import C, L, Member, PoolLimits
from .outbox import Outbox

__all__ = ["Members"]


class Members(Generic[C, L]):
    def __init__(self, limits: PoolLimits, outbox: Outbox[C, L]) -> None:
        self.all: list[Member[C, L]] = []
        self._limits = limits
        self._outbox = outbox

    def add(self, spare: bool) -> Member[C, L]:
        member: Member[C, L] = Member(spare=spare)
        self.all.append(member)
        return member

    def any_open(self) -> bool:
        return any(member.open for member in self.all)

    def handles(self) -> list[C]:
        return [member.handle for member in self.all if member.handle is not None]

    # -- kept connections -------------------------------------------------------------------

    def drop_newest(self, member: Member[C, L]) -> None:
        self._outbox.close(member.idle.pop()[1])

    def drop_oldest(self, member: Member[C, L]) -> None:
        self._outbox.close(member.idle.pop(0)[1])

    def keep(self, member: Member[C, L], link: L, since: float) -> None:
        """``link`` is for another request, where the limits allow it; closed otherwise."""
        limit = self._limits.max_idle
        if not member.open or (
            limit is not None and sum(len(other.idle) for other in self.all) >= limit
        ):
            self._outbox.close(link)
        elif not member.idle or member.idle[-1][0] <= since:
            member.idle.append((since, link))
        else:
            bisect.insort(member.idle, (since, link), key=lambda entry: entry[0])

    # -- channels that go -------------------------------------------------------------------

    def purge(self, now: float) -> None:
        """Lets go of what was closed, or has not been used for too long."""
        expiry = self._limits.keepalive_expiry
        for member in list(self.all):
            if not member.open:
                continue
            handle = cast(C, member.handle)
            if not handle.alive or has_expired(member, self._limits, now):
                self.retire(member)
            elif expiry is not None:
                while member.idle and member.idle[0][0] + expiry < now:
                    self.drop_oldest(member)

    def retire(self, member: Member[C, L]) -> None:
        member.gone = True
        self._shut(member)
        self.close_if_unused(member)
        self.all.remove(member)

    def shut_all(self) -> None:
        """Their channels are another's to close."""
        for member in self.all:
            self._shut(member)
        self.all.clear()

    def _shut(self, member: Member[C, L]) -> None:
        member.open = False
        self._outbox.close_all(link for _, link in member.idle)
        member.idle.clear()

    def close_if_unused(self, member: Member[C, L]) -> None:
        """Not before: who still reads from a channel that went away must learn why it did."""
        if member.gone and member.in_use == 0 and member.handle is not None:
            self._outbox.close(member.handle)

    def give_up(self, member: Member[C, L]) -> None:
        """A channel that nobody connects any more."""
        self.drop_handle(member)
        self.all.remove(member)

    def drop_handle(self, member: Member[C, L]) -> None:
        if member.handle is not None:
            self._outbox.close(member.handle)
