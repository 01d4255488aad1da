"""The answer to one request: bytes to events, and whether its connection can be used again.

Decides where an answer ends, and what became of one that was cut off. Calls: _errors. Locks: none.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from .._errors import IncompleteResponse, ProtocolError
from .chunks import ChunkReader
from .head import Head, ReadHead, check_start, read_head
from .limits import DEFAULT_LIMITS, Limits

__all__ = ["END", "End", "Event", "Failed", "ResponseParser"]
_KEPT_HEAD: Final = 1024
_HEAD_END: Final = b"\r\n\r\n"
# The answers to these methods, and those of these statuses, end where their head does.
_BODILESS: Final = (b"HEAD", b"CONNECT")
_SPECIAL: Final = (101, 204, 304)


class End(NamedTuple):
    """The response is complete. ``upgraded``: what follows is not HTTP any more."""

    trailers: tuple[tuple[bytes, bytes], ...] = ()
    upgraded: bool = False


class Failed(NamedTuple):
    """What came next is not a response. Always the last event; what came before it is valid."""

    error: ProtocolError


Event = Head | bytes | End | Failed
"""Bytes are a piece of the body."""
END: Final = End()


class ResponseParser:
    """The answer to one request. After :class:`End`, ``reusable`` says whether the connection can
    carry another request, ``upgraded`` whether what follows is not HTTP any more, and ``leftover``
    is what followed an upgrade."""

    # What these are before an answer begins. They are attributes of the class because an answer
    # that comes whole changes only the last three, and setting all for each answer takes time.
    _head: bytes | bytearray = b""
    _informational = 0
    _expected: int | None = None
    _received = 0
    _closing = False
    upgraded = False
    leftover = b""
    started = False
    finished = False
    reusable = False

    def __init__(
        self, method: bytes, limits: Limits | None = None, read: ReadHead | None = None
    ) -> None:
        self._method = method.upper()
        self._limits = limits or DEFAULT_LIMITS
        self._read = read or read_head
        # Functions, not methods of this one: a cycle would wait for the garbage collector.
        self._state: Callable[[ResponseParser, bytes, list[Event]], bytes] = ResponseParser._in_head

    def whole(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and the body of the answer, where ``data``, the first bytes of it, is all of it
        and nothing out of the ordinary, as most are. None, and nothing was taken, where
        :meth:`feed` has to look. Raises what :meth:`feed` says by :class:`Failed`."""
        end = data.find(_HEAD_END) + 4
        if end < 4 or end > _KEPT_HEAD or end > self._limits.head_bytes:
            return None
        if self.started or self._method in _BODILESS:
            return None
        self.started = True
        head, codings, length, closing = self._read(data[:end], self._limits)
        # One that is informational has no length here.
        if codings or length != len(data) - end or head.status in _SPECIAL:
            return None
        self.finished = True
        self.reusable = not closing
        self._state = ResponseParser._after_end
        return head, data[end:]

    def feed(self, data: bytes) -> list[Event]:
        """What these bytes say. Where they break HTTP, what they said before that comes first, and
        :class:`Failed` last: so the events do not depend on how the bytes were cut into reads."""
        events: list[Event] = []
        if data:
            self.started = True
        try:
            while data:
                data = self._state(self, data, events)
        except ProtocolError as error:
            self._state = ResponseParser._after_failure
            self.reusable = False
            events.append(Failed(error))
        return events

    def feed_eof(self) -> list[Event]:
        """The workload closed the connection."""
        if self.finished or self._state is ResponseParser._after_failure:
            return []
        if self._state is ResponseParser._until_close:
            self._finish()
            return [END]
        raise IncompleteResponse(self._cut_short())

    def _cut_short(self) -> str:
        if not self.started:
            return "the workload closed the connection before it answered"
        if self._state is ResponseParser._in_head:
            return (
                f"the workload closed the connection within a response head, after "
                f"{len(self._head)} bytes of it"
            )
        if self._expected is not None:
            return f"the response ended after {self._received} of {self._expected} bytes"
        return f"the chunked response ended after {self._received} bytes without its last chunk"

    # Each state takes bytes and returns what it did not take.

    def _in_head(self, data: bytes, events: list[Event]) -> bytes:
        held = len(self._head)
        if not held:
            if (end := data.find(_HEAD_END) + 4) > 3:
                return self._whole_head(data[:end], data[end:], events)
            self._head = bytearray()
        self._head += data
        end = self._head.find(_HEAD_END, max(0, held - 3))
        if end < 0:
            if len(self._head) > self._limits.head_bytes:
                raise ProtocolError(
                    f"expected a response head of at most {self._limits.head_bytes} bytes"
                )
            check_start(self._head)
            return b""
        raw = bytes(self._head[: end + 4])
        self._head = b""
        return self._whole_head(raw, data[end + 4 - held :], events)

    def _whole_head(self, raw: bytes, rest: bytes, events: list[Event]) -> bytes:
        if len(raw) > self._limits.head_bytes:
            raise ProtocolError(
                f"expected a response head of at most {self._limits.head_bytes} bytes, "
                f"got {len(raw)}"
            )
        read = self._read if len(raw) <= _KEPT_HEAD else read_head
        head, codings, length, closing = read(raw, self._limits)
        events.append(head)
        if head.informational:
            self._informational += 1
            if self._informational > self._limits.informational:
                raise ProtocolError(
                    f"expected at most {self._limits.informational} informational responses"
                )
            return rest
        self._closing = closing
        return self._after_head(head, codings, length, rest, events)

    def _after_head(
        self, head: Head, codings: bool, length: int | None, rest: bytes, events: list[Event]
    ) -> bytes:
        """RFC 9112, section 6.3, in its order."""
        if head.status == 101 or (self._method == b"CONNECT" and 200 <= head.status < 300):
            self.finished = self.upgraded = True
            events.append(End(upgraded=True))
            self._state = ResponseParser._after_upgrade
            return rest
        if self._method == b"HEAD" or head.status in (204, 304):
            return self._end(rest, events)
        if codings:
            # RFC 9112, section 6.1: a 1.0 message with a coding is read, then not trusted further.
            self._closing = self._closing or head.version == b"HTTP/1.0"
            self._chunks = ChunkReader(self._limits)
            self._state = ResponseParser._in_chunks
            return rest
        if length is None:
            self._closing = True
            self._state = ResponseParser._until_close
            return rest
        if length == 0:
            return self._end(rest, events)
        self._expected = length
        self._state = ResponseParser._in_length
        return rest

    def _in_length(self, data: bytes, events: list[Event]) -> bytes:
        missing = (self._expected or 0) - self._received
        piece, rest = (data, b"") if len(data) <= missing else (data[:missing], data[missing:])
        self._received += len(piece)
        events.append(piece)
        return self._end(rest, events) if len(data) >= missing else b""

    def _in_chunks(self, data: bytes, events: list[Event]) -> bytes:
        body = self._chunks.feed(data)
        for piece in body:
            self._received += len(piece)
            events.append(piece)
        if self._chunks.failure is not None:
            failure = self._chunks.failure
            self._chunks.close()
            raise failure
        if self._chunks.complete:
            self._closing = self._closing or self._chunks.excess
            self._finish()
            events.append(End(trailers=tuple(self._chunks.trailers)))
            self._chunks.close()
        return b""

    def _until_close(self, data: bytes, events: list[Event]) -> bytes:
        self._received += len(data)
        events.append(data)
        return b""

    def _after_upgrade(self, data: bytes, events: list[Event]) -> bytes:
        self.leftover += data
        return b""

    def _after_end(self, data: bytes, events: list[Event]) -> bytes:
        # Nobody asked for these: the connection is not in step any more.
        self.reusable = False
        return b""

    def _after_failure(self, data: bytes, events: list[Event]) -> bytes:
        return b""

    def _end(self, rest: bytes, events: list[Event]) -> bytes:
        self._finish()
        events.append(END)
        return rest

    def _finish(self) -> None:
        self.finished = True
        self.reusable = not self._closing
        self._state = ResponseParser._after_end
