"""What only exists in event loops: cancellation, several loops, threads of loops, and the hub."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import anyio
import pytest
from support import HANG, Connection, answering, byte_enclave, drive, eventually, keywords, ok

import enclavia

BACKENDS = ["asyncio", "uvloop", "trio"]


def varying(connection: Connection) -> None:
    while True:
        head = connection.request()[0]
        path = head.split(b" ")[1]
        time.sleep(hash(path) % 5 / 500)
        connection.send(ok(path))


@pytest.mark.parametrize("kind", BACKENDS)
def test_cancellation_leaves_the_pool_healthy(kind: str) -> None:
    """Requests are cancelled at any moment: while they connect, wait for a slot, send or read."""
    with byte_enclave(varying) as (enclave, _):

        async def case() -> None:
            dice = random.Random(7)
            async with enclavia.AsyncClient(
                enclave.url, **keywords(enclave), max_in_flight=4
            ) as client:
                survived = 0

                async def one(number: int, patience: float) -> None:
                    nonlocal survived
                    with anyio.move_on_after(patience):
                        assert (await client.get(f"/{number}")).text == f"/{number}"
                        survived += 1

                for _ in range(10):
                    async with anyio.create_task_group() as group:
                        for number in range(30):
                            group.start_soon(one, number, dice.uniform(0, 0.05))
                assert 0 < survived < 300
                stats = client.stats
                assert (stats.streams_active, stats.waiting, stats.connects) == (0, 0, 1)
                async with anyio.create_task_group() as group:
                    for number in range(30):
                        group.start_soon(one, number, 20)

        drive(kind, case)
        eventually(lambda: enclave.stats()["slots_open"] == 0)


@pytest.mark.parametrize("kind", BACKENDS)
def test_the_connecting_task_is_cancelled(kind: str) -> None:
    """The others go on with the same attempt."""
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case() -> None:
            client = enclavia.AsyncClient(enclave.url, **keywords(enclave))
            answers = []

            async def one() -> None:
                answers.append((await client.get("/")).status_code)

            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    scope = anyio.CancelScope()

                    async def connector() -> None:
                        with scope:
                            await client.get("/")

                    group.start_soon(connector)
                    await anyio.sleep(0)
                    await anyio.sleep(0)
                    for _ in range(5):
                        group.start_soon(one)
                    await anyio.sleep(0)
                    scope.cancel()
            assert answers == [200] * 5
            assert client.stats.connects == 1
            await client.aclose()

        drive(kind, case)
        assert enclave.stats()["connections_total"] == 1


@pytest.mark.parametrize("kind", BACKENDS)
def test_cancelled_before_anybody_else_came(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case() -> None:
            client = enclavia.AsyncClient(enclave.url, **keywords(enclave))
            for _ in range(5):
                with anyio.move_on_after(0.001):
                    await client.get("/")
            assert (await client.get("/")).status_code == 200
            await client.aclose()

        drive(kind, case)
        eventually(lambda: enclave.stats()["connections_open"] == 0)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_cancelled_download_closes_its_stream(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")
        connection.wait_closed(30)

    with byte_enclave(script) as (enclave, _):

        async def case() -> None:
            async with enclavia.AsyncClient(enclave.url, **keywords(enclave)) as client:
                with anyio.move_on_after(0.2):
                    await client.get("/")
                assert client.stats.streams_active == 0
                eventually(lambda: enclave.stats()["slots_open"] == 0)

        drive(kind, case)


@pytest.mark.parametrize("kind", BACKENDS)
def test_one_client_in_loop_after_loop(kind: str) -> None:
    """As in notebooks and tests: every call has an event loop of its own."""
    with byte_enclave(answering(ok())) as (enclave, _):
        client = enclavia.AsyncClient(enclave.url, **keywords(enclave))

        async def get() -> None:
            assert (await client.get("/")).status_code == 200

        for _ in range(4):
            drive(kind, get)
        assert client.stats.connects == 1
        drive(kind, client.aclose)


def test_one_client_in_several_loops_at_once() -> None:
    """Slots that one loop gives back wake tasks of another one."""
    with byte_enclave(varying) as (enclave, _):
        client = enclavia.AsyncClient(enclave.url, **keywords(enclave), max_in_flight=2)
        failures: list[BaseException] = []

        async def many(first: int) -> None:
            async def one(number: int) -> None:
                assert (await client.get(f"/{number}")).text == f"/{number}"

            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    for number in range(first, first + 20):
                        group.start_soon(one, number)

        def work(kind: str, first: int) -> None:
            async def case() -> None:
                await many(first)

            try:
                drive(kind, case)
            except BaseException as error:
                failures.append(error)

        kinds = ["asyncio", "trio", "uvloop", "asyncio"]
        threads = [
            threading.Thread(target=work, args=(kind, 100 * index))
            for index, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert client.stats.connects == 1
        asyncio.run(client.aclose())


def test_no_descriptors_are_left_by_loops() -> None:
    import os

    with byte_enclave(answering(ok())) as (enclave, _):
        client = enclavia.AsyncClient(enclave.url, **keywords(enclave))

        async def get() -> None:
            assert (await client.get("/")).status_code == 200

        asyncio.run(get())
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            asyncio.run(get())
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        asyncio.run(client.aclose())


def test_keyboard_interrupt_in_asyncio() -> None:
    """asyncio.run turns Ctrl-C into a cancellation; the client works in the next run."""
    import os
    import signal

    reached = threading.Event()

    def script(connection: Connection) -> None:
        while b"/slow" not in connection.request()[0]:
            connection.send(ok())
        reached.set()
        connection.wait_closed()

    def interrupt() -> None:
        if reached.wait(HANG):
            os.kill(os.getpid(), signal.SIGINT)

    with byte_enclave(script) as (enclave, _):
        client = enclavia.AsyncClient(enclave.url, **keywords(enclave))

        async def get(path: str) -> int:
            return (await client.get(path)).status_code

        assert asyncio.run(get("/")) == 200
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(get("/slow"))
        assert client.stats.streams_active == 0
        assert asyncio.run(get("/")) == 200
        asyncio.run(client.aclose())
