"""Attestation documents: every check of the verification broken alone, real documents, attacks."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import attest_ctypes as attest
import pytest
import repository
from attest_ctypes import AttestError, Form, LinkCache, Template
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID


def _load_pki() -> ModuleType:
    """By its path: importing the package would need the built extension."""
    path = repository.ROOT / "enclavia/testing/_pki.py"
    spec = importlib.util.spec_from_file_location("enclavia_testing_pki", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from enclavia.testing import _pki as pki
else:
    pki = _load_pki()

SHARED = repository.ROOT.parent / "shared" / "vectors"
NOW = datetime(2027, 3, 14, 15, 9, 26, tzinfo=UTC)
AT = int(NOW.timestamp())
NONCE = bytes(range(32))
PCRS = {0: b"\x10" * 48, 1: b"\x11" * 48, 2: b"\x12" * 48, 8: bytes(48)}
PINS = [PCRS[0], PCRS[1], PCRS[2]]
ROOT, CA1, CA2, CA3, LEAF = range(5)


# CBOR, written out by hand: cases here are what an encoder would refuse to write.


def head(major: int, n: int) -> bytes:
    if n < 24:
        return bytes([major << 5 | n])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if n < 1 << (8 * size):
            return bytes([major << 5 | info]) + n.to_bytes(size, "big")
    raise ValueError(n)


def uint(n: int) -> bytes:
    return head(0, n)


def negint(n: int) -> bytes:
    return head(1, -1 - n)


def bstr(value: bytes) -> bytes:
    return head(2, len(value)) + value


def tstr(value: str) -> bytes:
    return head(3, len(value.encode())) + value.encode()


def array(items: Sequence[bytes], indefinite: bool = False) -> bytes:
    if indefinite:
        return b"\x9f" + b"".join(items) + b"\xff"
    return head(4, len(items)) + b"".join(items)


def cmap(pairs: Sequence[tuple[bytes, bytes]], indefinite: bool = False) -> bytes:
    body = b"".join(k + v for k, v in pairs)
    return b"\xbf" + body + b"\xff" if indefinite else head(5, len(pairs)) + body


NULL = b"\xf6"
ES384_HEADER = cmap([(uint(1), negint(-35))])


def es384(key_der: bytes, message: bytes) -> bytes:
    key = serialization.load_der_private_key(key_der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


@dataclass
class Document:
    """A document in parts. encode() signs whatever the parts say."""

    fields: dict[str, bytes]
    key_der: bytes
    protected: bytes = ES384_HEADER
    unprotected: bytes = cmap([])
    extra_fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    indefinite: bool = False
    after_payload: bytes = b""
    prefix: bytes = b""
    suffix: bytes = b""
    payload_item: Callable[[bytes], bytes] = bstr
    signature: Callable[[bytes], bytes] = lambda s: s
    array: Callable[[Sequence[bytes]], bytes] = array

    def payload(self) -> bytes:
        pairs = [(tstr(k), v) for k, v in self.fields.items()]
        return cmap([*pairs, *self.extra_fields], self.indefinite) + self.after_payload

    def encode(self) -> bytes:
        payload = self.payload()
        signed = array([tstr("Signature1"), bstr(self.protected), bstr(b""), bstr(payload)])
        parts = [
            bstr(self.protected),
            self.unprotected,
            self.payload_item(payload),
            bstr(self.signature(es384(self.key_der, signed))),
        ]
        return self.prefix + self.array(parts) + self.suffix


def document_of(p: pki.EnclavePki, **fields: bytes) -> Document:
    values = {
        "module_id": tstr("i-0123456789abcdef0-enc0123456789abcdef"),
        "digest": tstr("SHA384"),
        "timestamp": uint(AT * 1000),
        "pcrs": pcr_map(PCRS),
        "certificate": bstr(p.leaf_der),
        "cabundle": array([bstr(c) for c in p.cabundle]),
        "public_key": NULL,
        "user_data": NULL,
        "nonce": bstr(NONCE),
    }
    return Document({**values, **fields}, p.leaf_key_der)


def pcr_map(pcrs: dict[int, bytes], indefinite: bool = False) -> bytes:
    return cmap([(uint(i), bstr(v)) for i, v in pcrs.items()], indefinite)


@cache
def good_pki() -> pki.EnclavePki:
    return pki.mint(NOW)


@cache
def other_pki() -> pki.EnclavePki:
    return pki.mint(NOW)


def good(**fields: bytes) -> Document:
    return document_of(good_pki(), **fields)


def without(name: str) -> Document:
    document = good()
    del document.fields[name]
    return document


def altered(**changes: Any) -> Document:
    return dataclasses.replace(good(), **changes)


def verify(document: bytes, p: pki.EnclavePki | None = None, **kw: Any) -> attest.Attestation:
    """As a channel would, unless told otherwise."""
    kw = {"pins": [PINS], "nonce": NONCE, "now": AT, "root": (p or good_pki()).root_der, **kw}
    return attest.verify(document, **kw)


def refuse(code: str, fragment: str, document: bytes, **kw: Any) -> AttestError:
    with pytest.raises(AttestError) as caught:
        verify(document, **kw)
    assert (caught.value.code, fragment in caught.value.message) == (code, True), caught.value
    assert not caught.value.retryable
    return caught.value


# The good case, in the forms it is seen in.


def test_a_timestamp_may_be_the_last_of_the_year_9999() -> None:
    assert verify(good(timestamp=uint(253402300799999)).encode()).timestamp_ms == 253402300799999


def test_a_good_document_is_parsed_and_verified() -> None:
    raw = good(public_key=bstr(b"k"), user_data=bstr(b"")).encode()
    a = verify(raw)
    assert a.form is Form.NITRO
    assert a.raw == raw
    assert a.module_id == "i-0123456789abcdef0-enc0123456789abcdef"
    assert a.timestamp_ms == AT * 1000
    assert a.pcrs == PCRS
    assert a.certificate == good_pki().leaf_der
    assert a.cabundle == good_pki().cabundle
    assert (a.public_key, a.user_data, a.nonce) == (b"k", b"", NONCE)
    assert a.verified_at == AT


def indefinite_array(items: Sequence[bytes]) -> bytes:
    return array(items, indefinite=True)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(altered(prefix=head(6, 18)), id="tagged"),
        pytest.param(altered(prefix=b"\xd8\x12"), id="tagged, longer encoding"),
        pytest.param(
            altered(extra_fields=[(tstr("x"), head(6, 1) + head(6, 18) + head(6, 99) + NULL)]),
            id="unknown key with tags",
        ),
        pytest.param(
            altered(extra_fields=[(tstr(k), uint(1)) for k in ("", "nonc", "nonce2", "Nonce")]),
            id="unknown keys close to known ones",
        ),
        pytest.param(
            altered(protected=cmap([(uint(1), negint(-35)), (negint(-2), uint(0))])),
            id="header label -2 is not label 1",
        ),
        pytest.param(altered(indefinite=True), id="indefinite payload map"),
        pytest.param(altered(array=indefinite_array), id="indefinite COSE array"),
        pytest.param(good(pcrs=pcr_map(PCRS, indefinite=True)), id="indefinite pcrs"),
        pytest.param(
            good(cabundle=indefinite_array([bstr(c) for c in good_pki().cabundle])),
            id="indefinite cabundle",
        ),
        pytest.param(
            altered(extra_fields=[(tstr("later"), cmap([(uint(1), array([NULL, tstr("x")]))]))]),
            id="unknown key",
        ),
        pytest.param(
            altered(extra_fields=[(tstr("later"), b"\xbf\x01\x9f\x02\xff\xff")]),
            id="unknown key with indefinite content",
        ),
        pytest.param(altered(unprotected=cmap([(uint(4), bstr(b"kid"))])), id="unprotected kid"),
        pytest.param(
            altered(protected=cmap([(uint(4), bstr(b"kid")), (uint(1), negint(-35))])),
            id="protected kid",
        ),
        pytest.param(
            altered(protected=b"\xbf" + uint(1) + negint(-35) + b"\xff"), id="indefinite header"
        ),
        pytest.param(without("public_key"), id="optional field left out"),
        pytest.param(good(user_data=bstr(b"u" * 1024)), id="largest user_data"),
        pytest.param(good(module_id=tstr("é€😀\u07ff\ud7ff\ue000")), id="UTF-8"),
        pytest.param(
            good(module_id=tstr("\x7f\x80\u0800\U00010000\U0010ffff")), id="UTF-8 at its limits"
        ),
    ],
)
def test_forms_that_verify(document: Document) -> None:
    assert verify(document.encode()).form is Form.NITRO


def test_pcrs_of_every_size_and_index() -> None:
    pcrs = {i: bytes([i + 1]) * (32, 48, 64)[i % 3] for i in range(32)}
    a = verify(good(pcrs=pcr_map(pcrs)).encode(), pins=None)
    assert a.pcrs == pcrs
    for size in (32, 48, 64):
        same = {i: bytes([i + 1]) * size for i in range(3)}
        verify(good(pcrs=pcr_map(same)).encode(), pins=[list(same.values())])


def test_pem_root_and_the_root_left_out_of_the_bundle() -> None:
    p = good_pki()
    verify(good().encode(), root=p.root_pem)
    verify(good().encode(), root=b"A comment\n" + p.root_pem)
    verify(good(cabundle=array([bstr(c) for c in p.cabundle[1:]])).encode())


@pytest.mark.parametrize("intermediates", [1, 2, 3])
def test_chains_of_several_lengths(intermediates: int) -> None:
    p = pki.mint(NOW, intermediates=intermediates)
    verify(document_of(p).encode(), p)


def test_a_leaf_directly_below_the_root() -> None:
    chain = pki.specs(NOW)
    p = pki.mint(chain=[dataclasses.replace(chain[ROOT], path_length=0), chain[LEAF]])
    verify(document_of(p).encode(), p)


# 1. Structure and limits.

SIX_KINDS = [uint(5), negint(-5), bstr(b"x"), tstr("x"), array([]), b"\xf5"]

STRUCTURE: list[tuple[str, Document, str]] = [
    ("array of 3", altered(array=lambda parts: array(parts[:3])), "expected 4 entries, got 3"),
    (
        "array of 5",
        altered(array=lambda parts: array([*parts, NULL])),
        "expected 4 entries, got 5",
    ),
    (
        "indefinite of 5",
        altered(array=lambda parts: array([*parts, NULL], indefinite=True)),
        "expected 4 entries, got more",
    ),
    (
        "indefinite of 3",
        altered(array=lambda parts: array(parts[:3], indefinite=True)),
        "COSE signature: expected a byte string, got a break",
    ),
    (
        "no protected header",
        altered(array=lambda parts: array([NULL, *parts[1:]])),
        "COSE protected header: expected a byte string, got null",
    ),
    ("no CBOR", altered(prefix=b"\x1c"), "got 0x1c at offset 0, which begins no item"),
    (
        "no CBOR tagged",
        altered(prefix=head(6, 18) + b"\x1c"),
        "got 0x1c at offset 1, which begins no item",
    ),
    (
        "header nested so deep that its rest looks like a parameter",
        altered(unprotected=head(5, 2) + uint(4) + b"\x81" * 17 + uint(5) + uint(6)),
        "at most 16 nested arrays and maps, got more",
    ),
    (
        "field nested so deep that its rest looks like a field",
        altered(
            extra_fields=[(tstr("x"), b"\x81" * 17), (tstr("y"), uint(6))],
        ),
        "at most 16 nested arrays and maps, got more",
    ),
    ("a map", altered(array=lambda parts: cmap([(uint(0), uint(0))])), "expected an array"),
    ("tag 98", altered(prefix=head(6, 98)), "expected tag 18 or none, got tag 98"),
    ("tagged twice", altered(prefix=head(6, 18) * 2), "expected an array"),
    ("trailing byte", altered(suffix=b"\0"), "the document: expected its end, got 1 more"),
    ("payload trailing", altered(after_payload=b"\0"), "the payload: expected its end, got 1 more"),
    ("detached payload", altered(payload_item=lambda p: NULL), "COSE payload: expected a byte"),
    (
        "chunked payload",
        altered(payload_item=lambda p: b"\x5f" + bstr(p[:9]) + bstr(p[9:]) + b"\xff"),
        "of indefinite length, which is not accepted here",
    ),
    ("short signature", altered(signature=lambda s: s[:95]), "expected 96 bytes, got 95"),
    ("long signature", altered(signature=lambda s: s + b"\0"), "expected 96 bytes, got 97"),
    ("empty header", altered(protected=b""), "expected COSE protected header, got the end"),
    ("header no map", altered(protected=array([])), "protected header: expected a map"),
    ("no alg", altered(protected=cmap([])), "expected alg -35 (ES384), got none"),
    ("alg ES256", altered(protected=cmap([(uint(1), negint(-7))])), "COSE alg: expected -35"),
    ("alg +34", altered(protected=cmap([(uint(1), uint(34))])), "COSE alg: expected a negative"),
    ("alg text", altered(protected=cmap([(uint(1), tstr("ES384"))])), "COSE alg: expected"),
    (
        "alg only unprotected",
        altered(protected=cmap([]), unprotected=ES384_HEADER),
        "expected alg -35 (ES384), got none",
    ),
    (
        "alg twice",
        altered(protected=cmap([(uint(1), negint(-35))] * 2)),
        "the same key twice",
    ),
    (
        "alg twice, longer encoding",
        altered(protected=cmap([(uint(1), negint(-35)), (b"\x18\x01", negint(-35))])),
        "the same key twice",
    ),
    (
        "alg in both headers",
        altered(unprotected=cmap([(uint(1), negint(-7))])),
        "the same key twice",
    ),
    (
        "crit",
        altered(protected=cmap([(uint(1), negint(-35)), (uint(2), array([uint(99)]))])),
        "'crit'",
    ),
    ("crit unprotected", altered(unprotected=cmap([(uint(2), array([uint(9)]))])), "'crit'"),
    (
        "header trailing",
        altered(protected=ES384_HEADER + b"\0"),
        "header: expected its end, got 1 more",
    ),
    ("unprotected no map", altered(unprotected=NULL), "unprotected header: expected a map"),
    ("header key bytes", altered(unprotected=cmap([(bstr(b"k"), NULL)])), "a map key: expected"),
    (
        "payload no map",
        altered(payload_item=lambda p: bstr(array([]))),
        "the document: expected a map, got an array",
    ),
    (
        "payload truncated",
        altered(payload_item=lambda p: bstr(p[:-1])),
        "does not end within",
    ),
    (
        "payload cut between items",
        altered(payload_item=lambda p: bstr(cmap([(tstr("pcrs"), b"")]))),
        "got the end at offset",
    ),
    (
        "payload cut where a key should be",
        altered(payload_item=lambda p: bstr(b"\xbf")),
        "expected a map key, got the end at offset 1",
    ),
    (
        "huge map",
        altered(payload_item=lambda p: bstr(b"\xbb" + b"\xff" * 8)),
        "a declared length of 18446744073709551615",
    ),
    ("reserved byte", altered(extra_fields=[(tstr("x"), b"\x1c")]), "begins no item"),
    ("key twice", altered(extra_fields=[(tstr("nonce"), NULL)]), "the same key twice"),
    (
        "unknown key twice",
        altered(extra_fields=[(tstr("x"), NULL), (tstr("x"), NULL)]),
        "the same key twice",
    ),
    (
        "too many keys",
        altered(extra_fields=[(uint(i), NULL) for i in range(56)]),
        "at most 64 keys, got more",
    ),
    (
        "nested too deep",
        altered(extra_fields=[(tstr("x"), b"\x81" * 17 + NULL)]),
        "at most 16 nested arrays and maps, got more",
    ),
    (
        "overlong skipped array",
        altered(extra_fields=[(tstr("x"), b"\x9b" + b"\xff" * 8)]),
        "a declared length of 18446744073709551615",
    ),
    (
        "skipped map of 2^63",
        altered(extra_fields=[(tstr("x"), b"\xbb\x80" + bytes(7))]),
        "a declared length of 9223372036854775808",
    ),
    ("stray break", altered(extra_fields=[(tstr("x"), b"\x81\xff")]), "got a break"),
    (
        "odd map",
        altered(extra_fields=[(tstr("x"), b"\xbf\x01\xff")]),
        "expected a key's value, got a break",
    ),
    (
        "chunked text in a skipped value",
        altered(extra_fields=[(tstr("x"), b"\x7f\x61a\xff")]),
        "of indefinite length, which is not accepted here",
    ),
    *[
        (f"no {name}", without(name), f"the document: expected a field {name}, got none")
        for name in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
    ],
    *[
        (f"{name} of kind {kind[0]:02x}", good(**{name: kind}), f"{name}: expected")
        for name, fits in (
            ("module_id", 3),
            ("digest", 3),
            ("timestamp", 0),
            ("pcrs", 5),
            ("certificate", 2),
            ("cabundle", 4),
            ("public_key", 2),
            ("user_data", 2),
            ("nonce", 2),
        )
        for kind in SIX_KINDS
        if kind[0] >> 5 != fits
    ],
    ("module_id empty", good(module_id=tstr("")), "module_id: expected a text, got an empty"),
    ("digest SHA256", good(digest=tstr("SHA256")), "digest: expected SHA384"),
    ("digest longer", good(digest=tstr("SHA3842")), "digest: expected SHA384"),
    ("timestamp 0", good(timestamp=uint(0)), "timestamp: expected milliseconds above 0"),
    (
        "timestamp in the year 10000",
        good(timestamp=uint(253402300800000)),
        "timestamp: expected milliseconds up to the end of the year 9999, got 253402300800000",
    ),
    ("no PCRs", good(pcrs=cmap([])), "pcrs: expected 1 to 32 entries, got none"),
    ("PCR32", good(pcrs=pcr_map({**PCRS, 32: bytes(48)})), "expected an index from 0 to 31"),
    ("PCR text", good(pcrs=cmap([(tstr("0"), bstr(bytes(48)))])), "expected an index from 0"),
    ("PCR -1", good(pcrs=cmap([(negint(-1), bstr(bytes(48)))])), "expected an index from 0"),
    *[
        (f"PCR of {n}", good(pcrs=pcr_map({4: bytes(n)})), f"32, 48 or 64 bytes, got {n}")
        for n in (0, 31, 47, 49, 65, 256 + 48)
    ],
    ("PCR no bytes", good(pcrs=cmap([(uint(0), NULL)])), "a PCR: expected a byte string"),
    (
        "PCR twice",
        good(pcrs=cmap([(uint(0), bstr(PCRS[0]))] * 2)),
        "the same key twice",
    ),
    ("certificate empty", good(certificate=bstr(b"")), "certificate: expected 1 to 1024"),
    ("certificate large", good(certificate=bstr(bytes(1025))), "expected 1 to 1024 bytes"),
    ("cabundle empty", good(cabundle=array([])), "cabundle: expected at least one"),
    ("cabundle null", good(cabundle=NULL), "cabundle: expected an array, got null"),
    ("cabundle entry empty", good(cabundle=array([bstr(b"")])), "of the cabundle: expected 1"),
    (
        "cabundle entry large",
        good(cabundle=array([bstr(bytes(1025))])),
        "of the cabundle: expected 1 to 1024 bytes, got 1025",
    ),
    (
        "cabundle of 17",
        good(cabundle=array([bstr(b"x")] * 17)),
        "cabundle: expected at most 16",
    ),
    ("public_key undefined", good(public_key=b"\xf7"), "public_key: expected a byte string"),
    ("public_key empty", good(public_key=bstr(b"")), "public_key: expected 1 to 1024"),
    *[
        (f"{name} large", good(**{name: bstr(bytes(1025))}), f"{name}: expected")
        for name in ("public_key", "user_data", "nonce")
    ],
]


@pytest.mark.parametrize(
    ("document", "fragment"), [pytest.param(d, f, id=name) for name, d, f in STRUCTURE]
)
def test_structure(document: Document, fragment: str) -> None:
    refuse("document error", fragment, document.encode())


@pytest.mark.parametrize(
    "text",
    [
        *(b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf"),
        *(
            b"\xf4\x90\x80\x80",
            b"\xf5\x80\x80\x80",
            b"\xe2\x82",
            b"\xe2\x28\xa1",
            b"\xff",
            b"a\xc3",
            b"\xed\xbf\xbf",
            b"\xa5\x80",
            b"\xfc\x80\x80\x80",
        ),
    ],
)
def test_text_must_be_utf8(text: bytes) -> None:
    bad = head(3, len(text)) + text
    refuse("document error", "expected UTF-8, got other bytes", good(module_id=bad).encode())


@pytest.mark.parametrize("debug", [False, True])
def test_a_timestamp_ends_with_the_year_9999(debug: bool) -> None:
    last = 253_402_300_799_999
    kw = {"debug": debug}
    assert verify(good(timestamp=uint(last)).encode(), **kw).timestamp_ms == last
    for beyond in (last + 1, 2**64 - 1):
        refuse("document error", "the year 9999", good(timestamp=uint(beyond)).encode(), **kw)


def test_a_character_does_not_end_in_the_next_item() -> None:
    across = altered(extra_fields=[(tstr("x"), b"\x82\x61\xc3\x80")])
    refuse("document error", "expected UTF-8, got other bytes", across.encode())


def test_size_limits() -> None:
    refuse("document error", "the document is empty", b"")
    too_large = good().encode()
    too_large += bytes(attest.DOCUMENT_MAX_BYTES + 1 - len(too_large))
    refuse("document error", "at most 32768 bytes, got 32769", too_large)
    filler = attest.DOCUMENT_MAX_BYTES - len(good().encode())
    largest = altered(extra_fields=[(tstr("x"), bstr(bytes(filler - 5)))]).encode()
    assert len(largest) == attest.DOCUMENT_MAX_BYTES
    verify(largest)


def test_every_cut_is_refused() -> None:
    raw = good().encode()
    for n in range(1, len(raw)):
        with pytest.raises(AttestError) as caught:
            verify(raw[:n])
        assert caught.value.code == "document error"


def test_sixteen_certificates_are_looked_at() -> None:
    bundle = [*good_pki().cabundle, *[good_pki().cabundle[3]] * 12]
    document = good(cabundle=array([bstr(c) for c in bundle]))
    refuse("certificate error", "of 17", document.encode())


# 2. The chain.


def chain_with(index: int, **changes: Any) -> pki.EnclavePki:
    chain = pki.specs(NOW)
    chain[index] = dataclasses.replace(chain[index], **changes)
    return pki.mint(chain=chain)


def refuse_chain(p: pki.EnclavePki, fragment: str, **kw: Any) -> AttestError:
    return refuse("certificate error", fragment, document_of(p).encode(), **{"p": p, **kw})


@pytest.mark.parametrize("index", range(5))
def test_each_certificate_must_be_valid_now(index: int) -> None:
    late, early = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)
    label = f"certificate {index + 1} of 5 (CN="
    first = {"not_before": NOW - timedelta(minutes=1)}
    error = refuse_chain(chain_with(index, not_after=late, **first), label)
    assert "has expired: it is valid 2027-03-14T15:08:26Z to 2027-03-14T15:09:25Z" in error.message
    assert "but the time is 2027-03-14T15:09:26Z" in error.message
    assert "clock" in error.message
    p = chain_with(index, not_before=early)
    with pytest.raises(AttestError, match=re.escape(label)) as caught:
        verify(document_of(p).encode(), p)
    assert caught.value.code == "certificate error"
    assert "is not yet valid: it is valid 2027-03-14T15:09:27Z to" in caught.value.message


def test_validity_includes_its_last_and_first_second() -> None:
    for index in range(5):
        p = chain_with(index, not_before=NOW, not_after=NOW)
        verify(document_of(p).encode(), p)


LEEWAY = 60


@pytest.mark.parametrize("index", range(5))
def test_clock_leeway_is_for_the_beginning_of_the_leaf_alone(index: int) -> None:
    def in_seconds(n: int) -> datetime:
        return NOW + timedelta(seconds=n)

    for seconds in (1, LEEWAY):
        early = chain_with(index, not_before=in_seconds(seconds))
        if index == LEAF:
            for leeway in (seconds, 300):
                a = verify(document_of(early).encode(), early, clock_leeway=leeway)
                assert a.verified_at == AT
        else:
            refuse_chain(early, "is not yet valid", clock_leeway=300)
    late = chain_with(index, not_before=in_seconds(-9), not_after=in_seconds(-1))
    refuse_chain(late, "has expired", clock_leeway=300)


@pytest.mark.parametrize(
    ("seconds", "retryable"), [(LEEWAY + 1, True), (300, True), (301, False), (7200, False)]
)
def test_a_leaf_that_begins_soon_is_worth_another_try(seconds: int, retryable: bool) -> None:
    p = chain_with(LEAF, not_before=NOW + timedelta(seconds=seconds))
    for leeway in (0, LEEWAY):
        with pytest.raises(AttestError, match="is not yet valid") as caught:
            verify(document_of(p).encode(), p, clock_leeway=leeway)
        assert (caught.value.code, caught.value.retryable) == ("certificate error", retryable)


def test_a_ca_that_begins_soon_is_not() -> None:
    for index in range(LEAF):
        refuse_chain(chain_with(index, not_before=NOW + timedelta(seconds=1)), "not yet valid")


@pytest.mark.parametrize("seconds", [-1, 301, -(2**63), 2**63 - 1])
def test_clock_leeway_is_bounded(seconds: int) -> None:
    bad_policy("clock leeway: expected 0 to 300 seconds", [PINS], clock_leeway=seconds)


@pytest.mark.parametrize("now", [-(2**63), -1, 0, 2**40, 2**63 - 1])
def test_absurd_times_are_refused_not_overrun(now: int) -> None:
    for leeway in (0, 300):
        refuse(
            "certificate error", "but the time is", good().encode(), now=now, clock_leeway=leeway
        )


def test_foreign_root() -> None:
    refuse(
        "certificate error",
        "certificate 2 of 6",
        good().encode(),
        root=other_pki().root_der,
    )


def test_the_bundles_own_root_proves_nothing() -> None:
    mine, theirs = good_pki(), other_pki()
    mixed = dataclasses.replace(theirs, cabundle=[mine.root_der, *theirs.cabundle[1:]])
    refuse_chain(mixed, "certificate 2 of 5", root=mine.root_der)
    # Nor does a pinned root's name: other_pki's root has the same one.
    unrelated = dataclasses.replace(theirs, cabundle=theirs.cabundle[1:])
    refuse_chain(unrelated, "certificate 2 of 5", root=mine.root_der)


def test_another_root_before_the_right_certificates() -> None:
    p = good_pki()
    theirs_first = dataclasses.replace(p, cabundle=[other_pki().root_der, *p.cabundle[1:]])
    refuse_chain(theirs_first, "certificate 2 of 6")


def test_what_is_almost_the_pinned_root_is_not_it() -> None:
    p = good_pki()
    last = p.root_der[-1]
    for almost in (p.root_der[:-1], p.root_der + b"\0", p.root_der[:-1] + bytes([last ^ 1])):
        bundle = [almost, *p.cabundle[1:]]
        refuse_chain(dataclasses.replace(p, cabundle=bundle), "certificate 2 of 6")


def test_same_names_and_identifiers_still_need_the_signature() -> None:
    names_only = [dataclasses.replace(spec, key_identifiers=False) for spec in pki.specs(NOW)]
    mine, theirs = pki.mint(chain=names_only), pki.mint(chain=names_only)
    mixed = dataclasses.replace(theirs, cabundle=[mine.root_der, *theirs.cabundle[1:]])
    refuse_chain(mixed, "its signature does not verify", root=mine.root_der)


def test_aws_root_is_the_default() -> None:
    refuse("certificate error", "(CN=aws.nitro-enclaves)", good().encode(), root=None)


@cache
def unlimited_pki() -> pki.EnclavePki:
    """No pathLen, so that only the order of the bundle can be wrong."""
    return pki.mint(chain=[dataclasses.replace(s, path_length=None) for s in pki.specs(NOW)])


@pytest.mark.parametrize(
    "bundle",
    [
        pytest.param([0, 2, 1, 3], id="wrong order"),
        pytest.param([3, 2, 1, 0], id="leaf end first"),
        pytest.param([0, 1, 3], id="missing in the middle"),
        pytest.param([0, 1, 2], id="missing above the leaf"),
        pytest.param([0, 2, 3], id="missing below the root"),
        pytest.param([0, 1, 2, 3, 3], id="one twice"),
        pytest.param([0], id="root alone"),
        pytest.param([3], id="issuer alone"),
    ],
)
def test_the_bundle_must_be_the_path_in_order(bundle: list[int]) -> None:
    p = unlimited_pki()
    refuse_chain(
        dataclasses.replace(p, cabundle=[p.cabundle[i] for i in bundle]), "is not issued by"
    )


def test_a_root_repeated_in_the_bundle_issues_itself() -> None:
    p = unlimited_pki()
    twice = dataclasses.replace(p, cabundle=[p.root_der, *p.cabundle])
    verify(document_of(twice).encode(), p)


@pytest.mark.parametrize(("index", "allows"), [(ROOT, 2), (CA1, 1), (CA2, 0)])
def test_path_length(index: int, allows: int) -> None:
    p = chain_with(index, path_length=allows)
    refuse_chain(p, f"its pathLen allows {allows} CAs below it, got {allows + 1}")
    p = chain_with(index, path_length=allows + 1)
    verify(document_of(p).encode(), p)


@pytest.mark.parametrize("index", [CA1, CA2, CA3])
def test_cas_must_be_cas(index: int) -> None:
    label = f"certificate {index + 1} of 5"
    not_ca = chain_with(index, ca=False, path_length=None)
    assert label in refuse_chain(not_ca, "basicConstraints do not make it one").message
    unsaid = chain_with(index, ca=None)
    assert label in refuse_chain(unsaid, "basicConstraints do not make it one").message
    no_sign = chain_with(index, key_usage=frozenset({"digital_signature", "crl_sign"}))
    assert label in refuse_chain(no_sign, "expected keyUsage keyCertSign").message
    no_usage = chain_with(index, key_usage=frozenset())
    assert label in refuse_chain(no_usage, "expected keyUsage keyCertSign").message


def test_the_leaf_must_be_a_leaf() -> None:
    label = "certificate 5 of 5"
    ca = chain_with(LEAF, ca=True)
    assert label in refuse_chain(ca, "expected a leaf, got a CA").message
    no_sign = chain_with(LEAF, key_usage=frozenset({"content_commitment"}))
    assert label in refuse_chain(no_sign, "expected keyUsage digitalSignature").message
    no_usage = chain_with(LEAF, key_usage=frozenset())
    assert label in refuse_chain(no_usage, "expected keyUsage digitalSignature").message
    unsaid = chain_with(LEAF, ca=None)
    verify(document_of(unsaid).encode(), unsaid)


@pytest.mark.parametrize("index", [CA1, CA2, CA3, LEAF])
def test_only_p384_keys(index: int) -> None:
    label = f"certificate {index + 1} of 5"
    signer = good_pki().leaf_key_der
    for key in (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
    ):
        p = dataclasses.replace(chain_with(index, key=key), leaf_key_der=signer)
        assert label in refuse_chain(p, "expected an ECDSA P-384 key").message


@pytest.mark.parametrize("index", [CA1, CA2, CA3, LEAF])
def test_only_sha384_signatures(index: int) -> None:
    for digest in (hashes.SHA256(), hashes.SHA512()):
        error = refuse_chain(
            chain_with(index, signature_hash=digest),
            "expected the signature algorithm ecdsa-with-SHA384, got ecdsa-with-SHA",
        )
        assert f"certificate {index + 1} of 5" in error.message


@pytest.mark.parametrize("index", [CA1, CA2, CA3, LEAF])
def test_unknown_critical_extensions(index: int) -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\5\0")
    error = refuse_chain(
        chain_with(index, extensions=((unknown, True),)), "a critical extension that is not"
    )
    assert f"certificate {index + 1} of 5" in error.message
    harmless = chain_with(index, extensions=((unknown, False),))
    verify(document_of(harmless).encode(), harmless)


def test_critical_extensions_that_openssl_knows_but_this_chain_does_not_judge() -> None:
    names = x509.NameConstraints(None, [x509.DNSName("nitro-enclaves")])
    usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1")])
    refuse_chain(chain_with(CA2, extensions=((names, True),)), "a critical extension that is not")
    refuse_chain(chain_with(LEAF, extensions=((usage, True),)), "a critical extension that is not")


def test_malformed_extensions() -> None:
    constraints = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.19"), b"\x01\x02")
    p = chain_with(LEAF, ca=None, extensions=((constraints, True),))
    refuse_chain(p, "certificate 5 of 5 (CN=i-0123456789abcdef0")
    refuse_chain(p, "has malformed extensions")


@pytest.mark.parametrize("index", [CA1, CA2, CA3, LEAF])
def test_issuer_names_must_match(index: int) -> None:
    stranger = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stranger")])
    error = refuse_chain(chain_with(index, issuer_name=stranger), "is not issued by")
    assert f"certificate {index + 1} of 5" in error.message
    assert "issuer mismatch" in error.message


@pytest.mark.parametrize("index", [CA1, CA2, CA3, LEAF])
def test_authority_key_identifiers_must_match(index: int) -> None:
    wrong = x509.AuthorityKeyIdentifier(b"\1" * 20, None, None)
    p = chain_with(index, key_identifiers=False, extensions=((wrong, False),))
    assert "key identifier mismatch" in refuse_chain(p, "is not issued by").message


@pytest.mark.parametrize("index", [CA1, CA2, CA3, LEAF])
def test_each_link_needs_its_signature(index: int) -> None:
    p = good_pki()
    chain = [*p.cabundle, p.leaf_der]
    chain[index] = chain[index][:-1] + bytes([chain[index][-1] ^ 1])
    broken = dataclasses.replace(p, cabundle=chain[:-1], leaf_der=chain[-1])
    error = refuse_chain(broken, "its signature does not verify with the key of")
    assert error.message.startswith(f"certificate {index + 1} of 5")


def test_certificates_too_large_for_a_document() -> None:
    filler = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.2"), bytes(600))
    for index in (CA3, LEAF):
        p = chain_with(index, extensions=((filler, False),))
        refuse("document error", "expected 1 to 1024 bytes", document_of(p).encode(), p=p)


@pytest.mark.parametrize("index", [CA1, LEAF])
def test_certificates_are_der_and_nothing_more(index: int) -> None:
    p = good_pki()
    original = [*p.cabundle, p.leaf_der][index]
    for other, fragment in (
        (original + b"\0", "has 1 bytes after its end"),
        (original[:-1], "is not an X.509 certificate"),
        (b"\x30\x00", "is not an X.509 certificate"),
        (bytes(64), "is not an X.509 certificate"),
    ):
        chain = [*p.cabundle, p.leaf_der]
        chain[index] = other
        broken = dataclasses.replace(p, cabundle=chain[:-1], leaf_der=chain[-1])
        refuse_chain(broken, fragment)


# Certificates that no builder makes: the signed part edited, and signed again.


def der(tag: int, content: bytes) -> bytes:
    n = len(content)
    size = (
        bytes([n]) if n < 128 else bytes([0x81, n]) if n < 256 else b"\x82" + n.to_bytes(2, "big")
    )
    return bytes([tag]) + size + content


def der_int(n: int) -> bytes:
    return der(2, n.to_bytes(n.bit_length() // 8 + 1, "big"))


ECDSA_SHA384 = bytes.fromhex("300a06082a8648ce3d040303")


def edited_leaf(edit: Callable[[bytes], bytes], outer: bytes = ECDSA_SHA384) -> pki.EnclavePki:
    """A chain whose leaf's TBSCertificate went through edit before its issuer signed it."""
    issuer_key = ec.generate_private_key(ec.SECP384R1())
    p = chain_with(CA3, key=issuer_key)
    tbs = x509.load_der_x509_certificate(p.leaf_der).tbs_certificate_bytes
    assert tbs[:2] == b"\x30\x82"
    content = edit(tbs[4:])
    assert content != tbs[4:] or outer != ECDSA_SHA384
    tbs = der(0x30, content)
    signature = issuer_key.sign(tbs, ec.ECDSA(hashes.SHA384()))
    leaf = der(0x30, tbs + outer + der(3, b"\0" + signature))
    return dataclasses.replace(p, leaf_der=leaf)


