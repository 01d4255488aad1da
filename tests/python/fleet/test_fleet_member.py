"""A process's part of a job, without any engine: its one client, its forwarder, what it reports."""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_app import keywords, small_enclave
from forked import in_child
from pinned import OTHER
from repository import ROOT
from support import HANG, eventually

import enclavia
from enclavia import FleetMismatch
from enclavia._exchange.renewal import Renewal
from enclavia._fleet import node
from enclavia._fleet.fleet import Fleet
from enclavia.testing import Fault, LocalEnclave


@pytest.fixture
def enclave() -> Iterator[LocalEnclave]:
    with small_enclave() as enclave:
        yield enclave


def fleet_of(enclave: LocalEnclave, **options: Any) -> Fleet:
    return Fleet(enclave.url, {**keywords(enclave), **options})


@pytest.fixture
def fleet(enclave: LocalEnclave) -> Iterator[Fleet]:
    made = fleet_of(enclave)
    yield made
    made._member.close()


def score(fleet: Fleet, number: int) -> int:
    answer: dict[str, int] = fleet.client().post("/score", json={"id": number}).json()
    return answer["score"]


# ---- the client


def test_a_fleet_is_checked_where_it_is_made(enclave: LocalEnclave) -> None:
    with pytest.raises(ValueError, match="per: expected 'worker' or 'node', got 'cluster'"):
        fleet_of(enclave, per="cluster")
    with pytest.raises(ValueError, match="pcrs: expected"):
        Fleet(enclave.url, {})
    with pytest.raises(TypeError, match="unexpected keyword argument 'pcr'"):
        Fleet(enclave.url, {"pcr": enclave.pcrs})
    assert enclave.stats()["connections_total"] == 0


def test_copies_in_a_process_have_one_client(enclave: LocalEnclave, fleet: Fleet) -> None:
    copies = [pickle.loads(pickle.dumps(fleet)) for _ in range(20)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(score, copies, range(20))) == list(range(20))
    assert len({id(each.client()) for each in (*copies, fleet)}) == 1
    assert enclave.stats()["connections_total"] == 1


def test_two_fleets_share_nothing(enclave: LocalEnclave, fleet: Fleet) -> None:
    other = fleet_of(enclave)
    assert other.client() is not fleet.client()
    other._member.close()
    assert score(fleet, 3) == 3


def test_what_travels_is_no_key_and_no_secret_of_a_repr(enclave: LocalEnclave) -> None:
    fleet = fleet_of(enclave, headers={"Authorization": "Bearer hidden"})
    assert "hidden" not in repr(fleet) + repr(fleet._settings)
    assert repr(fleet) == f"<Fleet {enclave.url}/ per worker>"


