"""A file of the workload that is read by ranges. Written once, over
:class:`enclavia._files.face.Face`; what users hold is in opened.py.

Decides when a file can be read by ranges, and when reading it is given up. Calls: _errors. Locks:
none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, NoReturn

import httpx2

from .._errors import EnclaviaError, RangesUnsupported
from .blocks import BLOCK, Ahead, Blocks
from .face import Face
from .source import Asked, Identities, Source, first_of, next_of
from .transfer import IDLE_TRIES, Fields, log_resumed, pause_after
from .validators import is_coded, length_of, unsatisfied_length

__all__ = ["RangeReader"]

_BY_RANGES: Final = (200, 206, 416)


class _Run:
    """Bytes ``at`` up to ``end`` on their way: into blocks, and into what is being read."""

    def __init__(self, reader: RangeReader, at: int, end: int, target: _Target | None) -> None:
        self._reader = reader
        self.at = at
        self.end = end
        self._target = target
        self._held = bytearray()
        # Of a run that is longer than the cache, only the end would stay there.
        self._kept_from = max(at, (end - reader.cache_size) // BLOCK * BLOCK)

    def take(self, piece: bytes) -> None:
        if self._target is not None:
            self._target.take(self.at, piece)
        passed = min(len(piece), max(0, self._kept_from - self.at))
        self.at += len(piece)
        held = self._held
        held += memoryview(piece)[passed:]
        # The last block of a file is shorter.
        while len(held) >= BLOCK or (held and self.at == self.end):
            with memoryview(held) as view:
                block = bytes(view[:BLOCK])
            self._reader.blocks.put((self.at - len(held)) // BLOCK, block)
            del held[:BLOCK]


@dataclasses.dataclass
class _Target:
    """Where what is read goes: ``view`` has the bytes from ``begin`` on."""

    view: memoryview
    begin: int

    def take(self, at: int, piece: bytes) -> None:
        """A piece of the file, of which a part may be wanted."""
        first = max(at, self.begin)
        last = min(at + len(piece), self.begin + len(self.view))
        if first < last:
            to = first - self.begin
            self.view[to : to + last - first] = memoryview(piece)[first - at : last - at]


class RangeReader:
    """``size``: of the file, once it is open."""

    def __init__(
        self,
        face: Face,
        build: Callable[[Fields], httpx2.Request],
        asked: Asked,
        refuse: Callable[[httpx2.Response], NoReturn],
        how: dict[str, Any],
        *,
        goes_on: bool,
        read_ahead: int,
        cache_size: int,
    ) -> None:
        self.size = 0
        self.source: Source | None = None
        self.blocks = Blocks(cache_size)
        self.cache_size = cache_size
        self._identities = Identities()
        self._ahead = Ahead(read_ahead)
        self._face = face
        self._build = build
        self._asked = asked
        self._refuse = refuse
        self._how = how
        self._goes_on = goes_on

    # -- opening ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Asks for the first block, whose answer says how long the file is."""
        idle = 0
        while True:
            try:
                await self._open()
            except EnclaviaError as error:
                idle += 1
                if not (self._goes_on and error.retryable) or idle > IDLE_TRIES:
                    raise
                log_resumed(self._asked, 0, error)
                await self._face.pause(pause_after(idle))
            else:
                return

    async def _open(self) -> None:
        self.blocks.clear()
        self.source = None
        response = await self._send(((b"Range", b"bytes=0-%d" % (BLOCK - 1)),))
        try:
            if response.status_code == 206:
                await self._first(response)
                return
            if response.status_code == 200:
                await self._whole(response)
                return
            if response.status_code != 416:
                self._refuse(response)
            if unsatisfied_length(response.headers) == 0:
                self.size = 0
                return
        finally:
            await self._face.close(response)
        # A workload may refuse every range of a file that is empty, and not say that it is.
        response = await self._send(())
        try:
            if response.status_code != 200:
                self._refuse(response)
            await self._whole(response)
        finally:
            await self._face.close(response)

    async def _first(self, response: httpx2.Response) -> None:
        self.source, end, self.size = first_of(
            self._identities.answer(response), self._asked, BLOCK
        )
        if end < self.size and self.source is None:
            raise RangesUnsupported(
                "expected a strong validator (ETag), by which parts of one version are known, got "
                "none: use client.download"
            )
        run = _Run(self, 0, min(BLOCK, self.size), None)
        await self._take(response, run, end)
        if run.at < run.end and self.source is None:
            raise RangesUnsupported(
                f"expected {end} bytes, as the answer's Content-Range says, got {run.at}, and no "
                "strong validator (ETag) by which the rest could be asked for: use client.download"
            )
        if run.at < run.end:
            await self._go_on(run)

    async def _whole(self, response: httpx2.Response) -> None:
        """A workload without ranges; a file that fits into the cache is kept."""
        if is_coded(response.headers):
            raise RangesUnsupported(
                "expected the bytes as they are, got a body with a content coding"
            )
        pieces = self._face.pieces(response)
        held = bytearray()
        fits = (length_of(response.headers) or 0) <= self.cache_size
        while fits and (piece := await self._face.next(pieces)) is not None:
            held += piece
            fits = len(held) <= self.cache_size
        if fits:
            self.size = len(held)
            self.blocks.keep_all()
            for begin in range(0, len(held), BLOCK):
                self.blocks.put(begin // BLOCK, bytes(held[begin : begin + BLOCK]))
            return
        raise RangesUnsupported(
            f"expected an answer to a range (HTTP 206), or a file of at most {self.cache_size} "
            "bytes (cache_size), got a longer one as a whole: use client.download"
        )

    # -- reading ------------------------------------------------------------------------------

    async def read_into(self, position: int, view: memoryview) -> int:
        """Fills the view from there on, but for what is behind the end. How many bytes."""
        end = min(position + len(view), self.size)
        if position >= end:
            return 0
        target = _Target(view[: end - position], position)
        index, last = position // BLOCK, (end - 1) // BLOCK
        while index <= last:
            block = self.blocks.get(index)
            if block is not None:
                target.take(index * BLOCK, block)
                index += 1
                continue
            beyond = min(end + self._ahead.asked(position), self.size)
            behind = self.blocks.missing(index, (beyond - 1) // BLOCK)
            await self._go_on(_Run(self, index * BLOCK, min(behind * BLOCK, self.size), target))
            index = behind
        self._ahead.done(end)
        return end - position

    async def block_at(self, position: int) -> bytes:
        """What is behind a position in its block: one byte at least, but at the end."""
        if position >= self.size:
            return b""
        index = position // BLOCK
        block = self.blocks.get(index)
        if block is None:
            beyond = min((index + 1) * BLOCK + self._ahead.asked(position), self.size)
            behind = self.blocks.missing(index, (beyond - 1) // BLOCK)
            whole = bytearray(min(BLOCK, self.size - index * BLOCK))
            target = _Target(memoryview(whole), index * BLOCK)
            await self._go_on(_Run(self, index * BLOCK, min(behind * BLOCK, self.size), target))
            block = bytes(whole)
        return block[position - index * BLOCK :]

    async def _go_on(self, run: _Run) -> None:
        """Asks for what is missing of a run, as often as something comes."""
        idle = 0
        while run.at < run.end:
            before = run.at
            try:
                await self._ask(run)
            except EnclaviaError as error:
                idle = 0 if run.at > before else idle + 1
                if not (self._goes_on and error.retryable) or idle > IDLE_TRIES:
                    raise
                log_resumed(self._asked, run.at, error)
                await self._face.pause(pause_after(idle))
                continue
            idle = 0 if run.at > before else idle + 1
            if idle > IDLE_TRIES or (run.at < run.end and not self._goes_on):
                raise RangesUnsupported(
                    f"expected bytes {run.at}-{run.end - 1}, got answers without any of them"
                )

    async def _ask(self, run: _Run) -> None:
        source = self.source
        if source is None:  # then all of it was there, until another thread closed the file
            raise ValueError("I/O operation on closed file")
        response = await self._send(
            (
                (b"Range", b"bytes=%d-%d" % (run.at, run.end - 1)),
                (b"If-Range", source.validator.encode("ascii")),
            )
        )
        try:
            if response.status_code not in _BY_RANGES:
                self._refuse(response)
            await self._take(
                response, run, next_of(self._identities.answer(response), source, run.at, run.end)
            )
        finally:
            await self._face.close(response)

    async def _take(self, response: httpx2.Response, run: _Run, end: int) -> None:
        pieces = self._face.pieces(response)
        while (piece := await self._face.next(pieces)) is not None:
            if run.at + len(piece) > end:
                raise RangesUnsupported(
                    f"expected no byte behind {end - 1}, where the answer's Content-Range ends, "
                    "got more"
                )
            run.take(piece)

    async def _send(self, more: Fields) -> httpx2.Response:
        return await self._face.send(self._build(more), self._how)
