"""The enclave for `requests <https://requests.readthedocs.io>`_: an adapter to mount.

Needs ``pip install 'enclavia[requests]'``.

>>> adapter = EnclaveAdapter(url, pcrs=pcrs)
>>> with requests.Session() as session:
...     session.mount(adapter.base_url, adapter)
...     session.get(adapter.base_url + "health", timeout=5)
"""

from __future__ import annotations

import http.client
import io
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Unpack, cast

import httpx2

from ._attestation import Attestation
from ._errors import (
    AttestationError,
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    EnclaviaError,
    ForeignURL,
    InvalidURL,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    ServerError,
    UpgradeChainError,
    WriteTimeout,
)
from ._flow import Stats
from ._transport import EnclaveTransport, Settings, TransportOptions

try:
    import requests
    import requests.adapters
    import requests.exceptions as theirs
    import urllib3
    from requests.cookies import extract_cookies_to_jar
    from requests.structures import CaseInsensitiveDict
    from requests.utils import get_encoding_from_headers
except ImportError as error:
    raise ImportError(
        "enclavia.requests needs requests, which is not installed: "
        "pip install 'enclavia[requests]'",
        name=error.name,
    ) from None

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["EnclaveAdapter", "session"]

_READ_SIZE = 65_536


class _BodyTimeout(theirs.ReadTimeout, theirs.ConnectionError):
    """Requests reports a timeout within a body as a ConnectionError."""


# The first that fits. Before an answer, as requests does it; an unproven enclave is to this channel
# what a bad certificate is to TLS.
_BEFORE: tuple[tuple[type[EnclaviaError], type[theirs.RequestException]], ...] = (
    (ConnectTimeout, theirs.ConnectTimeout),
    (PoolTimeout, theirs.ConnectTimeout),
    (ReadTimeout, theirs.ReadTimeout),
    (WriteTimeout, theirs.Timeout),
    (AttestationError, theirs.SSLError),
    (UpgradeChainError, theirs.SSLError),
    (ForeignURL, theirs.InvalidURL),
    (InvalidURL, theirs.InvalidURL),
    (ConnectError, theirs.ConnectionError),
    (ConnectionClosed, theirs.ConnectionError),
    (ServerError, theirs.ConnectionError),
    (ProtocolError, theirs.ConnectionError),
)
_WITHIN_BODY: tuple[tuple[type[EnclaviaError], type[theirs.RequestException]], ...] = (
    (ReadTimeout, _BodyTimeout),
    (EnclaviaError, theirs.ChunkedEncodingError),
)


def _refuse(
    error: EnclaviaError,
    table: tuple[tuple[type[EnclaviaError], type[theirs.RequestException]], ...],
    request: requests.PreparedRequest,
) -> NoReturn:
    cls = next((cls for ours, cls in table if isinstance(error, ours)), theirs.RequestException)
    raise cls(str(error), request=request) from error


class EnclaveAdapter(requests.adapters.BaseAdapter):
    """Carries the requests of a :class:`requests.Session` to one enclave.

    To be mounted on :attr:`base_url`. Takes the keywords of :class:`enclavia.EnclaveTransport`.
    ``verify``, ``cert`` and ``proxies`` of the session are about TLS to a host, which there is
    none of here; the adapter has its own ``verify`` and ``proxy``. A request's ``timeout`` is
    (connect, read) as ever; where there is none, the adapter's own holds (30 s by default).
    """

    def __init__(self, url: str | httpx2.URL, **options: Unpack[TransportOptions]) -> None:
        super().__init__()
        settings = Settings.build(url, **options)
        settings.config.warn_debug(stacklevel=2)
        self._enclave = EnclaveTransport._of(settings)

    @property
    def base_url(self) -> str:
        """What to mount it on, and what the URLs of requests begin with."""
        return str(self._enclave.base_url)

    @property
    def attestation(self) -> Attestation:
        """What was verified when the newest channel was opened."""
        return self._enclave.attestation

    @property
    def stats(self) -> Stats:
        """What this adapter did and holds, in this process."""
        return self._enclave.stats

    def connect(self, timeout: float | None = None) -> None:
        """Connects and verifies now, with enclavia's own errors where that fails."""
        self._enclave.connect(timeout)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,  # noqa: ANN401 - a number, a pair or urllib3's Timeout
        verify: bool | str = True,
        cert: Any = None,  # noqa: ANN401
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        if cert is not None:
            raise ValueError(
                "cert: the client stays anonymous to an enclave; authenticate inside the channel "
                "(auth, headers)"
            )
        outgoing = _outgoing(request, timeout)
        try:
            incoming = self._enclave.handle_request(outgoing)
        except EnclaviaError as error:
            _refuse(error, _BEFORE, request)
        return self._response(request, _Raw(request, incoming))

    def _response(self, request: requests.PreparedRequest, raw: _Raw) -> requests.Response:
        response = requests.Response()
        response.status_code = raw.status
        response.headers = CaseInsensitiveDict(raw.headers)
        response.encoding = get_encoding_from_headers(response.headers)
        response.raw = raw
        response.reason = raw.reason or ""
        response.url = request.url or ""
        extract_cookies_to_jar(response.cookies, request, raw)
        response.request = request
        response.connection = self  # type: ignore[assignment]
        return response

    def close(self) -> None:
        self._enclave.close()

    def __repr__(self) -> str:
        return f"<EnclaveAdapter {self._enclave._settings.config.url}>"


