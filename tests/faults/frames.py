"""WebSocket frames, as the fault proxy needs them: read whole, changed, written again."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["BINARY", "CLOSE", "PING", "PONG", "TEXT", "Frame", "FrameReader", "close_payload"]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


@dataclass(frozen=True, slots=True)
class Frame:
    opcode: int
    payload: bytes = b""
    fin: bool = True
    claimed_length: int | None = None

    @property
    def is_control(self) -> bool:
        return self.opcode >= CLOSE

    @property
    def starts_message(self) -> bool:
        return self.opcode in (TEXT, BINARY)

    def encode(self, mask: bytes | None = None) -> bytes:
        length = len(self.payload) if self.claimed_length is None else self.claimed_length
        masked = 0x80 if mask is not None else 0
        head = bytes([self.fin << 7 | self.opcode])
        if length < 126:
            head += bytes([masked | length])
        elif length < 65_536:
            head += struct.pack(">BH", masked | 126, length)
        else:
            head += struct.pack(">BQ", masked | 127, length)
        return head + self.payload if mask is None else head + mask + masking(self.payload, mask)


def masking(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack(">H", code) + reason.encode()


def random_mask(rng: random.Random) -> bytes:
    return rng.randbytes(4)


def head_length(data: bytes) -> int | None:
    """Of the frame that begins here; None where that is not known yet."""
    if len(data) < 2:
        return None
    length = 2 + {126: 2, 127: 8}.get(data[1] & 0x7F, 0) + (4 if data[1] & 0x80 else 0)
    return length if len(data) >= length else None


def payload_length(head: bytes) -> int:
    short = head[1] & 0x7F
    if short < 126:
        return short
    (length,) = struct.unpack_from(">H" if short == 126 else ">Q", head, 2)
    assert isinstance(length, int)
    return length


class FrameReader:
    """Whole frames out of bytes, unmasked."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        held = self._held + data
        at = 0
        while (size := head_length(held[at : at + 14])) is not None:
            head = held[at : at + size]
            end = at + size + payload_length(head)
            if end > len(held):
                break
            payload = held[at + size : end]
            if head[1] & 0x80:
                payload = masking(payload, head[-4:])
            at = end
            yield Frame(head[0] & 0x0F, payload, fin=bool(head[0] & 0x80))
        self._held = held[at:]
