"""A WebSocket peer that speaks the enclave's protocol and breaks one rule of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cbor2
import pytest
from enclave_peer import EnclavePeer, connect, signed_document
from raw_server import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Peer,
    PeerGone,
    RawServer,
    close_payload,
    frame,
    unused_port,
)
from resources import Held, eventually, resident_kib
from support import GIVES_UP, HANG, unless_ended

import enclavia

SECRET = b"application bytes, only for a verified enclave"
ASK = {"type": "RequestAttestation"}


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    with pytest.raises(enclavia.ConnectError):
        connect(f"ws://127.0.0.1:{unused_port()}")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    held = Held()
    yield
    held.check_released()


def refused(
    script: Callable[[EnclavePeer], None], *, asked: bool, timeout: float = 10.0, **options: Any
) -> enclavia.EnclaviaError:
    """What a client says that connects and would write SECRET at once. ``asked``: whether it got
    as far as RequestAttestation, which is all that may ever be sent."""
    enclaves: list[EnclavePeer] = []

    def run(peer: Peer) -> None:
        enclave = EnclavePeer(peer)
        enclaves.append(enclave)
        peer.upgrade()
        script(enclave)
        peer.finish()

    with RawServer(run) as server:
        with pytest.raises(enclavia.EnclaviaError) as caught:
            connect(server.url, timeout=timeout, **options).open_stream(SECRET)
        server.wait_done()
        peer = server.peer
    assert SECRET not in bytes(peer.received)
    data = [payload for opcode, payload in peer.messages if opcode == BINARY]
    assert len(data[0]) == 32, "the handshake's first message"
    # A record of RequestAttestation: 4 bytes of length, its CBOR, 16 of tag.
    expected = [32, 4 + len(cbor2.dumps(ASK)) + 16] if asked else [32]
    assert [len(payload) for payload in data] == expected
    assert {opcode for opcode, _ in peer.messages} <= {BINARY, CLOSE, PONG}
    return caught.value


def check(error: enclavia.EnclaviaError, kind: type[Exception], *fragments: str) -> None:
    assert type(error) is kind, repr(error)
    for fragment in fragments:
        assert fragment in str(error), str(error)


def opened(script: Callable[[EnclavePeer], None], **options: Any) -> Any:
    """A channel to an enclave that is verified first, and a server to close."""

    def run(peer: Peer) -> None:
        peer.upgrade()
        enclave = EnclavePeer(peer)
        enclave.open()
        script(enclave)
        peer.finish()

    server = RawServer(run)
    try:
        return server, connect(server.url, **options)
    except BaseException:
        server.close()
        raise


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


# records


@pytest.mark.parametrize("length", [0, 1, 16, 65_536, 2**31, 2**32 - 1])
@pytest.mark.parametrize("verified", [False, True], ids=["attesting", "open"])
def test_a_record_length_out_of_bounds(length: int, verified: bool) -> None:
    head = length.to_bytes(4, "big")
    if verified:

        def after(enclave: EnclavePeer) -> None:
            enclave.receive()
            enclave.send_bytes(head)

        server, channel = opened(after)
        with server, channel:
            with pytest.raises(enclavia.EnclaviaError) as caught:
                channel.open_stream(b"x").read(1)
            error = caught.value
    else:

        def script(enclave: EnclavePeer) -> None:
            enclave.handshake()
            enclave.expect_attestation_request()
            enclave.send_bytes(head)

        error = refused(script, asked=True)
    check(error, enclavia.ProtocolError, f"expected 17 to 65535 bytes, got {length}")
    assert not error.retryable


@pytest.mark.parametrize("at", [4, 40, -1], ids=["first", "middle", "tag"])
def test_a_record_that_does_not_decrypt(at: int) -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()
        record = bytearray(enclave.attestation())
        record[at] ^= 1
        enclave.send_bytes(bytes(record))

    error = refused(script, asked=True)
    check(error, enclavia.ProtocolError, "decrypt")
    assert not error.retryable


def test_a_record_sent_twice() -> None:
    def script(enclave: EnclavePeer) -> None:
        opening = enclave.receive()
        record = enclave.record("StreamData", id=opening["id"], payload=b"once")
        enclave.send_bytes(record)
        enclave.send_bytes(record)

    server, channel = opened(script)
    with server, channel:
        stream = channel.open_stream()
        with pytest.raises(enclavia.ProtocolError, match="decrypt"):
            stream.readall()
        assert channel.closed


def test_records_swapped() -> None:
    def script(enclave: EnclavePeer) -> None:
        opening = enclave.receive()
        first = enclave.record("StreamData", id=opening["id"], payload=b"first")
        second = enclave.record("StreamData", id=opening["id"], payload=b"second")
        enclave.send_bytes(second + first)

    server, channel = opened(script)
    with server, channel, pytest.raises(enclavia.ProtocolError, match="decrypt"):
        channel.open_stream().read(100)


def test_a_record_cut_by_the_end() -> None:
    def script(enclave: EnclavePeer) -> None:
        opening = enclave.receive()
        record = enclave.record("StreamData", id=opening["id"], payload=b"never whole")
        enclave.send_bytes(record[:-1])
        enclave.peer.send(frame(CLOSE, close_payload(1001, "going")))

    server, channel = opened(script)
    with server, channel:
        with pytest.raises(enclavia.ConnectionClosed, match="1001") as caught:
            channel.open_stream().read(100)
        assert caught.value.retryable


# messages before the peer is verified


NOT_MESSAGES = {
    "not CBOR": b"\xff\xff\xff\xff",
    "text": b"hello enclave",
    "a number": b"\x01",
    "an array": cbor2.dumps([ASK]),
    "null": b"\xf6",
    "an empty map": b"\xa0",
    "no type": cbor2.dumps({"id": 1}),
    "type not text": cbor2.dumps({"type": 7}),
    "keys not text": cbor2.dumps({1: "Attestation"}),
    "unknown type": cbor2.dumps({"type": "Surprise"}),
    "type of a client": cbor2.dumps({"type": "OpenStream", "id": 1, "payload": []}),
    "cut": cbor2.dumps({"type": "Attestation", "data": [1, 2, 3]})[:-2],
    "a byte too much": cbor2.dumps({"type": "Attestation", "data": [1]}) + b"\x00",
    "no data": cbor2.dumps({"type": "Attestation", "control_nonce": [0] * 32}),
    "data not bytes": cbor2.dumps({"type": "Attestation", "data": [1, 256]}),
    "data negative": cbor2.dumps({"type": "Attestation", "data": [-1]}),
    "data text": cbor2.dumps({"type": "Attestation", "data": "abc"}),
    "type twice": b"\xa2\x64type\x6bAttestation\x64type\x6bAttestation",
    "nesting": b"\xa2\x64type\x6bAttestation\x61x" + b"\x81" * 10_000 + b"\x00",
    "nesting, endless": b"\xa2\x64type\x6bAttestation\x61x" + b"\x9f" * 60_000,
    "nesting of tags": b"\xa2\x64type\x6bAttestation\x61x" + b"\xc1" * 10_000 + b"\x00",
    "huge array": b"\xa2\x64type\x6bAttestation\x64data\x9b" + b"\xff" * 8,
    "large array": b"\xa2\x64type\x6bAttestation\x64data\x9a\x7f\xff\xff\xff",
    "huge map": b"\xbb" + b"\xff" * 8,
    "large map": b"\xba\x7f\xff\xff\xff\x64type\x6bAttestation",
    "huge text": b"\xa2\x64type\x7b" + b"\xff" * 8,
    "huge bytes": b"\xa2\x64type\x6bAttestation\x64data\x5b\x7f" + b"\xff" * 7,
    "bytes beyond the end": b"\xa2\x64type\x6bAttestation\x64data\x59\xff\xff\x00",
    "text not UTF-8": b"\xa1\x64type\x62\xff\xfe",
}


@pytest.mark.parametrize("plaintext", NOT_MESSAGES.values(), ids=NOT_MESSAGES.keys())
def test_a_record_that_is_not_a_message(plaintext: bytes) -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()
        enclave.send_bytes(enclave.sealed(plaintext))

    error = refused(script, asked=True)
    check(error, enclavia.ProtocolError, "expected")
    assert not error.retryable


def test_no_attestation_in_time() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()

    error = refused(script, asked=True, timeout=0.3)
    check(error, enclavia.ConnectTimeout, "expected the attestation document")
    assert error.retryable


def test_the_end_instead_of_an_attestation() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()
        raise PeerGone

    error = refused(script, asked=True)
    check(error, enclavia.ConnectionClosed, "before the attestation document was received")
    assert error.retryable


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "StreamData", "id": 1, "payload": b"early"},
        {"kind": "Data", "id": 1, "payload": b"early"},
        {"kind": "StreamClose", "id": 1},
        {"kind": "Error", "id": 0, "message": "no attestation here"},
        {"kind": "ControlNonce", "nonce": bytes(32)},
    ],
    ids=lambda fields: str(fields["kind"]),
)
def test_anything_else_before_the_attestation(fields: dict[str, Any]) -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()
        enclave.send(**fields)
        enclave.send_bytes(enclave.attestation())

    error = refused(script, asked=True)
    check(error, enclavia.ProtocolError, "expected", fields["kind"])
    if fields["kind"] == "Error":
        assert "no attestation here" in str(error)
    assert not error.retryable


def test_an_attestation_of_another_channel() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()
        enclave.send_bytes(enclave.attestation(signed_document(b"\x05" * 32)))

    check(refused(script, asked=True), enclavia.NonceMismatch)


def test_an_attestation_of_another_image() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()
        other = enclavia.Pcrs(pcr0=b"\x11" * 48, pcr1=b"\x22" * 48, pcr2=b"\x34" * 48)
        enclave.send_bytes(enclave.attestation(signed_document(enclave.hash, other)))

    error = refused(script, asked=True)
    check(error, enclavia.PcrMismatch)
    assert isinstance(error, enclavia.PcrMismatch)
    assert (error.index, error.expected, error.actual) == (2, b"\x33" * 48, b"\x34" * 48)
    assert not error.retryable


@pytest.mark.parametrize(
    ("document", "fragment"),
    [(b"", "empty"), (b"\x00" * 32, "expected"), (b"\xd2\x84", ""), (b"x" * 60, "CBOR")],
    ids=["empty", "hash-sized", "cut", "text"],
)
def test_an_attestation_that_is_no_document(document: bytes, fragment: str) -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()
        enclave.send_bytes(enclave.attestation(document))

    error = refused(script, asked=True)
    check(error, enclavia.DocumentError, fragment)
    assert not error.retryable


def test_a_bare_hash_is_for_debug_mode_only() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()
        enclave.send_bytes(enclave.attestation(enclave.hash))

    check(refused(script, asked=True), enclavia.DocumentError, "expected")


def test_a_debug_enclave_must_still_name_this_channel() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()
        enclave.send_bytes(enclave.attestation(bytes(32)))

    with pytest.warns(enclavia.DebugModeWarning):
        error = refused(script, asked=True, debug_mode=True, pcrs=None, root=None)
    check(error, enclavia.NonceMismatch)


def test_stream_bytes_right_behind_the_attestation_belong_to_nobody() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.handshake()
        enclave.expect_attestation_request()
        early = enclave.attestation()
        enclave.send_bytes(early + enclave.record("StreamData", id=1, payload=b"early"))

    def run(peer: Peer) -> None:
        peer.upgrade()
        script(EnclavePeer(peer))
        peer.finish()

    def connect_and_open(url: str) -> None:
        channel = connect(url)
        assert eventually(lambda: channel.closed)
        channel.open_stream(SECRET)

    with RawServer(run) as server, pytest.raises(enclavia.ProtocolError, match="for id 1"):
        connect_and_open(server.url)


# messages to an open channel


def failure_of(script: Callable[[EnclavePeer], None]) -> enclavia.EnclaviaError:
    """What a stream's reader says; the channel must be closed by it."""
    server, channel = opened(script)
    with server, channel:
        stream = channel.open_stream(b"go")
        with pytest.raises(enclavia.EnclaviaError) as caught:
            stream.readall()
        assert channel.closed
        with pytest.raises(type(caught.value)):
            channel.open_stream()
    return caught.value


