"""The client through a real channel to a real (local) enclave, with workloads that behave well and
badly. Each case runs for the blocking client, and for the awaited one in asyncio, uvloop and trio.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import pickle
import socket
import threading
import time
import warnings
from typing import Any

import anyio
import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    kernel_buffers,
    keywords,
    ok,
    unless_ended,
    with_client,
)

import enclavia
from enclavia.testing import Fault, LocalEnclave

pytestmark = [
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning"),
]


# ---------------------------------------------------------------------------------------------
# What a response is


def test_get(kind: str) -> None:
    response = (
        b"HTTP/1.1 203 Fine\r\nContent-Type: text/plain; charset=latin-1\r\nSet-Cookie: a=1\r\n"
        b"X-Twice: 1\r\nX-Twice: 2\r\nContent-Length: 3\r\n\r\nab\xe9"
    )
    with byte_enclave(answering(response)) as (enclave, server):

        async def case(client: Face) -> None:
            got = await client.get("/path", params={"r": "2 3"})
            assert (got.status_code, got.reason_phrase, got.http_version) == (
                203,
                "Fine",
                "HTTP/1.1",
            )
            assert got.text == "abé"
            assert got.headers.get_list("x-twice") == ["1", "2"]
            assert got.cookies["a"] == "1"
            assert got.url == f"https://127.0.0.1:{enclave.port}/path?r=2+3"
            assert got.elapsed.total_seconds() > 0
            assert (await client.get("/again")).request.headers["cookie"] == "a=1"

        with_client(kind, enclave, case)
        assert len(server.connections) == 1


def test_request_on_the_wire(kind: str) -> None:
    heads: list[bytes] = []
    bodies: list[bytes] = []

    def script(connection: Connection) -> None:
        while True:
            head, body = connection.request()
            heads.append(head)
            bodies.append(body)
            connection.send(ok())

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            await client.post("/p/a%20th?x=ü", json={"a": [1]}, headers={"X-Trace": "t"})
            await client.request("DELETE", "/")
            await client.post("/chunks", content=Chunks(b"one", b"", b"two"))

        with_client(kind, enclave, case)
        lines = heads[0].split(b"\r\n")
        assert lines[0] == b"POST /p/a%20th?x=%C3%BC HTTP/1.1"
        assert b"Host: 127.0.0.1:%d" % enclave.port in lines
        assert b"X-Trace: t" in lines
        assert b"Content-Length: 9" in lines
        assert json.loads(bodies[0]) == {"a": [1]}
        assert heads[1].startswith(b"DELETE / HTTP/1.1\r\n")
        assert b"Content-Length" not in heads[1]
        assert b"Transfer-Encoding: chunked" in heads[2]
        assert bodies[2] == b"onetwo"


@pytest.mark.parametrize(
    ("response", "method", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "HEAD", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + ok(b"after"), "GET", b"after"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n",
            "GET",
            b"abcde",
        ),
    ],
    ids=["head", "204", "304", "103", "chunked"],
)
def test_framing_keeps_the_connection(kind: str, response: bytes, method: str, body: bytes) -> None:
    with byte_enclave(answering(response)) as (enclave, server):

        async def case(client: Face) -> None:
            for _ in range(3):
                assert (await client.request(method, "/")).content == body

        with_client(kind, enclave, case)
        assert len(server.connections) == 1


def test_trailers(kind: str) -> None:
    response = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 5\r\n\r\n"
    )
    with byte_enclave(answering(response)) as (enclave, _):

        async def case(client: Face) -> None:
            got = await client.get("/")
            assert got.extensions["trailers"] == [(b"X-Sum", b"5")]

        with_client(kind, enclave, case)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_ends_at_close(kind: str, version: bytes) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/%b 200 OK\r\nConnection: close\r\n\r\nall " % version)
        time.sleep(0.02)
        connection.send(b"of it")

    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            for _ in range(2):
                assert (await client.get("/")).content == b"all of it"

        with_client(kind, enclave, case)
        assert len(server.connections) == 2


def test_compressed(kind: str) -> None:
    packed = gzip.compress(b"hello " * 1000)
    response = ok(packed, b"Content-Encoding: gzip\r\n")
    with byte_enclave(answering(response)) as (enclave, _):

        async def case(client: Face) -> None:
            assert (await client.get("/")).content == b"hello " * 1000

        with_client(kind, enclave, case)


def test_multipart_and_form(kind: str) -> None:
    bodies: list[bytes] = []

    def script(connection: Connection) -> None:
        while True:
            bodies.append(connection.request()[1])
            connection.send(ok())

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            await client.post("/", files={"file": ("name.bin", b"\0" * 70_000)}, data={"k": "v"})
            await client.post("/", data={"k": "v w"})

        with_client(kind, enclave, case)
    assert b"\0" * 70_000 in bodies[0]
    assert b'filename="name.bin"' in bodies[0]
    assert bodies[1] == b"k=v+w"


def test_close_asked_for(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, server):

        async def case(client: Face) -> None:
            for _ in range(2):
                await client.get("/", headers={"Connection": "close"})

        with_client(kind, enclave, case)
        assert len(server.connections) == 2


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
@given(data=st.data())
def test_any_body_comes_back(kind: str, data: st.DataObject) -> None:
    """Bodies of any size and shape, up in pieces and down in pieces."""

    def script(connection: Connection) -> None:
        while True:
            body = connection.request()[1]
            if chunked:
                connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for at in range(0, len(body), 7000):
                    piece = body[at : at + 7000]
                    connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                connection.send(b"0\r\n\r\n")
            else:
                connection.send(ok(body))

    chunked = data.draw(st.booleans())
    sizes = data.draw(st.lists(st.integers(0, 70_000), min_size=1, max_size=4))
    pieces = [hashlib.shake_128(b"%d" % size).digest(size) for size in sizes]
    as_chunks = data.draw(st.booleans())
    with byte_enclave(script, mode="stub") as (enclave, _):

        async def case(client: Face) -> None:
            content = Chunks(*pieces) if as_chunks else b"".join(pieces)
            assert (await client.post("/", content=content)).content == b"".join(pieces)

        with_client(kind, enclave, case, pcrs=None, root=None, debug_mode=True)


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

        with_client(kind, enclave, case)
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


# ---------------------------------------------------------------------------------------------
# Hosts


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/", "http://127.0.0.1:1/", "https://127.0.0.1:1/", "ftp://x/",
        "ftp://{authority}/",
    ],
)  # fmt: skip
def test_other_hosts_are_refused(kind: str, url: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, server):
        url = url.replace("{authority}", f"127.0.0.1:{enclave.port}")

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.ForeignURL) as caught:
                await client.get(url)
            assert isinstance(caught.value, httpx2.UnsupportedProtocol | ValueError)

        with_client(kind, enclave, case)
        assert not server.connections
        assert enclave.stats()["connections_total"] == 0


def test_redirects(kind: str) -> None:
    locations = [b"/next", b"https://{own}/absolute", b"https://other.example/", b"http://{own}/"]

    def script(connection: Connection) -> None:
        while True:
            head = connection.request()[0]
            number = int(head.split(b" ")[1][1:]) if head[5:6].isdigit() else None
            if number is None:
                connection.send(ok(b"arrived"))
            else:
                location = locations[number].replace(b"{own}", b"127.0.0.1:%d" % enclave.port)
                connection.send(
                    b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % location
                )

    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            assert (await client.get("/0")).status_code == 302
            for number in (0, 1, 3):
                assert (await client.get(f"/{number}", follow_redirects=True)).content == b"arrived"
            with pytest.raises(enclavia.ForeignURL):
                await client.get("/2", follow_redirects=True)

        with_client(kind, enclave, case)
        assert len(server.connections) == 1


def test_environment_proxies_are_not_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            assert (await client.get("/")).status_code == 200

        with_client(kind, enclave, case)


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


# ---------------------------------------------------------------------------------------------
# Timeouts


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


# ---------------------------------------------------------------------------------------------
# Many at once


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


# ---------------------------------------------------------------------------------------------
# Around it


def test_verified_on_entry(kind: str) -> None:
    wrong = enclavia.Pcrs(pcr0=b"7" * 48, pcr1=b"8" * 48, pcr2=b"9" * 48)
    with byte_enclave(answering(ok())) as (enclave, server):

        async def run() -> None:
            if kind == "sync":
                with enclavia.Client(enclave.url, **keywords(enclave)) as client:
                    assert client.attestation.proven
                    assert client.get("/").status_code == 200
                with pytest.raises(RuntimeError, match="closed"):
                    client.get("/")
                refused = enclavia.Client(enclave.url, pcrs=wrong, root=enclave.root)
                with pytest.raises(enclavia.PcrMismatch), refused:
                    pass
                assert refused.is_closed
                with pytest.raises(enclavia.PcrMismatch):
                    enclavia.Client.connect(enclave.url, pcrs=wrong, root=enclave.root)
                with enclavia.Client.connect(enclave.url, **keywords(enclave)) as client:
                    assert client.stats.connects == 1
            else:
                async with enclavia.AsyncClient(enclave.url, **keywords(enclave)) as aclient:
                    assert aclient.attestation.proven
                    assert (await aclient.get("/")).status_code == 200
                with pytest.raises(RuntimeError, match="closed"):
                    await aclient.get("/")
                arefused = enclavia.AsyncClient(enclave.url, pcrs=wrong, root=enclave.root)
                with pytest.raises(enclavia.PcrMismatch):
                    async with arefused:
                        pass
                assert arefused.is_closed
                with pytest.raises(enclavia.PcrMismatch):
                    await enclavia.AsyncClient.connect(enclave.url, pcrs=wrong, root=enclave.root)
                connecting = enclavia.AsyncClient.connect(enclave.url, **keywords(enclave))
                async with connecting as aclient:
                    assert aclient.stats.connects == 1
                assert aclient.is_closed

        drive(kind, run)
        assert len(server.connections) == 1


def test_before_anything_was_verified(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.StateError, match="nothing was verified"):
                _ = client.client.attestation
            assert client.client.stats.connects == 0

        with_client(kind, enclave, case)


@pytest.mark.parametrize(
    "name",
    ["app", "cert", "http1", "http2", "mounts", "proxies", "transport", "trust_env", "uds"],
)
def test_unsupported_keywords_say_why(kind: str, name: str) -> None:
    cls: Any = enclavia.Client if kind == "sync" else enclavia.AsyncClient
    with pytest.raises(TypeError, match=rf"does not take '{name}': .{{20}}"):
        cls("wss://e.example", debug_mode=True, **{name: True})
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        cls("wss://e.example", debug_mode=True, nonsense=1)


def test_supported_keywords(kind: str) -> None:
    calls: list[str] = []
    heads: list[bytes] = []

    def script(connection: Connection) -> None:
        while True:
            heads.append(connection.request()[0])
            connection.send(
                b"HTTP/1.1 302 Found\r\nLocation: /api/end\r\nContent-Length: 0\r\n\r\n"
            )
            heads.append(connection.request()[0])
            connection.send(ok())

    async def on_request(request: httpx2.Request) -> None:
        calls.append(request.url.path)

    def on_request_sync(request: httpx2.Request) -> None:
        calls.append(request.url.path)

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            got = await client.get("items")
            assert got.status_code == 200
            assert got.history[0].status_code == 302
            assert client.client.timeout == httpx2.Timeout(7)

        with_client(
            kind,
            enclave,
            case,
            headers={"X-All": "1"},
            params={"p": "2"},
            cookies={"c": "3"},
            auth=("user", "pass"),
            timeout=7,
            follow_redirects=True,
            event_hooks={"request": [on_request_sync if kind == "sync" else on_request]},
            limits=httpx2.Limits(max_connections=4, max_keepalive_connections=2),
            base_url="/api",
        )
    assert heads[0].startswith(b"GET /api/items?p=2 HTTP/1.1\r\n")
    for line in (b"X-All: 1", b"Cookie: c=3", b"Authorization: Basic dXNlcjpwYXNz"):
        assert line.lower() in heads[0].lower()
    assert calls == ["/api/items", "/api/end"]


def test_a_request_built_before_is_built_as_httpx2_does(kind: str) -> None:
    cls: Any = enclavia.Client if kind == "sync" else enclavia.AsyncClient
    client = cls("wss://e.example", debug_mode=True)
    plain = httpx2.Client(base_url="https://e.example")
    client.headers, client.timeout = plain.headers, plain.timeout

    def check(url: str, method: str = "GET", **options: Any) -> None:
        expected = plain.build_request(method, url, **options)
        for _ in range(3):
            built = client.build_request(method, url, **options)
            assert built.method == expected.method
            assert built.url == expected.url
            assert built.headers.raw == expected.headers.raw
            assert built.content == expected.content
            assert built.extensions == expected.extensions
            built.headers["x-mine"] = "of this one alone"
            built.extensions["mine"] = True

    def check_all() -> None:
        for url in ("/x", "x", "/x?a=1", "", "https://e.example/y", "https://other.example/"):
            check(url)
            check(url, params={"b": "2"})
            check(url)
            check(url, "post")
            check(url, "POST", json=[])
            check(url, "POST", content=b"")
            check(url, "POST", data={"a": "b"})
            check(url, headers={"x-one": "1"})
            check(url, timeout=1.5)
            check(url, timeout=None)
            check(url, extensions={"timeout": {"read": 2.0}, "target": b"*"})
            check(url)

    check_all()
    client.params = plain.params = {"c": "3"}
    check_all()
    client.params = plain.params = {}
    check_all()
    client.base_url = plain.base_url = "https://e.example/api"
    check_all()
    for each in (client, plain):
        each.headers["authorization"] = "Bearer one"
    check_all()
    for each in (client, plain):
        each.headers["authorization"] = "Bearer two"
    check_all()
    client.timeout = plain.timeout = 7.0
    check_all()
    for each in (client, plain):
        each.cookies.set("a", "b", domain="e.example")
    check_all()
    for each in (client, plain):
        each.cookies.clear()
    check_all()
    client = pickle.loads(pickle.dumps(client))
    check_all()
    for n in range(200):
        check(f"/{n}")


def test_base_url_of_another_host(kind: str) -> None:
    cls: Any = enclavia.Client if kind == "sync" else enclavia.AsyncClient
    with pytest.raises(enclavia.ForeignURL, match="base_url"):
        cls("wss://e.example", debug_mode=True, base_url="https://other.example/api")
    client = cls("wss://e.example", debug_mode=True, base_url="https://e.example/api")
    assert client.base_url == "https://e.example/api/"
    assert cls("wss://e.example/tunnel", debug_mode=True).base_url == "https://e.example/"
    assert client.base_url.join("/v1") == "https://e.example/v1"


def test_debug_mode_warns_each_time(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with byte_enclave(answering(ok()), mode="debug") as (enclave, _):

        async def case(client: Face) -> None:
            await client.get("/")
            assert not client.client.attestation.proven

        caplog.set_level(logging.INFO, "enclavia")
        with warnings.catch_warnings(record=True) as seen:
            warnings.resetwarnings()
            for _ in range(2):
                with_client(kind, enclave, case, pcrs=None, debug_mode=True, root=None)
        loud = [each for each in seen if each.category is enclavia.DebugModeWarning]
        assert len(loud) == 2
        assert "support.py" in loud[0].filename
        assert sum("will not be proven" in each.message for each in caplog.records) == 2


def test_logs_tell_and_do_not_tell(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        if connection.number:
            connection.send(ok(b"secret-answer"))

    caplog.set_level(logging.DEBUG, "enclavia")
    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            await client.request(
                "PUT", "/secret-path", content=b"secret-body", headers={"X-Key": "secret-header"}
            )

        with_client(kind, enclave, case, upgrade_headers={"X-Up": "secret-upgrade"})
    text = "\n".join(each.getMessage() for each in caplog.records if each.name == "enclavia")
    assert "connecting to" in text
    assert "verified" in text
    assert "again" in text
    assert "secret" not in text


def test_pickle(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            client.client.headers["X-Later"] = "1"
            client.client.cookies.set("later", "2")
            assert (await client.get("/")).status_code == 200
            twin = Face(pickle.loads(pickle.dumps(client.client)))
            assert twin.client.stats.connects == 0
            assert twin.client.headers["X-Later"] == "1"
            got = await twin.get("/")
            assert got.request.headers["cookie"] == "later=2"
            assert twin.client.stats.connects == 1
            assert enclave.stats()["connections_open"] == 2
            await twin.close()
            assert (await client.get("/")).status_code == 200
            closed = pickle.loads(pickle.dumps(twin.client))
            assert closed.is_closed

        with_client(kind, enclave, case, retries=iter(["POST"]))


def test_transport_of_another_client(kind: str) -> None:
    with byte_enclave(answering(ok(b"through"))) as (enclave, _):

        async def run() -> None:
            url = f"https://127.0.0.1:{enclave.port}/"
            if kind == "sync":
                transport = enclavia.EnclaveTransport(enclave.url, **keywords(enclave))
                with httpx2.Client(mounts={url.rstrip("/"): transport}) as client:
                    assert client.get(url).content == b"through"
                    assert transport.attestation.proven
                    assert transport.stats.requests == 1
            else:
                atransport = enclavia.AsyncEnclaveTransport(enclave.url, **keywords(enclave))
                async with httpx2.AsyncClient(mounts={url.rstrip("/"): atransport}) as aclient:
                    assert (await aclient.get(url)).content == b"through"
                    assert atransport.attestation.proven

        drive(kind, run)


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
