"""Channels and streams over Unix sockets of this machine, with the methods of the C core's.

Where another process of the machine keeps the verified channel, a workload connection is one
connection to its socket. Waiting for such a connection is waiting for a descriptor, which threads
and event loops do in ways of their own (:mod:`enclavia._io.threads`, :mod:`enclavia._io.loops`);
what needs no waiting stands here, once. Knows no protocol: what is said before the first stream is
opened is :mod:`enclavia._channel.via`'s.

Decides whether the end of a connection ends an answer or is a loss. Calls: _arguments, _core,
_errors. Locks: ``_lock``, around counts of streams and their bytes.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import select
import socket
import struct
import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple

from .. import _core
from .._arguments import byte_view
from .._errors import (
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    ForkedError,
    StateError,
)
from .late import nothing_read, nothing_sent
from .polling import poll_descriptor

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "AnyChannel",
    "AnySlot",
    "AnyStream",
    "LocalChannel",
    "LocalSlot",
    "LocalSocket",
    "LocalStream",
    "Place",
    "peer_uid",
]

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0) | socket.MSG_DONTWAIT
_FIRST_SECONDS = 5.0


class LocalSocket(socket.socket):
    """A socket whose descriptor is closed when nobody has the object any more, so no other thread
    can be about to use a number that means another file by then; and in a forked child at once, so
    that the other side sees the end when the parent ends."""

    _made = False

    def __init__(self, fileno: int | None = None) -> None:
        """Of a descriptor, which it takes over, or a new Unix socket."""
        if fileno is None:
            super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            super().__init__(fileno=fileno)
        self._made = True
        self.setblocking(False)
        _open[id(self)] = weakref.ref(self)

    def __del__(self) -> None:
        if _open is not None:  # the interpreter may be ending
            _open.pop(id(self), None)
        if self._made:  # there may have been no descriptor for it
            self.close()


_open: dict[int, weakref.ref[LocalSocket]] = {}


def _close_inherited() -> None:
    for reference in list(_open.values()):
        inherited = reference()
        if inherited is not None:
            inherited.close()
    _open.clear()


os.register_at_fork(after_in_child=_close_inherited)


def peer_uid(sock: socket.socket) -> int:
    """The user of the process at the other end of a Unix socket (unix(7), SO_PEERCRED).

    Raises OSError where the system cannot tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        raise OSError("this system does not tell the user at the other end of a Unix socket")
    credentials = sock.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("iII"))
    uid: int = struct.unpack("iII", credentials)[1]
    return uid


