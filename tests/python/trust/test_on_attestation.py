"""``on_attestation``: asked of every document, before anything is sent on its channel, and its word
is the last. For channels and clients, blocking and in asyncio, uvloop and trio."""

from __future__ import annotations

import asyncio
import functools
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import httpx2
import pytest
import requests
from support import (
    HANG,
    KINDS,
    ByteServer,
    Connection,
    Face,
    answering,
    byte_enclave,
    drive,
    eventually,
    keywords,
    ok,
    with_client,
)

import enclavia
import enclavia.httpx
import enclavia.requests
from enclavia import Receipt
from enclavia.testing import LocalEnclave

by_kind = pytest.mark.parametrize("kind", KINDS)
awaited = pytest.mark.parametrize("kind", KINDS[1:])


@pytest.fixture
def place() -> Iterator[tuple[LocalEnclave, ByteServer]]:
    with byte_enclave(answering(ok())) as made:
        yield made


Place = tuple[LocalEnclave, ByteServer]


def expect_untouched(place: Place) -> None:
    """Nothing was sent on any channel, and none is left."""
    enclave, server = place
    assert server.connections == []
    stats = enclave.stats()
    assert (stats["streams_total"], stats["requests_total"]) == (0, 0)
    eventually(lambda: enclave.stats()["connections_open"] == 0)


def refusing(receipt: Receipt) -> None:
    raise LookupError("unknown")


async def refusing_later(receipt: Receipt) -> None:
    await anyio.sleep(0)
    raise LookupError("unknown")


async def result(value: Any) -> Any:
    return await value if hasattr(value, "__await__") else value


def connect_channel(kind: str, enclave: LocalEnclave, **options: Any) -> Any:
    cls: Any = enclavia.Channel if kind == "sync" else enclavia.AsyncChannel
    return cls.connect(enclave.url, **keywords(enclave, **options))


# ---------------------------------------------------------------------------------------------
# Who is asked, and when


@by_kind
def test_once_for_each_channel_and_before_anything_is_sent(kind: str, place: Place) -> None:
    enclave, server = place
    seen: list[Receipt] = []

    sent = [0]

    def look(receipt: Receipt) -> None:
        assert enclave.stats()["streams_total"] == len(server.connections) == sent[0]
        seen.append(receipt)

    async def case(client: Face) -> None:
        first = await client.get("/")
        again = await client.post("/", content=b"x" * 300_000)
        assert seen == [first.extensions["enclavia"]]
        assert again.extensions["enclavia"] is first.extensions["enclavia"]
        enclave.drop_connections()
        eventually(lambda: client.client.stats.channels == 0)
        sent[0] = len(server.connections)
        other = await client.get("/")
        assert [receipt.reason for receipt in seen] == ["connect", "connect"]
        assert other.extensions["enclavia"] is seen[1]
        assert seen[0].handshake_hash != seen[1].handshake_hash
        assert client.client.receipts == tuple(seen)
        for receipt in seen:
            assert receipt.verify(root=enclave.root, pcrs=enclave.pcrs) == receipt.attestation
        assert seen[1].attestation == client.client.attestation
        assert seen[1].enclave == f"ws://127.0.0.1:{enclave.port}"

    with_client(kind, enclave, case, on_attestation=look)


@by_kind
def test_a_refused_channel(kind: str, place: Place) -> None:
    enclave, _ = place
    for hook in (refusing,) if kind == "sync" else (refusing, refusing_later):

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.AttestationRefused, match="LookupError: unknown") as caught:
                await client.post("/", content=b"secret")
            assert isinstance(caught.value.__cause__, LookupError)
            assert isinstance(caught.value, enclavia.AttestationError)
            assert not caught.value.retryable
            assert client.client.receipts == ()
            with pytest.raises(enclavia.StateError):
                client.client.attestation  # noqa: B018 - raises

        with_client(kind, enclave, case, on_attestation=hook)

        async def of_a_channel(hook: Any = hook) -> None:
            with pytest.raises(enclavia.AttestationRefused) as caught:
                await result(connect_channel(kind, enclave, on_attestation=hook))
            assert isinstance(caught.value.__cause__, LookupError)

        drive(kind, of_a_channel)
    expect_untouched(place)
    assert enclave.stats()["attestations_total"] == (2 if kind == "sync" else 4)


