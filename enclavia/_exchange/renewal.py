"""A fresh document of an open channel: asked for in time, by one request, and verified like the
first one.

Decides who asks, and what becomes of a channel that gives none. Calls: _core, _errors, _identity,
_io, _records, _trust. Locks: none.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, cast

from .. import _core
from .._errors import (
    AttestationRefused,
    ConnectionClosed,
    ConnectTimeout,
    EnclaviaError,
    ReadTimeout,
)
from .._identity.pins import pcr_bytes
from .._io.face import Io, deadline_of, now
from .._io.late import SHORTEST, stated
from .._records import fields
from .pinning import Pinning
from .timeouts import Timeouts
from .tunnel import Tunnel
from .verified import Verified

if TYPE_CHECKING:
    from .._io.local import LocalChannel
    from .._trust.receipts import Receipt

__all__ = ["Renewal"]

logger = logging.getLogger("enclavia")

RENEWAL_WAIT: Final = 10.0
"""Seconds for which a fresh document is waited for. A channel on which none comes is given up, or,
where there will be no other, used until its document ends."""


class Renewal:
    """Of the channels of one engine."""

    def __init__(self, io: Io[Any], pinning: Pinning, verified: Verified, reconnects: bool) -> None:
        """``reconnects``: whether there may be another channel."""
        self._io = io
        self._pinning = pinning
        self._verified = verified
        self._reconnects = reconnects

    async def renew(self, tunnel: Tunnel, timeouts: Timeouts) -> bool:
        """Where it is time to. Whether a request may still begin on the channel."""
        authority = self._pinning.config.url.authority
        if now() >= tunnel.validity.ends_at and self._reconnects:
            logger.info(
                "the document of %s has ended: connecting anew",
                authority,
                extra=fields("document_ended", authority),
            )
            return False
        if not isinstance(tunnel.core, _core.Channel) and self._reconnects:
            return False  # the forwarder has a newer one for who connects to it again
        turn = tunnel.take_turn()
        if turn is None:
            return True  # somebody asks just now
        try:
            allowed = timeouts.connect
            wait = RENEWAL_WAIT if allowed is None else min(allowed, RENEWAL_WAIT)
            if await self.fresh(tunnel, wait) is not None:
                return True
            error: EnclaviaError = ConnectionClosed("the forwarder has another identity by now")
        except AttestationRefused:
            raise
        except EnclaviaError as caught:
            error = caught
        finally:
            turn.give_back()
        if not self._reconnects and tunnel.alive and now() < tunnel.validity.ends_at:
            tunnel.validity = tunnel.validity.asked_in_vain(now())
            logger.warning(
                "no fresh document of %s yet: %s",
                authority,
                error,
                extra=fields("no_fresh_document", authority, error=error),
            )
            return True
        logger.warning(
            "no fresh document of %s, so its channel is given up: %s",
            authority,
            error,
            extra=fields("channel_given_up", authority, error=error),
        )
        if not self._reconnects:
            tunnel.retire()
            raise error
        return False

    async def attest(self, tunnel: Tunnel, timeout: float | None) -> _core.RawAttestation | None:
        """A fresh document on an open channel, verified like the first one; None where none comes
        in time. Where somebody who is asked refuses it, the channel is closed."""
        deadline = deadline_of(timeout)
        raw = await self._io.attest(cast(_core.Channel, tunnel.core), timeout)
        if raw is None or tunnel.receipt is None:
            return None
        await self._take(tunnel, tunnel.receipt._fresh(raw), raw, deadline)
        return raw

    async def fresh(self, tunnel: Tunnel, timeout: float | None) -> _core.RawAttestation | None:
        """A fresh document of a channel that is open, or of what its forwarder has. None where that
        leads to another identity by now, of which this channel is none."""
        if isinstance(tunnel.core, _core.Channel):
            raw = await self.attest(tunnel, timeout)
            if raw is None:
                raise ReadTimeout(
                    f"expected an attestation document within {stated(timeout)} s, got none"
                )
            return raw
        deadline = deadline_of(timeout)
        raw, handshake_hash = await self._shown_again(tunnel, timeout)
        if pcr_bytes(raw) != pcr_bytes(tunnel.core.attestation()):
            return None
        receipt = cast("Receipt", tunnel.receipt)._fresh(raw, handshake_hash)
        await self._take(tunnel, receipt, raw, deadline)
        return raw

    async def _shown_again(
        self, tunnel: Tunnel, timeout: float | None
    ) -> tuple[_core.RawAttestation, bytes]:
        """What a forwarder shows now, on a control connection of its own, and the handshake hash of
        the channel that it is of."""
        config = self._pinning.config._replace(pins=tunnel.pins)
        channel = cast("LocalChannel", config.reach())
        try:
            await self._io.wait_open(channel, timeout)
            channel.wait_open(SHORTEST)
            return channel.attestation(), channel.handshake_hash
        finally:
            channel.close(0)

    async def _take(
        self,
        tunnel: Tunnel,
        receipt: Receipt,
        raw: _core.RawAttestation,
        deadline: float | None,
    ) -> None:
        """A later document of an open channel was verified. Raises where somebody who is asked does
        not agree to it."""
        config, trust = self._pinning.config, self._pinning.trust
        verified_at = now()
        if trust is not None:
            try:
                await trust.verified(self._io, receipt, deadline)
            except AttestationRefused as error:
                logger.warning(
                    "a channel to %s is closed: %s",
                    config.url.authority,
                    error,
                    extra=fields("attestation_refused", config.url.authority, error=error),
                )
                tunnel.retire()
                tunnel.close()
                raise
            except ConnectTimeout:
                tunnel.retire()  # nobody agreed
                raise
            except BaseException:
                # Ctrl-C or a cancellation ended one caller's wait, and nobody agreed to the
                # document: the next request asks for another one before it goes out.
                tunnel.validity = tunnel.validity.doubted()
                raise
        tunnel.renewed(receipt, raw, verified_at)
        self._verified.take(config, raw, receipt, fresh=True)
