"""The local enclave where one side does not read, or reads late."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest
from plain_client import PlainClient
from raw_workload import RawWorkload
from support import HANG, eventually, kernel_buffers
from watched_enclave import (
    CHUNK,
    LISTENS,
    enclave_for,
    settle,
)
from websockets.exceptions import ConnectionClosed

from enclavia.testing import LocalEnclave


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
        eventually(lambda: enclave.stats()["bytes_from_workload"] > taken)


def test_a_workload_that_does_not_read_stops_the_client() -> None:
    go = threading.Event()
    received = bytearray()

    def lazy(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        go.wait(HANG)
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
        writer.join(HANG)
        # Both came while much was unwritten: the slot is held until all is written.
        eventually(lambda: enclave.stats()["slots_open"] == 0)
        eventually(lambda: len(received) == written * len(chunk))
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
        eventually(lambda: workload.accepted == 1)
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
        eventually(lambda: bool(received), what=["the workload saw no end"])
        assert received.pop() == sent
        eventually(lambda: enclave.stats()["slots_open"] == 0)
        return found

    received: list[int] = []  # bytes, by connection
    for _ in range(10):
        go = threading.Event()

        def lazy(connection: socket.socket, go: threading.Event = go) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            go.wait(HANG)
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
        thread.join(HANG)
        assert not thread.is_alive()
