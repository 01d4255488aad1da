"""What goes between a connection and its stream: by the core, and by Python where the core has no
descriptor for it. Both give the same, and the one hands over to the other at any moment."""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pinned import OTHER
from support import HANG, ByteServer, Connection, eventually

from enclavia import Forwarder
from enclavia._forward.pump import Pump
from enclavia.testing import LocalEnclave

Script = Callable[[Connection], Any]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a Unix socket's has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="enclavia-") as made:
        yield Path(made)


@pytest.fixture(params=["core", "python"])
def mover(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who moves the bytes."""
    if request.param == "python":
        monkeypatch.setattr(Pump, "_start_core", lambda self: False)
    return str(request.param)


class Place:
    """A workload, an enclave, a forwarder, and connections to it."""

    def __init__(self, script: Script, folder: Path, **options: Any) -> None:
        self._ends = contextlib.ExitStack()
        enter = self._ends.enter_context
        server = enter(ByteServer(script))
        self.enclave = enter(LocalEnclave(server.address))
        given = {"pcrs": self.enclave.pcrs, "root": self.enclave.root, **options}
        self.forwarder = enter(Forwarder(self.enclave.url, socket=folder / "f", **given))

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def connect(self) -> socket.socket:
        address = self.forwarder.address
        if address is not None:
            sock = socket.create_connection(address)
        else:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(self.forwarder.path)
        sock.settimeout(HANG)
        return self._ends.enter_context(sock)

    @property
    def pumps(self) -> list[Pump]:
        running = self.forwarder._running
        assert running is not None
        return running.call(lambda: list(running.server._pumps))

    def metric(self, name: str) -> float:
        transport = httpx2.HTTPTransport(uds=self.forwarder.path + ".control")
        with httpx2.Client(transport=transport, timeout=HANG) as client:
            text = client.get("http://forwarder/metrics").text
        found = re.search(rf"^enclavia_forwarder_{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, text
        return float(found[1])

    def all_free(self) -> None:
        eventually(lambda: not self.forwarder.stats.streams_active and not self.pumps)


def echo(connection: Connection) -> None:
    with contextlib.suppress(OSError):
        while data := connection.sock.recv(65536):
            connection.send(data)


def exchange(sock: socket.socket, data: bytes = b"hello") -> None:
    sock.sendall(data)
    assert sock.recv(len(data), socket.MSG_WAITALL) == data


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def test_who_moves_the_bytes(folder: Path, mover: str) -> None:
    """Of a connection that goes on both ways, and what is counted of it meanwhile."""
    with Place(echo, folder) as place:
        sock = place.connect()
        for _ in range(3):
            exchange(sock)
        (pump,) = place.pumps
        assert (pump._core is not None) == (mover == "core")
        eventually(lambda: place.metric("bytes_to_clients_total") == 15)
        assert place.metric("bytes_to_enclave_total") == 15
        sock.close()
        place.all_free()
        assert place.metric("bytes_to_clients_total") == 15
        assert place.metric("bytes_to_enclave_total") == 15
        assert place.metric("connections_failed_total") == 0


def test_a_client_shuts_its_direction_first(folder: Path, mover: str) -> None:
    def script(connection: Connection) -> None:
        assert connection.read(5) == b"hello"
        connection.send(b"hello")
        asked = connection.wait_closed()
        connection.send(b"got %d" % len(asked))

    with Place(script, folder) as place:
        sock = place.connect()
        exchange(sock)
        sock.sendall(bytes(3_000_000))
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"got 3000000"
        place.all_free()


def test_the_workload_ends_its_answer_first(folder: Path, mover: str) -> None:
    """Of which the client gets all, and its place is free when it ends as well."""

    def script(connection: Connection) -> None:
        assert connection.read(5) == b"hello"
        connection.send(b"hello")
        connection.send(bytes(3_000_000))
        connection.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            connection.wait_closed()

    with Place(script, folder) as place:
        sock = place.connect()
        exchange(sock)
        time.sleep(0.1)  # it fills what there is to fill
        assert len(read_all(sock)) == 3_000_000
        sock.shutdown(socket.SHUT_WR)
        place.all_free()


@pytest.mark.parametrize("listen", [None, "127.0.0.1:0"])
@pytest.mark.parametrize("what", ["channel", "pins", "stop"])
def test_what_is_cut_is_no_orderly_end(
    folder: Path, mover: str, listen: str | None, what: str
) -> None:
    way = {} if listen is None else {"listen": listen, "way": "stream"}
    with Place(echo, folder, **way) as place:
        sock = place.connect()
        exchange(sock)
        if what == "channel":
            place.enclave.drop_connections()
        elif what == "pins":
            place.forwarder.reload(OTHER)
        else:
            place.forwarder.stop(drain=0)
        if listen is None:
            with contextlib.suppress(ConnectionResetError):
                assert read_all(sock) == b""
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                sock.sendall(b"not even one byte of this")
        else:
            with pytest.raises(ConnectionResetError):
                read_all(sock)


def test_what_a_slow_reader_holds_is_bounded(folder: Path, mover: str) -> None:
    sent = 0

    def script(connection: Connection) -> None:
        nonlocal sent
        assert connection.read(5) == b"hello"
        connection.send(b"hello")
        block = bytes(65536)
        for _ in range(1024):
            connection.send(block)
            sent += len(block)

    def at_rest() -> bool:
        before = sent
        time.sleep(0.4)
        return sent == before

    with Place(script, folder) as place:
        sock = place.connect()
        exchange(sock)
        eventually(at_rest)
        # The sockets' own buffers on the way (four, of up to 6 MiB), what a channel holds for
        # readers (15 MiB at most), and what waits for the client.
        assert sent < 48 * 2**20
        assert len(read_all(sock)) == 64 * 2**20
        sock.close()
        place.all_free()


@pytest.mark.parametrize("leaves", ["closed", "reset"])
def test_a_client_that_leaves_while_nothing_moves(folder: Path, mover: str, leaves: str) -> None:
    """Its uploads are not taken, so that its socket is not read either."""
    release = threading.Event()

    def script(connection: Connection) -> None:
        assert connection.read(5) == b"hello"
        connection.send(b"hello")
        release.wait(4 * HANG)

    way = {} if leaves == "closed" else {"listen": "127.0.0.1:0", "way": "stream"}
    try:
        with Place(script, folder, **way) as place:
            sock = place.connect()
            exchange(sock)
            sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                sock.sendall(bytes(64 * 2**20))
            assert place.forwarder.stats.streams_active == 1
            if leaves == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
            place.all_free()
    finally:
        release.set()


def test_draining_waits_for_an_answer_and_not_for_an_idle_client(
    folder: Path, mover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclavia._forward.server._IDLE", 0.2)
    answer = threading.Event()

    def script(connection: Connection) -> None:
        with contextlib.suppress(OSError):
            while data := connection.sock.recv(65536):
                if data == b"later":
                    answer.wait(HANG)
                connection.send(data)

    with Place(script, folder) as place:
        idle, waiting = place.connect(), place.connect()
        exchange(idle)
        exchange(waiting)
        waiting.sendall(b"later")
        stopper = threading.Thread(target=place.forwarder.stop, args=(HANG,))
        stopper.start()
        with contextlib.suppress(ConnectionResetError):
            assert read_all(idle) == b""
        answer.set()
        assert waiting.recv(5, socket.MSG_WAITALL) == b"later"
        with contextlib.suppress(ConnectionResetError):
            assert read_all(waiting) == b""
        stopper.join(HANG)
        assert not stopper.is_alive()


def test_no_descriptor_for_the_core_is_no_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    with Place(echo, folder) as place:
        exchange(place.connect())  # the channel is there
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        start = Pump._start_core

        def without(pump: Pump) -> bool:
            # The limit is that of the enclave and the workload too: until they have what they need.
            eventually(lambda: place.enclave.stats()["bytes_from_workload"] == 10)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
            try:
                return start(pump)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)

        monkeypatch.setattr(Pump, "_start_core", without)
        sock = place.connect()
        exchange(sock)
        exchange(sock)
        assert sorted(pump._core is None for pump in place.pumps) == [False, True]