def leaf_point(tbs: bytes) -> bytes:
    at = tbs.index(bytes.fromhex("03620004"))
    return tbs[at + 3 : at + 100]


def spki_of(tbs: bytes) -> bytes:
    at = tbs.index(bytes.fromhex("3076301006072a8648ce3d0201"))
    return tbs[at : at + 0x78]


def test_an_edited_and_resigned_leaf_can_be_good() -> None:
    # The tool below works: what the next tests refuse, they refuse for the edit.
    p = edited_leaf(lambda tbs: tbs.replace(b"i-0123456789abcdef0", b"i-0123456789abcdef1"))
    verify(document_of(p).encode(), p)


def test_x509_version_3_only() -> None:
    def version_2(tbs: bytes) -> bytes:
        return tbs.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), 1)

    refuse_chain(edited_leaf(version_2), "expected X.509 version 3")


def test_points_off_the_curve() -> None:
    def off(tbs: bytes) -> bytes:
        point = leaf_point(tbs)
        return tbs.replace(point, point[:-1] + bytes([point[-1] ^ 1]))

    refuse_chain(edited_leaf(off), "its public key is not a point of P-384")


def test_compressed_points() -> None:
    def compress(tbs: bytes) -> bytes:
        point = leaf_point(tbs)
        short = bytes([2 + (point[-1] & 1)]) + point[1:49]
        algorithm = bytes.fromhex("301006072a8648ce3d020106052b81040022")
        return tbs.replace(spki_of(tbs), der(0x30, algorithm + der(3, b"\0" + short)))

    refuse_chain(edited_leaf(compress), "expected an uncompressed P-384 point of 97 bytes, got 49")


