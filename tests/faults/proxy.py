"""A TCP proxy that does to connections what :mod:`.faults` says: the same for the same seed.

    def plan(number):
        return [Reset(Direction.TO_CLIENT, Place(Stage.OPEN, 5000))] if number == 0 else []

    with FaultProxy(("127.0.0.1", port), plan) as proxy:
        Client(proxy.url, ...)

The plan gives each connection, by its number, its faults. Chance is drawn from the seed, the
connection's number and the direction, so it does not depend on what happens elsewhere.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

from .faults import (
    ByteEffect,
    ByteFault,
    Direction,
    End,
    Fault,
    FrameEffect,
    MessageFault,
    Piece,
    Stage,
)
from .frames import BINARY, CLOSE, FrameReader, head_length, masking, payload_length, random_mask

__all__ = ["FaultProxy", "Pipe", "Plan"]

#: The faults of a connection, by its number.
Plan = Callable[[int], Sequence[Fault]]

HANDSHAKE_BYTES = {Direction.TO_SERVER: 32, Direction.TO_CLIENT: 48}
READ_SIZE = 65_536
# Read but not passed on yet, in one direction; a slow one must not become an endless buffer.
HELD_LIMIT = 256 * 1024
# How long a side that was told of the end may take to hang up.
LINGER = 2.0
BOUNDARY = b"\r\n\r\n"


class Progress:
    """Which stage the payload of one direction's binary messages has come to."""

    def __init__(self, direction: Direction) -> None:
        self.stage = Stage.HANDSHAKE
        self._left = HANDSHAKE_BYTES[direction]
        self._length = b""

    def take(self, payload: bytes) -> int:
        """How many of these bytes belong to the present stage, which ends with the last of them
        where that is what it takes."""
        if self.stage is Stage.OPEN:
            return len(payload)
        if self.stage is Stage.ATTESTATION and len(self._length) < 4:
            taken = payload[: 4 - len(self._length)]
            self._length += taken
            if len(self._length) == 4:
                self._left = int.from_bytes(self._length, "big")
            return len(taken)
        taken_now = min(self._left, len(payload))
        self._left -= taken_now
        if self._left == 0:
            self.stage = Stage(self.stage + 1)
        return taken_now


class Tracker:
    """Cuts a direction's bytes where its stages end. Holds nothing back."""

    def __init__(self, direction: Direction) -> None:
        self._progress = Progress(direction)
        self._upgraded = False
        self._tail = b""
        self._offset = 0
        self._head = b""
        self._payload_left = 0
        self._mask = bytes(4)
        self._masked = 0
        self._opcode = 0
        self._message = 0

    @property
    def _stage(self) -> Stage:
        return self._progress.stage if self._upgraded else Stage.UPGRADE

    def feed(self, data: bytes) -> Iterator[tuple[Stage, int, bytes]]:
        start = at = 0
        while at < len(data):
            stage = self._stage
            at = len(data) if stage is Stage.OPEN else at + self._step(data[at:])
            if self._stage is not stage or at == len(data):
                yield stage, self._offset, data[start:at]
                self._offset += at - start
                start = at
                if self._stage is not stage:
                    self._offset = 0

    def _step(self, data: bytes) -> int:
        if not self._upgraded:
            return self._head_of_upgrade(data)
        if self._payload_left == 0:
            return self._head_of_frame(data)
        piece = data[: self._payload_left]
        if self._opcode == BINARY:
            at = self._masked % 4
            mask = self._mask[at:] + self._mask[:at]
            piece = piece[: self._progress.take(masking(piece, mask))]
        self._masked += len(piece)
        self._payload_left -= len(piece)
        return len(piece)

    def _head_of_upgrade(self, data: bytes) -> int:
        seen = self._tail + data
        found = seen.find(BOUNDARY)
        if found < 0:
            self._tail = seen[-3:]
            return len(data)
        self._upgraded = True
        return found + len(BOUNDARY) - len(self._tail)

    def _head_of_frame(self, data: bytes) -> int:
        known = len(self._head)
        self._head += data[: 14 - known]
        size = head_length(self._head)
        if size is None:
            return min(14 - known, len(data))
        head, self._head = self._head[:size], b""
        self._payload_left = payload_length(head)
        self._mask = head[-4:] if head[1] & 0x80 else bytes(4)
        self._masked = 0
        # A fragment goes on with what its message began as, whatever control frame came between.
        self._opcode = head[0] & 0x0F or self._message
        if self._opcode < CLOSE:
            self._message = self._opcode
        return size - known


