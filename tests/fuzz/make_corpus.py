"""Writes the seeds in corpus/, all or those of the fuzzers that are named, when a format changes.

With those of attest it writes attest_root.h. Keys and the good chain are made once and kept there:
the mutator signs with them, and inputs that were found belong to them.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import codec_ctypes as codec
from codec_ctypes import Direction, Half, Message, Type
from testing_pki import pki

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


NOW = datetime(2027, 3, 14, 15, 9, 26, tzinfo=UTC)
AT = int(NOW.timestamp())
NONCE = bytes(range(32))
PCRS = {0: b"\x10" * 48, 1: b"\x11" * 48, 2: b"\x12" * 48}

Seeds = Iterator[tuple[str, bytes]]


# wire: what to do, then bytes

TO_CLIENT, TO_SERVER, IN_PLACE, APART, LOOPS = range(5)
MESSAGES = {
    Direction.TO_SERVER: [
        Message(Type.RequestAttestation),
        Message(Type.Data, id=1, payload=b"GET / HTTP/1.1\r\n\r\n"),
        Message(Type.OpenStream, id=24, payload=b""),
        Message(Type.StreamData, id=2**64 - 1, payload=bytes(range(0, 256, 5))),
        Message(Type.StreamClose, id=300, half=Half.Write),
        Message(Type.StreamClose, id=70000, half=Half.Both),
        Message(Type.GetControlNonce),
        Message(Type.Control, payload=b"command", signature=bytes(64)),
    ],
    Direction.TO_CLIENT: [
        Message(Type.Attestation, payload=bytes(range(60)), control_nonce=bytes(range(10, 42))),
        Message(Type.Data, id=1, payload=b"HTTP/1.1 200 OK\r\n\r\n"),
        Message(Type.Error, id=5, payload="wrong: caf\u00e9".encode()),
        Message(Type.StreamData, id=2**32, payload=b"\x18" * 40),
        Message(Type.StreamClose, id=7),
        Message(Type.ControlResult, success=True, payload=b"done"),
        Message(Type.ControlNonce, control_nonce=bytes(32)),
    ],
}


def wire() -> Seeds:
    for direction, what in ((Direction.TO_SERVER, TO_SERVER), (Direction.TO_CLIENT, TO_CLIENT)):
        for message in MESSAGES[direction]:
            name = f"{direction.name.lower()}_{message.type.name}_{message.half.name}"
            yield name, bytes([what]) + codec.encode(message, direction)
    payload = b"\x67payload\x9f\x01\x18\xff\x19\x00\x07\xff"
    kind = b"\x64type\x7f\x62St\x68reamData\xff"
    extra = b"\x61x\xa2\x01\x82\xf6\xc1\xfb" + bytes(8) + b"\x7f\x61a\xff\x5f\x41a\xff"
    forms = {
        "backwards": b"\xa3" + payload + b"\x62id\x1b" + bytes(7) + b"\x05" + kind,
        "indefinite": b"\xbf" + kind + b"\x62id\x05" + payload + b"\xff",
        "byte_string": b"\xa3" + kind + b"\x62id\x05\x67payload\x43\x01\x02\x03",
        "chunks": b"\xa3" + kind + b"\x62id\x05\x67payload\x5f\x41\x01\x40\x42\x02\x03\xff",
        "unknown_keys": b"\xa4" + kind + extra + b"\x62id\x05" + payload,
        "twice": b"\xa4" + kind + b"\x62id\x05\x62id\x06" + payload,
        "twice_backwards": b"\xa4\x62id\x05\x62id\x06" + payload + kind,
        "type_twice": b"\xa4" + kind * 2 + b"\x62id\x05" + payload,
        "trailing": b"\xa3" + kind + b"\x62id\x05" + payload + b"\x00",
        "long_chunks": b"\xa3"
        + b"\x64type\x6aStreamData"
        + b"\x62id\x05\x67payload\x5f\x45\1\2\3\4\5\x45\6\7\x08\x09\0\xff",
        "half_pair": b"\xa4" + kind + b"\x61x\xbf\x01\xff\x62id\x05" + payload,
        "nested": b"\xa4" + kind + b"\x60" + b"\x81" * 16 + b"\x80\x62id\x05" + payload,
    }
    for name, form in forms.items():
        yield name, bytes([TO_CLIENT]) + form
    elements = codec.bytes_encode(bytes(range(256)) + b"\x18" * 33)
    yield "elements_in_place", bytes([IN_PLACE + 5 * 26, 37]) + elements
    yield "elements_apart", bytes([APART + 5 * 26, 37]) + elements
    yield "elements_wide", bytes([APART, 9]) + b"\x19\0\x05\x1a\0\0\0\xff\x1b" + bytes(8) + elements
    yield "loops", bytes([LOOPS]) + bytes(range(256)) + b"\x18" * 33


# ws: side, pieces, then the stream


def frame(opcode: int, payload: bytes, *, mask: bytes | None, fin: bool = True) -> bytes:
    first = codec.ws_header(opcode, len(payload), mask)
    body = payload if mask is None else codec.ws_mask(payload, mask, 0)
    return bytes([first[0] & (0xFF if fin else 0x7F)]) + first[1:] + body


def ws() -> Seeds:
    for side, mask in ((0, None), (1, b"\x37\xfa\x21\x3d")):

        def make(opcode: int, payload: bytes, fin: bool = True, mask: bytes | None = mask) -> bytes:
            return frame(opcode, payload, mask=mask, fin=fin)

        streams = {
            "binary": make(2, b"Hello") + make(2, b"") + make(2, bytes(130)),
            "long": make(2, bytes(3000)),
            "fragments": make(2, b"Hel", False) + make(9, b"ping") + make(0, b"lo"),
            "text": make(1, b"te", False) + make(0, b"x", False) + make(10, b"") + make(0, b"t"),
            "close": make(8, b"\x03\xe8bye") + b"ignored",
            "close_empty": make(8, b""),
            "too_long": make(2, bytes(4097)),
            "out_of_place": make(0, b"x"),
            "bad_code": make(8, b"\x03\xed"),
            "bad_reason": make(8, b"\x03\xe8\xff"),
        }
        for name, stream in streams.items():
            yield f"{name}_{'client' if side == 0 else 'server'}", bytes([side, 6]) + stream


# record: where to begin, then steps (record_script.h)

(
    ANSWER,
    FIRST,
    ATTESTING,
    OPEN,
    SERVING,
    NEW,
    PRODUCTION,
) = range(7)
SAY, MESSAGE, LARGE, ACT, ACT_LARGE, RAW, DOCUMENT = range(7)
ALL, HOLD = 0, 1
(ACT_OPEN, ACT_REQUEST, ACT_DATA, ACT_CLOSE, ACT_ATTEST, ACT_ABANDON) = range(6)
(SERVE_DATA, SERVE_CLOSE, SERVE_REPLY, SERVE_ERROR, SERVE_DOCUMENT) = range(5)


def deliver(delivery: int) -> bytes:
    return delivery.to_bytes(2, "big")


def say(plain: bytes, delivery: int = ALL) -> bytes:
    return bytes([SAY]) + deliver(delivery) + len(plain).to_bytes(2, "big") + plain


def message(kind: Type, number: int, payload: bytes = b"", delivery: int = ALL) -> bytes:
    return bytes([MESSAGE]) + deliver(delivery) + bytes([kind, number, len(payload)]) + payload


def large(kind: Type, number: int, size: int, delivery: int = ALL) -> bytes:
    return bytes([LARGE]) + deliver(delivery) + bytes([kind, number]) + size.to_bytes(2, "big")


def act(action: int, number: int = 0, payload: bytes = b"") -> bytes:
    return bytes([ACT, action, number, len(payload)]) + payload


def act_large(action: int, number: int, size: int) -> bytes:
    return bytes([ACT_LARGE, action, number]) + size.to_bytes(2, "big")


def raw(data: bytes, delivery: int = ALL) -> bytes:
    return bytes([RAW]) + deliver(delivery) + bytes([len(data)]) + data


def document(variant: int, delivery: int = ALL) -> bytes:
    return bytes([DOCUMENT]) + deliver(delivery) + bytes([variant])


def record() -> Seeds:
    def plain(direction: Direction, **changes: Any) -> bytes:
        return codec.encode(Message(**changes), direction)

    yield "initiator_answer", bytes([ANSWER]) + raw(bytes(range(48)))
    yield "initiator_answer_in_parts", bytes([ANSWER]) + raw(bytes(range(20))) * 3
    yield "not_started", bytes([NEW]) + act(ACT_OPEN) + raw(bytes(48)) + act(ACT_ATTEST)
    yield "responder_first", bytes([FIRST]) + raw(bytes(range(32)))
    yield "responder_low_order", bytes([FIRST]) + raw(bytes(32))
    yield "attest_then_open", bytes([ATTESTING]) + message(Type.Attestation, 0) + act(ACT_OPEN)
    yield "act_before_attestation", bytes([ATTESTING]) + b"".join(act(a, 1) for a in range(6))
    yield "data_before_attestation", bytes([ATTESTING]) + message(Type.StreamData, 1, b"early")
    yield "wrong_document", bytes([ATTESTING]) + message(Type.Attestation, 0, b"wrong")
    yield (
        "production",
        bytes([PRODUCTION])
        + document(0, 100)
        + raw(b"")
        + act(ACT_OPEN, payload=b"GET /")
        + act(ACT_ATTEST)
        + document(0),
    )
    for variant, why in enumerate(("nonce", "image", "signature"), 1):
        yield f"production_other_{why}", bytes([PRODUCTION]) + document(variant) + act(ACT_OPEN)
    yield "production_stub", bytes([PRODUCTION]) + message(Type.Attestation, 0) + act(ACT_OPEN)
    streams = b"".join(act(ACT_OPEN, payload=b"GET /") for _ in range(3))
    yield (
        "streams",
        bytes([OPEN])
        + streams
        + message(Type.StreamData, 1, b"part")
        + act(ACT_DATA, 1, b"more")
        + message(Type.StreamClose, 1)
        + act(ACT_CLOSE, 1)
        + message(Type.Error, 2, b"failed")
        + act(ACT_DATA, 2, b"more")
        + act(ACT_CLOSE, 2)
        + act(ACT_CLOSE, 3, b"w")
        + act(ACT_DATA, 3, b"more"),
    )
    yield (
        "data_after_error",
        bytes([OPEN])
        + act(ACT_OPEN)
        + message(Type.Error, 1, b"failed")
        + message(Type.StreamData, 1, b"late")
        + message(Type.Error, 1, b"again")
        + act(ACT_DATA, 1, b"late"),
    )
    yield (
        "data_after_close",
        bytes([OPEN])
        + act(ACT_OPEN)
        + message(Type.StreamClose, 1)
        + act(ACT_DATA, 1, b"late")
        + message(Type.StreamData, 1, b"late"),
    )
    yield (
        "requests",
        bytes([OPEN])
        + act(ACT_REQUEST, payload=b"GET /") * 2
        + act(ACT_ABANDON, 2)
        + message(Type.Data, 1, b"HTTP/1.1 200 OK")
        + message(Type.Data, 2, b"late"),
    )
    yield "fresh_document", bytes([OPEN]) + act(ACT_ATTEST) + message(Type.Attestation, 0)
    yield "document_not_asked_for", bytes([OPEN]) + message(Type.Attestation, 0)
    yield "full_table", bytes([OPEN]) + act(ACT_OPEN) * 70
    yield "unknown_id", bytes([OPEN]) + message(Type.StreamData, 9, b"whose?")
    yield "control_to_client", bytes([OPEN]) + message(Type.ControlNonce, 0)
    to_client = plain(Direction.TO_CLIENT, type=Type.StreamData, id=1, payload=bytes(range(30)))
    yield "split_record", bytes([OPEN]) + act(ACT_OPEN) + say(to_client, 4) + say(to_client, 22)
    yield (
        "joined_records",
        bytes([OPEN]) + act(ACT_OPEN) + say(to_client, HOLD) * 3 + say(to_client, 70) + raw(b""),
    )
    yield (
        "large",
        bytes([OPEN])
        + act_large(ACT_OPEN, 0, 34000)
        + act_large(ACT_DATA, 1, 32700)
        + act_large(ACT_REQUEST, 0, 65535)
        + large(Type.StreamData, 1, 32700, 30000)
        + large(Type.StreamData, 1, 32700),
    )
    in_pieces = act(ACT_OPEN) + say(to_client, HOLD) * 3 + say(to_client) + act(ACT_CLOSE, 1)
    for piece in (1, 3, 4, 35):
        yield f"pieces_of_{piece}", bytes([OPEN + 7 * piece]) + in_pieces
    yield "large_in_pieces", bytes([OPEN + 7 * 35]) + act(0) + large(Type.StreamData, 1, 9000) * 2
    yield "production_in_pieces", bytes([PRODUCTION + 7 * 29]) + document(0) + act(ACT_OPEN)
    yield "no_cbor", bytes([OPEN]) + say(b"\xff")
    yield "garbage", bytes([OPEN]) + raw(b"\0\0\0\x20" + bytes(32))
    yield "length_too_long", bytes([OPEN]) + raw(b"\0\x01\0\0")
    yield "length_too_short", bytes([OPEN]) + raw(b"\0\0\0\x10")
    yield "after_the_end", bytes([OPEN]) + act(ACT_OPEN) + raw(b"\0\0\0\0") + act(ACT_DATA, 1)
    yield (
        "serving",
        bytes([SERVING])
        + message(Type.RequestAttestation, 0)
        + act(SERVE_DOCUMENT, payload=bytes(32))
        + message(Type.OpenStream, 1, b"GET /")
        + message(Type.StreamData, 1, b"more")
        + act(SERVE_DATA, 1, b"answer")
        + message(Type.StreamClose, 1)
        + act(SERVE_CLOSE, 1)
        + message(Type.StreamClose, 2)
        + message(Type.Data, 5, b"GET /")
        + act(SERVE_REPLY, 5, b"200")
        + act(SERVE_ERROR, 9),
    )
    yield "serving_twice", bytes([SERVING]) + message(Type.OpenStream, 1) * 2
    opened = b"".join(message(Type.OpenStream, number) for number in range(1, 70))
    yield "serving_full", bytes([SERVING]) + opened
    yield "serving_control", bytes([SERVING]) + message(Type.GetControlNonce, 0)


# attest: which checks, then the document

USE_DEBUG, LEAVE_NONCE, USE_NO_CACHE, LEAVE_PINS, AS_ROOT = 1, 2, 4, 8, 16


def kept() -> dict[str, bytes]:
    """The arrays of attest_root.h, where there is one."""
    path = HERE / "attest_root.h"
    arrays = re.findall(r"char (\w+)\[\] UNUSED = \{(.*?)\}", path.read_text(), re.DOTALL)
    return {
        name: bytes(int(value, 16) for value in re.findall("0x(..)", text)) for name, text in arrays
    }


KEPT = kept() if (HERE / "attest_root.h").exists() else {}


def key(name: str, make: Callable[[], pki.PrivateKey]) -> pki.PrivateKey:
    if f"attest_secret_{name}" not in KEPT:
        return make()
    loaded = serialization.load_der_private_key(KEPT[f"attest_secret_{name}"], None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return loaded


def p384() -> pki.PrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


# Of the chain, root first; a spare one; three of kinds that must be refused.
CHAIN = ("root", "ca1", "ca2", "ca3", "leaf")
LEAF = len(CHAIN) - 1
KEYS: dict[str, pki.PrivateKey] = {
    **{name: key(name, p384) for name in (*CHAIN, "spare")},
    "p256": key("p256", lambda: ec.generate_private_key(ec.SECP256R1())),
    "brainpool": key("brainpool", lambda: ec.generate_private_key(ec.BrainpoolP384R1())),
    "rsa": key("rsa", lambda: rsa.generate_private_key(65537, 2048)),
}


def good_chain() -> pki.EnclavePki:
    if not all(f"attest_{name}" in KEPT for name in CHAIN):
        return pki.mint(chain=specs())
    root, *cas, leaf = (KEPT[f"attest_{name}"] for name in CHAIN)
    pem = x509.load_der_x509_certificate(root).public_bytes(serialization.Encoding.PEM)
    return pki.EnclavePki(root, pem, [root, *cas], leaf, secret(KEYS["leaf"]))


def signer(key_der: bytes) -> Callable[[bytes], bytes]:
    key = serialization.load_der_private_key(key_der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384())))
        return r.to_bytes(48, "big") + s.to_bytes(48, "big")

    return sign


def specs() -> list[pki.CertificateSpec]:
    return [
        dataclasses.replace(spec, key=KEYS[name])
        for spec, name in zip(pki.specs(NOW), CHAIN, strict=True)
    ]


def chain(index: int, **changes: Any) -> pki.EnclavePki:
    """The good one, with one certificate that is not."""
    wanted = specs()
    wanted[index] = dataclasses.replace(wanted[index], **changes)
    return pki.mint(chain=wanted)


def broken_chains() -> Iterator[tuple[str, pki.EnclavePki]]:
    day = timedelta(days=1)
    usage = frozenset({"crl_sign"})
    others = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "other")])
    constraints = x509.NameConstraints([x509.DNSName("test")], None)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
    yield "leaf_expired", chain(LEAF, not_after=NOW - timedelta(seconds=1))
    yield "ca_expired", chain(2, not_after=NOW - timedelta(seconds=1))
    yield "ca_not_yet_valid", chain(2, not_before=NOW + timedelta(seconds=1), not_after=NOW + day)
    yield "ca_is_none", chain(2, ca=None, path_length=None)
    yield "ca_says_no", chain(2, ca=False, path_length=None)
    yield "ca_may_not_sign", chain(2, key_usage=usage)
    yield "ca_without_usage", chain(2, key_usage=frozenset())
    yield "ca_path_length", chain(1, path_length=1)
    yield "ca_wrong_issuer", chain(2, issuer_name=others)
    yield "ca_p256", chain(2, key=KEYS["p256"])
    yield "ca_rsa", chain(2, key=KEYS["rsa"])
    yield "ca_brainpool", chain(2, key=KEYS["brainpool"])
    yield "ca_sha256", chain(2, signature_hash=hashes.SHA256())
    yield "ca_name_constraints", chain(2, extensions=((constraints, True),))
    yield "leaf_is_ca", chain(LEAF, ca=True, path_length=None)
    yield "leaf_may_not_sign", chain(LEAF, key_usage=usage)
    yield "leaf_without_usage", chain(LEAF, key_usage=frozenset())
    yield "leaf_unknown_critical", chain(LEAF, extensions=((unknown, True),))
    yield "leaf_unknown", chain(LEAF, extensions=((unknown, False),))


def without_seconds(minted: pki.EnclavePki) -> bytes:
    """The leaf, valid from a time that OpenSSL reads and RFC 5280 does not have."""
    leaf = x509.load_der_x509_certificate(minted.leaf_der)
    signed = leaf.tbs_certificate_bytes
    issuer = KEYS["ca3"]
    assert isinstance(issuer, ec.EllipticCurvePrivateKey)
    at = signed.index(b"\x17\x0d")
    assert signed[at - 2 : at - 1] == b"\x30"
    content = (
        signed[4 : at - 1]
        + bytes([signed[at - 1] - 2, 0x17, 0x0B])
        + signed[at + 2 : at + 12]
        + signed[at + 14 :]
    )
    signed = b"\x30\x82" + len(content).to_bytes(2, "big") + content
    signature = issuer.sign(signed, ec.ECDSA(hashes.SHA384()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040303")
    bits = bytes([0x03, len(signature) + 1, 0]) + signature
    body = signed + algorithm + bits
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


def spoiled(signed: bytes) -> bytes:
    return signed[:-1] + bytes([signed[-1] ^ 1])


def attest(minted: pki.EnclavePki) -> Seeds:
    sign = signer(minted.leaf_key_der)
    fields: dict[str, Any] = {
        "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
        "digest": "SHA384",
        "timestamp": AT * 1000,
        "pcrs": PCRS,
        "certificate": minted.leaf_der,
        "cabundle": list(minted.cabundle),
        "public_key": None,
        "user_data": None,
        "nonce": NONCE,
    }

    def document(
        payload: bytes,
        *,
        tag: bytes = b"",
        indefinite: bool = False,
        headers: tuple[Any, Any] = ({1: -35}, {}),
    ) -> bytes:
        protected = cbor2.dumps(headers[0])
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        items: list[Any] = [protected, headers[1], payload, sign(signed)]
        parts = [cbor2.dumps(p) for p in items]
        start, end = (b"\x9f", b"\xff") if indefinite else (b"\x84", b"")
        return tag + start + b"".join(parts) + end

    def with_fields(**changes: Any) -> bytes:
        return document(cbor2.dumps({**fields, **changes}))

    def without(name: str) -> bytes:
        return document(cbor2.dumps({k: v for k, v in fields.items() if k != name}))

    pairs = b"".join(cbor2.dumps(k) + cbor2.dumps(v) for k, v in fields.items())
    good = with_fields()
    yield "good", b"\0" + good
    yield "good_no_cache", bytes([USE_NO_CACHE]) + good
    yield "good_no_pins", bytes([LEAVE_PINS | LEAVE_NONCE]) + good
    yield "tagged", b"\0" + document(cbor2.dumps(fields), tag=b"\xd2")
    yield "indefinite", b"\0" + document(b"\xbf" + pairs + b"\xff", indefinite=True)
    yield "duplicate_key", b"\0" + document(b"\xaa" + pairs + cbor2.dumps("nonce") + b"\xf6")
    yield "other_nonce", b"\0" + with_fields(nonce=bytes(32))
    yield "no_nonce", b"\0" + without("nonce")
    yield "other_pcrs", b"\0" + with_fields(pcrs={**PCRS, 2: b"\x13" * 48})
    yield "zero_pcrs", bytes([LEAVE_PINS]) + with_fields(pcrs={**PCRS, 0: bytes(48)})
    yield "many_pcrs", b"\0" + with_fields(pcrs={**PCRS, 8: bytes(32), 31: bytes(64)})
    yield "user_data", b"\0" + with_fields(user_data=bytes(32), public_key=bytes(10))
    yield "short_bundle", b"\0" + with_fields(cabundle=minted.cabundle[1:])
    yield "bad_signature", b"\0" + good[:-1] + bytes([good[-1] ^ 1])
    body = cbor2.dumps(fields)
    yield "other_algorithm", b"\0" + document(body, headers=({1: -7}, {}))
    yield "algorithm_unprotected", b"\0" + document(body, headers=({}, {1: -35}))
    yield "critical_header", b"\0" + document(body, headers=({1: -35, 2: ["x"]}, {}))
    for name, broken in broken_chains():
        bundle = [minted.root_der, *broken.cabundle[1:]]
        changed = with_fields(certificate=broken.leaf_der, cabundle=bundle)
        yield name, b"\0" + changed
    yield "leaf_time_without_seconds", b"\0" + with_fields(certificate=without_seconds(minted))
    yield "leaf_bad_signature", b"\0" + with_fields(certificate=spoiled(minted.leaf_der))
    bundle = [*minted.cabundle[:3], spoiled(minted.cabundle[3])]
    yield "ca_bad_signature", b"\0" + with_fields(cabundle=bundle)
    swapped = [*minted.cabundle[:2], chain(2, key=KEYS["spare"]).cabundle[2], minted.cabundle[3]]
    yield "ca_of_another_key", b"\0" + with_fields(cabundle=swapped)
    plain = {**fields, "timestamp": 0, "certificate": bytes(64), "cabundle": [bytes(64)]}
    yield "debug", bytes([USE_DEBUG]) + document(cbor2.dumps(plain))
    zero = {**plain, "pcrs": {i: bytes(48) for i in (0, 1, 2, 8)}}
    yield "debug_zero_pcrs", bytes([USE_DEBUG | LEAVE_PINS]) + document(cbor2.dumps(zero))
    yield "debug_stub", bytes([USE_DEBUG | LEAVE_PINS]) + NONCE
    yield "debug_stub_other", bytes([USE_DEBUG | LEAVE_PINS]) + bytes(32)
    yield "root_der", bytes([AS_ROOT]) + minted.root_der
    yield "root_pem", bytes([AS_ROOT]) + minted.root_pem
    for name, changes in (
        ("expired", {"not_after": NOW}),
        ("is_none", {"ca": None}),
        ("may_not_sign", {"key_usage": frozenset({"crl_sign"})}),
        ("brainpool", {"key": KEYS["brainpool"]}),
        ("sha256", {"signature_hash": hashes.SHA256()}),
    ):
        yield f"root_{name}", bytes([AS_ROOT]) + chain(0, **changes).root_der  # type: ignore[arg-type]
    yield "root_pem_twice", bytes([AS_ROOT]) + minted.root_pem * 2


def array(name: str, data: bytes) -> list[str]:
    lines = [
        "    " + ", ".join(f"0x{b:02x}" for b in data[i : i + 12]) + ","
        for i in range(0, len(data), 12)
    ]
    return [f"static const unsigned char {name}[] UNUSED = {{", *lines, "};"]


def public_forms() -> Iterator[tuple[str, str, bytes]]:
    """Name, whose secret it belongs to, SubjectPublicKeyInfo."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    for name, key in KEYS.items():
        yield name, name, key.public_key().public_bytes(serialization.Encoding.DER, form)
    for name, option in (
        ("compressed", ("-ec_conv_form", "compressed")),
        ("explicit", ("-ec_param_enc", "explicit")),
    ):
        made = subprocess.run(
            ["openssl", "pkey", "-inform", "DER", "-pubout", "-outform", "DER", *option],
            input=secret(KEYS["spare"]),
            capture_output=True,
            check=True,
        )
        yield name, "spare", made.stdout


