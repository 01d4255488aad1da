"""What a connection asks about trust, at the three moments at which the answer may take time.

Whoever connects runs the steps in this order, as coroutines over :class:`enclavia._io.face.Io`:
:meth:`Trust.pins` before a connection is started; :meth:`Trust.mismatch` where the enclave's PCRs
were not those; :meth:`Trust.verified` after a document was verified, and before anything else may
use the channel. In a pool only the connector runs them, and the others wait for it as they wait for
a connection. A step may be broken off at any place and run again by another caller. None is called
with a lock held.

Decides which pins are in force. Calls: _errors, _identity, _io. Locks: ``_lock``, around
which these are; never held while anything is waited for.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .._errors import PcrMismatch, UpgradeChainError
from .._identity.pins import PinTuples
from .._io.face import Io
from .hook import expect_not_within, tell
from .sources import InForce, Source, begin

if TYPE_CHECKING:
    from .receipts import Receipt
    from .upgrades import Follower, Upgrades

__all__ = ["Trust", "TrustSettings"]


class TrustSettings(NamedTuple):
    """What a :class:`Trust` is made from: the settings of a channel that say who is trusted."""

    pins: PinTuples | None
    root: bytes | None
    debug_mode: bool
    clock_leeway: int
    pins_source: Source | None = None
    """What is asked for the pins, where they are not fixed."""
    upgrades: Upgrades | None = None
    """Whose authorised upgrades are followed."""
    on_attestation: Any = None
    """What is told of each verified document."""


class Trust:
    """Of one engine's connections, or of one single channel."""

    MOST_FOLLOWED: Final = 3
    """How often one attempt to connect goes on with other pins after a mismatch."""

    pinned: PinTuples | None = None
    """What the caller, or the source, says now, of which those in force may be a later version.
    Other ones are another object."""
    _source: InForce | None = None

    def __init__(self, settings: TrustSettings) -> None:
        self._settings = settings
        self._lock = threading.RLock()  # a destructor may come by in between
        if settings.pins_source is not None:
            self._source = begin(settings.pins_source, settings.debug_mode)
        self.pinned = settings.pins
        self.in_force = settings.pins
        """Those with which the newest connection was started."""
        self.upgrades_followed = 0
        """How often other pins came into force because of an upgrade."""
        self._follower = _follower(settings)

    async def pins(self, io: Io[Any], deadline: float | None) -> PinTuples | None:
        """Before a connection is started: the pins to verify it against. Raises ConnectTimeout
        where the deadline passes, another EnclaviaError where the pins cannot be had."""
        await self.renew(io, deadline)
        return self.in_force

    @property
    def unknown(self) -> bool:
        """Whether nobody has said yet what is pinned: then no channel matches."""
        return self._source is not None and self.pinned is None

    @property
    def due(self) -> bool:
        """Whether :meth:`renew` has to be called before anything is sent over a channel that there
        is. Where none is, connecting does it."""
        return self.pinned is not None and self._source is not None and self._source.due

    async def renew(self, io: Io[Any], deadline: float | None) -> None:
        """Has the source say which pins are in force now, where it is time to. Raises as
        :meth:`pins` does: then nothing may be sent either."""
        if self._source is None:
            return
        pinned = await self._source.pins(io, deadline)
        with self._lock:
            if pinned is not self.pinned:
                # In this order, for who looks without the lock: with these pinned, none are in
                # force that follow from older ones.
                self.in_force = pinned
                self.pinned = pinned

    def expect_not_within(self) -> None:
        """Raises StateError in a function of the caller's that one of these steps waits for."""
        expect_not_within(self, self._source)

    async def mismatch(
        self, io: Io[Any], error: PcrMismatch, pins: PinTuples | None, deadline: float | None
    ) -> bool:
        """After a connection was refused with ``error``, because the enclave's PCRs are none of
        ``pins``. True: others are in force by now, so connect again at once. False: the error
        stands. Raises as :meth:`pins` does."""
        if self._source is not None and pins == self.in_force:
            self._source.doubt()
            await self.renew(io, deadline)
        if pins != self.in_force:
            return True  # by another connection's mismatch, or since the source says so
        refusal = None if self._source is None else self._source.refusal(error)
        if refusal is not None:
            raise refusal from error
        pinned = self.pinned
        if self._follower is None or pinned is None or error.retryable:
            return False  # retryable: a forwarder's pins, which are not ours, and just changed
        followed = await self._follower.follow(io, pinned, error, deadline)
        with self._lock:
            if self.pinned is not pinned:
                return True  # those were followed from others than the ones pinned by now
            if self._follower.overtaken(followed):
                return True  # by another connection, which was served more of the chain
            if followed != pins:
                self.upgrades_followed += followed != self.in_force
                self.in_force = followed
                return True
        raise UpgradeChainError(
            "the upgrade chain: expected the running version to be the last one on it, got "
            f"another: {error.message}",
            reason="the running version is not the last one on the chain",
        ) from error

    async def verified(
        self,
        io: Io[Any],
        receipt: Receipt,
        deadline: float | None,
    ) -> None:
        """After a document was verified, and before anything else may use its channel. Raising an
        EnclaviaError refuses the channel: AttestationRefused is the caller's own refusal."""
        on_attestation = self._settings.on_attestation
        if on_attestation is not None:
            await tell(io, on_attestation, receipt, self, deadline)


def _follower(settings: TrustSettings) -> Follower | None:
    if settings.upgrades is None:
        return None
    from .upgrades import Follower  # seldom, and slow to import

    return Follower(settings.upgrades, settings.root, settings.debug_mode, settings.clock_leeway)
