"""Pins and root certificates in the forms that callers have them, and the leeway of the clock.

Decides which forms are accepted. Calls: _arguments. Locks: none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .._arguments import expect_file, path_text, seconds
from .pcrs import Pcrs, PinSet

__all__ = [
    "CLOCK_LEEWAY",
    "PinNames",
    "PinTuples",
    "Pins",
    "RootCertificate",
    "checked_leeway",
    "checked_pins",
    "indexed",
    "matching_set",
    "pcr_bytes",
    "pin_tuples",
    "read_root",
]

Pins = Pcrs | Iterable[Pcrs] | None
PinTuples = tuple[PinSet, ...]
"""Several sets, as the core has them: any of them will do."""
PinNames = Sequence[tuple[PinSet, str]]
"""What some sets of pins are called."""
RootCertificate = bytes | str | os.PathLike[str] | None

CLOCK_LEEWAY: Final = 60.0
"""Seconds. docs/security.md gives the reasons."""
_LEEWAY_MAX: Final = 300
_ROOT_FILE_MAX: Final = 1024 * 1024


def pin_tuples(pcrs: Pins) -> PinTuples | None:
    """None where none are pinned, which only None says: an empty list is more likely one that was
    filtered by mistake, and would let every enclave pass."""
    if pcrs is None:
        return None
    if isinstance(pcrs, Pcrs):
        return (pcrs._pin_set(),)
    if isinstance(pcrs, str | bytes | Mapping) or not hasattr(pcrs, "__iter__"):
        raise TypeError(_expected_pcrs(pcrs))
    sets = list(pcrs)
    for item in sets:
        if not isinstance(item, Pcrs):
            raise TypeError(_expected_pcrs(item))
    if not sets:
        raise ValueError(
            "pcrs: expected Pcrs or several of them, got an empty list, which no enclave can match"
        )
    return tuple(item._pin_set() for item in sets)


def matching_set(
    pins: Sequence[PinSet], measured: Mapping[int, bytes], debug_mode: bool
) -> int | None:
    """Which of the sets a document that was verified before agrees with, by the rule of the core:
    each pinned PCR is there and equal; in debug mode one that is not there is passed over."""
    for number, pin_set in enumerate(pins):
        if all(
            measured.get(index) == value or (debug_mode and index not in measured)
            for index, value in indexed(pin_set)
        ):
            return number
    return None


def indexed(pin_set: PinSet) -> tuple[tuple[int, bytes], ...]:
    """Each pinned PCR of the set with its index."""
    pinned: Any = (*enumerate(pin_set[:3]), *pin_set[3:])
    return pinned  # type: ignore[no-any-return]


def checked_pins(pcrs: Pins, debug_mode: bool) -> PinTuples | None:
    """The pins as values, in a form that proves something. Raises ValueError where they do not."""
    pins = pin_tuples(pcrs)
    if debug_mode:
        return pins
    if pins is None:
        raise ValueError(
            "pcrs: expected the PCRs of the enclave (Pcrs(pcr0=…, pcr1=…, pcr2=…), "
            "Pcrs.load(path)), got none; without them nothing is proven. Only debug_mode=True "
            "works without, and proves nothing either"
        )
    for values in pins:
        if Pcrs._of_pin_set(values).is_zero:
            raise ValueError(
                "pcrs: expected the PCRs of a production enclave, got all zeros: that is a debug "
                "enclave, whose memory its operator can read"
            )
    return pins


def _expected_pcrs(got: object) -> str:
    return (
        f"pcrs: expected Pcrs or several of them, got {type(got).__name__}; "
        "Pcrs(pcr0=…, pcr1=…, pcr2=…), Pcrs.load(path) and Pcrs.parse(text) make one"
    )


def read_root(root: RootCertificate) -> bytes | None:
    """PEM text and DER bytes as they are; anything else is the path of a file with either."""
    if root is None:
        return None
    if isinstance(root, bytes | bytearray | memoryview):
        return _not_empty(bytes(root), "no bytes")
    if isinstance(root, str) and "-----BEGIN" in root:
        return root.encode("ascii", "replace")
    path = path_text("root", root, "PEM or DER bytes, PEM text or a path")
    expect_file("root", path, "a file with a certificate")
    with Path(path).open("rb") as file:
        content = file.read(_ROOT_FILE_MAX + 1)
    if len(content) > _ROOT_FILE_MAX:
        raise ValueError(
            f"root: expected a file of one certificate, got one above {_ROOT_FILE_MAX} bytes: "
            f"{path!r}"
        )
    return _not_empty(content, f"the empty file {path!r}")


def _not_empty(content: bytes, got: str) -> bytes:
    if not content:
        raise ValueError(f"root: expected one certificate, PEM or DER, got {got}")
    return content


def pcr_bytes(raw: Mapping[str, Any]) -> bytes:
    """All PCRs of a document in a row: whatever of them is pinned, two documents that pins can tell
    apart are two identities."""
    pcrs = raw["pcrs"]
    form = str(raw["form"]).encode()
    # Each with its index and its length, so that no two documents lead to the same bytes.
    return form + b"".join(
        bytes((index, len(value))) + value for index, value in sorted(pcrs.items())
    )


def checked_leeway(value: float) -> int:
    """Whole seconds, as certificates have them."""
    return int(seconds("clock_leeway", value, most=_LEEWAY_MAX))
