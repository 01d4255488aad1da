"""A client of the enclave protocol in plain Python, made of nothing but ``websockets``,
``cryptography`` and ``cbor2``.

It shares no code with the package, so it can say whether the package's own responder speaks the
contract, and it is what the package is measured against. It verifies no attestation document.

    with PlainClient.connect("ws://127.0.0.1:8080") as client:
        document = client.attest()
        stream = client.open_stream(b"GET / HTTP/1.1\\r\\nHost: enclave\\r\\n\\r\\n")
        print(client.read_stream(stream))
        client.close_stream(stream)
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, cast

import cbor2
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.exceptions import InvalidMessage
from websockets.sync.client import ClientConnection, connect

PROTOCOL_NAME = b"Noise_NN_25519_ChaChaPoly_BLAKE2s"
KEY_BYTES = 32
TAG_BYTES = 16
ANSWER_BYTES = KEY_BYTES + TAG_BYTES
RECORD_HEAD = struct.Struct(">I")
MAX_CIPHERTEXT = 65535
STREAM_CHUNK = 16320

Message = dict[str, Any]


class ProtocolViolation(Exception):
    """The peer broke the contract."""


class RequestFailed(Exception):
    """The enclave answered with ``Error``."""

    def __init__(self, request_id: int, message: str) -> None:
        super().__init__(message)
        self.request_id = request_id


class CipherState:
    """One direction's key and counter (Noise, section 5.1)."""

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._counter = 0

    def _nonce(self) -> bytes:
        nonce = struct.pack("<4xQ", self._counter)
        self._counter += 1
        return nonce

    def encrypt(self, plaintext: bytes, associated: bytes = b"") -> bytes:
        return self._aead.encrypt(self._nonce(), plaintext, associated)

    def decrypt(self, ciphertext: bytes, associated: bytes = b"") -> bytes:
        return self._aead.decrypt(self._nonce(), ciphertext, associated)


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    secret = hmac.digest(chaining_key, material, "blake2s")
    first = hmac.digest(secret, b"\x01", "blake2s")
    return first, hmac.digest(secret, first + b"\x02", "blake2s")


class NoiseInitiator:
    """``Noise_NN``: ``-> e``, ``<- e, ee``, with an empty prologue."""

    def __init__(self) -> None:
        digest = PROTOCOL_NAME
        if len(digest) > hashlib.blake2s().digest_size:
            digest = hashlib.blake2s(digest).digest()
        self.hash = digest.ljust(hashlib.blake2s().digest_size, b"\0")
        self._chaining_key = self.hash
        self._ephemeral = X25519PrivateKey.generate()
        self._mix_hash(b"")

    def _mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.blake2s(self.hash + data).digest()

    def first_message(self) -> bytes:
        public = self._ephemeral.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self._mix_hash(public)
        self._mix_hash(b"")
        return public

    def take_answer(self, answer: bytes) -> tuple[CipherState, CipherState]:
        """Returns the sending and the receiving cipher; ``hash`` is the channel binding then."""
        if len(answer) != ANSWER_BYTES:
            raise ProtocolViolation(
                f"handshake answer: expected {ANSWER_BYTES} bytes, came {len(answer)}"
            )
        peer, sealed = answer[:KEY_BYTES], answer[KEY_BYTES:]
        self._mix_hash(peer)
        shared = self._ephemeral.exchange(X25519PublicKey.from_public_bytes(peer))
        self._chaining_key, key = _hkdf(self._chaining_key, shared)
        if CipherState(key).decrypt(sealed, self.hash) != b"":
            raise ProtocolViolation("handshake answer: expected an empty payload")
        self._mix_hash(sealed)
        send_key, receive_key = _hkdf(self._chaining_key, b"")
        return CipherState(send_key), CipherState(receive_key)


def encode(kind: str, **fields: object) -> bytes:
    """Byte fields go out as arrays of small integers, as the server wants them."""
    message: Message = {"type": kind}
    for name, value in fields.items():
        message[name] = list(value) if isinstance(value, bytes) else value
    return cbor2.dumps(message)


@dataclass
class _Inbox:
    """What came for one id and was not asked for yet."""

    chunks: deque[bytes] = field(default_factory=deque)
    closed: bool = False
    error: str | None = None


