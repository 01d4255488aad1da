"""The local enclave against an independent client in plain Python: that it speaks the contract,
and behaves like the real server where that is not kind to its clients."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time

import cbor2
import pytest
from cryptography import x509
from plain_client import PlainClient, RequestFailed
from raw_workload import RawWorkload, reset
from support import HANG, eventually
from watched_enclave import (
    CHUNK,
    SLOTS,
    check_signature,
    cose_parts,
    enclave_for,
)
from websockets.exceptions import ConnectionClosed

from enclavia.testing import LocalEnclave


@pytest.mark.parametrize("mode", ["production", "debug"])
def test_documents_are_made_for_the_channel(echoing: RawWorkload, mode: str) -> None:
    with (
        enclave_for(echoing, mode=mode) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        document = client.attest()
        _, payload, signature = cose_parts(document)
        assert payload["nonce"] == client.handshake_hash
        assert payload["user_data"] == client.control_nonce
        assert len(client.control_nonce) == 32
        assert payload["digest"] == "SHA384"
        assert abs(payload["timestamp"] / 1000 - time.time()) < 60
        assert [payload["pcrs"][i] for i in range(3)] == list(enclave.pcrs.as_tuple())
        if mode == "debug":
            assert enclave.root is None
            assert signature == bytes(96)
            return
        check_signature(document)
        assert enclave.root is not None
        root = x509.load_pem_x509_certificate(enclave.root)
        bundle = [x509.load_der_x509_certificate(der) for der in payload["cabundle"]]
        leaf = x509.load_der_x509_certificate(payload["certificate"])
        assert bundle[0] == root
        for above, below in zip(bundle, [*bundle[1:], leaf], strict=True):
            below.verify_directly_issued_by(above)


def test_stub_documents_are_the_handshake_hash(echoing: RawWorkload) -> None:
    with (
        enclave_for(echoing, mode="stub") as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        assert client.attest() == client.handshake_hash


def test_the_control_nonce_is_the_enclaves(enclave: LocalEnclave) -> None:
    with PlainClient.connect(enclave.url) as one, PlainClient.connect(enclave.url) as two:
        one.attest()
        two.attest()
        assert one.control_nonce == two.control_nonce
        assert one.handshake_hash != two.handshake_hash


# ---- streams


def test_bytes_go_both_ways_unchanged(client: PlainClient, enclave: LocalEnclave) -> None:
    data = os.urandom(1_000_003)
    stream = client.open_stream(data[:100])
    client.write_stream(stream, data[100:])
    assert client.read_exactly(stream, len(data)) == data
    assert max(client.chunk_sizes) <= CHUNK
    stats = enclave.stats()
    assert stats["bytes_to_workload"] == stats["bytes_from_workload"] == len(data)
    client.close_stream(stream)
    eventually(lambda: enclave.stats()["slots_open"] == 0)


def test_many_streams_do_not_mix(client: PlainClient) -> None:
    streams = [client.open_stream() for _ in range(SLOTS)]
    for stream in streams:
        client.write_stream(stream, b"<%d>" % stream * 100)
    for stream in reversed(streams):
        assert client.read_exactly(stream, len(b"<%d>" % stream) * 100) == b"<%d>" % stream * 100


def test_chunks_are_full_where_the_workload_is_ahead() -> None:
    with (
        RawWorkload(lambda connection: connection.sendall(bytes(64 * CHUNK))) as workload,
        enclave_for(workload) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        assert client.read_stream(client.open_stream()) == bytes(64 * CHUNK)
        assert max(client.chunk_sizes) == CHUNK


def test_the_slot_is_held_until_the_client_says_both() -> None:
    with (
        RawWorkload(lambda connection: connection.sendall(b"bye")) as workload,
        enclave_for(workload) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        stream = client.open_stream()
        assert client.read_stream(stream) == b"bye"
        assert enclave.stats()["slots_open"] == 1
        client.close_stream(stream, "Write")
        client.attest()  # all before it was read
        assert enclave.stats()["slots_open"] == 1
        client.close_stream(stream)
        eventually(lambda: enclave.stats()["slots_open"] == 0)


def test_write_shuts_down_after_what_was_written(client: PlainClient) -> None:
    data = os.urandom(300_000)
    stream = client.open_stream()
    client.write_stream(stream, data)
    client.close_stream(stream, "Write")
    assert client.read_stream(stream) == data  # the echo ended because it saw our end


def test_data_after_the_workload_is_gone_is_an_error() -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(100)
        reset(connection)

    with (
        RawWorkload(refuse) as workload,
        enclave_for(workload) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        stream = client.open_stream(b"hello")
        with pytest.raises(RequestFailed, match=r"[Rr]eset"):
            client.read_stream(stream)
        # An error frees the slot without a Both, and the id is unknown from then on.
        eventually(lambda: enclave.stats()["slots_open"] == 0)
        client.write_stream(stream, b"more")
        client._inboxes[stream].error = None
        with pytest.raises(RequestFailed, match="unknown stream id"):
            client.read_chunk(stream)


def test_unknown_ids_are_answered_or_ignored(client: PlainClient) -> None:
    client.send("StreamClose", id=77, half="Both")
    client.send("StreamData", id=78, payload=b"x")
    assert client.receive() == {"type": "Error", "id": 78, "message": "unknown stream id"}


@pytest.mark.parametrize("kind", ["GetControlNonce", "Control", "Nonsense"])
def test_messages_of_other_ports_end_the_connection(
    client: PlainClient, enclave: LocalEnclave, kind: str
) -> None:
    fields = {"payload": b"x", "signature": bytes(64)} if kind == "Control" else {}
    client.send(kind, **fields)
    with pytest.raises(ConnectionClosed):
        client.receive()
    eventually(lambda: enclave.stats()["protocol_errors"] == 1)


# ---- one shot


def test_one_shot_answers_are_whole() -> None:
    def answer(connection: socket.socket) -> None:
        request = connection.recv(100)
        for _ in range(10):
            connection.sendall(request)
            time.sleep(0.01)

    with (
        RawWorkload(answer) as workload,
        enclave_for(workload) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        numbers = [client.start_request(b"<%d>" % n) for n in range(20)]
        for n, number in enumerate(numbers):
            assert client.finish_request(number) == b"<%d>" % n * 10
        eventually(lambda: enclave.stats()["slots_open"] == 0)
        assert enclave.stats()["requests_total"] == 20


def overhead(payload_len: int) -> int:
    """Of a Data message around the elements of its payload."""
    return len(cbor2.dumps({"type": "Data", "id": 1, "payload": [0] * payload_len})) - payload_len


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False), (100_000, False)])
def test_an_answer_beyond_one_record_drops_the_connection(extra: int, fits: bool) -> None:
    size = 65519 - overhead(60000) + extra  # zeros take one byte each

    with (
        RawWorkload(lambda connection: connection.sendall(bytes(size))) as workload,
        enclave_for(workload) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        if fits:
            assert client.request(b"") == bytes(size)
        else:
            with pytest.raises(ConnectionClosed):
                client.request(b"")


def test_a_workload_that_never_ends_its_answer() -> None:
    def hang(connection: socket.socket) -> None:
        connection.sendall(b"begun")
        connection.recv(100)

    with (
        RawWorkload(hang) as workload,
        enclave_for(workload, one_shot_timeout=0.3) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        with pytest.raises(RequestFailed, match="300 ms"):
            client.request(b"")
        eventually(lambda: enclave.stats()["slots_open"] == 0)
        client.attest()


# ---- slots


class Gate:
    """A workload that says hello to those who send a word, and keeps all others waiting."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.spoken: queue.Queue[bytes] = queue.Queue()

    def __call__(self, connection: socket.socket) -> None:
        word = connection.recv(100)
        self.spoken.put(word)
        if word == b"push":
            self.opened.wait(HANG)
            connection.sendall(b"pushed")
        elif word == b"one shot":
            self.opened.wait(HANG)
            return
        elif word == b"65th":
            connection.sendall(b"hello")
        connection.recv(100)


