"""Long-lived channels: a fresh document before the certificates of the last one end, and what
becomes of a channel that gives none. The clock is the test's."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import httpx2
import pytest
from forked import in_child
from hypothesis import given
from hypothesis import strategies as st
from moved_clock import Clock, moved_clock
from support import (
    HANG,
    KINDS,
    ByteServer,
    Connection,
    Face,
    byte_enclave,
    eventually,
    keywords,
    ok,
    with_client,
)

import enclavia
from enclavia import Receipt
from enclavia._exchange import renewal, validity
from enclavia._exchange.validity import Validity, renew_at
from enclavia._io.face import run
from enclavia._io.threads import ThreadIo
from enclavia._pool.kinds import Job
from enclavia.testing import Fault, LocalEnclave
from enclavia.testing._pki import mint

HOURS = 3600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return moved_clock(monkeypatch)


def script(connection: Connection) -> None:
    """``/hold`` begins an answer that ends when the client gives it up: the channel is in use."""
    while True:
        head, _ = connection.request()
        if head.startswith(b"GET /hold"):
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            connection.wait_closed(HANG)
            return
        connection.send(ok())


@pytest.fixture
def place() -> Iterator[tuple[LocalEnclave, ByteServer]]:
    with byte_enclave(script, idle_timeout=1e6) as made:
        yield made


Place = tuple[LocalEnclave, ByteServer]


def tunnel_of(client: Any) -> Any:
    (tunnel,) = client._enclave._engine.pool.handles()
    return tunnel


def until_due(clock: Clock, client: Any) -> None:
    clock.ahead += tunnel_of(client).validity.renew_at - clock() + 1


def until_ended(clock: Clock, client: Any) -> None:
    clock.ahead += tunnel_of(client).validity.ends_at - clock() + 1


@contextlib.contextmanager
def held(enclave: LocalEnclave, **options: Any) -> Iterator[Any]:
    """A blocking client with a channel that is in use, so that it does not end for being idle."""
    with (
        enclavia.Client(enclave.url, **keywords(enclave, **options)) as client,
        client.stream("GET", "/hold") as response,
    ):
        pieces = response.iter_raw()
        assert next(pieces) == b"hello"
        yield client
        del pieces  # not before: its end would be the answer's


# ---------------------------------------------------------------------------------------------
# The moment


def test_when() -> None:
    assert renew_at(0.0, 3 * HOURS, 0.0) == 3 * HOURS - 600
    assert renew_at(0.0, 3 * HOURS, 1.0) == 3 * HOURS - 120
    assert renew_at(100.0, 40.0, 0.0) == 130.0
    assert renew_at(100.0, 40.0, 1.0) == 138.0
    assert renew_at(100.0, 0.0, 0.5) == 100.0


@given(
    left=st.floats(0, 30 * 365 * 24 * HOURS),
    jitter=st.floats(0, 1),
    present=st.floats(0, 1e9),
)
def test_it_is_before_the_end_and_not_at_once(left: float, jitter: float, present: float) -> None:
    moment = renew_at(present, left, jitter)
    assert present <= moment <= present + left
    assert moment >= present + 0.75 * left - 1e-6 * (present + left)
    # In AWS's practice the next certificate is there by then.
    assert moment >= present + left - 15 * 60
    if left > 1e-3 and jitter > 1e-3:
        assert moment >= renew_at(present, left, 0.0)


@given(jitters=st.lists(st.floats(0, 1), min_size=60, max_size=60))
def test_a_certificate_that_is_not_replaced_is_not_asked_about_without_end(
    jitters: list[float],
) -> None:
    left = 3 * HOURS
    asked = 0
    for jitter in jitters:
        left -= renew_at(0.0, left, jitter)
        left = float(int(left))  # as seconds of certificates are whole
        asked += 1
        if left == 0:
            break
    assert left == 0
    assert asked < 40


def document(left: int) -> dict[str, int]:
    return {"verified_at": 5000, "valid_until": 5000 + left}


@given(left=st.integers(0, 20_000), present=st.floats(0, 1e6))
def test_one_that_was_verified_counts_for_a_second(left: int, present: float) -> None:
    validity = Validity.of(document(left), present)
    assert present <= validity.renew_at <= validity.ends_at
    assert validity.renew_at - present > 0.7
    assert validity.ends_at - present == pytest.approx(max(left, 1))


@given(left=st.floats(0, 600))
def test_one_that_does_not_come_is_not_asked_for_at_once(left: float) -> None:
    present = 100.0
    later = Validity(0.0, present, present + left).asked_in_vain(present)
    assert min(present + 1, later.ends_at) <= later.renew_at <= later.ends_at == present + left


# ---------------------------------------------------------------------------------------------
# What happens then


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_document_on_the_same_channel(kind: str, place: Place, clock: Clock) -> None:
    enclave, _ = place
    told: list[Receipt] = []

    async def case(client: Face) -> None:
        async with client.stream("GET", "/hold"):
            first = await client.get("/")
            clock.ahead += tunnel_of(client.client).validity.renew_at - clock() - 60
            assert (await client.get("/")).extensions["enclavia"] is told[0]
            assert enclave.stats()["attestations_total"] == 1
            clock.ahead += 61
            after = await client.get("/")
            assert enclave.stats()["attestations_total"] == 2
            assert [receipt.reason for receipt in told] == ["connect", "fresh"]
            assert client.client.receipts == tuple(told)
            assert first.extensions["enclavia"] is told[0]
            assert after.extensions["enclavia"] is told[1]
            assert told[0].handshake_hash == told[1].handshake_hash
            assert client.client.attestation == told[1].attestation
            stats = client.client.stats
            assert (stats.connects, stats.reattestations) == (1, 1)
            # And again before the end of the new one.
            await client.get("/")
            assert client.client.stats.reattestations == 1
            until_due(clock, client.client)
            await client.get("/")
            assert client.client.stats.reattestations == 2
            told[2].verify(root=enclave.root, pcrs=enclave.pcrs)

    with_client(kind, enclave, case, on_attestation=told.append)


def test_a_certificate_of_a_chain_that_ends_first(place: Place, clock: Clock) -> None:
    """Not only the enclave's own."""
    from enclavia.testing._pki import specs

    enclave, _ = place
    chain = specs()
    soon = chain[0].not_before + timedelta(minutes=40)
    chain[2] = dataclasses.replace(chain[2], not_after=soon)
    enclave.set_identity(pki=mint(chain=chain))
    with held(enclave) as client:
        assert client.attestation.valid_until == soon
        clock.ahead += 38.8 * 60
        client.get("/")
        assert client.stats.reattestations == 1


