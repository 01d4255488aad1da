"""The forwarder's http way: a reverse proxy that one enclave's workload is behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import select
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from support import HANG, ByteServer, Connection, eventually
from test_forward import Seen, enclave, folder, forward, raw, read_all, seen, unix_client

from enclavia import Forwarder
from enclavia._forward import serving
from enclavia.testing import LocalEnclave

__all__ = ["enclave", "folder", "seen"]  # fixtures

TOKEN = "a-token-of-this-test-alone"


class Echo:
    """Answers with the head that came, and keeps it."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.answer_headers = b""

    def __call__(self, connection: Connection) -> None:
        while True:
            head, body = connection.request()
            self.heads.append(head)
            self.bodies.append(body)
            connection.send(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n"
                % (len(head), self.answer_headers)
                + head
            )


@pytest.fixture(scope="module")
def running(own_loop: str) -> Iterator[tuple[Forwarder, Echo]]:
    echo = Echo()
    with (
        tempfile.TemporaryDirectory(prefix="enclavia-") as made,
        ByteServer(echo) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, Path(made) / "f", http=True) as forwarder,
    ):
        yield forwarder, echo


@pytest.fixture
def echo(running: tuple[Forwarder, Echo]) -> Echo:
    echo = running[1]
    echo.heads.clear()
    echo.bodies.clear()
    echo.answer_headers = b""
    return echo


@pytest.fixture
def proxy(running: tuple[Forwarder, Echo]) -> Forwarder:
    return running[0]


def path_of(forwarder: Forwarder) -> str:
    assert forwarder.http_path is not None
    return forwarder.http_path


def ask(forwarder: Forwarder, request: bytes, half_close: bool = True) -> bytes:
    """Everything that is answered to these bytes."""
    with raw(path_of(forwarder)) as sock:
        sock.sendall(request)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1]) if answer else 0


def test_a_request_goes_through_with_the_enclaves_host(proxy: Forwarder, echo: Echo) -> None:
    with unix_client(path_of(proxy)) as client:
        answer = client.get("http://localhost/a%2Fb?q=%20x", headers={"X-Own": "1"})
    assert answer.status_code == 200
    authority = proxy._settings.settings.config.url.authority.encode()
    head = echo.heads[0]
    assert head.startswith(b"GET /a%2Fb?q=%20x HTTP/1.1\r\n")
    assert head.lower().count(b"\r\nhost:") == 1
    assert b"\r\nhost: " + authority in head.lower()
    assert b"x-own: 1" in head.lower()


def test_bodies_both_ways(folder: Path) -> None:
    size = 4 << 20
    body = hashlib.shake_256(b"http").digest(1 << 20) * 4

    def script(connection: Connection) -> None:
        while True:
            _, got = connection.request()
            connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(got), 1 << 20):
                piece = got[at : at + (1 << 20)]
                connection.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
            connection.send(b"0\r\n\r\n")

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f", http=True) as forwarder,
        unix_client(path_of(forwarder)) as client,
    ):
        assert client.put("http://localhost/", content=body).content == body
        pieces = (body[at : at + 100_000] for at in range(0, size, 100_000))
        assert client.post("http://localhost/", content=pieces).content == body
        assert client.post("http://localhost/", content=b"").content == b""