def test_the_65th_waits_for_a_slot_and_responses_go_on() -> None:
    gate = Gate()
    with (
        RawWorkload(gate) as workload,
        enclave_for(workload) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        pushing = client.open_stream(b"push")
        for _ in range(SLOTS - 2):
            client.open_stream(b"wait")
        client.start_request(b"one shot")
        for _ in range(SLOTS):
            gate.spoken.get(timeout=HANG)
        late = client.open_stream(b"65th")
        client.send("RequestAttestation")  # behind it: not read either
        with pytest.raises(TimeoutError):
            client.receive(0.4)
        assert (enclave.stats()["slots_open"], workload.accepted) == (SLOTS, SLOTS)
        gate.opened.set()  # ends the one-shot request, which frees a slot
        awaited = {("StreamData", pushing), ("StreamData", late), ("Attestation", None)}
        while awaited:
            message = client.receive()
            awaited.discard((message["type"], message.get("id")))


def test_a_both_behind_the_65th_comes_too_late() -> None:
    gate = Gate()
    with (
        RawWorkload(gate) as workload,
        enclave_for(workload) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        streams = [client.open_stream(b"wait") for _ in range(SLOTS)]
        late = client.open_stream(b"65th")
        client.close_stream(streams[0])
        with pytest.raises(TimeoutError):  # the deadlock of the real server
            client.read_chunk(late, 0.4)
        assert enclave.stats()["slots_open"] == SLOTS


def test_a_both_before_the_65th_is_in_time() -> None:
    gate = Gate()
    with (
        RawWorkload(gate) as workload,
        enclave_for(workload) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        streams = [client.open_stream(b"wait") for _ in range(SLOTS)]
        client.close_stream(streams[0])
        assert client.read_exactly(client.open_stream(b"65th"), 5) == b"hello"


# ---- time


def test_idle_connections_are_closed(echoing: RawWorkload) -> None:
    idle = 0.5

    def attest_for(seconds: float, client: PlainClient) -> bool:
        """Whether it stayed open while something was said all the time. A machine that stood still
        for as long as a connection may be idle has shown nothing: False."""
        begun = before = time.monotonic()
        try:
            while time.monotonic() - begun < seconds:
                client.attest()  # counts as activity
                if time.monotonic() - before >= idle:
                    return False
                before = time.monotonic()
        except ConnectionClosed:
            if time.monotonic() - before < idle:
                raise
            return False
        return True

    for _ in range(10):
        with (
            enclave_for(echoing, idle_timeout=idle) as enclave,
            PlainClient.connect(enclave.url) as client,
        ):
            if not attest_for(3 * idle, client):
                continue
            with pytest.raises(ConnectionClosed):
                client.receive()
            assert enclave.stats()["protocol_errors"] == 0
            return
    pytest.fail("the machine stood still ten times")


def test_connections_with_a_stream_are_never_idle(echoing: RawWorkload) -> None:
    with (
        enclave_for(echoing, idle_timeout=1.0) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        stream = client.open_stream(b"x")
        assert client.read_chunk(stream) == b"x"
        time.sleep(2.0)
        client.write_stream(stream, b"y")
        assert client.read_chunk(stream) == b"y"
        client.close_stream(stream)
        with pytest.raises(ConnectionClosed):
            client.receive(HANG)


def test_requests_do_not_keep_a_connection_open() -> None:
    closed = threading.Event()
    with (
        RawWorkload(lambda connection: closed.wait(HANG) and None) as workload,
        enclave_for(workload, idle_timeout=0.2) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        with pytest.raises(ConnectionClosed):
            client.request(b"slow")
        closed.set()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_workload_that_boots_is_waited_for() -> None:
    port = free_port()
    with (
        LocalEnclave(f"127.0.0.1:{port}", mode="debug", workload_grace=3 * HANG) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        stream = client.open_stream(b"early")
        client.write_stream(stream, b" bird")
        time.sleep(0.3)
        with RawWorkload(port=port):
            assert client.read_exactly(stream, 10) == b"early bird"
        # Seen up once: a refusal is an error now, at once. Who waited for the workload once more
        # would wait for longer than this client does.
        with pytest.raises(RequestFailed, match="refused"):
            client.read_stream(client.open_stream(b"late"))


def test_a_workload_that_never_boots() -> None:
    with (
        LocalEnclave(f"127.0.0.1:{free_port()}", mode="debug", workload_grace=0.6) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        with pytest.raises(RequestFailed, match="refused"):  # and not the client's own time-out
            client.request(b"")
        eventually(lambda: enclave.stats()["slots_open"] == 0)
