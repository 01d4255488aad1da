"""Mutants that nobody could notice, each with the reason."""

from __future__ import annotations

import collections
import itertools
import tomllib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import NamedTuple, Self

from .c_mutants import Mutant

Key = tuple[str, str, str, str]


class Excuse(NamedTuple):
    reason: str
    alive: int | None
    """How many of those that read alike are excused, where that is not all of them."""
    at_times: bool
    """Whether a test may notice it: it reads what is there by chance."""


class Equivalents:
    def __init__(self, excuses: dict[Key, Excuse]) -> None:
        self._excuses = excuses

    @classmethod
    def read(cls, path: Path) -> Self:
        excuses: dict[Key, Excuse] = {}
        for entry in tomllib.loads(path.read_text()).get("equivalent", []):
            for function, kind in itertools.product(entry["functions"], entry["kinds"]):
                key = entry["file"], function, kind, entry["text"]
                if key in excuses or not entry["reason"]:
                    raise SystemExit(f"{path.name}: twice, or without a reason: {key}")
                excuses[key] = Excuse(
                    entry["reason"], entry.get("alive"), entry.get("at_times", False)
                )
        return cls(excuses)

    def __contains__(self, mutant: Mutant) -> bool:
        return mutant.key in self._excuses

    def wrong(
        self, known: Sequence[Mutant], ran: Sequence[Mutant], survived: Set[Mutant]
    ) -> list[str]:
        """Entries that name no mutant, and those of which more or fewer survived than they say: a
        function may ask the same thing twice, and only one of the two matter."""
        there = collections.Counter(m.key for m in known)
        alive = collections.Counter(m.key for m in survived)
        told = [
            f"equivalent.toml names no mutant: {key}" for key in self._excuses if key not in there
        ]
        for key in {m.key for m in ran} & self._excuses.keys():
            if self._excuses[key].at_times:
                continue
            excused = self._excuses[key].alive
            expected = there[key] if excused is None else excused
            if alive[key] != expected:
                told.append(
                    f"equivalent.toml: expected {expected} of {there[key]} to stay unnoticed, "
                    f"{alive[key]} did: {key}"
                )
        return told
