"""Each row of the error tables in docs/reference.md is provoked, in each client that can meet it,
and has the class and the ``retryable`` that its row promises. (The adapters' tables are in
test_adapters_errors.py.)"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import httpx2
import pytest
from enclave_peer import PCRS
from raw_server import Peer, RawServer, unused_port
from repository import ROOT
from support import Chunks, Connection, answering, byte_enclave, drive, eventually, keywords, ok

import enclavia
from enclavia.testing import BackendFault, Fault, LocalEnclave
from enclavia.testing._pki import mint

REFERENCE = ROOT / "docs" / "reference.md"
CLIENTS = ("Client", "AsyncClient")
CHANNELS = ("Channel", "AsyncChannel")

# Rows that are not provoked here, and why.
ELSEWHERE = {
    "FleetMismatch": "needs a job of two workers: tests/python/fleet/test_fleet_report.py::"
    "test_another_image_is_a_mismatch",
    "SlowReader": "waits 10 s: tests/python/channel/test_isolation.py::"
    "test_others_wait_for_a_bounded_time_and_memory_is_bounded",
    "DownloadError": "of clients alone: tests/python/files/test_download.py::"
    "test_a_part_that_was_not_asked_for",
    "DigestMismatch": "of clients alone: tests/python/files/test_download.py::"
    "test_another_digest_leaves_the_destination",
    "FileChanged": "of clients alone: tests/python/files/test_open.py::test_a_file_that_changes",
    "RangesUnsupported": "of clients alone: tests/python/files/test_open.py::"
    "test_a_workload_without_ranges",
    "InternalError": "needs a broken library: tests/python/house/test_torture.py::"
    "test_every_failing_allocation_ends_in_an_error_and_leaves_nothing_behind",
}


class Provocation(NamedTuple):
    row: str
    retryable: bool
    kinds: tuple[str, ...]
    run: Callable[[str], Awaitable[None]]


PROVOCATIONS: list[Provocation] = []


def provokes(
    row: str, *, retryable: bool, kinds: tuple[str, ...] = CLIENTS + CHANNELS
) -> Callable[[Any], Any]:
    def register(run: Any) -> Any:
        PROVOCATIONS.append(Provocation(row, retryable, kinds, run))
        return run

    return register


async def done(value: Any) -> Any:
    return await value if hasattr(value, "__await__") else value


@contextlib.asynccontextmanager
async def opened(kind: str, url: str, **options: Any) -> AsyncIterator[Any]:
    """Connected and verified."""
    one = await done(getattr(enclavia, kind).connect(url, **options))
    try:
        yield one
    finally:
        await done(one.aclose() if kind == "AsyncClient" else one.close())


async def exchange(kind: str, one: Any, **options: Any) -> None:
    """A request and its answer."""
    if kind in CLIENTS:
        await done(one.post("/", content=b"x", **options))
        return
    stream = await done(one.open_stream(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"))
    stream.read_timeout = options.get("timeout", 10.0)
    await done(stream.read(1000))


async def connect_to(kind: str, url: str, **options: Any) -> None:
    async with opened(kind, url, **options) as one:
        await exchange(kind, one)


def silent(connection: Connection) -> None:
    connection.wait_closed(30)


@contextlib.contextmanager
def faulty(fault: Fault, **more: Any) -> Any:
    with byte_enclave(answering(ok())) as (enclave, _):
        enclave.set_faults(fault, **more)
        yield enclave


once: dict[str, Any] = {"retries": 0, "patience": 0.0}


def of(kind: str, **options: Any) -> dict[str, Any]:
    """Options that only clients take."""
    return options if kind in CLIENTS else {}


# -- connecting


@provokes("ConnectError", retryable=True)
async def nobody_listens(kind: str) -> None:
    await connect_to(kind, f"ws://127.0.0.1:{unused_port()}", pcrs=PCRS, **of(kind, **once))


def rejecting(status: int) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

    return script


@provokes("UpgradeRejected", retryable=False)
async def the_router_knows_no_such_enclave(kind: str) -> None:
    with RawServer(rejecting(404)) as server:
        await connect_to(kind, server.url, pcrs=PCRS, **of(kind, **once))


@provokes("UpgradeRejected", retryable=True)
async def the_router_is_overloaded(kind: str) -> None:
    with RawServer(rejecting(503)) as server:
        await connect_to(kind, server.url, pcrs=PCRS, **of(kind, **once))


@provokes("ConnectTimeout", retryable=True)
async def no_handshake(kind: str) -> None:
    with faulty(Fault.SILENT_HANDSHAKE) as enclave:
        await connect_to(kind, enclave.url, **keywords(enclave, timeout=0.3))


@provokes("ReconnectDisabled", retryable=False, kinds=CLIENTS)
async def lost_for_good(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        options = keywords(enclave, auto_reconnect=False)
        async with opened(kind, enclave.url, **options) as one:
            await exchange(kind, one)
            enclave.drop_connections()
            eventually(lambda: one.stats.channels == 0)
            await exchange(kind, one)


@provokes("AttestationError", retryable=False)
@provokes("DocumentError", retryable=False)
async def a_stub(kind: str) -> None:
    with byte_enclave(answering(ok()), mode="stub") as (enclave, _):
        await connect_to(kind, enclave.url, pcrs=PCRS)


@provokes("CertificateError", retryable=False)
@provokes("AttestationError", retryable=False)
async def another_root(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        await connect_to(kind, enclave.url, **keywords(enclave, root=mint().root_pem))


@provokes("SignatureError", retryable=False)
@provokes("AttestationError", retryable=False)
async def a_bad_signature(kind: str) -> None:
    with faulty(Fault.BAD_SIGNATURE) as enclave:
        await connect_to(kind, enclave.url, **keywords(enclave))


@provokes("NonceMismatch", retryable=False)
@provokes("AttestationError", retryable=False)
async def made_for_another_channel(kind: str) -> None:
    with faulty(Fault.WRONG_NONCE) as enclave:
        await connect_to(kind, enclave.url, **keywords(enclave))


@provokes("PcrMismatch", retryable=False)
@provokes("AttestationError", retryable=False)
async def another_image(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        await connect_to(kind, enclave.url, **keywords(enclave, pcrs=PCRS))


def asked(answer: Any) -> Any:
    """A function, of which whoever is asked can also be one that waits."""

    def ask() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


@provokes("PinsUnavailable", retryable=True)
async def nobody_gives_the_pins(kind: str) -> None:
    pcrs = asked(OSError("down"))
    await connect_to(kind, "wss://e.example", pcrs=pcrs, **of(kind, **once))


@provokes("PinsUnavailable", retryable=False)
async def what_is_given_is_no_pins(kind: str) -> None:
    await connect_to(kind, "wss://e.example", pcrs=asked([]), **of(kind, **once))


@provokes("PinsUnavailable", retryable=False)
async def nobody_has_signed_the_pins(kind: str) -> None:
    pcrs = asked(enclavia.SigstoreError("another identity"))
    await connect_to(kind, "wss://e.example", pcrs=pcrs)


def ended(pcrs: enclavia.Pcrs, *others: enclavia.Pcrs) -> Any:
    """The pins of a policy of which one version has ended."""
    versions: list[dict[str, Any]] = [
        {"name": f"v{number}", "pcrs": each.as_dict()}
        for number, each in enumerate((pcrs, *others))
    ]
    versions[0]["not_after"] = "2020-01-01T00:00:00Z"
    return enclavia.Policy.parse(json.dumps({"format": 1, "versions": versions})).pins


@provokes("PolicyExpired", retryable=False)
@provokes("AttestationError", retryable=False)
async def the_policy_has_ended(kind: str) -> None:
    await connect_to(kind, "wss://e.example", pcrs=ended(PCRS))


@provokes("PolicyExpired", retryable=False)
async def the_version_that_runs_has_ended(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        options = keywords(enclave, pcrs=ended(enclave.pcrs, PCRS))
        await connect_to(kind, enclave.url, **options)


async def upgraded(kind: str, fault: BackendFault) -> None:
    with LocalEnclave("127.0.0.1:9", upgradable=True) as enclave:
        upgrades = enclavia.TrustUpgrades(enclave.backend, enclave.enclave_id)
        options = {**keywords(enclave), "trust_upgrades": upgrades}
        enclave.upgrade()
        enclave.set_backend_faults(fault)
        await connect_to(kind, enclave.url, **options, **of(kind, **once))


@provokes("UpgradeChainError", retryable=False)
async def a_link_of_another_enclave(kind: str) -> None:
    await upgraded(kind, BackendFault.FOREIGN_ENCLAVE_ID)


@provokes("BackendError", retryable=True)
async def the_backend_is_down(kind: str) -> None:
    await upgraded(kind, BackendFault.DOWN)


@provokes("BackendError", retryable=False)
async def the_backend_does_not_show_the_enclave(kind: str) -> None:
    await upgraded(kind, BackendFault.PRIVATE)


@provokes("AttestationRefused", retryable=False)
async def refused_by_the_caller(kind: str) -> None:
    def refuse(receipt: enclavia.Receipt) -> None:
        raise LookupError("unknown")

    with byte_enclave(answering(ok())) as (enclave, _):
        await connect_to(kind, enclave.url, **keywords(enclave, on_attestation=refuse))


@provokes("AttestationRefused", retryable=True)
async def refused_for_now(kind: str) -> None:
    def refuse(receipt: enclavia.Receipt) -> None:
        raise enclavia.ConnectError("the ledger does not answer")

    with byte_enclave(answering(ok())) as (enclave, _):
        options = keywords(enclave, on_attestation=refuse, **of(kind, **once))
        await connect_to(kind, enclave.url, **options)


# -- exchanging


@provokes("ConnectionClosed", retryable=True)
async def the_connection_breaks(kind: str) -> None:
    with faulty(Fault.CLOSE_ON_REQUEST) as enclave:
        await connect_to(kind, enclave.url, **keywords(enclave, **of(kind, **once)))


def cutting(answer: bytes) -> Callable[[Connection], None]:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer)

    return script


@provokes("IncompleteResponse", retryable=True, kinds=CLIENTS)
async def no_answer(kind: str) -> None:
    with byte_enclave(cutting(b"")) as (enclave, _):
        await connect_to(kind, enclave.url, **keywords(enclave))


@provokes("IncompleteResponse", retryable=True, kinds=CLIENTS)
async def half_an_answer(kind: str) -> None:
    with byte_enclave(cutting(ok(b"whole")[:-1])) as (enclave, _):
        await connect_to(kind, enclave.url, **keywords(enclave))


@provokes("ReadTimeout", retryable=True)
async def nothing_comes(kind: str) -> None:
    with byte_enclave(silent) as (enclave, _):
        async with opened(kind, enclave.url, **keywords(enclave)) as one:
            within: Any = httpx2.Timeout(10, read=0.1) if kind in CLIENTS else 0.1
            await exchange(kind, one, timeout=within)


@provokes("WriteTimeout", retryable=True)
async def nothing_goes(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        eventually(lambda: over, timeout=30)

    over: list[bool] = []
    with byte_enclave(script) as (enclave, _):
        async with opened(kind, enclave.url, **keywords(enclave)) as one:
            try:
                pieces = Chunks(*[b"x" * 65_536] * 2000)
                if kind in CLIENTS:
                    body = pieces.blocking() if kind == "Client" else pieces.asynchronous()
                    await done(one.post("/", content=body, timeout=httpx2.Timeout(30, write=0.2)))
                stream = await done(one.open_stream(b"\r\n\r\n"))
                stream.write_timeout = 0.2
                for piece in pieces.blocking():
                    await done(stream.write(piece))
            finally:
                over.append(True)


@provokes("PoolTimeout", retryable=True)
async def no_slot(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.sock.recv(1)
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        silent(connection)

    with byte_enclave(script) as (enclave, _):
        options = keywords(enclave, max_in_flight=1, **of(kind, max_channels=1))
        async with opened(kind, enclave.url, **options) as one:
            if kind in CHANNELS:
                first = await done(one.open_stream(b"x"))
                await done(one.open_stream(b"x", timeout=0.1))
                del first
            held = await done(one.send(one.build_request("GET", "/"), stream=True))
            try:
                await done(one.get("/", timeout=httpx2.Timeout(10, pool=0.1)))
            finally:
                await done(held.aclose() if kind == "AsyncClient" else held.close())


@provokes("ProtocolError", retryable=False, kinds=CLIENTS)
async def no_http(kind: str) -> None:
    with byte_enclave(cutting(b"no HTTP\r\n\r\n")) as (enclave, _):
        await connect_to(kind, enclave.url, **keywords(enclave))


@provokes("ProtocolError", retryable=False)
async def no_record(kind: str) -> None:
    with faulty(Fault.RAW_RECORD_LENGTH, record_length=3) as enclave:
        await connect_to(kind, enclave.url, **keywords(enclave, **of(kind, **once)))


def resetting(connection: Connection) -> None:
    connection.request()
    connection.reset()


@provokes("ServerError", retryable=True, kinds=CLIENTS)
@provokes("ServerError", retryable=False, kinds=CHANNELS)
async def the_workload_resets(kind: str) -> None:
    with byte_enclave(resetting) as (enclave, _):
        await connect_to(kind, enclave.url, **keywords(enclave))


@provokes("ServerError", retryable=True, kinds=CLIENTS)
@provokes("ServerError", retryable=False, kinds=CHANNELS)
async def no_workload(kind: str) -> None:
    with LocalEnclave(f"127.0.0.1:{unused_port()}", workload_grace=0.1) as enclave:
        await connect_to(kind, enclave.url, **keywords(enclave))


@provokes("InvalidRequest", retryable=False, kinds=CLIENTS)
async def a_header_of_two_lines(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        async with opened(kind, enclave.url, **keywords(enclave)) as one:
            await done(one.get("/", headers={"X-A": "b\r\nX-C: d"}))


@provokes("ForeignURL", retryable=False, kinds=CLIENTS)
async def another_host(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        async with opened(kind, enclave.url, **keywords(enclave)) as one:
            await done(one.get("https://other.example/"))


# -- at any time


@provokes("InvalidURL", retryable=False)
async def no_url(kind: str) -> None:
    await done(getattr(enclavia, kind).connect("ftp://enclave.example", pcrs=PCRS))


@provokes("StateError", retryable=False)
async def closed(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        async with opened(kind, enclave.url, **keywords(enclave)) as one:
            await done(one.aclose() if kind == "AsyncClient" else one.close())
            await exchange(kind, one)


@provokes("StateError", retryable=False, kinds=CHANNELS)
async def closed_and_asked_once(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        async with opened(kind, enclave.url, **keywords(enclave)) as one:
            await done(one.close())
            with pytest.raises(enclavia.StateError):
                await done(one.attest())
            await done(one.request(b"x"))


@provokes("StateError", retryable=False, kinds=CLIENTS)
async def nothing_was_verified(kind: str) -> None:
    _ = getattr(enclavia, kind)("wss://enclave.example", pcrs=PCRS).attestation


@provokes("ForkedError", retryable=False, kinds=("Channel",))
async def in_a_forked_child(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        async with opened(kind, enclave.url, **keywords(enclave)) as one:
            reader, writer = os.pipe()
            if (child := os.fork()) == 0:
                told: dict[str, Any] = {}
                try:
                    one.open_stream(b"x")
                except enclavia.EnclaviaError as error:
                    told = {"name": type(error).__name__, "retryable": error.retryable}
                finally:
                    os.write(writer, json.dumps(told).encode())
                    os._exit(0)
            os.close(writer)
            os.waitpid(child, 0)
            with open(reader) as pipe:
                told = json.loads(pipe.read())
            raise getattr(enclavia, told["name"])("in the child", retryable=told["retryable"])


@provokes("ReceiptError", retryable=False, kinds=("Channel",))
async def no_receipt(kind: str) -> None:
    enclavia.Receipt.from_json("{}")


@provokes("SigstoreError", retryable=False, kinds=("Channel",))
async def no_bundle(kind: str) -> None:
    pytest.importorskip("sigstore", reason="needs the extra sigstore")
    enclavia.SigstorePins(pcrs=b"{}", bundle=b"{}", identity="a", issuer="b").verify()


@provokes("DebugModeWarning", retryable=False)
async def nothing_is_proven(kind: str) -> None:
    with (
        byte_enclave(answering(ok()), mode="debug") as (enclave, _),
        pytest.warns(enclavia.DebugModeWarning) as caught,
    ):
        await connect_to(kind, enclave.url, debug_mode=True)
    warning = caught[0].message
    assert isinstance(warning, Warning)
    raise warning


# -- the table


CASES = [(each, kind) for each in PROVOCATIONS for kind in each.kinds]


@pytest.mark.parametrize(
    ("provocation", "kind"),
    CASES,
    ids=[f"{each.row}-{each.run.__name__}-{kind}" for each, kind in CASES],  # type: ignore[attr-defined]
)
def test_provoked(provocation: Provocation, kind: str) -> None:
    caught: list[Exception] = []

    async def case() -> None:
        try:
            await provocation.run(kind)
        except Exception as error:
            caught.append(error)

    drive("asyncio" if kind.startswith("Async") else "sync", functools.partial(case))
    expected = getattr(enclavia, provocation.row)
    assert caught, f"expected {provocation.row}, got nothing"
    if not isinstance(caught[0], expected):
        raise caught[0]
    if provocation.row not in ("AttestationError",):
        assert type(caught[0]) is expected
    assert getattr(caught[0], "retryable", False) is provocation.retryable


def rows() -> dict[str, str]:
    """The names that the tables begin with, and the rest of their rows."""
    text = REFERENCE.read_text().partition("### EnclaviaError")[2].partition("\n## ")[0]
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            first, _, rest = line[2:].partition(" | ")
            found.update(dict.fromkeys(re.findall(r"`(\w+)`", first), rest))
    return found


def test_every_row_is_provoked() -> None:
    provoked = {each.row for each in PROVOCATIONS}
    assert provoked | set(ELSEWHERE) == set(rows())
    assert not provoked & set(ELSEWHERE)
    for reason in ELSEWHERE.values():
        for path, test in re.findall(r"(tests/\S+\.py)::(\w+)", reason):
            assert f"def {test}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("row", sorted({each.row for each in PROVOCATIONS}))
def test_the_row_says_what_may_be_retried(row: str) -> None:
    text = rows()[row]
    said = "etryable" in text and "Not retryable" not in text
    if row == "CertificateError":  # where a clock is behind: test_attest_chain.py
        assert "Retryable only where" in text
        return
    assert said is any(each.retryable for each in PROVOCATIONS if each.row == row)


def test_every_class_has_a_row() -> None:
    named = {
        name
        for name in enclavia.__all__
        if isinstance(getattr(enclavia, name), type)
        and issubclass(getattr(enclavia, name), Exception)
    }
    assert named == set(rows()) | {"EnclaviaError"}
