"""How much later than it asked a thread goes on, each time that it sleeps a little: what other
threads and the machine make it wait.

    python tests/bench/naps.py SECONDS

prints the delays, in seconds, as a JSON array. Run in a process of its own, it tells what the
machine does to a thread that shares no interpreter with those who are busy.
"""

from __future__ import annotations

import json
import sys
import time

NAP = 0.0005


def naps(seconds: float) -> list[float]:
    late: list[float] = []
    until = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < until:
        time.sleep(NAP)
        late.append(time.perf_counter() - begun - NAP)
    return late


if __name__ == "__main__":
    json.dump(naps(float(sys.argv[1])), sys.stdout)
