"""What a connection asks about trust, at the three moments at which the answer may take time.

Whoever connects runs the steps in this order, as coroutines over :class:`enclavia._io.face.Io`:
:meth:`Trust.pins` before a connection is started; :meth:`Trust.mismatch` where the enclave's PCRs
were not those; :meth:`Trust.verified` after a document was verified, and before anything else may
use the channel. In a pool only the connector runs them, and the others wait for it as they wait for
a connection. A step may be broken off at any place and run again by another caller. None is called
with a lock held.

Decides which pins are in force. Calls: _errors, _identity, _io. Locks: none.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from .._errors import PcrMismatch, UpgradeChainError
from .._identity.pins import PinTuples
from .._io.face import Io
from .hook import tell
from .receipts import Receipt
from .upgrades import Follower, Upgrades

__all__ = ["MOST_FOLLOWED", "Trust", "TrustSettings"]

MOST_FOLLOWED: Final = 3
"""How often one attempt to connect goes on with other pins after a mismatch."""


class TrustSettings(NamedTuple):
    """What a :class:`Trust` is made from: the settings of a channel that say who is trusted."""

    pins: PinTuples | None
    root: bytes | None
    debug_mode: bool
    clock_leeway: int
    pins_source: Any = None
    """What is asked for the pins, where they are not fixed."""
    upgrades: Upgrades | None = None
    """Whose authorised upgrades are followed."""
    on_attestation: Any = None
    """What is told of each verified document."""


class Trust:
    """Of one engine's connections, or of one single channel."""

    def __init__(self, settings: TrustSettings) -> None:
        self._settings = settings
        self.in_force = settings.pins
        """Those with which the newest connection was started."""
        self._pinned = settings.pins
        """The caller's own, of which those in force may be a later version."""
        self.upgrades_followed = 0
        """How often other pins came into force because of an upgrade."""
        upgrades = settings.upgrades
        self._follower = (
            None
            if upgrades is None
            else Follower(upgrades, settings.root, settings.debug_mode, settings.clock_leeway)
        )

    @classmethod
    def of(cls, settings: TrustSettings) -> Trust | None:
        """None where the pins are all there is: then connecting has no steps to wait for."""
        moving = (settings.pins_source, settings.upgrades, settings.on_attestation)
        return None if all(each is None for each in moving) else cls(settings)

    async def pins(self, io: Io[Any], deadline: float | None) -> PinTuples | None:
        """Before a connection is started: the pins to verify it against. Raises ConnectTimeout
        where the deadline passes, another EnclaviaError where the pins cannot be had."""
        return self.in_force

    async def mismatch(
        self, io: Io[Any], error: PcrMismatch, pins: PinTuples | None, deadline: float | None
    ) -> bool:
        """After a connection was refused with ``error``, because the enclave's PCRs are none of
        ``pins``. True: others are in force by now, so connect again at once. False: the error
        stands. Raises as :meth:`pins` does."""
        if pins != self.in_force:
            return True  # by another connection's mismatch
        if self._follower is None or self._pinned is None or error.retryable:
            return False  # retryable: a forwarder's pins, which are not ours, and just changed
        followed = await self._follower.follow(io, self._pinned, error, deadline)
        if followed == pins:
            raise UpgradeChainError(
                "the upgrade chain: expected the running version to be the last one on it, got "
                f"another: {error.message}",
                reason="the running version is not the last one on the chain",
            ) from error
        self.in_force = followed
        self.upgrades_followed += 1
        return True

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
