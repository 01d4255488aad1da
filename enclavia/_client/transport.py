"""The blocking httpx2 transport."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import httpx2

from .._arguments import timeout as checked_timeout
from .._channel.config import KEEPALIVE, UpgradeHeaders, Verify
from .._exchange.exchange import Exchange
from .._exchange.retry import Retries
from .._exchange.timeouts import positive
from .._identity.pins import CLOCK_LEEWAY, Pins, RootCertificate
from .._io.face import run
from .._io.threads import ThreadIo
from .response import Response, Timed
from .settings import DEFAULT_TIMEOUT, Settings
from .transport_base import TransportBase

__all__ = ["EnclaveTransport"]


class EnclaveTransport(httpx2.BaseTransport, TransportBase):
    """Carries the requests of an httpx2 client to one enclave, and to nothing else.

    Connects and verifies when it is first used or entered with ``with``; again, and wholly, when
    the connection was lost. Usable from any number of threads.
    """

    def __init__(
        self,
        url: str | httpx2.URL,
        *,
        pcrs: Pins = None,
        root: RootCertificate = None,
        debug_mode: bool = False,
        clock_leeway: float = CLOCK_LEEWAY,
        upgrade_headers: UpgradeHeaders = None,
        verify: Verify = True,
        proxy: str | httpx2.URL | None = None,
        timeout: httpx2.Timeout | float | None = DEFAULT_TIMEOUT,
        retries: Retries = 2,
        patience: float | None = None,
        auto_reconnect: bool = True,
        max_channels: int = 2,
        max_in_flight: int = 64,
        keepalive: float | None = KEEPALIVE,
        limits: httpx2.Limits | None = None,
    ) -> None:
        settings = Settings.build(
            url,
            pcrs=pcrs,
            root=root,
            debug_mode=debug_mode,
            clock_leeway=clock_leeway,
            upgrade_headers=upgrade_headers,
            verify=verify,
            proxy=proxy,
            timeout=timeout,
            retries=retries,
            patience=patience,
            auto_reconnect=auto_reconnect,
            max_channels=max_channels,
            max_in_flight=max_in_flight,
            keepalive=keepalive,
            limits=limits,
        )
        settings.config.warn_debug(stacklevel=2)
        TransportBase.__init__(self, settings, ThreadIo)

    @classmethod
    def _of(cls, settings: Settings) -> Self:
        """For a client or an adapter of ours, which sees to redirects itself."""
        transport = cls.__new__(cls)
        TransportBase.__init__(transport, settings, ThreadIo, mountable=False)
        return transport

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["settings"].config.warn_debug(stacklevel=2)
        TransportBase.__init__(self, state["settings"], ThreadIo, state["mountable"])

    def connect(self, timeout: float | None = None) -> None:
        """Connects and verifies now, where that has not been done."""
        engine = self._engine
        timeouts = engine.timeouts
        if timeout is not None:
            timeouts = timeouts._replace(connect=positive(checked_timeout("timeout", timeout)))
        run(engine.connections.open(timeouts))

    def handle_request(self, request: httpx2.Request) -> Response:
        exchange = run(self._engine.handle(request))
        return self._response(request, exchange, ResponseBody(exchange), _network_stream)

    def close(self) -> None:
        engine = self._engine
        try:
            for tunnel in engine.close():
                tunnel.close(1.0)
        except BaseException:  # Ctrl-C: without saying goodbye, but none stays open
            for tunnel in engine.close():
                tunnel.close()
            raise

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self


def _network_stream(exchange: Exchange) -> object:
    from .upgraded import NetworkStream

    return NetworkStream(exchange)


class ResponseBody(Timed, httpx2.SyncByteStream):
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        # An answer that is here already needs no stepping through.
        return iter(self._exchange.pieces()) if self._exchange.settled else self._stepwise()

    def _stepwise(self) -> Iterator[bytes]:
        if self._exchange.upgraded:
            return
        while (data := run(self._exchange.next_data())) is not None:
            yield data

    def close(self) -> None:
        self._ended()
        if not self._exchange.settled:
            run(self._exchange.abandon())