def test_what_concerns_one_connection_ends_with_it(proxy: Forwarder, echo: Echo) -> None:
    echo.answer_headers = b"Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nX-Kept: yes\r\n"
    answer = ask(
        proxy,
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nKeep-Alive: 5\r\n"
        b"Connection: close, X-Named, content-length\r\nX-Named: 1\r\nTE: trailers\r\n"
        b"Trailer: X-T\r\nProxy-Connection: x\r\nProxy-Authorization: Basic secret\r\n"
        b"Expect: 100-continue\r\nX-Kept: 1\r\n\r\nhi",
        half_close=False,
    )
    assert b" 200 OK\r\n" in answer
    head = echo.heads[0].lower()
    assert echo.bodies == [b"hi"]
    for name in (b"keep-alive", b"x-named", b"\r\nte", b"trailer", b"proxy-", b"expect", b"secret"):
        assert name not in head, name
    assert b"\r\nx-kept: 1" in head
    answered = answer.lower().partition(b"\r\n\r\n")[0]
    assert b"keep-alive" not in answered
    assert b"proxy-authenticate" not in answered
    assert b"x-kept: yes" in answer.lower()


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        # Two lengths, in every form in which two parsers have been seen to disagree.
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
            {400},
        ),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
            {400},
        ),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n"
            b"abc" + SMUGGLED,
            {400},
        ),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2, 2\r\n\r\nab" + SMUGGLED,
            {400},
        ),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +2\r\n\r\nab" + SMUGGLED,
            {400},
        ),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"
            + SMUGGLED,
            {400, 501},
        ),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
            b"0\r\n\r\n" + SMUGGLED,
            {400, 501},
        ),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            {400},
        ),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n folded\r\n\r\n", {200, 400}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", {400}),
        # Whose request it is.
        (b"GET / HTTP/1.1\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n", {421}),
        (b"GET / HTTP/1.1\r\nHost: localhost@elsewhere.example\r\n\r\n", {421}),
        (b"GET / HTTP/1.1\r\nHost: localhost.elsewhere.example\r\n\r\n", {421}),
        (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", {400, 421}),
        (b"GET http://elsewhere.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", {400}),
        (b"GET //elsewhere.example/ HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n", {421}),
        (b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 501}),
        # Another protocol.
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            {501},
        ),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
            b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
            {501},
        ),
        # What has no chunks to be answered in.
        (b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n", {505}),
        (b"GET / HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n", {505}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
    ],
)
def test_what_two_servers_could_read_differently_is_refused(
    proxy: Forwarder, echo: Echo, request_: bytes, statuses: set[int]
) -> None:
    answer = ask(proxy, request_)
    assert status_of(answer) in statuses, answer
    assert not any(b"/smuggled" in head for head in echo.heads)
    if 200 not in statuses:
        assert echo.heads == []
        assert answer.count(b"HTTP/1.1 ") == 1


def test_a_refused_version_says_what_to_do(proxy: Forwarder) -> None:
    answer = ask(proxy, b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert b"proxy_http_version 1.1;" in answer


def test_junk_behind_a_request_is_no_request(proxy: Forwarder, echo: Echo) -> None:
    answer = ask(proxy, b"GET /one HTTP/1.1\r\nHost: localhost\r\n\r\n\0\0junk\r\n\r\n" + SMUGGLED)
    assert not any(b"/smuggled" in head for head in echo.heads)
    assert answer.count(b"HTTP/1.1 200") <= 1


def test_pipelined_requests_are_answered_in_order(proxy: Forwarder, echo: Echo) -> None:
    requests = b"".join(
        b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number for number in range(10)
    )
    with raw(path_of(proxy)) as sock:
        sock.sendall(requests)
        got = b""
        while got.count(b"GET /") < 10:
            got += sock.recv(65536)
    assert [head.split(b" ")[1] for head in echo.heads if b"GET /one" not in head] == [
        b"/%d" % n for n in range(10)
    ]


def test_how_many_pipelined_requests_wait_is_bounded(folder: Path) -> None:
    """However many are sent, and whether they come one by one or all at once."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    go_on = threading.Event()
    waiting: list[int] = []

    def script(connection: Connection) -> None:
        while True:
            connection.head()
            assert go_on.wait(HANG)
            (served,) = server_of(forwarder)._connections
            waiting.append(len(served.pipeline))
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nend")

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f", http=True) as forwarder,
        raw(path_of(forwarder)) as sock,
    ):
        sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 2**24:
                sent += sock.send((request * 4000)[sent % len(request) :])
        assert sent < 2**24  # the forwarder reads no more than it has room for
        sock.settimeout(HANG)
        go_on.set()
        expected, got, tail = sent // len(request), 0, b""
        while got < expected:
            piece = tail + sock.recv(65536)
            assert piece != tail
            got += piece.count(b"\r\n\r\nend")
            tail = piece[-6:]
    assert got == expected
    assert len(waiting) == expected
    assert 0 < max(waiting) <= 16 + 4096 // len(request)


def server_of(forwarder: Forwarder) -> Any:
    """What serves the HTTP socket."""
    return forwarder._running.server._http[1]  # type: ignore[union-attr]


def test_a_client_that_leaves_cancels_its_request(folder: Path) -> None:
    asked, left = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        connection.head()
        asked.set()
        connection.wait_closed(HANG)
        left.set()

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f", http=True) as forwarder,
    ):
        with raw(path_of(forwarder)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert asked.wait(HANG)
        assert left.wait(HANG)
        eventually(lambda: enclave.stats()["slots_open"] == 0)


def test_an_answer_that_breaks_off_is_seen_to(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        connection.reset()

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f", http=True) as forwarder,
        unix_client(path_of(forwarder)) as client,
        pytest.raises(httpx2.TransportError),
    ):
        client.get("http://localhost/")
    # Breaking the connection is no reason to cancel the request, which uvicorn logs as an error.
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []


def test_a_forked_child_does_not_hide_that_an_answer_broke_off(folder: Path) -> None:
    """A process that the forwarder's own program forks has copies of its connections."""
    forked = threading.Event()

    def script(connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        assert forked.wait(HANG)
        connection.sock.shutdown(socket.SHUT_RDWR)  # of which the child has a copy as well

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f", http=True) as forwarder,
        raw(path_of(forwarder)) as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = b""
        while not got.endswith(b"half"):
            got += sock.recv(65536)
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        try:
            forked.set()
            with contextlib.suppress(ConnectionResetError):
                assert read_all(sock) == b""  # and not a wait for the child's end
        finally:
            os.close(write)
            os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"204 No Content\r\nContent-Length: 5", 204),
        (b"304 Not Modified\r\nContent-Length: 100", 304),
        (b"599 Odd\r\nContent-Length: 0", 599),
        (b"600 Odd\r\nContent-Length: 0", 502),
        (b"999 Odd\r\nContent-Length: 0", 502),
    ],
)
def test_answers_that_are_out_of_the_ordinary(folder: Path, head: bytes, status: int) -> None:
    def script(connection: Connection) -> None:
        while True:
            connection.head()
            connection.send(b"HTTP/1.1 " + head + b"\r\nX-Kept: 1\r\n\r\n")

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f", http=True) as forwarder,
        raw(path_of(forwarder)) as sock,
    ):
        for _ in range(2):  # and the connection stays in step
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = http.client.HTTPResponse(sock, method="GET")
            answer.begin()
            assert answer.status == status
            body = answer.read()
            if status == 502:
                assert json.loads(body)["error"]["type"] == "ProtocolError"
            else:
                assert body == b""
                assert answer.headers["X-Kept"] == "1"