@pytest.mark.parametrize(
    ("begins", "lasts"),
    [
        pytest.param(timedelta(seconds=50), timedelta(hours=3), id="begins later"),
        pytest.param(timedelta(0), timedelta(minutes=8), id="ends soon"),
    ],
)
def test_one_document_for_many_requests(
    begins: timedelta, lasts: timedelta, place: Place, clock: Clock
) -> None:
    """Of one that passed by ``clock_leeway`` alone, and of one whose end is nearer than the
    earliest moment at which another is asked for."""
    enclave, _ = place
    enclave.set_identity(pki=mint(datetime.now(UTC) + begins, lasts))
    with held(enclave) as client:
        for asked in (1, 2, 3):
            for _ in range(10):
                client.get("/")
            assert enclave.stats()["attestations_total"] == asked
            until_due(clock, client)
        assert client.stats.connects == 1


def test_a_connection_that_was_not_used_is_as_old_as_before(place: Place, clock: Clock) -> None:
    """Its server has closed it by then, however lately it was looked at."""
    enclave, _ = place
    with enclavia.Client(enclave.url, **keywords(enclave)) as client:
        client.get("/")
        engine = client._enclave._engine
        (member,) = engine.pool._members.all
        before = member.idle[-1][0]
        clock.ahead += 1
        run(engine.connect(engine.timeouts))
        assert member.idle[-1][0] == before
        tunnel = tunnel_of(client)
        tunnel.validity = Validity(renew_at=clock())
        assert engine.connections.obtain_kept(Job(repeatable=True)) is None
        assert member.idle[-1][0] == before


