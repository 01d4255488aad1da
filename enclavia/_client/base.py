"""What :class:`enclavia.Client` and :class:`enclavia.AsyncClient` do differently from httpx2's."""

from __future__ import annotations

import http.cookiejar
import urllib.request
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypedDict

import httpx2
from httpx2._client import BaseClient, ClientState

from .._arguments import value_shown
from .._channel.config import UpgradeHeaders, Verify
from .._channel.url import EnclaveURL
from .._errors import ForeignURL, InvalidURL, ProtocolError, StateError
from .._exchange.retry import Retries
from .._identity.pins import Pins, RootCertificate
from .request_cache import RequestCache, timeout_of
from .settings import Settings
from .transport import EnclaveTransport

if TYPE_CHECKING:
    from httpx2._client import EventHook
    from httpx2._types import AuthTypes, CookieTypes, HeaderTypes, QueryParamTypes, TimeoutTypes

    from .async_transport import AsyncEnclaveTransport

__all__ = [
    "ClientOptions",
    "OwnClient",
    "base_url_of",
    "from_pickle",
    "refuse_unsupported",
    "to_pickle",
]


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


def refuse_unsupported(cls: type, unsupported: Mapping[str, object]) -> None:
    for name in unsupported:
        reason = _UNSUPPORTED.get(name)
        if reason is None:
            raise TypeError(f"{cls.__name__}() got an unexpected keyword argument {name!r}")
        raise TypeError(f"{cls.__name__}() does not take {name!r}: {reason}")


def base_url_of(settings: Settings, base_url: httpx2.URL | str) -> httpx2.URL:
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


class _CookiesOfASCII(http.cookiejar.DefaultCookiePolicy):
    """Keeps no cookie that no request could carry: httpx2 writes headers in ASCII, so one such
    cookie from the workload would make every later request fail."""

    @classmethod
    def like(cls, policy: http.cookiejar.DefaultCookiePolicy) -> Self:
        """With the settings of the policy, also with those that are changed there later."""
        own = cls()
        own.__dict__ = policy.__dict__
        return own

    def set_ok(self, cookie: http.cookiejar.Cookie, request: urllib.request.Request) -> bool:
        return (
            f"{cookie.name}{cookie.value}{cookie.path}{cookie.domain}".isascii()
            and super().set_ok(cookie, request)
        )


class OwnClient(BaseClient):
    """What both clients do differently from httpx2's."""

    @property
    def timeout(self) -> httpx2.Timeout:
        """What a request has that is given none of its own."""
        return self._timeout

    @timeout.setter
    def timeout(self, timeout: TimeoutTypes) -> None:
        self._timeout = timeout_of(timeout)

    @property
    def cookies(self) -> httpx2.Cookies:
        """Of the workload and of the caller. What takes cookies from an answer comes by here."""
        jar = self._cookies.jar
        policy = getattr(jar, "_policy", None)
        # A jar of the caller's with a policy of another kind stays what it is.
        if type(policy) is http.cookiejar.DefaultCookiePolicy:
            jar.set_policy(_CookiesOfASCII.like(policy))
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


def to_pickle(state: dict[str, Any]) -> dict[str, Any]:
    """What has been opened here has not been there; closed stays closed. A cookie jar has a lock,
    its cookies have none; what decides which cookies it takes goes along."""
    states = type(state["_state"])
    kept = states.CLOSED if state["_state"] is states.CLOSED else states.UNOPENED
    jar = state["_cookies"].jar
    cookies = (list(jar), getattr(jar, "_policy", None))
    return {**state, "_state": kept, "_cookies": cookies, "_known_requests": None}


def from_pickle(state: dict[str, Any]) -> dict[str, Any]:
    kept, policy = state["_cookies"]
    cookies = httpx2.Cookies(http.cookiejar.CookieJar(policy))
    for cookie in kept:
        cookies.jar.set_cookie(cookie)
    return {**state, "_cookies": cookies, "_known_requests": RequestCache()}
