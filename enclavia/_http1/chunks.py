"""The chunked transfer coding (RFC 9112, section 7.1), within limits.

Decides what is a chunk, and when extensions and trailers are too long. Calls: _errors. Locks: none.
"""

from __future__ import annotations

import re
from typing import Final

from .._errors import ProtocolError
from .limits import Limits
from .llhttp import Stop, load_httptools, raise_foreign

__all__ = ["ChunkReader"]


_SIZE: Final = re.compile(rb"[0-9A-Fa-f]+")
# Of each chunk's line, what its size, a signature and their line ends may need.
_FREE: Final = 128


class _Overhead:
    """Counts what a chunked body consists of beside its data, line by line: llhttp takes chunk
    extensions and trailers of any length, and does not say where in a read they were.

    A line may be as long as what is left of ``most``. Of the line of a chunk, ``_FREE`` bytes and
    as many as the chunk has data are given back when it ends; of a trailer, nothing is. So neither
    one extension nor many of them can be long without end, whatever the reads are cut into.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0
        self._line = bytearray()
        self._data = 0
        """What is to come of a chunk's data and the line end behind it."""
        self._in_trailers = False
        self._ended = False

    def within(self, data: bytes) -> int:
        """How many of these bytes, from the first on, keep to the limit."""
        at = 0
        while at < len(data) and not self._ended:
            if self._data:
                step = min(self._data, len(data) - at)
                self._data -= step
                at += step
                continue
            end = data.find(b"\n", at) + 1 or len(data)
            room = max(0, self._most - self._used - len(self._line))
            if end - at > room:
                return at + room
            self._line += data[at:end]
            at = end
            if self._line.endswith(b"\n"):
                self._end_line()
        return len(data)

    def _end_line(self) -> None:
        line = bytes(self._line)
        self._line.clear()
        if self._in_trailers:
            self._ended = line == b"\r\n"
            self._used += len(line)
            return
        digits = _SIZE.match(line)
        size = int(digits[0], 16) if digits else 0  # llhttp refuses a line without
        self._in_trailers = digits is not None and size == 0
        self._data = size + 2 if size else 0
        self._used = max(0, self._used + len(line) - _FREE - size)


class ChunkReader:
    """A chunked body. llhttp is given a head of ours first, so that it expects one."""

    _PRELUDE: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pieces: list[bytes] = []
        self._in_prelude = True
        self._overhead = _Overhead(limits.chunk_overhead)
        self.trailers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.excess = False
        self.failure: ProtocolError | None = None
        self._tail = b""
        self._refusal = load_httptools().HttpParserError
        self._parser = load_httptools().HttpResponseParser(self)
        # Servers that fill in the size later pad it; only one thing can be meant.
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)
        try:
            self._parser.feed_data(self._PRELUDE)
        except self._refusal as error:
            raise_foreign(error)
            raise
        self._in_prelude = False

    def on_message_begin(self) -> None:
        if not self._in_prelude:
            self.excess = True
            raise Stop

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_prelude:
            self.trailers.append((name, value.rstrip(b" \t")))

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self.complete = True

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of the body in these bytes; ``failure`` says what was wrong behind them."""
        within = self._overhead.within(data)
        allowed = data if within == len(data) else data[:within]
        try:
            self._parser.feed_data(allowed)
        except self._refusal as error:
            raise_foreign(error)
            if self.complete:
                self.excess = True
            else:
                self.failure = ProtocolError(f"expected a chunked body: {error}")
        if self.failure is None:
            self.failure = self._beyond_limits(allowed, within < len(data))
        pieces, self._pieces = self._pieces, []
        return pieces

    def _beyond_limits(self, data: bytes, cut: bool) -> ProtocolError | None:
        # llhttp passes over line ends that follow the last two.
        self._tail = (self._tail + data[-5:])[-5:]
        if self.complete and not self._tail.strip(b"\r\n"):
            self.excess = True
        if cut:
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
