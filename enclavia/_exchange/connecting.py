"""One attempt to connect: a channel is started, opened, verified, and asked about.

The phases, in their order: ``_start`` asks for the pins and begins to connect; the core goes
through TCP, TLS, the Noise handshake and the verification while ``Io.wait_open`` waits; ``_accept``
has a document that was verified, and asks ``on_attestation``. Where the enclave has other PCRs than
the pinned ones, the attempt begins again with those that an authorised upgrade leads to.

Decides when an attempt is over, and with what. Calls: _core, _errors, _io, _pool, _trust.
Locks: none.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .. import _core
from .._errors import ConnectionClosed, ConnectTimeout, EnclaviaError, PcrMismatch
from .._io.face import Ended, Io, expect_verified, now, time_left
from .._pool.kinds import Member, State
from .._pool.pool import Pool
from .._pool.ticket import Ticket
from .pinning import Pinning
from .tunnel import IdleStream, Traffic, Tunnel
from .verified import Verified

if TYPE_CHECKING:
    from .._trust.trust import Trust

__all__ = ["Connecting"]

T = TypeVar("T")


class Connecting:
    """Opens the channels of one engine, and knows which it has opened."""

    def __init__(
        self, pool: Pool[Tunnel, IdleStream], io: Io[Any], pinning: Pinning, verified: Verified
    ) -> None:
        self._pool = pool
        self._io = io
        self._pinning = pinning
        self._verified = verified
        self.made: weakref.WeakSet[Tunnel] = weakref.WeakSet()
        """All that there still are, whether or not the pool has them."""
        self.past = Traffic()

    async def attempt(
        self,
        ticket: Ticket[Tunnel, IdleStream],
        deadline: float | None,
        allowed: float | None,
    ) -> tuple[bool, Exception | None]:
        """Whether the attempt came to an end in time, and why there is no channel to use, where
        there is none. ``allowed``: seconds, for the message."""
        __tracebackhide__ = True
        if ticket.trace is None:
            return await self._attempt(ticket, deadline, allowed)
        step = ticket.trace.step("enclavia.connect", self._told())
        await step.started()
        try:
            in_time, error = await self._attempt(ticket, deadline, allowed)
        except BaseException as caught:
            await step.failed(caught)
            raise
        if error is None:
            member = cast("Member[Tunnel, IdleStream]", ticket.member)
            step.return_value = None if member.handle is None else member.handle.receipt
            await step.complete()
        else:
            await step.failed(error)
        return in_time, error

    def _told(self) -> dict[str, Any]:
        """Details of each step of connecting. No path, which may have a secret in it."""
        config = self._pinning.config
        via = None if config.via is None else str(config.via)
        return {"host": config.url.host, "port": config.url.port, "tls": config.url.tls, "via": via}

    async def _wait_open(
        self, ticket: Ticket[Tunnel, IdleStream], tunnel: Tunnel, deadline: float | None
    ) -> bool:
        core = tunnel.core
        if ticket.trace is None or not isinstance(core, _core.Channel):  # a forwarder's
            return await self._io.wait_open(core, time_left(deadline))
        from .tracing import wait_stages  # for few programs

        return await wait_stages(self._io, core, deadline, ticket.trace, self._told())

    async def _attempt(
        self,
        ticket: Ticket[Tunnel, IdleStream],
        deadline: float | None,
        allowed: float | None,
    ) -> tuple[bool, Exception | None]:
        __tracebackhide__ = True
        member = cast("Member[Tunnel, IdleStream]", ticket.member)
        trust, followed = self._pinning.trust, 0
        try:
            while ticket.state is State.CONNECT:
                tunnel = member.handle or await self._start(trust, ticket, deadline)
                if not await self._wait_open(ticket, tunnel, deadline):
                    expect_verified(tunnel.core, allowed)
                error = _not_open(tunnel)
                if error is None:
                    await self._accept(trust, ticket, tunnel, deadline)
                    break
                if (
                    trust is None
                    or not isinstance(error, PcrMismatch)
                    or followed == trust.MOST_FOLLOWED
                ):
                    return True, error
                mismatch = functools.partial(
                    trust.mismatch, error=error, pins=tunnel.pins, deadline=deadline
                )
                if not await self._step(ticket, mismatch):
                    return True, error
                followed += 1
                self._pool.starting_over(ticket)
        except ConnectTimeout as error:
            return False, error
        except EnclaviaError as error:
            return True, error
        except Ended:
            pass  # closed meanwhile
        return True, None

    async def _start(
        self, trust: Trust | None, ticket: Ticket[Tunnel, IdleStream], deadline: float | None
    ) -> Tunnel:
        """A channel that is being connected, the ticket's from now on."""
        __tracebackhide__ = True
        config = self._pinning.config
        pinned = config.pins
        if trust is not None:
            pinned = trust.pinned  # or newer ones, which are then compared once more
            pins = await self._step(ticket, functools.partial(trust.pins, deadline=deadline))
            if self._pinning.trust is not trust:
                raise ConnectionClosed("the pins were changed while others were asked for")
            config = config._replace(pins=pins)
        tunnel = Tunnel(config.reach(), self.past, config.pins)
        tunnel.pinned = pinned
        self.made.add(tunnel)
        self._pool.starting(ticket, tunnel)
        return tunnel

    async def _accept(
        self,
        trust: Trust | None,
        ticket: Ticket[Tunnel, IdleStream],
        tunnel: Tunnel,
        deadline: float | None,
    ) -> None:
        """Raises where the channel is refused by somebody who was asked."""
        __tracebackhide__ = True
        config = self._pinning.config
        raw, verified_at = tunnel.core.attestation(), now()
        receipt = config.receipt(raw, tunnel.core.handshake_hash, tunnel.pins)
        if trust is not None:
            await self._step(
                ticket, functools.partial(trust.verified, receipt=receipt, deadline=deadline)
            )
        tunnel.certified(receipt, raw, verified_at)
        self._verified.take(config, raw, receipt, fresh=False)

    async def _step(
        self, ticket: Ticket[Tunnel, IdleStream], step: Callable[[Io[Any]], Coroutine[Any, Any, T]]
    ) -> T:
        """What a step of trust says. Raises Ended where the ticket was closed before that."""

        def ended() -> bool:
            return ticket.state is not State.CONNECT

        answer = await self._io.unless(ended, functools.partial(self._pool.watch, ticket), step)
        if ended():
            raise Ended
        return answer


def _not_open(tunnel: Tunnel) -> Exception | None:
    """Why the channel is not open; None where it is."""
    if tunnel.core.state == "open":
        return None
    return tunnel.core.error or ConnectionClosed("the connection was closed")
