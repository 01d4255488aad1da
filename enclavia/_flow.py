"""The life of one request, from its place in the queue to the last byte of its answer.

Written once, for both transports: everything that may wait goes through :class:`Io`. In an event
loop it suspends; in a thread it blocks, and :func:`run` steps through a coroutine that therefore
never suspends.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import httpx2

from . import _core
from ._arguments import TIMEOUT_MAX, timeout
from ._attestation import Attestation
from ._channel import first_piece
from ._config import ChannelConfig
from ._errors import (
    ConnectionClosed,
    ConnectTimeout,
    EnclaviaError,
    ForeignURL,
    ForkedError,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    ReconnectDisabled,
    ServerError,
    StateError,
    WriteTimeout,
)
from ._http1 import (
    BodyEncoder,
    Data,
    End,
    Event,
    Failed,
    Head,
    ResponseParser,
    asks_to_close,
    body_encoder,
    encode_head,
    expects_continue,
    remembering,
)
from ._pool import Job, Lease, Member, Phase, Pool, PoolLimits, State, Ticket
from ._retry import IDEMPOTENT, Attempt, RetryPolicy
from ._text import shown

__all__ = ["Engine", "Exchange", "Stats", "Timeouts", "Tunnel", "positive", "run"]

logger = logging.getLogger("enclavia")

READ_SIZE = 65_536
# How long a body is held back for a server that does not know ``Expect: 100-continue``.
CONTINUE_WAIT = 1.0
# How long a body waits for a channel of its own; a server without room for it says nothing.
SPARE_WAIT = 3.0
# From when on a deadline that passed without a record from the enclave is held against the channel.
SILENCE = 5.0
_SHORTEST = 1e-6
_NUMBERS = (float, int)
# Goes on while the machine sleeps, where the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

T = TypeVar("T")
W = TypeVar("W", bound="Waiter")


def now() -> float:
    return time.clock_gettime(_CLOCK)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs what only blocks."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    coroutine.close()
    raise RuntimeError("a blocking transport must not be given something to await")


if TYPE_CHECKING:

    class Waiter(Protocol):
        def set(self) -> None: ...

    class Body(Protocol):
        """A request body that is produced piece by piece."""

        async def next(self, timeout: float | None) -> bytes | None:
            """None at the end. Raises WriteTimeout where it can tell that nothing comes."""

        async def close(self) -> None: ...

    class Io(Protocol[W]):
        """Everything that may wait. A wait says False where its time was up."""

        def waiter(self) -> W: ...
        async def wait(self, waiter: W, timeout: float | None) -> bool: ...
        async def wait_open(self, channel: _core.Channel, timeout: float | None) -> bool: ...
        async def reserve(self, channel: _core.Channel, timeout: float | None) -> _core.Slot: ...
        async def read(self, stream: _core.Stream, n: int, timeout: float | None) -> bytes: ...
        async def wait_stream(
            self, stream: _core.Stream, what: int, timeout: float | None
        ) -> bool: ...
        def body(self, request: httpx2.Request) -> Body: ...


class Timeouts(NamedTuple):
    connect: float | None = None
    read: float | None = None
    write: float | None = None
    pool: float | None = None

    @classmethod
    def of(cls, request: httpx2.Request, default: Timeouts) -> Timeouts:
        given: Mapping[str, float | None] | None = request.extensions.get("timeout")
        if given is None:
            return default
        if type(given) is not dict and not isinstance(given, Mapping):
            raise TypeError(
                "timeout: expected a mapping of connect, read, write and pool to seconds, got "
                f"{type(given).__name__}"
            )
        get = given.get
        members = (get("connect"), get("read"), get("write"), get("pool"))
        return cls(*map(_allowed, cls._fields, members))


def _allowed(name: str, seconds: float | None) -> float | None:
    if seconds is None or (type(seconds) in _NUMBERS and _SHORTEST < seconds <= TIMEOUT_MAX):
        return seconds  # nearly always
    return positive(timeout(f"timeout ({name})", seconds))


def positive(seconds: float | None) -> float | None:
    """In C a timeout of 0 asks for what is there already; here it is a deadline like any other."""
    return seconds if seconds is None or seconds > _SHORTEST else _SHORTEST


class Stats(NamedTuple):
    """What a client did and holds. Bytes are those on the wire, over all its channels."""

    channels: int
    streams_active: int
    streams_idle: int
    waiting: int
    connects: int
    reconnects: int
    requests: int
    retries: int
    bytes_in: int
    bytes_out: int


class Traffic:
    """Bytes of channels that are closed. No part of the engine: a cycle through it would keep a
    forgotten client's connection open until the garbage collector comes by."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a destructor may come by in between
        self._bytes_in = 0
        self._bytes_out = 0

    def add(self, bytes_in: int, bytes_out: int) -> None:
        with self._lock:
            self._bytes_in += bytes_in
            self._bytes_out += bytes_out

    def total(self) -> tuple[int, int]:
        with self._lock:
            return self._bytes_in, self._bytes_out


