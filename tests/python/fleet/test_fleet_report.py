"""What the workers of a job are compared by, and when the job is not to be trusted."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import pickle
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fleet_app import app
from pinned import OTHER

import enclavia
from enclavia import Attestation, Channel, FleetMismatch, FleetReport, WorkerReport, _core
from enclavia._fleet.report import identity_of, merged
from enclavia.testing import LocalEnclave
from enclavia.testing._pki import mint

NOW = datetime(2026, 11, 27, tzinfo=UTC)
NAIVE = datetime(2026, 11, 27)
URL = "wss://enclave.example"


MISSING = object()


class World:
    """Documents of two enclaves that run one image, and of one that runs another."""

    def __init__(self) -> None:
        pki = mint()
        self.root = pki.root_pem
        with LocalEnclave(app, module_id="i-1-enc1") as first:
            first.set_identity(pki=pki)
            self.pcrs = first.pcrs
            self.policy = _core.Policy(
                (self.pcrs.as_tuple(), OTHER.as_tuple()), self.root, False, True
            )
            self.one, self.again = (self._seen(first) for _ in range(2))
            first.set_identity(pcrs=OTHER)
            self.other = self._seen(first)
        with LocalEnclave(app, module_id="i-2-enc2") as second:
            second.set_identity(pki=pki)
            self.twin = self._seen(second)

    def _seen(self, enclave: LocalEnclave) -> Attestation:
        with Channel.connect(enclave.url, pcrs=[self.pcrs, OTHER], root=self.root) as channel:
            return channel.attestation

    def report(self, *workers: WorkerReport, **more: Any) -> FleetReport:
        return FleetReport._of(URL, workers, more.pop("policy", self.policy), NOW, **more)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    return World()


def worker(name: str, *seen: Attestation, **more: Any) -> WorkerReport:
    return WorkerReport(name, "host", int(name), seen, **more)


def test_workers_that_saw_one_image_agree(world: World) -> None:
    report = world.report(worker("1", world.one), worker("2", world.again))
    assert report.problems == () and report.consistent
    assert report.raise_for_mismatch() is report
    assert report.identities == {identity_of(world.one): ("1", "2")}
    assert report.channels == 2
    assert str(report).splitlines()[0] == (f"{URL}: 2 workers verified, one identity, 2 channels")


def test_two_enclaves_of_one_image_are_one_identity(world: World) -> None:
    assert world.one.module_id != world.twin.module_id
    report = world.report(worker("1", world.one), worker("2", world.twin))
    assert report.consistent
    assert report.module_ids == ("i-1-enc1", "i-2-enc2")


@pytest.mark.parametrize("split", [True, False], ids=["two workers", "one worker, twice"])
def test_another_image_is_a_mismatch(world: World, split: bool) -> None:
    """Also where both are pinned, and where one worker saw one after the other."""
    workers = (
        [worker("1", world.one), worker("2", world.other)]
        if split
        else [worker("1", world.one, world.other)]
    )
    report = world.report(*workers)
    assert len(report.identities) == 2 and not report.consistent
    with pytest.raises(FleetMismatch, match="expected one identity for all workers, got 2") as met:
        report.raise_for_mismatch()
    assert met.value.report is report and met.value.retryable is False
    assert isinstance(met.value, enclavia.AttestationError)
    assert pickle.loads(pickle.dumps(met.value)).report == report


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_pcr_of_the_pins_is_compared(world: World, index: int) -> None:
    pcrs = {**world.one.pcrs, index: b"\x01" * 48}
    assert identity_of(dataclasses.replace(world.one, pcrs=pcrs)) != identity_of(world.one)


def test_other_pcrs_are_not_compared_and_the_form_is(world: World) -> None:
    more = dataclasses.replace(world.one, pcrs={**world.one.pcrs, 4: b"\x01" * 48})
    assert identity_of(more) == identity_of(world.one)
    assert identity_of(dataclasses.replace(world.one, form="debug")) != identity_of(world.one)


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        ([], "expected at least one worker that verified the enclave, got none"),
        ([WorkerReport("1", "host", 1)], "expected worker 1 to have verified the enclave"),
        ([WorkerReport("1", "host", 1, error="PcrMismatch: PCR0")], "got: PcrMismatch: PCR0"),
    ],
    ids=["nobody", "nothing seen", "an error"],
)
def test_a_worker_that_was_not_verified_fails_the_job(
    world: World, reported: list[WorkerReport], words: str
) -> None:
    with pytest.raises(FleetMismatch, match=words):
        world.report(*reported).raise_for_mismatch()


def test_one_error_among_many_fails_the_job(world: World) -> None:
    report = world.report(
        worker("1", world.one), worker("2", world.again, error="ReadTimeout: late")
    )
    assert [each.verified for each in report.workers] == [True, False]
    with pytest.raises(FleetMismatch, match="worker 2"):
        report.raise_for_mismatch()


def test_a_document_is_verified_again_where_reports_are_put_together(world: World) -> None:
    """A worker's word is not enough: its document has to be signed, pinned, and to say the same."""
    spoiled = bytearray(world.one.document)
    spoiled[-1] ^= 1
    for made_up, words in (
        (dataclasses.replace(world.one, document=bytes(spoiled)), "verifies here too"),
        (dataclasses.replace(world.other, pcrs=world.one.pcrs), "another pcrs"),
        (dataclasses.replace(world.one, module_id="i-9"), "another module_id"),
        (dataclasses.replace(world.one, nonce=b"n" * 32), "verifies here too"),
        (dataclasses.replace(world.one, nonce=None), "another nonce"),
        (dataclasses.replace(world.one, timestamp=NOW), "another timestamp"),
        (dataclasses.replace(world.one, form="debug"), "another form"),
        (
            dataclasses.replace(world.one, verified_at=world.one.verified_at + timedelta(days=9)),
            "verifies here too",
        ),
    ):
        with pytest.raises(FleetMismatch, match=words):
            world.report(worker("1", made_up)).raise_for_mismatch()
    pins = _core.Policy((OTHER.as_tuple(),), world.root, False, True)
    with pytest.raises(FleetMismatch, match="verifies here too"):
        world.report(worker("1", world.one), policy=pins).raise_for_mismatch()
    root = _core.Policy((world.pcrs.as_tuple(),), None, False, True)
    with pytest.raises(FleetMismatch, match="verifies here too"):
        world.report(worker("1", world.one), policy=root).raise_for_mismatch()


