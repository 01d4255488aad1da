"""Waiting in a thread for what the C core announces. One descriptor per thread."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable

from . import _core

__all__ = ["ThreadHub", "thread_hub"]

Register = Callable[[_core.Notifier, int], _core.Watch]
"""Registers a wait in C. What it returns owns the registration and takes it back when it ends."""


class ThreadHub:
    """Waits for one thing at a time, as a thread does."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._notifier = _core.Notifier()
        self._poll = select.poll()
        self._poll.register(self._notifier.fileno(), select.POLLIN)
        self._token = 0

    def wait(self, register: Register, timeout: float | None) -> bool:
        """False where it did not come in time. However this ends, also by Ctrl-C, the registration
        ends with it."""
        self._token = token = self._token + 1
        deadline = None if timeout is None else time.monotonic() + timeout
        watch = register(self._notifier, token)
        try:
            while True:
                remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
                if self._poll.poll(None if remaining is None else remaining * 1000):
                    # Tokens of waits that were given up before may come late.
                    if token in self._notifier.drain():
                        return True
                elif remaining is not None:
                    return False
        finally:
            watch.end()


_local = threading.local()


def thread_hub() -> ThreadHub:
    hub: ThreadHub | None = getattr(_local, "hub", None)
    if hub is None or hub.pid != os.getpid():
        # A forked child shares its parent's descriptor: it needs one of its own.
        _local.hub = hub = ThreadHub()
    return hub
