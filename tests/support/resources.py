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


def eventually(test: Callable[[], bool], within: float = 60.0) -> bool:
    """Whether ``test`` becomes true: what ends in another thread ends a little later."""
    deadline = time.monotonic() + within
    while not test():
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
        if eventually(self._released, within=0.5):
            return
        gc.collect()
        assert eventually(self._released), (
            f"descriptors: {self.descriptors} before, {open_descriptors()} after; "
            f"threads: {self.threads} before, {threads()} after"
        )
