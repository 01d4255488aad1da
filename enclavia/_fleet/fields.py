"""Whether what another process reported has the fields of a report, each of its type.

A report is unpickled, which looks at no type, and may come from another version of the package.

Decides what is no report. Calls: _arguments, _identity. Locks: none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from .._arguments import value_shown
from .._identity.attestation import Attestation, MatchedPins

__all__ = ["REPORT", "wrong_in", "wrong_in_attestation"]

_Fields = Mapping[str, tuple[str, Callable[[Any], bool]]]
"""By a field's name: what is expected of it in words, and whether a value is that."""


def wrong_in(name: str, record: object, kind: type[Any], expected: _Fields) -> str | None:
    """What of ``record``, which messages call ``name``, is not as ``expected`` of a ``kind``; None
    where all is."""
    wanted = [field.name for field in dataclasses.fields(kind)]
    if type(record) is not kind:
        return f"expected {name} to be of type {kind.__name__}, got {type(record).__name__}"
    got = vars(record)
    for each in wanted:
        if each not in got:
            return f"expected {name} to have {each}, got none"
        words, holds = expected[each]
        if not holds(got[each]):
            return f"expected {name}.{each} to be {words}, got {value_shown(got[each])}"
    unknown = sorted(str(each) for each in got if each not in wanted)
    return f"expected {name} to have {', '.join(wanted)}, got {unknown[0]} too" if unknown else None


def _or_none(words: str, holds: Callable[[Any], bool]) -> tuple[str, Callable[[Any], bool]]:
    return f"{words} or None", lambda value: value is None or holds(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes)


def _is_moment(value: object) -> bool:
    return isinstance(value, datetime) and value.utcoffset() is not None


def _are_pcrs(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_whole(index) and _is_bytes(pcr) for index, pcr in value.items()
    )


_TEXT: Final = ("text", _is_text)
_BYTES: Final = ("bytes", _is_bytes)
_MOMENT: Final = ("an aware datetime", _is_moment)

REPORT: Final[_Fields] = {
    "worker": _TEXT,
    "node": _TEXT,
    "pid": ("a whole number", _is_whole),
    "attestations": ("a tuple", lambda value: isinstance(value, tuple)),
    "error": _or_none(*_TEXT),
    "via": _or_none(*_TEXT),
}
_ATTESTATION: Final[_Fields] = {
    "module_id": _TEXT,
    "timestamp": _MOMENT,
    "pcrs": ("a mapping of whole numbers to bytes", _are_pcrs),
    "certificate": _BYTES,
    "cabundle": (
        "a tuple of bytes",
        lambda value: isinstance(value, tuple) and all(map(_is_bytes, value)),
    ),
    "public_key": _or_none(*_BYTES),
    "user_data": _or_none(*_BYTES),
    "nonce": _or_none("bytes, one at least,", lambda value: _is_bytes(value) and bool(value)),
    "form": ("'nitro', 'debug' or 'stub'", lambda value: value in ("nitro", "debug", "stub")),
    "verified_at": _MOMENT,
    "document": _BYTES,
    "valid_until": _or_none(*_MOMENT),
    "matched": _or_none("MatchedPins", lambda value: isinstance(value, MatchedPins)),
}


def wrong_in_attestation(name: str, attestation: object) -> str | None:
    """As :func:`wrong_in`."""
    return wrong_in(name, attestation, Attestation, _ATTESTATION)
