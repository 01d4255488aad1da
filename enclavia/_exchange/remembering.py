"""What is remembered of heads, since those of one workload tend to repeat: what a request's came to
as bytes, and what an answer's said.

Decides which heads are not remembered. Calls: _http1. Locks: none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Final, ParamSpec, TypeVar

from .._http1.head import ReadHead, read_head
from .message import HeadOf, RequestHead

__all__ = ["has_credentials", "remembered", "remembering_answers", "remembering_requests"]

P = ParamSpec("P")
T = TypeVar("T")
_LATEST: Final = 16
_CREDENTIALS: Final = frozenset(
    (b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-api-key")
)


def has_credentials(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return not _CREDENTIALS.isdisjoint([name.lower() for name, _ in headers])


def _says_credentials(raw: bytes) -> bool:
    """The same of a head that was not read yet."""
    names = [line.partition(b":")[0] for line in raw.lower().split(b"\n")]
    return not _CREDENTIALS.isdisjoint(names)


def remembered(
    function: Callable[P, T], unless: Callable[..., bool] | None = None
) -> Callable[P, T]:
    """The function, with its latest results remembered, except where ``unless`` says that its
    arguments are secret: those do not stay in memory after the call."""
    again: Callable[P, T] = functools.lru_cache(maxsize=_LATEST)(function)  # type: ignore[assignment]
    if unless is None:
        return again

    def either(*args: P.args, **keywords: P.kwargs) -> T:
        return (function if unless(*args, **keywords) else again)(*args, **keywords)

    return either


def remembering_requests(*, credentials: bool) -> HeadOf:
    """Encodes the same head once. ``credentials``: also one that carries some."""
    return remembered(
        RequestHead.of, None if credentials else lambda _, __, headers: has_credentials(headers)
    )


def remembering_answers(*, credentials: bool) -> ReadHead:
    """Reads the same bytes once. A service answers alike: within a second, which is how often its
    Date changes, they come again and again. ``credentials``: also a head with a cookie."""
    return remembered(read_head, None if credentials else lambda raw, _: _says_credentials(raw))
