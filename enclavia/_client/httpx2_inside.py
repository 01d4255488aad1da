"""All that is known of httpx2's private parts, and what becomes of a client where one is missing.

``Client`` and ``AsyncClient`` are httpx2's, and differ from them in a few places for which httpx2
has no public way. A release of httpx2 may rename any of these. So they are named here and nowhere
else (tests/python/house/test_layers.py), and looked for before they are used:

* what no client can be made without is missing: an ImportError says which versions are known;
* what only the short way of sending needs is missing: :data:`SHORT_WAY_WORKS` is False, and every
  request takes httpx2's own way, which costs more and does the same.

Decides whether this version of httpx2 can be used, and whether a request can go the short way.
Calls: _channel, _errors, _exchange, _identity, _text, _trust. Locks: none.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import http.cookiejar
import importlib
import logging
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import httpx2

from .._errors import ProtocolError, StateError
from .._exchange.engine import Stats
from .._text import table_of
from .header_text import headers_of, refusal
from .options import timeout_of
from .request_cache import HeaderFields, RequestCache

if TYPE_CHECKING:
    from httpx2._client import BaseClient, ClientState, UseClientDefault
    from httpx2._types import AuthTypes, CookieTypes, HeaderTypes, TimeoutTypes

    from .._channel.url import EnclaveURL
    from .._identity.attestation import Attestation
    from .._trust.receipts import Receipt

    Auth = AuthTypes | UseClientDefault | None
    Follow = bool | UseClientDefault
else:
    try:
        from httpx2._client import BaseClient, ClientState

        BaseClient._redirect_url, BaseClient._build_redirect_request  # noqa: B018 - overridden below
        ClientState.UNOPENED, ClientState.OPENED, ClientState.CLOSED  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise ImportError(
            "enclavia expected an httpx2 whose client can be told where a redirect leads, got "
            f"version {httpx2.__version__}, in which that has changed ({error}): install a newer "
            "enclavia, or an httpx2 of versions 2.4 to 2.16",
            name="httpx2",
        ) from error

__all__ = [
    "SHORT_WAY_WORKS",
    "OwnClient",
    "complete_response",
    "copied",
    "explains_failures",
    "from_pickle",
    "is_simple",
    "take_body",
    "to_pickle",
]

C = TypeVar("C")

_log: Final = logging.getLogger("httpx2")
# What httpx2's own transports send by: views of the classes, and the methods as they are before
# anybody puts something around them.
_SEND: Final = "handle_request"
_SENDS: Final = vars(httpx2.HTTPTransport)
_PLAIN: Final = _SENDS[_SEND]
_SEND_ASYNC: Final = "handle_async_request"
_SENDS_ASYNC: Final = vars(httpx2.AsyncHTTPTransport)
_PLAIN_ASYNC: Final = _SENDS_ASYNC[_SEND_ASYNC]
_set_headers: Final = vars(BaseClient)["headers"].fset
# The extra that brings a package.
_EXTRA_OF: Final = {"wsproto": "websocket"}
_UNSET: Final = httpx2.USE_CLIENT_DEFAULT
# What is kept of a client, in its instances.
_NEEDED: Final = (
    "_state", "_transport", "_timeout", "_cookies", "_headers", "_event_hooks", "_mounts"
)  # fmt: skip


def _short_way_works() -> bool:
    """Whether a response and a client of this httpx2 have what the short way reads and writes."""
    response = httpx2.Response(200, stream=httpx2.ByteStream(b"x"))
    before = dict(vars(response))
    response.read()
    after = vars(response)
    return (
        before.get("is_closed") is before.get("is_stream_consumed") is False
        and before.get("_num_bytes_downloaded") == 0
        and after.get("is_closed") is after.get("is_stream_consumed") is True
        and after.get("_num_bytes_downloaded") == 1
        and "_content" not in before
        and after.get("_content") == b"x"
    )


SHORT_WAY_WORKS: Final = _short_way_works()


# -- responses --------------------------------------------------------------------------------


def take_body(response: httpx2.Response, pieces: Callable[[], list[bytes]]) -> bool:
    """Leaves the response as httpx2 does once it has read its body, which is here already, to the
    end. False, and nothing was done, where some of it was taken, or the response was closed."""
    if (
        response.is_stream_consumed
        or response.is_closed
        or not SHORT_WAY_WORKS
        or hasattr(response, "_content")
    ):
        return False
    response._content = body = b"".join(pieces())
    response._num_bytes_downloaded = len(body)
    response.is_stream_consumed = response.is_closed = True
    return True


# -- clients ----------------------------------------------------------------------------------


def _kept_fields(headers: httpx2.Headers) -> HeaderFields:
    """What the headers consist of: the list that they keep, which changes with them."""
    return headers._list


def _raw_fields(headers: httpx2.Headers) -> HeaderFields:
    """The same, of any httpx2: a list that is made for each call."""
    return headers.raw


_fields_of: Final = _kept_fields if hasattr(httpx2.Headers(), "_list") else _raw_fields


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

    _enclave: Any
    """The transport; each client says which."""
    _is_instrumented_by_opentelemetry: bool = False
    """Set by ``instrument_client``, which wraps the method of the transport that sends."""
    _request_cache: RequestCache
    _short_way: bool

    def _prepare(self) -> None:
        """Called by both constructors, once httpx2's own is through."""
        kept = vars(self)
        missing = [name for name in _NEEDED if name not in kept]
        if missing:
            raise ImportError(
                f"enclavia expected a client of httpx2 to have {', '.join(missing)}, got one of "
                f"version {httpx2.__version__} without: install a newer enclavia, or an httpx2 of "
                "versions 2.4 to 2.16",
                name="httpx2",
            )
        self._enclave = kept["_transport"]
        self._request_cache = RequestCache(_fields_of)
        self._short_way = SHORT_WAY_WORKS and "_default_encoding" in kept

    @property
    def attestation(self) -> Attestation:
        """What was verified when the newest channel was opened."""
        attestation: Attestation = self._enclave.attestation
        return attestation

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """Of each verified document, the newest last; at most 64."""
        receipts: tuple[Receipt, ...] = self._enclave.receipts
        return receipts

    @property
    def stats(self) -> Stats:
        """What this client did and holds, in this process."""
        stats: Stats = self._enclave.stats
        return stats

    @property
    def timeout(self) -> httpx2.Timeout:
        """What a request has that is given none of its own."""
        return self._timeout

    @timeout.setter
    def timeout(self, timeout: TimeoutTypes) -> None:
        self._timeout = timeout_of(timeout)

    @property
    def headers(self) -> httpx2.Headers:
        """What every request has, unless it is given another one of that name."""
        return self._headers

    @headers.setter
    def headers(self, headers: HeaderTypes) -> None:
        _set_headers(self, headers_of(headers))

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

    @property
    def _has_cookies(self) -> bool:
        jar = self._cookies.jar
        if type(jar) is http.cookiejar.CookieJar and not getattr(jar, "_cookies", True):
            return False  # without stepping through what holds nothing
        for _ in jar:
            return True
        return False

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

    def build_request(
        self, method: str, url: httpx2.URL | str, **options: object
    ) -> httpx2.Request:
        try:
            return self._request_cache.build(
                self, self._has_cookies, super().build_request, method, url, options
            )
        except UnicodeEncodeError as error:
            __tracebackhide__ = True
            cookies = options.get("cookies")
            raise refusal(error, options.get("headers"), cookies, self._cookies) from error

    @property
    def _own_url(self) -> EnclaveURL:
        url: EnclaveURL = self._enclave._settings.config.url
        return url

    def _expect_usable(self) -> None:
        if self._state is ClientState.CLOSED:
            raise StateError("Cannot send a request, as the client has been closed.")

    def _expect_unopened(self) -> None:
        if self._state is ClientState.CLOSED:
            raise StateError("Cannot reopen a client instance, once it has been closed.")
        if self._state is ClientState.OPENED:
            raise StateError("Cannot open a client instance more than once.")

    def __getstate__(self) -> dict[str, Any]:
        return to_pickle(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(from_pickle(state))
        self._prepare()

    def __copy__(self) -> Self:
        """As pickling and unpickling, but of what cannot be pickled, such as hooks, the same."""
        made = type(self).__new__(type(self))
        made.__setstate__(copied(self.__getstate__()))
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._enclave.shown}, {self._enclave.state}>"

    def _repr_html_(self) -> str:
        return table_of(type(self).__name__, self._enclave._rows())