def test_one_asks_and_the_others_go_on(place: Place, clock: Clock) -> None:
    enclave, _ = place
    asking, go = threading.Event(), threading.Event()

    def hook(receipt: Receipt) -> None:
        if receipt.reason == "fresh":
            asking.set()
            assert go.wait(HANG)

    with held(enclave, on_attestation=hook) as client:
        (first,) = client.receipts
        until_due(clock, client)
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(client.get("/")))
        thread.start()
        assert asking.wait(HANG)
        for _ in range(3):
            assert client.get("/").extensions["enclavia"] is first
        go.set()
        thread.join(HANG)
        assert got[0].extensions["enclavia"] is client.receipts[1]
        assert client.stats.reattestations == 1
        assert client.get("/").extensions["enclavia"] is client.receipts[1]


@pytest.fixture
def no_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """From its call on there is none to what is asked on an open channel; once the client has
    noticed that, there is one again for who connects."""
    enclave, _ = place
    monkeypatch.setattr(renewal, "RENEWAL_WAIT", 0.2)

    class Mend(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "no fresh document" in record.getMessage():
                enclave.set_faults()

    handler = Mend(logging.WARNING)
    logger = logging.getLogger("enclavia")
    logger.addHandler(handler)
    yield lambda: enclave.set_faults(Fault.SILENT_ATTESTATION)
    logger.removeHandler(handler)


@pytest.mark.parametrize("kind", KINDS)
def test_where_none_comes_the_request_connects_anew(
    kind: str, place: Place, clock: Clock, no_answer: Callable[[], None]
) -> None:
    enclave, _ = place

    async def case(client: Face) -> None:
        async with client.stream("GET", "/hold"):
            (first,) = client.client.receipts
            no_answer()
            until_due(clock, client.client)
            after = await client.get("/")
            second = client.client.receipts[-1]
            assert after.extensions["enclavia"] is second
            assert second.reason == "connect"
            assert second.handshake_hash != first.handshake_hash
            stats = client.client.stats
            assert (stats.connects, stats.reattestations) == (2, 0)

    with_client(kind, enclave, case)


def test_one_that_does_not_verify(place: Place, clock: Clock) -> None:
    """Ends the channel, and the request meets the same enclave where it connects anew."""
    enclave, server = place
    with held(enclave) as client:
        until_due(clock, client)
        taken = len(server.connections)
        root, own = enclave.root, mint()
        enclave.set_identity(pki=own)
        with pytest.raises(enclavia.CertificateError):
            client.get("/")
        assert len(server.connections) == taken
        assert len(client.receipts) == 1
        assert (client.stats.channels, client.stats.reattestations) == (0, 0)
        assert root != own.root_pem


def test_another_image_meanwhile(place: Place, clock: Clock) -> None:
    """Who pins both goes on with the other one, and its receipt says which."""
    enclave, _ = place
    before = enclave.pcrs
    after = enclavia.Pcrs(pcr0=b"\x71" * 48, pcr1=b"\x72" * 48, pcr2=b"\x73" * 48)
    with held(enclave, pcrs=[before, after]) as client:
        enclave.set_identity(pcrs=after)
        until_due(clock, client)
        got = client.get("/").extensions["enclavia"]
        assert got.reason == "fresh"
        assert got.attestation.pcrs[0] == after.pcr0
        assert client.receipts[0].attestation.pcrs[0] == before.pcr0
    with held(enclave, pcrs=after) as client:
        enclave.set_identity(pcrs=before)
        until_due(clock, client)
        with pytest.raises(enclavia.PcrMismatch):
            client.get("/")


def test_a_fresh_document_is_compared_with_the_pins_in_force_by_then(
    place: Place, clock: Clock
) -> None:
    """The core compares it with those that the channel was opened with."""
    enclave, server = place
    before = enclave.pcrs
    after = enclavia.Pcrs(pcr0=b"\x71" * 48, pcr1=b"\x72" * 48, pcr2=b"\x73" * 48)
    says = [before, after]
    with held(enclave, pcrs=lambda: list(says)) as client:
        says.remove(after)
        clock.ahead += 61
        client.get("/")  # the channel matches what is pinned now
        enclave.set_identity(pcrs=after)
        until_due(clock, client)
        taken = len(server.connections)
        with pytest.raises(enclavia.PcrMismatch):
            client.get("/")
        assert len(server.connections) == taken
        assert client.receipts[-1].attestation.pcrs[0] == after.pcr0


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_end_the_channel_is_not_used(kind: str, place: Place, clock: Clock) -> None:
    """As where the machine slept. Nothing is asked on it, and who reads from it reads on."""
    enclave, _ = place

    async def case(client: Face) -> None:
        async with client.stream("GET", "/hold") as old:
            until_ended(clock, client.client)
            asked = enclave.stats()["attestations_total"]
            after = await client.get("/")
            assert enclave.stats()["attestations_total"] == asked + 1
            assert after.extensions["enclavia"] is client.client.receipts[-1]
            assert client.client.receipts[-1].reason == "connect"
            assert (client.client.stats.connects, client.client.stats.reattestations) == (2, 0)
            pieces = old.raw()
            assert await anext(pieces) == b"hello"

    with_client(kind, enclave, case)


@pytest.mark.parametrize("verified_meanwhile", [False, True])
def test_a_document_that_ends_while_a_request_waits_for_its_turn(
    verified_meanwhile: bool, place: Place, clock: Clock
) -> None:
    """It is the end of the wait that counts, not its beginning, also for a document that came
    during the wait."""
    enclave, _ = place
    with (
        enclavia.Client(
            enclave.url,
            **keywords(enclave, timeout=HANG, limits=httpx2.Limits(max_connections=1)),
        ) as client,
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        with client.stream("GET", "/hold") as response:
            pieces = response.iter_raw()
            assert next(pieces) == b"hello"
            waits = threads.submit(client.get, "/")
            eventually(lambda: client.stats.waiting == 1)
            if verified_meanwhile:
                run(client._enclave._engine.connections.renewal.fresh(tunnel_of(client), HANG))
            until_ended(clock, client)
            del pieces
        assert waits.result(HANG).extensions["enclavia"].reason == "connect"
        assert client.stats.connects == 2


class Pinned:
    """What is asked for pins; its answers change while a request waits."""

    def __init__(self, enclave: LocalEnclave) -> None:
        self.pcrs = enclave.pcrs

    def __call__(self) -> enclavia.Pcrs:
        return self.pcrs

    def change(self) -> None:
        self.pcrs = enclavia.Pcrs(pcr0="ab" * 48, pcr1="ab" * 48, pcr2="ab" * 48)


def test_pins_that_change_while_a_request_waits_for_its_turn(place: Place, clock: Clock) -> None:
    enclave, server = place
    pinned = Pinned(enclave)
    options = keywords(enclave, timeout=HANG, limits=httpx2.Limits(max_connections=1))
    with (
        enclavia.Client(enclave.url, **{**options, "pcrs": pinned}) as client,
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        with client.stream("GET", "/hold") as response:
            pieces = response.iter_raw()
            assert next(pieces) == b"hello"
            waits = threads.submit(client.get, "/")
            eventually(lambda: client.stats.waiting == 1)
            pinned.change()
            clock.ahead += 120
            del pieces
        with pytest.raises(enclavia.PcrMismatch):
            waits.result(HANG)
        assert len(server.connections) == 1


@pytest.mark.parametrize("what", ["document", "pins"])
@pytest.mark.parametrize("where", ["slot", "trace", "kept"])
def test_what_ends_while_a_request_waits_to_begin(
    what: str, where: str, place: Place, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a free slot of the channel, or for whoever traces it, also where it has a connection that
    was kept. Nothing of it is sent on the channel that it had."""
    enclave, server = place
    pinned = Pinned(enclave)
    late: list[str] = []

    def wait() -> None:
        if not late:
            late.append("now")
            if what == "pins":
                pinned.change()
                clock.ahead += 120
            else:
                until_ended(clock, client)

    async def reserve(self: ThreadIo, *arguments: Any) -> Any:
        if where == "slot":
            wait()
        return await taken(self, *arguments)

    def trace(event: str, info: dict[str, Any]) -> None:
        if event == "http11.send_request_headers.started":
            wait()

    taken = ThreadIo.reserve
    with enclavia.Client(enclave.url, **{**keywords(enclave), "pcrs": pinned}) as client:
        if where == "kept":
            client.get("/")
        monkeypatch.setattr(ThreadIo, "reserve", reserve)
        before = [*server.connections]
        extensions = {} if where == "slot" else {"trace": trace}
        if what == "pins":
            with pytest.raises(enclavia.PcrMismatch):
                client.post("/", content=b"x", extensions=extensions)
            assert server.connections == before
        else:
            response = client.post("/", content=b"x", extensions=extensions)
            assert response.extensions["enclavia"] is client.receipts[-1]
            assert client.stats.connects == 2
            assert len(server.connections) == len(before) + 1
        assert late


def test_a_refused_fresh_document_closes_the_channel(place: Place, clock: Clock) -> None:
    enclave, server = place

    def only_new_channels(receipt: Receipt) -> None:
        if receipt.reason == "fresh":
            raise LookupError("no more")

    with (
        enclavia.Client(
            enclave.url, **keywords(enclave, on_attestation=only_new_channels)
        ) as client,
        client.stream("GET", "/hold") as response,
    ):
        pieces = response.iter_raw()
        assert next(pieces) == b"hello"
        until_due(clock, client)
        taken = len(server.connections)
        with pytest.raises(enclavia.AttestationRefused, match="no more"):
            client.get("/")
        assert len(server.connections) == taken
        with pytest.raises((enclavia.ConnectionClosed, enclavia.StateError)):
            next(pieces)
        assert client.get("/").extensions["enclavia"] is client.receipts[-1]
        assert [receipt.reason for receipt in client.receipts] == ["connect", "connect"]


def test_a_client_that_may_not_connect_again(
    place: Place, clock: Clock, no_answer: Callable[[], None]
) -> None:
    """Asks also after the end, because that channel is all there will be."""
    enclave, _ = place
    with held(enclave, auto_reconnect=False) as client:
        until_ended(clock, client)
        assert client.get("/").extensions["enclavia"].reason == "fresh"
        assert (client.stats.connects, client.stats.reattestations) == (1, 1)
        no_answer()
        until_ended(clock, client)
        with pytest.raises(enclavia.ReadTimeout):
            client.get("/")
        with pytest.raises(enclavia.ReconnectDisabled):
            client.get("/")


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_channel_is_used_until_its_document_ends(
    kind: str, place: Place, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh one that does not come in time is asked for again before then."""
    enclave, _ = place
    monkeypatch.setattr(renewal, "RENEWAL_WAIT", 0.2)
    # Early, so that there is time to ask four times.
    monkeypatch.setattr(validity, "jitter", lambda: 0.0)

    async def case(client: Face) -> None:
        async with client.stream("GET", "/hold"):
            (first,) = client.client.receipts
            tunnel = tunnel_of(client.client)
            enclave.set_faults(Fault.SILENT_ATTESTATION)
            for _ in range(3):
                until_due(clock, client.client)
                assert clock() < tunnel.validity.ends_at
                asked = enclave.stats()["attestations_total"]
                for _ in range(2):  # the first of them asks
                    assert (await client.get("/")).extensions["enclavia"] is first
                assert enclave.stats()["attestations_total"] == asked + 1
            until_ended(clock, client.client)
            with pytest.raises(enclavia.ReadTimeout):
                await client.get("/")
            assert (client.client.stats.connects, client.client.stats.reattestations) == (1, 0)

    with_client(kind, enclave, case, auto_reconnect=False)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_given_up_while_it_asks(kind: str, place: Place, clock: Clock) -> None:
    """The channel stays, nothing is left behind, and the next request asks."""
    enclave, _ = place
    asking: list[Receipt] = []

    async def slow_at_first(receipt: Receipt) -> None:
        if receipt.reason == "fresh":
            asking.append(receipt)
            if len(asking) == 1:
                await anyio.sleep_forever()

    async def case(client: Face) -> None:
        async with client.stream("GET", "/hold"):
            until_due(clock, client.client)
            async with anyio.create_task_group() as group:
                group.start_soon(client.get, "/")
                while not asking:
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()
            assert client.client.stats.streams_active == 1
            assert (await client.get("/")).extensions["enclavia"] is asking[1]
            assert (client.client.stats.connects, client.client.stats.reattestations) == (1, 1)

    with_client(kind, enclave, case, on_attestation=slow_at_first)


@pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")
@pytest.mark.parametrize("mode", ["debug", "stub"])
def test_in_debug_mode_nothing_ends(mode: str, clock: Clock) -> None:
    with (
        byte_enclave(script, mode=mode, idle_timeout=1e6) as (enclave, _),
        held(enclave, debug_mode=True) as client,
    ):
        clock.ahead += 100 * 24 * HOURS
        client.get("/")
        assert enclave.stats()["attestations_total"] == 1
        assert client.receipts[0].attestation.valid_until is None


def test_a_forked_child_begins_with_a_document_of_its_own(place: Place, clock: Clock) -> None:
    enclave, _ = place
    with held(enclave) as client:
        until_due(clock, client)
        parent = client.receipts[0]

        def child() -> None:
            assert client.receipts == ()
            got = client.get("/").extensions["enclavia"]
            assert got.reason == "connect"
            assert got.handshake_hash != parent.handshake_hash
            assert client.stats.reattestations == 0

        assert in_child(child) == 0
        assert client.get("/").extensions["enclavia"].handshake_hash == parent.handshake_hash
        assert client.stats.reattestations == 1


def test_copies_that_share_a_channel(place: Place, clock: Clock) -> None:
    enclave, _ = place
    original = enclavia.Client(enclave.url, **keywords(enclave))
    one, two = (pickle.loads(pickle.dumps(original)) for _ in range(2))
    with one.stream("GET", "/hold"):
        (tunnel,) = one._enclave._engine.pool.handles()
        clock.ahead += tunnel.validity.renew_at - clock() + 1
        assert two.get("/").extensions["enclavia"] is one.receipts[1]
        assert one.stats.reattestations == two.stats.reattestations == 1
    one.close()
    two.close()
    original.close()


def test_it_is_logged(
    place: Place, clock: Clock, caplog: pytest.LogCaptureFixture, no_answer: Callable[[], None]
) -> None:
    enclave, _ = place
    caplog.set_level(logging.INFO, "enclavia")
    with held(enclave) as client:
        caplog.clear()
        until_due(clock, client)
        client.get("/")
        assert ["fresh document" in record.getMessage() for record in caplog.records] == [True]
        no_answer()
        caplog.clear()
        until_due(clock, client)
        client.get("/")
        assert "no fresh document" in caplog.records[0].getMessage()
        assert caplog.records[0].levelno == logging.WARNING
    eventually(lambda: enclave.stats()["slots_open"] == 0)
