"""A connection that leads nowhere any more is noticed; one that is only slow is not taken for it.

The peers are scripts on sockets, so that a ping is answered, or not, exactly as a case says.
"""

from __future__ import annotations

import math
import pickle
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from enclave_peer import PCRS, EnclavePeer, root
from raw_server import CLOSE, PING, PONG, TEXT, Peer, PeerGone, RawServer, frame
from support import KINDS, ByteServer, Connection, drive, keywords

import enclavia
from enclavia.testing import LocalEnclave

EVERY = 0.25
MIB = 2**20

Answer = Callable[[Peer, bytes], None]


def pong(peer: Peer, payload: bytes) -> None:
    peer.send(frame(PONG, payload))


def text(peer: Peer, payload: bytes) -> None:
    peer.send(frame(TEXT, b"here"))


def nothing(peer: Peer, payload: bytes) -> None:
    pass


def opened(peer: Peer) -> tuple[EnclavePeer, int]:
    """A verified connection with one open stream."""
    enclave = EnclavePeer(peer)
    peer.upgrade()
    enclave.open()
    return enclave, enclave.receive()["id"]


def await_pings(peer: Peer, count: int, answer: Answer) -> None:
    while count:
        opcode, payload = peer.read_frame()
        if opcode == CLOSE:
            raise PeerGone("close frame")
        if opcode == PING:
            answer(peer, payload)
            count -= 1