class PlainClient:
    """One connection. Not thread-safe; reads happen only inside its calls."""

    def __init__(self, websocket: ClientConnection, *, timeout: float = 20.0) -> None:
        self._ends = contextlib.ExitStack()
        self._websocket = websocket
        self._timeout = timeout
        self._received = bytearray()
        self._inboxes: dict[int, _Inbox] = {}
        self._next_id = 1
        self.chunk_sizes: list[int] = []  # of every payload that came
        self.control_nonce = b""  # of the last document
        handshake = NoiseInitiator()
        websocket.send(handshake.first_message())
        self._fill(ANSWER_BYTES)
        answer = self._take(ANSWER_BYTES)
        self._send_cipher, self._receive_cipher = handshake.take_answer(answer)
        self.handshake_hash = handshake.hash

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        tls: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 20.0,
        sock: socket.socket | None = None,
    ) -> Self:
        """Over a connection of its own, or over ``sock``, which leads to the enclave already.

        Over TLS it is tried three times. The reading thread of websockets and the one that sends
        the upgrade use one SSL object at once, which OpenSSL does not allow and not every Python
        keeps apart: about one upgrade in a hundred goes without its answer."""
        attempts = 3 if tls is not None and sock is None else 1
        while True:
            attempts -= 1
            try:
                opening = connect(
                    url,
                    sock=sock,
                    ssl=tls,
                    additional_headers=headers,
                    compression=None,
                    max_size=None,
                    ping_interval=None,
                    open_timeout=timeout / (2 if attempts else 1),
                    close_timeout=1,
                    proxy=None,
                )
                break
            except (TimeoutError, InvalidMessage):
                if not attempts:
                    raise
        with contextlib.ExitStack() as ends:
            client = cls(ends.enter_context(opening), timeout=timeout)
            client._ends = ends.pop_all()
        return client

    def close(self) -> None:
        self._ends.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # bytes

    def _fill(self, count: int, timeout: float | None = None) -> None:
        while len(self._received) < count:
            message = self._websocket.recv(timeout or self._timeout)
            if isinstance(message, bytes):  # text carries nothing
                self._received += message

    def _take(self, count: int) -> bytes:
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    # records

    def seal(self, plaintext: bytes) -> bytes:
        """One record, which must be sent next."""
        ciphertext = self._send_cipher.encrypt(plaintext)
        return RECORD_HEAD.pack(len(ciphertext)) + ciphertext

    def send_raw(self, data: bytes) -> None:
        """One WebSocket message; boundaries mean nothing to the peer."""
        self._websocket.send(data)

    def send_plaintext(self, plaintext: bytes) -> None:
        self.send_raw(self.seal(plaintext))

    def receive_plaintext(self, timeout: float | None = None) -> bytes:
        self._fill(RECORD_HEAD.size, timeout)
        (length,) = RECORD_HEAD.unpack_from(self._received)
        if not TAG_BYTES < length <= MAX_CIPHERTEXT:
            raise ProtocolViolation(f"record of {length} bytes")
        self._fill(RECORD_HEAD.size + length, timeout)
        self._take(RECORD_HEAD.size)
        return self._receive_cipher.decrypt(self._take(length))

    # messages

    def send(self, kind: str, **fields: object) -> None:
        self.send_plaintext(encode(kind, **fields))

    def receive(self, timeout: float | None = None) -> Message:
        message = cbor2.loads(self.receive_plaintext(timeout))
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ProtocolViolation(f"expected a message, came {message!r}")
        for name in ("payload", "data", "control_nonce"):
            if name in message:
                message[name] = bytes(message[name])
        return cast(Message, message)

    def _new_id(self) -> int:
        issued = self._next_id
        self._next_id += 1
        self._inboxes[issued] = _Inbox()
        return issued

    def _sort_in(self, message: Message) -> None:
        inbox = self._inboxes.get(message["id"])
        if inbox is None:
            return  # late: its stream was closed
        match message["type"]:
            case "StreamData" | "Data":
                self.chunk_sizes.append(len(message["payload"]))
                inbox.chunks.append(message["payload"])
                inbox.closed = inbox.closed or message["type"] == "Data"
            case "StreamClose":
                inbox.closed = True
            case "Error":
                inbox.error = message["message"]
            case other:
                raise ProtocolViolation(f"expected an answer about an id, came {other}")

    def _wait(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        while not ready():
            self._sort_in(self.receive(timeout))

    # what the protocol offers

    def attest(self) -> bytes:
        """The document as it came. :attr:`control_nonce` is set too."""
        self.send("RequestAttestation")
        while (message := self.receive())["type"] != "Attestation":
            self._sort_in(message)
        self.control_nonce = bytes(message["control_nonce"])
        return bytes(message["data"])

    def request(self, payload: bytes) -> bytes:
        """One shot: the whole answer, up to the workload's end of file."""
        return self.finish_request(self.start_request(payload))

    def start_request(self, payload: bytes) -> int:
        issued = self._new_id()
        self.send("Data", id=issued, payload=payload)
        return issued

    def finish_request(self, issued: int) -> bytes:
        inbox = self._inboxes[issued]
        self._wait(lambda: inbox.closed or inbox.error is not None)
        del self._inboxes[issued]
        if inbox.error is not None:
            raise RequestFailed(issued, inbox.error)
        return b"".join(inbox.chunks)

    def open_stream(self, payload: bytes = b"") -> int:
        issued = self._new_id()
        self.send("OpenStream", id=issued, payload=payload)
        return issued

    def write_stream(self, issued: int, data: bytes) -> None:
        for at in range(0, len(data), STREAM_CHUNK):
            self.send("StreamData", id=issued, payload=data[at : at + STREAM_CHUNK])

    def read_chunk(self, issued: int, timeout: float | None = None) -> bytes:
        """The payload of one ``StreamData``; ``b""`` once the workload closed."""
        inbox = self._inboxes[issued]
        self._wait(lambda: bool(inbox.chunks) or inbox.closed or inbox.error is not None, timeout)
        if inbox.chunks:
            return inbox.chunks.popleft()
        if inbox.error is not None:
            raise RequestFailed(issued, inbox.error)
        return b""

    def read_exactly(self, issued: int, count: int) -> bytes:
        read = bytearray()
        while len(read) < count:
            chunk = self.read_chunk(issued)
            if not chunk:
                raise EOFError(f"expected {count} bytes, came {len(read)}")
            read += chunk
        if len(read) > count:
            self._inboxes[issued].chunks.appendleft(bytes(read[count:]))
        return bytes(read[:count])

    def read_stream(self, issued: int) -> bytes:
        """All, up to the workload's end of file."""
        read = bytearray()
        while chunk := self.read_chunk(issued):
            read += chunk
        return bytes(read)

    def close_stream(self, issued: int, half: Literal["Write", "Both"] = "Both") -> None:
        self.send("StreamClose", id=issued, half=half)
        if half == "Both":
            self._inboxes.pop(issued, None)
