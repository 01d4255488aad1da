"""The forwarder itself: listeners, channels and connections in one event loop.

Decides who may come, and whether a channel may still be used. Calls: _arguments, _channel, _core,
_errors, _exchange, _identity, _io, _pool, _records, _trust. Locks: none.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import math
import os
import resource
import select
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .. import _core
from .._arguments import timeout as checked_timeout
from .._channel.socket_path import CONTROL, HTTP, identity_suffix
from .._errors import ConnectionClosed, EnclaviaError, PcrMismatch, StateError
from .._exchange.connections import Connections
from .._exchange.engine import Engine
from .._exchange.retry import RetryPolicy
from .._exchange.tunnel import IdleStream, Tunnel
from .._identity.pins import pcr_bytes
from .._io.face import Io, now, positive
from .._io.local import LocalSocket, peer_uid
from .._io.loops import LoopIo
from .._pool.kinds import Job
from .._pool.ticket import Lease
from .._records import fields
from .accepting import Acceptor
from .control import ControlApp
from .counters import Counters
from .loop import loop_name
from .options import ForwarderSettings
from .pump import Pump
from .serving import HttpServer
from .sockets import UnixListener, listen_tcp, listen_unix
from .tokens import Tokens

if TYPE_CHECKING:
    from .._trust.receipts import Receipt

__all__ = ["Listeners", "Server"]

logger = logging.getLogger("enclavia.forwarder")

_LOOK: Final = 0.5
"""Seconds between two looks at the channels that nobody uses."""
_DOCUMENT_AGE: Final = 300.0
"""Seconds after which a document is asked for anew before it is shown to a client: the certificate
in it is valid for a few hours, and a channel may be open for longer."""
_DOCUMENT_WAIT: Final = 10.0
"""Seconds for which one is waited for; then the last one is shown, as long as it is valid."""
_IDLE: Final = 2.0
"""Seconds without a byte after an answer, from which on a draining forwarder takes a connection for
an idle one."""
_TRIES: Final = 8
_TCP_SHARE: Final = 2
"""One in so many of the process's descriptors may be connections of the TCP port."""


class Listeners:
    """The sockets of one forwarder, open before its thread begins, so that whoever starts it is
    told why one could not be had."""

    def __init__(self, settings: ForwarderSettings) -> None:
        self._ends = contextlib.ExitStack()
        path = settings.path
        with contextlib.ExitStack() as ends:
            self.stream = self._unix(ends, path)
            self.http = self._unix(ends, path + HTTP) if settings.http else None
            self.control = self._unix(ends, path + CONTROL)
            self.tcp: LocalSocket | None = None
            if settings.listen is not None:
                self.tcp = listen_tcp(*settings.listen)
                ends.callback(self.tcp.close)
            self._ends = ends.pop_all()

    def _unix(self, ends: contextlib.ExitStack, path: str) -> UnixListener:
        sock = listen_unix(path)
        ends.callback(sock.unlisten)
        return sock

    def close(self) -> None:
        """May be called again."""
        self._ends.close()


