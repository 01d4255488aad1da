"""Every check of the verification path removed and turned around; every mutant must be noticed.

    python -m tests.mutants                   all of it, as CI does
    python -m tests.mutants --only chain.c    the mutants of some files
    python -m tests.mutants --show chain.c    only names them

The C sources are rewritten so that all mutants are compiled once (c_mutants.py); a variable chooses
one at run time. Each meets the quick tests of its layer, in turn, until one fails. What nothing can
notice stands in equivalent.toml with its reason; anything else that survives makes this fail.
"""

from __future__ import annotations

import argparse
import collections
import os
import queue
import resource
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from . import c_mutants
from .c_mutants import Mutant

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutants"
OUT = BUILD / "out"
LIBRARY = OUT / "libencl_testing.so"
EQUIVALENT = Path(__file__).with_name("equivalent.toml")

CPU_SECONDS = 20
WALL_SECONDS = 120

ATTEST_PY = "tests/unit/test_attest.py"
NOISE_PY = "tests/unit/test_noise.py"

# What is mutated, and the tests that each mutant of it meets, the likeliest to notice first.
TESTS: dict[str, tuple[str, ...]] = {
    "attest/*.c": ("test_attest", ATTEST_PY, "test_session"),
    "noise/*.c": ("test_noise", NOISE_PY, "test_session"),
    "session/*.c": ("test_session",),
    "base/secmem.c": ("test_noise", "test_session", "test_attest", "test_base", ATTEST_PY),
}


class Sources:
    """The mutants, and csrc with all of them in it."""

    def __init__(self) -> None:
        csrc = ROOT / "csrc"
        texts = {str(path.relative_to(csrc)): path.read_text() for path in csrc.glob("*/*.[ch]")}
        headers = [text for name, text in texts.items() if name.endswith(".h")]
        self.mutants: list[Mutant] = []
        self.tests: dict[str, tuple[str, ...]] = {}
        self.texts = texts
        for pattern, tests in TESTS.items():
            for path in sorted(csrc.glob(pattern)):
                file = str(path.relative_to(csrc))
                failing = c_mutants.failing_functions([*headers, texts[file]])
                rewriter = c_mutants.Rewriter(file, failing, len(self.mutants) + 1)
                texts[file] = rewriter.rewrite(texts[file])
                self.mutants += rewriter.mutants
                self.tests[file] = tests
        texts["base/mutant.c"] = (
            "#include <stdlib.h>\n"
            "int encl_mutant;\n"
            "__attribute__((constructor)) static void choose(void) {\n"
            '    const char *number = getenv("ENCL_MUTANT");\n'
            "    encl_mutant = number == NULL ? 0 : atoi(number);\n"
            "}\n"
        )

    def build(self) -> None:
        for name, text in self.texts.items():
            path = BUILD / "csrc" / name
            if not path.exists() or path.read_text() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        programs = {name for tests in TESTS.values() for name in tests if "/" not in name}
        make = ["make", "-s", "-j2", "-C", str(ROOT / "tests/c"), f"SRC={BUILD / 'csrc'}"]
        made = subprocess.run([*make, f"OUT={OUT}", "EXTRA=-w", "lib", *sorted(programs)])
        if made.returncode != 0:
            raise SystemExit("the rewritten sources cannot be built")