def test_points_with_a_byte_more() -> None:
    def lengthen(tbs: bytes) -> bytes:
        algorithm = bytes.fromhex("301006072a8648ce3d020106052b81040022")
        return tbs.replace(
            spki_of(tbs), der(0x30, algorithm + der(3, b"\0" + leaf_point(tbs) + b"\0"))
        )

    refuse_chain(edited_leaf(lengthen), "expected an uncompressed P-384 point of 97 bytes, got 98")


def test_hybrid_points() -> None:
    def hybrid(tbs: bytes) -> bytes:
        point = leaf_point(tbs)
        return tbs.replace(point, bytes([6 + (point[-1] & 1)]) + point[1:])

    refuse_chain(edited_leaf(hybrid), "expected an uncompressed P-384 point")


def test_curves_must_be_named_not_spelled_out() -> None:
    """Explicit parameters let the sender choose the generator (CVE-2020-0601)."""
    p = 2**384 - 2**128 - 2**96 + 2**32 - 1
    b = int(
        "b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875a"
        "c656398d8a2ed19d2a85c8edd3ec2aef",
        16,
    )
    n = int(
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf"
        "581a0db248b0a77aecec196accc52973",
        16,
    )
    g = bytes.fromhex(
        "04aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e38"
        "72760ab73617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a"
        "431d7c90ea0e5f"
    )
    field_id = der(0x30, bytes.fromhex("06072a8648ce3d0101") + der_int(p))
    curve = der(0x30, der(4, (p - 3).to_bytes(48, "big")) + der(4, b.to_bytes(48, "big")))
    parameters = der(0x30, der_int(1) + field_id + curve + der(4, g) + der_int(n) + der_int(1))
    algorithm = der(0x30, bytes.fromhex("06072a8648ce3d0201") + parameters)

    def spell_out(tbs: bytes) -> bytes:
        key = der(0x30, algorithm + der(3, b"\0" + leaf_point(tbs)))
        return tbs.replace(spki_of(tbs), key)

    spelled = edited_leaf(spell_out)
    x509_key = x509.load_der_x509_certificate(spelled.leaf_der).public_key()
    assert isinstance(x509_key, ec.EllipticCurvePublicKey)  # the encoding itself is sound
    refuse_chain(spelled, "expected an ECDSA P-384 key, got another kind")


