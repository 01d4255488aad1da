"""Requests that were built before are not built from their parts again.

Decides when a request that was built before can be used again. Calls: nothing of the package.
Locks: none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import httpx2

from .options import timeout_of

__all__ = ["RequestCache"]


class _CachedRequest:
    """What a method and a URL came to, the last time."""

    __slots__ = ("defaults", "headers", "url")

    def __init__(
        self,
        url: httpx2.URL,
        defaults: list[tuple[bytes, bytes]] | None,
        headers: httpx2.Headers | None,
    ) -> None:
        """``defaults``: the client's headers then; ``headers``: what they came to. Both None where
        the request had more to it."""
        self.url = url
        self.defaults = defaults
        self.headers = headers


_NO_BODY = httpx2.ByteStream(b"")
# Options that change neither URL nor headers nor body.
_IRRELEVANT_OPTIONS: Final = frozenset(("timeout", "extensions"))
# Options that change nothing where they are None. Of any other name httpx2 says what is wrong.
_MAY_BE_NONE: Final = frozenset(
    ("content", "data", "files", "json", "params", "headers", "cookies")
)


class RequestCache:
    """Building a request is a third of what it costs in Python: httpx2 parses its URL and the base
    URL, and merges and encodes the headers, each time anew. So what it came to is kept, for
    as long as the client's own headers and base URL are the same."""

    _MOST: Final = 64
    _LONGEST: Final = 256

    def __init__(self) -> None:
        self._of: tuple[httpx2.URL | None, dict[tuple[str, str], _CachedRequest]] = (None, {})

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
            options["timeout"] = timeout_of(timeout)
        if not isinstance(url, str) or len(url) > self._LONGEST:
            return build(method, url, **options)
        base, all_known = self._of
        if base is not client.base_url:  # it was set
            all_known = {}
            self._of = (client.base_url, all_known)
        plain = not client.params and not client.cookies
        for name, value in options.items():
            if name not in _IRRELEVANT_OPTIONS and (value is not None or name not in _MAY_BE_NONE):
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
                all_known[method, url] = _CachedRequest(request.url, defaults, headers)
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
