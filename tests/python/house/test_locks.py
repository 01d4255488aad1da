"""What is locked is checked: clang's analysis, as ``make lint`` runs it over csrc, finds a call
without the lock that it needs and a path that leaves a lock held.

A program with such a mistake is written here and must not compile; the same one without it must.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from repository import ROOT

# What the locks are made of.
BELOW = {"platform", "sync"}

PROGRAM = """
#include "sync/lock.h"

typedef struct account {
    encl_mutex lock;
    int balance;
} account;

static encl_mutex count_lock = ENCL_MUTEX_INITIALIZER;
static int count ENCL_GUARDED_BY(count_lock);

static void add(account *a, int n) ENCL_REQUIRES(a->lock) {
    a->balance += n;
}

static bool enter(account *a) ENCL_TRY_ACQUIRES(true, a->lock) {
    return encl_trylock(&a->lock);
}

static void leave(account *a) ENCL_RELEASES(a->lock) {
    encl_unlock(&a->lock);
}

int deposit(account *a, int n);
int deposit(account *a, int n) {
    if (!enter(a)) {
        return -1;
    }
    %s
    leave(a);
    return 0;
}
"""
CORRECT = "add(a, n); encl_lock(&count_lock); count++; encl_unlock(&count_lock);"
MISTAKES = {
    "leave(a); add(a, n); encl_lock(&a->lock);": "requires holding mutex 'a->lock'",
    "if (n == 0) { return 0; } add(a, n);": "'a->lock' is not held on every path",
    "add(a, n); count++;": "requires holding mutex 'count_lock'",
    "encl_lock(&count_lock); count++;": "'count_lock' is not held on every path",
    "encl_lock(&a->lock); add(a, n);": "acquiring mutex 'a->lock' that is already held",
    "leave(a);": "releasing mutex 'a->lock' that was not held",
}


def analysed(source: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / ".ci" / "thread-safety"), str(source)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


needs_clang = pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")


@needs_clang
def test_what_keeps_to_its_locks_passes(tmp_path: Path) -> None:
    source = tmp_path / "correct.c"
    source.write_text(PROGRAM % CORRECT)
    done = analysed(source)
    assert done.returncode == 0, done.stderr


@needs_clang
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_with_a_lock_does_not_pass(tmp_path: Path, mistake: str) -> None:
    source = tmp_path / "mistake.c"
    source.write_text(PROGRAM % mistake)
    done = analysed(source)
    assert done.returncode != 0
    assert MISTAKES[mistake] in done.stderr


def test_no_lock_is_hidden_from_the_analysis() -> None:
    for path in sorted((ROOT / "csrc").glob("*/*.[ch]")):
        if path.parent.name in BELOW:
            continue
        found = re.findall(
            r"pthread_(?:mutex|rwlock|spin)_\w+|pthread_cond_\w*wait", path.read_text()
        )
        assert not found, f"{path}: {found}; csrc/sync/lock.h has what is checked"
