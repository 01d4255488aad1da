"""The way into the pool: one at a time, and in order again whatever interrupts it.

Decides what becomes of a call that comes in the middle of another one in the same thread, from the
handler of a signal or from a destructor. Knows of the pool only what ``Guarded`` names.

Calls: _errors. Locks: ``_lock`` of the pool, for the length of one call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sized
from typing import Any, NoReturn, Protocol, TypeVar, cast

from .._errors import StateError
from .outbox import Outbox

__all__ = ["Guarded", "carried_out", "refused"]

F = TypeVar("F", bound=Callable[..., Any])


class Guarded(Protocol):
    _lock: contextlib.AbstractContextManager[bool]
    """Reentrant, so that a thread that interrupts itself learns of it by ``_inside``."""
    _inside: bool
    """Whether the state is being changed. Guarded by the lock."""

    @property
    def _lost(self) -> Sized: ...
    @property
    def _outbox(self) -> Outbox[Any, Any]: ...
    def _carry_out(self) -> None: ...
    def _mend(self) -> None: ...


def carried_out(interrupting: Callable[..., Any] | None) -> Callable[[F], F]:
    """For every method of the pool that others call. It runs under the lock, and what was decided,
    by it or meanwhile by a destructor that found the lock taken, is carried out before it ends.
    That holds too where the handler of a signal raises in between; the pool is then put in order
    first.

    ``interrupting`` is called instead where this thread is inside of the pool already. The garbage
    collector and the handlers of signals run in the middle of any function, and may end a request
    or close the client there: waiting for the lock would be waiting for oneself, and deciding on
    what is half decided is no better. None: the method only reads, and does so there too.

    Not a context manager, because a signal's handler could raise inside of one that is written in
    Python, after the lock was taken and before the block that gives it back was entered.
    """

    def decorate(method: F) -> F:
        instead = interrupting or method

        @functools.wraps(method)
        def whole(self: Guarded, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
            try:
                with self._lock:
                    if self._inside:
                        return instead(self, *args, **keywords)
                    self._inside = True
                    try:
                        result = method(self, *args, **keywords)
                    finally:
                        self._inside = False
                outbox = self._outbox
                if outbox.to_wake or outbox.to_close or self._lost:
                    self._carry_out()
            except BaseException:
                self._mend()
                raise
            return result

        return cast(F, whole)

    return decorate


def refused(*_: object, **__: object) -> NoReturn:
    raise StateError(
        "expected a request from ordinary code, got one from a signal's handler or a destructor "
        "that interrupted another request of this client: a client can be closed there, but make "
        "no request; note there what to do, and do it afterwards"
    )
