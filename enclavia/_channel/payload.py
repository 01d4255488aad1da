"""How much of a payload may travel with the opening of a stream, and how much one read may take.

Decides where a payload is cut, and how large one read may be. Calls: _arguments, _core. Locks:
none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _core
from .._arguments import byte_view, whole

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["FIRST_PAYLOAD", "first_piece", "read_size"]

FIRST_PAYLOAD = _core.STREAM_CHUNK
_READ_MAX = 1 << 30  # above what one read gives, and no number that C cannot hold


def first_piece(data: Buffer) -> tuple[memoryview, memoryview]:
    """What may travel with the opening of a stream, and the rest."""
    view = byte_view("payload", data)
    return view[:FIRST_PAYLOAD], view[FIRST_PAYLOAD:]


def read_size(n: object) -> int:
    """Any number may be asked for, and any negative one means everything."""
    return n if type(n) is int and n <= _READ_MAX else min(whole("n", n, None), _READ_MAX)