def test_an_attestation_nobody_asked_for() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send_bytes(enclave.attestation())

    error = failure_of(script)
    check(error, enclavia.ProtocolError, "expected an Attestation only where it was asked for")
    assert not error.retryable


@pytest.mark.parametrize("issued", [0, 2, 64, 2**32, 2**64 - 1])
@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "Data", "payload": b"x"},
        {"kind": "StreamData", "payload": b"x"},
        {"kind": "StreamClose"},
        {"kind": "Error", "message": "you broke it"},
    ],
    ids=lambda fields: str(fields["kind"]),
)
def test_an_id_that_was_never_issued(fields: dict[str, Any], issued: int) -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send(**fields, id=issued)

    error = failure_of(script)
    check(error, enclavia.ProtocolError, "expected an id between 1 and 1", f"for id {issued}")
    if fields["kind"] == "Error":
        assert "you broke it" in str(error)
    assert not error.retryable


def test_more_after_stream_close() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("StreamClose", id=1)
        enclave.send("StreamData", id=1, payload=b"x")

    server, channel = opened(script)
    with server, channel:
        stream = channel.open_stream(b"go")
        assert stream.readall() == b"", "the stream itself had ended"
        assert eventually(lambda: channel.closed)
        with pytest.raises(enclavia.ProtocolError, match="after its StreamClose"):
            channel.open_stream()


