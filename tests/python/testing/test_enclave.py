"""The local enclave against an independent client in plain Python: that it speaks the contract,
and behaves like the real server where that is not kind to its clients."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from plain_client import PlainClient, ProtocolViolation, RequestFailed, encode
from raw_workload import RawWorkload, reset
from support import HANG, kernel_buffers
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from enclavia.testing import Fault, LocalEnclave

CHUNK = 16384
SLOTS = 64
SOON = HANG
LISTENS = "0A"  # a socket's state in /proc/net/tcp


def eventually(condition: Callable[[], bool], seconds: float = SOON) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def settle(value: Callable[[], Any], quiet: float = 0.3) -> Any:
    """The value, once it has not changed for a while."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < quiet:
        time.sleep(0.02)
        now = value()
        if now != last:
            last, since = now, time.monotonic()
    return last


def enclave_for(workload: RawWorkload, **options: Any) -> LocalEnclave:
    options = {"mode": "debug"} | options
    return LocalEnclave(workload.address, **options)


@pytest.fixture
def echoing() -> Iterator[RawWorkload]:
    with RawWorkload() as workload:
        yield workload


@pytest.fixture
def enclave(echoing: RawWorkload) -> Iterator[LocalEnclave]:
    with enclave_for(echoing) as running:
        yield running


@pytest.fixture
def client(enclave: LocalEnclave) -> Iterator[PlainClient]:
    with PlainClient.connect(enclave.url) as connected:
        yield connected


# ---- attestation


def cose_parts(document: bytes) -> tuple[bytes, dict[str, Any], bytes]:
    cose = cbor2.loads(document)
    protected, _, payload, signature = cose.value if isinstance(cose, cbor2.CBORTag) else cose
    assert cbor2.loads(protected) == {1: -35}
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    return signed, cbor2.loads(payload), signature


def check_signature(document: bytes) -> None:
    signed, payload, signature = cose_parts(document)
    key = x509.load_der_x509_certificate(payload["certificate"]).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = signature[:48], signature[48:]
    pair = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    key.verify(pair, signed, ec.ECDSA(hashes.SHA384()))


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
    assert eventually(lambda: enclave.stats()["slots_open"] == 0)


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
        assert eventually(lambda: enclave.stats()["slots_open"] == 0)


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
        assert eventually(lambda: enclave.stats()["slots_open"] == 0)
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
    assert eventually(lambda: enclave.stats()["protocol_errors"] == 1)


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
        assert eventually(lambda: enclave.stats()["slots_open"] == 0)
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
        assert eventually(lambda: enclave.stats()["slots_open"] == 0)
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
            self.opened.wait(SOON)
            connection.sendall(b"pushed")
        elif word == b"one shot":
            self.opened.wait(SOON)
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
            gate.spoken.get(timeout=SOON)
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
            client.receive(SOON)