class Tunnel:
    """A channel, as the pool knows it."""

    def __init__(self, core: _core.Channel, past: Traffic) -> None:
        self.core = core
        self.broken = False
        self._past = past
        self._counted = False
        self._heard = -1
        self._heard_at = 0.0

    @property
    def alive(self) -> bool:
        return not self.broken and self.core.state == "open"

    def asked(self) -> None:
        """Something is expected to come from now on."""
        heard = self.core.records_in
        if heard != self._heard:
            self._heard = heard
            self._heard_at = now()

    def unanswered(self) -> None:
        """A deadline passed. A channel on which no record came for a while may lead nowhere any
        more, which nobody is told by TCP; bytes that make no record prove nothing. It ends with
        those who use it now."""
        if self.core.records_in == self._heard and now() - self._heard_at >= SILENCE:
            self.broken = True

    def traffic(self) -> tuple[int, int]:
        stats = self.core.stats()
        return stats["bytes_in"], stats["bytes_out"]

    def close(self, timeout: float = 0.0) -> None:
        self.core.close(timeout)
        if not self._counted:
            self._counted = True
            self._past.add(*self.traffic())


class Link:
    """A workload connection that waits for its next request."""

    def __init__(self, stream: _core.Stream) -> None:
        self.stream = stream

    @property
    def fresh(self) -> bool:
        return not self.stream.readable  # nor is it closed

    def close(self) -> None:
        self.stream.close()


