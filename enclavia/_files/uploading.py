"""``client.upload``: one request with a file as its body.

Decides nothing itself: it puts content, progress and request together. Calls: nothing of the
package. Locks: none.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Callable, Iterable
from typing import IO, TYPE_CHECKING, Any

import httpx2

from .content import AnyContent, AwaitedPieces, Pieces, content_of
from .progress import told_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .face import Face

__all__ = ["File", "uploaded"]

if TYPE_CHECKING:
    File = str | os.PathLike[str] | IO[bytes] | Buffer | Iterable[Buffer] | AsyncIterable[Buffer]


async def uploaded(
    face: Face,
    build: Callable[[Any, int | None], httpx2.Request],
    file: object,
    progress: object,
    how: dict[str, Any],
) -> httpx2.Response:
    """``build``: the request with a body, and with its length where that is known."""
    named = isinstance(file, str | os.PathLike)
    told = told_of(progress, os.path.basename(os.fsdecode(file)) if named else "upload")  # type: ignore[arg-type]
    contents: list[AnyContent] = []
    try:
        # Left in a list, because a task that is cancelled meanwhile gets no result.
        await face.work(lambda: contents.append(content_of(file, face.awaits)))
        content = contents[0]
        body = (AwaitedPieces if face.awaits else Pieces)(content, told)
        request = build(body, content.length)
        request.stream = body  # as it is, where httpx2 has wrapped it: it may be sent again
        return await face.answered(request, how)
    finally:
        try:
            for content in contents:
                await face.work(content.close)
        finally:
            told.end()