class Rewriter:
    """Frames in, changed, frames out; what comes before the upgrade's end is left as it is."""

    def __init__(
        self, direction: Direction, effects: Sequence[FrameEffect], rng: random.Random
    ) -> None:
        self._masks = direction is Direction.TO_SERVER
        self._effects = effects
        self._rng = rng
        self._reader = FrameReader()
        self._progress = Progress(direction)
        self._upgraded = False
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        if self._upgraded:
            return self._frames(data)
        seen = self._held + data
        end = seen.find(BOUNDARY)
        if end < 0:
            self._held = seen[-3:]
            return data
        self._upgraded = True
        frames = seen[end + len(BOUNDARY) :]
        return data[: len(data) - len(frames)] + self._frames(frames)

    def _frames(self, data: bytes) -> bytes:
        out: list[bytes] = []
        for frame in self._reader.feed(data):
            stage = self._progress.stage
            if not frame.is_control:
                payload = frame.payload
                while payload:
                    payload = payload[self._progress.take(payload) :]
            frames = [frame]
            for effect in self._effects:
                frames = [changed for one in frames for changed in effect.feed(one, stage)]
            out += [one.encode(random_mask(self._rng) if self._masks else None) for one in frames]
        return b"".join(out)

    def disarm(self) -> None:
        left = [effect.disarm() for effect in self._effects]
        self._effects = [effect for effect in left if effect is not None]


class Pipe:
    """One direction of one connection, without its sockets: bytes and the time in, pieces out."""

    def __init__(
        self,
        direction: Direction,
        faults: Iterable[Fault],
        rng: random.Random,
        counts: collections.Counter[str],
    ) -> None:
        def counting(fault: Fault) -> Callable[[], None]:
            def count() -> None:
                counts[type(fault).__name__] += 1

            return count

        mine = [fault for fault in faults if fault.direction is direction]
        frame_effects = [
            fault.start(rng, counting(fault)) for fault in mine if isinstance(fault, MessageFault)
        ]
        self._rewriter = Rewriter(direction, frame_effects, rng) if frame_effects else None
        self._effects: Sequence[ByteEffect] = [
            fault.start(rng, counting(fault)) for fault in mine if isinstance(fault, ByteFault)
        ]
        self._tracker = Tracker(direction)
        self.ended = False

    def feed(self, data: bytes, now: float) -> list[Piece | End]:
        if self.ended:
            return []
        if self._rewriter is not None:
            data = self._rewriter.feed(data)
        items: Iterable[Piece | End] = (
            Piece(part, stage, offset, now) for stage, offset, part in self._tracker.feed(data)
        )
        for effect in self._effects:
            items = self._through(effect, items, now)
        out: list[Piece | End] = []
        for item in items:
            out.append(item)
            if isinstance(item, End):
                self.ended = True
                break
        return out

    @staticmethod
    def _through(
        effect: ByteEffect, items: Iterable[Piece | End], now: float
    ) -> Iterator[Piece | End]:
        for item in items:
            if isinstance(item, End):
                yield item
                return
            yield from effect.feed(item, now)

    def disarm(self) -> None:
        self._effects = ()
        if self._rewriter is not None:
            self._rewriter.disarm()


