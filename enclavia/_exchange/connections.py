"""How a request obtains a connection: it waits its turn, and connects where that falls to it.

Carries out what :mod:`enclavia._pool` decides. Knows nothing of HTTP.

Calls: _core, _channel, _errors, _identity, _io, _pool, _trust. Locks: ``_lock``, around a counter.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .. import _core
from .._channel.config import ChannelConfig
from .._channel.operations import log_verified
from .._errors import (
    AttestationRefused,
    ConnectionClosed,
    ConnectTimeout,
    EnclaviaError,
    PcrMismatch,
    PoolTimeout,
    ReadTimeout,
)
from .._identity.pins import PinTuples, matching_set, pcr_bytes
from .._io.face import SHORTEST, Ended, Io, Waiter, deadline_of, expect_verified, now, time_left
from .._pool.kinds import Job, Member, Phase, PoolLimits, State
from .._pool.pool import Pool
from .._pool.ticket import Lease, Ticket
from .._trust.receipts import RECEIPTS_KEPT, Receipt
from .._trust.trust import MOST_FOLLOWED, Trust
from .renewal import RENEWAL_WAIT
from .timeouts import Timeouts, earlier, is_before
from .tunnel import IdleStream, Traffic, Tunnel

if TYPE_CHECKING:
    from .._io.local import LocalChannel

__all__ = ["Connections", "Use"]

logger = logging.getLogger("enclavia")

T = TypeVar("T")

# How long a body waits for a channel of its own; a server without room for it says nothing.
SPARE_WAIT = 3.0
# How many identities are remembered. Pins allow few; in debug mode each document may be another.
_SEEN_MAX = 16
_TRIES = 8


class Connections:
    """The pool, and what it takes to carry out what the pool decides: waiting and connecting."""

    def __init__(self, config: ChannelConfig, limits: PoolLimits, io: Io[Any]) -> None:
        self.config = config
        self.trust = config.trust()
        self.io = io
        self.pool: Pool[Tunnel, IdleStream] = Pool(limits)
        self.made: weakref.WeakSet[Tunnel] = weakref.WeakSet()
        """All that there still are, whether or not the pool has them."""
        self.past = Traffic()
        self.raw_attestation: dict[str, object] | None = None
        self.receipts: deque[Receipt] = deque(maxlen=RECEIPTS_KEPT)
        self.reattestations = 0
        """Fresh documents, of channels that were open."""
        self._jitter: Callable[[], float] = random.random
        self._lock = threading.RLock()  # a signal's handler may come by in between
        self.seen: dict[bytes, dict[str, object]] = {}
        """The first document of each identity that a channel has led to."""
        self._limits = limits

    @property
    def pins(self) -> PinTuples | None:
        """Those in force, with which a new connection would be started as far as is known."""
        return self.config.pins if self.trust is None else self.trust.in_force

    @property
    def upgrades_followed(self) -> int:
        """How often other pins came into force because of an authorised upgrade."""
        return 0 if self.trust is None else self.trust.upgrades_followed

    def reconfigure(self, config: ChannelConfig) -> None:
        """For the connections that are started from now on."""
        self.config = config
        self.trust = config.trust()

    async def open(self, timeouts: Timeouts) -> None:
        """Connects and verifies, where that has not been done."""
        lease = await self.obtain(Job(), timeouts)
        self.pool.release(lease, lease.link, now())

    async def obtain(
        self,
        job: Job,
        timeouts: Timeouts,
        told: Callable[[Ticket[Tunnel, IdleStream]], None] | None = None,
        any_pins: bool = False,
    ) -> Lease[Tunnel, IdleStream]:
        """``told`` is called with the ticket before anything is waited for; again where the channel
        turned out to be at its end, with another one. ``any_pins``: the caller sees to it that the
        channel matches the pins that are in force by now."""
        if self.trust is not None and not any_pins:
            return await self._obtain_in_force(job, timeouts, told)
        begun = present = now()
        while True:
            ticket = self.pool.request(job, present)
            try:
                if told is not None:
                    told(ticket)
                if ticket.state is not State.GRANTED:
                    await self._wait_turn(ticket, timeouts)
                lease = ticket.take()
            except BaseException:
                self.pool.withdraw(ticket, now())
                raise
            # No cast here: it is a call, for each request.
            handle: Tunnel = lease.member.handle  # type: ignore[assignment]
            if present < handle.renew_at or await self._renewed(lease, begun, timeouts):
                return lease
            present = now()

    # -- fresh documents ----------------------------------------------------------------------

    async def _renewed(
        self, lease: Lease[Tunnel, IdleStream], begun: float, timeouts: Timeouts
    ) -> bool:
        """Of a channel whose document ends soon. False: the channel was given up, and the lease is
        given back. ``begun``: when the request began to want one."""
        tunnel = lease.tunnel
        try:
            if tunnel.verified_at >= begun or await self._renew(tunnel, timeouts):
                return True
        except BaseException:
            self.pool.release(lease, lease.link, now())
            raise
        tunnel.broken = True  # who uses it goes on to their end
        self.pool.release(lease, lease.link, now())
        return False

    async def _renew(self, tunnel: Tunnel, timeouts: Timeouts) -> bool:
        """Whether a request may still begin on it."""
        no_other = not self._limits.reconnect
        if now() >= tunnel.ends_at and not no_other:
            logger.info("the document of %s has ended: connecting anew", self.config.url.authority)
            return False
        if not isinstance(tunnel.core, _core.Channel):
            return no_other  # the forwarder has a newer one for who asks it again
        if not tunnel.take_turn():
            return True  # somebody asks just now
        try:
            allowed = timeouts.connect
            wait = RENEWAL_WAIT if allowed is None else min(allowed, RENEWAL_WAIT)
            if await self.attest(tunnel, wait) is not None:
                return True
            error: EnclaviaError = ReadTimeout(f"expected one within {wait} s, got none")
        except AttestationRefused:
            raise
        except EnclaviaError as caught:
            error = caught
        finally:
            tunnel.give_turn()
        if no_other and tunnel.alive and now() < tunnel.ends_at:
            tunnel.ask_later(self._jitter())
            logger.warning("no fresh document of %s yet: %s", self.config.url.authority, error)
            return True
        logger.warning(
            "no fresh document of %s, so its channel is given up: %s",
            self.config.url.authority,
            error,
        )
        if no_other:
            tunnel.broken = True
            raise error
        return False

    async def attest(self, tunnel: Tunnel, timeout: float | None) -> _core.RawAttestation | None:
        """A fresh document on an open channel, verified like the first one; None where none comes
        in time. Where somebody who is asked refuses it, the channel is closed."""
        deadline = deadline_of(timeout)
        raw = await self.io.attest(cast(_core.Channel, tunnel.core), timeout)
        if raw is None or tunnel.receipt is None:
            return None
        await self._take_fresh(tunnel, tunnel.receipt._fresh(raw), raw, deadline)
        return raw

    async def _take_fresh(
        self,
        tunnel: Tunnel,
        receipt: Receipt,
        raw: _core.RawAttestation,
        deadline: float | None,
    ) -> None:
        """A later document of an open channel was verified. Raises where somebody who is asked does
        not agree to it."""
        verified_at = now()
        if self.trust is not None:
            try:
                await self.trust.verified(self.io, receipt, deadline)
            except AttestationRefused as error:
                logger.warning("a channel to %s is closed: %s", self.config.url.authority, error)
                tunnel.broken = True
                tunnel.close()
                raise
            except ConnectTimeout:
                tunnel.broken = True  # nobody agreed; who uses it goes on to their end
                raise
            except BaseException:
                # Ctrl-C or a cancellation ended one caller's wait, and nobody agreed to the
                # document: the next request asks for another one before it goes out.
                tunnel.renew_at = 0.0
                raise
        with self._lock:
            self.reattestations += 1
        self._take(tunnel, receipt, raw, verified_at, "a fresh document of ")

    def _take(
        self,
        tunnel: Tunnel,
        receipt: Receipt,
        raw: _core.RawAttestation,
        verified_at: float,
        what: str = "",
    ) -> None:
        """The document was verified, and nobody refused it."""
        tunnel.certified(receipt, raw, verified_at, self._jitter())
        self.raw_attestation = raw
        self.receipts.append(receipt)
        self._remember(raw)
        log_verified(self.config, raw, what)

    def _receipt(self, tunnel: Tunnel, raw: _core.RawAttestation) -> Receipt:
        return self.config.receipt(raw, tunnel.core.handshake_hash, tunnel.pins)

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

    async def _fresh(self, tunnel: Tunnel, timeouts: Timeouts) -> dict[str, object]:
        if not isinstance(tunnel.core, _core.Channel):
            return await self._fresh_by_way_of(tunnel, timeouts)
        fresh = await self.attest(tunnel, timeouts.read)
        if fresh is None:
            raise ReadTimeout(
                f"expected an attestation document within {timeouts.read} s, got none"
            )
        return fresh

    async def _fresh_by_way_of(self, tunnel: Tunnel, timeouts: Timeouts) -> _core.RawAttestation:
        """As :meth:`attest`, of what a forwarder has."""
        shown, handshake_hash = await self._asked_again(tunnel, timeouts)
        if pcr_bytes(shown) == pcr_bytes(tunnel.core.attestation()):
            receipt = cast(Receipt, tunnel.receipt)._fresh(shown, handshake_hash)
            await self._take_fresh(tunnel, receipt, shown, deadline_of(timeouts.read))
            return shown
        # This one leads to channels of the earlier identity only, and the forwarder has another.
        tunnel.broken = True
        lease = await self.obtain(Job(), timeouts)
        self.pool.release(lease, lease.link, now())
        return lease.tunnel.core.attestation()

    async def _asked_again(
        self, tunnel: Tunnel, timeouts: Timeouts
    ) -> tuple[_core.RawAttestation, bytes]:
        """What a forwarder shows now, on a control connection of its own, and the handshake hash of
        the channel that it is of."""
        channel = cast("LocalChannel", self.config._replace(pins=tunnel.pins).reach())
        try:
            await self.io.wait_open(channel, timeouts.read)
            channel.wait_open(SHORTEST)
            return channel.attestation(), channel.handshake_hash
        finally:
            channel.close(0)

    def _remember(self, raw: dict[str, object]) -> None:
        key = pcr_bytes(raw)
        if key not in self.seen and len(self.seen) < _SEEN_MAX:
            self.seen[key] = raw

    # -- pins that change ---------------------------------------------------------------------

    async def _obtain_in_force(
        self,
        job: Job,
        timeouts: Timeouts,
        told: Callable[[Ticket[Tunnel, IdleStream]], None] | None,
    ) -> Lease[Tunnel, IdleStream]:
        """As :meth:`obtain`, where the pins may have changed since a channel was verified: it is
        retired then, before anything else goes over it."""
        for _ in range(_TRIES):
            await self.renew_pins(timeouts)
            lease = await self.obtain(job, timeouts, told, any_pins=True)
            try:
                holds = self._holds(lease.tunnel)
            except BaseException:
                self.pool.release(lease, None, now())
                raise
            if holds:
                return lease
            lease.tunnel.broken = True
            self.pool.release(lease, None, now())
        raise PcrMismatch(
            "the enclave's PCRs match no pin any more: the pins change with each attempt",
            retryable=True,
        )

    async def renew_pins(self, timeouts: Timeouts) -> None:
        """Asks which pins are in force, where it is time to, and retires channels that match them
        no more. Raises where there are none."""
        trust = self.trust
        if trust is None or not trust.due:
            return
        trust.expect_not_within()
        before = trust.pinned
        await trust.renew(self.io, deadline_of(timeouts.connect))
        if trust.pinned is before:
            return
        for tunnel in self.pool.handles():
            if tunnel.core.state == "open" and not self._holds(tunnel):
                logger.info("%s matches the pins no more", self.config.url.authority)
                tunnel.broken = True
        self.pool.settle(now())

    def _holds(self, tunnel: Tunnel) -> bool:
        """Whether what was verified for this channel matches the pins that are in force now."""
        trust = self.trust
        if trust is None:
            return True
        pinned = trust.pinned  # before those in force: see Trust.renew
        if trust.unknown:
            return False
        if tunnel.pinned is pinned:
            return True
        pins = trust.in_force
        if pins is not None:
            measured = cast("dict[int, bytes]", tunnel.core.attestation()["pcrs"])
            if matching_set(pins, measured, self.config.debug_mode) is None:
                return False
        tunnel.pinned = pinned
        return True

    # -- turns --------------------------------------------------------------------------------

    def unanswered(self, tunnel: Tunnel) -> None:
        """A deadline of a request passed. Where there will be no other connection, this one is not
        given up on a suspicion."""
        if self._limits.reconnect:
            tunnel.unanswered()

    def lost(self, tunnel: Tunnel) -> None:
        """A connection to the workload broke. Of a forwarder that is being ended, one connection
        breaks before the others do: it is asked again whether it is there, before more is sent."""
        if self._limits.reconnect and not isinstance(tunnel.core, _core.Channel):
            tunnel.broken = True

    async def _wait_turn(self, ticket: Ticket[Tunnel, IdleStream], timeouts: Timeouts) -> None:
        if self.trust is not None:
            self.trust.expect_not_within()
        phase: Phase | None = None
        deadline: float | None = None
        while True:
            waiter = self.io.waiter()
            self.pool.watch(ticket, waiter)
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
            elif not await self.io.wait(waiter, time_left(deadline)):
                raise self._too_late(phase, timeouts)

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
            most, taken = self._limits.max_connections, f"all {self.config.max_in_flight}"
            if most is not None and most < self.config.max_in_flight:
                taken = f"all {most} that limits (max_connections) allows"
            return PoolTimeout(f"expected a free slot within {timeouts.pool} s, {taken} were taken")
        return self._connect_timeout(self._allowed(phase, timeouts))

    def _connect_timeout(self, allowed: float | None) -> Exception:
        last = self.pool.last_error
        tried = "" if last is None else f"; the last attempt failed: {last}"
        error = ConnectTimeout(
            f"expected a verified connection within {allowed} s, got none{tried}"
        )
        error.__cause__ = last
        return error

    async def _connect(
        self,
        ticket: Ticket[Tunnel, IdleStream],
        waiter: Waiter,
        deadline: float | None,
        timeouts: Timeouts,
    ) -> None:
        """One attempt, for all who wait."""
        member = cast("Member[Tunnel, IdleStream]", ticket.member)
        pause = member.not_before - now()
        if pause > 0:
            remaining = time_left(deadline)
            if remaining is not None and remaining < pause:
                if not await self.io.wait(waiter, remaining):
                    raise self._too_late(Phase.CONNECT, timeouts)
                return
            if await self.io.wait(waiter, pause):
                return  # something changed meanwhile, perhaps for this ticket too
        one = SPARE_WAIT if member.spare else timeouts.connect
        end = None if one is None else now() + one
        last = not member.spare and not is_before(end, deadline)
        allowed = self._allowed(Phase.CONNECT, timeouts) if last else one
        in_time, error = await self._attempt(ticket, earlier(end, deadline), allowed)
        if ticket.state is not State.CONNECT:
            return  # closed meanwhile
        if error is not None and last and not in_time:
            if self.pool.alone(ticket) and self.pool.last_error is None:
                raise error
            raise self._too_late(Phase.CONNECT, timeouts)
        if error is None:
            self.pool.connected(ticket, now())
        else:
            # An outage may last for hours: its first failure is a warning, those alike are not.
            alike = str(error) == str(self.pool.last_error)
            level = logging.INFO if alike else logging.WARNING
            logger.log(level, "cannot connect to %s: %s", self.config.url.authority, error)
            self.pool.connect_failed(ticket, error, now())

    async def _attempt(
        self,
        ticket: Ticket[Tunnel, IdleStream],
        deadline: float | None,
        allowed: float | None,
    ) -> tuple[bool, Exception | None]:
        """Whether the attempt came to an end in time, and why there is no channel to use, where
        there is none. ``allowed``: seconds, for the message."""
        member = cast("Member[Tunnel, IdleStream]", ticket.member)
        trust, followed = self.trust, 0
        try:
            while ticket.state is State.CONNECT:
                tunnel = member.handle or await self._start(trust, ticket, deadline)
                if not await self.io.wait_open(tunnel.core, time_left(deadline)):
                    expect_verified(tunnel.core, allowed)
                error = _not_open(tunnel)
                if error is None:
                    await self._accept(trust, ticket, tunnel, deadline)
                    break
                if trust is None or not isinstance(error, PcrMismatch) or followed == MOST_FOLLOWED:
                    return True, error
                mismatch = functools.partial(
                    trust.mismatch, error=error, pins=tunnel.pins, deadline=deadline
                )
                if not await self._step(ticket, mismatch):
                    return True, error
                followed += 1
                self.pool.starting_over(ticket)
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
        config = self.config
        if trust is not None:
            pinned = trust.pinned  # or newer ones, which are then compared once more
            pins = await self._step(ticket, functools.partial(trust.pins, deadline=deadline))
            if self.trust is not trust:
                raise ConnectionClosed("the pins were changed while others were asked for")
            config = config._replace(pins=pins)
        tunnel = Tunnel(config.reach(), self.past, config.pins)
        if trust is not None:
            tunnel.pinned = pinned
        self.made.add(tunnel)
        self.pool.starting(ticket, tunnel)
        return tunnel

    async def _accept(
        self,
        trust: Trust | None,
        ticket: Ticket[Tunnel, IdleStream],
        tunnel: Tunnel,
        deadline: float | None,
    ) -> None:
        """Raises where the channel is refused by somebody who was asked."""
        raw, verified_at = tunnel.core.attestation(), now()
        receipt = self._receipt(tunnel, raw)
        if trust is not None:
            await self._step(
                ticket, functools.partial(trust.verified, receipt=receipt, deadline=deadline)
            )
        self._take(tunnel, receipt, raw, verified_at)

    async def _step(
        self, ticket: Ticket[Tunnel, IdleStream], step: Callable[[Io[Any]], Coroutine[Any, Any, T]]
    ) -> T:
        """What a step of trust says. Raises Ended where the ticket was closed before that."""

        def ended() -> bool:
            return ticket.state is not State.CONNECT

        answer = await self.io.unless(ended, functools.partial(self.pool.watch, ticket), step)
        if ended():
            raise Ended
        return answer


def _not_open(tunnel: Tunnel) -> Exception | None:
    """Why the channel is not open; None where it is."""
    if tunnel.core.state == "open":
        return None
    return tunnel.core.error or ConnectionClosed("the connection was closed")


class Use:
    """Held by everybody who uses these connections."""

    __slots__ = ("__weakref__", "connections", "pid")

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.pid = os.getpid()
