"""A request as bytes: its head, and where its body comes from.

Decides whether a body is whole or comes in pieces, and whether it can be sent again. Calls: _http1,
_io, _pool. Locks: none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import httpx2

from .._http1.request import asks_to_close, body_encoder, encode_head, expects_continue
from .._io.face import READ_SIZE, Io
from .._pool.kinds import Job
from .retry import IDEMPOTENT

__all__ = ["Body", "HeadOf", "Message", "RequestHead", "WholeBody"]

_WITHOUT_BODY: Final = Job(repeatable=True, body_size=0)


class RequestHead(NamedTuple):
    """What the head of a request says, and what it means for the body."""

    head: bytes
    length: int | None
    upgrade: bool
    closes: bool
    expects_continue: bool

    @classmethod
    def of(
        cls, method: bytes, target: bytes, headers: tuple[tuple[bytes, bytes], ...]
    ) -> RequestHead:
        names = {name.lower() for name, _ in headers}
        length: int | None = 0
        if b"content-length" in names or b"transfer-encoding" in names:
            length = body_encoder(headers).length
        return cls(
            head=encode_head(method, target, headers),
            length=length,
            upgrade=b"upgrade" in names,
            closes=b"connection" in names and asks_to_close(headers),
            expects_continue=b"expect" in names and expects_continue(headers),
        )


HeadOf = Callable[[bytes, bytes, tuple[tuple[bytes, bytes], ...]], RequestHead]
""":meth:`RequestHead.of`, or what remembers its results."""


class Message:
    """A request as bytes: its head, and where its body comes from."""

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: tuple[tuple[bytes, bytes], ...],
        content: bytes | None,
        head_of: HeadOf,
        request: httpx2.Request | Callable[[], httpx2.Request],
    ) -> None:
        """``content``: all of the body; None where it comes in pieces. ``request``: what this says,
        or a function that makes it where somebody asks for it."""
        self.verb = method
        self.method = method.encode("ascii", "replace")
        head = head_of(self.method, target, headers)
        self.head, self.length, self.upgrade, self.closes, expects = head
        self.content = content
        self.expects_continue = expects and content != b""
        self._head_of = head_of
        self._request = request
        self._body_used = False

    @classmethod
    def of(cls, request: httpx2.Request, head_of: HeadOf) -> Message:
        target: bytes = request.extensions.get("target", request.url.raw_path)
        content: bytes | None = None
        if isinstance(request.stream, httpx2.ByteStream):
            content = b"".join(request.stream)
        return cls(request.method, target, tuple(request.headers.raw), content, head_of, request)

    @property
    def request(self) -> httpx2.Request:
        # No request can be called, not even one of classic httpx that was passed by mistake.
        if callable(self._request):
            self._request = self._request()
        return self._request

    def encode_again(self) -> None:
        """With the headers that the request has by now. Raises ValueError where they say something
        else about the body or the connection."""
        request = self.request
        target: bytes = request.extensions.get("target", request.url.raw_path)
        said = self._head_of(self.method, target, tuple(request.headers.raw))
        before = (self.length, self.upgrade, self.closes, self.expects_continue)
        if before != (said.length, said.upgrade, said.closes, said.expects_continue):
            raise ValueError(
                "trace: expected the headers that say how the body is sent (Content-Length, "
                "Transfer-Encoding, Connection, Upgrade, Expect) to stay, got others"
            )
        self.head = said.head

    @property
    def job(self) -> Job:
        size = len(self.content) if self.content is not None else self.length
        repeatable = self.verb in IDEMPOTENT
        return _WITHOUT_BODY if repeatable and size == 0 else Job(repeatable, size)

    @property
    def replayable(self) -> bool:
        """A body of pieces is used up, unless it says that it begins anew (an uploaded file's)."""
        return not self._body_used or getattr(self.request.stream, "can_rewind", False) is True

    def body(self, io: Io[Any]) -> Body:
        self._body_used = True
        return IteratedBody(io, io.body_of(self.request))


class IteratedBody:
    """A request body that is produced piece by piece."""

    def __init__(self, io: Io[Any], body: object) -> None:
        self._io = io
        self._body = body
        self._pieces: object = None

    async def next(self, timeout: float | None) -> bytes | None:
        """A piece that is not empty; None at the end. Raises WriteTimeout where it can tell that
        nothing comes."""
        if self._pieces is None:
            self._pieces = self._io.pieces_of(self._body)
        while (piece := await self._io.next_piece(self._pieces, timeout)) is not None:
            if piece:
                return piece
        return None

    async def close(self) -> None:
        if self._pieces is not None:
            await self._io.close_pieces(self._pieces)


class WholeBody:
    """A body that is there already, in pieces of a size that bounds what is copied at a time."""

    def __init__(self, content: bytes) -> None:
        self._rest = memoryview(content)

    @property
    def taken(self) -> bool:
        """There is nothing left of it."""
        return not self._rest

    async def next(self, timeout: float | None) -> bytes | None:
        piece, self._rest = self._rest[: 4 * READ_SIZE], self._rest[4 * READ_SIZE :]
        return bytes(piece) if piece else None

    async def close(self) -> None:
        self._rest = memoryview(b"")


Body = IteratedBody | WholeBody
