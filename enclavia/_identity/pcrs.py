"""The pinned identity of an enclave, and the texts it can be read from.

Decides what is a PCR value, and which values stand in a file. Calls: _arguments, _public, _text.
Locks: none.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final, NoReturn

from .._arguments import byte_view, path_text
from .._public import public
from .._text import shown

__all__ = ["Pcrs"]

PcrValue = str | bytes | bytearray | memoryview

_LENGTHS: Final = (32, 48, 64)
_NAMES: Final = ("pcr0", "pcr1", "pcr2")
# No line end before the name: from every line on, all empty lines below it would be walked again.
_TEXT_LINE: Final = r"""(?im)^(?:[^\S\n]|["'*|>-])*(pcr[012])[\s"']*[:=][\s"']*([0-9a-z]*)"""
_MAX_TEXT: Final = 1024 * 1024
# Of another enclave, which stands beside ours in the JSON of `enclave status` and `reproduce`.
_NOT_OURS: Final = ("synchronizer_pcrs", "recorded_synchronizer_pcrs")
# How every JSON object begins: with its first key, or with its end.
_OBJECT: Final = re.compile(r'\{\s{0,64}(?:\}|"[^"\\]{0,256}(?:\\.[^"\\]{0,256}){0,16}"\s{0,64}:)')
# What may be read in vain where that is not the beginning of one, in multiples of the text.
_MOST_IN_VAIN: Final = 8
_COST_OF_A_TRY: Final = 16
_COST_OF_DEPTH: Final = 4096


def _value(name: str, value: object) -> bytes:
    if isinstance(value, str):
        text = value.strip()
        text = text[2:] if text[:2] in ("0x", "0X") else text
        try:
            raw = bytes.fromhex(text)
        except ValueError:
            raise ValueError(
                f"{name}: expected 64, 96 or 128 hex digits, got {_shown(value)}"
            ) from None
        if len(raw) not in _LENGTHS:
            raise ValueError(
                f"{name}: expected 64, 96 or 128 hex digits, got {2 * len(raw)}: {_shown(value)}"
            )
        return raw
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(byte_view(name, value))
        if len(raw) not in _LENGTHS:
            raise ValueError(f"{name}: expected 32, 48 or 64 bytes, got {len(raw)}")
        return raw
    raise TypeError(f"{name}: expected hex text or bytes, got {type(value).__name__}")


def _hex_text(name: str, value: object) -> str:
    """A file with something else in it is a bad file (ValueError), not a bad call."""
    return value if isinstance(value, str) else _refuse(name, value)


def _refuse(name: str, value: object) -> NoReturn:
    raise ValueError(f"{name}: expected hex text, got {type(value).__name__}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "…")


@public
class Pcrs:
    """PCR0, PCR1 and PCR2 of one enclave image, as hex or bytes; immutable.

    They are printed by ``enclavia enclave status`` and by ``nitro-cli build-enclave``;
    :meth:`load` and :meth:`parse` read either. They are not secret, but they decide who is
    trusted: take them from the build, not from the server that is to be verified.
    """

    __slots__ = ("pcr0", "pcr1", "pcr2")

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes

    def __init__(self, *, pcr0: PcrValue, pcr1: PcrValue, pcr2: PcrValue) -> None:
        values = [
            _value(name, value) for name, value in zip(_NAMES, (pcr0, pcr1, pcr2), strict=True)
        ]
        if len({len(value) for value in values}) != 1:
            lengths = ", ".join(
                f"{name} {len(value)}" for name, value in zip(_NAMES, values, strict=True)
            )
            raise ValueError(f"expected PCRs of one length, got (bytes): {lengths}")
        for name, value in zip(_NAMES, values, strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pcrs:
        """Reads a file with any of the texts that :meth:`parse` takes, of at most 1 MiB. Raises
        ValueError, and OSError where the file cannot be read."""
        path = path_text("path", path, "text or a path")
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_TEXT + 1)
        try:
            return cls.parse(raw)
        except ValueError as error:
            raise ValueError(f"{shown(path)}: {error}") from None

    @classmethod
    def parse(cls, text: str | bytes) -> Pcrs:
        """Reads what ``enclavia enclave status`` (with or without ``--json``), ``enclavia
        deploy``, ``enclavia reproduce --json``, the backend, the builder or ``nitro-cli
        build-enclave`` print, log lines before and after it included. The PCRs of another enclave
        under ``synchronizer_pcrs`` are passed over. A ValueError says what is missing, or that
        there is more than one answer: several sets that differ, as JSON or as lines, or a key
        given twice. At most 1 MiB."""
        if not isinstance(text, str | bytes | bytearray):
            raise TypeError(f"text: expected str or bytes, got {type(text).__name__}")
        if len(text) > _MAX_TEXT:
            raise ValueError(f"expected at most {_MAX_TEXT} characters of text, got {len(text)}")
        if not isinstance(text, str):
            try:
                text = text.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise ValueError(
                    "expected UTF-8 text with PCR0, PCR1 and PCR2 in it, got what is not UTF-8"
                ) from None
        values, rest = _take_json(text)
        found = [block for value in values for block in _blocks_of(value)]
        if any(name in rest for name in _NOT_OURS):
            raise ValueError(
                f"expected whole JSON, got a part of it with {_NOT_OURS[0]}, which are another "
                "enclave's: nothing says which of the PCRs in it are whose"
            )
        found += _text_blocks(rest)
        return cls._only(found, text, values)

    @classmethod
    def _only(cls, found: list[dict[str, object]], text: str, values: list[object]) -> Pcrs:
        if not found:
            raise ValueError(
                "expected PCR0, PCR1 and PCR2 (the output of `enclavia enclave status`, `enclavia "
                f"deploy` or `nitro-cli build-enclave`), got {_instead(text, values)}"
            )
        sets: list[Pcrs] = []
        for block in found:
            missing = [name.upper() for name in _NAMES if name not in block]
            if missing:
                raise ValueError(
                    f"expected PCR0, PCR1 and PCR2 together, {' and '.join(missing)} missing"
                )
            sets.append(cls(**{name: _hex_text(name, block[name]) for name in _NAMES}))
        if any(other != sets[0] for other in sets):
            raise ValueError(
                f"expected one set of PCRs, got {len(set(sets))} different ones: pick one"
            )
        return sets[0]

    @property
    def is_zero(self) -> bool:
        """All zero: what an enclave in debug mode shows."""
        return not (any(self.pcr0) or any(self.pcr1) or any(self.pcr2))

    def as_tuple(self) -> tuple[bytes, bytes, bytes]:
        """The three values in order, 48 bytes each."""
        return self.pcr0, self.pcr1, self.pcr2

    def as_dict(self) -> dict[str, str]:
        """In the form of ``enclavia enclave status --json``."""
        return {f"PCR{index}": value.hex() for index, value in enumerate(self.as_tuple())}

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Pcrs cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("Pcrs cannot be changed")

    def __eq__(self, other: object) -> bool:
        return self.as_tuple() == other.as_tuple() if isinstance(other, Pcrs) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.as_tuple())

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, self.as_tuple()

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={value.hex()[:8]}…"
            for name, value in zip(_NAMES, self.as_tuple(), strict=True)
        )
        return f"Pcrs({shown})"


def _restore(pcr0: bytes, pcr1: bytes, pcr2: bytes) -> Pcrs:
    return Pcrs(pcr0=pcr0, pcr1=pcr1, pcr2=pcr2)


class _Object:
    """A JSON object with all that was written in it."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        self.pairs = pairs

    def get(self, name: str) -> object:
        return next((value for key, value in self.pairs if key == name), None)


def _take_json(text: str) -> tuple[list[object], str]:
    """Every JSON object in the text, whole or embedded between log lines, and the text without
    them."""
    decoder = json.JSONDecoder(object_pairs_hook=_Object)
    values: list[object] = []
    rest: list[str] = []
    left = _MOST_IN_VAIN * len(text) + 65536
    begin, end = 0, 0
    while (start := _OBJECT.search(text, end)) is not None:
        at, end = start.start(), start.start() + 1
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            # Making the error counts the lines before it.
            left -= error.pos - at + error.pos // 128 + _COST_OF_A_TRY
        except (ValueError, RecursionError):  # an absurd number, or too deep
            left -= _COST_OF_DEPTH
        else:
            values.append(value)
            rest.append(text[begin:at])
            begin = end
        if left < 0:
            raise ValueError(
                "expected PCR0, PCR1 and PCR2 as JSON or as lines, got a text in which too many "
                "braces begin no JSON"
            )
    return values, "\n".join([*rest, text[begin:]])


def _blocks_of(value: object) -> list[dict[str, object]]:
    """Of one JSON value: each object with PCRs in it, and what they are."""
    found: list[dict[str, object]] = []
    doubled: list[str] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, _Object):
            keys = [_key(key) for key, _ in item.pairs]
            doubled += [key for key in keys if keys.count(key) > 1] if _repeats(keys) else []
            block = {key: member for key, (_, member) in zip(keys, item.pairs, strict=True)}
            pcrs: dict[str, object] = {name: block[name] for name in _NAMES if name in block}
            if pcrs:
                found.append(pcrs)
            pending.extend(member for key, member in item.pairs if key not in _NOT_OURS)
        elif isinstance(item, list):
            pending.extend(item)
    if found and doubled:
        raise ValueError(f"expected each key once, got {_shown(doubled[0])} twice")
    return found


def _key(key: str) -> str:
    return key.lower() if key.lower() in _NAMES else key


def _repeats(keys: list[str]) -> bool:
    return len(set(keys)) != len(keys)


def _text_blocks(text: str) -> list[dict[str, object]]:
    """The lines ``PCR0: <hex>``, ``PCR1: …``, ``PCR2: …``, cut where a name comes again."""
    blocks: list[dict[str, object]] = []
    for match in re.finditer(_TEXT_LINE, text):
        name, value = match[1].lower(), match[2]
        if not blocks or name in blocks[-1]:
            blocks.append({})
        blocks[-1][name] = value
    return blocks


def _instead(text: str, values: list[object]) -> str:
    """What a text without PCRs is, where that can be told."""
    for value in values:
        if isinstance(value, _Object):
            error = value.get("error")
            if isinstance(error, str):
                return f"an error: {_shown(error)}"
            if any(key == "pcrs" and member is None for key, member in value.pairs):
                return "pcrs: null (the image is not built yet)"
    start = " ".join(text.split())
    return _shown(start) if start else "nothing"
