"""A request waits for its turn, as long as its timeouts allow, and connects where that falls to it.

Decides how long a request waits for a connection and for an attempt to connect, and what its error
says. Calls: _errors, _io, _pool, _records. Locks: none.
"""

from __future__ import annotations

import logging
from typing import Any, Final, cast

from .._errors import ConnectTimeout, PoolTimeout
from .._io.face import Io, Waiter, now, time_left
from .._io.late import stated
from .._pool.kinds import Member, Phase, PoolLimits, State
from .._pool.pool import Pool
from .._pool.ticket import Ticket
from .._records import fields
from .connecting import Connecting
from .pinning import Pinning
from .timeouts import Timeouts, earlier, is_before
from .tunnel import IdleStream, Tunnel

__all__ = ["SPARE_WAIT", "Waiting"]

logger = logging.getLogger("enclavia")

SPARE_WAIT: Final = 3.0
"""How long a body waits for a channel of its own; a server without room for it says nothing."""


class Waiting:
    """Carries out what the pool has decided about tickets that are not granted at once."""

    def __init__(
        self,
        pool: Pool[Tunnel, IdleStream],
        limits: PoolLimits,
        io: Io[Any],
        pinning: Pinning,
        connecting: Connecting,
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._io = io
        self._pinning = pinning
        self._connecting = connecting

    async def until_granted(self, ticket: Ticket[Tunnel, IdleStream], timeouts: Timeouts) -> None:
        __tracebackhide__ = True
        if ticket.trace is None:
            await self._until_granted(ticket, timeouts)
            return
        async with ticket.trace.step("enclavia.wait", {"phase": ticket.phase.value}):
            await self._until_granted(ticket, timeouts)

    async def _until_granted(self, ticket: Ticket[Tunnel, IdleStream], timeouts: Timeouts) -> None:
        __tracebackhide__ = True
        if self._pinning.trust is not None:
            self._pinning.trust.expect_not_within()
        phase: Phase | None = None
        deadline: float | None = None
        while True:
            waiter = self._io.waiter()
            self._pool.watch(ticket, waiter)
            state = ticket.state
            if state is State.GRANTED:
                return
            if state is State.FAILED:
                raise cast(Exception, ticket.error)
            if phase is not ticket.phase:
                phase = ticket.phase
                allowed = self._allowed(phase, timeouts)
                deadline = None if allowed is None else now() + allowed
            if state is State.CONNECT:
                await self._connect(ticket, waiter, deadline, timeouts)
            elif not await self._io.wait(waiter, time_left(deadline)):
                raise self._too_late(phase, timeouts)

    async def _connect(
        self,
        ticket: Ticket[Tunnel, IdleStream],
        waiter: Waiter,
        deadline: float | None,
        timeouts: Timeouts,
    ) -> None:
        """One attempt, for all who wait."""
        __tracebackhide__ = True
        member = cast("Member[Tunnel, IdleStream]", ticket.member)
        pause = member.not_before - now()
        if pause > 0:
            remaining = time_left(deadline)
            if remaining is not None and remaining < pause:
                if not await self._io.wait(waiter, remaining):
                    raise self._too_late(Phase.CONNECT, timeouts)
                return
            if await self._io.wait(waiter, pause):
                return  # something changed meanwhile, perhaps for this ticket too
        one = SPARE_WAIT if member.spare else timeouts.connect
        end = None if one is None else now() + one
        last = not member.spare and not is_before(end, deadline)
        allowed = self._allowed(Phase.CONNECT, timeouts) if last else one
        in_time, error = await self._connecting.attempt(ticket, earlier(end, deadline), allowed)
        if ticket.state is not State.CONNECT:
            return  # closed meanwhile
        if error is None:
            self._pool.connected(ticket, now())
        elif not last or in_time:
            self._failed(ticket, error)
        elif self._pool.alone(ticket) and self._pool.last_error is None:
            raise error
        else:
            raise self._too_late(Phase.CONNECT, timeouts)

    def _failed(self, ticket: Ticket[Tunnel, IdleStream], error: Exception) -> None:
        # An outage may last for hours: its first failure is a warning, those alike are not.
        alike = str(error) == str(self._pool.last_error)
        level = logging.INFO if alike else logging.WARNING
        authority, attempt = self._pinning.config.url.authority, self._pool.failures + 1
        logger.log(
            level,
            "cannot connect to %s: %s",
            authority,
            error,
            extra=fields("connect_failed", authority, attempt=attempt, error=error),
        )
        self._pool.connect_failed(ticket, error, now())

    def _allowed(self, phase: Phase, timeouts: Timeouts) -> float | None:
        """How long a request may wait in all. Patience lasts for several attempts to connect."""
        if phase is Phase.POOL:
            return timeouts.pool
        patience = self._limits.patience
        if timeouts.connect is None or patience is None:
            return timeouts.connect
        return max(timeouts.connect, patience)

    def _too_late(self, phase: Phase, timeouts: Timeouts) -> Exception:
        if phase is Phase.POOL:
            most, slots = self._limits.max_connections, self._pinning.config.max_in_flight
            taken = f"all {slots}"
            if most is not None and most < slots:
                taken = f"all {most} that limits (max_connections) allows"
            return PoolTimeout(
                f"expected a free slot within {stated(timeouts.pool)} s, {taken} were taken"
            )
        last = self._pool.last_error
        tried = "" if last is None else f"; the last attempt failed: {last}"
        error = ConnectTimeout(
            f"expected a verified connection within {stated(self._allowed(phase, timeouts))} s, "
            f"got none{tried}"
        )
        error.__cause__ = last
        return error
