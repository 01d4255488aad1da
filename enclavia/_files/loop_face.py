"""The face of event loops: the network suspends, and the disk is worked on in a thread.

Decides how much is written at a time. Calls: _io. Locks: none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, TypeVar

import httpx2

from .._io.loops import LoopIo, expect_wanted, run_blocking

__all__ = ["LoopFace"]

T = TypeVar("T")


class LoopFace:
    awaits: ClassVar = True
    batch: ClassVar = 1024 * 1024
    """A thread costs about as much as writing some hundred kilobytes."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._io = LoopIo()

    async def send(self, request: httpx2.Request, how: dict[str, Any]) -> httpx2.Response:
        return await self._client.send(request, stream=True, **how)

    async def answered(self, request: httpx2.Request, how: dict[str, Any]) -> httpx2.Response:
        return await self._client.send(request, **how)

    def pieces(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        return response.aiter_raw()

    async def next(self, pieces: AsyncIterator[bytes]) -> bytes | None:
        await expect_wanted()  # what has come already is taken without suspending
        return await anext(pieces, None)

    async def close(self, response: httpx2.Response) -> None:
        await response.aclose()

    async def work(self, function: Callable[..., T], *arguments: object) -> T:
        return await run_blocking(function, *arguments)

    async def pause(self, seconds: float) -> None:
        await self._io.wait(self._io.waiter(), seconds)
