"""What a change of a file needs that other processes change too: its lock, for as long as one of
them changes it, and afterwards its name on the disk.

Decides how long the lock is waited for, and that it ends with the change. Calls: _core.
Locks: flock(2) on the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .. import _core

__all__ = ["LOCK_WAIT", "lock_deadline", "locked", "sync_folder"]

LOCK_WAIT: Final = 10.0
"""Seconds for which the lock is waited for. Who holds it writes one small file, so after so long a
process was stopped in the middle of that."""
_PAUSE: Final = 0.005


def lock_deadline() -> float:
    """Of the monotonic clock."""
    return time.monotonic() + LOCK_WAIT


@contextmanager
def locked(descriptor: int, deadline: float, path: str) -> Iterator[None]:
    """Raises TimeoutError where another process holds the lock until ``deadline``.

    The lock is given back by name. Closing the descriptor would not do: a process that another
    thread forked meanwhile has a copy of it, and with that would hold the lock until its own end.
    """
    _lock(descriptor, deadline, path)
    try:
        yield
    finally:
        if not _core.WEB:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lock(descriptor: int, deadline: float, path: str) -> None:
    """Asked for again and again, because a wait inside of flock(2) would have no end. Not in a
    browser: a tab is one process, and its files are nobody else's."""
    if _core.WEB:
        return
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                raise
        else:
            return
        if time.monotonic() >= deadline:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"expected the lock of the file within {LOCK_WAIT:g} s, another process holds it",
                path,
            )
        time.sleep(_PAUSE)


def sync_folder(path: str) -> None:
    """A file's name is on the disk once its folder is (fsync(2))."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
