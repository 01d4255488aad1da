"""The http way: a reverse proxy to the workload. Requests are read by uvicorn, checked here, and
sent over a verified channel by the same engine as a client's.

Decides what is refused, and which headers go on. Calls: _channel, _errors, _exchange, _records.
Locks: none.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx2

from .._channel.authority import names_enclave
from .._channel.via import error_fields
from .._errors import (
    ConnectTimeout,
    EnclaviaError,
    ForeignURL,
    InvalidRequest,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    WriteTimeout,
)
from .._exchange.remembering import has_credentials, remembered
from .._records import fields
from . import uvicorn_inside
from .control import answer

if TYPE_CHECKING:
    from .._channel.url import EnclaveURL
    from .._exchange.engine import Engine
    from .._exchange.exchange import Exchange
    from .counters import Counters

__all__ = ["ProxyApp"]

logger = logging.getLogger("enclavia.forwarder")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# RFC 9110, section 7.6.1, and what older proxies sent; Expect was answered by the server.
_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authentication-info",
     b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"transfer-encoding",
     b"upgrade", b"expect")
)  # fmt: skip
_WHOLE: Final = 64 * 1024
"""A body up to this size is collected first, so that it can be sent again where that is allowed."""


class _Refusal(Exception):
    """A request that is not forwarded, and why. Nothing of it was sent."""

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class _ClientGone(Exception):
    pass


class _Accepted(NamedTuple):
    """A request's head, checked, as it goes to the workload."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    length: int | None
    """Of the body; None: it comes in chunks."""


