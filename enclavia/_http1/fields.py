"""What requests and responses have in common: header fields, which of them are credentials, and how
bytes are shown in errors.

Decides how much of a peer's bytes an error shows, and what is not remembered of a head. Calls:
nothing of the package. Locks: none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, ParamSpec, TypeVar

__all__ = [
    "DIGITS",
    "Headers",
    "has_credentials",
    "list_items",
    "remembered",
    "says_credentials",
    "shown_bytes",
]

P = ParamSpec("P")
T = TypeVar("T")

Headers = Sequence[tuple[bytes, bytes]]
DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_REMEMBERED: Final = 16
_SHOWN: Final = 60
_CREDENTIALS: Final = frozenset(
    (b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-api-key")
)


def list_items(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> Iterable[bytes]:
    size = len(wanted)
    for name, value in headers:
        if len(name) == size and name.lower() == wanted:
            yield from (item.strip().lower() for item in value.split(b","))


def has_credentials(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() in _CREDENTIALS for name, _ in headers)


def says_credentials(raw: bytes) -> bool:
    """The same of a head that was not read yet."""
    return any(line.partition(b":")[0] in _CREDENTIALS for line in raw.lower().split(b"\n"))


def remembered(
    function: Callable[P, T], unless: Callable[..., bool] | None = None
) -> Callable[P, T]:
    """The function, with its latest results remembered, except where ``unless`` says that its
    arguments are secret: those do not stay in memory after the call."""
    again: Callable[P, T] = functools.lru_cache(maxsize=_REMEMBERED)(function)  # type: ignore[assignment]
    if unless is None:
        return again

    def either(*args: P.args, **keywords: P.kwargs) -> T:
        return (function if unless(*args, **keywords) else again)(*args, **keywords)

    return either


def shown_bytes(raw: bytes | bytearray) -> str:
    text = bytes(raw[:_SHOWN]).decode("latin-1")
    return repr(text if len(raw) <= _SHOWN else text + "…")
