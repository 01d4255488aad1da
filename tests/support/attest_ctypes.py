"""The C layer csrc/attest through ctypes, for tests that need no built extension."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import (
    POINTER,
    Structure,
    Union,
    byref,
    c_bool,
    c_char,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import Any

import c_library

PCR_SLOTS = 32
CABUNDLE_MAX = 16
DOCUMENT_MAX_BYTES = 32768


class Form(IntEnum):
    NITRO = 0
    DEBUG = 1
    STUB = 2


class Slice(Structure):
    _fields_ = [("data", c_void_p), ("len", c_size_t)]


class Buf(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("r", c_size_t),
        ("w", c_size_t),
        ("cap", c_size_t),
        ("limit", c_size_t),
        ("owned", c_bool),
    ]


class _PcrDetail(Structure):
    _fields_ = [
        ("index", c_int),
        ("expected_len", c_size_t),
        ("actual_len", c_size_t),
        ("expected", c_uint8 * 64),
        ("actual", c_uint8 * 64),
    ]


class _UpgradeDetail(Structure):
    _fields_ = [("status", c_int), ("head_len", c_size_t), ("head", c_uint8 * 1024)]


class _Detail(Union):
    _fields_ = [("pcr", _PcrDetail), ("server", c_uint64), ("upgrade", _UpgradeDetail)]


class Error(Structure):
    _fields_ = [
        ("code", c_int),
        ("retryable", c_bool),
        ("hint", c_int),
        ("message", c_char * 512),
        ("detail", _Detail),
    ]


class Pcr(Structure):
    _fields_ = [("len", c_uint8), ("value", c_uint8 * 64)]

    @classmethod
    def of(cls, value: bytes) -> Pcr:
        return cls(len(value), (c_uint8 * 64)(*value))

    def bytes(self) -> bytes:
        return bytes(self.value[: self.len])


class Pins(Structure):
    _fields_ = [("pcr", Pcr * PCR_SLOTS)]


class Policy(Structure):
    _fields_ = [
        ("pins", POINTER(Pins)),
        ("pin_count", c_size_t),
        ("root", c_void_p),
        ("root_len", c_size_t),
        ("root_cert", c_void_p),
        ("debug", c_bool),
        ("need_pins", c_bool),
        ("clock_leeway", c_int64),
    ]


class _Attestation(Structure):
    _fields_ = [
        ("form", c_int),
        ("raw", c_void_p),
        ("raw_len", c_size_t),
        ("module_id", Slice),
        ("timestamp_ms", c_uint64),
        ("pcrs", Pcr * PCR_SLOTS),
        ("certificate", Slice),
        ("cabundle", Slice * CABUNDLE_MAX),
        ("cabundle_len", c_size_t),
        ("public_key", Slice),
        ("user_data", Slice),
        ("nonce", Slice),
        ("verified_at", c_int64),
        ("valid_until", c_int64),
        ("matched", c_int),
        ("matched_pcrs", c_uint32),
    ]


class _Template(Structure):
    _fields_ = [
        ("module_id", Slice),
        ("timestamp_ms", c_uint64),
        ("pcrs", Pcr * PCR_SLOTS),
        ("certificate", Slice),
        ("cabundle", Slice * CABUNDLE_MAX),
        ("cabundle_len", c_size_t),
        ("public_key", Slice),
        ("user_data", Slice),
        ("nonce", Slice),
    ]


class _LinkPayload(Structure):
    _fields_ = [
        ("enclave_id", Slice),
        ("image_digest", Slice),
        ("pcrs", Pins),
        ("to_pcrs", Pins),
        ("booted_at", Slice),
        ("valid_from", Slice),
        ("issued_at", Slice),
        ("revokes", Slice),
        ("nonce", Slice),
    ]


LINK_KINDS = ("boot", "upgrade", "revocation")


@dataclass(frozen=True)
class Attestation:
    form: Form
    raw: bytes
    module_id: str | None
    timestamp_ms: int
    pcrs: dict[int, bytes]
    certificate: bytes | None
    cabundle: list[bytes]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    verified_at: int
    valid_until: int
    matched: tuple[int, set[int]] | None
    """Which set of pins, and which PCRs are in it."""


class AttestError(Exception):
    """An error of the C layer: code is its name in csrc/base/error.c."""

    def __init__(self, error: Error) -> None:
        self.code: str = lib().encl_code_name(error.code).decode()
        self.message: str = error.message.decode()
        self.retryable: bool = error.retryable
        hint = lib().encl_hint_name(error.hint)
        self.hint: str | None = None if hint is None else hint.decode()
        pcr = error.detail.pcr
        self.pcr_index: int = pcr.index
        self.expected: bytes = bytes(pcr.expected[: pcr.expected_len])
        self.actual: bytes = bytes(pcr.actual[: pcr.actual_len])
        super().__init__(f"{self.code}: {self.message}")


@cache
def lib() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(c_library.path()))
    loaded.encl_code_name.restype = loaded.encl_hint_name.restype = c_char_p
    loaded.encl_aws_root_g1.restype = Slice
    loaded.encl_link_cache_hits.restype = c_size_t
    loaded.encl_link_cache_hits.argtypes = [c_void_p]
    loaded.encl_link_cache_free.argtypes = [c_void_p]
    loaded.encl_link_cache_free.restype = None
    loaded.encl_attestation_free.argtypes = [c_void_p]
    loaded.encl_attestation_free.restype = None
    loaded.encl_policy_free.restype = None
    loaded.encl_policy_init.argtypes = [
        POINTER(Policy),
        POINTER(Pins),
        c_size_t,
        Slice,
        c_bool,
        c_bool,
        POINTER(Error),
    ]
    loaded.encl_attest_verify.argtypes = [
        Slice,
        POINTER(Policy),
        Slice,
        c_int64,
        c_void_p,
        POINTER(POINTER(_Attestation)),
        POINTER(Error),
    ]
    loaded.encl_attest_verify_recorded.argtypes = [
        Slice,
        POINTER(Policy),
        c_void_p,
        POINTER(POINTER(_Attestation)),
        POINTER(Error),
    ]
    loaded.encl_attest_es384_verify.argtypes = [Slice, Slice, Slice, POINTER(Error)]
    loaded.encl_attest_es256_verify.argtypes = [Slice, Slice, Slice, POINTER(Error)]
    loaded.encl_link_payload_parse.argtypes = [
        Slice,
        c_int,
        POINTER(_LinkPayload),
        POINTER(Error),
    ]
    return loaded


def as_slice(value: bytes | None) -> Slice:
    """A slice over value, which it keeps alive."""
    if value is None:
        return Slice(None, 0)
    block = ctypes.create_string_buffer(value, len(value) + 1)
    s = Slice(ctypes.cast(block, c_void_p), len(value))
    s.block = block
    return s


def _bytes_of(s: Slice) -> bytes | None:
    return None if s.data is None else ctypes.string_at(s.data, s.len)


def _check(rc: int, error: Error) -> None:
    if rc != 0:
        assert rc == error.code
        raise AttestError(error)


def pins_of(pcrs: Sequence[bytes] | Mapping[int, bytes]) -> Pins:
    """PCR0 and those after it, or those of the indices of a mapping."""
    pins = Pins()
    for index, value in pcrs.items() if isinstance(pcrs, Mapping) else enumerate(pcrs):
        pins.pcr[index] = Pcr.of(value)
    return pins


@contextmanager
def policy(
    pins: Sequence[Sequence[bytes] | Mapping[int, bytes]] | None = None,
    *,
    root: bytes | None = None,
    debug: bool = False,
    need_pins: bool = False,
    clock_leeway: int = 0,
) -> Iterator[Policy]:
    p, error = Policy(), Error()
    sets = pins or ()
    array = (Pins * max(len(sets), 1))(*(pins_of(pin) for pin in sets))
    rc = lib().encl_policy_init(
        byref(p),
        None if pins is None else array,
        len(sets),
        as_slice(root),
        debug,
        need_pins,
        byref(error),
    )
    _check(rc, error)
    try:
        _check(
            lib().encl_policy_set_clock_leeway(byref(p), c_int64(clock_leeway), byref(error)), error
        )
        yield p
    finally:
        lib().encl_policy_free(byref(p))


class LinkCache:
    def __init__(self, max_entries: int = 64) -> None:
        self.pointer, error = c_void_p(), Error()
        rc = lib().encl_link_cache_new(c_size_t(max_entries), byref(self.pointer), byref(error))
        _check(rc, error)

    @property
    def hits(self) -> int:
        return int(lib().encl_link_cache_hits(self.pointer))

    def __del__(self) -> None:
        lib().encl_link_cache_free(self.pointer)


def verify_with(
    p: Policy,
    document: bytes,
    *,
    nonce: bytes | None = None,
    now: int,
    cache: LinkCache | None = None,
) -> Attestation:
    return _verified(
        lib().encl_attest_verify,
        as_slice(document),
        byref(p),
        as_slice(nonce),
        now,
        cache.pointer if cache else None,
    )


def _verified(function: Any, *arguments: Any) -> Attestation:
    """What one of the functions that verify a document has made of it, copied and freed."""
    out, error = POINTER(_Attestation)(), Error()
    rc = function(*arguments, byref(out), byref(error))
    if rc != 0:
        assert not out
    _check(rc, error)
    try:
        return _copy(out.contents)
    finally:
        lib().encl_attestation_free(out)


def _copy(a: Any) -> Attestation:
    raw = ctypes.string_at(a.raw, a.raw_len)
    for s in (a.module_id, a.certificate, a.public_key, a.user_data, a.nonce):
        assert s.data is None or a.raw <= s.data <= s.data + s.len <= a.raw + a.raw_len
    module_id = _bytes_of(a.module_id)
    bundle = [_bytes_of(s) for s in a.cabundle[: a.cabundle_len]]
    return Attestation(
        form=Form(a.form),
        raw=raw,
        module_id=None if module_id is None else module_id.decode(),
        timestamp_ms=a.timestamp_ms,
        pcrs={i: p.bytes() for i, p in enumerate(a.pcrs) if p.len},
        certificate=_bytes_of(a.certificate),
        cabundle=[c for c in bundle if c is not None],
        public_key=_bytes_of(a.public_key),
        user_data=_bytes_of(a.user_data),
        nonce=_bytes_of(a.nonce),
        verified_at=a.verified_at,
        valid_until=a.valid_until,
        matched=_matched(a),
    )


def _matched(a: Any) -> tuple[int, set[int]] | None:
    pinned = {index for index in range(PCR_SLOTS) if a.matched_pcrs >> index & 1}
    if a.matched == -1:
        assert not pinned
        return None
    return a.matched, pinned


def verify(
    document: bytes,
    *,
    pins: Sequence[Sequence[bytes] | Mapping[int, bytes]] | None = None,
    root: bytes | None = None,
    debug: bool = False,
    nonce: bytes | None = None,
    now: int,
    cache: LinkCache | None = None,
    clock_leeway: int = 0,
) -> Attestation:
    """encl_attest_verify under a policy made for this one call."""
    with policy(pins, root=root, debug=debug, clock_leeway=clock_leeway) as p:
        return verify_with(p, document, nonce=nonce, now=now, cache=cache)


def aws_root() -> bytes:
    root = _bytes_of(lib().encl_aws_root_g1())
    assert root is not None
    return root


def es384_verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    error = Error()
    rc = lib().encl_attest_es384_verify(
        as_slice(public_key), as_slice(message), as_slice(signature), byref(error)
    )
    _check(rc, error)


def verify_recorded(
    document: bytes,
    *,
    root: bytes | None = None,
    debug: bool = False,
    cache: LinkCache | None = None,
    clock_leeway: int = 0,
) -> Attestation:
    """encl_attest_verify_recorded under a policy made for this one call, without pins."""
    with policy(None, root=root, debug=debug, clock_leeway=clock_leeway) as p:
        return verify_recorded_with(p, document, cache)


def verify_recorded_with(p: Policy, document: bytes, cache: LinkCache | None = None) -> Attestation:
    return _verified(
        lib().encl_attest_verify_recorded,
        as_slice(document),
        byref(p),
        cache.pointer if cache else None,
    )


def es256_verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    error = Error()
    rc = lib().encl_attest_es256_verify(
        as_slice(public_key), as_slice(message), as_slice(signature), byref(error)
    )
    _check(rc, error)


def link_payload(kind: str, payload: bytes) -> dict[str, Any]:
    """encl_link_payload_parse: the fields that the kind has."""
    out, error = _LinkPayload(), Error()
    block = as_slice(payload)
    rc = lib().encl_link_payload_parse(block, LINK_KINDS.index(kind), byref(out), byref(error))
    _check(rc, error)
    found: dict[str, Any] = {}
    for name, _ in _LinkPayload._fields_:
        value = getattr(out, name)
        if isinstance(value, Pins):
            if value.pcr[0].len:
                assert not any(pcr.len for pcr in value.pcr[3:]), "nothing beside PCR0 to PCR2"
                found[name] = tuple(pcr.bytes() for pcr in value.pcr[:3])
        elif value.data is not None:
            assert block.data <= value.data <= value.data + value.len <= block.data + block.len
            found[name] = _bytes_of(value)
    return found


@dataclass(frozen=True)
class Template:
    """What encl_attest_sign builds a document from."""

    module_id: bytes = b"i-0123456789abcdef0-enc0123456789abcdef"
    timestamp_ms: int = 1
    pcrs: Mapping[int, bytes] = field(default_factory=dict)
    certificate: bytes = b""
    cabundle: Sequence[bytes] = ()
    public_key: bytes | None = None
    user_data: bytes | None = None
    nonce: bytes | None = None


def sign(template: Template, key: bytes = b"", *, limit: int = DOCUMENT_MAX_BYTES) -> bytes:
    doc, out, error = _Template(), Buf(), Error()
    slices: dict[str, Slice] = {
        name: as_slice(getattr(template, name))
        for name in ("module_id", "certificate", "public_key", "user_data", "nonce")
    }
    for name, value in slices.items():
        setattr(doc, name, value)
    bundle = [as_slice(c) for c in template.cabundle]
    for i, s in enumerate(bundle[:CABUNDLE_MAX]):
        doc.cabundle[i] = s
    doc.cabundle_len = len(bundle)
    for index, pcr in template.pcrs.items():
        doc.pcrs[index] = Pcr.of(pcr)
    doc.timestamp_ms = template.timestamp_ms
    lib().encl_buf_init(byref(out), c_size_t(limit))
    try:
        rc = lib().encl_attest_sign(byref(doc), as_slice(key), byref(out), byref(error))
        _check(rc, error)
        return ctypes.string_at(out.data, out.w)
    finally:
        lib().encl_buf_free(byref(out))
