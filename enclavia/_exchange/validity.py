"""How long a document vouches for its channel, and when the next one is asked for: before the first
certificate of its chain ends.

AWS replaces an enclave's certificate about 15 minutes before it ends, so a fresh document is asked
for later than that, and early enough that a failure can be met by connecting anew.

Decides the moments, from times and by chance. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["Validity", "renew_at"]

_EARLIEST: Final = 600.0
"""Seconds before the end."""
_SHARE: Final = 4
"""Of a shorter time that is left it is one in so many."""
_LATEST: Final = 0.2
"""Which part of that is always left, for the request itself."""
_LEAST: Final = 1.0
"""Seconds for which a document that was just verified counts at least. Certificates are judged by
whole seconds: in their last one each request would ask for another document, or connect anew."""

jitter: Callable[[], float] = random.random
"""Drawn for each document, so that many clients of one enclave do not ask in the same second."""


def renew_at(present: float, left: float, drawn: float) -> float:
    """``left``: seconds of validity. ``drawn``: 0 to 1, see :data:`jitter`."""
    lead = min(_EARLIEST, left / _SHARE)
    return present + left - lead * (1.0 - (1.0 - _LATEST) * drawn)


class Validity:
    """Of a channel's newest document; immutable. Times are those of the clock that goes on while
    the machine sleeps."""

    __slots__ = ("ends_at", "renew_at", "verified_at")

    def __init__(
        self, verified_at: float = 0.0, renew_at: float = math.inf, ends_at: float = math.inf
    ) -> None:
        self.verified_at = verified_at
        self.renew_at = renew_at
        """When the next document is asked for."""
        self.ends_at = ends_at
        """When the certificates of this one end; never in debug mode."""

    @classmethod
    def of(cls, raw: Mapping[str, Any], verified_at: float) -> Validity:
        """Of the document, which was verified at ``verified_at``."""
        until: int | None = raw["valid_until"]
        if until is None:
            return cls(verified_at)
        left = max(_LEAST, float(until - raw["verified_at"]))
        return cls(verified_at, renew_at(verified_at, left, jitter()), verified_at + left)

    def asked_in_vain(self, present: float) -> Validity:
        """No fresh document came, and this one has not ended yet."""
        later = renew_at(present, self.ends_at - present, jitter())
        return Validity(
            self.verified_at, min(self.ends_at, max(later, present + _LEAST)), self.ends_at
        )

    def doubted(self) -> Validity:
        """The next request asks for a fresh document before it goes out."""
        return Validity(self.verified_at, 0.0, self.ends_at)
