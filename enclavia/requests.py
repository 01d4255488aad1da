"""The enclave for `requests <https://requests.readthedocs.io>`_: an adapter to mount.

Needs ``pip install 'enclavia[requests]'``.

>>> with session(url, pcrs=pcrs) as enclave:
...     enclave.get(enclave.base_url + "health", timeout=5)

>>> adapter = EnclaveAdapter(url, pcrs=pcrs)
>>> with requests.Session() as own:
...     adapter.mount_on(own)
...     own.get(adapter.base_url + "health", timeout=5)
"""

# Decides which error of requests an error is, and which options of an adapter have a meaning here.
# Calls: _arguments, _channel, _client, _errors, _exchange, _identity, _trust. Locks: none.

from __future__ import annotations

import copy
import enum
import http.client
import io
import re
import urllib.parse
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

import httpx2

from ._arguments import timeout as checked_timeout
from ._arguments import value_shown
from ._channel.authority import names_enclave
from ._channel.url import EnclaveURL
from ._client.options import TransportOptions
from ._client.settings import Settings
from ._client.transport import EnclaveTransport
from ._errors import (
    AttestationError,
    BackendError,
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
from ._exchange.engine import Stats
from ._identity.attestation import Attestation
from ._trust.receipts import Receipt

try:
    import requests
    import requests.adapters
    import requests.exceptions as theirs
    import urllib3
    import urllib3.exceptions as urllib3_errors
    from requests.auth import _basic_auth_str
    from requests.cookies import extract_cookies_to_jar
    from requests.structures import CaseInsensitiveDict
    from requests.utils import get_auth_from_url, get_encoding_from_headers, requote_uri
except ImportError as error:
    raise ImportError(
        "enclavia.requests needs requests, which is not installed: "
        "pip install 'enclavia[requests]'",
        name=error.name,
    ) from None

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["EnclaveAdapter", "EnclaveSession", "session"]

_READ_SIZE = 65_536
# An attribute of every cookie that came out of the tunnel, in the jar of its session.
_OF_THE_TUNNEL = "enclavia-tunnel"
# Of these nobody expects a body, so that none need not be said (RFC 9110, section 8.6).
_WITHOUT_BODY = frozenset(("GET", "HEAD", "DELETE", "TRACE", "OPTIONS", "CONNECT"))


class _BodyTimeout(theirs.ReadTimeout, theirs.ConnectionError):
    """Requests reports a timeout within a body as a ConnectionError."""


class _WriteTimeout(theirs.Timeout, theirs.ConnectionError):
    """Requests reports a timeout while it sends as a ConnectionError."""


_CONFLICTING_LENGTH = re.compile(r"expected an HTTP/1\.1 response head: [\w ]*Content-Length")


def _before_answer(
    adapter: EnclaveAdapter, request: requests.PreparedRequest, error: EnclaviaError
) -> theirs.RequestException:
    """What requests raises where the same happens to a socket: its class, and as ``args[0]`` the
    error of urllib3 that it wraps. An unproven enclave is to this channel what a bad certificate is
    to TLS."""
    text, url = str(error), request.path_url
    pool = cast(Any, adapter)  # urllib3's errors only print it

    def connecting(reason: Exception) -> urllib3_errors.MaxRetryError:
        return urllib3_errors.MaxRetryError(pool, url, reason)

    def aborted(reason: Exception) -> urllib3_errors.ProtocolError:
        return urllib3_errors.ProtocolError("Connection aborted.", reason)

    cls: type[theirs.RequestException]
    inner: Exception | str
    match error:
        case ConnectTimeout() | PoolTimeout():
            cls = theirs.ConnectTimeout
            inner = connecting(urllib3_errors.ConnectTimeoutError(text))
        case ReadTimeout():
            cls = theirs.ReadTimeout
            inner = urllib3_errors.ReadTimeoutError(pool, url, f"Read timed out. ({text})")
        case WriteTimeout():
            cls, inner = _WriteTimeout, aborted(TimeoutError(text))
        case AttestationError() | UpgradeChainError():
            cls, inner = theirs.SSLError, connecting(urllib3_errors.SSLError(text))
        case ForeignURL() | InvalidURL():
            cls, inner = theirs.InvalidURL, text
        case ConnectError() | BackendError():
            cls = theirs.ConnectionError
            inner = connecting(urllib3_errors.NewConnectionError(pool, text))
        case ConnectionClosed():
            cls, inner = theirs.ConnectionError, aborted(http.client.RemoteDisconnected(text))
        case ServerError():
            cls, inner = theirs.ConnectionError, aborted(ConnectionResetError(text))
        case ProtocolError() if _CONFLICTING_LENGTH.fullmatch(text):
            cls, inner = theirs.InvalidHeader, urllib3_errors.InvalidHeader(text)
        case ProtocolError():
            cls, inner = theirs.ConnectionError, aborted(http.client.HTTPException(text))
        case _:
            cls, inner = theirs.RequestException, text
    return cls(inner, request=request)


class EnclaveAdapter(requests.adapters.BaseAdapter):
    """Carries the requests of a :class:`requests.Session` to one enclave.

    To be mounted with :meth:`mount_on`. Takes the keywords of :class:`enclavia.EnclaveTransport`.
    ``verify``, ``cert`` and ``proxies`` of the session are about TLS to a host, which there is
    none of here; the adapter has its own ``verify`` and ``proxy``. A request's ``timeout`` is
    (connect, read) as ever; where there is none, the adapter's own holds (30 s by default).
    """

    def __init__(self, url: str | httpx2.URL, **options: Unpack[TransportOptions]) -> None:
        super().__init__()
        settings = Settings.build(url, type(self).__name__, **options)
        settings.config.warn_debug()
        self._enclave = EnclaveTransport._of(settings)

    @property
    def base_url(self) -> str:
        """What the URLs of requests begin with: ``https://<authority>/``.

        Only a session on which this adapter is mounted reaches the enclave by it. Handed to any
        other library or session, it is the URL of the router, which would read the requests.
        """
        return str(self._enclave.base_url)

    def mount_on(self, session: requests.Session) -> None:
        """Mounts it so that nothing for this enclave can leave by another adapter of the session.

        The adapters that the session has by now are kept for other hosts. What they are asked to
        send to the enclave's authority goes into the tunnel: by ``http://`` too, with a user name,
        an explicit default port, a final dot, or in any other spelling. A cookie that the enclave
        has set stays in the tunnel too: the other adapters do not send it, not even to another port
        of its host. Call it after the session's other adapters are mounted: one that is mounted
        later is not held back.
        """
        if not isinstance(session, requests.Session):
            raise TypeError(f"session: expected a requests.Session, got {type(session).__name__}")
        for prefix, other in list(session.adapters.items()):
            if not isinstance(other, EnclaveAdapter) and not (
                isinstance(other, _Beside) and other.enclave is self
            ):
                session.mount(prefix, _Beside(self, other))
        for prefix in (self.base_url, f"http://{self._url.authority}/"):
            session.mount(prefix, self)

    @property
    def _url(self) -> EnclaveURL:
        return self._enclave._settings.config.url

    def _names(self, url: str | None) -> bool:
        """Whether the URL names this enclave, read as requests' own adapter would read it."""
        try:
            parsed = urllib3.util.parse_url(url or "")
        except urllib3_errors.LocationParseError:
            return False
        return names_enclave(self._url, parsed.scheme or "", parsed.host or "", parsed.port)

    @property
    def attestation(self) -> Attestation:
        """What was verified when the newest channel was opened."""
        return self._enclave.attestation

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """Of each verified document, the newest last; at most 64."""
        return self._enclave.receipts

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
                "cert: expected None, got a certificate: the client stays anonymous to an enclave; "
                "authenticate inside the channel (auth, headers)"
            )
        outgoing = self._outgoing(request, timeout, proxies or {})
        try:
            incoming = self._enclave.handle_request(outgoing)
        except EnclaviaError as error:
            raise _before_answer(self, request, error) from error
        return self._response(request, _Raw(self, request, incoming))

    def _response(self, request: requests.PreparedRequest, raw: _Raw) -> requests.Response:
        response = requests.Response()
        response.status_code = raw.status
        response.headers = CaseInsensitiveDict(raw.headers)
        self._keep_inside(response.headers, request.url or "")
        response.encoding = get_encoding_from_headers(response.headers)
        response.raw = raw
        response.reason = raw.reason or ""
        response.url = request.url or ""
        extract_cookies_to_jar(response.cookies, request, raw)
        response.request = request
        response.connection = self  # type: ignore[assignment]
        return response

    def _keep_inside(self, headers: CaseInsensitiveDict[str], url: str) -> None:
        """Writes a Location that names this enclave as the request's URL does.

        A workload often writes ``http://`` before the authority of the Host header. A session goes
        by the text of a URL, and would send what follows outside the tunnel.
        """
        name = next((name for name in headers if name.lower() == "location"), None)
        if name is None:
            return
        try:
            text = headers[name].encode("latin-1").decode("utf-8")
            asked = urllib.parse.urlsplit(url)
            if text.startswith("//"):
                text = f"{asked.scheme}:{text}"
            location = urllib.parse.urlsplit(text)
        except ValueError:
            return  # requests refuses it
        netloc = asked.netloc.rpartition("@")[2]
        if not location.netloc or (location.scheme, location.netloc) == (asked.scheme, netloc):
            return
        if self._names(requote_uri(text)):
            headers[name] = location._replace(scheme=asked.scheme, netloc=netloc).geturl()

    def _outgoing(
        self, request: requests.PreparedRequest, timeout: object, proxies: Mapping[str, str]
    ) -> httpx2.Request:
        extensions: dict[str, Any] = {"target": _bytes(request.path_url)}
        allowed = _timeouts(timeout)
        if allowed is not None:
            extensions["timeout"] = allowed
        url = request.url or ""
        if self._names(url):
            url = self.base_url.removesuffix("/") + request.path_url
        for_proxies = [_credentials(proxy) for proxy in proxies.values()]
        headers = [
            (_bytes(name), _bytes(value))
            for name, value in request.headers.items()
            # A session adds this where it follows a redirect and has a proxy for http://.
            if not (name.lower() == "proxy-authorization" and value in for_proxies)
        ]
        method = request.method or "GET"
        framed = "Content-Length" in request.headers or "Transfer-Encoding" in request.headers
        if request.body is None and not framed and method.upper() not in _WITHOUT_BODY:
            # A redirect takes the length away with the body; urllib3 says it again.
            headers.insert(0, (b"Content-Length", b"0"))
        return httpx2.Request(
            method,
            url,
            headers=headers,
            content=_content(request.body),
            extensions=extensions,
        )

    def close(self) -> None:
        self._enclave.close()

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._enclave = copy.copy(self._enclave)
        return made

    def __repr__(self) -> str:
        return f"<EnclaveAdapter {self._enclave.shown}>"


