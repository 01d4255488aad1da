"""``AsyncClient``: httpx2's, talking to one enclave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

import httpx2

from .._channel.config import KEEPALIVE, UpgradeHeaders, Verify
from .._exchange.engine import Stats
from .._exchange.retry import Retries
from .._identity.attestation import Attestation
from .._identity.pins import CLOCK_LEEWAY, Pins, RootCertificate
from .._io.connecting import Connecting
from .base import ClientOptions, OwnClient, base_url_of, from_pickle, refuse_unsupported, to_pickle
from .fast_path import dress, is_plain
from .request_cache import RequestCache, timeout_of
from .response import Timed
from .settings import DEFAULT_TIMEOUT, Settings

if TYPE_CHECKING:
    from httpx2._client import EventHook
    from httpx2._types import AuthTypes, CookieTypes, HeaderTypes, QueryParamTypes, TimeoutTypes

    from .async_transport import AsyncEnclaveTransport
    from .fast_path import Auth, Follow

__all__ = ["AsyncClient"]


class AsyncClient(OwnClient, httpx2.AsyncClient):
    """As :class:`enclavia.Client`, awaited: an :class:`httpx2.AsyncClient`."""

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
        timeout: TimeoutTypes = DEFAULT_TIMEOUT,
        retries: Retries = 2,
        patience: float | None = None,
        auto_reconnect: bool = True,
        max_channels: int = 2,
        max_in_flight: int = 64,
        keepalive: float | None = KEEPALIVE,
        limits: httpx2.Limits | None = None,
        auth: AuthTypes | None = None,
        params: QueryParamTypes | None = None,
        headers: HeaderTypes | None = None,
        cookies: CookieTypes | None = None,
        follow_redirects: bool = False,
        max_redirects: int = 20,
        event_hooks: Mapping[str, list[EventHook]] | None = None,
        base_url: httpx2.URL | str = "",
        default_encoding: str | Callable[[bytes], str | None] = "utf-8",
        **unsupported: object,
    ) -> None:
        from .async_transport import AsyncEnclaveTransport

        refuse_unsupported(type(self), unsupported)
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
        self._known_requests = RequestCache()
        super().__init__(
            transport=AsyncEnclaveTransport._of(settings),
            trust_env=False,
            auth=auth,
            params=params,
            headers=headers,
            cookies=cookies,
            timeout=timeout_of(timeout),
            follow_redirects=follow_redirects,
            max_redirects=max_redirects,
            event_hooks=event_hooks,
            base_url=base_url_of(settings, base_url),
            default_encoding=default_encoding,
        )

    @classmethod
    def connect(cls, url: str | httpx2.URL, **keywords: Unpack[ClientOptions]) -> Connecting[Self]:
        """A client that is connected, and its enclave verified: to be awaited, or entered with
        ``async with``."""
        client = cls(url, **keywords)

        async def start() -> Self:
            try:
                await client._enclave.connect()
            except BaseException:
                await client.aclose()
                raise
            return client

        return Connecting(cls.__name__, start)

    @property
    def _enclave(self) -> AsyncEnclaveTransport:
        return cast("AsyncEnclaveTransport", self._transport)

    def build_request(
        self, method: str, url: httpx2.URL | str, **options: object
    ) -> httpx2.Request:
        return self._known_requests.build(self, super().build_request, method, url, options)

    async def send(
        self,
        request: httpx2.Request,
        *,
        stream: bool = False,
        auth: Auth = httpx2.USE_CLIENT_DEFAULT,
        follow_redirects: Follow = httpx2.USE_CLIENT_DEFAULT,
    ) -> httpx2.Response:
        if not (
            isinstance(request.stream, httpx2.AsyncByteStream)
            and is_plain(self, request, auth, follow_redirects)
        ):
            self._expect_usable()
            return await super().send(
                request, stream=stream, auth=auth, follow_redirects=follow_redirects
            )
        begun = time.perf_counter()
        try:
            response = await self._enclave.handle_async_request(request)
        except httpx2.RequestError as error:
            error.request = request
            raise
        cast(Timed, response.stream).begun = begun
        try:
            dress(self, request, response)
            if not stream:
                await response.aread()
        except BaseException:
            await response.aclose()
            raise
        return response

    @property
    def attestation(self) -> Attestation:
        """What was verified when the newest channel was opened."""
        return self._enclave.attestation

    @property
    def stats(self) -> Stats:
        """What this client did and holds, in this process."""
        return self._enclave.stats

    async def __aenter__(self) -> Self:
        self._expect_unopened()
        try:
            return await super().__aenter__()
        except BaseException:
            await self.aclose()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return to_pickle(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(from_pickle(state))

    def __repr__(self) -> str:
        return f"<AsyncClient {self._enclave._settings.config.url}>"
