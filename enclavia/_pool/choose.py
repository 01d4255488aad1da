"""Which connection a request gets: the cases, in the order in which they are tried.

Pure. What it decides is a :class:`Choice`, which :class:`enclavia._pool.turns.Turns` carries out:
nothing here changes a member, wakes a request or closes a connection.

1. A long body, where a channel is open: one on which nothing else is going on, else a spare channel
   of its own, else beside the others.
2. A connection that was kept, the one used last: it is the least likely to be closed meanwhile. A
   request that cannot be repeated takes only one that was used a moment ago.
3. A new connection, over the channel that has the fewest; a full one gives up its oldest kept one.
4. Another channel, where the limits allow one and none is on its way.
5. Wait.

Calls: nothing of the package. Locks: the pool's is held.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Final

from .kinds import Job, Member, PoolLimits

__all__ = [
    "Choice",
    "Do",
    "Outlook",
    "at_limit",
    "choose",
    "has_expired",
    "is_long",
    "may_take_last",
]

AnyMember = Member[Any, Any]


class Do(enum.Enum):
    REUSE = enum.auto()
    """The member's connection that was kept last."""
    OPEN = enum.auto()
    """A new connection over the member."""
    CONNECT = enum.auto()
    """A new channel."""
    CONNECT_SPARE = enum.auto()
    """A new channel, for long bodies only."""
    WAIT = enum.auto()
    REFUSE = enum.auto()
    """There was a channel, and there may be no other."""
    DROP = enum.auto()
    """The member's connection that was kept last was closed by the workload, or has something to
    read that nobody asked for: close it and choose again."""
    SHARE = enum.auto()
    """The member was spare and is the only channel left: make it one for everything and choose
    again."""


class Choice:
    __slots__ = ("do", "member")

    def __init__(self, do: Do, member: AnyMember | None = None) -> None:
        self.do = do
        self.member = member


class Outlook:
    """What is known beside the members: the time, and since when what may be tried again."""

    __slots__ = ("grow_after", "now", "over", "spare_after")

    def __init__(self, now: float, grow_after: float, spare_after: float, over: bool) -> None:
        """``over``: there was a channel, and there may be no other."""
        self.now = now
        self.grow_after = grow_after
        self.spare_after = spare_after
        self.over = over


_WAIT: Final = Choice(Do.WAIT)


def choose(job: Job, members: Sequence[AnyMember], limits: PoolLimits, outlook: Outlook) -> Choice:
    """The first case that applies."""
    ready = [member for member in members if member.open]
    if ready and is_long(job, limits):
        return _for_long_body(job, members, ready, limits, outlook)
    shared = [member for member in ready if not member.spare]
    if not shared and ready:
        if all(member.spare for member in members):
            return Choice(Do.SHARE, ready[0])
        shared = ready  # the spare one has to do until the other one is there
    if not at_limit(members, limits):
        choice = _reuse(job, shared, limits, outlook.now) or _open(shared, limits)
        if choice is not None:
            return choice
    return _connect(members, shared, limits, outlook)


def is_long(job: Job, limits: PoolLimits) -> bool:
    return job.body_size is None or job.body_size > limits.long_body


def at_limit(members: Sequence[AnyMember], limits: PoolLimits) -> bool:
    limit = limits.max_connections
    return limit is not None and sum(member.in_use for member in members) >= limit


def has_expired(member: AnyMember, limits: PoolLimits, now: float) -> bool:
    """So long unused that it is not to be relied on: where a machine slept or a router forgot the
    connection, the next request would wait for its timeout in vain."""
    if not limits.reconnect:
        return False  # it is all there will be
    return member.in_use == 0 and now - member.used > limits.channel_expiry


def may_take_last(job: Job, member: AnyMember, limits: PoolLimits, now: float) -> bool:
    """Whether the connection that the only channel kept last can be taken at once: that is, case 2
    applies and nothing else has to be decided before."""
    idle = member.idle
    if not idle or member.spare or is_long(job, limits) or at_limit((member,), limits):
        return False
    expiry = limits.keepalive_expiry
    used, link = idle[-1]
    return (
        (expiry is None or idle[0][0] + expiry >= now)
        and (job.repeatable or used >= now - limits.careful_expiry)
        and member.alive
        and not has_expired(member, limits, now)
        and link.fresh
    )


def _for_long_body(
    job: Job,
    members: Sequence[AnyMember],
    ready: list[AnyMember],
    limits: PoolLimits,
    outlook: Outlook,
) -> Choice:
    """Case 1."""
    if at_limit(members, limits):
        return _WAIT
    ready = sorted(ready, key=lambda member: (member.in_use > 0, not member.spare))
    if (
        ready[0].in_use
        and limits.max_channels > 1
        and outlook.now >= outlook.spare_after
        and not any(member.spare for member in members)
    ):
        return Choice(Do.CONNECT_SPARE)
    for member in ready:
        choice = _reuse(job, [member], limits, outlook.now) or _open([member], limits)
        if choice is not None:
            return choice
    return _WAIT


def _reuse(job: Job, ready: list[AnyMember], limits: PoolLimits, now: float) -> Choice | None:
    """Case 2."""
    oldest = float("-inf") if job.repeatable else now - limits.careful_expiry
    if len(ready) > 1:
        ready = sorted(ready, key=lambda member: -member.idle[-1][0] if member.idle else 0.0)
    for member in ready:
        if member.idle:
            used, link = member.idle[-1]
            if used >= oldest:
                return Choice(Do.REUSE if link.fresh else Do.DROP, member)
    return None


def _open(ready: list[AnyMember], limits: PoolLimits) -> Choice | None:
    """Case 3."""
    for member in sorted(ready, key=lambda member: member.load):
        # A kept connection can be given up for it.
        if member.in_use < limits.max_in_flight:
            return Choice(Do.OPEN, member)
    return None


def _connect(
    members: Sequence[AnyMember], ready: list[AnyMember], limits: PoolLimits, outlook: Outlook
) -> Choice:
    """Case 4, and 5."""
    if len(ready) < sum(not member.spare for member in members):  # one is on its way
        return _WAIT
    if not ready and outlook.over:
        return Choice(Do.REFUSE)
    most = max(1, limits.max_channels - 1)
    if ready and (
        at_limit(members, limits) or len(ready) >= most or outlook.now < outlook.grow_after
    ):
        return _WAIT
    return Choice(Do.CONNECT)
