"""The short way of a request: sent and answered in callbacks of the event loop, without a task.

Most requests of a forwarder are small. One read of the socket brings all of it, it goes out over a
connection that was kept, and its answer comes in one piece. Such a request never waits, so it needs
no task. Any other request goes on in uvicorn's way, in a task: from its beginning where nothing was
sent yet, else from where it is (the scope's state then has its exchange as ``begun``).

Decides which requests go that way. Calls: _core, _exchange, _io, _records. Locks: none.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from .. import _core
from .._io.loops import Telling, running_hub
from .._records import fields

if TYPE_CHECKING:
    from .._exchange.exchange import Exchange

__all__ = ["ShortApp", "ShortWay"]

logger = logging.getLogger("enclavia.forwarder")


class ShortApp(Protocol):
    """What an application has beside its ASGI side."""

    def begin(self, scope: dict[str, Any], content: bytes) -> Exchange | None: ...
    def whole_answer(self, exchange: Exchange, method: str, keep_alive: bool) -> bytes | None: ...


class ShortWay:
    """Of one connection: the request on it that goes this way now, if one does."""

    def __init__(self, app: ShortApp, connection: Any) -> None:  # noqa: ANN401 - uvicorn's
        self._app = app
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._hub = running_hub()
        self._under_way: tuple[Exchange, Any] | None = None
        self._telling: Telling | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        return self._under_way is not None

    def take(self, cycle: Any) -> bool:  # noqa: ANN401 - uvicorn's
        """False: the request is uvicorn's to begin."""
        connection = self._connection
        if (
            cycle.more_body
            or cycle.waiting_for_100_continue
            or (connection.access_log and connection.access_logger.isEnabledFor(logging.INFO))
            or connection.transport.is_closing()
        ):
            return False
        exchange = self._app.begin(cycle.scope, bytes(cycle.body))
        if exchange is None:
            return False
        self._under_way = exchange, cycle
        connection.left = self.drop
        stream = exchange.stream if exchange.awaits_answer else None
        if isinstance(stream, _core.Stream):
            self._telling = self._hub.tell_readable(stream, self._came)
            self._expect(exchange.read_timeout)
        else:
            self._go_on()
        return True

    def drop(self) -> None:
        """The client has gone."""
        under_way = self._take_back()
        if under_way is not None:
            under_way[0].drop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take_back(self) -> tuple[Exchange, Any] | None:
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.end()
        under_way, self._under_way = self._under_way, None
        return under_way

    def _came(self) -> None:
        try:
            self._answer()
        except Exception as error:
            # The event loop's hub calls this for the streams of all requests: an error of one must
            # not keep the others from being called.
            logger.exception("a request failed", extra=fields("request_failed", error=error))
            self._connection.transport.abort()

    def _answer(self) -> None:
        if self._under_way is None:
            return
        exchange, cycle = self._under_way
        connection = self._connection
        if exchange.look() and not connection.flow.write_paused and not cycle.disconnected:
            written = self._app.whole_answer(exchange, cycle.scope["method"], cycle.keep_alive)
            if written is not None:
                self._take_back()
                connection.left = None
                cycle.response_started = cycle.response_complete = True
                connection.transport.write(written)
                if not cycle.keep_alive:
                    connection.transport.close()
                connection.on_short_answer_complete()
                return
        self._go_on()

    def _go_on(self) -> None:
        """The request goes on in a task, from where it is."""
        under_way = self._take_back()
        if under_way is not None:
            exchange, cycle = under_way
            self._connection.left = None
            cycle.scope["state"]["begun"] = exchange
            self._connection.begin_task(cycle)

    # One timer for all requests of a connection. A later deadline does not move it: when the timer
    # comes too early, it is set again.

    def _expect(self, seconds: float | None) -> None:
        if seconds is not None:
            self._deadline = self._loop.time() + seconds
            if self._timer is None:
                self._timer = self._loop.call_later(seconds, self._look_at_time)
        else:
            self._deadline = float("inf")

    def _look_at_time(self) -> None:
        self._timer = None
        if self._under_way is None:
            return
        left = self._deadline - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look_at_time)
            return
        self._under_way[0].unanswered()
        self._go_on()
