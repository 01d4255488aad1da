"""Has a public class name the package, where users import it from, as its module.

Decides nothing else. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import typing
from typing import TypeVar

__all__ = ["public"]

T = TypeVar("T")


def public(cls: type[T]) -> type[T]:
    """Tracebacks, reprs and pickles then name ``enclavia``, and no module inside of it."""
    if "__annotations__" in vars(cls):
        # Written as text, they are looked up in the module that the class names.
        cls.__annotations__ = typing.get_type_hints(cls)
    cls.__module__ = __name__.partition(".")[0]
    return cls
