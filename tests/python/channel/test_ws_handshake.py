"""The WebSocket upgrade against a server that answers anything."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest
from enclave_peer import EnclavePeer, connect
from raw_server import (
    BINARY,
    CLOSE,
    LIMIT,
    PING,
    PONG,
    TEXT,
    Peer,
    RawServer,
    accept_value,
    close_payload,
    frame,
    header,
    unused_port,
)
from support import eventually

import enclavia

pytestmark = pytest.mark.usefixtures("warm", "nothing_left")


def answered(data: bytes, **options: Any) -> enclavia.EnclaviaError:
    """What connecting says to a server that reads the request, sends this and hangs up."""

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(data)

    with RawServer(script) as server:
        with pytest.raises(enclavia.EnclaviaError) as caught:
            connect(server.url, **options)
        assert not isinstance(caught.value, enclavia.ConnectTimeout), "it waited for more"
        assert len(server.peers) == 1, "a refused upgrade must not be tried again"
    return caught.value


@pytest.mark.parametrize("length", [1, 2031, 2032])
def test_the_longest_path_is_sent_whole(length: int) -> None:
    heads: list[bytes] = []

    def script(peer: Peer) -> None:
        heads.append(peer.read_head())
        peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    path = "/" + "p" * (length - 1)
    with RawServer(script) as server, pytest.raises(enclavia.UpgradeRejected):
        connect(server.url + path)
    assert heads[0].startswith(b"GET %s HTTP/1.1\r\n" % path.encode())


@pytest.mark.parametrize("length", [60, 98, 99])
def test_the_longest_host_is_told_to_a_proxy_whole(length: int) -> None:
    heads: list[bytes] = []

    def script(peer: Peer) -> None:
        heads.append(peer.read_head())
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        heads.append(peer.read_head())
        peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    host = ("h" * 50 + "." + "h" * 50)[:length]
    with RawServer(script) as server, pytest.raises(enclavia.UpgradeRejected):
        connect(f"ws://{host}:65535", proxy=server.url.replace("ws://", "http://"))
    authority = f"{host}:65535".encode()
    assert heads[0].startswith(b"CONNECT %s HTTP/1.1\r\n" % authority)
    assert header(heads[1], b"host") == authority


# refused by status


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        (200, False),
        (301, False),
        (307, False),
        (400, False),
        (401, False),
        (403, False),
        (404, False),
        (408, True),
        (410, False),
        (426, False),
        (429, True),
        (500, True),
        (502, True),
        (503, True),
        (504, True),
        (599, True),
    ],
)
def test_a_refusal_is_typed_and_says_whether_to_try_again(status: int, retryable: bool) -> None:
    error = answered(
        b"HTTP/1.1 %d Whatever\r\nContent-Length: 2\r\nRetry-After: 7\r\n"
        b"Content-Type: text/plain\r\n\r\nno" % status
    )
    assert type(error) is enclavia.UpgradeRejected
    assert isinstance(error, enclavia.ConnectError)
    assert error.status == status
    assert error.retryable is retryable
    assert f"expected HTTP status 101, got {status}" in str(error)
    assert header(error.head, b"retry-after") == b"7"
    assert header(error.head, b"content-type") == b"text/plain"
    assert error.head.startswith(b"HTTP/1.1 %d" % status)


def test_a_refusals_long_lines_are_whole_or_left_out() -> None:
    where = b"https://login.example/" + b"w" * 600
    error = answered(
        b"HTTP/1.1 401 Who\r\nContent-Type: text/%s\r\nLocation: %s\r\nServer: s\r\n"
        b"Content-Length: 0\r\n\r\n" % (b"x" * 1200, where)
    )
    assert isinstance(error, enclavia.UpgradeRejected)
    assert header(error.head, b"location") == where
    assert header(error.head, b"server") == b"s"
    assert b"xxx" not in error.head


def test_a_page_of_html_is_a_refusal() -> None:
    page = b"<html><body>It works!</body></html>" * 300
    error = answered(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(page)
        + page
    )
    assert type(error) is enclavia.UpgradeRejected
    assert (error.status, error.retryable) == (200, False)
    assert b"html>" not in error.head


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    def elsewhere(peer: Peer) -> None:
        peer.read_head()

    with RawServer(elsewhere) as target:
        error = answered(
            b"HTTP/1.1 %d Moved\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n"
            % (status, target.port)
        )
        time.sleep(0.05)
        assert target.peers == []
    assert type(error) is enclavia.UpgradeRejected
    assert error.status == status
    assert header(error.head, b"location").endswith(b":%d/" % target.port)


def test_a_challenge_is_passed_on_and_not_answered() -> None:
    error = answered(
        b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
    )
    assert isinstance(error, enclavia.UpgradeRejected)
    assert header(error.head, b"www-authenticate") == b'Basic realm="x"'


def test_a_status_line_without_a_reason() -> None:
    error = answered(b"HTTP/1.1 503\r\n\r\n")
    assert isinstance(error, enclavia.UpgradeRejected)
    assert (error.status, error.retryable) == (503, True)


# no upgrade at all


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"H",
        b"HTTP/1.1 101 Switching Proto",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upg",
        b"HTTP/1.1 404 Not Found\r\nContent-Type: te",
    ],
)
def test_closed_in_the_middle_of_the_head(data: bytes) -> None:
    error = answered(data)
    assert type(error) is enclavia.ConnectError
    assert error.retryable
    assert "expected a whole HTTP answer" in str(error)
    assert "got the end of the connection" in str(error)


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x00\x02\x02\x28" * 20,
        b"\x00" * 5000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"220 mail.example.org ESMTP\r\n",
        b"+OK ready\r\n" * 100,
    ],
    ids=["text", "tls", "zeros", "ssh", "smtp", "pop"],
)
def test_garbage_instead_of_http(data: bytes) -> None:
    error = answered(data)
    assert isinstance(error, enclavia.ConnectError | enclavia.ProtocolError)
    assert not isinstance(error, enclavia.UpgradeRejected)
    assert "expected" in str(error)


def test_a_head_without_end_is_bounded() -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\n")
        while True:
            peer.send(b"X-Filler: " + b"x" * 1000 + b"\r\n")

    with RawServer(script) as server:
        with pytest.raises(enclavia.EnclaviaError) as caught:
            connect(server.url, timeout=3)
        server.wait_done()
    assert isinstance(
        caught.value, enclavia.ConnectError | enclavia.ProtocolError | enclavia.ConnectTimeout
    )


# a wrong 101


def wrong_101(*lines: bytes, behind: bytes = b"") -> enclavia.EnclaviaError:
    """Lines replace the right ones of the same name; ``name:`` alone takes a line away."""

    def script(peer: Peer) -> None:
        head = peer.read_head()
        right = {
            b"upgrade": b"websocket",
            b"connection": b"Upgrade",
            b"sec-websocket-accept": accept_value(header(head, b"sec-websocket-key")),
        }
        for line in lines:
            name, _, value = line.partition(b":")
            right[name.lower()] = value.strip()
        kept = [b"%s: %s\r\n" % pair for pair in right.items() if pair[1]]
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\n" + b"".join(kept) + b"\r\n" + behind)
        peer.finish()
        assert peer.messages == [], "nothing may be sent over a wrong upgrade"

    with RawServer(script) as server:
        with pytest.raises(enclavia.EnclaviaError) as caught:
            connect(server.url, timeout=3)
        server.wait_done()
    return caught.value


@pytest.mark.parametrize(
    "line",
    [
        b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"Sec-WebSocket-Accept: x",
        b"Sec-WebSocket-Accept:",
        b"Upgrade:",
        b"Upgrade: h2c",
        b"Connection:",
        b"Connection: keep-alive",
        b"Sec-WebSocket-Protocol: something-else",
        b"Sec-WebSocket-Extensions: permessage-deflate",
    ],
)
def test_a_wrong_101_is_a_protocol_error(line: bytes) -> None:
    error = wrong_101(line)
    assert type(error) is enclavia.ProtocolError
    assert not error.retryable
    assert "101" in str(error)


@pytest.mark.parametrize("line", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_101_must_not_have_a_body(line: bytes) -> None:
    error = wrong_101(line, behind=b"hello")
    assert type(error) is enclavia.ProtocolError
    assert not error.retryable
    assert "101 with a body" in str(error)


# time


def check_times_out(url: str, timeout: float = 0.3) -> enclavia.ConnectTimeout:
    """The servers here hang up after LIMIT seconds, so a later deadline would end otherwise."""
    started = time.monotonic()
    with pytest.raises(enclavia.ConnectTimeout) as caught:
        connect(url, timeout=timeout)
    assert time.monotonic() - started >= timeout
    assert caught.value.retryable
    assert isinstance(caught.value, TimeoutError)
    return caught.value


@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: web", b"HTTP/1.1 101 Sw"],
    ids=["nothing", "half a head", "half a line"],
)
def test_no_whole_answer_in_time(sent: bytes) -> None:
    hung_up = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(sent)
        peer.read_to_end()
        hung_up.set()

    with RawServer(script) as server:
        check_times_out(server.url)
        assert hung_up.wait(LIMIT / 2), "the server must see the end"


def test_silence_after_the_upgrade() -> None:
    hung_up = threading.Event()

    def script(peer: Peer) -> None:
        peer.upgrade()
        peer.finish()
        hung_up.set()

    with RawServer(script) as server:
        check_times_out(server.url)
        assert hung_up.wait(LIMIT / 2)
        assert [opcode for opcode, _ in server.peer.messages] == [BINARY, CLOSE]


def test_an_answer_byte_by_byte_does_not_move_the_deadline() -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\n")
        for _ in range(int(LIMIT / 0.02)):
            peer.send_each(b"X-Slow: 1\r\n", gap=0.02)

    with RawServer(script) as server:
        check_times_out(server.url)
        server.wait_done()


def test_a_port_that_takes_no_connection() -> None:
    """Its queue is full: the kernel answers nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        try:
            check_times_out(f"ws://127.0.0.1:{address[1]}")
        finally:
            for filler in fillers:
                filler.close()


