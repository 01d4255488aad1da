"""Copies of a client share one set of channels in a process, where they mean the same."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import os
import pickle
import re
import ssl
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from forked import in_child
from support import Connection, answering, byte_enclave, drive, eventually, keywords, ok

import enclavia
from enclavia._client.options import TRANSPORT_DEFAULTS
from enclavia._client.settings import Settings
from enclavia._exchange import shared
from enclavia._exchange.connections import Connections, Use
from enclavia._exchange.shared import MOST_UNUSED, SharedPools, key_of
from enclavia._pool.kinds import PoolLimits
from enclavia._trust.versions import AllowedVersion, AllowedVersions
from enclavia.testing import LocalEnclave

kinds = pytest.mark.parametrize("kind", ["sync", "asyncio"])
URL = "wss://enclave.example"
ONE = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)
OTHER = enclavia.Pcrs(pcr0=b"4" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)
ONE_SIGNED = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48, pcr8=b"8" * 48)
OTHERWISE_SIGNED = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48, pcr8=b"9" * 48)
ROOT = enclavia.AWS_ROOT_G1
TRANSPORTS: dict[str, Any] = {
    "sync": enclavia.EnclaveTransport,
    "asyncio": enclavia.AsyncEnclaveTransport,
}
CLIENTS: dict[str, Any] = {"sync": enclavia.Client, "asyncio": enclavia.AsyncClient}


def again(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def channels(transport: Any) -> Connections:
    """Those that its next request would use."""
    connections: Connections = getattr(transport, "_enclave", transport)._engine.connections
    return connections


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """What a test leaves unused does not meet the next one."""
    yield
    with shared.pools._lock:
        kept = list(shared.pools._kept.values())
        shared.pools._kept.clear()
    for each in kept:
        shared._end(each.connections)
    shared.pools._notes.put(None)


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    def script(connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            connection.send(ok(head))

    with byte_enclave(script, max_connections=64) as (enclave, _):
        yield enclave


# ---------------------------------------------------------------------------------------------
# who shares with whom


def released() -> enclavia.Pcrs:
    return ONE


def released_otherwise() -> enclavia.Pcrs:
    return ONE


def decide(request: object, error: object) -> bool:
    return False


def decide_otherwise(request: object, error: object) -> bool:
    return True


class Liar:
    """Says that it equals everything."""

    def __call__(self, request: object, error: object) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash(decide)


def in_a_file(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> object:
        path = folder / name
        path.write_bytes(ROOT)
        return str(path)

    return make


def allow(receipt: enclavia.Receipt) -> None:
    pass


def allow_too(receipt: enclavia.Receipt) -> None:
    pass


# Values of each option no two of which may share a channel. A function makes its value with a
# folder for files.
UNLIKE: dict[str, list[Any]] = {
    "url": [URL, "wss://other.example", f"{URL}:444", f"{URL}/path", "ws://enclave.example"],
    "pcrs": [
        ONE,
        OTHER,
        [ONE, OTHER],
        ONE_SIGNED,
        OTHERWISE_SIGNED,
        released,
        enclavia.PinSource(released, period=5),
        enclavia.PinSource(released, keep=5),
        enclavia.PinSource(released_otherwise),
        AllowedVersions((AllowedVersion("a", ONE._pin_set(), None),)),
        AllowedVersions((AllowedVersion("a", ONE._pin_set(), 1e10),)),
        AllowedVersions((AllowedVersion("b", ONE._pin_set(), None),)),
    ],
    "root": [None, ROOT, ssl.DER_cert_to_PEM_cert(ROOT)],
    "debug_mode": [False, True],
    "clock_leeway": [60, 0, 61],
    "trust_upgrades": [
        None,
        enclavia.TrustUpgrades("https://one.example", uuid.UUID(int=1)),
        enclavia.TrustUpgrades("https://two.example", uuid.UUID(int=1)),
        enclavia.TrustUpgrades("https://one.example", uuid.UUID(int=2)),
        enclavia.TrustUpgrades("https://one.example", uuid.UUID(int=1), "token"),
        enclavia.TrustUpgrades("https://one.example", uuid.UUID(int=1), "other"),
        enclavia.TrustUpgrades("https://one.example", uuid.UUID(int=1), None, True),
        enclavia.TrustUpgrades("https://one.example", uuid.UUID(int=1), high_water="/one"),
        enclavia.TrustUpgrades("https://one.example", uuid.UUID(int=1), high_water=decide),  # type: ignore[arg-type]
    ],
    "upgrade_headers": [None, {"X-A": "1"}, {"X-A": "2"}, {"X-B": "1"}, [("X-A", "1")] * 2],
    "verify": [True, False, in_a_file("one.pem"), in_a_file("two.pem")],
    "proxy": [None, "http://p:1", "http://p:2", "http://q:1", "http://u:s@p:1", "http://u:t@p:1"],
    "timeout": [30, 5, None, *(httpx2.Timeout(30, **{name: 1}) for name in ("connect", "read"))],
    "retries": [2, 0, {"POST"}, {"PATCH"}, decide, decide_otherwise, Liar()],
    "patience": [None, 0, 5],
    "auto_reconnect": [True, False],
    "max_channels": [2, 1],
    "max_in_flight": [64, 1],
    "keepalive": [20, None, 5],
    "on_attestation": [
        None,
        allow,
        allow_too,
        enclavia.Receipts("/no/one"),
        enclavia.Receipts("/no/two"),
    ],
    "limits": [
        None,
        httpx2.Limits(max_connections=3),
        httpx2.Limits(max_keepalive_connections=3),
        httpx2.Limits(keepalive_expiry=3),
    ],
    "shared_expiry": [None, 0, 5],
    "via": [None, "unix:/run/one", "unix:/run/two"],
}


def test_every_option_has_unlike_values() -> None:
    """An option that is added needs some here: nobody may share a channel who asked for another."""
    assert set(UNLIKE) == {"url", *TRANSPORT_DEFAULTS}


@kinds
@pytest.mark.parametrize("option", ["url", *TRANSPORT_DEFAULTS])
@pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")
def test_unlike_clients_never_share(kind: str, option: str, tmp_path: Path) -> None:
    values = [
        value(tmp_path) if getattr(value, "__name__", "") == "make" else value
        for value in UNLIKE[option]
    ]

    async def run() -> None:
        used: list[list[Connections]] = []
        for value in values:
            options: dict[str, Any] = {"pcrs": ONE, option: value}
            transport = TRANSPORTS[kind](options.pop("url", URL), **options)
            # In three ways of copying, and with a client around it.
            client = CLIENTS[kind](**{"url": URL, "pcrs": ONE, option: value})
            copies = [again(transport), copy.copy(transport), copy.deepcopy(transport)]
            copies += [again(client), again(again(client))]
            used.append([channels(each) for each in copies])
            assert channels(transport) not in used[-1]
        for value, connections in zip(values, used, strict=True):
            alike = len(set(map(id, connections)))
            # Each of these has a function of its own, whatever that says.
            assert alike == (5 if isinstance(value, Liar) else 1), value
        everything = [connections for each in used for connections in set(each)]
        assert len(set(map(id, everything))) == len(everything)

    drive(kind, run)


class Leaf(NamedTuple):
    where: str
    replaced: Any


def leaves(value: Any, where: str = "") -> Iterator[Leaf]:
    """Each field of the settings, and of what is in them, with another value in its place."""
    for name in value._fields:
        member = getattr(value, name)
        if hasattr(member, "_fields"):
            for leaf in leaves(member, f"{where}.{name}"):
                yield Leaf(leaf.where, value._replace(**{name: leaf.replaced}))
        else:
            yield Leaf(f"{where}.{name}", value._replace(**{name: "another"}))


def test_every_field_of_the_settings_decides() -> None:
    settings = Settings.build(URL, pcrs=ONE)
    found = {leaf.where: leaf.replaced.meaning for leaf in leaves(settings)}
    assert len(found) > 25
    assert {".config.pins", ".config.root", ".config.headers", ".limits.patience"} <= set(found)
    assert settings.meaning == Settings.build(URL, pcrs=ONE).meaning
    assert len({settings.meaning, *found.values()}) == len(found) + 1


class Like(tuple[int, ...]):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        ("1", b"1"),
        (Text("a"), "a"),
        (Text("a"), Text("a")),
        ((1, 2), Like((1, 2))),
        (Like((1, 2)), Like((1, 3))),
        ((1,), frozenset((1,))),
        ([1], [1]),
        ({}, {}),
        (Liar(), Liar()),
        (Liar(), decide),
        (float("nan"), float("nan")),
        (object(), object()),
        ((), None),
        ((decide, Liar()), (decide, Liar())),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),  # the same in each run
)
def test_keys_of_unlike_values_differ(one: object, other: object) -> None:
    assert key_of(one) != key_of(other)
    assert key_of(other) != key_of(one)
    assert key_of(one) == key_of(one) or one != one


def test_keys_of_like_values_are_equal() -> None:
    def value() -> object:
        return (None, 1, 2.5, "text", b"bytes", (True, frozenset(("a", "b"))), decide)

    assert key_of(value()) == key_of(value())
    assert hash(key_of(value())) == hash(key_of(value()))


def test_none_is_the_default_expiry() -> None:
    transports = [
        again(enclavia.EnclaveTransport(URL, pcrs=ONE, **options))
        for options in ({}, {"shared_expiry": None}, {"shared_expiry": 10})
    ]
    assert len({id(channels(each)) for each in transports}) == 1


def test_threads_and_event_loops_share_none() -> None:
    used: list[Connections] = [channels(again(enclavia.EnclaveTransport(URL, pcrs=ONE)))]

    async def run() -> None:
        used.append(channels(again(enclavia.AsyncEnclaveTransport(URL, pcrs=ONE))))

    asyncio.run(run())
    assert used[0] is not used[1]


def test_what_tls_trusts_by_now_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CA file that has changed, another one at the same relative path, another environment."""
    monkeypatch.chdir(tmp_path)
    file = Path("ca.pem")
    file.write_bytes(ROOT)
    transport = enclavia.EnclaveTransport(URL, pcrs=ONE, verify="ca.pem")
    used = [channels(again(transport)), channels(again(transport))]
    assert used[0] is used[1]
    file.write_bytes(ROOT + b"\n")
    used.append(channels(again(transport)))
    os.utime(file, ns=(1, 1))
    used.append(channels(again(transport)))
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path / "beside")
    used.append(channels(again(transport)))
    assert len(set(map(id, used))) == len(used) - 1
    plain = enclavia.EnclaveTransport(URL, pcrs=ONE)
    first = channels(again(plain))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert channels(again(plain)) is not first


