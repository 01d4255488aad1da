"""No lock of the extension is waited for with the GIL held: every call of the binding is made under
a library that stops the process where one is. Nothing is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import SUPPORT

from enclavia import _core

pytestmark = pytest.mark.skipif(
    "ENCLAVIA_SANITIZED" in os.environ, reason="the sanitizers' own locks are in the way"
)

CONTROL = """
#include <pthread.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
void takes_a_lock(void) { pthread_mutex_lock(&lock); pthread_mutex_unlock(&lock); }
"""

# Looked at by the tests of local enclaves, and not called by name here.
ENCLAVES = {"Enclave", "Policy"}


def library(source: Path, out: Path) -> Path:
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", str(source), "-o", str(out)]
    subprocess.run([*command, "-ldl", "-pthread"], check=True)
    return out


def run(watch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SUPPORT / "gil_calls.py"), *arguments],
        env={**os.environ, "LD_PRELOAD": str(watch)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return library(SUPPORT / "lock_watch.c", tmp_path_factory.mktemp("gil") / "lock_watch.so")


def test_a_lock_taken_with_the_gil_is_noticed(watch: Path, tmp_path: Path) -> None:
    """Without which the other test would prove nothing."""
    source = tmp_path / "control.c"
    source.write_text(CONTROL)
    ended = run(watch, "control", str(library(source, tmp_path / "_core.control.so")))
    assert ended.returncode != 0
    assert "pthread_mutex_lock with the GIL held" in ended.stderr


def test_no_call_waits_for_a_lock_with_the_gil(watch: Path) -> None:
    ended = run(watch, "all")
    assert ended.returncode == 0, ended.stderr
    called = set(ended.stdout.split()[1:])
    expected = {
        f"{kind.__name__}.{name}"
        for kind in vars(_core).values()
        if isinstance(kind, type) and kind.__name__ not in ENCLAVES
        for name in vars(kind)
        if not name.startswith("_")
    }
    assert expected
    assert expected - called == set()
