"""A peer that breaks a rule of the handshake, or is only odd where that is allowed."""

from __future__ import annotations

import cbor2
import pytest
from enclave_peer import EnclavePeer, connect
from raw_server import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Peer,
    PeerGone,
    RawServer,
    frame,
)
from rule_breaker import check, opened, refused

import enclavia

pytestmark = pytest.mark.usefixtures("warm", "nothing_left")


# what is odd, and allowed


def test_text_messages_carry_nothing() -> None:
    def run(peer: Peer) -> None:
        peer.upgrade()
        enclave = EnclavePeer(peer)
        answer = enclave.answer_for(enclave.read_key())
        for part in (answer[:10], answer[10:]):
            peer.send(frame(TEXT, b"not part of it"))
            enclave.send_bytes(part)
        enclave.expect_attestation_request()
        peer.send(frame(TEXT, b"x" * 70_000))
        enclave.send_bytes(enclave.attestation())
        enclave.serve_echo()

    with RawServer(run) as server, connect(server.url) as channel:
        assert channel.open_stream(b"hello").read(100) == b"hello"


def test_text_alone_is_silence() -> None:
    def script(enclave: EnclavePeer) -> None:
        answer = enclave.answer_for(enclave.read_key())
        enclave.peer.send(frame(TEXT, answer.hex().encode()))

    error = refused(script, asked=False, timeout=0.3)
    check(error, enclavia.ConnectTimeout, "expected the answer to the Noise handshake")


def test_a_message_in_fragments_with_pings_between() -> None:
    def run(peer: Peer) -> None:
        peer.upgrade()
        enclave = EnclavePeer(peer)
        answer = enclave.answer_for(enclave.read_key())
        peer.send(frame(BINARY, answer[:5], fin=False))
        peer.send(frame(PING, b"one"))
        assert peer.read_pong() == b"one"
        peer.send(frame(CONTINUATION, b"", fin=False))
        peer.send(frame(CONTINUATION, answer[5:40], fin=False) + frame(PING, b"x" * 125))
        assert peer.read_pong() == b"x" * 125
        peer.send(frame(PONG, b"unsolicited"))
        peer.send(frame(CONTINUATION, answer[40:]))
        enclave.expect_attestation_request()
        record = enclave.attestation()
        peer.send(frame(TEXT, b"te", fin=False) + frame(CONTINUATION, b"xt"))
        peer.send(frame(BINARY, record[:1000], fin=False))
        peer.send(frame(PING))
        assert peer.read_pong() == b""
        peer.send(frame(CONTINUATION, record[1000:]))
        enclave.serve_echo()

    with RawServer(run) as server, connect(server.url) as channel:
        assert channel.open_stream(b"hello").read(100) == b"hello"


def test_the_handshake_answer_split_everywhere() -> None:
    """One connection for each offset: in two messages, and in two segments of one message."""
    step = iter(range(1, 1000))

    def run(peer: Peer) -> None:
        peer.upgrade()
        at = next(step)
        enclave = EnclavePeer(peer)
        answer = enclave.answer_for(enclave.read_key())
        if at < 48:
            peer.send(frame(BINARY, answer[:at]) + frame(BINARY) + frame(BINARY, answer[at:]))
        else:
            whole = frame(BINARY, answer)
            peer.send_each(whole[: at - 47], whole[at - 47 :], gap=0.001)
        enclave.expect_attestation_request()
        enclave.send_bytes(enclave.attestation(document))
        peer.finish()

    document = b""
    with RawServer(run) as server:
        for _ in range(47 + 49):
            with pytest.raises(enclavia.DocumentError):
                connect(server.url)
        assert len(server.peers) == 96


def test_the_attestation_record_split_everywhere_at_its_edges() -> None:
    """Inside the length, at its end, around the end of the record, and every 97 bytes."""
    length = 0
    offsets: list[int] = []

    def run(peer: Peer) -> None:
        nonlocal length
        peer.upgrade()
        enclave = EnclavePeer(peer)
        enclave.handshake()
        enclave.expect_attestation_request()
        record = enclave.attestation()
        if not length:
            length = len(record)
            enclave.send_bytes(record)
        else:
            at = offsets.pop() % length
            peer.send_each(frame(BINARY, record[:at]), frame(BINARY, record[at:]), gap=0.001)
        peer.finish()

    with RawServer(run) as server:
        connect(server.url).close()
        offsets += [1, 2, 3, 4, 5, 20, -17, -16, -15, -1, *range(97, length, 97)]
        for _ in range(len(offsets)):
            connect(server.url).close()
    assert not offsets


