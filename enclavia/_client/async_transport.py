"""The awaiting httpx2 transport. For asyncio, uvloop and trio.

Decides nothing itself: it awaits the engine. Calls: _channel, _io, _public. Locks: none.
"""

from __future__ import annotations

from typing import Final, Self, Unpack

import httpx2

from .._channel.options import takes
from .._io.loops import LoopIo, run_blocking
from .._public import public
from .options import TRANSPORT_DEFAULTS, TransportOptions
from .response import AsyncResponseBody, Response
from .settings import Settings
from .transport_base import TransportBase

__all__ = ["AsyncEnclaveTransport"]

_PLAIN: Final = httpx2.AsyncHTTPTransport.handle_async_request


@public
class AsyncEnclaveTransport(TransportBase, httpx2.AsyncBaseTransport):
    """As :class:`enclavia.EnclaveTransport`, awaited. Not bound to one event loop."""

    _make_io = LoopIo
    _awaits = True
    _body = AsyncResponseBody

    @takes(TransportOptions, TRANSPORT_DEFAULTS)
    def __init__(self, url: str | httpx2.URL, **options: Unpack[TransportOptions]) -> None:
        settings = Settings.build(url, "AsyncEnclaveTransport.__init__", **options)
        settings.config.warn_debug()
        super().__init__(settings)

    async def connect(self, timeout: float | None = None) -> None:
        """Connects and verifies now, where that has not been done."""
        __tracebackhide__ = True
        await self._connect(timeout)

    async def handle_async_request(self, request: httpx2.Request) -> Response:
        """Sends a request; its answer is returned once the head is there, and read later."""
        __tracebackhide__ = True
        theirs = httpx2.AsyncHTTPTransport
        if theirs.handle_async_request is _PLAIN:
            return await self._handle(request)
        from .instrumented import instrumented  # for few programs

        return await instrumented(theirs, "handle_async_request", self, self._handle)(request)

    async def _handle(self, request: httpx2.Request) -> Response:
        __tracebackhide__ = True
        return self._response(request, await self._engine.handle(request))

    async def aclose(self) -> None:
        """Closes all connections and channels; requests still running fail."""
        for tunnel in self._engine.close():
            await run_blocking(tunnel.close, 1.0)

    async def __aenter__(self) -> Self:
        __tracebackhide__ = True
        try:
            await self.connect()
        except BaseException:
            await self.aclose()
            raise
        return self
