"""One sending of a request, and its answer. Written once, over :class:`enclavia._io.face.Io`.

Uses the connections it is given and the parser; does not decide whether a request is sent again.

Calls: _channel, _core, _errors, _http1, _io, _pool, _trust. Locks: none.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from typing import TYPE_CHECKING, Final

from .. import _core
from .._channel.operations import start_stream
from .._channel.payload import first_piece
from .._errors import (
    ConnectionClosed,
    EnclaviaError,
    ForkedError,
    IncompleteResponse,
    ProtocolError,
    ReadTimeout,
    ServerError,
    StateError,
    WriteTimeout,
)
from .._http1.head import Head, ReadHead
from .._http1.request import BodyEncoder
from .._http1.response import END, End, Event, Failed, ResponseParser
from .._io.face import READ_SIZE, now
from .._io.late import nothing_read, nothing_sent
from .._pool.ticket import Lease, Ticket
from .connections import Use
from .message import Body, Message, WholeBody
from .timeouts import Timeouts
from .tunnel import IdleStream, Tunnel

if TYPE_CHECKING:
    from .._io.local import AnyStream
    from .._trust.receipts import Receipt

__all__ = ["Exchange"]
# How long a body is held back for a server that does not know ``Expect: 100-continue``.
CONTINUE_WAIT = 1.0
_NOTHING: Final = memoryview(b"")


class Exchange:
    """One sending of a request, and its answer."""

    # What these are before a sending begins. They are attributes of the class because most requests
    # change few of them, and setting all for each request takes time.
    _ticket: Ticket[Tunnel, IdleStream] | None = None
    _lease: Lease[Tunnel, IdleStream] | None = None
    _stream: AnyStream | None = None
    _encoder: BodyEncoder | None = None
    _pending = _NOTHING
    _body: Body | None = None
    _uploading = False
    _cut = False
    _body_failed = False
    _answer: Head | None = None
    _answered_at = 0.0
    _continue = False
    _ended: Exception | None = None
    _failure: Exception | None = None
    leased = False
    receipt: Receipt | None = None
    """Of the channel that it goes over, as of when it began."""
    sent = False
    settled = False

    def __init__(self, use: Use, message: Message, timeouts: Timeouts, read_head: ReadHead) -> None:
        self._use: Use | None = use
        self._connections = connections = use.connections
        self.io = connections.io
        self.message = message
        self._timeouts = timeouts
        self._parser = ResponseParser(message.method, read=read_head)
        self._events: collections.deque[Event] = collections.deque()
        self.trailers: list[tuple[bytes, bytes]] = []

    @property
    def answered(self) -> bool:
        return self._parser.started

    @property
    def head(self) -> Head:
        return self._answer  # type: ignore[return-value]  # a cast is a call, for each request

    @property
    def upgraded(self) -> bool:
        return self._parser.upgraded

    @property
    def leftover(self) -> bytes:
        return self._parser.leftover

    @property
    def stream(self) -> AnyStream:
        if self._stream is None:
            raise StateError("the connection was closed")
        return self._stream

    # -- there -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Up to the final head of the answer. Goes on with one that was begun by :meth:`begin`."""
        __tracebackhide__ = True
        if not self.leased:
            self._lease = lease = await self._connections.obtain(
                self.message.job, self._timeouts, self._wait_with
            )
            self._ticket = None
            if self._ended is not None:
                raise self._ended
            self.leased = True
            await self._begin(lease)
        if self._failure is not None:
            raise self._failure
        if self._ended is not None:
            raise self._ended
        if self.message.expects_continue:
            await self._wait_continue()
        while self._answer is None:
            await (self._step() if self._uploading else self._pull())
        if self._answer.status == 101 and not self.message.upgrade:
            raise ProtocolError("expected a response to a request without Upgrade, got status 101")

    def _wait_with(self, ticket: Ticket[Tunnel, IdleStream]) -> None:
        self._ticket = ticket
        if self._ended is not None:
            raise self._ended

    async def _begin(self, lease: Lease[Tunnel, IdleStream]) -> None:
        first = self._first()
        if lease.link is not None:
            self._begin_kept(lease, lease.link, first)
            return
        self._uploading = True
        tunnel = lease.tunnel
        tunnel.asked()
        self.receipt = tunnel.receipt
        piece, self._pending = first_piece(first)
        usable = functools.partial(self._connections.expect_usable, tunnel, now(), self._timeouts)
        try:
            self._stream = await start_stream(
                self.io, tunnel.core, piece, self._timeouts.pool, usable
            )
        except (ConnectionClosed, StateError) as error:
            # It may look open for a moment longer.
            tunnel.retire()
            if isinstance(error, StateError) and not isinstance(error, ForkedError):
                raise ConnectionClosed(str(error)) from error
            raise
        self.receipt = tunnel.receipt  # which may be a newer one by now
        self.sent = True
        self._uploading = self._body is not None or bool(self._pending)

    def _first(self) -> bytes:
        """What goes out first. The rest of the body is left to be taken."""
        message = self.message
        first = message.head
        if message.content and not message.expects_continue:
            if len(message.content) <= READ_SIZE:
                first += self._encode_content(message.content)
            else:
                self._body = WholeBody(message.content)
        elif message.content is None:
            self._body = message.body(self.io) if not message.expects_continue else None
        elif not message.content and message.length != 0:
            first += self._framing().finish()
        return first

    def _framing(self) -> BodyEncoder:
        """Made for a request that has a body, or says that it has one."""
        if self._encoder is None:
            self._encoder = BodyEncoder(self.message.length)
        return self._encoder

    def _begin_kept(self, lease: Lease[Tunnel, IdleStream], link: IdleStream, first: bytes) -> None:
        self._uploading = True
        tunnel = lease.tunnel
        tunnel.asked()
        self.receipt = tunnel.receipt
        self._stream = stream = link.stream
        taken = stream.write(first, 0)
        self.sent = taken > 0
        if taken < len(first):
            self._pending = memoryview(first)[taken:]
        self._uploading = self._body is not None or taken < len(first)

    def _encode_content(self, content: bytes) -> bytes:
        encoder = self._framing()
        return encoder.encode(content) + encoder.finish()

    def _write(self) -> None:
        taken = self.stream.write(self._pending, 0)
        self.sent = self.sent or taken > 0
        self._pending = self._pending[taken:]

    async def _wait_continue(self) -> None:
        allowed = self._timeouts.read
        wait = CONTINUE_WAIT if allowed is None else min(allowed, CONTINUE_WAIT)
        self._uploading = True
        while self._pending:
            await self._push_pending()
        if not self._uploading:
            return  # the workload hung up within the head
        # While the body is held back, the request is not whole: after an answer that comes now, the
        # server still takes what comes next on this connection for that body.
        self._uploading, self._cut = False, True
        deadline = now() + wait
        while not self._continue and self._answer is None:
            remaining = deadline - now()
            if remaining <= 0 or not await self.io.wait_stream(
                self.stream, _core.READABLE, remaining
            ):
                break
            await self._pull()
        if self._answer is not None:
            return
        message = self.message
        self._uploading, self._cut = True, False
        content = message.content
        self._body = WholeBody(content) if content is not None else message.body(self.io)

    async def _step(self) -> None:
        """Something goes out or comes in; while a body is being sent, an answer may come early."""
        if not self._uploading or self.stream.readable:
            await self._pull()
        elif self._pending:
            await self._push_pending()
        else:
            await self._next_chunk()

    async def _pull(self) -> None:
        data = await self.io.read(self.stream, READ_SIZE, self._timeouts.read)
        if self._take(data):
            await self._stop_upload()
        self._settle_if_complete()

    def _take(self, data: bytes) -> bool:
        """Of the answer; nothing at its end. Returns whether no more of a body is to be sent."""
        stop = False
        parser = self._parser
        if not parser.started:
            self._answered_at = now()
            whole = parser.whole(data)
            if whole is not None:
                self._answer, body = whole
                self._events += (body, END) if body else (END,)
                return self._answer.status >= 300
        events = parser.feed(data) if data else parser.feed_eof()
        for event in events:
            if isinstance(event, Head):
                if event.informational:
                    self._continue = self._continue or event.status == 100
                    continue
                self._answer = event
                stop = event.status >= 300 or event.status == 101
                continue
            if isinstance(event, Failed) and self._answer is None:
                raise event.error
            if isinstance(event, End):
                self.trailers.extend(event.trailers)
            self._events.append(event)
        return stop or not data or (bool(events) and isinstance(events[-1], Failed))

    def _settle_if_complete(self) -> None:
        if self._parser.finished and not self._uploading and not self._parser.upgraded:
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
        if self._pending and not await self.io.wait_stream(
            self.stream, _core.READABLE | _core.WRITABLE, self._timeouts.write
        ):
            raise nothing_sent(self._timeouts.write)

    async def _next_chunk(self) -> None:
        try:
            chunk = None if self._body is None else await self._body.next(self._timeouts.write)
        except BaseException:
            self._body_failed = True
            raise
        if chunk is not None:
            self._pending = memoryview(self._framing().encode(chunk))
            return
        if self._body is not None:
            body, self._body = self._body, None
            self._pending = memoryview(self._framing().finish())
            await body.close()
        if not self._pending:
            self._uploading = False

    async def _stop_upload(self) -> None:
        if self._uploading:
            self._cut = self._cut or self._body is not None or bool(self._pending)
            self._uploading = False
            self._pending = _NOTHING
            body, self._body = self._body, None
            if body is not None:
                await body.close()

    # -- without waiting ---------------------------------------------------------------------

    # What nearly every request comes to, for a caller that has no task, or that need not step
    # through coroutines. What does not end at once, and every error, is left to :meth:`start`,
    # which goes on from there.

    def begin(self) -> bool:
        """Sends over a connection that was kept what can be sent without waiting. False where there
        is none, or where more than that has to be seen to: then nothing was sent."""
        message = self.message
        if message.upgrade or message.expects_continue:
            return False
        self._lease = lease = self._connections.obtain_kept(message.job)
        if lease is None or lease.link is None:
            return False
        self.leased = True
        try:
            self._begin_kept(lease, lease.link, self._first())
        except Exception as error:
            self._failure = error
        return True

    @property
    def read_timeout(self) -> float | None:
        return self._timeouts.read

    @property
    def awaits_answer(self) -> bool:
        """Nothing more is to be sent, and nothing has gone wrong."""
        return self._failure is None and not self._uploading

    def look(self) -> bool:
        """Reads what came, where :attr:`awaits_answer`. True where that is all of the answer."""
        return self._look_until(0)

    def wait(self) -> bool:
        """As :meth:`look`, for a thread: waits for the first of it as long as a read may take."""
        return self._look_until(self._timeouts.read)

    async def wait_awaited(self) -> bool:
        """As :meth:`wait`, for a task."""
        try:
            stream = self.stream
            if not stream.readable and not await self.io.wait_stream(
                stream, _core.READABLE, self._timeouts.read
            ):
                self.unanswered()
                return False
        except Exception as error:
            self._failure = error
            return False
        return self.look()

    def _look_until(self, timeout: float | None) -> bool:
        try:
            data = self.stream.read(READ_SIZE, timeout)
            if data is not None:
                self._take(data)
                self._settle_if_complete()
        except ReadTimeout:
            self.unanswered()
        except Exception as error:
            self._failure = error
        return self.settled

    def unanswered(self) -> None:
        """Nothing came within the time that a read may take."""
        self._failure = nothing_read(self._timeouts.read)

    # -- and back ----------------------------------------------------------------------------

    async def next_data(self) -> bytes | None:
        """The next piece of the answer's body; None at its end."""
        try:
            return await self._next_piece()
        except BaseException as error:
            __tracebackhide__ = True
            self.blame(error)
            await self.abandon()
            if self._ended is not None and isinstance(error, Exception):
                raise self._ended from error
            raise

    def pieces(self) -> list[bytes]:
        """All of the answer's body that was not taken yet, once the exchange is settled."""
        events, self._events = self._events, collections.deque()
        return [event for event in events if isinstance(event, bytes)]

    async def _next_piece(self) -> bytes | None:
        while not self._events:
            await self._step()
        event = self._events.popleft()
        if isinstance(event, bytes):
            return event
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
        self._use = None  # an answer may be kept for long after its end
        keep = (
            self._parser.reusable
            and not self._cut
            and not self.message.closes
            and not stream.readable
        )
        if not keep:
            stream.close()
        link = IdleStream(stream) if keep else None
        self._connections.pool.release(lease, link, now(), self._answered_at)

    def blame(self, error: BaseException) -> None:
        if self._body_failed:
            return  # what produces the body says nothing about the connection
        if isinstance(error, ReadTimeout | WriteTimeout) and self._lease is not None:
            self._connections.unanswered(self._lease.tunnel)
        broken = isinstance(error, ConnectionClosed) and not isinstance(error, IncompleteResponse)
        if broken and self._lease is not None:
            self._connections.lost(self._lease.tunnel)
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
        self._use = None
        self._let_go()

    def _let_go(self) -> None:
        # Each of the two belongs to whoever takes it out of its attribute: this thread, or one that
        # ends the exchange meanwhile. There is no call between these two steps of a line.
        lease, self._lease = self._lease, None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        if lease is not None:
            self._connections.pool.release(lease, None, now())

    def end(self, error: Exception) -> None:
        """From any thread, while another one may be anywhere in here: that one is woken where it
        waits, and gets the error. Nothing where the answer is complete."""
        if self.settled:
            return
        self._ended = error
        ticket = self._ticket
        if ticket is not None:
            self._connections.pool.fail(ticket, error, now())
        self._let_go()
