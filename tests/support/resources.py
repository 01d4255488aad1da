"""What a process holds: descriptors, threads, memory."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """All of them, those that Python does not know of included."""
    return len(os.listdir("/proc/self/task"))


def resident_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS in /proc/self/status")


def came_true(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether it does within so many seconds: what ends in another thread ends a little later."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


class Held:
    """What is held now, to compare with later."""

    def __init__(self) -> None:
        self.descriptors = open_descriptors()
        self.threads = threads()

    def _released(self) -> bool:
        return open_descriptors() <= self.descriptors and threads() <= self.threads

    def check_released(self) -> None:
        if came_true(self._released, 0.5):
            return
        gc.collect()
        assert came_true(self._released, 60), (
            f"descriptors: {self.descriptors} before, {open_descriptors()} after; "
            f"threads: {self.threads} before, {threads()} after"
        )
