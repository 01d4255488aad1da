"""What the C core announces to the forwarder's event loop, by number.

Decides nothing. Calls: _core. Locks: none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .. import _core

__all__ = ["Tokens"]


class Tokens:
    """One notifier for all streams, read by the running event loop. A token that comes late, of a
    wait that has ended, is nobody's."""

    def __init__(self) -> None:
        self.notifier = _core.Notifier()
        self._calls: dict[int, Callable[[], None]] = {}
        self._last = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.notifier.fileno(), self._deliver)

    def add(self, call: Callable[[], None]) -> int:
        self._last += 1
        self._calls[self._last] = call
        return self._last

    def remove(self, token: int) -> None:
        self._calls.pop(token, None)

    def _deliver(self) -> None:
        for token in self.notifier.drain():
            call = self._calls.get(token)
            if call is not None:
                call()

    def close(self) -> None:
        self._loop.remove_reader(self.notifier.fileno())
        self.notifier.close()
