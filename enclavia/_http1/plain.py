"""What :mod:`enclavia._http1` uses of httptools, in Python: for where that cannot be installed.

Pyodide has no httptools, which is compiled. h11, which is not, passes chunk extensions that llhttp
refuses, so this reads by the grammars of RFC 9112, sections 4, 5 and 7.1, as strictly as llhttp:
tests/python/http1/test_plain_reader.py compares the two.

Decides what is a header field, and what a chunk, where llhttp does not. Calls: nothing of the
package. Locks: none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

__all__ = ["HttpParserError", "HttpParserUpgrade", "HttpResponseParser"]

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_STATUS_LINE: Final = re.compile(
    rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n"
)
# With what is around the value, which is stripped: a pattern that left it out would try each way to
# share a long run of spaces out.
_FIELD: Final = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)\r\n")
_SPACE: Final = b"\t "
_LENGTH: Final = re.compile(rb"[0-9]{1,19}")
_QUOTED: Final = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_CHUNK: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16}) *(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*\r\n"
)
_HEX: Final = re.compile(rb"[0-9A-Fa-f]")
_END: Final = b"\r\n"
_NEVER_TRAILERS: Final = frozenset((b"content-length", b"transfer-encoding"))


class HttpParserError(Exception):
    """The bytes are not what HTTP says."""


class HttpParserUpgrade(Exception):
    """What follows the head is another protocol."""


class HttpResponseParser:
    """One response: its head at once, then, where the head says so, a chunked body in pieces.

    ``protocol`` has the callbacks of httptools: ``on_status`` (or none), ``on_header``, and, where
    it wants the body, ``on_body`` and ``on_message_complete``."""

    def __init__(self, protocol: Any) -> None:  # noqa: ANN401 - has those that it wants
        self._protocol = protocol
        self._status = 0
        self._state: Callable[[HttpResponseParser], bool] = HttpResponseParser._whole_head
        self._held = bytearray()
        self._left = 0
        """Of a chunk's data."""

    def set_dangerous_leniencies(self, lenient_spaces_after_chunk_size: bool) -> None:
        """Spaces behind a chunk's size are passed over anyway."""

    def get_status_code(self) -> int:
        return self._status

    def feed_data(self, data: bytes) -> None:
        self._held += data
        while self._held and self._state(self):
            pass

    # Each state takes from what is held, and says whether there may be more to take.

    def _whole_head(self) -> bool:
        data = bytes(self._held)
        self._held.clear()
        line = _STATUS_LINE.match(data)
        if line is None:
            raise HttpParserError("Invalid status line")
        self._status = int(line[1])
        fields, at = [], line.end()
        while field := _FIELD.match(data, at):
            fields.append((field[1], field[2].strip(_SPACE)))
            at = field.end()
        if data[at:] != _END:
            raise HttpParserError("Invalid header line")
        chunked = _expect_one_framing(fields)
        if line[2] and hasattr(self._protocol, "on_status"):
            self._protocol.on_status(line[2])
        for name, value in fields:
            self._protocol.on_header(name, value)
        if self._status == 101:
            raise HttpParserUpgrade
        if chunked and hasattr(self._protocol, "on_body"):
            self._state = HttpResponseParser._chunk_line
        return True

    def _line(self) -> bytes:
        """One whole line; none where its end has not come yet."""
        end = self._held.find(b"\n") + 1
        if not end:
            if 0 <= self._held.find(b"\r") < len(self._held) - 1:
                raise HttpParserError("Expected LF after CR")
            return b""
        line = bytes(self._held[:end])
        del self._held[:end]
        return line

    def _chunk_line(self) -> bool:
        line = self._line()
        if not line and _HEX.match(self._held):
            return False
        chunk = _CHUNK.fullmatch(line)
        if chunk is None:
            raise HttpParserError("Invalid character in chunk size or extension")
        self._left = int(chunk[1], 16)
        self._state = HttpResponseParser._chunk_data if self._left else HttpResponseParser._trailer
        return True

    def _chunk_data(self) -> bool:
        piece = bytes(self._held[: self._left])
        del self._held[: len(piece)]
        self._left -= len(piece)
        if piece:
            self._protocol.on_body(piece)
        if self._left:
            return False
        self._state = HttpResponseParser._after_data
        return True

    def _after_data(self) -> bool:
        if not _END.startswith(self._held[:2]):
            raise HttpParserError("Expected CR LF after the data of a chunk")
        if len(self._held) < len(_END):
            return False
        del self._held[: len(_END)]
        self._state = HttpResponseParser._chunk_line
        return True

    def _trailer(self) -> bool:
        line = self._line()
        if line == _END:
            self._state = HttpResponseParser._after_end
            self._protocol.on_message_complete()
        elif line:
            field = _FIELD.fullmatch(line)
            if field is None or field[1].lower() in _NEVER_TRAILERS:
                raise HttpParserError("Invalid trailer")
            self._protocol.on_header(field[1], field[2].strip(_SPACE))
        return bool(line)

    def _after_end(self) -> bool:
        excess = self._held.strip(b"\r\n")
        self._held.clear()
        if excess:
            raise HttpParserError("Expected nothing after the last chunk")
        return False


def _expect_one_framing(fields: list[tuple[bytes, bytes]]) -> bool:
    """Whether the body is chunked. What could be read in two ways is refused, as llhttp does."""
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    codings = [value for name, value in fields if name.lower() == b"transfer-encoding"]
    if lengths and codings:
        raise HttpParserError("Content-Length can't be present with Transfer-Encoding")
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise HttpParserError("Invalid character in Content-Length")
    return bool(codings) and codings[-1].rpartition(b",")[2].strip().lower() == b"chunked"
