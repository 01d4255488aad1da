"""Text in headers and cookies that cannot be sent: which of them it is.

httpx2 writes what it is given as text in ASCII, and lets a bare ``UnicodeEncodeError`` pass where
that cannot be, without a word about where the text came from.

Decides what such a failure says; never shows a whole value, which may be a secret. Calls:
_arguments, _errors. Locks: none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from http.cookiejar import CookieJar
from typing import Any

import httpx2

from .._arguments import value_shown
from .._errors import InvalidRequest

__all__ = ["headers_of", "refusal"]


def headers_of(headers: Any) -> httpx2.Headers:  # noqa: ANN401 - whatever the caller gave
    """httpx2's headers made of these, or :class:`InvalidRequest`."""
    try:
        return httpx2.Headers(headers)
    except UnicodeEncodeError as error:
        __tracebackhide__ = True
        raise refusal(error, headers) from error


def refusal(error: UnicodeEncodeError, headers: object, *cookies: object) -> InvalidRequest:
    """What is said of a request that could not be built, or of a client that could not be made,
    from these headers and these kinds of cookies."""
    got = f"got {_character(error)}"
    for name, value in _pairs(headers):
        if error.object == name:
            return InvalidRequest(f"expected a header name in ASCII, {got}: {value_shown(name)}")
        if error.object == value:
            text = name.decode("latin-1") if isinstance(name, bytes) else name
            return InvalidRequest(
                f"expected ASCII text or bytes for the header {value_shown(text)}, {got} of its "
                "value: give bytes in the encoding that the workload reads, such as "
                'value.encode("utf-8")'
            )
    for name, value in _cookies(cookies):
        if not f"{name}{value}".isascii() and name in error.object:
            return InvalidRequest(
                f"expected ASCII text for the cookie {value_shown(name)}, got another character in "
                "its name or value: write it in ASCII, such as urllib.parse.quote(value)"
            )
    return InvalidRequest(
        f"expected text for this request that can be written in {error.encoding}, {got}"
    )


def _character(error: UnicodeEncodeError) -> str:
    character = error.object[error.start : error.start + 1]
    return f"U+{ord(character):04X} at position {error.start}"


def _pairs(headers: object) -> Iterator[tuple[object, object]]:
    """Of any form that httpx2 takes; none of what was stepped through and is gone."""
    if isinstance(headers, Mapping):
        yield from headers.items()
    elif isinstance(headers, list | tuple):
        for pair in headers:
            if isinstance(pair, list | tuple) and len(pair) == 2:
                yield pair[0], pair[1]


def _cookies(kinds: Iterable[object]) -> Iterator[tuple[str, str]]:
    for cookies in kinds:
        jar = getattr(cookies, "jar", cookies)
        if isinstance(jar, CookieJar):
            for cookie in jar:
                yield cookie.name, cookie.value or ""
            continue
        for name, value in _pairs(jar):
            if isinstance(name, str) and isinstance(value, str):
                yield name, value
