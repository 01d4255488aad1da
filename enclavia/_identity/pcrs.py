"""The pinned identity of an enclave, and the texts it can be read from.

Decides what is a PCR value, and which values stand in a file. Calls: _arguments, _public, _text.
Locks: none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypedDict, Unpack, cast

from .._arguments import byte_view, path_text
from .._public import public
from .._text import shown

__all__ = ["FURTHER", "PcrValue", "Pcrs", "PinSet"]

PcrValue = str | bytes | bytearray | memoryview
PinSet = tuple[bytes | tuple[int, bytes], ...]
"""As the core takes it: PCR0, PCR1, PCR2, and an (index, value) for each further one."""

FURTHER: Final = (3, 4, 8, *range(16, 32))
"""What can be pinned beside PCR0, PCR1 and PCR2: those that AWS has given a meaning (IAM role,
instance, signing certificate) and those that an enclave extends itself."""

_LENGTHS: Final = (32, 48, 64)
_NAMES: Final = ("pcr0", "pcr1", "pcr2")
_FURTHER_NAMES: Final = tuple(f"pcr{index}" for index in FURTHER)
_ANY_NAME: Final = r"(?i)pcr[0-9]+"
# No line end before the name: from every line on, all empty lines below it would be walked again.
_TEXT_LINE: Final = r"""(?im)^(?:[^\S\n]|["'*|>-])*(pcr[0-9]+)[\s"']*[:=][\s"']*([0-9a-z]*)"""
_MAX_TEXT: Final = 1024 * 1024
# Of another enclave, which stands beside ours in the JSON of `enclave status` and `reproduce`.
_NOT_OURS: Final = ("synchronizer_pcrs", "recorded_synchronizer_pcrs")
# How every JSON object begins: with its first key, or with its end.
_OBJECT: Final = r'\{\s{0,64}(?:\}|"[^"\\]{0,256}(?:\\.[^"\\]{0,256}){0,16}"\s{0,64}:)'
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


if TYPE_CHECKING:  # one class with so many names takes as long as a module

    class FurtherPcrs(TypedDict, total=False):
        """The keywords of further PCRs. None: not pinned."""

        pcr3: PcrValue | None
        pcr4: PcrValue | None
        pcr8: PcrValue | None
        pcr16: PcrValue | None
        pcr17: PcrValue | None
        pcr18: PcrValue | None
        pcr19: PcrValue | None
        pcr20: PcrValue | None
        pcr21: PcrValue | None
        pcr22: PcrValue | None
        pcr23: PcrValue | None
        pcr24: PcrValue | None
        pcr25: PcrValue | None
        pcr26: PcrValue | None
        pcr27: PcrValue | None
        pcr28: PcrValue | None
        pcr29: PcrValue | None
        pcr30: PcrValue | None
        pcr31: PcrValue | None


@public
class Pcrs:
    """PCR0, PCR1 and PCR2 of one enclave image, as hex or bytes; immutable.

    They are printed by ``enclavia enclave status`` and by ``nitro-cli build-enclave``;
    :meth:`load` and :meth:`parse` read either. They are not secret, but they decide who is
    trusted: take them from the build, not from the server that is to be verified.

    ``pcr3`` (the IAM role of the instance), ``pcr4`` (its id), ``pcr8`` (the certificate that the
    image is signed with) and ``pcr16`` to ``pcr31`` (what the enclave measures itself) may be
    pinned beside these. One that is not given is not compared; one that is given must be in the
    document and equal. All zero, it pins that nothing was measured there.
    """

    __slots__ = ("further", "pcr0", "pcr1", "pcr2")

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    further: Mapping[int, bytes]
    """The other pinned PCRs by their index, in order."""

    def __init__(
        self,
        *,
        pcr0: PcrValue,
        pcr1: PcrValue,
        pcr2: PcrValue,
        **further: Unpack[FurtherPcrs],
    ) -> None:
        for name in further:
            if name not in _FURTHER_NAMES:
                raise TypeError(
                    f"Pcrs() got an unexpected keyword argument {name!r}: beside pcr0, pcr1 and "
                    "pcr2 there are pcr3, pcr4, pcr8, and pcr16 to pcr31"
                )
        given: dict[str, object] = {"pcr0": pcr0, "pcr1": pcr1, "pcr2": pcr2}
        for name in _FURTHER_NAMES:
            if further.get(name) is not None:
                given[name] = further.get(name)
        values = {name: _value(name, value) for name, value in given.items()}
        if len({len(value) for value in values.values()}) != 1:
            lengths = ", ".join(f"{name} {len(value)}" for name, value in values.items())
            raise ValueError(f"expected PCRs of one length, got (bytes): {lengths}")
        for name in _NAMES:
            object.__setattr__(self, name, values[name])
        indices = {index: values.get(f"pcr{index}") for index in FURTHER}
        pinned = {index: value for index, value in indices.items() if value is not None}
        object.__setattr__(self, "further", MappingProxyType(pinned))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, further: Iterable[int] | None = None) -> Pcrs:
        """Reads a file with any of the texts that :meth:`parse` takes, of at most 1 MiB. Raises
        ValueError, and OSError where the file cannot be read."""
        path = path_text("path", path, "text or a path")
        indices = _further_indices(further)
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_TEXT + 1)
        try:
            return cls._read(raw, indices)
        except ValueError as error:
            raise ValueError(f"{shown(path)}: {error}") from None

    @classmethod
    def parse(cls, text: str | bytes, *, further: Iterable[int] | None = None) -> Pcrs:
        """Reads what ``enclavia enclave status`` (with or without ``--json``), ``enclavia
        deploy``, ``enclavia reproduce --json``, the backend, the builder or ``nitro-cli
        build-enclave`` print, log lines before and after it included. The PCRs of another enclave
        under ``synchronizer_pcrs`` are passed over. A ValueError says what is missing, or that
        there is more than one answer: several sets that differ, as JSON or as lines, or a key
        given twice. At most 1 MiB.

        All PCRs that the text has are pinned, further ones too: ``nitro-cli`` prints the PCR8 of a
        signed image beside the three. One that cannot be pinned is a ValueError. ``further``: the
        indices of those to pin beside the three; another one of the text is then passed over, and
        one that the text does not have is a ValueError. ``further=()`` pins the three alone."""
        return cls._read(text, _further_indices(further))

    @classmethod
    def _read(cls, text: str | bytes, further: tuple[int, ...] | None) -> Pcrs:
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
        return cls._only(found, text, values, further)

    @classmethod
    def _only(
        cls,
        found: list[dict[str, object]],
        text: str,
        values: list[object],
        further: tuple[int, ...] | None,
    ) -> Pcrs:
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
            three = [_hex_text(name, block[name]) for name in _NAMES]
            more = _further_of(block, further)
            sets.append(cls(pcr0=three[0], pcr1=three[1], pcr2=three[2], **more))
        if any(other != sets[0] for other in sets):
            raise ValueError(
                f"expected one set of PCRs, got {len(set(sets))} different ones: pick one"
            )
        return sets[0]

    @property
    def is_zero(self) -> bool:
        """PCR0, PCR1 and PCR2 all zero: what an enclave in debug mode shows."""
        return not (any(self.pcr0) or any(self.pcr1) or any(self.pcr2))

    def as_tuple(self) -> tuple[bytes, bytes, bytes]:
        """The three values in order, 48 bytes each."""
        return self.pcr0, self.pcr1, self.pcr2

    def as_dict(self) -> dict[str, str]:
        """All that is pinned, in the form of ``enclavia enclave status --json``."""
        values = {**dict(enumerate(self.as_tuple())), **self.further}
        return {f"PCR{index}": value.hex() for index, value in values.items()}

    def _pin_set(self) -> PinSet:
        return (*self.as_tuple(), *self.further.items())

    @classmethod
    def _of_pin_set(cls, pins: PinSet) -> Pcrs:
        values: Any = pins
        restored: Pcrs = _restore(*values)
        return restored

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Pcrs cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("Pcrs cannot be changed")

    def __eq__(self, other: object) -> bool:
        return self._pin_set() == other._pin_set() if isinstance(other, Pcrs) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._pin_set())

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, self._pin_set()

    def __repr__(self) -> str:
        shown = ", ".join(f"{name.lower()}={value[:8]}…" for name, value in self.as_dict().items())
        return f"Pcrs({shown})"


def _restore(pcr0: bytes, pcr1: bytes, pcr2: bytes, *further: tuple[int, bytes]) -> Pcrs:
    more = cast("FurtherPcrs", {f"pcr{index}": value for index, value in further})
    return Pcrs(pcr0=pcr0, pcr1=pcr1, pcr2=pcr2, **more)


def _further_indices(further: object) -> tuple[int, ...] | None:
    """In the order in which they were given. None: those that a text has."""
    if further is None:
        return None
    if isinstance(further, str | bytes) or not isinstance(further, Iterable):
        raise TypeError(f"further: expected indices of PCRs or None, got {type(further).__name__}")
    indices = tuple(further)
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"further: expected indices of PCRs, got {type(index).__name__}")
        if index not in FURTHER:
            raise ValueError(f"further: expected 3, 4, 8, or 16 to 31, got {index}")
    return indices


def _further_of(block: dict[str, object], indices: tuple[int, ...] | None) -> FurtherPcrs:
    """Those to be pinned of what a text has beside PCR0, PCR1 and PCR2. JSON's null pins none."""
    has = {name: value for name, value in block.items() if name not in _NAMES and value is not None}
    if indices is None:
        for name in has:
            if name not in _FURTHER_NAMES:
                raise ValueError(
                    f"expected PCR0 to PCR4, PCR8, and PCR16 to PCR31, got {_shown(name.upper())}, "
                    "which cannot be pinned; further= says which of the text's PCRs to pin"
                )
        names = list(has)
    else:
        names = [f"pcr{index}" for index in indices]
        missing = [name.upper() for name in names if name not in has]
        if missing:
            raise ValueError(f"expected {' and '.join(missing)} in the text too, got none")
    return cast("FurtherPcrs", {name: _hex_text(name, has[name]) for name in names})


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
    beginning = re.compile(_OBJECT)
    values: list[object] = []
    rest: list[str] = []
    left = _MOST_IN_VAIN * len(text) + 65536
    begin, end = 0, 0
    while (start := beginning.search(text, end)) is not None:
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
            pcrs: dict[str, object] = {
                name: member for name, member in block.items() if re.fullmatch(_ANY_NAME, name)
            }
            if pcrs:
                found.append(pcrs)
            pending.extend(member for key, member in item.pairs if key not in _NOT_OURS)
        elif isinstance(item, list):
            pending.extend(item)
    if found and doubled:
        raise ValueError(f"expected each key once, got {_shown(doubled[0])} twice")
    return found


def _key(key: str) -> str:
    return key.lower() if re.fullmatch(_ANY_NAME, key) else key


def _repeats(keys: list[str]) -> bool:
    return len(set(keys)) != len(keys)


def _text_blocks(text: str) -> list[dict[str, object]]:
    """The lines ``PCR0: <hex>``, ``PCR1: …`` and so on, cut where a name comes again."""
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