def test_inner_and_outer_signature_algorithm_must_agree() -> None:
    sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    p = edited_leaf(lambda tbs: tbs.replace(ECDSA_SHA384, sha256, 1))
    refuse_chain(p, "its signature does not verify")
    p = edited_leaf(lambda tbs: tbs, outer=sha256)
    refuse_chain(p, "expected the signature algorithm ecdsa-with-SHA384")


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (0x17, b"2703141508Z"),
        (0x17, b"270314150826+0000"),
        (0x17, b"2703141508+0000"),
        (0x18, b"202703141508Z"),
        (0x18, b"20270314150826.5Z"),
        (0x18, b"20270314150826+0000"),
        (0x18, b"20270314150826"),
        (0x17, b"271314150826Z"),
        (0x17, b"27031415082/Z"),
        (0x17, b"270314150826X"),
        (0x17, b"2703141508+00"),
        (0x18, b"2027031415.08Z"),
        (0x18, b"202703141508.5Z"),
        (0x18, b"202703141508+0Z"),
        (0x18, b"2027031415+0000"),
    ],
)
def test_times_in_other_forms_than_rfc_5280_has(tag: int, text: bytes) -> None:
    def retime(tbs: bytes) -> bytes:
        start = tbs.index(b"\x30\x1e\x17\x0d")
        end = tbs[start + 17 : start + 32]
        validity = der(0x30, der(tag, text) + end)
        return tbs[:start] + validity + tbs[start + 32 :]

    refuse_chain(edited_leaf(retime), "has an unreadable validity time")


