"""When it may be tried again to connect, and for whom that is too late.

Decides how long the pause after a failure is, whether there may be another channel at all, and what
a waiting request waits for. Keeps the counts of connections. Knows no queue and changes no member;
runs under the pool's lock.

Calls: nothing of the package. Locks: the pool's is held.
"""

from __future__ import annotations

from collections.abc import Callable

from .choose import Outlook
from .kinds import Phase, PoolLimits

__all__ = ["Outage"]


class Outage:
    def __init__(self, limits: PoolLimits, jitter: Callable[[], float]) -> None:
        self._limits = limits
        self.jitter = jitter
        self.failures = 0
        self.connects = 0
        self.reconnects = 0
        self.last_error: Exception | None = None
        self.phase = Phase.CONNECT
        self._grow_after = 0.0
        self._spare_after = 0.0
        self._down_since = 0.0

    def outlook(self, now: float) -> Outlook:
        return Outlook(now, self._grow_after, self._spare_after, self.is_final)

    @property
    def is_final(self) -> bool:
        """There was a channel, and there may be no other."""
        return self.connects > 0 and not self._limits.reconnect

    def failed(self, error: Exception) -> float:
        """How many seconds to wait before the next attempt."""
        self.failures += 1
        self.last_error = error
        exponent = min(self.failures - 1, 16)
        pause: float = min(self._limits.backoff_base * 2**exponent, self._limits.backoff_cap)
        return pause * (0.5 + 0.5 * self.jitter())

    def put_off_another(self, until: float) -> None:
        """A channel beside those that are open is a wish, not a need."""
        self._grow_after = until

    def put_off_spare(self, now: float) -> None:
        self._spare_after = now + self._limits.spare_backoff

    def is_too_late(self, since: float, next_attempt: float) -> bool:
        """For a request that has waited since then: it is told why the last attempt failed."""
        patience = self._limits.patience
        return patience is not None and next_attempt > max(since, self._down_since) + patience

    def enters(self, phase: Phase, now: float) -> bool:
        """Whether this is another phase than before."""
        if phase is self.phase:
            return False
        self.phase = phase
        self._down_since = now
        return True
