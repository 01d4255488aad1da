"""The workload that pages talk to in tests, and what they are told of its enclave."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from enclavia.testing import LocalEnclave

BLOCK = hashlib.shake_128(b"down").digest(1 << 20)


def digest_of(size: int) -> str:
    """Of what ``/bytes`` answers."""
    digest = hashlib.sha256()
    for at in range(0, size, len(BLOCK)):
        digest.update(BLOCK[: size - at])
    return digest.hexdigest()


class PageApp:
    """``requests``: the path of each one that arrived."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.enclave: LocalEnclave | None = None
        self._app = Starlette(
            routes=[
                Route("/hello", self._hello),
                Route("/echo", self._echo),
                Route("/bytes", self._bytes),
                Route("/sha256", self._sha256, methods=["POST"]),
                Route("/slow", self._slow),
                Route("/drop", self._drop),
            ]
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.requests.append(scope["path"])
        await self._app(scope, receive, send)

    async def _hello(self, request: Request) -> Response:
        return PlainTextResponse("hello")

    async def _echo(self, request: Request) -> Response:
        return PlainTextResponse(request.url.query)

    async def _bytes(self, request: Request) -> Response:
        size = int(request.query_params["n"])

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, size, len(BLOCK)):
                yield BLOCK[: size - at]

        length = {"content-length": str(size)}
        return StreamingResponse(pieces(), headers=length, media_type="application/octet-stream")

    async def _sha256(self, request: Request) -> Response:
        digest = hashlib.sha256()
        async for piece in request.stream():
            digest.update(piece)
        return PlainTextResponse(digest.hexdigest())

    async def _slow(self, request: Request) -> Response:
        await asyncio.sleep(3)
        return PlainTextResponse("late")

    async def _drop(self, request: Request) -> Response:
        assert self.enclave is not None
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, functools.partial(self.enclave.drop_connections))
        return PlainTextResponse("soon")


def facts_of(enclave: LocalEnclave, **more: Any) -> dict[str, Any]:
    """What a page is told."""
    root = enclave.root.decode()
    return {
        "url": enclave.url,
        "pcrs": [each.hex() for each in enclave.pcrs.as_tuple()],
        "root": root,
        **more,
    }
