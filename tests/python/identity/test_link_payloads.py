"""Payloads of an upgrade chain's links, documents of the past, and the control key's signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attest_ctypes as attest
import pytest
from attest_ctypes import AttestError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from documents import (
    AT,
    NOW,
    PCRS,
    array,
    bstr,
    chain_with,
    cmap,
    document_of,
    good,
    good_pki,
    tstr,
    uint,
)

UUID = bytes(range(16))
TIME = "2026-08-01T12:00:00.123456Z"


def hex_map(byte: int, size: int = 48, names: str = "PCR") -> bytes:
    return cmap([(tstr(f"{names}{n}"), tstr(f"{byte + n:02x}" * size)) for n in range(3)])


def values(byte: int, size: int = 48) -> tuple[bytes, ...]:
    return tuple(bytes([byte + n]) * size for n in range(3))


FIELDS: dict[str, dict[str, bytes]] = {
    "boot": {
        "enclave_id": bstr(UUID),
        "image_digest": tstr("sha256:aa"),
        "pcrs": hex_map(0x10),
        "booted_at": tstr(TIME),
        "nonce": bstr(bytes(32)),
    },
    "upgrade": {
        "enclave_id": bstr(UUID),
        "from_pcrs": hex_map(0x10),
        "to_pcrs": hex_map(0x20),
        "image_digest": tstr("sha256:bb"),
        "valid_from": tstr(TIME),
        "issued_at": tstr(TIME),
        "nonce": bstr(bytes(32)),
    },
    "revocation": {
        "enclave_id": bstr(UUID),
        "revokes": bstr(bytes(16)),
        "issued_at": tstr(TIME),
        "nonce": bstr(bytes(32)),
    },
}
EVERY = [(kind, name) for kind, fields in FIELDS.items() for name in fields]
every_field = pytest.mark.parametrize(("kind", "name"), EVERY)


def payload(kind: str, **changes: bytes | None) -> bytes:
    fields = {**FIELDS[kind], **changes}
    return cmap([(tstr(name), value) for name, value in fields.items() if value is not None])


def refuse(kind: str, encoded: bytes, fragment: str) -> None:
    with pytest.raises(AttestError) as caught:
        attest.link_payload(kind, encoded)
    assert (caught.value.code, fragment in caught.value.message) == ("document error", True), (
        caught.value
    )


def test_a_boot() -> None:
    assert attest.link_payload("boot", payload("boot")) == {
        "enclave_id": UUID,
        "image_digest": b"sha256:aa",
        "pcrs": values(0x10),
        "booted_at": TIME.encode(),
        "nonce": bytes(32),
    }


def test_an_upgrade() -> None:
    assert attest.link_payload("upgrade", payload("upgrade")) == {
        "enclave_id": UUID,
        "image_digest": b"sha256:bb",
        "pcrs": values(0x10),
        "to_pcrs": values(0x20),
        "valid_from": TIME.encode(),
        "issued_at": TIME.encode(),
        "nonce": bytes(32),
    }


def test_a_revocation() -> None:
    assert attest.link_payload("revocation", payload("revocation")) == {
        "enclave_id": UUID,
        "revokes": bytes(16),
        "issued_at": TIME.encode(),
        "nonce": bytes(32),
    }


def test_order_and_indefinite_lengths_do_not_matter() -> None:
    pairs = [(tstr(name), value) for name, value in reversed(FIELDS["boot"].items())]
    assert attest.link_payload("boot", cmap(pairs, indefinite=True))["pcrs"] == values(0x10)


@every_field
def test_each_field_is_needed(kind: str, name: str) -> None:
    refuse(kind, payload(kind, **{name: None}), f"expected a field {name}, got none")


@every_field
def test_each_field_is_there_once(kind: str, name: str) -> None:
    pairs = [(tstr(each), value) for each, value in FIELDS[kind].items()]
    refuse(kind, cmap([*pairs, (tstr(name), FIELDS[kind][name])]), "twice")


@every_field
@pytest.mark.parametrize("value", [uint(5), array([]), b"\xf6", b"\xf5", cmap([]), bstr(b"")])
def test_each_field_has_its_type(kind: str, name: str, value: bytes) -> None:
    refuse(kind, payload(kind, **{name: value}), "")


@every_field
def test_text_and_bytes_are_not_the_same(kind: str, name: str) -> None:
    value = FIELDS[kind][name]
    other = bytes([value[0] ^ 0x20]) + value[1:] if value[0] >> 5 in (2, 3) else tstr("x")
    refuse(kind, payload(kind, **{name: other}), name)


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("key", ["version", "v", "pcrs2", "Nonce", "", "x" * 300])
def test_a_field_that_is_not_known_is_refused_by_its_name(kind: str, key: str) -> None:
    refuse(kind, payload(kind, **{key: uint(2)}), key[:32])
    refuse(kind, payload(kind, **{key: uint(2)}), "newer version")


@pytest.mark.parametrize("kind", FIELDS)
def test_a_key_that_is_a_number(kind: str) -> None:
    pairs = [(tstr(name), value) for name, value in FIELDS[kind].items()]
    refuse(kind, cmap([*pairs, (uint(1), uint(1))]), "a number")


def test_a_field_of_another_kind_is_not_known() -> None:
    refuse("boot", payload("boot", valid_from=tstr(TIME)), "valid_from")
    refuse("revocation", payload("revocation", image_digest=tstr("x")), "image_digest")
    refuse("boot", payload("upgrade"), "from_pcrs")
    refuse("upgrade", payload("upgrade", revokes=bstr(bytes(16))), "revokes")


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_uuid_has_16_bytes(kind: str, size: int) -> None:
    refuse(kind, payload(kind, enclave_id=bstr(bytes(size))), "16 to 16 bytes")
    refuse("revocation", payload("revocation", revokes=bstr(bytes(size))), "16 to 16 bytes")


@pytest.mark.parametrize(
    ("name", "make", "least", "most"),
    [
        ("nonce", lambda n: bstr(bytes(n)), 1, 64),
        ("image_digest", lambda n: tstr("x" * n), 1, 512),
        ("booted_at", lambda n: tstr("x" * n), 1, 64),
    ],
)
def test_sizes(name: str, make: Callable[[int], bytes], least: int, most: int) -> None:
    for size in (least, most):
        assert len(attest.link_payload("boot", payload("boot", **{name: make(size)}))[name]) == size
    for size in (least - 1, most + 1):
        refuse("boot", payload("boot", **{name: make(size)}), f"{least} to {most} bytes")


def test_the_whole_payload_has_a_size() -> None:
    limit = 8192
    padding = limit - len(payload("boot", image_digest=tstr("x"))) - 10
    big = payload("boot") + bytes(limit - len(payload("boot")))
    refuse("boot", big, "more bytes")  # read to its end
    refuse("boot", big + b"\0", "at most 8192 bytes")
    assert padding > 0


@pytest.mark.parametrize("size", [32, 48, 64])
def test_pcr_sizes(size: int) -> None:
    found = attest.link_payload("boot", payload("boot", pcrs=hex_map(0x30, size)))
    assert found["pcrs"] == values(0x30, size)


def test_pcrs_are_a_map_of_texts() -> None:
    refuse("boot", payload("boot", pcrs=array([])), "pcrs: expected a map")
    pairs = [(tstr("PCR0"), uint(5)), *((tstr(f"PCR{n}"), tstr("00" * 48)) for n in (1, 2))]
    refuse("boot", payload("boot", pcrs=cmap(pairs)), "pcrs: expected a text")
    same = [(tstr("PCR0"), tstr("00" * 48))] * 2
    refuse("boot", payload("boot", pcrs=cmap(same)), "the same key twice")


@pytest.mark.parametrize("size", [0, 16, 31, 33, 47, 49, 63, 65, 100])
def test_other_pcr_sizes(size: int) -> None:
    refuse("boot", payload("boot", pcrs=hex_map(0x30, size)), "pcrs: expected")


def one_pcr(text: str) -> bytes:
    pairs = [(tstr("PCR0"), tstr(text)), *((tstr(f"PCR{n}"), tstr("00" * 48)) for n in (1, 2))]
    return payload("boot", pcrs=cmap(pairs))


@pytest.mark.parametrize("wrong", ["g", "G", "/", ":", "@", "`", " ", "\x10", "\x19", "é"])
@pytest.mark.parametrize("place", [0, 1, 94, 95])
def test_pcrs_are_hex(wrong: str, place: int) -> None:
    text = "a" * place + wrong + "b" * (96 - place - len(wrong.encode()))
    refuse("boot", one_pcr(text), "expected PCRs of")


def test_every_hex_digit() -> None:
    digits = "0123456789abcdefABCDEF"
    text = (digits * 5)[:96]
    assert attest.link_payload("boot", one_pcr(text))["pcrs"][0] == bytes.fromhex(text)


def test_lower_case_names_of_pcrs() -> None:
    found = attest.link_payload("boot", payload("boot", pcrs=hex_map(0x10, names="pcr")))
    assert found["pcrs"] == values(0x10)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_pcrs_in_both_cases_are_twice(index: int) -> None:
    pairs = [(tstr(f"PCR{n}"), tstr("00" * 48)) for n in range(3)]
    pairs.append((tstr(f"pcr{index}"), tstr("00" * 48)))
    refuse("boot", payload("boot", pcrs=cmap(pairs)), f"PCR{index} once")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_pcr_is_needed(index: int) -> None:
    pairs = [(tstr(f"PCR{n}"), tstr("00" * 48)) for n in range(3) if n != index]
    refuse("boot", payload("boot", pcrs=cmap(pairs)), f"expected PCR{index}, got none")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_pcrs_have_one_length(index: int) -> None:
    pairs = [(tstr(f"PCR{n}"), tstr("00" * (32 if n == index else 48))) for n in range(3)]
    refuse("boot", payload("boot", pcrs=cmap(pairs)), "one length")


@pytest.mark.parametrize("name", ["PCR3", "PCR16", "pcr31", "Pcr0", "PCR"])
@pytest.mark.parametrize(("kind", "field"), [("boot", "pcrs"), ("upgrade", "to_pcrs")])
def test_further_pcrs_are_of_a_newer_version(name: str, kind: str, field: str) -> None:
    pairs = [(tstr(f"PCR{n}"), tstr("00" * 48)) for n in range(3)]
    pairs.append((tstr(name), tstr("00" * 48)))
    refuse(kind, payload(kind, **{field: cmap(pairs)}), name)


@pytest.mark.parametrize("kind", FIELDS)
def test_whatever_is_cut_is_refused(kind: str) -> None:
    whole = payload(kind)
    for length in range(len(whole)):
        refuse(kind, whole[:length], "")
    refuse(kind, whole + b"\0", "1 more bytes")


@pytest.mark.parametrize("other", [array([]), tstr("x"), b"\xf6", b"\xc1" + cmap([])])
def test_a_payload_is_a_map(other: bytes) -> None:
    refuse("boot", other, "the payload")


def test_strings_in_chunks_are_refused() -> None:
    refuse("boot", payload("boot", image_digest=b"\x7f" + tstr("a") + b"\xff"), "")


# -- documents of the past --------------------------------------------------------------------


def test_a_document_is_judged_at_its_own_time() -> None:
    found = attest.verify_recorded(good().encode(), root=good_pki().root_der)
    assert found.form is attest.Form.NITRO
    assert found.verified_at == AT
    assert found.timestamp_ms == AT * 1000
    assert found.pcrs[0] == PCRS[0]


@pytest.mark.parametrize(
    ("timestamp", "fragment"),
    [
        ((AT - 1) * 1000 + 999, "not yet valid"),
        ((AT + 3 * 3600 + 1) * 1000, "has expired"),
    ],
)
def test_its_certificates_must_be_valid_then(timestamp: int, fragment: str) -> None:
    with pytest.raises(AttestError) as caught:
        attest.verify_recorded(good(timestamp=uint(timestamp)).encode(), root=good_pki().root_der)
    assert caught.value.code == "certificate error"
    assert fragment in caught.value.message


@pytest.mark.parametrize("timestamp", [AT * 1000, AT * 1000 + 999, (AT + 3 * 3600) * 1000 + 999])
def test_the_ends_of_their_validity(timestamp: int) -> None:
    document = good(timestamp=uint(timestamp)).encode()
    assert attest.verify_recorded(document, root=good_pki().root_der).timestamp_ms == timestamp


def test_the_leeway_counts_for_the_leafs_beginning() -> None:
    document = good(timestamp=uint((AT - 30) * 1000)).encode()
    assert attest.verify_recorded(document, root=good_pki().root_der, clock_leeway=30)
    with pytest.raises(AttestError):
        attest.verify_recorded(document, root=good_pki().root_der, clock_leeway=29)


def test_a_recorded_document_is_signed_and_chained() -> None:
    broken = good()
    broken.signature = lambda s: bytes(96)
    with pytest.raises(AttestError) as caught:
        attest.verify_recorded(broken.encode(), root=good_pki().root_der)
    assert caught.value.code == "signature error"
    with pytest.raises(AttestError) as caught:
        attest.verify_recorded(good().encode())
    assert caught.value.code == "certificate error"
    odd = chain_with(2, ca=False, path_length=None)
    with pytest.raises(AttestError) as caught:
        attest.verify_recorded(document_of(odd).encode(), root=odd.root_der)
    assert caught.value.code == "certificate error"


def test_a_recorded_document_of_a_debug_enclave() -> None:
    zeros = good(pcrs=cmap([(uint(n), bstr(bytes(48))) for n in range(3)])).encode()
    with pytest.raises(AttestError) as caught:
        attest.verify_recorded(zeros, root=good_pki().root_der)
    assert caught.value.code == "PCR mismatch"
    assert attest.verify_recorded(zeros, debug=True).form is attest.Form.DEBUG


def test_a_policy_that_was_never_set_up() -> None:
    with pytest.raises(AttestError) as caught:
        attest.verify_recorded_with(attest.Policy(), good().encode())
    assert caught.value.code == "invalid argument"


def test_links_are_remembered_between_documents() -> None:
    cache = attest.LinkCache()
    document = good().encode()
    attest.verify_recorded(document, root=good_pki().root_der, cache=cache)
    assert cache.hits == 0
    attest.verify_recorded(document, root=good_pki().root_der, cache=cache)
    assert cache.hits == 4


# -- ES256 ------------------------------------------------------------------------------------

KEY = ec.generate_private_key(ec.SECP256R1())
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def point(form: serialization.PublicFormat, key: Any = KEY) -> bytes:
    encoded: bytes = key.public_key().public_bytes(serialization.Encoding.X962, form)
    return encoded


WHOLE = point(serialization.PublicFormat.UncompressedPoint)
SHORT = point(serialization.PublicFormat.CompressedPoint)


def signed(message: bytes, key: Any = KEY, digest: Any = None) -> bytes:
    der = key.sign(message, ec.ECDSA(digest or hashes.SHA256()))
    r, s = decode_dss_signature(der)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def refuse_es256(key: bytes, message: bytes, signature: bytes, fragment: str = "") -> None:
    with pytest.raises(AttestError) as caught:
        attest.es256_verify(key, message, signature)
    assert caught.value.code == "signature error"
    assert fragment in caught.value.message


@pytest.mark.parametrize("key", [WHOLE, SHORT], ids=["whole", "short"])
@pytest.mark.parametrize("message", [b"", b"x", bytes(5000)])
def test_a_signature(key: bytes, message: bytes) -> None:
    attest.es256_verify(key, message, signed(message))


@pytest.mark.parametrize("place", [0, 31, 32, 63])
def test_a_changed_signature(place: int) -> None:
    signature = bytearray(signed(b"m"))
    signature[place] ^= 1
    refuse_es256(WHOLE, b"m", bytes(signature), "does not verify")


def test_another_message_key_or_digest() -> None:
    refuse_es256(WHOLE, b"other", signed(b"m"), "does not verify")
    other = ec.generate_private_key(ec.SECP256R1())
    refuse_es256(WHOLE, b"m", signed(b"m", other), "does not verify")
    refuse_es256(WHOLE, b"m", signed(b"m", digest=hashes.SHA384()), "does not verify")


@pytest.mark.parametrize("size", [0, 63, 65, 70, 96, 128])
def test_other_lengths_of_a_signature(size: int) -> None:
    refuse_es256(WHOLE, b"m", bytes(size), "64 bytes")


@pytest.mark.parametrize("r", [0, ORDER, ORDER + 1, 2**256 - 1])
def test_scalars_out_of_range(r: int) -> None:
    good = signed(b"m")
    refuse_es256(WHOLE, b"m", r.to_bytes(32, "big") + good[32:])
    refuse_es256(WHOLE, b"m", good[:32] + r.to_bytes(32, "big"))


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"\0",
        b"\x02",
        bytes(33),
        bytes(65),
        b"\x04" + bytes(64),
        b"\x05" + WHOLE[1:],
        WHOLE[:-1],
        WHOLE + b"\0",
        WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]),
        SHORT[:-1],
        b"\x02" + b"\xff" * 32,
    ],
    ids=lambda key: f"{len(key)} bytes",  # the keys are others in each run
)
def test_keys_that_are_none(key: bytes) -> None:
    whole = 1 < len(key) <= 65
    fragment = "not a point of P-256" if whole else f"33 or 65 bytes, got {len(key)}"
    refuse_es256(key, b"m", signed(b"m"), fragment)


def test_a_key_of_another_curve() -> None:
    other = ec.generate_private_key(ec.SECP256K1())
    key = point(serialization.PublicFormat.UncompressedPoint, other)
    refuse_es256(key, b"m", signed(b"m", other))


assert NOW.timestamp() == AT
