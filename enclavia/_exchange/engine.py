"""What the requests of one transport have in common in one process: sends each, again where that is
safe. The connections may be the transport's own, or shared with other transports (shared.py); what
carries cookies, credentials and counts is always its own.

Decides which requests may go to the enclave; retry.py decides whether one is sent again. Calls:
_channel, _errors, _identity, _io, _pool, _records, _text, _trust. Locks: ``_lock``, around its
counters.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import httpx2

from .._channel.config import ChannelConfig
from .._errors import ForeignURL, ReconnectDisabled, StateError
from .._io.face import now, run
from .._pool.pool import Pool
from .._records import fields
from .._text import table_of
from . import watching
from .connections import Connections, Use
from .exchange import Exchange
from .message import Message
from .remembering import remembering_answers, remembering_requests
from .retry import Attempt, RetryPolicy
from .timeouts import Timeouts
from .tunnel import IdleStream, Tunnel

if TYPE_CHECKING:
    from .._identity.attestation import Attestation
    from .._trust.receipts import Receipt
    from .shared import SharedConnections
    from .tracing import Trace

__all__ = ["Engine", "Stats"]

logger = logging.getLogger("enclavia")


class Stats(NamedTuple):
    """What a client did and holds. Bytes are those on the wire, over all its channels.

    ``shared``: the client is a copy, and everything but ``requests`` and ``retries`` counts for all
    copies in this process with which it shares its channels. ``upgrades_followed``: how often other
    pins came into force because of an authorised upgrade.
    """

    channels: int
    streams_active: int
    streams_idle: int
    waiting: int
    connects: int
    reconnects: int
    requests: int
    retries: int
    bytes_in: int
    bytes_out: int
    reattestations: int
    shared: bool
    upgrades_followed: int = 0

    def _repr_html_(self) -> str:
        rows = [(name.replace("_", " "), str(value)) for name, value in self._asdict().items()]
        return table_of("Client statistics", rows)


class Engine:
    """What the requests of one transport have in common in one process."""

    def __init__(
        self,
        config: ChannelConfig,
        policy: RetryPolicy,
        timeouts: Timeouts,
        connections: Connections | SharedConnections,
        *,
        one_user: bool = True,
    ) -> None:
        """``one_user``: the requests are of one program, which has their credentials anyway. False:
        they are of many users, and no credential stays here after its request."""
        self.pid = os.getpid()
        self.config = config
        self._shared: SharedConnections | None = None
        self._own: Use | None = None
        if isinstance(connections, Connections):
            self._own = Use(connections)
        else:
            self._shared = connections
        # Requests over shared connections, which end with this engine although those do not.
        self._running: dict[weakref.ref[Exchange], None] = {}
        self._closed = False
        self.policy = policy
        self.timeouts = timeouts
        self._lock = threading.RLock()  # a destructor may come by in between
        self._requests = 0
        self._retries = 0
        # The URL that was found to lead to this enclave last. URLs do not change, and requests that
        # repeat have the same one: it is not looked at again.
        self._own_url: httpx2.URL | None = None
        # Per engine, not per module: heads carry cookies and credentials and must die with the
        # client.
        self._head_of = remembering_requests(credentials=one_user)
        self._read_head = remembering_answers(credentials=one_user)

    def use(self) -> Use:
        """The connections that a request takes now, to be held until its end."""
        if self._own is not None:
            return self._own
        if self._shared is None or self._closed:
            raise StateError("the client was closed")
        return self._shared.take()

    @property
    def connections(self) -> Connections:
        return self.use().connections

    @property
    def pool(self) -> Pool[Tunnel, IdleStream]:
        return self.use().connections.pool

    # -- requests ---------------------------------------------------------------------------

    async def connect(self, timeouts: Timeouts) -> None:
        """Connects and verifies, where that has not been done."""
        __tracebackhide__ = True
        use = self.use()
        try:
            await use.connections.open(timeouts)
        finally:
            del use  # or an error that somebody keeps would hold it, by its traceback

    async def handle(self, request: httpx2.Request) -> Exchange:
        """Sends the request and reads the answer's head, awaited. A request over a connection that
        was kept, whose answer comes in one piece, takes one wait and no steps before it."""
        __tracebackhide__ = True
        message, timeouts, trace = self._accepted(request)
        use = self._own
        if use is None or trace is not None:
            return await self._send(message, timeouts, trace)
        exchange = Exchange(use, message, timeouts, self._read_head)
        try:
            if exchange.begin() and exchange.awaits_answer and await exchange.wait_awaited():
                return exchange
            return await self._send(message, timeouts, None, exchange)
        except BaseException:
            # Also where the task is cancelled while it waits.
            exchange.drop()
            raise

    def handle_blocking(self, request: httpx2.Request) -> Exchange:
        """As :meth:`handle`, in a thread that blocks. A request over a connection that was kept,
        whose answer comes in one piece, needs no coroutine; any other goes on in one."""
        __tracebackhide__ = True
        message, timeouts, trace = self._accepted(request)
        use = self._own
        if use is None or trace is not None or not use.connections.io.reads_by_blocking:
            return run(self._send(message, timeouts, trace))
        exchange = Exchange(use, message, timeouts, self._read_head)
        try:
            if exchange.begin() and exchange.awaits_answer and exchange.wait():
                return exchange
            return run(self._send(message, timeouts, None, exchange))
        except BaseException:
            # Also by Ctrl-C before the coroutine has taken charge of it: whoever keeps the error
            # would keep the connection.
            exchange.drop()
            raise

    def _accepted(self, request: httpx2.Request) -> tuple[Message, Timeouts, Trace | None]:
        """What is sent, where the request may go to the enclave."""
        if request.url is not self._own_url:
            self._expect_own(request)
        timeouts = Timeouts.of(request, self.timeouts)
        message = Message.of(request, self._head_of)
        with self._lock:
            self._requests += 1
        trace: Trace | None = None
        if watching.watcher is not None or "trace" in request.extensions:
            from .tracing import trace_of  # for few programs, and slow to import

            trace = trace_of(request, self.connections)
        return message, timeouts, trace

    def begin(
        self,
        method: str,
        target: bytes,
        headers: tuple[tuple[bytes, bytes], ...],
        content: bytes,
        request: Callable[[], httpx2.Request],
    ) -> Exchange | None:
        """As :meth:`handle`, for a caller that has no task: sends a request to the enclave over a
        connection that was kept, which takes no waiting. Returns None, with nothing sent, where
        there is no such connection, or where requests are traced. ``request``: makes an object of
        the request, which the retry policy needs to decide about sending it again."""
        use = self._own
        if use is None or watching.watcher is not None:
            return None
        message = Message(method, target, headers, content, self._head_of, request)
        exchange = Exchange(use, message, self.timeouts, self._read_head)
        if not exchange.begin():
            return None
        with self._lock:
            self._requests += 1
        return exchange

    async def finish(self, begun: Exchange) -> Exchange:
        """Waits for the answer's head of what :meth:`begin` sent, and sends it again where that is
        safe."""
        __tracebackhide__ = True
        return await self._send(begun.message, self.timeouts, None, begun)

    async def _send(
        self,
        message: Message,
        timeouts: Timeouts,
        trace: Trace | None,
        begun: Exchange | None = None,
    ) -> Exchange:
        resent = unsent = 0
        lost: Exception | None = None
        while True:
            use = self._own or self.use()
            if begun is not None:
                exchange, begun = begun, None
            elif trace is None:
                exchange = Exchange(use, message, timeouts, self._read_head)
            else:
                exchange = self._traced(use, message, timeouts, trace, (resent + unsent, resent))
            if self._shared is not None:
                self._remember(exchange)
            try:
                await exchange.start()
            except Exception as error:
                __tracebackhide__ = True
                exchange.blame(error)
                await exchange.abandon()
                if self._closed:
                    raise StateError("the client was closed") from error
                attempt = Attempt(
                    request=message.request,
                    error=error,
                    sent=exchange.sent,
                    answered=exchange.answered,
                    replayable=message.replayable,
                )
                if lost is not None and isinstance(error, ReconnectDisabled):
                    raise lost from None  # that it may not be sent again is no news to anybody
                if not exchange.leased or not self.policy.again(attempt, resent, unsent):
                    raise
                lost = error if attempt.sent else lost
                resent, unsent = resent + attempt.sent, unsent + (not attempt.sent)
                with self._lock:
                    self._retries += 1
                logger.info(
                    "sending a %s request again (%s): %s",
                    message.verb,
                    "no answer yet" if attempt.sent else "nothing was sent",
                    error,
                    extra=fields(
                        "request_sent_again",
                        self.config.url.authority,
                        attempt=resent + unsent + 1,
                        error=error,
                    ),
                )
            except BaseException:
                await exchange.abandon()
                raise
            else:
                return exchange

    def _expect_own(self, request: httpx2.Request) -> None:
        url = request.url
        refusal = self.config.url.refusal(url)
        if refusal is not None:
            raise ForeignURL(refusal, request=request)
        self._own_url = url

    def _traced(
        self,
        use: Use,
        message: Message,
        timeouts: Timeouts,
        trace: Trace,
        earlier: tuple[int, int],
    ) -> Exchange:
        from .traced import TracedExchange  # as above

        return TracedExchange(use, message, timeouts, self._read_head, trace, earlier)

    def _remember(self, exchange: Exchange) -> None:
        # Only built-in functions, so that a destructor or a signal's handler interrupts none.
        self._running[weakref.ref(exchange, self._running.pop)] = None
        if self._closed:  # meanwhile, by another thread
            exchange.end(StateError("the client was closed"))

    # -- about ------------------------------------------------------------------------------

    def known(self) -> Connections | None:
        """To look at. None: a copy's, where no copy has used any yet."""
        if self._own is not None:
            return self._own.connections
        return None if self._shared is None else self._shared.known()

    def attestation(self) -> Attestation:
        connections = self.known()
        raw = None if connections is None else connections.verified.newest
        if raw is None:
            raise StateError(
                "not connected yet, so nothing was verified: make a request, enter the client "
                "with `with`, or use Client.connect"
            )
        from .._identity.attestation import Attestation  # no request needs it

        return Attestation._from_raw(raw, self.config.names)

    def receipts(self) -> tuple[Receipt, ...]:
        connections = self.known()
        return () if connections is None else tuple(connections.verified.receipts.copy())

    def stats(self) -> Stats:
        connections = self.known()
        if connections is None:
            return Stats(0, 0, 0, 0, 0, 0, self._requests, self._retries, 0, 0, 0, shared=True)
        connections.pool.settle(now())
        pool = connections.pool.stats()
        traffic = [tunnel.traffic() for tunnel in connections.pool.handles()] + [
            connections.connecting.past.total()
        ]
        with self._lock:
            return Stats(
                channels=pool.channels,
                streams_active=pool.streams_active,
                streams_idle=pool.streams_idle,
                waiting=pool.waiting,
                connects=pool.connects,
                reconnects=pool.reconnects,
                requests=self._requests,
                retries=self._retries,
                bytes_in=sum(bytes_in for bytes_in, _ in traffic),
                bytes_out=sum(bytes_out for _, bytes_out in traffic),
                reattestations=connections.verified.fresh,
                shared=self._shared is not None,
                upgrades_followed=connections.pinning.upgrades_followed,
            )

    @property
    def closed(self) -> bool:
        return self._closed or (self._own is not None and self._own.connections.pool.closed)

    def close(self) -> list[Tunnel]:
        """The channels are the caller's to close; those still there are returned again. Shared
        ones are none of these: they end by themselves when nobody has used them for a while."""
        if self._own is not None:
            return self._own.connections.pool.close(StateError("the client was closed"))
        self._closed = True
        for reference in list(self._running):
            exchange = reference()
            if exchange is not None:
                exchange.end(StateError("the client was closed"))
        if self._shared is not None:
            self._shared.close()
        return []