class LocalStream:
    """One connection to the workload by way of another process of this machine.

    That process shuts down its writing side where the workload has ended its answer, and keeps its
    reading side open. Whoever finds both sides shut has lost the connection: the process ended, or
    its channel did. So an answer that only the end of the connection completes is never taken for a
    whole one because a process was killed (poll(2): POLLHUP and POLLIN against POLLIN alone).
    """

    def __init__(self, owner: LocalChannel, sock: LocalSocket, number: int) -> None:
        self.id = number
        self.bytes_in = 0
        self.bytes_out = 0
        self._owner = owner
        self._sock: LocalSocket | None = sock
        self._pid = os.getpid()
        self._ended = False

    @property
    def closed(self) -> bool:
        return self._sock is None

    @property
    def at_eof(self) -> bool:
        return self._ended

    @property
    def readable(self) -> bool:
        """A read would not wait: bytes, end of file or an error are there."""
        sock = self._sock
        if sock is None or self._owner.ended is not None or self._pid != os.getpid():
            return True
        return poll_descriptor(sock.fileno(), _core.READABLE, 0) != 0

    @property
    def socket(self) -> LocalSocket | None:
        """What to wait for, and to be held meanwhile: its descriptor is closed with it."""
        return None if self._owner.ended is not None else self._sock

    def wait(self, what: int, timeout: float | None) -> bool:
        """In this thread, until reading or writing would not wait; False where it would still."""
        sock = self.socket
        if sock is None:
            return True  # what is tried next says why
        return poll_descriptor(sock.fileno(), what, timeout) != 0

    def read(self, n: int, timeout: float | None) -> bytes | None:
        """1 to n bytes; ``b""`` at the end. timeout 0: None where it would wait."""
        sock = self._usable()
        if timeout != 0 and not poll_descriptor(sock.fileno(), _core.READABLE, timeout):
            raise nothing_read(timeout)
        while True:
            try:
                data = sock.recv(n, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if timeout == 0:
                    return None
                poll_descriptor(sock.fileno(), _core.READABLE, timeout)
            except OSError as error:
                raise self._lost(error) from error
            else:
                return self._got(sock, data)

    def readinto(self, buffer: Buffer, timeout: float | None) -> int | None:
        """1 to ``len(buffer)`` bytes into it; 0 at the end, None where it would wait."""
        view = byte_view("buffer", buffer, writable=True)
        data = self.read(len(view), timeout) if view else b""
        if data is None:
            return None
        view[: len(data)] = data
        return len(data)

    def _got(self, sock: LocalSocket, data: bytes) -> bytes:
        if data:
            self.bytes_in += len(data)
            self._owner.records_in += 1
            return data
        if not self._ended:
            # Whether the other side has shut down one direction or is gone altogether.
            if poll_descriptor(sock.fileno(), _core.READABLE, 0) & _GONE:
                raise self._lost(None)
            self._ended = True
        return b""

    def write(self, data: Buffer, timeout: float | None) -> int:
        """All of data. timeout 0: as much as can be taken now, and how much that was."""
        view = byte_view("data", data)
        total = len(view)
        sock = self._usable()
        while view:
            try:
                sent = sock.send(view, _SEND_FLAGS)
            except BlockingIOError:
                if timeout == 0:
                    break
                if not poll_descriptor(sock.fileno(), _core.WRITABLE, timeout):
                    raise nothing_sent(timeout) from None
            except OSError as error:
                raise self._lost(error) from error
            else:
                self.bytes_out += sent
                view = view[sent:]
        return total - len(view)

    def close(self) -> None:
        """Ends it in both directions. May be called again, and by any thread: one that waits for
        this stream is woken."""
        self.end()
        self._sock = None
        self._owner.stream_closed(self)

    def end(self) -> None:
        """Wakes whoever waits for this stream; what is tried next says why it ended."""
        sock = self._sock
        if sock is not None and self._pid == os.getpid():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        self.close()

    def _usable(self) -> LocalSocket:
        if self._pid != os.getpid():
            raise ForkedError(
                "expected a stream of this process, got one of its parent: a forked child opens "
                "its own"
            )
        sock = self._sock
        if sock is None:
            raise StateError("the stream was closed")
        if self._owner.ended is not None:
            raise self._lost(None)
        return sock

    def _lost(self, cause: OSError | None) -> Exception:
        ended = self._owner.ended
        if ended is not None:
            return ended
        why = "" if cause is None else f": {cause.strerror}"
        return ConnectionClosed(f"the forwarder ended the connection to the workload{why}")


class LocalSlot:
    """How many connections there may be at once is the other process's to decide: it has the
    channel's slots."""

    granted = True

    def wait(self, timeout: float | None) -> None:
        pass

    def release(self) -> None:
        pass


class Place(NamedTuple):
    """Where a socket is, and whose process may be at the other end."""

    path: str
    owners: frozenset[int]

    def connect(self) -> LocalSocket:
        """Raises :class:`ConnectError`, of which ``retryable`` says whether somebody may listen
        there a moment later."""
        try:
            sock = LocalSocket()
            sock.connect(self.path)
            owner = peer_uid(sock)
        except OSError as error:
            raise self._refused(error) from error
        if owner not in self.owners:
            raise ConnectError(
                f"expected a forwarder of user {sorted(self.owners)} at {self.path}, got a process "
                f"of user {owner}: nothing was sent to it",
                retryable=False,
            )
        return sock

    def _refused(self, error: OSError) -> ConnectError:
        what = f"expected a forwarder that listens at {self.path}, got: {error.strerror or error}"
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return ConnectError(f"{what}; start one with enclavia.Forwarder")
        busy = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
        return ConnectError(what, retryable=error.errno in busy)


class LocalChannel(abc.ABC):
    """What stands for a channel where another process of this machine has it.

    One connection, the *control* connection, is kept as long as this is used. Its end is the
    channel's end. ``advance`` of a subclass says what is exchanged on it first.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.records_in = 0
        self.handshake_hash = b""
        self.ended: Exception | None = None
        """Why also its streams are over: it was closed here."""
        self._state = "connecting"
        self._error: Exception | None = None
        self._control: LocalSocket | None = None
        self._streams: dict[int, weakref.ref[LocalStream]] = {}
        self._numbers = 0
        self._lock = threading.RLock()  # a destructor may come by in between
        self._past_in = 0
        self._past_out = 0
        self._place: Place | None = None
        self._raw: _core.RawAttestation | None = None

    # -- steps, of a subclass -----------------------------------------------------------------

    @abc.abstractmethod
    def advance(self) -> bool:
        """Does what can be done without waiting; True once this is open or closed."""

    @abc.abstractmethod
    def waits_for(self) -> tuple[LocalSocket, int]:
        """What the next step waits for, to be held meanwhile, and READABLE or WRITABLE."""

    # -- as _core.Channel ---------------------------------------------------------------------

    @property
    def forked(self) -> bool:
        return self.pid != os.getpid()

    @property
    def state(self) -> str:
        """ "connecting", "open" or "closed"."""
        if self._state == "open":
            control = self._control
            if self.forked or control is None:
                return "closed"
            # Nothing is expected on it: whatever comes, this cannot be relied on any more.
            if poll_descriptor(control.fileno(), _core.READABLE, 0):
                self.fail(ConnectionClosed("the forwarder ended its control connection"))
        return self._state

    @property
    def error(self) -> Exception | None:
        return self._error

    def fail(self, error: Exception) -> None:
        """Closed, and why. Streams that are open go on to their own end: the other process ends
        each where it has to."""
        if self._state != "closed":
            self._state = "closed"
            self._error = error
            control, self._control = self._control, None
            if control is not None and not self.forked:
                with contextlib.suppress(OSError):
                    control.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it

    def wait_open(self, timeout: float | None) -> None:
        """Raises why it is not open, and closes."""
        if not self.advance():
            self.fail(ConnectTimeout("expected an answer of the forwarder, got none"))
        if self._error is not None:
            raise self._error

    def attestation(self) -> _core.RawAttestation:
        """What was verified here when this was opened. Raises while nothing was."""
        if self._raw is None:
            raise StateError("not connected yet, so nothing was verified")
        return self._raw

    def reserve(self, notifier: _core.Notifier | None, token: int) -> LocalSlot:
        return LocalSlot()

    def open_stream(self, slot: object, payload: Buffer) -> LocalStream:
        """A new connection to the workload, and the first bytes to it. Raises only where none of
        them was sent."""
        if self.forked:
            raise ForkedError("expected a channel of this process, got one of its parent")
        if self._state != "open" or self._place is None:
            raise ConnectionClosed("the connection to the forwarder was closed")
        try:
            sock = self._place.connect()
        except ConnectError as error:
            self.fail(error)
            raise ConnectionClosed(error.message, retryable=error.retryable) from error
        with self._lock:
            self._numbers += 1
            number = self._numbers
        stream = LocalStream(self, sock, number)
        self._streams[number] = weakref.ref(stream)
        if payload:
            try:
                stream.write(payload, _FIRST_SECONDS)  # an empty socket takes it at once
            except Exception:
                if not stream.bytes_out:
                    stream.close()
                    raise
                # The workload may have got a part, so this is no stream that was never opened: what
                # is tried next on it says that it was lost, and nothing is sent a second time.
                stream.end()
        return stream

    def stream_closed(self, stream: LocalStream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            with self._lock:
                self._past_in += stream.bytes_in
                self._past_out += stream.bytes_out

    def close(self, timeout: float | None = 1.0) -> None:
        """Ends it and all its streams. May be called again, and by any thread."""
        if self.ended is None:
            self.ended = ConnectionClosed("the connection was closed", retryable=False)
        self.fail(self.ended)
        for reference in list(self._streams.values()):
            stream = reference()
            if stream is not None:
                stream.end()

    def stats(self) -> dict[str, int]:
        live = [stream for each in list(self._streams.values()) if (stream := each()) is not None]
        return {
            "bytes_in": self._past_in + sum(stream.bytes_in for stream in live),
            "bytes_out": self._past_out + sum(stream.bytes_out for stream in live),
            "records_in": self.records_in,
            "records_out": 0,
            "streams_open": len(live),
            "slots_waiting": 0,
            "streams_total": self._numbers,
        }


AnyChannel = _core.Channel | LocalChannel
AnySlot = _core.Slot | LocalSlot
AnyStream = _core.Stream | LocalStream
