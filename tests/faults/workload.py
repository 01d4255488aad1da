"""The workload behind the enclaves of the fault tests and the soak. It counts what reached it.

Prints ``listening <port>`` and serves until its standard input ends.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import random
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from interop.harness import Server
from interop.workload import serve, slow, sse, ws_echo
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

MIB = 1024 * 1024
LARGEST = 8 * MIB
PIECE = 64 * 1024

#: Of a POST: how often its head came, and how often it came whole.
begun: collections.Counter[str] = collections.Counter()
whole: collections.Counter[str] = collections.Counter()


@functools.cache
def block() -> bytes:
    return random.Random(1).randbytes(LARGEST + MIB)


def content(size: int, at: int) -> bytes:
    """The same for the same arguments, wherever it is asked for; it does not compress."""
    return block()[at : at + size]


async def some_bytes(request: Request) -> Response:
    body = content(request.path_params["n"], int(request.query_params["at"]))
    return Response(body, media_type="application/octet-stream")


async def post(request: Request) -> Response:
    number = request.path_params["id"]
    begun[number] += 1
    digest, length = hashlib.sha256(), 0
    try:
        async for chunk in request.stream():
            digest.update(chunk)
            length += len(chunk)
    except ClientDisconnect:
        return Response(status_code=400)
    whole[number] += 1
    return JSONResponse({"sha256": digest.hexdigest(), "length": length})


async def counts(request: Request) -> Response:
    return JSONResponse({"begun": begun, "whole": whole})


app = Starlette(
    routes=[
        Route("/bytes/{n:int}", some_bytes),
        Route("/post/{id}", post, methods=["POST"]),
        Route("/counts", counts),
        Route("/slow", slow),
        Route("/events", sse),
        WebSocketRoute("/ws", ws_echo),
    ]
)


class Workload(Server):
    """This file in a process of its own. ``idle``: after how many seconds a connection ends on
    which nothing is asked."""

    def __init__(self, idle: int = 5) -> None:
        super().__init__([sys.executable, __file__, str(idle)])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


if __name__ == "__main__":
    block()
    serve(app, idle=int(sys.argv[1]))