def test_leeway_does_not_make_one_valid_that_ends_before_it_begins() -> None:
    def retime(begin: bytes, end: bytes) -> Callable[[bytes], bytes]:
        def edit(tbs: bytes) -> bytes:
            at = tbs.index(b"\x30\x1e\x17\x0d")
            return tbs[:at] + der(0x30, der(0x17, begin) + der(0x17, end)) + tbs[at + 32 :]

        return edit

    p = edited_leaf(retime(b"270314150936Z", b"270314150946Z"))
    verify(document_of(p).encode(), p, clock_leeway=LEEWAY)
    p = edited_leaf(retime(b"270314150946Z", b"270314150936Z"))
    refuse_chain(p, "has expired", clock_leeway=LEEWAY)
    # Nor is one worth another try that has begun and ended.
    p = edited_leaf(retime(b"270314150926Z", b"270314150925Z"))
    refuse_chain(p, "has expired")


def test_names_in_messages_are_printable() -> None:
    p = chain_with(LEAF, common_name="i\x1b[31m\u202e\n\x7f" + "x" * 40, ca=True)
    message = refuse_chain(p, "expected a leaf, got a CA").message
    assert message.isascii() and message.isprintable()
    p = chain_with(LEAF, common_name="a ~ b", ca=True)
    refuse_chain(p, "(CN=a ~ b): expected a leaf, got a CA")


def test_keys_of_another_kind_on_the_same_curve() -> None:
    ecdh = der(0x30, bytes.fromhex("06052b8104010c06052b81040022"))

    def for_agreement(tbs: bytes) -> bytes:
        return tbs.replace(spki_of(tbs), der(0x30, ecdh + der(3, b"\0" + leaf_point(tbs))))

    refuse_chain(edited_leaf(for_agreement), "expected an ECDSA P-384 key, got another kind")


@pytest.mark.parametrize("which", [0, 1])
def test_times_that_are_none(which: int) -> None:
    def garble(tbs: bytes) -> bytes:
        at = [match.start() for match in re.finditer(rb"\x17\x0d\d{12}Z", tbs)][which]
        return tbs[: at + 2] + b"x" * 13 + tbs[at + 15 :]

    refuse_chain(edited_leaf(garble), "has an unreadable validity time")


def test_the_largest_root() -> None:
    """The length of its signature varies by a few bytes."""
    oid = x509.ObjectIdentifier("1.3.6.1.4.1.55555.2")
    roots: dict[int, bytes] = {}
    while len(roots) < 2:
        for size in range(460, 476):
            filler = x509.UnrecognizedExtension(oid, bytes(size))
            root = chain_with(ROOT, extensions=((filler, False),)).root_der
            roots.update({len(root): root} if len(root) in (1024, 1025) else {})
    with attest.policy(root=roots[1024]):
        pass
    bad_policy("expected at most 1024 bytes, got 1025", root=roots[1025])


# 3. The document's own signature.


def test_tampered_payload() -> None:
    raw = good().encode()
    for old, new in ((PCRS[8], b"\1" + PCRS[8][1:]), (b"i-0123", b"i-0124"), (NONCE, NONCE[::-1])):
        tampered = raw.replace(old, new, 1)
        assert tampered != raw
        refuse("signature error", "the document is not signed by its certificate", tampered)


def test_tampered_signature() -> None:
    changes: list[Callable[[bytes], bytes]] = [
        lambda s: s[:-1] + bytes([s[-1] ^ 1]),
        lambda s: s[48:] + s[:48],
        lambda s: bytes(96),
        lambda s: b"\xff" * 96,
    ]
    for change in changes:
        refuse("signature error", "does not verify", altered(signature=change).encode())


def test_tampered_protected_header() -> None:
    raw = good().encode()
    longer = cmap([(uint(1), negint(-35)), (uint(9), uint(9))])
    tampered = raw.replace(bstr(ES384_HEADER), bstr(longer), 1)
    refuse("signature error", "not signed by its certificate", tampered)


def test_signed_by_another_key() -> None:
    document = altered(key_der=other_pki().leaf_key_der)
    refuse("signature error", "not signed by its certificate", document.encode())


# 4. The nonce.


def test_nonce() -> None:
    raw = good().encode()
    refuse("nonce mismatch", "handshake hash", raw, nonce=NONCE[:-1] + b"\0")
    refuse(
        "nonce mismatch",
        "(31 bytes; a channel's is its handshake hash), got another one of 32",
        raw,
        nonce=NONCE[:31],
    )
    refuse(
        "nonce mismatch",
        "(33 bytes; a channel's is its handshake hash), got another one of 32",
        raw,
        nonce=NONCE + b"\0",
    )
    verify(raw, nonce=None)
    for absent in (good(nonce=NULL), without("nonce")):
        refuse("nonce mismatch", "the document has no nonce", absent.encode())
        verify(absent.encode(), nonce=None)
    refuse("nonce mismatch", "another one of 0 bytes", good(nonce=bstr(b"")).encode())


def test_an_empty_nonce_is_no_nonce() -> None:
    for document in (good(), good(nonce=NULL), good(nonce=bstr(b""))):
        refuse("invalid argument", "empty nonce", document.encode(), nonce=b"")