def explains_failures(cls: type[C]) -> type[C]:
    """``sse`` and ``websocket`` are httpx2's. They read headers before a request is built, and
    ``websocket`` needs a package of an extra, so each fails with an error that does not say what to
    do. This wraps them, and theirs become ours. Some releases of httpx2 have neither."""
    for name, packages in (("sse", ()), ("websocket", ("wsproto",))):
        method = getattr(cls, name, None)
        if method is not None:
            setattr(cls, name, _explaining(method, f"client.{name}", packages))
    return cls


def _explaining(
    method: Callable[..., Any], shown: str, packages: tuple[str, ...]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as httpx2's
        __tracebackhide__ = True
        for package in packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ImportError(
                    f"{shown} needs {package}, which is not installed: "
                    f"pip install 'enclavia[{_EXTRA_OF[package]}]'",
                    name=error.name,
                ) from None
        if options.get("headers") is not None:
            options["headers"] = headers_of(options["headers"])
        return method(*arguments, **options)

    call.__doc__ = (
        "As httpx2's, with its keywords. Raises :class:`InvalidRequest` where a header is text "
        "that is not ASCII."
    )
    if packages:
        call.__doc__ += f" Needs ``pip install 'enclavia[{_EXTRA_OF[packages[0]]}]'``."
    return call


def is_simple(client: OwnClient, request: httpx2.Request, auth: Auth, follow: Follow) -> bool:
    """There is nothing around the request that httpx2 would have to see to."""
    hooks = client.event_hooks
    return (
        client._short_way
        and (auth is _UNSET or auth is None)
        and client.auth is None
        and not (client.follow_redirects if follow is _UNSET else follow)
        and not hooks["request"]
        and not hooks["response"]
        and client._state is ClientState.OPENED
        and "timeout" in request.extensions
        and not request.url.userinfo
        # Nobody has put something around what sends, of this client or of all: that is to be asked.
        and _SENDS[_SEND] is _PLAIN
        and _SENDS_ASYNC[_SEND_ASYNC] is _PLAIN_ASYNC
        and not client._is_instrumented_by_opentelemetry
    )


def complete_response(
    client: OwnClient, request: httpx2.Request, response: httpx2.Response, sets_cookies: bool
) -> None:
    """What httpx2 adds to a transport's answer. The time it took is added by the body."""
    response.request = request
    response.default_encoding = client._default_encoding
    if sets_cookies:
        client.cookies.extract_cookies(response)
    if _log.isEnabledFor(logging.INFO):
        _log.info(
            'HTTP Request: %s %s "%s %d %s"',
            request.method,
            request.url,
            response.http_version,
            response.status_code,
            response.reason_phrase,
        )
    if response.has_redirect_location:
        with contextlib.suppress(httpx2.RemoteProtocolError):
            response.next_request = client._build_redirect_request(request, response)


def to_pickle(state: dict[str, Any]) -> dict[str, Any]:
    """What has been opened here has not been there; closed stays closed. A cookie jar has a lock,
    its cookies have none; what decides which cookies it takes goes along."""
    states = type(state["_state"])
    kept = states.CLOSED if state["_state"] is states.CLOSED else states.UNOPENED
    jar = state["_cookies"].jar
    cookies = (list(jar), getattr(jar, "_policy", None))
    return {**state, "_state": kept, "_cookies": cookies, "_request_cache": None}


def from_pickle(state: dict[str, Any]) -> dict[str, Any]:
    kept, policy = state["_cookies"]
    cookies = httpx2.Cookies(http.cookiejar.CookieJar(policy))
    for cookie in kept:
        cookies.jar.set_cookie(cookie)
    return {**state, "_cookies": cookies}


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """What :func:`to_pickle` has made, with containers of its own."""
    transport = copy.copy(state["_transport"])
    hooks: dict[str, list[Any]] = state["_event_hooks"]
    cookies, policy = state["_cookies"]
    return {
        **state,
        "_transport": transport,
        "_enclave": transport,
        "_headers": state["_headers"].copy(),
        "_cookies": ([copy.copy(cookie) for cookie in cookies], copy.copy(policy)),
        "_mounts": dict(state["_mounts"]),
        "_event_hooks": {name: list(each) for name, each in hooks.items()},
    }
