"""Bodies, large and small, both ways at once, cut short or in breach of HTTP: for the blocking
client, and for the awaited one in asyncio, uvloop and trio."""

from __future__ import annotations

import hashlib
import threading
import time
from typing import Any

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
    eventually,
    kernel_buffers,
    ok,
    with_client,
)

import enclavia

pytestmark = [
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning"),
]


# ---------------------------------------------------------------------------------------------
# Large bodies


def test_large_both_ways(kind: str) -> None:
    """16 MiB up and down, checked by hash, in bounded pieces."""
    piece = hashlib.shake_128(b"piece").digest(256 * 1024)
    expected = hashlib.sha256(piece * 64).hexdigest().encode()

    def script(connection: Connection) -> None:
        head = connection.head()
        if head.startswith(b"POST"):
            digest = hashlib.sha256(connection.chunked()).hexdigest().encode()
            connection.send(ok(digest))
        else:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * len(piece)))
            for _ in range(64):
                connection.send(piece)

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            got = await client.post("/", content=Chunks(*[piece] * 64))
            assert got.content == expected
            digest = hashlib.sha256()
            biggest = 0
            async with client.stream("GET", "/") as streamed:
                async for chunk in streamed.raw():
                    digest.update(chunk)
                    biggest = max(biggest, len(chunk))
            assert digest.hexdigest().encode() == expected
            assert biggest <= 65_536

        with_client(kind, enclave, case)


def test_abandoned_download_frees_its_slot(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 30))
        while True:
            connection.send(b"x" * 65536)

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            for _ in range(3):
                async with client.stream("GET", "/") as streamed:
                    async for chunk in streamed.raw():
                        assert chunk
                        break
            assert client.client.stats.streams_active == 0

        with_client(kind, enclave, case)


# ---------------------------------------------------------------------------------------------
# Uploads that the server does not wait for


