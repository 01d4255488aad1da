"""May this request be sent again? Decided from facts, without I/O.

Calls: _arguments, _errors. Locks: none.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Final, cast

import httpx2

from .._arguments import is_async, value_shown, whole
from .._errors import ConnectionClosed, ServerError

__all__ = ["IDEMPOTENT", "Attempt", "Retries", "RetryPolicy", "checked_retries"]

# RFC 9110, section 9.2.2; QUERY: RFC 10008.
IDEMPOTENT: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY"))

# A request of which nothing was sent may start over however often its connection turns out to be
# gone. A bound all the same, against a peer that takes every connection and drops it.
_UNSENT_LIMIT: Final = 8

RetryDecision = Callable[[httpx2.Request, Exception], bool]
Retries = int | Iterable[str] | RetryDecision
"""How often at most; or which methods, beside the idempotent ones, may be sent again; or a
function of request and error that says so."""


_METHOD: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"


def checked_retries(retries: Retries) -> int | frozenset[str] | RetryDecision:
    """In a form that can be kept: an iterator of methods would be used up."""
    if callable(retries):
        _check_decision(retries)
        return retries
    if hasattr(type(retries), "__index__") and not isinstance(retries, bool):
        return whole("retries", retries, 0)
    if isinstance(retries, str):
        raise TypeError(
            f"retries: expected several methods, e.g. {{{value_shown(retries)}}}, got one str"
        )
    if isinstance(retries, bytes | bool) or not hasattr(retries, "__iter__"):
        raise TypeError(
            f"retries: expected a number, methods or a callable, got {_a(type(retries).__name__)}"
        )
    return frozenset(_method(method) for method in cast(Iterable[object], retries))


def _a(name: str) -> str:
    return f"a {name}" if name == "bool" else name


def _method(method: object) -> str:
    if not isinstance(method, str):
        raise TypeError(f"retries: expected methods as text, got {type(method).__name__}")
    if not re.fullmatch(_METHOD, method):
        raise ValueError(f"retries: expected methods such as 'POST', got {value_shown(method)}")
    return method.upper()


def _check_decision(decide: Callable[..., object]) -> None:
    """Of an async function the answer would be a coroutine, which is true: a request that must not
    be repeated would be."""
    if is_async(decide):
        raise TypeError("retries: expected f(request, error) -> bool, got an async function")
    try:
        signature = inspect.signature(decide)
    except (TypeError, ValueError):  # of some written in C nothing is known
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            f"retries: expected f(request, error) -> bool, got one that takes {signature}"
        ) from None


class Attempt:
    """What became of one sending of a request."""

    __slots__ = ("answered", "error", "replayable", "request", "sent")

    def __init__(
        self,
        request: httpx2.Request,
        error: Exception,
        sent: bool,
        answered: bool,
        replayable: bool,
    ) -> None:
        """``sent``: any byte of it may have reached the workload. ``answered``: any byte of an
        answer came. ``replayable``: its body can be produced once more."""
        self.request = request
        self.error = error
        self.sent = sent
        self.answered = answered
        self.replayable = replayable


class RetryPolicy:
    """``retries=2``: at most twice. ``0``: never. A set of methods widens what counts as
    idempotent; a callable decides for the rest."""

    def __init__(self, retries: Retries = 2) -> None:
        self._decide: RetryDecision | None = None
        self._methods = IDEMPOTENT
        self.limit = 2
        retries = checked_retries(retries)
        if isinstance(retries, int):
            self.limit = retries
        elif callable(retries):
            self._decide = retries
        else:
            self._methods = IDEMPOTENT | frozenset(retries)

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
        if self._decide is None:
            return False
        decision: object = self._decide(attempt.request, attempt.error)
        if inspect.isawaitable(decision):  # which is true, whatever its result would be
            if inspect.iscoroutine(decision):
                decision.close()
            raise TypeError(
                "retries: expected f(request, error) -> bool, got one that returned an awaitable "
                f"({type(decision).__name__})"
            )
        return bool(decision)


def _lost(error: Exception) -> bool:
    """Whether a connection broke: ours, or (ServerError) the workload's behind the enclave. A
    deadline that passed is the caller's answer, and nothing else gets better by asking again."""
    if isinstance(error, ConnectionClosed):
        return error.retryable
    return isinstance(error, ServerError)
