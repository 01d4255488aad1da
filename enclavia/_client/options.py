"""The keywords of transports and clients: each stands here once, with its type and its default.

Decides which keywords a client takes, refuses those of httpx2 that have no meaning for an enclave,
and sorts the others into what makes the transport and what makes httpx2's client.

Calls: _arguments, _channel, _errors, _exchange. Locks: none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import httpx2

from .._arguments import timeout_members, value_shown
from .._channel.options import CHANNEL_DEFAULTS, ChannelOptions, inserted
from .._errors import ForeignURL, InvalidURL
from .._exchange.retry import Retries
from .header_text import headers_of

if TYPE_CHECKING:
    from httpx2._client import EventHook
    from httpx2._types import (
        AuthTypes,
        CookieTypes,
        HeaderTypes,
        QueryParamTypes,
        TimeoutTypes,
    )

    from .._channel.url import EnclaveURL

__all__ = [
    "CLIENT_DEFAULTS",
    "DEFAULT_TIMEOUT",
    "TRANSPORT_DEFAULTS",
    "ClientOptions",
    "TransportOptions",
    "base_url_of",
    "client_options",
    "located",
    "refuse_unsupported",
    "timeout_of",
    "transport_options",
]

DEFAULT_TIMEOUT: Final = httpx2.Timeout(30.0)


class _Options(ChannelOptions, total=False):
    """What transports and clients have in common."""

    retries: Retries
    patience: float | None
    auto_reconnect: bool
    max_channels: int
    limits: httpx2.Limits | None
    via: str | None
    shared_expiry: float | None


class TransportOptions(_Options, total=False):
    """The keywords of a transport, for those who pass them on."""

    timeout: httpx2.Timeout | float | None


class ClientOptions(_Options, total=False):
    """The keywords of :class:`enclavia.Client` and :class:`enclavia.AsyncClient`."""

    timeout: TimeoutTypes
    auth: AuthTypes | None
    params: QueryParamTypes | None
    headers: HeaderTypes | None
    cookies: CookieTypes | None
    follow_redirects: bool
    max_redirects: int
    event_hooks: Mapping[str, list[EventHook]] | None
    base_url: httpx2.URL | str
    default_encoding: str | Callable[[bytes], str | None]


TRANSPORT_DEFAULTS: Final[dict[str, Any]] = {
    **inserted(
        CHANNEL_DEFAULTS,
        "max_in_flight",
        {
            "timeout": DEFAULT_TIMEOUT,
            "retries": 2,
            "patience": None,
            "auto_reconnect": True,
            "max_channels": 2,
        },
    ),
    "limits": None,
    "via": None,
    "shared_expiry": None,
}
CLIENT_DEFAULTS: Final[dict[str, Any]] = {
    **TRANSPORT_DEFAULTS,
    "auth": None,
    "params": None,
    "headers": None,
    "cookies": None,
    "follow_redirects": False,
    "max_redirects": 20,
    "event_hooks": None,
    "base_url": "",
    "default_encoding": "utf-8",
}

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
    "uds": "an enclave is reached over a WebSocket; via='unix:PATH' goes by way of a forwarder "
    "of this machine",
}


def refuse_unsupported(cls: type, options: Mapping[str, object]) -> None:
    """Says of each keyword that a client does not take why it does not."""
    for name in options:
        if name in CLIENT_DEFAULTS:
            continue
        reason = _UNSUPPORTED.get(name)
        if reason is None:
            raise TypeError(f"{cls.__name__}() got an unexpected keyword argument {name!r}")
        raise TypeError(f"{cls.__name__}() does not take {name!r}: {reason}")


def transport_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that make the transport."""
    return {name: value for name, value in options.items() if name in TRANSPORT_DEFAULTS}


def client_options(enclave: EnclaveURL, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that make httpx2's client."""
    given = {**CLIENT_DEFAULTS, **options}
    kept = {name: value for name, value in given.items() if name not in TRANSPORT_DEFAULTS}
    kept["timeout"] = timeout_of(given["timeout"])
    if given["headers"] is not None:
        kept["headers"] = headers_of(given["headers"])
    kept["base_url"] = base_url_of(enclave, given["base_url"])
    kept["trust_env"] = False
    return kept


def timeout_of(value: object) -> httpx2.Timeout:
    connect, read, write, pool = timeout_members("timeout", value)
    return httpx2.Timeout(connect=connect, read=read, write=write, pool=pool)


def base_url_of(enclave: EnclaveURL, base_url: object) -> httpx2.URL:
    """What a client's relative URLs are relative to: a path of this enclave, or its root."""
    own = enclave.base_url
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
    refusal = enclave.refusal(url)
    if refusal is not None:
        raise ForeignURL(f"base_url: {refusal}")
    return url


def located(url: httpx2.URL | str, base_url: httpx2.URL) -> httpx2.URL | str:
    """The URL of a request, which httpx2 then appends to the base URL unless it has a scheme and a
    host. Of one that has only a host, or only a scheme, it would take the path and drop the rest.

    RFC 3986, section 4.2: ``//host/path`` is a URL of that host. Raises :class:`InvalidURL` where
    there is a scheme and no host, such as of ``models:list``, which is not a relative path."""
    parsed = httpx2.URL(url)
    if parsed.host and not parsed.scheme:
        return parsed.copy_with(scheme=base_url.scheme)
    if parsed.scheme and not parsed.host:
        raise InvalidURL(
            f"expected a path or a URL of this enclave, got {value_shown(str(url))}, in which "
            f"{parsed.scheme!r} is a scheme and no host follows: write '/' before a path that has "
            "a colon in its first part"
        )
    return url
