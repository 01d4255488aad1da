"""Many requests of one client at once. For the blocking one, and for the awaited one in asyncio,
uvloop and trio."""

from __future__ import annotations

import threading
import time

import anyio
import pytest
from support import (
    KINDS,
    Connection,
    Face,
    answering,
    byte_enclave,
    drive,
    ok,
    with_client,
)

pytestmark = [
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning"),
]


def test_many_at_once(kind: str) -> None:
    """More requests than slots: each gets its own answer, and never more than 8 are open."""
    open_now = 0
    most = 0
    lock = threading.Lock()

    def script(connection: Connection) -> None:
        nonlocal open_now, most
        while True:
            head = connection.request()[0]
            with lock:
                open_now += 1
                most = max(most, open_now)
            time.sleep(0.002)
            with lock:
                open_now -= 1
            connection.send(ok(head.split(b" ")[1]))

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            async def one(number: int) -> None:
                assert (await client.get(f"/{number}")).text == f"/{number}"

            if client.is_async:
                async with anyio.create_task_group() as group:
                    for number in range(300):
                        group.start_soon(one, number)
                return
            failures: list[BaseException] = []

            def work(first: int) -> None:
                try:
                    for number in range(first, first + 10):
                        drive("sync", lambda number=number: one(number))  # type: ignore[misc]
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=work, args=(at * 10,)) for at in range(30)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failures

        with_client(kind, enclave, case, max_in_flight=8)
    assert 1 < most <= 8


def test_shared_connect(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            async def one() -> None:
                assert (await client.get("/")).status_code == 200

            if client.is_async:
                async with anyio.create_task_group() as group:
                    for _ in range(20):
                        group.start_soon(one)
            else:
                threads = [
                    threading.Thread(target=client.client.get, args=("/",)) for _ in range(20)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert client.client.stats.connects == 1

        with_client(kind, enclave, case)
        assert enclave.stats()["connections_total"] == 1


def test_a_second_channel_when_the_first_is_full(kind: str) -> None:
    def script(connection: Connection) -> None:
        while True:
            connection.request()
            time.sleep(0.1)
            connection.send(ok())

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            async def some() -> None:
                if client.is_async:
                    async with anyio.create_task_group() as group:
                        for _ in range(8):
                            group.start_soon(client.get, "/")
                    return
                threads = [
                    threading.Thread(target=client.client.get, args=("/",)) for _ in range(8)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

            await some()
            stats = client.client.stats
            assert (stats.channels, stats.connects, stats.reconnects) == (2, 2, 0)

        with_client(kind, enclave, case, max_channels=3, max_in_flight=2)
        assert enclave.stats()["connections_total"] == 2