class ProxyApp:
    def __init__(
        self,
        engine: Engine,
        counters: Counters,
        token: bytes | None,
    ) -> None:
        self._engine = engine
        self._counters = counters
        self._token = token
        self._url: httpx2.URL | None = None  # that of the settings, parsed
        # Requests and answers tend to repeat. The token is compared each time.
        self._check = remembered(
            partial(_check, engine.config.url),
            unless=lambda _version, _method, _target, headers, _upgrade: has_credentials(headers),
        )
        self._write_head = remembered(
            _written_head,
            unless=lambda _status, headers, _to_head, _keep_alive: has_credentials(headers),
        )

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        begun: Exchange | None = scope["state"].get("begun")
        if begun is not None:
            if scope["state"]["connection"].lost:
                begun.drop()  # the client left before this task began, and nobody would say so
                return
            await self._forward(scope, partial(self._engine.finish, begun), None, receive, send)
            return
        self._counters.http_requests += 1
        try:
            request = await self._request(self._accepted(scope), receive)
        except _Refusal as refusal:
            self._counters.http_refused += 1
            fields = {"error": {"type": "Refused", "message": str(refusal), "retryable": False}}
            body = json.dumps(fields).encode()
            # What else comes on this connection would be read as another request.
            closing = (b"connection", b"close")
            await answer(send, refusal.status, body, headers=(*refusal.headers, closing))
            return
        except _ClientGone:
            return
        send_on = partial(self._engine.handle, request)
        await self._forward(scope, send_on, request.stream, receive, send)

    # -- the short way ------------------------------------------------------------------------

    def begin(self, scope: dict[str, Any], content: bytes) -> Exchange | None:
        """Sends a request, all of which is here, where that takes no waiting. None, and nothing was
        sent, where it does, and where the request is refused: that is all :meth:`__call__`'s."""
        try:
            accepted = self._accepted(scope)
            if accepted.length != len(content):
                return None
            method, target, headers, _ = accepted
            remake = partial(self._remade, accepted, content)
            exchange = self._engine.begin(method, target, headers, content, remake)
        except (_Refusal, EnclaviaError):
            return None
        if exchange is not None:
            self._counters.http_requests += 1
        return exchange

    def whole_answer(self, exchange: Exchange, method: str, keep_alive: bool) -> bytes | None:
        """The answer of a settled exchange as uvicorn writes it. None where it is anything out of
        the ordinary."""
        head = exchange.head
        written = self._write_head(head.status, head.headers, method == "HEAD", keep_alive)
        if written is None:
            return None
        start, chunked = written
        body = b"".join(exchange.pieces())
        if method == "HEAD":
            return start
        if not chunked:
            return start + body
        return (
            b"%b%x\r\n%b\r\n0\r\n\r\n" % (start, len(body), body)
            if body
            else (start + b"0\r\n\r\n")
        )

    # -- in -----------------------------------------------------------------------------------

    def _check_token(self, headers: Headers) -> None:
        if self._token is None:
            return
        given = [value for name, value in headers if name == b"proxy-authorization"]
        scheme, _, secret = (given[0] if len(given) == 1 else b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(secret.strip(), self._token):
            raise _Refusal(
                407,
                "expected the forwarder's token as 'Proxy-Authorization: Bearer TOKEN', got "
                + ("another one" if given else "none"),
                (b"proxy-authenticate", b'Bearer realm="enclavia forwarder"'),
            )

    def _accepted(self, scope: dict[str, Any]) -> _Accepted:
        """What goes on to the workload; raises what is answered instead."""
        headers: Headers = scope["headers"]
        self._check_token(headers)
        state = scope["state"]
        return self._check(
            scope["http_version"],
            scope["method"],
            state["target"],
            tuple(headers),
            state["upgrade"],
        )

    async def _request(self, accepted: _Accepted, receive: Receive) -> httpx2.Request:
        length = accepted.length
        content: bytes | AsyncIterator[bytes]
        if length is not None and length <= _WHOLE:
            pieces = [piece async for piece in _body(receive)]
            content = b"".join(pieces)
            if len(content) != length:
                raise _ClientGone
        else:
            content = _body(receive)
        return self._remade(accepted, content)

    def _remade(self, accepted: _Accepted, content: bytes | AsyncIterator[bytes]) -> httpx2.Request:
        return httpx2.Request(
            accepted.method,
            self._base_url(),
            headers=list(accepted.headers),
            extensions={"target": accepted.target},
            stream=httpx2.ByteStream(content) if isinstance(content, bytes) else _Streamed(content),
        )

    def _base_url(self) -> httpx2.URL:
        if self._url is None:
            self._url = httpx2.URL(self._engine.config.url.base_url)
        return self._url

    # -- there and back -----------------------------------------------------------------------

    async def _forward(
        self,
        scope: dict[str, Any],
        send_on: Callable[[], Awaitable[Exchange]],
        body: object,
        receive: Receive,
        send: Send,
    ) -> None:
        """``body``: the request's."""
        own = asyncio.current_task()
        gone = False

        def left() -> None:
            nonlocal gone
            gone = True
            if own is not None:
                own.cancel()

        leaving = _Leaving(scope, body, receive, left)
        exchange: Exchange | None = None
        try:
            exchange = await send_on()
            await self._respond(scope, exchange, leaving, send)
        except asyncio.CancelledError:
            if not gone:
                raise
        except _ClientGone:
            pass
        except EnclaviaError as error:
            # The connection may be ended here: that must not cancel this task.
            leaving.ignore()
            if exchange is None:
                told = json.dumps({"error": error_fields(error)}).encode()
                await answer(send, _status_of(error), told)
            else:
                logger.info(
                    "an answer was broken off: %s",
                    error,
                    extra=fields("answer_broken_off", error=error),
                )
                await _break_off(scope)
        finally:
            leaving.ignore()
            if exchange is not None:
                await exchange.abandon()

    async def _respond(
        self, scope: dict[str, Any], exchange: Exchange, leaving: _Leaving, send: Send
    ) -> None:
        head = exchange.head
        if not 200 <= head.status <= 599:
            error = ProtocolError(
                f"expected a status from 200 to 599 from the workload, got {head.status}"
            )
            leaving.ignore()
            await answer(send, 502, json.dumps({"error": error_fields(error)}).encode())
            return
        headers = _answered(head.status, head.headers)
        start = {"type": "http.response.start", "status": head.status, "headers": headers}
        if exchange.settled:
            with scope["state"]["connection"].together():
                await send(start)
                leaving.ignore()
                await send({"type": "http.response.body", "body": b"".join(exchange.pieces())})
            return
        await send(start)  # before the server is asked for more, or it would say "100 Continue"
        if exchange.awaits_answer:
            leaving.body_ended()
        while (piece := await exchange.next_data()) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        # From here on the server may say "disconnect" of a connection that is still there.
        leaving.ignore()
        await send({"type": "http.response.body", "body": b""})


class _Leaving:
    """Calls ``left`` once the client has gone, until that is ignored."""

    def __init__(
        self,
        scope: dict[str, Any],
        body: object,
        receive: Receive,
        left: Callable[[], None],
    ) -> None:
        self._connection = scope["state"]["connection"]
        self._body = body
        self._watcher: asyncio.Task[None] | None = None
        if isinstance(body, _Streamed):
            self._watcher = asyncio.create_task(self._watch(body, receive, left))
        else:
            self._connection.left = left

    async def _watch(self, body: _Streamed, receive: Receive, left: Callable[[], None]) -> None:
        """Once no more of the body is taken, all that matters is the client's end. The server reads
        on only where that is waited for."""
        await body.taken.wait()
        while (await receive())["type"] != "http.disconnect":
            pass
        left()

    def body_ended(self) -> None:
        """No more of it is taken, also where an early answer has cut it off."""
        if isinstance(self._body, _Streamed):
            self._body.taken.set()

    def ignore(self) -> None:
        """May be called again."""
        self._connection.left = None
        if self._watcher is not None:
            self._watcher.cancel()


class _Streamed(httpx2.AsyncByteStream):
    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.taken = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._pieces:
            yield piece
        self.taken.set()


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]


