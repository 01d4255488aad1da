"""What is said where a deadline passed: the same words in threads and in event loops, of a stream
of the core's and of one over a forwarder.

Decides nothing but the words. Calls: _errors. Locks: none.
"""

from __future__ import annotations

from typing import Final

from .._errors import ReadTimeout, WriteTimeout

__all__ = ["SHORTEST", "nothing_read", "nothing_sent", "stated"]

SHORTEST: Final = 1e-6
"""Seconds: a deadline that is over as soon as it was looked at. A timeout of 0 becomes one."""


def stated(seconds: float | None) -> float | None:
    """What a message says of a timeout, as it was given."""
    return 0.0 if seconds == SHORTEST else seconds


def nothing_read(timeout: float | None) -> ReadTimeout:
    """``timeout``: in seconds, as it was given."""
    return ReadTimeout(f"expected bytes from the workload within {stated(timeout)} s, got none")


def nothing_sent(timeout: float | None) -> WriteTimeout:
    """``timeout``: in seconds, as it was given."""
    return WriteTimeout(f"expected to send within {stated(timeout)} s, could not")