def test_the_attestation_record_in_single_bytes() -> None:
    def run(peer: Peer) -> None:
        peer.upgrade()
        enclave = EnclavePeer(peer)
        enclave.handshake()
        enclave.expect_attestation_request()
        record = enclave.attestation()
        peer.send(b"".join(frame(BINARY, record[at : at + 1]) for at in range(len(record))))
        enclave.serve_echo()

    with RawServer(run) as server, connect(server.url) as channel:
        assert channel.open_stream(b"hello").read(100) == b"hello"


def test_many_records_in_one_message() -> None:
    def script(enclave: EnclavePeer) -> None:
        opening = enclave.receive()
        records = [
            enclave.record("StreamData", id=opening["id"], payload=b"%03d" % number)
            for number in range(200)
        ]
        enclave.send_bytes(b"".join([*records, enclave.record("StreamClose", id=opening["id"])]))

    server, channel = opened(script)
    with server, channel:
        assert channel.open_stream().readall() == b"".join(b"%03d" % n for n in range(200))


def test_byte_strings_and_unknown_keys_and_any_order_are_understood() -> None:
    def script(enclave: EnclavePeer) -> None:
        opening = enclave.receive()
        message = {"new": [1, {"a": None}], "payload": b"hi", "id": opening["id"]}
        enclave.send_bytes(enclave.sealed(cbor2.dumps({**message, "type": "StreamData"})))
        enclave.send_bytes(
            enclave.sealed(
                b"\xbf\x64type\x6aStreamData\x62id\x01\x67payload\x9f\x18\x41\x01\xff\xff"
            )
        )
        enclave.send("StreamClose", id=opening["id"])

    server, channel = opened(script)
    with server, channel:
        assert channel.open_stream().readall() == b"hiA\x01"


# handshake


def test_a_handshake_answer_cut_short() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.send_bytes(enclave.answer_for(enclave.read_key())[:31])
        raise PeerGone

    error = refused(script, asked=False)
    check(error, enclavia.ConnectionClosed, "31 of 48 bytes of the handshake answer")
    assert error.retryable


def test_a_handshake_answer_cut_short_and_silence() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.send_bytes(enclave.answer_for(enclave.read_key())[:31])

    error = refused(script, asked=False, timeout=0.3)
    check(error, enclavia.ConnectTimeout, "expected the answer to the Noise handshake")


def test_a_handshake_answer_of_49_bytes() -> None:
    """The stray byte becomes the first of the next record's length."""

    def script(enclave: EnclavePeer) -> None:
        enclave.send_bytes(enclave.answer_for(enclave.read_key()) + b"\x01")
        enclave.expect_attestation_request()
        enclave.send_bytes(enclave.attestation())

    error = refused(script, asked=True)
    check(error, enclavia.ProtocolError, "record length: expected 17 to 65535 bytes, got 167")
    assert not error.retryable


@pytest.mark.parametrize(
    "key",
    [
        bytes(32),
        bytes([1]) + bytes(31),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    ],
    ids=["zero", "one", "p-1", "order 8"],
)
def test_a_key_whose_result_is_zero(key: bytes) -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.send_bytes(enclave.answer_for(enclave.read_key(), own_key=key))

    error = refused(script, asked=False)
    check(error, enclavia.ProtocolError, "zero")
    assert not error.retryable


def test_a_wrong_tag_in_the_handshake() -> None:
    def script(enclave: EnclavePeer) -> None:
        answer = bytearray(enclave.answer_for(enclave.read_key()))
        answer[-1] ^= 1
        enclave.send_bytes(bytes(answer))

    error = refused(script, asked=False)
    check(error, enclavia.ProtocolError)
    assert not error.retryable


def test_the_clients_own_key_sent_back() -> None:
    def script(enclave: EnclavePeer) -> None:
        key = enclave.read_key()
        enclave.send_bytes(key + bytes(16))

    check(refused(script, asked=False), enclavia.ProtocolError)
