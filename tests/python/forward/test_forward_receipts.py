"""Receipts, ``on_attestation`` and fresh documents, of a forwarder and of clients that go by way of
one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moved_clock import Clock, moved_clock
from support import HANG, ByteServer, Connection, byte_enclave, eventually, keywords, ok

import enclavia
from enclavia import AttestationRefused, Client, Forwarder, Pcrs, Receipt
from enclavia._io.loops import LoopIo
from enclavia.testing import LocalEnclave
from enclavia.testing._pki import mint


def script(connection: Connection) -> None:
    """``/hold`` begins an answer that does not end."""
    while True:
        head, _ = connection.request()
        if head.startswith(b"GET /hold"):
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            connection.wait_closed(HANG)
            return
        connection.send(ok())


Place = tuple[LocalEnclave, ByteServer]


@pytest.fixture
def place() -> Iterator[Place]:
    with byte_enclave(script, idle_timeout=1e6) as made:
        yield made


@pytest.fixture
def path() -> Iterator[Path]:
    """A short one: a Unix socket's has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="enclavia-") as made:
        yield Path(made) / "f"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    import enclavia._forward.server  # noqa: F401 - whose clock is moved too

    return moved_clock(monkeypatch)


def forward(enclave: LocalEnclave, path: Path, **options: Any) -> Forwarder:
    return Forwarder(enclave.url, socket=path, **keywords(enclave, **options))


def by_way_of(enclave: LocalEnclave, forwarder: Forwarder, **options: Any) -> Client:
    return Client(enclave.url, via=forwarder.via, **keywords(enclave, **options))


def refusing(receipt: Receipt) -> None:
    raise LookupError("unknown")


def test_both_have_receipts_of_the_same_document(place: Place, path: Path) -> None:
    enclave, _ = place
    told: list[Receipt] = []
    with (
        forward(enclave, path, on_attestation=told.append) as forwarder,
        by_way_of(enclave, forwarder) as client,
    ):
        response = client.get("/")
        (receipt,) = client.receipts
        assert response.extensions["enclavia"] is receipt
        assert forwarder.receipts == tuple(told)
        assert receipt.via == forwarder.via
        assert told[0].via is None
        assert receipt.document == told[0].document
        assert receipt.handshake_hash == told[0].handshake_hash
        assert set(told[0].checked) - set(receipt.checked) == {"nonce"}
        for each in (receipt, told[0]):
            Receipt.from_json(str(each)).verify(root=enclave.root, pcrs=enclave.pcrs)
        with client.stream("GET", "/") as streamed:
            assert streamed.extensions["enclavia"] is receipt


def test_a_forwarder_forwards_nothing_over_a_refused_channel(place: Place, path: Path) -> None:
    enclave, server = place
    with forward(enclave, path, on_attestation=refusing) as forwarder:
        client = by_way_of(enclave, forwarder)
        with pytest.raises(enclavia.AttestationRefused, match="LookupError: unknown"):
            client.post("/", content=b"secret")
        client.close()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(HANG)
            sock.connect(forwarder.path)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert sock.recv(1) == b""
    assert server.connections == []
    assert enclave.stats()["streams_total"] == 0


def test_a_channel_that_nobody_has_agreed_to_yet_is_shown_to_nobody(
    place: Place, path: Path
) -> None:
    enclave, _ = place
    asked: list[Any] = []

    def hook(receipt: Receipt) -> None:
        running = forwarder._running.server  # type: ignore[union-attr]
        shown = asyncio.run_coroutine_threadsafe(running.describe(), running._loop)
        with contextlib.suppress(TimeoutError):
            shown.result(0.5)
        asked.append((shown, shown.done()))

    with forward(enclave, path, on_attestation=hook) as forwarder, held(forwarder):
        ((shown, done),) = asked
        assert not done
        told = shown.result(HANG)
        assert base64.b64decode(told["document"]) == forwarder.receipts[0].document
        assert enclave.stats()["attestations_total"] == 1


