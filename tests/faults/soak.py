"""Mixed traffic through every fault, for as long as one likes.

    python -m tests.faults.soak --minutes 10 [--seed 1]      (make soak MINUTES=10)

Callers in a process of their own (traffic.py: threads and tasks, over Client, AsyncClient, Channel
and AsyncChannel) ask an enclave on the published Rust crate and a LocalEnclave at the same time,
each behind a fault proxy whose every connection has faults drawn from the seed. A round ends with
the faults off: then all clients have to work, the enclaves' slots have to be free, and the callers'
process has to hold what it held after the first round. Exit status 1 where anything was violated.

The seed decides what the callers ask, in which order, and what happens to the n-th connection; how
the threads take turns it cannot decide.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

import pytest  # noqa: E402
from interop.harness import Peer, build_programs  # noqa: E402

from enclavia.testing import LocalEnclave  # noqa: E402

from .faults import (  # noqa: E402
    BYTE_FAULTS,
    MESSAGE_FAULTS,
    Blackhole,
    Close,
    Coalesce,
    Corrupt,
    Cut,
    Delay,
    Direction,
    Duplicate,
    Fault,
    Fragment,
    HalfClose,
    Jitter,
    Merge,
    Oversized,
    Pings,
    Place,
    Pongs,
    Reset,
    Split,
    Stage,
    Stall,
    Texts,
    Throttle,
    Truncate,
)
from .proxy import FaultProxy  # noqa: E402
from .workload import Workload  # noqa: E402

#: An enclave's idle timeout, and how long the callers that are idle now and then are so.
IDLE_SECONDS, IDLE_GAP = 2.0, 3.0
MAX_CONNECTIONS = 32
#: The longest of the rounds into which the time is cut, and the first one, which warms up.
ROUND_SECONDS, WARM_SECONDS = 300.0, 60.0
#: By how much the callers' process may have grown since the first round.
GROWTH_KIB = {"heap_kib": 2 * 1024, "rss_kib": 16 * 1024}
ANSWER_LIMIT = 600.0

Report = dict[str, Any]


# --- what happens to a connection --------------------------------------------------------------


def faults_of(seed: int, number: int) -> list[Fault]:
    """Some of the harmless faults all the time, and nearly always one that is not, once."""
    rng = random.Random(f"{seed}/faults/{number}")
    faults: list[Fault] = []
    for way in Direction:
        faults += _harmless(rng, way)
    if rng.random() < 0.95:
        faults.append(_harmful(rng, rng.choice(list(Direction))))
    return faults


def _harmless(rng: random.Random, way: Direction) -> Iterator[Fault]:
    choices: list[Callable[[], Fault]] = [
        lambda: Fragment(way, largest=rng.randint(200, 20_000)),
        lambda: Texts(way, every=rng.randint(10, 60), payload=bytes(rng.randint(0, 2_000))),
        lambda: Pings(way, every=rng.randint(20, 200)),
        lambda: Pongs(way, every=rng.randint(20, 200)),
        lambda: Delay(way, seconds=rng.uniform(0, 0.02)),
        lambda: Jitter(way, seconds=rng.uniform(0, 0.01)),
        lambda: Throttle(way, rate=rng.uniform(3e6, 3e7)),
        lambda: Coalesce(way, seconds=rng.uniform(0.001, 0.01)),
        lambda: Split(way, largest=rng.randint(500, 20_000)),
    ]
    if way is Direction.TO_CLIENT and rng.random() < 0.2:
        yield Merge(way, frames=rng.randint(2, 30))
    for make in choices:
        if rng.random() < 0.2:
            yield make()


HARMFUL: list[type[Fault]] = [
    Blackhole, Close, Corrupt, Cut, Duplicate, HalfClose, Oversized, Reset, Stall, Truncate,
]  # fmt: skip


def _harmful(rng: random.Random, way: Direction) -> Fault:
    kind = rng.choice(HARMFUL)
    stage = rng.choices(list(Stage), [3, 3, 3, 91])[0]
    if stage is Stage.OPEN:
        frames, size = (3, 2_000), (20_000, 30_000_000)
    else:
        frames, size = (1, 1), (1, 60)
    least, most = frames if kind in MESSAGE_FAULTS else size
    place = Place(stage, round(least * (most / least) ** rng.random()) - 1)
    if kind is Stall:
        return Stall(way, place, seconds=rng.choice([0.5, 2.0, 12.0]))
    if kind is Close:
        return Close(way, place, code=rng.choice([1000, 1001, 1002, 1011, 1012, 4000]))
    if kind in (Truncate, Duplicate):
        return kind(way, place, length=rng.randint(1, 5_000))
    return kind(way, place)


# --- who takes part ----------------------------------------------------------------------------


class Callers:
    """traffic.py in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.traffic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # With an arena for every few threads the allocator keeps up to 16 MiB of free memory
            # in each, which says nothing.
            env=os.environ | {"MALLOC_ARENA_MAX": "1"},
        )

    def __call__(self, do: str, **more: object) -> Report:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the callers' process ended during {do!r}")
        answer: Report = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Rust:
    name, title = "rust", "the Rust peer"

    def __init__(self, programs: Path, workload: Workload) -> None:
        self._peer = Peer(
            programs,
            workload.address,
            idle_seconds=IDLE_SECONDS,
            max_connections=MAX_CONNECTIONS,
        )
        self.address = ("127.0.0.1", self._peer.port)
        pins = [bytes([(self._peer.seed + index) % 256]) * 48 for index in range(3)]
        self.facts = {"pcrs": [pin.hex() for pin in pins], "root": None}

    def slots(self) -> int:
        slots: int = self._peer.stats()["slots_open"]
        return slots

    def connections(self) -> int:
        count: int = self._peer.stats()["open"]
        return count

    def ended(self) -> dict[str, int]:
        """Why connections ended, as it saw it."""
        reasons: dict[str, int] = self._peer.stats()["ended"]
        return reasons

    def close(self) -> None:
        self._peer.stop()