def connect(server: RawServer, **options: Any) -> enclavia.Channel:
    return enclavia.Channel.connect(
        server.url, pcrs=PCRS, root=root(), **{"timeout": None, "keepalive": EVERY, **options}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_that_is_silent_is_given_up(kind: str) -> None:
    def script(peer: Peer) -> None:
        opened(peer)
        await_pings(peer, 1, nothing)
        peer.finish()

    async def case() -> None:
        config: dict[str, Any] = {"pcrs": PCRS, "root": root(), "timeout": None, "keepalive": EVERY}

        async def read() -> None:
            if kind == "sync":
                with enclavia.Channel.connect(server.url, **config) as channel:
                    channel.open_stream(b"x").read(1)
            else:
                async with enclavia.AsyncChannel.connect(server.url, **config) as channel:
                    stream = await channel.open_stream(b"x")
                    await stream.read(1)

        with pytest.raises(
            enclavia.ConnectionClosed, match=r"sign of life within 0\.25 s"
        ) as caught:
            await read()
        assert caught.value.retryable

    with RawServer(script) as server:
        drive(kind, case)


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_without_a_read_timeout_ends(kind: str) -> None:
    """A router that takes everything and passes nothing on any more: TCP is content with it."""

    def script(peer: Peer) -> None:
        opened(peer)
        peer.finish()

    async def case() -> None:
        options: dict[str, Any] = {
            "pcrs": PCRS, "root": root(), "timeout": None, "keepalive": EVERY, "retries": 0
        }  # fmt: skip

        async def get() -> None:
            if kind == "sync":
                with enclavia.Client(server.url, **options) as client:
                    client.get("/")
            else:
                async with enclavia.AsyncClient(server.url, **options) as client:
                    await client.get("/")

        with pytest.raises(enclavia.ConnectionClosed, match="leads nowhere any more") as caught:
            await get()
        assert caught.value.retryable

    with RawServer(script) as server:
        drive(kind, case)


@pytest.mark.parametrize("answer", [pong, text])
def test_any_byte_is_a_sign_of_life(answer: Answer) -> None:
    def script(peer: Peer) -> None:
        enclave, number = opened(peer)
        await_pings(peer, 4, answer)
        enclave.send("StreamData", id=number, payload=b"after all")
        peer.finish()

    with RawServer(script) as server, connect(server) as channel:
        assert channel.open_stream(b"x").read(100) == b"after all"


def test_none_asks_for_nothing() -> None:
    def script(peer: Peer) -> None:
        enclave, number = opened(peer)
        time.sleep(6 * EVERY)
        enclave.send("StreamData", id=number, payload=b"never asked")
        peer.finish()

    with RawServer(script) as server:
        with connect(server, keepalive=None) as channel:
            assert channel.open_stream(b"x").read(100) == b"never asked"
        server.wait_done()
        assert PING not in {opcode for opcode, _ in server.peer.messages}


def test_a_reader_that_pauses_is_not_taken_for_a_dead_peer() -> None:
    """While the client does not read it sees no pong either."""
    sent = bytes(range(256)) * (4 * MIB // 256)

    def script(peer: Peer) -> None:
        enclave, number = opened(peer)
        for at in range(0, len(sent), 16384):
            enclave.send("StreamData", id=number, payload=sent[at : at + 16384])
        enclave.send("StreamClose", id=number)
        peer.finish()

    with RawServer(script) as server, connect(server) as channel:
        stream = channel.open_stream(b"x")
        time.sleep(8 * EVERY)
        got = bytearray()
        while data := stream.read(65536):
            got += data
        assert got == sent


@pytest.mark.parametrize("stop", [True, False], ids=["not at all", "slowly"])
def test_a_peer_that_reads_slowly_is_not_taken_for_a_dead_one(stop: bool) -> None:
    """The ping waits behind the upload, and no answer to it can come before it was read."""
    body = bytes(6 * MIB)
    ended = threading.Event()

    def script(peer: Peer) -> None:
        enclave, number = opened(peer)
        got = len(b"x")
        until = time.monotonic() + 8 * EVERY
        while time.monotonic() < until:  # the peer's buffers and the client's are full by then
            if not stop:
                peer.socket.recv(1, socket.MSG_PEEK)
                got += len(enclave.receive()["payload"])
            time.sleep(EVERY / 5)
        while got < len(body) + 1:
            got += len(enclave.receive()["payload"])
        enclave.send("StreamData", id=number, payload=b"all of it")
        ended.wait(20)

    with RawServer(script) as server, connect(server) as channel:
        stream = channel.open_stream(b"x")
        stream.write(body)
        assert stream.read(100) == b"all of it"
        ended.set()


def test_an_idle_stream_through_a_local_enclave_stays() -> None:
    """Its server answers pings, as the router does; the workload sees nothing of them."""
    seen: list[bytes] = []

    def script(connection: Connection) -> None:
        seen.append(connection.read(5))
        connection.send(b"still here")
        connection.wait_closed()

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:
        options = {**keywords(enclave), "keepalive": EVERY, "timeout": 20}
        with enclavia.Channel.connect(enclave.url, **options) as channel:
            stream = channel.open_stream(b"")
            before = channel.stats["records_out"], channel.stats["bytes_in"]
            time.sleep(8 * EVERY)
            after = channel.stats["records_out"], channel.stats["bytes_in"]
            assert after[0] == before[0]
            assert after[1] > before[1]  # pongs
            stream.write(b"hello")
            assert stream.read(100) == b"still here"
    assert seen == [b"hello"]


def test_a_ping_does_not_keep_an_enclave_from_ending_an_idle_connection() -> None:
    with (
        LocalEnclave("127.0.0.1:1", idle_timeout=4 * EVERY) as enclave,
        enclavia.Channel.connect(enclave.url, **keywords(enclave), keepalive=EVERY / 2) as channel,
    ):
        until = time.monotonic() + 20
        while channel._core.state == "open" and time.monotonic() < until:
            time.sleep(0.02)
        assert channel._core.state == "closed"
        assert "sign of life" not in str(channel._core.error)


@pytest.mark.parametrize("value", [True, "20", b"", [], 1j])
def test_no_number_of_seconds(value: Any) -> None:
    with pytest.raises(TypeError, match="keepalive: expected a number of seconds or None"):
        enclavia.Client("wss://e.example", pcrs=PCRS, keepalive=value)


@pytest.mark.parametrize("value", [0, 0.0, -1, -math.inf, math.inf, math.nan, 86_401])
def test_no_possible_number_of_seconds(value: float) -> None:
    with pytest.raises(ValueError, match="keepalive: expected more than 0 and at most 86400"):
        enclavia.AsyncClient("wss://e.example", pcrs=PCRS, keepalive=value)


def test_what_is_possible_is_kept_by_a_pickled_client() -> None:

    for value, kept in [(None, 0), (1e-9, 1), (0.5, 500), (20, 20_000), (86_400, 86_400_000)]:
        client = enclavia.Client("wss://e.example", pcrs=PCRS, keepalive=value)
        again = pickle.loads(pickle.dumps(client._transport))
        assert again._settings.config.keepalive_ms == kept


def test_the_default_is_on() -> None:
    client = enclavia.Client("wss://e.example", pcrs=PCRS)
    assert client._transport._settings.config.keepalive_ms == 20_000
