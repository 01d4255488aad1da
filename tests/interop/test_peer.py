"""Our client against a Rust enclave built on the published protocol crate."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from enclavia import (
    AsyncClient,
    Channel,
    Client,
    ConnectionClosed,
    DebugModeWarning,
    EnclaviaError,
    PcrMismatch,
    Pcrs,
    ServerError,
    Stream,
)

from .harness import DEFAULT_SEED, Peer, WorkloadServer
from .workload import body_of

StartPeer = Callable[..., Peer]

MIB = 1024 * 1024
LIMIT = 60.0

pytestmark = pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")


def pcrs_of(seed: int) -> Pcrs:
    """The documents of the published test fixture: each PCR is one byte, 48 times."""
    values = [bytes([(seed + index) % 256]) * 48 for index in range(3)]
    return Pcrs(pcr0=values[0], pcr1=values[1], pcr2=values[2])


def client_for(peer: Peer) -> Client:
    return Client(peer.url, debug_mode=True, pcrs=pcrs_of(peer.seed), timeout=LIMIT)


def channel_to(peer: Peer) -> Channel:
    return Channel.connect(peer.url, debug_mode=True, pcrs=pcrs_of(peer.seed), timeout=LIMIT)


def raw_get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: enclave\r\nConnection: close\r\n\r\n".encode()


def body_from(raw: bytes) -> bytes:
    head, separator, body = raw.partition(b"\r\n\r\n")
    assert separator and head.startswith(b"HTTP/1.1 200"), head[:200]
    return body


def read_to_eof(stream: Stream) -> bytes:
    return b"".join(iter(lambda: stream.read(65536) or b"", b""))


def assert_echo(client: Client, body: bytes) -> None:
    response = client.post("/echo", content=body)
    assert response.status_code == 200
    assert response.content == body


def assert_retryable(error: BaseException | None) -> None:
    assert isinstance(error, EnclaviaError)
    assert error.retryable, f"{error!r} should say that it may be retried"


# --- connecting and attesting ------------------------------------------------------------------


def test_connects_verifies_and_gets(peer: Peer) -> None:
    with client_for(peer) as client:
        assert client.attestation.module_id == "test-module"
        response = client.get("/health")
    assert (response.status_code, response.text) == (200, "ok")


def test_debug_mode_warns(peer: Peer) -> None:
    with pytest.warns(DebugModeWarning), client_for(peer):
        pass


def test_a_fresh_document_at_any_time(peer: Peer) -> None:
    with channel_to(peer) as channel:
        for _ in range(3):
            assert channel.attest().module_id == "test-module"
            assert body_from(channel.request(raw_get("/health"))) == b"ok"


def test_wrong_pins_are_refused_for_good(start_peer: StartPeer) -> None:
    peer = start_peer(seed=DEFAULT_SEED + 1)
    with pytest.raises(PcrMismatch) as caught:
        Channel.connect(peer.url, debug_mode=True, pcrs=pcrs_of(DEFAULT_SEED), timeout=LIMIT)
    assert caught.value.index == 0
    assert not caught.value.retryable


def test_one_of_several_pins_is_enough(start_peer: StartPeer) -> None:
    peer = start_peer(seed=7)
    allowed = [pcrs_of(DEFAULT_SEED), pcrs_of(7)]
    with Client(peer.url, debug_mode=True, pcrs=allowed, timeout=LIMIT) as client:
        assert client.get("/health").text == "ok"


def test_the_stub_form_of_a_document(start_peer: StartPeer) -> None:
    peer = start_peer(stub=True)
    with Client(peer.url, debug_mode=True, timeout=LIMIT) as client:
        assert_echo(client, b"over a channel that only its hash binds")


def test_a_debug_document_is_no_good_in_production(peer: Peer) -> None:
    with pytest.raises(EnclaviaError) as caught:
        Channel.connect(peer.url, pcrs=pcrs_of(peer.seed), timeout=LIMIT)
    assert not caught.value.retryable


def test_extra_upgrade_headers(peer: Peer) -> None:
    headers = {"X-Enclave-Host": "0000.enclaves.example", "X-Other": "1"}
    with Client(
        peer.url,
        debug_mode=True,
        pcrs=pcrs_of(peer.seed),
        upgrade_headers=headers,
        timeout=LIMIT,
    ) as client:
        assert client.get("/health").text == "ok"


# --- requests ----------------------------------------------------------------------------------


def test_500_in_a_row_over_one_connection(peer: Peer) -> None:
    with client_for(peer) as client:
        for _ in range(500):
            assert client.get("/health").text == "ok"
    assert peer.stats()["accepted"] == 1


def test_200_from_8_threads(peer: Peer) -> None:
    with client_for(peer) as client, ThreadPoolExecutor(8) as pool:
        bodies = [n.to_bytes(4, "big") + os.urandom(n * 7) for n in range(200)]
        for future in [pool.submit(assert_echo, client, body) for body in bodies]:
            future.result(LIMIT)


def test_more_callers_than_the_enclave_has_slots(peer: Peer) -> None:
    """The 65th id would block the enclave's loop, answers included."""
    with client_for(peer) as client, ThreadPoolExecutor(100) as pool:
        waiting = [pool.submit(client.get, "/slow?seconds=0.3") for _ in range(150)]
        for future in waiting:
            assert future.result(LIMIT).text == "at last"


