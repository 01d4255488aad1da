"""Has ``fork()`` wait for imports that other threads have begun.

Many modules are imported when they are first used, by whichever thread that is. Python copies an
import in the middle as it is: in the child the module stays half made, and the lock that Python has
for it stays held by a thread that is not there. Whoever asked for that module in the child would
wait for ever. So ``fork()`` waits, but not for longer than an import can reasonably take.

Only what this package imports is waited for. A module of somebody else's may run a program for as
long as it likes while it is imported, and ``fork()`` is none of its business.

Decides which imports ``fork()`` waits for, and for how long. Calls: nothing of the package. Locks:
none; it looks at Python's own, of modules.
"""

from __future__ import annotations

import importlib._bootstrap
import os
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["WAITED_FOR", "hold_fork_back"]

# Seconds. An import that waits for the forking thread itself would not end before the fork.
_LONGEST: Final = 10.0
_PAUSE: Final = 0.001

WAITED_FOR: Final = frozenset(
    """
    enclavia
    anyio asyncio certifi click cryptography html httptools httpx2 idna importlib prometheus_client
    sigstore uvicorn
    """.split()
)
"""By the first part of their names: this package, and what its functions import of others. What its
modules import is waited for with these."""


def _others_import() -> bool:
    """Whether another thread is in the middle of importing one of these modules."""
    # Python keeps its locks of modules to itself. What is public, sys.modules, has a module only
    # once its file was found, by when its lock is already held.
    locks: dict[str, Callable[[], object]] = getattr(importlib._bootstrap, "_module_locks", {})
    own = threading.get_ident()
    for name, reference in list(locks.items()):
        if name.partition(".")[0] in WAITED_FOR:
            owner = getattr(reference(), "owner", None)
            if owner is not None and owner != own:
                return True
    return False


def _wait() -> None:
    end = time.monotonic() + _LONGEST
    while _others_import() and time.monotonic() < end:
        time.sleep(_PAUSE)


def hold_fork_back() -> None:
    """From now on, while something is imported that a child may ask for."""
    os.register_at_fork(before=_wait)
