"""The forwarder, and clients that go by way of one: ``Forwarder``, ``AsyncForwarder``, ``via=``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from listening import end_listening
from pinned import OTHER
from support import HANG, ByteServer, Connection, eventually

import enclavia
from enclavia import (
    AsyncClient,
    AsyncForwarder,
    Client,
    ConnectError,
    ConnectionClosed,
    EnclaviaError,
    Forwarder,
    IncompleteResponse,
    MatchedPins,
    PcrMismatch,
    Pcrs,
    StateError,
)
from enclavia._channel.socket_path import check_folder
from enclavia._forward.server import Server
from enclavia._io.local import LocalSocket, Place
from enclavia.testing import Fault, LocalEnclave

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Seen:
    """A workload that keeps what it was asked, and answers with it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.lock = threading.Lock()

    def __call__(self, connection: Connection) -> None:
        while True:
            head, body = connection.request()
            with self.lock:
                self.bodies.append(head.split(b"\r\n")[0] + b" " + body)
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a Unix socket's has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="enclavia-") as made:
        yield Path(made)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def enclave(seen: Seen) -> Iterator[LocalEnclave]:
    with ByteServer(seen) as server, LocalEnclave(server.address) as enclave:
        yield enclave


@pytest.fixture
def forwarder(enclave: LocalEnclave, folder: Path) -> Iterator[Forwarder]:
    with forward(enclave, folder / "f") as forwarder:
        yield forwarder


def forward(enclave: LocalEnclave, path: Path, **options: Any) -> Forwarder:
    given = {"pcrs": enclave.pcrs, "root": enclave.root, **options}
    return Forwarder(enclave.url, socket=path, **given)


def client_of(enclave: LocalEnclave, forwarder: Any, **options: Any) -> Client:
    given = {"pcrs": enclave.pcrs, "root": enclave.root, **options}
    return Client(enclave.url, via=forwarder.via, **given)


def raw(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(HANG)
    sock.connect(path)
    return sock


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


# -- the way there and back -----------------------------------------------------------------------


def test_a_client_goes_by_way_of_a_forwarder(
    enclave: LocalEnclave, forwarder: Forwarder, seen: Seen
) -> None:
    with client_of(enclave, forwarder) as client:
        assert client.post("/a", content=b"there").content == b"there"
        assert client.attestation.proven
        assert client.attestation.document == forwarder.attestation.document
        assert forwarder.path in repr(client)
        assert "trusting this machine's forwarder" in repr(client)
        assert "trusting this machine's forwarder" in repr(client._enclave)
    assert seen.bodies == [b"POST /a HTTP/1.1 there"]
    assert enclave.stats()["connections_total"] == 1
    assert forwarder.stats.connects == 1


@pytest.mark.parametrize("kind", ["asyncio", "uvloop", "trio"])
def test_so_does_an_async_client(
    enclave: LocalEnclave, forwarder: Forwarder, seen: Seen, kind: str
) -> None:
    async def main() -> None:
        async with AsyncClient(
            enclave.url, pcrs=enclave.pcrs, root=enclave.root, via=forwarder.via
        ) as client:
            answers: list[bytes] = []

            async def ask(number: int) -> None:
                body = b"%d" % number * 40_000
                answer = await client.post("/", content=body)
                assert answer.content == body
                answers.append(body)

            async with anyio.create_task_group() as group:
                for number in range(8):
                    group.start_soon(ask, number)
            assert len(answers) == 8
            assert (await client.get("/last")).status_code == 200

    backend = "trio" if kind == "trio" else "asyncio"
    anyio.run(
        main, backend=backend, backend_options={"use_uvloop": True} if kind == "uvloop" else {}
    )
    assert len(seen.bodies) == 9
    assert enclave.stats()["connections_total"] == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_forwarder(enclave: LocalEnclave, folder: Path, backend: str) -> None:
    async def main() -> None:
        given = {"pcrs": enclave.pcrs, "root": enclave.root}
        async with AsyncForwarder(enclave.url, socket=folder / "f", **given) as forwarder:
            await forwarder.connect()
            assert forwarder.running
            async with AsyncClient(enclave.url, via=forwarder.via, **given) as client:
                assert (await client.get("/")).status_code == 200
        assert not forwarder.running
        forwarder = await AsyncForwarder(enclave.url, socket=folder / "f", **given).start()
        await forwarder.stop()
        assert not (folder / "f").exists()

    anyio.run(main, backend=backend)


def test_64_mib_each_way(folder: Path) -> None:
    size = 64 << 20
    body = hashlib.shake_256(b"there and back").digest(1 << 20) * 64
    expected = hashlib.sha256(body).hexdigest()

    def script(connection: Connection) -> None:
        head = connection.head()
        assert b"content-length: %d" % size in head.lower()
        digest, left = hashlib.sha256(connection.buffer), size - len(connection.buffer)
        while left:
            piece = connection.sock.recv(1 << 18)
            digest.update(piece)
            left -= len(piece)
        assert digest.hexdigest() == expected
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        connection.send(body)

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
        client_of(enclave, forwarder) as client,
    ):
        digest = hashlib.sha256()
        with client.stream("POST", "/", content=body) as answer:
            for piece in answer.iter_bytes():
                digest.update(piece)
        assert digest.hexdigest() == expected


def test_a_raw_stream_is_half_closed_both_ways(folder: Path) -> None:
    def script(connection: Connection) -> None:
        asked = connection.wait_closed()
        connection.send(b"got " + asked)

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
        raw(forwarder.path) as sock,
    ):
        sock.sendall(b"some")
        sock.sendall(b" bytes")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"got some bytes"