@pytest.mark.parametrize("size", [0, 1, 1000, 16_384, 16_385, 34_000, 65_519, 65_536, 300_000])
def test_bodies_of_any_size(peer: Peer, size: int) -> None:
    with client_for(peer) as client:
        assert_echo(client, os.urandom(size))


def test_10_mib_each_way(peer: Peer) -> None:
    with client_for(peer) as client:
        with client.stream("GET", f"/bytes/{10 * MIB}?seed=5") as response:
            digest = hashlib.sha256()
            for chunk in response.iter_bytes():
                digest.update(chunk)
            announced = response.headers["x-sha256"]
        assert digest.hexdigest() == announced

        def pieces() -> Iterator[bytes]:
            for seed in range(10):
                yield body_of(MIB, seed)

        answer = client.post("/sha256", content=pieces()).json()
    whole = b"".join(body_of(MIB, seed) for seed in range(10))
    assert answer == {"sha256": hashlib.sha256(whole).hexdigest(), "length": 10 * MIB}


def test_server_sent_events(peer: Peer) -> None:
    with client_for(peer) as client, client.stream("GET", "/sse?count=5") as response:
        data = [line for line in response.iter_lines() if line.startswith("data:")]
    assert data == [f"data: {n}" for n in range(5)]


def test_responses_left_unread_cost_no_slot(peer: Peer) -> None:
    with client_for(peer) as client:
        for _ in range(80):
            with client.stream("GET", f"/bytes/{MIB}") as response:
                assert response.status_code == 200
        assert client.get("/health").text == "ok"


def test_async_client(peer: Peer) -> None:
    async def run() -> list[str]:
        async with AsyncClient(
            peer.url, debug_mode=True, pcrs=pcrs_of(peer.seed), timeout=LIMIT
        ) as client:
            responses = await asyncio.gather(*(client.get("/health") for _ in range(50)))
            return [response.text for response in responses]

    assert asyncio.run(run()) == ["ok"] * 50


# --- streams and one-shot messages -------------------------------------------------------------


def test_one_shot_request(peer: Peer) -> None:
    with channel_to(peer) as channel:
        assert body_from(channel.request(raw_get("/bytes/20000?seed=3"))) == body_of(20_000, 3)


def test_one_shot_answer_that_fits_no_record(peer: Peer) -> None:
    with channel_to(peer) as channel, pytest.raises(ConnectionClosed) as caught:
        channel.request(raw_get("/bytes/100000"))
    assert_retryable(caught.value)


def test_raw_stream_download(peer: Peer) -> None:
    with channel_to(peer) as channel, channel.open_stream() as stream:
        stream.write(raw_get(f"/bytes/{10 * MIB}?seed=9"))
        assert body_from(read_to_eof(stream)) == body_of(10 * MIB, 9)


def test_raw_stream_upload(peer: Peer) -> None:
    body = body_of(10 * MIB, 4)
    head = f"POST /sha256 HTTP/1.1\r\nHost: e\r\nConnection: close\r\nContent-Length: {len(body)}"
    with channel_to(peer) as channel, channel.open_stream() as stream:
        stream.write(head.encode() + b"\r\n\r\n")
        stream.write(body)
        answer = body_from(read_to_eof(stream))
    assert hashlib.sha256(body).hexdigest().encode() in answer


def test_websocket_inside_a_stream(peer: Peer) -> None:
    protocol = ClientProtocol(parse_uri("ws://enclave/ws"))
    protocol.send_request(protocol.connect())
    message = os.urandom(50_000)
    events: list[object] = []
    with channel_to(peer) as channel, channel.open_stream() as stream:
        stream.write(b"".join(protocol.data_to_send()))
        while not any(isinstance(e, Frame) and e.opcode is Opcode.BINARY for e in events):
            data = stream.read(65536)
            assert data, "the workload hung up"
            protocol.receive_data(data)
            received = protocol.events_received()
            if not events and received:
                protocol.send_binary(message)
            events += received
            stream.write(b"".join(protocol.data_to_send()))
    frame = events[-1]
    assert isinstance(frame, Frame) and bytes(frame.data) == message


# --- how the bytes arrive ----------------------------------------------------------------------


