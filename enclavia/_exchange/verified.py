"""What was verified over the connections of one engine: the newest document, receipts, identities,
and how many of the documents were of channels that were open.

Decides which of that is kept. Calls: _channel, _core, _identity, _trust. Locks: ``_lock``, around
the counter.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from .. import _core
from .._channel.config import ChannelConfig
from .._channel.operations import log_verified
from .._identity.pins import pcr_bytes
from .._trust.receipts import RECEIPTS_KEPT, Receipt

__all__ = ["Verified"]

_IDENTITIES_MAX: Final = 16
"""How many identities are remembered. Pins allow few; in debug mode each document may be
another."""


class Verified:
    """Documents that were verified, and that nobody has refused."""

    def __init__(self) -> None:
        self.newest: dict[str, object] | None = None
        self.receipts: deque[Receipt] = deque(maxlen=RECEIPTS_KEPT)
        self.identities: dict[bytes, dict[str, object]] = {}
        """The first document of each identity that a channel has led to."""
        self.fresh = 0
        """How many were of channels that were open."""
        self._lock = threading.RLock()  # a signal's handler may come by in between

    def take(
        self, config: ChannelConfig, raw: _core.RawAttestation, receipt: Receipt, fresh: bool
    ) -> None:
        if fresh:
            with self._lock:
                self.fresh += 1
        self.newest = raw
        self.receipts.append(receipt)
        key = pcr_bytes(raw)
        if key not in self.identities and len(self.identities) < _IDENTITIES_MAX:
            self.identities[key] = raw
        log_verified(config, raw, "a fresh document of " if fresh else "")
