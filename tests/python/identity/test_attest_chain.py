"""Attestation documents: every check of the certificate chain broken alone."""

from __future__ import annotations

import dataclasses
import re
from datetime import datetime, timedelta
from functools import cache

import pytest
from attest_ctypes import AttestError
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from documents import (
    AT,
    CA1,
    CA2,
    CA3,
    LEAF,
    LEEWAY,
    NOW,
    PINS,
    ROOT,
    bad_policy,
    chain_with,
    document_of,
    good,
    good_pki,
    other_pki,
    pki,
    refuse,
    refuse_chain,
    verify,
)


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


@pytest.mark.parametrize("index", range(5))
def test_valid_until_is_the_first_end_in_the_chain(index: int) -> None:
    """Whichever certificate's it is, also where the links are known already."""
    soon = NOW + timedelta(minutes=7)
    p = chain_with(index, not_after=soon)
    for _ in range(2):
        a = verify(document_of(p).encode(), p)
        assert a.valid_until == AT + 7 * 60


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
