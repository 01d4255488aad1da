"""A small hub of model files: the part of the Hugging Face hub's HTTP API that downloads use."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

COMMIT = "0123456789abcdef0123456789abcdef01234567"
XET_HASH = "ab" * 32
PIECE = 65_536
XET_STORAGE = "https://storage.invalid"
REPOSITORY = "team/model"
FILES = {"config.json": b'{"layers": 2}\n', "weights.bin": bytes(range(256)) * 2_000}


class HubServer:
    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.offers_xet = False
        self.ends_early = 0  # how many answers stop after the first piece
        self.go_on = threading.Event()  # without it, answers wait after the first piece
        self.go_on.set()
        self.app = Starlette(
            routes=[
                Route("/team/model/resolve/{revision}/{path:path}", self.file),
                Route("/api/models/team/model", self.about),
                Route("/api/models/team/model/revision/{revision}", self.about),
                Route("/api/models/team/model/paths-info/{revision}", self.paths, methods=["POST"]),
                Route("/api/models/team/model/tree/{revision}", self.tree),
                Route("/api/models/team/model/xet-read-token/{revision}", self.xet_token),
            ]
        )

    def _note(self, request: Request) -> None:
        self.asked.append({"method": request.method, "path": request.url.path, **request.headers})

    async def file(self, request: Request) -> Response:
        self._note(request)
        content = FILES.get(request.path_params["path"])
        if content is None:
            return Response(status_code=404, headers={"x-error-code": "EntryNotFound"})
        headers = {
            "x-repo-commit": COMMIT,
            "etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "accept-ranges": "bytes",
        }
        if self.offers_xet:
            refresh = f"{request.base_url}api/models/{REPOSITORY}/xet-read-token/{COMMIT}"
            headers["x-xet-hash"] = XET_HASH
            headers["link"] = f'<{refresh}>; rel="xet-auth"'
        first, _, last = request.headers.get("range", "").removeprefix("bytes=").partition("-")
        if first:
            end = min(int(last or len(content)) + 1, len(content))
            headers["content-range"] = f"bytes {first}-{end - 1}/{len(content)}"
            content = content[int(first) : end]
        headers["content-length"] = str(len(content))
        body = self._pieces(content if request.method == "GET" else b"")
        return StreamingResponse(body, 206 if first else 200, headers)

    async def _pieces(self, content: bytes) -> AsyncIterator[bytes]:
        if not content:
            return
        yield content[:PIECE]
        while not self.go_on.is_set():
            await asyncio.sleep(0.005)
        if self.ends_early and len(content) > PIECE:
            self.ends_early -= 1
            return
        yield content[PIECE:]

    async def about(self, request: Request) -> Response:
        self._note(request)
        siblings = [{"rfilename": name} for name in FILES]
        return JSONResponse({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings})

    async def xet_token(self, request: Request) -> Response:
        """Where the file would be in storage that is no part of this server."""
        self._note(request)
        where = {"x-xet-cas-url": XET_STORAGE, "x-xet-access-token": "read"}
        return JSONResponse({}, headers=where | {"x-xet-token-expiration": "4000000000"})

    async def tree(self, request: Request) -> Response:
        self._note(request)
        return JSONResponse(entries(FILES))

    async def paths(self, request: Request) -> Response:
        """What is known of the files that the request names."""
        self._note(request)
        named = (await request.json())["paths"]
        return JSONResponse(entries([name for name in named if name in FILES]))


def entries(names: Iterable[str]) -> list[dict[str, Any]]:
    return [
        {
            "type": "file",
            "path": name,
            "size": len(FILES[name]),
            "oid": hashlib.sha1(FILES[name]).hexdigest(),
        }
        for name in names
    ]