# 5. PCRs.


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_pinned_pcr(index: int) -> None:
    for wrong in (
        b"\x77" * 48,
        PCRS[index][:-1] + b"\0",
        PCRS[index][:32],
        PCRS[index] + bytes(16),
    ):
        error = refuse(
            "PCR mismatch",
            f"PCR{index}: expected {PCRS[index].hex()}, got {wrong.hex()}",
            good(pcrs=pcr_map({**PCRS, index: wrong})).encode(),
        )
        assert (error.pcr_index, error.expected, error.actual) == (index, PCRS[index], wrong)
        assert ("per enclave" in error.message) == (index != 1)
    missing = {i: v for i, v in PCRS.items() if i != index}
    error = refuse("PCR mismatch", "got nothing", good(pcrs=pcr_map(missing)).encode())
    assert (error.pcr_index, error.expected, error.actual) == (index, PCRS[index], b"")


def test_other_pcrs_are_not_compared() -> None:
    verify(good(pcrs=pcr_map({**PCRS, 3: b"\3" * 48, 8: b"\4" * 48})).encode())


def test_several_pins() -> None:
    raw = good().encode()
    stranger = [b"\x66" * 48] * 3
    verify(raw, pins=[stranger, PINS])
    verify(raw, pins=[PINS, stranger])
    near = [PINS[0], PINS[1], b"\x67" * 48]
    error = refuse("PCR mismatch", "PCR2", raw, pins=[stranger, near, stranger])
    assert (error.pcr_index, error.expected) == (2, near[2])
    error = refuse("PCR mismatch", "PCR0", raw, pins=[stranger, [b"\x67" * 48] * 3])
    assert error.expected == stranger[0]
    # Never a mixture: each register is in some set, but no set has them all.
    mixed = [[PINS[0], PINS[1], stranger[2]], [stranger[0], PINS[1], PINS[2]]]
    refuse("PCR mismatch", "PCR2", raw, pins=mixed)


@pytest.mark.parametrize(
    ("differing", "words"),
    [
        ((0, 2), "PCR1 agrees: the same boot parts, but another enclave or version"),
        ((0,), "PCR1 agrees"),
        ((2,), "PCR1 agrees"),
        ((1,), "only PCR1 differs"),
        ((0, 1, 2), "another image than the pinned one"),
        ((0, 1), "another image than the pinned one"),
    ],
)
def test_the_hint_is_by_what_differs(differing: tuple[int, ...], words: str) -> None:
    pins = [b"\x55" * 48 if index in differing else PINS[index] for index in range(3)]
    error = refuse("PCR mismatch", words, good().encode(), pins=[pins])
    assert error.pcr_index == differing[0]
    # Of several it is about the nearest, wherever it stands.
    stranger = [b"\x66" * 48] * 3
    for sets in ([stranger, pins], [pins, stranger]):
        if differing != (0, 1, 2):
            error = refuse("PCR mismatch", words, good().encode(), pins=sets)
            assert (error.pcr_index, error.expected) == (differing[0], pins[differing[0]])


DEBUG_HINT = "looks like the self-signed document of a debug enclave"
ROOT_HINT = "leads to another root than the pinned one"


def test_a_debug_enclaves_document_is_recognised() -> None:
    """Its PCRs are real, its certificates and its signature mean nothing."""
    nothing, p = bytes(64), good_pki()
    itself = pki.mint(chain=[pki.specs(NOW)[0], dataclasses.replace(pki.specs(NOW)[0])])
    for leaf, bundle in ((nothing, [nothing]), (itself.root_der, [itself.root_der])):
        fields = {"certificate": bstr(leaf), "cabundle": array([bstr(c) for c in bundle])}
        refuse("certificate error", DEBUG_HINT, good(**fields).encode())
        crude = good(**fields, timestamp=uint(0)).encode()
        refuse("document error", DEBUG_HINT, crude)
        assert verify(crude, debug=True).form == Form.DEBUG
    # Whatever else is wrong is what it is.
    late = chain_with(LEAF, not_before=NOW - timedelta(hours=9), not_after=NOW - timedelta(hours=6))
    for error in (
        refuse_chain(late, "has expired"),
        refuse("document error", "", good().encode()[:-1]),
        refuse("nonce mismatch", "", good(nonce=bstr(b"x")).encode()),
        refuse("certificate error", "", document_of(other_pki()).encode(), p=p),
    ):
        assert DEBUG_HINT not in error.message


def test_a_forgotten_root_is_recognised() -> None:
    raw = good().encode()
    error = refuse("certificate error", ROOT_HINT, raw, root=None)
    assert "is not issued by certificate 1" in error.message
    assert "root=" in error.message and "from whoever runs it" in error.message
    refuse("certificate error", ROOT_HINT, raw, root=other_pki().root_der)
    late = chain_with(CA1, not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=6))
    for error in (
        refuse_chain(late, "has expired"),
        refuse("PCR mismatch", "", raw, pins=[[b"\x55" * 48] * 3]),
    ):
        assert ROOT_HINT not in error.message


def test_the_longest_hint_fits_its_message() -> None:
    names = ["n" * 63 + str(index) for index in range(5)]
    chain = [
        dataclasses.replace(spec, common_name=name)
        for spec, name in zip(pki.specs(NOW), names, strict=True)
    ]
    error = refuse_chain(pki.mint(chain=chain), ROOT_HINT, root=other_pki().root_der)
    assert error.message.endswith("from whoever runs it")


def test_zero_pcrs_are_a_debug_enclave() -> None:
    zeros = {**PCRS, 0: bytes(48), 1: bytes(48), 2: bytes(48)}
    raw = good(pcrs=pcr_map(zeros)).encode()
    error = refuse("PCR mismatch", "debug enclave", raw)
    assert (error.pcr_index, error.expected, error.actual) == (0, PCRS[0], bytes(48))
    error = refuse("PCR mismatch", "debug enclave", raw, pins=None)
    assert (error.pcr_index, error.expected, error.actual) == (0, b"", bytes(48))
    for index in (1, 2):
        one = good(pcrs=pcr_map({**PCRS, index: bytes(48)})).encode()
        assert refuse("PCR mismatch", "debug enclave", one, pins=None).pcr_index == index
    for index in range(3):
        missing = {i: v for i, v in PCRS.items() if i != index}
        refuse("PCR mismatch", "does not have it", good(pcrs=pcr_map(missing)).encode(), pins=None)


def test_the_longest_mismatch_fits_its_message() -> None:
    pins = [b"\xaa" * 64, b"\xbb" * 64, b"\xcc" * 64]
    live = {0: pins[0], 1: pins[1], 2: b"\xdd" * 64}
    error = refuse("PCR mismatch", "per enclave", good(pcrs=pcr_map(live)).encode(), pins=[pins])
    assert "dd" * 64 in error.message and "cc" * 64 in error.message


# The order: with everything wrong, each repair uncovers the next check.


def test_the_order_of_the_checks() -> None:
    p = other_pki()
    flip: Callable[[bytes], bytes] = lambda s: s[::-1]  # noqa: E731
    wrong: dict[str, Any] = {
        "root": good_pki().root_der,
        "nonce": b"n" * 32,
        "pins": [[b"\x55" * 48] * 3],
    }

    def attempt(document: Document, **kw: Any) -> str:
        with pytest.raises(AttestError) as caught:
            verify(document.encode(), **{**wrong, **kw})
        return caught.value.code

    bad = dataclasses.replace(document_of(p, digest=tstr("SHA1")), signature=flip)
    assert attempt(bad) == "document error"
    bad.fields["digest"] = tstr("SHA384")
    assert attempt(bad) == "certificate error"
    assert attempt(bad, root=p.root_der) == "signature error"
    bad.signature = lambda s: s
    assert attempt(bad, root=p.root_der) == "nonce mismatch"
    assert attempt(bad, root=p.root_der, nonce=NONCE) == "PCR mismatch"
    verify(bad.encode(), p)


# Debug forms.


def crude(
    nonce: bytes | None = NONCE,
    leave_out: Sequence[str] = (),
    signature: int = 96,
    change: tuple[str, bytes] | None = None,
    pcrs: bytes = pcr_map(PCRS),
) -> bytes:
    """What published stand-ins send: no algorithm, zero bytes for certificates and signature."""
    values = {
        "module_id": tstr("test-module"),
        "digest": tstr("SHA384"),
        "timestamp": uint(0),
        "pcrs": pcrs,
        "certificate": bstr(bytes(64)),
        "cabundle": array([bstr(bytes(64))]),
        "public_key": NULL,
        "user_data": bstr(b"\x04" + bytes(64)),
        "nonce": NULL if nonce is None else bstr(nonce),
        **dict([change] if change else []),
    }
    payload = cmap([(tstr(k), v) for k, v in values.items() if k not in leave_out])
    return array([bstr(b"\xa0"), cmap([]), bstr(payload), bstr(bytes(signature))])


def test_debug_takes_crude_stand_ins() -> None:
    a = verify(crude(), debug=True)
    assert (a.form, a.nonce, a.pcrs, a.timestamp_ms) == (Form.DEBUG, NONCE, PCRS, 0)
    verify(crude(), debug=True, pins=None)
    verify(good().encode(), debug=True)
    verify(crude(signature=0), debug=True)
    verify(crude(signature=64), debug=True)
    for change in (
        ("module_id", tstr("")),
        ("digest", tstr("none")),
        ("certificate", bstr(b"")),
        ("cabundle", array([])),
        ("cabundle", array([bstr(b"")])),
        ("public_key", bstr(b"")),
    ):
        verify(crude(change=change), debug=True)
    names = ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "public_key")
    for absent in (*[(name,) for name in names], names):
        verify(crude(leave_out=absent), debug=True)


