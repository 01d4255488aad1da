"""Runs Python tests once per mutant, each time in a fork of this process, so that imports, the
collection of tests and cached fixtures are paid for once.

    python -m tests.mutants.pytest_server TEST…
    <- ready           all tests passed, and which of them meets which mutant is known
    -> 17
    <- killed          or: survived
    -> 18 quick        without the slow tests
    <- survived
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import pytest
from _pytest.runner import runtestprotocol

from . import alive

# What a mutant may take beyond several times what its tests took without one.
CPU_SECONDS = 10
TIMES_AS_LONG = 4
# Of the clock, which also runs while other processes have the processors.
WALL_SECONDS_PER_CPU_SECOND = 12
# Tests of hundreds of generated or damaged inputs: nearly all mutants meet them.
SLOW_SECONDS = 0.5
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:faulthandler")


def survives_in_a_fork(work: Callable[[], bool], cpu_seconds: int) -> bool:
    """A crash and a hang are as good as a failed test."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
            os._exit(0 if work() else 1)
        except BaseException:
            os._exit(1)
    deadline = time.monotonic() + cpu_seconds * WALL_SECONDS_PER_CPU_SECOND
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.001)


def passes(item: pytest.Item) -> bool:
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))


class Server:
    """A pytest plugin that takes the place of its loop over the tests."""

    def __init__(self, questions: TextIO, answers: TextIO) -> None:
        self._meeting: dict[int, list[pytest.Item]] = defaultdict(list)
        self._took: dict[pytest.Item, float] = {}
        self._questions = questions
        self._answers = answers

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Published vectors lie beside the repository on some machines only: what they alone would
        notice does not count."""
        for item in session.items:
            module = getattr(item, "module", None)
            if hasattr(module, "SHARED"):
                module.SHARED = Path(os.devnull)  # type: ignore[union-attr]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._run_without_mutants(session.items)
        gc.freeze()
        self._answer("ready")
        for line in self._questions:
            number, _, quick = line.strip().partition(" ")
            survives = self._survives(int(number), bool(quick))
            self._answer("survived" if survives else "killed")
        return True

    def _run_without_mutants(self, items: Sequence[pytest.Item]) -> None:
        for item in items:
            ctypes.memset(alive.seen, 0, alive.COUNT)
            began = time.process_time()
            if not passes(item):
                self._answer(f"fails without any mutant: {item.nodeid}")
                raise pytest.UsageError("the rewritten sources fail their tests")
            self._took[item] = time.process_time() - began
            for number, seen in enumerate(alive.seen):
                if seen:
                    self._meeting[number].append(item)
        for meeting in self._meeting.values():
            meeting.sort(key=lambda item: self._took[item])

    def _survives(self, number: int, quick: bool) -> bool:
        longest = SLOW_SECONDS if quick else math.inf
        items = [item for item in self._meeting[number] if self._took[item] < longest]

        def run() -> bool:
            alive.mutant.value = number
            return all(passes(item) for item in items)

        return not items or survives_in_a_fork(run, self._limit(items))

    def _limit(self, items: Sequence[pytest.Item]) -> int:
        """Seconds of CPU time: a number for all would be too few for the mutants that nearly all
        tests meet, on a slow machine, and would be taken for a test that fails."""
        return CPU_SECONDS + math.ceil(TIMES_AS_LONG * sum(self._took[item] for item in items))

    def _answer(self, text: str) -> None:
        print(text, file=self._answers, flush=True)


def main(files: Sequence[str]) -> int:
    # pytest has other plans for the standard ones.
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return int(pytest.main([*OPTIONS, *files], plugins=[Server(questions, answers)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
