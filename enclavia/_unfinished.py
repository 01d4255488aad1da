"""Has ``fork()`` wait for imports that other threads have begun.

Many modules are imported when they are first used, by whichever thread that is. Python copies an
import in the middle as it is: in the child the module stays half made, and the lock that Python has
for it stays held by a thread that is not there. Whoever asked for that module in the child would
wait for ever.

Only what this package imports is waited for. A module of somebody else's may run a program for as
long as it likes while it is imported, and ``fork()`` is none of its business.

Decides which imports ``fork()`` waits for. Calls: nothing of the package. Locks: Python's own, of
modules and of all imports.
"""

from __future__ import annotations

import contextlib
import importlib._bootstrap
import os

__all__ = ["WAITED_FOR", "hold_fork_back"]

WAITED_FOR = frozenset(
    """
    enclavia
    anyio asyncio certifi click cryptography html httptools httpx2 idna importlib prometheus_client
    sigstore uvicorn
    """.split()
)
"""By the first part of their names: this package, and what its functions import of others. What its
modules import is waited for with these."""


def _begun() -> set[str]:
    """Modules that are being imported now, by any thread."""
    # Python keeps this to itself. What is public, sys.modules, has a module only once its file was
    # found, by when its lock is already held.
    locks: dict[str, object] = getattr(importlib._bootstrap, "_module_locks", {})
    return {name for name in list(locks) if name.partition(".")[0] in WAITED_FOR}


def _wait() -> None:
    seen: set[str] = set()
    while names := _begun() - seen:
        for name in names:
            # Comes back when the import is over. What this thread imports itself, and what would
            # wait for it in a circle, Python finds out and does not wait for.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        seen |= names


def hold_fork_back() -> None:
    """From now on, while something is imported that a child may ask for."""
    os.register_at_fork(before=_wait)
