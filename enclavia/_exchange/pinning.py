"""Which pins are in force for the channels of one engine, and whether a channel matches them.

Decides whether a channel that was verified before may still be used. Calls: _channel, _identity,
_io. Locks: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from .._channel.config import ChannelConfig
from .._identity.pins import PinTuples, matching_set
from .._io.face import Io

if TYPE_CHECKING:
    from .tunnel import Tunnel

__all__ = ["Pinning"]


class Pinning:
    """The settings of the channels that are opened from now on, and what is asked about trust."""

    def __init__(self, config: ChannelConfig) -> None:
        self.reconfigure(config)

    def reconfigure(self, config: ChannelConfig) -> None:
        self.config = config
        self.trust = config.trust()
        """None where the pins of the settings are all there is."""

    @property
    def in_force(self) -> PinTuples | None:
        """With which a new channel would be started, as far as is known."""
        return self.config.pins if self.trust is None else self.trust.in_force

    @property
    def upgrades_followed(self) -> int:
        """How often other pins came into force because of an authorised upgrade."""
        return 0 if self.trust is None else self.trust.upgrades_followed

    def holds(self, tunnel: Tunnel) -> bool:
        """Whether what was verified for this channel matches the pins that are in force now."""
        trust = self.trust
        # Before those in force: see Trust.renew.
        pinned = self.config.pins if trust is None else trust.pinned
        if trust is not None and trust.unknown:
            return False
        if tunnel.pinned is pinned:
            return True
        pins = self.in_force
        if pins is not None:
            measured = cast("dict[int, bytes]", tunnel.core.attestation()["pcrs"])
            if matching_set(pins, measured, self.config.debug_mode) is None:
                return False
        tunnel.pinned = pinned
        return True

    async def renew(self, io: Io[Any], deadline: float | None) -> bool:
        """Asks which pins are in force, where it is time to. True where they are others than
        before. Raises where there are none."""
        trust = self.trust
        if trust is None or not trust.due:
            return False
        trust.expect_not_within()
        before = trust.pinned
        await trust.renew(io, deadline)
        return trust.pinned is not before