@pytest.mark.parametrize("chosen", ["uvloop", "asyncio"])
def test_its_loop_is_not_the_programs_to_choose_where_uvloop_is_there(
    folder: Path, enclave: LocalEnclave, own_loop: str, chosen: str
) -> None:
    """And where it is not, the program's policy decides. uvloop gives another kind of socket."""
    uvloop = pytest.importorskip("uvloop")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        before = asyncio.get_event_loop_policy()
        if chosen == "uvloop":
            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        try:
            started = forward(enclave, folder / "f", http=True).start()
        finally:
            asyncio.set_event_loop_policy(before)
    with started as forwarder, unix_client(path_of(forwarder)) as client:
        assert forwarder._running is not None
        of_uvloop = isinstance(forwarder._running.loop, uvloop.Loop)
        assert of_uvloop == ("uvloop" in (own_loop, chosen))
        listener = forwarder._running.listeners.http
        assert listener is not None
        acceptor = forwarder._running.server._listening[listener]
        assert client.get("http://localhost/").status_code == 200
        assert acceptor._open == 1
        client.close()
        eventually(lambda: acceptor._open == 0)


def test_errors_have_a_status_and_a_reason(enclave: LocalEnclave, folder: Path) -> None:
    with (
        forward(enclave, folder / "f", http=True, timeout=0.3, patience=0) as forwarder,
        unix_client(path_of(forwarder)) as client,
    ):
        assert client.get("http://localhost/").status_code == 200
        enclave.stop()
        answer = client.get("http://localhost/")
        assert answer.status_code in (502, 504)
        assert answer.json()["error"]["type"] in ("ConnectError", "ConnectTimeout")


