"""What ``client.open`` returns: a file object that reads by ranges.

Decides what a position is, and that a file that was closed is not read. Calls: _arguments, _io,
_public. Locks: ``_lock``, while one thread reads, also while it waits for the network: a file has
one position.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from .._arguments import byte_view, whole
from .._io.connecting import Connecting
from .._io.face import run
from .._public import public
from .blocks import BLOCK
from .downloading import asked_of, refuse_status
from .face import Face, ThreadFace
from .reader import RangeReader

if TYPE_CHECKING:
    from typing import BinaryIO

    import httpx2
    from typing_extensions import Buffer

    from .downloading import Build

    # What type checkers take the files of io for, so that libraries take this one for a file, too.
    class _File(io.BufferedIOBase, BinaryIO):
        def __enter__(self) -> Self: ...
        def write(self, buffer: Buffer, /) -> int: ...

else:
    _File = io.BufferedIOBase

__all__ = ["AsyncRemoteFile", "RemoteFile", "opened", "opening"]

_MOST: Final = 1 << 40


def _reader(
    face: Face,
    build: Build,
    how: dict[str, Any],
    goes_on: bool,
    read_ahead: object,
    cache_size: object,
) -> tuple[RangeReader, str]:
    """A reader that is not open yet, and the path that it is of."""
    ahead = whole("read_ahead", read_ahead, 0, _MOST)
    cache = whole("cache_size", cache_size, BLOCK, _MOST)
    if ahead > cache:
        raise ValueError(
            f"read_ahead: expected at most cache_size ({cache} bytes), which keeps what was read "
            f"ahead, got {ahead}"
        )
    request = build(())
    asked = asked_of(request, with_auth=False, instead="client.open asks for ranges itself")
    reader = RangeReader(
        face,
        build,
        asked,
        refuse_status,
        how,
        goes_on=goes_on,
        read_ahead=ahead,
        cache_size=cache,
    )
    return reader, request.url.path


def opened(
    client: httpx2.Client,
    build: Build,
    how: dict[str, Any],
    goes_on: bool,
    read_ahead: object,
    cache_size: object,
) -> RemoteFile:
    reader, path = _reader(ThreadFace(client), build, how, goes_on, read_ahead, cache_size)
    run(reader.open())
    return RemoteFile(reader, path)


def opening(
    client: httpx2.AsyncClient,
    build: Build,
    how: dict[str, Any],
    goes_on: bool,
    read_ahead: object,
    cache_size: object,
) -> Connecting[AsyncRemoteFile]:
    from .loop_face import LoopFace  # brings anyio, which is slow to import

    reader, path = _reader(LoopFace(client), build, how, goes_on, read_ahead, cache_size)

    async def start() -> AsyncRemoteFile:
        await reader.open()
        return AsyncRemoteFile(reader, path)

    return Connecting(type(client).__name__, start, "open")


class _Position:
    """What both kinds have in common: what is open, and where it is read."""

    def __init__(self, reader: RangeReader, path: str) -> None:
        self._reader = reader
        self._path = path
        self._at = 0
        self._is_open = True

    def _expect_open(self) -> None:
        if not self._is_open:
            raise ValueError("I/O operation on closed file")

    def _sought(self, offset: object, whence: object) -> int:
        self._expect_open()
        how = whole("whence", whence, 0, 2)
        origin = (0, self._at, self._reader.size)[how]
        at = origin + whole("offset", offset, None)
        if at < 0:
            raise ValueError(f"offset: expected a position of 0 or more, got {at}")
        self._at = at
        return at

    def _amount(self, size: object) -> int:
        """How many bytes a read of so many returns; None and a negative number: all."""
        self._expect_open()
        left = max(0, self._reader.size - self._at)
        asked = -1 if size is None else whole("size", size, None)
        return left if asked < 0 else min(asked, left)

    def _shown(self, name: str) -> str:
        state = f"{self._at} of {self._reader.size} bytes" if self._is_open else "closed"
        return f"<{name} {self._path!r}, {state}>"


@public
class RemoteFile(_File):
    """A file of the workload, read by ranges: made by :meth:`Client.open`. For whatever takes a
    binary file that can be sought in. Its position is one; each call that needs bytes that are not
    there asks for them, and raises what a request raises, :class:`FileChanged` where the file is
    not the one that was opened any more, and :class:`RangesUnsupported`."""

    def __init__(self, reader: RangeReader, path: str) -> None:
        self._position = _Position(reader, path)
        self._renew_lock()
        _files.add(self)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()  # a signal's handler or a destructor may close it

    @property
    def name(self) -> str:
        """The path of the URL."""
        return self._position._path

    @property
    def mode(self) -> str:
        """``"rb"``."""
        return "rb"

    @property
    def size(self) -> int:
        """How many bytes the file has."""
        return self._position._reader.size

    @property
    def etag(self) -> str | None:
        """The strong validator of the version that was opened: an ETag, or a date. None where the
        whole file came with the first answer and had none."""
        source = self._position._reader.source
        return None if source is None else source.validator

    def readable(self) -> bool:
        """True."""
        self._position._expect_open()
        return True

    def seekable(self) -> bool:
        """True."""
        self._position._expect_open()
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Nothing is asked for; a position behind the end is one, too."""
        with self._lock:
            return self._position._sought(offset, whence)

    def tell(self) -> int:
        """The position."""
        with self._lock:
            self._position._expect_open()
            return self._position._at

    def read(self, size: int | None = -1, /) -> bytes:
        """``size`` bytes, fewer only at the end; without it, all up to there."""
        with self._lock:
            data = bytearray(self._position._amount(size))
            self._fill(memoryview(data))
        return bytes(data)

    def read1(self, size: int = -1, /) -> bytes:
        """What one request gives at most: 1 to ``size`` bytes, none at the end."""
        with self._lock:
            most = self._position._amount(size)
            piece = run(self._position._reader.block_at(self._position._at))[:most]
            self._position._at += len(piece)
        return piece

    def readinto(self, buffer: Buffer, /) -> int:
        """Fills the buffer, up to the end of the file. How many bytes."""
        view = byte_view("buffer", buffer, writable=True)
        with self._lock:
            return self._fill(view[: self._position._amount(len(view))])

    def readinto1(self, buffer: Buffer, /) -> int:
        """As :meth:`read1`, into a buffer."""
        view = byte_view("buffer", buffer, writable=True)
        piece = self.read1(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def peek(self, size: int = 0, /) -> bytes:
        """What is there behind the position, without moving it: one byte at least, but at the end.
        ``size`` says nothing, as with Python's own buffered files."""
        with self._lock:
            self._position._expect_open()
            return run(self._position._reader.block_at(self._position._at))

    def _fill(self, view: memoryview) -> int:
        count = run(self._position._reader.read_into(self._position._at, view))
        self._position._at += count
        return count

    def close(self) -> None:
        """Forgets what was read. The client stays open."""
        position: _Position | None = self.__dict__.get("_position")
        if position is not None and position._is_open:  # not where making it failed
            position._is_open = False
            position._reader.blocks.clear()
        super().close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RemoteFile cannot be pickled: it reads through its client. A Client can: "
            "give that and the path, and open the file there"
        )

    def __repr__(self) -> str:
        return self._position._shown(type(self).__name__)


