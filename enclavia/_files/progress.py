"""Who is told how far a transfer is: nobody, a function of the caller's, or a bar of tqdm.

Decides which bar is drawn. Calls: _arguments. Locks: none.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import Any, Protocol

from .._arguments import is_async, value_shown

__all__ = ["Progress", "Teller", "told_of"]

Progress = bool | Callable[[int, int | None], object] | None
"""True: a bar of tqdm; a function of (bytes done, total bytes or None); one of tqdm's classes; None
or False: no progress is shown."""


class Teller(Protocol):
    def begin(self, position: int, total: int | None) -> None: ...
    def add(self, count: int) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


class _Nobody:
    def begin(self, position: int, total: int | None) -> None: ...
    def add(self, count: int) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


class _Function:
    """Called with what is there at the beginning of each attempt, and after each piece. What it
    raises ends the transfer."""

    def __init__(self, function: Callable[[int, int | None], object]) -> None:
        self._function = function
        self._position = 0
        self._total: int | None = None

    def begin(self, position: int, total: int | None) -> None:
        self._position, self._total = position, total
        self._function(position, total)

    def add(self, count: int) -> None:
        self._position += count
        self._function(self._position, self._total)

    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


class _Bar:
    """One bar for all attempts of a transfer."""

    def __init__(self, make: Any, label: str) -> None:  # noqa: ANN401 - of tqdm, which has no types
        self._make = make
        self._label = label
        self._bar: Any = None

    def begin(self, position: int, total: int | None) -> None:
        if self._bar is None:
            self._bar = self._make(
                total=total,
                initial=position,
                desc=self._label,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
            )
            return
        self._bar.total, self._bar.n = total, position
        self._bar.refresh()

    def add(self, count: int) -> None:
        self._bar.update(count)

    def note(self, text: str) -> None: ...
    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()


def told_of(progress: object, label: str) -> Teller:
    """Raises ImportError where a bar is asked for and tqdm is not there."""
    if progress is None or progress is False:
        return _Nobody()
    if progress is True:
        return _Bar(_tqdm(), label)
    if isinstance(progress, type) and hasattr(progress, "update"):
        return _Bar(progress, label)
    if not callable(progress) or is_async(progress):
        got = "an async function" if callable(progress) else value_shown(progress)
        raise TypeError(f"progress: expected True, f(done, total) or None, got {got}")
    return _Function(progress)


def _tqdm() -> Any:  # noqa: ANN401 - it has no types
    """The one that fits: widgets in a notebook that has them, text elsewhere. ``tqdm.auto`` warns
    in a notebook that has none, as if something had to be done about it."""
    name = "tqdm" if PathFinder.find_spec("ipywidgets") is None else "tqdm.auto"
    try:
        module = importlib.import_module(name)  # which may be without types, or not be there
    except ImportError as error:
        raise ImportError(
            "progress=True draws a bar with tqdm, which is not installed: pip install "
            "'enclavia[progress]', or give a function f(done, total)",
            name="tqdm",
        ) from error
    return module.tqdm
