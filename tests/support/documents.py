"""Attestation documents made field by field and certificate by certificate, so that each part
can be broken alone, and their verification as a channel would ask for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

import attest_ctypes as attest
import pytest
from attest_ctypes import AttestError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from testing_pki import pki

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


SIX_KINDS = [uint(5), negint(-5), bstr(b"x"), tstr("x"), array([]), b"\xf5"]


def chain_with(index: int, **changes: Any) -> pki.EnclavePki:
    chain = pki.specs(NOW)
    chain[index] = dataclasses.replace(chain[index], **changes)
    return pki.mint(chain=chain)


def refuse_chain(p: pki.EnclavePki, fragment: str, **kw: Any) -> AttestError:
    return refuse("certificate error", fragment, document_of(p).encode(), **{"p": p, **kw})


LEEWAY = 60


def bad_policy(
    fragment: str, pins: Sequence[Sequence[bytes] | Mapping[int, bytes]] | None = None, **kw: Any
) -> None:
    with pytest.raises(AttestError) as caught, attest.policy(pins, **kw):
        pass
    assert (caught.value.code, fragment in caught.value.message) == ("invalid argument", True), (
        caught.value
    )
