"""The two JSON texts that a backend serves: what has not their form is refused, each with its own
error."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from histories import NOW, ONE, THREE, TWO, Made, root, upgraded, verify

import enclavia
from enclavia._trust.served import MOST_BYTES, nanoseconds

SPOILED = int(os.environ.get("ENCLAVIA_SPOILED_TEXTS", "150"))


@pytest.fixture(scope="module")
def history() -> Made:
    return upgraded()


def walk(history: Made, row: Any, links: Any, **options: Any) -> enclavia.UpgradeChain:
    given = {"pcrs": ONE.pcrs, "enclave_id": history.enclave_id, "root": root(), "at": NOW}
    return enclavia.verify_upgrade_chain(row, links, **{**given, **options})


def refused(call: Callable[[], object], fragment: str, link: int | None = None) -> None:
    with pytest.raises(enclavia.UpgradeChainError) as caught:
        call()
    assert fragment in str(caught.value), caught.value
    assert caught.value.link == link, caught.value
    assert len(str(caught.value)) < 1100


# -- JSON -------------------------------------------------------------------------------------

NOT_JSON = ["", " ", "{", "nul", "[1,]", "{'a': 1}", '"\\ud800"x', "\ufeff{}", '{"a" 1}', "\0"]


@pytest.mark.parametrize("text", [*NOT_JSON, b"\xff", b"\xef\xbb\xbf{}"])
def test_what_is_no_json(history: Made, text: str | bytes) -> None:
    refused(lambda: walk(history, text, history.links_json()), "what is none")
    refused(lambda: walk(history, history.row_json(), text), "what is none")


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"a": 1, "a": 1}', "'a' twice"),
        ('{"b": 1, "a": 1, "a": 1}', "'a' twice"),
        ('[{"x": {"b": [1, {"c": 1, "c": 2}]}}]', "'c' twice"),
        ('{"a": 123456789012345678901}', "20 digits"),
        ('{"a": -12345678901234567890}', "20 digits"),
        ('{"a": 1.23456789012345678901}', "20 digits"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ("[" * 33 + "]" * 33, "32 deep"),
        ('{"a":' * 33 + "1" + "}" * 33, "32 deep"),
        ("[" * 100_000, "32 deep"),
    ],
)
def test_bounds_of_json(history: Made, text: str, fragment: str) -> None:
    refused(lambda: walk(history, text, history.links_json()), fragment)
    refused(lambda: walk(history, history.row_json(), text), fragment)


def test_what_just_keeps_the_bounds(history: Made) -> None:
    links = history.links_json()
    for value in ("12345678901234567890", "1.234567890123456789", "[" * 31 + "]" * 31):
        row = history.row_json()[:-1] + f', "note": {value}}}'
        assert walk(history, row, links).pcrs == THREE.pcrs


def test_brackets_in_text_are_no_depth(history: Made) -> None:
    row = history.row(note="[" * 1000 + '\\"{' * 100)
    assert walk(history, json.dumps(row), history.links_json()).pcrs == THREE.pcrs


def test_the_size_of_a_text(history: Made) -> None:
    row = history.row_json()
    padded = row + " " * (MOST_BYTES - len(row))
    assert walk(history, padded, history.links_json()).pcrs == THREE.pcrs
    refused(lambda: walk(history, padded + " ", history.links_json()), "at most 4194304")
    refused(lambda: walk(history, row, b" " * (MOST_BYTES + 1)), "at most 4194304")


def test_bytes_and_text_are_the_same(history: Made) -> None:
    row, links = history.row_json(), history.links_json()
    assert walk(history, row.encode(), links.encode()) == walk(history, row, links)


# -- the row ----------------------------------------------------------------------------------

PCRS = ONE.pcrs.as_dict()


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"pcrs": None}, "pcrs"),
        ({"pcrs": []}, "pcrs"),
        ({"pcrs": {**PCRS, "PCR1": None}}, "PCR1"),
        ({"pcrs": {**PCRS, "PCR1": "00"}}, "pcr1"),
        ({"pcrs": {**PCRS, "PCR1": "zz" * 48}}, "pcr1"),
        ({"pcrs": {**PCRS, "pcr2": "00" * 48}}, "one PCR2, got two"),
        ({"pcrs": {name: PCRS[name] for name in ("PCR0", "PCR1")}}, "one PCR2, got none"),
        ({"pcrs": {**PCRS, "PCR2": "00" * 32}}, "one length"),
        ({"image_digest": None}, "image_digest"),
        ({"image_digest": ""}, "image_digest"),
        ({"image_digest": 5}, "image_digest"),
        ({"upgradable": "true"}, "upgradable"),
        ({"upgradable": 1}, "upgradable"),
        ({"upgradable": None}, "upgradable"),
        ({"control_public_key": 5}, "control_public_key"),
        ({"control_public_key": {}}, "control_public_key"),
        ({"control_public_key": "not base64!"}, "base64"),
        ({"control_public_key": [4] * 32}, "33 or 65"),
        ({"control_public_key": [4] * 66}, "33 or 65"),
        ({"control_public_key": [256] * 65}, "0 to 255"),
        ({"control_public_key": [-1] * 65}, "0 to 255"),
        ({"control_public_key": [True] * 65}, "0 to 255"),
        ({"control_public_key": [4.0] * 65}, "0 to 255"),
        ({"control_public_key": ""}, "33 or 65"),
    ],
)
def test_rows(history: Made, changes: dict[str, Any], fragment: str) -> None:
    row = json.dumps(history.row(**changes))
    refused(lambda: walk(history, row, history.links_json()), fragment)


@pytest.mark.parametrize("name", ["pcrs", "image_digest"])
def test_what_a_row_must_have(history: Made, name: str) -> None:
    row = history.row()
    del row[name]
    refused(lambda: walk(history, json.dumps(row), history.links_json()), name)


@pytest.mark.parametrize("row", ["[]", "5", "null", '"text"', "true"])
def test_a_row_is_an_object(history: Made, row: str) -> None:
    refused(lambda: walk(history, row, history.links_json()), "expected an object")


# -- the links --------------------------------------------------------------------------------


@pytest.mark.parametrize("links", ["{}", "5", "null", '"text"'])
def test_links_are_an_array(history: Made, links: str) -> None:
    refused(lambda: walk(history, history.row_json(), links), "an array of links")


def test_there_are_links(history: Made) -> None:
    refused(lambda: walk(history, history.row_json(), "[]"), "at least one link")


def test_there_are_no_more_than_a_thousand(history: Made) -> None:
    links = json.dumps(["x"] * 1001)
    refused(lambda: walk(history, history.row_json(), links), "at most 1000 links")
    refused(lambda: walk(history, history.row_json(), json.dumps(["x"] * 1000)), "an object", 0)


@pytest.mark.parametrize(
    ("index", "changes", "fragment"),
    [
        (1, {"kind": None}, "kind"),
        (1, {"kind": "Boot"}, "kind"),
        (1, {"kind": 5}, "kind"),
        (1, {"kind": ["boot"]}, "kind"),
        (1, {"sequence": 0}, "sequence"),
        (1, {"sequence": 2}, "sequence"),
        (1, {"sequence": -1}, "sequence"),
        (1, {"sequence": "1"}, "sequence"),
        (1, {"sequence": True}, "sequence"),
        (1, {"sequence": 1.0}, "sequence"),
        (1, {"id": "x"}, "id"),
        (1, {"id": 5}, "id"),
        (1, {"id": ""}, "id"),
        # What the standard library reads as a UUID beside the form of RFC 9562.
        (1, {"id": "+" + "0" * 30 + "5"}, "id"),
        (1, {"id": "0_" * 15 + "05"}, "id"),
        (1, {"id": "\uff10" * 31 + "5"}, "id"),
        (1, {"id": "0" * 31 + "5"}, "id"),
        (1, {"payload": None}, "payload"),
        (1, {"payload": "%%%"}, "payload"),
        (1, {"payload": ""}, "payload"),
        (1, {"payload": "AAAA"}, "payload"),
        (1, {"attestation": None}, "attestation"),
        (1, {"attestation": "AB="}, "attestation"),
        (1, {"attestation": ""}, "document"),
        (1, {"attestation": "AAAA"}, "document"),
        (1, {"attestation": "AB=="}, "stray bits"),
        (1, {"signature": ""}, "signature"),
        (1, {"signature": "AAAA"}, "signature"),
        (1, {"signature": 0}, "signature"),
        (1, {"signature": False}, "signature"),
        (2, {"signature": None}, "by the control key"),
        (2, {"signature": ""}, "signature"),
        (2, {"signature": "AAAA"}, "signature"),
        (2, {"signature": "%"}, "signature"),
        (1, {"created_at": 5}, "created_at"),
        (1, {"created_at": "yesterday"}, "created_at"),
    ],
)
def test_links(history: Made, index: int, changes: dict[str, Any], fragment: str) -> None:
    links = history.links()
    links[index] = {**links[index], **changes}
    refused(lambda: walk(history, history.row_json(), json.dumps(links)), fragment, index)


@pytest.mark.parametrize("name", ["kind", "payload", "attestation"])
def test_what_a_link_must_have(history: Made, name: str) -> None:
    links = history.links()
    links[3] = {key: value for key, value in links[3].items() if key != name}
    refused(lambda: walk(history, history.row_json(), json.dumps(links)), name, 3)


@pytest.mark.parametrize("name", ["id", "sequence", "created_at", "signature"])
def test_what_may_be_null_or_absent(history: Made, name: str) -> None:
    for change in ({name: None}, None):
        links = history.links()
        links = [
            link
            if name == "signature" and link["kind"] != "boot"
            else {**link, **change}
            if change is not None
            else {key: value for key, value in link.items() if key != name}
            for link in links
        ]
        assert walk(history, history.row_json(), json.dumps(links)).pcrs == THREE.pcrs


def test_members_that_are_not_known_are_passed_over(history: Made) -> None:
    links = [{**link, "note": [1, {"x": None}]} for link in history.links()]
    assert walk(history, history.row_json(), json.dumps(links)).pcrs == THREE.pcrs


def test_an_id_is_there_once(history: Made) -> None:
    links = history.links()
    links[3] = {**links[3], "id": links[1]["id"]}
    refused(lambda: walk(history, history.row_json(), json.dumps(links)), "earlier link", 3)


def test_a_time_in_a_payload_is_one(history: Made) -> None:
    fields = {**history.specs[2].fields, "valid_from": "soon"}
    refused(lambda: verify(history, history.changed(2, fields=fields)), "valid_from", 2)
    fields = {**history.specs[0].fields, "booted_at": "2025-13-01T00:00:00Z"}
    refused(lambda: verify(history, history.changed(0, fields=fields)), "booted_at", 0)


# -- times ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01t00:00:01.5z", 1_500_000_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:30:00-00:30", 0),
        ("1970-01-02T00:58:00+00:59", 86_340_000_000_000),
        ("1969-12-31T23:59:59.75Z", -250_000_000),
        ("2000-02-29T12:00:00Z", 951_825_600_000_000_000),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert nanoseconds("t", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "1970-01-01", "1970-01-01 00:00:00Z", "1970-01-01T00:00:00", "1970-1-1T00:00:00Z",
        "1970-01-01T00:00:60Z", "1970-01-01T24:00:00Z", "1970-02-30T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "1970-01-01T00:00:00.Z", "1970-01-01T00:00:00.1234567890Z", "1970-01-01T00:00:00+0100",
        "1970-01-01T00:00:00+24:00", "1970-01-01T00:00:00+01:60", "1970-01-01T00:00:00Z ",
        "\u0661970-01-01T00:00:00Z", "-1970-01-01T00:00:00Z",
    ],
)  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="t: expected a time"):
        nanoseconds("t", text)


# -- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "fragment"),
    [
        ({"row": None}, TypeError, "row"),
        ({"links": [1]}, TypeError, "links"),
        ({"pcrs": None}, TypeError, "pcrs"),
        ({"pcrs": []}, ValueError, "pcrs"),
        ({"enclave_id": 5}, TypeError, "enclave_id"),
        ({"enclave_id": "x"}, ValueError, "enclave_id"),
        ({"at": "now"}, TypeError, "at"),
        ({"high_water": 5}, TypeError, "high_water"),
        ({"allow_rollback": 1}, TypeError, "allow_rollback"),
        ({"debug_mode": None}, TypeError, "debug_mode"),
        ({"clock_leeway": 301}, ValueError, "clock_leeway"),
        ({"root": b""}, ValueError, "root"),
    ],
)
def test_arguments(
    history: Made, changes: dict[str, Any], error: type[Exception], fragment: str
) -> None:
    given = {
        "row": history.row_json(),
        "links": history.links_json(),
        "pcrs": ONE.pcrs,
        "enclave_id": history.enclave_id,
        **changes,
    }
    row, links = given.pop("row"), given.pop("links")
    with pytest.raises(error, match=fragment):
        enclavia.verify_upgrade_chain(row, links, **given)


# -- whatever comes ---------------------------------------------------------------------------


def spoiled(text: str, rng: random.Random) -> str:
    """One change of the kinds that find faults in readers."""
    at = rng.randrange(len(text))
    kind = rng.randrange(6)
    if kind == 0:
        return text[:at] + rng.choice('[]{}",:0-\\x\u2028\ud800') + text[at + 1 :]
    if kind == 1:
        return text[:at]
    if kind == 2:
        end = min(len(text), at + rng.randrange(1, 40))
        return text[:at] + text[end:]
    if kind == 3:
        end = min(len(text), at + rng.randrange(1, 40))
        return text[:end] + text[at:]
    values = list(re.finditer(r'(?<=: )("[^"]*"|\d+|null|true)', text))
    chosen = rng.choice(values)
    if kind == 4:
        value = rng.choice(["null", "true", "0", "-1", "1e9", '""', "[]", "{}", '"AAAA"', "9" * 19])
        return text[: chosen.start()] + value + text[chosen.end() :]
    other = rng.choice(values)
    return text[: chosen.start()] + other[0] + text[chosen.end() :]


def test_texts_that_were_spoiled_are_refused_or_lead_nowhere_else(history: Made) -> None:
    """Whatever becomes of the texts: the answer is an UpgradeChainError, or a version that the
    enclaves have authorised, and never another exception."""
    rng = random.Random(20)
    known = {ONE.pcrs, TWO.pcrs, THREE.pcrs}
    row, links = history.row_json(), history.links_json()
    refusals = 0
    for _ in range(SPOILED):
        given_row, given_links = row, links
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            if rng.random() < 0.3:
                given_row = spoiled(given_row, rng) or "{}"
            else:
                given_links = spoiled(given_links, rng) or "[]"
        try:
            chain = walk(history, given_row, given_links)
        except enclavia.UpgradeChainError:
            refusals += 1
        else:
            assert chain.pcrs in known
    assert refusals > SPOILED // 2
