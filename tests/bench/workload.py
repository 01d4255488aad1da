"""The workload that is measured against: as little of a server as HTTP/1.1 allows, so that the
clients are what differs.

``GET /small``, ``GET /later`` (the same, late), ``GET /bytes/<n>``, ``POST /sha256``. Prints
``listening <port>`` and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import sys
import threading
from typing import cast

BLOCK = os.urandom(256 * 1024)
LATER_SECONDS = 0.03
SMALL = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._held = b""
        self._missing = 0
        self._closes = False
        # What a small request has no use for is made by those that have: the published client opens
        # a connection for each.
        self._room: asyncio.Event | None = None
        self._sending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # uvloop does so by itself. asyncio does not for a socket of ``socket.create_server``.
        own = transport.get_extra_info("socket")
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def pause_writing(self) -> None:
        if self._room is not None:
            self._room.clear()

    def resume_writing(self) -> None:
        if self._room is not None:
            self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._take_body(data)
            return
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head, rest = self._held[:end], self._held[end + 4 :]
            self._held = b""
            self._closes = b"onnection: close" in head
            method, target, _ = head.split(b" ", 2)
            if method == b"GET":
                self._held = rest
                self._answer_get(target)
            else:
                at = head.lower().index(b"content-length:") + len(b"content-length:")
                self._missing = int(head[at:].split(b"\r\n", 1)[0])
                self._digest = hashlib.sha256()
                self._take_body(rest)

    def _answer_get(self, target: bytes) -> None:
        if target.startswith(b"/bytes/"):
            self._sending = asyncio.get_running_loop().create_task(self._send(int(target[7:])))
        elif target == b"/later":
            asyncio.get_running_loop().call_later(LATER_SECONDS, self._answer_small)
        else:
            self._answer_small()

    def _answer_small(self) -> None:
        self._transport.write(SMALL)
        self._end()

    async def _send(self, size: int) -> None:
        room = self._room = asyncio.Event()
        room.set()
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while size and not self._transport.is_closing():
            await room.wait()
            self._transport.write(BLOCK[: min(size, len(BLOCK))])
            size -= min(size, len(BLOCK))
        self._end()

    def _take_body(self, data: bytes) -> None:
        self._digest.update(data)
        self._missing -= len(data)
        if self._missing <= 0:
            body = self._digest.hexdigest().encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            self._transport.write(body)
            self._end()

    def _end(self) -> None:
        if self._closes:
            self._transport.close()


async def serve() -> None:
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = await loop.create_server(Connection, sock=listener)
    ended = asyncio.Event()

    def wait_for_end() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    print(f"listening {listener.getsockname()[1]}", flush=True)
    async with server:
        await ended.wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve())