def test_requests_do_not_keep_a_connection_open() -> None:
    closed = threading.Event()
    with (
        RawWorkload(lambda connection: closed.wait(SOON) and None) as workload,
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
        LocalEnclave(f"127.0.0.1:{port}", mode="debug", workload_grace=3 * SOON) as enclave,
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
        assert eventually(lambda: enclave.stats()["slots_open"] == 0)


# ---- back-pressure


def test_a_client_that_does_not_read_stops_the_workloads() -> None:
    block = os.urandom(1024 * 1024)
    # Our own WebSocket library and the kernel hold some; the enclave adds little.
    most = kernel_buffers("wmem") + 8 * len(block)
    size = most + 8 * len(block)

    def flood(connection: socket.socket) -> None:
        for _ in range(size // len(block)):
            connection.sendall(block)

    with (
        contextlib.ExitStack() as stack,
        RawWorkload(flood) as workload,
        enclave_for(workload) as enclave,
        socket.socket() as small,
    ):
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        small.connect(("127.0.0.1", enclave.port))
        client = stack.enter_context(PlainClient.connect(enclave.url, sock=small))
        streams = [client.open_stream() for _ in range(2)]
        taken = settle(lambda: enclave.stats()["bytes_from_workload"])
        assert taken < most
        assert client.read_exactly(streams[1], len(block)) == block
        assert eventually(lambda: enclave.stats()["bytes_from_workload"] > taken)


def test_a_workload_that_does_not_read_stops_the_client() -> None:
    go = threading.Event()
    received = bytearray()

    def lazy(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        go.wait(SOON)
        while data := connection.recv(1024 * 1024):
            received.extend(data)

    # The test bounds what the workload takes; what the kernel takes of both connections is the
    # machine's. An enclave that never stopped reading would let the client write all the chunks.
    chunk = os.urandom(1024 * 1024)
    most = kernel_buffers("wmem") + len(chunk)
    chunks = (most + kernel_buffers("wmem") + kernel_buffers("rmem")) // len(chunk) + 1
    written = 0
    with (
        RawWorkload(lazy) as workload,
        enclave_for(workload) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        stream = client.open_stream()

        def upload() -> None:
            nonlocal written
            while written < chunks and not go.is_set():
                client.write_stream(stream, chunk)
                written += 1
            client.close_stream(stream)

        writer = threading.Thread(target=upload, daemon=True)
        writer.start()
        taken, _ = settle(lambda: (enclave.stats()["bytes_to_workload"], written), 1.0)
        assert taken < most
        assert writer.is_alive()
        assert written < chunks
        go.set()
        writer.join(SOON)
        # Both came while much was unwritten: the slot is held until all is written.
        assert eventually(lambda: enclave.stats()["slots_open"] == 0)
        assert eventually(lambda: len(received) == written * len(chunk))
        assert received == chunk * written


def in_kernel(port: int) -> int:
    """Bytes that the kernel holds of what is sent to a port of loopback: sent or not, and not read
    (proc_net_tcp(5))."""
    local = f"0100007F:{port:04X}"
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, ours, theirs, state, queues, *_ = line.split()
        to_send, to_read = (int(part, 16) for part in queues.split(":"))
        if state != LISTENS and local in (ours, theirs):
            total += to_read if ours == local else to_send
    return total


def test_what_was_written_before_a_both_reaches_a_slow_workload() -> None:
    """The workload's kernel takes no more, and some waits in the enclave itself, when the client
    says that the stream is over. How much a kernel takes, and when, is the machine's matter: it is
    looked at, not assumed."""
    half_of_what_may_wait = 128 * 1024
    piece = os.urandom(CHUNK - 64)

    def some_waited(
        workload: RawWorkload, enclave: LocalEnclave, client: PlainClient, go: threading.Event
    ) -> bool:
        """Whether any of it waited in the enclave when the end was read."""
        stream = client.open_stream()
        assert eventually(lambda: workload.accepted == 1)
        sent = 0

        def waiting() -> int:
            return sent - in_kernel(workload.port)

        while waiting() < half_of_what_may_wait:
            client.write_stream(stream, piece)
            sent += len(piece)
            client.attest()  # it was read
        client.close_stream(stream)
        client.attest()
        found = waiting() > 0
        go.set()
        assert eventually(lambda: bool(received)), "the workload saw no end"
        assert received.pop() == sent
        assert eventually(lambda: enclave.stats()["slots_open"] == 0)
        return found

    received: list[int] = []  # bytes, by connection
    for _ in range(10):
        go = threading.Event()

        def lazy(connection: socket.socket, go: threading.Event = go) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            go.wait(SOON)
            count = 0
            while data := connection.recv(1024 * 1024):
                count += len(data)
            received.append(count)

        with (
            RawWorkload(lazy) as workload,
            enclave_for(workload) as enclave,
            PlainClient.connect(enclave.url) as client,
        ):
            if some_waited(workload, enclave, client, go):
                return
    pytest.fail("the kernel took everything ten times")


def test_nothing_is_lost_where_both_sides_have_closed_and_the_client_is_slow() -> None:
    size = 12 * 1024 * 1024
    data = os.urandom(size)

    def answer_at_the_end(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass
        connection.sendall(data)

    with (
        RawWorkload(answer_at_the_end) as workload,
        enclave_for(workload) as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        stream = client.open_stream(b"question")
        client.close_stream(stream, "Write")
        settle(lambda: enclave.stats()["bytes_from_workload"])
        assert client.read_stream(stream) == data


def test_a_client_that_asks_and_never_reads_is_not_read_for_ever(enclave: LocalEnclave) -> None:
    with PlainClient.connect(enclave.url) as client:

        def flood() -> None:
            with contextlib.suppress(ConnectionClosed):
                for _ in range(30_000):
                    client.send("RequestAttestation")

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        # Each answer is thirty times as long as its request.
        taken = settle(lambda: enclave.stats()["attestations_total"], 0.5)
        assert taken < 10_000
        enclave.drop_connections()
        thread.join(SOON)
        assert not thread.is_alive()


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
    message = client._websocket.recv(SOON)
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
    assert eventually(lambda: enclave.stats()["connections_open"] == 0)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("received", [1, 4, 30])
def test_half_record_lost(lost: bool, received: int) -> None:
    go = threading.Event()

    def push(connection: socket.socket) -> None:
        go.wait(SOON)
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
    assert eventually(lambda: enclave.stats()["slots_open"] == 3)


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
    assert eventually(lambda: enclave.stats()["protocol_errors"] == 1)
    assert eventually(lambda: enclave.stats()["slots_open"] == 0)


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
