"""When a channel's document is asked for anew: before the first certificate of its chain ends.

AWS replaces an enclave's certificate about 15 minutes before it ends, so a fresh document is asked
for later than that, and early enough that a failure can be met by connecting anew.

Decides the moment, from times alone. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

from typing import Final

__all__ = ["RENEWAL_WAIT", "renew_at"]

_EARLIEST: Final = 600.0
"""Seconds before the end."""
_SHARE: Final = 4
"""Of a shorter time that is left it is one in so many."""
_LATEST: Final = 0.2
"""Which part of that is always left, for the request itself."""
RENEWAL_WAIT: Final = 10.0
"""Seconds for which a fresh document is waited for. A channel on which none comes is given up, or,
where there will be no other, used until its document ends."""


def renew_at(present: float, left: float, jitter: float) -> float:
    """``left``: seconds of validity. ``jitter``: 0 to 1, so that many clients of one enclave do not
    ask in the same second."""
    lead = min(_EARLIEST, left / _SHARE)
    return present + left - lead * (1.0 - (1.0 - _LATEST) * jitter)
