"""The response that a transport returns. A body that is already complete is taken in one piece."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx2

from .._exchange.exchange import Exchange

__all__ = ["Response", "Timed", "fields_of", "response_of"]


class Response(httpx2.Response):
    """An :class:`httpx2.Response` that takes a body which is there already in one piece: an answer
    of a few bytes has half a dozen generators to go through otherwise."""

    _exchange: Exchange | None = None
    sets_cookies = True
    is_encoded = True

    def read(self) -> bytes:
        body = self._here()
        if body is None:
            return super().read()
        self._content = body
        self.is_closed = True
        self.stream.close()  # type: ignore[union-attr]
        return body

    async def aread(self) -> bytes:
        body = self._here()
        if body is None:
            return await super().aread()
        self._content = body
        self.is_closed = True
        await self.stream.aclose()  # type: ignore[union-attr]
        return body

    def _here(self) -> bytes | None:
        """The whole body, where nothing of it was taken, is missing, or has to be decoded."""
        if self.is_stream_consumed or self.is_closed or hasattr(self, "_content"):
            return None
        exchange = self._exchange
        if exchange is None or not exchange.settled or self.is_encoded:
            return None
        body = b"".join(exchange.pieces())
        self.is_stream_consumed = True
        self._num_bytes_downloaded = len(body)
        return body

    @property
    def has_redirect_location(self) -> bool:
        return self.status_code >= 300 and super().has_redirect_location

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_exchange", None)
        return state


def response_of(
    exchange: Exchange,
    stream: httpx2.SyncByteStream | httpx2.AsyncByteStream,
    network_stream: Callable[[Exchange], object],
    fields_of: Callable[[RawHeaders], Fields],
) -> Response:
    head = exchange.head
    extensions: dict[str, Any] = {
        "http_version": head.version,
        "reason_phrase": head.reason,
        "trailers": exchange.trailers,
    }
    if exchange.upgraded:
        extensions["network_stream"] = network_stream(exchange)
    fields = fields_of(head.headers)
    response = Response(head.status, headers=fields.headers, stream=stream, extensions=extensions)
    response.sets_cookies = fields.sets_cookies
    response.is_encoded = fields.is_encoded
    response._exchange = exchange
    return response


RawHeaders = tuple[tuple[bytes, bytes], ...]


class Fields(NamedTuple):
    headers: httpx2.Headers
    """Never given away: a response copies them."""
    sets_cookies: bool
    is_encoded: bool


def fields_of(headers: RawHeaders) -> Fields:
    names = {name.lower() for name, _ in headers}
    return Fields(
        headers=httpx2.Headers(headers),
        sets_cookies=b"set-cookie" in names or b"set-cookie2" in names,
        is_encoded=b"content-encoding" in names,
    )


class Timed:
    """Takes the time until a body is closed, where nothing of httpx2's does."""

    begun: float | None = None
    elapsed: datetime.timedelta | None = None

    def _ended(self) -> None:
        if self.begun is not None and self.elapsed is None:
            self.elapsed = datetime.timedelta(seconds=time.perf_counter() - self.begun)
