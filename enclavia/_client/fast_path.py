"""Sending a request with nothing around it: no authentication, no hooks, no redirects to follow.

httpx2's ``send`` steps through a generator for each of these, whether there is anything to do or
not; for a small answer that is the larger part of what a request costs in Python. What is left
without them is done here, once for both clients. Anything that has something around it takes
httpx2's own way; :func:`enclavia._client.httpx2_inside.is_simple` says which.

Decides only the order of the steps. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import time

import httpx2

from .httpx2_inside import OwnClient, complete_response
from .response import Response

__all__ = ["send_simple", "send_simple_awaited"]


def send_simple(client: OwnClient, request: httpx2.Request, stream: bool) -> Response:
    """``stream``: the body is left to the caller, who closes the response."""
    begun = time.perf_counter()
    try:
        response: Response = client._enclave._handle(request)
    except httpx2.RequestError as error:
        __tracebackhide__ = True
        error.request = request
        raise
    response.stream.begun = begun
    try:
        complete_response(client, request, response, response.sets_cookies)
        if not stream and not response.read_at_once():
            response.read()
    except BaseException:
        __tracebackhide__ = True
        response.close()
        raise
    return response


async def send_simple_awaited(client: OwnClient, request: httpx2.Request, stream: bool) -> Response:
    """As :func:`send_simple`, for a client that awaits. These are two functions because a coroutine
    that is stepped through would make a request that blocks slower."""
    begun = time.perf_counter()
    try:
        response: Response = await client._enclave._handle(request)
    except httpx2.RequestError as error:
        __tracebackhide__ = True
        error.request = request
        raise
    response.stream.begun = begun
    try:
        complete_response(client, request, response, response.sets_cookies)
        if not stream and not response.read_at_once():
            await response.aread()
    except BaseException:
        __tracebackhide__ = True
        await response.aclose()
        raise
    return response
