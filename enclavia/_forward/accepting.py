"""Taking connections from a socket that listens, within what the process has room for.

Decides when the next connection is taken. Calls: _io, _records. Locks: none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from .._io.local import LocalSocket
from .._records import fields
from .counters import Counters
from .sockets import OUT_OF_DESCRIPTORS

__all__ = ["Acceptor"]

logger = logging.getLogger("enclavia.forwarder")

_ACCEPTS: Final = 64
"""Connections that are taken at a time, before those that are there have their turn."""
_PAUSE: Final = 0.2
"""Seconds until a connection is accepted again where there was no descriptor for one."""


class Acceptor:
    """One listening socket in the running event loop. Those who come while there is no room wait in
    the socket's queue, which asyncio's own servers have no way to do: they try again at once, and
    log each failure."""

    def __init__(
        self,
        sock: LocalSocket,
        take: Callable[[LocalSocket, Acceptor], None],
        counters: Counters,
        most: int | None = None,
    ) -> None:
        """``take`` gets each connection, and calls :meth:`over` once it has ended. ``most``: of
        them at a time."""
        self._sock = sock
        self._take = take
        self._counters = counters
        self._most = most
        self._open = 0
        self._reading = False
        self._closed = False
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._resume()

    def over(self) -> None:
        """One of its connections has ended."""
        self._open -= 1
        if self._pause is None:
            self._resume()

    def close(self) -> None:
        """Takes no more. The socket is its owner's. May be called again."""
        self._closed = True
        self._suspend()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _resume(self) -> None:
        self._pause = None
        if not self._closed and not self._reading and not self._full:
            self._loop.add_reader(self._sock.fileno(), self._accept)
            self._reading = True

    def _suspend(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._sock.fileno())
            self._reading = False

    @property
    def _full(self) -> bool:
        return self._most is not None and self._open >= self._most

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            if self._full:
                self._suspend()
                return
            try:
                accepted, _address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_DESCRIPTORS:
                    self._wait_for_room(error)
                    return
                continue  # that one is gone already
            self._open += 1
            self._take(LocalSocket(accepted.detach()), self)

    def _wait_for_room(self, error: OSError) -> None:
        if not self._counters.out_of_descriptors:
            logger.error(
                "cannot take more connections: %s; raise the limit on open files (ulimit -n, "
                "LimitNOFILE=), or close connections that are not used",
                error.strerror,
                extra=fields("out_of_descriptors", error=error),
            )
        self._counters.out_of_descriptors += 1
        self._suspend()
        self._pause = self._loop.call_later(_PAUSE, self._resume)
