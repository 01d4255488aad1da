"""HTTP of a forwarder: connections that were accepted, served by uvicorn in its event loop.

Decides nothing about a request: the application does. Calls: _io. Locks: none.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol

from .._io.local import LocalSocket
from . import uvicorn_inside
from .short_way import ShortApp, ShortWay

__all__ = ["App", "HttpServer"]

_FOREVER: Final = 10**9
_GRACE: Final = 1
_HEAD_MAX: Final = 64 * 1024
"""Bytes of a request's head, which is read before a token is looked at. What arrives together with
its end is counted with it. As many may come between two bytes of its body, or after the last: what
frames chunks, and trailers."""
_HEAD_SECONDS: Final = 10
_IDLE_SECONDS: Final = 60
_WAITING: Final = 16
"""Requests of one connection that may wait for those before them. Nothing more of it is read while
any does, and what was read already is not looked into while this many do."""
_SLICE: Final = 4096
"""Bytes that are looked into at a time, which is how far more requests than that may wait: the
parser cannot be stopped within what it was given."""


class App(Protocol):
    """An ASGI application that knows the connection it answers on."""

    def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> Awaitable[None]: ...


class _Held:
    """A transport that can hold back what is written to it, for a moment."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pieces: list[bytes] | None = None
        self.is_closing = transport.is_closing  # asked several times for each request

    def hold(self) -> None:
        self._pieces = []

    def let_go(self) -> None:
        pieces, self._pieces = self._pieces, None
        if pieces:
            self._transport.write(b"".join(pieces))

    def write(self, data: bytes) -> None:
        if self._pieces is None:
            self._transport.write(data)
        else:
            self._pieces.append(data)

    def close(self) -> None:
        self.let_go()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the transport's own
        return getattr(self._transport, name)


def _protocol(
    connections: set[Any], patient_seconds: float | None, short_app: ShortApp | None
) -> type[asyncio.Protocol]:
    """uvicorn's, which tells the application which connection it answers on and what the request
    line said, and bounds a request's head (its size, and how long it may take: ``patient_seconds``,
    None for no limit) and how many requests wait."""
    known = uvicorn_inside.parts()
    base: Any = known.protocol
    flow_control: Any = known.flow_control
    if not known.short_way:
        short_app = None

    class Flow(flow_control):  # type: ignore[misc]
        """uvicorn has a connection read again after each answer, and whenever an application waits
        for the client: here it is read again only when none of its requests waits."""

        def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
            super().__init__(transport)
            self._connection = connection

        def resume_reading(self) -> None:
            if not self._connection.behind:
                super().resume_reading()

    class Connection(base):  # type: ignore[misc]
        identity: str | None = None
        left: Callable[[], None] | None = None
        """Called when the client has gone, whose whole request was read."""
        lost = False
        """The client has gone. ``left`` is not called again: a task that begins now asks this."""
        over: Callable[[], None]
        sock: LocalSocket
        url: bytes

        def connection_made(self, transport: asyncio.Transport) -> None:
            self._held = _Held(transport)
            super().connection_made(self._held)
            self.flow = Flow(transport, self)
            self._unread = b""
            self._head: int | None = 0
            self._after_body: int | None = None
            self._late: asyncio.TimerHandle | None = None
            self._due: Any = None
            self._answering: Any = None
            self._short = None if short_app is None else ShortWay(short_app, self)
            self._idle_since: float | None = None
            self._idle: asyncio.TimerHandle | None = None
            connections.add(self)
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            connections.discard(self)
            self.lost = True
            self._head_came()
            if self._idle is not None:
                self._idle.cancel()
            super().connection_lost(exc)
            if self._answering is not None and not self._answering.response_complete:
                # uvicorn tells only the newest request, which may be one that waits behind this.
                self._answering.disconnected = True
                self._answering.message_event.set()
            if self.left is not None:
                self.left()
            if self._short is not None:
                self._short.drop()
            with contextlib.suppress(OSError):
                # Also where a process that was forked just now has a copy of the descriptor.
                self.sock.shutdown(socket.SHUT_RDWR)
            self.over()

        @contextlib.contextmanager
        def together(self) -> Iterator[None]:
            """What is written within goes out as one: a short answer wakes its reader once."""
            self._held.hold()
            try:
                yield
            finally:
                self._held.let_go()

        def _expect_head(self) -> None:
            if self._late is None and patient_seconds is not None:
                loop = asyncio.get_running_loop()
                self._late = loop.call_later(patient_seconds, self.transport.abort)

        def _head_came(self) -> None:
            self._head = None
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def on_message_begin(self) -> None:
            if self._head is None:
                self._head = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._head_came()
            self.scope["state"] = {
                "connection": self,
                "target": bytes(self.url),
                "upgrade": self.parser.should_upgrade(),
            }
            if not self.url.startswith(b"/") and self.url != b"*":
                # uvicorn takes the path of an absolute URL; the application refuses it.
                self.url = b"/"
            super().on_headers_complete()
            # Trailers come by the same callback. They are no headers (RFC 9110, section 6.5.1).
            self.headers: list[tuple[bytes, bytes]] = []

            self._after_body = 0

        def on_body(self, body: bytes) -> None:
            self._after_body = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._after_body = None
            super().on_message_complete()

        @property
        def behind(self) -> bool:
            """Whether requests wait for the answer to another one."""
            return bool(self.pipeline or self._unread)

        def data_received(self, data: bytes) -> None:
            self._idle_since = None
            if not self.behind and len(data) <= _SLICE and not self.transport.is_closing():
                self._look_into(data)
                return
            self._unread += data
            self._look_into_unread()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._begin_due()
            self._look_into_unread()
            if not self.behind:
                self.flow.resume_reading()

        def on_short_answer_complete(self) -> None:
            """As :meth:`on_response_complete`, but sets no timer for each answer where no request
            waits behind it: one timer of the connection looks at how long it has been idle."""
            if self.behind or self.flow.read_paused or self.transport.is_closing():
                self.on_response_complete()
                return
            self.server_state.total_requests += 1
            self._idle_since = self.loop.time()
            if self._idle is None:
                self._idle = self.loop.call_later(self.timeout_keep_alive, self._look_at_idle)

        def _look_at_idle(self) -> None:
            self._idle = None
            if self._idle_since is None:  # a request is under way: its answer sets the timer again
                return
            left = self._idle_since + self.timeout_keep_alive - self.loop.time()
            if left > 0:
                self._idle = self.loop.call_later(left, self._look_at_idle)
            else:
                self.timeout_keep_alive_handler()

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:  # noqa: ANN401
            """uvicorn calls this as soon as it has read the head. The rest of what was read with
            it is looked at first: it may be all of the body."""
            self._due = cycle, app
            self._answering = cycle

        def _begin_due(self) -> None:
            due, self._due = self._due, None
            if due is not None and (self._short is None or not self._short.take(due[0])):
                super()._start_asgi_task(*due)

        def begin_task(self, cycle: Any) -> None:  # noqa: ANN401
            super()._start_asgi_task(cycle, self.app)

        @property
        def busy(self) -> bool:
            """Whether a request of the short way is under way. uvicorn knows of tasks only."""
            return self._short is not None and self._short.busy

        def _look_into_unread(self) -> None:
            unread, self._unread = memoryview(self._unread), b""
            while unread and not self.transport.is_closing():
                if len(self.pipeline) >= _WAITING:
                    self._unread = bytes(unread)
                    self.flow.pause_reading()
                    return
                self._look_into(bytes(unread[:_SLICE]))
                unread = unread[_SLICE:]

        def _look_into(self, data: bytes) -> None:
            super().data_received(data)
            self._begin_due()
            if self._head is not None:
                self._head += len(data)
                self._expect_head()
                if self._head > _HEAD_MAX:
                    self.transport.abort()
            elif self._after_body is not None:
                self._after_body += len(data)
                if self._after_body > _HEAD_MAX:
                    self.transport.abort()

    return Connection


