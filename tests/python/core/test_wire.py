"""The message codec against cbor2, and the payload loops against the plain way in Python."""

from __future__ import annotations

import io
import random
import re
from typing import Any

import pytest

cbor2 = pytest.importorskip("cbor2")
hypothesis = pytest.importorskip("hypothesis")

import codec_ctypes as c  # noqa: E402
from codec_ctypes import Direction, Half, Message, Refused, Type  # noqa: E402
from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# A busy machine is no failure.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

IDS = st.integers(0, 2**64 - 1)
BYTES = st.binary(max_size=300)
NONCES = st.binary(min_size=32, max_size=32)
TEXT = st.text(max_size=60)

# Per direction and type: key -> (field of Message, kind on the wire).
LAYOUTS: dict[Direction, dict[Type, dict[str, tuple[str, str]]]] = {
    Direction.TO_SERVER: {
        Type.RequestAttestation: {},
        Type.Data: {"id": ("id", "uint"), "payload": ("payload", "bytes")},
        Type.OpenStream: {"id": ("id", "uint"), "payload": ("payload", "bytes")},
        Type.StreamData: {"id": ("id", "uint"), "payload": ("payload", "bytes")},
        Type.StreamClose: {"id": ("id", "uint"), "half": ("half", "half")},
        Type.GetControlNonce: {},
        Type.Control: {"payload": ("payload", "bytes"), "signature": ("signature", "bytes")},
    },
    Direction.TO_CLIENT: {
        Type.Attestation: {"data": ("payload", "bytes"), "control_nonce": ("control_nonce", "n32")},
        Type.Data: {"id": ("id", "uint"), "payload": ("payload", "bytes")},
        Type.Error: {"id": ("id", "uint"), "message": ("payload", "text")},
        Type.StreamData: {"id": ("id", "uint"), "payload": ("payload", "bytes")},
        Type.StreamClose: {"id": ("id", "uint")},
        Type.ControlResult: {"success": ("success", "bool"), "message": ("payload", "text")},
        Type.ControlNonce: {"nonce": ("control_nonce", "n32")},
    },
}
KNOWN_KEYS = {key for types in LAYOUTS.values() for layout in types.values() for key in layout}

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "uint": IDS,
    "bytes": BYTES,
    "n32": NONCES,
    "text": TEXT,
    "half": st.sampled_from([Half.Write, Half.Both]),
    "bool": st.booleans(),
}


@st.composite
def messages(draw: st.DrawFn) -> tuple[Direction, Message]:
    direction = draw(st.sampled_from(list(Direction)))
    kind = draw(st.sampled_from(sorted(LAYOUTS[direction])))
    fields: dict[str, Any] = {}
    for field, wire_kind in LAYOUTS[direction][kind].values():
        value = draw(VALUES[wire_kind])
        fields[field] = value.encode() if wire_kind == "text" else value
    return direction, Message(kind, **fields)


def as_map(message: Message, direction: Direction) -> dict[str, Any]:
    """What cbor2 must see in the encoding."""
    wire: dict[str, Any] = {"type": message.type.name}
    for key, (field, kind) in LAYOUTS[direction][message.type].items():
        value = getattr(message, field)
        if kind in ("bytes", "n32"):
            value = list(value)
        elif kind == "text":
            value = value.decode()
        elif kind == "half":
            value = value.name
        wire[key] = value
    return wire


@relaxed
@given(messages())
def test_cbor2_reads_what_is_encoded(case: tuple[Direction, Message]) -> None:
    direction, message = case
    encoded = c.encode(message, direction)
    expected = as_map(message, direction)
    assert cbor2.loads(encoded) == expected
    assert list(cbor2.loads(encoded)) == list(expected)  # "type" first, then as listed
    assert encoded == cbor2.dumps(expected)  # the shortest form, as serde writes it
    assert c.decode(encoded, direction) == message


def head(major: int, value: int, width: int | None = None) -> bytes:
    """A CBOR head; width 0, 1, 2, 4 or 8 bytes of argument, by default the least."""
    if width is None:
        width = next(w for w, top in ((0, 24), (1, 2**8), (2, 2**16), (4, 2**32), (8, 2**64))
                     if value < top)  # fmt: skip
    if width == 0:
        return bytes([major << 5 | value])
    info = {1: 24, 2: 25, 4: 26, 8: 27}[width]
    return bytes([major << 5 | info]) + value.to_bytes(width, "big")


