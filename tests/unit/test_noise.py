"""The Noise layer against published vectors: NN handshakes, Wycheproof for its primitives."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import c_library
import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "vectors"

OK = 0
PROTOCOL = 12
INITIATOR, RESPONDER = 0, 1
TAG = 16
MAX_MESSAGE = 65535


class Slice(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("len", ctypes.c_size_t)]


class Buf(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.POINTER(ctypes.c_uint8)),
        ("r", ctypes.c_size_t),
        ("w", ctypes.c_size_t),
        ("cap", ctypes.c_size_t),
        ("limit", ctypes.c_size_t),
        ("owned", ctypes.c_bool),
        ("readonly", ctypes.c_bool),
    ]


# Larger than encl_error: only its first field, the code, is looked at here.
ERROR_BYTES = 4096


def slice_of(data: bytes) -> Slice:
    return Slice(data, len(data))


class Noise:
    def __init__(self, library: ctypes.CDLL) -> None:
        self.lib = library
        for name in ("encl_noise_handshake_free", "encl_noise_transport_free"):
            function = getattr(library, name)
            function.restype, function.argtypes = None, [ctypes.c_void_p]
        library.encl_noise_handshake_complete.restype = ctypes.c_bool
        library.encl_noise_handshake_complete.argtypes = [ctypes.c_void_p]
        library.encl_code_name.restype = ctypes.c_char_p
        self.error = ctypes.create_string_buffer(ERROR_BYTES)

    def into_buf(self, call: Any) -> tuple[int, bytes]:
        block = (ctypes.c_uint8 * (2 * MAX_MESSAGE))()
        buf = Buf()
        self.lib.encl_buf_wrap(ctypes.byref(buf), block, ctypes.c_size_t(len(block)))
        code: int = call(ctypes.byref(buf))
        return code, bytes(block[buf.r : buf.w])

    def x25519(self, secret: bytes, public: bytes) -> tuple[int, bytes]:
        shared = ctypes.create_string_buffer(32)
        code: int = self.lib.encl_noise_x25519(secret, public, shared, self.error)
        return code, shared.raw

    def aead_seal(self, key: bytes, nonce: bytes, aad: bytes, plain: bytes) -> tuple[int, bytes]:
        return self.into_buf(
            lambda buf: self.lib.encl_noise_aead_seal(
                key, nonce, slice_of(aad), slice_of(plain), buf, self.error
            )
        )

    def aead_open(self, key: bytes, nonce: bytes, aad: bytes, sealed: bytes) -> tuple[int, bytes]:
        return self.into_buf(
            lambda buf: self.lib.encl_noise_aead_open(
                key, nonce, slice_of(aad), slice_of(sealed), buf, self.error
            )
        )


class Party:
    """One side of a handshake, then of the transport."""

    def __init__(self, noise: Noise, role: int, prologue: bytes, ephemeral: bytes) -> None:
        self.noise = noise
        self.handshake = ctypes.c_void_p()
        self.transport = ctypes.c_void_p()
        code = noise.lib.encl_noise_handshake_new(
            role, slice_of(prologue), ephemeral, ctypes.byref(self.handshake), noise.error
        )
        assert code == OK

    def close(self) -> None:
        self.noise.lib.encl_noise_handshake_free(self.handshake)
        self.noise.lib.encl_noise_transport_free(self.transport)

    def write(self, payload: bytes) -> bytes:
        code, message = self.noise.into_buf(
            lambda buf: self.noise.lib.encl_noise_handshake_write(
                self.handshake, slice_of(payload), buf, self.noise.error
            )
        )
        assert code == OK
        return message

    def read(self, message: bytes) -> tuple[int, bytes]:
        return self.noise.into_buf(
            lambda buf: self.noise.lib.encl_noise_handshake_read(
                self.handshake, slice_of(message), buf, self.noise.error
            )
        )

    def split(self) -> bytes:
        assert self.noise.lib.encl_noise_handshake_complete(self.handshake)
        digest = ctypes.create_string_buffer(32)
        code = self.noise.lib.encl_noise_handshake_split(
            self.handshake, ctypes.byref(self.transport), digest, self.noise.error
        )
        assert code == OK
        return digest.raw

    def seal(self, plain: bytes) -> bytes:
        block = ctypes.create_string_buffer(plain, len(plain) + TAG)
        size = ctypes.c_size_t()
        code = self.noise.lib.encl_noise_seal(
            self.transport,
            block,
            ctypes.c_size_t(len(plain)),
            ctypes.c_size_t(len(block)),
            ctypes.byref(size),
            self.noise.error,
        )
        assert code == OK
        return block.raw[: size.value]

    def open(self, sealed: bytes) -> bytes:
        block = ctypes.create_string_buffer(sealed, len(sealed))
        size = ctypes.c_size_t()
        code = self.noise.lib.encl_noise_open(
            self.transport,
            block,
            ctypes.c_size_t(len(sealed)),
            ctypes.byref(size),
            self.noise.error,
        )
        assert code == OK
        return block.raw[: size.value]


@pytest.fixture(scope="module")
def noise() -> Noise:
    loaded = Noise(ctypes.CDLL(str(c_library.path())))
    assert loaded.lib.encl_code_name(PROTOCOL) == b"protocol error"
    return loaded


def load(name: str) -> Any:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"published vectors are not beside the repository: {path.name}")
    return json.loads(path.read_text())


@pytest.fixture(params=[0, 1])
def vector(request: pytest.FixtureRequest) -> Any:
    vectors = load("noise_nn.json")
    assert len(vectors) == 2
    return vectors[request.param]


@pytest.fixture
def parties(noise: Noise, vector: Any) -> Iterator[tuple[Party, Party]]:
    made = [
        Party(
            noise,
            role,
            bytes.fromhex(vector[f"{name}_prologue"]),
            bytes.fromhex(vector[f"{name}_ephemeral"]),
        )
        for role, name in ((INITIATOR, "init"), (RESPONDER, "resp"))
    ]
    yield made[0], made[1]
    for party in made:
        party.close()


def test_both_roles_reproduce_every_published_message(
    vector: Any, parties: tuple[Party, Party]
) -> None:
    for i, message in enumerate(vector["messages"]):
        sender, receiver = parties[i % 2], parties[1 - i % 2]
        payload = bytes.fromhex(message["payload"])
        ciphertext = bytes.fromhex(message["ciphertext"])
        if i < 2:
            assert sender.write(payload) == ciphertext
            assert receiver.read(ciphertext) == (OK, payload)
        else:
            assert sender.seal(payload) == ciphertext
            assert receiver.open(ciphertext) == payload
        if i == 1:
            digests = [party.split() for party in parties]
            assert digests[0] == digests[1]
            if "handshake_hash" in vector:
                assert digests[0].hex() == vector["handshake_hash"]
    assert len(vector["messages"]) > 2


def test_any_changed_byte_of_a_published_answer_is_refused(noise: Noise, vector: Any) -> None:
    messages = [bytes.fromhex(m["ciphertext"]) for m in vector["messages"][:2]]
    payload = bytes.fromhex(vector["messages"][0]["payload"])
    prologue, ephemeral = (bytes.fromhex(vector[f"init_{k}"]) for k in ("prologue", "ephemeral"))
    for i in range(len(messages[1])):
        party = Party(noise, INITIATOR, prologue, ephemeral)
        assert party.write(payload) == messages[0]
        changed = bytearray(messages[1])
        changed[i] ^= 0x80
        assert party.read(bytes(changed)) == (PROTOCOL, b"")
        party.close()


def test_wycheproof_x25519(noise: Noise) -> None:
    refused = matched = 0
    for group in load("wycheproof/x25519_test.json")["testGroups"]:
        for case in group["tests"]:
            code, shared = noise.x25519(
                bytes.fromhex(case["private"]), bytes.fromhex(case["public"])
            )
            if not any(bytes.fromhex(case["shared"])):
                assert code == PROTOCOL, case["tcId"]
                assert shared == bytes(32)
                refused += 1
            else:
                assert case["result"] != "invalid"
                assert (code, shared.hex()) == (OK, case["shared"]), case["tcId"]
                matched += 1
    assert refused > 10
    assert matched > 400


def test_wycheproof_chacha20_poly1305(noise: Noise) -> None:
    valid = invalid = 0
    for group in load("wycheproof/chacha20_poly1305_test.json")["testGroups"]:
        if (group["ivSize"], group["tagSize"], group["keySize"]) != (96, 128, 256):
            continue
        for case in group["tests"]:
            key, nonce, aad, plain, ciphertext, tag = (
                bytes.fromhex(case[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
            )
            opened = noise.aead_open(key, nonce, aad, ciphertext + tag)
            if case["result"] == "valid":
                assert opened == (OK, plain), case["tcId"]
                sealed = noise.aead_seal(key, nonce, aad, plain)
                assert sealed == (OK, ciphertext + tag), case["tcId"]
                valid += 1
            else:
                assert opened == (PROTOCOL, b""), case["tcId"]
                invalid += 1
    assert valid > 200
    assert invalid > 30
