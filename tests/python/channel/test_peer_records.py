"""A peer that breaks a rule of records, or of the messages before it is verified."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from enclave_peer import EnclavePeer, connect, signed_document
from raw_server import (
    CLOSE,
    Peer,
    PeerGone,
    RawServer,
    close_payload,
    frame,
)
from rule_breaker import ASK, SECRET, check, opened, refused
from support import eventually

import enclavia

pytestmark = pytest.mark.usefixtures("warm", "nothing_left")


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
        eventually(lambda: channel.closed)
        channel.open_stream(SECRET)

    with RawServer(run) as server, pytest.raises(enclavia.ProtocolError, match="for id 1"):
        connect_and_open(server.url)
