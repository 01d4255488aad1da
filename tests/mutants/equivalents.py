"""Mutants that nobody could notice, each with the reason."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from .c_mutants import Mutant

Key = tuple[str, str, str, str]


class Equivalents:
    def __init__(self, reasons: dict[Key, str]) -> None:
        self._reasons = reasons

    @classmethod
    def read(cls, path: Path) -> Self:
        reasons: dict[Key, str] = {}
        for entry in tomllib.loads(path.read_text()).get("equivalent", []):
            for function, kind in itertools.product(entry["functions"], entry["kinds"]):
                key = entry["file"], function, kind, entry["text"]
                if key in reasons or not entry["reason"]:
                    raise SystemExit(f"{path.name}: twice, or without a reason: {key}")
                reasons[key] = entry["reason"]
        return cls(reasons)

    def __contains__(self, mutant: Mutant) -> bool:
        return mutant.key in self._reasons

    def wrong(self, known: Sequence[Mutant], killed: Sequence[Mutant]) -> list[str]:
        """Entries that name no mutant, or none that no test notices: a function may ask the same
        thing twice, and only one of the two matter."""
        keys, dead = {m.key for m in known}, set(killed)
        noticed = {m.key for m in killed} - {m.key for m in known if m not in dead}
        stale = [f"equivalent.toml names no mutant: {key}" for key in self._reasons.keys() - keys]
        return stale + [
            f"equivalent.toml names one that is noticed: {key}"
            for key in self._reasons.keys() & noticed
        ]