class _Beside(requests.adapters.BaseAdapter):
    """Another adapter of a session, which is not asked for what names the enclave."""

    def __init__(self, enclave: EnclaveAdapter, other: requests.adapters.BaseAdapter) -> None:
        super().__init__()
        self.enclave = enclave
        self.other = other

    def send(
        self,
        request: requests.PreparedRequest,
        *args: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> requests.Response:
        if self.enclave._names(request.url):
            return self.enclave.send(request, *args, **options)
        _keep_cookies_inside(request)
        return self.other.send(request, *args, **options)

    def close(self) -> None:
        self.other.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what the other has
        if name == "other" or name.startswith("__"):  # pickle looks for these, on half an object
            raise AttributeError(name)
        return getattr(self.other, name)


def _keep_cookies_inside(request: requests.PreparedRequest) -> None:
    """Takes out what an answer inside the tunnel has set. A jar knows hosts and no ports (RFC 6265,
    section 8.5), so it adds the enclave's cookies to what goes to any port of the same host, and by
    ``http://`` as well: a redirect from anywhere could have them read on the way."""
    sent = request.headers.get("Cookie")
    inside = {
        cookie.name if cookie.value is None else f"{cookie.name}={cookie.value}"
        for cookie in getattr(request, "_cookies", None) or ()
        if cookie.has_nonstandard_attr(_OF_THE_TUNNEL)
    }
    if not sent or not inside:
        return
    text = sent if isinstance(sent, str) else bytes(sent).decode("latin-1")
    kept = [pair for pair in text.split("; ") if pair not in inside]
    if kept:
        request.headers["Cookie"] = "; ".join(kept)
    else:
        del request.headers["Cookie"]


class EnclaveSession(requests.Session):
    """A session that reaches one enclave and nothing else: no other host, no proxy, and nothing of
    the environment (``~/.netrc``, ``NETRC``, ``HTTPS_PROXY``, ``REQUESTS_CA_BUNDLE``)."""

    def __init__(self, adapter: EnclaveAdapter) -> None:
        if not isinstance(adapter, EnclaveAdapter):
            raise TypeError(
                f"adapter: expected an EnclaveAdapter, got {type(adapter).__name__}; "
                "enclavia.requests.session(url) makes both"
            )
        super().__init__()
        self.trust_env = False
        self.adapters.clear()
        self.mount(adapter.base_url, adapter)

    @property
    def _adapter(self) -> EnclaveAdapter:
        return next(a for a in self.adapters.values() if isinstance(a, EnclaveAdapter))

    @property
    def base_url(self) -> str:
        """What the URLs of requests begin with. See :attr:`EnclaveAdapter.base_url`."""
        return self._adapter.base_url

    @property
    def attestation(self) -> Attestation:
        """What was verified last; StateError before the first connection."""
        return self._adapter.attestation

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """See :attr:`EnclaveAdapter.receipts`."""
        return self._adapter.receipts

    @property
    def stats(self) -> Stats:
        """See :attr:`EnclaveAdapter.stats`."""
        return self._adapter.stats

    def __copy__(self) -> Self:
        """With an adapter, cookies, headers and hooks of its own."""
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.adapters = copy.copy(self.adapters)
        for prefix, adapter in self.adapters.items():
            made.adapters[prefix] = copy.copy(adapter)
        made.headers = self.headers.copy()
        made.cookies = self.cookies.copy()
        made.hooks = {name: list(each) for name, each in self.hooks.items()}
        return made

    def get_adapter(self, url: str) -> requests.adapters.BaseAdapter:
        adapter = self._adapter
        if adapter._names(url):
            return adapter
        try:
            return super().get_adapter(url)
        except theirs.InvalidSchema:
            raise theirs.InvalidSchema(
                f"expected a URL of this session's enclave, {self.base_url}…, got "
                f"{value_shown(url)}: use another session for it"
            ) from None


def session(url: str | httpx2.URL, **options: Unpack[TransportOptions]) -> EnclaveSession:
    """A session that can reach this enclave and nothing else, redirects included."""
    return EnclaveSession(EnclaveAdapter(url, **options))


def _credentials(proxy: str) -> str | None:
    """What a session says for a proxy in Proxy-Authorization."""
    user, password = get_auth_from_url(proxy)
    return _basic_auth_str(user, password) if user and password else None


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
        timeout = _of_urllib3(*timeout)
    elif isinstance(timeout, urllib3.Timeout):
        timeout = timeout.clone()
        timeout.start_connect()  # what is left of a total is counted from here
    else:
        timeout = _of_urllib3(timeout, timeout)
    connect = _seconds("connect", timeout.connect_timeout)
    read = _seconds("read", timeout.read_timeout)
    return {"connect": connect, "pool": connect, "read": read, "write": read}


def _of_urllib3(connect: object, read: object) -> urllib3.Timeout:
    """Refuses what requests refuses, with a ValueError as there."""
    try:
        return urllib3.Timeout(connect=cast(Any, connect), read=cast(Any, read))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            "timeout: expected seconds above 0, None, or (connect, read), got "
            f"{value_shown((connect, read))}: {error}"
        ) from None


