"""The enclave for classic `httpx <https://www.python-httpx.org>`_: transports for its clients.

Needs ``pip install 'enclavia[httpx]'``. New code has :class:`enclavia.Client`, an httpx2 client.

>>> transport = EnclaveTransport(url, pcrs=pcrs)
>>> with httpx.Client(transport=transport, base_url=transport.base_url) as client:
...     client.get("/health")
"""

# Decides which error of classic httpx an error is. Calls: _channel, _client, _errors, _exchange,
# _identity, _trust. Locks: none.

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, Self, Unpack, cast

import httpx2

from ._channel.authority import keep_inside, url_names_enclave
from ._channel.url import EnclaveURL
from ._client.async_transport import AsyncEnclaveTransport as _AsyncEnclaveTransport
from ._client.instrumented import instrumented
from ._client.options import TransportOptions
from ._client.settings import Settings
from ._client.transport import EnclaveTransport as _EnclaveTransport
from ._errors import EnclaviaError, IncompleteResponse
from ._exchange.engine import Stats
from ._identity.attestation import Attestation
from ._trust.receipts import Receipt

try:
    import httpcore
    import httpx
except ImportError as error:
    raise ImportError(
        "enclavia.httpx needs httpx, which is not installed: pip install 'enclavia[httpx]'",
        name=error.name,
    ) from None

__all__ = ["AsyncEnclaveTransport", "EnclaveTransport"]


class _Known(Protocol):
    _settings: Settings

    @property
    def base_url(self) -> httpx2.URL: ...
    @property
    def shown(self) -> str: ...
    @property
    def attestation(self) -> Attestation: ...
    @property
    def receipts(self) -> tuple[Receipt, ...]: ...
    @property
    def stats(self) -> Stats: ...


class _About:
    _enclave: _Known

    @property
    def base_url(self) -> str:
        """What relative URLs of requests are relative to: ``https://<authority>/``.

        Only a client that has this transport reaches the enclave by it. Handed to any other
        library or client, it is the URL of the router, which would read the requests.
        """
        return str(self._enclave.base_url)

    @property
    def _url(self) -> EnclaveURL:
        return self._enclave._settings.config.url

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._enclave = copy.copy(self._enclave)
        return made

    def _names(self, url: httpx.URL) -> bool:
        return url_names_enclave(self._url, url)

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
        """What this transport did and holds, in this process."""
        return self._enclave.stats

    def _outgoing(
        self, request: httpx.Request, stream: httpx2.SyncByteStream | httpx2.AsyncByteStream
    ) -> httpx2.Request:
        url, headers = str(request.url), request.headers.raw
        if self._names(request.url):
            url = self.base_url.removesuffix("/") + request.url.raw_path.decode("ascii")
            if request.headers.get("host") == request.url.netloc.decode("ascii"):
                host = self._enclave.base_url.netloc
                headers = [(n, host if n.lower() == b"host" else v) for n, v in headers]
        return httpx2.Request(
            request.method,
            url,
            headers=headers,
            stream=stream,
            extensions={"target": request.url.raw_path, **request.extensions},
        )

    def _incoming(
        self,
        request: httpx.Request,
        response: httpx2.Response,
        stream: httpx.SyncByteStream | httpx.AsyncByteStream,
        network_stream: Any,  # noqa: ANN401 - NetworkStream or AsyncNetworkStream
    ) -> httpx.Response:
        extensions = dict(response.extensions)
        if "network_stream" in extensions:
            extensions["network_stream"] = network_stream(extensions["network_stream"])
        incoming = httpx.Response(
            response.status_code,
            headers=response.headers.raw,
            stream=stream,
            extensions=extensions,
        )
        if "location" in incoming.headers:
            keep_inside(self._url, incoming.headers, request.url, httpx.InvalidURL)
        return incoming


def _expected_body(request: object, kind: str, other: str) -> str:
    if isinstance(request, httpx2.Request):
        return (
            "expected a request of httpx, got one of httpx2: the transports for clients of httpx2 "
            "are enclavia.EnclaveTransport and AsyncEnclaveTransport"
        )
    return f"expected a request with {kind} body, got {other} one"


