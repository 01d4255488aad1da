"""A wait has an owner and ends with it: by an event, a timeout, a cancellation, or as garbage."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from support import KINDS, ByteServer, Connection, drive, eventually, keywords

import enclavia
from enclavia import _core
from enclavia._io.loops import loop_hub
from enclavia._io.threads import thread_hub
from enclavia.testing import LocalEnclave

ASYNC = [kind for kind in KINDS if kind != "sync"]


def on_demand(connection: Connection) -> None:
    """Sends nothing until the first ``!``, then takes and sends all it can."""
    while b"!" not in connection.sock.recv(1 << 16):
        pass
    connection.send(b"x")
    while connection.sock.recv(1 << 20):
        pass


@contextmanager
def channel_core() -> Iterator[tuple[LocalEnclave, dict[str, Any]]]:
    with ByteServer(on_demand) as server, LocalEnclave(server.address) as enclave:
        yield enclave, keywords(enclave, timeout=20)


def told(notifier: _core.Notifier, stream: _core.Stream) -> list[int]:
    """What is announced once the stream is readable. Blocks, so that no event loop takes it."""
    eventually(lambda: stream.readable)
    return notifier.drain()


@pytest.mark.parametrize("end", ["timeout", "cancelled"])
@pytest.mark.parametrize("kind", ASYNC)
def test_a_wait_that_ended_is_told_nothing(kind: str, end: str) -> None:
    with channel_core() as (enclave, options):

        async def case() -> None:
            async with enclavia.AsyncChannel.connect(enclave.url, **options) as channel:
                stream = await channel.open_stream()
                if end == "timeout":
                    stream.read_timeout = 0.01
                    with pytest.raises(enclavia.ReadTimeout):
                        await stream.read(1)
                    with pytest.raises(enclavia.ReadTimeout):
                        await stream.readinto(bytearray(1))
                else:
                    with anyio.move_on_after(0.01):
                        await stream.read(1)
                await stream.write(b"!")
                assert told(loop_hub()._notifier, stream._core) == []

        drive(kind, case)


def test_a_wait_of_a_thread_that_ended_is_told_nothing() -> None:
    with (
        channel_core() as (enclave, options),
        enclavia.Channel.connect(enclave.url, **options) as channel,
        channel.open_stream() as stream,
    ):
        hub = thread_hub()

        def register(notifier: _core.Notifier, token: int) -> _core.Watch:
            return stream._core.notify(_core.READABLE, notifier, token)

        assert not hub.wait(register, 0.01)
        stream.write(b"!")
        assert told(hub._notifier, stream._core) == []
        assert hub.wait(register, 20)


def test_a_registration_is_withdrawn_when_nobody_has_it() -> None:
    with (
        channel_core() as (enclave, options),
        enclavia.Channel.connect(enclave.url, **options) as channel,
        channel.open_stream() as stream,
    ):
        notifier = _core.Notifier()
        kept = stream._core.notify(_core.READABLE, notifier, 1)
        ended = stream._core.notify(_core.READABLE, notifier, 2)
        ended.end()
        ended.end()
        stream._core.notify(_core.READABLE, notifier, 3)
        stream.write(b"!")
        assert told(notifier, stream._core) == [1]
        del kept


def test_a_task_of_a_loop_that_was_closed_waits_no_more() -> None:
    with channel_core() as (enclave, options):
        loop = asyncio.new_event_loop()

        async def connected() -> tuple[Any, Any, _core.Notifier]:
            channel = await enclavia.AsyncChannel.connect(enclave.url, **options)
            return channel, await channel.open_stream(), loop_hub()._notifier

        channel, stream, notifier = loop.run_until_complete(connected())
        task = loop.create_task(stream.read(1))
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        core = stream._core
        del task, loop
        gc.collect()
        core.write(b"!", 20)
        assert told(notifier, core) == []
        channel._core.close()


@pytest.mark.parametrize("kind", ASYNC)
def test_two_tasks_that_read_one_stream_both_go_on(kind: str) -> None:
    def echo(connection: Connection) -> None:
        while data := connection.sock.recv(65536):
            connection.send(data)

    with ByteServer(echo) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            options = keywords(enclave, timeout=30)
            async with enclavia.AsyncChannel.connect(enclave.url, **options) as channel:
                stream = await channel.open_stream()
                got: list[bytes] = []

                async def read() -> None:
                    got.append(await stream.read(1))

                async with anyio.create_task_group() as group:
                    for _ in range(4):
                        group.start_soon(read)
                    await anyio.sleep(0.05)
                    await stream.write(b"abcd")
                assert sorted(got) == [b"a", b"b", b"c", b"d"]

        drive(kind, case)


@pytest.mark.parametrize("kind", ASYNC)
def test_two_tasks_that_write_to_one_stream_both_go_on(kind: str) -> None:
    size = 2 << 20

    def sink(connection: Connection) -> None:
        connection.send(b"%d" % sum(connection.read(2 * size)))

    with ByteServer(sink) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            options = keywords(enclave, timeout=30)
            async with enclavia.AsyncChannel.connect(enclave.url, **options) as channel:
                stream = await channel.open_stream()
                async with anyio.create_task_group() as group:
                    group.start_soon(stream.write, b"\1" * size)
                    group.start_soon(stream.write, b"\2" * size)
                assert await stream.read() == b"%d" % (3 * size)

        drive(kind, case)


def in_thread(call: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "nothing woke the loop"
    assert not errors, errors


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_loop_that_moved_to_another_thread_is_woken(kind: str) -> None:
    """By the thread in which it ran before; no timer of the loop would wake it."""
    if kind == "uvloop":
        loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    else:
        loop = asyncio.new_event_loop()

    async def made() -> tuple[Any, Any]:
        hub = loop_hub()
        return hub, hub.waiter()

    hub, waiter = loop.run_until_complete(made())
    waits = threading.Event()

    async def wait() -> bool:
        loop.call_soon(waits.set)
        return bool(await hub.wait_for(waiter, None))

    woken: list[bool] = []
    thread = threading.Thread(
        target=lambda: woken.append(loop.run_until_complete(wait())), daemon=True
    )
    thread.start()
    assert waits.wait(20)
    waiter.set()
    thread.join(20)
    assert woken == [True]

    async def again() -> bool:
        """From inside the loop, in the thread where it is now."""
        other = loop_hub().waiter()
        loop.call_soon(other.set)
        return await loop_hub().wait_for(other, None)

    in_thread(lambda: woken.append(loop.run_until_complete(again())))
    assert woken == [True, True]
    loop.close()


@pytest.mark.parametrize("where", ["same thread", "another thread", "another loop"])
def test_waking_a_task_of_a_closed_loop_says_so(where: str) -> None:
    loop = asyncio.new_event_loop()
    waiters: list[Any] = []

    async def wait() -> None:
        hub = loop_hub()
        waiters.append(hub.waiter())
        await hub.wait_for(waiters[0], None)

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]

    def wake() -> None:
        with pytest.raises(enclavia.StateError, match="event loop"):
            waiters[0].set()

    async def wake_there() -> None:
        wake()

    if where == "same thread":
        wake()
    elif where == "another thread":
        in_thread(wake)
    else:
        asyncio.run(wake_there())