def _seconds(name: str, value: object) -> float | None:
    """urllib3's mark for "the default of sockets" is an enumeration's member."""
    return None if isinstance(value, enum.Enum) else checked_timeout(f"timeout ({name})", value)


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
        length = incoming.headers.get("content-length")
        self._missing = int(length) if length and length.isdecimal() else None
        self._received = 0
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
        """Raises what urllib3 knows of http.client: it makes its own errors of these."""
        try:
            piece = next(self._pieces, b"")
        except ReadTimeout:
            raise
        except ConnectionClosed as error:
            if self._missing is None:
                raise ConnectionError(str(error)) from error
            raise urllib3_errors.IncompleteRead(self._received, self._missing) from error
        except EnclaviaError as error:
            raise ConnectionError(str(error)) from error
        self._received += len(piece)
        if self._missing is not None:
            self._missing -= len(piece)
        return piece

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
            if name.lower() == "set-cookie":
                value = f"{value}; {_OF_THE_TUNNEL}"
            self.msg.add_header(name, value)
        self._body = body

    def isclosed(self) -> bool:
        return self._body.closed

    def close(self) -> None:
        self._body.close()


class _Raw(urllib3.HTTPResponse):
    """``response.raw``. Decoding, buffering and counting are urllib3's."""

    def __init__(
        self,
        adapter: EnclaveAdapter,
        request: requests.PreparedRequest,
        incoming: httpx2.Response,
    ) -> None:
        self._request = request
        self.extensions = incoming.extensions
        """``"enclavia"``: the receipt of the channel that the answer came over."""
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
            pool=cast(Any, adapter),  # errors print it; without a connection it is not used
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
        except urllib3_errors.HTTPError as error:
            ours = _ours(error)
            if ours is None:
                raise
            cls = _BodyTimeout if isinstance(ours, ReadTimeout) else theirs.ChunkedEncodingError
            raise cls(error, request=self._request) from ours


def _ours(error: BaseException | None) -> EnclaviaError | None:
    while error is not None and not isinstance(error, EnclaviaError):
        error = error.__cause__
    return error
