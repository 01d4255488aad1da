"""How a test's server ends: no descriptor is closed that a thread of it may still use.

Its number is another's as soon as it is closed. A thread that was just about to call accept() or
recv() then takes what was meant for that other one: a connection to the server of the next test, or
bytes of a channel. A loaded machine leaves threads at that very place."""

from __future__ import annotations

import contextlib
import socket
import threading

_HANG = 60.0


def end_listening(listener: socket.socket, acceptor: threading.Thread) -> None:
    """The thread that accepts ends, and the socket is closed after that."""
    hang_up(listener)
    if acceptor.ident is not None:
        acceptor.join(_HANG)
        assert not acceptor.is_alive(), "a thread still accepts"
    listener.close()


def hang_up(sock: socket.socket) -> None:
    """Whoever reads, writes or accepts in another thread is done with it, and has to close it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