def test_stream_close_twice() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("StreamClose", id=1)
        enclave.send("StreamClose", id=1)

    server, channel = opened(script)
    with server, channel:
        stream = channel.open_stream(b"go")
        assert stream.readall() == b""
        assert eventually(lambda: channel.closed)
        with pytest.raises(enclavia.ProtocolError, match="after its StreamClose"):
            channel.open_stream()


def test_one_shot_answers_for_a_stream_and_the_other_way_round() -> None:
    def data(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("Data", id=1, payload=b"x")

    check(failure_of(data), enclavia.ProtocolError, "for id 1, a stream; got Data")

    def stream_data(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("StreamData", id=1, payload=b"x")

    server, channel = opened(stream_data)
    with server, channel, pytest.raises(enclavia.ProtocolError, match="got StreamData"):
        channel.request(b"x")


def test_an_error_for_one_stream_is_that_streams_error() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("Error", id=1, message="workload: Connection refused \u20ac")
        enclave.serve_echo()

    server, channel = opened(script)
    with server, channel:
        stream = channel.open_stream(b"go")
        with pytest.raises(enclavia.ServerError) as caught:
            stream.read(10)
        assert caught.value.id == 1
        assert "Connection refused \u20ac" in str(caught.value)
        assert not caught.value.retryable
        with pytest.raises(enclavia.ServerError):
            stream.write(b"more")
        stream.close()
        assert channel.open_stream(b"next").read(10) == b"next"


def test_late_answers_for_a_closed_stream_are_dropped() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        closing = enclave.receive()
        assert (closing["type"], closing["half"]) == ("StreamClose", "Both")
        enclave.send("StreamData", id=1, payload=b"late")
        enclave.send("Error", id=1, message="unknown stream id")
        enclave.send("StreamClose", id=1)
        enclave.serve_echo()

    server, channel = opened(script)
    with server, channel:
        channel.open_stream(b"go").close()
        assert channel.open_stream(b"next").read(10) == b"next"


def test_an_error_with_a_long_text_is_cut() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("Error", id=1, message="\u20ac" * 20_000)

    server, channel = opened(script)
    with server, channel, pytest.raises(enclavia.ServerError) as caught:
        channel.open_stream(b"go").read(10)
    assert 100 < len(str(caught.value)) < 600


# frames

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
