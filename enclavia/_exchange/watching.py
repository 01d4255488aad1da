"""The watcher of this process: whoever is told of the steps of all requests, where there is one.

Everybody loads this, so it is small; what it takes to tell is in :mod:`enclavia._exchange.tracing`.

Decides nothing. Calls: _io, _pool. Locks: none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import httpx2

if TYPE_CHECKING:
    from .._io.face import Io
    from .._pool.pool import Pool
    from .pinning import Pinning

__all__ = ["Note", "Watched", "Watcher", "current", "watch"]

Note = Callable[[str, dict[str, Any]], None]
"""Is told an event: its name, and its details. Does not wait, and raises nothing."""


class Watched(Protocol):
    """What a watcher sees of the connections that a request goes over."""

    @property
    def pinning(self) -> Pinning:
        """Has the configuration."""

    @property
    def io(self) -> Io[Any]: ...
    @property
    def pool(self) -> Pool[Any, Any]: ...


class Watcher(Protocol):
    """Is asked about each request, and each connecting without a request."""

    def begin(self, connections: Watched, request: httpx2.Request | None) -> Note | None:
        """Who wants to be told of it; None: nobody. Raises nothing."""


watcher: Watcher | None = None
"""The watcher of this process. Read where a request begins, so a name of this module."""


def watch(new: Watcher | None) -> None:
    """From now on requests are told to this one; None: to nobody."""
    global watcher
    watcher = new


def current() -> Watcher | None:
    """Who watches now."""
    return watcher
