"""The workload that the documentation's examples talk to."""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import shutil
import tempfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

from model_app import ModelServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

MODEL = bytes(range(256)) * 8192


FILES = Path(tempfile.mkdtemp(prefix="docs-files-"))
atexit.register(shutil.rmtree, FILES, ignore_errors=True)
(FILES / "model.bin").write_bytes(MODEL)
with zipfile.ZipFile(FILES / "archive.zip", "w") as archive:
    archive.writestr("small.txt", "well")
if importlib.util.find_spec("pyarrow") is not None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({"id": range(1000), "text": ["…"] * 1000}), FILES / "rows.parquet"
    )


async def health(request: Request) -> Response:
    return PlainTextResponse("well")


async def run(request: Request) -> Response:
    return JSONResponse({"output": await request.json()})


async def model(request: Request) -> Response:
    return Response(MODEL)


async def ingest(request: Request) -> Response:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
    return JSONResponse({"bytes": received})


async def score(request: Request) -> Response:
    return JSONResponse({"score": (await request.json())["id"]})


async def slow(request: Request) -> Response:
    await asyncio.sleep(2)
    return PlainTextResponse("at last")


async def events(request: Request) -> Response:
    async def produce() -> AsyncIterator[str]:
        for number in range(3):
            yield f"data: {number}\n\n"

    return StreamingResponse(produce(), media_type="text/event-stream")


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass


app = Starlette(
    routes=[
        Route("/health", health),
        Route("/api/run", run, methods=["POST"]),
        Route("/model.bin", model),
        Route("/ingest", ingest, methods=["POST"]),
        Route("/score", score, methods=["POST"]),
        Route("/slow", slow),
        Route("/events", events),
        WebSocketRoute("/ws", echo),
        Mount("/files", StaticFiles(directory=FILES)),
        Mount("/", ModelServer().app),
    ]
)
