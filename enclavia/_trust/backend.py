"""Asks a backend for an enclave's row and its upgrade chain.

The backend is not trusted: what it serves is verified by the walk. It is asked over HTTPS (HTTP on
loopback, for tests), no more is read than 4 MiB a text, and no other host is asked in its place.

Decides which answers are worth another attempt. Calls: _arguments, _errors, _io, _text. Locks:
none.
"""

from __future__ import annotations

import ipaddress
import logging
from typing import Any, Final

import httpx2

from .._arguments import value_shown
from .._errors import BackendError, ConnectTimeout
from .._io.face import Io, time_left
from .._text import shown
from .served import MOST_BYTES

__all__ = ["checked_backend", "checked_token", "fetch_chain"]

logger = logging.getLogger("enclavia")

_TIMEOUT: Final = 10.0
"""Seconds for each of connecting, sending, and waiting for bytes."""
_MOST_REDIRECTS: Final = 3
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_PRIVATE: Final = (401, 403, 404)
_PASSING: Final = (httpx2.HTTPError, OSError, RuntimeError)
"""What may be otherwise soon. RuntimeError: no thread can be started."""
_LASTING: Final = (httpx2.InvalidURL, ImportError, ValueError, ExceptionGroup)
"""A proxy that the environment names needs a package that is not there, or is none. Not every
Exception: a signal's handler may raise any other one."""


def checked_backend(value: object) -> str:
    """Without a slash at its end."""
    if not isinstance(value, str | httpx2.URL):
        raise TypeError(
            f"backend: expected a URL as text or httpx2.URL, got {type(value).__name__}"
        )
    try:
        url = httpx2.URL(value)
        host = url.host
    except (httpx2.InvalidURL, ValueError):
        raise ValueError(
            f"backend: expected the URL of a backend, got {value_shown(str(value))}"
        ) from None
    given = str(url)
    if url.userinfo or "?" in given or "#" in given or not host:
        raise ValueError(
            "backend: expected a URL of scheme, host and path alone, got one without a host, or "
            "with credentials, a query or a fragment (token= is for the token)"
        )
    if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(host)):
        raise ValueError(
            f"backend: expected https:// (http:// on loopback alone), got {url.scheme}://"
        )
    return given.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked_token(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"token: expected text or None, got {type(value).__name__}")
    # Its value is in no message.
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("token: expected printable ASCII without spaces, got other characters")
    return value


async def fetch_chain(
    io: Io[Any],
    backend: str,
    enclave_id: str,
    token: str | None,
    deadline: float | None,
) -> tuple[bytes, bytes]:
    """The texts of the row and of the links. Raises BackendError, or ConnectTimeout where the
    deadline passes."""
    row = await _get(io, f"{backend}/enclaves/{enclave_id}", token, deadline)
    links = await _get(io, f"{backend}/enclaves/{enclave_id}/upgrade-chain", token, deadline)
    return row, links


async def _get(io: Io[Any], url: str, token: str | None, deadline: float | None) -> bytes:
    # Imported late: it brings what only fetching needs.
    from .._io.fetching import Fetch

    headers = [("Accept", "application/json"), ("Accept-Encoding", "identity")]
    if token is not None:
        headers.append(("Authorization", f"Bearer {token}"))
    origin = httpx2.URL(url)
    at = origin
    for _ in range(_MOST_REDIRECTS + 1):
        secure = at.scheme == "https"
        wanted = Fetch(str(at), tuple(headers), MOST_BYTES, _TIMEOUT, environment=secure)
        failure: BackendError | None = None
        try:
            answer = await io.fetch(wanted, time_left(deadline))
        except (*_PASSING, *_LASTING) as error:
            failure = BackendError(
                f"the backend {origin.host} cannot be reached: {_said(error)}",
                retryable=isinstance(error, _PASSING),
            )
        if failure is not None:
            # Outside of the handler: httpx2's error, which would be the context of this one there,
            # has the request and with it the token.
            raise failure
        if answer is None:
            raise ConnectTimeout(
                f"expected the upgrade chain from the backend {origin.host} before the time to "
                "connect was over, got none"
            )
        if answer.status not in _REDIRECTS:
            return _body(origin, answer)
        at = _redirected(origin, at, answer.location)
    raise BackendError(f"the backend {origin.host} redirects in a circle", retryable=False)


def _said(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {shown(str(error), 200)}" if str(error) else type(error).__name__
    )


def _redirected(origin: httpx2.URL, at: httpx2.URL, location: str | None) -> httpx2.URL:
    try:
        to = at.join(location or "")
    except (httpx2.InvalidURL, ValueError):
        to = httpx2.URL("")
    same = (to.scheme, to.host, to.port) == (origin.scheme, origin.host, origin.port)
    if not location or not same:
        raise BackendError(
            f"expected an answer of the backend {origin.host}, got a redirect to another place "
            f"({shown(to.host or 'nowhere', 100)}): nothing was sent there",
            retryable=False,
        )
    return to


def _body(origin: httpx2.URL, answer: Any) -> bytes:  # noqa: ANN401 - of a module imported late
    status = answer.status
    if status in _PRIVATE:
        raise BackendError(
            f"the backend {origin.host} does not show this enclave (HTTP {status}): a private one "
            "needs token=, and the enclave_id has to be right",
            status=status,
            retryable=False,
        )
    if status != 200:
        raise BackendError(
            f"expected HTTP 200 from the backend {origin.host}, got {status}",
            status=status,
            retryable=status in (408, 429) or status >= 500,
        )
    if answer.encoding not in (None, "", "identity"):
        raise BackendError(
            f"expected plain JSON from the backend {origin.host}, got it compressed "
            f"({shown(answer.encoding, 40)})",
            status=status,
            retryable=False,
        )
    if len(answer.body) > MOST_BYTES:
        raise BackendError(
            f"expected at most {MOST_BYTES} bytes from the backend {origin.host}, got more",
            status=status,
            retryable=False,
        )
    body: bytes = answer.body
    return body