@pytest.mark.parametrize("ending", ["half", "whole"])
def test_what_is_sent_after_the_workloads_end_does_not_vanish_silently(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Whether the workload has ended its answer only, or closed its connection."""
    monkeypatch.setattr("enclavia._forward.pump._LINGER", 0.2)
    over = threading.Event()

    def script(connection: Connection) -> None:
        assert connection.read(1) == b"a"
        connection.send(b"all")
        if ending == "half":
            connection.sock.shutdown(socket.SHUT_WR)
            over.wait(HANG)

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
        raw(forwarder.path) as sock,
    ):
        sock.sendall(b"a")
        assert read_all(sock) == b"all"
        eventually(lambda: not forwarder.stats.streams_active)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
            for _ in range(int(HANG * 10)):
                sock.sendall(b"more")
                time.sleep(0.01)
        over.set()


def test_a_server_may_speak_first(folder: Path) -> None:
    def script(connection: Connection) -> None:
        connection.send(b"ready\r\n")
        assert connection.read(4) == b"quit"

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
        raw(forwarder.path) as sock,
    ):
        assert sock.recv(100) == b"ready\r\n"
        sock.sendall(b"quit")
        assert read_all(sock) == b""


def test_a_slow_reader_holds_up_nobody_else(folder: Path) -> None:
    """What it does not read fills the sockets, and then its own stream."""
    big = b"x" * (8 << 20)

    def script(connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            body = big if b"/big" in head else b"ok"
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
        client_of(enclave, forwarder) as client,
        client_of(enclave, forwarder) as slow,
        slow.stream("GET", "/big") as answer,
    ):
        for _ in range(20):
            assert client.get("/").text == "ok"
        assert sum(map(len, answer.iter_bytes())) == len(big)


def test_a_client_that_leaves_ends_its_stream(folder: Path) -> None:
    left = threading.Event()

    def script(connection: Connection) -> None:
        connection.head()
        connection.wait_closed(HANG)
        left.set()

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
    ):
        with raw(forwarder.path) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            while not server.connections:
                time.sleep(0.01)
        assert left.wait(HANG)
        eventually(lambda: not forwarder.stats.streams_active)


def test_a_cancelled_request_ends_its_stream(folder: Path) -> None:
    left = threading.Event()

    def script(connection: Connection) -> None:
        connection.head()
        connection.wait_closed(HANG)
        left.set()

    async def main(enclave: LocalEnclave, via: str, server: ByteServer) -> None:
        async with (
            AsyncClient(enclave.url, pcrs=enclave.pcrs, root=enclave.root, via=via) as client,
            anyio.create_task_group() as group,
        ):
            group.start_soon(client.get, "/")
            while not server.connections:
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
    ):
        anyio.run(main, enclave, forwarder.via, server)
        assert left.wait(HANG)


def raised(call: Any, *arguments: Any, **keywords: Any) -> Exception:
    with pytest.raises(EnclaviaError) as caught:
        call(*arguments, **keywords)
    return caught.value


# -- who is trusted -------------------------------------------------------------------------------


def test_a_client_with_other_pins_sends_nothing(
    enclave: LocalEnclave, forwarder: Forwarder, seen: Seen
) -> None:
    client = client_of(enclave, forwarder, pcrs=OTHER)
    with pytest.raises(PcrMismatch) as caught:
        client.post("/", content=b"secret")
    assert caught.value.actual == enclave.pcrs.pcr0
    assert not caught.value.retryable
    assert seen.bodies == []
    assert forwarder.stats.streams_active == 0
    assert not enclave.stats()["streams_total"]


def test_a_client_with_another_root_sends_nothing(
    enclave: LocalEnclave, forwarder: Forwarder, seen: Seen
) -> None:
    """The signature is checked by the client, whatever the forwarder trusts."""
    with pytest.raises(enclavia.CertificateError):
        client_of(enclave, forwarder, root=None).post("/", content=b"secret")
    assert seen.bodies == []


def test_a_forwarder_with_other_pins_forwards_nothing(
    enclave: LocalEnclave, folder: Path, seen: Seen
) -> None:
    with forward(enclave, folder / "f", pcrs=OTHER, http=True) as forwarder:
        with pytest.raises(PcrMismatch, match="the forwarder could not connect"):
            client_of(enclave, forwarder).post("/", content=b"secret")
        with raw(forwarder.path) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nsecret")
            with contextlib.suppress(ConnectionResetError):
                assert read_all(sock) == b""
        assert forwarder.http_path is not None
        with unix_client(forwarder.http_path) as client:
            answer = client.post("http://localhost/", content=b"secret")
        assert answer.status_code == 502
        assert answer.json()["error"]["type"] == "PcrMismatch"
        with pytest.raises(PcrMismatch):
            forwarder.connect()
    assert seen.bodies == []
    assert not enclave.stats()["streams_total"]


def debug_forwarder(url: str, path: Path) -> Forwarder:
    warnings.simplefilter("ignore", enclavia.DebugModeWarning)
    return Forwarder(url, debug_mode=True, socket=path)


def test_a_debug_forwarder_is_no_way_around_the_clients_pins(folder: Path, seen: Seen) -> None:
    with (
        ByteServer(seen) as server,
        LocalEnclave(server.address, mode="debug") as enclave,
        warnings.catch_warnings(),
        debug_forwarder(enclave.url, folder / "f") as forwarder,
    ):
        with pytest.raises(enclavia.AttestationError):
            Client(enclave.url, pcrs=enclave.pcrs, via=forwarder.via).post("/", content=b"secret")
        assert seen.bodies == []
        with Client(enclave.url, debug_mode=True, via=forwarder.via) as client:
            assert client.get("/").status_code == 200
            assert not client.attestation.proven


def test_a_client_of_another_enclave_sends_nothing(
    enclave: LocalEnclave, forwarder: Forwarder, seen: Seen
) -> None:
    other = Client(
        "wss://elsewhere.example", pcrs=enclave.pcrs, root=enclave.root, via=forwarder.via
    )
    with pytest.raises(ConnectError, match=r"expected a forwarder to wss://elsewhere.example"):
        other.post("/", content=b"secret")
    assert seen.bodies == []


class FalseForwarder:
    """A control socket that says what a test wants."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.via = f"unix:{path}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"{path}.control")
        self._listener.listen()
        self._answer = answer
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.recv(65536)
                sock.sendall(self._answer)
                if not self._answer:
                    sock.close()
                self._kept = sock

    def __enter__(self) -> FalseForwarder:
        return self

    def __exit__(self, *_: object) -> None:
        end_listening(self._listener, self._thread)


def told(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", enclavia.ProtocolError, "expected an HTTP answer"),
        (told(b"no json"), enclavia.ProtocolError, "expected JSON"),
        (told(b"[]"), enclavia.ProtocolError, "expected a JSON object"),
        (told(b"[" * 200_000), enclavia.ProtocolError, "expected JSON"),
        (told(b"{}"), ConnectError, "got one to None"),
        (told(b'{"url": "wss://e.example/", "document": 7}'), EnclaviaError, "document"),
        (told(b'{"url": "wss://e.example/", "document": "!"}'), EnclaviaError, "base64"),
        (
            told(b'{"url": "wss://e.example/", "document": "aGk="}'),
            enclavia.DocumentError,
            "COSE",
        ),
        (told(b'{"error": {}}', b"502 Bad"), ConnectError, "could not connect"),
        (
            told(b'{"error": {"type": "BaseException", "message": "m"}}', b"502 Bad"),
            ConnectError,
            "m",
        ),
        (
            told(b'{"error": {"type": "PcrMismatch", "message": "m", "actual": "zz"}}', b"502 Bad"),
            PcrMismatch,
            "m",
        ),
        (told(b"x" * 300_000), enclavia.ProtocolError, "at most"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000, enclavia.ProtocolError, "at most"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
            enclavia.ProtocolError,
            "got a switch to another protocol",
        ),
        (b"", ConnectError, "got the end"),
    ],
)
def test_what_is_no_forwarder_is_told_from_one(
    folder: Path, answer: bytes, error: type[Exception], says: str
) -> None:
    pins = Pcrs(pcr0=b"\1" * 48, pcr1=b"\1" * 48, pcr2=b"\1" * 48)
    with FalseForwarder(folder / "f", answer) as false:
        client = Client("wss://e.example", pcrs=pins, via=false.via, patience=0)
        with pytest.raises(error, match=says):
            client.get("/")


@pytest.mark.parametrize("said", ["", "bm8="])
def test_a_forwarder_that_names_another_channel_than_its_documents(
    said: str, forwarder: Forwarder, enclave: LocalEnclave, seen: Seen, monkeypatch: Any
) -> None:
    """Or a receipt would name a handshake hash that no document vouches for, or none."""
    from enclavia._forward.server import Server

    describe = Server.describe

    async def lying(self: Server) -> dict[str, object]:
        return {**await describe(self), "handshake_hash": said}

    monkeypatch.setattr(Server, "describe", lying)
    with (
        pytest.raises(enclavia.NonceMismatch),
        client_of(enclave, forwarder) as client,
    ):
        client.get("/")
    assert not seen.bodies


def test_pins_changed_under_live_channels(enclave: LocalEnclave, folder: Path, seen: Seen) -> None:
    with forward(enclave, folder / "f") as forwarder, client_of(enclave, forwarder) as client:
        assert client.post("/", content=b"before").content == b"before"
        with raw(forwarder.path) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nraw")
            assert b"raw" in sock.recv(65536)
            forwarder.reload(OTHER)
            with contextlib.suppress(OSError):
                sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nsecret")
            with contextlib.suppress(ConnectionResetError):
                assert read_all(sock) == b""
        assert forwarder.stats.channels == 0
        with pytest.raises(PcrMismatch):
            client.post("/", content=b"secret")
        assert len(seen.bodies) == 2
        forwarder.reload([OTHER, enclave.pcrs])
        assert client.post("/", content=b"after").content == b"after"
        document = client.attestation.document
        forwarder.reload(enclave.pcrs)  # which the channel matches
        assert client.post("/", content=b"on").content == b"on"
        assert forwarder.attestation.document == document


def test_unusable_pins_leave_the_old_ones(enclave: LocalEnclave, forwarder: Forwarder) -> None:
    for unusable in (None, Pcrs(pcr0=bytes(48), pcr1=bytes(48), pcr2=bytes(48)), [], "x"):
        with pytest.raises((TypeError, ValueError)):
            forwarder.reload(unusable)  # type: ignore[arg-type]
    with client_of(enclave, forwarder) as client:
        assert client.get("/").status_code == 200


