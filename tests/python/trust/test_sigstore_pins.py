"""Pins that somebody has signed with Sigstore: each rule is broken alone, and nothing but what is
signed by the wanted identity becomes a pin."""

from __future__ import annotations

import base64
import copy
import functools
import json
import pickle
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pinned import OTHER, Workload
from sigstore_instance import (
    IDENTITY,
    ISSUER,
    REF,
    REPOSITORY,
    SLSA,
    Instance,
    Signed,
    b64,
    statement,
)
from support import Face, drive, keywords

import enclavia
from enclavia import AsyncClient, Client, Pcrs, PinSource, PinsUnavailable, Policy, SigstoreError
from enclavia._exchange.shared import key_of
from enclavia.testing import LocalEnclave

pytest.importorskip("sigstore", reason="needs the extra sigstore")

from cryptography.x509.oid import ExtendedKeyUsageOID

from enclavia import SigstorePins
from enclavia._trust import sigstore_pins

PCRS = Pcrs(pcr0=b"\x01" * 48, pcr1=b"\x02" * 48, pcr2=b"\x03" * 48)
MEASURED = "https://acme.example/pcrs/v1"
MIB = 1024 * 1024
Bundle = dict[str, Any]


def built(pcrs: Pcrs) -> bytes:
    """As nitro-cli prints it."""
    return json.dumps(
        {"Measurements": {"HashAlgorithm": "Sha384 { … }", **pcrs.as_dict()}}
    ).encode()


CONTENT = built(PCRS)


@functools.cache
def instance() -> Instance:
    return Instance()


@functools.cache
def another_instance() -> Instance:
    return Instance()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sigstore") / "trusted_root.json"
    path.write_bytes(instance().trusted_root())
    return path


def raw(bundle: object) -> bytes:
    return bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()


def pins(root: Path, bundle: object, /, **changed: Any) -> SigstorePins:
    said: dict[str, Any] = {
        "pcrs": CONTENT,
        "bundle": raw(bundle),
        "identity": IDENTITY,
        "issuer": ISSUER,
        "trusted_root": root,
    }
    return SigstorePins(**{**said, **changed})


def of_file(content: bytes = CONTENT, **changed: Any) -> Bundle:
    return instance().of_file(content, **changed)


def attested(**changed: Any) -> Bundle:
    """A statement about the file, with parts of it changed before it is signed."""
    return instance().of_statement(statement(("pcrs.json", CONTENT), **changed))


def signed_so(**changed: Any) -> Bundle:
    """The statement about the file, signed in another way."""
    payload = json.dumps(statement(("pcrs.json", CONTENT))).encode()
    return instance().bundle(Signed(payload=payload, **changed))


BOTH: list[Callable[..., Bundle]] = [of_file, signed_so]
each_form = pytest.mark.parametrize("form", BOTH, ids=["file", "statement"])


# -- what is taken -------------------------------------------------------------------------------


@each_form
@pytest.mark.parametrize(
    "wanted",
    [{}, {"repository": REPOSITORY}, {"ref": REF}, {"repository": REPOSITORY, "ref": REF}],
    ids=lambda wanted: "-".join(wanted) or "identity",
)
def test_what_the_identity_has_signed(form: Any, wanted: Any, root: Path, tmp_path: Path) -> None:
    bundle = form()
    assert pins(root, bundle, **wanted).verify() == PCRS
    (tmp_path / "pcrs.json").write_bytes(CONTENT)
    (tmp_path / "bundle.json").write_bytes(raw(bundle))
    for kind in (str, Path):
        of_paths = pins(
            root,
            b"",
            pcrs=kind(tmp_path / "pcrs.json"),
            bundle=kind(tmp_path / "bundle.json"),
            trusted_root=kind(root),
            **wanted,
        )
        assert of_paths.verify() == of_paths() == PCRS
    buffers = {"pcrs": memoryview(CONTENT), "bundle": bytearray(raw(bundle))}
    assert pins(root, b"", **buffers, **wanted).verify() == PCRS


def test_a_signature_by_a_person(root: Path) -> None:
    identity, issuer = "release@acme.example", "https://accounts.example"
    bundle = of_file(identity=identity, issuer=issuer, repository=None, ref=None)
    assert pins(root, bundle, identity=identity, issuer=issuer).verify() == PCRS


def test_a_statement_about_several_files(root: Path) -> None:
    """The digest of one of them, under the name that is asked for."""
    several = (("staging.json", built(OTHER)), ("pcrs.json", CONTENT), ("image.eif", b"image"))
    bundle = instance().of_statement(statement(*several))
    assert pins(root, bundle).verify() == PCRS
    assert pins(root, bundle, pcrs=built(OTHER)).verify() == OTHER
    assert pins(root, bundle, subject="pcrs.json").verify() == PCRS
    with pytest.raises(SigstoreError, match="expected a subject with the SHA-256 of the file"):
        pins(root, bundle, pcrs=built(OTHER), subject="pcrs.json").verify()
    with pytest.raises(SigstoreError, match="expected one named 'pcrs', got none of that name"):
        pins(root, bundle, subject="pcrs").verify()