def test_nobody_listens() -> None:
    port = unused_port()
    with pytest.raises(enclavia.ConnectError) as caught:  # no ConnectTimeout
        connect(f"ws://127.0.0.1:{port}")
    assert caught.value.retryable
    assert str(port) in str(caught.value)


# what comes in the same segment as the 101


def serve_once_answered(peer: Peer, *pings: bytes, rest: bytes = b"") -> None:
    """The client's key has come: ``rest`` of the frames goes out, and nothing else before each of
    these pings was answered. Then the channel opens, and echoes."""
    enclave = EnclavePeer(peer)
    answer = enclave.answer_for(enclave.read_key())
    peer.send_each(rest)
    assert [peer.read_pong() for _ in pings] == list(pings)
    enclave.send_bytes(answer)
    enclave.expect_attestation_request()
    enclave.send_bytes(enclave.attestation())
    enclave.serve_echo()


def test_a_ping_with_the_101_is_answered_and_the_channel_opens() -> None:
    def script(peer: Peer) -> None:
        peer.upgrade(behind=frame(PING, b"early bird") + frame(TEXT, b"carries nothing"))
        serve_once_answered(peer, b"early bird")

    with RawServer(script) as server, connect(server.url) as channel:
        assert channel.open_stream(b"hello").read(100) == b"hello"


