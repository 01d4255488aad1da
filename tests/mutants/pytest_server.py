"""Runs pytest files once per mutant, each time in a fork of this process, so that imports, fixtures
that are cached and the first check that all is well are paid for once.

    python -m tests.mutants.pytest_server LIBRARY FILE…
    <- ready
    -> 17 tests/unit/test_attest.py
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
from collections.abc import Sequence
from pathlib import Path

import pytest

CPU_SECONDS = 20
WALL_SECONDS = 120.0
QUIET = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-W", "ignore")


class WithoutVectors:
    """Published vectors lie beside the repository on some machines only: what they alone would
    notice does not count."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            module = getattr(item, "module", None)
            if hasattr(module, "SHARED"):
                module.SHARED = Path(os.devnull)  # type: ignore[union-attr]


def run(files: Sequence[str]) -> int:
    return int(pytest.main([*QUIET, *files], plugins=[WithoutVectors()]))


def limit_this_process() -> None:
    """A hang is a noticed mutant; CPU time is the same on a busy machine."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def in_a_fork(work: object, *args: object) -> bool:
    """Whether work said 0, within its limits."""
    child = os.fork()
    if child == 0:
        try:
            limit_this_process()
            os._exit(1 if work(*args) else 0)  # type: ignore[operator]
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
        time.sleep(0.005)


def run_with(variable: ctypes.c_int, number: int, files: Sequence[str]) -> int:
    variable.value = number
    return run(files)


def main(library: str, files: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["ENCLAVIA_TESTING_LIBRARY"] = library
    if run(files) != 0:
        raise SystemExit("the rewritten sources fail their tests without any mutant")
    variable = ctypes.c_int.in_dll(ctypes.CDLL(library), "encl_mutant")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    gc.freeze()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        number, *chosen = line.split()
        survived = in_a_fork(run_with, variable, int(number), chosen)
        print("survived" if survived else "killed", file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
