"""How a request obtains a connection: its turn, on a channel that is open, whose document is fresh
and whose PCRs are pinned.

Carries out what :mod:`enclavia._pool` decides. Knows nothing of HTTP. Each step has a file:

    waiting      the turn: how long a request waits, and when it connects
    connecting   one attempt to connect: started, opened, verified, asked about
    renewal      a fresh document of a channel that is open
    pinning      which pins are in force, and whether a channel matches them
    verified     what was verified so far
    tunnel  validity  timeouts    the channel, the times of its document, and a request's patience

Decides which channels a request does not take although the pool gives them. Calls: _channel, _core,
_errors, _io, _pool, _records. Locks: none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Final

from .. import _core
from .._channel.config import ChannelConfig
from .._errors import ConnectionClosed, PcrMismatch
from .._io.face import Io, deadline_of, now
from .._pool.kinds import GRANTED, Job, PoolLimits
from .._pool.pool import Pool
from .._pool.ticket import Lease, Ticket
from .._records import fields
from . import watching
from .connecting import Connecting
from .pinning import Pinning
from .renewal import Renewal
from .timeouts import Timeouts
from .tunnel import IdleStream, Tunnel
from .verified import Verified
from .waiting import Waiting

__all__ = ["Connections", "Use"]

logger = logging.getLogger("enclavia")

_TRIES: Final = 8
_COUNTS: Final = 1.0
"""Seconds for which a comparison of a channel's document and pins counts, for the request that made
it."""

Told = Callable[[Ticket[Tunnel, IdleStream]], None]


class Connections:
    """The pool of one engine's channels, and those who connect, renew and judge them."""

    def __init__(self, config: ChannelConfig, limits: PoolLimits, io: Io[Any]) -> None:
        self.io = io
        self.pool: Pool[Tunnel, IdleStream] = Pool(limits)
        self.verified = Verified()
        self.pinning = Pinning(config)
        self.renewal = Renewal(io, self.pinning, self.verified, limits.reconnect)
        self.connecting = Connecting(self.pool, io, self.pinning, self.verified)
        self._waiting = Waiting(self.pool, limits, io, self.pinning, self.connecting)
        self._reconnects = limits.reconnect

    async def open(self, timeouts: Timeouts) -> Tunnel:
        """Connects and verifies, where that has not been done."""
        __tracebackhide__ = True
        told = None if watching.watcher is None else self._told_of_opening()
        lease = await self.obtain(Job(), timeouts, told)
        tunnel = lease.tunnel
        self.pool.release(lease, lease.link, now(), lease.idle_since)
        return tunnel

    def _told_of_opening(self) -> Told:
        from .tracing import trace_of  # for few programs

        trace = trace_of(None, self)

        def told(ticket: Ticket[Tunnel, IdleStream]) -> None:
            ticket.trace = trace

        return told

    async def obtain(
        self,
        job: Job,
        timeouts: Timeouts,
        told: Told | None = None,
        any_pins: bool = False,
    ) -> Lease[Tunnel, IdleStream]:
        """Of a channel whose document is fresh. ``told`` is called with the ticket before anything
        is waited for; again where the channel turned out to be at its end, with another one.
        ``any_pins``: the caller sees to it that the channel matches those in force by now."""
        if self.pinning.trust is not None and not any_pins:
            return await self._obtain_in_force(job, timeouts, told)
        begun = present = now()
        while True:
            ticket = self.pool.request(job, present)
            try:
                if told is not None:
                    told(ticket)
                if ticket.state is not GRANTED:
                    await self._waiting.until_granted(ticket, timeouts)
                    present = now()  # the document may have ended while the request waited
                lease = ticket.take()
            except BaseException:
                __tracebackhide__ = True
                self.pool.withdraw(ticket, now())
                raise
            # No cast here: it is a call, for each request.
            handle: Tunnel = lease.member.handle  # type: ignore[assignment]
            if present < handle.validity.renew_at or await self._renewed(lease, begun, timeouts):
                return lease
            present = now()

    def obtain_kept(self, job: Job) -> Lease[Tunnel, IdleStream] | None:
        """As :meth:`obtain`, for a caller that cannot wait: a connection that was kept, on a
        channel whose document is fresh. None where there is none: what to do then is decided by
        :meth:`obtain`."""
        if self.pinning.trust is not None:
            return None
        present = now()
        lease = self.pool.lend_kept(job, present)
        if lease is None:
            return None
        # No cast here: it is a call, for each request.
        handle: Tunnel = lease.member.handle  # type: ignore[assignment]
        if present < handle.validity.renew_at:
            return lease
        self.pool.release(lease, lease.link, present, lease.idle_since)
        return None

    async def _obtain_in_force(
        self, job: Job, timeouts: Timeouts, told: Told | None
    ) -> Lease[Tunnel, IdleStream]:
        """Where the pins may have changed since a channel was verified: it is retired then, before
        anything else goes over it."""
        __tracebackhide__ = True
        for _ in range(_TRIES):
            since = now()
            await self.renew_pins(timeouts)
            lease = await self.obtain(job, timeouts, told, any_pins=True)
            try:
                if now() - since >= _COUNTS:
                    await self.renew_pins(timeouts)  # it may have waited for its turn
                holds = self.pinning.holds(lease.tunnel)
            except BaseException:
                self.pool.release(lease, None, now())
                raise
            if holds:
                return lease
            lease.tunnel.retire()
            self.pool.release(lease, None, now())
        raise PcrMismatch(
            "the enclave's PCRs match no pin any more: the pins change with each attempt",
            retryable=True,
        )

    async def _renewed(
        self, lease: Lease[Tunnel, IdleStream], begun: float, timeouts: Timeouts
    ) -> bool:
        """Of a channel whose document ends soon. False: the channel was given up, and the lease is
        given back. ``begun``: when the request began to want one."""
        tunnel = lease.tunnel
        try:
            validity = tunnel.validity
            # A wait can be longer than the validity of a document that came in the meantime.
            verified = validity.verified_at >= begun and now() < validity.ends_at
            if verified or await self.renewal.renew(tunnel, timeouts):
                return True
        except BaseException:
            self.pool.release(lease, lease.link, now(), lease.idle_since)
            raise
        tunnel.retire()
        self.pool.release(lease, lease.link, now(), lease.idle_since)
        return False

    async def expect_usable(self, tunnel: Tunnel, since: float, timeouts: Timeouts) -> None:
        """After a request has its connection, and before anything of it is sent: it may have waited
        for something else, such as a free slot, since :meth:`obtain` looked at the channel's
        document and pins (at ``since``). Raises ConnectionClosed where they are not in force any
        more: the request begins again on another channel."""
        if now() - since < _COUNTS:
            return
        await self.renew_pins(timeouts)
        current = now() < tunnel.validity.renew_at or await self.renewal.renew(tunnel, timeouts)
        if current and self.pinning.holds(tunnel):
            return
        tunnel.retire()
        raise ConnectionClosed(
            "expected a channel whose document and pins are still in force, got one whose are not: "
            "they ended while the request waited to begin"
        )

    async def renew_pins(self, timeouts: Timeouts) -> None:
        """Asks which pins are in force, where it is time to, and retires channels that match them
        no more. Raises where there are none."""
        if not await self.pinning.renew(self.io, deadline_of(timeouts.connect)):
            return
        for tunnel in self.pool.handles():
            if tunnel.core.state == "open" and not self.pinning.holds(tunnel):
                authority = self.pinning.config.url.authority
                logger.info(
                    "%s matches the pins no more",
                    authority,
                    extra=fields("pins_changed", authority),
                )
                tunnel.retire()
        self.pool.settle(now())

    async def verify_again(self, timeouts: Timeouts) -> list[dict[str, object]]:
        """A fresh document of each channel that is open, verified as the first one was. Connects
        where none is."""
        await self.open(timeouts)
        # One that is open and has no receipt is being connected: who does that asks about it.
        tunnels = [each for each in self.pool.handles() if each.alive and each.receipt is not None]
        fresh = [await self._fresh(tunnel, timeouts) for tunnel in tunnels]
        if not fresh:
            raise ConnectionClosed("the connection ended before it was verified again")
        return fresh

    async def _fresh(self, tunnel: Tunnel, timeouts: Timeouts) -> _core.RawAttestation:
        fresh = await self.renewal.fresh(tunnel, timeouts.read)
        if fresh is None:
            tunnel.retire()  # it leads to channels of the earlier identity only
            other = await self.open(timeouts)
            fresh = other.core.attestation()
        return fresh

    def unanswered(self, tunnel: Tunnel) -> None:
        """A deadline of a request passed. Where there will be no other connection, this one is not
        given up on a suspicion."""
        if self._reconnects:
            tunnel.unanswered()

    def lost(self, tunnel: Tunnel) -> None:
        """A connection to the workload broke. Of a forwarder that is being ended, one connection
        breaks before the others do: it is asked again whether it is there, before more is sent."""
        if self._reconnects and not isinstance(tunnel.core, _core.Channel):
            tunnel.retire()


class Use:
    """Held by everybody who uses these connections."""

    __slots__ = ("__weakref__", "connections", "pid")

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.pid = os.getpid()
