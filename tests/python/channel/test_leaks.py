"""What is left behind by channels opened, refused, abandoned and forgotten: nothing."""

from __future__ import annotations

import contextlib
import gc
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from channels import connect
from enclave_peer import connect as connect_peer
from raw_server import unused_port
from resources import Held, resident_kib
from support import eventually

import enclavia
from enclavia.testing import Fault, LocalEnclave

# What 1 000 of anything may add. One leaked kilobyte each would be 1 000 KiB; what is seen is below
# 100, and several hundred where threads come with arenas of their own.
RSS_TOLERANCE_KIB = 300


RSS_TOLERANCE_THREADS_KIB = 900


def check_flat(
    once: Callable[[], None],
    times: int = 1000,
    warm_up: int = 100,
    tolerance: int = RSS_TOLERANCE_KIB,
) -> None:
    """After a warm-up nothing may grow any more."""
    for _ in range(warm_up):
        once()
    gc.collect()
    held = Held()
    before = resident_kib()
    for _ in range(times):
        once()
    held.check_released()
    gc.collect()
    grown = resident_kib() - before
    assert grown < tolerance, f"{times} times: {grown} KiB more"


# a thousand


def test_connect_and_close(remote: LocalEnclave) -> None:
    check_flat(lambda: connect(remote).close())
    eventually(lambda: remote.stats()["connections_open"] == 0)


def test_connect_and_forget(remote: LocalEnclave) -> None:
    """Without close, and without the garbage collector: a channel has no cycles."""
    gc.disable()
    try:
        check_flat(lambda: (connect(remote), None)[1], 200)
    finally:
        gc.enable()
    eventually(lambda: remote.stats()["connections_open"] == 0)


def test_resolved_names(remote: LocalEnclave) -> None:
    """Names are looked up in a thread that ends with its answer."""
    url = remote.url.replace("127.0.0.1", "localhost")

    def once() -> None:
        enclavia.Channel.connect(url, pcrs=remote.pcrs, root=remote.root).close()

    check_flat(once, 100)


def test_refused_port() -> None:
    url = f"ws://127.0.0.1:{unused_port()}"

    def once() -> None:
        with pytest.raises(enclavia.ConnectError):
            connect_peer(url)

    check_flat(once)


def test_refused_upgrade(tmp_path: Path) -> None:
    """The server is another process: its threads would be counted here."""
    script = """
import socket
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
print(listener.getsockname()[1], flush=True)
while True:
    sock, _ = listener.accept()
    data = b""
    while not data.endswith(b"\\r\\n\\r\\n"):
        data += sock.recv(4096)
    sock.sendall(b"HTTP/1.1 404 Not Found\\r\\nContent-Length: 0\\r\\n\\r\\n")
    sock.close()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            url = f"ws://127.0.0.1:{int(process.stdout.readline())}"

            def once() -> None:
                with pytest.raises(enclavia.UpgradeRejected):
                    connect_peer(url)

            check_flat(once)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.WRONG_NONCE, enclavia.NonceMismatch),
        (Fault.BAD_SIGNATURE, enclavia.SignatureError),
        (Fault.WRONG_PCRS, enclavia.PcrMismatch),
        (Fault.ZERO_KEY, enclavia.ProtocolError),
        (Fault.GARBAGE_RECORD, enclavia.ProtocolError),
    ],
    ids=lambda value: getattr(value, "__name__", getattr(value, "name", "")),
)
def test_failed_attestation(
    remote: LocalEnclave, fault: Fault, error: type[enclavia.EnclaviaError]
) -> None:
    def once() -> None:
        with pytest.raises(error):
            connect(remote)

    remote.set_faults(fault)
    try:
        check_flat(once, 1000 if fault is Fault.WRONG_NONCE else 200)
    finally:
        remote.set_faults()
    eventually(lambda: remote.stats()["connections_open"] == 0)


def test_timeouts() -> None:
    """Nobody answers; the kernel accepts."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        listener.setblocking(False)

        def one(_: int) -> None:
            with pytest.raises(enclavia.ConnectTimeout):
                connect_peer(url, timeout=0.02)

        def hundred() -> None:
            list(pool.map(one, range(100)))
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()

        with ThreadPoolExecutor(8) as pool:
            check_flat(hundred, 10, 3, RSS_TOLERANCE_THREADS_KIB)


def test_given_up_at_any_moment(remote: LocalEnclave) -> None:
    """Also at the very moment when the connection opens."""
    connect(remote).close()
    held = Held()
    outcomes = set()
    for number in range(360):
        try:
            connect(remote, timeout=number % 120 / 20_000).close()
            outcomes.add("opened")
        except enclavia.ConnectTimeout:
            outcomes.add("given up")
    held.check_released()
    eventually(lambda: remote.stats()["connections_open"] == 0)
    assert "given up" in outcomes


def test_streams_and_requests(echoing: LocalEnclave) -> None:
    with connect(echoing) as channel:

        def once() -> None:
            with channel.open_stream(b"hello") as stream:
                assert stream.read(10) == b"hello"

        for _ in range(300):
            once()
        held = Held()
        for _ in range(1000):
            once()
        held.check_released()
        assert channel.stats["streams_open"] == 0
        eventually(lambda: echoing.stats()["slots_open"] == 0)


# given up


def test_abandoned_streams_free_their_slots(silently: LocalEnclave) -> None:
    with connect(silently, max_in_flight=4) as channel:
        for _ in range(50):
            channel.open_stream(b"x", timeout=2)  # dropped at once
        assert channel.stats["streams_open"] == 0
        held = [channel.open_stream(b"x", timeout=2) for _ in range(4)]
        eventually(lambda: silently.stats()["slots_open"] == 4)
        held[0].cycle = held  # type: ignore[attr-defined]
        del held
        gc.collect()
        eventually(lambda: silently.stats()["slots_open"] == 0)


def test_a_stream_keeps_its_channel(echoing: LocalEnclave) -> None:
    stream = connect(echoing).open_stream(b"hello")
    gc.collect()
    with contextlib.suppress(enclavia.ConnectionClosed):
        # Whichever way: no crash, and an answer at once.
        stream.timeout = 2
        stream.read(10)
    del stream
    eventually(lambda: echoing.stats()["connections_open"] == 0)