def test_pins_in_the_predicate(root: Path) -> None:
    measured = {"measurements": PCRS.as_dict(), "tool": "eif_build"}
    said = statement(("image.eif", b"image"), predicateType=MEASURED, predicate=measured)
    bundle = instance().of_statement(said)
    wanted: dict[str, Any] = {"pcrs": None, "predicate_type": MEASURED}
    assert pins(root, bundle, **wanted).verify() == PCRS
    assert pins(root, bundle, **wanted, subject="image.eif").verify() == PCRS
    with pytest.raises(SigstoreError, match="expected one named 'other', got none of that name"):
        pins(root, bundle, **wanted, subject="other").verify()
    for predicate in (None, [], "PCR0", 5):
        said = statement(("image.eif", b""), predicateType=MEASURED, predicate=predicate)
        with pytest.raises(SigstoreError, match="predicate: expected an object with PCRs, got"):
            pins(root, instance().of_statement(said), **wanted).verify()
    said = statement(("image.eif", b""), predicateType=MEASURED, predicate={"a": 1})
    with pytest.raises(SigstoreError, match="predicate: expected PCR0, PCR1 and PCR2"):
        pins(root, instance().of_statement(said), **wanted).verify()
    with pytest.raises(SigstoreError, match=r"expected a statement, for predicate_type="):
        pins(root, of_file(), **wanted).verify()


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
def test_places_in_the_log(size: int, root: Path) -> None:
    assert pins(root, of_file(tree_size=size)).verify() == PCRS


# -- each rule broken alone ------------------------------------------------------------------------

SIGNED = "expected the .* signed by"
# What is asked for, of right bundles of either form.
ASKED: list[tuple[dict[str, Any], str]] = [
    ({"identity": IDENTITY.replace("main", "next")}, f"{SIGNED} .*SANs do not match"),
    ({"identity": IDENTITY[:-1]}, f"{SIGNED} .*SANs do not match"),
    ({"identity": IDENTITY + "x"}, f"{SIGNED} .*SANs do not match"),
    ({"identity": IDENTITY.upper()}, f"{SIGNED} .*SANs do not match"),
    ({"identity": REPOSITORY}, f"{SIGNED} .*SANs do not match"),
    ({"issuer": "https://accounts.example"}, f"{SIGNED} .*OIDCIssuer does not match"),
    ({"issuer": ISSUER + "/"}, f"{SIGNED} .*OIDCIssuer does not match"),
    ({"repository": REPOSITORY + "2"}, f"{SIGNED} .*OIDCSourceRepositoryURI does not match"),
    ({"ref": "refs/heads/next"}, f"{SIGNED} .*OIDCSourceRepositoryRef does not match"),
    ({"pcrs": CONTENT + b"\n"}, "digest mismatch|expected a subject with the SHA-256"),
    ({"pcrs": built(OTHER)}, "digest mismatch|expected a subject with the SHA-256"),
    ({"predicate_type": MEASURED}, "for predicate_type=, got|predicateType: expected"),
    ({"subject": "other.json"}, "for subject=, got|expected one named 'other.json'"),
]


@each_form
@pytest.mark.parametrize(("asked", "message"), ASKED, ids=[str(n) for n in range(len(ASKED))])
def test_another_one_is_asked_for(form: Any, asked: Any, message: str, root: Path) -> None:
    bundle = form()
    assert pins(root, bundle).verify() == PCRS
    with pytest.raises(SigstoreError, match=message) as caught:
        pins(root, bundle, **asked).verify()
    assert not caught.value.retryable


# How it was signed.
SO: list[tuple[dict[str, Any], str]] = [
    ({"identity": IDENTITY.replace("release", "test")}, "SANs do not match"),
    ({"issuer": "https://token.actions.example"}, "OIDCIssuer does not match"),
    ({"issuer": None}, "does not contain OIDCIssuer"),
    ({"alternative_name": False}, "certificate chain: "),
    ({"usage": ExtendedKeyUsageOID.CLIENT_AUTH}, "code signing"),
    ({"transparent": False}, "failed to verify SCT"),
    ({"logged": timedelta(minutes=11)}, "not valid at|not yet valid|has expired"),
    ({"logged": timedelta(minutes=-1)}, "not valid at|not yet valid|has expired"),
    ({"logged_digest_of": b"another"}, "log entry|transparency log"),
    ({"rsa_key": True}, "TypeError"),
]


@each_form
@pytest.mark.parametrize(("so", "message"), SO, ids=[next(iter(so)) for so, _ in SO])
def test_it_was_signed_otherwise(form: Any, so: Any, message: str, root: Path) -> None:
    with pytest.raises(SigstoreError, match=f"{SIGNED}.*({message})") as caught:
        pins(root, form(**so)).verify()
    assert caught.value.__cause__ is not None


