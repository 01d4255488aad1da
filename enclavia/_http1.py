"""HTTP/1.1 as a client speaks it, without I/O: requests to bytes, bytes to events.

llhttp (httptools) reads heads and chunks, strictly. What a head means for the body that follows
it (RFC 9112, section 6.3) is decided here, and everything that two parsers could see differently
is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Final, NamedTuple, NoReturn

from ._errors import IncompleteResponse, InvalidRequest, ProtocolError

__all__ = [
    "BodyEncoder",
    "Data",
    "End",
    "Event",
    "Failed",
    "Head",
    "Limits",
    "ReadHead",
    "ResponseParser",
    "asks_to_close",
    "body_encoder",
    "encode_head",
    "expects_continue",
    "remembering",
]

Headers = Sequence[tuple[bytes, bytes]]

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_TOKEN_BYTES: Final = bytes(n for n in range(256) if _TOKEN.fullmatch(bytes([n])))
_VALUE_BYTES: Final = bytes(n for n in range(256) if _VALUE.fullmatch(bytes([n])))
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
# RFC 9110, section 2.5: a later minor version is read as the latest one that is known.
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] [1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
# What these say decides where a message ends, and a folded line is read differently by different
# parsers.
_NEVER_FOLDED: Final = frozenset((b"content-length", b"transfer-encoding", b"connection"))
_SHOWN: Final = 60
_KEPT_HEAD: Final = 1024


class Limits(NamedTuple):
    """What a workload may make us hold."""

    head_bytes: int = 65_536
    header_count: int = 256
    informational: int = 64
    chunk_overhead: int = 65_536


_LIMITS: Final = Limits()

# ---------------------------------------------------------------------------------------------
# Requests


def encode_head(method: bytes, target: bytes, headers: Headers) -> bytes:
    """The request line and the headers; refuses what could be read as more than that."""
    if not _TOKEN.fullmatch(method):
        raise InvalidRequest(f"expected a method name, got {_shown(method)}")
    if not _TARGET.fullmatch(target):
        raise InvalidRequest(f"expected a target without spaces or controls, got {_shown(target)}")
    names = [name for name, _ in headers]
    values = [value for _, value in headers]
    # All at once: what remains of them without the bytes that they may have is what joined them.
    joints = b"\n" * (len(names) - 1)
    if (
        not all(names)
        or b"\n".join(names).translate(None, _TOKEN_BYTES) != joints
        or b"\n".join(values).translate(None, _VALUE_BYTES) != joints
    ):
        _refuse_headers(headers)
    hosts = b"\n".join(names).lower().split(b"\n").count(b"host")
    if hosts != 1:
        raise InvalidRequest(f"expected one Host header, got {hosts}")
    if names[0].lower() != b"host":  # RFC 9110, section 7.2: it should be the first one
        headers = sorted(headers, key=lambda field: field[0].lower() != b"host")
    fields = b"\r\n".join(map(b": ".join, headers))
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method, target, fields)


def _refuse_headers(headers: Headers) -> NoReturn:
    for name, value in headers:
        if not _TOKEN.fullmatch(name):
            raise InvalidRequest(f"expected a header name, got {_shown(name)}")
        if not _VALUE.fullmatch(value):
            raise InvalidRequest(
                f"expected a value without line ends and controls for the header "
                f"{name.decode('ascii')}"
            )
    raise InvalidRequest("expected header names and values")


class BodyEncoder:
    """Frames a body, and checks it against the length that the head announced."""

    def __init__(self, length: int | None) -> None:
        self._length = length
        self._sent = 0

    @property
    def length(self) -> int | None:
        """None where the body is chunked."""
        return self._length

    def encode(self, chunk: bytes) -> bytes:
        if not chunk:
            return b""
        self._sent += len(chunk)
        if self._length is None:
            return b"%x\r\n%b\r\n" % (len(chunk), chunk)
        if self._sent > self._length:
            raise InvalidRequest(
                f"expected a body of {self._length} bytes (Content-Length), got at least "
                f"{self._sent}"
            )
        return chunk

    def finish(self) -> bytes:
        if self._length is None:
            return b"0\r\n\r\n"
        if self._sent != self._length:
            raise InvalidRequest(
                f"expected a body of {self._length} bytes (Content-Length), got {self._sent}"
            )
        return b""


def body_encoder(headers: Headers) -> BodyEncoder:
    """How the body of a request with these headers is framed."""
    lengths = [value.strip() for name, value in headers if name.lower() == b"content-length"]
    codings = [value.strip() for name, value in headers if name.lower() == b"transfer-encoding"]
    if lengths and codings:
        raise InvalidRequest("expected Content-Length or Transfer-Encoding, got both")
    if codings:
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise InvalidRequest(
                f"expected Transfer-Encoding: chunked, got {_shown(b', '.join(codings))}"
            )
        return BodyEncoder(None)
    if not lengths:
        return BodyEncoder(0)
    if len(lengths) != 1 or not _DIGITS.fullmatch(lengths[0]):
        raise InvalidRequest(
            f"expected one Content-Length of digits, got {_shown(b', '.join(lengths))}"
        )
    return BodyEncoder(int(lengths[0]))


def expects_continue(headers: Headers) -> bool:
    return any(
        name.lower() == b"expect" and value.strip().lower() == b"100-continue"
        for name, value in headers
    )


def asks_to_close(headers: Headers) -> bool:
    return b"close" in _list_items(headers, b"connection")


# ---------------------------------------------------------------------------------------------
# Responses


class Head(NamedTuple):
    """Of an informational or of the final response."""

    status: int
    reason: bytes
    version: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def informational(self) -> bool:
        return self.status < 200 and self.status != 101


class Data(NamedTuple):
    data: bytes


class End(NamedTuple):
    """The response is complete. ``upgraded``: what follows is not HTTP any more."""

    trailers: tuple[tuple[bytes, bytes], ...] = ()
    upgraded: bool = False


class Failed(NamedTuple):
    """What came next is not a response. Always the last event; what came before it is valid."""

    error: ProtocolError


Event = Head | Data | End | Failed


class _Stop(Exception):
    pass


class ResponseParser:
    """The answer to one request. After :class:`End`, ``reusable`` says whether the connection can
    carry another request, and ``leftover`` is what followed an upgrade."""

    def __init__(
        self, method: bytes, limits: Limits | None = None, read: ReadHead | None = None
    ) -> None:
        self._method = method.upper()
        self._limits = limits or _LIMITS
        self._read = read or _read_head
        # Functions, not methods of this one: a cycle would wait for the garbage collector.
        self._state: Callable[[ResponseParser, bytes, list[Event]], bytes] = ResponseParser._in_head
        self._head = bytearray()
        self._informational = 0
        self._expected: int | None = None
        self._received = 0
        self._closing = False
        self.started = False
        self.finished = False
        self.reusable = False
        self.leftover = b""

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
            return [End()]
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
        if not held and (end := data.find(b"\r\n\r\n") + 4) > 3:
            return self._whole_head(data[:end], data[end:], events)
        self._head += data
        end = self._head.find(b"\r\n\r\n", max(0, held - 3))
        if end < 0:
            if len(self._head) > self._limits.head_bytes:
                raise ProtocolError(
                    f"expected a response head of at most {self._limits.head_bytes} bytes"
                )
            _check_start(self._head)
            return b""
        raw = bytes(self._head[: end + 4])
        self._head.clear()
        return self._whole_head(raw, data[end + 4 - held :], events)

    def _whole_head(self, raw: bytes, rest: bytes, events: list[Event]) -> bytes:
        if len(raw) > self._limits.head_bytes:
            raise ProtocolError(
                f"expected a response head of at most {self._limits.head_bytes} bytes, "
                f"got {len(raw)}"
            )
        read = self._read if len(raw) <= _KEPT_HEAD else _read_head
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
            self.finished = True
            events.append(End(upgraded=True))
            self._state = ResponseParser._after_upgrade
            return rest
        if self._method == b"HEAD" or head.status in (204, 304):
            return self._end(rest, events)
        if codings:
            # RFC 9112, section 6.1: a 1.0 message with a coding is read, then not trusted further.
            self._closing = self._closing or head.version == b"HTTP/1.0"
            self._chunks = _ChunkReader(self._limits)
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
        events.append(Data(piece))
        return self._end(rest, events) if len(data) >= missing else b""

    def _in_chunks(self, data: bytes, events: list[Event]) -> bytes:
        body = self._chunks.feed(data)
        for piece in body:
            self._received += len(piece)
            events.append(Data(piece))
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
        events.append(Data(data))
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
        events.append(End())
        return rest

    def _finish(self) -> None:
        self.finished = True
        self.reusable = not self._closing
        self._state = ResponseParser._after_end


@functools.cache
def _httptools() -> ModuleType:
    """Loaded with the first answer, not with the package."""
    import httptools

    return httptools


class _HeadReader:
    """Callbacks of llhttp for one head."""

    def __init__(self) -> None:
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.rstrip(b" \t")))


class _ReadHead(NamedTuple):
    head: Head
    codings: bool = False
    length: int | None = None
    closing: bool = False


def _read_head(raw: bytes, limits: Limits) -> _ReadHead:
    head = _parse_head(raw, limits)
    if head.informational:
        return _ReadHead(head)
    codings, length = _framing(head)
    return _ReadHead(head, bool(codings), length, _closes(head))


ReadHead = Callable[[bytes, Limits], _ReadHead]


def remembering() -> ReadHead:
    """Reads the same bytes once. A service answers alike: within a second, which is how often its
    Date changes, they come again and again."""
    return functools.lru_cache(maxsize=16)(_read_head)


def _parse_head(raw: bytes, limits: Limits) -> Head:
    _check_start(raw)
    try:
        return _parse_strictly(raw, limits, version=raw[:8])
    except ProtocolError:
        tolerated = _tolerated(raw)
        if tolerated == raw:
            raise
    return _parse_strictly(tolerated, limits, version=raw[:8])


def _tolerated(raw: bytes) -> bytes:
    """A head that breaks the grammar, written as a client may read it where that is without
    ambiguity:

    * a folded header line is joined by a space (RFC 9112, section 5.2), except where it says how
      the message is framed;
    * a Content-Length that is repeated, as a list or as lines, becomes one (RFC 9110, section 8.6);
    * a later minor version of HTTP/1 is read as 1.1 (RFC 9110, section 2.5).
    """
    status_line, *lines = raw[:-4].split(b"\r\n")
    if status_line[:8] not in (b"HTTP/1.0", b"HTTP/1.1"):
        status_line = b"HTTP/1.1" + status_line[8:]
    fields: list[bytearray] = []
    for line in lines:
        if line[:1] not in (b" ", b"\t"):
            fields.append(bytearray(line))
            continue
        if not fields:  # RFC 9112, section 2.2
            raise ProtocolError("expected a header after the status line, got whitespace")
        if _field_name(fields[-1]) in _NEVER_FOLDED:
            raise ProtocolError(f"expected one line, got a folded one: {_shown(fields[-1])}")
        fields[-1] += b" " + line.lstrip(b" \t")
    return b"\r\n".join([status_line, *_with_one_length(fields), b"", b""])


def _with_one_length(fields: list[bytearray]) -> list[bytearray]:
    lengths = [field for field in fields if _field_name(field) == b"content-length"]
    items = [
        item.strip(b" \t") for field in lengths for item in field.partition(b":")[2].split(b",")
    ]
    if len(items) < 2 or any(item != items[0] for item in items):
        return fields
    first = lengths[0]
    first[:] = first.partition(b":")[0] + b": " + items[0]
    repeated = [id(field) for field in lengths[1:]]
    return [field for field in fields if id(field) not in repeated]


def _field_name(field: bytearray) -> bytes:
    return bytes(field.partition(b":")[0]).lower()


def _parse_strictly(raw: bytes, limits: Limits, version: bytes) -> Head:
    httptools = _httptools()
    reader = _HeadReader()
    parser = httptools.HttpResponseParser(reader)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        _raise_foreign(error)
        # An unannounced upgrade is no reason to stop: what 101 means was asked for by the request.
        if parser.get_status_code() != 101 or "Upgrade" not in str(error):
            raise ProtocolError(f"expected an HTTP/1.1 response head: {error}") from None
    if len(reader.headers) > limits.header_count:
        raise ProtocolError(
            f"expected at most {limits.header_count} response headers, got {len(reader.headers)}"
        )
    return Head(
        status=parser.get_status_code(),
        reason=reader.reason,
        version=version,
        headers=tuple(reader.headers),
    )


def _raise_foreign(error: Exception) -> None:
    """What was raised in a callback, but not by it: a KeyboardInterrupt comes anywhere."""
    cause = error.__context__
    if cause is not None and not isinstance(cause, _Stop):
        raise cause


def _check_start(head: bytes | bytearray) -> None:
    """As soon as there is a line, or what there is cannot become one."""
    line_end = head.find(b"\n")
    if line_end >= 0:
        if not _STATUS_LINE.fullmatch(head[: line_end + 1]):
            raise ProtocolError(f"expected an HTTP/1.1 status line, got {_shown(head[:line_end])}")
    elif not b"HTTP/1.".startswith(head[:7]):
        raise ProtocolError(f"expected an HTTP/1.1 status line, got {_shown(head)}")


def _framing(head: Head) -> tuple[list[bytes], int | None]:
    """Transfer codings and Content-Length, in so far as they can mean one thing only."""
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for name, value in head.headers:
        if len(name) == 14 and name.lower() == b"content-length":
            lengths.append(value)
        elif len(name) == 17 and name.lower() == b"transfer-encoding":
            codings.append(value)
    if lengths and codings:
        raise ProtocolError("expected Content-Length or Transfer-Encoding, the response has both")
    if codings and (len(codings) != 1 or codings[0].lower() != b"chunked"):
        raise ProtocolError(
            f"expected Transfer-Encoding: chunked, got {_shown(b', '.join(codings))}"
        )
    if not lengths:
        return codings, None
    if len(lengths) != 1 or not _DIGITS.fullmatch(lengths[0]):
        raise ProtocolError(
            f"expected one Content-Length of digits, got {_shown(b', '.join(lengths))}"
        )
    return codings, int(lengths[0])


def _closes(head: Head) -> bool:
    options = set(_list_items(head.headers, b"connection"))
    if b"close" in options:
        return True
    return head.version == b"HTTP/1.0" and b"keep-alive" not in options


def _list_items(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> Iterable[bytes]:
    size = len(wanted)
    for name, value in headers:
        if len(name) == size and name.lower() == wanted:
            yield from (item.strip().lower() for item in value.split(b","))


class _ChunkReader:
    """A chunked body. llhttp is given a head of ours first, so that it expects one."""

    _PRELUDE: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pieces: list[bytes] = []
        self._in_prelude = True
        self._progress = False
        self._overhead = 0
        self._trailer_bytes = 0
        self.trailers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.excess = False
        self.failure: ProtocolError | None = None
        self._tail = b""
        self._refusal = _httptools().HttpParserError
        self._parser = _httptools().HttpResponseParser(self)
        # Servers that fill in the size later pad it; only one thing can be meant.
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)
        self._parser.feed_data(self._PRELUDE)
        self._in_prelude = False

    def on_message_begin(self) -> None:
        if not self._in_prelude:
            self.excess = True
            raise _Stop

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_prelude:
            return
        self.trailers.append((name, value.rstrip(b" \t")))
        self._trailer_bytes += len(name) + len(value)

    def on_body(self, piece: bytes) -> None:
        self._progress = True
        self._pieces.append(piece)

    def on_chunk_complete(self) -> None:
        self._progress = True

    def on_message_complete(self) -> None:
        self.complete = True

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of the body in these bytes; ``failure`` says what was wrong behind them."""
        self._progress = False
        try:
            self._parser.feed_data(data)
        except self._refusal as error:
            _raise_foreign(error)
            if self.complete:
                self.excess = True
            else:
                self.failure = ProtocolError(f"expected a chunked body: {error}")
        if self.failure is None:
            self.failure = self._beyond_limits(data)
        pieces, self._pieces = self._pieces, []
        return pieces

    def _beyond_limits(self, data: bytes) -> ProtocolError | None:
        # llhttp passes over line ends that follow the last two.
        self._tail = (self._tail + data[-5:])[-5:]
        if self.complete and not self._tail.strip(b"\r\n"):
            self.excess = True
        # Chunk extensions and trailers are of any length to llhttp.
        self._overhead = 0 if self._progress else self._overhead + len(data)
        if max(self._overhead, self._trailer_bytes) > self._limits.chunk_overhead:
            return ProtocolError(
                f"expected at most {self._limits.chunk_overhead} bytes of chunk extensions or "
                "trailers"
            )
        if len(self.trailers) > self._limits.header_count:
            return ProtocolError(f"expected at most {self._limits.header_count} trailers")
        return None

    def close(self) -> None:
        """llhttp's side knows its callbacks, and so this object."""
        del self._parser


def _shown(raw: bytes | bytearray) -> str:
    text = bytes(raw[:_SHOWN]).decode("latin-1")
    return repr(text if len(raw) <= _SHOWN else text + "…")
