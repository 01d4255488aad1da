"""The core as it is built for browsers, built for this machine and driven by a WebSocket of the
``websockets`` library in the page's place."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from repository import ROOT
from support import HANG
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

BUILD = ROOT / "build" / "web"


def built() -> Path:
    """The extension; made again where a source is newer. Processes of tests wait for each other."""
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    command += [
        "--build-lib",
        str(BUILD),
        "--build-temp",
        str(BUILD / "objects"),
        "--parallel",
        "2",
    ]
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"ENCLAVIA_WEB": "1", "ENCLAVIA_CFLAGS": "-O1 -g0 -Werror"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return next((BUILD / "enclavia").glob("_core*.so"))


@functools.cache
def web_core() -> ModuleType:
    """Beside the ordinary one, with which it shares nothing but the errors' classes."""
    spec = importlib.util.spec_from_file_location("web._core", built())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page:
    """What the page does for one channel: it owns the WebSocket, and has an event loop."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.link = channel.link()
        self.messages_sent: list[bytes] = []
        self._socket: ClientConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._work = asyncio.Event()
        self.link.on_work(self._work.set)

    async def open(self, url: str) -> None:
        try:
            self._socket = await connect(url, compression=None, proxy=None, max_size=None)
        except OSError:
            self.link.closed(1006, "")
            return
        self.link.opened()
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._pump())]

    async def _receive(self) -> None:
        assert self._socket is not None
        try:
            async for message in self._socket:
                if isinstance(message, str):
                    self.link.text()
                    continue
                rest = memoryview(message)
                while rest := rest[self.link.received(rest) :]:
                    await asyncio.sleep(0.005)
        except ConnectionClosed:
            pass
        self.link.closed(self._socket.close_code or 1006, self._socket.close_reason or "")

    async def _pump(self) -> None:
        assert self._socket is not None
        while not self.link.finished:
            while message := self.link.take():
                self.messages_sent.append(message)
                await self._socket.send(message)
            self._work.clear()
            if self.link.finished:
                break
            wait = self.link.tick()  # what that leads to sets the event again
            try:
                await asyncio.wait_for(self._work.wait(), wait)
            except TimeoutError:
                continue
        await self._socket.close(1000)

    async def announced(self, register: Callable[[Any, int], Any]) -> None:
        """Waits for the token that ``register(notifier, token)`` asks for."""
        notifier, come = web_core().Notifier(), asyncio.Event()
        notifier.on_wake(come.set)
        watch = register(notifier, 7)
        await asyncio.wait_for(come.wait(), HANG)
        assert notifier.drain() == [7]
        if hasattr(watch, "end"):
            watch.end()
        notifier.close()

    async def close(self) -> None:
        self.channel.close()
        await asyncio.gather(*self._tasks)
