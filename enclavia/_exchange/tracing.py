"""Who is told of a request's steps: its own ``trace`` extension, called as httpx2's transports call
it, and the watcher of this process, where there is one.

docs/observability.md has the names of all events. Where nobody traces, a request pays for two
comparisons, and this module is not loaded.

Decides which functions are called for an event, and in which order. Calls: _core, _errors, _io.
Locks: none.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import httpx2

from .. import _core
from .._errors import ConnectionClosed, ConnectTimeout
from .._io.face import Io, time_left
from . import watching
from .watching import Note, Watched

__all__ = ["Step", "Trace", "trace_of", "wait_stages"]


class Trace:
    """Whoever is to be told of one request."""

    __slots__ = ("_awaits", "_function", "_note", "request")

    def __init__(
        self,
        request: httpx2.Request | None,
        awaits: bool,
        function: Callable[[str, dict[str, Any]], Any] | None,
        note: Note | None,
    ) -> None:
        """``awaits``: the caller's function is awaited."""
        self.request = request
        self._awaits = awaits
        self._function = function
        self._note = note

    async def tell(self, name: str, info: dict[str, Any]) -> None:
        """Raises what the caller's function raises, and TypeError where that is of the wrong kind:
        plain for a client that awaits, or async for one that blocks."""
        if self._note is not None:
            self._note(name, info)
        if self._function is None:
            return
        result = self._function(name, info)
        if self._awaits:
            if not inspect.isawaitable(result):
                raise TypeError(
                    "trace: expected an async function, because this client is async, got one that "
                    f"returned {type(result).__name__}"
                )
            await result
        elif inspect.iscoroutine(result):
            result.close()  # nothing of it would ever run
            raise TypeError(
                "trace: expected a plain function, because this client blocks, got an async one"
            )

    def step(self, name: str, info: dict[str, Any] | None = None) -> Step:
        return Step(self, name, {} if info is None else info)


class Step:
    """What begins and ends: three events, ``.started``, and ``.complete`` or ``.failed``."""

    __slots__ = ("_info", "_trace", "more", "name", "return_value")

    def __init__(self, trace: Trace, name: str, info: dict[str, Any]) -> None:
        self._trace = trace
        self._info = info
        self.name = name
        self.return_value: object = None
        self.more: dict[str, Any] = {}
        """Further details of its completion."""

    async def started(self, **info: object) -> None:
        await self._trace.tell(f"{self.name}.started", {**self._info, **info})

    async def complete(self, **info: object) -> None:
        await self._trace.tell(
            f"{self.name}.complete", {"return_value": self.return_value, **self.more, **info}
        )

    async def failed(self, error: BaseException, **info: object) -> None:
        await self._trace.tell(f"{self.name}.failed", {"exception": error, **info})

    async def __aenter__(self) -> Self:
        await self.started()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.complete()
        else:
            await self.failed(error)


def trace_of(request: httpx2.Request | None, connections: Watched) -> Trace | None:
    """Whoever is to be told of a request; None where nobody is."""
    function = None if request is None else request.extensions.get("trace")
    if function is not None and not callable(function):
        raise TypeError(
            "trace: expected a function of an event's name and its details, got "
            f"{type(function).__name__}"
        )
    watcher = watching.watcher
    note = None if watcher is None else watcher.begin(connections, request)
    if function is None and note is None:
        return None
    return Trace(request, connections.io.awaits, function, note)


# -- connecting -------------------------------------------------------------------------------

# What the core calls the end of each step, and what the step is called.
_STAGES: Final[tuple[tuple[str, str], ...]] = (
    ("resolved", "enclavia.resolve"),
    ("connected", "connection.connect_tcp"),
    ("secured", "connection.start_tls"),
    ("upgraded", "enclavia.upgrade"),
    ("handshake", "enclavia.handshake"),
    ("verified", "enclavia.attest"),
)


async def wait_stages(
    io: Io[Any],
    channel: _core.Channel,
    deadline: float | None,
    trace: Trace,
    info: dict[str, Any],
) -> bool:
    """As :meth:`Io.wait_open`, telling of each step of connecting as it happens. ``info``: details
    of each; to these is added when it happened (``time_ns``, Unix time)."""
    stages = _STAGES if info["tls"] else [each for each in _STAGES if each[0] != "secured"]
    at, told_at = 0, time.time_ns()
    step = trace.step(stages[0][1], info)
    await step.started(time_ns=told_at)
    while True:
        connecting = channel.state == "connecting"
        reached, present = channel.stages(), time.time_ns()
        ages = [reached.get(stage) for stage, _ in stages]
        for number in range(len(ages) - 2, -1, -1):  # whoever is behind a step has taken it
            if ages[number] is None:
                ages[number] = ages[number + 1]
        while at < len(stages) and (age := ages[at]) is not None:
            told_at = max(told_at, present - age)
            await step.complete(time_ns=told_at)
            at += 1
            if at < len(stages):
                step = trace.step(stages[at][1], info)
                await step.started(time_ns=told_at)
        if not connecting:
            if at < len(stages):
                await step.failed(channel.error or ConnectionClosed("the connection was closed"))
            return True
        if not await io.wait_stage(channel, len(reached), time_left(deadline)):
            await step.failed(ConnectTimeout("the time for connecting was over"))
            return False