_files: Final[weakref.WeakSet[RemoteFile]] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: a thread that it does not have may have held a lock at that moment."""
    for file in tuple(_files):
        file._renew_lock()


os.register_at_fork(after_in_child=_renew_locks)


@public
class AsyncRemoteFile:
    """As :class:`RemoteFile`, awaited, with the methods of anyio's files: made by
    :meth:`AsyncClient.open`. An iterator over lines. It has one position, so one task reads it at a
    time."""

    def __init__(self, reader: RangeReader, path: str) -> None:
        self._position = _Position(reader, path)

    @property
    def name(self) -> str:
        """The path of the URL."""
        return self._position._path

    @property
    def size(self) -> int:
        """How many bytes the file has."""
        return self._position._reader.size

    @property
    def etag(self) -> str | None:
        """The strong validator of the version that was opened; None where there is none."""
        source = self._position._reader.source
        return None if source is None else source.validator

    @property
    def closed(self) -> bool:
        """Whether :meth:`aclose` was called."""
        return not self._position._is_open

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Nothing is asked for; a position behind the end is one, too."""
        return self._position._sought(offset, whence)

    async def tell(self) -> int:
        """The position."""
        self._position._expect_open()
        return self._position._at

    async def read(self, size: int | None = -1) -> bytes:
        """``size`` bytes, fewer only at the end; without it, all up to there."""
        data = bytearray(self._position._amount(size))
        await self._fill(memoryview(data))
        return bytes(data)

    async def read1(self, size: int = -1) -> bytes:
        """What one request gives at most: 1 to ``size`` bytes, none at the end."""
        position = self._position
        most = position._amount(size)
        piece = (await position._reader.block_at(position._at))[:most]
        position._at += len(piece)
        return piece

    async def readinto(self, buffer: Buffer) -> int:
        """Fills the buffer, up to the end of the file. How many bytes."""
        view = byte_view("buffer", buffer, writable=True)
        return await self._fill(view[: self._position._amount(len(view))])

    async def readline(self) -> bytes:
        """Up to the next line end, which is among the bytes; none at the end."""
        pieces: list[bytes] = []
        position = self._position
        while True:
            position._expect_open()
            block = await position._reader.block_at(position._at)
            end = block.find(b"\n") + 1
            piece = block[:end] if end else block
            position._at += len(piece)
            pieces.append(piece)
            if end or not block:
                return b"".join(pieces)

    async def readlines(self) -> list[bytes]:
        """All lines up to the end."""
        return [line async for line in self]

    async def _fill(self, view: memoryview) -> int:
        count = await self._position._reader.read_into(self._position._at, view)
        self._position._at += count
        return count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line

    async def aclose(self) -> None:
        """Forgets what was read. The client stays open."""
        self._position._is_open = False
        self._position._reader.blocks.clear()

    async def __aenter__(self) -> Self:
        self._position._expect_open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AsyncRemoteFile cannot be pickled: it reads through its client. An AsyncClient "
            "can: give that and the path, and open the file there"
        )

    def __repr__(self) -> str:
        return self._position._shown(type(self).__name__)