@each_form
@pytest.mark.parametrize(("name", "wanted"), [("repository", REPOSITORY), ("ref", REF)])
def test_what_the_certificate_does_not_say(form: Any, name: str, wanted: str, root: Path) -> None:
    """One that is not asked for may be missing; one that is asked for may not."""
    bundle = form(**{name: None})
    assert pins(root, bundle).verify() == PCRS
    with pytest.raises(SigstoreError, match="Certificate does not contain OIDCSource"):
        pins(root, bundle, **{name: wanted}).verify()


@each_form
def test_another_instance(form: Any, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(another_instance().trusted_root())
    with pytest.raises(SigstoreError, match=SIGNED):
        pins(other, form()).verify()
    for part, message in (
        ("certificateAuthorities", "certificate chain"),
        ("ctlogs", "SCT"),
        ("tlogs", "log entry"),
    ):
        mixed = json.loads(instance().trusted_root())
        mixed[part] = json.loads(another_instance().trusted_root())[part]
        other.write_text(json.dumps(mixed))
        with pytest.raises(SigstoreError, match=f"{SIGNED}.*{message}"):
            pins(other, form()).verify()


def test_a_statement_of_another_kind(root: Path) -> None:
    bundle = signed_so(payload_type="application/json")
    with pytest.raises(SigstoreError, match=r"of type application/vnd\.in-toto\+json, got 'appli"):
        pins(root, bundle).verify()


SUBJECT = statement(("pcrs.json", CONTENT))["subject"][0]
DIGEST = SUBJECT["digest"]["sha256"]
STATEMENTS: list[tuple[dict[str, Any], str]] = [
    ({"_type": "https://in-toto.io/Statement/v0.1"}, "_type: expected .*v1, got '.*v0.1'"),
    ({"_type": None}, "_type: expected .*, got none"),
    ({"predicateType": MEASURED}, f"predicateType: expected {SLSA}, got '{MEASURED}'"),
    ({"predicateType": None}, "predicateType: expected .*, got none"),
    ({"predicateType": [SLSA]}, "predicateType: expected .*, got an array"),
    ({"subject": None}, "subject: expected an array of subjects, got none"),
    ({"subject": []}, "subject: expected an array of subjects, got an array"),
    ({"subject": {"pcrs.json": DIGEST}}, "subject: expected an array of subjects, got an obj"),
    ({"subject": [DIGEST]}, "subject: expected a name and a digest, got '"),
    ({"subject": [{"name": "pcrs.json"}]}, "subject: expected a name and a digest, got an obj"),
    ({"subject": [{"name": "pcrs.json", "digest": DIGEST}]}, "expected a name and a digest"),
    ({"subject": [SUBJECT, 5]}, "expected a name and a digest, got a number"),
    ({"subject": [{"digest": {"sha512": DIGEST}}]}, "expected a subject with the SHA-256"),
    ({"subject": [{"digest": {"sha256": DIGEST.upper()}}]}, "expected a subject with the SHA-256"),
    ({"subject": [{"digest": {"sha256": [DIGEST]}}]}, "expected a subject with the SHA-256"),
    ({"subject": [{"digest": {"sha256": DIGEST[:-2]}}]}, "expected a subject with the SHA-256"),
]


@pytest.mark.parametrize(("changed", "message"), STATEMENTS, ids=lambda value: str(value)[:40])
def test_statements_that_are_no_proof(changed: Any, message: str, root: Path) -> None:
    with pytest.raises(SigstoreError, match=message):
        pins(root, attested(**changed)).verify()


@pytest.mark.parametrize(
    "payload",
    [
        b"not JSON",
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        raw(statement(("pcrs.json", CONTENT)))[:-1] + b', "_type": "x"}',
        raw(statement(("pcrs.json", CONTENT))) + b"{}",
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_payloads_that_are_no_statement(payload: bytes, root: Path) -> None:
    with pytest.raises(SigstoreError):
        pins(root, instance().of_statement(payload)).verify()


# Signed by the right identity, and no pins.
NO_PINS: list[tuple[bytes, str]] = [
    (b"PCR0: 00", "expected one JSON object"),
    (b"Start building the image\n" + CONTENT, "expected one JSON object"),
    (CONTENT + b"\ndone", "expected one JSON object"),
    (b"[" + CONTENT + b"]", "expected one JSON object, got an array"),
    (b'{"pcrs": null}', "image is not built yet"),
    (b"{}", "expected PCR0, PCR1 and PCR2"),
    (b'{"PCR0": "00", "PCR0": "01"}', "the key 'PCR0' twice"),
    (json.dumps({"a": PCRS.as_dict(), "b": OTHER.as_dict()}).encode(), "2 different ones"),
    (json.dumps({**PCRS.as_dict(), "PCR1": 5}).encode(), "pcr1: expected hex text"),
    (json.dumps({**PCRS.as_dict(), "PCR5": "00" * 48}).encode(), "'PCR5', which cannot be pinned"),
    (b"\xff\xfe{}", "expected one JSON object"),
    (b'{"a":' * 100_000, "expected one JSON object"),
]


@each_form
@pytest.mark.parametrize(("content", "message"), NO_PINS, ids=lambda value: str(value)[:24])
def test_signed_files_that_are_no_pins(form: Any, content: bytes, message: str, root: Path) -> None:
    if form is of_file:
        bundle = of_file(content)
    else:
        bundle = instance().of_statement(statement(("pcrs.json", content)))
    with pytest.raises(SigstoreError, match=f"pcrs: .*{message}"):
        pins(root, bundle, pcrs=content).verify()


def material(bundle: Bundle) -> Any:
    return bundle["verificationMaterial"]


def entry(bundle: Bundle) -> Any:
    return material(bundle)["tlogEntries"][0]


def flipped(text: str) -> str:
    content = bytearray(base64.b64decode(text))
    content[-1] ^= 1
    return b64(bytes(content))


def changing(place: Callable[[Bundle], Any], key: Any, to: Any) -> Callable[[Bundle], None]:
    def change(bundle: Bundle) -> None:
        table = place(bundle)
        if to is ...:
            del table[key]
        else:
            table[key] = to(table[key]) if callable(to) else to

    return change


def proof(bundle: Bundle) -> Any:
    return entry(bundle)["inclusionProof"]


# What is done to a right bundle of either form.
DAMAGE: dict[str, Callable[[Bundle], None]] = {
    "not in the log": changing(material, "tlogEntries", []),
    "twice in the log": changing(material, "tlogEntries", lambda entries: entries * 2),
    "no proof": changing(entry, "inclusionProof", ...),
    "no checkpoint": changing(proof, "checkpoint", ...),
    "no promise": changing(entry, "inclusionPromise", ...),
    "no time": changing(entry, "integratedTime", ...),
    "another time": changing(entry, "integratedTime", lambda text: str(int(text) + 1)),
    "an absurd time": changing(entry, "integratedTime", "9" * 18),
    "another index": changing(entry, "logIndex", "7"),
    "another promise": changing(entry, "inclusionPromise", {"signedEntryTimestamp": b64(b"x")}),
    "another hash": changing(proof, "hashes", lambda hashes: list(map(flipped, hashes))),
    "another tree": changing(proof, "rootHash", flipped),
    "another checkpoint": changing(
        proof,
        "checkpoint",
        lambda checkpoint: {"envelope": checkpoint["envelope"].replace("\n3\n", "\n4\n")},
    ),
    "no certificate": changing(material, "certificate", ...),
    "half a certificate": changing(
        material, "certificate", {"rawBytes": b64(b"\x30\x82\x01\x00half of it")}
    ),
    "a certificate of the authority's": lambda bundle: changing(
        material,
        "certificate",
        {"rawBytes": json.loads(instance().trusted_root())["certificateAuthorities"][0]
         ["certChain"]["certificates"][0]["rawBytes"]},
    )(bundle),
    "another certificate": lambda bundle: changing(
        material, "certificate", material(of_file(b"{}"))["certificate"]
    )(bundle),
    "another's entry": lambda bundle: changing(
        material, "tlogEntries", material(of_file(b"{}"))["tlogEntries"]
    )(bundle),
    "another kind of entry": changing(
        entry, "kindVersion", {"kind": "intoto", "version": "0.0.1"}
    ),
    "a later kind of entry": changing(
        entry, "kindVersion", lambda kind: {**kind, "version": "0.0.2"}
    ),
    "another format": changing(lambda bundle: bundle, "mediaType", "application/json"),
    "no material": changing(lambda bundle: bundle, "verificationMaterial", ...),
}  # fmt: skip


@each_form
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_bundles(form: Any, damage: str, root: Path) -> None:
    bundle = form()
    DAMAGE[damage](bundle)
    with pytest.raises(SigstoreError, match=r"^bundle: expected"):
        pins(root, bundle).verify()


def test_one_signature_of_one_kind(root: Path) -> None:
    one, other = of_file(), signed_so()
    content = {key: other[key] for key in ("dsseEnvelope",)}
    with pytest.raises(SigstoreError, match="expected"):
        pins(root, {**one, **content}).verify()
    with pytest.raises(SigstoreError, match="expected"):
        pins(root, {key: value for key, value in one.items() if key != "messageSignature"}).verify()
    envelope = other["dsseEnvelope"]
    for signatures in ([], envelope["signatures"] * 2, [{"sig": ""}]):
        changed = {**other, "dsseEnvelope": {**envelope, "signatures": signatures}}
        with pytest.raises(SigstoreError):
            pins(root, changed).verify()
    changed = {**envelope, "payload": b64(raw(statement(("pcrs.json", built(OTHER)))))}
    with pytest.raises(SigstoreError, match="DSSE: invalid signature"):
        pins(root, {**other, "dsseEnvelope": changed}, pcrs=built(OTHER)).verify()
    message = copy.deepcopy(one)
    message["messageSignature"]["signature"] = of_file()["messageSignature"]["signature"]
    with pytest.raises(SigstoreError, match="Signature is invalid"):
        pins(root, message).verify()
    # What the bundle says of the digest is not signed: that of the file counts.
    message = of_file(built(OTHER))
    message["messageSignature"]["messageDigest"] = one["messageSignature"]["messageDigest"]
    with pytest.raises(SigstoreError, match="Signature is invalid"):
        pins(root, message).verify()


@pytest.mark.parametrize(
    "content",
    [
        b"not JSON", b"[]", b"null", b"5", b'"text"', b"{}", b"\xff\xfe", b"[" * 100_000,
        b'{"mediaType":' * 50_000, b"\x00" * 100, raw({"mediaType": 5}),
    ],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_what_is_no_bundle(content: bytes, root: Path) -> None:
    with pytest.raises(SigstoreError, match="bundle: expected a Sigstore bundle, got one that is"):
        pins(root, content).verify()


def test_two_bundles_in_one_file(root: Path) -> None:
    lines = raw(of_file()) + b"\n" + raw(of_file())
    with pytest.raises(SigstoreError, match="bundle: expected a Sigstore bundle"):
        pins(root, lines).verify()
    assert pins(root, raw(of_file()) + b"\n").verify() == PCRS


@pytest.mark.parametrize("name", ["pcrs", "bundle", "trusted_root"])
def test_files_that_are_no_use(name: str, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    source = pins(root, of_file(), **{name: path})
    with pytest.raises(FileNotFoundError):
        source.verify()
    path.write_bytes(b"")
    with pytest.raises(SigstoreError, match=f"{name}: expected content, got none: it is empty"):
        source.verify()
    path.write_bytes(b" " * (MIB + 1))
    with pytest.raises(SigstoreError, match=f"{name}: expected at most 1048576 bytes, got more"):
        source.verify()
    path.write_bytes(b"not JSON")
    with pytest.raises(SigstoreError):
        source.verify()
    path.unlink()
    path.mkdir()
    with pytest.raises(SigstoreError, match=f"{name}: expected the path of a file, got the dir"):
        source.verify()


@pytest.mark.parametrize(
    "changed", [{"mediaType": "application/json"}, {"tlogs": []}, {"certificateAuthorities": []}]
)
def test_trusted_roots_that_are_no_use(changed: Any, tmp_path: Path) -> None:
    path = tmp_path / "trusted_root.json"
    path.write_text(json.dumps({**json.loads(instance().trusted_root()), **changed}))
    with pytest.raises(SigstoreError, match=r"^trusted_root: expected a trusted_root\.json of Sig"):
        pins(path, of_file()).verify()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for key, member in members:
        if isinstance(member, dict | list):
            yield from leaves(member, (*path, key))
        yield (*path, key)


# Without these a bundle still proves all of what it has to.
OPTIONAL = {"rfc3161Timestamps", "timestampVerificationData", "messageDigest"}


@each_form
def test_whatever_becomes_of_a_bundle(form: Any, root: Path) -> None:
    """Each part left out, or made something else, is an error of this package."""
    bundle, kept = form(), set()
    for path in leaves(bundle):
        for value in (..., None, "", "x", 5, -1, [], {}, "AAAA", True, 1e300):
            changed = copy.deepcopy(bundle)
            table: Any = changed
            for key in path[:-1]:
                table = table[key]
            changing(lambda _, table=table: table, path[-1], value)(changed)
            try:
                assert pins(root, changed).verify() == PCRS
            except SigstoreError:
                continue
            assert value in (..., None, [], {}), path
            kept.add(path[-1])
    assert kept <= OPTIONAL


def test_random_damage(root: Path) -> None:
    r = random.Random(1)
    right = [raw(form()) for form in BOTH]
    for _ in range(400):
        content = bytearray(r.choice(right))
        for _ in range(r.choice((1, 1, 2, 8))):
            content[r.randrange(len(content))] = r.randrange(256)
        try:
            assert pins(root, bytes(content)).verify() == PCRS
        except SigstoreError:
            continue


# Of a bundle whose time is from a timestamp authority.
STAMPED: list[tuple[dict[str, Any], str]] = [
    ({"logged": timedelta(minutes=11)}, "certificate chain: "),
    ({"logged": timedelta(minutes=-1)}, "certificate chain: "),
    ({"stamped": b"another signature"}, "not enough sources of verified time"),
    ({"logged_digest_of": b"another"}, "transparency log entry is inconsistent"),
    ({"transparent": False}, "failed to verify SCT"),
]


def test_the_second_version_of_the_log(root: Path, tmp_path: Path) -> None:
    bundle = of_file(second_log=True)
    assert pins(root, bundle).verify() == PCRS
    for so, message in STAMPED:
        with pytest.raises(SigstoreError, match=f"{SIGNED}.*{message}"):
            pins(root, of_file(second_log=True, **so)).verify()
    # An authority that is not trusted, and none at all.
    other = tmp_path / "other.json"
    mixed = json.loads(instance().trusted_root())
    for authorities, message in (
        (json.loads(another_instance().trusted_root())["timestampAuthorities"], "not enough sourc"),
        ([], "no Timestamp Authorities have been provided"),
    ):
        other.write_text(json.dumps({**mixed, "timestampAuthorities": authorities}))
        with pytest.raises(SigstoreError, match=f"{SIGNED}.*{message}"):
            pins(other, bundle).verify()
    material(bundle)["timestampVerificationData"] = {}
    with pytest.raises(SigstoreError, match="an inclusion promise or signed timestamp"):
        pins(root, bundle).verify()


# -- without a network, and without the extra ------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose user has no files, and on which using the network is an error."""

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home))
    return home


@each_form
def test_nothing_is_asked_for_or_left_behind(form: Any, root: Path, offline: Path) -> None:
    bundle = form()
    assert pins(root, bundle).verify() == PCRS
    # The public instance's root is in the installed library. It does not know this instance.
    with pytest.raises(SigstoreError, match=f"{SIGNED}.*certificate chain"):
        pins(root, bundle, trusted_root=None).verify()
    assert list(offline.iterdir()) == []


def test_a_cache_that_another_program_filled(root: Path, offline: Path) -> None:
    """The library's own program keeps its trusted root there. Whoever can write it is not asked."""
    kept = sigstore_pins.embedded_root()
    assert isinstance(kept, Path)
    folder = offline / "sigstore-python" / "tuf" / kept.parent.name
    folder.mkdir(parents=True)
    (folder / "trusted_root.json").write_bytes(root.read_bytes())
    (folder / "signing_config.v0.2.json").write_bytes(
        kept.with_name("signing_config.v0.2.json").read_bytes()
    )
    from sigstore.models import ClientTrustConfig

    trusted = ClientTrustConfig.production(offline=True).trusted_root
    certificates = trusted.get_fulcio_certs()
    assert instance().root in certificates  # so this is where it is looked for
    with pytest.raises(SigstoreError, match=f"{SIGNED}.*certificate chain"):
        pins(root, of_file(), trusted_root=None).verify()


@each_form
def test_the_installed_root_is_the_default(
    form: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = json.loads(sigstore_pins.embedded_root().read_bytes())
    assert kept["tlogs"] and kept["certificateAuthorities"] and kept["ctlogs"]
    monkeypatch.setattr(sigstore_pins, "embedded_root", lambda: root)
    assert pins(root, form(), trusted_root=None).verify() == PCRS
    monkeypatch.setattr(sigstore_pins, "embedded_root", lambda: root.with_name("gone.json"))
    with pytest.raises(SigstoreError, match="trusted_root: expected the one that the installed"):
        pins(root, form(), trusted_root=None).verify()


def test_the_library_is_imported_on_use() -> None:
    code = (
        "import sys, enclavia; enclavia.SigstorePins, enclavia.Policy; "
        "assert 'sigstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_library(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "sigstore.models", None)
        with pytest.raises(ImportError, match=r"pip install 'enclavia\[sigstore\]'"):
            pins(root, of_file())

    def broken(name: str) -> None:
        raise ImportError("no module named tuf", name="tuf")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ImportError, match=r"^no module named tuf$"):
        pins(root, of_file())


# -- as an object ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"pcrs": 5}, TypeError, "pcrs: expected a path, or content as bytes, got int"),
        ({"pcrs": PCRS}, TypeError, "pcrs: expected a path, or content as bytes, got Pcrs"),
        ({"pcrs": ""}, ValueError, "pcrs: expected a path, or content as bytes, got an empty"),
        ({"pcrs": None}, ValueError, "pcrs: expected a signed file, or predicate_type="),
        ({"bundle": None}, TypeError, "bundle: expected a path, or content as bytes, got None"),
        ({"bundle": {}}, TypeError, "bundle: expected a path, or content as bytes, got dict"),
        ({"bundle": "a\0b"}, ValueError, "bundle: expected .*got one with a NUL"),
        ({"trusted_root": b"{}"}, TypeError, "trusted_root: expected a path, got bytes"),
        ({"trusted_root": ""}, ValueError, "trusted_root: expected a path, got an empty text"),
        *(
            ({name: value}, error, f"{name}: expected {message}")
            for name in ("identity", "issuer", "repository", "ref", "subject", "predicate_type")
            for value, error, message in (
                (5, TypeError, "text, got int"),
                (b"x", TypeError, "text, got bytes"),
                ("", ValueError, "printable text, got an empty one"),
                (" ", ValueError, "printable text, got ' '"),
                ("a\nb", ValueError, r"printable text, got 'a\\\\nb'"),
            )
        ),
        ({"identity": None}, TypeError, "identity: expected text, got NoneType"),
        ({"issuer": None}, TypeError, "issuer: expected text, got NoneType"),
        ({"repository": "acme/enclave"}, ValueError, "repository: expected its URL"),
        ({"ref": "main"}, ValueError, r"ref: expected a full one \(refs/heads/main\), got 'main'"),
    ],
)
def test_arguments(changed: Any, error: type[Exception], message: str, root: Path) -> None:
    with pytest.raises(error, match=message):
        pins(root, b"{}", **changed)


def test_who_may_have_signed_has_to_be_said() -> None:
    for missing in ("identity", "issuer", "bundle"):
        said: dict[str, Any] = {"pcrs": b"{}", "bundle": b"{}", "identity": "a", "issuer": "b"}
        del said[missing]
        with pytest.raises(TypeError, match=missing):
            SigstorePins(**said)


def test_it_is_a_value(root: Path) -> None:
    bundle = raw(of_file())
    source = pins(root, bundle)
    twin = pickle.loads(pickle.dumps(source))
    assert twin == source == copy.copy(source) and twin.verify() == PCRS
    assert key_of(twin) == key_of(source)  # copies of a client with it share their channels
    assert key_of(source) != key_of(pins(root, bundle, identity="another"))
    assert source != pins(root, bundle, repository=REPOSITORY)
    with pytest.raises(AttributeError):
        source.identity = "another"  # type: ignore[misc]
    assert repr(source) == (
        f"SigstorePins(pcrs={len(CONTENT)} bytes, bundle={len(bundle)} bytes, "
        f"identity='{IDENTITY}', issuer='{ISSUER}')"
    )
    assert "pcrs='p.json'" in repr(pins(root, bundle, pcrs="p.json"))


# -- with clients ---------------------------------------------------------------------------------

KINDS = ("sync", "asyncio")


def with_client(kind: str, enclave: LocalEnclave, case: Any, **options: Any) -> None:
    async def run() -> None:
        made = Client if kind == "sync" else AsyncClient
        face = Face(made(enclave.url, **keywords(enclave, **options)))
        try:
            await case(face)
        finally:
            await face.call(face.client.close() if kind == "sync" else face.client.aclose())

    drive(kind, run)


@each_form
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_connects(
    kind: str, form: Any, root: Path, enclave: LocalEnclave, workload: Workload
) -> None:
    content = built(enclave.pcrs)
    if form is of_file:
        bundle = of_file(content)
    else:
        bundle = instance().of_statement(statement(("pcrs.json", content)))

    async def case(client: Any) -> None:
        await client.get("/1")
        assert client.client.attestation.matched.pcrs == enclave.pcrs

    with_client(kind, enclave, case, pcrs=pins(root, bundle, pcrs=content))
    assert workload.seen == [b"/1"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_refuses(
    kind: str, root: Path, enclave: LocalEnclave, workload: Workload
) -> None:
    """An image that is not the signed one; and signed by another identity, before a connection."""
    content = built(enclave.pcrs)

    async def another_image(client: Any) -> None:
        with pytest.raises(enclavia.PcrMismatch):
            await client.get("/secret")

    async def another_identity(client: Any) -> None:
        with pytest.raises(PinsUnavailable, match=r"SigstorePins.*SANs do not match") as caught:
            await client.get("/secret")
        assert isinstance(caught.value.__cause__, SigstoreError)
        assert not caught.value.retryable

    refused = pins(root, of_file(content), pcrs=content, identity="another")
    with_client(kind, enclave, another_identity, pcrs=refused)
    assert enclave.stats()["connections_total"] == 0
    with_client(kind, enclave, another_image, pcrs=pins(root, of_file()), patience=0)
    assert workload.seen == []


def test_a_channel(root: Path, enclave: LocalEnclave) -> None:
    content = built(enclave.pcrs)
    signed = pins(root, of_file(content), pcrs=content)
    with enclavia.Channel.connect(enclave.url, **keywords(enclave, pcrs=signed)) as channel:
        assert channel.attestation.matched.pcrs == enclave.pcrs
    signed = pins(root, of_file(content), pcrs=content, identity="another")
    with pytest.raises(PinsUnavailable, match="SANs do not match"):
        enclavia.Channel.connect(enclave.url, **keywords(enclave, pcrs=signed))


def test_a_deployment(
    root: Path, enclave: LocalEnclave, workload: Workload, tmp_path: Path
) -> None:
    """Both files are replaced. What does not verify is not used; what did, for as long as it is
    kept."""
    path, bundle = tmp_path / "pcrs.json", tmp_path / "bundle.json"

    def publish(pcrs: Pcrs) -> None:
        path.write_bytes(built(pcrs))
        bundle.write_bytes(raw(of_file(built(pcrs))))

    publish(enclave.pcrs)
    signed = pins(root, b"", pcrs=path, bundle=bundle)
    source = PinSource(signed, period=0)
    with Client(enclave.url, **keywords(enclave, pcrs=source), patience=0) as client:
        client.get("/1")
        path.write_bytes(built(OTHER))  # which nobody has signed
        client.get("/2")
        publish(OTHER)
        with pytest.raises(enclavia.PcrMismatch):
            client.get("/secret")
        publish(enclave.pcrs)
        client.get("/3")
    forgetful = PinSource(signed, period=0, keep=0)
    with Client(enclave.url, **keywords(enclave, pcrs=forgetful), patience=0) as client:
        client.get("/4")
        path.write_bytes(built(OTHER))
        with pytest.raises(PinsUnavailable, match="digest mismatch"):
            client.get("/secret")
    assert workload.seen == [b"/1", b"/2", b"/3", b"/4"]


def test_only_what_may_pass_is_tried_again(root: Path) -> None:
    """A file that is not there yet may come; a bundle that is refused stays so."""
    missing = pins(root, of_file(), pcrs="/nowhere/pcrs.json")
    for source, retryable in ((missing, True), (pins(root, b"{}"), False)):
        options: dict[str, Any] = {"pcrs": source, "patience": 0, "retries": 0}
        with pytest.raises(PinsUnavailable) as caught:
            Client.connect("wss://enclave.example", **options)
        assert caught.value.retryable is retryable


# -- in a policy ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, root: Path, enclave: LocalEnclave) -> Path:
    """What a team keeps beside its policy."""
    content = built(enclave.pcrs)
    (tmp_path / "pcrs.json").write_bytes(content)
    said = statement(("pcrs.json", content))
    (tmp_path / "bundle.json").write_bytes(raw(instance().of_statement(said)))
    measured = statement(("image.eif", b"image"), predicateType=MEASURED, predicate=OTHER.as_dict())
    (tmp_path / "measured.json").write_bytes(raw(instance().of_statement(measured)))
    (tmp_path / "trusted_root.json").write_bytes(root.read_bytes())
    assert enclave.root is not None
    (tmp_path / "root.pem").write_bytes(enclave.root)
    return tmp_path


POLICY = f"""
format = 1
endpoint = "URL"
root = "root.pem"

[[versions]]
name = "now"
pcrs = "pcrs.json"

[versions.sigstore]
bundle = "bundle.json"
identity = "{IDENTITY}"
issuer = "{ISSUER}"
repository = "{REPOSITORY}"
ref = "{REF}"
subject = "pcrs.json"
predicate_type = "{SLSA}"
trusted_root = "trusted_root.json"

[[versions]]
name = "next"
not_after = 2099-01-01T00:00:00Z

[versions.sigstore]
bundle = "measured.json"
identity = "{IDENTITY}"
issuer = "{ISSUER}"
predicate_type = "{MEASURED}"
trusted_root = "trusted_root.json"
"""


def test_a_policy(folder: Path, enclave: LocalEnclave, workload: Workload) -> None:
    path = folder / "policy.toml"
    path.write_text(POLICY.replace("URL", enclave.url))
    policy = Policy.load(path)
    assert [version.pcrs for version in policy.versions] == [enclave.pcrs, OTHER]
    with Client.from_policy(path) as client:
        client.get("/1")
        assert client.attestation is not None and client.attestation.matched is not None
        assert client.attestation.matched.name == "now"
    assert workload.seen == [b"/1"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (IDENTITY, "another", r"versions\[0\].sigstore: bundle: .*SANs do not match another"),
        (f'issuer = "{ISSUER}"', 'issuer = "x"', r"versions\[0\].sigstore: .*OIDCIssuer does not"),
        (f'"{REF}"', '"refs/heads/x"', r"versions\[0\].sigstore: .*Ref does not match"),
        (f'"{REPOSITORY}"', '"https://x"', r"versions\[0\].sigstore: .*URI does not match"),
        ('subject = "pcrs.json"', 'subject = "x"', r"versions\[0\].sigstore: .*named 'x'"),
        (MEASURED, "x", r"versions\[1\].sigstore: .*predicateType: expected x"),
        ('"pcrs.json"', '"root.pem"', r"versions\[0\].sigstore: .*named 'root.pem'"),
        ('"bundle.json"', '"root.pem"', r"versions\[0\].sigstore: bundle: expected a Sigstore"),
        ('"trusted_root.json"', '"root.pem"', r"versions\[0\].sigstore: trusted_root: expected"),
    ],
    ids=lambda value: value[:16],
)
def test_a_policy_that_is_refused(old: str, new: str, message: str, folder: Path) -> None:
    path = folder / "policy.toml"
    assert old in POLICY
    path.write_text(POLICY.replace(old, new))
    with pytest.raises(SigstoreError, match=rf"policy\.toml: {message}"):
        Policy.load(path)


def test_a_policy_whose_files_are_gone(folder: Path) -> None:
    path = folder / "policy.toml"
    path.write_text(POLICY)
    (folder / "bundle.json").unlink()
    with pytest.raises(FileNotFoundError, match="bundle: expected the path of a file"):
        Policy.load(path)


def test_a_policy_with_zeros(folder: Path) -> None:
    zeros = built(Pcrs(pcr0=bytes(48), pcr1=bytes(48), pcr2=bytes(48)))
    (folder / "pcrs.json").write_bytes(zeros)
    said = statement(("pcrs.json", zeros))
    (folder / "bundle.json").write_bytes(raw(instance().of_statement(said)))
    path = folder / "policy.toml"
    path.write_text(POLICY)
    with pytest.raises(ValueError, match=r"versions\[0\].pcrs: .*got zeros"):
        Policy.load(path)
