"""Ctrl-C in every call of a channel."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from channels import connect, stuck_peer
from enclave_peer import EnclavePeer
from enclave_peer import connect as connect_peer
from raw_server import LIMIT, Peer, RawServer
from support import HANG

import enclavia
from enclavia.testing import LocalEnclave

# Seconds that what is interrupted here would wait at least.
SHORTEST = 10.0


def interrupted(call: Callable[[], Any], after: float = 0.15) -> float:
    """The call must end by KeyboardInterrupt, and by the first SIGINT: a wait that is not
    interrupted goes on until its time-out, by when the second one is due. Returns how many seconds
    it took."""
    main = threading.main_thread().ident
    assert main is not None
    ended = threading.Event()
    due: list[float] = []

    def interrupt() -> None:
        time.sleep(after)
        due.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGINT)
        if not ended.wait(SHORTEST / 2):
            due.append(time.monotonic())

    thread = threading.Thread(target=interrupt)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        took = time.monotonic() - due[0]
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGINT, previous)
    assert len(due) == 1, "it waited on"
    return took


def test_ctrl_c_while_connecting() -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_to_end()
        gone.set()

    with RawServer(script) as server:
        interrupted(lambda: connect_peer(server.url, timeout=20))
        assert gone.wait(LIMIT / 2), "the connection must be given up"


def test_ctrl_c_while_attesting() -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.upgrade()
        EnclavePeer(peer).handshake()
        peer.finish()
        gone.set()

    with RawServer(script) as server:
        interrupted(lambda: connect_peer(server.url, timeout=20))
        assert gone.wait(LIMIT / 2)


def test_ctrl_c_in_a_stream_leaves_all_usable(echoing: LocalEnclave) -> None:
    with connect(echoing, max_in_flight=2) as channel:
        stream, other = channel.open_stream(), channel.open_stream()
        interrupted(lambda: stream.read(1))
        interrupted(lambda: stream.readinto(bytearray(1)))
        interrupted(stream.readall)
        interrupted(lambda: channel.open_stream(timeout=None))
        assert channel.stats["slots_waiting"] == 0
        for usable in (stream, other):
            usable.write(b"still here")
            assert usable.read(100) == b"still here"
        stream.close()
        assert channel.open_stream(b"next", timeout=2).read(10) == b"next"


def test_ctrl_c_in_a_request_and_an_attestation(silently: LocalEnclave) -> None:
    with connect(silently, max_in_flight=2) as channel:
        interrupted(lambda: channel.request(b"x"))
        channel.open_stream(b"x", timeout=2).close()


def test_attestations_nobody_waits_for_any_more() -> None:
    """Their answers come all the same, and are not taken for those of later questions."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.upgrade()
        enclave = EnclavePeer(peer)
        enclave.open()
        for _ in range(13):
            enclave.expect_attestation_request()
        go.wait(HANG)
        for _ in range(13):
            enclave.send_bytes(enclave.attestation())
        enclave.serve_echo()

    with RawServer(script) as server, connect_peer(server.url) as channel:
        interrupted(channel.attest)
        for _ in range(12):
            with pytest.raises(enclavia.ReadTimeout):
                channel.attest(timeout=0.01)
        before = channel.attestation
        go.set()
        for _ in range(20):
            assert channel.attest(timeout=HANG).nonce == before.nonce


def test_ctrl_c_in_a_write() -> None:
    server, done = stuck_peer()
    with server:
        channel = connect_peer(server.url)
        stream = channel.open_stream()
        interrupted(lambda: stream.write(bytes(64 * 1024 * 1024)))
        assert not channel.closed
        stream.write_timeout = 0
        assert stream.write(b"x" * 100) in (None, 100)
        done.set()
        channel.close()


def test_ctrl_c_while_closing() -> None:
    """Closing waits for a second, so here the time counts: that of the best of a few tries. Load
    makes some of them longer, waiting all."""
    took = []
    while not took or (min(took) > 0.5 and len(took) < 5):
        server, done = stuck_peer()
        with server:
            channel = connect_peer(server.url)
            took.append(interrupted(channel.close))
            assert channel.closed
            done.set()
    assert min(took) < 0.5


def test_a_handler_that_does_not_raise_does_not_disturb(echoing: LocalEnclave) -> None:
    seen: list[int] = []
    main = threading.main_thread().ident
    assert main is not None
    previous = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with connect(echoing) as channel:
            stream = channel.open_stream()

            def disturb() -> None:
                for _ in range(20):
                    time.sleep(0.01)
                    signal.pthread_kill(main, signal.SIGUSR1)
                stream.write(b"at last")

            thread = threading.Thread(target=disturb)
            thread.start()
            assert stream.read(100) == b"at last"
            thread.join()
        assert seen
    finally:
        signal.signal(signal.SIGUSR1, previous)