def c_test_notices(program: str, number: int) -> bool:
    try:
        ended = subprocess.run(
            [OUT / program],
            env=os.environ | {"ENCL_MUTANT": str(number), "CMOCKA_TEST_ABORT": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return True
    return ended.returncode != 0


class PytestServer:
    def __init__(self, files: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.pytest_server", str(LIBRARY), *files],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        if self._answer() != "ready":
            raise SystemExit("the Python tests fail without any mutant")

    def notices(self, number: int, file: str) -> bool:
        assert self._process.stdin is not None
        print(number, file, file=self._process.stdin, flush=True)
        answer = self._answer()
        if answer not in ("killed", "survived"):
            raise SystemExit("the process that runs pytest is gone")
        return answer == "killed"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Runner:
    """Runs mutants on several threads, each with a pytest process of its own."""

    def __init__(self, sources: Sources, servers: list[PytestServer]) -> None:
        self._tests = sources.tests
        self._free: queue.SimpleQueue[PytestServer] = queue.SimpleQueue()
        for server in servers:
            self._free.put(server)
        self.noticed_by: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def is_killed(self, mutant: Mutant) -> bool:
        server = self._free.get()
        try:
            for test in self._tests[mutant.file]:
                if (
                    server.notices(mutant.number, test)
                    if "/" in test
                    else c_test_notices(test, mutant.number)
                ):
                    with self._lock:
                        self.noticed_by[test] += 1
                    return True
        finally:
            self._free.put(server)
        return False


@dataclass(frozen=True)
class Equivalents:
    """Mutants that change nothing anybody could see, and why."""

    reasons: dict[tuple[str, str, str, str], str]

    @classmethod
    def read(cls, path: Path) -> Equivalents:
        reasons = {}
        for entry in tomllib.loads(path.read_text()).get("equivalent", []):
            for kind in entry["kinds"]:
                key = entry["file"], entry["function"], kind, entry["text"]
                if key in reasons:
                    raise SystemExit(f"{path.name}: twice: {key}")
                reasons[key] = entry["reason"]
        return cls(reasons)

    def stale(self, known: Iterable[Mutant], killed: Iterable[Mutant], files: set[str]) -> list[str]:
        """Entries that name no mutant, or one that a test notices."""
        keys, noticed = {m.key for m in known}, {m.key for m in killed}
        mine = [key for key in self.reasons if key[0] in files or key[0] not in {m.file for m in known}]
        return [f"names no mutant: {key}" for key in mine if key not in keys] + [
            f"is noticed by a test: {key}" for key in mine if key in noticed
        ]


def check_unmutated(sources: Sources) -> None:
    for program in sorted({t for tests in sources.tests.values() for t in tests if "/" not in t}):
        if c_test_notices(program, 0):
            raise SystemExit(f"{program} fails without any mutant")


def report(chosen: list[Mutant], survived: set[Mutant], equivalents: Equivalents) -> int:
    print(f"{'':24}{'mutants':>8}{'killed':>8}{'equivalent':>12}{'survived':>10}")
    totals = [0, 0, 0, 0]
    for file in dict.fromkeys(m.file for m in chosen):
        mine = [m for m in chosen if m.file == file]
        alive = [m for m in mine if m in survived]
        excused = [m for m in alive if m.key in equivalents.reasons]
        row = [len(mine), len(mine) - len(alive), len(excused), len(alive) - len(excused)]
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        print(f"{file:24}{row[0]:8}{row[1]:8}{row[2]:12}{row[3]:10}")
    print(f"{'all':24}{totals[0]:8}{totals[1]:8}{totals[2]:12}{totals[3]:10}")
    return totals[3]


def run(arguments: argparse.Namespace) -> int:
    sources = Sources()
    chosen = [m for m in sources.mutants if arguments.only in m.file]
    if arguments.show:
        print(*chosen, sep="\n")
        return 0
    equivalents = Equivalents.read(EQUIVALENT)
    began = time.monotonic()
    sources.build()
    check_unmutated(sources)
    files = [t for t in (ATTEST_PY, NOISE_PY)]
    servers = [PytestServer(files) for _ in range(arguments.jobs)]
    for server in servers:
        server.wait_ready()
    runner = Runner(sources, servers)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        verdicts = list(pool.map(runner.is_killed, chosen))
    for server in servers:
        server.__exit__()
    survived = {m for m, killed in zip(chosen, verdicts, strict=True) if not killed}
    killed = [m for m in chosen if m not in survived]
    unexcused = [m for m in chosen if m in survived and m.key not in equivalents.reasons]
    stale = equivalents.stale(sources.mutants, killed, {m.file for m in chosen})
    report(chosen, survived, equivalents)
    noticed = ", ".join(f"{test} {n}" for test, n in runner.noticed_by.most_common())
    print(f"in {time.monotonic() - began:.0f} s; noticed by {noticed}")
    for mutant in unexcused:
        print(f"survived: {mutant}")
    for entry in stale:
        print(f"{EQUIVALENT.name}: {entry}")
    return 1 if unexcused or stale else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="files with this in their name")
    parser.add_argument("--show", action="store_true", help="only name the mutants")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
