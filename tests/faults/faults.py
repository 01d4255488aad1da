"""What can go wrong on the way between client and enclave, as small values.

    Corrupt(TO_CLIENT, Place(OPEN, 1000))     one bit, 1000 bytes after the channel was opened
    Fragment(TO_SERVER, largest=7)            every message in fragments, from the first one on

Each has a direction and a place: a stage of the connection, and how far into it. Those of
``BYTE_FAULTS`` see bytes and count bytes; those of ``MESSAGE_FAULTS`` see the frames of the
WebSocket after its upgrade and count frames. Some act from their place on, some once. Any number of
them can be composed; they act in the order given.

No I/O and no clock: a fault takes pieces and the time, and gives pieces with the time at which they
are due, or the end of the connection. What chance decides comes from the generator handed in.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from .frames import CLOSE, PING, PONG, TEXT, Frame, close_payload

__all__ = [
    "BYTE_FAULTS",
    "MESSAGE_FAULTS",
    "Blackhole",
    "ByteEffect",
    "ByteFault",
    "Close",
    "Coalesce",
    "Corrupt",
    "Cut",
    "Delay",
    "Direction",
    "Duplicate",
    "End",
    "Fault",
    "Fragment",
    "FrameEffect",
    "HalfClose",
    "Jitter",
    "Merge",
    "MessageFault",
    "Oversized",
    "Piece",
    "Pings",
    "Place",
    "Pongs",
    "Reset",
    "Split",
    "Stage",
    "Stall",
    "Texts",
    "Throttle",
    "Truncate",
]


class Direction(enum.Enum):
    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class Stage(enum.IntEnum):
    """What the bytes of one direction belong to."""

    UPGRADE = 0
    HANDSHAKE = 1
    ATTESTATION = 2
    OPEN = 3


@dataclass(frozen=True, slots=True)
class Place:
    stage: Stage = Stage.UPGRADE
    after: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that follow each other within one stage."""

    data: bytes
    stage: Stage
    offset: int
    due: float
    alone: bool = False
    """Not to be sent together with others."""

    def from_(self, start: int) -> Piece:
        return replace(self, data=self.data[start:], offset=self.offset + start)

    def to(self, end: int) -> Piece:
        return replace(self, data=self.data[:end])


class End(enum.Enum):
    """Nothing more comes in this direction, and:"""

    FIN = "the receiver is told, the other direction goes on"
    CUT = "both sides are told"
    RESET = "both sides are told by a TCP reset"
    SILENCE = "nobody is told, in neither direction"


#: Tells that a fault did what it is for.
Count = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Fault:
    direction: Direction
    place: Place = Place()

    #: Whether an orderly client must work as if there were no such fault.
    harmless: ClassVar[bool] = False


class ByteFault(Fault):
    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        raise NotImplementedError


class MessageFault(Fault):
    def start(self, rng: random.Random, count: Count) -> FrameEffect:
        raise NotImplementedError


# --- bytes: from their place on ---------------------------------------------------------------


