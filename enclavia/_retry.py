"""May this request be sent again? Decided from facts, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import httpx2

from ._errors import ConnectionClosed, ServerError

__all__ = ["IDEMPOTENT", "Attempt", "Retries", "RetryPolicy"]

# RFC 9110, section 9.2.2; QUERY: RFC 10008.
IDEMPOTENT: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY"))

# A request of which nothing was sent may start over however often its connection turns out to be
# gone. A bound all the same, against a peer that takes every connection and drops it.
_UNSENT_LIMIT: Final = 8

RetryDecision = Callable[[httpx2.Request, Exception], bool]
Retries = int | Iterable[str] | RetryDecision
"""How often at most; or which methods, beside the idempotent ones, may be sent again; or a
function of request and error that says so."""


class Attempt(NamedTuple):
    """What became of one sending of a request."""

    request: httpx2.Request
    error: Exception
    sent: bool
    """Any byte of it may have reached the workload."""
    answered: bool
    """Any byte of an answer came."""
    replayable: bool
    """Its body can be produced once more."""


class RetryPolicy:
    """``retries=2``: at most twice. ``0``: never. A set of methods widens what counts as
    idempotent; a callable decides for the rest."""

    def __init__(self, retries: Retries = 2) -> None:
        self._decide: RetryDecision | None = None
        self._methods = IDEMPOTENT
        self.limit = 2
        if isinstance(retries, bool):
            raise TypeError("retries: expected a number, methods or a callable, got a bool")
        if isinstance(retries, int):
            if retries < 0:
                raise ValueError(f"retries: expected 0 or more, got {retries}")
            self.limit = retries
        elif callable(retries):
            self._decide = retries
        elif isinstance(retries, str):
            raise TypeError(f"retries: expected several methods, e.g. {{{retries!r}}}, got one str")
        elif not isinstance(retries, Iterable):
            raise TypeError(
                f"retries: expected a number, methods or a callable, got {type(retries).__name__}"
            )
        else:
            self._methods = IDEMPOTENT | {str(method).upper() for method in retries}

    def again(self, attempt: Attempt, resent: int, unsent: int) -> bool:
        """``resent``: how often it was already sent again; ``unsent``: how often it started over
        before anything of it was sent."""
        if self.limit == 0 or not attempt.replayable or attempt.answered:
            return False
        if not _lost(attempt.error):
            return False
        if not attempt.sent:
            return unsent < _UNSENT_LIMIT
        return resent < self.limit and self._may_repeat(attempt)

    def _may_repeat(self, attempt: Attempt) -> bool:
        if attempt.request.method in self._methods:
            return True
        return self._decide is not None and bool(self._decide(attempt.request, attempt.error))


def _lost(error: Exception) -> bool:
    """Whether a connection broke: ours, or (ServerError) the workload's behind the enclave. A
    deadline that passed is the caller's answer, and nothing else gets better by asking again."""
    if isinstance(error, ConnectionClosed):
        return error.retryable
    return isinstance(error, ServerError)