# ---------------------------------------------------------------------------------------------
# what is shared, and what is not


def test_two_hundred_copies_open_one_channel(enclave: LocalEnclave) -> None:
    before = enclave.stats()["connections_total"]
    pickled = pickle.dumps(enclavia.Client(enclave.url, **keywords(enclave)))
    for number in range(200):
        client = pickle.loads(pickled)
        assert f"GET /{number} " in client.get(f"/{number}").text
        if number % 2:
            client.close()
    assert enclave.stats()["connections_total"] == before + 1


def test_copies_of_many_threads_at_once(enclave: LocalEnclave) -> None:
    before = enclave.stats()["connections_total"]
    pickled = pickle.dumps(enclavia.Client(enclave.url, **keywords(enclave)))
    begin = threading.Barrier(8)

    def work(number: int) -> list[str]:
        begin.wait()
        answers = []
        for row in range(20):
            with pickle.loads(pickled) as client:
                answers.append(client.get(f"/{number}/{row}").text.split(" ")[1])
        return answers

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(8)))
    assert answers == [[f"/{number}/{row}" for row in range(20)] for number in range(8)]
    assert enclave.stats()["connections_total"] == before + 1


@pytest.mark.parametrize("way", [again, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deep"])
def test_a_copy_has_its_own_cookies_headers_hooks_and_auth(
    way: Callable[[Any], Any], enclave: LocalEnclave
) -> None:
    with enclavia.Client(
        enclave.url, **keywords(enclave), headers={"X-A": "1"}, cookies={"c": "1"}
    ) as client:
        one, other = way(client), way(client)
        one.headers["X-A"] = "2"
        one.cookies.set("c", "2")
        one.auth = ("user", "secret")
        heard: list[object] = []
        one.event_hooks["request"].append(heard.append)
        text = one.get("/").text.lower()
        assert "x-a: 2" in text and "authorization: basic" in text and len(heard) == 1
        for each in (other, client):
            text = each.get("/").text.lower()
            assert "x-a: 1" in text and "cookie: c=1" in text and "authorization" not in text
        assert len(heard) == 1
        assert channels(one) is channels(other) is not channels(client)
        # Heads that were encoded, and answers' heads that were parsed, are each client's own.
        assert one._enclave._engine._head_of is not other._enclave._engine._head_of
        assert one._enclave._engine._read_head is not other._enclave._engine._read_head
        one.close()
        assert other.get("/").is_success and client.get("/").is_success


def test_closing_a_shallow_copy_leaves_the_original_open(enclave: LocalEnclave) -> None:
    with enclavia.Client.connect(enclave.url, **keywords(enclave)) as client:
        copy.copy(client).close()
        assert client.get("/").is_success
        assert client.stats.connects == 1


def test_stats_and_representation_say_what_is_shared(enclave: LocalEnclave) -> None:
    with enclavia.Client(enclave.url, **keywords(enclave)) as client:
        assert not client.stats.shared and "copy" not in repr(client)
        one, other = again(client), again(client)
        assert repr(one) == (
            f"<Client {enclave.url}/ (a copy: shares its channels), not connected yet>"
        )
        assert repr(one._enclave).endswith("(a copy: shares its channels), not connected yet>")
        unused = one.stats
        assert unused.shared and unused.channels == unused.connects == unused.bytes_in == 0
        with pytest.raises(enclavia.StateError, match="not connected"):
            _ = one.attestation
        one.get("/")
        one.get("/")
        # The other one has not used them yet, and would.
        assert (one.stats.requests, other.stats.requests) == (2, 0)
        assert one.stats.channels == other.stats.channels == one.stats.connects == 1
        assert one.stats.bytes_in == other.stats.bytes_in > 0
        assert other.attestation.nonce == one.attestation.nonce


@pytest.mark.parametrize("library", ["requests", "httpx"])
def test_copies_of_adapters_share(library: str, enclave: LocalEnclave) -> None:
    before = enclave.stats()["connections_total"]
    if library == "requests":
        module = pytest.importorskip("enclavia.requests")
        session = module.session(enclave.url, **keywords(enclave))
        session.headers["X-A"] = "1"
        for way in (again, copy.copy, copy.deepcopy):
            with way(session) as twin:
                twin.headers["X-A"] = "2"
                assert "X-A: 2" in twin.get(twin.base_url).text
                assert repr(twin._adapter).endswith("(a copy: shares its channels)>")
        adapter = copy.copy(session._adapter)
        adapter.close()
        assert enclave.stats()["connections_total"] == before + 1
        assert "X-A: 1" in session.get(session.base_url).text
        session.close()
        return
    module, httpx = pytest.importorskip("enclavia.httpx"), pytest.importorskip("httpx")
    transport = module.EnclaveTransport(enclave.url, **keywords(enclave))
    for way in (again, copy.copy, copy.deepcopy):
        twin = way(transport)
        with httpx.Client(transport=twin, base_url=twin.base_url) as client:
            assert client.get("/").is_success
        assert "copy" in repr(twin)
    assert enclave.stats()["connections_total"] == before + 1
    with httpx.Client(transport=transport, base_url=transport.base_url) as client:
        assert client.get("/").is_success


# ---------------------------------------------------------------------------------------------
# the end of a copy


def test_a_closed_copy_says_so_and_others_go_on(enclave: LocalEnclave) -> None:
    client = enclavia.Client(enclave.url, **keywords(enclave))
    one, other = again(client), again(client)
    one.get("/")
    one.close()
    one.close()
    for _ in range(2):
        with pytest.raises(enclavia.StateError, match="closed"):
            one.get("/")
    assert other.get("/").is_success
    transport = again(client._enclave)
    transport.close()
    with pytest.raises(enclavia.StateError, match="closed"):
        transport.handle_request(httpx2.Request("GET", transport.base_url))
    with pytest.raises(enclavia.StateError, match="closed"):
        transport.connect()
    again(transport).connect()
    assert other.stats.connects == 1


class Held:
    """A workload that holds its answers back, whole or after the first half of the body."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            whole = ok(b"first" + b"second")
            if b"/half" in head:
                connection.send(whole[:-6])
                whole = whole[-6:]
            self.asked.release()
            if b"/at-once" not in head:
                assert self.go_on.wait(60)
            connection.send(whole)


@kinds
@pytest.mark.parametrize("where", ["head", "body", "queue"])
def test_closing_ends_the_requests_of_that_copy_alone(kind: str, where: str) -> None:
    held = Held()
    path = "/half" if where == "body" else "/"
    # In the queue: the only slot is the other copy's.
    options = {"max_in_flight": 1 if where == "queue" else 8, "max_channels": 1}
    with byte_enclave(held) as (enclave, _):
        client = CLIENTS[kind](enclave.url, **keywords(enclave, timeout=None, **options))
        one, other = again(client), again(client)

        def read(client: Any) -> bytes:
            with client.stream("GET", path) as response:
                return b"".join(response.iter_raw())

        async def read_async(client: Any) -> bytes:
            async with client.stream("GET", path) as response:
                return b"".join([piece async for piece in response.aiter_raw()])

        def under_way() -> bool:
            stats = one.stats
            return stats.waiting == 1 if where == "queue" else stats.streams_active == 2

        if kind == "sync":
            with ThreadPoolExecutor(2) as pool:
                going_on = pool.submit(read, other)
                assert held.asked.acquire(timeout=60)
                ended = pool.submit(read, one)
                eventually(under_way)
                if where != "queue":
                    assert held.asked.acquire(timeout=60)
                one.close()
                with pytest.raises(enclavia.StateError, match="closed"):
                    ended.result(60)
                held.go_on.set()
                assert going_on.result(60) == b"firstsecond"
                assert other.stats.streams_active == other.stats.waiting == 0
            return

        async def run() -> None:
            loop = asyncio.get_running_loop()
            going_on = asyncio.create_task(read_async(other))
            assert await loop.run_in_executor(
                None, functools.partial(held.asked.acquire, timeout=60)
            )
            ended = asyncio.create_task(read_async(one))
            while not under_way():
                await asyncio.sleep(0.005)
            if where != "queue":
                assert await loop.run_in_executor(
                    None, functools.partial(held.asked.acquire, timeout=60)
                )
            await one.aclose()
            with pytest.raises(enclavia.StateError, match="closed"):
                await asyncio.wait_for(ended, 60)
            held.go_on.set()
            assert await asyncio.wait_for(going_on, 60) == b"firstsecond"
            assert other.stats.streams_active == other.stats.waiting == 0

        drive(kind, run)


def test_an_answer_that_nobody_reads_gives_its_slot_back_when_its_copy_closes() -> None:
    held = Held()
    with byte_enclave(held) as (enclave, _):
        client = enclavia.Client(enclave.url, **keywords(enclave, max_in_flight=1, max_channels=1))
        one, other = again(client), again(client)
        response = one.send(one.build_request("GET", "/half"), stream=True)
        assert other.stats.streams_active == 1
        one.close()
        assert other.stats.streams_active == 0
        with pytest.raises(enclavia.StateError, match="closed"):
            list(response.iter_raw())
        assert other.get("/at-once").content == b"firstsecond"
        held.go_on.set()


def test_what_has_come_whole_can_be_read_after_the_close(enclave: LocalEnclave) -> None:
    one = again(enclavia.Client(enclave.url, **keywords(enclave)))
    response = one.send(one.build_request("GET", "/"), stream=True)
    one.close()
    assert b"GET / " in response.read()


@pytest.mark.parametrize("how", ["closed", "forgotten", "in a cycle"])
def test_channels_end_after_their_last_copy(how: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        client = enclavia.Client(enclave.url, **keywords(enclave, shared_expiry=0))
        one, other = again(client), again(client)
        one.get("/")
        other.get("/")
        one.close()
        assert other.get("/").is_success
        assert enclave.stats()["connections_open"] == 1
        if how == "closed":
            other.close()
        elif how == "in a cycle":
            other.itself = other
        del other
        if how == "in a cycle":
            gc.collect()
        eventually(lambda: enclave.stats()["connections_open"] == 0)
        assert enclave.stats()["connections_total"] == 1


def test_a_copy_that_is_kept_and_not_used_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        client = again(enclavia.Client(enclave.url, **keywords(enclave)))
        client.get("/")
        assert client.stats.streams_idle == 1
        real = shared.now
        monkeypatch.setattr(shared, "now", lambda: real() + 5)
        shared.pools.look()
        eventually(lambda: enclave.stats()["slots_open"] == 0)  # of the workload's connection
        assert enclave.stats()["connections_open"] == 1
        monkeypatch.setattr(shared, "now", lambda: real() + 46)
        shared.pools.look()
        eventually(lambda: enclave.stats()["connections_open"] == 0)
        monkeypatch.undo()
        assert client.get("/").is_success and client.stats.reconnects == 1


def test_an_error_that_somebody_keeps_does_not_hold_the_channel() -> None:
    with (
        byte_enclave(answering(ok()), max_connections=1) as (full, _),
        enclavia.Client.connect(full.url, **keywords(full)),
    ):
        twin = again(enclavia.Client(full.url, **keywords(full, patience=0))._enclave)
        with pytest.raises(enclavia.ConnectionClosed) as kept:
            twin.connect()
        use = weakref.ref(twin._engine.use())
        twin.close()
        assert use() is None
        assert kept.value is not None


def test_an_answer_that_is_still_read_keeps_the_channel() -> None:
    held = Held()
    with byte_enclave(held) as (enclave, _):
        client = again(enclavia.Client(enclave.url, **keywords(enclave, shared_expiry=0)))
        response = client.send(client.build_request("GET", "/half"), stream=True)
        del client
        gc.collect()
        shared.pools.look()
        held.go_on.set()
        assert response.read() == b"firstsecond"
        # Nor does an answer that was read, and is kept, keep the channel.
        eventually(lambda: enclave.stats()["connections_open"] == 0)
        assert response.content == b"firstsecond"


def test_the_thread_ends_with_what_it_is_for() -> None:
    def threads() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name == "enclavia-expiry"]

    with byte_enclave(answering(ok())) as (enclave, _):
        eventually(lambda: not threads())
        client = again(enclavia.Client(enclave.url, **keywords(enclave, shared_expiry=0)))
        client.get("/")
        assert len(threads()) == 1
        client.close()
        eventually(lambda: not threads())


def test_a_copy_begins_anew_where_the_one_connection_was_lost() -> None:
    """auto_reconnect=False is about what its requests began with."""
    with byte_enclave(answering(ok())) as (enclave, _):
        client = enclavia.Client(enclave.url, **keywords(enclave, auto_reconnect=False))
        one, other = again(client), again(client)
        one.get("/")
        other.get("/")
        assert enclave.stats()["connections_total"] == 1
        enclave.drop_connections()
        eventually(lambda: one.stats.channels == 0)
        late, later = again(client), again(client)
        assert late.get("/").is_success and later.get("/").is_success
        for each in (one, other):
            with pytest.raises(enclavia.ReconnectDisabled):
                each.get("/")
        assert enclave.stats()["connections_total"] == 2


class Refuses:
    """What a client carries along may fail to come back."""

    def __call__(self, request: object) -> object:
        return request

    def __setstate__(self, state: object) -> None:
        raise LookupError("not here")

    def __getstate__(self) -> object:
        return {"something": 1}


def test_a_copy_that_could_not_be_made_holds_nothing(enclave: LocalEnclave) -> None:
    client = enclavia.Client(enclave.url, **keywords(enclave), auth=Refuses())
    for way in (again, copy.deepcopy):
        for _ in range(20):
            with pytest.raises(LookupError):
                way(client)
    assert not shared.pools._kept


def test_settings_pickled_before_there_was_an_expiry_are_read() -> None:
    settings = Settings.build(URL, pcrs=ONE)
    make, (cls, *_), *_ = settings.__reduce_ex__(4)  # type: ignore[misc]
    assert make(cls, *tuple(settings)[:4]) == settings


# ---------------------------------------------------------------------------------------------
# processes


@pytest.mark.parametrize("inherits", ["copy", "pickle"])
def test_a_forked_child_shares_nothing_of_its_parents(inherits: str, enclave: LocalEnclave) -> None:
    client = again(enclavia.Client(enclave.url, **keywords(enclave)))
    client.get("/")
    nonce, parents = client.attestation.nonce, channels(client)
    pickled = pickle.dumps(client)
    before = enclave.stats()["connections_total"]

    def work() -> None:
        assert not shared.pools._kept
        twin = client if inherits == "copy" else pickle.loads(pickled)
        assert twin.stats.connects == 0
        for _ in range(3):
            assert twin.get("/").is_success
            assert pickle.loads(pickled).get("/").is_success
        assert twin.attestation.nonce != nonce
        assert channels(twin) is not parents and twin.stats.connects == 1
        twin.close()
        if inherits == "copy":
            with pytest.raises(enclavia.StateError):
                client.get("/")

    assert in_child(work) == 0
    assert enclave.stats()["connections_total"] == before + 1
    assert client.get("/").is_success
    assert client.attestation.nonce == nonce and client.stats.connects == 1


def test_forked_while_copies_come_and_go(enclave: LocalEnclave) -> None:
    """Other threads of the parent are anywhere in there, and hold the lock."""
    pickled = pickle.dumps(
        enclavia.Client(enclave.url, **keywords(enclave, shared_expiry=0, timeout=60))
    )
    stop = threading.Event()
    failures: list[BaseException] = []

    def busy() -> None:
        try:
            while not stop.is_set():
                with pickle.loads(pickled) as client:
                    client.get("/")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()

    def work() -> None:
        assert pickle.loads(pickled).get("/").is_success

    try:
        for _ in range(5):
            with shared.pools._lock:
                assert in_child(work) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_forked_in_the_middle_of_taking(enclave: LocalEnclave) -> None:
    """As the handler of a signal may: the child that returns there has nothing of its parent's."""
    client = again(enclavia.Client(enclave.url, **keywords(enclave)))
    user = again(client)
    user.get("/")
    parents = channels(user)
    user.close()  # they are kept, and whoever comes next makes a new use of them
    before = enclave.stats()["connections_total"]
    statuses: list[int] = []
    make = Use.__init__

    def forking(self: Use, connections: Connections) -> None:
        Use.__init__ = make  # type: ignore[method-assign]
        make(self, connections)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        statuses.append(pid)

    parent = os.getpid()
    gc.collect()
    Use.__init__ = forking  # type: ignore[method-assign]
    try:
        answer = client.get("/")
        own = channels(client)
    except BaseException:
        if os.getpid() != parent:
            os._exit(7)
        raise
    finally:
        Use.__init__ = make  # type: ignore[method-assign]
    if os.getpid() != parent:
        # Of the parent's connections it would have been refused, by the core at the latest.
        its_own = answer.is_success and own is not parents
        os._exit(0 if its_own and client.stats.connects == 1 else 8)
    _, status = os.waitpid(statuses[0], 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert answer.is_success
    assert enclave.stats()["connections_total"] == before + 1


# ---------------------------------------------------------------------------------------------
# event loops


def test_each_event_loop_has_its_own(enclave: LocalEnclave) -> None:
    client = enclavia.AsyncClient(enclave.url, **keywords(enclave))
    twin = again(client)
    used: list[Any] = []

    async def run() -> None:
        assert (await twin.get("/")).is_success
        assert (await again(client).get("/")).is_success
        used.append(weakref.ref(channels(twin)))
        assert twin.stats.channels == 1

    before = enclave.stats()
    for number in range(3):
        asyncio.run(run())
        assert enclave.stats()["connections_total"] == before["connections_total"] + number + 1
        # The loop is closed: what was for it ends at once, although the copy is still there.
        eventually(lambda: enclave.stats()["connections_open"] == before["connections_open"])

    def forgotten() -> bool:
        gc.collect()
        return [each() for each in used] == [None] * 3

    eventually(forgotten)  # the thread that ended the last ones has them until it is done with them


def test_two_event_loops_at_once(enclave: LocalEnclave) -> None:
    twin = again(enclavia.AsyncClient(enclave.url, **keywords(enclave)))
    meet = threading.Barrier(2)
    used: list[Connections] = []

    async def run() -> None:
        for _ in range(5):
            assert (await twin.get("/")).is_success
            await asyncio.get_running_loop().run_in_executor(None, meet.wait)
        used.append(channels(twin))

    threads = [threading.Thread(target=lambda: asyncio.run(run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, used))) == 2


def test_looking_at_an_async_copy_needs_no_event_loop(enclave: LocalEnclave) -> None:
    twin = again(enclavia.AsyncClient(enclave.url, **keywords(enclave)))
    assert twin.stats.channels == 0 and "copy" in repr(twin)
    with pytest.raises(enclavia.StateError, match="not connected"):
        _ = twin.attestation


# ---------------------------------------------------------------------------------------------
# how long unused ones are kept


class Time:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(shared, "now", lambda: self.now)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


class Idle:
    """As ``Io``: nobody waits here."""

    def loop(self) -> None:
        return None


class Unused:
    def trust(self) -> None:
        return None


def made() -> Connections:
    config: Any = Unused()
    io: Any = Idle()
    return Connections(config, PoolLimits(), io)


class Test:
    def test_kept_for_as_long_as_that_and_no_longer(self, time: Time) -> None:
        pools = SharedPools(thread=False)
        use = pools.take("key", None, 30, made)
        pool = use.connections.pool
        time.now += 1000
        assert pools.look() is not None and not pool.closed
        del use
        pools.look()  # notes that it is unused
        time.now += 29
        assert pools.look() == pytest.approx(1)
        use = pools.take("key", None, 30, made)
        assert use.connections.pool is pool
        time.now += 1000
        pools.look()
        del use
        pools.look()
        time.now += 30
        assert pools.look() is None and pool.closed
        assert pools.take("key", None, 30, made).connections.pool is not pool

    def test_looking_for_one_keeps_it_no_longer(self, time: Time) -> None:
        pools = SharedPools(thread=False)
        assert pools.find("key", None) is None
        del_me = pools.take("key", None, 30, made)
        pool = del_me.connections.pool
        del del_me
        pools.look()
        time.now += 30
        pools.look()
        assert pool.closed and pools.find("key", None) is None

    def test_at_most_so_many_are_kept(self, time: Time) -> None:
        pools = SharedPools(thread=False)
        kept: list[Any] = []
        for number in range(MOST_UNUSED + 10):
            kept.append(pools.take(number, None, 1e6, made).connections.pool)
            pools.look()
            time.now += 1
        held = [pools.take(("held", number), None, 1e6, made) for number in range(20)]
        pools.look()
        assert [pool.closed for pool in kept] == [True] * 10 + [False] * MOST_UNUSED
        assert not any(use.connections.pool.closed for use in held)

    def test_what_is_taken_while_it_would_end_goes_on(self, time: Time) -> None:
        pools = SharedPools(thread=False)
        pool = pools.take("key", None, 0, made).connections.pool
        use = pools.take("key", None, 0, made)
        assert use.connections.pool is pool
        pools.look()
        assert not pool.closed
        del use
        pools.look()
        assert pool.closed

    def test_what_a_destructor_takes_while_all_are_looked_at_goes_on(self, time: Time) -> None:
        """The garbage collector may run in the thread that looks, between any two of its steps."""
        pools = SharedPools(thread=False)
        pool = pools.take("key", None, 0, made).connections.pool
        other = pools.take("other", None, 0, made)
        taken: list[Use] = []

        def interrupted() -> Use:
            taken.append(pools.take("key", None, 0, made))
            return other

        pools._kept["other", None].use = interrupted  # looked at after the other one
        assert pools.look() is not None
        assert taken[0].connections.pool is pool and not pool.closed
        assert pools.take("key", None, 0, made) is taken[0]
        pools._kept["other", None].use = weakref.ref(other)
        del taken[:]
        pools.look()
        assert pool.closed and not other.connections.pool.closed

    def test_an_event_loop_that_is_gone_takes_its_own_along(self, time: Time) -> None:
        pools = SharedPools(thread=False)

        class Loop:
            pass

        loop, other = Loop(), Loop()
        use = pools.take("key", loop, 30, made)
        beside = pools.take("key", other, 30, made)
        assert use.connections is not beside.connections
        pool = use.connections.pool
        del loop
        pools.look()
        assert not pool.closed  # a request that was begun there is still read
        del use
        pools.look()
        assert pool.closed and not beside.connections.pool.closed

    def test_no_thread_can_be_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As at the end of the interpreter, or at a limit: the request goes on."""

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        pools = SharedPools()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            use = pools.take("key", None, 0, made)
        pool = use.connections.pool
        del use
        assert pools._thread is not None and not pools._thread.is_alive()
        other = pools.take("other", None, 0, made)  # the next one tries again
        eventually(lambda: pool.closed)
        del other
        eventually(lambda: pools._thread is None)