def test_debug_checks_nonce_and_pcrs() -> None:
    refuse("nonce mismatch", "handshake hash", crude(b"m" * 32), debug=True)
    refuse("nonce mismatch", "has no nonce", crude(None), debug=True)
    other = crude(pcrs=pcr_map({**PCRS, 1: b"\x66" * 48}))
    error = refuse("PCR mismatch", "PCR1", other, debug=True)
    assert (error.pcr_index, error.expected, error.actual) == (1, PCRS[1], b"\x66" * 48)
    verify(other, debug=True, pins=None)
    verify(crude(pcrs=pcr_map({0: PCRS[0], 2: PCRS[2]})), debug=True)
    verify(crude(pcrs=cmap([])), debug=True)
    zeros = crude(pcrs=pcr_map({i: bytes(48) for i in range(3)}))
    verify(zeros, debug=True, pins=[[bytes(48)] * 3])
    verify(zeros, debug=True, pins=None)
    refuse("PCR mismatch", "debug enclave", zeros, debug=True)


def test_debug_still_wants_a_well_formed_document() -> None:
    for bad in (crude() + b"\0", crude()[:-1], b"\x84", b"hello"):
        refuse("document error", "", bad, debug=True)
    refuse("document error", "PCR0", crude(pcrs=pcr_map({0: bytes(47)})), debug=True)
    twice = altered(extra_fields=[(tstr("nonce"), bstr(NONCE))]).encode()
    refuse("document error", "the same key twice", twice, debug=True)


def test_debug_wants_each_field_of_its_kind() -> None:
    fits = {"module_id": 3, "digest": 3, "timestamp": 0, "pcrs": 5, "certificate": 2, "cabundle": 4}
    for name, major in fits.items():
        for kind in SIX_KINDS:
            if kind[0] >> 5 != major:
                fragment = f"{name}: expected"
                refuse("document error", fragment, crude(change=(name, kind)), debug=True)


def test_stub() -> None:
    a = verify(NONCE, debug=True)
    assert (a.form, a.raw, a.nonce, a.pcrs) == (Form.STUB, NONCE, NONCE, {})
    refuse("nonce mismatch", "stub", b"m" * 32, debug=True)
    refuse("document error", "", NONCE, debug=True, nonce=None)
    refuse("document error", "", NONCE[:31], debug=True, nonce=NONCE[:31])


def test_production_refuses_debug_forms() -> None:
    refuse("document error", "looks like a debug enclave", NONCE)
    refuse("document error", "expected alg -35 (ES384), got none", crude())


# Policies.


def bad_policy(fragment: str, pins: Sequence[Sequence[bytes]] | None = None, **kw: Any) -> None:
    with pytest.raises(AttestError) as caught, attest.policy(pins, **kw):
        pass
    assert (caught.value.code, fragment in caught.value.message) == ("invalid argument", True), (
        caught.value
    )


def test_policies_need_pins_unless_debug() -> None:
    bad_policy("no PCRs are pinned", need_pins=True)
    with attest.policy(need_pins=True, debug=True), attest.policy():
        pass
    with attest.policy([PINS], need_pins=True) as p:
        p.pin_count = 0
        with pytest.raises(AttestError, match="no PCRs are pinned"):
            attest.verify_with(p, good().encode(), nonce=NONCE, now=AT)


@pytest.mark.parametrize("debug", [False, True])
def test_what_is_given_and_empty_is_refused(debug: bool) -> None:
    """Only NULL means "not given". In C as well, whatever the layers above have checked."""
    for need_pins in (False, True):
        kw = {"debug": debug, "need_pins": need_pins}
        bad_policy("got an empty list", [], **kw)
        bad_policy("got nothing (0 bytes)", [PINS], root=b"", **kw)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_pins_are_checked(index: int) -> None:
    def pins(value: bytes) -> list[list[bytes]]:
        changed = list(PINS)
        changed[index] = value
        return [PINS, changed]

    for n in (0, 1, 31, 33, 47, 63):
        bad_policy(f"PCR{index}: expected 32, 48 or 64 bytes, got {n}", pins(b"\1" * n))
    bad_policy("bytes like PCR0" if index else "expected 32 bytes like PCR0", pins(b"\1" * 32))
    bad_policy(f"PCR{index} is all zero", pins(bytes(48)))
    bad_policy("debug enclave", pins(bytes(48)))
    with attest.policy(pins(bytes(48)), debug=True), attest.policy(pins(bytes(47) + b"\1")):
        pass


