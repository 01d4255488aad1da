"""The cache of a file that is read by ranges: blocks of one size, least recently used out first.

Decides which bytes are asked for: none that are there, and further ones only where the file is read
from front to back. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["BLOCK", "Ahead", "Blocks"]

BLOCK: Final = 64 * 1024
"""The least that is asked for. An answer costs as much as some ten kilobytes of its body."""


class Blocks:
    """A cache of at most ``keep`` bytes, but at least one block; None: no limit."""

    def __init__(self, keep: int | None) -> None:
        self._most = None if keep is None else max(1, keep // BLOCK)
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def __contains__(self, index: int) -> bool:
        return index in self._kept

    def get(self, index: int) -> bytes | None:
        kept = self._kept
        block = kept.get(index)
        if block is not None:
            kept.move_to_end(index)
        return block

    def put(self, index: int, block: bytes) -> None:
        kept = self._kept
        kept[index] = block
        kept.move_to_end(index)
        while self._most is not None and len(kept) > self._most:
            kept.popitem(last=False)

    def keep_all(self) -> None:
        self._most = None

    def clear(self) -> None:
        """May be called while another thread reads: that read goes on with the blocks it has."""
        self._kept = OrderedDict()

    def missing(self, first: int, last: int) -> int:
        """The index behind the run of missing blocks that begins at ``first``, and that goes no
        further than ``last``. The block ``first`` itself is missing."""
        end = first
        while end <= last and end not in self._kept:
            end += 1
        return end


class Ahead:
    """How far to read ahead. While each read begins where the one before it ended, the window
    doubles with each request, up to ``most`` bytes; any other read sets it to 0."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._window = 0
        self._expected = 0

    def asked(self, begin: int) -> int:
        """How many bytes to request beyond a read at this position that needs a request."""
        if begin != self._expected:
            self._window = 0
        else:
            self._window = min(self._most, max(BLOCK, 2 * self._window))
        return self._window

    def done(self, end: int) -> None:
        """A read has ended here."""
        self._expected = end
