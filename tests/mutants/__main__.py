"""Every check of the verification path removed and turned around; every mutant must be noticed.

    python -m tests.mutants                   all of it, as CI does
    python -m tests.mutants --only chain.c    the mutants of some files
    python -m tests.mutants --show chain.c    only names them

The C sources are rewritten so that all mutants are compiled once (c_mutants.py); a variable chooses
one at run time. Each meets the quick tests of its layer in which it makes a difference, until one
fails. What nothing can notice stands in equivalent.toml with its reason; anything else that
survives makes this fail.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import c_mutants, py_mutants
from .c_mutants import Mutant
from .c_tests import Program
from .equivalents import Equivalents

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "mutants"
OUT = BUILD / "out"
LIBRARY = OUT / "libencl_testing.so"

# Which of them a mutant meets is found out by running them.
PYTHON_TESTS = (
    "tests/python/identity/test_attest.py",
    "tests/python/identity/test_attest_chain.py",
    "tests/python/identity/test_attest_certificates.py",
    "tests/python/identity/test_attest_verdict.py",
    "tests/python/identity/test_attest_cache.py",
    "tests/python/identity/test_attest_vectors.py",
    "tests/python/identity/test_link_payloads.py",
    "tests/python/core/test_wire.py",
    "tests/python/core/test_noise.py",
    "tests/python/identity/test_pcrs.py",
    "tests/python/channel/test_url.py",
    "tests/python/client/test_hosts.py::test_other_hosts_are_refused",
    "tests/python/trust/test_upgrade_chain.py",
    "tests/python/trust/test_upgrade_texts.py",
    "tests/python/trust/test_policy_file.py::test_which_versions_are_allowed",
    "tests/python/trust/test_receipts.py::test_the_name_of_the_version_is_a_statement",
    "tests/python/trust/test_receipts.py::test_the_name_is_compared_with_a_policy",
    "tests/python/trust/test_receipts.py::test_a_policy_is_that_of_the_time",
    "tests/python/trust/test_policy.py::test_what_matched_has_its_name",
    "tests/python/trust/test_policy.py::test_which_of_them_are_in_force",
    "tests/python/trust/test_policy.py::test_none_is_in_force_after_the_last_end",
    "tests/python/trust/test_policy.py::test_only_a_version_that_ended_makes_a_mismatch_its_end",
    "tests/python/trust/test_policy.py::test_an_end_that_is_near_is_told_once",
    "tests/python/trust/test_pin_sources.py::test_an_answer_is_used_for_a_period",
    "tests/python/trust/test_pin_sources.py::test_the_last_answer_is_kept_where_asking_fails",
    "tests/python/trust/test_pin_sources.py"
    "::test_a_mismatch_is_a_reason_to_ask_before_the_period_is_over",
    "tests/python/trust/test_pin_sources.py::test_a_first_question_that_fails",
    "tests/python/trust/test_pin_sources.py::test_an_answer_that_is_no_pins_leaves_none",
    "tests/python/trust/test_pin_sources.py::test_nothing_is_no_answer_in_debug_mode_either",
    "tests/python/trust/test_pin_sources.py::test_nothing_is_kept_without_being_asked_to",
    "tests/python/trust/test_pin_sources.py::test_a_changed_answer_retires_every_channel_that_it_is_not_about",
)

SESSION = ("test_session", "test_session_ids", "test_session_records", "test_session_ends")

# What is mutated, and the tests that its mutants meet, the likeliest to notice first.
TESTS: dict[str, tuple[str, ...]] = {
    "attest/*.c": ("test_attest", "python", *SESSION),
    "cbor/*.c": ("test_cbor", "test_wire", "test_attest", "python"),
    "noise/*.c": ("test_noise", "python", *SESSION),
    "session/*.c": (*SESSION, "test_noise"),
    "base/secmem.c": ("test_base", "test_noise", "python", "test_attest", *SESSION),
}
PROGRAMS = sorted({test for tests in TESTS.values() for test in tests} - {"python"})

# The decisions that Python makes about whom to trust and where a request may go.
PYTHON_FUNCTIONS = {
    "enclavia/_channel/url.py": ("EnclaveURL.parse", "EnclaveURL.refusal"),
    "enclavia/_identity/pins.py": ("checked_pins", "matching_set", "pin_tuples"),
    "enclavia/_identity/pcrs.py": ("_value", "Pcrs.__init__", "Pcrs._only", "Pcrs.is_zero"),
    "enclavia/_channel/config.py": ("_tls",),
    "enclavia/_exchange/engine.py": (
        "Engine._accepted: request.url is not self._own_url",
        "Engine._expect_own: refusal is not None",
    ),
    "enclavia/_exchange/pinning.py": (
        "Pinning.renew: trust.pinned is not before",
        "Pinning.holds: matching_set(pins, measured, self.config.debug_mode) is None",
    ),
    "enclavia/_trust/chain.py": (
        "_Walk.step",
        "_Walk._verified",
        "_Walk._checked_time",
        "_Walk._expect_measured",
        "_Walk._boot",
        "_Walk._change",
        "_Walk._is_earlier",
        "_Walk._authorised",
        "_Walk._expect_authority",
        "_Walk._upgrade",
        "_Walk._revocation",
        "_Walk.result",
    ),
    "enclavia/_trust/mark.py": ("Mark._of", "Mark.expect_extended_by", "_digest"),
    "enclavia/_trust/once.py": ("once",),
    "enclavia/_trust/policy.py": ("Policy.allowed",),
    "enclavia/_trust/receipt_text.py": (
        "_verified_by",
        "_check_together: fields['version'] is not None and (not matches)",
    ),
    "enclavia/_trust/served.py": (
        "_integer",
        "_real",
        "_check_depth",
        "read_json",
        "_object",
        "_text",
        "_base64",
        "_image_digest",
        "_upgradable",
        "_pcrs",
        "_key",
        "read_links",
        "_link",
        "_known_kind",
        "_check_sequence",
        "_id",
        "read_uuid",
        "_signature",
        "_fields",
        "_offset",
        "nanoseconds",
    ),
    "enclavia/_trust/sources.py": (
        "Allowed.due",
        "Allowed.pins",
        "Allowed.refusal",
        "Answers._settled",
        "Answers._kept",
        "Answers._refused",
        "Answers._note: answered",
        "Answers._checked",
    ),
    "enclavia/_trust/versions.py": ("AllowedVersions.in_force",),
}


class Sources:
    """The mutants, and the sources with all of them in them."""

    def __init__(self) -> None:
        self.mutants: list[Mutant] = []
        self.tests: dict[str, tuple[str, ...]] = {}
        self._texts = {str(p.relative_to(ROOT)): p.read_text() for p in ROOT.glob("csrc/*/*.[ch]")}
        self._rewrite_c()
        self._rewrite_python()
        count = f"#define ENCL_MUTANTS {len(self.mutants) + 1}\n"
        self._texts["csrc/base/mutant.c"] = count + (HERE / "mutant.c").read_text()
        self._texts["csrc/base/mutant.h"] = (HERE / "mutant.h").read_text()

    def _rewrite_c(self) -> None:
        texts = self._texts
        headers = [text for name, text in texts.items() if name.endswith(".h")]
        for pattern, tests in TESTS.items():
            for path in sorted((ROOT / "csrc").glob(pattern)):
                file = str(path.relative_to(ROOT))
                failing = c_mutants.failing_functions([*headers, texts[file]])
                rewriter = c_mutants.Rewriter(file, failing, len(self.mutants) + 1)
                texts[file] = rewriter.rewrite(texts[file])
                self.mutants += rewriter.mutants
                self.tests[file] = tests

    def _rewrite_python(self) -> None:
        for path in sorted(ROOT.glob("enclavia/**/*.py")):
            file, text = str(path.relative_to(ROOT)), path.read_text()
            if file in PYTHON_FUNCTIONS:
                chosen = PYTHON_FUNCTIONS[file]
                rewriter = py_mutants.Rewriter(file, chosen, len(self.mutants) + 1)
                text = rewriter.rewrite(text)
                self.mutants += rewriter.mutants
                self.tests[file] = ("python",)
            self._texts[file] = text

    def build(self) -> None:
        for name, text in self._texts.items():
            path = BUILD / name
            if not path.exists() or path.read_text() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        for extension in ROOT.glob("enclavia/*.so"):
            shutil.copy2(extension, BUILD / "enclavia")
        make = ["make", "-s", "-j2", "-C", str(ROOT / "tests/c"), f"SRC={BUILD / 'csrc'}"]
        made = subprocess.run([*make, f"OUT={OUT}", "EXTRA=-w", "lib", *PROGRAMS])
        if made.returncode != 0:
            raise SystemExit("the rewritten sources cannot be built")


class PytestServer:
    def __init__(self) -> None:
        # Where it runs is where it imports from: there lies the rewritten package.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.pytest_server"]
            + [str(ROOT / test) for test in PYTHON_TESTS],
            cwd=BUILD,
            env=os.environ | {"PYTHONPATH": str(ROOT), "ENCLAVIA_TESTING_LIBRARY": str(LIBRARY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        answer = self._answer()
        if answer != "ready":
            raise SystemExit(f"the Python tests do not start: {answer}")

    def survives(self, mutant: int, quick: bool) -> bool:
        assert self._process.stdin is not None
        print(f"{mutant} quick" if quick else mutant, file=self._process.stdin, flush=True)
        answer = self._answer()
        if answer not in ("killed", "survived"):
            raise SystemExit("the process that runs the Python tests is gone")
        return answer == "survived"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Runner:
    """Runs mutants on several threads, each with a process of its own for the Python tests."""

    def __init__(self, sources: Sources, equivalents: Equivalents, jobs: int) -> None:
        self._servers = [PytestServer() for _ in range(jobs)]
        self._tests = sources.tests
        self._equivalents = equivalents
        self._programs = {name: Program(OUT / name) for name in PROGRAMS}
        self._free: queue.SimpleQueue[PytestServer] = queue.SimpleQueue()
        for server in self._servers:
            server.wait_ready()
            self._free.put(server)
        self._lock = threading.Lock()
        self.noticed_by: collections.Counter[str] = collections.Counter()

    def survivors(self, mutants: Sequence[Mutant]) -> set[Mutant]:
        with ThreadPoolExecutor(len(self._servers)) as pool:
            survived = list(pool.map(self._survives, mutants))
        return {mutant for mutant, alive in zip(mutants, survived, strict=True) if alive}

    def _survives(self, mutant: Mutant) -> bool:
        server = self._free.get()
        try:
            killer = next(self._noticing(mutant, server), None)
        finally:
            self._free.put(server)
        if killer is not None:
            with self._lock:
                self.noticed_by[killer] += 1
            return False
        if mutant not in self._equivalents:
            print(f"survived: {mutant}", flush=True)
        return True

    def _noticing(self, mutant: Mutant, server: PytestServer) -> Iterator[str]:
        """Those that notice it. The slow tests are for what all others let pass, and would make up
        most of the time of the mutants that no test can notice."""
        names, excused = self._tests[mutant.file], mutant in self._equivalents
        for name in names:
            if name == "python":
                survives = server.survives(mutant.number, quick=excused)
            else:
                survives = self._programs[name].survives(mutant.number)
            if not survives:
                yield name
        if excused:
            return
        for name in names:
            if name != "python" and not self._programs[name].survives(mutant.number, slow=True):
                yield name

    def close(self) -> None:
        for server in self._servers:
            server.close()


def show_table(chosen: Sequence[Mutant], survived: set[Mutant], equivalents: Equivalents) -> None:
    rows: list[tuple[str, list[int]]] = []
    for file in dict.fromkeys(m.file for m in chosen):
        mine = [m for m in chosen if m.file == file]
        alive = [m for m in mine if m in survived]
        excused = sum(m in equivalents for m in alive)
        rows.append((file, [len(mine), len(mine) - len(alive), excused, len(alive) - excused]))
    rows.append(("all", [sum(column) for column in zip(*(row for _, row in rows), strict=True)]))
    print(f"{'':24}{'mutants':>12}{'killed':>12}{'equivalent':>12}{'survived':>12}")
    for file, row in rows:
        print(f"{file:24}" + "".join(f"{n:12}" for n in row))


def run(only: Sequence[str], jobs: int) -> int:
    began = time.monotonic()
    sources = Sources()
    chosen = [m for m in sources.mutants if any(text in m.file for text in only)]
    equivalents = Equivalents.read(HERE / "equivalent.toml")
    sources.build()
    runner = Runner(sources, equivalents, jobs)
    survived = runner.survivors(chosen)
    # A busy machine can make a test fail by itself, also twice.
    for _ in range(2):
        survived |= runner.survivors([m for m in chosen if m in equivalents and m not in survived])
    runner.close()
    show_table(chosen, survived, equivalents)
    noticed = ", ".join(f"{test} {n}" for test, n in runner.noticed_by.most_common())
    print(f"{time.monotonic() - began:.0f} s; noticed by {noticed}")
    wrong = equivalents.wrong(sources.mutants, chosen, survived)
    print(*wrong, sep="\n")
    return 1 if wrong or any(m not in equivalents for m in survived) else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="files with this in their name"
    )
    parser.add_argument("--show", default=None, metavar="TEXT", help="only name their mutants")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    if arguments.show is not None:
        print(*(m for m in Sources().mutants if arguments.show in m.file), sep="\n")
        return 0
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return run(arguments.only, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