@by_kind
def test_a_refusal_that_may_pass(kind: str, place: Place) -> None:
    enclave, _ = place
    asked: list[Receipt] = []

    def unsure(receipt: Receipt) -> None:
        asked.append(receipt)
        if len(asked) < 3:
            raise enclavia.ConnectError("the ledger does not answer")

    async def case(client: Face) -> None:
        response = await client.get("/")
        assert response.extensions["enclavia"] is asked[2]

    with_client(kind, enclave, case, on_attestation=unsure)


@by_kind
def test_a_refusal_of_a_later_channel(kind: str, place: Place) -> None:
    enclave, server = place
    asked: list[Receipt] = []

    def only_the_first(receipt: Receipt) -> None:
        asked.append(receipt)
        if len(asked) > 1:
            raise LookupError("unknown")

    async def case(client: Face) -> None:
        await client.get("/")
        streams = enclave.stats()["streams_total"]
        enclave.drop_connections()
        eventually(lambda: client.client.stats.channels == 0)
        for _ in range(2):
            with pytest.raises(enclavia.AttestationRefused):
                await client.get("/")
        assert enclave.stats()["streams_total"] == streams
        assert len(server.connections) == 1
        assert client.client.receipts == (asked[0],)

    with_client(kind, enclave, case, on_attestation=only_the_first)


@by_kind
def test_fresh_documents_of_a_channel(kind: str, place: Place) -> None:
    enclave, _ = place
    seen: list[Receipt] = []

    def at_most_two(receipt: Receipt) -> None:
        if len(seen) == 2:
            raise LookupError("too many")
        seen.append(receipt)

    async def case() -> None:
        channel = await result(connect_channel(kind, enclave, on_attestation=at_most_two))
        fresh = await result(channel.attest())
        assert [receipt.reason for receipt in seen] == ["connect", "fresh"]
        assert channel.receipts == tuple(seen)
        assert seen[1].attestation == fresh
        assert seen[0].handshake_hash == seen[1].handshake_hash == fresh.nonce
        with pytest.raises(enclavia.AttestationRefused):
            await result(channel.attest())
        assert channel.closed
        assert len(channel.receipts) == 2
        await result(channel.close())

    drive(kind, case)


# ---------------------------------------------------------------------------------------------
# What it may do


@by_kind
def test_no_lock_is_held_meanwhile(kind: str, place: Place) -> None:
    """Another thread can ask the client everything."""
    enclave, _ = place
    told: list[Any] = []

    async def case(client: Face) -> None:
        made.append(client.client)
        await client.get("/")
        assert told[0].waiting == 1

    made: list[Any] = []

    def ask(receipt: Receipt) -> None:
        def look() -> None:
            told.append(made[0].stats)
            assert made[0].receipts == ()
            pickle.dumps(made[0].base_url)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join(HANG)
        assert told

    with_client(kind, enclave, case, on_attestation=ask)


def test_a_blocking_client_within_its_own_function(place: Place) -> None:
    """Would wait for ever for the channel that waits for it."""
    enclave, _ = place

    def use_itself(receipt: Receipt) -> None:
        client.get("/")

    client = enclavia.Client(enclave.url, **keywords(enclave, on_attestation=use_itself))
    with pytest.raises(enclavia.AttestationRefused) as caught:
        client.get("/", timeout=HANG)
    assert isinstance(caught.value.__cause__, enclavia.StateError)
    assert "another client" in str(caught.value)
    client.close()
    expect_untouched(place)


def test_another_blocking_client_within_the_function(place: Place) -> None:
    enclave, _ = place
    answers: list[int] = []

    def use_another(receipt: Receipt) -> None:
        with enclavia.Client(enclave.url, **keywords(enclave)) as other:
            answers.append(other.get("/").status_code)

    with enclavia.Client(enclave.url, **keywords(enclave, on_attestation=use_another)) as client:
        client.get("/")
    assert answers == [200]


