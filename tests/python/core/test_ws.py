"""WebSocket framing against the `websockets` package, at every split."""

from __future__ import annotations

import itertools
import re

import codec_ctypes as c
import pytest
from codec_ctypes import Decoder, Event, Refused, Seen, Side
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

frames = pytest.importorskip("websockets.frames")
protocol = pytest.importorskip("websockets.protocol")

# A busy machine is no failure.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

MASKS = st.binary(min_size=4, max_size=4)
CODES = st.sampled_from([1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999])
LENGTHS = [0, 1, 125, 126, 127, 65535, 65536, 70000]

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(
    opcode: int, payload: bytes, *, mask: bytes | None = None, fin: bool = True, rsv: int = 0
) -> bytes:
    """Written down from RFC 6455 section 5.2."""
    marked = 0x80 if mask is not None else 0
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if len(payload) < 126:
        length = bytes([marked | len(payload)])
    elif len(payload) < 65536:
        length = bytes([marked | 126]) + len(payload).to_bytes(2, "big")
    else:
        length = bytes([marked | 127]) + len(payload).to_bytes(8, "big")
    if mask is None:
        return first + length + payload
    body = bytes(b ^ m for b, m in zip(payload, itertools.cycle(mask), strict=False))
    return first + length + mask + body


def sender_mask(side: Side, mask: bytes) -> bytes | None:
    """What the peer of side must mask with."""
    return mask if side is Side.SERVER else None


def splits(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("mask", [None, b"\x00\xff\x5a\xa5"])
@pytest.mark.parametrize("length", LENGTHS)
def test_headers_are_those_of_websockets(length: int, mask: bytes | None) -> None:
    payload = bytes(i * 31 & 0xFF for i in range(length))
    for opcode in (BINARY, TEXT):
        ours = c.ws_header(opcode, length, mask)
        ours += payload if mask is None else c.ws_mask(payload, mask, 0)
        theirs = frame(opcode, payload, mask=mask)
        assert ours == theirs
        if mask is None:
            assert ours == frames.Frame(frames.Opcode(opcode), payload).serialize(mask=False)


@relaxed
@given(st.binary(max_size=300), MASKS, st.integers(0, 2**64 - 1))
def test_masking_at_any_offset(data: bytes, mask: bytes, offset: int) -> None:
    expected = bytes(b ^ mask[(offset + i) % 4] for i, b in enumerate(data))
    assert c.ws_mask(data, mask, offset) == expected
    assert c.ws_mask(expected, mask, offset) == data


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Side, bytes, list[Seen], int]:
    """Legal frames to side, what must be seen of them, and the bytes of text among them."""
    side = draw(st.sampled_from(list(Side)))
    stream, seen, text = b"", list[Seen](), 0

    def add(opcode: int, payload: bytes, *, fin: bool = True) -> None:
        nonlocal stream
        stream += frame(opcode, payload, mask=sender_mask(side, draw(MASKS)), fin=fin)

    def saw(event: Event, payload: bytes) -> None:
        if event is not Event.DATA:
            seen.append(Seen(event, payload))
        elif seen and seen[-1].event is Event.DATA:
            seen[-1] = Seen(event, seen[-1].payload + payload)
        elif payload:
            seen.append(Seen(event, payload))

    for _ in range(draw(st.integers(0, 4))):
        opcode = draw(st.sampled_from([BINARY, TEXT]))
        pieces = draw(st.lists(st.binary(max_size=140), min_size=1, max_size=3))
        for i, piece in enumerate(pieces):
            add(opcode if i == 0 else 0, piece, fin=i == len(pieces) - 1)
            if opcode == TEXT:
                text += len(piece)
            else:
                saw(Event.DATA, piece)
            if draw(st.booleans()):
                payload = draw(st.binary(max_size=125))
                control = draw(st.sampled_from([PING, PONG]))
                add(control, payload)
                saw(Event.PING if control == PING else Event.PONG, payload)
    if draw(st.booleans()):
        code, reason = draw(CODES), draw(st.text(max_size=30)).encode()
        add(CLOSE, code.to_bytes(2, "big") + reason)
        seen.append(Seen(Event.CLOSE, reason, code))
        stream += draw(st.binary(max_size=10))
    return side, stream, seen, text


@relaxed
@given(conversations(), st.lists(st.integers(0, 600), max_size=20))
def test_splits_change_nothing(
    conversation: tuple[Side, bytes, list[Seen], int], cuts: list[int]
) -> None:
    side, stream, seen, text = conversation
    for pieces in ([stream], splits(stream, cuts), [stream[i : i + 1] for i in range(len(stream))]):
        decoder = Decoder(side)
        for piece in pieces:
            decoder.feed(piece)
        assert decoder.seen == seen
        assert decoder.text_skipped == text
        assert decoder.fail_code == 0


def as_websockets_sees_it(side: Side, stream: bytes) -> tuple[list[Seen], int, str]:
    """The same stream through the package: what was seen, the close code it fails with, and why."""
    their_side = protocol.CLIENT if side is Side.CLIENT else protocol.SERVER
    peer = protocol.Protocol(their_side, state=protocol.OPEN, max_size=None)
    peer.receive_data(stream)
    seen, message = list[Seen](), 0
    for received in peer.events_received():
        opcode, payload = received.opcode, bytes(received.data)
        if opcode in (TEXT, BINARY):
            message = opcode
        if opcode in (TEXT, BINARY, 0):
            if message == BINARY and payload:
                if seen and seen[-1].event is Event.DATA:
                    payload = seen.pop().payload + payload
                seen.append(Seen(Event.DATA, payload))
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            seen.append(Seen(Event.CLOSE, payload[2:], code))
        else:
            seen.append(Seen(Event.PING if opcode == PING else Event.PONG, payload))
    failed = 0
    if peer.close_rcvd is None and peer.close_sent is not None:
        failed = int(peer.close_sent.code)
    return seen, failed, str(peer.parser_exc)


