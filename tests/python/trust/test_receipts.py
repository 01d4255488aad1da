"""Receipts: that they say what was checked, that they can be read again, and that none holds of
which the document says something else."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import enclave_peer
import pytest
from enclave_peer import PCRS, signed_document
from hypothesis import given, settings
from hypothesis import strategies as st
from json_schema import violations
from receipts_made import HASH, OTHER, changed, made, with_id

import enclavia
from enclavia import MatchedPins, Policy, PolicyVersion, Receipt
from enclavia._trust.receipt_text import _SHAPE, RECEIPT_MAX, SCHEMA
from enclavia._trust.versions import AllowedVersions
from enclavia.testing._pki import mint

SCHEMA_FILE = Path(enclavia.__file__).parent / "schemas" / "receipt-1.json"
LONG_AGO = datetime(2021, 5, 4, 3, 2, 1, tzinfo=UTC)


@functools.cache
def made_once() -> Receipt:
    return made()


@pytest.fixture(scope="module")
def receipt() -> Receipt:
    return made_once()


def root() -> bytes:
    return enclave_peer.root()


def test_it_says_what_was_checked(receipt: Receipt) -> None:
    said = receipt.as_dict()
    assert said["schema"] == SCHEMA
    assert said["checked"] == ["structure", "certificates", "signature", "nonce", "pcrs"]
    assert said["handshake_hash"] == said["nonce"] == HASH.hex()
    assert said["pins"] == [OTHER.as_dict(), PCRS.as_dict()]
    assert {f"PCR{n}": value.hex() for n, value in receipt.attestation.pcrs.items()} == said["pcrs"]
    assert said["verified_at"] == receipt.attestation.verified_at.isoformat()
    assert said["valid_until"] == receipt.attestation.valid_until.isoformat()  # type: ignore[union-attr]
    assert receipt.document == receipt.attestation.document
    assert (receipt.enclave, receipt.via, receipt.reason) == (
        "wss://enclave.example",
        None,
        "connect",
    )
    assert str(receipt).isascii() and "\n" not in str(receipt)
    assert receipt.receipt_id[:8] in repr(receipt)


def test_it_survives_text(receipt: Receipt) -> None:
    line = str(receipt)
    for again in (
        Receipt.from_json(line),
        Receipt.from_json(line.encode() + b"\n"),
        Receipt.from_json(json.dumps(json.loads(line), indent=2, sort_keys=True)),
        pickle.loads(pickle.dumps(receipt)),
        copy.deepcopy(receipt),
    ):
        assert again == receipt
        assert hash(again) == hash(receipt)
        assert again.receipt_id == receipt.receipt_id
        assert str(again) == line
        assert again.verify(root=root()) == receipt.attestation
    assert made(reason="fresh") != receipt
    assert receipt != line
    read = Receipt.from_json(line)
    with pytest.raises(enclavia.StateError, match="verify"):
        read.attestation  # noqa: B018 - raises


def test_the_id_is_of_all_that_it_says(receipt: Receipt) -> None:
    """By the rule that docs/receipts.md states, and of no other bytes."""
    assert json.loads(with_id(json.loads(str(receipt))))["receipt_id"] == receipt.receipt_id
    said = json.loads(str(receipt))
    for name in said:
        if name not in ("schema", "receipt_id"):
            other = made(reason="fresh").as_dict()[name] if name == "reason" else "x"
            with pytest.raises(enclavia.ReceiptError):
                Receipt.from_json(json.dumps({**said, name: other}))


def named(name: object = "2027-01") -> Receipt:
    return made(names=[(OTHER.as_tuple(), "another"), (PCRS.as_tuple(), name)])


def policy(name: str, pcrs: enclavia.Pcrs = PCRS, ends: datetime | None = None) -> Any:
    versions = (PolicyVersion("another", OTHER), PolicyVersion(name, pcrs, ends))
    return Policy("wss://enclave.example", "production", versions).pins


def test_the_name_of_the_version_is_a_statement() -> None:
    receipt = named()
    assert receipt.version == receipt.as_dict()["version"] == "2027-01"
    assert receipt.attestation.matched == MatchedPins(1, PCRS, "2027-01")
    assert made().version is None
    read = Receipt.from_json(str(receipt))
    assert read.version == "2027-01"
    # Nothing proves it, so it is not what verifying says.
    assert read.verify(root=root()).matched == MatchedPins(1, PCRS, None)
    renamed = Receipt.from_json(changed(receipt, version="2027-02"))
    assert renamed.verify(root=root()).matched == MatchedPins(1, PCRS, None)
    assert renamed.receipt_id != receipt.receipt_id
    for wrong in ({"matched": 0}, {"pins": [PCRS.as_dict(), OTHER.as_dict()]}):
        with pytest.raises(enclavia.ReceiptError, match="matched"):
            Receipt.from_json(changed(receipt, **wrong)).verify(root=root())
    for wrong in ({"matched": None}, {"matched": 2}):
        with pytest.raises(enclavia.ReceiptError, match="names a version and no set"):
            Receipt.from_json(changed(receipt, **wrong))
        Receipt.from_json(changed(receipt, version=None, **wrong))  # well-formed


def test_the_name_is_compared_with_a_policy() -> None:
    receipt = Receipt.from_json(str(named()))
    matched = receipt.verify(root=root(), pcrs=policy("2027-01")).matched
    assert matched == MatchedPins(1, PCRS, "2027-01")
    with pytest.raises(
        enclavia.ReceiptError, match=r"version: expected '2027-02', .*got '2027-01'"
    ):
        receipt.verify(root=root(), pcrs=policy("2027-02"))
    without = Receipt.from_json(str(made()))
    assert without.verify(root=root(), pcrs=policy("x")).matched == MatchedPins(1, PCRS, "x")


def test_a_policy_is_that_of_the_time() -> None:
    """A version that has ended since was allowed then; one that had ended was not."""
    pki = mint(LONG_AGO)
    hour = timedelta(hours=1)
    old = made(at=LONG_AGO + hour, pki=pki, names=[(PCRS.as_tuple(), "a")])
    old.verify(root=pki.root_pem, pcrs=policy("a", ends=LONG_AGO + hour))
    with pytest.raises(enclavia.PcrMismatch):
        old.verify(root=pki.root_pem, pcrs=policy("a", ends=LONG_AGO))
    ended = AllowedVersions(policy("a", ends=LONG_AGO).versions[1:])
    with pytest.raises(enclavia.ReceiptError, match="at which the policy allowed a version"):
        old.verify(root=pki.root_pem, pcrs=ended)


def test_it_holds_years_later() -> None:
    pki = mint(LONG_AGO)
    old = made(at=LONG_AGO + timedelta(hours=1), pki=pki)
    with pytest.raises(enclavia.CertificateError, match="expired"):
        enclavia.verify_attestation(old.document, pcrs=PCRS, root=pki.root_pem)
    again = Receipt.from_json(str(old)).verify(root=pki.root_der)
    assert again.verified_at == LONG_AGO + timedelta(hours=1)
    assert again.pcrs[0] == PCRS.pcr0


def test_a_time_at_which_it_could_not_have_been_verified() -> None:
    old = made(at=LONG_AGO, pki=(pki := mint(LONG_AGO)))
    late = changed(old, verified_at=(LONG_AGO + timedelta(hours=3, seconds=1)).isoformat())
    with pytest.raises(enclavia.CertificateError, match="expired"):
        Receipt.from_json(late).verify(root=pki.root_pem)
    early = changed(old, verified_at=(LONG_AGO - timedelta(seconds=61)).isoformat())
    with pytest.raises(enclavia.CertificateError, match="not yet valid"):
        Receipt.from_json(early).verify(root=pki.root_pem)


# What somebody changes who gives the receipt another id too, and the error that tells it.
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"module_id": "i-1-enc1"}, enclavia.ReceiptError, "module_id"),
    ({"timestamp": "2026-01-01T00:00:00+00:00"}, enclavia.ReceiptError, "timestamp"),
    ({"valid_until": "2036-01-01T00:00:00+00:00"}, enclavia.ReceiptError, "valid_until"),
    ({"pcrs": OTHER.as_dict()}, enclavia.ReceiptError, "pcrs"),
    ({"pins": [OTHER.as_dict()]}, enclavia.PcrMismatch, "PCR0"),
    ({"pins": [{**PCRS.as_dict(), "PCR2": "77" * 48}]}, enclavia.PcrMismatch, "PCR2"),
    ({"root": "00" * 32}, enclavia.ReceiptError, "root certificate"),
    ({"handshake_hash": "00" * 32}, enclavia.NonceMismatch, "nonce"),
    ({"nonce": "00" * 32}, enclavia.ReceiptError, "nonce"),
    ({"checked": ["structure", "certificates", "signature"]}, enclavia.ReceiptError, "checked"),
    ({"form": "debug"}, enclavia.ReceiptError, "debug mode proves nothing"),
    ({"form": "stub"}, enclavia.ReceiptError, "debug mode proves nothing"),
]


@pytest.mark.parametrize(("fields", "error", "words"), REFUSED, ids=lambda value: str(value)[:24])
def test_what_does_not_hold(
    receipt: Receipt, fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    forged = Receipt.from_json(changed(receipt, **fields))
    with pytest.raises(error, match=words):
        forged.verify(root=root())


def test_another_document(receipt: Receipt) -> None:
    """Each with its own signature, but not of this root, this key, or these bytes."""
    import base64

    def with_document(document: bytes) -> Receipt:
        return Receipt.from_json(changed(receipt, document=base64.b64encode(document).decode()))

    flipped = bytearray(receipt.document)
    flipped[-1] ^= 1
    with pytest.raises(enclavia.SignatureError):
        with_document(bytes(flipped)).verify(root=root())
    with pytest.raises(enclavia.CertificateError):
        with_document(signed_document(HASH, made=mint())).verify(root=root())
    with pytest.raises(enclavia.NonceMismatch):
        with_document(signed_document(bytes(32))).verify(root=root())
    with pytest.raises(enclavia.DocumentError):
        with_document(b"").verify(root=root())
    later = receipt.attestation.timestamp + timedelta(seconds=1)
    with pytest.raises(enclavia.ReceiptError, match="timestamp"):
        with_document(signed_document(HASH, timestamp=int(later.timestamp() * 1000))).verify(
            root=root()
        )


def test_what_the_document_does_not_know(receipt: Receipt) -> None:
    """docs/receipts.md says so: these are the word of whoever wrote the receipt."""
    for fields in ({"enclave": "wss://another.example"}, {"reason": "fresh"}):
        Receipt.from_json(changed(receipt, **fields)).verify(root=root())


def test_the_callers_own_root_and_pins(receipt: Receipt) -> None:
    with pytest.raises(enclavia.ReceiptError, match="root certificate"):
        receipt.verify()  # AWS's
    with pytest.raises(enclavia.ReceiptError, match="root certificate"):
        receipt.verify(root=mint().root_pem)
    assert receipt.verify(root=root(), pcrs=[PCRS, OTHER]) == receipt.attestation
    with pytest.raises(enclavia.PcrMismatch):
        receipt.verify(root=root(), pcrs=OTHER)


def test_by_way_of_a_forwarder() -> None:
    """That the nonce is the channel's is the forwarder's word, and no check of the client's."""
    via = made(via="unix:/run/user/1000/enclave")
    assert via.checked == ("structure", "certificates", "signature", "pcrs")
    Receipt.from_json(str(via)).verify(root=root())
    forged = Receipt.from_json(changed(via, nonce="00" * 32))
    with pytest.raises(enclavia.NonceMismatch):
        forged.verify(root=root())
    claims_more = Receipt.from_json(changed(via, checked=made().as_dict()["checked"]))
    with pytest.raises(enclavia.ReceiptError, match="checked"):
        claims_more.verify(root=root())


