"""Certificates that no builder makes: the signed part is edited, and signed again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import attest_ctypes as attest
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from documents import (
    CA3,
    LEAF,
    LEEWAY,
    ROOT,
    bad_policy,
    chain_with,
    document_of,
    pki,
    refuse_chain,
    verify,
)

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
