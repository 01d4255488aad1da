"""The C layers csrc/wire and csrc/ws through ctypes, for tests that need no built extension."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_bool, c_char, c_int, c_size_t, c_uint8, c_uint64
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import c_library

OK = 0
INVALID = 2
PROTOCOL = 12

NONCE_BYTES = 32


class Slice(Structure):
    _fields_ = [("data", ctypes.c_void_p), ("len", c_size_t)]

    def bytes(self) -> bytes:
        return ctypes.string_at(self.data, self.len) if self.len else b""


class Buf(Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("r", c_size_t),
        ("w", c_size_t),
        ("cap", c_size_t),
        ("limit", c_size_t),
        ("owned", c_bool),
    ]


class Error(Structure):
    _fields_ = [
        ("code", c_int),
        ("retryable", c_bool),
        ("hint", c_int),
        ("message", c_char * 512),
        ("detail", c_char * 4096),  # larger than the C union: never looked at here
    ]


class Msg(Structure):
    _fields_ = [
        ("type", c_int),
        ("id", c_uint64),
        ("payload", Slice),
        ("half", c_int),
        ("success", c_bool),
        ("signature", Slice),
        ("control_nonce", c_uint8 * NONCE_BYTES),
    ]


class WsEvent(Structure):
    _fields_ = [
        ("type", c_int),
        ("payload", ctypes.c_void_p),
        ("len", c_size_t),
        ("code", ctypes.c_uint16),
    ]


class WsDecoder(Structure):
    _fields_ = [
        ("side", c_int),
        ("max_frame", c_uint64),
        ("text_skipped", c_uint64),
        ("idle", c_uint64),
        ("header", c_uint8 * 14),
        ("header_len", c_size_t),
        ("mask", c_uint8 * 4),
        ("remaining", c_uint64),
        ("offset", c_uint64),
        ("opcode", c_uint8),
        ("message_opcode", c_uint8),
        ("fin", c_bool),
        ("in_frame", c_bool),
        ("closed", c_bool),
        ("control", c_uint8 * 125),
        ("control_len", c_size_t),
        ("fail_code", ctypes.c_uint16),
    ]


class Refused(Exception):
    """The C layer returned something other than ENCL_OK."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@cache
def library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(c_library.path()), use_errno=False)
    lib.encl_wire_size.restype = c_size_t
    lib.encl_wire_array_size.restype = c_size_t
    lib.encl_wire_array_size.argtypes = [Slice]
    lib.encl_bytes_encode.restype = c_bool
    lib.encl_bytes_encode.argtypes = [Slice, ctypes.c_void_p, c_size_t, POINTER(c_size_t)]
    lib.encl_bytes_decode_run.restype = c_size_t
    lib.encl_bytes_decode_run.argtypes = [
        ctypes.c_void_p,
        c_size_t,
        c_size_t,
        ctypes.c_void_p,
        POINTER(c_size_t),
    ]
    lib.encl_wire_decode.argtypes = [
        ctypes.c_void_p,
        c_size_t,
        c_int,
        POINTER(Msg),
        POINTER(Error),
    ]
    lib.encl_buf_init.argtypes = [POINTER(Buf), c_size_t]
    lib.encl_ws_header.restype = c_size_t
    lib.encl_ws_header.argtypes = [ctypes.c_void_p, c_int, c_uint64, ctypes.c_char_p]
    lib.encl_ws_mask.restype = None
    lib.encl_ws_mask.argtypes = [ctypes.c_void_p, c_size_t, ctypes.c_char_p, c_uint64]
    lib.encl_ws_decoder_init.restype = None
    lib.encl_ws_decoder_init.argtypes = [POINTER(WsDecoder), c_int, c_uint64]
    lib.encl_ws_decode.argtypes = [
        POINTER(WsDecoder),
        ctypes.c_void_p,
        c_size_t,
        POINTER(c_size_t),
        POINTER(WsEvent),
        POINTER(Error),
    ]
    return lib


class Block:
    """Bytes in memory that C may overwrite."""

    def __init__(self, data: bytes) -> None:
        self.len = len(data)
        self._memory = (c_uint8 * max(1, len(data))).from_buffer_copy(data or b"\0")

    @property
    def address(self) -> int:
        return ctypes.addressof(self._memory)

    def slice(self) -> Slice:
        return Slice(self.address, self.len)

    def bytes(self, length: int | None = None) -> bytes:
        return bytes(self._memory)[: self.len if length is None else length]


def check(code: int, error: Error) -> None:
    if code != OK:
        raise Refused(code, bytes(error.message).decode("utf-8"))


# wire


