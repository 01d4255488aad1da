"""The response that a transport returns. A body that is already complete is taken in one piece.

Its two bodies step through an :class:`enclavia._exchange.exchange.Exchange`, one in a thread and
one in an event loop.

Decides whether a body can be taken without stepping through it. Calls: _exchange, _io. Locks: none.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2

from .._exchange.exchange import Exchange
from .._io.face import run
from .httpx2_inside import take_body

__all__ = [
    "AsyncResponseBody",
    "Fields",
    "RawHeaders",
    "Response",
    "ResponseBody",
    "fields_of",
    "response_of",
]


class _Body:
    """An exchange, and the time until it is closed, which nothing of httpx2's takes on the short
    way of sending."""

    begun: float | None = None
    _end: float | None = None

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @property
    def elapsed(self) -> datetime.timedelta | None:
        """What :attr:`httpx2.Response.elapsed` asks for."""
        if self.begun is None or self._end is None:
            return None
        return datetime.timedelta(seconds=self._end - self.begun)

    def ended(self) -> None:
        if self.begun is not None and self._end is None:
            self._end = time.perf_counter()


class ResponseBody(_Body, httpx2.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        # An answer that is here already needs no stepping through.
        return iter(self._exchange.pieces()) if self._exchange.settled else self._stepwise()

    def _stepwise(self) -> Iterator[bytes]:
        __tracebackhide__ = True
        if self._exchange.upgraded:
            return
        while (data := run(self._exchange.next_data())) is not None:
            yield data

    def close(self) -> None:
        self.ended()
        if not self._exchange.settled:
            run(self._exchange.abandon())


class AsyncResponseBody(_Body, httpx2.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        __tracebackhide__ = True
        if self._exchange.upgraded:
            return
        if self._exchange.settled:
            for piece in self._exchange.pieces():
                yield piece
            return
        while (data := await self._exchange.next_data()) is not None:
            yield data

    async def aclose(self) -> None:
        self.ended()
        if not self._exchange.settled:
            await self._exchange.abandon()


class Response(httpx2.Response):
    """An :class:`httpx2.Response` that takes a body which is there already in one piece: an answer
    of a few bytes has half a dozen generators to go through otherwise."""

    _exchange: Exchange | None = None
    stream: ResponseBody | AsyncResponseBody  # where nothing is wrapped around it
    sets_cookies = True
    is_encoded = True

    def read_at_once(self) -> bool:
        """Reads and closes it, where that takes no waiting: for who has wrapped nothing around its
        body, as httpx2's clients do."""
        if not self._take_body():
            return False
        self.stream.ended()
        return True

    def _take_body(self) -> bool:
        """The whole body, where nothing of it was taken, is missing, or has to be decoded."""
        exchange = self._exchange
        return (
            exchange is not None
            and exchange.settled
            and not self.is_encoded
            and take_body(self, exchange.pieces)
        )

    def read(self) -> bytes:
        if not self._take_body():
            return super().read()
        self.stream.close()  # type: ignore[union-attr]
        return self.content

    async def aread(self) -> bytes:
        if not self._take_body():
            return await super().aread()
        await self.stream.aclose()  # type: ignore[union-attr]
        return self.content

    @property
    def has_redirect_location(self) -> bool:
        return self.status_code >= 300 and super().has_redirect_location

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_exchange", None)
        return state


def response_of(
    exchange: Exchange,
    body: ResponseBody | AsyncResponseBody,
    fields_of: Callable[[RawHeaders], Fields],
) -> Response:
    head = exchange.head
    extensions: dict[str, Any] = {
        "http_version": head.version,
        "reason_phrase": head.reason,
        "trailers": exchange.trailers,
        "enclavia": exchange.receipt,
    }
    if exchange.upgraded:
        from .upgraded import AsyncNetworkStream, NetworkStream  # seldom, and slow to import

        blocking = isinstance(body, ResponseBody)
        network_stream = NetworkStream if blocking else AsyncNetworkStream
        extensions["network_stream"] = network_stream(exchange)
    fields = fields_of(head.headers)
    response = Response(head.status, headers=fields.headers, stream=body, extensions=extensions)
    response.sets_cookies = fields.sets_cookies
    response.is_encoded = fields.is_encoded
    response._exchange = exchange
    return response


RawHeaders = tuple[tuple[bytes, bytes], ...]


class Fields:
    __slots__ = ("headers", "is_encoded", "sets_cookies")

    def __init__(self, headers: httpx2.Headers, sets_cookies: bool, is_encoded: bool) -> None:
        """``headers`` are never given away: a response copies them."""
        self.headers = headers
        self.sets_cookies = sets_cookies
        self.is_encoded = is_encoded


def fields_of(headers: RawHeaders) -> Fields:
    names = {name.lower() for name, _ in headers}
    return Fields(
        headers=httpx2.Headers(headers),
        sets_cookies=b"set-cookie" in names or b"set-cookie2" in names,
        is_encoded=b"content-encoding" in names,
    )
