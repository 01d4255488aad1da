"""Where the body of an upload comes from: a path, a binary file, bytes, or something to iterate.

Decides how long a body is, and whether it can be produced again. Calls: _arguments, _io. Locks:
none.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Final, Protocol

import httpx2

from .._arguments import byte_view, path_text, value_shown
from .._io.face import piece_of

__all__ = ["AnyContent", "AwaitedPieces", "Content", "Pieces", "Reading", "content_of"]

_PIECE: Final = 256 * 1024
_EXPECTED: Final = "file: expected a path, a binary file, bytes or an iterable of bytes, got"


class Content(Protocol):
    """``length``: in bytes, None where nobody knows. ``can_rewind``: whether it can be produced
    once more, so that the request can be sent again."""

    length: int | None
    can_rewind: bool


class Reading:
    """Of a file, from where it stands. Its methods block."""

    def __init__(self, file: Any, owned: bool) -> None:  # noqa: ANN401 - whatever has read()
        self.length: int | None = None
        self.can_rewind = False
        self._file = file
        self._owned = owned
        self._begin = 0
        self._left: int | None = None
        if _is_seekable(file):
            self._begin = file.tell()
            self.length = max(0, file.seek(0, os.SEEK_END) - self._begin)
            self.can_rewind = True
            file.seek(self._begin)

    @classmethod
    def of_path(cls, path: str) -> Reading:
        """Of a file that is opened for it. A folder is an IsADirectoryError."""
        file = open(path, "rb")  # noqa: SIM115 - closed by close
        try:
            return cls(file, owned=True)
        except BaseException:
            file.close()
            raise

    def rewind(self) -> None:
        if self.can_rewind:
            self._file.seek(self._begin)
        self._left = self.length

    def read(self) -> bytes:
        """The next piece; none at the end. Of a file that has grown meanwhile only as much as was
        announced."""
        most = _PIECE if self._left is None else min(_PIECE, self._left)
        piece = piece_of(self._file.read(most)) if most else b""
        if self._left is not None:
            self._left -= len(piece)
        return piece

    def close(self) -> None:
        if self._owned:
            self._file.close()


class _Bytes:
    """What is in memory, in pieces."""

    def __init__(self, data: object) -> None:
        self._view = byte_view("file", data)
        self.length: int | None = len(self._view)
        self.can_rewind = True
        self._at = 0

    def rewind(self) -> None:
        self._at = 0

    def read(self) -> bytes:
        piece = bytes(self._view[self._at : self._at + _PIECE])
        self._at += len(piece)
        return piece

    def close(self) -> None:
        pass


class _Iterated:
    """Used once."""

    length: int | None = None
    can_rewind = False

    def __init__(self, pieces: Iterable[object] | AsyncIterable[object]) -> None:
        self.pieces = pieces

    def close(self) -> None:
        pass


AnyContent = Reading | _Bytes | _Iterated


def _is_seekable(file: Any) -> bool:  # noqa: ANN401
    try:
        return bool(file.seekable())
    except AttributeError:
        return False


def content_of(file: object, awaits: bool) -> AnyContent:
    """Opens a path; blocks for that, and to ask a file how long it is."""
    if isinstance(file, str | os.PathLike):
        return Reading.of_path(path_text("file", file, "the path of a file"))
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"{_EXPECTED} one that is open as text: open it in binary mode ('rb')")
    if isinstance(file, bytes | bytearray | memoryview):
        return _Bytes(file)
    if callable(getattr(file, "read", None)) and not isinstance(file, AsyncIterable):
        return Reading(file, owned=False)
    if isinstance(file, AsyncIterable):
        if not awaits:
            raise TypeError(f"{_EXPECTED} an async one: AsyncClient takes those")
        return _Iterated(file)
    if isinstance(file, Iterable) and not isinstance(file, dict):
        return _Iterated(file)
    raise TypeError(f"{_EXPECTED} {value_shown(file)}")


class Told(Protocol):
    def begin(self, position: int, total: int | None) -> None: ...
    def add(self, count: int) -> None: ...


class _Body:
    """Stepped through once for each time that the request is sent."""

    def __init__(self, content: AnyContent, told: Told) -> None:
        self._content = content
        self._told = told
        self._used = False
        self.can_rewind = content.can_rewind
        """As _exchange/message.py asks for it."""

    def _begin(self) -> None:
        if self._used and not self.can_rewind:
            raise httpx2.StreamConsumed()
        self._used = True
        self._told.begin(0, self._content.length)


class Pieces(_Body, httpx2.SyncByteStream):
    """For a client that blocks."""

    def __iter__(self) -> Iterator[bytes]:
        self._begin()
        content = self._content
        if isinstance(content, _Iterated):
            for each in content.pieces:  # type: ignore[union-attr]
                piece = piece_of(each)
                yield piece
                self._told.add(len(piece))
            return
        content.rewind()
        while piece := content.read():
            yield piece
            self._told.add(len(piece))


class AwaitedPieces(_Body, httpx2.AsyncByteStream):
    """For a client that awaits; a file is read in a thread."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        from .._io.loops import run_blocking

        self._begin()
        content = self._content
        if isinstance(content, _Iterated):
            pieces = content.pieces
            if isinstance(pieces, AsyncIterable):
                async for each in pieces:
                    piece = piece_of(each)
                    yield piece
                    self._told.add(len(piece))
                return
            for each in pieces:
                piece = piece_of(each)
                yield piece
                self._told.add(len(piece))
            return
        await run_blocking(content.rewind)
        while piece := await run_blocking(content.read):
            yield piece
            self._told.add(len(piece))
