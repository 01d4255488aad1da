"""The head of a response: its bytes to fields, and what they mean for the body that follows.

llhttp reads the grammar, strictly. What a head means for the body (RFC 9112, section 6.3) is
decided here, and everything that two parsers could see differently is refused.

Calls: _errors. Locks: none.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from .._errors import ProtocolError
from .fields import DIGITS, list_items, shown_bytes
from .limits import Limits
from .llhttp import load_httptools, raise_foreign

__all__ = ["Head", "ReadHead", "check_start", "read_head"]
# RFC 9110, section 2.5: a later minor version is read as the latest one that is known.
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] [1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
# What these say decides where a message ends, and a folded line is read differently by different
# parsers.
_NEVER_FOLDED: Final = frozenset((b"content-length", b"transfer-encoding", b"connection"))


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


def read_head(raw: bytes, limits: Limits) -> _ReadHead:
    head = _parse_head(raw, limits)
    if head.informational:
        return _ReadHead(head)
    codings, length = _framing(head)
    return _ReadHead(head, bool(codings), length, _closes(head))


ReadHead = Callable[[bytes, Limits], _ReadHead]


def _parse_head(raw: bytes, limits: Limits) -> Head:
    check_start(raw)
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
            raise ProtocolError(f"expected one line, got a folded one: {shown_bytes(fields[-1])}")
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
    httptools = load_httptools()
    reader = _HeadReader()
    parser = httptools.HttpResponseParser(reader)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise_foreign(error)
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


def check_start(head: bytes | bytearray) -> None:
    """As soon as there is a line, or what there is cannot become one."""
    line_end = head.find(b"\n")
    if line_end >= 0:
        if not _STATUS_LINE.fullmatch(head[: line_end + 1]):
            raise ProtocolError(
                f"expected an HTTP/1.1 status line, got {shown_bytes(head[:line_end])}"
            )
    elif not b"HTTP/1.".startswith(head[:7]):
        raise ProtocolError(f"expected an HTTP/1.1 status line, got {shown_bytes(head)}")


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
            f"expected Transfer-Encoding: chunked, got {shown_bytes(b', '.join(codings))}"
        )
    if not lengths:
        return codings, None
    if len(lengths) != 1 or not DIGITS.fullmatch(lengths[0]):
        raise ProtocolError(
            f"expected one Content-Length of digits, got {shown_bytes(b', '.join(lengths))}"
        )
    return codings, int(lengths[0])


def _closes(head: Head) -> bool:
    options = set(list_items(head.headers, b"connection"))
    if b"close" in options:
        return True
    return head.version == b"HTTP/1.0" and b"keep-alive" not in options