def test_what_is_asked_of_a_forwarder_that_ends_is_told_so(
    enclave: LocalEnclave, folder: Path
) -> None:
    """Whoever asks at that very moment waits for no answer that nobody gives."""
    told: list[BaseException] = []

    def ask(forwarder: Forwarder, begun: threading.Event) -> None:
        try:
            while True:
                forwarder.reload(enclave.pcrs)
                begun.set()
        except BaseException as error:
            told.append(error)

    for _ in range(5):
        forwarder = forward(enclave, folder / "f").start()
        begun = [threading.Event() for _ in range(4)]
        askers = [
            threading.Thread(target=ask, args=(forwarder, each), daemon=True) for each in begun
        ]
        for asker in askers:
            asker.start()
        for each in begun:
            assert each.wait(HANG)
        forwarder.stop(0)
        for asker in askers:
            asker.join(HANG)
            assert not asker.is_alive()
    assert {type(error) for error in told} == {StateError}
    assert all("expected a forwarder that runs" in str(error) for error in told)


@pytest.mark.parametrize("failure", [asyncio.CancelledError, RuntimeError])
def test_looking_at_the_pins_never_ends(
    failure: type[BaseException],
    enclave: LocalEnclave,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over a raw stream that is open, nobody else would notice that the pins are others by now. A
    function for them may end as one that was cancelled, by a task of its own."""
    asked: list[bool] = []
    fail = threading.Event()

    async def pins() -> Pcrs:
        if fail.is_set() and failure is asyncio.CancelledError:
            asked.append(True)
            raise failure
        return enclave.pcrs

    source = enclavia.PinSource(pins, period=0.1, keep=0.1)
    with forward(enclave, folder / "f", pcrs=source) as forwarder:
        forwarder.connect()
        if failure is not asyncio.CancelledError:
            assert forwarder._running is not None

            async def broken() -> None:
                if fail.is_set():
                    asked.append(True)
                    raise failure("a fault")

            monkeypatch.setattr(forwarder._running.server, "_renew_pins", broken)
        with contextlib.closing(raw(forwarder.path)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            fail.set()
            with contextlib.suppress(ConnectionError):
                assert sock.recv(65536) == b""
        eventually(lambda: len(asked) > 1)
        fail.clear()
        with client_of(enclave, forwarder) as client:
            assert client.get("/").status_code == 200


def test_another_identity_is_shown_to_the_client_before_it_is_sent_anything(
    enclave: LocalEnclave, folder: Path, seen: Seen
) -> None:
    """The forwarder has pins for both images; the client has for the first one only."""
    first = enclave.pcrs
    with (
        forward(enclave, folder / "f", pcrs=[first, OTHER]) as forwarder,
        client_of(enclave, forwarder, pcrs=first) as client,
    ):
        assert client.post("/", content=b"before").content == b"before"
        enclave.set_identity(pcrs=OTHER)
        enclave.drop_connections()
        caught = [raised(client.post, "/", content=b"secret") for _ in range(3)]
        assert isinstance(caught[-1], PcrMismatch), caught
        assert seen.bodies == [b"POST / HTTP/1.1 before"]
        with client_of(enclave, forwarder, pcrs=OTHER) as other:
            assert other.post("/", content=b"b").content == b"b"


# -- the place ------------------------------------------------------------------------------------


def signed(pcrs: Pcrs, by: bytes) -> Pcrs:
    """The same image with another PCR8."""
    return Pcrs(pcr0=pcrs.pcr0, pcr1=pcrs.pcr1, pcr2=pcrs.pcr2, pcr8=by * 48)


def test_further_pins_of_the_client_are_its_own(
    enclave: LocalEnclave, folder: Path, seen: Seen
) -> None:
    """The forwarder pins three PCRs; what the client pins beside these, it checks itself."""
    three, ours, theirs = enclave.pcrs, signed(enclave.pcrs, b"a"), signed(enclave.pcrs, b"b")
    enclave.set_identity(pcrs=ours)
    with forward(enclave, folder / "f", pcrs=three) as forwarder:
        error = raised(client_of(enclave, forwarder, pcrs=theirs).post, "/", content=b"secret")
        assert isinstance(error, PcrMismatch)
        assert (error.index, error.expected) == (8, theirs.further[8])
        assert seen.bodies == []
        with client_of(enclave, forwarder, pcrs=[theirs, ours]) as client:
            assert client.post("/", content=b"before").content == b"before"
            assert client.attestation.matched == MatchedPins(1, ours, None)
            # Another channel to what is the same image, and not the same enclave.
            enclave.set_identity(pcrs=theirs)
            enclave.drop_connections()
            one = client_of(enclave, forwarder, pcrs=ours)
            caught = [raised(one.post, "/", content=b"secret") for _ in range(3)]
            assert isinstance(caught[-1], PcrMismatch), caught
        assert seen.bodies == [b"POST / HTTP/1.1 before"]


@contextlib.contextmanager
def with_further_pins(
    enclave: LocalEnclave, folder: Path, of_forwarder: Pcrs, of_client: Pcrs
) -> Iterator[tuple[Forwarder, Client]]:
    """A forwarder, and a client of it that has sent a request."""
    with (
        forward(enclave, folder / "f", pcrs=of_forwarder) as forwarder,
        client_of(enclave, forwarder, pcrs=of_client) as client,
    ):
        assert client.post("/", content=b"before").content == b"before"
        yield forwarder, client


def test_further_pins_tell_identities_apart(
    enclave: LocalEnclave, folder: Path, seen: Seen
) -> None:
    """The client has verified one; where the forwarder meets another it is sent nothing."""
    three, ours, theirs = enclave.pcrs, signed(enclave.pcrs, b"a"), signed(enclave.pcrs, b"b")
    enclave.set_identity(pcrs=ours)
    with with_further_pins(enclave, folder, three, ours) as (_, client):
        enclave.set_identity(pcrs=theirs)
        enclave.drop_connections()
        caught = [raised(client.post, "/", content=b"secret") for _ in range(3)]
        assert isinstance(caught[-1], PcrMismatch), caught
    assert seen.bodies == [b"POST / HTTP/1.1 before"]


def test_a_forwarders_further_pins_are_changed(
    enclave: LocalEnclave, folder: Path, seen: Seen
) -> None:
    ours, theirs = signed(enclave.pcrs, b"a"), signed(enclave.pcrs, b"b")
    enclave.set_identity(pcrs=ours)
    with with_further_pins(enclave, folder, ours, ours) as (forwarder, client):
        document = forwarder.attestation.document
        forwarder.reload([theirs, ours])
        assert client.post("/", content=b"on").content == b"on"
        assert forwarder.attestation.document == document
        forwarder.reload(theirs)
        with pytest.raises(PcrMismatch) as caught:
            client.post("/", content=b"secret")
        assert caught.value.index == 8
    assert len(seen.bodies) == 2


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_sockets_are_the_users_alone(enclave: LocalEnclave, folder: Path) -> None:
    old = os.umask(0)
    try:
        with forward(enclave, folder / "new" / "f", http=True) as forwarder:
            client_of(enclave, forwarder).get("/")
            found = sorted(os.listdir(folder / "new"))
            assert len(found) == 5  # stream, identity, control, http, lock
            for name in found:
                assert mode(folder / "new" / name) == 0o600, name
            assert mode(folder / "new") == 0o700
        assert os.listdir(folder / "new") == ["f.lock"]
    finally:
        os.umask(old)


def test_the_default_place(
    enclave: LocalEnclave, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"pcrs": enclave.pcrs, "root": enclave.root}
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    with Forwarder(enclave.url, **given) as forwarder:
        assert Path(forwarder.path).parent == folder / "enclavia"
        with Client(enclave.url, via="unix:", **given) as client:
            assert client.get("/").status_code == 200
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("TMPDIR", str(folder))
    with Forwarder(enclave.url, **given) as forwarder:
        assert Path(forwarder.path).parent == folder / f"enclavia-{os.geteuid()}"
        assert mode(Path(forwarder.path).parent) == 0o700


@pytest.mark.parametrize("runtime", ["", "relative", None])
@pytest.mark.parametrize("named", ["", "relative", "/no/such", None])
def test_the_default_place_of_a_full_disk_is_the_same(
    runtime: str | None, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module tempfile tries to write, and takes another folder where it cannot: then a client
    would look elsewhere than where its forwarder listens."""
    for name in ("XDG_RUNTIME_DIR", "TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("XDG_RUNTIME_DIR", runtime), ("TMPDIR", named)):
        if value is not None:
            monkeypatch.setenv(name, value)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", full)
    forwarder = Forwarder("wss://enclave.example", pcrs=OTHER)
    assert Path(forwarder.path).parent == Path(f"/tmp/enclavia-{os.geteuid()}")
    client = Client("wss://enclave.example", pcrs=OTHER, via="unix:")
    assert f"via {forwarder.via}," in repr(client)


@pytest.mark.parametrize("place", ["missing", "file", "loop", "full"])
def test_a_folder_that_cannot_be_made_is_a_typed_error(
    enclave: LocalEnclave, folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("no folder")
    (folder / "loop").symlink_to("loop")
    if place == "full":

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(ConnectError, match="expected to be able to make the folder") as met:
        forward(enclave, folder / place / "deeper" / "f").start()
    assert not met.value.retryable


@pytest.mark.parametrize("call", ["write", "ftruncate"])
def test_a_full_disk_keeps_no_forwarder_from_starting(
    enclave: LocalEnclave, folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock counts. Its file names the process only for who is refused."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(f"enclavia._forward.sockets.os.{call}", full)
        forwarder = forward(enclave, folder / "f").start()
    with contextlib.closing(forwarder), client_of(enclave, forwarder) as client:
        assert client.get("/").status_code == 200
        with pytest.raises(StateError, match="expected no other forwarder"):
            forward(enclave, folder / "f").start()


def test_a_lock_that_the_file_system_has_not_is_a_typed_error(
    enclave: LocalEnclave, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("enclavia._forward.sockets.fcntl.flock", refuse)
    with pytest.raises(ConnectError, match="expected to be able to lock"):
        forward(enclave, folder / "f").start()


@pytest.mark.parametrize("missing", ["thread", "descriptor", "socket"])
def test_what_cannot_be_started_leaves_the_place_free(
    enclave: LocalEnclave, folder: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        if missing == "thread":
            raise RuntimeError("can't start new thread")
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    forwarder = forward(enclave, folder / "f")
    name = {
        "thread": "threading.Thread.start",
        "descriptor": "enclavia._forward.server.Tokens",
        "socket": "enclavia._forward.sockets.UnixListener",
    }[missing]
    with monkeypatch.context() as patch:
        patch.setattr(name, refuse)
        with pytest.raises(ConnectError, match="expected to "):
            forwarder.start()
    assert not forwarder.running
    assert os.listdir(folder) == ["f.lock"]
    with forwarder, client_of(enclave, forwarder) as client:
        assert client.get("/").status_code == 200


def test_a_path_that_via_would_read_otherwise_is_refused(
    enclave: LocalEnclave, folder: Path
) -> None:
    """Of one that ends so, a client would take what root runs for its forwarder."""
    with pytest.raises(ValueError, match=r"socket: expected a path without '\?'"):
        forward(enclave, folder / "f?owner=root")


def test_a_cleared_folder_is_the_next_forwarders(enclave: LocalEnclave, folder: Path) -> None:
    """As at the end of a session, or by whatever clears old files away: the lock is gone too. The
    earlier forwarder, which nobody can reach, takes nothing of the next one along when it ends."""
    place = folder / "place"
    earlier = forward(enclave, place / "f").start()
    with client_of(enclave, earlier) as client:
        client.get("/").raise_for_status()
    shutil.rmtree(place)
    with forward(enclave, place / "f", http=True) as forwarder:
        with client_of(enclave, forwarder) as client:
            client.get("/").raise_for_status()
        there = sorted(os.listdir(place))
        earlier.stop(0)
        assert sorted(os.listdir(place)) == there
        with client_of(enclave, forwarder, patience=0) as client:
            client.get("/").raise_for_status()


def test_the_socket_of_an_identity_that_was_cleared_away_is_made_again(
    enclave: LocalEnclave, folder: Path, forwarder: Forwarder
) -> None:
    for replaced in (False, True):
        with client_of(enclave, forwarder) as client:
            client.get("/").raise_for_status()
        (leading,) = (
            path for path in folder.iterdir() if re.fullmatch(r"f\.[0-9a-f]{12}", path.name)
        )
        leading.unlink()
        if replaced:  # by one that nobody listens at
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as dead:
                dead.bind(str(leading))
        with client_of(enclave, forwarder, patience=0) as client:
            client.get("/").raise_for_status()


@pytest.mark.parametrize("side", ["forwarder", "client"])
def test_a_folder_behind_a_link_is_refused(enclave: LocalEnclave, folder: Path, side: str) -> None:
    (folder / "real").mkdir(0o700)
    (folder / "link").symlink_to("real")
    if side == "forwarder":
        with pytest.raises(ConnectError, match="got a symbolic link"):
            forward(enclave, folder / "link" / "f").start()
        return
    with forward(enclave, folder / "real" / "f") as forwarder:
        assert client_of(enclave, forwarder).get("/").status_code == 200
        linked = forward(enclave, folder / "link" / "f")
        with pytest.raises(ConnectError, match="got a symbolic link"):
            client_of(enclave, linked).get("/")


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o755, 0o711])
def test_a_folder_that_others_can_enter_is_refused(
    enclave: LocalEnclave, folder: Path, bits: int
) -> None:
    folder.chmod(bits)
    with pytest.raises(ConnectError, match="whose owner alone may have access to it"):
        forward(enclave, folder / "f").start()
    folder.chmod(0o700)
    with forward(enclave, folder / "f") as forwarder:
        folder.chmod(bits)
        with pytest.raises(ConnectError, match="whose owner alone may have access to it"):
            client_of(enclave, forwarder).get("/")


@pytest.mark.parametrize("missing", ["uvicorn", "prometheus_client"])
def test_a_missing_library_is_said_at_the_start(
    enclave: LocalEnclave, folder: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by a failure of /metrics, or of the first client."""
    monkeypatch.setitem(sys.modules, missing, None)
    forwarder = forward(enclave, folder / "f")
    wanted = rf"needs {missing}, .*: pip install 'enclavia\[forward\]'"
    with pytest.raises(ImportError, match=wanted):
        forwarder.start()
    assert not forwarder.running
    assert os.listdir(folder) == []


def refusal(path: Path, owner: int, user: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """What ``user`` is told of the folder at ``path``, as if ``owner`` had it."""
    found = os.lstat(path)
    told = os.stat_result((*found[:4], owner, *found[5:]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lambda _: told)
        patch.setattr(os, "geteuid", lambda: user)
        with pytest.raises(ConnectError) as met:
            check_folder(str(path / "f"), frozenset((user, 0)))
    assert not met.value.retryable
    return str(met.value)


@pytest.mark.parametrize(
    ("owner", "user", "bits", "advised"),
    [
        (1234, 1234, 0o755, True),
        (1234, 1234, 0o711, True),
        (1234, 1234, 0o770, False),  # its group works in it
        (1234, 1234, 0o1777, False),
        (0, 0, 0o755, False),  # /etc, for example
        (0, 0, 0o1777, False),  # /tmp
        (0, 1234, 0o1777, False),
        (0, 1234, 0o775, False),
        (4321, 1234, 0o755, False),
    ],
)
def test_no_folder_that_others_use_is_to_be_closed_to_them(
    folder: Path,
    owner: int,
    user: int,
    bits: int,
    advised: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    folder.chmod(bits)
    said = refusal(folder, owner, user, monkeypatch)
    assert ("chmod" in said) == advised
    assert "use a folder of your own that has mode 0700" in said
    assert "/run/user/1234/enclavia is what a forwarder without socket= (--socket) takes" in said


def test_no_home_is_to_be_closed_but_the_default_folder_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.chmod(0o755)
    monkeypatch.setenv("HOME", str(folder))
    assert "chmod" not in refusal(folder, 1234, 1234, monkeypatch)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    own = folder / "enclavia"
    own.mkdir()
    own.chmod(0o777)
    for user in (0, 1234):
        said = refusal(own, user, user, monkeypatch)
        assert said.endswith("chmod 700 it, or use another folder of your own that has mode 0700")


def asked_as_another_user(paths: list[str]) -> list[bytes]:
    """What the user nobody is answered there, where the tests are run by root."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            for path in paths:
                answer = b""
                with contextlib.suppress(ConnectionResetError, BrokenPipeError), raw(path) as sock:
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    answer = sock.recv(100)
                os.write(write, b"<%s>" % answer)
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as told:
        return told.read().split(b"><")


need_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's process")


@need_root
def test_another_users_folder_and_socket_are_refused(
    enclave: LocalEnclave, folder: Path, seen: Seen
) -> None:
    os.chown(folder, 65534, 65534)
    with pytest.raises(ConnectError, match=r"expected .* to belong to user 0, got user 65534"):
        forward(enclave, folder / "f").start()
    with FalseForwarder(folder / "f", b"") as false:
        with pytest.raises(ConnectError, match="to belong to user 0, got user 65534"):
            client_of(enclave, false, patience=0).get("/")
        os.chown(folder, 0, 0)
        os.chown(folder / "f.control", 65534, 65534)
        with pytest.raises(ConnectError, match=r"socket .* to belong to user 0, got user 65534"):
            client_of(enclave, false, patience=0).get("/")
    other = folder / "g"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as taken:
        taken.bind(str(other))
    os.chown(other, 65534, 65534)
    with pytest.raises(ConnectError, match="got one of user 65534: it is left alone"):
        forward(enclave, other).start()
    assert other.exists()


@need_root
def test_another_users_process_is_refused(enclave: LocalEnclave, folder: Path, seen: Seen) -> None:
    """Where the modes of the files did not keep it away."""
    with forward(enclave, folder / "f", http=True) as forwarder:
        client_of(enclave, forwarder).get("/")
        seen.bodies.clear()
        paths = [str(folder / name) for name in os.listdir(folder) if not name.endswith(".lock")]
        assert len(paths) == 4
        folder.chmod(0o755)
        for path in paths:
            os.chmod(path, 0o666)
        assert asked_as_another_user(paths) == [b"<", b"", b"", b">"]
        assert seen.bodies == []
        metrics = ask_control(forwarder, "/metrics").text
        assert "enclavia_forwarder_connections_refused_total 4.0" in metrics


def test_what_is_no_socket_is_left_alone(enclave: LocalEnclave, folder: Path) -> None:
    (folder / "f").write_text("mine")
    with pytest.raises(ConnectError, match="got another kind of file: it is left alone") as met:
        forward(enclave, folder / "f").start()
    assert str(met.value).endswith("use another path")  # and nothing says to remove it
    assert (folder / "f").read_text() == "mine"
    assert not (folder / "f.control").exists()


def test_somebody_elses_listener_is_left_alone(enclave: LocalEnclave, folder: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(folder / "f"))
        other.listen()
        with pytest.raises(StateError, match="got one that is no forwarder"):
            forward(enclave, folder / "f").start()
        assert (folder / "f").exists()


def test_a_dead_forwarders_socket_is_taken_over(enclave: LocalEnclave, folder: Path) -> None:
    for name in ("f", "f.control"):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as dead:
            dead.bind(str(folder / name))
    with forward(enclave, folder / "f") as forwarder, client_of(enclave, forwarder) as client:
        assert client.get("/").status_code == 200


def test_of_two_forwarders_one_gets_the_socket(enclave: LocalEnclave, folder: Path) -> None:
    barrier = threading.Barrier(6)
    got: list[Forwarder] = []
    refused: list[str] = []

    def start() -> None:
        forwarder = forward(enclave, folder / "f")
        barrier.wait()
        try:
            got.append(forwarder.start())
        except StateError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert len(refused) == 5
    assert all("expected no other forwarder" in message for message in refused)
    with client_of(enclave, got[0]) as client:
        assert client.get("/").status_code == 200
    got[0].stop(0)


def test_a_path_that_is_too_long_is_refused(enclave: LocalEnclave, folder: Path) -> None:
    too_long = folder / ("x" * 100)
    with pytest.raises(ValueError, match="socket: expected a path of at most 94 bytes"):
        forward(enclave, too_long)
    with pytest.raises(ValueError, match="via: expected a path of at most 94 bytes"):
        Client(enclave.url, pcrs=enclave.pcrs, via=f"unix:{too_long}")
    just = folder / ("x" * (94 - len(str(folder)) - 1))
    with forward(enclave, just) as forwarder, client_of(enclave, forwarder) as client:
        assert client.get("/").status_code == 200


def test_where_nobody_listens(enclave: LocalEnclave, folder: Path) -> None:
    client = Client(
        enclave.url, pcrs=enclave.pcrs, root=enclave.root, via=f"unix:{folder}/f", patience=0
    )
    with pytest.raises(ConnectError, match="start one with") as caught:
        client.get("/")
    assert caught.value.retryable


def test_a_client_waits_for_a_forwarder_that_is_being_started(
    enclave: LocalEnclave, folder: Path
) -> None:
    late = forward(enclave, folder / "f")
    timer = threading.Timer(0.3, late.start)
    timer.start()
    with client_of(enclave, late) as client:
        assert client.get("/").status_code == 200
    timer.join()
    late.stop(0)


# -- ends of a forwarder --------------------------------------------------------------------------


def test_a_kill_in_the_middle_is_never_the_end_of_an_answer(folder: Path) -> None:
    """An answer without a length ends with the connection, which a killed process ends as well."""

    def script(connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        connection.wait_closed(HANG)

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:
        with Program(enclave, folder / "f") as program:
            client = client_of(enclave, program)
            with client.stream("GET", "/") as answer:
                pieces = answer.iter_raw()
                assert next(pieces) == b"half"
                program.kill()
                with pytest.raises(ConnectionClosed) as caught:
                    next(pieces)
        assert caught.value.retryable


def test_the_end_of_the_workload_is_the_end_of_an_answer(folder: Path) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nwhole")

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
        client_of(enclave, forwarder) as client,
    ):
        assert client.get("/").content == b"whole"


def test_a_lost_channel_is_never_the_end_of_an_answer(folder: Path) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        connection.wait_closed(HANG)

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
        client_of(enclave, forwarder) as client,
        client.stream("GET", "/") as answer,
    ):
        pieces = answer.iter_raw()
        assert next(pieces) == b"half"
        enclave.drop_connections()
        with pytest.raises(ConnectionClosed):
            next(pieces)


def test_a_channel_that_leads_nowhere_is_given_up(
    enclave: LocalEnclave, forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a client that has its own: requests time out, and later ones find a new channel."""
    monkeypatch.setattr("enclavia._exchange.tunnel.SILENCE", 0.3)
    with client_of(enclave, forwarder) as client:
        assert client.get("/", headers={"Connection": "close"}).status_code == 200
        enclave.set_faults(Fault.SILENT_STREAMS)
        for _ in range(3):
            with pytest.raises(enclavia.ReadTimeout):
                client.get("/", timeout=httpx2.Timeout(5, read=0.2))
        enclave.set_faults()
        assert client.get("/").status_code == 200
    eventually(lambda: forwarder.stats.connects == 2)


def test_a_client_that_leaves_while_others_are_answered_ends_no_channel(
    enclave: LocalEnclave, forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclavia._exchange.tunnel.SILENCE", 0.0)
    with client_of(enclave, forwarder) as client:
        for _ in range(3):
            assert client.get("/").status_code == 200
    with client_of(enclave, forwarder) as client:
        assert client.get("/").status_code == 200
    assert forwarder.stats.connects == 1


def test_a_post_is_not_sent_twice_when_the_forwarder_is_killed(folder: Path) -> None:
    got = threading.Event()
    bodies: list[bytes] = []

    def script(connection: Connection) -> None:
        head, _ = connection.request()
        bodies.append(head.split(b" ")[0])
        got.set()
        if len(bodies) > 1:
            connection.send(OK)
        connection.wait_closed(HANG)

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:
        for method, count in (("POST", 1), ("GET", 2)):
            bodies.clear()
            got.clear()
            with Program(enclave, folder / "f") as program:
                client = client_of(enclave, program)

                def kill_and_start(killed: Program = program) -> None:
                    assert got.wait(HANG)
                    killed.kill()
                    killed.start()

                killer = threading.Thread(target=kill_and_start)
                killer.start()
                if method == "POST":
                    with pytest.raises((ConnectionClosed, IncompleteResponse)) as caught:
                        client.request(method, "/")
                    assert caught.value.retryable  # it is the caller's to decide
                else:
                    assert client.request(method, "/").text == "ok"
                killer.join()
                client.close()
            assert bodies == [method.encode()] * count


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_head_that_was_sent_in_part_may_have_arrived(
    enclave: LocalEnclave,
    forwarder: Forwarder,
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """So what must not be sent twice is not, when its connection takes a part of the first bytes
    and then breaks."""
    connect = Place.connect
    taken: list[int] = []

    def break_first(place: Place) -> LocalSocket:
        if place.path.endswith(".control") or taken:
            return connect(place)
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        taken.append(0)

        def take_a_part() -> None:
            with theirs:
                taken[0] = len(theirs.recv(1000))

        threading.Thread(target=take_a_part).start()
        return LocalSocket(ours.detach())

    with client_of(enclave, forwarder) as client:
        client.get("/", headers={"Connection": "close"})
        seen.bodies.clear()
        monkeypatch.setattr(Place, "connect", break_first)
        if method == "PUT":
            assert client.put("/", content=bytes(12_000)).status_code == 200
        else:
            with pytest.raises(ConnectionClosed) as caught:
                client.post("/", content=bytes(12_000))
            assert caught.value.retryable  # it is the caller's to decide
        assert taken[0] > 0
        assert len(seen.bodies) == (1 if method == "PUT" else 0)


def test_draining_lets_requests_end(folder: Path) -> None:
    asked, answer = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        connection.head()
        asked.set()
        assert answer.wait(HANG)
        connection.send(OK)
        connection.wait_closed(HANG)

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:
        forwarder = forward(enclave, folder / "f").start()
        client = client_of(enclave, forwarder)
        results: list[str] = []
        caller = threading.Thread(target=lambda: results.append(client.get("/").text))
        caller.start()
        assert asked.wait(HANG)
        stopper = threading.Thread(target=forwarder.stop, args=(HANG,))
        stopper.start()
        eventually(lambda: not (folder / "f").exists())
        late = client_of(enclave, forwarder, patience=0)
        with pytest.raises(ConnectError):
            late.get("/")
        answer.set()
        caller.join()
        assert results == ["ok"]
        stopper.join()  # also while the client keeps its connection for another request
        client.close()
        assert not forwarder.running


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_second_stop_ends_what_the_first_one_waits_for(folder: Path, kind: str) -> None:
    asked = threading.Event()

    def script(connection: Connection) -> None:
        connection.head()
        asked.set()
        connection.wait_closed(HANG)

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:
        given = {"pcrs": enclave.pcrs, "root": enclave.root, "socket": folder / "f"}
        forwarder: Any = (Forwarder if kind == "sync" else AsyncForwarder)(enclave.url, **given)

        def stop(drain: float) -> None:
            if kind == "sync":
                forwarder.stop(drain)
            else:
                anyio.run(forwarder.stop, drain)

        if kind == "sync":
            forwarder.start()
        else:
            anyio.run(forwarder.__aenter__)
        with contextlib.closing(raw(forwarder.path)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert asked.wait(HANG)
            first = threading.Thread(target=stop, args=(1e6,), daemon=True)
            first.start()
            eventually(lambda: not (folder / "f").exists())
            longer = threading.Thread(target=stop, args=(2e6,), daemon=True)
            longer.start()  # which prolongs nothing
            second = threading.Thread(target=stop, args=(0,), daemon=True)
            second.start()
            for thread in (second, first, longer):
                thread.join(HANG)
                assert not thread.is_alive()
        assert not forwarder.running


def test_a_start_that_a_signal_interrupts_leaves_the_place_free(
    enclave: LocalEnclave, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler raises while the thread begins: whoever called it has no forwarder to stop."""

    class _Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise _Interrupted

    begin = Server.start

    async def interrupted(server: Server) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.sleep(0.2)  # the handler runs in the main thread meanwhile
        await begin(server)

    monkeypatch.setattr(Server, "start", interrupted)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(_Interrupted):
            forward(enclave, folder / "f").start()
    finally:
        signal.signal(signal.SIGUSR1, before)
    monkeypatch.setattr(Server, "start", begin)
    assert os.listdir(folder) == ["f.lock"]
    with forward(enclave, folder / "f") as forwarder, client_of(enclave, forwarder) as client:
        assert client.get("/").status_code == 200


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_thread_that_a_signal_interrupts_leaves_the_place_free(
    when: str, enclave: LocalEnclave, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler raises while Thread.start() begins the thread, or waits for it to begin."""

    class _Interrupted(BaseException):
        pass

    begin = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if thread.name == "enclavia-forwarder":
            monkeypatch.setattr(threading.Thread, "start", begin)
            if when == "after":
                begin(thread)
            raise _Interrupted
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(_Interrupted):
        forward(enclave, folder / "f").start()
    assert os.listdir(folder) == ["f.lock"]
    with forward(enclave, folder / "f") as forwarder, client_of(enclave, forwarder) as client:
        assert client.get("/").status_code == 200


def test_sigterm_drains_and_sighup_reloads(folder: Path) -> None:
    """As a service manager does it, with the command."""
    asked, answer = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        while True:
            head = connection.head()
            if b"/slow" in head:
                asked.set()
                assert answer.wait(HANG)
            connection.send(OK)

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:
        pins = folder / "pins.json"
        pins.write_text(json.dumps(pins_of(enclave.pcrs)))
        with Program(enclave, folder / "f", pins=pins) as program:
            client = client_of(enclave, program)
            assert client.get("/").text == "ok"
            pins.write_text("not pins")
            program.signal(signal.SIGHUP)
            program.expect("kept the old pins")
            assert client.get("/").text == "ok"
            pins.write_text(json.dumps(pins_of(OTHER)))
            program.signal(signal.SIGHUP)
            program.expect("reloaded")
            with pytest.raises(EnclaviaError):
                client.get("/")
            with pytest.raises(PcrMismatch):
                client.get("/")
            pins.write_text(json.dumps(pins_of(enclave.pcrs)))
            program.signal(signal.SIGHUP)
            program.expect("reloaded")
            results: list[str] = []
            caller = threading.Thread(target=lambda: results.append(client.get("/slow").text))
            caller.start()
            assert asked.wait(HANG)
            program.signal(signal.SIGTERM)
            eventually(lambda: not (folder / "f").exists())
            answer.set()
            caller.join()
            assert results == ["ok"]
            assert program.wait() == 0


def test_a_program_that_cannot_read_its_pins_and_cannot_be_heard_drains(folder: Path) -> None:
    """The file has become a FIFO, which takes for ever to be read, and nobody reads what the
    program says: neither is a reason to cut what goes on, nor to stay."""
    asked, answer = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        while True:
            if b"/slow" in connection.head():
                asked.set()
                assert answer.wait(HANG)
            connection.send(OK)

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:
        pins = folder / "pins.json"
        with Program(enclave, folder / "f", pins=None) as program:
            program.expect("verified")
            client = client_of(enclave, program)
            assert client.get("/").text == "ok"
            program.close()
            program.signal(signal.SIGHUP)  # and it would say that it has reloaded them
            reloaded = "enclavia_forwarder_reloads_total 1.0"
            eventually(lambda: reloaded in ask_control(program, "/metrics").text)
            pins.unlink()
            os.mkfifo(pins)
            program.signal(signal.SIGHUP)
            writer = opened_by_a_reader(pins)
            results: list[str] = []
            caller = threading.Thread(target=lambda: results.append(client.get("/slow").text))
            caller.start()
            assert asked.wait(HANG)
            program.signal(signal.SIGTERM)
            eventually(lambda: not (folder / "f").exists())
            program.signal(signal.SIGHUP)  # which ends nothing
            answer.set()
            caller.join()
            assert results == ["ok"]
            assert program.wait() == 0
            os.close(writer)


def test_signals_in_a_burst_keep_no_program_from_ending(
    enclave: LocalEnclave, folder: Path
) -> None:
    """A handler that waits for what the code it has interrupted holds would wait for ever."""
    with Program(enclave, folder / "f") as program:
        program.expect("verified")
        for _ in range(2000):
            program.signal(signal.SIGHUP)
            time.sleep(0.0003)  # each on its own, and in the middle of anything
        program.signal(signal.SIGTERM)
        assert program.wait() == 0


def opened_by_a_reader(fifo: Path) -> int:
    """To be written to, once somebody has begun to read it."""
    found: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):
            found.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    eventually(is_read)
    return found[0]


def test_other_pins_end_a_channel_that_the_pool_has_retired(folder: Path) -> None:
    """One on which an answer did not come in time gets no new streams, but has those it has."""
    arrived: list[bytes] = []
    ended = threading.Event()

    def script(connection: Connection) -> None:
        with contextlib.suppress(OSError):
            while data := connection.sock.recv(65536):
                arrived.append(data)
                connection.send(b"echo:" + data)
        ended.set()

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
        raw(str(folder / "f")) as sock,
    ):
        sock.sendall(b"one")
        assert sock.recv(99) == b"echo:one"
        connections = forwarder._running.server.connections  # type: ignore[union-attr]
        (tunnel,) = connections.connecting.made
        tunnel.retire()
        forwarder._running.call(lambda: connections.pool.settle(0))  # type: ignore[union-attr]
        assert not connections.pool.handles()
        forwarder.reload(OTHER)
        assert ended.wait(HANG)
        with contextlib.suppress(OSError):
            sock.sendall(b"two")
            assert sock.recv(99) == b""
        assert arrived == [b"one"]


def test_a_client_that_leaves_in_a_stalled_upload_frees_its_place(folder: Path) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        leave.wait(4 * HANG)  # or its own end would free the place

    leave = threading.Event()
    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        forward(enclave, folder / "f") as forwarder,
    ):
        try:
            with raw(str(folder / "f")) as sock:
                sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
                sock.settimeout(1)
                with pytest.raises(TimeoutError):
                    sock.sendall(bytes(64 * 2**20))
                assert forwarder.stats.streams_active == 1
            eventually(lambda: not forwarder.stats.streams_active)
        finally:
            leave.set()


def pins_of(pcrs: Pcrs) -> dict[str, dict[str, str]]:
    return {"pcrs": {"PCR0": pcrs.pcr0.hex(), "PCR1": pcrs.pcr1.hex(), "PCR2": pcrs.pcr2.hex()}}


class Program:
    """A forwarder in a process of its own, which can be killed."""

    def __init__(self, enclave: LocalEnclave, path: Path, pins: Path | None = None) -> None:
        self.via = f"unix:{path}"
        self.path = str(path)
        self._folder = path.parent
        root = path.parent / "root.pem"
        root.write_bytes(enclave.root or b"")
        if pins is None:
            pins = path.parent / "pins.json"
            pins.write_text(json.dumps(pins_of(enclave.pcrs)))
        self._given = json.dumps(
            {"url": enclave.url, "socket": self.path, "root": str(root), "pins": str(pins)}
        )
        self._process: subprocess.Popen[str]

    def start(self) -> None:
        given = json.loads(self._given)
        # The program leaves a SIGHUP alone that is ignored where it is started, as under nohup(1).
        command = ["env", "--default-signal=HUP"]
        command += [sys.executable, "-m", "enclavia", "forward", given["url"]]
        for name in ("pins", "root", "socket"):
            command += ["--pcrs" if name == "pins" else f"--{name}", given[name]]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.expect("via ")

    def expect(self, word: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if word in line:
                return
        pytest.fail(f"the program ended without saying {word!r}")

    def close(self) -> None:
        """Nobody reads what it says from now on."""
        assert self._process.stdout is not None
        self._process.stdout.close()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def wait(self) -> int:
        code = self._process.wait(HANG)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def __enter__(self) -> Program:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


# -- load -----------------------------------------------------------------------------------------

LONG = os.environ.get("ENCLAVIA_FORWARD_REQUESTS")
REQUESTS = int(LONG or 2000)
KILLS = 20 if LONG else 3

CALLER = """
import json, sys, threading
from pathlib import Path
from enclavia import Client, EnclaviaError, Pcrs

given = json.loads(sys.argv[1])
client = Client(given["url"], pcrs=Pcrs.load(given["pins"]), root=Path(given["root"]).read_bytes(),
                via=given["via"], max_in_flight=4, timeout=60)
failed = []

def work(thread):
    for number in range(thread, given["requests"], 4):
        name = f"{given['name']}-{number}"
        method = "POST" if number % 3 == 0 else "PUT"
        try:
            answer = client.request(method, "/" + name, content=name.encode() * 3)
            assert answer.content == name.encode() * 3, answer
        except EnclaviaError as error:
            failed.append([name, method, type(error).__name__, error.retryable, str(error)])

threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps(failed))
"""


def call_from_processes(
    enclave: LocalEnclave, program: Program, folder: Path, meanwhile: Any = lambda: None
) -> list[list[Any]]:
    each = REQUESTS // 8
    given = json.loads(program._given) | {"via": program.via, "requests": each}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CALLER, json.dumps(given | {"name": f"p{number}"})],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    meanwhile()
    failed = []
    for process in processes:
        out, _ = process.communicate(timeout=HANG * 10)
        assert process.returncode == 0
        failed += json.loads(out)
    return failed


def test_eight_processes_share_one_channel(enclave: LocalEnclave, folder: Path, seen: Seen) -> None:
    with Program(enclave, folder / "f") as program:
        assert call_from_processes(enclave, program, folder) == []
    each = REQUESTS // 8
    asked = [line.split(b" ")[1] for line in seen.bodies]
    expected = sorted(b"/p%d-%d" % (p, n) for p in range(8) for n in range(each))
    assert sorted(asked) == expected  # none lost, none doubled
    assert enclave.stats()["connections_total"] == 1


def test_a_forwarder_killed_under_load(enclave: LocalEnclave, folder: Path, seen: Seen) -> None:
    """What may be sent again is, and comes through; of the others each reached the workload once at
    most, and its caller is told by an error where it may not have."""
    with Program(enclave, folder / "f") as program:

        def kill() -> None:
            for number in range(KILLS):
                eventually(lambda at=number: len(seen.bodies) > (at + 1) * REQUESTS // (KILLS + 2))
                program.kill()
                program.start()

        failed = call_from_processes(enclave, program, folder, kill)
    each = REQUESTS // 8
    counts: dict[bytes, int] = {}
    for line in seen.bodies:
        method, target, *_ = line.split(b" ")
        counts[method + target] = counts.get(method + target, 0) + 1
    lost = {name for name, *_ in failed}
    for name, method, kind, retryable, message in failed:
        assert method == "POST", (name, kind, retryable, message)
        assert kind in ("ConnectionClosed", "IncompleteResponse")
        assert retryable
    for process in range(8):
        for number in range(each):
            name = f"p{process}-{number}"
            if number % 3 == 0:
                count = counts.get(f"POST/{name}".encode(), 0)
                assert count == 1 or (count == 0 and name in lost), name
            else:
                assert 1 <= counts[f"PUT/{name}".encode()] <= 3


# -- limits and leftovers -------------------------------------------------------------------------

CROWD = """
import logging, resource, socket, sys
from pathlib import Path
import json
from enclavia import Forwarder, Pcrs

logging.basicConfig(level=logging.WARNING)
given = json.loads(sys.argv[1])
forwarder = Forwarder(given["url"], pcrs=Pcrs.load(given["pins"]), http=True,
                      root=Path(given["root"]).read_bytes(), socket=given["socket"])
forwarder.start()
forwarder.connect()
import os
most = max(map(int, os.listdir("/proc/self/fd"))) + 8
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
print("listening", flush=True)
sys.stdin.read()
forwarder.stop(0)
"""


@pytest.mark.parametrize("which", ["", ".http", ".control"])
def test_at_the_limit_of_descriptors_connections_wait(
    enclave: LocalEnclave, folder: Path, seen: Seen, which: str
) -> None:
    program = Program(enclave, folder / "f")
    with subprocess.Popen(
        [sys.executable, "-c", CROWD, program._given],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert "listening" in process.stdout.readline()
        crowd = [raw(program.path + which) for _ in range(40)]
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for sock in crowd:
            sock.sendall(request)
        for sock in crowd:  # each makes room for another one
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            sock.close()
        assert len(seen.bodies) == (0 if which == ".control" else 40)
        _, told = process.communicate("")
        assert process.returncode == 0
        # Once, not for each connection. It may also say that it cut the last that were closing.
        assert told.count("cannot take more connections") == 1, told


SILENT = """
import json, logging, resource, sys
from pathlib import Path
from enclavia import Forwarder, Pcrs
from enclavia._forward import serving

logging.basicConfig(level=logging.WARNING)
serving._HEAD_SECONDS = 10_000
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
given = json.loads(sys.argv[1])
forwarder = Forwarder(given["url"], pcrs=Pcrs.load(given["pins"]), socket=given["socket"],
                      root=Path(given["root"]).read_bytes(), listen="127.0.0.1:0",
                      way=sys.argv[2], token=None if sys.argv[2] == "stream" else "t" * 20)
forwarder.start()
print(forwarder.address[1], flush=True)
sys.stdin.read()
forwarder.stop(0)
"""


@pytest.mark.parametrize("way", ["http", "stream"])
def test_a_crowd_at_the_tcp_port_leaves_room_for_the_sockets(
    enclave: LocalEnclave, folder: Path, way: str
) -> None:
    program = Program(enclave, folder / "f")
    with subprocess.Popen(
        [sys.executable, "-c", SILENT, program._given, way],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process, contextlib.ExitStack() as ends:  # fmt: skip
        assert process.stdout is not None
        port = int(process.stdout.readline())
        for _ in range(120):  # none of which says a word
            ends.enter_context(socket.create_connection(("127.0.0.1", port), HANG))
        with raw(program.path + ".control") as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        if way == "http":
            with client_of(enclave, program) as client:
                assert client.get("/").status_code == 200
            ends.close()  # then those who have waited get their turn
            with socket.create_connection(("127.0.0.1", port), HANG) as late:
                late.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert late.recv(65536).startswith(b"HTTP/1.1 407")
        _, told = process.communicate("")
        assert process.returncode == 0
        assert "cannot take more connections" not in told


def test_where_there_is_no_descriptor_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    unraised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    with pytest.raises(OSError, match="Bad file descriptor"):
        LocalSocket(2**20)
    gc.collect()
    assert unraised == []


def test_a_forked_child_keeps_nothing_open(enclave: LocalEnclave, folder: Path) -> None:
    """Or a client would wait at a socket that nobody listens at, for a forwarder that has ended."""
    forwarder = forward(enclave, folder / "f").start()
    client = client_of(enclave, forwarder)
    client.get("/")
    read, write = os.pipe()
    answered, answer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.close(write)
            ok = client.get("/").status_code == 200  # over a connection of its own
            ok = ok and not forwarder.running
            client.close()
            forwarder.stop()
            os.write(answer, b"1")
            os.read(read, 1)
            os._exit(0 if ok else 1)
        except BaseException:
            os._exit(2)
    os.close(read)
    os.close(answer)
    assert client.get("/").status_code == 200
    assert os.read(answered, 1) == b"1"
    os.close(answered)
    forwarder.stop(0)
    with pytest.raises(ConnectError):
        client_of(enclave, forwarder, patience=0).get("/")
    with forward(enclave, folder / "f") as again, client_of(enclave, again) as fresh:
        assert fresh.get("/").status_code == 200
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    client.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_open(enclave: LocalEnclave, folder: Path) -> None:
    def once() -> None:
        with (
            forward(enclave, folder / "f", http=True, listen="127.0.0.1:0", way="stream") as f,
            client_of(enclave, f) as client,
        ):
            assert client.get("/").status_code == 200
            with raw(f.path) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert sock.recv(65536)

    once()
    gc.collect()
    before, threads = descriptors(), threading.active_count()
    for _ in range(3):
        once()
    gc.collect()
    eventually(lambda: descriptors() <= before)
    assert threading.active_count() == threads


def test_a_forgotten_forwarder_ends(enclave: LocalEnclave, folder: Path) -> None:
    forward(enclave, folder / "f").start()
    gc.collect()
    eventually(lambda: not (folder / "f").exists())


@pytest.mark.parametrize("value", ["1", b"", True, float("nan"), -1, [], None])
def test_what_is_no_number_of_seconds(forwarder: Forwarder, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"drain: expected .* got"):
        forwarder.stop(value)
    if value is not None:
        with pytest.raises((TypeError, ValueError), match=r"timeout: expected .* got"):
            forwarder.connect(value)
    assert forwarder.running


def test_misuse_is_told(enclave: LocalEnclave, folder: Path) -> None:
    forwarder = forward(enclave, folder / "f")
    for call in (lambda: forwarder.stats, lambda: forwarder.attestation, forwarder.connect):
        with pytest.raises(StateError, match="expected a forwarder that runs"):
            call()
    with forwarder:
        with pytest.raises(StateError, match="that does not run"):
            forwarder.start()
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(forwarder)
        assert "running" in repr(forwarder)
    assert "not running" in repr(forwarder)
    forwarder.stop()


# -- TCP ------------------------------------------------------------------------------------------


def test_a_tcp_port_of_the_stream_way(enclave: LocalEnclave, folder: Path) -> None:
    with forward(enclave, folder / "f", listen="127.0.0.1:0", way="stream") as forwarder:
        assert forwarder.address is not None
        with socket.create_connection(forwarder.address) as sock:
            sock.settimeout(HANG)
            sock.sendall(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
            assert sock.recv(65536).endswith(b"hi")
            enclave.drop_connections()
            with pytest.raises(ConnectionResetError):
                read_all(sock)  # no orderly end: it might be taken for the end of an answer


@contextlib.contextmanager
def unix_client(path: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=path), timeout=HANG) as client:
        yield client


def ask_control(forwarder: Forwarder | Program, path: str) -> httpx2.Response:
    with unix_client(forwarder.path + ".control") as client:
        return client.get("http://forwarder" + path)


def test_a_program_has_the_loop_that_is_installed(
    enclave: LocalEnclave, folder: Path, own_loop: str
) -> None:
    with Program(enclave, folder / "f") as program:
        assert ask_control(program, "/healthz").json()["event_loop"] == own_loop


def test_health_and_metrics(enclave: LocalEnclave, forwarder: Forwarder, own_loop: str) -> None:
    assert ask_control(forwarder, "/healthz").json() == {
        "status": "idle",
        "channels": 0,
        "event_loop": own_loop,
    }
    with client_of(enclave, forwarder) as client:
        client.get("/")
        assert ask_control(forwarder, "/healthz").json() == {
            "status": "ok",
            "channels": 1,
            "event_loop": own_loop,
        }
        metrics = ask_control(forwarder, "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "enclavia_forwarder_connections_total 1.0" in metrics.text
    assert "enclavia_forwarder_channels 1.0" in metrics.text
    enclave.set_faults(Fault.WRONG_PCRS)
    enclave.drop_connections()
    with contextlib.suppress(EnclaviaError), client_of(enclave, forwarder) as client:
        client.get("/")
    answer = ask_control(forwarder, "/healthz")
    assert ask_control(forwarder, "/nothing").status_code == 404
    assert answer.status_code in (200, 503)
    enclave.set_faults()
