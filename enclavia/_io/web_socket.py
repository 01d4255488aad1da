"""The WebSocket of a browser, and what goes between it and a channel of the core.

In a browser (Pyodide) a program has no sockets: the page's JavaScript resolves, connects, does TLS
and frames messages. The core's ``Link`` says what is to be sent and takes what came; this carries
both, in the page's event loop. Nothing here knows what the messages mean.

A browser's WebSocket cannot be told to stop receiving. What comes while the channel takes nothing
waits here, up to :data:`MOST_WAITING` bytes; beyond that the connection is ended.

Decides how far ahead of the network is sent, and when what was received and not read is too much.
Calls: _core, _errors. Locks: none.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
import weakref
from typing import TYPE_CHECKING, Any, Final

from .._errors import ConnectError, StateError

if TYPE_CHECKING:
    from .. import _core

__all__ = ["MOST_WAITING", "open_socket"]

logger = logging.getLogger("enclavia")

MOST_WAITING: Final = 64 * 1024 * 1024
"""Bytes of messages that wait because their readers do not read."""
_EACH: Final = 256
"""What a message that waits takes beside its bytes: a peer may send any number of short ones."""
_MOST_MESSAGE: Final = 16 * 1024 * 1024
"""As the core bounds them (csrc/web): a longer one is not even copied."""
_AHEAD: Final = 512 * 1024
"""Bytes that the browser may have taken and not sent yet (``bufferedAmount``). A browser does not
tell when these become fewer, so it is asked."""
_ASK_SECONDS: Final = 0.004
_LONGEST_TIMER: Final = 3600.0
"""Seconds; JavaScript's timers fire at once where they are given more than 24 days."""
_ABNORMAL: Final = 1006  # RFC 6455, section 7.4.1
_CODES: Final = range(1000, 5000)
_NORMAL: Final = 1000
_MOST_REASON: Final = 123


