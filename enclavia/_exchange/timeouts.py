"""The timeouts of one request, and arithmetic with deadlines.

Decides which timeouts a request has, and which of two deadlines comes first. Calls: _arguments,
_io. Locks: none.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

import httpx2

from .._arguments import TIMEOUT_MAX, timeout
from .._io.face import positive
from .._io.late import SHORTEST

__all__ = ["Timeouts", "earlier", "is_before"]

_NUMBERS = (float, int)


class Timeouts(NamedTuple):
    connect: float | None = None
    read: float | None = None
    write: float | None = None
    pool: float | None = None

    @classmethod
    def of(cls, request: httpx2.Request, default: Self) -> Self:
        given: Mapping[str, float | None] | None = request.extensions.get("timeout")
        if given is None:
            return default
        if type(given) is not dict and not isinstance(given, Mapping):
            raise TypeError(
                "timeout: expected a mapping of connect, read, write and pool to seconds, got "
                f"{type(given).__name__}"
            )
        get = given.get
        connect, read, write, pool = members = (
            get("connect"),
            get("read"),
            get("write"),
            get("pool"),
        )
        # Nearly always they are the client's own, the very same numbers: those were looked at.
        own_connect, own_read, own_write, own_pool = default
        if connect is own_connect and read is own_read and write is own_write and pool is own_pool:
            return default
        return cls(*map(_allowed, cls._fields, members))


def _allowed(name: str, seconds: float | None) -> float | None:
    if seconds is None or (type(seconds) in _NUMBERS and SHORTEST < seconds <= TIMEOUT_MAX):
        return seconds
    return positive(timeout(f"timeout ({name})", seconds))


def earlier(end: float | None, deadline: float | None) -> float | None:
    return end if is_before(end, deadline) else deadline


def is_before(end: float | None, deadline: float | None) -> bool:
    """None is never."""
    return end is not None and (deadline is None or end < deadline)