class Server:
    """All of it runs in the thread of one event loop; what other threads ask for is given to that
    loop as a call."""

    def __init__(self, settings: ForwarderSettings, listeners: Listeners) -> None:
        self.settings = settings
        self.counters = Counters()
        self.io: Io[Any] = LoopIo()
        self.listeners = listeners
        self.draining = False
        self._deadline = math.inf
        own = settings.settings
        self.connections = Connections(own.config, own.limits, self.io)
        self.pool = self.connections.pool
        self.pinning = self.connections.pinning
        self.made = self.connections.connecting.made
        self.engine = Engine(
            own.config, RetryPolicy(own.retries), own.timeouts, self.connections, one_user=False
        )
        self.tokens = Tokens()
        self._loop = asyncio.get_running_loop()
        self._pumps: dict[Pump, Acceptor] = {}
        # With the receipt of the document that says it: a later one may say something else.
        self._identities: weakref.WeakKeyDictionary[Tunnel, tuple[Receipt | None, str]] = (
            weakref.WeakKeyDictionary()
        )
        self._identity_sockets: dict[str, UnixListener] = {}
        self._listening: dict[LocalSocket, Acceptor] = {}
        self._ends: select.epoll | None = None
        self._ended: dict[int, Pump] = {}
        self._all_gone = asyncio.Event()
        self._http: list[HttpServer] = []
        self._looking: asyncio.Task[None] | None = None

    # -- beginning and end --------------------------------------------------------------------

    async def start(self) -> None:
        self._watch_ends()
        self._listen(self.listeners.stream, self._accepted)
        control = HttpServer(ControlApp(self), keep_alive=True)
        await self._serve(self.listeners.control, control)
        if self.listeners.http is not None:
            await self._serve(self.listeners.http, self._proxy(None))
        if self.listeners.tcp is not None:
            # Others than this user can fill it, who must not take what the sockets need.
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = None if limit == resource.RLIM_INFINITY else max(1, limit // _TCP_SHARE)
            if self.settings.way == "stream":
                self._listen(self.listeners.tcp, self._accepted, most)
            else:
                await self._serve(self.listeners.tcp, self._proxy(self.settings.token), most)
        self._looking = self._loop.create_task(self._look())

    def _proxy(self, token: bytes | None) -> HttpServer:
        from .proxy import ProxyApp

        app = ProxyApp(self.engine, self.counters, token)
        return HttpServer(app, short_app=app)

    async def _serve(self, sock: LocalSocket, server: HttpServer, most: int | None = None) -> None:
        self._http.append(server)
        await server.start()

        def take(accepted: LocalSocket, acceptor: Acceptor) -> None:
            if self.admits(accepted):
                server.take(accepted, acceptor.over)
            else:
                accepted.close()
                acceptor.over()

        self._listen(sock, take, most)

    def end_within(self, seconds: float) -> None:
        """How long connections may go on from now on, at most. The least of all calls counts: who
        stops a forwarder that drains wants it to end sooner."""
        self._deadline = min(self._deadline, now() + seconds)

    async def drain(self) -> None:
        """Takes no new connection, and lets those that are there come to their end, until the
        deadline of :meth:`end_within`."""
        self.draining = True
        for sock in list(self._listening):
            self._unlisten(sock)
        for sock in self._identity_sockets.values():
            sock.unlisten()
        self._identity_sockets.clear()
        self.listeners.close()
        self._http[0].close_connections()  # the control connections: their clients go elsewhere
        began = now()
        while (self._pumps or any(server.busy for server in self._http)) and now() < self._deadline:
            for pump in list(self._pumps):
                idle = pump.idle_since
                if idle is not None and now() - idle >= _IDLE:
                    pump.end()
            self._all_gone.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), 0.1)
        if self._pumps:
            logger.warning(
                "%d connections were cut after %.1f s",
                len(self._pumps),
                now() - began,
                extra=fields("connections_cut"),
            )

    async def close(self) -> None:
        self.draining = True
        if self._looking is not None:
            self._looking.cancel()
        for sock in list(self._listening):
            self._unlisten(sock)
        for sock in self._identity_sockets.values():
            sock.unlisten()
        self._identity_sockets.clear()
        for pump in list(self._pumps):
            pump.end()
        while self._pumps:  # those that were beginning end with their tasks
            await asyncio.sleep(0)
        await asyncio.gather(*(server.stop() for server in self._http))
        self.listeners.close()
        for tunnel in self.engine.close():
            tunnel.close(0.2)
        self.tokens.close()
        if self._ends is not None:
            self._loop.remove_reader(self._ends.fileno())
            self._ends.close()

    # -- listening ----------------------------------------------------------------------------

    def _listen(
        self,
        sock: LocalSocket,
        take: Callable[[LocalSocket, Acceptor], None],
        most: int | None = None,
    ) -> None:
        self._listening[sock] = Acceptor(sock, take, self.counters, most)

    def _unlisten(self, sock: LocalSocket) -> None:
        acceptor = self._listening.pop(sock, None)
        if acceptor is not None:
            acceptor.close()

    def _accepted(self, sock: LocalSocket, acceptor: Acceptor, identity: str | None = None) -> None:
        if not self.admits(sock):
            sock.close()
            acceptor.over()
            return
        self.counters.accepted += 1
        self.counters.active += 1
        self._pumps[Pump(self, sock, identity, own_client=identity is not None)] = acceptor

    def admits(self, sock: LocalSocket) -> bool:
        """Whether the process at the other end may use this forwarder. A TCP port says nothing of
        who comes: there it is the token that decides, or nobody (way="stream")."""
        if sock.family != socket.AF_UNIX:
            return True
        try:
            uid = peer_uid(sock)
        except OSError as error:
            logger.warning(
                "a connection of an unknown user was refused: %s",
                error,
                extra=fields("user_refused", error=error),
            )
        else:
            if uid in (os.geteuid(), 0):
                return True
            logger.warning("a connection of user %d was refused", uid, extra=fields("user_refused"))
        self.counters.refused += 1
        return False

    # -- channels -----------------------------------------------------------------------------

    def identity(self, tunnel: Tunnel) -> str:
        """What the path of its socket ends with."""
        receipt, known = self._identities.get(tunnel, (None, None))
        if known is None or receipt is not tunnel.receipt:
            known = identity_suffix(pcr_bytes(tunnel.core.attestation()))
            self._identities[tunnel] = tunnel.receipt, known
        return known

    def lease_check(self, tunnel: Tunnel) -> None:
        """Of every channel, before anything goes over it: pins may have changed since it was
        verified. Raises, and ends the channel, where it does not match them."""
        if self.pinning.holds(tunnel):
            return
        self._refuse(tunnel)
        raise PcrMismatch(
            "the enclave's PCRs match no pin: the forwarder's pins were changed", retryable=True
        )

    def _refuse(self, tunnel: Tunnel) -> None:
        tunnel.retire()
        tunnel.close(0)
        for pump in list(self._pumps):
            if pump.tunnel is tunnel:
                pump.end()

    async def lease(self, identity: str | None) -> Lease[Tunnel, IdleStream]:
        for _ in range(_TRIES):
            lease = await self.connections.obtain(Job(), self.engine.timeouts)
            if not self.pinning.holds(lease.tunnel):
                self._refuse(lease.tunnel)
                self.give_back(lease)
                continue
            if identity is not None and self.identity(lease.tunnel) != identity:
                self.give_back(lease)
                self._close_control(identity)
                raise ConnectionClosed(
                    "the enclave has another identity than the one that the client verified: "
                    "nothing was sent"
                )
            return lease
        raise PcrMismatch("the enclave's PCRs match no pin: the forwarder's pins were changed")

    async def expect_usable(self, tunnel: Tunnel, since: float) -> None:
        identity = self.identity(tunnel)
        await self.connections.expect_usable(tunnel, since, self.engine.timeouts)
        if self.identity(tunnel) != identity:
            raise ConnectionClosed("the channel's fresh document is of another identity")

    def give_back(self, lease: Lease[Tunnel, IdleStream]) -> None:
        self.pool.release(lease, None, now())

    def unanswered(self, tunnel: Tunnel) -> None:
        for pump in self._pumps:
            if pump.tunnel is tunnel:
                pump.note_asked()
        self.connections.unanswered(tunnel)

    async def connect(self, timeout: float | None) -> None:
        """Connects and verifies, where that has not been done."""
        timeouts = self.engine.timeouts
        if timeout is not None:
            timeouts = timeouts._replace(connect=positive(checked_timeout("timeout", timeout)))
        await self.connections.open(timeouts)

    async def describe(self) -> dict[str, object]:
        """A verified channel, for a client that will verify its document too, and the socket that
        leads to channels of its identity."""
        if self.draining:
            raise ConnectionClosed("the forwarder is ending")
        tunnel = self._live()
        if tunnel is None:
            lease = await self.lease(None)
            tunnel = lease.tunnel
            self.give_back(lease)
        raw = await self._document(tunnel)
        self.lease_check(tunnel)
        suffix = self.identity(tunnel)
        self._listen_for(suffix)
        return {
            "url": str(self.engine.config.url),
            "identity": suffix,
            "document": base64.b64encode(_bytes(raw["document"])).decode(),
            "handshake_hash": base64.b64encode(tunnel.core.handshake_hash).decode(),
            "pid": os.getpid(),
        }

    async def _document(self, tunnel: Tunnel) -> _core.RawAttestation:
        present, validity = now(), tunnel.validity
        old = present - validity.verified_at > _DOCUMENT_AGE or present >= validity.renew_at
        turn = tunnel.take_turn() if old else None
        if turn is not None:
            try:
                fresh = await self.connections.renewal.attest(tunnel, _DOCUMENT_WAIT)
            finally:
                turn.give_back()
            if fresh is not None:
                return fresh
        return tunnel.core.attestation()

    def _live(self) -> Tunnel | None:
        for tunnel in self.pool.handles():
            # One that is open and has no receipt is being asked about.
            if tunnel.alive and tunnel.receipt is not None and self.pinning.holds(tunnel):
                return tunnel
        return None

    def _listen_for(self, suffix: str) -> None:
        if self.draining:
            return
        there = self._identity_sockets.get(suffix)
        if there is not None:
            if there.is_there:
                return
            self._retire_identity(suffix)  # whoever clears old files away has removed it
        sock = listen_unix(self.settings.path + suffix)
        self._identity_sockets[suffix] = sock
        self._listen(sock, lambda accepted, acceptor: self._accepted(accepted, acceptor, suffix))

    def _close_control(self, suffix: str) -> None:
        """Clients that were shown this identity ask again before their next connection."""
        self._http[0].close_connections(suffix)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            try:
                await self._renew_pins()
                self.pool.settle(now())
                self._retire_identities()
            except (Exception, asyncio.CancelledError) as error:
                if _is_cancelled():
                    raise
                # Whatever it is, looking goes on: over connections that there are, nobody else
                # would notice that the pins are others by now. Those end of which it is not known.
                logger.exception(
                    "channels end, since it is not known whether their pins are in force",
                    extra=fields("pins_unavailable", error=error),
                )
                self._refuse_unless(lambda tunnel: False)

    async def _renew_pins(self) -> None:
        """Where it is time to: over connections that there are, requests go that nobody here sees.
        Ends those whose channel matches the pins no more, and all where there are none."""
        try:
            await self.connections.renew_pins(self.engine.timeouts)
        except EnclaviaError as error:
            if self.made:
                logger.warning(
                    "channels end, since no pins are in force: %s",
                    error,
                    extra=fields("pins_unavailable", error=error),
                )
            self._refuse_unless(lambda tunnel: False)
        else:
            self._refuse_unless(self.pinning.holds)

    def _refuse_unless(self, pinned: Callable[[Tunnel], bool]) -> None:
        # Not only those that the pool still gives out: one that it has retired may carry streams.
        for tunnel in list(self.made):
            if tunnel.core.state == "open" and not pinned(tunnel):
                self._refuse(tunnel)

    def _retire_identities(self) -> None:
        live = {self.identity(tunnel) for tunnel in self.pool.handles() if tunnel.alive}
        for suffix in list(self._identity_sockets):
            if suffix in live:
                continue
            self._close_control(suffix)
            if live:  # the enclave has another identity now
                self._retire_identity(suffix)

    def _retire_identity(self, suffix: str) -> None:
        sock = self._identity_sockets.pop(suffix)
        self._unlisten(sock)
        sock.unlisten()

    def reload(self, settings: ForwarderSettings) -> None:
        """Other pins from now on. Channels that do not match them end, and everything on them."""
        self.settings = settings
        self.counters.reloads += 1
        config = settings.settings.config
        self.engine.config = config
        self.pinning.reconfigure(config)
        for tunnel in list(self.made):
            if tunnel.core.state == "connecting":
                tunnel.close(0)  # by the old pins
        self._refuse_unless(self.pinning.holds)
        self.pool.settle(now())
        self._retire_identities()

    # -- what connections ask for -------------------------------------------------------------

    def _watch_ends(self) -> None:
        if hasattr(select, "epoll"):
            self._ends = select.epoll()
            self._loop.add_reader(self._ends.fileno(), self._some_ended)

    def watch_end(self, sock: LocalSocket, pump: Pump) -> None:
        if self._ends is not None and sock.fileno() not in self._ended:
            self._ends.register(sock.fileno(), 0)  # EPOLLHUP and EPOLLERR are always told
            self._ended[sock.fileno()] = pump

    def unwatch_end(self, sock: LocalSocket) -> None:
        if self._ends is not None and self._ended.pop(sock.fileno(), None) is not None:
            self._ends.unregister(sock.fileno())

    def _some_ended(self) -> None:
        if self._ends is None:
            return
        for descriptor, _ in self._ends.poll(0):
            pump = self._ended.pop(descriptor, None)
            self._ends.unregister(descriptor)
            if pump is not None:
                pump.client_gone()

    def pump_ended(self, pump: Pump) -> None:
        acceptor = self._pumps.pop(pump)
        self.counters.active -= 1
        acceptor.over()
        if not self._pumps:
            self._all_gone.set()

    # -- about --------------------------------------------------------------------------------

    def health(self) -> tuple[bool, dict[str, object]]:
        """Whether new connections are served, as far as is known."""
        self.pool.settle(now())
        stats = self.engine.stats()
        error = self.pool.last_error
        status = "ok"
        if self.draining:
            status = "draining"
        elif error is not None:
            status = "down"
        elif not stats.channels:
            status = "idle"
        told: dict[str, object] = {
            "status": status,
            "channels": stats.channels,
            "event_loop": loop_name(self._loop),
        }
        if error is not None:
            told["error"] = str(error)
        return status in ("ok", "idle"), told

    def measures(self) -> list[tuple[str, str, bool, float]]:
        stats, counters = self.engine.stats(), self.counters
        moved = [pump.moved for pump in self._pumps]
        to_enclave = counters.bytes_to_enclave + sum(there for there, _ in moved)
        to_clients = counters.bytes_to_clients + sum(back for _, back in moved)
        return [
            ("connections", "Connections taken", True, counters.accepted),
            ("connections_active", "Connections open now", False, counters.active),
            ("connections_refused", "Refused: another user's", True, counters.refused),
            ("connections_failed", "Lost, or never served", True, counters.failed),
            ("http_requests", "Requests of the HTTP way", True, counters.http_requests),
            ("http_refused", "Of these, refused here", True, counters.http_refused),
            ("bytes_to_enclave", "Payload, stream way", True, to_enclave),
            ("bytes_to_clients", "Payload, stream way", True, to_clients),
            ("out_of_descriptors", "Accepts put off", True, counters.out_of_descriptors),
            ("reloads", "Pins replaced", True, counters.reloads),
            ("channels", "Verified channels open now", False, stats.channels),
            ("connects", "Channels verified", True, stats.connects),
            ("waiting", "Connections that wait for a slot", False, stats.waiting),
            ("draining", "1 while it ends", False, float(self.draining)),
        ]


def _is_cancelled() -> bool:
    """Whether somebody has cancelled this task: a function of the caller's that gives pins may end
    as one that was cancelled, too."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise StateError("expected an attestation document, got none")
    return value
