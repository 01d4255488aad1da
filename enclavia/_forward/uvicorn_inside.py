"""All that is known of uvicorn's private parts, and what a forwarder does where one is missing.

uvicorn reads the requests of a forwarder's clients, in a protocol class that has no public way to
answer a request without a task, a scope and two messages for it. Its parts are named here and
nowhere else (tests/python/house/test_layers.py), and looked for before they are used. Where one
that only the short way needs is missing, ``short_way`` is False, and every request takes uvicorn's
own way, which costs more and does the same.

Decides whether requests can go the short way. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from .libraries import load

__all__ = ["Parts", "head_bytes", "module", "parts", "short_way_works", "uvicorn"]

# What the short way reads and writes of a request that uvicorn has read.
_OF_A_REQUEST = (
    "body", "disconnected", "keep_alive", "message_event", "more_body", "response_complete",
    "response_started", "scope", "waiting_for_100_continue",
)  # fmt: skip


class Parts(NamedTuple):
    protocol: Any
    """The class of connections, on httptools."""
    flow_control: Any
    short_way: bool
    """Whether the rest is there, and as it is known."""
    status_lines: dict[int, bytes]
    name_refused: Any
    """Finds what may not be in a header's name."""
    value_refused: Any


def uvicorn() -> Any:  # noqa: ANN401
    return load("uvicorn")


def module() -> Any:  # noqa: ANN401
    return load("uvicorn.protocols.http.httptools_impl")


@functools.cache
def parts() -> Parts:
    inside = module()
    flow_control: Any = importlib.import_module("uvicorn.protocols.http.flow_control").FlowControl
    short_way = short_way_works(inside)
    return Parts(
        inside.HttpToolsProtocol,
        flow_control,
        short_way,
        inside.STATUS_LINE if short_way else {},
        inside.HEADER_RE if short_way else None,
        inside.HEADER_VALUE_RE if short_way else None,
    )


def short_way_works(inside: Any) -> bool:  # noqa: ANN401
    """Whether the protocol begins a request by one method, which can be overridden, and a request
    has what the short way reads and writes."""
    try:
        begins = inspect.signature(inside.HttpToolsProtocol._start_asgi_task)
        cycle = inside.RequestResponseCycle(
            scope={},
            transport=None,
            flow=None,
            logger=logging.getLogger(__name__),
            access_logger=logging.getLogger(__name__),
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=lambda: None,
        )
        known = (
            inside.STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"
            and inside.HEADER_RE.search(b"a b") is not None
            and inside.HEADER_VALUE_RE.search(b"a\0b") is not None
        )
    except (AttributeError, KeyError, TypeError):
        return False
    return (
        known
        and list(begins.parameters) == ["self", "cycle", "app"]
        and all(hasattr(cycle, name) for name in _OF_A_REQUEST)
    )


def head_bytes(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The status line and headers as uvicorn writes them. None where it refuses to."""
    known = parts()
    written = [known.status_lines[status]]
    for name, value in headers:
        if known.name_refused.search(name) or known.value_refused.search(value):
            return None
        written += (name, b": ", value, b"\r\n")
    return b"".join(written)
