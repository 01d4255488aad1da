"""The workload behind the enclave: a small ASGI app, also runnable on its own.

``python workload.py`` binds an ephemeral port, prints ``listening <port>`` and serves until its
standard input ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import sys
import threading
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


def body_of(size: int, seed: int) -> bytes:
    """The same bytes for the same arguments; they do not compress, and most are above 23."""
    return random.Random(seed).randbytes(size)


async def health(request: Request) -> Response:
    return PlainTextResponse("ok")


async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream")


async def some_bytes(request: Request) -> Response:
    body = body_of(request.path_params["n"], int(request.query_params.get("seed", "0")))
    return Response(
        body,
        media_type="application/octet-stream",
        headers={"x-sha256": hashlib.sha256(body).hexdigest()},
    )


async def sha256(request: Request) -> Response:
    digest = hashlib.sha256()
    length = 0
    async for chunk in request.stream():
        digest.update(chunk)
        length += len(chunk)
    return JSONResponse({"sha256": digest.hexdigest(), "length": length})


async def slow(request: Request) -> Response:
    await asyncio.sleep(float(request.query_params["seconds"]))
    return PlainTextResponse("at last")


async def sse(request: Request) -> Response:
    count = int(request.query_params.get("count", "3"))
    pause = float(request.query_params.get("pause", "0.02"))

    async def events() -> AsyncIterator[str]:
        for n in range(count):
            yield f"event: tick\ndata: {n}\n\n"
            await asyncio.sleep(pause)

    return StreamingResponse(events(), media_type="text/event-stream")


async def ws_echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_bytes(await websocket.receive_bytes())
    except WebSocketDisconnect:
        pass


app = Starlette(
    routes=[
        Route("/health", health),
        Route("/echo", echo, methods=["POST"]),
        Route("/bytes/{n:int}", some_bytes),
        Route("/sha256", sha256, methods=["POST"]),
        Route("/slow", slow),
        Route("/sse", sse),
        WebSocketRoute("/ws", ws_echo),
    ]
)


def _stop_at_end_of_input(server: uvicorn.Server) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    server.should_exit = True
    server.force_exit = True


def serve(app: Starlette, port: int = 0, idle: int = 5) -> None:
    """``idle``: after how many seconds a connection ends on which nothing is asked."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_keep_alive=idle)
    server = uvicorn.Server(config)
    threading.Thread(target=_stop_at_end_of_input, args=(server,), daemon=True).start()
    print(f"listening {listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    serve(app, int(os.environ.get("PORT", "0")))