def test_a_client_that_refuses_sends_nothing(place: Place, path: Path) -> None:
    enclave, server = place
    with forward(enclave, path) as forwarder:
        client = by_way_of(enclave, forwarder, on_attestation=refusing)
        with pytest.raises(enclavia.AttestationRefused, match="LookupError"):
            client.post("/", content=b"secret")
        client.close()
    assert server.connections == []
    assert enclave.stats()["streams_total"] == 0


@contextlib.contextmanager
def held(forwarder: Forwarder) -> Iterator[None]:
    """Its channel is in use, so that it does not end for being idle. No client has asked yet."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(HANG)
        sock.connect(forwarder.path)
        sock.sendall(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(1) == b"H"
        yield


def test_a_document_that_is_shown_is_fresh(place: Place, path: Path, clock: Clock) -> None:
    """Also to the first client that asks, however long the channel was open before."""
    enclave, _ = place
    with forward(enclave, path) as forwarder, held(forwarder):
        (first,) = forwarder.receipts
        clock.ahead += 301
        with by_way_of(enclave, forwarder) as client:
            assert client.receipts[0].document != first.document
        clock.ahead += 298
        with by_way_of(enclave, forwarder) as other:
            assert other.receipts[0].document == client.receipts[0].document
        assert enclave.stats()["attestations_total"] == 2
        assert [each.reason for each in forwarder.receipts] == ["connect", "fresh"]
        assert (forwarder.stats.connects, forwarder.stats.reattestations) == (1, 1)


def test_many_who_ask_at_once_have_one_document_asked_for(
    place: Place, path: Path, clock: Clock
) -> None:
    """An enclave's channel takes 16 questions at once; a fleet that starts has more."""
    enclave, _ = place
    with forward(enclave, path) as forwarder, held(forwarder):
        clock.ahead += 301
        found: list[int] = []
        clients = [by_way_of(enclave, forwarder) for _ in range(40)]
        threads = [
            threading.Thread(target=lambda each=each: found.append(each.get("/").status_code))
            for each in clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG)
        assert found == [200] * 40
        assert forwarder.stats.reattestations == 1
        for client in clients:
            client.close()


def test_a_document_that_a_client_asks_its_forwarder_for_is_told(place: Place, path: Path) -> None:
    enclave, _ = place
    told: list[Receipt] = []
    with (
        forward(enclave, path) as forwarder,
        by_way_of(enclave, forwarder, on_attestation=told.append) as client,
    ):
        client._enclave._verify_again(HANG)
        assert [receipt.reason for receipt in told] == ["connect", "fresh"]
        assert told[1].via == f"unix:{path}"
        assert client.receipts == tuple(told)
        assert client.get("/").extensions["enclavia"] is told[1]
        assert (client.stats.connects, client.stats.reattestations) == (1, 1)


def test_a_client_may_refuse_it(place: Place, path: Path) -> None:
    enclave, server = place

    def hook(receipt: Receipt) -> None:
        if receipt.reason == "fresh":
            refusing(receipt)

    with (
        forward(enclave, path) as forwarder,
        by_way_of(enclave, forwarder, on_attestation=hook) as client,
    ):
        with pytest.raises(AttestationRefused):
            client._enclave._verify_again(HANG)
        assert client.stats.channels == 0
        assert [receipt.reason for receipt in client.receipts] == ["connect"]
        assert not server.connections


def test_a_forwarder_that_has_another_identity_by_now(
    place: Place, path: Path, clock: Clock
) -> None:
    """Its sockets of the earlier one lead to no channel of the other: the client begins anew."""
    enclave, _ = place
    before, after = enclave.pcrs, Pcrs(pcr0=b"\x71" * 48, pcr1=b"\x72" * 48, pcr2=b"\x73" * 48)
    told: list[Receipt] = []
    with (
        forward(enclave, path, pcrs=[before, after]) as forwarder,
        by_way_of(enclave, forwarder, pcrs=[before, after], on_attestation=told.append) as client,
        client.stream("GET", "/hold"),
    ):
        enclave.set_identity(pcrs=after)
        clock.ahead += 301
        (attestation,) = client._enclave._verify_again(HANG)
        assert attestation.pcrs[0] == after.pcr0
        assert told[-1].attestation == attestation
        assert [receipt.reason for receipt in told] == ["connect", "connect"]
        assert client.get("/").extensions["enclavia"] is told[-1]


