"""The four timeouts of a client. For the blocking one, and for the awaited one in asyncio, uvloop
and trio."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import httpx2
import pytest
from support import (
    HANG,
    KINDS,
    Chunks,
    Connection,
    Face,
    answering,
    byte_enclave,
    drive,
    eventually,
    ok,
    unless_ended,
    with_client,
)

import enclavia
from enclavia.testing import Fault

pytestmark = [
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning"),
]


def silent(connection: Connection) -> None:
    connection.request()
    connection.wait_closed()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.SILENT_HANDSHAKE, enclavia.ConnectTimeout),
        (Fault.SILENT_ATTESTATION, enclavia.ConnectTimeout),
    ],
)
def test_connect_timeout(kind: str, fault: Fault, error: type[Exception]) -> None:
    with byte_enclave(silent, faults=fault) as (enclave, _):

        async def case(client: Face) -> None:
            # A later deadline would find that nobody listens any more.
            with unless_ended(enclave.stop), pytest.raises(error) as caught:
                await client.get("/", timeout=httpx2.Timeout(HANG, connect=0.3))
            assert isinstance(caught.value, TimeoutError)
            assert isinstance(caught.value, httpx2.ConnectTimeout)
            assert "got nothing" in str(caught.value)

        with_client(kind, enclave, case)
        eventually(lambda: enclave.stats()["connections_open"] == 0)


def test_read_timeout(kind: str) -> None:
    with byte_enclave(silent) as (enclave, server):

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.ReadTimeout) as caught:
                await client.get("/", timeout=httpx2.Timeout(None, read=0.2))
            assert isinstance(caught.value, httpx2.ReadTimeout)

        with_client(kind, enclave, case)
        assert len(server.connections) == 1


def test_no_time_at_all_is_told_as_it_was_given(kind: str) -> None:
    """Inside it is a deadline like any other, of a microsecond."""
    with byte_enclave(silent) as (enclave, _):

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.ReadTimeout, match=r" within 0\.0 s, got none"):
                await client.get("/", timeout=httpx2.Timeout(HANG, read=0))

        with_client(kind, enclave, case)

    with byte_enclave(silent, faults=Fault.SILENT_HANDSHAKE) as (enclave, _):

        async def late(client: Face) -> None:
            with pytest.raises(enclavia.ConnectTimeout, match=r" within 0\.0 s"):
                await client.get("/", timeout=0)

        with_client(kind, enclave, late)


def test_read_timeout_within_a_body(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        connection.wait_closed()

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.ReadTimeout):
                await client.get("/", timeout=httpx2.Timeout(30, read=0.2))
            assert client.client.stats.streams_active == 0

        with_client(kind, enclave, case)


def test_write_timeout(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        released.wait(HANG)

    released = threading.Event()
    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            # One that does not end by itself ends when the workload hangs up.
            with unless_ended(released.set), pytest.raises(enclavia.WriteTimeout) as caught:
                await client.post(
                    "/",
                    content=Chunks(*[b"x" * 65_536] * 2000),
                    timeout=httpx2.Timeout(None, write=0.3),
                )
            assert isinstance(caught.value, httpx2.WriteTimeout)
            released.set()

        with_client(kind, enclave, case)


def test_stalling_body(kind: str) -> None:
    """A body that gives nothing for too long. A thread cannot be taken out of its generator."""
    if kind == "sync":
        return
    with byte_enclave(silent) as (enclave, _):
        chunks = Chunks(b"begin", 30.0, b"end")

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.WriteTimeout, match="request body"):
                await client.post("/", content=chunks, timeout=httpx2.Timeout(30, write=0.2))
            assert chunks.closed

        with_client(kind, enclave, case)


def test_a_channel_that_leads_nowhere_is_given_up(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer vanished without a word: requests time out, and later ones find a new channel."""
    monkeypatch.setattr("enclavia._exchange.tunnel.SILENCE", 0.3)
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            await client.get("/", headers={"Connection": "close"})
            enclave.set_faults(Fault.SILENT_STREAMS)
            for _ in range(2):
                with pytest.raises(enclavia.ReadTimeout):
                    await client.get("/", timeout=httpx2.Timeout(5, read=0.2))
            enclave.set_faults()
            assert (await client.get("/")).status_code == 200
            assert client.client.stats.reconnects == 1

        with_client(kind, enclave, case)


def test_pool_timeout(kind: str) -> None:
    opened = threading.Event()

    def script(connection: Connection) -> None:
        while True:
            connection.request()
            reached.set()
            opened.wait(HANG)
            connection.send(ok(b"released"))

    reached = threading.Event()
    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:

            async def hold() -> None:
                # It has the slot until the other one has given up, or the workload hangs up.
                assert (await client.get("/", timeout=None)).content == b"released"

            async def wait() -> None:
                with unless_ended(opened.set), pytest.raises(enclavia.PoolTimeout) as caught:
                    await client.get("/", timeout=httpx2.Timeout(None, pool=0.2))
                assert isinstance(caught.value, httpx2.PoolTimeout)
                opened.set()

            await together(client, hold, wait, reached)
            assert opened.is_set()

        with_client(kind, enclave, case, max_in_flight=1)


async def together(client: Face, first: Any, second: Any, begun: threading.Event) -> None:
    """Both at once: the second after the first one has begun."""
    if client.is_async:
        async with anyio.create_task_group() as group:
            group.start_soon(first)
            while not begun.is_set():
                await anyio.sleep(0.005)
            group.start_soon(second)
        return
    failures: list[BaseException] = []

    def run(case: Any) -> None:
        try:
            drive("sync", case)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(case,)) for case in (first, second)]
    threads[0].start()
    assert begun.wait(HANG)
    threads[1].start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