def whole_frames(seen: list[Seen], expected: list[Seen]) -> bool:
    """Ours hands on data as it comes; the package only whole frames: ours may see more at the end
    of a stream that stops, or fails, in the middle of a frame."""
    if seen == expected:
        return True
    if not seen or seen[-1].event is not Event.DATA or seen[: len(expected) - 1] != expected[:-1]:
        return False
    if len(seen) == len(expected) + 1:
        return seen[:-1] == expected
    last = expected[-1]
    return (
        len(seen) == len(expected)
        and last.event is Event.DATA
        and seen[-1].payload.startswith(last.payload)
    )


@settings(relaxed, max_examples=500)
@given(conversations(), st.data())
def test_damaged_streams_fail_as_in_websockets(
    conversation: tuple[Side, bytes, list[Seen], int],
    data: st.DataObject,
) -> None:
    side, stream, _, _ = conversation
    damaged = bytearray(stream)
    for _ in range(data.draw(st.integers(1, 3))):
        if not damaged:
            break
        at = data.draw(st.integers(0, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[at] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del damaged[at : at + data.draw(st.integers(1, 3))]
    decoder = Decoder(side, max_frame=2**63 - 1)
    refusal = refusal_of(decoder, [bytes(damaged)])
    expected, failed, why = as_websockets_sees_it(side, bytes(damaged))
    if refusal is not None and OUR_STRICTNESS.search(refusal.message):
        return
    if THEIR_STRICTNESS in why:
        return
    if decoder.fail_code != failed:
        # A close frame can be wrong in its code and its reason: either may be named. And the
        # package judges some headers only when the whole frame is there.
        assert refusal is not None
        assert failed in (0, 1002, 1007)
    assert whole_frames(decoder.seen, expected)


# RFC 6455 section 5.2 asks for both; the package does not look.
OUR_STRICTNESS = re.compile("shortest form of a length|length below 2\\^63")
# Section 5.4 allows any control frame between fragments; the package excepts the close frame.
THEIR_STRICTNESS = "incomplete fragmented message"


def refusal_of(decoder: Decoder, pieces: list[bytes]) -> Refused | None:
    try:
        for piece in pieces:
            decoder.feed(piece)
    except Refused as refusal:
        return refusal
    return None


VIOLATIONS = {
    "reserved bit 1": (frame(BINARY, b"x", rsv=4), 1002),
    "reserved bit 2": (frame(BINARY, b"x", rsv=2), 1002),
    "reserved bit 3": (frame(BINARY, b"x", rsv=1), 1002),
    "unknown data opcode": (frame(3, b""), 1002),
    "unknown control opcode": (frame(11, b""), 1002),
    "masked by a server": (frame(BINARY, b"x", mask=b"abcd"), 1002),
    "nothing to continue": (frame(0, b"x"), 1002),
    "message in a message": (frame(BINARY, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "fragmented ping": (frame(PING, b"", fin=False), 1002),
    "long ping": (frame(PING, bytes(126)), 1002),
    "length not shortest, 2 bytes": (b"\x82\x7e\x00\x7d" + bytes(125), 1002),
    "length not shortest, 8 bytes": (b"\x82\x7f" + (65535).to_bytes(8, "big"), 1002),
    "length with the top bit": (b"\x82\x7f\x80" + bytes(7), 1002),
    "one byte of a close code": (frame(CLOSE, b"\x03"), 1002),
    "reserved close code": (frame(CLOSE, b"\x03\xed"), 1002),
    "close code out of range": (frame(CLOSE, b"\x13\x88"), 1002),
    "reason that is no UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "frame too long": (b"\x82\x7f" + (1001).to_bytes(8, "big"), 1002),
    "frame above the limit": (b"\x82\x7e" + (1001).to_bytes(2, "big"), 1009),
    "text above the limit": (b"\x81\x7e" + (1001).to_bytes(2, "big"), 1009),
}


@pytest.mark.parametrize("name", sorted(VIOLATIONS))
def test_violations(name: str) -> None:
    stream, code = VIOLATIONS[name]
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        decoder = Decoder(Side.CLIENT, max_frame=1000)
        decoder.feed(frame(PING, b"before"))
        refusal = refusal_of(decoder, pieces)
        assert refusal is not None
        assert refusal.code == c.PROTOCOL
        assert re.fullmatch("WebSocket: expected .* got .*", refusal.message)
        assert decoder.fail_code == code
        assert [seen for seen in decoder.seen if seen.event is not Event.DATA] == [
            Seen(Event.PING, b"before")
        ]
        with pytest.raises(Refused):
            decoder.feed(frame(PING, b""))


def test_an_unmasked_frame_to_a_server() -> None:
    decoder = Decoder(Side.SERVER)
    with pytest.raises(Refused, match="expected a masked frame from a client"):
        decoder.feed(frame(BINARY, b"x"))
    assert decoder.fail_code == 1002