def _check(
    enclave: EnclaveURL,
    version: str,
    method: str,
    target: bytes,
    headers: tuple[tuple[bytes, bytes], ...],
    upgrade: bool,
) -> _Accepted:
    """Everything about a request's head but the token."""
    if version != "1.1":
        # An answer may have to go in chunks, which only HTTP/1.1 has (RFC 9112, section 7).
        raise _Refusal(
            505,
            f"expected HTTP/1.1, got HTTP/{version}: where that is nginx, it needs "
            "'proxy_http_version 1.1;'",
        )
    _check_target(method, target)
    _check_host(enclave, headers)
    if upgrade:
        wanted = [value for name, value in headers if name == b"upgrade"]
        raise _Refusal(
            501,
            "expected a request without Upgrade, got one to "
            f"{b', '.join(wanted).decode('latin-1')}: use the forwarder's stream socket",
        )
    length = _length_of(headers)
    kept = [pair for pair in _without_hop_by_hop(headers) if pair[0] != b"content-length"]
    if length is not None and (length or method in ("POST", "PUT", "PATCH")):
        kept.append((b"content-length", str(length).encode()))
    elif length is None:
        kept.append((b"transfer-encoding", b"chunked"))
    authority = enclave.authority.encode("ascii")
    return _Accepted(method, target, ((b"host", authority), *kept), length)


def _check_target(method: str, target: bytes) -> None:
    if target.startswith(b"/") and not re.search(rb"[\x00-\x20\x7f-\xff#]", target):
        return
    if target == b"*" and method == "OPTIONS":
        return
    raise _Refusal(400, "expected a path as the request's target")


def _check_host(enclave: EnclaveURL, headers: Iterable[tuple[bytes, bytes]]) -> None:
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1:
        raise _Refusal(400, f"expected one Host header, got {len(hosts)}")
    host, port = _authority(hosts[0])
    if host is not None:
        if host == "localhost" or host in ("127.0.0.1", "[::1]"):
            return
        if names_enclave(enclave, "https", host, port):
            return
    raise _Refusal(
        421,
        f"expected the Host {enclave.authority} or localhost, got another one: this forwarder "
        "leads to one enclave",
    )


def _length_of(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """None: it is not known before the end (chunked). The server has refused most of what is
    refused here; that it does is not relied on."""
    lengths = [value for name, value in headers if name == b"content-length"]
    encodings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if lengths and encodings:
        raise _Refusal(400, "expected Content-Length or Transfer-Encoding, got both")
    if encodings:
        if encodings != [b"chunked"]:
            raise _Refusal(501, "expected no other transfer coding than chunked")
        return None
    if not lengths:
        return 0
    if len(lengths) != 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0].strip()):
        raise _Refusal(400, "expected one Content-Length that is a number")
    return int(lengths[0])


def _without_hop_by_hop(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """RFC 9110, section 7.6.1: what concerns one connection ends with it, and so does what
    Connection names. Host and the length are set anew."""
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    dropped = _HOP_BY_HOP | named | {b"host"}
    return [(name, value) for name, value in headers if name not in dropped]


def _answered(status: int, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What the client is told of an answer's head."""
    kept = _without_hop_by_hop([(name.lower(), value) for name, value in headers])
    if status in (204, 304):
        # Such an answer has no body, whatever length it tells (RFC 9110, section 8.6), and the
        # server would wait for one.
        return [(name, value) for name, value in kept if name != b"content-length"]
    return kept


def _written_head(
    status: int, headers: tuple[tuple[bytes, bytes], ...], to_head: bool, keep_alive: bool
) -> tuple[bytes, bool] | None:
    """The head of an answer as uvicorn writes it, and whether the body goes in chunks. ``to_head``:
    the request was HEAD."""
    if not 200 <= status <= 599:
        return None
    kept = _answered(status, headers)
    start = uvicorn_inside.head_bytes(status, kept)
    if start is None:
        return None
    if not keep_alive:
        start += b"connection: close\r\n"
    framed = to_head or status in (204, 304) or any(name == b"content-length" for name, _ in kept)
    if not framed:
        start += b"transfer-encoding: chunked\r\n"
    return start + b"\r\n", not framed


def _authority(value: bytes) -> tuple[str | None, int | None]:
    found = re.fullmatch(rb"(\[[0-9A-Fa-f:.]+\]|[^:\[\]@/?#\s]+)(?::([0-9]{1,5}))?", value.strip())
    if found is None:
        return None, None
    port = None if found[2] is None else int(found[2])
    return found[1].decode("latin-1").lower(), port


def _status_of(error: EnclaviaError) -> int:
    """RFC 9110, section 15.6, except for what the request itself is wrong in."""
    if isinstance(error, InvalidRequest):
        return 400
    if isinstance(error, ForeignURL):
        return 421
    if isinstance(error, PoolTimeout):
        return 503
    if isinstance(error, ConnectTimeout | ReadTimeout | WriteTimeout):
        return 504
    return 502


async def _break_off(scope: dict[str, Any]) -> None:
    """A client that reads up to the end of the connection must not take this for the end."""
    with contextlib.suppress(Exception):
        scope["state"]["connection"].transport.abort()
    await asyncio.sleep(0)