class Engine:
    """What the requests of one transport share in one process."""

    def __init__(
        self,
        config: ChannelConfig,
        limits: PoolLimits,
        policy: RetryPolicy,
        timeouts: Timeouts,
        io: Io[Any],
    ) -> None:
        self.pid = os.getpid()
        self.config = config
        self.io = io
        self.pool: Pool[Tunnel, Link] = Pool(limits)
        self.policy = policy
        self.timeouts = timeouts
        self._patience = limits.patience
        self._raw_attestation: dict[str, object] | None = None
        self._lock = threading.RLock()  # as above
        self._requests = 0
        self._retries = 0
        self._past = Traffic()
        # A caller asks alike. Both here, so that nothing of it outlives the client.
        self._tell = functools.lru_cache(maxsize=16)(Told.of)
        self.read_head = remembering()

    # -- connections ------------------------------------------------------------------------

    async def open(self, timeouts: Timeouts) -> None:
        """Connects and verifies, where that has not been done."""
        lease = await self.obtain(Job(), timeouts)
        self.pool.release(lease, lease.link, now())

    async def obtain(self, job: Job, timeouts: Timeouts) -> Lease[Tunnel, Link]:
        ticket = self.pool.request(job, now())
        try:
            if ticket.state is not State.GRANTED:
                await self._wait_turn(ticket, timeouts)
            return ticket.take()
        except BaseException:
            self.pool.withdraw(ticket, now())
            raise

    async def _wait_turn(self, ticket: Ticket[Tunnel, Link], timeouts: Timeouts) -> None:
        phase: Phase | None = None
        deadline: float | None = None
        while True:
            waiter = self.io.waiter()
            self.pool.watch(ticket, waiter)
            state = ticket.state
            if state is State.GRANTED:
                return
            if state is State.FAILED:
                raise cast(Exception, ticket.error)
            if phase is not ticket.phase:
                phase = ticket.phase
                allowed = self._allowed(phase, timeouts)
                deadline = None if allowed is None else now() + allowed
            if state is State.CONNECT:
                await self._connect(ticket, waiter, deadline, timeouts)
            elif not await self.io.wait(waiter, _remaining(deadline)):
                raise self._too_late(phase, timeouts)

    def _allowed(self, phase: Phase, timeouts: Timeouts) -> float | None:
        """How long a request may wait in all. Patience lasts for several attempts to connect."""
        if phase is Phase.POOL:
            return timeouts.pool
        if timeouts.connect is None or self._patience is None:
            return timeouts.connect
        return max(timeouts.connect, self._patience)

    def _too_late(self, phase: Phase, timeouts: Timeouts) -> Exception:
        if phase is Phase.POOL:
            return PoolTimeout(
                f"expected a free slot within {timeouts.pool} s, all "
                f"{self.config.max_in_flight} were taken"
            )
        return self._connect_timeout(self._allowed(phase, timeouts))

    def _connect_timeout(self, allowed: float | None) -> Exception:
        last = self.pool.last_error
        tried = "" if last is None else f"; the last attempt failed: {last}"
        error = ConnectTimeout(
            f"expected a verified connection within {allowed} s, got none{tried}"
        )
        error.__cause__ = last
        return error

    async def _connect(
        self,
        ticket: Ticket[Tunnel, Link],
        waiter: Waiter,
        deadline: float | None,
        timeouts: Timeouts,
    ) -> None:
        """One attempt, for all who wait."""
        member = cast("Member[Tunnel, Link]", ticket.member)
        pause = member.not_before - now()
        if pause > 0:
            remaining = _remaining(deadline)
            if remaining is not None and remaining < pause:
                if not await self.io.wait(waiter, remaining):
                    raise self._too_late(Phase.CONNECT, timeouts)
                return
            if await self.io.wait(waiter, pause):
                return  # something changed meanwhile, perhaps for this ticket too
        one = SPARE_WAIT if member.spare else timeouts.connect
        end = None if one is None else now() + one
        tunnel = member.handle
        if tunnel is None:
            tunnel = Tunnel(self.config.open(), self._past)
            self.pool.starting(ticket, tunnel)
        opened = await self.io.wait_open(tunnel.core, _remaining(_earlier(end, deadline)))
        if ticket.state is not State.CONNECT:
            return  # closed meanwhile
        if not opened and not member.spare and not _is_before(end, deadline):
            if self.pool.alone(ticket) and self.pool.last_error is None:
                tunnel.core.wait_open(_SHORTEST)  # says what is missing, and closes
            raise self._too_late(Phase.CONNECT, timeouts)
        error = self._verified(tunnel) if opened else self._missing(tunnel)
        if error is None:
            self.pool.connected(ticket, now())
        else:
            # An outage may last for hours: its first failure is a warning, those alike are not.
            alike = str(error) == str(self.pool.last_error)
            level = logging.INFO if alike else logging.WARNING
            logger.log(level, "cannot connect to %s: %s", self.config.url.authority, error)
            self.pool.connect_failed(ticket, error, now())

    def _missing(self, tunnel: Tunnel) -> Exception | None:
        """What an attempt still waited for when its time was up; None where it came just now."""
        try:
            tunnel.core.wait_open(_SHORTEST)
        except EnclaviaError as error:
            return error
        return self._verified(tunnel)

    def _verified(self, tunnel: Tunnel) -> Exception | None:
        """Why the channel is not usable; None where it is."""
        if tunnel.core.state != "open":
            return tunnel.core.error or ConnectionClosed("the connection was closed")
        try:
            self._raw_attestation = raw = tunnel.core.attestation()
        except EnclaviaError as error:
            return error
        logger.info(
            "verified %s: form %s, module %s",
            self.config.url.authority,
            raw["form"],
            shown(str(raw["module_id"])) or "-",
        )
        return None

    # -- requests ---------------------------------------------------------------------------

    async def handle(self, request: httpx2.Request) -> Exchange:
        """Sends the request and reads the answer's head."""
        refusal = self.config.url.refusal(request.url)
        if refusal is not None:
            raise ForeignURL(refusal, request=request)
        timeouts = Timeouts.of(request, self.timeouts)
        message = Message(request, self._tell)
        with self._lock:
            self._requests += 1
        resent = unsent = 0
        lost: Exception | None = None
        while True:
            exchange = Exchange(self, message, timeouts)
            try:
                await exchange.start()
            except Exception as error:
                exchange.blame(error)
                await exchange.abandon()
                attempt = Attempt(
                    request=request,
                    error=error,
                    sent=exchange.sent,
                    answered=exchange.answered,
                    replayable=message.replayable,
                )
                if lost is not None and isinstance(error, ReconnectDisabled):
                    raise lost from None  # that it may not be sent again is no news to anybody
                if not exchange.leased or not self.policy.again(attempt, resent, unsent):
                    raise
                lost = error if attempt.sent else lost
                resent, unsent = resent + attempt.sent, unsent + (not attempt.sent)
                with self._lock:
                    self._retries += 1
                logger.info(
                    "sending a %s request again (%s): %s",
                    request.method,
                    "no answer yet" if attempt.sent else "nothing was sent",
                    error,
                )
            except BaseException:
                await exchange.abandon()
                raise
            else:
                return exchange

    # -- about ------------------------------------------------------------------------------

    def attestation(self) -> Attestation:
        if self._raw_attestation is None:
            raise StateError(
                "not connected yet, so nothing was verified: make a request, enter the client "
                "with `with`, or use Client.connect"
            )
        return Attestation._from_raw(self._raw_attestation)

    def stats(self) -> Stats:
        self.pool.settle(now())
        pool = self.pool.stats()
        traffic = [tunnel.traffic() for tunnel in self.pool.handles()] + [self._past.total()]
        with self._lock:
            return Stats(
                channels=pool.channels,
                streams_active=pool.streams_active,
                streams_idle=pool.streams_idle,
                waiting=pool.waiting,
                connects=pool.connects,
                reconnects=pool.reconnects,
                requests=self._requests,
                retries=self._retries,
                bytes_in=sum(bytes_in for bytes_in, _ in traffic),
                bytes_out=sum(bytes_out for _, bytes_out in traffic),
            )

    def close(self) -> list[Tunnel]:
        """The channels are the caller's to close; those still there are returned again."""
        return self.pool.close(StateError("the client was closed"))