@awaited
def test_a_plain_function_does_not_hold_up_the_loop(kind: str, place: Place) -> None:
    enclave, _ = place
    loop_went_on = threading.Event()
    threads: list[int] = []

    def wait(receipt: Receipt) -> None:
        threads.append(threading.get_ident())
        assert loop_went_on.wait(HANG)

    async def case(client: Face) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, "/")
            while not threads:
                await anyio.sleep(0.001)
            loop_went_on.set()
        assert threads != [threading.get_ident()]

    with_client(kind, enclave, case, on_attestation=wait)


@awaited
def test_an_awaited_function_has_the_time_of_connecting(kind: str, place: Place) -> None:
    enclave, _ = place

    async def for_ever(receipt: Receipt) -> None:
        await anyio.sleep_forever()

    async def case(client: Face) -> None:
        with pytest.raises(enclavia.ConnectTimeout):
            await client.get("/", timeout=httpx2.Timeout(HANG, connect=0.2))

    with_client(kind, enclave, case, on_attestation=for_ever, patience=0.0)
    expect_untouched(place)


@awaited
def test_a_plain_function_that_does_not_end_is_not_waited_for(kind: str, place: Place) -> None:
    enclave, _ = place
    go = threading.Event()

    async def case(client: Face) -> None:
        with pytest.raises(enclavia.ConnectTimeout):
            await client.get("/", timeout=httpx2.Timeout(HANG, connect=0.2))

    with_client(kind, enclave, case, on_attestation=lambda _: go.wait(HANG), patience=0.0)
    expect_untouched(place)
    go.set()


@awaited
def test_cancelled_in_the_middle(kind: str, place: Place) -> None:
    """Nothing is sent and nothing stays; the next request asks again."""
    enclave, _ = place
    asked: list[Receipt] = []

    async def slow_at_first(receipt: Receipt) -> None:
        asked.append(receipt)
        if len(asked) == 1:
            await anyio.sleep_forever()

    async def case(client: Face) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, "/")
            while not asked:
                await anyio.sleep(0.001)
            group.cancel_scope.cancel()
        expect_untouched(place)
        assert client.client.stats.waiting == 0
        await client.get("/")
        assert client.client.receipts == (asked[1],)

    with_client(kind, enclave, case, on_attestation=slow_at_first)


def test_interrupted_in_the_middle(place: Place) -> None:
    enclave, _ = place
    asked: list[Receipt] = []

    def interrupted(receipt: Receipt) -> None:
        asked.append(receipt)
        if len(asked) == 1:
            raise KeyboardInterrupt

    client = enclavia.Client(enclave.url, **keywords(enclave, on_attestation=interrupted))
    with pytest.raises(KeyboardInterrupt):
        client.get("/")
    expect_untouched(place)
    assert client.get("/").extensions["enclavia"] is asked[1]
    client.close()


def test_callers_who_wait_are_asked_about_once(place: Place) -> None:
    enclave, _ = place
    asked: list[Receipt] = []
    go = threading.Event()

    def wait(receipt: Receipt) -> None:
        asked.append(receipt)
        assert go.wait(HANG)

    client = enclavia.Client(enclave.url, **keywords(enclave, on_attestation=wait))
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(client.get("/").extensions["enclavia"]))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: client.stats.waiting == 6)
    assert enclave.stats()["streams_total"] == 0
    go.set()
    for thread in threads:
        thread.join(HANG)
    assert found == asked * 6
    client.close()