class Writer:
    """CBOR in all the forms that mean the same, chosen at random."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def number(self, major: int, value: int) -> bytes:
        least = len(head(major, value)) - 1
        return head(major, value, self.rng.choice([w for w in (0, 1, 2, 4, 8) if w >= least]))

    def chunks(self, major: int, pieces: list[bytes]) -> bytes:
        body = b"".join(self.number(major, len(piece)) + piece for piece in pieces)
        return bytes([major << 5 | 31]) + body + b"\xff"

    def text(self, value: str) -> bytes:
        if self.rng.random() < 0.3:
            at = self.rng.randint(0, len(value))
            return self.chunks(3, [value[:at].encode(), b"", value[at:].encode()])
        return self.number(3, len(value.encode())) + value.encode()

    def byte_field(self, value: bytes) -> bytes:
        form = self.rng.randrange(5)
        at = self.rng.randint(0, len(value))
        if form == 0:
            return self.number(2, len(value)) + value
        if form == 1:
            return self.chunks(2, [value[:at], value[at:]])
        if form == 2:
            return b"\x9f" + b"".join(head(0, b) for b in value) + b"\xff"
        if form == 3:
            return self.number(4, len(value)) + b"".join(self.number(0, b) for b in value)
        return self.number(4, len(value)) + b"".join(head(0, b) for b in value)

    def value(self, kind: str, value: Any) -> bytes:
        if kind == "uint":
            return self.number(0, value)
        if kind == "bool":
            return b"\xf5" if value else b"\xf4"
        if kind == "half":
            return self.text(value.name)
        if kind == "text":
            return self.text(value.decode())
        return self.byte_field(value)

    def map(self, pairs: list[tuple[bytes, bytes]]) -> bytes:
        body = b"".join(key + value for key, value in pairs)
        if self.rng.random() < 0.3:
            return b"\xbf" + body + b"\xff"
        return self.number(5, len(pairs)) + body


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.builds(cbor2.CBORTag, st.integers(40000, 50000), st.integers()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@relaxed
@given(messages(), st.randoms(use_true_random=False), st.dictionaries(TEXT, ANYTHING, max_size=3))
def test_every_form_of_a_message_means_the_same(
    case: tuple[Direction, Message], rng: random.Random, extra: dict[str, Any]
) -> None:
    direction, message = case
    writer = Writer(rng)
    layout = LAYOUTS[direction][message.type]
    pairs = [(writer.text("type"), writer.text(message.type.name))]
    pairs += [
        (writer.text(key), writer.value(kind, getattr(message, field)))
        for key, (field, kind) in layout.items()
    ]
    # Keys of other messages are unknown to this one, whatever they hold.
    strangers = dict.fromkeys(rng.sample(sorted(KNOWN_KEYS - set(layout)), 2), 1.5)
    for key, value in {**extra, **strangers}.items():
        if key not in layout and key != "type":
            pairs.append((writer.text(key), cbor2.dumps(value)))
    rng.shuffle(pairs)
    encoded = writer.map(pairs)
    assert set(as_map(message, direction)) <= set(cbor2.loads(encoded))
    assert c.decode(encoded, direction) == message


def kind_fits(kind: str, value: Any) -> bool:
    if kind == "uint":
        return type(value) is int and 0 <= value < 2**64
    if kind == "bool":
        return type(value) is bool
    if kind == "text":
        return type(value) is str
    if kind == "half":
        return type(value) is str and value in ("Write", "Both")
    as_bytes = isinstance(value, bytes) or (
        isinstance(value, list) and all(type(v) is int and 0 <= v <= 255 for v in value)
    )
    return as_bytes and (kind != "n32" or len(value) == 32)


def oracle(data: bytes, direction: Direction) -> Message | None:
    """What cbor2 makes of the bytes, read by the rules of the protocol."""
    stream = io.BytesIO(data)
    try:
        seen = cbor2.CBORDecoder(stream).decode()
    except Exception:
        return None
    if not isinstance(seen, dict) or stream.read(1) or not isinstance(seen.get("type"), str):
        return None
    kind = Type.__members__.get(seen["type"])
    if kind is None or kind not in LAYOUTS[direction]:
        return None
    fields: dict[str, Any] = {}
    for key, (field, wire_kind) in LAYOUTS[direction][kind].items():
        if key not in seen or not kind_fits(wire_kind, seen[key]):
            return None
        value = seen[key]
        if wire_kind in ("bytes", "n32"):
            value = bytes(value)
        elif wire_kind == "text":
            value = value.encode()
        elif wire_kind == "half":
            value = Half[value]
        fields[field] = value
    return Message(kind, **fields)


def outcome(data: bytes, direction: Direction) -> Message | Refused:
    try:
        return c.decode(data, direction)
    except Refused as refusal:
        return refusal


def assert_refused_or_as_cbor2_sees_it(data: bytes, direction: Direction) -> None:
    got = outcome(data, direction)
    if isinstance(got, Message):
        assert got == oracle(data, direction)
    else:
        assert got.code == c.PROTOCOL
        assert re.search("expected .* got ", got.message)


@settings(relaxed, max_examples=400)
@given(messages(), st.randoms(use_true_random=False), st.data())
def test_damaged_messages_are_refused_or_mean_what_cbor2_sees(
    case: tuple[Direction, Message], rng: random.Random, data: st.DataObject
) -> None:
    direction, message = case
    writer = Writer(rng)
    if rng.random() < 0.5:
        damaged = bytearray(c.encode(message, direction))
    else:
        layout = LAYOUTS[direction][message.type]
        pairs = [(writer.text("type"), writer.text(message.type.name))]
        pairs += [
            (writer.text(key), writer.value(kind, getattr(message, field)))
            for key, (field, kind) in layout.items()
        ]
        rng.shuffle(pairs)
        damaged = bytearray(writer.map(pairs))
    for _ in range(data.draw(st.integers(1, 4))):
        at = rng.randrange(len(damaged) + 1)
        action = rng.randrange(4)
        if action == 0 and at < len(damaged):
            damaged[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            damaged[at:at] = rng.randbytes(rng.randint(1, 3))
        elif action == 2:
            del damaged[at : at + rng.randint(1, 4)]
        else:
            damaged = damaged[:at]
        if not damaged:
            break
    assert_refused_or_as_cbor2_sees_it(bytes(damaged), direction)


@relaxed
@given(st.binary(max_size=200))
@example(b"\xbb" + b"\xff" * 8)
@example(b"\x9f" * 200)
def test_noise_is_refused_or_means_what_cbor2_sees(data: bytes) -> None:
    for direction in Direction:
        assert_refused_or_as_cbor2_sees_it(data, direction)


@relaxed
@given(messages(), ANYTHING)
def test_a_value_of_another_kind_is_refused(case: tuple[Direction, Message], value: Any) -> None:
    direction, message = case
    wire = as_map(message, direction)
    layout = LAYOUTS[direction][message.type]
    for key, (_, kind) in layout.items():
        if kind_fits(kind, value):
            continue
        with pytest.raises(Refused) as refusal:
            c.decode(cbor2.dumps({**wire, key: value}), direction)
        assert refusal.value.code == c.PROTOCOL
    for key in wire:
        without = {k: v for k, v in wire.items() if k != key}
        with pytest.raises(Refused, match="got none"):
            c.decode(cbor2.dumps(without), direction)


@pytest.mark.parametrize("direction", list(Direction))
def test_messages_of_the_other_direction_are_refused(direction: Direction) -> None:
    for kind in set(Type) - set(LAYOUTS[direction]):
        with pytest.raises(Refused, match=f'expected a message to the .*, got "{kind.name}"'):
            c.decode(cbor2.dumps({"type": kind.name, "id": 1, "payload": []}), direction)
        with pytest.raises(Refused) as refusal:
            c.encode(Message(kind, half=Half.Both), direction)
        assert refusal.value.code == c.INVALID


def test_a_declared_length_beyond_the_message_is_refused_at_once() -> None:
    start = cbor2.dumps({"type": "Data", "id": 1, "payload": []})[:-1]
    for major in (2, 3, 4, 5):
        for length in (1, 2**16, 2**32, 2**63 - 1, 2**63, 2**64 - 1):
            with pytest.raises(Refused):
                c.decode(start + head(major, length), Direction.TO_CLIENT)


def plain_encode(data: bytes) -> bytes:
    return b"".join(bytes([b]) if b < 24 else bytes([0x18, b]) for b in data)


def test_all_byte_values_alone_and_together() -> None:
    every = bytes(range(256))
    for one in every:
        code = plain_encode(bytes([one]))
        assert c.bytes_encode(bytes([one])) == code
        assert c.bytes_decode(code, 1) == (bytes([one]), len(code))
    assert c.bytes_encode(every) == plain_encode(every)
    assert c.bytes_decode(plain_encode(every), 256) == (every, len(plain_encode(every)))


@relaxed
@given(st.binary(max_size=2000), st.binary(max_size=20))
def test_the_loops_agree_with_the_plain_way(data: bytes, after: bytes) -> None:
    code = plain_encode(data)
    assert c.bytes_encode(data) == code
    assert c.bytes_decode(code + after, len(data)) == (data, len(code))
    assert c.bytes_decode(code[:-1], len(data)) is None if data else True


@relaxed
@given(st.lists(st.sampled_from([0x00, 0x17, 0x18, 0x18, 0x18, 0x19, 0xFF]), max_size=200))
def test_runs_of_markers(values: list[int]) -> None:
    data = bytes(values)
    assert c.bytes_decode(plain_encode(data), len(data)) == (data, len(plain_encode(data)))


@relaxed
@given(st.lists(st.integers(0, 255), min_size=1, max_size=100), st.randoms(use_true_random=False))
def test_wide_integers_count_by_value(values: list[int], rng: random.Random) -> None:
    writer = Writer(rng)
    code = b"".join(writer.number(0, v) for v in values)
    assert c.bytes_decode(code, len(values)) == (bytes(values), len(code))
    at = rng.randrange(len(values))
    too_big = b"".join(writer.number(0, 256 + v if i == at else v) for i, v in enumerate(values))
    assert c.bytes_decode(too_big, len(values)) is None
