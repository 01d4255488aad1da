"""Sending a request with nothing around it: no authentication, no hooks, no redirects to follow.

httpx2's ``send`` steps through a generator for each of these, whether there is anything to do or
not; for a small answer that is the larger part of what a request costs in Python. What is left
without them is done here, for both clients. Whatever is not plain goes through httpx2's own.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import httpx2
from httpx2._client import ClientState

if TYPE_CHECKING:
    from httpx2._types import AuthTypes

    from .response import Response

    Auth = AuthTypes | httpx2._client.UseClientDefault | None
    Follow = bool | httpx2._client.UseClientDefault

__all__ = ["dress", "is_plain"]

_log: Final = logging.getLogger("httpx2")
_UNSET: Final = httpx2.USE_CLIENT_DEFAULT


def is_plain(
    client: httpx2.Client | httpx2.AsyncClient, request: httpx2.Request, auth: Auth, follow: Follow
) -> bool:
    hooks = client.event_hooks
    return (
        (auth is _UNSET or auth is None)
        and client.auth is None
        and not (client.follow_redirects if follow is _UNSET else follow)
        and not hooks["request"]
        and not hooks["response"]
        and client._state is ClientState.OPENED
        and "timeout" in request.extensions
        and not request.url.userinfo
    )


def dress(
    client: httpx2.Client | httpx2.AsyncClient, request: httpx2.Request, response: Response
) -> None:
    """What httpx2 adds to a transport's answer. The time it took is added by the body."""
    response.request = request
    response.default_encoding = client._default_encoding
    if response.sets_cookies:
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
        redirect: Any = client._build_redirect_request
        with contextlib.suppress(httpx2.RemoteProtocolError):
            response.next_request = redirect(request, response)
