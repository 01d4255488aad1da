"""Whatever a peer sends that holds the keys: memory is bounded, and nobody hangs."""

from __future__ import annotations

import contextlib
import gzip
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import cbor2
import pytest
from enclave_peer import EnclavePeer, connect
from raw_server import BINARY, CONTINUATION, PING, PONG, TEXT, Peer, PeerGone, RawServer, frame
from repository import SUPPORT
from resources import resident_kib
from support import HANG, answering, byte_enclave, keywords, ok

import enclavia

# csrc/base/rate.h
AT_ONCE = 10_000
MIB = 1024 * 1024
UNREAD_MAX = 15 * MIB


@contextlib.contextmanager
def hostile(script: Callable[[EnclavePeer], None]) -> Iterator[enclavia.Channel]:
    """A verified channel; ``script`` runs once the client has said something."""

    def run(peer: Peer) -> None:
        peer.upgrade()
        enclave = EnclavePeer(peer)
        enclave.open()
        peer.socket.settimeout(10)
        with contextlib.suppress(PeerGone, OSError):
            script(enclave)
        peer.finish()

    with RawServer(run) as server, connect(server.url) as channel:
        yield channel


def frames(*made: bytes) -> Callable[[EnclavePeer], None]:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        batch = b"".join(made) * 200
        while True:
            enclave.peer.send(batch)

    return script


def records(kind: str, late: bool, **fields: object) -> Callable[[EnclavePeer], None]:
    def script(enclave: EnclavePeer) -> None:
        message = enclave.receive()
        stream = message["id"]
        if late:
            while enclave.receive()["type"] != "OpenStream":
                pass
        while True:
            enclave.send_bytes(
                b"".join(enclave.record(kind, id=stream, **fields) for _ in range(200))
            )

    return script


