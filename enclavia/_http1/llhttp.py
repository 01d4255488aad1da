"""The parser of httptools (llhttp): loads it with the first answer, and sorts its exceptions.

Decides where another one takes its place (plain.py), and which exceptions the parser only wraps,
such as a KeyboardInterrupt that came during a callback. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import functools
from types import ModuleType

__all__ = ["Stop", "load_httptools", "raise_foreign"]


class Stop(Exception):
    pass


@functools.cache
def load_httptools() -> ModuleType:
    """Loaded with the first answer, not with the package. Pyodide has none."""
    try:
        import httptools
    except ImportError:
        from . import plain

        return plain

    return httptools


def raise_foreign(error: Exception) -> None:
    """What was raised in a callback, but not by it: a KeyboardInterrupt comes anywhere."""
    cause = error.__context__
    if cause is not None and not isinstance(cause, Stop):
        raise cause
