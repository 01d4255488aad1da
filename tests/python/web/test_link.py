"""The core as it is built for browsers: a channel over a WebSocket that belongs to Python."""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import os
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from channels import echo, silent
from support import byte_enclave
from web_core import Page, web_core

import enclavia
from enclavia.testing import LocalEnclave

CHUNK = 16 * 1024


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    with byte_enclave(echo) as (local, _):
        yield local


def policy(local: LocalEnclave, pcrs: enclavia.Pcrs | None = None) -> Any:
    return web_core().Policy([(pcrs or local.pcrs).as_tuple()], local.root, False, True)


def channel(local: LocalEnclave, **options: Any) -> Any:
    host, _, port = local.url.removeprefix("ws://").partition(":")
    return web_core().Channel(
        **{
            "host": host,
            "port": int(port.partition("/")[0]),
            "tls": False,
            "path": "/",
            "authority": host,
            "headers": (),
            "policy": policy(local),
            "max_in_flight": 8,
            "verify": True,
            "ca_file": None,
            "proxy": None,
            **options,
        }
    )


async def opened(page: Page, url: str) -> None:
    await page.open(url)
    await page.announced(page.channel.notify_open)
    page.channel.wait_open(0)


def run(
    steps: Callable[..., Coroutine[Any, Any, None]], local: LocalEnclave, **options: Any
) -> None:
    """``steps`` with the page of an open channel."""

    async def whole() -> None:
        page = Page(channel(local, **options))
        await opened(page, local.url)
        await steps(page)
        await page.close()

    asyncio.run(whole())


async def stream_of(page: Page) -> Any:
    slots: list[Any] = []
    await page.announced(lambda n, token: slots.append(page.channel.reserve(n, token)))
    return page.channel.open_stream(slots[0], b"")


async def write(page: Page, stream: Any, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        put = stream.write(rest[:CHUNK], 0)
        rest = rest[put:]
        if put == 0:
            await page.announced(functools.partial(stream.notify, web_core().WRITABLE))


async def read(page: Page, stream: Any, n: int) -> bytes:
    got = bytearray()
    while len(got) < n:
        await page.announced(functools.partial(stream.notify, web_core().READABLE))
        got += stream.read(1 << 20, 0)
    return bytes(got)


def test_it_says_what_it_is() -> None:
    core = web_core()
    assert core.WEB is True
    assert enclavia._core.WEB is False
    assert not hasattr(core, "Enclave")
    assert not hasattr(core.Notifier, "fileno")
    assert not {name for name in core.build_info() if "websockets" in name}
    assert core.default_ca_paths() == ("", "")


def test_bytes_go_both_ways_and_the_end_is_orderly(enclave: LocalEnclave) -> None:
    data = os.urandom(1_500_000)

    async def steps(page: Page) -> None:
        stream = await stream_of(page)
        _, got = await asyncio.gather(write(page, stream, data), read(page, stream, len(data)))
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
        stats = page.channel.stats()
        assert stats["bytes_out"] == sum(map(len, page.messages_sent)) > len(data)
        assert stats["bytes_in"] > len(data)
        assert list(page.channel.stages()) == ["upgraded", "handshake", "verified"]
        assert page.channel.attestation()["form"] == "nitro"
        stream.close()

    run(steps, enclave)


def test_wrong_pins_are_refused_with_nothing_sent(enclave: LocalEnclave) -> None:
    wrong = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=enclave.pcrs.pcr1, pcr2=enclave.pcrs.pcr2)

    async def steps() -> None:
        page = Page(channel(enclave, policy=policy(enclave, wrong)))
        with pytest.raises(enclavia.PcrMismatch):
            await opened(page, enclave.url)
        await page.close()
        # The ephemeral key, and the request for the document: nothing of an application.
        assert len(page.messages_sent) == 2
        assert len(page.messages_sent[0]) == 32
        assert page.link.finished
        assert page.link.code == 1002
        assert isinstance(page.channel.error, enclavia.PcrMismatch)

    asyncio.run(steps())


