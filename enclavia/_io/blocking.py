"""What blocking code waits by: a thread's way, and in a browser, which has no threads, another.

Decides which of the two it is. Calls: _core. Locks: none.
"""

from __future__ import annotations

from .. import _core
from .threads import ThreadIo

__all__ = ["blocking_io"]


def blocking_io() -> ThreadIo:
    if _core.WEB:
        from .switching import SwitchIo  # imports anyio

        return SwitchIo()
    return ThreadIo()
