"""What is said where a deadline passed: the same words in threads and in event loops, of a stream
of the core's and of one over a forwarder.

Decides nothing but the words. Calls: _errors. Locks: none.
"""

from __future__ import annotations

from .._errors import ReadTimeout, WriteTimeout

__all__ = ["nothing_read", "nothing_sent"]


def nothing_read(timeout: float | None) -> ReadTimeout:
    """``timeout``: in seconds, as it was given."""
    return ReadTimeout(f"expected bytes from the workload within {timeout} s, got none")


def nothing_sent(timeout: float | None) -> WriteTimeout:
    """``timeout``: in seconds, as it was given."""
    return WriteTimeout(f"expected to send within {timeout} s, could not")