def _earlier(end: float | None, deadline: float | None) -> float | None:
    return end if _is_before(end, deadline) else deadline


def _is_before(end: float | None, deadline: float | None) -> bool:
    """None is never."""
    return end is not None and (deadline is None or end < deadline)


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(_SHORTEST, deadline - now())


class Told(NamedTuple):
    """What the head of a request says, and what it means for the body."""

    head: bytes
    length: int | None
    upgrade: bool
    closes: bool
    expects_continue: bool

    @classmethod
    def of(cls, method: bytes, target: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> Told:
        names = {name.lower() for name, _ in headers}
        length: int | None = 0
        if b"content-length" in names or b"transfer-encoding" in names:
            length = body_encoder(headers).length
        return cls(
            head=encode_head(method, target, headers),
            length=length,
            upgrade=b"upgrade" in names,
            closes=b"connection" in names and asks_to_close(headers),
            expects_continue=b"expect" in names and expects_continue(headers),
        )


class Message:
    """A request as bytes: its head, and where its body comes from."""

    def __init__(self, request: httpx2.Request, tell: Callable[..., Told]) -> None:
        self.request = request
        self.method = request.method.encode("ascii", "replace")
        target: bytes = request.extensions.get("target", request.url.raw_path)
        told = tell(self.method, target, tuple(request.headers.raw))
        self.head, self.length, self.upgrade, self.closes, expects = told
        self.content: bytes | None = None
        if isinstance(request.stream, httpx2.ByteStream):
            self.content = b"".join(request.stream)
        self.expects_continue = expects and self.content != b""
        self._body_used = False

    @property
    def job(self) -> Job:
        size = len(self.content) if self.content is not None else self.length
        return Job(self.request.method in IDEMPOTENT, size)

    @property
    def replayable(self) -> bool:
        return not self._body_used

    def body(self, io: Io[Any]) -> Body:
        self._body_used = True
        return io.body(self.request)


class Exchange:
    """One sending of a request, and its answer."""

    def __init__(self, engine: Engine, message: Message, timeouts: Timeouts) -> None:
        self._engine = engine
        self._io = engine.io
        self._message = message
        self._timeouts = timeouts
        self._encoder = BodyEncoder(message.length)
        self._parser = ResponseParser(message.method, read=engine.read_head)
        self._events: collections.deque[Event] = collections.deque()
        self._lease: Lease[Tunnel, Link] | None = None
        self._stream: _core.Stream | None = None
        self._pending = memoryview(b"")
        self._body: Body | None = None
        self._uploading = False
        self._cut = False
        self._answer: Head | None = None
        self._answered_at = 0.0
        self._continue = False
        self.leased = False
        self.sent = False
        self.settled = False
        self.trailers: list[tuple[bytes, bytes]] = []

    @property
    def answered(self) -> bool:
        return self._parser.started

    @property
    def head(self) -> Head:
        return cast(Head, self._answer)

    @property
    def upgraded(self) -> bool:
        return self._answer is not None and self._parser.finished and self._is_upgrade()

    @property
    def leftover(self) -> bytes:
        return self._parser.leftover

    @property
    def stream(self) -> _core.Stream:
        if self._stream is None:
            raise StateError("the connection was closed")
        return self._stream

    def _is_upgrade(self) -> bool:
        return self.head.status == 101 or (
            self._message.request.method == "CONNECT" and 200 <= self.head.status < 300
        )

    # -- there -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Up to the final head of the answer."""
        self._lease = await self._engine.obtain(self._message.job, self._timeouts)
        self.leased = True
        await self._begin(self._lease)
        if self._message.expects_continue:
            await self._wait_continue()
        while self._answer is None:
            await self._step()
        if self._answer.status == 101 and not self._message.upgrade:
            raise ProtocolError("expected a response to a request without Upgrade, got status 101")

    async def _begin(self, lease: Lease[Tunnel, Link]) -> None:
        message = self._message
        first = message.head
        if message.content and not message.expects_continue:
            if len(message.content) <= READ_SIZE:
                first += self._encode_content(message.content)
            else:
                self._body = _Whole(message.content)
        elif message.content is None:
            self._body = message.body(self._io) if not message.expects_continue else None
        elif not message.content:
            first += self._encoder.finish()
        self._uploading = True
        lease.handle.asked()
        if lease.link is not None:
            self._stream = lease.link.stream
            self._pending = memoryview(first)
            self._write()
            self._uploading = self._body is not None or bool(self._pending)
            return
        piece, self._pending = first_piece(first)
        try:
            await self._open(lease.handle.core, piece)
        except (ConnectionClosed, StateError) as error:
            # It may look open for a moment longer.
            lease.handle.broken = True
            if isinstance(error, StateError) and not isinstance(error, ForkedError):
                raise ConnectionClosed(str(error)) from error
            raise

    async def _open(self, core: _core.Channel, first: memoryview) -> None:
        slot = await self._io.reserve(core, self._timeouts.pool)
        try:
            self._stream = core.open_stream(slot, first)
        except BaseException:
            slot.release()
            raise
        self.sent = True
        self._uploading = self._body is not None or bool(self._pending)

    def _encode_content(self, content: bytes) -> bytes:
        return self._encoder.encode(content) + self._encoder.finish()

    def _write(self) -> None:
        taken = self.stream.write(self._pending, 0)
        self.sent = self.sent or taken > 0
        self._pending = self._pending[taken:]

    async def _wait_continue(self) -> None:
        allowed = self._timeouts.read
        wait = CONTINUE_WAIT if allowed is None else min(allowed, CONTINUE_WAIT)
        self._uploading = False
        while self._pending:
            await self._push_pending()
        deadline = now() + wait
        while not self._continue and self._answer is None:
            remaining = deadline - now()
            if remaining <= 0 or not await self._io.wait_stream(
                self.stream, _core.READABLE, remaining
            ):
                break
            await self._pull()
        if self._answer is not None:
            self._cut = True
            return
        message = self._message
        self._uploading = True
        content = message.content
        self._body = _Whole(content) if content is not None else message.body(self._io)

    async def _step(self) -> None:
        """Something goes out or comes in; while a body is being sent, an answer may come early."""
        if not self._uploading or self.stream.readable:
            await self._pull()
        elif self._pending:
            await self._push_pending()
        else:
            await self._next_chunk()

    async def _pull(self) -> None:
        data = await self._io.read(self.stream, READ_SIZE, self._timeouts.read)
        if not self._parser.started:
            self._answered_at = now()
        events = self._parser.feed(data) if data else self._parser.feed_eof()
        for event in events:
            if isinstance(event, Failed) and self._answer is None:
                raise event.error
            if isinstance(event, Head) and event.informational:
                self._continue = self._continue or event.status == 100
                continue
            if isinstance(event, Head):
                self._answer = event
                if event.status >= 300 or event.status == 101:
                    await self._stop_upload()
                continue
            if isinstance(event, End):
                self.trailers.extend(event.trailers)
            self._events.append(event)
        if not data or (events and isinstance(events[-1], Failed)):
            await self._stop_upload()
        if self._parser.finished and not self._uploading and not self._is_upgrade():
            self._settle()

    async def _push_pending(self) -> None:
        try:
            self._write()
        except (ConnectionClosed, ServerError):
            # The workload hung up on the upload; what it said before that counts.
            if not self.stream.readable:
                raise
            await self._stop_upload()
            return
        if self._pending and not await self._io.wait_stream(
            self.stream, _core.READABLE | _core.WRITABLE, self._timeouts.write
        ):
            raise WriteTimeout(f"expected to send within {self._timeouts.write} s, could not")

    async def _next_chunk(self) -> None:
        chunk = None if self._body is None else await self._body.next(self._timeouts.write)
        if chunk is not None:
            self._pending = memoryview(self._encoder.encode(chunk))
            return
        if self._body is not None:
            body, self._body = self._body, None
            self._pending = memoryview(self._encoder.finish())
            await body.close()
        if not self._pending:
            self._uploading = False

    async def _stop_upload(self) -> None:
        if self._uploading:
            self._cut = self._cut or self._body is not None or bool(self._pending)
            self._uploading = False
            self._pending = memoryview(b"")
            body, self._body = self._body, None
            if body is not None:
                await body.close()

    # -- and back ----------------------------------------------------------------------------

    async def next_data(self) -> bytes | None:
        """The next piece of the answer's body; None at its end."""
        try:
            return await self._next_piece()
        except BaseException as error:
            self.blame(error)
            await self.abandon()
            raise

    def pieces(self) -> list[bytes]:
        """All of the answer's body that was not taken yet, once the exchange is settled."""
        events, self._events = self._events, collections.deque()
        return [event.data for event in events if isinstance(event, Data)]

    async def _next_piece(self) -> bytes | None:
        while not self._events:
            await self._step()
        event = self._events.popleft()
        if isinstance(event, Data):
            return event.data
        if isinstance(event, Failed):
            raise event.error
        await self._finish_upload()
        return None

    async def _finish_upload(self) -> None:
        """A server that answered with success before it had the whole body still gets it."""
        try:
            while self._uploading:
                await self._step()
        except (EnclaviaError, OSError):
            await self.abandon()
        else:
            if not self.upgraded:
                self._settle()

    def _settle(self) -> None:
        """The answer is complete: the connection is for the next one, or done."""
        lease, self._lease = self._lease, None
        stream, self._stream = self._stream, None
        if lease is None or stream is None:
            return
        self.settled = True
        keep = (
            self._parser.reusable
            and not self._cut
            and not self._message.closes
            and not stream.readable
        )
        if not keep:
            stream.close()
        link = Link(stream) if keep else None
        self._engine.pool.release(lease, link, now(), self._answered_at)

    def blame(self, error: BaseException) -> None:
        if isinstance(error, ReadTimeout | WriteTimeout) and self._lease is not None:
            self._lease.handle.unanswered()
        if isinstance(error, ServerError):
            # Of a request's stream: its connection to the workload broke. Whether the workload
            # closed or reset it makes no difference to the caller.
            error.retryable = True

    async def abandon(self) -> None:
        """Ends it wherever it is. May be called again."""
        self.drop()
        body, self._body = self._body, None
        if body is not None:
            with contextlib.suppress(Exception):
                await body.close()

    def drop(self) -> None:
        self._uploading = False
        lease, self._lease = self._lease, None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        if lease is not None:
            self._engine.pool.release(lease, None, now())


class _Whole:
    """A body that is there already, in pieces of a size that bounds what is copied at a time."""

    def __init__(self, content: bytes) -> None:
        self._rest = memoryview(content)

    async def next(self, timeout: float | None) -> bytes | None:
        piece, self._rest = self._rest[: 4 * READ_SIZE], self._rest[4 * READ_SIZE :]
        return bytes(piece) if piece else None

    async def close(self) -> None:
        self._rest = memoryview(b"")
