"""Waiting in this thread for descriptors, by poll(2).

Decides how a wait that is longer than poll's milliseconds can say is cut into turns. Calls: _core.
Locks: none.
"""

from __future__ import annotations

import select
import time

from .. import _core

__all__ = ["poll_descriptor", "poll_until"]

_TURN_MS = 86_400_000
_EVENTS = {
    _core.READABLE: select.POLLIN,
    _core.WRITABLE: select.POLLOUT,
    _core.READABLE | _core.WRITABLE: select.POLLIN | select.POLLOUT,
}


def poll_descriptor(descriptor: int, what: int, timeout: float | None) -> int:
    """The events of poll(2) that came within ``timeout`` seconds, 0 where none did. Waits in this
    thread; a signal's handler that raises ends the wait."""
    poll = select.poll()
    poll.register(descriptor, _EVENTS[what])
    if timeout == 0:
        found = poll.poll(0)
        return found[0][1] if found else 0
    found = poll_until(poll, None if timeout is None else time.monotonic() + timeout)
    return found[0][1] if found else 0


def poll_until(poll: select.poll, deadline: float | None) -> list[tuple[int, int]]:
    """What ``poll`` found before the deadline, by ``time.monotonic``; empty where it found nothing.
    Its milliseconds are a C int: a longer wait goes on in turns."""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        found = poll.poll(None if left is None else min(left, _TURN_MS))
        if found or (left is not None and left <= _TURN_MS):
            return found