def test_a_receipt_of_debug_mode() -> None:
    raw = {
        **made().attestation.__dict__,
        "form": "stub", "module_id": "", "timestamp": 0, "pcrs": {}, "certificate": b"",
        "cabundle": [], "nonce": HASH, "verified_at": 1, "valid_until": None, "document": HASH,
        "matched": None,
    }  # fmt: skip
    stub = made(raw=raw, pins=None)
    assert stub.checked == ("nonce",)
    assert violations(json.loads(SCHEMA_FILE.read_text()), stub.as_dict()) == []
    with pytest.raises(enclavia.ReceiptError, match="proves nothing"):
        Receipt.from_json(str(stub)).verify(root=root())
    pinned = made(raw={**raw, "form": "debug"})
    assert pinned.checked == ("nonce", "pcrs")


# ---------------------------------------------------------------------------------------------
# Reading


def test_the_schema_is_of_all_fields(receipt: Receipt) -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    assert set(schema["properties"]) == set(schema["required"]) == set(_SHAPE)
    assert list(json.loads(str(receipt))) == list(_SHAPE)
    assert schema["properties"]["schema"]["const"] == SCHEMA
    assert violations(schema, receipt.as_dict()) == []
    assert violations(schema, made(via="unix:/x").as_dict()) == []