def open_socket(channel: _core.Channel, url: str) -> None:
    """Opens the channel's WebSocket, and carries its messages until it is closed.

    Raises:
        ConnectError: the browser refuses to open it, for example ``ws://`` in a page of ``https://``.
        StateError: there is no event loop, or JavaScript has no WebSocket.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise StateError(
            "expected a running event loop, in which a browser's WebSocket tells what happened, "
            "got none"
        ) from None
    _Carrier(loop, channel.link(), url)


class _Carrier:
    """Held by the browser's WebSocket, by the functions that it calls, until it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: _core.Link, url: str) -> None:
        self._loop = loop
        self._link = link
        self._waiting: collections.deque[memoryview] = collections.deque()
        self._waiting_bytes = 0
        self._is_open = False
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._proxies: list[Any] = []
        self._socket: Any = _new_socket(url)
        self._listen()
        link.on_work(functools.partial(_work, weakref.ref(self)))
        self.plan()

    def _listen(self) -> None:
        from pyodide.ffi import create_proxy

        self._socket.binaryType = "arraybuffer"
        for name, function in (
            ("onopen", self._opened),
            ("onmessage", self._received),
            ("onclose", self._closed),
            ("onerror", self._failed),
        ):
            proxy = create_proxy(function)
            self._proxies.append(proxy)
            setattr(self._socket, name, proxy)

    # -- what the browser tells -------------------------------------------------------------

    def _opened(self, _event: Any) -> None:  # noqa: ANN401 - of JavaScript's
        self._is_open = True
        self._link.opened()
        self._go_on()

    def _received(self, event: Any) -> None:  # noqa: ANN401
        data = event.data
        if isinstance(data, str):
            self._link.text()
        elif data.byteLength > _MOST_MESSAGE:
            self._close(
                f"expected messages of at most {_MOST_MESSAGE} bytes, got {data.byteLength}"
            )
        elif data.byteLength == 0:
            # Never behind those that wait: the channel counts them, and ends where they are many.
            self._link.received(b"")
        else:
            self._take_in(data.to_bytes())
        self._go_on()

    def _closed(self, event: Any) -> None:  # noqa: ANN401
        code, reason = int(event.code), str(event.reason)
        if code not in _CODES or code == _ABNORMAL:  # no close frame has these
            code, reason = _ABNORMAL, ""
        self._end(code, reason)

    def _failed(self, _event: Any) -> None:  # noqa: ANN401
        # Where a page's Content-Security-Policy forbids the address, Chromium tells of an error and
        # never of an end. Of an open WebSocket the end follows, with its code.
        if not self._is_open:
            self._end(_ABNORMAL, "")

    # -- what there is to do ----------------------------------------------------------------

    def plan(self) -> None:
        """Goes on soon. May be called from within a call of the core's."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_due = False
        if self._socket is None:
            return
        self._give()
        if self._is_open:
            self._send()
        self._set_timer(self._link.tick())
        if self._link.finished:
            self._close()

    def _take_in(self, data: bytes) -> None:
        self._waiting.append(memoryview(data))
        self._waiting_bytes += len(data) + _EACH
        self._give()
        if self._waiting_bytes > MOST_WAITING:
            self._close(
                f"more than {MOST_WAITING} bytes were received and not read, and a browser "
                "cannot be told to stop"
            )

    def _give(self) -> None:
        """What has come, as far as the channel takes it."""
        while self._waiting:
            taken = self._link.received(self._waiting[0])
            self._waiting_bytes -= taken
            if taken < len(self._waiting[0]):
                self._waiting[0] = self._waiting[0][taken:]
                return
            self._waiting.popleft()
            self._waiting_bytes -= _EACH

    def _send(self) -> None:
        from pyodide.ffi import to_js

        socket = self._socket
        # At the end all is handed over: a peer that takes nothing must not hold the end up.
        while self._link.closing or socket.bufferedAmount < _AHEAD:
            message = self._link.take()
            if not message:
                return
            socket.send(to_js(message))
        if self._asking is None:
            self._asking = self._loop.call_later(_ASK_SECONDS, self._ask)

    def _ask(self) -> None:
        self._asking = None
        self.plan()

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = (
            None
            if seconds is None
            else self._loop.call_later(min(seconds, _LONGEST_TIMER), self.plan)
        )

    # -- its end ----------------------------------------------------------------------------

    def _close(self, why: str | None = None) -> None:
        """What was sent before is still delivered: a browser sees to that. ``why``: the reason is
        this side's."""
        link, socket = self._link, self._socket
        code, reason = (link.code, link.reason) if why is None else (_ABNORMAL, why)
        self._end(code or _ABNORMAL, reason)
        # A page may say 1000, and codes from 3000 on.
        said = _NORMAL if why is None and code in (0, _NORMAL) else 3000 + code
        socket.close(said, reason.encode()[:_MOST_REASON].decode(errors="ignore"))

    def _end(self, code: int, reason: str) -> None:
        """The browser calls nothing any more: what it was given for that is let go."""
        socket, self._socket = self._socket, None
        if socket is None:
            return
        self._set_timer(None)
        if self._asking is not None:
            self._asking.cancel()
        socket.onopen = socket.onmessage = socket.onclose = socket.onerror = None
        proxies, self._proxies = self._proxies, []
        self._give()
        self._waiting.clear()
        self._link.closed(code, reason)
        self._link.on_work(None)
        for proxy in proxies:
            # The one that is being called is needed until it has returned.
            self._loop.call_soon(proxy.destroy)


def _work(of: weakref.ref[_Carrier]) -> None:
    carrier = of()
    if carrier is not None:
        carrier.plan()


def _new_socket(url: str) -> Any:  # noqa: ANN401
    import js
    from pyodide.ffi import JsException

    kind = getattr(js, "WebSocket", None)
    if kind is None:
        raise StateError("expected a JavaScript that has WebSocket, got one without")
    try:
        return kind.new(url)
    except JsException as error:
        raise ConnectError(
            f"the browser refused to open a WebSocket to {url}: {error}; a page of https:// may "
            "open wss:// only",
            retryable=False,
        ) from None
