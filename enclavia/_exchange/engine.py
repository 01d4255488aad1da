"""What the requests of one transport share in one process: sends each, again where that is safe.

Decides which requests are the enclave's; whether to send one again is for retry.py to decide.
Calls: _channel, _errors, _http1, _identity, _io, _pool. Locks: ``_lock``, around its counters.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from typing import Any, NamedTuple

import httpx2

from .._channel.config import ChannelConfig
from .._errors import ForeignURL, ReconnectDisabled, StateError
from .._http1.head import remembering
from .._identity.attestation import Attestation
from .._io.face import Io, now
from .._pool.kinds import PoolLimits
from .connections import Connections
from .exchange import Exchange
from .message import Message, RequestHead
from .retry import Attempt, RetryPolicy
from .timeouts import Timeouts
from .tunnel import Tunnel

__all__ = ["Engine", "Stats"]

logger = logging.getLogger("enclavia")


class Stats(NamedTuple):
    """What a client did and holds. Bytes are those on the wire, over all its channels."""

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


class Engine:
    """What the requests of one transport share in one process."""

    def __init__(
        self,
        config: ChannelConfig,
        limits: PoolLimits,
        policy: RetryPolicy,
        timeouts: Timeouts,
        io: Io[Any],
    ) -> None:
        self.pid = os.getpid()
        self.config = config
        self.connections = Connections(config, limits, io)
        self.pool = self.connections.pool
        self.policy = policy
        self.timeouts = timeouts
        self._lock = threading.RLock()  # a destructor may come by in between
        self._requests = 0
        self._retries = 0
        # Requests of one client tend to repeat, so encoded heads are cached. Per engine, not per
        # module: heads carry cookies and credentials and must die with the client.
        self._head_of = functools.lru_cache(maxsize=16)(RequestHead.of)
        self._read_head = remembering()

    # -- requests ---------------------------------------------------------------------------

    async def handle(self, request: httpx2.Request) -> Exchange:
        """Sends the request and reads the answer's head."""
        refusal = self.config.url.refusal(request.url)
        if refusal is not None:
            raise ForeignURL(refusal, request=request)
        timeouts = Timeouts.of(request, self.timeouts)
        message = Message(request, self._head_of)
        with self._lock:
            self._requests += 1
        resent = unsent = 0
        lost: Exception | None = None
        while True:
            exchange = Exchange(self.connections, message, timeouts, self._read_head)
            try:
                await exchange.start()
            except Exception as error:
                exchange.blame(error)
                await exchange.abandon()
                attempt = Attempt(
                    request=request,
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
                    request.method,
                    "no answer yet" if attempt.sent else "nothing was sent",
                    error,
                )
            except BaseException:
                await exchange.abandon()
                raise
            else:
                return exchange

    # -- about ------------------------------------------------------------------------------

    def attestation(self) -> Attestation:
        raw = self.connections.raw_attestation
        if raw is None:
            raise StateError(
                "not connected yet, so nothing was verified: make a request, enter the client "
                "with `with`, or use Client.connect"
            )
        return Attestation._from_raw(raw)

    def stats(self) -> Stats:
        self.pool.settle(now())
        pool = self.pool.stats()
        traffic = [tunnel.traffic() for tunnel in self.pool.handles()] + [
            self.connections.past.total()
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
            )

    def close(self) -> list[Tunnel]:
        """The channels are the caller's to close; those still there are returned again."""
        return self.pool.close(StateError("the client was closed"))