class HttpServer:
    def __init__(
        self, app: App, *, keep_alive: bool = False, short_app: ShortApp | None = None
    ) -> None:
        """``keep_alive``: connections stay open without a limit on their idle time. ``short_app``:
        answers some requests without being awaited."""
        uvicorn = uvicorn_inside.uvicorn()
        self._connections: set[Any] = set()
        self._beginning: set[asyncio.Task[None]] = set()
        self._config: Any = uvicorn.Config(
            app,
            http=_protocol(self._connections, None if keep_alive else _HEAD_SECONDS, short_app),
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_FOREVER if keep_alive else _IDLE_SECONDS,
            timeout_graceful_shutdown=_GRACE,
        )
        self._server: Any = uvicorn.Server(self._config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server._serve([]))  # no socket to listen at
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0)
        if self._task.done():
            self._task.result()

    def take(self, sock: LocalSocket, over: Callable[[], None]) -> None:
        """Serves a connection. ``over`` is called once it has ended."""
        task = asyncio.get_running_loop().create_task(self._begin(sock, over))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, sock: LocalSocket, over: Callable[[], None]) -> None:
        def connection() -> Any:  # noqa: ANN401
            made = self._config.http_protocol_class(
                config=self._config, server_state=self._server.server_state, app_state={}
            )
            made.over, made.sock = over, sock
            return made

        try:
            await asyncio.get_running_loop().connect_accepted_socket(connection, sock)
        except OSError:  # its other end may be gone by now
            sock.close()
            over()

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return bool(self._server.server_state.tasks) or any(
            connection.busy for connection in self._connections
        )

    def close_connections(self, identity: str | None = None) -> None:
        """Those that were shown this identity, or all."""
        for connection in list(self._connections):
            if identity is None or connection.identity == identity:
                connection.transport.close()

    async def stop(self) -> None:
        self._server.should_exit = True
        await asyncio.gather(*self._beginning, return_exceptions=True)
        self.close_connections()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