@pytest.mark.parametrize("split", [1, 2, 3, 7])
def test_the_beginning_of_a_frame_with_the_101(split: int) -> None:
    """The rest comes later."""
    ping = frame(PING, b"payload")

    def script(peer: Peer) -> None:
        peer.upgrade(behind=ping[:split])
        serve_once_answered(peer, b"payload", rest=ping[split:])

    with RawServer(script) as server, connect(server.url) as channel:
        assert channel.open_stream(b"hello").read(100) == b"hello"


@pytest.mark.parametrize("size", [4096, 31_000, 40_000])
def test_much_that_comes_with_the_101(size: int) -> None:
    """More than fits the buffers that the head was read into."""
    early = frame(TEXT, b"x" * size) + frame(PING, b"last")

    def script(peer: Peer) -> None:
        peer.upgrade(behind=early)
        serve_once_answered(peer, b"last")

    with RawServer(script) as server, connect(server.url) as channel:
        assert channel.open_stream(b"hello").read(100) == b"hello"


def test_many_pings_with_the_101_are_answered_in_order() -> None:
    early = b"".join(frame(PING, b"%d" % number) for number in range(50))

    def script(peer: Peer) -> None:
        peer.upgrade(behind=early)
        serve_once_answered(peer, *(b"%d" % number for number in range(50)))

    with RawServer(script) as server, connect(server.url) as channel:
        channel.open_stream().close()


def test_the_end_with_the_101() -> None:
    def script(peer: Peer) -> None:
        peer.upgrade(behind=frame(CLOSE, close_payload(1013, "try again later")))
        peer.finish()

    with RawServer(script) as server, pytest.raises(enclavia.ConnectionClosed) as caught:
        connect(server.url)
    assert "1013" in str(caught.value)
    assert "try again later" in str(caught.value)
    assert caught.value.retryable


def test_a_101_in_single_bytes() -> None:
    def script(peer: Peer) -> None:
        answer = peer.answer_101(peer.read_head()) + frame(PING, b"p")
        peer.send_each(*(bytes([byte]) for byte in answer), gap=0.0003)
        enclave = EnclavePeer(peer)
        enclave.open()
        enclave.serve_echo()

    with RawServer(script) as server:
        with connect(server.url) as channel:
            assert channel.open_stream(b"hello").read(100) == b"hello"
        server.wait_done()
        assert (PONG, b"p") in server.peer.messages


