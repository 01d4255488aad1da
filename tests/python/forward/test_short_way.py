"""The short way of a forwarder's HTTP: whatever it does, uvicorn's own way does too.

Each test sends the same to two forwarders, of which one takes the short way and the other cannot,
and compares what the client and the workload got, byte for byte.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pinned import OTHER
from support import HANG, ByteServer, Connection, eventually
from test_forward import folder, forward, raw, read_all

from enclavia import Forwarder
from enclavia._exchange import message, remembering
from enclavia._forward import proxy, uvicorn_inside
from enclavia._forward.short_way import ShortWay
from enclavia.testing import LocalEnclave

__all__ = ["folder"]  # fixtures

SEED = 20261128
WAYS = ("short", "long")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

# What the workload answers with; a request names one by its number. Several pieces go out one by
# one. None: the connection is closed there.
ANSWERS: dict[str, tuple[bytes | None, ...]] = {
    "plain": (OK,),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",),
    "own reason": (b"HTTP/1.1 404 Nothing here\r\nContent-Length: 2\r\nX-A: 1\r\n\r\nno",),
    "created": (b"HTTP/1.1 201 Created\r\nLocation: /a\r\nSet-Cookie: a=1\r\n"
                b"Set-Cookie: b=2\r\nContent-Length: 1\r\n\r\nx",),
    "hop by hop": (b"HTTP/1.1 200 OK\r\nConnection: X-Own, keep-alive\r\nX-Own: 1\r\n"
                   b"Keep-Alive: timeout=5\r\nTrailer: X\r\nContent-Length: 2\r\n\r\nok",),
    "length is named": (b"HTTP/1.1 200 OK\r\nConnection: content-length\r\n"
                        b"Content-Length: 2\r\n\r\nok",),
    "odd headers": (b"HTTP/1.1 200 OK\r\nX-UPPER:  spaces \t\r\nx-empty:\r\nX-\xc3: a\r\n"
                    b"X-Latin: \xe9\xff\r\nContent-Length: 2\r\n\r\nok",),
    "odd header names": (b"HTTP/1.1 200 OK\r\nX!#$%&'*+.^_`|~: 1\r\nContent-Length: 2\r\n\r\nok",),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",),
    "folded": (b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 2\r\n\r\nok",),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"1\r\no\r\n1\r\nk\r\n0\r\nX-Trailer: 1\r\n\r\n",),
    "chunked, empty": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",),
    "until its end": (b"HTTP/1.1 200 OK\r\n\r\nok", None),
    "of HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", None),
    "and close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", None),
    "204": (b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",),
    "304": (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 100\r\n\r\n",),
    "100, then 200": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK,),
    "103 alone first": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", OK),
    "101": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", None),
    "599": (b"HTTP/1.1 599 Odd\r\nContent-Length: 0\r\n\r\n",),
    "600": (b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n",),
    "no HTTP": (b"SSH-2.0-x\r\n", None),
    "nothing": (None,),
    "half a head": (b"HTTP/1.1 200 O", None),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", None),
    "in three": (b"HTTP/1.1 200 OK\r\nConte", b"nt-Length: 4\r\n\r\nwh", b"ole"[:2]),
    "long": (b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000,),
    "too much": (OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",),
}  # fmt: skip
NAMES = list(ANSWERS)


def asking(answer: str, line: bytes = b"GET /", headers: bytes = b"", body: bytes = b"") -> bytes:
    number = NAMES.index(answer)
    return b"%b HTTP/1.1\r\nHost: localhost\r\nX-Answer: %d\r\n%b\r\n%b" % (
        line,
        number,
        headers,
        body,
    )


# Requests that may go the short way, and those that must not.
REQUESTS: dict[str, tuple[bytes, bytes, bytes]] = {
    "GET": (b"GET /a%2Fb?q=%20x", b"", b""),
    "HEAD": (b"HEAD /", b"", b""),
    "DELETE": (b"DELETE /", b"", b""),
    "OPTIONS": (b"OPTIONS *", b"", b""),
    "POST": (b"POST /", b"Content-Length: 5\r\n", b"hello"),
    "POST, empty": (b"POST /", b"Content-Length: 0\r\n", b""),
    "POST without a length": (b"POST /", b"", b""),
    "PUT": (b"PUT /", b"content-length: 3\r\nX-A: 1\r\nX-A: 2\r\n", b"abc"),
    "chunked": (b"POST /", b"Transfer-Encoding: chunked\r\n", b"2\r\nhi\r\n0\r\n\r\n"),
    "of two slices": (b"POST /", b"Content-Length: 6000\r\n", b"y" * 6000),
    "long": (b"POST /", b"Content-Length: 100000\r\n", b"z" * 100_000),
    "close": (b"GET /", b"Connection: close\r\n", b""),
    "hop by hop": (b"GET /", b"Connection: X-Own\r\nX-Own: 1\r\nTE: trailers\r\nX-Two: 2\r\n", b""),
    "length is named": (
        b"POST /", b"Connection: content-length\r\nContent-Length: 2\r\n", b"ok",
    ),
    "proxy headers": (b"GET /", b"Proxy-Connection: x\r\nProxy-Authorization: Basic x\r\n", b""),
    "odd headers": (b"GET /", b"X-UPPER:  spaces \t\r\nx-empty:\r\nX-Latin: \xe9\xff\r\n", b""),
    "a bad target": (b"GET /\xc3\xa9", b"", b""),
    "an absolute target": (b"GET http://localhost/", b"", b""),
    "another host": (b"GET /", b"Host: evil.example\r\n", b""),
    "expects": (b"PUT /", b"Expect: 100-continue\r\nContent-Length: 2\r\n", b"hi"),
    "upgrades": (b"GET /", b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b""),
    "two lengths": (b"POST /", b"Content-Length: 2\r\nContent-Length: 2\r\n", b"ab"),
}  # fmt: skip


class Workload:
    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes]] = []

    def __call__(self, connection: Connection) -> None:
        while True:
            head, body = connection.request()
            number = int(head.partition(b"X-Answer: ".lower())[2].partition(b"\r\n")[0])
            self.seen.append((head, body))
            for piece in ANSWERS[NAMES[number]]:
                if piece is None:
                    return
                connection.send(piece)


Got = tuple[bytes, list[tuple[bytes, bytes]]]


class Both(NamedTuple):
    workload: Workload
    forwarders: dict[str, Forwarder]
    taken: list[bool]
    """What the short way said to each request."""

    def sent(self, *pieces: bytes) -> dict[str, Got]:
        """What the client and the workload got, by the way it went."""
        got = {}
        for way, forwarder in self.forwarders.items():
            self.workload.seen.clear()
            got[way] = exchanged(forwarder, pieces), list(self.workload.seen)
        return got


def without_the_short_way(patch: pytest.MonkeyPatch) -> None:
    known = uvicorn_inside.parts()
    patch.setattr(uvicorn_inside, "parts", lambda: known._replace(short_way=False))


def started(way: str, enclave: LocalEnclave, path: Path, **options: Any) -> Forwarder:
    with pytest.MonkeyPatch.context() as patch:
        if way == "long":
            without_the_short_way(patch)
        return forward(enclave, path, http=True, **options).start()


@pytest.fixture(scope="module")
def both(own_loop: str) -> Iterator[Both]:
    workload = Workload()
    taken: list[bool] = []
    take = ShortWay.take

    def noting(self: ShortWay, cycle: Any) -> bool:
        taken.append(take(self, cycle))
        return taken[-1]

    with (
        tempfile.TemporaryDirectory(prefix="enclavia-") as made,
        ByteServer(workload) as server,
        LocalEnclave(server.address) as enclave,
        started("short", enclave, Path(made) / "s") as short,
        started("long", enclave, Path(made) / "l") as long,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(ShortWay, "take", noting)
        yield Both(workload, {"short": short, "long": long}, taken)


def exchanged(forwarder: Forwarder, pieces: tuple[bytes, ...]) -> bytes:
    """Everything that is answered to a request that makes sure that a connection to the workload is
    kept, to these, and to one that ends the connection."""
    assert forwarder.http_path is not None
    with raw(forwarder.http_path) as sock:
        sock.sendall(asking("plain", b"GET /first"))
        got = answered(sock, OK[-2:])
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(0.001)  # so that most come by themselves; any way will do
            sock.sendall(piece)
        with contextlib.suppress(ConnectionResetError):
            more = b""
            while b"\r\n\r\n" not in more and (piece := sock.recv(65536)):
                more += piece
            got += more
            # What is sent to a connection that is being closed makes a reset of it, which what was
            # answered may be lost in.
            if more and b"\r\nconnection: close\r\n" not in more:
                with contextlib.suppress(BrokenPipeError):  # the answer was broken off
                    sock.sendall(asking("plain", b"GET /last", b"Connection: close\r\n"))
            got += read_all(sock)
    return got


def answered(sock: socket.socket, end: bytes) -> bytes:
    got = b""
    while not got.endswith(end):
        piece = sock.recv(65536)
        assert piece, got
        got += piece
    return got


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("answer", ["plain", "chunked", "nothing"])
def test_every_kind_of_request(both: Both, request_: str, answer: str) -> None:
    line, headers, body = REQUESTS[request_]
    got = both.sent(asking(answer, line, headers, body))
    assert in_one_chunk(got["short"]) == in_one_chunk(got["long"])


def in_one_chunk(got: Got) -> Got:
    """An answer that comes while a body is still being sent goes on in the chunks that it came in,
    and in one where it came later. Which it is, is up to the machine."""
    answer, seen = got
    return answer.replace(b"1\r\no\r\n1\r\nk\r\n", b"2\r\nok\r\n"), seen


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("request_", ["GET", "HEAD", "POST", "close"])
def test_every_kind_of_answer(both: Both, request_: str, answer: str) -> None:
    line, headers, body = REQUESTS[request_]
    got = both.sent(asking(answer, line, headers, body))
    if answer == "half a body":
        # What was not written yet is dropped where an answer breaks off.
        (short, sent), (long, sent_too) = got["short"], got["long"]
        assert sent == sent_too
        assert short.startswith(long) or long.startswith(short)
        return
    assert got["short"] == got["long"]


def test_small_requests_do_go_that_way(both: Both) -> None:
    """Or nothing was compared above. Of the three, the first finds a connection kept or not. Also
    where there are several channels, as there are after uploads in pieces."""
    both.taken.clear()
    answer = exchanged(both.forwarders["short"], (asking("plain"),))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert both.taken[1:] == [True, True]
    both.taken.clear()
    exchanged(both.forwarders["long"], (asking("plain"),))
    assert both.taken == []


def test_two_requests_cut_at_every_offset(both: Both) -> None:
    line, headers, body = REQUESTS["POST"]
    two = asking("own reason", line, headers, body) + asking("chunked")
    whole = both.sent(two)
    assert whole["short"] == whole["long"]
    for at in range(1, len(two)):
        got = exchanged(both.forwarders["short"], (two[:at], two[at:]))
        assert got == whole["long"][0], at


def test_many_requests_in_one_piece(both: Both) -> None:
    names = [name for name in NAMES if None not in ANSWERS[name] and name not in ("long",)]
    got = both.sent(b"".join(asking(name) for name in names if name not in ("600", "too much")))
    assert got["short"] == got["long"]


def test_requests_by_chance(both: Both) -> None:
    chance = random.Random(SEED)
    for _ in range(60):
        count = chance.randint(1, 4)
        sent = b""
        for _ in range(count):
            line, headers, body = REQUESTS[chance.choice(list(REQUESTS)[:8])]
            for _ in range(chance.randint(0, 3)):
                name = bytes(chance.choices(b"!#$%&'*+-.^_`|~09azAZ", k=chance.randint(1, 8)))
                value = bytes(chance.choices(b'\t !"~\x80\xff,;=az', k=chance.randint(0, 9)))
                headers += b"X" + name + b":" + value + b"\r\n"
            answer = chance.choice(["plain", "204", "304", "chunked", "odd headers", "created"])
            sent += asking(answer, line, headers, body)
        at = chance.randint(0, len(sent))
        got = both.sent(sent[:at], sent[at:])
        assert got["short"] == got["long"], (SEED, sent)


def test_requests_are_counted_alike(both: Both) -> None:
    def counts(forwarder: Forwarder) -> list[int]:
        server = forwarder._running.server  # type: ignore[union-attr]
        stats = server.engine.stats()
        return [server.counters.http_requests, server.counters.http_refused, stats.requests]

    before = {way: counts(forwarder) for way, forwarder in both.forwarders.items()}
    for request_, answer in itertools.product(("GET", "another host", "POST"), ("plain", "long")):
        both.sent(asking(answer, *REQUESTS[request_]))
    grown = {
        way: [now - then for now, then in zip(counts(forwarder), before[way], strict=True)]
        for way, forwarder in both.forwarders.items()
    }
    assert grown["short"] == grown["long"] == [16, 2, 14]


# -- what is not the same twice -------------------------------------------------------------------


class Held:
    """Answers the first two requests, and the third when it is told to. The first finds no
    connection that was kept, so it does not go the short way."""

    def __init__(self) -> None:
        self.asked, self.go_on, self.left = (threading.Event() for _ in range(3))

    def __call__(self, connection: Connection) -> None:
        for _ in range(2):
            connection.request()
            connection.send(OK)
        connection.request()
        self.asked.set()
        connection.sock.settimeout(0.01)
        while not self.go_on.is_set():
            try:
                if not connection.sock.recv(1):
                    self.left.set()
                    return
            except TimeoutError:
                pass
        connection.send(OK)
        connection.wait_closed(HANG)


@contextlib.contextmanager
def held(way: str, folder: Path, **options: Any) -> Iterator[tuple[Held, Forwarder, socket.socket]]:
    """One request is under way, on a connection that was kept."""
    workload = Held()
    with (
        ByteServer(workload) as server,
        LocalEnclave(server.address) as enclave,
        started(way, enclave, folder / "f", **options) as forwarder,
    ):
        assert forwarder.http_path is not None
        with raw(forwarder.http_path) as sock:
            for _ in range(2):
                sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answered(sock, b"ok")
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert workload.asked.wait(HANG)
            yield workload, forwarder, sock


def connections_of(forwarder: Forwarder) -> list[Any]:
    return list(forwarder._running.server._http[1]._connections)  # type: ignore[union-attr]


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_leaves_ends_its_request(folder: Path, way: str) -> None:
    with held(way, folder) as (workload, forwarder, sock):
        (connection,) = connections_of(forwarder)
        eventually(lambda: connection.busy is (way == "short"))
        sock.close()
        assert workload.left.wait(HANG)
        eventually(lambda: forwarder._running.server.engine.stats().streams_active == 0)  # type: ignore[union-attr]
        assert not connection.busy


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_does_not_come_has_its_time(folder: Path, way: str) -> None:
    with held(way, folder, timeout=0.2) as (workload, _, sock):
        got = answered(sock, b"}}")
        assert got.startswith(b"HTTP/1.1 504 ")
        assert b'"ReadTimeout"' in got
        assert workload.left.wait(HANG)


@pytest.mark.parametrize("way", WAYS)
def test_an_idle_connection_ends_and_one_that_waits_does_not(
    folder: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclavia._forward.serving._IDLE_SECONDS", 0.1)
    with held(way, folder) as (workload, forwarder, sock):
        (connection,) = connections_of(forwarder)
        eventually(lambda: connection._idle is None)  # its timer came while the answer did not
        workload.go_on.set()
        assert answered(sock, b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
        assert read_all(sock) == b""


@pytest.mark.parametrize("way", WAYS)
def test_a_forwarder_that_ends_waits_for_answers(folder: Path, way: str) -> None:
    with held(way, folder) as (workload, forwarder, sock):
        stopping = threading.Thread(target=forwarder.stop, args=(HANG,))
        stopping.start()
        eventually(lambda: forwarder._running.server.draining)  # type: ignore[union-attr]
        workload.go_on.set()
        assert answered(sock, b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
        stopping.join()


@pytest.mark.parametrize("way", WAYS)
def test_other_pins_end_what_is_under_way(folder: Path, way: str) -> None:
    with held(way, folder, patience=0, timeout=5) as (workload, forwarder, sock):
        forwarder.reload(OTHER)
        got = answered(sock, b"}}")
        assert got.startswith(b"HTTP/1.1 502 ")
        assert b'"ConnectionClosed"' in got
        assert workload.left.wait(HANG)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("method", "status", "times"), [(b"GET", 200, 2), (b"POST", 502, 1)])
def test_what_a_kept_connection_loses_is_sent_again_where_it_may_be(
    folder: Path, way: str, method: bytes, status: int, times: int
) -> None:
    asked: list[bytes] = []

    def script(connection: Connection) -> None:
        head, _ = connection.request()
        asked.append(head)
        connection.send(OK)
        if connection.number == 0:
            head, _ = connection.request()
            asked.append(head)
            connection.reset()
            return
        connection.wait_closed(HANG)

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        started(way, enclave, folder / "f") as forwarder,
    ):
        assert forwarder.http_path is not None
        with raw(forwarder.http_path) as sock:
            sock.sendall(b"GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered(sock, b"ok")
            sock.sendall(method + b" /second HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 %d " % status)
    assert sum(b"/second" in head for head in asked) == times


def test_the_token_is_asked_for_each_time(folder: Path) -> None:
    """Also on a connection on which it was right before."""
    workload = Workload()
    with ByteServer(workload) as server, LocalEnclave(server.address) as enclave:
        got: dict[str, bytes] = {}
        for way in WAYS:
            workload.seen.clear()
            options: Any = {"listen": "127.0.0.1:0", "token": "a-token-of-this-test"}
            with started(way, enclave, folder / way, **options) as forwarder:
                assert forwarder.address is not None
                with socket.create_connection(forwarder.address, HANG) as sock:
                    right = b"Proxy-Authorization: Bearer a-token-of-this-test\r\n"
                    for _ in range(3):
                        sock.sendall(asking("plain", b"GET /right", right))
                        answered(sock, b"ok")
                    sock.sendall(asking("plain", b"GET /wrong", right.replace(b"test", b"tesd")))
                    got[way] = read_all(sock)
                assert got[way].startswith(b"HTTP/1.1 407 ")
                assert len(workload.seen) == 3
                assert not any(b"/wrong" in head or b"oken" in head for head, _ in workload.seen)
        assert got["short"] == got["long"]


@pytest.mark.parametrize(
    ("header", "answer", "looks"),
    [
        (b"X-A: 1", "plain", (1, 1)),
        (b"Authorization: Bearer a", "plain", (3, 1)),
        (b"cookie: a=1", "plain", (3, 1)),
        (b"X-A: 1", "created", (1, 3)),  # with cookies
    ],
)
def test_what_was_found_of_a_head_is_kept_but_for_credentials(
    folder: Path, header: bytes, answer: str, looks: tuple[int, int]
) -> None:
    """``looks``: at the heads of three requests, and of three answers, by whoever looks at them."""
    counted: collections.Counter[str] = collections.Counter()

    def count(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def called(*args: Any) -> Any:
            counted[name] += 1
            return real(*args)

        patch.setattr(owner, name, called)

    with (
        pytest.MonkeyPatch.context() as patch,
        ByteServer(Workload()) as server,
        LocalEnclave(server.address) as enclave,
    ):
        for owner, name in (
            (proxy, "_check"),
            (message.RequestHead, "of"),
            (remembering, "read_head"),
            (proxy, "_written_head"),
        ):
            count(patch, owner, name)
        with started("short", enclave, folder / "s") as forwarder:
            assert forwarder.http_path is not None
            with raw(forwarder.http_path) as sock:
                # The first one opens the connection that the others take the short way on.
                sock.sendall(asking("chunked", b"GET /first"))
                answered(sock, b"0\r\n\r\n")
                counted.clear()
                for _ in range(3):
                    sock.sendall(asking(answer, headers=header + b"\r\n"))
                    answered(sock, b"x" if answer == "created" else b"ok")
        of_requests, of_answers = looks
        assert counted == {
            "_check": of_requests,
            "of": of_requests,
            "read_head": of_answers,
            "_written_head": of_answers,
        }


def test_where_uvicorn_has_changed_all_goes_its_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = uvicorn_inside.module()
    assert uvicorn_inside.short_way_works(module)
    monkeypatch.delattr(module.HttpToolsProtocol, "_start_asgi_task")
    assert not uvicorn_inside.short_way_works(module)
    monkeypatch.undo()
    monkeypatch.setattr(module.RequestResponseCycle, "__init__", lambda self: None)
    assert not uvicorn_inside.short_way_works(module)


class Halfway:
    """Answers a first request, and begins to answer a second one when it is told to."""

    def __init__(self) -> None:
        self.asked, self.go_on, self.left = (threading.Event() for _ in range(3))

    def __call__(self, connection: Connection) -> None:
        connection.request()
        connection.send(OK)
        connection.request()
        self.asked.set()
        assert self.go_on.wait(HANG)
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
        connection.wait_closed(HANG)
        self.left.set()


@contextlib.contextmanager
def standing_still(forwarder: Forwarder) -> Iterator[None]:
    """The forwarder's event loop: what happens meanwhile, it finds all at once, in its order."""
    stands, goes = threading.Event(), threading.Event()

    def stand() -> None:
        stands.set()
        goes.wait(HANG)

    forwarder._running.loop.call_soon_threadsafe(stand)  # type: ignore[union-attr]
    assert stands.wait(HANG)
    try:
        yield
    finally:
        goes.set()


