"""Requests that were built before are not built from their parts again.

Decides when a request that was built before can be used again. Calls: nothing of the package.
Locks: none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import httpx2

from .options import located, timeout_of

if TYPE_CHECKING:
    from httpx2._client import BaseClient

__all__ = ["RequestCache"]

HeaderFields = Sequence[tuple[bytes, ...]]


class _CachedRequest:
    """What a method and a URL came to, the last time."""

    __slots__ = ("defaults", "fields", "headers", "url")

    def __init__(self, request: httpx2.Request, defaults: HeaderFields | None) -> None:
        """``defaults``: the client's headers then. None where the request had more to it, so that
        only its URL can be used again; then nothing else of it is kept, neither its body nor its
        headers, which may be large or secret."""
        self.url = request.url
        self.defaults = defaults
        self.headers = httpx2.Headers()
        self.fields: dict[str, object] = {}
        if defaults is None:
            return
        self.headers = httpx2.Headers(request.headers)
        # Of a request without a body all others are values that do not change: method, URL, and a
        # body that is empty and was read.
        self.fields = {
            name: value
            for name, value in vars(request).items()
            if name not in ("headers", "extensions")
        }

    def again(self, extensions: dict[str, Any]) -> httpx2.Request:
        """The same request once more. Its constructor would parse, copy and read what it came to
        before; so it is not called."""
        request = httpx2.Request.__new__(httpx2.Request)
        vars(request).update(self.fields)
        request.headers = httpx2.Headers(self.headers)
        request.extensions = extensions
        return request


# Options that change neither URL nor headers nor body.
_IRRELEVANT_OPTIONS: Final = frozenset(("timeout", "extensions"))
# With options that change nothing where they are None. Of any other name httpx2 says what is wrong.
_OPTIONS: Final = _IRRELEVANT_OPTIONS | {
    "content", "data", "files", "json", "params", "headers", "cookies"
}  # fmt: skip


class RequestCache:
    """Building a request is a third of what it costs in Python: httpx2 parses its URL and the base
    URL, and merges and encodes the headers, each time anew. So what it came to is kept, for
    as long as the client's own headers and base URL are the same."""

    _MOST: Final = 64
    _LONGEST: Final = 256

    def __init__(self, fields_of: Callable[[httpx2.Headers], HeaderFields]) -> None:
        """``fields_of``: what headers consist of. It may give a list that they change later."""
        self._fields_of = fields_of
        self._of: tuple[httpx2.URL | None, dict[tuple[str, str], _CachedRequest]] = (None, {})

    def build(
        self,
        client: BaseClient,
        has_cookies: bool,
        build: Callable[..., httpx2.Request],
        method: str,
        url: httpx2.URL | str,
        options: dict[str, Any],
    ) -> httpx2.Request:
        timeout = options.get("timeout")
        if timeout is not None and timeout is not httpx2.USE_CLIENT_DEFAULT:
            options["timeout"] = timeout_of(timeout)
        if not isinstance(url, str) or len(url) > self._LONGEST:
            return build(method, located(url, client.base_url), **options)
        base, all_known = self._of
        if base is not client.base_url:  # it was set
            all_known = {}
            self._of = (client.base_url, all_known)
        plain = options.keys() <= _OPTIONS and not client.params and not has_cookies
        for name, value in options.items():
            if value is not None and name not in _IRRELEVANT_OPTIONS:
                plain = False
        known = all_known.get((method, url))
        fields = self._fields_of(client.headers) if plain else None
        if known is None or (plain and known.defaults != fields):
            defaults = None if fields is None else list(fields)
            where = located(url, client.base_url) if known is None else known.url
            request = build(method, where, **options)
            # An empty ``params`` is given, too: it takes the query of the URL away.
            if not client.params and options.get("params") is None:
                if len(all_known) >= self._MOST:
                    all_known.clear()
                # Another thread may have changed the client meanwhile. Then it is not known which
                # headers the request was made with, and whether the jar was empty still.
                if defaults != self._fields_of(client.headers) or "cookie" in request.headers:
                    defaults = None
                all_known[method, url] = _CachedRequest(request, defaults)
            return request
        if not plain:
            return build(method, known.url, **options)
        extensions = dict(options.get("extensions") or ())
        if "timeout" not in extensions:
            timeout = options.get("timeout", httpx2.USE_CLIENT_DEFAULT)
            if timeout is httpx2.USE_CLIENT_DEFAULT:
                timeout = client.timeout
            if not isinstance(timeout, httpx2.Timeout):
                timeout = httpx2.Timeout(timeout)
            extensions["timeout"] = timeout.as_dict()
        return known.again(extensions)
