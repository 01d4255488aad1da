"""What the pool decided and others have to hear: who is woken, and what is closed.

Decides only the order: it is noted under the pool's lock, and done later without any lock, because
a waiter or a channel may call the pool again. Calls waiters and channels, and nothing of the pool.

Calls: nothing of the package. Locks: the pool's is held where something is noted, and none where it
is carried out.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic

from .kinds import C, L, Wakeable
from .ticket import Ticket

__all__ = ["Outbox"]

AnyTicket = Ticket[Any, Any]


class Outbox(Generic[C, L]):
    """An entry is taken away only after it was carried out, so that an interruption in between
    loses nothing: to wake or to close twice does no harm."""

    def __init__(self) -> None:
        # Dictionaries, because two threads may carry out the same entry.
        self.to_wake: dict[Wakeable, AnyTicket] = {}
        self.to_close: dict[C | L, None] = {}
        self._flushing: dict[int, None] = {}

    # -- under the pool's lock --------------------------------------------------------------

    def wake(self, ticket: AnyTicket) -> None:
        if ticket.waiter is not None:
            self.to_wake[ticket.waiter] = ticket

    def close(self, handle: C | L) -> None:
        self.to_close[handle] = None

    def close_all(self, handles: Iterable[C | L]) -> None:
        self.to_close.update((handle, None) for handle in handles)

    # -- without it -------------------------------------------------------------------------

    def flush(self, forsake: Callable[[AnyTicket, Wakeable, Exception], None]) -> None:
        """``forsake`` is told of a ticket whose waiter could not be woken, and why."""
        # A destructor or a signal's handler may come by here while this thread sets an event, and
        # would wait for ever for the lock of that event. What it adds is carried out here too.
        thread = threading.get_ident()
        if thread in self._flushing:
            return
        self._flushing[thread] = None
        try:
            self._flush_all(forsake)
        finally:
            del self._flushing[thread]

    def _flush_all(self, forsake: Callable[[AnyTicket, Wakeable, Exception], None]) -> None:
        while self.to_wake or self.to_close:
            for waiter, ticket in list(self.to_wake.items()):
                try:
                    waiter.set()
                except Exception as error:
                    forsake(ticket, waiter, error)
                self.to_wake.pop(waiter, None)
            for handle in list(self.to_close):
                with contextlib.suppress(Exception):  # whoever comes by here did not open it
                    handle.close()
                self.to_close.pop(handle, None)
