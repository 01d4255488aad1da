"""HTTP listeners of a forwarder, each served by uvicorn in the forwarder's event loop.

Decides nothing about a request: the application does. Calls: _io. Locks: none.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from .._io.local import LocalSocket

__all__ = ["App", "HttpServer"]

_FOREVER: Final = 10**9
_GRACE: Final = 1


class App(Protocol):
    """An ASGI application that knows the connection it answers on."""

    def admits(self, sock: Any) -> bool:  # noqa: ANN401
        """Whether the process at the other end may ask anything at all."""

    def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> Awaitable[None]: ...


def _uvicorn() -> Any:  # noqa: ANN401
    try:
        return importlib.import_module("uvicorn")
    except ImportError as error:
        raise ImportError(
            "a forwarder needs uvicorn, which is not installed: pip install 'enclavia[forward]'",
            name=error.name,
        ) from None


def _protocol(app: App, connections: set[Any]) -> type[asyncio.Protocol]:
    """uvicorn's, which looks at who comes before it reads anything, and tells the application
    which connection it answers on and what the request line said."""
    base: Any = importlib.import_module("uvicorn.protocols.http.httptools_impl").HttpToolsProtocol

    class Connection(base):  # type: ignore[misc]
        identity: str | None = None
        url: bytes

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if app.admits(transport.get_extra_info("socket")):
                connections.add(self)
            else:
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            connections.discard(self)
            super().connection_lost(exc)

        def on_headers_complete(self) -> None:
            self.scope["state"] = {
                "connection": self,
                "target": bytes(self.url),
                "upgrade": self.parser.should_upgrade(),
            }
            if not self.url.startswith(b"/") and self.url != b"*":
                # uvicorn takes the path of an absolute URL; the application refuses it.
                self.url = b"/"
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

    return Connection


class HttpServer:
    def __init__(self, app: App, sock: LocalSocket, *, keep_alive: bool = False) -> None:
        """``keep_alive``: connections stay open without a limit on their idle time."""
        uvicorn = _uvicorn()
        self._sock = sock
        self._connections: set[Any] = set()
        config = uvicorn.Config(
            app,
            http=_protocol(app, self._connections),
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_FOREVER if keep_alive else 60,
            timeout_graceful_shutdown=_GRACE,
        )
        self._server: Any = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        # Its own duplicate: uvicorn closes what it was given.
        sock = LocalSocket(os.dup(self._sock.fileno()))
        self._task = asyncio.create_task(self._server._serve([sock]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0)
        if self._task.done():
            self._task.result()

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return bool(self._server.server_state.tasks)

    def stop_listening(self) -> None:
        for server in getattr(self._server, "servers", ()):
            server.close()

    def close_connections(self, identity: str | None = None) -> None:
        """Those that were shown this identity, or all."""
        for connection in list(self._connections):
            if identity is None or connection.identity == identity:
                connection.transport.close()

    async def stop(self) -> None:
        self._server.should_exit = True
        self.close_connections()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
