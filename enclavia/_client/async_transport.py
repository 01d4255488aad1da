"""The awaiting httpx2 transport. For asyncio, uvloop and trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Self

import anyio
import anyio.to_thread
import httpx2

from .._arguments import timeout as checked_timeout
from .._channel.config import KEEPALIVE, UpgradeHeaders, Verify
from .._exchange.exchange import Exchange
from .._exchange.retry import Retries
from .._exchange.timeouts import positive
from .._identity.pins import CLOCK_LEEWAY, Pins, RootCertificate
from .._io.loops import LoopIo
from .response import Response, Timed
from .settings import DEFAULT_TIMEOUT, Settings
from .transport_base import TransportBase

__all__ = ["AsyncEnclaveTransport"]


class AsyncEnclaveTransport(httpx2.AsyncBaseTransport, TransportBase):
    """As :class:`enclavia.EnclaveTransport`, awaited. Not bound to one event loop."""

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
        TransportBase.__init__(self, settings, LoopIo)

    @classmethod
    def _of(cls, settings: Settings) -> Self:
        """For a client or an adapter of ours, which sees to redirects itself."""
        transport = cls.__new__(cls)
        TransportBase.__init__(transport, settings, LoopIo, mountable=False)
        return transport

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["settings"].config.warn_debug(stacklevel=2)
        TransportBase.__init__(self, state["settings"], LoopIo, state["mountable"])

    async def connect(self, timeout: float | None = None) -> None:
        """Connects and verifies now, where that has not been done."""
        engine = self._engine
        timeouts = engine.timeouts
        if timeout is not None:
            timeouts = timeouts._replace(connect=positive(checked_timeout("timeout", timeout)))
        await engine.connections.open(timeouts)

    async def handle_async_request(self, request: httpx2.Request) -> Response:
        exchange = await self._engine.handle(request)
        return self._response(request, exchange, AsyncResponseBody(exchange), _network_stream)

    async def aclose(self) -> None:
        tunnels = self._engine.close()
        with anyio.CancelScope(shield=True):
            for tunnel in tunnels:
                # A limiter of its own: the threads that all share may wait for this very task.
                await anyio.to_thread.run_sync(tunnel.close, 1.0, limiter=anyio.CapacityLimiter(1))

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.aclose()
            raise
        return self


def _network_stream(exchange: Exchange) -> object:
    from .upgraded import AsyncNetworkStream

    return AsyncNetworkStream(exchange)


class AsyncResponseBody(Timed, httpx2.AsyncByteStream):
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._exchange.upgraded:
            return
        if self._exchange.settled:
            for piece in self._exchange.pieces():
                yield piece
            return
        while (data := await self._exchange.next_data()) is not None:
            yield data

    async def aclose(self) -> None:
        self._ended()
        if not self._exchange.settled:
            await self._exchange.abandon()