def test_roots_are_checked() -> None:
    p = good_pki()
    key_pem = serialization.load_der_private_key(p.leaf_key_der, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    bad_policy("DER or PEM, got neither", root=b"hello")
    bad_policy("DER or PEM, got neither", root=b"0")
    bad_policy("is not an X.509 certificate", root=p.root_der[:-1])
    bad_policy("1 bytes after its end", root=p.root_der + b"\0")
    bad_policy("expected one PEM block, got more", root=p.root_pem + p.root_pem)
    bad_policy("expected one PEM block, got more", root=p.root_pem + key_pem)
    bad_policy("another kind of PEM block", root=key_pem)
    filler = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.2"), bytes(600))
    large = chain_with(ROOT, extensions=((filler, False),))
    bad_policy("expected at most 1024 bytes, got", root=large.root_der)
    bad_policy("at most 16384 bytes", root=b"\n" * 16385 + p.root_pem)
    bad_policy("expected a CA", root=p.leaf_der)
    for changes, fragment in (
        ({"key": ec.generate_private_key(ec.SECP256R1())}, "expected an ECDSA P-384 key"),
        ({"signature_hash": hashes.SHA256()}, "ecdsa-with-SHA384"),
        ({"ca": None}, "expected a CA"),
        ({"key_usage": frozenset({"crl_sign"})}, "keyCertSign"),
        (
            {"extensions": ((x509.NameConstraints(None, [x509.DNSName("x")]), True),)},
            "critical extension",
        ),
    ):
        bad_policy(fragment, root=chain_with(ROOT, **changes).root_der)


def test_roots_in_texts_of_many_kinds() -> None:
    p = good_pki()
    leaf = x509.load_der_x509_certificate(p.leaf_der)
    bad_policy("expected a CA", root=leaf.public_bytes(serialization.Encoding.PEM))
    bad_policy("is not an X.509 certificate", root=b"\x30\x80")
    padding = b"\n" * (16384 - len(p.root_pem))
    for text in (b"0 is how it begins\n", "é\n".encode(), padding):
        verify(good().encode(), root=text + p.root_pem)


def test_an_unset_policy_verifies_nothing() -> None:
    with pytest.raises(AttestError, match="never set up"):
        attest.verify_with(attest.Policy(), good().encode(), nonce=NONCE, now=AT)


# The cache of verified links.

LINKS = 4


def test_the_cache_is_used() -> None:
    cache, raw = LinkCache(), good().encode()
    verify(raw, cache=cache)
    assert cache.hits == 0
    verify(raw, cache=cache)
    assert cache.hits == LINKS
    verify(good(nonce=bstr(NONCE), user_data=bstr(b"another")).encode(), cache=cache)
    assert cache.hits == 2 * LINKS


@pytest.mark.parametrize("index", range(5))
def test_a_cached_link_expires_with_its_certificates(index: int) -> None:
    cache = LinkCache()
    p = chain_with(index, not_after=NOW + timedelta(minutes=5))
    raw = document_of(p).encode()
    verify(raw, p, cache=cache)
    error = refuse("certificate error", "has expired", raw, p=p, cache=cache, now=AT + 301)
    assert error.message.startswith(f"certificate {index + 1} of 5")
    refuse("certificate error", "not yet valid", raw, p=p, cache=cache, now=AT - 61)
    verify(raw, p, cache=cache)


def test_a_cached_link_says_nothing_about_roles() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    p = chain_with(CA3, key=key)
    cache = LinkCache()
    verify(document_of(p).encode(), p, cache=cache)
    as_leaf = dataclasses.replace(
        p,
        cabundle=p.cabundle[:3],
        leaf_der=p.cabundle[3],
        leaf_key_der=key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    refuse_chain(as_leaf, "expected a leaf, got a CA", cache=cache)
    one_more = dataclasses.replace(p, cabundle=[*p.cabundle, p.leaf_der])
    refuse_chain(one_more, "pathLen", cache=cache)


def test_a_cached_chain_says_nothing_about_another_root() -> None:
    cache, raw = LinkCache(), good().encode()
    verify(raw, cache=cache)
    verify(raw, cache=cache)
    refuse("certificate error", "", raw, root=other_pki().root_der, cache=cache)
    p = good_pki()
    rest = good(cabundle=array([bstr(c) for c in p.cabundle[1:]])).encode()
    refuse("certificate error", "is not issued by", rest, root=other_pki().root_der, cache=cache)


def test_an_issuer_with_the_same_name_and_key_but_other_bytes_is_another_link() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    chain = pki.specs(NOW)
    chain[ROOT] = dataclasses.replace(chain[ROOT], key=key)
    first, renewed = pki.mint(chain=chain), pki.mint(chain=chain)
    assert first.root_der != renewed.root_der
    cache = LinkCache()
    raw = document_of(dataclasses.replace(first, cabundle=first.cabundle[1:])).encode()
    verify(raw, first, cache=cache)
    verify(raw, renewed, cache=cache)
    assert cache.hits == LINKS - 1


@pytest.mark.parametrize("index", [CA1, CA2, CA3, LEAF])
def test_a_failed_link_is_never_cached(index: int) -> None:
    p, cache = good_pki(), LinkCache()
    chain = [*p.cabundle, p.leaf_der]
    chain[index] = chain[index][:-1] + bytes([chain[index][-1] ^ 1])
    broken = dataclasses.replace(p, cabundle=chain[:-1], leaf_der=chain[-1])
    verify(good().encode(), cache=cache)
    for _ in range(2):
        hits = cache.hits
        refuse_chain(broken, "its signature does not verify", cache=cache)
        assert cache.hits == hits + index - 1


def test_the_documents_signature_is_never_cached() -> None:
    cache, raw = LinkCache(), good().encode()
    verify(raw, cache=cache)
    refuse("signature error", "", raw.replace(b"i-0123", b"i-0124", 1), cache=cache)
    refuse("signature error", "", raw[:-1] + bytes([raw[-1] ^ 1]), cache=cache)
    refuse("nonce mismatch", "", raw, cache=cache, nonce=b"n" * 32)
    refuse("PCR mismatch", "", raw, cache=cache, pins=[[b"\x55" * 48] * 3])


def test_the_cache_is_bounded() -> None:
    cache, raw = LinkCache(2), good().encode()
    for _ in range(3):
        before = cache.hits
        verify(raw, cache=cache)
        assert cache.hits - before <= 2
    assert cache.hits > 0
    for size in (0, 4097, 2**63):
        with pytest.raises(AttestError, match="1 to 4096 entries"):
            attest.lib().encl_link_cache_free(LinkCache(size).pointer)


# The signing side.


def template(p: pki.EnclavePki, **changes: Any) -> Template:
    made = Template(
        timestamp_ms=AT * 1000,
        pcrs=PCRS,
        certificate=p.leaf_der,
        cabundle=p.cabundle,
        user_data=b"data",
        nonce=NONCE,
    )
    return dataclasses.replace(made, **changes)


def test_what_is_signed_here_verifies_here() -> None:
    p = good_pki()
    a = verify(attest.sign(template(p), p.leaf_key_der))
    assert (a.pcrs, a.user_data, a.nonce, a.public_key) == (PCRS, b"data", NONCE, None)
    assert (a.certificate, a.cabundle) == (p.leaf_der, p.cabundle)
    many = template(p, pcrs={i: bytes([i + 1]) * 64 for i in range(32)}, public_key=b"")
    a = verify(attest.sign(dataclasses.replace(many, public_key=b"k"), p.leaf_key_der), pins=None)
    assert len(a.pcrs) == 32 and a.public_key == b"k"


def test_what_is_signed_here_has_the_published_form() -> None:
    p = good_pki()
    raw = attest.sign(template(p), p.leaf_key_der)
    document = good(user_data=bstr(b"data"))
    expected = array([bstr(ES384_HEADER), cmap([]), bstr(document.payload()), bstr(bytes(96))])
    assert raw[:-96] == expected[:-96]


def test_unsigned_documents_are_for_debug_only() -> None:
    raw = attest.sign(template(good_pki()))
    assert raw.endswith(bytes(96))
    assert verify(raw, debug=True).form is Form.DEBUG
    refuse("signature error", "does not verify", raw)


def test_signing_refuses_what_it_cannot_use() -> None:
    p = good_pki()
    p256 = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for key in (b"x", p256, p.leaf_key_der[:-1], p.leaf_key_der + b"\0"):
        with pytest.raises(AttestError, match="expected a P-384 private key"):
            attest.sign(template(p), key)
    with pytest.raises(AttestError, match="at most 16 certificates, got 17"):
        attest.sign(template(p, cabundle=[b"x"] * 17), p.leaf_key_der)
    attest.sign(template(p, cabundle=[b"x"] * 16), p.leaf_key_der)
    long = bytes(40000)
    for name in ("module_id", "certificate", "public_key", "user_data", "nonce"):
        with pytest.raises(AttestError, match="expected an encoding of at most"):
            attest.sign(template(p, **{name: long}), limit=100_000)
    with pytest.raises(AttestError, match="expected an encoding of at most"):
        attest.sign(template(p, cabundle=[long]), limit=100_000)
    with pytest.raises(AttestError, match="expected an encoding of at most"):
        attest.sign(template(p), p.leaf_key_der, limit=100)
    with pytest.raises(AttestError, match="expected an encoding of at most"):
        attest.sign(template(p, user_data=bytes(40000)), p.leaf_key_der)


# AWS's root, real documents, attack vectors.


def test_the_root_is_awss() -> None:
    fingerprint = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
    assert hashlib.sha256(attest.aws_root()).hexdigest() == fingerprint


def vector(name: str) -> bytes:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path.name}: the shared vectors are not on this machine")
    return path.read_bytes()


def test_real_production_document() -> None:
    raw, at = vector("nitro/production-2022-10-13.cose"), 1665651482136
    pins = [
        bytes.fromhex(pcr)
        for pcr in (
            "f4d48b81a460c9916d1e685119074bf24660afd3e34fae9fca0a0d28d9d559993633"
            "2687e6f66fc890ac8cf150142d8b",
            "bcdf05fefccaa8e55bf2c8d6dee9e79bbff31e34bf28a99aa19e6b29c37ee80b214a"
            "414b7607236edf26fcb78654e63f",
            "d8f114da658de5481f8d9ec73907feb553560787522f705c92d7d96beed8e15e2aa6"
            "11984e098c576832c292e8dc469a",
        )
    ]
    cache = LinkCache()
    for _ in range(2):
        a = attest.verify(raw, pins=[pins], now=at // 1000, cache=cache)
        assert a.form is Form.NITRO
        assert [a.pcrs[i] for i in range(3)] == pins
        assert a.timestamp_ms == at
        assert a.nonce is not None and len(a.nonce) == 256
        assert (a.user_data, a.public_key) == (None, None)
    assert cache.hits == 4
    attest.verify(raw, now=at // 1000, nonce=a.nonce)
    refuse("nonce mismatch", "", raw, root=None, pins=[pins], now=at // 1000)
    refuse("PCR mismatch", "PCR0", raw, root=None, nonce=a.nonce, now=at // 1000)
    refuse("certificate error", "has expired", raw, root=None, now=int(time.time()), cache=cache)
    then = datetime.fromtimestamp(at // 1000, UTC)
    refuse("certificate error", "is not issued by", raw, p=pki.mint(then), now=at // 1000)


def test_real_document_of_a_debug_enclave() -> None:
    raw, at = vector("nitro/debug-zero-pcrs-2022-10-12.cose"), 1665582606081
    with pytest.raises(AttestError) as caught:
        attest.verify(raw, now=at // 1000)
    assert caught.value.code == "PCR mismatch" and "debug enclave" in caught.value.message
    refuse("PCR mismatch", "debug enclave", raw, root=None, nonce=None, now=at // 1000)
    refuse("certificate error", "has expired", raw, root=None, nonce=None, now=int(time.time()))
    a = attest.verify(raw, now=0, debug=True)
    assert (a.form, a.user_data, a.nonce) == (Form.DEBUG, b"hello, world!", None)


def test_real_document_with_a_bad_signature() -> None:
    raw, at = vector("nitro/bad-signature-2024-07-23.cose"), 1721770180771
    refuse("signature error", "does not verify", raw, root=None, nonce=None, now=at // 1000)
    refuse("certificate error", "has expired", raw, root=None, nonce=None, now=int(time.time()))


def test_wycheproof() -> None:
    raw = vector("wycheproof/ecdsa_secp384r1_sha384_p1363_test.json")
    done = 0
    for group in json.loads(raw)["testGroups"]:
        key = bytes.fromhex(group["publicKey"]["uncompressed"])
        for case in group["tests"]:
            signature, message = bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"])
            try:
                attest.es384_verify(key, message, signature)
                result = "valid"
            except AttestError as error:
                assert error.code == "signature error"
                result = "invalid"
            assert result == case["result"], (case["tcId"], case["comment"])
            done += 1
    assert done == 280


def test_es384_wants_exact_lengths_and_a_point_on_the_curve() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    point = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    key_der = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    signature = es384(key_der, b"message")
    attest.es384_verify(point, b"message", signature)
    compressed = bytes([2 + (point[-1] & 1)]) + point[1:49]
    hybrid = bytes([6 + (point[-1] & 1)]) + point[1:]
    for bad in (b"", point[:-1], point + b"\0", compressed, hybrid):
        with pytest.raises(AttestError, match="expected an uncompressed point"):
            attest.es384_verify(bad, b"message", signature)
    with pytest.raises(AttestError, match="is not a point of P-384"):
        attest.es384_verify(point[:-1] + bytes([point[-1] ^ 1]), b"message", signature)
    for bad in (b"", signature[:-1], signature + b"\0"):
        with pytest.raises(AttestError, match="expected a signature of 96 bytes"):
            attest.es384_verify(point, b"message", bad)
    with pytest.raises(AttestError, match="does not verify"):
        attest.es384_verify(point, b"other", signature)
    attest.es384_verify(point, b"", es384(key_der, b""))


# The minting itself.


def test_minted_certificates_have_awss_shape() -> None:
    p = pki.mint(NOW)
    ders = [*p.cabundle, p.leaf_der]
    assert p.cabundle[0] == p.root_der and len(ders) == 5
    assert max(map(len, ders)) <= 1024
    leaf = x509.load_der_x509_certificate(p.leaf_der)
    assert leaf.not_valid_after_utc - NOW == timedelta(hours=3)
    with pytest.raises(ValueError, match="expected 1 to 3, got 4"):
        pki.mint(NOW, intermediates=4)
    long = pki.mint(NOW, timedelta(hours=5))
    refuse_chain(long, "has expired", now=AT + 5 * 3600 + 1)
    verify(document_of(long).encode(), long, now=AT + 5 * 3600)
