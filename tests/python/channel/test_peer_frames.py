"""A peer that breaks a rule of WebSocket frames, or does not read."""

from __future__ import annotations

import threading
import time

import pytest
from enclave_peer import EnclavePeer
from raw_server import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    Peer,
    PeerGone,
    close_payload,
    frame,
)
from resources import resident_kib
from rule_breaker import check, failure_of, opened, refused
from support import GIVES_UP, HANG, unless_ended

import enclavia

pytestmark = pytest.mark.usefixtures("warm", "nothing_left")


BAD_FRAMES = {
    "masked": (frame(BINARY, b"12345", mask=b"abcd"), "mask", 1002),
    "reserved bit 1": (frame(BINARY, b"x", reserved=4), "reserved", 1002),
    "reserved bit 2": (frame(BINARY, b"x", reserved=2), "reserved", 1002),
    "reserved bit 3": (frame(PING, b"x", reserved=1), "reserved", 1002),
    "unknown opcode": (frame(3, b"x"), "opcode", 1002),
    "unknown control": (frame(11, b"x"), "opcode", 1002),
    "oversized": (frame(BINARY, b"", claimed_length=2**24 + 1), "16777216", 1009),
    "oversized, 63 bits": (frame(BINARY, b"", claimed_length=2**63 - 1), "16777216", 1009),
    "64 bits": (b"\x82\x7f" + b"\xff" * 8, "length", 1002),
    "length not minimal": (b"\x82\x7e\x00\x05hello", "length", 1002),
    "long ping": (frame(PING, b"x" * 126), "control", 1002),
    "ping in fragments": (frame(PING, b"x", fin=False), "control", 1002),
    "continuation of nothing": (frame(CONTINUATION, b"x"), "continu", 1002),
    "message inside a message": (frame(BINARY, b"x", fin=False) + frame(BINARY, b"y"), "", 1002),
    "close of one byte": (frame(CLOSE, b"\x03"), "close", 1002),
    "close code 1005": (frame(CLOSE, close_payload(1005)), "1005", 1002),
    "close code 0": (frame(CLOSE, close_payload(0)), "code", 1002),
    "close reason not UTF-8": (frame(CLOSE, b"\x03\xe8\xff\xfe"), "UTF-8", 1007),
}


@pytest.mark.parametrize("verified", [False, True], ids=["handshake", "open"])
@pytest.mark.parametrize(("data", "fragment", "code"), BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_a_frame_that_breaks_the_rules(
    data: bytes, fragment: str, code: int, verified: bool
) -> None:
    closing: list[bytes] = []

    def collect(peer: Peer) -> None:
        peer.send(data)
        try:
            while True:
                opcode, payload = peer.read_frame()
                if opcode == CLOSE:
                    closing.append(payload)
        except PeerGone:
            pass

    if verified:

        def after(enclave: EnclavePeer) -> None:
            enclave.receive()
            collect(enclave.peer)

        error = failure_of(after)
    else:

        def during(enclave: EnclavePeer) -> None:
            enclave.read_key()
            collect(enclave.peer)

        error = refused(during, asked=False)
    check(error, enclavia.ProtocolError, fragment)
    assert not error.retryable
    assert [int.from_bytes(payload[:2], "big") for payload in closing] == [code]


@pytest.mark.parametrize(
    ("payload", "fragment"),
    [
        (b"", "1005"),
        (close_payload(1000), "1000"),
        (close_payload(1001, "restart"), "1001: restart"),
        (close_payload(1011, "oops"), "1011: oops"),
        (close_payload(1013), "1013"),
        (close_payload(3000, "x" * 123), "3000: xxx"),
        (close_payload(4999), "4999"),
    ],
)
@pytest.mark.parametrize("verified", [False, True], ids=["handshake", "open"])
def test_a_close_frame_ends_it_with_its_reason(
    payload: bytes, fragment: str, verified: bool
) -> None:
    if verified:

        def after(enclave: EnclavePeer) -> None:
            enclave.receive()
            enclave.peer.send(frame(CLOSE, payload))

        error = failure_of(after)
    else:

        def during(enclave: EnclavePeer) -> None:
            enclave.read_key()
            enclave.peer.send(frame(CLOSE, payload))

        error = refused(during, asked=False)
    check(error, enclavia.ConnectionClosed, fragment)
    assert error.retryable


def test_a_close_frame_is_answered() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.peer.send(frame(CLOSE, close_payload(1001)))

    server, channel = opened(script)
    with server, channel:
        with pytest.raises(enclavia.ConnectionClosed):
            channel.open_stream(b"go").read(1)
        server.wait_done()
        opcode, payload = server.peer.messages[-1]
        assert (opcode, payload[:2]) == (CLOSE, b"\x03\xe9")


def test_our_close_is_a_close_frame_and_waits_for_the_answer() -> None:
    """Without the answer it takes a second. Load makes some tries longer, waiting all."""
    took = []
    while not took or (min(took) > 0.5 and len(took) < 5):
        server, channel = opened(lambda enclave: None)
        with server:
            started = time.monotonic()
            channel.close()
            took.append(time.monotonic() - started)
            server.wait_done()
            assert server.peer.messages[-1] == (CLOSE, close_payload(1000))
    assert min(took) < 0.5


def test_a_peer_that_does_not_answer_our_close() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.peer.read_to_end()

    server, channel = opened(script)
    with server:
        waited_on: list[bool] = []
        with unless_ended(lambda: waited_on.append(True)):
            channel.close()
        assert not waited_on, "it closed because the peer hung up"
        server.wait_done()


def test_a_flood_of_pings_ends_the_connection() -> None:
    """Nor do pongs that the peer never reads fill the memory until then."""

    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        ping = frame(PING, b"x" * 125) * 500
        for _ in range(400):
            enclave.peer.send(ping)
        time.sleep(0.1)
        raise PeerGone

    server, channel = opened(script)
    with server, channel:
        stream = channel.open_stream(b"go")
        with pytest.raises(
            enclavia.ProtocolError, match="frames a second that carry nothing"
        ) as caught:
            stream.read(1)
        assert not caught.value.retryable


def test_opening_and_closing_to_a_peer_that_reads_nothing_is_bounded() -> None:
    done = threading.Event()
    server, channel = opened(lambda enclave: (done.wait(20), None)[1])
    with server, channel:
        before = resident_kib()

        def open_many() -> None:
            for _ in range(2000):
                channel.open_stream(b"\xff" * 16_000, timeout=0.3).close()

        with pytest.raises(enclavia.PoolTimeout):
            open_many()
        assert resident_kib() - before < 32 * 1024
        done.set()


def test_a_peer_that_reads_nothing_stops_writers() -> None:
    done = threading.Event()
    # It goes on before the channel's own time-out.
    server, channel = opened(lambda enclave: (done.wait(GIVES_UP), None)[1], timeout=HANG)
    with server, channel:
        stream = channel.open_stream()
        stream.write_timeout = 0.2
        with pytest.raises(enclavia.WriteTimeout, match=r"could send \d+ within 0\.200 s"):
            stream.write(bytes(64 * 1024 * 1024))
        done.set()