# -- the TCP port ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Proxy-Authorization": "Bearer another-token-of-this-test"},
        {"Proxy-Authorization": f"Bearer {TOKEN}x"},
        {"Proxy-Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Proxy-Authorization": f"Basic {TOKEN}"},
        {"Proxy-Authorization": TOKEN},
        {"Proxy-Authorization": "Bearer"},
        {"Proxy-Authorization": "Bearer \u00e9".encode("latin-1")},
        {"Authorization": f"Bearer {TOKEN}"},
        [("Proxy-Authorization", f"Bearer {TOKEN}"), ("Proxy-Authorization", "Bearer x")],
    ],
)
def test_without_the_token_nothing_is_sent(
    enclave: LocalEnclave,
    folder: Path,
    seen: Seen,
    headers: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    with forward(enclave, folder / "f", listen="127.0.0.1:0", token=TOKEN) as forwarder:
        assert forwarder.address is not None
        url = "http://{}:{}/".format(*forwarder.address)
        with httpx2.Client(trust_env=False, timeout=HANG) as client:
            refused = client.post(url, content=b"secret", headers=headers)
            assert refused.status_code == 407
            assert refused.headers["proxy-authenticate"].startswith("Bearer")
            assert seen.bodies == []
            assert TOKEN not in refused.text
            given = {"Proxy-Authorization": f"Bearer {TOKEN}", "Authorization": "Basic eA=="}
            answer = client.post(url, content=b"hi", headers=given)
            assert answer.content == b"hi"
        assert TOKEN not in repr(forwarder)
        assert TOKEN not in repr(forwarder._settings)
    assert TOKEN not in caplog.text.replace(f"Bearer {TOKEN}", "")
    ours = [record for record in caplog.records if record.name.startswith(("enclavia", "uvicorn"))]
    assert not any(TOKEN in record.getMessage() for record in ours)


def test_a_head_is_bounded_before_a_token_is_looked_at(enclave: LocalEnclave, folder: Path) -> None:
    with forward(enclave, folder / "f", listen="127.0.0.1:0", token=TOKEN) as forwarder:
        assert forwarder.address is not None
        with socket.create_connection(forwarder.address, HANG) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                sock.sendall(b"X-A: 1\r\n" * 2**22)


CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("trailers", [b"b" * 2**16, b"b\r\nX-A: " * 2**13])
def test_trailers_are_bounded(enclave: LocalEnclave, folder: Path, trailers: bytes) -> None:
    """One that does not end, and many."""
    with forward(enclave, folder / "f", http=True) as forwarder:
        assert forwarder.http_path is not None
        with raw(forwarder.http_path) as sock:
            sock.sendall(CHUNKED + b"1\r\na\r\n0\r\nX-A: ")
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                sock.sendall(trailers * 512)


def test_many_small_chunks_are_no_trailers(enclave: LocalEnclave, folder: Path) -> None:
    """What frames them comes to more than may stand between two bytes of a body."""
    with forward(enclave, folder / "f", http=True) as forwarder:
        assert forwarder.http_path is not None
        with raw(forwarder.http_path) as sock:
            sock.sendall(CHUNKED + b"1\r\na\r\n" * 2**15 + b"0\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_head_that_does_not_come_ends_the_connection(
    enclave: LocalEnclave, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclavia._forward.serving._HEAD_SECONDS", 0.2)
    with forward(enclave, folder / "f", listen="127.0.0.1:0", token=TOKEN) as forwarder:
        assert forwarder.address is not None
        for begun in (b"", b"GET / HTTP/1.1\r\n"):
            with socket.create_connection(forwarder.address, HANG) as sock:
                sock.sendall(begun)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(99) == b""


def test_the_name_of_another_site_does_not_lead_to_the_port(
    enclave: LocalEnclave, folder: Path, seen: Seen
) -> None:
    """A page of a browser can have a name of its own lead to this port."""
    with forward(enclave, folder / "f", listen="127.0.0.1:0", token=TOKEN) as forwarder:
        assert forwarder.address is not None
        with httpx2.Client(trust_env=False) as client:
            answer = client.get(
                "http://{}:{}/".format(*forwarder.address),
                headers={"Host": "evil.example", "Proxy-Authorization": f"Bearer {TOKEN}"},
            )
    assert answer.status_code == 421
    assert seen.bodies == []


def test_a_short_answer_is_one_write(proxy: Forwarder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader is woken once."""
    sent: list[bytes] = []

    class Counting(serving._Held):
        """Both loops make one system call of what is written, where the socket has room for it."""

        def __init__(self, transport: asyncio.Transport) -> None:
            super().__init__(transport)
            self._transport = cast(asyncio.Transport, Writes(transport))

    class Writes:
        def __init__(self, transport: asyncio.Transport) -> None:
            self._of = transport

        def write(self, data: bytes) -> None:
            sent.append(data)
            self._of.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._of, name)

    monkeypatch.setattr(serving, "_Held", Counting)
    assert proxy.http_path is not None
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=proxy.http_path)) as client:
        for _ in range(3):
            assert client.post("http://localhost/", content=b"question").status_code == 200
    assert len(sent) == 3
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in sent)


def test_a_client_that_leaves_after_an_early_answer_ends_it(folder: Path) -> None:
    """The rest of its body is not taken any more, and so nobody finds its end there."""
    left = threading.Event()

    def script(connection: Connection) -> None:
        while b"\r\n\r\n" not in connection.sock.recv(65536):
            pass
        connection.send(b"HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while not left.wait(0.01):
                connection.send(b"2\r\nok\r\n")
        except OSError:
            left.set()

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f", http=True) as forwarder,
    ):
        assert forwarder.http_path is not None
        try:
            with raw(forwarder.http_path) as sock:
                sock.sendall(
                    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                # Whether there is an answer is looked at between two pieces of a body.
                while not select.select([sock], [], [], 0.02)[0]:
                    sock.sendall(b"2\r\nhi\r\n")
                assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")
            assert left.wait(HANG)
        finally:
            left.set()
        eventually(lambda: forwarder.stats.streams_active == 0)