def test_a_client_that_may_not_connect_again_asks_for_a_newer_document_too(
    place: Place, path: Path, clock: Clock
) -> None:
    """On a control connection of its own, and goes on over the channel that it has."""
    enclave, server = place
    with (
        forward(enclave, path) as forwarder,
        by_way_of(enclave, forwarder, auto_reconnect=False) as client,
        client.stream("GET", "/hold"),
    ):
        client.get("/")
        (tunnel,) = client._enclave._engine.pool.handles()
        clock.ahead += tunnel.validity.renew_at - clock() + 1
        after = client.get("/").extensions["enclavia"]
        assert after is client.receipts[1]
        assert after.reason == "fresh"
        assert after.document != client.receipts[0].document
        assert (client.stats.connects, client.stats.reattestations) == (1, 1)
        # One that does not verify ends it: there will be no other.
        enclave.set_identity(pki=mint())
        clock.ahead += tunnel.validity.ends_at - clock() + 1
        taken = len(server.connections)
        with pytest.raises(enclavia.EnclaviaError):
            client.get("/")
        with pytest.raises(enclavia.ReconnectDisabled):
            client.get("/")
        assert len(server.connections) == taken


def test_a_document_of_another_identity_ends_the_sockets_of_the_earlier_one(
    place: Place, path: Path, clock: Clock
) -> None:
    """A client was shown the earlier one, and sends nothing to the other."""
    enclave, server = place
    before, after = enclave.pcrs, Pcrs(pcr0=b"\x71" * 48, pcr1=b"\x72" * 48, pcr2=b"\x73" * 48)
    with (
        forward(enclave, path, pcrs=[before, after]) as forwarder,
        by_way_of(enclave, forwarder, pcrs=[before, after]) as client,
        client.stream("GET", "/hold"),
        socket.socket(socket.AF_UNIX) as sock,
    ):
        running = forwarder._running.server  # type: ignore[union-attr]
        (tunnel,) = running.pool.handles()
        sock.settimeout(HANG)
        sock.connect(forwarder.path + running.identity(tunnel))
        enclave.set_identity(pcrs=after)
        clock.ahead += tunnel.validity.renew_at - clock() + 1
        taken = len(server.connections)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(1) == b""
        assert forwarder.receipts[-1].attestation.pcrs[0] == after.pcr0
        assert len(server.connections) == taken


def test_a_document_that_ends_while_a_connection_waits_for_a_slot(
    place: Place, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    enclave, _ = place
    taken = LoopIo.reserve
    late: list[Any] = []

    async def reserve(self: LoopIo, *arguments: Any) -> Any:
        if not late:
            late.extend(forwarder._running.server.pool.handles())  # type: ignore[union-attr]
            clock.ahead += late[0].validity.ends_at - clock() + 1
        return await taken(self, *arguments)

    with forward(enclave, path) as forwarder, by_way_of(enclave, forwarder) as client:
        monkeypatch.setattr(LoopIo, "reserve", reserve)
        client.get("/")
        assert late
        assert forwarder.stats.connects == 2


def test_a_client_asks_its_forwarder_again_before_the_end(
    place: Place, path: Path, clock: Clock
) -> None:
    """And what it reads by way of the last answer goes on."""
    enclave, _ = place
    with (
        forward(enclave, path) as forwarder,
        by_way_of(enclave, forwarder) as client,
        client.stream("GET", "/hold") as answer,
    ):
        pieces = answer.iter_raw()
        assert next(pieces) == b"hello"
        (tunnel,) = client._enclave._engine.pool.handles()
        clock.ahead += tunnel.validity.renew_at - clock() + 1
        after = client.get("/").extensions["enclavia"]
        assert after is client.receipts[1]
        assert after.reason == "connect"
        assert after.document != client.receipts[0].document
        assert after.handshake_hash == client.receipts[0].handshake_hash
        assert (forwarder.stats.connects, client.stats.connects) == (1, 2)
        del pieces
    eventually(lambda: enclave.stats()["slots_open"] == 0)
