"""``Client`` and ``AsyncClient``: httpx2's, talking to one enclave."""

from __future__ import annotations

import http.cookiejar
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypedDict, Unpack, cast

import httpx2
from httpx2._client import BaseClient, ClientState

from ._arguments import timeout_members, value_shown
from ._attestation import Attestation
from ._config import KEEPALIVE, UpgradeHeaders, Verify
from ._connecting import Connecting
from ._errors import ForeignURL, InvalidURL, ProtocolError, StateError
from ._flow import Stats
from ._pins import CLOCK_LEEWAY, Pins, RootCertificate
from ._plain import dress, is_plain
from ._retry import Retries
from ._transport import DEFAULT_TIMEOUT, EnclaveTransport, Settings, Timed
from ._url import EnclaveURL

if TYPE_CHECKING:
    from httpx2._client import EventHook
    from httpx2._types import (
        AuthTypes,
        CookieTypes,
        HeaderTypes,
        QueryParamTypes,
        TimeoutTypes,
    )

    from ._async_transport import AsyncEnclaveTransport
    from ._plain import Auth, Follow

__all__ = ["AsyncClient", "Client", "ClientOptions"]


class ClientOptions(TypedDict, total=False):
    """The keywords of :class:`Client` and :class:`AsyncClient`."""

    pcrs: Pins
    root: RootCertificate
    debug_mode: bool
    clock_leeway: float
    upgrade_headers: UpgradeHeaders
    verify: Verify
    proxy: str | httpx2.URL | None
    timeout: TimeoutTypes
    retries: Retries
    patience: float | None
    auto_reconnect: bool
    max_channels: int
    max_in_flight: int
    keepalive: float | None
    limits: httpx2.Limits | None
    auth: AuthTypes | None
    params: QueryParamTypes | None
    headers: HeaderTypes | None
    cookies: CookieTypes | None
    follow_redirects: bool
    max_redirects: int
    event_hooks: Mapping[str, list[EventHook]] | None
    base_url: httpx2.URL | str
    default_encoding: str | Callable[[bytes], str | None]


_UNSUPPORTED = {
    "app": "requests go to the enclave; enclavia.testing.LocalEnclave(app) runs an app in a "
    "local one",
    "cert": "the enclave is proven by its attestation, and the client stays anonymous to it; "
    "authenticate inside the channel (auth, headers)",
    "http1": "HTTP/1.1 is what is spoken inside the channel",
    "http2": "HTTP/1.1 is what is spoken inside the channel; one channel carries up to 64 "
    "requests at once without it",
    "mounts": "every request of this client goes through the enclave's channel; use another "
    "client for other hosts, or mount enclavia.EnclaveTransport on an httpx2.Client",
    "proxies": "the tunnel itself can go through one: proxy='http://host:port'",
    "transport": "the transport is what makes this client; EnclaveTransport fits into an "
    "httpx2.Client of your own",
    "trust_env": "proxies and credentials of the environment are never used for an enclave; "
    "proxy='http://host:port' sets one for the tunnel",
    "uds": "an enclave is reached over a WebSocket",
}


def _refuse(cls: type, unsupported: Mapping[str, object]) -> None:
    for name in unsupported:
        reason = _UNSUPPORTED.get(name)
        if reason is None:
            raise TypeError(f"{cls.__name__}() got an unexpected keyword argument {name!r}")
        raise TypeError(f"{cls.__name__}() does not take {name!r}: {reason}")


def _timeout(value: object) -> httpx2.Timeout:
    connect, read, write, pool = timeout_members("timeout", value)
    return httpx2.Timeout(connect=connect, read=read, write=write, pool=pool)


