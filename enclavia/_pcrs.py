"""The pinned identity of an enclave, and the texts it can be read from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

__all__ = ["Pcrs"]

PcrValue = str | bytes | bytearray | memoryview

_LENGTHS: Final = (32, 48, 64)
_NAMES: Final = ("pcr0", "pcr1", "pcr2")
# No line end before the name: from every line on, all empty lines below it would be walked again.
_TEXT_LINE: Final = r"""(?im)^(?:[^\S\n]|["'*|>-])*(pcr[012])[\s"']*[:=][\s"']*([0-9a-z]*)"""
_MAX_TEXT: Final = 1024 * 1024
_MAX_OBJECTS: Final = 256


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
        raw = bytes(value)
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
        """Reads a file with any of the texts that :meth:`parse` takes."""
        raw = Path(path).read_bytes()
        try:
            return cls.parse(raw)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def parse(cls, text: str | bytes) -> Pcrs:
        """Reads what ``enclavia enclave status`` (with or without ``--json``), ``enclavia
        deploy``, the backend, the builder or ``nitro-cli build-enclave`` print, log lines before
        and after it included."""
        if len(text) > _MAX_TEXT:
            raise ValueError(f"expected at most {_MAX_TEXT} characters of text, got {len(text)}")
        if isinstance(text, bytes | bytearray):
            try:
                text = text.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise ValueError("expected UTF-8 text with PCR0, PCR1 and PCR2 in it") from None
        found = _in_json(text)
        if not found:
            found = [{name.lower(): value for name, value in block} for block in _text_blocks(text)]
        return cls._only(found, text)

    @classmethod
    def _only(cls, found: list[dict[str, object]], text: str) -> Pcrs:
        if not found:
            start = " ".join(text.split())
            raise ValueError(
                "expected PCR0, PCR1 and PCR2 (the output of `enclavia enclave status`, `enclavia "
                "deploy` or `nitro-cli build-enclave`), got "
                f"{_shown(start) if start else 'nothing'}"
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


def _in_json(text: str) -> list[dict[str, object]]:
    """Every object in the text, whole or embedded between log lines, that has PCRs in it."""
    decoder = json.JSONDecoder()
    found: list[dict[str, object]] = []
    at = text.find("{")
    tries = 0
    while at >= 0 and tries < _MAX_OBJECTS:
        tries += 1
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
            continue
        _collect(value, found)
        at = text.find("{", end)
    return found


def _collect(value: object, found: list[dict[str, object]]) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Mapping):
            block = {str(key).lower(): member for key, member in item.items()}
            pcrs: dict[str, object] = {name: block[name] for name in _NAMES if name in block}
            if pcrs:
                found.append(pcrs)
            else:
                pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _text_blocks(text: str) -> list[list[tuple[str, str]]]:
    """The lines ``PCR0: <hex>``, ``PCR1: …``, ``PCR2: …``, cut where a name comes again."""
    blocks: list[list[tuple[str, str]]] = []
    for match in re.finditer(_TEXT_LINE, text):
        name, value = match[1].lower(), match[2]
        if not blocks or any(name == seen for seen, _ in blocks[-1]):
            blocks.append([])
        blocks[-1].append((name, value))
    return blocks
