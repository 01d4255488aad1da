"""Downloads a body into a store, and goes on where the connection was cut.

The rest is asked for by Range with If-Range (RFC 9110, sections 13.1.5 and 14.2), so that the
server sends it only where the representation is still the same one, which takes a strong validator.

Decides when a download is given up. Calls: _errors, _io, _records. Locks: none.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol

import httpx2

from .._errors import DigestMismatch, DownloadError, EnclaviaError
from .._io.face import run
from .._records import fields
from .face import Face
from .source import Anew, Asked, Identities, Source, StartOverError, judged
from .store import Store

__all__ = ["IDLE_TRIES", "Told", "Transfer", "log_resumed", "pause_after"]

IDLE_TRIES: Final = 5
"""So many tries in a row without a byte are made before a transfer is given up."""
_RESTARTS: Final = 3
_FIRST_PAUSE: Final = 0.25
logger = logging.getLogger("enclavia")

Fields = tuple[tuple[bytes, bytes], ...]


def pause_after(idle: int) -> float:
    """Seconds before the next try, after ``idle`` in a row without a byte."""
    return _FIRST_PAUSE * 2.0**idle


def log_resumed(asked: Asked, size: int, error: EnclaviaError) -> str:
    """Logs that what an error cut is asked for again, behind this many bytes. Returns the text."""
    text = f"{type(error).__name__}: {error}; going on behind {size} bytes"
    logger.info("%s", text, extra=fields("transfer_resumed", _authority(asked), error=error))
    return text


def _authority(asked: Asked) -> str:
    return httpx2.URL(asked.url).netloc.decode("ascii")


class Told(Protocol):
    """Who is told of the progress."""

    def begin(self, position: int, total: int | None) -> None:
        """Of ``total`` bytes (None: not known), ``position`` are there."""

    def add(self, count: int) -> None:
        """So many bytes more."""

    def note(self, text: str) -> None:
        """A line about what went wrong and is mended."""


@dataclasses.dataclass
class Transfer:
    """One download."""

    face: Face
    asked: Asked
    store: Store
    told: Told
    build: Callable[[Fields], httpx2.Request]
    """The request with these headers beside its own."""
    refuse: Callable[[httpx2.Response], NoReturn]
    """Raises for an answer whose status says that there is no body to be kept."""
    how: dict[str, Any]
    """Keywords of the client's ``send``."""
    goes_on: bool = True
    """False: no second request is sent (``retries=0``)."""
    sha256: str | None = None
    _identities: Identities = dataclasses.field(default_factory=Identities)

    def run_blocking(self) -> None:
        """As :meth:`run`, in a thread, where the face is one that blocks."""
        run(self.run())

    async def run(self) -> None:
        """Whole when it returns; the store is committed. Goes on after each cut as long as bytes
        come, and gives up after five tries in a row without any."""
        try:
            await self._run()
        except BaseException as error:
            if self.store.size and self.store.source is None:
                self._log_dropped("nothing tells whether a later answer is of the same file", error)
            raise

    async def _run(self) -> None:
        store = self.store
        if store.source is not None:
            await self._prepare()
        elif store.unusable:
            self._log_restarted(store.unusable, "their note does not say what they are a part of")
        idle = restarts = 0
        while True:
            before = store.size
            try:
                whole = await self._try()
            except StartOverError as reason:
                restarts += 1
                if restarts > _RESTARTS:
                    self._give_up()
                await self._begin(None, str(reason))
                continue
            except EnclaviaError as error:
                idle = 0 if store.size > before else idle + 1
                may_go_on = self.goes_on and error.retryable and store.source is not None
                if not may_go_on or idle > IDLE_TRIES:
                    raise
                self.told.note(log_resumed(self.asked, store.size, error))
                await self.face.pause(pause_after(idle))
                continue
            if whole:
                await self._finish()
                return
            idle = 0 if store.size > before else idle + 1
            if idle > IDLE_TRIES or not self.goes_on:
                self._give_up()

    async def _prepare(self) -> None:
        """Uses the bytes that an earlier run left, if they may be the beginning of this file. If
        they are all of it, the last byte is requested again: the answer shows whether the file is
        still the same."""
        store, source = self.store, self.store.source
        assert source is not None  # noqa: S101 - looked at by who calls
        complete = source.total is not None and store.size >= source.total
        if not self.asked.is_of(source) or (complete and store.size != source.total):
            await self._begin(None, "an earlier call asked for something else")
        elif complete:
            await self.face.work(store.go_on, store.size - 1)

    async def _begin(self, source: Source | None, reason: str) -> None:
        """From the first byte. ``reason``: why the bytes that are there, if any, are dropped."""
        if self.store.size:
            self._log_restarted(self.store.size, reason)
        await self.face.work(self.store.begin, source)

    def _log_restarted(self, size: int, reason: str) -> None:
        logger.info(
            "a download begins anew without the %d bytes that were there: %s",
            size,
            reason,
            extra=fields("transfer_restarted", _authority(self.asked)),
        )

    def _log_dropped(self, reason: str, error: BaseException) -> None:
        """Not where the caller wants none of it kept."""
        if self.store.keeps:
            logger.info(
                "a download failed, and the %d bytes that came are not kept: %s",
                self.store.size,
                reason,
                extra=fields("transfer_dropped", _authority(self.asked), error=error),
            )

    async def _finish(self) -> None:
        if self.sha256 is not None:
            got = await self.face.work(self.store.digest)
            if got != self.sha256:
                mismatch = DigestMismatch(
                    f"expected a file with the SHA-256 digest {self.sha256}, got one with {got}",
                    expected=self.sha256,
                    actual=got,
                )
                self._log_dropped("their digest is another one than was expected", mismatch)
                await self.face.work(self.store.discard)
                raise mismatch
        await self.face.work(self.store.commit)

    def _give_up(self) -> NoReturn:
        raise DownloadError(
            f"expected the rest of the body behind {self.store.size} bytes, got answers without it",
            retryable=True,
        )

    async def _try(self) -> bool:
        """One request. Whether the body is whole."""
        store, source = self.store, self.store.source
        more: Fields = ()
        if source is not None and store.size > 0:
            more = (
                (b"Range", b"bytes=%d-" % store.size),
                (b"If-Range", source.validator.encode("ascii")),
            )
        response = await self.face.send(self.build(more), self.how)
        try:
            answer = self._identities.answer(response)
            judgement = judged(answer, self.asked, source, store.size)
            if judgement is None:
                self.refuse(response)
            if isinstance(judgement, Anew):
                await self._begin(judgement.source, "the workload sent the whole file")
                end, total = None, judgement.total
            else:
                store.source = judgement.source
                await self.face.work(store.go_on, store.size)
                end, total = judgement.end, judgement.source.total
            self.told.begin(store.size, total)
            await self._receive(response, end)
        finally:
            await self.face.close(response)
        return store.source is None or store.source.total in (None, store.size)

    async def _receive(self, response: httpx2.Response, end: int | None) -> None:
        """What came before an error is written, so that the next try goes on behind it."""
        held: list[bytes] = []
        size = self.store.size
        pieces = self.face.pieces(response)
        try:
            while (piece := await self.face.next(pieces)) is not None:
                size += len(piece)
                if end is not None and size > end:
                    held.clear()
                    raise StartOverError("the answer is longer than it said")
                held.append(piece)
                if size - self.store.size >= self.face.batch:
                    await self._write(held)
        finally:
            if held:
                await self._write(held)

    async def _write(self, held: list[bytes]) -> None:
        data = b"".join(held)
        held.clear()
        await self.face.work(self.store.write, data)
        self.told.add(len(data))
