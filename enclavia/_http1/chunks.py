"""The chunked transfer coding (RFC 9112, section 7.1), within limits."""

from __future__ import annotations

from typing import Final

from .._errors import ProtocolError
from .limits import Limits
from .llhttp import Stop, load_httptools, raise_foreign

__all__ = ["ChunkReader"]


class ChunkReader:
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
        self._refusal = load_httptools().HttpParserError
        self._parser = load_httptools().HttpResponseParser(self)
        # Servers that fill in the size later pad it; only one thing can be meant.
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)
        self._parser.feed_data(self._PRELUDE)
        self._in_prelude = False

    def on_message_begin(self) -> None:
        if not self._in_prelude:
            self.excess = True
            raise Stop

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
            raise_foreign(error)
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