class _Way:
    """One direction, with its sockets."""

    def __init__(self, pipe: Pipe, source: socket.socket, target: socket.socket) -> None:
        self.pipe = pipe
        self._source = source
        self._target = target
        self._queue: collections.deque[Piece | End] = collections.deque()
        self._held = 0
        self._changed = asyncio.Event()
        self._last_due = 0.0
        self.end: End | None = None

    async def read(self) -> None:
        try:
            await self._read()
        except Exception:
            self._put(End.RESET)
            raise

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self._source, READ_SIZE)
            except OSError:
                self._put(End.RESET)
                return
            if not data:
                self._put(End.FIN)
                return
            for item in self.pipe.feed(data, time.monotonic()):
                self._put(item)
            while self._held > HELD_LIMIT:
                self._changed.clear()
                await self._changed.wait()

    def _put(self, item: Piece | End) -> None:
        self._queue.append(item)
        self._held += len(item.data) if isinstance(item, Piece) else 0
        self._changed.set()

    async def write(self) -> End:
        """Until this direction ends; says how."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._changed.clear()
                await self._changed.wait()
            item = self._queue[0]
            if isinstance(item, End):
                self.end = item
                return item
            # A fault may make a later piece due earlier; the order stays.
            self._last_due = max(self._last_due, item.due)
            pause = self._last_due - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
                continue  # it may have been swallowed meanwhile
            data = self._take()
            try:
                await loop.sock_sendall(self._target, data)
            except OSError:
                self.end = End.RESET
                return End.RESET
            self._held -= len(data)
            self._changed.set()

    def _take(self) -> bytes:
        """What may be sent in one go now."""
        now = time.monotonic()
        first = self._queue.popleft()
        assert isinstance(first, Piece)
        pieces = [first.data]
        while self._queue and not first.alone:
            item = self._queue[0]
            if isinstance(item, End) or item.alone or item.due > now:
                break
            pieces.append(item.data)
            self._queue.popleft()
        return b"".join(pieces)

    def tell(self) -> None:
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)


class _Connection:
    def __init__(self, client: socket.socket, server: socket.socket, up: Pipe, down: Pipe) -> None:
        self._sockets = (client, server)
        self._up = _Way(up, client, server)
        self._down = _Way(down, server, client)

    async def run(self) -> None:
        readers = [asyncio.create_task(way.read()) for way in (self._up, self._down)]
        writers: dict[asyncio.Task[End], _Way] = {
            asyncio.create_task(way.write()): way for way in (self._up, self._down)
        }
        try:
            running: set[asyncio.Task[End]] = set(writers)
            while running:
                done, running = await asyncio.wait(
                    running, return_when=asyncio.FIRST_COMPLETED, timeout=self._patience()
                )
                if not done:
                    return
                for task in done:
                    if not await self._after(task.result(), writers[task], readers):
                        return
        finally:
            for running_task in [*readers, *writers]:
                running_task.cancel()
            ended = await asyncio.gather(*readers, *writers, return_exceptions=True)
            for sock in self._sockets:
                sock.close()
            for result in ended:
                if isinstance(result, Exception):
                    raise result

    def _patience(self) -> float | None:
        """A client that hung up does not wait for the other half."""
        return LINGER if self._up.end is End.FIN else None

    async def _after(self, end: End, way: _Way, readers: Sequence[asyncio.Task[None]]) -> bool:
        """Whether the other direction goes on."""
        match end:
            case End.FIN:
                way.tell()
                return True
            case End.RESET:
                for sock in self._sockets:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case End.CUT:
                for each in (self._up, self._down):
                    each.tell()
                self._swallow()
                # Closing with something unread would be a reset.
                await asyncio.wait(readers, timeout=LINGER)
            case End.SILENCE:
                self._swallow()
                await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
        return False

    def _swallow(self) -> None:
        for way in (self._up, self._down):
            way.pipe.ended = True
            way._queue.clear()
            way._held = 0
            way._changed.set()

    def disarm(self) -> None:
        self._up.pipe.disarm()
        self._down.pipe.disarm()


class FaultProxy:
    """Listens once entered, in a thread with an event loop of its own."""

    def __init__(self, target: tuple[str, int], plan: Plan, *, seed: int = 0) -> None:
        self.seed = seed
        #: How often each kind of fault did what it is for.
        self.counts: collections.Counter[str] = collections.Counter()
        self.connections = 0
        #: What went wrong in the proxy itself.
        self.failures: list[Exception] = []
        self._target = target
        self._plan = plan
        self._calm = False
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._ending: asyncio.Event | None = None
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def calm(self) -> None:
        """No faults from now on: none to come in connections that are open, none in new ones. What
        has been done to a connection stays done."""
        self._plan = lambda number: ()

        def disarm() -> None:
            self._calm = True
            for connection in self._open:
                connection.disarm()

        self._loop.call_soon_threadsafe(disarm)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._ending = asyncio.Event()
        acceptor = asyncio.create_task(self._accept())
        self._ready.set()
        await self._ending.wait()
        tasks = [acceptor, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            number = self.connections
            self.connections += 1
            task = asyncio.create_task(self._handle(client, number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _handle(self, client: socket.socket, number: int) -> None:
        faults = list(self._plan(number))
        server = socket.socket()
        server.setblocking(False)
        client.setblocking(False)
        try:
            await self._loop.sock_connect(server, self._target)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            client.close()
            server.close()
            return
        pipes = [
            Pipe(way, faults, random.Random(f"{self.seed}/{number}/{way.name}"), self.counts)
            for way in Direction
        ]
        connection = _Connection(client, server, *pipes)
        self._open.add(connection)
        if self._calm:  # since the plan was asked
            connection.disarm()
        try:
            await connection.run()
        except Exception as failure:
            self.failures.append(failure)
        finally:
            self._open.discard(connection)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        ending = self._ending
        assert ending is not None
        self._loop.call_soon_threadsafe(ending.set)
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive(), "the fault proxy hangs"
        assert not self.failures, self.failures
