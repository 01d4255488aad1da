"""Pins and root certificates in the forms that callers have them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ._pcrs import Pcrs

__all__ = ["Pins", "RootCertificate", "pin_tuples", "read_root"]

Pins = Pcrs | Sequence[Pcrs] | None
RootCertificate = bytes | str | os.PathLike[str] | None


def pin_tuples(pcrs: Pins) -> list[tuple[bytes, bytes, bytes]]:
    if pcrs is None:
        return []
    sets = [pcrs] if isinstance(pcrs, Pcrs) else list(pcrs)
    for item in sets:
        if not isinstance(item, Pcrs):
            raise TypeError(
                f"pcrs: expected Pcrs or several of them, got {type(item).__name__}; "
                "Pcrs.load(path) and Pcrs.parse(text) make one"
            )
    return [item.as_tuple() for item in sets]


def read_root(root: RootCertificate) -> bytes | None:
    """PEM text and DER bytes as they are; anything else is the path of a file with either."""
    if root is None or isinstance(root, bytes):
        return root
    if isinstance(root, bytearray | memoryview):
        return bytes(root)
    if isinstance(root, str) and "-----BEGIN" in root:
        return root.encode("ascii", "replace")
    if not isinstance(root, str | os.PathLike):
        raise TypeError(
            f"root: expected PEM or DER bytes, PEM text or a path, got {type(root).__name__}"
        )
    return Path(root).read_bytes()
