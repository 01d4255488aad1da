"""Sending a request with nothing around it: no authentication, no hooks, no redirects to follow.

httpx2's ``send`` steps through a generator for each of these, whether there is anything to do or
not; for a small answer that is the larger part of what a request costs in Python. What is left
without them is done here, once for both clients. Anything that has something around it takes
httpx2's own way.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

import httpx2

from .httpx2_inside import OwnClient, default_encoding_of, is_open, redirect_of
from .response import Response

if TYPE_CHECKING:
    from .httpx2_inside import Auth, Follow

__all__ = ["complete_response", "is_simple", "send_simple"]

_log: Final = logging.getLogger("httpx2")
_UNSET: Final = httpx2.USE_CLIENT_DEFAULT


def is_simple(client: OwnClient, request: httpx2.Request, auth: Auth, follow: Follow) -> bool:
    hooks = client.event_hooks
    return (
        client._short_way
        and (auth is _UNSET or auth is None)
        and client.auth is None
        and not (client.follow_redirects if follow is _UNSET else follow)
        and not hooks["request"]
        and not hooks["response"]
        and is_open(client)
        and "timeout" in request.extensions
        and not request.url.userinfo
    )


async def send_simple(client: OwnClient, request: httpx2.Request, stream: bool) -> Response:
    """``stream``: the body is left to the caller, who closes the response."""
    begun = time.perf_counter()
    transport = client._enclave
    try:
        response: Response = await transport._respond(request)
    except httpx2.RequestError as error:
        error.request = request
        raise
    response.body.begun = begun
    try:
        complete_response(client, request, response)
        if not stream and not response.read_at_once():
            await transport._read(response)
    except BaseException:
        await transport._close(response)
        raise
    return response


def complete_response(client: OwnClient, request: httpx2.Request, response: Response) -> None:
    """What httpx2 adds to a transport's answer. The time it took is added by the body."""
    response.request = request
    response.default_encoding = default_encoding_of(client)
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
        with contextlib.suppress(httpx2.RemoteProtocolError):
            response.next_request = redirect_of(client, request, response)
