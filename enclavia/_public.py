"""Has a public class name the package, where users import it from, as its module, and still lets
``inspect`` find its source, as ``Client??`` in a notebook asks for it.

Decides nothing else. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import types
import typing
from typing import TypeVar

__all__ = ["public"]

T = TypeVar("T")


class _Written:
    """``__wrapped__`` of a public class: what ``inspect.unwrap`` follows to where it was written.

    ``inspect`` looks for the source of a class in the file of the module that the class names. So
    here it finds a class of the same name that names the true module; made when it is asked for,
    and not for subclasses, which would inherit it and be taken for the class itself.
    """

    def __init__(self, cls: type, module: str) -> None:
        self._cls = cls
        self._module = module

    def __get__(self, instance: object, owner: type | None = None) -> type:
        if instance is not None or owner is not self._cls:
            raise AttributeError("__wrapped__")
        return types.new_class(self._cls.__name__, (self._cls,), exec_body=self._fill)

    def _fill(self, namespace: dict[str, object]) -> None:
        namespace["__module__"] = self._module
        for name in ("__qualname__", "__doc__"):
            namespace[name] = getattr(self._cls, name)
        if "__firstlineno__" in vars(self._cls):  # from Python 3.13 on
            namespace["__firstlineno__"] = vars(self._cls)["__firstlineno__"]


def public(cls: type[T]) -> type[T]:
    """Tracebacks, reprs and pickles then name ``enclavia``, and no module inside of it."""
    if "__annotations__" in vars(cls):
        # Written as text, they are looked up in the module that the class names.
        cls.__annotations__ = typing.get_type_hints(cls)
    cls.__wrapped__ = _Written(cls, cls.__module__)  # type: ignore[attr-defined]
    cls.__module__ = __name__.partition(".")[0]
    return cls
