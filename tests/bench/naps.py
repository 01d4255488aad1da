"""How much later than it asked a thread goes on, each time that it sleeps a little: what other
threads and the machine make it wait.

    python tests/bench/naps.py SECONDS [sha256]

prints the delays, in seconds, as a JSON array. Run in a process of its own, it tells what the
machine does to a thread that shares no interpreter with those who are busy; with ``sha256``, what
it does to one that shares its interpreter with a thread that computes in C without the GIL.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable

NAP = 0.0005
_BLOCK = bytes(2**20)


def sha256() -> None:
    """A piece of work that is done in C, without the GIL."""
    hashlib.sha256(_BLOCK).digest()


class Beside:
    """A thread that does the same work over and over, as long as the block lasts. An error of the
    work is raised when the block ends."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._work()
        except BaseException as error:
            self._failed.append(error)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failed:
            raise self._failed[0]


def naps(seconds: float) -> list[float]:
    late: list[float] = []
    until = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < until:
        time.sleep(NAP)
        late.append(time.perf_counter() - begun - NAP)
    return late


def main(seconds: float, work: str | None = None) -> None:
    if work is None:
        late = naps(seconds)
    else:
        assert work == "sha256", work
        with Beside(sha256):
            late = naps(seconds)
    json.dump(late, sys.stdout)


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