def changed(value: Any, **fields: Any) -> Any:
    """As it is after unpickling, which looks at no type. A field of MISSING is left out."""
    made = object.__new__(type(value))
    said = {**vars(value), **fields}
    vars(made).update({name: each for name, each in said.items() if each is not MISSING})
    return made


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (name, value, f"expected attestations[0].{name} to be {words}, got ")
        for name, words, values in [
            ("verified_at", "an aware datetime", [None, math.nan, -1, 1e300, "now", NAIVE]),
            ("timestamp", "an aware datetime", [None, 5]),
            ("document", "bytes", [None, "text", 5]),
            ("nonce", "bytes, one at least, or None", ["text", b""]),
            ("form", "'nitro', 'debug' or 'stub'", [None, "Nitro", []]),
            ("pcrs", "a mapping of whole numbers to bytes", [None, [], {0: None}, {"0": b"x"}]),
            ("module_id", "text", [None]),
            ("certificate", "bytes", [None]),
            ("cabundle", "a tuple of bytes", [None, [b"x"], (None,)]),
            ("public_key", "bytes or None", ["text"]),
            ("user_data", "bytes or None", ["text"]),
            ("valid_until", "an aware datetime or None", [5, NAIVE]),
            ("matched", "MatchedPins or None", [5]),
        ]
        for value in values
    ]
    + [
        ("verified_at", MISSING, "expected attestations[0] to have verified_at, got none"),
        ("proven", True, "got proven too"),
    ],
)
@pytest.mark.parametrize("debug_mode", [False, True])
def test_an_attestation_that_is_none_fails_the_job(
    world: World, name: str, value: object, says: str, debug_mode: bool
) -> None:
    bad = changed(world.one, **{name: value})
    expect_refused(world, worker("2", bad, world.one), says, debug_mode)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("worker", None, "expected the report.worker to be text, got None"),
        ("node", 5, "expected the report.node to be text, got 5"),
        ("pid", "1", "expected the report.pid to be a whole number, got '1'"),
        ("pid", True, "expected the report.pid to be a whole number, got True"),
        ("pid", math.nan, "expected the report.pid to be a whole number, got nan"),
        ("attestations", None, "expected the report.attestations to be a tuple, got None"),
        ("attestations", [], "expected the report.attestations to be a tuple, got []"),
        ("attestations", (5,), "expected attestations[0] to be of type Attestation, got int"),
        ("error", 0, "expected the report.error to be text or None, got 0"),
        ("via", b"", "expected the report.via to be text or None, got b''"),
        ("via", MISSING, "expected the report to have via, got none"),
        ("worker", MISSING, "expected the report to have worker, got none"),
        ("verified", True, "got verified too"),
    ],
)
def test_a_report_that_is_none_fails_the_job(
    world: World, name: str, value: object, says: str
) -> None:
    expect_refused(world, changed(worker("2", world.one), **{name: value}), says)


@pytest.mark.parametrize("reported", [None, 5, "verified", {}, [], object()])
def test_anything_else_than_a_report_fails_the_job(world: World, reported: Any) -> None:
    says = f"expected the report to be of type WorkerReport, got {type(reported).__name__}"
    expect_refused(world, reported, says)


def expect_refused(world: World, bad: Any, says: str, debug_mode: bool = False) -> None:
    """Among those that are there, and those that have gone; what the others saw is shown."""
    good = worker("1", world.one)
    for report in (
        world.report(good, bad, debug_mode=debug_mode),
        world.report(good, gone=[bad], debug_mode=debug_mode),
        world.report(bad, good, bad, debug_mode=debug_mode),
    ):
        assert not report.consistent
        with pytest.raises(FleetMismatch, match=re.escape(says)):
            report.raise_for_mismatch()
        assert report.identities == {identity_of(world.one): ("1",)}
        assert good in report.workers
        for shown in (str(report), report._repr_html_(), report.to_json()):
            assert "see to it that all workers have this version of enclavia" in shown
        assert pickle.loads(pickle.dumps(report)) == report


