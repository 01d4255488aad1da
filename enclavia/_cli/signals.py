"""SIGINT, SIGTERM and SIGHUP end the program in order: files that are not whole are removed,
connections closed. A second one ends it at once, and such files are removed then too.

Decides what a signal does, and which files are removed. Calls: _files. Locks: none.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

from .._files.newfile import UNFINISHED

__all__ = ["ENDINGS", "LEFTOVERS", "Signalled", "done", "install"]

LEFTOVERS: Final = UNFINISHED
"""Files to be removed when the program is ended in the middle."""
ENDINGS: Final[list[Callable[[], None]]] = []
"""What else is to be removed then. May be called while the same is under way."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(BaseException):
    """No Exception, so that nothing takes it for an error of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def install() -> None:
    """A signal that was ignored when the program began stays ignored, as under nohup."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _first)


def done() -> None:
    """Nothing is left to be ended in order, and ending takes no time any more."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _first(number: int, frame: FrameType | None) -> NoReturn:
    for each in _SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, _second)
    raise Signalled(number)


def _second(number: int, frame: FrameType | None) -> None:
    for path in tuple(LEFTOVERS):
        with contextlib.suppress(OSError):
            os.unlink(path)
    for ending in tuple(ENDINGS):
        with contextlib.suppress(Exception):
            ending()
    os._exit(128 + number)
