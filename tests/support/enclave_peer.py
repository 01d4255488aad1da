"""The enclave's side of the protocol in plain Python, over a :mod:`raw_server` connection, so that
tests can break any rule of it at any byte. Shares no code with the package but the certificates
that :mod:`enclavia.testing` mints."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
)
from plain_client import PROTOCOL_NAME, RECORD_HEAD, CipherState, _hkdf
from raw_server import BINARY, Peer, frame

from enclavia import Channel, Pcrs
from enclavia.testing._pki import EnclavePki, mint

PCRS = Pcrs(pcr0=b"\x11" * 48, pcr1=b"\x22" * 48, pcr2=b"\x33" * 48)


@functools.cache
def pki() -> EnclavePki:
    return mint()


def root() -> bytes:
    return pki().root_pem


def signed_document(
    nonce: bytes,
    pcrs: Pcrs = PCRS,
    made: EnclavePki | None = None,
    replaced: Mapping[str, Any] | None = None,
    **fields: Any,
) -> bytes:
    """A COSE_Sign1 of AWS's shape; ``fields`` and ``replaced`` replace those of the payload."""
    made = made or pki()
    protected = cbor2.dumps({1: -35})
    measured = dict(enumerate(pcrs.as_tuple()))
    payload = cbor2.dumps(
        {
            "module_id": "i-0-enc0",
            "digest": "SHA384",
            "timestamp": int(time.time() * 1000),
            "pcrs": {index: measured.get(index, bytes(48)) for index in range(16)},
            "certificate": made.leaf_der,
            "cabundle": made.cabundle,
            "public_key": None,
            "user_data": bytes(32),
            "nonce": nonce,
            **fields,
            **(replaced or {}),
        }
    )
    key = load_der_private_key(made.leaf_key_der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(
        cbor2.dumps(["Signature1", protected, b"", payload]), ec.ECDSA(hashes.SHA384())
    )
    r, s = decode_dss_signature(signature)
    return cbor2.dumps(
        cbor2.CBORTag(18, [protected, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")])
    )


class EnclavePeer:
    """The responder of one connection. Each step is a call, and each can be left out or faked."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._sealer: CipherState | None = None
        self._opener: CipherState | None = None
        self._incoming = bytearray()
        self.hash = b""
        self.plaintexts: list[bytes] = []
        """What the client sent, in order."""

    # handshake

    def read_key(self) -> bytes:
        return self.peer.read_binary()

    def answer_for(self, client_key: bytes, own_key: bytes | None = None) -> bytes:
        """The 48 bytes of the handshake's second message; keys are set after it. ``own_key`` puts
        another public key into it."""
        assert len(client_key) == 32, f"expected 32 bytes, came {len(client_key)}"
        digest = PROTOCOL_NAME
        if len(digest) > 32:
            digest = hashlib.blake2s(digest).digest()
        chaining = digest = digest.ljust(32, b"\0")
        ephemeral = X25519PrivateKey.generate()
        public = own_key or ephemeral.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        for part in (b"", client_key, b"", public):
            digest = hashlib.blake2s(digest + part).digest()
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(client_key))
        chaining, key = _hkdf(chaining, shared)
        sealed = ChaCha20Poly1305(key).encrypt(bytes(12), b"", digest)
        self.hash = hashlib.blake2s(digest + sealed).digest()
        receive, send = _hkdf(chaining, b"")
        self._sealer, self._opener = CipherState(send), CipherState(receive)
        return public + sealed

    def handshake(self) -> None:
        self.send_bytes(self.answer_for(self.read_key()))

    # records

    def send_bytes(self, data: bytes) -> None:
        self.peer.send(frame(BINARY, data))

    def sealed(self, plaintext: bytes) -> bytes:
        """One record."""
        assert self._sealer is not None
        ciphertext = self._sealer.encrypt(plaintext)
        return RECORD_HEAD.pack(len(ciphertext)) + ciphertext

    def record(self, kind: str, **fields: Any) -> bytes:
        message: dict[str, Any] = {"type": kind}
        for name, value in fields.items():
            message[name] = list(value) if isinstance(value, bytes) else value
        return self.sealed(cbor2.dumps(message))

    def send(self, kind: str, **fields: Any) -> None:
        self.send_bytes(self.record(kind, **fields))

    def receive(self) -> dict[str, Any]:
        """The client's next message."""
        assert self._opener is not None
        while len(self._incoming) < 4 or len(self._incoming) < 4 + int.from_bytes(
            self._incoming[:4], "big"
        ):
            self._incoming += self.peer.read_binary()
        length = int.from_bytes(self._incoming[:4], "big")
        ciphertext = bytes(self._incoming[4 : 4 + length])
        del self._incoming[: 4 + length]
        plaintext = self._opener.decrypt(ciphertext)
        self.plaintexts.append(plaintext)
        message: dict[str, Any] = cbor2.loads(plaintext)
        if "payload" in message:
            message["payload"] = bytes(message["payload"])
        return message

    def attestation(self, document: bytes | None = None) -> bytes:
        """The record that answers RequestAttestation."""
        return self.record(
            "Attestation",
            data=signed_document(self.hash) if document is None else document,
            control_nonce=bytes(32),
        )

    def expect_attestation_request(self) -> None:
        message = self.receive()
        assert message == {"type": "RequestAttestation"}, message

    def open(self) -> None:
        """Handshake and attestation as they should be."""
        self.handshake()
        self.expect_attestation_request()
        self.send_bytes(self.attestation())

    def serve_echo(self) -> None:
        """Answers every stream with what it was sent."""
        while True:
            message = self.receive()
            match message["type"]:
                case "RequestAttestation":
                    self.send_bytes(self.attestation())
                case "OpenStream" | "StreamData":
                    if message["payload"]:
                        self.send("StreamData", id=message["id"], payload=message["payload"])
                case "Data":
                    self.send("Data", id=message["id"], payload=message["payload"])
                case _:
                    pass


def connect(url: str, **options: Any) -> Channel:
    """Connects as a client of :func:`signed_document`'s enclave."""
    options.setdefault("timeout", 10.0)
    return Channel.connect(url, **{"pcrs": PCRS, "root": root(), **options})
