"""``requests`` and classic ``httpx`` through the enclave: as with a host of their own."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from support import HANG, Connection, answering, byte_enclave, eventually, keywords, ok

import enclavia
from enclavia.testing import Fault, LocalEnclave

requests = pytest.importorskip("requests")
httpx = pytest.importorskip("httpx")

import enclavia.httpx as over_httpx  # noqa: E402
import enclavia.requests as over_requests  # noqa: E402


def mounted(enclave: LocalEnclave, **options: Any) -> tuple[Any, str]:
    session = over_requests.session(enclave.url, **keywords(enclave, **options))
    return session, next(iter(session.adapters))


def recorded(heads: list[bytes], bodies: list[bytes], *responses: bytes) -> Any:
    def script(connection: Connection) -> None:
        count = 0
        while True:
            head, body = connection.request()
            heads.append(head)
            bodies.append(body)
            connection.send(responses[min(count, len(responses) - 1)])
            count += 1

    return script


# ---------------------------------------------------------------------------------------------
# requests


def test_requests_takes_a_timeout_with_a_total() -> None:
    from urllib3 import Timeout

    def script(connection: Connection) -> None:
        head, _ = connection.request()
        if b"/silent" in head:
            connection.wait_closed()
        connection.send(ok())

    with (
        byte_enclave(script) as (enclave, _),
        over_requests.session(enclave.url, **keywords(enclave)) as session,
    ):
        assert session.get(session.base_url, timeout=Timeout(total=HANG)).text == "ok"
        assert session.get(session.base_url, timeout=Timeout(total=HANG, read=HANG)).text == "ok"
        with pytest.raises(requests.exceptions.ReadTimeout):
            session.get(session.base_url + "silent", timeout=Timeout(total=HANG, read=0.2))
        with pytest.raises(requests.exceptions.ReadTimeout):
            session.get(session.base_url + "silent", timeout=Timeout(total=0.5, connect=HANG))


def test_requests_answer() -> None:
    answer = (
        b"HTTP/1.1 203 Fine\r\nContent-Type: text/plain; charset=latin-1\r\nSet-Cookie: a=1\r\n"
        b"Set-Cookie: b=2; Path=/\r\nX-Twice: 1\r\nX-Twice: 2\r\nContent-Length: 3\r\n\r\nab\xe9"
    )
    heads: list[bytes] = []
    with byte_enclave(recorded(heads, [], answer)) as (enclave, server):
        session, base = mounted(enclave)
        with session:
            got = session.get(base + "p/a%20th", params={"r": "2 3"}, timeout=5)
            assert (got.status_code, got.reason, got.ok) == (203, "Fine", True)
            assert (got.text, got.encoding) == ("abé", "latin-1")
            assert got.headers["x-twice"] == "1, 2"
            assert got.url == f"{base}p/a%20th?r=2+3"
            assert dict(got.cookies) == {"a": "1", "b": "2"}
            assert got.elapsed.total_seconds() > 0
            assert got.raw.version == 11
            session.get(base)
        assert heads[0].startswith(b"GET /p/a%20th?r=2+3 HTTP/1.1\r\n")
        assert b"User-Agent: python-requests/" in heads[0]
        assert b"Cookie: b=2\r\n" in heads[1], "a was for /p only"
        assert len(server.connections) == 1, "the connection was not kept"


def test_requests_bodies_sent() -> None:
    heads: list[bytes] = []
    bodies: list[bytes] = []
    with byte_enclave(recorded(heads, bodies, ok())) as (enclave, _):
        session, base = mounted(enclave)
        with session:
            session.post(base, json={"a": [1]})
            session.post(base, data={"k": "v w"})
            session.post(base, data="tëxt")
            session.post(base, data=io.BytesIO(b"f" * 200_000))
            session.post(base, data=(piece for piece in (b"one", b"", "twö")))
            session.post(base, files={"file": ("n.bin", b"\0" * 70_000)})
            session.delete(base)
            session.put(base, data=bytearray(b"array"))
    assert json.loads(bodies[0]) == {"a": [1]}
    assert bodies[1:3] == [b"k=v+w", "tëxt".encode()]
    assert bodies[3] == b"f" * 200_000
    assert b"Content-Length: 200000" in heads[3]
    assert bodies[4] == "onetwö".encode()
    assert b"Transfer-Encoding: chunked" in heads[4]
    assert b"Content-Length" not in heads[4]
    assert b'filename="n.bin"' in bodies[5]
    assert bodies[7] == b"array"


def test_requests_large_both_ways() -> None:
    size = 24 * 1024 * 1024
    block = bytes(range(256)) * 256

    def script(connection: Connection) -> None:
        head = connection.head()
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
        for _ in range(length // len(block)):
            connection.send(connection.read(len(block)))

    class Blocks:
        left = size

        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError("a file is read, not iterated")

        def __len__(self) -> int:
            return size

        def read(self, n: int = -1) -> bytes:
            piece = block[: min(len(block), self.left)]
            self.left -= len(piece)
            return piece

    with byte_enclave(script) as (enclave, _):
        session, base = mounted(enclave)
        digest, total = hashlib.sha256(), 0
        with session, session.post(base, data=Blocks(), stream=True) as got:
            for chunk in got.iter_content(65536):
                digest.update(chunk)
                total += len(chunk)
    assert total == size
    assert digest.digest() == hashlib.sha256(block * (size // len(block))).digest()


def test_requests_streaming_does_not_wait_for_full_chunks() -> None:
    go_on = threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\ndata: 1\r\n")
        assert go_on.wait(5)
        connection.send(b"8\r\ndata: 22\r\n0\r\n\r\n")

    with byte_enclave(script) as (enclave, _):
        session, base = mounted(enclave)
        with session, session.get(base, stream=True) as got:
            chunks = got.iter_content(65536)
            assert next(chunks) == b"data: 1"
            go_on.set()
            assert b"".join(chunks) == b"data: 22"


def test_requests_raw_is_a_file() -> None:
    packed = gzip.compress(b"hello " * 1000)
    with byte_enclave(answering(ok(packed, b"Content-Encoding: gzip\r\n"))) as (enclave, server):
        session, base = mounted(enclave)
        with session:
            assert session.get(base).content == b"hello " * 1000
            with session.get(base, stream=True) as got:
                assert got.raw.read(10) == packed[:10]
                assert got.raw.read() == packed[10:]
            with session.get(base, stream=True) as got:
                assert got.raw.read(decode_content=True) == b"hello " * 1000
            assert len(list(session.get(base, stream=True).iter_lines())) == 1
        assert len(server.connections) == 1


@pytest.mark.parametrize(
    ("answer", "method"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "HEAD"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", "GET"),
    ],
)
def test_requests_without_body(answer: bytes, method: str) -> None:
    with byte_enclave(answering(answer)) as (enclave, server):
        session, base = mounted(enclave)
        with session:
            for _ in range(2):
                assert session.request(method, base).content == b""
        assert len(server.connections) == 1


def test_requests_redirects_cookies_auth() -> None:
    heads: list[bytes] = []
    script = recorded(
        heads,
        [],
        b"HTTP/1.1 302 Found\r\nLocation: /next\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n",
        ok(b"there"),
    )
    with byte_enclave(script) as (enclave, server):
        session, base = mounted(enclave)
        with session:
            got = session.post(base, data="x", auth=("me", "secret"))
            assert got.text == "there"
            assert [step.status_code for step in got.history] == [302]
        assert heads[1].startswith(b"GET /next HTTP/1.1")
        assert b"Cookie: a=1" in heads[1]
        assert b"Authorization: Basic bWU6c2VjcmV0" in heads[1]
        assert len(server.connections) == 1


def test_requests_session_of_the_enclave_goes_nowhere_else() -> None:
    away = b"HTTP/1.1 307 Away\r\nLocation: https://example.com/\r\nContent-Length: 0\r\n\r\n"
    with byte_enclave(answering(away)) as (enclave, _):
        session, base = mounted(enclave)
        with session:
            with pytest.raises(requests.exceptions.InvalidSchema):
                session.post(base, data="secret")
            with pytest.raises(requests.exceptions.InvalidSchema):
                session.get("https://example.com/")


def test_requests_adapter_refuses_other_hosts() -> None:
    with byte_enclave(answering(ok())) as (enclave, server):
        adapter = over_requests.EnclaveAdapter(enclave.url, **keywords(enclave))
        with requests.Session() as session:
            session.mount("https://", adapter)  # wider than base_url
            with pytest.raises(requests.exceptions.InvalidURL) as caught:
                session.get("https://example.com/")
        assert isinstance(caught.value.__cause__, enclavia.ForeignURL)
        assert not server.connections


def test_requests_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with byte_enclave(answering(ok())) as (enclave, _):
        session, base = mounted(enclave)
        with session:
            assert session.get(base).text == "ok"


def test_requests_abandoned_answer_frees_its_slot() -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
        while True:
            connection.send(b"x" * 65536)

    with byte_enclave(script) as (enclave, _):
        session, base = mounted(enclave)
        with session:
            with session.get(base, stream=True) as got:
                assert next(got.iter_content(100))
            eventually(lambda: enclave.stats()["slots_open"] == 0)
            got = session.get(base, stream=True)
            del got
            eventually(lambda: enclave.stats()["slots_open"] == 0)


def silent(connection: Connection) -> None:
    connection.request()
    connection.wait_closed()


def half(connection: Connection) -> None:
    connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    connection.wait_closed()


def broken(connection: Connection) -> None:
    connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")


@pytest.mark.parametrize("timeout", [0.1, (5, 0.1)])
def test_requests_read_timeout(timeout: Any) -> None:
    with byte_enclave(silent) as (enclave, _):
        session, base = mounted(enclave)
        session.get_adapter(base).connect(HANG)  # which is not to be timed here
        with session, pytest.raises(requests.exceptions.ReadTimeout) as caught:
            session.get(base, timeout=timeout)
        assert isinstance(caught.value.__cause__, enclavia.ReadTimeout)
        assert caught.value.request.method == "GET"


@pytest.mark.parametrize("timeout", [0.1, (0.1, 5)])
def test_requests_connect_timeout(timeout: Any) -> None:
    with byte_enclave(silent, faults=Fault.SILENT_HANDSHAKE) as (enclave, _):
        session, base = mounted(enclave)
        with session, pytest.raises(requests.exceptions.ConnectTimeout) as caught:
            session.get(base, timeout=timeout)
        assert isinstance(caught.value, requests.exceptions.ConnectionError)
        assert isinstance(caught.value.__cause__, enclavia.ConnectTimeout)


def test_requests_default_timeout_is_the_adapters() -> None:
    with byte_enclave(silent) as (enclave, _):
        session, base = mounted(enclave, timeout=0.1)
        session.get_adapter(base).connect(HANG)
        with session, pytest.raises(requests.exceptions.ReadTimeout):
            session.get(base)


@pytest.mark.parametrize("timeout", [0, -1, (1, 2, 3), "soon"])
def test_requests_bad_timeouts(timeout: Any) -> None:
    with byte_enclave(answering(ok())) as (enclave, server):
        session, base = mounted(enclave)
        with session, pytest.raises(ValueError, match=r"(?i)timeout"):
            session.get(base, timeout=timeout)
        assert not server.connections


def test_requests_errors_within_a_body() -> None:
    with byte_enclave(half) as (enclave, _):
        session, base = mounted(enclave)
        with session:
            with pytest.raises(requests.exceptions.ConnectionError) as caught:
                session.get(base, timeout=(HANG, 0.1))
            assert isinstance(caught.value, requests.exceptions.Timeout)
            assert isinstance(caught.value.__cause__, enclavia.ReadTimeout)
        eventually(lambda: enclave.stats()["slots_open"] == 0)
    with byte_enclave(broken) as (enclave, _):
        session, base = mounted(enclave)
        with session:
            with pytest.raises(requests.exceptions.ChunkedEncodingError) as cut:
                session.get(base)
            assert isinstance(cut.value.__cause__, enclavia.EnclaviaError)
            with session.get(base, stream=True) as got:
                assert got.raw.read1(4) == b"half"
                with pytest.raises(requests.packages.urllib3.exceptions.ProtocolError):
                    got.raw.read()


def test_requests_other_errors() -> None:
    with byte_enclave(lambda connection: connection.head() and None) as (enclave, _):
        session, base = mounted(enclave)
        with session, pytest.raises(requests.exceptions.ConnectionError) as caught:
            session.post(base)
        assert isinstance(caught.value.__cause__, enclavia.EnclaviaError)
        wrong = enclavia.Pcrs(pcr0=b"\1" * 48, pcr1=b"\1" * 48, pcr2=b"\1" * 48)
        session = over_requests.session(enclave.url, pcrs=wrong, root=enclave.root)
        with session, pytest.raises(requests.exceptions.SSLError) as unproven:
            session.get(base)
        assert isinstance(unproven.value.__cause__, enclavia.PcrMismatch)
        session, base = mounted(enclave)
        with session, pytest.raises(ValueError, match="cert"):
            session.get(base, cert="me.pem")


def test_requests_adapter_about_itself() -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        adapter = over_requests.EnclaveAdapter(enclave.url, **keywords(enclave))
        adapter.connect()
        assert adapter.attestation.proven
        with requests.Session() as session:
            session.mount(adapter.base_url, adapter)
            assert session.get(adapter.base_url + "x").text == "ok"
            copy = pickle.loads(pickle.dumps(session))
            assert copy.get(adapter.base_url).text == "ok"
            answer = pickle.loads(pickle.dumps(session.get(adapter.base_url)))
            assert answer.text == "ok"
            copy.close()
        assert adapter.stats.requests == 2
        assert enclave.url in repr(adapter)
        with pytest.warns(enclavia.DebugModeWarning) as caught:
            over_requests.EnclaveAdapter(enclave.url, debug_mode=True)
        assert caught[0].filename == __file__


def test_requests_from_many_threads() -> None:
    def script(connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            connection.send(ok(head.split(b" ")[1]))

    with byte_enclave(script) as (enclave, _):
        session, base = mounted(enclave)
        wrong: list[str] = []

        def ask(thread: int) -> None:
            for number in range(20):
                path = f"/{thread}-{number}"
                answer = session.get(base + path[1:]).text
                if answer != path:
                    wrong.append(f"{path}: {answer}")

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        session.close()
    assert not wrong


# ---------------------------------------------------------------------------------------------
# classic httpx


class Asked:
    """A classic httpx client of either kind, awaited."""

    def __init__(self, kind: str, enclave: LocalEnclave, **options: Any) -> None:
        self.is_async = kind != "sync"
        if self.is_async:
            self.transport: Any = over_httpx.AsyncEnclaveTransport(
                enclave.url, **keywords(enclave, **options)
            )
            self.client: Any = httpx.AsyncClient(
                transport=self.transport, base_url=self.transport.base_url
            )
        else:
            self.transport = over_httpx.EnclaveTransport(
                enclave.url, **keywords(enclave, **options)
            )
            self.client = httpx.Client(transport=self.transport, base_url=self.transport.base_url)

    async def request(self, method: str, url: str, **options: Any) -> Any:
        result = self.client.request(method, url, **options)
        return await result if self.is_async else result

    def pieces(self, *pieces: bytes) -> Any:
        async def asynchronous() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        def blocking() -> Iterator[bytes]:
            yield from pieces

        return asynchronous() if self.is_async else blocking()

    async def enter(self) -> None:
        if self.is_async:
            await self.client.__aenter__()
        else:
            self.client.__enter__()

    async def close(self) -> None:
        if self.is_async:
            await self.client.aclose()
        else:
            self.client.close()


def classic(kind: str, enclave: LocalEnclave, case: Any, **options: Any) -> None:
    from support import drive

    async def run() -> None:
        asked = Asked(kind, enclave, **options)
        try:
            await case(asked)
        finally:
            await asked.close()

    drive(kind, run)
    eventually(lambda: enclave.stats()["slots_open"] == 0)


CLASSIC = ["sync", "asyncio", "trio"]


@pytest.mark.parametrize("kind", CLASSIC)
def test_httpx_requests(kind: str) -> None:
    heads: list[bytes] = []
    bodies: list[bytes] = []
    packed = gzip.compress(b"hello " * 1000)
    answer = ok(packed, b"Content-Encoding: gzip\r\nX-Twice: 1\r\nX-Twice: 2\r\n")
    with byte_enclave(recorded(heads, bodies, answer)) as (enclave, server):

        async def case(asked: Asked) -> None:
            got = await asked.request("GET", "/p/a%20th?x=ü")
            assert got.text == "hello " * 1000
            assert got.headers.get_list("x-twice") == ["1", "2"]
            assert got.http_version == "HTTP/1.1"
            await asked.request("POST", "/", json={"a": 1})
            await asked.request("POST", "/", content=asked.pieces(b"one", b"two"))
            assert asked.transport.attestation.proven
            assert asked.transport.stats.requests == 3
            assert enclave.url in repr(asked.transport)

        classic(kind, enclave, case)
        assert heads[0].startswith(b"GET /p/a%20th?x=%C3%BC HTTP/1.1")
        assert b"User-Agent: python-httpx/" in heads[0]
        assert bodies[1:] == [b'{"a":1}', b"onetwo"]
        assert b"Transfer-Encoding: chunked" in heads[2]
        assert len(server.connections) == 1


@pytest.mark.parametrize("kind", CLASSIC)
@pytest.mark.parametrize(
    ("script", "theirs", "ours"),
    [
        (silent, httpx.ReadTimeout, enclavia.ReadTimeout),
        (half, httpx.ReadTimeout, enclavia.ReadTimeout),
        (broken, httpx.ReadError, enclavia.ConnectionClosed),
        (
            lambda connection: connection.head() and None,
            httpx.TransportError,
            enclavia.EnclaviaError,
        ),
    ],
    ids=["silent", "half", "broken", "closed"],
)
def test_httpx_errors(kind: str, script: Any, theirs: Any, ours: Any) -> None:
    with byte_enclave(script) as (enclave, _):

        async def case(asked: Asked) -> None:
            with pytest.raises(theirs) as caught:
                await asked.request("POST", "/", timeout=httpx.Timeout(5, read=0.2))
            assert isinstance(caught.value.__cause__, ours)
            assert caught.value.request.method == "POST"
            with pytest.raises(httpx.UnsupportedProtocol):
                await asked.request("GET", "https://example.com/")

        classic(kind, enclave, case)


@pytest.mark.parametrize("kind", CLASSIC)
def test_httpx_entering_verifies(kind: str) -> None:
    wrong = enclavia.Pcrs(pcr0=b"\1" * 48, pcr1=b"\1" * 48, pcr2=b"\1" * 48)
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(asked: Asked) -> None:
            with pytest.raises(httpx.TransportError) as caught:
                await asked.enter()
            assert isinstance(caught.value.__cause__, enclavia.PcrMismatch)

        classic(kind, enclave, case, pcrs=wrong)


@pytest.mark.parametrize("kind", CLASSIC)
def test_httpx_upgrade(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\nhi"
        )
        connection.send(connection.read(5).upper())

    async def talk(stream: Any, asked: Asked) -> None:
        async def call(name: str, *arguments: Any) -> Any:
            result = getattr(stream, name)(*arguments)
            return await result if asked.is_async else result

        assert await call("read", 100) == b"hi"
        await call("write", b"hello")
        assert await call("read", 100) == b"HELLO"
        assert await call("read", 100) == b""
        await call("aclose" if asked.is_async else "close")
        with pytest.raises(over_httpx.httpcore.ReadError):
            await call("read", 1)

    headers = {"Connection": "upgrade", "Upgrade": "echo"}
    with byte_enclave(script) as (enclave, _):

        async def case(asked: Asked) -> None:
            manager = asked.client.stream("GET", "/", headers=headers)
            if asked.is_async:
                async with manager as got:
                    await talk(got.extensions["network_stream"], asked)
            else:
                with manager as got:
                    await talk(got.extensions["network_stream"], asked)

        classic(kind, enclave, case)


def test_httpx_streams_in_bounded_steps() -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)

    with byte_enclave(script) as (enclave, _):

        async def case(asked: Asked) -> None:
            async with asked.client.stream("GET", "/") as got:
                sizes = [len(chunk) async for chunk in got.aiter_raw()]
            assert sum(sizes) == 3_000_000
            assert max(sizes) <= 65_536

        anyio.run(lambda: _closing(Asked("asyncio", enclave), case))


async def _closing(asked: Asked, case: Any) -> None:
    try:
        await case(asked)
    finally:
        await asked.close()


def test_optional_libraries_are_imported_on_use_only() -> None:
    program = (
        "import sys, enclavia; enclavia.Client;"
        "print(sorted({'requests', 'urllib3', 'httpx', 'httpcore'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.strip() == "[]", ended.stderr


@pytest.mark.parametrize("name", ["requests", "httpx"])
def test_missing_extras_are_named(name: str) -> None:
    program = (
        f"import sys; sys.modules[{name!r}] = None\n"
        f"try: import enclavia.{name}\n"
        "except ImportError as error: print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"pip install 'enclavia[{name}]'" in ended.stdout, ended.stderr