WRONG: list[Any] = [
    None, True, 0, -1, 301, 1 << 70, 1.5, "", "x", "0" * 63, "0" * 64 + "\n", "G" * 64, "0" * 64,
    "\u0660" * 64, [], [None], ["nonce"], ["nonce", "nonce"], ["nonce", 5], [{}], [PCRS.as_dict()],
    {}, {"PCR0": "0" * 96}, {"PCR32": "0" * 96}, {"PCR00": "0" * 96}, {"PCR0": "0" * 95},
    {"PCR0": 0},
    "2026-11-27T09:30:00", "2026-11-27T09:30:00+00:00", "2026-11-27T09:30:00.5+00:00",
    "2026-11-27T09:30:00+01:00", "2026-11-27T09:30:00Z", "wss://", "ws://a b", "https://a", "AAAA",
    "AAA", "connect", "nitro",
]  # fmt: skip


def test_the_one_spelling_of_times_is_shown(receipt: Receipt) -> None:
    other = str(receipt).replace("+00:00", "Z")
    with pytest.raises(enclavia.ReceiptError, match=r"UTC, as [-0-9]{10}T[:0-9]{8}\+00:00"):
        Receipt.from_json(other)


@pytest.mark.parametrize("name", [name for name in _SHAPE if name not in ("schema", "receipt_id")])
def test_reader_and_schema_agree(receipt: Receipt, name: str) -> None:
    """Whatever stands in a field, the published schema refuses it where the reader does. (The
    reader alone knows more: the order of checks, padding, and what goes together.)"""
    schema = json.loads(SCHEMA_FILE.read_text())
    taken = 0
    for value in WRONG:
        line = changed(receipt, **{name: value})
        valid = violations(schema, json.loads(line)) == []
        try:
            Receipt.from_json(line)
        except enclavia.ReceiptError as error:
            assert name in str(error) or "number that is not whole" in str(error), value
            knows_more = name == "document" or "of a signed document without" in str(error)
            assert not valid or knows_more, value
        else:
            assert valid, value
            taken += 1
    assert taken < len(WRONG)


