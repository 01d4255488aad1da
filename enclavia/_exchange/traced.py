"""An exchange that tells of its steps. Imported for requests that somebody traces.

Decides which events there are, and their order; what is sent and received is
:mod:`enclavia._exchange.exchange`'s to decide. Calls: _http1, _io, _pool. Locks: none.
"""

from __future__ import annotations

from typing import Any

from .._http1.head import ReadHead
from .._io.face import now
from .._pool.ticket import Lease, Ticket
from .connections import Use
from .exchange import Exchange
from .message import Message, WholeBody
from .timeouts import Timeouts
from .tracing import Step, Trace
from .tunnel import IdleStream, Tunnel

__all__ = ["TracedExchange"]

_SEND_HEAD = "http11.send_request_headers"
_SEND_BODY = "http11.send_request_body"
_RECEIVE_HEAD = "http11.receive_response_headers"
_RECEIVE_BODY = "http11.receive_response_body"
_CLOSED = "http11.response_closed"


class TracedExchange(Exchange):
    """One sending of a request, and its answer, told step by step."""

    def __init__(
        self,
        use: Use,
        message: Message,
        timeouts: Timeouts,
        read_head: ReadHead,
        trace: Trace,
        earlier: tuple[int, int],
    ) -> None:
        """``earlier``: how many attempts there were before this one, and of how many of them
        something was sent."""
        super().__init__(use, message, timeouts, read_head)
        self._trace = trace
        self._earlier = earlier
        self._under_way: dict[str, Step] = {}
        self._holding = False
        self._told_body = False
        self._told_end = False

    def _info(self) -> dict[str, Any]:
        return {"request": self.message.request}

    async def _started(self, name: str) -> None:
        self._under_way[name] = step = self._trace.step(name, self._info())
        await step.started()

    async def _complete(self, name: str, return_value: object = None) -> None:
        step = self._under_way.pop(name, None)
        if step is not None:
            step.return_value = return_value
            await step.complete()

    async def _failed(self, error: BaseException) -> None:
        steps, self._under_way = list(self._under_way.values()), {}
        for step in reversed(steps):
            await step.failed(error)

    # -- there -------------------------------------------------------------------------------

    async def start(self) -> None:
        __tracebackhide__ = True
        attempts, resends = self._earlier
        info = {**self._info(), "attempt": attempts + 1, "resend_count": resends}
        async with self._trace.step("enclavia.attempt", info) as attempt:
            # Whoever traces may have added a header, such as traceparent.
            self.message.encode_again()
            try:
                await super().start()
                attempt.return_value = await self._came()
                attempt.more = {"receipt": self.receipt}
            except BaseException as error:
                await self._failed(error)
                raise

    def _wait_with(self, ticket: Ticket[Tunnel, IdleStream]) -> None:
        ticket.trace = self._trace
        super()._wait_with(ticket)

    async def _begin(self, lease: Lease[Tunnel, IdleStream]) -> None:
        __tracebackhide__ = True
        since = now()
        await self._started(_SEND_HEAD)  # which may take any time
        await self._connections.expect_usable(lease.tunnel, since, self._timeouts)
        await super()._begin(lease)
        await self._complete(_SEND_HEAD)
        await self._started(_SEND_BODY)
        if not self.message.expects_continue:
            await self._look()

    async def _look(self) -> None:
        """Whether the body has been sent since."""
        if self._uploading or self._holding:
            return
        await self._complete(_SEND_BODY)
        if self._answer is None and _RECEIVE_HEAD not in self._under_way:
            await self._started(_RECEIVE_HEAD)

    async def _wait_continue(self) -> None:
        self._holding = True
        try:
            await super()._wait_continue()
        finally:
            self._holding = False

    async def _pull(self) -> None:
        __tracebackhide__ = True
        await self._look()
        await super()._pull()

    async def _came(self) -> object:
        """The head of the answer is there."""
        body = self._body
        taken = body is None or (isinstance(body, WholeBody) and body.taken)
        if self._uploading and taken and not self._pending:
            await self._next_chunk()  # all of it was sent, which nobody has looked at since
        await self._look()
        if _RECEIVE_HEAD not in self._under_way:  # it came before the request was whole
            await self._started(_RECEIVE_HEAD)
        head = self.head
        said = (head.version, head.status, head.reason, list(head.headers))
        await self._complete(_RECEIVE_HEAD, said)
        return said

    # -- and back ----------------------------------------------------------------------------

    def _settle(self) -> None:
        super()._settle()
        # Its body is stepped through all the same, so that whoever traces is told.
        self.settled = False

    async def _next_piece(self) -> bytes | None:
        __tracebackhide__ = True
        if not self._told_body:
            self._told_body = True
            await self._started(_RECEIVE_BODY)
        try:
            data = await super()._next_piece()
            if data is None:
                await self._look()
                await self._complete(_RECEIVE_BODY)
        except BaseException as error:
            await self._failed(error)
            raise
        return data

    async def abandon(self) -> None:
        if self._told_end or not self.leased:
            await super().abandon()
            return
        self._told_end = True
        step = self._trace.step(_CLOSED)
        try:
            await step.started()
        finally:
            await super().abandon()
        await step.complete()