class Local:
    name, title = "local", "LocalEnclave"

    def __init__(self, workload: Workload) -> None:
        self._enclave = LocalEnclave(
            workload.address,
            in_process=False,
            idle_timeout=IDLE_SECONDS,
            max_connections=MAX_CONNECTIONS,
        ).start()
        self.address = (self._enclave.host, self._enclave.port)
        pcrs, root = self._enclave.pcrs, self._enclave.root
        assert root is not None
        pins = [pcrs.pcr0, pcrs.pcr1, pcrs.pcr2]
        self.facts = {"pcrs": [pin.hex() for pin in pins], "root": root.decode()}

    def slots(self) -> int:
        return self._enclave.stats()["slots_open"]

    def connections(self) -> int:
        return self._enclave.stats()["connections_open"]

    def ended(self) -> dict[str, int]:
        stats = self._enclave.stats()
        return {name: stats[name] for name in ("connections_total", "protocol_errors")}

    def close(self) -> None:
        self._enclave.stop()


# --- the run -----------------------------------------------------------------------------------


class Totals:
    """Over all rounds."""

    def __init__(self) -> None:
        self.calls: dict[str, collections.Counter[str]] = {
            name: collections.Counter() for name in ("started", "ok", "retried", "cancelled")
        }
        self.failed: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        self.gets_lost: collections.Counter[str] = collections.Counter()
        self.faults: collections.Counter[str] = collections.Counter()
        self.clients: collections.Counter[str] = collections.Counter()
        self.ended: dict[str, collections.Counter[str]] = {}
        self.connections = 0
        self.wrong = self.hung = self.twice = self.lost = 0
        self.slowest = 0.0
        self.held: list[dict[str, int]] = []
        self.violations: list[str] = []

    def add(self, report: Report) -> None:
        for name, counter in self.calls.items():
            counter.update(report[name])
        for kind, errors in report["failed"].items():
            self.failed[kind].update(errors)
        self.gets_lost.update(report["gets_lost"])
        self.wrong += report["wrong"]
        self.hung += report["hung"]
        self.slowest = max(self.slowest, report["slowest"])
        self.violations += report["violations"]
        self.held.append(report["held"])


