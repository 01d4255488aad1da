"""One accepted connection and its stream: bytes both ways, and how each way ends.

While both ways go on, the core moves the bytes (:class:`enclavia._core.Pump`), in its own thread
and without Python. As soon as anything else happens it stops, and all that follows is done here, in
the forwarder's event loop: by callbacks of the loop, and no task, so that a wait costs two calls
instead of a future and a task's step. The same is done from the beginning where the core has no
descriptor for it. Nothing is read from one side before the other has taken what came before, so
each side's pace is the other's.

Decides when each side is read, and how a connection ends. Calls: _channel, _core, _errors,
_exchange, _io, _pool, _records. Locks: none.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import select
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol

from .. import _core
from .._channel.operations import start_stream
from .._errors import ConnectionClosed, EnclaviaError, ForkedError, StateError
from .._io.face import Io, now
from .._records import fields

if TYPE_CHECKING:
    from .._exchange.tunnel import IdleStream, Tunnel
    from .._io.local import AnyStream, LocalSocket
    from .._pool.ticket import Lease
    from .counters import Counters
    from .tokens import Tokens

__all__ = ["Pump", "PumpOwner"]

logger = logging.getLogger("enclavia.forwarder")

_READ: Final = 65_536
_FIRST: Final = 16_320
"""What may travel with the opening of a stream."""
_FIRST_WAIT: Final = 0.02
"""Seconds that a connection's first bytes are waited for, to open the stream with them. Then it is
opened without any: in some protocols the server speaks first."""
_LINGER: Final = 5.0
"""Seconds after the workload's end for which what the client sends is dropped, so that the client
can read the answer. Bytes that arrive later end the connection with a reset."""
_TRIES: Final = 8


class PumpOwner(Protocol):
    """The forwarder, as one of its connections knows it."""

    counters: Counters
    tokens: Tokens
    io: Io[Any]

    async def lease(self, identity: str | None) -> Lease[Tunnel, IdleStream]:
        """A place on a verified channel, of that identity where one is asked for."""

    async def expect_usable(self, tunnel: Tunnel, since: float) -> None:
        """After a wait, as :meth:`Connections.expect_usable`, and that it is of the same identity
        still."""

    def give_back(self, lease: Lease[Tunnel, IdleStream]) -> None: ...
    def unanswered(self, tunnel: Tunnel) -> None:
        """A client waited for an answer in vain."""

    def watch_end(self, sock: LocalSocket, pump: Pump) -> None:
        """Has ``pump.client_gone`` called when both directions of the socket are shut."""

    def unwatch_end(self, sock: LocalSocket) -> None: ...
    def pump_ended(self, pump: Pump) -> None: ...


class Pump:
    def __init__(
        self, owner: PumpOwner, sock: LocalSocket, identity: str | None, own_client: bool
    ) -> None:
        """``identity``: of which the channel has to be. ``own_client``: it is HTTP of this
        package's clients, which always speak first."""
        self._owner = owner
        self._sock = sock
        self._fd = sock.fileno()
        self._identity = identity
        self._own_client = own_client
        self._unix = sock.family == socket.AF_UNIX
        self._loop = asyncio.get_running_loop()
        self._lease: Lease[Tunnel, IdleStream] | None = None
        self._stream: AnyStream | None = None
        self._in = memoryview(b"")
        """From the client, not yet taken by the stream."""
        self._out = memoryview(b"")
        """From the stream, not yet taken by the client."""
        self._client_ended = False
        self._workload_ended = False
        self._upload_failed = False
        self._answered_last = False
        self._lingered = False
        self._over = False
        self._touched = now()
        self._reader = self._writer = False
        self._linger: asyncio.TimerHandle | None = None
        self._read_token = owner.tokens.add(self._stream_readable)
        self._write_token = owner.tokens.add(self._stream_writable)
        self._watches: dict[int, _core.Watch] = {}
        self._core: _core.Pump | None = None
        """While it moves the bytes; then this neither reads nor writes."""
        self._core_token = owner.tokens.add(self._core_stopped)
        self._start: asyncio.Task[None] | None = self._loop.create_task(self._begin())

    # -- the beginning, which may wait --------------------------------------------------------

    async def _begin(self) -> None:
        owner = self._owner
        owner.watch_end(self._sock, self)
        try:
            first = await self._first_bytes()
            if self._client_ended and not first and self._own_client:
                self._finish()
                return
            await self._open(first)
        except asyncio.CancelledError:
            self._finish()
            return
        except (EnclaviaError, OSError) as error:
            logger.info(
                "a connection could not be served: %s",
                error,
                extra=fields("connection_not_served", error=error),
            )
            owner.counters.failed += 1
            self._abort()
            return
        finally:
            self._start = None
        if self._over:
            return
        if not self._client_ended:
            owner.unwatch_end(self._sock)
            if self._start_core():
                return
            self._set_reader(True)
        else:
            self._end_upload()
        if not self._over:
            self._await_stream()

    async def _first_bytes(self) -> bytes:
        loop, arrived = self._loop, asyncio.Event()
        deadline = None if self._own_client else loop.time() + _FIRST_WAIT
        while True:
            try:
                data = self._sock.recv(_FIRST)
            except BlockingIOError:
                pass
            else:
                self._client_ended = not data
                return data
            loop.add_reader(self._fd, arrived.set)
            try:
                await asyncio.wait_for(
                    arrived.wait(), None if deadline is None else max(0, deadline - loop.time())
                )
            except TimeoutError:
                return b""
            finally:
                loop.remove_reader(self._fd)
            arrived.clear()

    async def _open(self, first: bytes) -> None:
        """Nothing of the client's is on its way before this has a stream of a channel that was
        verified, and is again looked at by the owner."""
        owner = self._owner
        for left in reversed(range(_TRIES)):
            self._lease = lease = await owner.lease(self._identity)
            lease.tunnel.asked()
            usable = functools.partial(owner.expect_usable, lease.tunnel, now())
            try:
                self._stream = await start_stream(
                    owner.io, lease.tunnel.core, memoryview(first), None, usable
                )
            except (ConnectionClosed, StateError) as error:
                # The channel has just gone: nothing was sent, so another one will do.
                lease.tunnel.retire()
                self._give_back()
                if isinstance(error, ForkedError) or not left:
                    raise
            else:
                owner.counters.bytes_to_enclave += len(first)
                return

    # -- while the core moves the bytes -------------------------------------------------------

    def _start_core(self) -> bool:
        stream = self._stream
        if not isinstance(stream, _core.Stream):
            return False  # ended meanwhile
        try:
            self._core = stream.pump(self._fd, self._owner.tokens.notifier, self._core_token)
        except (EnclaviaError, MemoryError):
            return False  # there is no descriptor for it
        return True

    def _core_stopped(self) -> None:
        """It has: an end of either side, or a failure. Whoever tries to go on here finds which."""
        core = self._core
        if core is None or self._over:
            return
        self.note_asked()
        self._take_back(core)
        if core.state == "gone":
            self.client_gone()
            return
        if core.state == "lost":
            self._owner.counters.failed += 1
            self._abort()
            return
        came, went = core.rest()
        self._in, self._out = memoryview(came), memoryview(went)
        if self._in:
            self._to_stream()
        else:
            self._set_reader(True)
        if self._over:
            return
        if self._out:
            self._to_client()
        else:
            self._await_stream()

    def _take_back(self, core: _core.Pump) -> None:
        """What it knows is known here from now on."""
        self._core = None
        stats = core.stats()
        counters = self._owner.counters
        counters.bytes_to_enclave += stats["bytes_in"]
        counters.bytes_to_clients += stats["bytes_out"]
        if stats["touched"] is not None:
            self._touched = now() - stats["touched"]
            self._answered_last = stats["answered"]

    def note_asked(self) -> None:
        """The tunnel knows from when on something was expected to come over it."""
        core, tunnel = self._core, self.tunnel
        if core is not None and tunnel is not None:
            stats = core.stats()
            if stats["asked"] is not None:
                tunnel.asked_before(stats["asked_records"], now() - stats["asked"])

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes to the enclave and to the client that are in no counter yet."""
        if self._core is None:
            return 0, 0
        stats = self._core.stats()
        return stats["bytes_in"], stats["bytes_out"]

    # -- from the client to the workload ------------------------------------------------------

    def _client_readable(self) -> None:
        try:
            # What nobody takes stays unread: then the client is told of a reset, and not of an end.
            data = self._sock.recv(1, socket.MSG_PEEK) if self._lingered else self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            self.client_gone()
            return
        if data and self._lingered:
            self._abort()
            return
        self._touched = now()
        if not data:
            self._client_ended = True
            self._set_reader(False)
            if self._unix and self._is_gone():
                self.client_gone()
            else:
                self._end_upload()
            return
        self._answered_last = False
        if self._stream is None or self._upload_failed:
            return  # the workload hung up on what is sent; what it said before is still read
        if self._lease is not None:
            self._lease.tunnel.asked()
        self._in = memoryview(data)
        self._to_stream()

    def _is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def _to_stream(self) -> None:
        stream = self._stream
        assert stream is not None  # noqa: S101 - for the type checker
        try:
            taken = stream.write(self._in, 0)
        except (EnclaviaError, ValueError):
            self._in = memoryview(b"")
            self._upload_failed = True
            if not self._client_ended:
                self._set_reader(True)  # and what else it sends is dropped
            return
        self._owner.counters.bytes_to_enclave += taken
        self._in = self._in[taken:]
        if self._in:
            self._set_reader(False)
            # Nothing is read of the client for now, so that its end is to be seen in another way.
            self._owner.watch_end(self._sock, self)
            self._register(self._write_token, _core.WRITABLE)
        elif self._client_ended:
            self._end_upload()
        else:
            self._owner.unwatch_end(self._sock)
            self._set_reader(True)

    def _stream_writable(self) -> None:
        self._unregister(self._write_token)
        if self._stream is not None and self._in:
            self._to_stream()

    def _end_upload(self) -> None:
        """The client has shut its writing side: so do we, once all before it is written."""
        if self._workload_ended:
            self._finish()
            return
        if self._in or self._stream is None:
            return
        self._owner.watch_end(self._sock, self)
        with contextlib.suppress(EnclaviaError, ValueError):
            self._stream.write_eof()  # type: ignore[union-attr]

    # -- from the workload to the client ------------------------------------------------------

    def _await_stream(self) -> None:
        self._register(self._read_token, _core.READABLE)

    def _stream_readable(self) -> None:
        self._unregister(self._read_token)
        stream = self._stream
        if stream is None or self._out or self._workload_ended:
            return
        try:
            data = stream.read(_READ, 0)
        except (EnclaviaError, ValueError) as error:
            logger.info(
                "a connection was lost: %s", error, extra=fields("connection_lost", error=error)
            )
            self._owner.counters.failed += 1
            self._abort()
            return
        if data is None:
            self._await_stream()
        elif data:
            self._touched = now()
            self._answered_last = True
            self._out = memoryview(data)
            self._to_client()
        else:
            self._end_answer()

    def _to_client(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.client_gone()
            return
        self._owner.counters.bytes_to_clients += sent
        self._out = self._out[sent:]
        self._set_writer(bool(self._out))
        if not self._out:
            self._await_stream()

    def _client_writable(self) -> None:
        self._touched = now()
        self._to_client()

    def _end_answer(self) -> None:
        """The workload has ended. The client is told so by the end of this direction alone; when
        both end at once, it was a failure."""
        self._workload_ended = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.client_gone()
            return
        if self._client_ended:
            self._finish()
            return
        if self._upload_failed:
            self._end_stream()
        self._linger = self._loop.call_later(_LINGER, self._stop_lingering)

    def _stop_lingering(self) -> None:
        """The client may read on from the socket for as long as it likes, without a slot."""
        self._lingered = True
        self._end_stream()

    # -- the end ------------------------------------------------------------------------------

    def client_gone(self) -> None:
        start = self._start
        if start is not None:
            start.cancel()
            return
        if self._own_client and not self._answered_last and not self._workload_ended:
            # Its deadline may have passed: whether the channel still leads anywhere is told by
            # whether anything else came over it meanwhile.
            tunnel = self.tunnel
            if tunnel is not None:
                self._owner.unanswered(tunnel)
        self._finish()

    @property
    def idle_since(self) -> float | None:
        """Since when the last that went through was an answer; None while one is awaited."""
        if self._core is not None:
            stats = self._core.stats()
            if stats["touched"] is not None:
                idle = stats["answered"] and not stats["pending"]
                return now() - stats["touched"] if idle else None
        if self._answered_last and not self._out and not self._in:
            return self._touched
        return None

    @property
    def tunnel(self) -> Tunnel | None:
        return None if self._lease is None else self._lease.tunnel

    def end(self) -> None:
        """At once, as a failure: for who drains no longer, and where pins have changed."""
        start = self._start
        if start is not None:
            start.cancel()
        self._abort()

    def _abort(self) -> None:
        if not self._unix and not self._over:
            # A reset, so that nobody takes what came so far for the whole.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._finish()

    def _finish(self) -> None:
        if self._over:
            return
        self._over = True
        core = self._core
        self._end_stream()
        self._set_reader(False)
        self._set_writer(False)
        self._owner.unwatch_end(self._sock)
        self._owner.tokens.remove(self._read_token)
        self._owner.tokens.remove(self._write_token)
        self._owner.tokens.remove(self._core_token)
        if self._unix:  # of TCP it might stand for an orderly end
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if core is not None:
            core.stop()
            self._take_back(core)
        self._owner.pump_ended(self)

    def _end_stream(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        for token in list(self._watches):
            self._unregister(token)
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._give_back()

    def _give_back(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            self._owner.give_back(lease)

    # -- what is waited for -------------------------------------------------------------------

    def _set_reader(self, wanted: bool) -> None:
        if wanted and not self._reader and not self._over:
            self._loop.add_reader(self._fd, self._client_readable)
        elif not wanted and self._reader:
            self._loop.remove_reader(self._fd)
        self._reader = wanted and not self._over

    def _set_writer(self, wanted: bool) -> None:
        if wanted and not self._writer and not self._over:
            self._loop.add_writer(self._fd, self._client_writable)
        elif not wanted and self._writer:
            self._loop.remove_writer(self._fd)
        self._writer = wanted and not self._over

    def _register(self, token: int, what: int) -> None:
        stream = self._stream
        if stream is not None and not self._over:
            notifier = self._owner.tokens.notifier
            self._watches[token] = stream.notify(what, notifier, token)  # type: ignore[union-attr]

    def _unregister(self, token: int) -> None:
        watch = self._watches.pop(token, None)
        if watch is not None:
            watch.end()
