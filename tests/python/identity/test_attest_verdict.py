"""Attestation documents: their signature, nonce, PCRs and debug forms, the order of all checks, and
what a policy may say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import attest_ctypes as attest
import pytest
from attest_ctypes import AttestError, Form
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from documents import (
    AT,
    CA1,
    ES384_HEADER,
    LEAF,
    NONCE,
    NOW,
    NULL,
    PCRS,
    PINS,
    ROOT,
    SIX_KINDS,
    Document,
    altered,
    array,
    bad_policy,
    bstr,
    chain_with,
    cmap,
    document_of,
    good,
    good_pki,
    negint,
    other_pki,
    pcr_map,
    pki,
    refuse,
    refuse_chain,
    tstr,
    uint,
    verify,
    without,
)

# The document's own signature.


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


# The nonce.


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


# PCRs.


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


FURTHER = (3, 4, 8, *range(16, 32))


@pytest.mark.parametrize("index", FURTHER)
def test_each_further_pinned_pcr(index: int) -> None:
    """Compared where it is pinned, and then it must be there and equal."""
    value = bytes([index]) * 48
    live = {**PCRS, index: value}
    pins = {**dict(enumerate(PINS)), index: value}
    matched = verify(good(pcrs=pcr_map(live)).encode(), pins=[pins]).matched
    assert matched == (0, {0, 1, 2, index})
    for wrong in (b"\x77" * 48, value[:-1] + b"\0", value[:32], value + bytes(16), bytes(48)):
        raw = good(pcrs=pcr_map({**live, index: wrong})).encode()
        error = refuse("PCR mismatch", "the pinned image", raw, pins=[pins])
        assert (error.pcr_index, error.expected, error.actual) == (index, value, wrong)
        verify(raw)
    absent = {i: v for i, v in PCRS.items() if i != index}
    raw = good(pcrs=pcr_map(absent)).encode()
    error = refuse("PCR mismatch", "the document does not have it", raw, pins=[pins])
    assert (error.pcr_index, error.expected, error.actual) == (index, value, b"")
    # What comes first is what is told.
    raw = good(pcrs=pcr_map({**live, 1: b"\x77" * 48, index: b"\x78" * 48})).encode()
    assert refuse("PCR mismatch", "PCR1", raw, pins=[pins]).pcr_index == 1


def test_a_further_pin_of_zeros_says_that_nothing_was_measured() -> None:
    for index in (3, 16):
        pins = {**dict(enumerate(PINS)), index: bytes(48)}
        verify(good(pcrs=pcr_map({**PCRS, index: bytes(48)})).encode(), pins=[pins])
    raw = good(pcrs=pcr_map({**PCRS, 16: b"\1" * 48})).encode()
    refuse("PCR mismatch", "extended by the enclave itself", raw, pins=[pins])


@pytest.mark.parametrize(
    ("index", "words"),
    [(3, "another IAM role"), (4, "another EC2 instance"), (8, "signed with another certificate")],
)
def test_the_hint_says_what_a_further_pcr_measures(index: int, words: str) -> None:
    pins = {**dict(enumerate(PINS)), index: b"\x55" * 48}
    live = {**PCRS, index: b"\x56" * 48}
    refuse("PCR mismatch", words, good(pcrs=pcr_map(live)).encode(), pins=[pins])


def test_a_further_pcr_without_a_measurement_is_no_sign_of_a_debug_enclave() -> None:
    for index in (3, 4, 8, 16):
        pins = {**dict(enumerate(PINS)), index: b"\x55" * 48}
        absent = {i: value for i, value in PCRS.items() if i != index}
        for live in ({**PCRS, index: bytes(48)}, absent):
            error = refuse(
                "PCR mismatch", f"PCR{index}", good(pcrs=pcr_map(live)).encode(), pins=[pins]
            )
            assert error.hint is None


@pytest.mark.parametrize("index", range(3))
def test_a_document_that_lacks_a_pcr_is_no_debug_enclaves(index: int) -> None:
    absent = {i: value for i, value in PCRS.items() if i != index}
    error = refuse("PCR mismatch", f"PCR{index}", good(pcrs=pcr_map(absent)).encode(), pins=[PINS])
    assert error.hint is None


def test_further_pins_are_checked() -> None:
    three = dict(enumerate(PINS))
    bad_policy("pinned PCR8: expected 32, 48 or 64 bytes, got 47", [{**three, 8: bytes(47)}])
    bad_policy("pinned PCR31: expected 48 bytes like PCR0", [{**three, 31: b"\1" * 32}])
    bad_policy("pinned PCR16: expected 48 bytes", [three, {**three, 16: b"\1" * 64}])


def test_further_pins_belong_to_their_set() -> None:
    live = {**PCRS, 8: b"\x08" * 48}
    raw = good(pcrs=pcr_map(live)).encode()
    three = dict(enumerate(PINS))
    other, same = {**three, 8: b"\x09" * 48}, {**three, 8: live[8]}
    assert verify(raw, pins=[other, same]).matched == (1, {0, 1, 2, 8})
    assert verify(raw, pins=[same, three]).matched == (0, {0, 1, 2, 8})
    assert verify(raw, pins=[three, same]).matched == (0, {0, 1, 2})
    # The nearest of several is the one that fewest PCRs differ from.
    far = {0: b"\x66" * 48, 1: PINS[1], 2: b"\x66" * 48, 8: live[8]}
    for sets in ([far, other], [other, far]):
        assert refuse("PCR mismatch", "PCR8", raw, pins=sets).pcr_index == 8


def test_which_set_matched() -> None:
    raw, stranger = good().encode(), [b"\x66" * 48] * 3
    assert verify(raw).matched == (0, {0, 1, 2})
    assert verify(raw, pins=[stranger, stranger, PINS]).matched == (2, {0, 1, 2})
    assert verify(raw, pins=[PINS, PINS]).matched == (0, {0, 1, 2})
    assert verify(raw, pins=None).matched is None
    # In debug mode only what the document has is compared, and only all of it is a match.
    assert verify(crude(), debug=True).matched == (0, {0, 1, 2})
    assert verify(crude(pcrs=pcr_map({0: PCRS[0]})), debug=True).matched is None
    assert verify(crude(), debug=True, pins=None).matched is None
    assert verify(NONCE, debug=True).matched is None
    pins = {**dict(enumerate(PINS)), 16: b"\5" * 48}
    assert verify(crude(), debug=True, pins=[pins]).matched is None
    other = crude(pcrs=pcr_map({**PCRS, 16: b"\6" * 48}))
    assert refuse("PCR mismatch", "PCR16", other, debug=True, pins=[pins]).pcr_index == 16


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
        crude = good(**fields, timestamp=uint(0)).encode()
        for error in (
            refuse("certificate error", DEBUG_HINT, good(**fields).encode()),
            refuse("document error", DEBUG_HINT, crude),
        ):
            assert error.hint == "debug enclave"
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
        assert error.hint != "debug enclave"


def test_a_forgotten_root_is_recognised() -> None:
    raw = good().encode()
    error = refuse("certificate error", ROOT_HINT, raw, root=None)
    assert "is not issued by certificate 1" in error.message
    assert "root=" in error.message and "from whoever runs it" in error.message
    assert error.hint == "another root"
    error = refuse("certificate error", ROOT_HINT, raw, root=other_pki().root_der)
    assert error.hint == "another root"
    late = chain_with(CA1, not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=6))
    for error in (
        refuse_chain(late, "has expired"),
        refuse("PCR mismatch", "", raw, pins=[[b"\x55" * 48] * 3]),
        # Of what is no document it is not said where it leads.
        refuse("document error", "", good(timestamp=uint(0)).encode(), root=None),
    ):
        assert ROOT_HINT not in error.message
        assert error.hint is None


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
    assert error.hint == "debug enclave"
    error = refuse("PCR mismatch", "debug enclave", raw, pins=None)
    assert (error.pcr_index, error.expected, error.actual) == (0, b"", bytes(48))
    assert error.hint == "debug enclave"
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
    error = refuse("document error", "looks like a debug enclave", NONCE)
    assert error.hint == "debug enclave"
    refuse("document error", "expected alg -35 (ES384), got none", crude())


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