@pytest.mark.parametrize("split", [1, 7, 1000])
def test_message_boundaries_mean_nothing(start_peer: StartPeer, split: int) -> None:
    peer = start_peer(ws_chunk=split)
    with client_for(peer) as client:
        assert client.get("/health").text == "ok"
        assert_echo(client, os.urandom(20_000))
        assert client.get("/bytes/300000?seed=2").content == body_of(300_000, 2)
    with channel_to(peer) as channel:
        assert body_from(channel.request(raw_get("/bytes/20000"))) == body_of(20_000, 0)


# --- when the other side goes away -------------------------------------------------------------


def in_background(call: Callable[[], object]) -> Callable[[], BaseException | None]:
    """Runs the call in a thread; the answer joins it and is what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def outcome() -> BaseException | None:
        thread.join(LIMIT)
        assert not thread.is_alive(), "still waiting for an enclave that is gone"
        return raised[0] if raised else None

    return outcome


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_killed_with_a_request_in_flight(peer: Peer, method: str) -> None:
    # A reconnect is tried for as long as a connect may take.
    timeout = httpx2.Timeout(LIMIT, connect=5.0)
    with Client(peer.url, debug_mode=True, pcrs=pcrs_of(peer.seed), timeout=timeout) as client:
        assert client.get("/health").text == "ok"
        path = "/slow?seconds=30" if method == "GET" else "/sha256"

        def endless() -> Iterator[bytes]:
            while True:
                yield b"x"
                time.sleep(0.05)

        content = endless() if method == "POST" else None
        outcome = in_background(lambda: client.request(method, path, content=content))
        time.sleep(0.5)
        peer.kill()
        assert_retryable(outcome())


def test_killed_with_a_stream_open(peer: Peer) -> None:
    with channel_to(peer) as channel, channel.open_stream() as stream:
        stream.write(raw_get("/slow?seconds=30"))
        outcome = in_background(lambda: read_to_eof(stream))
        time.sleep(0.5)
        peer.kill()
        assert_retryable(outcome())


def test_back_again_on_the_same_port(start_peer: StartPeer) -> None:
    first = start_peer()
    with client_for(first) as client:
        assert client.get("/health").text == "ok"
        first.kill()
        start_peer(port=first.port)
        assert client.get("/health").text == "ok"


def test_back_again_as_another_enclave(start_peer: StartPeer) -> None:
    """A reconnect verifies against the same pins, and a mismatch is final."""
    first = start_peer()
    with client_for(first) as client:
        assert client.get("/health").text == "ok"
        first.kill()
        start_peer(port=first.port, seed=first.seed + 1)
        with pytest.raises(PcrMismatch):
            client.get("/health")


def test_connections_cut_between_requests(peer: Peer) -> None:
    with client_for(peer) as client:
        for _ in range(3):
            assert client.get("/health").text == "ok"
            peer.drop_connections()
            while peer.stats()["open"]:
                time.sleep(0.01)
        assert client.get("/health").text == "ok"
    assert peer.stats()["accepted"] == 4


def test_a_pause_beyond_the_idle_timeout(start_peer: StartPeer) -> None:
    peer = start_peer(idle_seconds=1)
    with client_for(peer) as client:
        # No kept-alive stream inside the tunnel, as the enclave waits for those.
        for _ in range(2):
            assert client.get("/health", headers={"connection": "close"}).text == "ok"
            time.sleep(2.5)


def test_an_open_stream_outlasts_the_idle_timeout(start_peer: StartPeer) -> None:
    peer = start_peer(idle_seconds=2)
    request = raw_get("/health")
    with channel_to(peer) as channel, channel.open_stream() as stream:
        stream.write(request[:10])
        time.sleep(4)
        stream.write(request[10:])
        assert body_from(read_to_eof(stream)) == b"ok"


# --- the workload behind it --------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_workload_that_boots_late(start_peer: StartPeer) -> None:
    port = free_port()
    peer = start_peer(behind=f"127.0.0.1:{port}")
    with client_for(peer) as client, ThreadPoolExecutor(1) as pool:
        early = pool.submit(client.get, "/health")
        time.sleep(1)
        assert not early.done()
        with WorkloadServer(port):
            assert early.result(LIMIT).text == "ok"


def test_a_workload_that_never_boots(start_peer: StartPeer) -> None:
    peer = start_peer(behind=f"127.0.0.1:{free_port()}", grace_seconds=0.5)
    # Of an HTTP request it is what a refused connection is without a tunnel: it may come up.
    with client_for(peer) as client, pytest.raises(ServerError, match="refused") as caught:
        client.get("/health")
    assert caught.value.retryable
    # Of a stream it is the enclave's answer, of which nothing is known but its text.
    with channel_to(peer) as channel, pytest.raises(ServerError, match="refused") as told:
        channel.open_stream().read(1)
    assert not told.value.retryable