def session(url: str | httpx2.URL, **options: Unpack[TransportOptions]) -> requests.Session:
    """A session that can reach this enclave and nothing else, redirects included."""
    adapter = EnclaveAdapter(url, **options)
    made = requests.Session()
    made.adapters.clear()
    made.mount(adapter.base_url, adapter)
    return made


def _outgoing(request: requests.PreparedRequest, timeout: object) -> httpx2.Request:
    extensions: dict[str, Any] = {"target": _bytes(request.path_url)}
    allowed = _timeouts(timeout)
    if allowed is not None:
        extensions["timeout"] = allowed
    return httpx2.Request(
        request.method or "GET",
        request.url or "",
        headers=[(_bytes(name), _bytes(value)) for name, value in request.headers.items()],
        content=_content(request.body),
        extensions=extensions,
    )


def _bytes(text: str | bytes) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else text


def _timeouts(timeout: object) -> dict[str, float | None] | None:
    if timeout is None:
        return None
    if isinstance(timeout, tuple):
        if len(timeout) != 2:
            raise ValueError(
                f"timeout: expected a number or (connect, read), got {len(timeout)} numbers"
            )
        timeout = urllib3.Timeout(connect=timeout[0], read=timeout[1])
    elif not isinstance(timeout, urllib3.Timeout):
        timeout = urllib3.Timeout(connect=cast(Any, timeout), read=cast(Any, timeout))
    connect, read = _seconds(timeout.connect_timeout), _seconds(timeout.read_timeout)
    return {"connect": connect, "pool": connect, "read": read, "write": read}


def _seconds(value: object) -> float | None:
    """urllib3's mark for "the default of sockets" is an enumeration's member."""
    return float(value) if isinstance(value, int | float) and not hasattr(value, "name") else None


def _content(body: object) -> bytes | str | Iterable[bytes] | None:
    if body is None or isinstance(body, bytes | str):
        return body
    if isinstance(body, bytearray | memoryview):
        return bytes(body)
    return _from_file(body) if hasattr(body, "read") else _from_pieces(cast(Iterable[Any], body))


def _from_file(file: Any) -> Iterator[bytes]:  # noqa: ANN401 - anything with read()
    while piece := file.read(_READ_SIZE):
        yield piece.encode() if isinstance(piece, str) else piece


def _from_pieces(pieces: Iterable[str | bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece.encode() if isinstance(piece, str) else piece


class _Body(io.RawIOBase):
    """An answer's body, as http.client offers it: ``read`` fills, ``read1`` takes what is there."""

    def __init__(self, incoming: httpx2.Response) -> None:
        super().__init__()
        self._stream = cast(httpx2.SyncByteStream, incoming.stream)
        self._pieces = iter(self._stream)
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if not self._piece:
            self._piece = memoryview(self._next())
        taken = min(len(view), len(self._piece))
        view[:taken], self._piece = self._piece[:taken], self._piece[taken:]
        return taken

    def _next(self) -> bytes:
        try:
            return next(self._pieces, b"")
        except TimeoutError:
            raise
        except EnclaviaError as error:
            # urllib3 gives its errors to what is an OSError only.
            raise ConnectionError(str(error)) from error

    def read(self, n: int | None = -1, /) -> bytes:
        if n is None or n < 0:
            return self.readall()
        filled = bytearray()
        while len(filled) < n and (piece := self.read1(n - len(filled))):
            filled += piece
        return bytes(filled)

    def read1(self, n: int = -1, /) -> bytes:
        buffer = bytearray(_READ_SIZE if n < 0 else min(n, _READ_SIZE))
        return bytes(buffer[: self.readinto(buffer)])

    def close(self) -> None:
        if not self.closed:
            try:
                self._stream.close()
            finally:
                super().close()


class _Original:
    """What requests and urllib3 want of http.client's response: cookies, and an end."""

    def __init__(self, headers: Iterable[tuple[str, str]], body: _Body) -> None:
        self.msg = http.client.HTTPMessage()
        for name, value in headers:
            self.msg.add_header(name, value)
        self._body = body

    def isclosed(self) -> bool:
        return self._body.closed

    def close(self) -> None:
        self._body.close()


class _Raw(urllib3.HTTPResponse):
    """``response.raw``. Decoding, buffering and counting are urllib3's."""

    def __init__(self, request: requests.PreparedRequest, incoming: httpx2.Response) -> None:
        self._request = request
        body = _Body(incoming)
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in incoming.headers.raw
        ]
        named = urllib3.HTTPHeaderDict()
        for name, value in headers:
            named.add(name, value)
        super().__init__(
            body=body,
            headers=named,
            status=incoming.status_code,
            version=10 if incoming.http_version == "HTTP/1.0" else 11,
            version_string=incoming.http_version,
            reason=incoming.reason_phrase,
            preload_content=False,
            decode_content=False,
            enforce_content_length=False,  # our parser has counted already
            original_response=cast(Any, _Original(headers, body)),
            request_method=request.method,
            request_url=request.url,
        )
        self.length_remaining = None  # else the last byte of a body closes it, before its end

    def stream(
        self, amt: int | None = _READ_SIZE, decode_content: bool | None = None
    ) -> Generator[bytes, None, None]:
        """Pieces as they come: whoever streams does not want to wait until ``amt`` is full."""
        try:
            while data := self.read1(amt, decode_content):
                yield data
        except urllib3.exceptions.HTTPError as error:
            ours = _ours(error)
            if ours is None:
                raise
            _refuse(ours, _WITHIN_BODY, self._request)


def _ours(error: BaseException | None) -> EnclaviaError | None:
    while error is not None and not isinstance(error, EnclaviaError):
        error = error.__cause__
    return error