class Type(IntEnum):
    RequestAttestation = 0
    Data = 1
    OpenStream = 2
    StreamData = 3
    StreamClose = 4
    GetControlNonce = 5
    Control = 6
    Attestation = 7
    Error = 8
    ControlResult = 9
    ControlNonce = 10


class Direction(IntEnum):
    TO_SERVER = 0
    TO_CLIENT = 1


class Half(IntEnum):
    NoHalf = 0
    Write = 1
    Both = 2


@dataclass(frozen=True)
class Message:
    type: Type
    id: int = 0
    payload: bytes = b""
    half: Half = Half.NoHalf
    success: bool = False
    signature: bytes = b""
    control_nonce: bytes = bytes(NONCE_BYTES)


def encode(message: Message, direction: Direction) -> bytes:
    lib, error, out = library(), Error(), Buf()
    payload, signature = Block(message.payload), Block(message.signature)
    m = Msg(
        type=message.type,
        id=message.id,
        payload=payload.slice(),
        half=message.half,
        success=message.success,
        signature=signature.slice(),
        control_nonce=(c_uint8 * NONCE_BYTES)(*message.control_nonce),
    )
    lib.encl_buf_init(byref(out), 1 << 20)
    try:
        check(lib.encl_wire_encode(byref(m), int(direction), byref(out), byref(error)), error)
        assert out.w == lib.encl_wire_size(byref(m), int(direction))
        return ctypes.string_at(out.data, out.w)
    finally:
        lib.encl_buf_free(byref(out))


def decode(data: bytes, direction: Direction) -> Message:
    lib, error, m, block = library(), Error(), Msg(), Block(data)
    code = lib.encl_wire_decode(block.address, block.len, int(direction), byref(m), byref(error))
    check(code, error)
    return Message(
        type=Type(m.type),
        id=m.id,
        payload=m.payload.bytes(),
        half=Half(m.half),
        success=m.success,
        signature=m.signature.bytes(),
        control_nonce=bytes(m.control_nonce),
    )


def bytes_encode(data: bytes) -> bytes:
    lib, block, out = library(), Block(data), Block(bytes(2 * len(data)))
    written = c_size_t()
    assert lib.encl_bytes_encode(block.slice(), out.address, out.len, byref(written))
    return out.bytes(written.value)


def bytes_decode(data: bytes, count: int) -> tuple[bytes, int] | None:
    """The elements and the bytes they took; None where they are not what they must be."""
    lib, block, consumed = library(), Block(data), c_size_t()
    out = Block(bytes(count))
    decode = lib.encl_bytes_decode_run
    if decode(block.address, block.len, count, out.address, byref(consumed)) != count:
        return None
    return out.bytes(), consumed.value


# ws


class Side(IntEnum):
    CLIENT = 0
    SERVER = 1


class Event(IntEnum):
    NONE = 0
    DATA = 1
    PING = 2
    PONG = 3
    CLOSE = 4


@dataclass(frozen=True)
class Seen:
    event: Event
    payload: bytes
    code: int = 0


class Decoder:
    """Events of one WebSocket direction; adjacent pieces of data are joined."""

    def __init__(self, side: Side, max_frame: int = 1 << 20) -> None:
        self._state = WsDecoder()
        self.seen: list[Seen] = []
        library().encl_ws_decoder_init(byref(self._state), int(side), max_frame)

    @property
    def fail_code(self) -> int:
        return int(self._state.fail_code)

    @property
    def text_skipped(self) -> int:
        return int(self._state.text_skipped)

    def feed(self, data: bytes) -> None:
        lib, error, block, at = library(), Error(), Block(data), 0
        while at < block.len:
            consumed, event = c_size_t(), WsEvent()
            code = lib.encl_ws_decode(
                byref(self._state),
                block.address + at,
                block.len - at,
                byref(consumed),
                byref(event),
                byref(error),
            )
            check(code, error)
            assert 0 < consumed.value <= block.len - at
            at += consumed.value
            self._note(event)

    def _note(self, event: WsEvent) -> None:
        kind = Event(event.type)
        payload = ctypes.string_at(event.payload, event.len) if event.len else b""
        if kind is Event.NONE:
            return
        if kind is Event.DATA and self.seen and self.seen[-1].event is Event.DATA:
            self.seen[-1] = Seen(kind, self.seen[-1].payload + payload)
            return
        self.seen.append(Seen(kind, payload, event.code))


def ws_header(opcode: int, length: int, mask: bytes | None) -> bytes:
    out = Block(bytes(14))
    return out.bytes(library().encl_ws_header(out.address, opcode, length, mask))


def ws_mask(data: bytes, mask: bytes, offset: int) -> bytes:
    block = Block(data)
    library().encl_ws_mask(block.address, block.len, mask, offset)
    return block.bytes()