FRAMES = {
    "pings": [frame(PING, b"x" * 125)],
    "pongs": [frame(PONG, b"")],
    "text": [frame(TEXT, b"x")],
    "long text": [frame(TEXT, b"x" * 60_000)],
    "empty messages": [frame(BINARY, b"")],
    "empty fragments": [
        frame(BINARY, b"", fin=False),
        frame(CONTINUATION, b"", fin=False),
        frame(CONTINUATION, b""),
    ],
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_carry_nothing(name: str) -> None:
    with hostile(frames(*FRAMES[name])) as channel:
        stream = channel.open_stream(b"go")
        stream.read_timeout = 15
        before = resident_kib()
        with pytest.raises(enclavia.ProtocolError, match="frames a second that carry nothing"):
            stream.read(1)
        assert resident_kib() - before < 16 * 1024


RECORDS = {
    "empty data": records("StreamData", late=False, payload=b""),
    "late errors": records("Error", late=True, message="x" * 100),
    "late closes": records("StreamClose", late=True),
    "late answers": records("Data", late=True, payload=b"x" * 100),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_carry_nothing(name: str) -> None:
    with hostile(RECORDS[name]) as channel:
        stream = channel.open_stream(b"go")
        if name != "empty data":
            stream.close()
            stream = channel.open_stream(b"go")
        stream.read_timeout = 15
        before = resident_kib()
        with pytest.raises(enclavia.ProtocolError, match="records a second that carry nothing"):
            stream.read(1)
        assert resident_kib() - before < 16 * 1024


def test_what_piled_up_is_taken() -> None:
    """An honest router's pings, of hours in which the connection was not read."""

    def script(enclave: EnclavePeer) -> None:
        message = enclave.receive()
        for _ in range(AT_ONCE // 2 // 100):
            enclave.peer.send(frame(PING, b"now") * 100)
        enclave.send("StreamData", id=message["id"], payload=b"answer")
        enclave.receive()

    with hostile(script) as channel:
        assert channel.open_stream(b"go").read(6) == b"answer"


def test_an_end_that_crossed_ours_is_no_flood() -> None:
    """A workload that closes each connection brings one late end for each, however many there are
    in a second: as many as records were sent are not counted."""
    sent = 3_000

    def script(enclave: EnclavePeer) -> None:
        stream = enclave.receive()["id"]
        for _ in range(sent):
            enclave.receive()
        empty = [
            enclave.record("StreamData", id=stream, payload=b"") for _ in range(AT_ONCE + sent)
        ]
        enclave.send_bytes(b"".join(empty))
        enclave.send("StreamData", id=stream, payload=b"answer")
        enclave.receive()

    with hostile(script) as channel:
        stream = channel.open_stream(b"go")
        for _ in range(sent):
            stream.write(b"x")
        assert stream.read(6) == b"answer"


def test_unasked_attestations_end_the_connection() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send_bytes(enclave.attestation())
        enclave.receive()

    with hostile(script) as channel:
        stream = channel.open_stream(b"go")
        with pytest.raises(enclavia.ProtocolError, match="only where it was asked for"):
            stream.read(1)


@pytest.mark.parametrize("late", [False, True])
def test_as_much_data_as_the_peer_can_send(late: bool) -> None:
    """For a stream that is not read, and for one that was given up. Who waits is not hung: its own
    deadline passes, or the stream that nobody reads is ended."""
    sent = 0
    enough = threading.Event()

    def script(enclave: EnclavePeer) -> None:
        nonlocal sent
        first = enclave.receive()["id"]
        while enclave.receive()["type"] != "OpenStream":
            pass
        size = 16_000
        data = cbor2.dumps({"type": "StreamData", "id": first, "payload": [0] * size})
        while not enough.is_set():
            enclave.send_bytes(b"".join(enclave.sealed(data) for _ in range(10)))
            sent += 10 * size

    with hostile(script) as channel:
        flooded = channel.open_stream(b"go")
        if late:
            flooded.close()
        before = resident_kib()
        waiting = channel.open_stream(b"go")
        waiting.read_timeout = 0.2
        most = rounds = 0
        while rounds < 15 or sent <= UNREAD_MAX:
            rounds += 1
            with pytest.raises(enclavia.ReadTimeout):
                waiting.read(1)
            most = max(most, resident_kib() - before)
            assert rounds < 5 * HANG, "the peer sends no more"
        enough.set()
        assert most < (3 * UNREAD_MAX // 1024 if not late else 16 * 1024), f"{most} KiB"


def test_much_right_behind_the_101() -> None:
    """It came before the handshake, so it can only be wrong; none of it is gathered."""

    piece = frame(BINARY, b"x" * 60_000)

    def script(peer: Peer) -> None:
        with contextlib.suppress(PeerGone, OSError):
            peer.upgrade(behind=piece)
            while True:
                peer.send(piece)
        peer.finish()

    with RawServer(script) as server:
        before = resident_kib()
        with pytest.raises(enclavia.ProtocolError, match="handshake answer"):
            connect(server.url)
        assert resident_kib() - before < 4 * 1024


HEADS = {
    "one long header": b"Server: " + b"x" * 200_000 + b"\r\n",
    "one long unknown header": b"X-Unknown: " + b"x" * 200_000 + b"\r\n",
    "many headers": b"Server: x\r\nDate: y\r\n" * 10_000,
    "many unknown headers": b"X-Unknown: x\r\n" * 20_000,
}


@pytest.mark.parametrize("name", HEADS)
def test_an_endless_answer_to_the_upgrade(name: str) -> None:
    """Nothing of it is kept beyond a few KiB, and the deadline for connecting covers it."""

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.socket.settimeout(10)
        with contextlib.suppress(PeerGone, OSError):
            peer.send(b"HTTP/1.1 101 Switching Protocols\r\n")
            while True:
                peer.send(HEADS[name])
        peer.finish()

    with RawServer(script) as server:
        before = resident_kib()
        with pytest.raises((enclavia.ConnectTimeout, enclavia.ProtocolError)):
            connect(server.url, timeout=2)
        assert resident_kib() - before < 4 * 1024


def test_decoding_of_a_stream_is_bounded() -> None:
    """A gzip bomb, 1 : 1000, read piece by piece: what is decoded at once is httpx2's to bound."""
    bomb = gzip.compress(bytes(128 * MIB), 9)
    answer = ok(bomb, extra=b"Content-Encoding: gzip\r\n")
    with (
        byte_enclave(answering(answer)) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
        client.stream("GET", "/") as response,
    ):
        before = resident_kib()
        total = most = 0
        for piece in response.iter_bytes():
            total += len(piece)
            most = max(most, resident_kib() - before)
            if total > 100 * MIB:
                break
        assert most < 64 * 1024, f"{most} KiB"


# The loops' tables are made while the process may open 48 files. Then it may open more, and has
# files of its own with low numbers: those of the connections are higher than the tables are long.
RAISED_LIMIT = """
import os, resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (48, hard))
import enclavia
from enclavia.testing import LocalEnclave

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

def opened(count):
    return [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]

with LocalEnclave(app, max_connections=100) as enclave:
    keywords = {"pcrs": enclave.pcrs, "root": enclave.root, "timeout": 10}
    enclavia.Channel.connect(enclave.url, **keywords).close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    ours = opened(100)
    enclavia.Channel.connect(enclave.url, **keywords).close()
    channels, refused = [], 0
    while refused < 3 and len(channels) < 60:
        try:
            channels.append(enclavia.Channel.connect(enclave.url, **{**keywords, "timeout": 2}))
        except (enclavia.ConnectError, enclavia.ConnectTimeout, enclavia.ConnectionClosed):
            refused += 1
    ours += opened(20)
    for channel in channels:
        channel.close()
    with enclavia.Client(enclave.url, **keywords) as client:
        answer = client.get("/").text
    ours += opened(100)
for fd in ours:
    os.fstat(fd)
print(answer, len(channels) > 2, refused)
"""


@pytest.mark.skipif(
    1024 > resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 0, reason="no room for descriptors"
)
def test_a_limit_on_open_files_that_is_raised_later() -> None:
    """Connections with higher numbers work. Where a loop watches all that it can, further ones fail
    in time, and no descriptor of another is closed: not then, and not when the enclave stops."""
    ended = subprocess.run(
        [sys.executable, "-c", RAISED_LIMIT],
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.stdout == "ok True 3\n", ended.stderr


# Every channel is watched twice, so some fit and 30 do not.
LITTLE_ROOM = """
import resource
import enclavia
from enclavia.testing import LocalEnclave

workload = "wsgiref.simple_server:demo_app"
with LocalEnclave(workload, in_process=False, max_connections=50) as enclave:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, hard))
    keywords = {"pcrs": enclave.pcrs, "root": enclave.root, "timeout": 10}
    enclavia.Channel.connect(enclave.url, **keywords).close()  # here its loop is made
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    channels = []
    try:
        for _ in range(30):
            channels.append(enclavia.Channel.connect(enclave.url, **keywords))
    except Exception as error:
        print(type(error).__name__, error.retryable, error)
    channels.pop().close()
    enclavia.Channel.connect(enclave.url, **keywords).close()
    print(len(channels) > 2)
"""


@pytest.mark.skipif(
    1024 > resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 0, reason="no room for descriptors"
)
def test_a_process_that_watches_all_that_it_can_is_told_of_its_limit() -> None:
    """It is no lack of memory, and it ends when a channel does."""
    ended = subprocess.run(
        [sys.executable, "-c", LITTLE_ROOM], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    said, went_on = ended.stdout.splitlines()
    assert said.startswith("ConnectError True no room for another connection: ")
    assert "(RLIMIT_NOFILE, ulimit -n)" in said
    assert went_on == "True"