def test_files_are_read_where_the_fleet_is_made(enclave: LocalEnclave, tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    root.write_bytes(enclave.root or b"")
    fleet = Fleet(enclave.url, {"pcrs": enclave.pcrs, "root": str(root)})
    root.unlink()
    travelled = pickle.loads(pickle.dumps(fleet))
    assert score(travelled, 1) == 1
    travelled._member.close()


def test_pins_that_come_one_after_another_are_every_workers(enclave: LocalEnclave) -> None:
    """An iterator would have none left for whoever asks second."""
    options = {**keywords(enclave), "pcrs": iter([enclave.pcrs, OTHER])}
    fleet = pickle.loads(pickle.dumps(Fleet(enclave.url, options)))
    assert fleet._report_of([fleet.report("1")]).consistent
    fleet._member.close()


def test_a_client_that_a_task_has_closed_is_made_again(enclave: LocalEnclave, fleet: Fleet) -> None:
    with fleet._member.client():
        pass
    assert score(fleet, 1) == 1
    assert enclave.stats()["connections_total"] == 2


def test_it_is_closed_with_its_last_holder(enclave: LocalEnclave, fleet: Fleet) -> None:
    member = fleet._member
    member.retain()
    member.retain()
    member.release()
    assert score(fleet, 1) == 1
    client = member.client()
    member.release()
    assert client.is_closed
    eventually(lambda: enclave.stats()["connections_open"] == 0)


def test_a_forked_child_has_a_client_of_its_own(enclave: LocalEnclave, fleet: Fleet) -> None:
    parents = fleet.client()

    def work() -> None:
        assert fleet.client() is not parents
        assert score(fleet, 5) == 5
        assert fleet.client().attestation.nonce != parents_nonce
        fleet._member.close()

    parents_nonce = parents.attestation.nonce
    assert in_child(work) == 0
    assert score(fleet, 6) == 6
    assert enclave.stats()["connections_total"] == 2


def test_the_end_of_the_process_closes_it(enclave: LocalEnclave) -> None:
    """The enclave is told at once, and does not wait for its idle timeout."""
    program = """
        import pickle, sys
        fleet = pickle.load(sys.stdin.buffer)
        assert fleet.client().post("/score", json={"id": 1}).json() == {"score": 1}
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=pickle.dumps(fleet_of(enclave)),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=HANG,
    )
    assert ended.returncode == 0, ended.stderr
    eventually(lambda: enclave.stats()["connections_open"] == 0)
    assert enclave.stats()["protocol_errors"] == 0


# ---- what is reported


def test_a_report_has_a_fresh_document(enclave: LocalEnclave, fleet: Fleet) -> None:
    first = fleet.report("w")
    again = fleet.report("w")
    assert first.verified and first.worker == "w" and first.pid == os.getpid()
    assert first.node == socket.gethostname() and first.via is None
    assert {each.nonce for each in (*first.attestations, *again.attestations)} == {
        fleet.client().attestation.nonce
    }
    assert enclave.stats()["attestations_total"] == 3
    assert enclave.stats()["connections_total"] == 1
    assert fleet._report_of([first, again]).consistent


def test_a_document_that_is_wrong_by_now_is_an_error(enclave: LocalEnclave, fleet: Fleet) -> None:
    """The channel was verified once, and stays open: what it shows now counts."""
    assert fleet.report().verified
    enclave.set_identity(pcrs=OTHER)
    report = fleet.report()
    assert report.error is not None and report.error.startswith("PcrMismatch")
    with pytest.raises(FleetMismatch, match="PcrMismatch"):
        fleet._report_of([report])


def test_no_time_for_a_document_is_told_as_none(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: object) -> None:
        """As where the document comes late: with no time at all one may still be there."""

    monkeypatch.setattr(Renewal, "attest", none)
    fleet.client()
    assert "document within 0.0 s, got none" in (fleet.report(timeout=0).error or "")


def test_an_enclave_that_is_gone_is_an_error(fleet: Fleet, enclave: LocalEnclave) -> None:
    quick = fleet_of(enclave, timeout=0.5)
    enclave.stop()
    report = quick.report()
    assert not report.verified and report.error is not None
    assert report.error.startswith("ConnectTimeout")


def test_a_silent_enclave_is_an_error(fleet: Fleet, enclave: LocalEnclave) -> None:
    fleet.client()
    enclave.set_faults(Fault.SILENT_ATTESTATION)
    report = fleet.report(timeout=0.2)
    assert report.error is not None and report.error.startswith("ReadTimeout")


def test_an_image_that_was_met_in_between_is_not_forgotten(
    enclave: LocalEnclave, fleet: Fleet
) -> None:
    """Both images are pinned; the channel was lost twice, and is where it was at first."""
    both = fleet_of(enclave, pcrs=[enclave.pcrs, OTHER])
    own = enclave.pcrs
    for pcrs in (own, OTHER, own):
        enclave.set_identity(pcrs=pcrs)
        enclave.drop_connections()
        assert both.client().get("/").status_code == 200  # which may be sent again
    report = both.report()
    assert report.error is None
    with pytest.raises(FleetMismatch, match="got 2") as met:
        both._report_of([report])
    assert len(met.value.report.identities) == 2
    both._member.close()


def _closed_by_a_task(fleet: Fleet) -> None:
    fleet.client().close()


def _closed_with_its_holder(fleet: Fleet) -> None:
    fleet._member.close()


@pytest.mark.parametrize("lose", [_closed_by_a_task, _closed_with_its_holder])
def test_an_image_that_a_closed_client_met_is_not_forgotten(
    enclave: LocalEnclave, lose: Callable[[Fleet], None]
) -> None:
    both = fleet_of(enclave, pcrs=[enclave.pcrs, OTHER])
    assert score(both, 1) == 1
    lose(both)
    enclave.set_identity(pcrs=OTHER)
    assert score(both, 2) == 2
    with pytest.raises(FleetMismatch, match="got 2"):
        both._report_of([both._seen()])
    both._member.close()


def test_clients_of_one_image_leave_one_document(enclave: LocalEnclave, fleet: Fleet) -> None:
    """However often a task closes its client, what is remembered does not grow."""
    for number in range(3):
        assert score(fleet, number) == number
        fleet.client().close()
    assert len(fleet._member.seen()) == 1


@pytest.mark.parametrize("per", ["worker", "node"])
def test_a_file_that_a_worker_does_not_have_is_an_error(
    enclave: LocalEnclave, per: str, tmp_path: Path
) -> None:
    """That of ``verify`` is looked for on each worker's own machine."""
    authorities = tmp_path / "ca.pem"
    authorities.write_bytes(enclave.root or b"")
    fleet = fleet_of(enclave, verify=str(authorities), per=per)
    authorities.unlink()
    report = fleet.report()
    assert report.error is not None and "verify: expected the path" in report.error
    with pytest.raises(FleetMismatch, match="verify: expected the path"):
        fleet._report_of([report])


def test_a_runtime_folder_with_too_long_a_name_is_an_error(
    enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"/tmp/{'x' * 150}")
    report = fleet_of(enclave, per="node").report()
    assert report.error is not None and "choose a shorter one" in report.error


def test_arguments_of_a_report(fleet: Fleet) -> None:
    with pytest.raises(TypeError, match="worker: expected text or None, got int"):
        fleet.report(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout: expected"):
        fleet.report(timeout=-1)
    with pytest.raises(TypeError, match="timeout: expected"):
        fleet.report(timeout="5")  # type: ignore[arg-type]


# ---- one channel for a machine


@pytest.fixture
def shared(enclave: LocalEnclave) -> Iterator[Fleet]:
    made = fleet_of(enclave, per="node")
    yield made
    made._member.close()


WORKER = """
    import pickle, sys
    fleet = pickle.load(sys.stdin.buffer)
    def score(n):
        return fleet.client().post("/score", json={"id": n}).json()["score"]
    assert [score(n) for n in range(20)] == list(range(20))
    forwarder = fleet._member._forwarder
    print(forwarder.pid or 0, fleet.report().via, flush=True)
    sys.stdin.close()
    if sys.argv[1:] == ["stay"]:
        import os
        wait = os.fdopen(int(3), "rb")
        assert wait.read(1) == b"."
        assert [score(n) for n in range(20)] == list(range(20))
        print(fleet.report().verified, flush=True)
    wait.read(1)  # up to the end of whoever started it
"""


class Worker:
    """Another process of the job."""

    def __init__(self, fleet: Fleet, stay: bool = False) -> None:
        read, self._write = os.pipe()
        program = textwrap.dedent(WORKER).replace("int(3)", str(read))
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *(["stay"] if stay else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[read],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        os.close(read)
        assert self.process.stdin is not None
        pickle.dump(fleet, self.process.stdin)
        self.process.stdin.close()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def go_on(self) -> None:
        os.write(self._write, b".")

    def end(self) -> int:
        os.close(self._write)
        code = self.process.wait(HANG)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def test_processes_of_a_machine_share_one_channel(enclave: LocalEnclave, shared: Fleet) -> None:
    workers = [Worker(shared, stay=True) for _ in range(3)]
    said = [each.line().split() for each in workers]
    for each in workers:
        each.go_on()
        assert each.line() == "True"
    assert enclave.stats()["connections_total"] == 1
    started = [int(pid) for pid, _ in said if int(pid)]
    (via,) = {via for _, via in said}
    assert len(started) >= 1
    for each in workers:
        each.process.kill()
        each.end()
    eventually(lambda: not any(map(alive, started)))
    eventually(lambda: enclave.stats()["connections_open"] == 0)
    assert not os.path.exists(via.removeprefix("unix:"))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # The first thread of a process may be gone while others still hold its sockets.
    if len(os.listdir(f"/proc/{pid}/task")) > 1:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_another_worker_starts_the_next_forwarder(enclave: LocalEnclave, shared: Fleet) -> None:
    """The first one is killed; its forwarder ends with it, and the job goes on."""
    first = Worker(shared, stay=True)
    forwarder = int(first.line().split()[0])
    assert forwarder
    second = Worker(shared, stay=True)
    assert second.line().split()[0] == "0"
    first.process.kill()
    first.end()
    eventually(lambda: not alive(forwarder))
    second.go_on()
    assert second.line() == "True"
    assert second.end() == 0
    assert enclave.stats()["connections_total"] == 2


def test_a_forwarder_that_was_killed_is_started_again(enclave: LocalEnclave, shared: Fleet) -> None:
    assert score(shared, 1) == 1
    forwarder = shared._member._forwarder
    assert forwarder is not None and forwarder.pid is not None
    killed = forwarder.pid
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: forwarder.pid not in (None, killed))
    assert score(shared, 2) == 2
    assert shared.report().verified


def test_a_forwarder_that_runs_is_found(enclave: LocalEnclave, shared: Fleet) -> None:
    with enclavia.Forwarder(enclave.url, **keywords(enclave)):
        assert score(shared, 1) == 1
        forwarder = shared._member._forwarder
        assert forwarder is not None and forwarder.pid is None
        shared._member.close()
    assert enclave.stats()["connections_total"] == 1


def test_a_forwarder_that_is_named_is_used_and_none_is_started(
    enclave: LocalEnclave, runtime_folder: Path
) -> None:
    path = str(runtime_folder / "named" / "socket")
    fleet = fleet_of(enclave, per="node", via=f"unix:{path}", timeout=0.5)
    with pytest.raises(enclavia.ConnectTimeout):
        fleet.client()
    with enclavia.Forwarder(enclave.url, socket=path, **keywords(enclave)):
        assert score(fleet, 1) == 1
        assert fleet.report().via == f"unix:{path}"
        assert fleet._member._forwarder is None
        fleet._member.close()


def test_by_way_of_a_forwarder_the_own_pins_count(enclave: LocalEnclave) -> None:
    wrong = Fleet(enclave.url, {"pcrs": OTHER, "root": enclave.root, "per": "node"})
    with enclavia.Forwarder(enclave.url, **keywords(enclave)):
        with pytest.raises(enclavia.PcrMismatch):
            wrong.client()
        report = wrong.report()
        assert report.error is not None and report.error.startswith("PcrMismatch")
    wrong._member.close()
    assert enclave.stats()["streams_total"] == 0


def test_a_forwarder_that_lies_about_its_channel_is_refused(
    enclave: LocalEnclave, shared: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document of another channel than the one that is named."""
    from enclavia._forward.server import Server

    describe = Server.describe

    async def lying(self: Server) -> dict[str, object]:
        return {**await describe(self), "handshake_hash": "bm8="}

    monkeypatch.setattr(Server, "describe", lying)
    with enclavia.Forwarder(enclave.url, **keywords(enclave)):
        report = shared.report()
        assert report.error is not None and report.error.startswith("NonceMismatch")
        shared._member.close()


@pytest.mark.parametrize("per", ["worker", "node"])
def test_the_hook_is_asked_about_what_a_report_shows(enclave: LocalEnclave, per: str) -> None:
    """By way of a forwarder too. Where it refuses, nothing more is sent on that channel."""
    told: list[enclavia.Receipt] = []

    def hook(receipt: enclavia.Receipt) -> None:
        told.append(receipt)
        if len(told) > 2:
            raise enclavia.AttestationRefused("enough")

    asked = fleet_of(enclave, per=per, on_attestation=hook)
    assert asked.report().verified
    assert [each.reason for each in told] == ["connect", "fresh"]
    assert list(asked.client().receipts) == told
    report = asked.report()
    assert report.error is not None and report.error.startswith("AttestationRefused")
    with pytest.raises(enclavia.AttestationRefused):
        score(asked, 1)
    asked._member.close()
    assert enclave.stats()["streams_total"] == 0


def test_what_keeps_a_forwarder_from_starting_is_said(
    enclave: LocalEnclave, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_folder / "open"))
    folder = runtime_folder / "open" / "enclavia"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    fleet = fleet_of(enclave, per="node")
    with pytest.raises(enclavia.ConnectError, match=r"did not start: .*chmod 700") as met:
        fleet.client()
    assert met.value.retryable is False
    assert enclave.stats()["connections_total"] == 0


def test_a_missing_extra_is_said(
    enclave: LocalEnclave, shared: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('no uvicorn here')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"enclavia\[forward\]"):
        shared.client()


def test_a_program_that_ends_at_once_is_said(
    shared: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(enclavia.ConnectError, match=r"got (its end|an error)|got: "):
        shared.client()


def test_an_interpreter_that_is_not_there_is_said(
    shared: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(enclavia.ConnectError, match="'/nowhere/python' starts"):
        shared.client()


def test_two_threads_start_one_forwarder(enclave: LocalEnclave, shared: Fleet) -> None:
    begin = threading.Barrier(4)

    def work(number: int) -> int:
        begin.wait()
        return score(shared, number)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == list(range(4))
    assert enclave.stats()["connections_total"] == 1


def test_pins_of_a_function(enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers alone know where such pins are; without cloudpickle a forwarder cannot be given a
    lambda."""
    for name in node._PICKLERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    asked = fleet_of(enclave, pcrs=lambda: enclave.pcrs)
    report = asked.report()
    assert report.verified and asked._report_of([report]).consistent
    asked._member.close()
    shared = fleet_of(enclave, pcrs=lambda: enclave.pcrs, per="node")
    with pytest.raises(enclavia.ConnectError, match="another process can be given") as met:
        shared.client()
    assert met.value.retryable is False


def test_pins_of_a_lambda_where_an_engine_has_brought_it(enclave: LocalEnclave) -> None:
    pytest.importorskip("cloudpickle", reason="cloudpickle is missing: pip install --group fleet")
    pcrs = enclave.pcrs
    shared = fleet_of(enclave, pcrs=lambda: pcrs, per="node")
    try:
        assert score(shared, 1) == 1
        assert shared.report().via is not None
    finally:
        shared._member.close()


def test_a_function_that_the_forwarder_does_not_find(
    enclave: LocalEnclave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module was there when the job was described, and is not any more."""
    (tmp_path / "lost_pins.py").write_text("def ask(): raise AssertionError")
    monkeypatch.syspath_prepend(str(tmp_path))
    ask = importlib.import_module("lost_pins").ask
    (tmp_path / "lost_pins.py").unlink()
    shared = fleet_of(enclave, pcrs=ask, per="node")
    with pytest.raises(ImportError, match="lost_pins"):
        shared.client()


CHATTY = """
print("this module was loaded", flush=True)

class Source:
    def __init__(self, pcrs):
        self.pcrs = pcrs

    def __call__(self):
        print("x" * 100_000, flush=True)  # more than a pipe holds
        return self.pcrs
"""


def test_what_a_function_for_pins_prints_is_no_answer_of_the_forwarder(
    enclave: LocalEnclave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chatty_pins.py").write_text(CHATTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = importlib.import_module("chatty_pins").Source(enclave.pcrs)
    shared = fleet_of(enclave, pcrs=source, per="node")
    assert score(shared, 1) == 1
    shared._member.close()


def test_output_while_python_starts_is_a_typed_error(
    shared: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_PROGRAM", f"print('good morning'); {node._PROGRAM}")
    with pytest.raises(enclavia.ConnectError, match="got b'good morning") as met:
        shared.client()
    assert met.value.retryable is False


def test_a_search_path_with_more_than_text(
    enclave: LocalEnclave, shared: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python passes over it, and so does the forwarder's."""
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), *sys.path])
    assert score(shared, 1) == 1
