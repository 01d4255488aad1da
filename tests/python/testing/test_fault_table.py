"""docs/testing.md's table of faults: each row is provoked, and is what a client raises.

What the enclave sends is in test_enclave_faults.py, seen by a client that is not ours.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import anyio
import httpx2
import pytest
from repository import ROOT

import enclavia
from enclavia.testing import EnclavePki, Fault, LocalEnclave

BODY = b"hello" * 1000
OF_CERTIFICATES = (Fault.EXPIRED_LEAF, Fault.NOT_YET_VALID, Fault.WRONG_ROOT)


def app(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/nothing":
        start_response("204 No Content", [])
        return []
    start_response("200 OK", [("Content-Length", str(len(BODY)))])
    return [BODY]


class Provoked(NamedTuple):
    """With which parameters a fault is switched on, and which timeout the client has."""

    parameters: Mapping[str, Any] = MappingProxyType({})
    timeout: httpx2.Timeout | float = 30.0


SHORT = 0.5
PROVOKED = {
    Fault.SILENT_HANDSHAKE: Provoked(timeout=SHORT),
    Fault.SILENT_ATTESTATION: Provoked(timeout=SHORT),
    Fault.TEXT_ONLY: Provoked(timeout=SHORT),
    Fault.SILENT_STREAMS: Provoked(timeout=httpx2.Timeout(30.0, read=SHORT)),
    Fault.SLOW: Provoked({"delay": 0.4}, httpx2.Timeout(30.0, read=0.1)),
    Fault.SPLIT: Provoked({"split": 3}),
    Fault.RAW_RECORD_LENGTH: Provoked({"record_length": 70_000}),
}


class Row(NamedTuple):
    fault: Fault
    raises: type[enclavia.EnclaviaError] | None
    retryable: bool
    since: str


def rows() -> list[Row]:
    text = (ROOT / "docs" / "testing.md").read_text()
    found = []
    for line in re.findall(r"^\| `[A-Z_0-9]+` \|.*\|$", text, re.MULTILINE):
        name, _, raises, since = (cell.strip() for cell in line.strip("|").split("|"))
        first = re.match(r"`(\w+)`|nothing", raises)
        assert first is not None, line
        error = getattr(enclavia, first[1]) if first[1] else None
        found.append(Row(Fault[name.strip("`")], error, "retryable" in raises, since))
    return found


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    with LocalEnclave(app) as running:
        yield running


@pytest.fixture(autouse=True)
def well_again(enclave: LocalEnclave) -> Iterator[None]:
    yield
    enclave.set_faults()


def test_the_table_has_every_fault_once() -> None:
    assert sorted(row.fault for row in rows()) == sorted(Fault)
    for row in rows():
        assert re.fullmatch(r"\d+\.\d+\.\d+", row.since)


def switch_on(enclave: LocalEnclave, fault: Fault) -> httpx2.Timeout | float:
    provoked = PROVOKED.get(fault, Provoked())
    enclave.set_faults(fault, **provoked.parameters)
    assert enclave.faults == fault
    return provoked.timeout


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.fault.name)
def test_a_client_raises_what_the_table_says(enclave: LocalEnclave, row: Row) -> None:
    timeout = switch_on(enclave, row.fault)
    client = enclave.client(timeout=timeout, patience=0, retries=0)
    try:
        if row.raises is None:
            assert client.get("/").content == BODY
            return
        with pytest.raises(row.raises) as caught:
            client.get("/")
        assert type(caught.value) is row.raises
        # SLOW's row names two errors, and none of them is called retryable there.
        assert caught.value.retryable == row.retryable or row.fault is Fault.SLOW
    finally:
        client.close()
    enclave.set_faults()
    with enclave.client() as after:
        assert after.get("/").content == BODY


def test_an_async_client_raises_the_same(enclave: LocalEnclave) -> None:
    async def main() -> None:
        enclave.set_faults(Fault.WRONG_PCRS)
        client = enclave.async_client(patience=0)
        with pytest.raises(enclavia.PcrMismatch):
            await client.get("/")
        enclave.set_faults()
        assert (await client.get("/")).content == BODY
        await client.aclose()

    anyio.run(main)


# ---- what else the table, and the text around it, says


def test_an_open_connection_goes_on_while_it_is_full(enclave: LocalEnclave) -> None:
    with enclave.client() as client:
        for fault in (Fault.FULL, Fault.UPGRADE_503, Fault.WRONG_PCRS):
            enclave.set_faults(fault)
            assert client.get("/").content == BODY
            assert client.stats.connects == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.SILENT_STREAMS, enclavia.ReadTimeout),
        (Fault.CLOSE_ON_REQUEST, enclavia.ConnectionClosed),
        (Fault.TRUNCATED, enclavia.IncompleteResponse),
        (Fault.SLOW, enclavia.ReadTimeout),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_kept_stream_meets_faults_of_requests(
    enclave: LocalEnclave, fault: Fault, error: type[enclavia.EnclaviaError]
) -> None:
    timeout = httpx2.Timeout(30.0, read=SHORT)
    streams = enclave.stats()["streams_total"]
    with enclave.client(timeout=timeout, retries=0) as client:
        assert client.get("/").content == BODY
        assert client.stats.streams_idle == 1
        enclave.set_faults(fault, delay=30)
        with pytest.raises(error):
            client.get("/")
        assert enclave.stats()["streams_total"] == streams + 1
        enclave.set_faults()
    with enclave.client() as client:
        assert client.get("/").content == BODY


@pytest.mark.parametrize("slower", [None, 0.05])
def test_what_was_held_back_is_taken_when_the_enclave_is_slow_no_more(
    enclave: LocalEnclave, slower: float | None
) -> None:
    with enclave.client(timeout=30, retries=0) as client:
        assert client.get("/").content == BODY
        enclave.set_faults(Fault.SLOW, delay=1e9)
        with pytest.raises(enclavia.ReadTimeout):
            client.get("/", timeout=httpx2.Timeout(30.0, read=SHORT))
        if slower is None:
            enclave.set_faults()
        else:
            enclave.set_faults(Fault.SLOW, delay=slower)
        assert client.get("/").content == BODY
        assert client.stats.connects == 1


def test_patience_outlasts_a_refused_upgrade(enclave: LocalEnclave) -> None:
    enclave.set_faults(Fault.UPGRADE_503)
    seen = enclave.stats()["connections_total"]
    timer = threading.Timer(0.2, enclave.set_faults)
    timer.start()
    with enclave.client(patience=60, timeout=60) as client:
        assert client.get("/").content == BODY
    timer.join()
    assert enclave.stats()["connections_total"] == seen + 1, "a refused upgrade is no connection"


def test_a_slow_enclave_is_waited_for(enclave: LocalEnclave) -> None:
    enclave.set_faults(Fault.SLOW, delay=0.05)
    with enclave.client() as client:
        for _ in range(3):
            assert client.get("/").content == BODY
        # Longer than what is read in one piece.
        assert client.post("/", content=bytes(2_000_000)).content == BODY


def test_a_slow_enclave_while_connecting(enclave: LocalEnclave) -> None:
    enclave.set_faults(Fault.SLOW, delay=30)
    with (
        pytest.raises(enclavia.ConnectTimeout),
        enclave.client(timeout=0.3, patience=0),
    ):
        pass
    # What it still held back for the client that left does not keep it from ending.
    enclave.drop_connections()


@pytest.mark.parametrize("after", [0, 1, 4999])
def test_an_answer_is_cut_behind_its_head(enclave: LocalEnclave, after: int) -> None:
    enclave.set_faults(Fault.TRUNCATED, truncated_after=after)
    with enclave.client(retries=0) as client, client.stream("GET", "/") as response:
        assert response.status_code == 200
        chunks = response.iter_raw()
        assert b"".join(next(chunks) for _ in range(after > 0)) == BODY[:after]
        with pytest.raises(enclavia.IncompleteResponse, match=f"after {after} of {len(BODY)} byt"):
            next(chunks)


def test_an_answer_is_cut_by_a_limit_that_it_has_passed_already() -> None:
    gate = threading.Event()

    def slowly(environ: object, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "200")])
        yield bytes(100)
        gate.wait(60)
        yield bytes(100)

    with (
        LocalEnclave(slowly, faults=Fault.TRUNCATED, truncated_after=150) as enclave,
        enclave.client(retries=0) as client,
        client.stream("GET", "/") as response,
    ):
        chunks = response.iter_raw()
        assert next(chunks) == bytes(100)
        enclave.set_faults(Fault.TRUNCATED, truncated_after=10)
        gate.set()
        with pytest.raises(enclavia.IncompleteResponse, match="after 100 of 200 byt"):
            next(chunks)


def test_short_answers_are_not_cut(enclave: LocalEnclave) -> None:
    enclave.set_faults(Fault.TRUNCATED, truncated_after=len(BODY))
    streams = enclave.stats()["streams_total"]
    with enclave.client(retries=0) as client:
        for _ in range(3):  # each is counted for itself
            assert client.get("/").content == BODY
        assert enclave.stats()["streams_total"] == streams + 1
        enclave.set_faults(Fault.TRUNCATED)
        assert client.get("/nothing").status_code == 204
        with pytest.raises(enclavia.IncompleteResponse):
            client.get("/")
        enclave.set_faults()
        assert client.get("/").content == BODY
        assert client.stats.connects == 1, "the channel stays"


@pytest.mark.parametrize("fault", OF_CERTIFICATES, ids=lambda fault: fault.name)
def test_a_restart_keeps_faults_of_certificates(fault: Fault) -> None:
    with LocalEnclave(app, faults=fault) as enclave:
        for _ in range(2):
            with pytest.raises(enclavia.CertificateError), enclave.client():
                pass
            enclave.restart()
        enclave.set_faults()
        with enclave.client() as client:
            assert client.get("/").content == BODY


def test_open_channels_meet_faults_of_certificates(enclave: LocalEnclave) -> None:
    with enclavia.Channel.connect(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as channel:
        enclave.set_faults(Fault.EXPIRED_LEAF)
        with pytest.raises(enclavia.CertificateError, match="has expired"):
            channel.attest()


def test_faults_in_a_process_of_its_own() -> None:
    with LocalEnclave("docs_app:app", in_process=False) as enclave:
        for fault, parameters, error in (
            (Fault.WRONG_ROOT, {}, enclavia.CertificateError),
            (Fault.SLOW, {"delay": 30}, enclavia.ConnectTimeout),
            (Fault.UPGRADE_503, {}, enclavia.UpgradeRejected),
        ):
            enclave.set_faults(fault, **parameters)
            with pytest.raises(error), enclave.client(timeout=0.5, patience=0):
                pass
        enclave.set_faults()
        with enclave.client() as client:
            assert client.get("/health").text == "well"


# ---- what cannot be


@pytest.mark.parametrize("fault", OF_CERTIFICATES, ids=lambda fault: fault.name)
@pytest.mark.parametrize("mode", ["debug", "stub"])
def test_faults_of_certificates_need_certificates(fault: Fault, mode: Any) -> None:
    with pytest.raises(ValueError, match=f"{fault.name} is about certificates: .* got '{mode}'"):
        LocalEnclave(app, mode=mode, faults=fault)
    with LocalEnclave(app, mode=mode) as enclave:
        with pytest.raises(ValueError, match="is about certificates"):
            enclave.set_faults(fault)
        assert enclave.faults == Fault(0)


def test_faults_that_contradict_each_other(enclave: LocalEnclave) -> None:
    with pytest.raises(ValueError, match="expected EXPIRED_LEAF or NOT_YET_VALID, got both"):
        enclave.set_faults(Fault.EXPIRED_LEAF | Fault.NOT_YET_VALID)


@pytest.mark.parametrize("delay", [0, 0.0009])
def test_slow_without_a_delay(enclave: LocalEnclave, delay: float) -> None:
    with pytest.raises(ValueError, match=r"delay: expected 0\.001 s or more, as"):
        enclave.set_faults(Fault.SLOW, delay=delay)


def test_foreign_certificates_and_a_fault_of_them() -> None:
    with LocalEnclave(app) as enclave:
        enclave.set_faults(Fault.EXPIRED_LEAF)
        with pytest.raises(ValueError, match="EXPIRED_LEAF is on"):
            enclave.set_identity(pki=EnclavePki.mint())
        enclave.set_faults()
        enclave.set_identity(pki=EnclavePki.mint())
        with pytest.raises(RuntimeError, match="expected the enclave's own certificates"):
            enclave.set_faults(Fault.EXPIRED_LEAF)
        assert enclave.faults == Fault(0)
        with enclave.client() as client:
            assert client.get("/").content == BODY


# ---- clients, and certificates of one's own


def test_a_client_trusts_what_the_enclave_is_now() -> None:
    other = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)
    with LocalEnclave(app, tls=True) as enclave:
        with enclave.client() as client:
            assert client.attestation.proven
        enclave.set_identity(pcrs=other)
        with enclave.client(headers={"x": "y"}) as client:
            assert client.attestation.pcrs[0] == other.pcr0
            assert client.headers["x"] == "y"
        wrong = enclave.client(pcrs=enclavia.Pcrs(pcr0=b"4" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48))
        with pytest.raises(enclavia.PcrMismatch):
            wrong.get("/")
        wrong.close()


@pytest.mark.parametrize("mode", ["debug", "stub"])
def test_a_client_of_an_enclave_that_proves_nothing(mode: Any) -> None:
    with LocalEnclave(app, mode=mode) as enclave:
        with pytest.warns(enclavia.DebugModeWarning) as warned, enclave.client() as client:
            assert client.get("/").content == BODY
        assert {warning.filename for warning in warned} == {__file__}
        with pytest.raises(enclavia.EnclaviaError), enclave.client(debug_mode=False, patience=0):
            pass


def test_there_is_no_client_of_a_stopped_enclave() -> None:
    enclave = LocalEnclave(app)
    for make in (enclave.client, enclave.async_client):
        with pytest.raises(RuntimeError, match="does not run"):
            make()


def test_certificates_are_minted_for_a_moment() -> None:
    begin = datetime.now(UTC) - timedelta(minutes=10)
    soon_over = EnclavePki.mint(begin, leaf_lifetime=timedelta(minutes=5), intermediates=1)
    assert len(soon_over.cabundle) == 2
    with LocalEnclave(app) as enclave:
        enclave.set_identity(pki=soon_over)
        assert enclave.root == soon_over.root_pem
        with pytest.raises(enclavia.CertificateError, match="has expired"), enclave.client():
            pass