def _base_url(settings: Settings, base_url: httpx2.URL | str) -> httpx2.URL:
    own = settings.config.url.base_url
    if base_url is None or base_url == "":
        return own
    if not isinstance(base_url, str | httpx2.URL):
        raise TypeError(f"base_url: expected text or httpx2.URL, got {type(base_url).__name__}")
    try:
        url = own.join(base_url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise InvalidURL(
            f"base_url: expected a path or a URL of this enclave, got {value_shown(base_url)}: "
            f"{error}"
        ) from None
    refusal = settings.config.url.refusal(url)
    if refusal is not None:
        raise ForeignURL(f"base_url: {refusal}")
    return url


class _Known(NamedTuple):
    """What a method and a URL came to, the last time."""

    url: httpx2.URL
    defaults: list[tuple[bytes, bytes]] | None
    """The client's headers then."""
    headers: httpx2.Headers | None
    """What they came to. Both None where the request had more to it."""


_NO_BODY = httpx2.ByteStream(b"")
# Options that change neither URL nor headers nor body.
_NO_PART_OF_IT: Final = frozenset(("timeout", "extensions"))
# Options that change nothing where they are None. Of any other name httpx2 says what is wrong.
_MAY_BE_NONE: Final = frozenset(
    ("content", "data", "files", "json", "params", "headers", "cookies")
)


class _KnownRequests:
    """Building a request is a third of what it costs in Python: httpx2 parses its URL and the base
    URL, and merges and encodes the headers, each time anew. The same comes of the same."""

    _MOST: Final = 64
    _LONGEST: Final = 256

    def __init__(self) -> None:
        self._of: tuple[httpx2.URL | None, dict[tuple[str, str], _Known]] = (None, {})

    def build(
        self,
        client: httpx2.Client | httpx2.AsyncClient,
        build: Callable[..., httpx2.Request],
        method: str,
        url: httpx2.URL | str,
        options: dict[str, Any],
    ) -> httpx2.Request:
        timeout = options.get("timeout")
        if timeout is not None and timeout is not httpx2.USE_CLIENT_DEFAULT:
            options["timeout"] = _timeout(timeout)
        if not isinstance(url, str) or len(url) > self._LONGEST:
            return build(method, url, **options)
        base, all_known = self._of
        if base is not client.base_url:  # it was set
            all_known = {}
            self._of = (client.base_url, all_known)
        plain = not client.params and not client.cookies
        for name, value in options.items():
            if name not in _NO_PART_OF_IT and (value is not None or name not in _MAY_BE_NONE):
                plain = False
        known = all_known.get((method, url))
        if known is None or (plain and known.defaults != client.headers.raw):
            request = build(method, url if known is None else known.url, **options)
            # An empty ``params`` is given, too: it takes the query of the URL away.
            if not client.params and options.get("params") is None:
                if len(all_known) >= self._MOST:
                    all_known.clear()
                headers = request.headers.copy() if plain else None
                defaults = client.headers.raw if plain else None
                all_known[method, url] = _Known(request.url, defaults, headers)
            return request
        if not plain:
            return build(method, known.url, **options)
        extensions = dict(options.get("extensions") or ())
        if "timeout" not in extensions:
            timeout = options.get("timeout", httpx2.USE_CLIENT_DEFAULT)
            if timeout is httpx2.USE_CLIENT_DEFAULT:
                timeout = client.timeout
            extensions["timeout"] = httpx2.Timeout(timeout).as_dict()
        request = httpx2.Request(
            method, known.url, headers=known.headers, stream=_NO_BODY, extensions=extensions
        )
        request.read()
        return request


class _CookiesOfASCII(http.cookiejar.DefaultCookiePolicy):
    """Keeps no cookie that no request could carry: httpx2 writes headers in ASCII, so one such
    cookie from the workload would make every later request fail."""

    def set_ok(self, cookie: http.cookiejar.Cookie, request: urllib.request.Request) -> bool:
        return (
            f"{cookie.name}{cookie.value}{cookie.path}{cookie.domain}".isascii()
            and super().set_ok(cookie, request)
        )


class _OwnClient(BaseClient):
    """What both clients do differently from httpx2's."""

    @property
    def timeout(self) -> httpx2.Timeout:
        """What a request has that is given none of its own."""
        return self._timeout

    @timeout.setter
    def timeout(self, timeout: TimeoutTypes) -> None:
        self._timeout = _timeout(timeout)

    @property
    def cookies(self) -> httpx2.Cookies:
        """Of the workload and of the caller. What takes cookies from an answer comes by here."""
        jar = self._cookies.jar
        # A jar of the caller's with a policy of its own stays what it is.
        if type(getattr(jar, "_policy", None)) is http.cookiejar.DefaultCookiePolicy:
            jar.set_policy(_CookiesOfASCII())
        return self._cookies

    @cookies.setter
    def cookies(self, cookies: CookieTypes) -> None:
        self._cookies = httpx2.Cookies(cookies)

    def _redirect_url(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.URL:
        """Where a redirect leads. The workload behind the tunnel knows its authority, from the
        Host header, but not how it is reached, so it often writes ``http://`` before it: that is
        the enclave all the same, and the request goes on in the tunnel as it came."""
        url = super()._redirect_url(request, response)
        if self._own_url.refusal(url) is None:
            url = url.copy_with(scheme=request.url.scheme, port=request.url.port)
        return url

    def _build_redirect_request(
        self, request: httpx2.Request, response: httpx2.Response
    ) -> httpx2.Request:
        try:
            return super()._build_redirect_request(request, response)
        except (httpx2.RemoteProtocolError, httpx2.InvalidURL, ValueError) as error:
            # httpx2 lets some of what a server may write there pass as a UnicodeError.
            raise ProtocolError(
                f"expected a URL in the redirect's Location header: {error}", request=request
            ) from error

    @property
    def _own_url(self) -> EnclaveURL:
        enclave: EnclaveTransport | AsyncEnclaveTransport = self._transport  # type: ignore[attr-defined]
        return enclave._settings.config.url

    def _expect_usable(self) -> None:
        if self._state is ClientState.CLOSED:
            raise StateError("Cannot send a request, as the client has been closed.")

    def _expect_unopened(self) -> None:
        if self._state is ClientState.CLOSED:
            raise StateError("Cannot reopen a client instance, once it has been closed.")
        if self._state is ClientState.OPENED:
            raise StateError("Cannot open a client instance more than once.")


class Client(_OwnClient, httpx2.Client):
    """An :class:`httpx2.Client` whose every request goes through an attested channel to one
    enclave.

    ``url`` is the enclave's (``wss://…``); requests are made with paths. Connects and verifies
    when entered with ``with``, made with :meth:`connect`, or first used; and again whenever the
    connection was lost. Beyond httpx2's keywords:

    pcrs: the enclave's pinned :class:`Pcrs`, or several, one of which must match.
    root: the attestation root certificate (PEM, DER, or a path). Default: AWS's.
    debug_mode: talk to a debug enclave, whose identity nothing proves. Warns each time.
    clock_leeway: seconds (0 to 300) that the enclave's own certificate may be used before its
        validity begins, where this machine's clock is behind. Its end is never moved.
    upgrade_headers: sent with the WebSocket upgrade, outside of the encrypted channel.
    verify, proxy: for the outer TLS connection: True, False or a CA file; ``http://host:port``.
    timeout: as httpx2's (default 30 s); ``connect`` covers DNS to attestation.
    retries: how often a request without an answer may be sent again, where that is safe.
    patience: for how many seconds connecting is tried again while it fails. Default: as long as
        the ``connect`` timeout; 0 is one attempt. More than that timeout outlasts an outage: each
        attempt is then bounded by ``connect``, and waiting for a connection by ``patience``.
    auto_reconnect: False: once connected, never connect again; a request that finds the connection
        lost raises :class:`ReconnectDisabled`.
    max_channels, max_in_flight: connections to the enclave, and requests at once on each. Of
        several one carries nothing but bodies above 256 KiB, and is opened when it is needed.
    keepalive: seconds (more than 0, at most a day) without a byte from the peer after which it is
        sent a WebSocket ping, and after which the connection is given up where still none came
        (:class:`ConnectionClosed`, retryable). None: never.
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
        _refuse(type(self), unsupported)
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
        self._known_requests = _KnownRequests()
        super().__init__(
            transport=EnclaveTransport._of(settings),
            trust_env=False,
            auth=auth,
            params=params,
            headers=headers,
            cookies=cookies,
            timeout=_timeout(timeout),
            follow_redirects=follow_redirects,
            max_redirects=max_redirects,
            event_hooks=event_hooks,
            base_url=_base_url(settings, base_url),
            default_encoding=default_encoding,
        )

    @classmethod
    def connect(cls, url: str | httpx2.URL, **keywords: Unpack[ClientOptions]) -> Self:
        """A client that is connected, and its enclave verified, when this returns."""
        client = cls(url, **keywords)
        try:
            client._enclave.connect()
        except BaseException:
            client.close()
            raise
        return client

    @property
    def _enclave(self) -> EnclaveTransport:
        return cast(EnclaveTransport, self._transport)

    def build_request(
        self, method: str, url: httpx2.URL | str, **options: object
    ) -> httpx2.Request:
        return self._known_requests.build(self, super().build_request, method, url, options)

    def send(
        self,
        request: httpx2.Request,
        *,
        stream: bool = False,
        auth: Auth = httpx2.USE_CLIENT_DEFAULT,
        follow_redirects: Follow = httpx2.USE_CLIENT_DEFAULT,
    ) -> httpx2.Response:
        if not (
            isinstance(request.stream, httpx2.SyncByteStream)
            and is_plain(self, request, auth, follow_redirects)
        ):
            self._expect_usable()
            return super().send(
                request, stream=stream, auth=auth, follow_redirects=follow_redirects
            )
        begun = time.perf_counter()
        try:
            response = self._enclave.handle_request(request)
        except httpx2.RequestError as error:
            error.request = request
            raise
        cast(Timed, response.stream).begun = begun
        try:
            dress(self, request, response)
            if not stream:
                response.read()
        except BaseException:
            response.close()
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

    def __enter__(self) -> Self:
        self._expect_unopened()
        try:
            return super().__enter__()
        except BaseException:
            self.close()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return _to_pickle(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(_from_pickle(state))

    def __repr__(self) -> str:
        return f"<Client {self._enclave._settings.config.url}>"


class AsyncClient(_OwnClient, httpx2.AsyncClient):
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
        from ._async_transport import AsyncEnclaveTransport

        _refuse(type(self), unsupported)
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
        self._known_requests = _KnownRequests()
        super().__init__(
            transport=AsyncEnclaveTransport._of(settings),
            trust_env=False,
            auth=auth,
            params=params,
            headers=headers,
            cookies=cookies,
            timeout=_timeout(timeout),
            follow_redirects=follow_redirects,
            max_redirects=max_redirects,
            event_hooks=event_hooks,
            base_url=_base_url(settings, base_url),
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

        return Connecting(start)

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
        return _to_pickle(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(_from_pickle(state))

    def __repr__(self) -> str:
        return f"<AsyncClient {self._enclave._settings.config.url}>"


def _to_pickle(state: dict[str, Any]) -> dict[str, Any]:
    """What has been opened here has not been there; closed stays closed. A cookie jar has a lock,
    its cookies have none."""
    states = type(state["_state"])
    kept = states.CLOSED if state["_state"] is states.CLOSED else states.UNOPENED
    cookies = list(state["_cookies"].jar)
    return {**state, "_state": kept, "_cookies": cookies, "_known_requests": None}


def _from_pickle(state: dict[str, Any]) -> dict[str, Any]:
    cookies = httpx2.Cookies()
    for cookie in state["_cookies"]:
        cookies.jar.set_cookie(cookie)
    return {**state, "_cookies": cookies, "_known_requests": _KnownRequests()}