def secret(key: pki.PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def write_root(minted: pki.EnclavePki) -> None:
    lines: list[str] = array("attest_root", minted.root_der)
    for name, der in zip(CHAIN[1:], [*minted.cabundle[1:], minted.leaf_der], strict=True):
        lines += array(f"attest_{name}", der)
    rows: list[str] = []
    for name, key in KEYS.items():
        lines += array(f"attest_secret_{name}", secret(key))
    for name, owner, spki in public_forms():
        lines += array(f"attest_public_{name}", spki)
        rows.append(
            f"    {{{{attest_secret_{owner}, sizeof attest_secret_{owner}}}, "
            f"{{attest_public_{name}, sizeof attest_public_{name}}}}},"
        )
    text = "\n".join(
        [
            "/* Written by make_corpus.py together with the seeds of fuzz_attest. The keys sign",
            " * what the mutator changed; they were made for that and for nothing else. */",
            "#ifndef ENCL_FUZZ_ATTEST_ROOT_H",
            "#define ENCL_FUZZ_ATTEST_ROOT_H",
            "",
            '#include "base/buf.h"',
            "",
            f"#define ATTEST_NOW      {AT}",
            f"#define ATTEST_LEAF_KEY {LEAF}",
            f"#define ATTEST_KEYS     {len(rows)}",
            "",
            "#define UNUSED __attribute__((unused))",
            "",
            "/* clang-format off */",
            *lines,
            "static const struct attest_key {",
            "    encl_slice secret, spki; /* PKCS#8, SubjectPublicKeyInfo */",
            "} attest_keys[ATTEST_KEYS] UNUSED = {",
            *rows,
            "};",
            "/* clang-format on */",
            "#undef UNUSED",
            "",
            "#endif",
            "",
        ]
    )
    (HERE / "attest_root.h").write_text(text)


# The parsers that are Python (fuzz_python.py)


# payload: the kind, then CBOR


def payload() -> Seeds:
    hexed = {f"PCR{i}": f"{16 + i:02x}" * 48 for i in range(3)}
    lower = {name.lower(): value for name, value in hexed.items()}
    common = {"enclave_id": bytes(range(16)), "nonce": bytes(32)}
    at = "2026-08-01T12:00:00.5Z"
    boot = {**common, "image_digest": "sha256:aa", "pcrs": hexed, "booted_at": at}
    upgrade = {
        **common, "image_digest": "sha256:bb", "from_pcrs": hexed, "to_pcrs": lower,
        "valid_from": at, "issued_at": at,
    }  # fmt: skip
    revocation = {**common, "revokes": bytes(16), "issued_at": at}
    for kind, (name, fields) in enumerate(
        {"boot": boot, "upgrade": upgrade, "revocation": revocation}.items()
    ):
        yield name, bytes([kind]) + cbor2.dumps(fields)
        yield f"{name}_version_2", bytes([kind]) + cbor2.dumps({"version": 2, **fields})
        missing = {key: value for key, value in fields.items() if key != "nonce"}
        yield f"{name}_without", bytes([kind]) + cbor2.dumps(missing)
    further = {**boot, "pcrs": {**hexed, "PCR16": "00" * 48}}
    yield "boot_pcr16", b"\0" + cbor2.dumps(further)
    twice = {**boot, "pcrs": {**hexed, "pcr0": "00" * 48}}
    yield "boot_both_cases", b"\0" + cbor2.dumps(twice)
    yield "boot_short_pcrs", b"\0" + cbor2.dumps({**boot, "pcrs": dict.fromkeys(hexed, "ab" * 32)})


def pcrs() -> Seeds:
    values = ["4f" * 48, "7e" * 48, "6b" * 48]
    named = {f"PCR{i}": value for i, value in enumerate(values)}
    lower = {name.lower(): "0x" + value[:64] for name, value in named.items()}
    lines = "".join(f"    {name}: {value}\n" for name, value in named.items())
    zeros = "".join(f"PCR{i}={'0' * 64}\n" for i in (0, 1, 2))
    built = {"Measurements": {"HashAlgorithm": "Sha384 { ... }", **named}}
    yield "status_json", json.dumps({"id": "0f8f", "pcrs": named}).encode()
    yield "status_text", f"  Name: hello\n  PCRs:\n{lines}".encode()
    yield "built", ("Start building...\n" + json.dumps(built, indent=2)).encode()
    yield "nested", json.dumps([{"enclave": {"pcrs": lower}}]).encode()
    yield "two_sets", (zeros + lines).encode()
    yield "same_twice", (zeros + zeros).encode()
    yield "byte_order_mark", b"\xef\xbb\xbf{not json} {\n" + json.dumps(named).encode()
    yield "missing", json.dumps({"PCR0": "00"}).encode()
    yield "empty_lines", b"\n" * 4000


def url() -> Seeds:
    yield "plain", b"wss://abc.enclaves.example\n/v1/models"
    yield "https", b"https://h:8443/p?q=1\nhttps://h:8443/x"
    yield "ipv6", b"ws://[::1]:8080/\nhttps://[::1]:8080/"
    yield "international", "wss://m\u00fcnchen.example\n//other.example/".encode()
    yield "user", b"wss://u:p@h/\nhttps://u@h/"
    yield "port_zero", b"wss://h:0\n?q"
    yield "fragment", b"wss://h/#f\n#f"
    yield "spaces", b" wss://H.example \nwss://h.example:443/a b"


def http1() -> Seeds:
    ok = b"HTTP/1.1 200 OK\r\n"
    chunks = b"Transfer-Encoding: chunked\r\n\r\n"
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
    answers = {
        "length": ok + b"Content-Length: 5\r\n\r\nhello",
        "chunked": ok + chunks + b"5;x=y\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
        "until_close": b"HTTP/1.0 200 OK\r\n\r\nuntil close",
        "informational": early + ok + b"Content-Length: 0\r\nConnection: close\r\n\r\nmore",
        "upgrade": switching + b"Connection: upgrade\r\n\r\n\x81\0",
        "length_and_chunks": ok + b"Content-Length: 5\r\n" + chunks,
        "no_content": b"HTTP/1.1 204 No Content\r\n\r\n",
        "two_lengths": ok + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    }
    for piece, (name, answer) in enumerate(answers.items(), 6):
        yield name, bytes([0, piece]) + answer
    yield "head", bytes([1, 9]) + answers["length"]
    yield "connect", bytes([2, 9]) + answers["length"]


def upgrades() -> Seeds:
    named = {f"PCR{i}": f"{16 + i:02x}" * 48 for i in range(3)}
    row = {"pcrs": named, "image_digest": "sha256:aa", "upgradable": True}
    key = [4, *range(64)]
    encoded = base64.b64encode(bytes([4, *range(64)])).decode()
    boot = dict(payload())["boot"][1:]
    upgrade = dict(payload())["upgrade"][1:]
    links = [
        {
            "id": "00000000-0000-0000-0000-000000000001",
            "kind": kind,
            "sequence": place,
            "payload": base64.b64encode(each).decode(),
            "attestation": "hEA=",
            "created_at": "2026-08-01T12:00:00+02:00",
        }
        for place, (kind, each) in enumerate((("boot", boot), ("upgrade", upgrade)))
    ]
    links[1]["signature"] = base64.b64encode(bytes(64)).decode()

    def both(first: object, second: object) -> bytes:
        return json.dumps(first).encode() + b"\0" + json.dumps(second).encode()

    yield "good", both({**row, "control_public_key": key}, links)
    yield "base64_key", both({**row, "control_public_key": encoded}, links[:1])
    yield "no_key", both({**row, "control_public_key": None}, [])
    yield "signed_boot", both(row, [{**links[0], "signature": ""}])
    yield "sequence", both(row, [{**links[0], "sequence": 1}])
    yield "deep", b"[" * 40 + b"\0" + b'[{"a": ' * 20
    yield "twice", b'{"a": 1, "a": 2}\0[{"kind": "boot", "kind": "boot"}]'
    yield "numbers", b'{"a": 123456789012345678901}\0[NaN]'


def attest_and_root() -> Seeds:
    minted = good_chain()
    write_root(minted)
    yield from attest(minted)


FUZZERS: dict[str, Callable[[], Seeds]] = {
    "attest": attest_and_root,
    "payload": payload,
    "upgrades": upgrades,
    "http1": http1,
    "pcrs": pcrs,
    "record": record,
    "url": url,
    "wire": wire,
    "ws": ws,
}


def main() -> None:
    named = sys.argv[1:] or list(FUZZERS)
    if not FUZZERS.keys() >= set(named):
        raise SystemExit(f"expected names of {', '.join(FUZZERS)}, got {' '.join(named)}")
    for fuzzer in named:
        folder = HERE / "corpus" / fuzzer
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in FUZZERS[fuzzer]():
            (folder / f"seed_{name}").write_bytes(data)


if __name__ == "__main__":
    main()
