"""What waiting looks like to the code of files: for the network, for the disk, and for a while.

In a thread everything blocks, and ``run`` steps through a coroutine that never suspends. Its other
form, for event loops, is in loop_face.py.

Decides how much is written at a time. Calls: _io. Locks: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol, TypeVar

import httpx2

from .._io.blocking import blocking_io

__all__ = ["Face", "ThreadFace"]

T = TypeVar("T")


class Face(Protocol):
    """A client, and how to wait for what it does."""

    awaits: ClassVar[bool]
    """Whether it suspends."""
    batch: ClassVar[int]
    """So many bytes are taken before the disk is asked to write."""

    async def send(self, request: httpx2.Request, how: dict[str, Any]) -> httpx2.Response:
        """A response whose body is unread; whoever called closes it."""

    async def answered(self, request: httpx2.Request, how: dict[str, Any]) -> httpx2.Response:
        """A response whose body was read."""

    def pieces(self, response: httpx2.Response) -> Any:  # noqa: ANN401 - of the kind it can step
        """The body as it was sent, to be given to :meth:`next`."""

    async def next(self, pieces: Any) -> bytes | None:  # noqa: ANN401
        """The next piece; None at the end."""

    async def close(self, response: httpx2.Response) -> None: ...

    async def work(self, function: Callable[..., T], *arguments: object) -> T:
        """Runs what blocks on the disk, to its end, also where this task is cancelled."""

    async def pause(self, seconds: float) -> None: ...


class ThreadFace:
    awaits: ClassVar = False
    batch: ClassVar = 1

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client
        self._io = blocking_io()

    async def send(self, request: httpx2.Request, how: dict[str, Any]) -> httpx2.Response:
        return self._client.send(request, stream=True, **how)

    async def answered(self, request: httpx2.Request, how: dict[str, Any]) -> httpx2.Response:
        return self._client.send(request, **how)

    def pieces(self, response: httpx2.Response) -> Iterator[bytes]:
        return response.iter_raw()

    async def next(self, pieces: Iterator[bytes]) -> bytes | None:
        return next(pieces, None)

    async def close(self, response: httpx2.Response) -> None:
        response.close()

    async def work(self, function: Callable[..., T], *arguments: object) -> T:
        return function(*arguments)

    async def pause(self, seconds: float) -> None:
        await self._io.wait(self._io.waiter(), seconds)
