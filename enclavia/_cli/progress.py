"""The progress of a download: a bar on standard error where that is a terminal, nothing elsewhere.

Decides when the bar is drawn. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import click

from . import streams

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

__all__ = ["Progress"]

_STEP: Final = 128 * 1024
_MIB: Final = 1024 * 1024


class Progress:
    """Draws when it is told of bytes, so that it has no thread."""

    def __init__(self, label: str) -> None:
        self._label = streams.visible(label, 40)
        self._bar: ProgressBar[int] | None = None
        self._total: int | None = None
        self._position = 0

    def begin(self, position: int, total: int | None) -> None:
        """Of ``total`` bytes (None: not known), ``position`` are there."""
        terminal = streams.error_terminal()
        self._end()
        self._position, self._total = position, total
        if terminal is None:
            return
        self._bar = click.progressbar(
            None if total is not None else iter(int, 1),  # which has no end
            length=total,
            label=self._label,
            item_show_func=lambda _: self._amount(),
            update_min_steps=_STEP,
            file=terminal,
            color=True,  # it has no colours, but hides the cursor, which click takes for one
        )
        self._bar.__enter__()
        self._bar.update(position)

    def add(self, count: int) -> None:
        """So many bytes more."""
        self._position += count
        if self._bar is not None:
            self._bar.update(count)

    def note(self, text: str) -> None:
        """A line of its own."""
        self._end()
        streams.warn(f"note: {text}")

    def _amount(self) -> str:
        done = f"{self._position / _MIB:.1f}"
        return f"{done} MiB" if self._total is None else f"{done}/{self._total / _MIB:.1f} MiB"

    def _end(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
