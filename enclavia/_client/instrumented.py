"""Lets what instruments httpx's own transports see the requests of ours.

An instrumentation of httpx2 wraps a method of ``httpx2.HTTPTransport``. Ours are no such
transports, so it would see nothing of them. What is used here is the wrapper alone: it is called
around our own method. The method that it was put around, which would send the request to the
network, is never given to anybody; another replacement of that method, such as a mock, is not
asked.

Decides which wrappers are called. Calls: _exchange. Locks: none.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from .._exchange import watching

__all__ = ["instrumented"]

H = TypeVar("H", bound=Callable[..., Any])


def instrumented(theirs: type, name: str, transport: object, handle: H) -> H:
    """``handle``, a method of ``transport``, with the wrappers around it that are around the method
    ``name`` of the class ``theirs``. Without them where the requests are watched already
    (:mod:`enclavia.opentelemetry`), which tells more."""
    if watching.watcher is not None:
        return handle
    found: Any = vars(theirs).get(name)
    wrappers = []
    while _is_wrapper(found):
        wrappers.append(found)
        found = found.__wrapped__
    for wrapper in reversed(wrappers):
        handle = functools.partial(_call, wrapper, handle, transport)  # type: ignore[assignment]
    return handle


def _is_wrapper(found: Any) -> bool:  # noqa: ANN401 - whatever somebody has put there
    """Of wrapt, which OpenTelemetry's instrumentations use: they have imported it."""
    wrapt = sys.modules.get("wrapt")
    return wrapt is not None and isinstance(found, wrapt.FunctionWrapper)


def _call(
    wrapper: Any,  # noqa: ANN401 - a FunctionWrapper of wrapt
    handle: Callable[..., Any],
    transport: object,
    *args: object,
    **options: object,
) -> Any:  # noqa: ANN401 - what the transport returns
    if not _is_enabled(wrapper):
        return handle(*args, **options)
    return wrapper._self_wrapper(handle, transport, args, options)


def _is_enabled(wrapper: Any) -> bool:  # noqa: ANN401 - a FunctionWrapper of wrapt
    """As wrapt itself asks at each call: ``enabled`` is None, a value, or a function."""
    enabled = wrapper._self_enabled
    return enabled is None or bool(enabled() if callable(enabled) else enabled)
