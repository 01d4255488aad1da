"""What requests and responses have in common: header fields, and how bytes are shown in errors.

Decides how much of a peer's bytes an error shows. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["DIGITS", "Headers", "list_items", "shown_bytes"]

Headers = Sequence[tuple[bytes, bytes]]
DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_SHOWN: Final = 60


def list_items(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> Iterable[bytes]:
    size = len(wanted)
    for name, value in headers:
        if len(name) == size and name.lower() == wanted:
            yield from (item.strip().lower() for item in value.split(b","))


def shown_bytes(raw: bytes | bytearray) -> str:
    text = bytes(raw[:_SHOWN]).decode("latin-1")
    return repr(text if len(raw) <= _SHOWN else text + "…")