class ByteEffect:
    """One fault at work in one direction of one connection."""

    def __init__(self, place: Place, count: Count) -> None:
        self._place = place
        self._count = count
        self._reached = False

    def feed(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        if not self._reached:
            at = self._distance(piece)
            if at is None:
                yield piece
                return
            if at:
                yield piece.to(at)
            piece = piece.from_(at)
            self._reached = True
            self._count()
        yield from self.act(piece, now)

    def _distance(self, piece: Piece) -> int | None:
        """How far into the piece the place is; None where it comes later."""
        if piece.stage is not self._place.stage:
            return 0 if piece.stage > self._place.stage else None
        at = max(0, self._place.after - piece.offset)
        return at if at < len(piece.data) else None

    def act(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Delay(ByteFault):
    """Everything arrives that much later."""

    seconds: float = 0.05
    harmless: ClassVar[bool] = True

    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        return _Late(self.place, count, lambda: self.seconds)


@dataclass(frozen=True, slots=True)
class Jitter(ByteFault):
    """Everything arrives up to that much later, in order."""

    seconds: float = 0.01
    harmless: ClassVar[bool] = True

    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        return _Late(self.place, count, lambda: rng.uniform(0, self.seconds))


class _Late(ByteEffect):
    def __init__(self, place: Place, count: Count, seconds: Callable[[], float]) -> None:
        super().__init__(place, count)
        self._seconds = seconds

    def act(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        yield replace(piece, due=piece.due + self._seconds())


@dataclass(frozen=True, slots=True)
class Throttle(ByteFault):
    """So many bytes a second."""

    rate: float = 1_000_000
    harmless: ClassVar[bool] = True

    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        return _Slow(self.place, count, self.rate)


class _Slow(ByteEffect):
    def __init__(self, place: Place, count: Count, rate: float) -> None:
        super().__init__(place, count)
        self._rate = rate
        self._free = 0.0

    def act(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        size = max(1, int(self._rate / 20))
        for start in range(0, len(piece.data), size):
            part = piece.from_(start).to(size)
            self._free = max(self._free, part.due) + len(part.data) / self._rate
            yield replace(part, due=self._free)


@dataclass(frozen=True, slots=True)
class Split(ByteFault):
    """In segments of 1 to ``largest`` bytes."""

    largest: int = 1000
    harmless: ClassVar[bool] = True

    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        return _Split(self.place, count, self.largest, rng)


class _Split(ByteEffect):
    def __init__(self, place: Place, count: Count, largest: int, rng: random.Random) -> None:
        super().__init__(place, count)
        self._largest = largest
        self._rng = rng

    def act(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        while piece.data:
            size = self._rng.randint(1, self._largest)
            yield replace(piece.to(size), alone=True)
            piece = piece.from_(size)


@dataclass(frozen=True, slots=True)
class Coalesce(ByteFault):
    """What arrives within ``seconds`` is passed on at once."""

    seconds: float = 0.02
    harmless: ClassVar[bool] = True

    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        return _Together(self.place, count, self.seconds)


class _Together(ByteEffect):
    def __init__(self, place: Place, count: Count, seconds: float) -> None:
        super().__init__(place, count)
        self._seconds = seconds

    def act(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        due = (math.floor(piece.due / self._seconds) + 1) * self._seconds
        yield replace(piece, due=due, alone=False)


# --- bytes: once -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stall(ByteFault):
    """Nothing arrives for that long; then everything does."""

    seconds: float = 1.0

    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        return _Stalled(self.place, count, self.seconds)


class _Stalled(ByteEffect):
    def __init__(self, place: Place, count: Count, seconds: float) -> None:
        super().__init__(place, count)
        self._seconds = seconds
        self._until: float | None = None

    def act(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        if self._until is None:
            self._until = now + self._seconds
        yield replace(piece, due=max(piece.due, self._until))


class _Ending(ByteFault):
    end: ClassVar[End]

    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        return _Ended(self.place, count, self.end)


class _Ended(ByteEffect):
    def __init__(self, place: Place, count: Count, end: End) -> None:
        super().__init__(place, count)
        self._end: End | None = end

    def act(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        if self._end is not None:
            end, self._end = self._end, None
            yield end


@dataclass(frozen=True, slots=True)
class Blackhole(_Ending):
    """As a cut cable: nothing arrives any more, in neither direction, and nobody is told."""

    end: ClassVar[End] = End.SILENCE


@dataclass(frozen=True, slots=True)
class Reset(_Ending):
    end: ClassVar[End] = End.RESET


@dataclass(frozen=True, slots=True)
class HalfClose(_Ending):
    """This direction ends with a FIN, the other goes on."""

    end: ClassVar[End] = End.FIN


@dataclass(frozen=True, slots=True)
class Cut(_Ending):
    """Both directions end with a FIN."""

    end: ClassVar[End] = End.CUT


@dataclass(frozen=True, slots=True)
class Corrupt(ByteFault):
    """One bit of one byte is flipped; without ``bit`` any one."""

    bit: int | None = None

    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        return _Flipped(self.place, count, rng.randrange(8) if self.bit is None else self.bit)


class _Flipped(ByteEffect):
    def __init__(self, place: Place, count: Count, bit: int) -> None:
        super().__init__(place, count)
        self._mask = 1 << bit

    def act(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        mask, self._mask = self._mask, 0
        yield replace(piece, data=bytes([piece.data[0] ^ mask]) + piece.data[1:])


@dataclass(frozen=True, slots=True)
class Truncate(ByteFault):
    """So many bytes are missing."""

    length: int = 1

    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        return _Missing(self.place, count, self.length)


class _Missing(ByteEffect):
    def __init__(self, place: Place, count: Count, length: int) -> None:
        super().__init__(place, count)
        self._left = length

    def act(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        missing = min(self._left, len(piece.data))
        self._left -= missing
        if missing < len(piece.data):
            yield piece.from_(missing)


@dataclass(frozen=True, slots=True)
class Duplicate(ByteFault):
    """Up to so many bytes, as they arrive together, are sent twice."""

    length: int = 1000

    def start(self, rng: random.Random, count: Count) -> ByteEffect:
        return _Doubled(self.place, count, self.length)


class _Doubled(ByteEffect):
    def __init__(self, place: Place, count: Count, length: int) -> None:
        super().__init__(place, count)
        self._length = length

    def act(self, piece: Piece, now: float) -> Iterator[Piece | End]:
        length, self._length = self._length, 0
        if length:
            yield piece.to(length)
        yield piece


# --- frames ------------------------------------------------------------------------------------


class FrameEffect:
    """One fault at work on the frames of one direction of one connection."""

    def __init__(self, place: Place, count: Count) -> None:
        self._place = place
        self._count = count
        self._seen = 0
        self._reached = False

    def feed(self, frame: Frame, stage: Stage) -> Iterator[Frame]:
        if not self._reached:
            self._reached = stage > self._place.stage or (
                stage is self._place.stage and self._seen >= self._place.after
            )
            self._seen += stage is self._place.stage
            if self._reached:
                self._count()
        yield from self.act(frame) if self._reached else (frame,)

    def act(self, frame: Frame) -> Iterator[Frame]:
        raise NotImplementedError

    def disarm(self) -> FrameEffect | None:
        """What has to go on where the fault is switched off."""
        return None


@dataclass(frozen=True, slots=True)
class Fragment(MessageFault):
    """Messages in fragments of 1 to ``largest`` bytes, some of them empty."""

    largest: int = 1000
    harmless: ClassVar[bool] = True

    def start(self, rng: random.Random, count: Count) -> FrameEffect:
        return _Fragmented(self.place, count, self.largest, rng)


class _Fragmented(FrameEffect):
    def __init__(self, place: Place, count: Count, largest: int, rng: random.Random) -> None:
        super().__init__(place, count)
        self._largest = largest
        self._rng = rng

    def act(self, frame: Frame) -> Iterator[Frame]:
        if frame.is_control:
            yield frame
            return
        opcode, rest = frame.opcode, frame.payload
        while True:
            size = self._rng.randint(0, self._largest)
            piece, rest = rest[:size], rest[size:]
            last = not rest
            yield Frame(opcode, piece, fin=frame.fin and last)
            if last:
                return
            opcode = 0


class _Interspersed(FrameEffect):
    """A frame of its own before every so many others, wherever that is allowed."""

    def __init__(self, place: Place, count: Count, every: int, extra: Frame) -> None:
        super().__init__(place, count)
        self._every = every
        self._extra = extra
        self._turn = 0

    def act(self, frame: Frame) -> Iterator[Frame]:
        if self._extra.is_control or frame.starts_message:
            if self._turn % self._every == 0:
                yield self._extra
            self._turn += 1
        yield frame


@dataclass(frozen=True, slots=True)
class Pings(MessageFault):
    """Between frames: after :class:`Fragment` between fragments, too."""

    every: int = 1
    payload: bytes = b"are you there"
    harmless: ClassVar[bool] = True

    def start(self, rng: random.Random, count: Count) -> FrameEffect:
        return _Interspersed(self.place, count, self.every, Frame(PING, self.payload))


@dataclass(frozen=True, slots=True)
class Pongs(MessageFault):
    """That nobody asked for."""

    every: int = 1
    payload: bytes = b"here I am"
    harmless: ClassVar[bool] = True

    def start(self, rng: random.Random, count: Count) -> FrameEffect:
        return _Interspersed(self.place, count, self.every, Frame(PONG, self.payload))


@dataclass(frozen=True, slots=True)
class Texts(MessageFault):
    """Text messages, which carry nothing."""

    every: int = 1
    payload: bytes = b"not part of it"
    harmless: ClassVar[bool] = True

    def start(self, rng: random.Random, count: Count) -> FrameEffect:
        return _Interspersed(self.place, count, self.every, Frame(TEXT, self.payload))


@dataclass(frozen=True, slots=True)
class Merge(MessageFault):
    """The frames of so many messages as fragments of one, which stays open between them. Only to
    the client: a router may wait for a message to be whole. Not after :class:`Texts`."""

    frames: int = 8
    harmless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.direction is not Direction.TO_CLIENT:
            raise ValueError("merged messages go only to the client")

    def start(self, rng: random.Random, count: Count) -> FrameEffect:
        return _Merged(self.place, count, self.frames)


class _Merged(FrameEffect):
    """Nothing is held back: a message that goes on is left open, and ended by a later frame."""

    def __init__(self, place: Place, count: Count, frames: int) -> None:
        super().__init__(place, count)
        self._frames = frames
        self._turn = 0

    def act(self, frame: Frame) -> Iterator[Frame]:
        if frame.is_control:
            yield frame
            return
        opcode = frame.opcode if self._turn == 0 else 0
        self._turn = (self._turn + 1) % self._frames
        yield Frame(opcode, frame.payload, fin=self._turn == 0)

    def disarm(self) -> FrameEffect:
        """A message that was left open is ended by the next frame."""
        self._frames = 1
        return self


class _Instead(FrameEffect):
    """One frame is put in the way; the rest is not sent, or goes on."""

    def __init__(self, place: Place, count: Count, extra: Frame, goes_on: bool) -> None:
        super().__init__(place, count)
        self._extra: Frame | None = extra
        self._goes_on = goes_on

    def act(self, frame: Frame) -> Iterator[Frame]:
        extra, self._extra = self._extra, None
        if extra is not None:
            yield extra
        if self._goes_on:
            yield frame


@dataclass(frozen=True, slots=True)
class Oversized(MessageFault):
    """A frame that claims to be so long; what comes after it would belong to it."""

    length: int = 1 << 40

    def start(self, rng: random.Random, count: Count) -> FrameEffect:
        extra = Frame(2, b"", claimed_length=self.length)
        return _Instead(self.place, count, extra, goes_on=True)


@dataclass(frozen=True, slots=True)
class Close(MessageFault):
    """A close frame, and nothing after it."""

    code: int = 1011
    reason: str = "going"

    def start(self, rng: random.Random, count: Count) -> FrameEffect:
        extra = Frame(CLOSE, close_payload(self.code, self.reason))
        return _Instead(self.place, count, extra, goes_on=False)


BYTE_FAULTS: tuple[type[ByteFault], ...] = (
    Delay, Jitter, Throttle, Split, Coalesce, Stall, Blackhole, Reset, HalfClose, Cut, Corrupt,
    Truncate, Duplicate,
)  # fmt: skip
MESSAGE_FAULTS: tuple[type[MessageFault], ...] = (
    Fragment, Pings, Pongs, Texts, Merge, Oversized, Close,
)  # fmt: skip
