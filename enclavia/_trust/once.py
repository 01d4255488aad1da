"""JSON objects in which each key is there once: readers that take the first of two equal keys and
readers that take the last would differ.

Decides that such an object is refused. Calls: _text. Locks: none.
"""

from __future__ import annotations

from .._text import shown

__all__ = ["KeyTwice", "once"]

_SHOWN = 40


class KeyTwice(ValueError):
    """Its text says what was got."""


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """As ``object_pairs_hook`` of :mod:`json`."""
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise KeyTwice(f"the key {shown(twice)[:_SHOWN]!r} twice")
    return table
