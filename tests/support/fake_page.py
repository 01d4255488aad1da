"""The modules ``js`` and ``pyodide.ffi`` for CPython: as much of a browser's page as enclavia uses,
with a WebSocket of the ``websockets`` library. What a browser refuses is refused here too."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import greenlet
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

ORIGIN = "http://127.0.0.1:8000"


class JsException(Exception):
    pass


class Proxy:
    living = 0

    def __init__(self, function: Callable[..., object]) -> None:
        self._function: Callable[..., object] | None = function
        Proxy.living += 1

    def __call__(self, *arguments: object) -> None:
        if self._function is None:
            raise JsException("a proxy was called that was destroyed")
        self._function(*arguments)

    def destroy(self) -> None:
        if self._function is None:
            raise JsException("a proxy was destroyed twice")
        self._function = None
        Proxy.living -= 1


class Uint8Array:
    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)


class ArrayBuffer:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.byteLength = len(data)

    def to_bytes(self) -> bytes:
        return self._data


class WebSocket:
    made = 0
    sent = 0
    most_buffered = 0
    slow = 0.0
    """Seconds for each message, as on a slow network."""

    @classmethod
    def new(cls, url: str) -> WebSocket:
        if url.startswith("ws://insecure"):
            raise JsException("SecurityError: an insecure WebSocket")
        return cls(url)

    def __init__(self, url: str) -> None:
        WebSocket.made += 1
        self.binaryType = "blob"
        self.bufferedAmount = 0
        self.onopen: Any = None
        self.onmessage: Any = None
        self.onclose: Any = None
        self.onerror: Any = None
        self._connection: ClientConnection | None = None
        self._outgoing: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._closing = (1005, "")
        self._closed = False
        self._task = asyncio.ensure_future(self._run(url))

    async def _run(self, url: str) -> None:
        if url.startswith("ws://forbidden"):  # as Chromium does by a page's policy: and no more
            self._tell(self.onerror, SimpleNamespace(type="error"))
            return
        code, reason = 1006, ""
        try:
            async with connect(
                url, compression=None, proxy=None, max_size=None, origin=ORIGIN
            ) as connection:
                self._connection = connection
                self._tell(self.onopen, SimpleNamespace(type="open"))
                sender = asyncio.ensure_future(self._send_all())
                try:
                    async for message in connection:
                        data = message if isinstance(message, str) else ArrayBuffer(message)
                        self._tell(self.onmessage, SimpleNamespace(type="message", data=data))
                except ConnectionClosed:
                    pass
                finally:
                    sender.cancel()
                code, reason = connection.close_code or 1006, connection.close_reason or ""
        except (OSError, InvalidHandshake):
            self._tell(self.onerror, SimpleNamespace(type="error"))
        self._closed = True
        self._tell(self.onclose, SimpleNamespace(type="close", code=code, reason=reason))

    async def _send_all(self) -> None:
        assert self._connection is not None
        while (message := await self._outgoing.get()) is not None:
            await asyncio.sleep(WebSocket.slow)
            await self._connection.send(message)
            self.bufferedAmount -= len(message)
        await self._connection.close(*self._closing)

    def _tell(self, handler: Any, event: SimpleNamespace) -> None:
        if handler is not None:
            handler(event)

    def send(self, data: Uint8Array) -> None:
        assert isinstance(data, Uint8Array)
        if self._connection is None:
            raise JsException("InvalidStateError: still connecting")
        WebSocket.sent += len(data.data)
        self.bufferedAmount += len(data.data)
        WebSocket.most_buffered = max(WebSocket.most_buffered, self.bufferedAmount)
        self._outgoing.put_nowait(data.data)

    def close(self, code: int = 1005, reason: str = "") -> None:
        if code != 1000 and not 3000 <= code <= 4999:
            raise JsException(f"InvalidAccessError: the code {code}")
        if len(reason.encode()) > 123:
            raise JsException("SyntaxError: a reason that is too long")
        self._closing = (code, reason)
        if self._connection is None:
            self._task.cancel()
        else:
            self._outgoing.put_nowait(None)


class Switching:
    """``run_sync``: code that is not async waits for what is awaited, and the loop runs meanwhile.
    A stack of its own, which is set aside, is a greenlet's."""

    possible = False
    loop: greenlet.greenlet | None = None

    @classmethod
    def can_run_sync(cls) -> bool:
        return cls.possible and greenlet.getcurrent() is not cls.loop

    @classmethod
    def run_sync(cls, waiting: Any) -> Any:
        here, task = greenlet.getcurrent(), asyncio.ensure_future(waiting)
        task.add_done_callback(lambda _: here.switch())
        assert cls.loop is not None
        while not task.done():
            cls.loop.switch()
        return task.result()

    @classmethod
    async def call(cls, function: Callable[[], Any]) -> Any:
        """As a page that lets Python wait calls it."""
        answer = asyncio.get_running_loop().create_future()

        def run() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)

        cls.loop, cls.possible = greenlet.getcurrent(), True
        greenlet.greenlet(run).switch()
        return await answer


def take_away() -> None:
    """What Pyodide does not have, or has and refuses."""
    gettime = time.clock_gettime

    def without_boottime(clock: int) -> float:
        if clock == getattr(time, "CLOCK_BOOTTIME", None):
            raise OSError(28, "Invalid argument")
        return gettime(clock)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    time.clock_gettime = without_boottime
    threading.Thread.start = start  # type: ignore[method-assign]
    del os.geteuid
    sys.modules["fcntl"] = ModuleType("fcntl")  # JupyterLite's kernel has an empty one
    for name in ("httptools", "resource", "pwd", "grp"):
        sys.modules[name] = None  # type: ignore[assignment]


def install(core: Path) -> None:
    """From here on ``import enclavia`` finds this page, and the core that was built for one."""
    take_away()
    js = ModuleType("js")
    js.WebSocket = WebSocket  # type: ignore[attr-defined]
    pyodide, ffi = ModuleType("pyodide"), ModuleType("pyodide.ffi")
    ffi.create_proxy = Proxy  # type: ignore[attr-defined]
    ffi.to_js = Uint8Array  # type: ignore[attr-defined]
    ffi.JsException = JsException  # type: ignore[attr-defined]
    ffi.can_run_sync = Switching.can_run_sync  # type: ignore[attr-defined]
    ffi.run_sync = Switching.run_sync  # type: ignore[attr-defined]
    pyodide.ffi = ffi  # type: ignore[attr-defined]
    sys.modules |= {"js": js, "pyodide": pyodide, "pyodide.ffi": ffi}
    spec = importlib.util.spec_from_file_location("enclavia._core", core)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["enclavia._core"] = module
    spec.loader.exec_module(module)