BAD_LINES: list[tuple[str | bytes, str]] = [
    ("", "no JSON"),
    ("{", "no JSON"),
    ("[]", "no object"),
    ("null", "no object"),
    ("{}", "schema is None"),
    ('{"schema":"enclavia-receipt-2"}', "enclavia-receipt-2"),
    ('{"schema":"enclavia-receipt-1"}', "without receipt_id"),
    ('{"schema":"enclavia-receipt-1","schema":"enclavia-receipt-1"}', "twice"),
    ('{"schema":"enclavia-receipt-1","more":1}', "more"),
    ('{"schema":NaN}', "whole"),
    ('{"schema":1e5}', "whole"),
    ('{"schema":' + "1" * 10_000 + "}", "no JSON"),
    ("[" * 100_000, "no JSON"),
    ('{"a":' * 100_000, "no JSON"),
    (b"\xff", "UTF-8"),
    (b"\x00" * 100, "no JSON"),
    (" " * (RECEIPT_MAX + 1), "more than"),
]


@pytest.mark.parametrize(("line", "words"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_what_is_no_receipt(line: str | bytes, words: str) -> None:
    with pytest.raises(enclavia.ReceiptError, match=words) as caught:
        Receipt.from_json(line)
    assert not caught.value.retryable
    assert len(str(caught.value)) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
EDGES = st.sampled_from(WRONG) | JSON


@given(
    fields=st.dictionaries(st.sampled_from(list(_SHAPE)) | st.text(max_size=8), EDGES, max_size=3)
)
@settings(max_examples=60, deadline=None)
def test_whatever_stands_there_is_read_or_refused(fields: dict[str, Any]) -> None:
    """By one kind of error; and what is read holds or does not, by another of its kinds."""
    line = changed(made_once(), **fields) if "receipt_id" not in fields else json.dumps(fields)
    try:
        receipt = Receipt.from_json(line)
    except enclavia.ReceiptError:
        return
    assert Receipt.from_json(str(receipt)) == receipt
    assert violations(json.loads(SCHEMA_FILE.read_text()), receipt.as_dict()) == []
    try:
        receipt.verify(root=root())
    except enclavia.AttestationError:
        return
    same = ("form", "document", "nonce", "pcrs", "module_id", "timestamp", "valid_until", "root")
    assert all(receipt.as_dict()[name] == made_once().as_dict()[name] for name in same)


@given(line=st.text(max_size=200) | st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_line_is_refused_by_one_error(line: str | bytes) -> None:
    with pytest.raises(enclavia.ReceiptError):
        Receipt.from_json(line)


def test_every_cut_and_every_changed_byte_is_told(receipt: Receipt) -> None:
    line = str(receipt).encode()
    for end in {*range(0, len(line), 97), *range(len(line) - 40, len(line))}:
        with pytest.raises(enclavia.ReceiptError):
            Receipt.from_json(line[:end])
    for at in range(0, len(line), 41):
        damaged = bytearray(line)
        damaged[at] ^= 1
        with pytest.raises(enclavia.ReceiptError):
            Receipt.from_json(bytes(damaged))


def test_receipts_are_made_by_channels() -> None:
    with pytest.raises(TypeError, match="from_json"):
        Receipt()


def test_until_when_a_document_is_valid(receipt: Receipt) -> None:
    """The first end in the chain, whichever certificate's it is."""
    until = receipt.attestation.valid_until
    assert until is not None
    assert until.isoformat(sep=" ", timespec="seconds") in str(receipt.attestation)