def test_an_upgrade_that_is_followed_between_two_requests() -> None:
    """Its channel is asked about as any other, and its receipt has the pins that the chain led
    to."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    told: list[Receipt] = []
    with LocalEnclave(app, upgradable=True) as enclave:
        before = enclave.pcrs
        upgrades = enclavia.TrustUpgrades(enclave.backend, enclave.enclave_id)
        with enclavia.Client(
            enclave.url,
            **keywords(enclave, trust_upgrades=upgrades, on_attestation=told.append),
        ) as client:
            first = client.get("/")
            enclave.upgrade()
            second = client.get("/")
            assert [first.extensions["enclavia"], second.extensions["enclavia"]] == told
            assert client.stats.upgrades_followed == 1
        pins = [receipt.as_dict()["pins"] for receipt in told]
        assert pins == [[before.as_dict()], [enclave.pcrs.as_dict()]]
        assert before != enclave.pcrs
        for receipt, pcrs in zip(told, (before, enclave.pcrs), strict=True):
            Receipt.from_json(str(receipt)).verify(root=enclave.root, pcrs=pcrs)


# ---------------------------------------------------------------------------------------------
# Which functions


class Later:
    async def __call__(self, receipt: Receipt) -> None:
        raise AssertionError("never called")


BLOCKING = (
    enclavia.Client,
    enclavia.EnclaveTransport,
    enclavia.Channel.connect,
    enclavia.requests.EnclaveAdapter,
    enclavia.httpx.EnclaveTransport,
)


@pytest.mark.parametrize("make", BLOCKING, ids=range(len(BLOCKING)))
def test_what_blocks_takes_no_async_function(place: Place, make: Any) -> None:
    enclave, _ = place
    for hook in (refusing_later, functools.partial(refusing_later), Later()):
        with pytest.raises(TypeError, match="on_attestation: expected a plain function"):
            make(enclave.url, **keywords(enclave, on_attestation=hook))
    assert enclave.stats()["connections_total"] == 0


def test_a_plain_function_that_turns_out_to_be_none(place: Place) -> None:
    enclave, _ = place
    client = enclavia.Client(
        enclave.url, **keywords(enclave, on_attestation=lambda receipt: refusing_later(receipt))
    )
    with pytest.raises(enclavia.AttestationRefused) as caught:
        client.get("/")
    assert isinstance(caught.value.__cause__, TypeError)
    client.close()
    expect_untouched(place)


def test_an_async_client_awaits_what_a_plain_function_returns(place: Place) -> None:
    enclave, _ = place

    async def case(client: Face) -> None:
        with pytest.raises(enclavia.AttestationRefused, match="unknown"):
            await client.get("/")

    with_client("asyncio", enclave, case, on_attestation=lambda receipt: refusing_later(receipt))


def test_copies_have_it_too(place: Place) -> None:
    enclave, _ = place
    client = enclavia.Client(enclave.url, **keywords(enclave, on_attestation=refusing))
    copy = pickle.loads(pickle.dumps(client))
    with pytest.raises(enclavia.AttestationRefused):
        copy.get("/")
    copy.close()
    client.close()
    expect_untouched(place)


def test_copies_with_one_file_share_their_channels(place: Place, tmp_path: Any) -> None:
    enclave, _ = place
    file = enclavia.Receipts(tmp_path / "receipts")
    client = enclavia.Client(enclave.url, **keywords(enclave, on_attestation=file))
    copies = [pickle.loads(pickle.dumps(client)) for _ in range(3)]
    found = {copy.get("/").extensions["enclavia"].receipt_id for copy in copies}
    lines = file.path.read_bytes().splitlines()
    assert [Receipt.from_json(line).receipt_id for line in lines] == list(found)
    for copy in copies:
        assert copy.receipts == copies[0].receipts
        copy.close()
    client.close()


def test_where_it_cannot_be_written_nothing_is_sent(place: Place, tmp_path: Any) -> None:
    enclave, _ = place
    file = enclavia.Receipts(tmp_path / "absent" / "receipts")
    with enclavia.Client(enclave.url, **keywords(enclave)) as _:
        pass
    before = enclave.stats()["streams_total"]
    client = enclavia.Client(enclave.url, **keywords(enclave, on_attestation=file))
    with pytest.raises(enclavia.AttestationRefused) as caught:
        client.post("/", content=b"secret")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    client.close()
    assert enclave.stats()["streams_total"] == before


# ---------------------------------------------------------------------------------------------
# Which responses name it


@by_kind
def test_every_kind_of_response_names_its_channel(kind: str) -> None:
    def script(connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            if head.startswith(b"GET /lost") and len(lost) < 1:
                lost.append(connection)
                connection.reset()
                return
            if head.startswith(b"GET /long"):
                connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                connection.send(b"3\r\nabc\r\n" * 3 + b"0\r\n\r\n")
            elif head.startswith(b"GET /moved"):
                connection.send(ok().replace(b"200 OK", b"302 Found\r\nLocation: /"))
            else:
                connection.send(ok())

    lost: list[Connection] = []
    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            simple = await client.get("/")
            (receipt,) = client.client.receipts
            assert simple.extensions["enclavia"] is receipt
            async with client.stream("GET", "/long") as streamed:
                assert streamed.response.extensions["enclavia"] is receipt
                assert await streamed.read() == b"abc" * 3
            retried = await client.get("/lost")
            assert client.client.stats.retries == 1
            assert retried.extensions["enclavia"] is client.client.receipts[-1]
            redirected = await client.get("/moved", follow_redirects=True)
            assert redirected.history[0].extensions["enclavia"] is client.client.receipts[-1]
            assert redirected.extensions["enclavia"] is client.client.receipts[-1]
            refused = pickle.loads(pickle.dumps(redirected))
            assert "enclavia" not in refused.extensions

        with_client(kind, enclave, case)


def test_a_response_that_was_sent_again_over_another_channel() -> None:
    """Names the channel that it came over, not the one on which the first sending was lost."""
    waits = threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        if connection.number == 0:
            waits.set()
            connection.wait_closed()
        else:
            connection.send(ok())

    with byte_enclave(script) as (enclave, _):
        client = enclavia.Client(enclave.url, **keywords(enclave))
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(client.get("/")))
        thread.start()
        assert waits.wait(HANG)
        enclave.drop_connections()
        thread.join(HANG)
        assert client.stats.retries == 1
        first, second = client.receipts
        assert got[0].extensions["enclavia"] is second
        assert first.handshake_hash != second.handshake_hash
        client.close()


def test_adapters(place: Place) -> None:
    enclave, _ = place
    seen: list[Receipt] = []
    options = keywords(enclave, on_attestation=seen.append)
    with enclavia.requests.session(enclave.url, **options) as session:
        got = session.get(session.base_url)
        assert got.raw.extensions["enclavia"] is seen[0]
        assert session.receipts == (seen[0],)
    transport = enclavia.httpx.EnclaveTransport(enclave.url, **options)
    with httpx.Client(transport=transport, base_url=transport.base_url) as client:
        assert client.get("/").extensions["enclavia"] is seen[1]
        assert transport.receipts == (seen[1],)
    with (
        enclavia.requests.session(
            enclave.url, **keywords(enclave, on_attestation=refusing)
        ) as session,
        pytest.raises(requests.exceptions.SSLError) as caught,
    ):
        session.get(session.base_url)
    assert isinstance(caught.value.__cause__, enclavia.AttestationRefused)


def test_an_async_adapter(place: Place) -> None:
    enclave, _ = place
    seen: list[Receipt] = []

    async def note(receipt: Receipt) -> None:
        seen.append(receipt)

    async def case() -> None:
        transport = enclavia.httpx.AsyncEnclaveTransport(
            enclave.url, **keywords(enclave, on_attestation=note)
        )
        async with httpx.AsyncClient(transport=transport, base_url=transport.base_url) as client:
            got = await client.get("/")
        assert got.extensions["enclavia"] is seen[0]

    asyncio.run(case())


def test_the_newest_are_kept(place: Place) -> None:
    enclave, _ = place
    with enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel:
        for _ in range(70):
            channel.attest()
        assert len(channel.receipts) == 64
        assert {receipt.reason for receipt in channel.receipts} == {"fresh"}
