"""The fault proxy does what its tests rely on: each fault at its place, the same for each seed."""

from __future__ import annotations

import collections
import itertools
import random
import socket
from collections.abc import Sequence

import pytest

from .faults import (
    BYTE_FAULTS,
    MESSAGE_FAULTS,
    Blackhole,
    Close,
    Coalesce,
    Corrupt,
    Cut,
    Delay,
    Direction,
    Duplicate,
    End,
    Fault,
    Fragment,
    HalfClose,
    Jitter,
    Merge,
    Oversized,
    Piece,
    Pings,
    Place,
    Pongs,
    Reset,
    Split,
    Stage,
    Stall,
    Texts,
    Throttle,
    Truncate,
)
from .frames import BINARY, CLOSE, PING, PONG, TEXT, Frame, FrameReader
from .proxy import FaultProxy, Pipe, Tracker

UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT
HEAD = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
ANSWER = bytes(48)
RECORD = (100).to_bytes(4, "big") + bytes(range(100))
MORE = b"\x00\x00\x00\x20" + bytes(32)
NOW = 100.0


def conversation(direction: Direction) -> bytes:
    mask = b"mask" if direction is UP else None
    handshake = ANSWER[:32] if direction is UP else ANSWER
    messages = [handshake, RECORD[:2], RECORD[2:50], RECORD[50:] + MORE, MORE]
    return HEAD + b"".join(Frame(BINARY, message).encode(mask) for message in messages)


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def through(
    faults: Sequence[Fault], direction: Direction = DOWN, *, size: int = 10_000, seed: int = 1
) -> tuple[list[Piece | End], collections.Counter[str]]:
    counts: collections.Counter[str] = collections.Counter()
    pipe = Pipe(direction, faults, random.Random(seed), counts)
    out: list[Piece | End] = []
    for part in pieces_of(conversation(direction), size):
        out += pipe.feed(part, NOW)
    return out, counts


def sent(out: Sequence[Piece | End]) -> bytes:
    return b"".join(item.data for item in out if isinstance(item, Piece))


def frames_of(data: bytes) -> list[Frame]:
    assert data.startswith(HEAD)
    return list(FrameReader().feed(data[len(HEAD) :]))


def binary(frames: Sequence[Frame]) -> bytes:
    out, text = b"", False
    for frame in frames:
        if frame.starts_message:
            text = frame.opcode == TEXT
        if not frame.is_control and not text:
            out += frame.payload
    return out


PAYLOAD = {way: binary(frames_of(conversation(way))) for way in Direction}


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_the_stages_are_where_they_are(direction: Direction, size: int) -> None:
    tracker = Tracker(direction)
    found: dict[Stage, bytes] = dict.fromkeys(Stage, b"")
    for part in pieces_of(conversation(direction), size):
        for stage, offset, data in tracker.feed(part):
            assert offset == len(found[stage])
            found[stage] += data
    assert b"".join(found.values()) == conversation(direction)
    handshake = 32 if direction is UP else 48
    head = 6 if direction is UP else 2
    assert [len(found[stage]) for stage in Stage][:3] == [
        len(HEAD),
        handshake + head,
        len(RECORD) + 3 * head,  # three messages
    ]


HARMLESS = [
    (fault, direction)
    for fault in BYTE_FAULTS + MESSAGE_FAULTS
    for direction in Direction
    if fault.harmless and (fault is not Merge or direction is DOWN)
]


@pytest.mark.parametrize(("fault", "direction"), HARMLESS)
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_harmless_faults_keep_what_is_said(
    fault: type[Fault], direction: Direction, size: int
) -> None:
    out, counts = through([fault(direction)], direction, size=size)
    assert binary(frames_of(sent(out))) == PAYLOAD[direction]
    assert counts[fault.__name__] == 1


def test_all_harmless_ones_together() -> None:
    faults = [Merge(DOWN), Fragment(DOWN, largest=5), Texts(DOWN), Pings(DOWN), Pongs(DOWN)]
    shaping = [Delay(DOWN), Jitter(DOWN), Throttle(DOWN), Coalesce(DOWN), Split(DOWN)]
    out, counts = through([*faults, *shaping], size=11)
    frames = frames_of(sent(out))
    assert binary(frames) == PAYLOAD[DOWN]
    assert {TEXT, PING, PONG, BINARY, 0} == {frame.opcode for frame in frames}
    assert set(counts.values()) == {1} and len(counts) == 10


def test_a_message_left_open_is_ended_when_the_faults_go_off() -> None:
    counts: collections.Counter[str] = collections.Counter()
    pipe = Pipe(DOWN, [Merge(DOWN, frames=3), Pings(DOWN)], random.Random(1), counts)
    out = sent(pipe.feed(conversation(DOWN), NOW))
    pipe.disarm()
    out += sent(pipe.feed(Frame(BINARY, b"one").encode() + Frame(BINARY, b"two").encode(), NOW))
    frames = [(frame.opcode, frame.fin) for frame in frames_of(out) if frame.opcode != PING]
    first, middle, last = (BINARY, False), (0, False), (0, True)
    assert frames == [first, middle, last, first, middle, last, (BINARY, True)]


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("after", [0, 1, 5, 30])
@pytest.mark.parametrize("size", [1, 10, 10_000])
def test_a_flipped_bit_is_where_it_was_asked_for(stage: Stage, after: int, size: int) -> None:
    out, counts = through([Corrupt(DOWN, Place(stage, after), bit=3)], size=size)
    before, now = conversation(DOWN), sent(out)
    assert len(now) == len(before) and counts == {"Corrupt": 1}
    starts = dict.fromkeys(Stage, 0)
    position = 0
    for found, _, data in Tracker(DOWN).feed(before):
        starts[found] = starts[found] or position
        position += len(data)
    where = [at for at in range(len(now)) if now[at] != before[at]]
    assert where == [starts[stage] + after]
    assert now[where[0]] ^ before[where[0]] == 8


