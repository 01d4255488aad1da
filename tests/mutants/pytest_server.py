"""Runs Python tests once per mutant, each time in a fork of this process, so that imports, the
collection of tests and cached fixtures are paid for once.

    python -m tests.mutants.pytest_server TEST…
    <- ready           all tests passed, and which of them meets which mutant is known
    -> 17
    <- killed          or: survived
"""

from __future__ import annotations

import ctypes
import gc
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

CPU_SECONDS = 10
WALL_SECONDS = 120.0
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:faulthandler")


def survives_in_a_fork(work: Callable[[], bool]) -> bool:
    """A crash and a hang are as good as a failed test. CPU time is the same on a busy machine."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            os._exit(0 if work() else 1)
        except BaseException:
            os._exit(1)
    deadline = time.monotonic() + WALL_SECONDS
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
            self._answer("survived" if self._survives(int(line)) else "killed")
        return True

    def _run_without_mutants(self, items: Sequence[pytest.Item]) -> None:
        took: dict[pytest.Item, float] = {}
        for item in items:
            ctypes.memset(alive.seen, 0, alive.COUNT)
            began = time.process_time()
            if not passes(item):
                self._answer(f"fails without any mutant: {item.nodeid}")
                raise pytest.UsageError("the rewritten sources fail their tests")
            took[item] = time.process_time() - began
            for number, seen in enumerate(alive.seen):
                if seen:
                    self._meeting[number].append(item)
        for meeting in self._meeting.values():
            meeting.sort(key=lambda item: took[item])

    def _survives(self, number: int) -> bool:
        items = self._meeting[number]

        def run() -> bool:
            alive.mutant.value = number
            return all(passes(item) for item in items)

        return not items or survives_in_a_fork(run)

    def _answer(self, text: str) -> None:
        print(text, file=self._answers, flush=True)


def main(files: Sequence[str]) -> int:
    # pytest has other plans for the standard ones.
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return int(pytest.main([*OPTIONS, *files], plugins=[Server(questions, answers)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