def test_a_client_that_leaves_as_its_answer_begins_ends_its_request(folder: Path) -> None:
    """The answer goes on in a task, which begins after the connection's end was told. An answer
    without an end would be read for nobody, for ever."""
    workload = Halfway()
    with (
        ByteServer(workload) as server,
        LocalEnclave(server.address) as enclave,
        started("short", enclave, folder / "f") as forwarder,
    ):
        assert forwarder.http_path is not None
        with raw(forwarder.http_path) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered(sock, b"ok")
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert workload.asked.wait(HANG)
            (connection,) = connections_of(forwarder)
            eventually(lambda: connection.busy)
            exchange, _ = connection._short._under_way
            with standing_still(forwarder):
                sock.close()
                workload.go_on.set()
                eventually(lambda: exchange.stream.readable)
        assert workload.left.wait(5)
        stats = forwarder._running.server.engine.stats  # type: ignore[union-attr]
        eventually(lambda: stats().streams_active == 0)


@pytest.mark.parametrize("way", WAYS)
def test_what_precedes_an_error_is_not_sent_for_a_client_that_is_gone(
    folder: Path, way: str
) -> None:
    """Its connection is closed as soon as the error is read. uvicorn says so to the newest of its
    requests, and the one that is begun is an older one."""
    workload = Halfway()
    with (
        ByteServer(workload) as server,
        LocalEnclave(server.address) as enclave,
        started(way, enclave, folder / "f") as forwarder,
    ):
        assert forwarder.http_path is not None
        with raw(forwarder.http_path) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered(sock, b"ok")
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2 + b"\0\r\n\r\n")
            assert read_all(sock).startswith(b"HTTP/1.1 400 ")
        running = forwarder._running.server  # type: ignore[union-attr]
        eventually(lambda: not running._http[1].busy)
        assert running.engine.stats().streams_active == 0
        assert not workload.asked.is_set()


TRAILERS = b"0\r\nHost: localhost\r\nX-Role: admin\r\nConnection: X-Kept\r\n\r\n"


@pytest.mark.parametrize("at", [0, 3])
def test_trailers_are_no_headers(both: Both, at: int) -> None:
    """RFC 9110, section 6.5.1. Whoever went through the headers before us has not seen them."""
    body = b"2\r\nhi\r\n"
    headers = b"Transfer-Encoding: chunked\r\nX-Kept: 1\r\n"
    whole = asking("plain", b"POST /", headers, body + TRAILERS)
    for got, seen in both.sent(whole[: len(whole) - at], whole[len(whole) - at :]).values():
        assert b"HTTP/1.1 400 " not in got
        _, (head, sent), _ = seen
        assert b"x-kept: 1" in head.lower()
        assert b"x-role" not in head.lower()
        assert sent == b"hi"