def test_a_websocket_that_cannot_be_opened(enclave: LocalEnclave) -> None:
    made = channel(enclave)
    link = made.link()
    link.closed(1006, "")
    with pytest.raises(enclavia.ConnectError, match=r"ws://.*does not explain.*console.*origin"):
        made.wait_open(0)
    assert link.finished
    assert link.received(b"late") == 4
    assert made.stats()["bytes_in"] == 0


def test_a_peer_that_closes(enclave: LocalEnclave) -> None:
    made = channel(enclave)
    link = made.link()
    link.opened()
    link.closed(1013, "try\nlater")
    with pytest.raises(enclavia.ConnectionClosed, match=r"1013: try.*later") as caught:
        made.wait_open(0)
    assert "\n" not in str(caught.value)
    link.closed(1000, "")  # the first one counts
    with pytest.raises(enclavia.ConnectionClosed, match="1013"):
        made.wait_open(0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("headers", (("x-a", "b"),)),
        ("proxy", ("127.0.0.1", 3128, None)),
        ("ca_file", "/ca.pem"),
        ("keepalive_ms", 1000),
    ],
)
def test_what_a_browser_cannot_do_is_refused_by_name(
    enclave: LocalEnclave, name: str, value: object
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .*browser"):
        channel(enclave, **{name: value})


def test_certificates_are_the_browsers_to_verify(enclave: LocalEnclave) -> None:
    with pytest.raises(ValueError, match=r"^verify: expected True"):
        channel(enclave, tls=True, verify=False)


def test_a_call_that_would_wait_says_so(enclave: LocalEnclave) -> None:
    made = channel(enclave)
    link = made.link()
    for timeout in (None, 1.0):
        with pytest.raises(enclavia.StateError, match="waits for nothing"):
            made.wait_open(timeout)
    made.close(5.0)
    assert link.finished


def test_reading_is_held_back_and_goes_on(enclave: LocalEnclave) -> None:
    data = os.urandom(3_000_000)

    async def steps(page: Page) -> None:
        stream = await stream_of(page)
        writing = asyncio.create_task(write(page, stream, data))
        while page.link.wants_reading:
            await asyncio.sleep(0.001)
        before = page.channel.stats()["bytes_in"]
        assert page.link.received(b"x" * 100) == 0
        assert page.channel.stats()["bytes_in"] == before
        assert page.channel.state == "open"
        assert await read(page, stream, len(data)) == data
        assert page.link.wants_reading
        await writing

    run(steps, enclave)


def test_writers_wait_for_what_is_not_taken() -> None:
    with byte_enclave(silent) as (local, _):

        async def steps() -> None:
            page = Page(channel(local))
            await opened(page, local.url)
            streams = [await stream_of(page) for _ in range(4)]
            page._tasks[1].cancel()  # who takes messages
            await asyncio.sleep(0)
            put = 0
            for _ in range(10_000):
                page.link.tick()
                put += (more := sum(stream.write(b"x" * CHUNK, 0) for stream in streams))
                if more == 0 and put > 0:
                    break
            assert 0 < put < 1 << 20
            taken = b"".join(iter(page.link.take, b""))
            assert len(taken) > put
            page._tasks[0].cancel()
            page.link.closed(1000, "")

        asyncio.run(steps())


def test_who_drops_a_link_closes_the_channel(enclave: LocalEnclave) -> None:
    made = channel(enclave)
    link = made.link()
    with pytest.raises(RuntimeError, match="one call for each channel"):
        made.link()
    link.opened()
    del link
    gc.collect()
    with pytest.raises(enclavia.ConnectionClosed, match="without a WebSocket close frame"):
        made.wait_open(0)


def test_a_channel_that_is_dropped_has_its_websocket_closed(enclave: LocalEnclave) -> None:
    called: list[int] = []
    made = channel(enclave)
    link = made.link()
    link.opened()
    assert len(link.take()) == 32
    link.on_work(lambda: called.append(1))
    assert not link.finished
    called.clear()
    del made
    gc.collect()
    assert called
    assert link.finished
    assert (link.code, link.reason) == (1000, "")
    link.closed(1000, "")


def test_a_channel_without_a_link_leaves_nothing(enclave: LocalEnclave) -> None:
    for _ in range(3):
        made = channel(enclave)
        made.close()
        del made


def test_callbacks_come_once_for_what_has_happened_since() -> None:
    notifier = web_core().Notifier()
    called: list[int] = []
    notifier.on_wake(lambda: called.append(1))
    assert called == []
    for n in (1, 2):
        notifier.wake()
        for _ in range(3):
            pass
        assert len(called) == n
    notifier.on_wake(None)
    notifier.wake()
    assert len(called) == 2
    with pytest.raises(TypeError, match="callback: expected something callable or None"):
        notifier.on_wake(5)


def test_a_callback_whose_end_sets_another_one() -> None:
    notifier = web_core().Notifier()
    called: list[str] = []

    class Called:
        def __call__(self) -> None: ...

        def __del__(self) -> None:
            notifier.on_wake(lambda: called.append("at the end"))

    other = web_core().Notifier()
    other.on_wake(lambda: called.append("the other"))
    notifier.on_wake(Called())
    notifier.on_wake(lambda: called.append("after it"))
    notifier.wake()
    other.wake()
    assert sorted(called) == ["at the end", "the other"]
    notifier.close()
    other.wake()
    assert sorted(called) == ["at the end", "the other", "the other"]
    other.close()


def test_a_callback_whose_end_sets_another_one_on_a_closed_notifier() -> None:
    notifier = web_core().Notifier()
    refused: list[str] = []

    class Called:
        def __call__(self) -> None: ...

        def __del__(self) -> None:
            try:
                notifier.on_wake(print)
            except ValueError as error:
                refused.append(str(error))

    notifier.on_wake(Called())
    notifier.close()
    other = web_core().Notifier()
    other.on_wake(print)  # looks for whoever was woken, among all that are listed
    other.close()
    assert len(refused) == 1
    assert "closed" in refused[0]


def test_a_callback_is_let_go_with_its_object() -> None:
    class Called:
        def __call__(self) -> None: ...

    function = Called()
    notifier = web_core().Notifier()
    notifier.on_wake(function)
    gone = weakref.ref(function)
    del function
    assert gone() is not None
    notifier.close()
    assert gone() is None
    with pytest.raises(ValueError, match="closed"):
        notifier.on_wake(print)


def test_too_many_messages_that_carry_nothing(enclave: LocalEnclave) -> None:
    made = channel(enclave)
    link = made.link()
    link.opened()
    for _ in range(100):
        link.text()
        assert link.received(b"") == 0
    assert made.state == "connecting"
    for _ in range(30_000):
        link.text()
    with pytest.raises(enclavia.ProtocolError, match="carry nothing"):
        made.wait_open(0)
    assert (link.finished, link.code) == (True, 1008)


def test_a_message_that_is_too_big(enclave: LocalEnclave) -> None:
    made = channel(enclave)
    link = made.link()
    link.opened()
    size = (16 << 20) + 1
    assert link.received(bytes(size)) == size
    with pytest.raises(enclavia.ProtocolError, match=f"got {size}"):
        made.wait_open(0)
    assert (link.finished, link.code) == (True, 1009)


def test_garbage_ends_the_channel(enclave: LocalEnclave) -> None:
    made = channel(enclave)
    link = made.link()
    link.opened()
    link.received(os.urandom(200))
    with pytest.raises(enclavia.ProtocolError):
        made.wait_open(0)
    assert len(link.take()) == 32
    assert link.take() == b""
    assert link.finished
