"""``AsyncClient``: httpx2's, talking to one enclave.

Decides which requests are sent by fast_path.py; httpx2 sends the others. Calls: _channel, _io,
_public. Locks: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, Unpack

import httpx2

from .._channel.options import takes
from .._io.connecting import Connecting
from .._public import public
from .configured import Configured
from .fast_path import send_simple_awaited
from .files import AsyncFiles
from .httpx2_inside import OwnClient, explains_failures, is_simple
from .options import (
    CLIENT_DEFAULTS,
    ClientOptions,
    client_options,
    refuse_unsupported,
    transport_options,
)
from .settings import Settings

if TYPE_CHECKING:
    from .async_transport import AsyncEnclaveTransport
    from .httpx2_inside import Auth, Follow

__all__ = ["AsyncClient"]


@public
@explains_failures
class AsyncClient(Configured, AsyncFiles, OwnClient, httpx2.AsyncClient):
    """As :class:`enclavia.Client`, awaited: an :class:`httpx2.AsyncClient`.

    Its options are those of :class:`enclavia.Client`, whose description says what each one means:
    pcrs, root, debug_mode, clock_leeway, trust_upgrades, on_attestation (which may be async),
    upgrade_headers, verify, proxy, timeout, retries, patience, auto_reconnect, max_channels,
    max_in_flight, limits, via, keepalive, shared_expiry; and as httpx2's auth, params, headers,
    cookies, follow_redirects, max_redirects, event_hooks, default_encoding and base_url.
    """

    if TYPE_CHECKING:
        _enclave: AsyncEnclaveTransport

    @takes(ClientOptions, CLIENT_DEFAULTS, others="unsupported")
    def __init__(self, url: str | httpx2.URL, **options: Unpack[ClientOptions]) -> None:
        from .async_transport import AsyncEnclaveTransport  # brings anyio, which is slow to import

        refuse_unsupported(type(self), options)
        settings = Settings.build(url, **transport_options(options))
        settings.config.warn_debug()
        super().__init__(
            transport=AsyncEnclaveTransport._of(settings),
            **client_options(settings.config.url, options),
        )
        self._prepare()

    @classmethod
    def connect(cls, url: str | httpx2.URL, **keywords: Unpack[ClientOptions]) -> Connecting[Self]:
        """A client that is connected, and its enclave verified: to be awaited, or entered with
        ``async with``."""
        client = cls(url, **keywords)

        async def start() -> Self:
            __tracebackhide__ = True
            try:
                await client._enclave.connect()
            except BaseException:
                await client.aclose()
                raise
            return client

        return Connecting(cls.__name__, start)

    async def send(
        self,
        request: httpx2.Request,
        *,
        stream: bool = False,
        auth: Auth = httpx2.USE_CLIENT_DEFAULT,
        follow_redirects: Follow = httpx2.USE_CLIENT_DEFAULT,
    ) -> httpx2.Response:
        __tracebackhide__ = True
        if isinstance(request.stream, httpx2.AsyncByteStream) and is_simple(
            self, request, auth, follow_redirects
        ):
            return await send_simple_awaited(self, request, stream)
        self._expect_usable()
        return await super().send(
            request, stream=stream, auth=auth, follow_redirects=follow_redirects
        )

    async def __aenter__(self) -> Self:
        __tracebackhide__ = True
        self._expect_unopened()
        try:
            return await super().__aenter__()
        except BaseException:
            await self.aclose()
            raise
