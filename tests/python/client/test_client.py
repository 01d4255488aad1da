"""The client through a real channel to a real (local) enclave: what an answer is, and what stands
around requests. Each case runs for the blocking client, and for the awaited one in asyncio, uvloop
and trio."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import pickle
import time
import warnings
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import (
    KINDS,
    Chunks,
    Connection,
    Face,
    answering,
    byte_enclave,
    drive,
    keywords,
    ok,
    with_client,
)

import enclavia

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