@pytest.mark.parametrize("reads_on", [False, True])
def test_early_refusal_stops_the_upload(kind: str, reads_on: bool) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nbig!")
        if reads_on:
            connection.wait_closed()
        else:
            released.wait(HANG)

    # More than the machine takes before anybody reads.
    count = max(1600, 2 * kernel_buffers() // 65_536)
    released = threading.Event()
    chunks = Chunks(*[b"x" * 65_536] * count)
    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            got = await client.post("/", content=chunks)
            assert (got.status_code, got.content) == (413, b"big!")
            assert chunks.produced < count
            released.set()  # an enclave that is stuck in writing does not see us close

        with_client(kind, enclave, case)
    assert chunks.closed or not chunks.produced


def test_early_refusal_and_close(kind: str) -> None:
    """The workload answers, closes, and never reads the body."""

    def script(connection: Connection) -> None:
        connection.head()
        connection.send(answer)
        # Closing with the body unread is a reset, which would take an unread answer with it.
        eventually(lambda: enclave.stats()["bytes_from_workload"] >= len(answer))

    answer = b"HTTP/1.1 403 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"
    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            got = await client.post("/", content=Chunks(*[b"x" * 65_536] * 200))
            assert (got.status_code, got.content) == (403, b"no")

        with_client(kind, enclave, case)


def test_full_duplex(kind: str) -> None:
    """An echo that answers while it is being sent to, and does not buffer."""

    def script(connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while size := int(connection.read_until(b"\r\n"), 16):
            piece = connection.read(size)
            connection.read(2)
            connection.send(b"%x\r\n%b\r\n" % (size, piece))
        connection.send(b"0\r\n\r\n")

    piece = hashlib.shake_128(b"duplex").digest(65_536)
    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            digest = hashlib.sha256()
            async with client.stream("POST", "/", content=Chunks(*[piece] * 128)) as streamed:
                async for chunk in streamed.raw():
                    digest.update(chunk)
            assert digest.digest() == hashlib.sha256(piece * 128).digest()

        with_client(kind, enclave, case)


def test_early_success_still_gets_the_body(kind: str) -> None:
    received: list[int] = []

    def script(connection: Connection) -> None:
        connection.head()
        connection.send(ok(b"accepted"))
        time.sleep(0.1)
        received.append(len(connection.chunked()))
        connection.request()
        connection.send(ok(b"second"))

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            got = await client.post("/", content=Chunks(*[b"x" * 65_536] * 100))
            assert got.content == b"accepted"
            assert (await client.get("/")).content == b"second"

        # However long the upload takes after the answer, the connection is for the next one.
        limits = httpx2.Limits(keepalive_expiry=None)
        with_client(kind, enclave, case, limits=limits)
    assert received == [6_553_600]


def test_expect_continue(kind: str) -> None:
    steps: list[str] = []

    def script(connection: Connection) -> None:
        connection.head()
        connection.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.read(1)
        connection.sock.settimeout(5)
        steps.append("nothing came before 100")
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        steps.append(connection.read(5).decode())
        connection.send(ok())

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            got = await client.post("/", content=b"hello", headers={"Expect": "100-continue"})
            assert got.status_code == 200

        with_client(kind, enclave, case)
    assert steps == ["nothing came before 100", "hello"]


def test_expect_refused_keeps_the_body(kind: str) -> None:
    got_bytes: list[bytes] = []

    def script(connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
        got_bytes.append(connection.wait_closed())

    chunks = Chunks(b"never sent")
    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            got = await client.post("/", content=chunks, headers={"Expect": "100-continue"})
            assert got.status_code == 417

        with_client(kind, enclave, case)
        eventually(lambda: got_bytes == [b""])
    assert chunks.produced == 0


def test_expect_ignored_by_the_server(kind: str) -> None:
    with byte_enclave(answering(ok(b"fine"))) as (enclave, _):

        async def case(client: Face) -> None:
            # The workload reads the body before it answers: the wait for its 100 must end earlier
            # than the wait for its answer.
            got = await client.post("/", content=b"hello", headers={"Expect": "100-continue"})
            assert got.content == b"fine"

        with_client(kind, enclave, case)


# ---------------------------------------------------------------------------------------------
# Responses that break off or break the rules


@pytest.mark.parametrize(
    ("response", "error", "message"),
    [
        (b"SSH-2.0-x\r\n", enclavia.ProtocolError, "status line"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            enclavia.ProtocolError,
            "Content-Length",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            enclavia.ProtocolError,
            "Transfer-Encoding",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            enclavia.ProtocolError,
            "chunked body",
        ),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000, enclavia.ProtocolError, "65536"),
        (b"HTTP/1.1 101 Up\r\n\r\n", enclavia.ProtocolError, "101"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
            enclavia.ConnectionClosed,
            "after 5 of 10 bytes",
        ),
        (b"HTTP/1.1 200 OK\r\nContent", enclavia.ConnectionClosed, "response head"),
        (b"", enclavia.ConnectionClosed, "before it answered"),
    ],
    ids=["ssh", "lengths", "smuggling", "chunk", "head", "101", "short", "in-head", "nothing"],
)
def test_bad_responses(
    kind: str, response: bytes, error: type[enclavia.EnclaviaError], message: str
) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(response)

    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            with pytest.raises(error, match=message) as caught:
                await client.post("/")
            assert isinstance(caught.value, httpx2.TransportError)
            assert caught.value.request.method == "POST"
            assert caught.value.retryable is (error is enclavia.ConnectionClosed)
            assert client.client.stats.streams_active == 0

        with_client(kind, enclave, case)
        assert len(server.connections) == 1


def test_nothing_bad_is_sent(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, server):

        async def case(client: Face) -> None:
            for headers in ({"X": "a\r\nB: c"}, {"X Y": "a"}, {"Transfer-Encoding": "gzip"}):
                with pytest.raises(enclavia.InvalidRequest):
                    await client.post("/", content=b"x", headers=headers)
            with pytest.raises(enclavia.InvalidRequest):
                await client.request("GE T", "/")
            assert not server.connections
            with pytest.raises(enclavia.InvalidRequest, match="got 2"):
                await client.post("/", content=Chunks(b"ab"), headers={"Content-Length": "3"})

        with_client(kind, enclave, case)


def test_iterator_that_raises(kind: str) -> None:
    class Broken(Chunks):
        def blocking(self) -> Any:
            yield b"some"
            raise LookupError("no more")

        async def asynchronous(self) -> Any:
            yield b"some"
            raise LookupError("no more")

    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            with pytest.raises(LookupError, match="no more"):
                await client.post("/", content=Broken())
            assert (await client.get("/")).status_code == 200

        with_client(kind, enclave, case)
