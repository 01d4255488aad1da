"""Attestation documents: the forms that verify, and every rule of their structure broken alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import attest_ctypes as attest
import pytest
from attest_ctypes import AttestError, Form
from documents import (
    AT,
    ES384_HEADER,
    LEAF,
    NONCE,
    NOW,
    NULL,
    PCRS,
    ROOT,
    SIX_KINDS,
    Document,
    altered,
    array,
    bstr,
    cmap,
    document_of,
    good,
    good_pki,
    head,
    negint,
    pcr_map,
    pki,
    refuse,
    tstr,
    uint,
    verify,
    without,
)

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