@pytest.mark.parametrize("size", [1, 10, 10_000])
def test_missing_and_doubled_bytes(size: int) -> None:
    whole = conversation(DOWN)
    at = len(HEAD) + 10
    place = Place(Stage.HANDSHAKE, 10)
    out, _ = through([Truncate(DOWN, place, length=7)], size=size)
    assert sent(out) == whole[:at] + whole[at + 7 :]
    out, _ = through([Duplicate(DOWN, place, length=1)], size=size)
    assert sent(out) == whole[: at + 1] + whole[at:]


@pytest.mark.parametrize(
    ("fault", "end"),
    [(Reset, End.RESET), (HalfClose, End.FIN), (Cut, End.CUT), (Blackhole, End.SILENCE)],
)
@pytest.mark.parametrize("size", [1, 10_000])
def test_ends(fault: type[Fault], end: End, size: int) -> None:
    out, counts = through([fault(DOWN, Place(Stage.HANDSHAKE, 10))], size=size)
    assert out[-1] is end and out.count(end) == 1
    assert sent(out) == conversation(DOWN)[: len(HEAD) + 10]
    assert counts == {fault.__name__: 1}


def test_times() -> None:
    def dues(fault: Fault) -> list[float]:
        out, _ = through([fault], size=50)
        return [item.due for item in out if isinstance(item, Piece)]

    assert set(dues(Delay(DOWN, seconds=2))) == {NOW + 2}
    assert len(set(dues(Jitter(DOWN, seconds=1)))) > 3
    assert all(NOW < due <= NOW + 0.5 for due in dues(Coalesce(DOWN, seconds=0.5)))
    assert set(dues(Stall(DOWN, Place(Stage.OPEN), seconds=3))) == {NOW, NOW + 3}
    slow = dues(Throttle(DOWN, rate=100))
    assert slow[-1] == pytest.approx(NOW + len(conversation(DOWN)) / 100)


def test_frames_in_the_way() -> None:
    out, _ = through([Close(DOWN, Place(Stage.ATTESTATION, 1), code=1012)])
    frames = frames_of(sent(out))
    assert [frame.opcode for frame in frames] == [BINARY, BINARY, CLOSE]
    assert frames[-1].payload[:2] == (1012).to_bytes(2, "big")
    out, _ = through([Oversized(DOWN, Place(Stage.OPEN))])
    assert b"\x82\x7f" + (1 << 40).to_bytes(8, "big") in sent(out)


def test_the_same_for_the_same_seed() -> None:
    faults = [Fragment(UP, largest=9), Split(UP, largest=9), Jitter(UP), Corrupt(UP)]
    runs = [through(faults, UP, size=13, seed=seed)[0] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def echo_once(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(10)
    return connection


@pytest.mark.parametrize("fault", [None, Reset, HalfClose, Cut, Blackhole])
def test_what_both_ends_see(fault: type[Fault] | None) -> None:
    faults = [] if fault is None else [fault(DOWN, Place(Stage.UPGRADE, 3))]
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        FaultProxy(listener.getsockname()[:2], lambda number: faults) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), 10) as client,
        echo_once(listener) as server,
    ):
        client.sendall(b"hello")
        assert server.recv(5) == b"hello"
        server.sendall(b"world")
        if fault is None:
            assert client.recv(9) == b"world"
            client.shutdown(socket.SHUT_WR)
            assert server.recv(9) == b""
        elif fault is Reset:
            with pytest.raises(ConnectionResetError):
                b"".join(iter(lambda: client.recv(9), b""))
            with pytest.raises(ConnectionResetError):
                server.recv(9)
        elif fault is Blackhole:
            assert client.recv(9) == b"wor"
            client.sendall(b"lost")
            for end in (client, server):
                end.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    end.recv(9)
            client.close()
            server.settimeout(10)
            assert server.recv(9) == b""
        else:
            assert client.recv(9) + client.recv(9) == b"wor"
            if fault is HalfClose:
                client.sendall(b"still there")
                assert server.recv(20) == b"still there"
            else:
                assert server.recv(9) == b""


def test_connections_are_numbered_and_calm_is_calm() -> None:
    numbers = itertools.count()

    def plan(number: int) -> list[Fault]:
        assert number == next(numbers)
        return [Reset(UP, Place(Stage.UPGRADE, 1000))]

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        FaultProxy(listener.getsockname()[:2], plan) as proxy,
    ):
        for _ in range(3):
            with (
                socket.create_connection(("127.0.0.1", proxy.port), 10) as client,
                echo_once(listener) as server,
            ):
                proxy.calm()
                client.sendall(b"x" * 2000)
                got = b""
                while len(got) < 2000:
                    got += server.recv(4096)
        assert next(numbers) == 1
        assert proxy.counts == {}
