"""Connections that end: what is kept for the next request, what is sent again, and when the client
connects again. For the blocking client, and for the awaited one in asyncio, uvloop and trio."""

from __future__ import annotations

import socket
import threading
from typing import Any

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
    heard_the_close,
    keywords,
    ok,
    with_client,
)

import enclavia
from enclavia.testing import LocalEnclave

pytestmark = [
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning"),
]


# ---------------------------------------------------------------------------------------------
# Reuse and retries


def test_connection_closed_between_requests(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(ok(b"%d" % connection.number))

    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            for number in range(5):
                got = await client.post("/")
                assert got.content == b"%d" % number
                eventually(lambda: heard_the_close(client.client))
            assert client.client.stats.retries == 0

        with_client(kind, enclave, case)
        assert len(server.connections) == 5


def test_idempotent_without_answer_is_sent_again(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        if connection.number < 2:
            connection.reset()
        else:
            connection.send(ok(b"third"))

    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            assert (await client.get("/")).content == b"third"
            assert client.client.stats.retries == 2

        with_client(kind, enclave, case)
        assert len(server.connections) == 3


@pytest.mark.parametrize(
    ("method", "retries", "sent"),
    [
        ("GET", 2, 3), ("PUT", 2, 3), ("GET", 0, 1), ("GET", 1, 2), ("POST", 2, 1),
        ("PATCH", 2, 1), ("POST", {"POST"}, 3), ("POST", lambda request, error: True, 3),
    ],
)  # fmt: skip
def test_how_often(kind: str, method: str, retries: Any, sent: int) -> None:
    def script(connection: Connection) -> None:
        connection.request()

    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.ConnectionClosed) as caught:
                await client.request(method, "/", content=b"body")
            assert caught.value.retryable

        with_client(kind, enclave, case, retries=retries)
        assert len(server.connections) == sent


def test_never_again_once_an_answer_began(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")

    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.ConnectionClosed, match="5 of 10"):
                await client.get("/")

        with_client(kind, enclave, case)
        assert len(server.connections) == 1


def test_a_used_up_body_is_not_sent_again(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.request()

    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.ConnectionClosed):
                await client.request("PUT", "/", content=Chunks(b"a", b"b"))

        with_client(kind, enclave, case)
        assert len(server.connections) == 1


# ---------------------------------------------------------------------------------------------
# Reconnecting


@pytest.mark.parametrize("reset", [False, True])
def test_reconnects_between_requests(kind: str, reset: bool) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            for _ in range(4):
                assert (await client.post("/")).status_code == 200
                enclave.drop_connections(reset=reset)
                eventually(lambda: client.client.stats.channels == 0)
            stats = client.client.stats
            assert (stats.connects, stats.reconnects, stats.retries) == (4, 3, 0)
            assert client.client.attestation.proven

        with_client(kind, enclave, case)
        assert enclave.stats()["attestations_total"] == 4


def test_idle_timeout_is_invisible(kind: str) -> None:
    with byte_enclave(answering(ok()), idle_timeout=0.2) as (enclave, _):

        async def case(client: Face) -> None:
            limits = {"headers": {"Connection": "close"}}
            await client.post("/", **limits)
            eventually(lambda: client.client.stats.channels == 0)
            await client.post("/", **limits)
            assert client.client.stats.reconnects == 1

        with_client(kind, enclave, case)


def test_restart_with_another_identity_is_final(kind: str) -> None:
    other = enclavia.Pcrs(pcr0=b"7" * 48, pcr1=b"8" * 48, pcr2=b"9" * 48)
    with byte_enclave(answering(ok())) as (enclave, server):

        async def case(client: Face) -> None:
            await client.get("/")
            enclave.set_identity(pcrs=other)
            enclave.drop_connections()
            eventually(lambda: client.client.stats.channels == 0)
            before = enclave.stats()["attestations_total"]
            with pytest.raises(enclavia.PcrMismatch) as caught:
                await client.get("/")
            assert (caught.value.index, caught.value.actual) == (0, b"7" * 48)
            assert not caught.value.retryable
            assert enclave.stats()["attestations_total"] == before + 1

        pins = enclave.pcrs
        with_client(kind, enclave, case, pcrs=pins)
        assert len(server.connections) == 1


def test_one_of_several_pins(kind: str) -> None:
    other = enclavia.Pcrs(pcr0=b"7" * 48, pcr1=b"8" * 48, pcr2=b"9" * 48)
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            await client.get("/")

        with_client(kind, enclave, case, pcrs=[other, enclave.pcrs])


def test_in_flight_when_the_channel_drops(kind: str) -> None:
    """An idempotent request is made up for; another one fails, and says that it may be retried."""
    arrived = threading.Semaphore(0)
    posts: list[bytes] = []

    def script(connection: Connection) -> None:
        while True:
            head = connection.request()[0]
            if head.startswith(b"POST"):
                posts.append(head)
            if connection.number == 0:
                arrived.release()
                connection.wait_closed()
                return
            connection.send(ok())

    for method in ("GET", "POST"):
        with byte_enclave(script) as (enclave, _):

            def dropper(enclave: LocalEnclave = enclave) -> None:
                arrived.acquire(timeout=HANG)
                enclave.drop_connections(reset=True)

            thread = threading.Thread(target=dropper)
            thread.start()

            async def case(client: Face, method: str = method) -> None:
                if method == "GET":
                    assert (await client.get("/")).status_code == 200
                    return
                with pytest.raises(enclavia.ConnectionClosed) as caught:
                    await client.post("/")
                assert caught.value.retryable

            with_client(kind, enclave, case)
            thread.join()
    assert len(posts) == 1


def test_no_server(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        url, port, options = enclave.url, enclave.port, keywords(enclave)

    async def run() -> None:
        cls = enclavia.Client if kind == "sync" else enclavia.AsyncClient
        client = Face(cls(url, patience=0, **options))
        with pytest.raises(enclavia.ConnectError) as caught:
            await client.get("/")
        assert caught.value.retryable
        assert caught.value.request.url.path == "/"
        await client.close()

    with socket.socket() as taken:  # and so nobody else's meanwhile
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        drive(kind, run)


def test_comes_back_while_waiting(kind: str) -> None:
    """The server is away for a while: a client that was connected before waits for it."""
    with byte_enclave(answering(ok())) as (enclave, server):
        port = enclave.port

        async def case(client: Face) -> None:
            await client.post("/")
            enclave.stop()
            # In flight it would not be sent again.
            eventually(lambda: client.client.stats.channels == 0)
            twin = LocalEnclave(server.address, port=port, pcrs=enclave.pcrs)
            timer = threading.Timer(0.4, twin.start)
            timer.start()
            try:
                with pytest.raises(enclavia.CertificateError):  # the twin has a root of its own
                    await client.post("/")
            finally:
                timer.join()
                twin.stop()

        async def run() -> None:
            cls = enclavia.Client if kind == "sync" else enclavia.AsyncClient
            face = Face(cls(enclave.url, **keywords(enclave)))
            await case(face)
            await face.close()

        drive(kind, run)
