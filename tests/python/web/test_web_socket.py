"""What goes between a browser's WebSocket and a channel, with neither of them: what is bounded, and
what a browser's events may say."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_page import ArrayBuffer, JsException, Proxy, Uint8Array

from enclavia._io import web_socket


class Link:
    """As the core's; ``room``: bytes that it takes before it holds back."""

    code, reason = 1000, ""

    def __init__(self, room: float = 0) -> None:
        self.room = room
        self.got: list[bytes] = []
        self.to_send: list[bytes] = []
        self.closing = self.finished = False
        self.ended: list[tuple[int, str]] = []
        self.next: float | None = None

    def opened(self) -> None: ...

    def on_work(self, callback: Callable[[], object] | None) -> None: ...

    def received(self, data: memoryview | bytes) -> int:
        self.got.append(bytes(data))
        taken = int(min(len(data), self.room))
        self.room -= taken
        return len(data) if self.ended else taken

    def take(self) -> bytes:
        return self.to_send.pop(0) if self.to_send else b""

    def tick(self) -> float | None:
        return self.next

    def closed(self, code: int, reason: str) -> None:
        self.ended.append((code, reason))


class Socket:
    """As a browser's."""

    def __init__(self) -> None:
        self.bufferedAmount = 0
        self.onopen: Any = None
        self.onmessage: Any = None
        self.onclose: Any = None
        self.sent: list[bytes] = []
        self.closed: tuple[int, str] | None = None

    def send(self, data: Uint8Array) -> None:
        self.sent.append(data.data)
        self.bufferedAmount += len(data.data)

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def message(self, data: object) -> None:
        if self.onmessage is not None:
            self.onmessage(SimpleNamespace(data=data))


@pytest.fixture
def socket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Socket]:
    made = Socket()
    js, pyodide, ffi = ModuleType("js"), ModuleType("pyodide"), ModuleType("pyodide.ffi")
    vars(js)["WebSocket"] = SimpleNamespace(new=lambda _: made)
    vars(ffi).update(create_proxy=Proxy, to_js=Uint8Array, JsException=JsException)
    for name, module in {"js": js, "pyodide": pyodide, "pyodide.ffi": ffi}.items():
        monkeypatch.setitem(sys.modules, name, module)
    living = Proxy.living
    yield made
    assert Proxy.living == living


def run(link: Link, socket: Socket, steps: Callable[[], object]) -> list[float]:
    """``steps`` while the WebSocket is open, and its end. Gives what timers were set meanwhile."""
    set_for: list[float] = []

    async def whole() -> None:
        loop = asyncio.get_running_loop()
        later = loop.call_later

        def call_later(delay: float, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
            set_for.append(delay)
            return later(delay, *arguments, **more)

        loop.call_later = call_later  # type: ignore[method-assign]
        web_socket.open_socket(SimpleNamespace(link=lambda: link), "ws://enclave")  # type: ignore[arg-type]
        socket.onopen(SimpleNamespace())
        set_for.clear()
        steps()
        if socket.onclose is not None and not link.ended:
            socket.onclose(SimpleNamespace(code=1000, reason=""))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(whole())
    return set_for


def test_short_messages_that_nobody_reads_are_bounded_too(
    socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds a message takes many times as much as its one byte."""
    monkeypatch.setattr(web_socket, "MOST_WAITING", 100_000)
    link = Link()

    def steps() -> None:
        for _ in range(1000):
            socket.message(ArrayBuffer(b"x"))

    run(link, socket, steps)
    ((code, reason),) = link.ended
    assert code == 1006
    assert reason.startswith("more than 100000 bytes were received and not read")
    assert socket.closed is not None
    assert socket.closed[0] == 4006


def test_what_was_read_counts_no_more(socket: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_socket, "MOST_WAITING", 1000)
    link = Link()

    def steps() -> None:
        for _ in range(100):
            socket.message(ArrayBuffer(b"abc"))
            link.room = 3

    run(link, socket, steps)
    assert link.ended == [(1000, "")]


def test_an_empty_message_is_counted_by_the_channel_also_where_others_wait(socket: Socket) -> None:
    link = Link()

    def steps() -> None:
        socket.message(ArrayBuffer(b"waits"))
        for _ in range(50):
            socket.message(ArrayBuffer(b""))

    run(link, socket, steps)
    assert link.got.count(b"") == 50


def test_a_message_that_is_too_long_is_not_even_copied(socket: Socket) -> None:
    link = Link(float("inf"))
    run(link, socket, lambda: socket.message(SimpleNamespace(byteLength=16 * 1024 * 1024 + 1)))
    ((code, reason),) = link.ended
    assert (code, reason) == (1006, "expected messages of at most 16777216 bytes, got 16777217")
    assert link.got == []


@pytest.mark.parametrize("code", [0, 999, 1006, 5000, 65535])
def test_a_code_that_no_close_frame_has_is_an_end_without_one(socket: Socket, code: int) -> None:
    """A reason beside 1006 would pass for this side's."""
    link = Link()
    run(link, socket, lambda: socket.onclose(SimpleNamespace(code=code, reason="said")))
    assert link.ended == [(1006, "")]


def test_a_slow_network_is_asked_by_one_timer(socket: Socket) -> None:
    link = Link(float("inf"))

    def steps() -> None:
        socket.bufferedAmount = 1 << 20
        for _ in range(20):
            socket.message(ArrayBuffer(b"x"))

    assert len(run(link, socket, steps)) == 1


def test_at_the_end_all_is_handed_over_whatever_the_peer_takes(socket: Socket) -> None:
    link = Link(float("inf"))

    def steps() -> None:
        socket.bufferedAmount = 1 << 20
        link.to_send = [b"a", b"b"]
        socket.message(ArrayBuffer(b"x"))
        assert socket.sent == []
        link.closing = True
        socket.message(ArrayBuffer(b"x"))

    run(link, socket, steps)
    assert socket.sent == [b"a", b"b"]


def test_no_timer_is_longer_than_javascripts_are(socket: Socket) -> None:
    link = Link(float("inf"))
    link.next = 292 * 365 * 86400.0
    set_for = run(link, socket, lambda: socket.message(ArrayBuffer(b"x")))
    assert len(set_for) == 1
    assert set_for[0] < 2**31 / 1000
