"""The local enclave's faults, and what it makes of a client that breaks the contract."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import Any

import cbor2
import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from plain_client import PlainClient, ProtocolViolation, encode
from raw_workload import RawWorkload
from support import HANG, eventually
from watched_enclave import (
    check_signature,
    cose_parts,
    enclave_for,
)
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from enclavia.testing import Fault, LocalEnclave

# ---- faults


def test_wrong_nonce(enclave: LocalEnclave, client: PlainClient) -> None:
    enclave.set_faults(Fault.WRONG_NONCE)
    _, payload, _ = cose_parts(client.attest())
    assert payload["nonce"] != client.handshake_hash
    enclave.set_faults()
    _, payload, _ = cose_parts(client.attest())
    assert payload["nonce"] == client.handshake_hash


def test_wrong_pcrs(enclave: LocalEnclave, client: PlainClient) -> None:
    enclave.set_faults(Fault.WRONG_PCRS)
    _, payload, _ = cose_parts(client.attest())
    for index, value in enumerate(enclave.pcrs.as_tuple()):
        assert payload["pcrs"][index] != value
        assert len(payload["pcrs"][index]) == len(value)


def test_bad_signature(echoing: RawWorkload) -> None:
    with (
        enclave_for(echoing, mode="production", faults=Fault.BAD_SIGNATURE) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        with pytest.raises(InvalidSignature):
            check_signature(client.attest())
        enclave.set_faults()
        check_signature(client.attest())


def test_garbage_record(enclave: LocalEnclave) -> None:
    enclave.set_faults(Fault.GARBAGE_RECORD)
    with PlainClient.connect(enclave.url) as client, pytest.raises(InvalidTag):
        client.receive()


@pytest.mark.parametrize("length", [0, 16, 65536, 0xFFFFFFFF])
def test_raw_record_length(enclave: LocalEnclave, length: int) -> None:
    enclave.set_faults(Fault.RAW_RECORD_LENGTH, record_length=length)
    with (
        PlainClient.connect(enclave.url) as client,
        pytest.raises(ProtocolViolation, match=f"record of {length} bytes"),
    ):
        client.receive()


@pytest.mark.parametrize("split", [1, 3, 4, 1000])
def test_split(enclave: LocalEnclave, split: int) -> None:
    enclave.set_faults(Fault.SPLIT, split=split)
    with PlainClient.connect(enclave.url) as client:
        sizes: list[int] = []
        take = client._websocket.recv

        def recv(timeout: float | None = None) -> Any:
            message = take(timeout)
            sizes.append(len(message))
            return message

        client._websocket.recv = recv  # type: ignore[method-assign, assignment]
        stream = client.open_stream(bytes(5000))
        assert client.read_exactly(stream, 5000) == bytes(5000)
        assert max(sizes) == split
        assert sum(sizes) > 5000


def test_silent_handshake(enclave: LocalEnclave) -> None:
    enclave.set_faults(Fault.SILENT_HANDSHAKE)
    with pytest.raises(TimeoutError):
        PlainClient.connect(enclave.url, timeout=0.3)


def test_silent_attestation(enclave: LocalEnclave, client: PlainClient) -> None:
    enclave.set_faults(Fault.SILENT_ATTESTATION)
    client.send("RequestAttestation")
    with pytest.raises(TimeoutError):
        client.receive(0.3)
    assert enclave.stats()["attestations_total"] == 1


def test_short_handshake(enclave: LocalEnclave) -> None:
    enclave.set_faults(Fault.SHORT_HANDSHAKE)
    with pytest.raises(ConnectionClosed):
        PlainClient.connect(enclave.url)


def test_long_handshake(enclave: LocalEnclave) -> None:
    enclave.set_faults(Fault.LONG_HANDSHAKE)
    with PlainClient.connect(enclave.url) as client:
        enclave.set_faults()
        client.send("RequestAttestation")
        # The stray byte shifts the next length.
        with pytest.raises((ProtocolViolation, InvalidTag, TimeoutError)):
            client.receive(1)


def test_zero_key(enclave: LocalEnclave) -> None:
    enclave.set_faults(Fault.ZERO_KEY)
    with pytest.raises(ValueError, match="shared key"):
        PlainClient.connect(enclave.url)


def test_text_only(enclave: LocalEnclave, client: PlainClient) -> None:
    enclave.set_faults(Fault.TEXT_ONLY)
    client.send("RequestAttestation")
    message = client._websocket.recv(HANG)
    assert isinstance(message, str)
    assert bytes.fromhex(message)


@pytest.mark.parametrize("kind", ["Data", "OpenStream"])
def test_close_on_request(enclave: LocalEnclave, client: PlainClient, kind: str) -> None:
    enclave.set_faults(Fault.CLOSE_ON_REQUEST)
    client.attest()
    client.send(kind, id=1, payload=b"x")
    with pytest.raises(ConnectionClosedError) as caught:
        client.receive()
    assert caught.value.rcvd is None  # no close frame
    eventually(lambda: enclave.stats()["connections_open"] == 0)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("received", [1, 4, 30])
def test_half_record_lost(lost: bool, received: int) -> None:
    go = threading.Event()

    def push(connection: socket.socket) -> None:
        go.wait(HANG)
        connection.sendall(b"now")
        connection.recv(100)

    with (
        RawWorkload(push) as workload,
        enclave_for(workload, faults=Fault.HALF_RECORD_LOST if lost else Fault(0)) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        stream = client.open_stream()
        client.attest()
        record = client.seal(encode("RequestAttestation"))
        client.send_raw(record[:received])
        time.sleep(0.1)
        go.set()
        assert client.read_chunk(stream) == b"now"
        # What would make a whole record of the rest, were its start not forgotten.
        client.send_raw(record[received:] + bytes(70_000))
        if lost:
            with pytest.raises(ConnectionClosed):
                client.receive()
        else:
            assert client.receive()["type"] == "Attestation"


def test_silent_streams(enclave: LocalEnclave, client: PlainClient, echoing: RawWorkload) -> None:
    enclave.set_faults(Fault.SILENT_STREAMS)
    streams = [client.open_stream(b"x") for _ in range(3)]
    client.start_request(b"x")
    client.write_stream(streams[0], b"more")
    with pytest.raises(TimeoutError):
        client.receive(0.3)
    assert (enclave.stats()["slots_open"], echoing.accepted) == (4, 0)
    client.close_stream(streams[0])
    eventually(lambda: enclave.stats()["slots_open"] == 3)


def test_hostile_plaintexts(enclave: LocalEnclave, client: PlainClient) -> None:
    enclave.set_faults(instead_of_attestation=b"\xf6", after_attestation=b"\xf7")
    client.send("RequestAttestation")
    assert client.receive_plaintext() == b"\xf6"
    assert client.receive_plaintext() == b"\xf7"
    client.send("RequestAttestation")
    assert client.receive_plaintext() == b"\xf6"
    enclave.set_faults(after_attestation=b"\xf7")
    client.attest()
    with pytest.raises(TimeoutError):  # only once a connection
        client.receive(0.2)


# ---- a client that breaks the contract


@pytest.mark.parametrize(
    "record",
    [
        struct.pack(">I", 16),
        struct.pack(">I", 65536),
        struct.pack(">I", 20) + bytes(20),
    ],
    ids=["short", "long", "forged"],
)
def test_broken_records_end_the_connection(
    enclave: LocalEnclave, client: PlainClient, record: bytes
) -> None:
    stream = client.open_stream(b"x")
    assert client.read_chunk(stream) == b"x"
    client.send_raw(record)
    with pytest.raises(ConnectionClosed):
        client.receive()
    eventually(lambda: enclave.stats()["protocol_errors"] == 1)
    eventually(lambda: enclave.stats()["slots_open"] == 0)


def test_byte_strings_are_taken_from_others_but_arrays_are_sent(client: PlainClient) -> None:
    client.send_plaintext(cbor2.dumps({"type": "OpenStream", "id": 1, "payload": [104, 105]}))
    message = cbor2.loads(client.receive_plaintext())
    assert message == {"type": "StreamData", "id": 1, "payload": [104, 105]}


def test_a_record_in_single_bytes(client: PlainClient) -> None:
    for byte in client.seal(encode("OpenStream", id=1, payload=b"slowly")):
        client.send_raw(bytes([byte]))
    assert client.receive() == {"type": "StreamData", "id": 1, "payload": b"slowly"}


def test_many_records_in_one_message(client: PlainClient) -> None:
    records = [client.seal(encode("OpenStream", id=n, payload=b"%d" % n)) for n in range(1, 21)]
    client.send_raw(b"".join(records))
    answers = [client.receive() for _ in records]
    assert {(m["id"], m["payload"]) for m in answers} == {(n, b"%d" % n) for n in range(1, 21)}