def test_the_first_and_the_last_moment_are_no_moments_of_a_document(world: World) -> None:
    for moment in (datetime.min, datetime.max):
        seen = dataclasses.replace(world.one, verified_at=moment.replace(tzinfo=UTC))
        with pytest.raises(FleetMismatch, match="verifies here too"):
            world.report(worker("1", seen)).raise_for_mismatch()


def test_what_is_not_signed_is_for_debug_mode_alone(world: World) -> None:
    with (
        LocalEnclave(app, mode="debug") as enclave,
        pytest.warns(enclavia.DebugModeWarning),
        Channel.connect(enclave.url, debug_mode=True) as channel,
    ):
        seen = channel.attestation
    policy = _core.Policy(None, None, True, False)
    allowed = world.report(worker("1", seen), policy=policy, debug_mode=True)
    assert allowed.consistent
    assert "NOT PROVEN" in str(allowed)
    assert not world.report(worker("1", seen)).consistent
    mixed = world.report(worker("1", seen), worker("2", world.one), debug_mode=True)
    assert not mixed.consistent


def test_reports_of_one_process_are_one(world: World) -> None:
    first = worker("1", world.one)
    both = merged([first, worker("2", world.twin), worker("1", world.one, world.again), first])
    assert [each.worker for each in both] == ["1", "2"]
    assert both[0].attestations == (world.one, world.again)
    failed = merged([worker("1", error="lost"), first])
    assert failed[0].error == "lost" and not failed[0].verified


def test_as_json_it_can_be_verified_later(world: World) -> None:
    report = world.report(worker("1", world.one), worker("2", error="lost"))
    told = json.loads(report.to_json(indent=2))
    assert told == report.as_dict()
    assert told["consistent"] is False and len(told["problems"]) == 1
    (seen,) = told["workers"][0]["attestations"]
    assert seen["handshake_hash"] == (world.one.nonce or b"").hex()
    assert seen["pcrs"]["0"] == world.pcrs.pcr0.hex()
    document = base64.b64decode(seen["document"])
    again = enclavia.verify_attestation(document, pcrs=world.pcrs, root=world.root)
    assert again.module_id == seen["module_id"] == "i-1-enc1"


def test_what_workers_say_is_shown_as_text(world: World) -> None:
    """Names and errors are somebody else's words."""
    bad = WorkerReport("<b>\n", "\x1b[2J", 1, error="<script>\x1b[31m")
    report = world.report(bad)
    html = report._repr_html_()
    assert "<script>" not in html and "<b>" not in html and "&lt;b&gt;" in html
    for text in (html, str(report)):
        assert "\x1b" not in text
    assert len(str(report).splitlines()) == 3
    assert FleetMismatch("x" * 5000).message.endswith("…")


def test_a_mismatch_names_three_workers_at_most(world: World) -> None:
    many = [worker(str(n), world.one) for n in range(10)]
    report = world.report(*many, worker("99", world.other))
    (problem,) = report.problems
    assert "and 7 more" in problem


def test_workers_that_have_gone_are_named_and_what_they_saw_counts(world: World) -> None:
    there = worker("1", world.one)
    last = worker("2", world.twin)
    report = world.report(there, gone=[worker("1", world.again), last, worker("2", world.one)])
    assert report.consistent and report.workers == (there,)
    assert [(each.worker, len(each.attestations)) for each in report.gone] == [("2", 2)]
    assert report.identities == {identity_of(world.one): ("1", "2")}
    assert report.module_ids == ("i-1-enc1", "i-2-enc2")
    assert report.channels == 2
    first, _, _, row = str(report).splitlines()
    assert first.startswith(f"{URL}: 1 workers verified, and 1 gone since, one identity, ")
    assert " yes (gone) " in row
    assert [each["worker"] for each in report.as_dict()["gone"]] == ["2"]


def test_another_image_that_a_worker_saw_before_it_went_is_a_mismatch(world: World) -> None:
    report = world.report(worker("1", world.one), gone=[worker("2", world.other)])
    (problem,) = report.problems
    assert "expected one identity for all workers, got 2" in problem


def test_a_document_of_a_worker_that_went_is_verified_again(world: World) -> None:
    forged = dataclasses.replace(world.one, module_id="i-9-enc9")
    report = world.report(worker("1", world.one), gone=[worker("2", forged)])
    (problem,) = report.problems
    assert "expected worker 2 to report what its document says" in problem


def test_workers_that_have_all_gone_are_no_check(world: World) -> None:
    assert "got none that reported" in world.report(gone=[worker("2", world.one)]).problems[0]


def test_reports_survive_pickling(world: World) -> None:
    report = world.report(worker("1", world.one))
    assert pickle.loads(pickle.dumps(report)) == report