class Soak:
    def __init__(self, minutes: float, seed: int, threads: int, tasks: int) -> None:
        self._seconds = minutes * 60
        self._seed = seed
        self._load = {"threads": threads, "tasks": tasks}
        self._totals = Totals()

    def run(self) -> bool:
        """Whether all was well."""
        with contextlib.ExitStack() as stack:
            self._workload = stack.enter_context(Workload())
            self._enclaves: list[Rust | Local] = [Local(self._workload)]
            with contextlib.suppress(pytest.skip.Exception):  # no cargo
                self._enclaves.append(Rust(build_programs(), self._workload))
            for enclave in self._enclaves:
                stack.callback(enclave.close)
            print("against " + " and ".join(each.title for each in self._enclaves), flush=True)
            self._callers = Callers()
            stack.callback(self._callers.close)
            for number, seconds in enumerate(self._rounds()):
                self._round(number, seconds)
            for enclave in self._enclaves:
                self._totals.ended[enclave.title] = collections.Counter(enclave.ended())
            self._check_growth()
            if self._seconds >= 600:
                self._check_every_fault()
        self._print()
        return not self._totals.violations

    def _rounds(self) -> list[float]:
        warm = min(WARM_SECONDS, self._seconds / 4)
        rest = self._seconds - warm
        count = max(1, round(rest / ROUND_SECONDS))
        return [warm] + [rest / count] * count

    def _round(self, number: int, seconds: float) -> None:
        seed = self._seed * 1000 + number
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            proxies = [
                stack.enter_context(
                    FaultProxy(
                        enclave.address,
                        functools.partial(faults_of, seed * 10 + index),
                        seed=seed * 10 + index,
                    )
                )
                for index, enclave in enumerate(self._enclaves)
            ]
            targets = [
                (enclave.name, proxy.url, enclave.facts)
                for enclave, proxy in zip(self._enclaves, proxies, strict=True)
            ]
            self._callers("open", targets=targets, seed=seed, load=self._load, idle=IDLE_GAP)
            self._callers("work", seconds=seconds)
            for proxy in proxies:
                self._totals.faults.update(proxy.counts)
                proxy.calm()
            self._callers("prove")
            self._totals.clients.update(self._callers("settle"))
            self._expect_zero(number, "slots are taken", lambda enclave: enclave.slots())
            report = self._callers("close")
            self._expect_zero(number, "connections are open", lambda each: each.connections())
            self._totals.connections += sum(proxy.connections for proxy in proxies)
        self._totals.add(report)
        self._check_posts(report)
        calls, held = sum(report["started"].values()), report["held"]
        print(
            f"round {number}: {time.monotonic() - started:.0f} s, seed {seed}, {calls} calls; "
            f"held after it: {said(held)}; {len(self._totals.violations)} violations so far",
            flush=True,
        )

    def _expect_zero(self, number: int, what: str, count: Callable[[Any], int]) -> None:
        """A server notices a little later that a client has gone."""
        for enclave in self._enclaves:
            deadline = time.monotonic() + 10
            while (left := count(enclave)) and time.monotonic() < deadline:
                time.sleep(0.05)
            if left:
                self._totals.violations.append(f"round {number}, {enclave.name}: {left} {what}")

    def _check_posts(self, report: Report) -> None:
        url = f"http://{self._workload.address}/counts"
        with urllib.request.urlopen(url, timeout=60) as answer:
            counts = json.load(answer)
        for number in report["posts_made"]:
            if counts["begun"].get(number, 0) > 1:
                self._totals.twice += 1
                self._totals.violations.append(f"POST {number} came twice")
        for number in report["posts_succeeded"]:
            if counts["whole"].get(number, 0) != 1:
                self._totals.lost += 1
                self._totals.violations.append(f"POST {number} succeeded and never came")

    def _check_growth(self) -> None:
        first, last = self._totals.held[0], self._totals.held[-1]
        for what in first:
            if last[what] > first[what] + GROWTH_KIB.get(what, 0):
                self._totals.violations.append(f"{what} grew: {first} to {last}")

    def _check_every_fault(self) -> None:
        for fault in (*BYTE_FAULTS, *MESSAGE_FAULTS):
            if not self._totals.faults[fault.__name__]:
                self._totals.violations.append(f"{fault.__name__} never happened")

    # -- the table -----------------------------------------------------------------------------

    def _print(self) -> None:
        totals = self._totals
        columns = ("started", "ok", "retried", "cancelled")
        print(f"\n{'calls':<12}" + "".join(f"{name:>11}" for name in (*columns, "failed")))
        kinds = sorted(totals.calls["started"])
        for kind in kinds:
            counts = [totals.calls[name][kind] for name in columns]
            counts.append(totals.failed[kind].total())
            print(f"{kind:<12}" + "".join(f"{count:>11}" for count in counts))
        sums = [totals.calls[name].total() for name in columns]
        sums.append(sum(counter.total() for counter in totals.failed.values()))
        print(f"{'all':<12}" + "".join(f"{count:>11}" for count in sums))
        print("\nfailed by error:")
        for kind in kinds:
            if totals.failed[kind]:
                print(f"  {kind:<12}{listed(totals.failed[kind])}")
        print(f"GETs that failed, and why that may be: {listed(totals.gets_lost)}")
        print(f"\nfaults in {totals.connections} connections: {listed(totals.faults)}")
        for title, reasons in totals.ended.items():
            print(f"connections at {title}: {listed(reasons)}")
        print(f"clients: {listed(totals.clients)}")
        print(
            f"wrong {totals.wrong}, hung {totals.hung}, twice {totals.twice}, "
            f"lost {totals.lost}, slowest {totals.slowest:.1f} s"
        )
        first, last = totals.held[0], totals.held[-1]
        print(
            f"held by the callers' process after the first round: {said(first)}; "
            f"after the last: {said(last)}"
        )
        for violation in totals.violations[:30]:
            print(f"VIOLATED: {violation}")
        print(f"{len(totals.violations)} violations, seed {self._seed}")


def said(held: dict[str, int]) -> str:
    return (
        f"heap {held['heap_kib'] / 1024:.2f} MiB, resident {held['rss_kib'] / 1024:.1f} MiB, "
        f"{held['descriptors']} descriptors, {held['threads']} threads"
    )


def listed(counts: collections.Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=6, help="for each enclave")
    parser.add_argument("--tasks", type=int, default=8, help="for each enclave")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes, pid {os.getpid()}", flush=True)
    soak = Soak(arguments.minutes, arguments.seed, arguments.threads, arguments.tasks)
    sys.exit(0 if soak.run() else 1)


if __name__ == "__main__":
    main()
