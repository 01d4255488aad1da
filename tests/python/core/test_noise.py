"""The Noise layer against published vectors (NN handshakes, Wycheproof for its primitives) and
against the specification written once more over another library."""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import c_library
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from repository import ROOT

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


# The specification once more, in Python over another library's primitives: what both roles say must
# be the same byte for byte, with no published vectors at hand.

PROTOCOL_NAME = b"Noise_NN_25519_ChaChaPoly_BLAKE2s"


def blake2s(*parts: bytes) -> bytes:
    return hashlib.blake2s(b"".join(parts)).digest()


def hkdf2(ck: bytes, material: bytes) -> tuple[bytes, bytes]:
    temp = hmac.digest(ck, material, "blake2s")
    first = hmac.digest(temp, b"\1", "blake2s")
    return first, hmac.digest(temp, first + b"\2", "blake2s")


def aead_nonce(n: int) -> bytes:
    return bytes(4) + n.to_bytes(8, "little")


class Plain(NamedTuple):
    """What an NN handshake with these ephemeral keys and payloads comes to."""

    messages: tuple[bytes, bytes]
    digest: bytes
    keys: tuple[bytes, bytes]


def handshake_of(
    secrets: tuple[bytes, bytes], prologue: bytes, payloads: tuple[bytes, bytes]
) -> Plain:
    e, re = (X25519PrivateKey.from_private_bytes(secret) for secret in secrets)
    public, answer = e.public_key().public_bytes_raw(), re.public_key().public_bytes_raw()
    ck = h = blake2s(PROTOCOL_NAME)
    h = blake2s(h, prologue)
    h = blake2s(blake2s(h, public), payloads[0])
    h = blake2s(h, answer)
    ck, k = hkdf2(ck, e.exchange(re.public_key()))
    sealed = ChaCha20Poly1305(k).encrypt(aead_nonce(0), payloads[1], h)
    h = blake2s(h, sealed)
    return Plain((public + payloads[0], answer + sealed), h, hkdf2(ck, b""))


SECRETS = (bytes(range(1, 33)), bytes(range(101, 133)))


@pytest.mark.parametrize("prologue", [b"", b"some prologue"])
@pytest.mark.parametrize("payloads", [(b"", b""), (b"in the clear", b"under a key")])
def test_both_roles_say_what_the_specification_says(
    noise: Noise, prologue: bytes, payloads: tuple[bytes, bytes]
) -> None:
    plain = handshake_of(SECRETS, prologue, payloads)
    parties = [Party(noise, role, prologue, SECRETS[role]) for role in (INITIATOR, RESPONDER)]
    for i, message in enumerate(plain.messages):
        assert parties[i].write(payloads[i]) == message
        assert parties[1 - i].read(message) == (OK, payloads[i])
    assert [party.split() for party in parties] == [plain.digest] * 2
    for n, text in enumerate((b"first", b"", b"third" * 1000)):
        for sender, key in zip((INITIATOR, RESPONDER), plain.keys, strict=True):
            sealed = parties[sender].seal(text)
            assert sealed == ChaCha20Poly1305(key).encrypt(aead_nonce(n), text, None)
            assert parties[1 - sender].open(sealed) == text
    for party in parties:
        party.close()


@pytest.mark.parametrize("size", [0, 1, 64, 1000])
@pytest.mark.parametrize("aad", [b"", b"additional"])
def test_the_aead_is_that_of_another_library(noise: Noise, size: int, aad: bytes) -> None:
    key, nonce, text = bytes(range(32)), bytes(range(12)), bytes(i % 251 for i in range(size))
    sealed = ChaCha20Poly1305(key).encrypt(nonce, text, aad)
    assert noise.aead_seal(key, nonce, aad, text) == (OK, sealed)
    assert noise.aead_open(key, nonce, aad, sealed) == (OK, text)
    for i in range(len(sealed)):
        changed = sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :]
        assert noise.aead_open(key, nonce, aad, changed) == (PROTOCOL, b"")
    assert noise.aead_open(key, nonce, aad + b"x", sealed) == (PROTOCOL, b"")
    assert noise.aead_open(key, nonce, aad, sealed[:15]) == (PROTOCOL, b"")


# RFC 7748, section 6.1, and the points of low order: 0, 1, p - 1, p, p + 1 and the two of order 8.
LOW_ORDER = [
    *(n.to_bytes(32, "little") for n in (0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18)),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def test_x25519_is_that_of_another_library(noise: Noise) -> None:
    mine, theirs = (X25519PrivateKey.from_private_bytes(secret) for secret in SECRETS)
    public = theirs.public_key().public_bytes_raw()
    assert noise.x25519(SECRETS[0], public) == (OK, mine.exchange(theirs.public_key()))
    for point in LOW_ORDER:
        assert noise.x25519(SECRETS[0], point) == (PROTOCOL, bytes(32)), point.hex()


@pytest.mark.parametrize("point", LOW_ORDER, ids=bytes.hex)
def test_a_peer_of_low_order_gets_no_channel_by_keys_that_anybody_knows(
    noise: Noise, point: bytes
) -> None:
    """Where nothing secret went into the key, a tag is easily made."""
    initiator = Party(noise, INITIATOR, b"", SECRETS[0])
    ck = h = blake2s(PROTOCOL_NAME)
    h = blake2s(h, b"")
    h = blake2s(blake2s(h, initiator.write(b"")), b"")
    h = blake2s(h, point)
    for key in (bytes(32), hkdf2(ck, bytes(32))[1]):
        forged = point + ChaCha20Poly1305(key).encrypt(aead_nonce(0), b"", h)
        again = Party(noise, INITIATOR, b"", SECRETS[0])
        again.write(b"")
        assert again.read(forged) == (PROTOCOL, b"")
        assert not noise.lib.encl_noise_handshake_complete(again.handshake)
        again.close()
    initiator.close()
