"""The C test programs, one test at a time."""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# What a test may take with a mutant beyond several times what it took without one; and of the
# clock, which also runs while other processes have the processors.
CPU_SECONDS = 5
TIMES_AS_LONG = 5
WALL_SECONDS_PER_CPU_SECOND = 20
# What a test is expected to take at most without one.
LONGEST_SECONDS = 10.0

# Thousands of documents or sessions each: they meet nearly every mutant, and take as long as all
# the others.
SLOW = frozenset(
    (
        "every_flipped_byte_is_refused",
        "debug_documents_of_random_damage_do_no_harm",
        "every_split_gives_the_same_events_and_bytes",
    )
)


class CTest(NamedTuple):
    program: Path
    name: str

    def passes(self, mutant: int, took: float = LONGEST_SECONDS, **environment: str) -> bool:
        """A crash and a hang are as good as a failed test; took: seconds, without a mutant."""
        longest = CPU_SECONDS + math.ceil(TIMES_AS_LONG * took)
        chosen = {
            "ENCL_MUTANT": str(mutant),
            "ENCL_MUTANT_CPU_SECONDS": str(longest),
            "ENCL_TEST": self.name,
            "CMOCKA_TEST_ABORT": "1",
        }
        try:
            ended = subprocess.run(
                [self.program],
                env=os.environ | chosen | environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=longest * WALL_SECONDS_PER_CPU_SECOND,
            )
        except subprocess.TimeoutExpired:
            return False
        return ended.returncode == 0

    def __str__(self) -> str:
        return f"{self.program.name} {self.name}"


def tests_of(program: Path) -> list[CTest]:
    source = (ROOT / "tests/c" / f"{program.name}.c").read_text()
    return [CTest(program, name) for name in re.findall(r"cmocka_unit_test\((\w+)\)", source)]


class Program:
    """Which of its tests meet which mutant, the quickest first."""

    def __init__(self, program: Path) -> None:
        self._meeting: dict[int, list[CTest]] = defaultdict(list)
        self._took: dict[CTest, float] = {}
        seen = program.with_suffix(".seen")
        for test in tests_of(program):
            seen.unlink(missing_ok=True)
            began = time.monotonic()
            if not test.passes(0, ENCL_MUTANT_SEEN=str(seen)):
                raise SystemExit(f"{test} fails without any mutant")
            self._took[test] = time.monotonic() - began
            for number, met in enumerate(seen.read_bytes()):
                if met:
                    self._meeting[number].append(test)
        if not self._took:
            raise SystemExit(f"{program.name} has no tests")
        for meeting in self._meeting.values():
            meeting.sort(key=lambda test: self._took[test])

    def survives(self, mutant: int, slow: bool = False) -> bool:
        """The slow tests are for what all others let pass."""
        tests = [test for test in self._meeting[mutant] if (test.name in SLOW) is slow]
        return all(test.passes(mutant, self._took[test]) for test in tests)