class EnclaveTransport(_About, httpx.BaseTransport):
    """Carries the requests of an :class:`httpx.Client` to one enclave, and to nothing else.

    Takes the keywords of :class:`enclavia.EnclaveTransport`. Errors are httpx's, with enclavia's
    as their ``__cause__``.
    """

    _enclave: _EnclaveTransport

    def __init__(self, url: str | httpx2.URL, **options: Unpack[TransportOptions]) -> None:
        settings = Settings.build(url, type(self).__name__, **options)
        settings.config.warn_debug()
        self._enclave = _EnclaveTransport._of(settings)

    def connect(self, timeout: float | None = None) -> None:
        """Connects and verifies now, where that has not been done."""
        with _errors_of_httpx():
            self._enclave.connect(timeout)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        watched = instrumented(httpx.HTTPTransport, "handle_request", self, self._handle)
        if watched == self._handle:
            return self._send(request, self._enclave.handle_request)
        return watched(request)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        """Seen by an instrumentation of httpx, and so not by one of httpx2 as well."""
        return self._send(request, self._enclave._handle)

    def _send(
        self, request: httpx.Request, send: Callable[[httpx2.Request], httpx2.Response]
    ) -> httpx.Response:
        content = request.stream
        if not isinstance(content, httpx.SyncByteStream):
            raise TypeError(_expected_body(request, "a sync", "an async"))
        outgoing = self._outgoing(request, _whole(content) or _RequestBody(content))
        with _errors_of_httpx():
            incoming = send(outgoing)
        stream = cast(httpx2.SyncByteStream, incoming.stream)
        return self._incoming(request, incoming, _ResponseBody(stream), NetworkStream)

    def close(self) -> None:
        """Closes all connections and channels; requests still running fail."""
        self._enclave.close()

    def __enter__(self) -> Self:
        with _errors_of_httpx():
            self._enclave.__enter__()
        return self

    def __repr__(self) -> str:
        return f"<enclavia.httpx.EnclaveTransport {self._enclave.shown}>"


class AsyncEnclaveTransport(_About, httpx.AsyncBaseTransport):
    """As :class:`EnclaveTransport`, for :class:`httpx.AsyncClient`."""

    _enclave: _AsyncEnclaveTransport

    def __init__(self, url: str | httpx2.URL, **options: Unpack[TransportOptions]) -> None:
        settings = Settings.build(url, type(self).__name__, **options)
        settings.config.warn_debug()
        self._enclave = _AsyncEnclaveTransport._of(settings)

    async def connect(self, timeout: float | None = None) -> None:
        """Connects and verifies now, where that has not been done."""
        with _errors_of_httpx():
            await self._enclave.connect(timeout)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request; its answer is returned once the head is there, and read later."""
        theirs = httpx.AsyncHTTPTransport
        watched = instrumented(theirs, "handle_async_request", self, self._handle)
        if watched == self._handle:
            return await self._send(request, self._enclave.handle_async_request)
        return await watched(request)

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        """Seen by an instrumentation of httpx, and so not by one of httpx2 as well."""
        return await self._send(request, self._enclave._handle)

    async def _send(
        self, request: httpx.Request, send: Callable[[httpx2.Request], Awaitable[httpx2.Response]]
    ) -> httpx.Response:
        content = request.stream
        if not isinstance(content, httpx.AsyncByteStream):
            raise TypeError(_expected_body(request, "an async", "a sync"))
        outgoing = self._outgoing(request, _whole(content) or _AsyncRequestBody(content))
        with _errors_of_httpx():
            incoming = await send(outgoing)
        stream = cast(httpx2.AsyncByteStream, incoming.stream)
        return self._incoming(request, incoming, _AsyncResponseBody(stream), AsyncNetworkStream)

    async def aclose(self) -> None:
        """Closes all connections and channels; requests still running fail."""
        await self._enclave.aclose()

    async def __aenter__(self) -> Self:
        with _errors_of_httpx():
            await self._enclave.__aenter__()
        return self

    def __repr__(self) -> str:
        return f"<enclavia.httpx.AsyncEnclaveTransport {self._enclave.shown}>"


class _IncompleteResponse(httpx.RemoteProtocolError, httpx.ReadError):
    """As httpx raises it, and as any other end of a connection in the middle of something."""


@contextlib.contextmanager
def _errors_of(library: Any) -> Iterator[None]:  # noqa: ANN401 - a module
    """Ours descend from httpx2's and httpcore2's; their predecessors' are of the same names."""
    try:
        yield
    except EnclaviaError as error:
        if library is httpx and isinstance(error, IncompleteResponse):
            raise _IncompleteResponse(str(error)) from error
        successor = f"{library.__name__}2"
        for cls in type(error).__mro__:
            if cls.__module__.partition(".")[0] == successor and hasattr(library, cls.__name__):
                raise getattr(library, cls.__name__)(str(error)) from error
        raise


def _errors_of_httpx() -> contextlib.AbstractContextManager[None]:
    return _errors_of(httpx)


def _errors_of_httpcore() -> contextlib.AbstractContextManager[None]:
    return _errors_of(httpcore)


def _whole(stream: object) -> httpx2.ByteStream | None:
    """A body that is there already may be sent again."""
    return httpx2.ByteStream(b"".join(stream)) if isinstance(stream, httpx.ByteStream) else None


class _RequestBody(httpx2.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        self._stream.close()


class _AsyncRequestBody(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class _ResponseBody(httpx.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with _errors_of_httpx():
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


class _AsyncResponseBody(httpx.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _errors_of_httpx():
            async for chunk in self._stream:
                yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class NetworkStream(httpcore.NetworkStream):
    """What a connection became after ``101 Switching Protocols``."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 - the same of httpcore2
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors_of_httpcore():
            return cast(bytes, self._stream.read(max_bytes, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _errors_of_httpcore():
            self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()


class AsyncNetworkStream(httpcore.AsyncNetworkStream):
    """As :class:`NetworkStream`, awaited."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors_of_httpcore():
            return cast(bytes, await self._stream.read(max_bytes, timeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _errors_of_httpcore():
            await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()