# what the client sends


def test_the_request_is_right() -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.upgrade())
        EnclavePeer(peer).open()
        peer.finish()

    with RawServer(script) as server:
        connect(
            f"{server.url}/some/path?q=1&r=%20x",
            upgrade_headers={"X-Enclave-Host": "abc.enclaves.example", "Authorization": "Bearer t"},
        ).close()
    (head,) = seen
    assert head.startswith(b"GET /some/path?q=1&r=%20x HTTP/1.1\r\n")
    assert header(head, b"x-enclave-host") == b"abc.enclaves.example"
    assert header(head, b"authorization") == b"Bearer t"
    assert header(head, b"host") == b"127.0.0.1:%d" % server.port
    assert header(head, b"upgrade").lower() == b"websocket"
    assert b"upgrade" in header(head, b"connection").lower()
    assert header(head, b"sec-websocket-version") == b"13"
    assert len(header(head, b"sec-websocket-key")) == 24
    assert header(head, b"sec-websocket-extensions") == b""
    assert head.lower().count(b"\r\nhost:") == 1


def test_headers_of_one_name_all_arrive_in_order() -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.read_head())

    with RawServer(script) as server, pytest.raises(enclavia.ConnectError):
        connect(server.url, upgrade_headers=[("X-One", "1"), ("X-Two", "2"), ("X-One", "3")])
    lines = [line for line in seen[0].split(b"\r\n") if line.startswith(b"X-")]
    assert lines == [b"X-One: 1", b"X-Two: 2", b"X-One: 3"]


def test_every_key_is_new() -> None:
    keys: list[bytes] = []

    def script(peer: Peer) -> None:
        keys.append(header(peer.read_head(), b"sec-websocket-key"))

    with RawServer(script) as server:
        for _ in range(5):
            with pytest.raises(enclavia.ConnectError):
                connect(server.url)
    assert len(set(keys)) == 5


def test_long_headers_arrive_whole() -> None:
    seen: list[bytes] = []
    value = "v" * 12_000

    def script(peer: Peer) -> None:
        seen.append(peer.read_head())

    with RawServer(script) as server, pytest.raises(enclavia.ConnectError):
        connect(server.url, upgrade_headers={"X-Long": value})
    assert header(seen[0], b"x-long") == value.encode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "b\r\nX-Injected: 1"),
        ("X-A", "b\nX-Injected: 1"),
        ("X-A", "b\rX-Injected: 1"),
        ("X-A", "b\x00c"),
        ("X-A", "b\x7f"),
        ("X-A\r\nX-Injected", "1"),
        ("X-A: 1\r\nX-B", "1"),
        ("X A", "1"),
        ("", "1"),
        ("X-\u00e9", "1"),
        ("X-A", "\u20ac"),
        ("Host", "elsewhere"),
        ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ("connection", "close"),
        ("Content-Length", "5"),
        ("X-Long", "v" * 20_000),
    ],
)
def test_headers_that_would_change_the_request_are_refused(name: str, value: str) -> None:
    with RawServer(Peer.read_to_end) as server:
        with pytest.raises(ValueError, match=r"(?i)header"):
            connect(server.url, upgrade_headers={name: value})
        time.sleep(0.02)
        assert server.peers == [], "nothing may be sent"


@pytest.mark.parametrize(
    "path", ["/a b", "/a\r\nX-Injected: 1", "/a%0d%0aX-Injected:%201", "/\u00e9", "/a\tb"]
)
def test_a_path_cannot_inject_either(path: str) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.read_head())

    with RawServer(script) as server, pytest.raises(enclavia.EnclaviaError):
        connect(server.url + path)
    for head in seen:
        line = head.split(b"\r\n", 1)[0]
        assert line.count(b" ") == 2
        assert b"X-Injected" not in header(head, b"x-injected")
        assert not any(part.startswith(b"X-Injected") for part in head.split(b"\r\n"))


def test_a_lost_connection_leaves_the_next_one_alone() -> None:
    """One service thread carries them all."""

    def script(peer: Peer) -> None:
        if b"X-Good" not in peer.upgrade():
            return
        EnclavePeer(peer).open()
        peer.finish()

    with RawServer(script) as server:
        good = connect(server.url, upgrade_headers={"X-Good": "1"})
        for _ in range(10):
            with pytest.raises(enclavia.ConnectionClosed):
                connect(server.url)
        assert not good.closed
        good.close()
        eventually(lambda: good.closed)
