"""The signing side, AWS's root, real documents and published attack vectors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import attest_ctypes as attest
import pytest
import repository
from attest_ctypes import AttestError, Form, LinkCache, Template
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from documents import (
    AT,
    ES384_HEADER,
    NONCE,
    NOW,
    PCRS,
    array,
    bstr,
    cmap,
    document_of,
    es384,
    good,
    good_pki,
    pki,
    refuse,
    refuse_chain,
    verify,
)

SHARED = repository.ROOT.parent / "shared" / "vectors"


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
