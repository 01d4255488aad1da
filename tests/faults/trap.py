"""What is lost against a server that forgets half a record (docs/reliability.md).

    python tests/faults/trap.py [CASE ...] [--scale 0.1] [--async] [--no-reference]

Retries are off, so that every broken connection shows. The cases are those of the goal: bodies of
100 B to 30 KB from 16 and from 64 callers, small GETs beside uploads of 20 MiB, 64 callers of small
GETs. ``broken`` counts connections that the server gave up, ``cut`` how often its loop was made to
pause, which is when it can lose something. Besides: one caller, whom the care must not cost
anything; 64 callers who wait 0.3 s for each answer, whom it must not hold back; bulk downloads
beside small GETs, where it cannot help.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import hashlib
import itertools
import random
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx2
from interop.harness import Peer, ReferenceClient, WorkloadServer, build_programs
from interop.workload import body_of

from enclavia import AsyncClient, Client, Pcrs

KIB = 1024
MIB = 1024 * KIB
SMALLEST, LARGEST = 100, 30_000
TIMEOUT = 60.0

#: Sends one request and checks its answer.
Call = Callable[[Client], None]
AsyncCall = Callable[[AsyncClient], Awaitable[None]]


class Report:
    """Counts from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.latencies: list[float] = []
        self.errors: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0

    def add(self, took: float, error: Exception | None) -> None:
        with self._lock:
            self.latencies.append(took)
            if error is not None:
                self.errors[f"{type(error).__name__}: {error}"[:90]] += 1

    @property
    def sent(self) -> int:
        return len(self.latencies)

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def percentile(self, percent: float) -> float:
        ordered = sorted(self.latencies) or [0.0]
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Request(NamedTuple):
    method: str
    path: str
    body: bytes = b""
    answer: bytes = b"ok"

    def check(self, response: httpx2.Response) -> None:
        response.raise_for_status()
        if self.answer not in response.content:
            raise AssertionError(f"{self.path}: {len(response.content)} bytes, not the answer")


GET = Request("GET", "/health")


def post(body: bytes) -> Request:
    return Request("POST", "/echo", body, body)


def upload(size: int = 20 * MIB) -> Request:
    body = body_of(size, 1)
    return Request("POST", "/sha256", body, hashlib.sha256(body).hexdigest().encode())


def bodies(seed: int = 7) -> list[Request]:
    """From 100 B to 30 KB, small ones as often as large ones."""
    rng = random.Random(seed)
    sizes = [round(SMALLEST * (LARGEST / SMALLEST) ** rng.random()) for _ in range(251)]
    return [post(rng.randbytes(size)) for size in [*sizes, SMALLEST, LARGEST]]


class Plan(NamedTuple):
    """``count`` of the requests by ``callers``; ``beside`` runs until those are done."""

    requests: list[Request]
    callers: int
    count: int
    beside: Request | None = None
    beside_callers: int = 0


def plan(case: str, scale: float) -> Plan:
    def times(count: int) -> int:
        return max(1, round(count * scale))

    match case:
        case "post16":
            return Plan(bodies(), 16, times(20_000))
        case "post64":
            return Plan(bodies(), 64, times(20_000))
        case "upload":
            return Plan([upload()], 1, times(10), GET, 8)
        case "get64":
            return Plan([GET], 64, times(50_000))
        case "get1":
            return Plan([GET], 1, times(5_000))
        case "slow64":
            return Plan([Request("GET", "/slow?seconds=0.3", answer=b"at last")], 64, times(1_280))
        case "download":
            big = Request("GET", f"/bytes/{4 * MIB}?seed=1", answer=body_of(4 * MIB, 1)[-64:])
            return Plan([big], 4, times(40), GET, 8)
    raise SystemExit(f"no case {case!r}; there are {', '.join(CASES)}")


CASES = ("post16", "post64", "upload", "get64", "get1", "slow64", "download")


# --- our client -------------------------------------------------------------------------------


def options(peer: Peer) -> dict[str, Any]:
    pins = [bytes([(peer.seed + index) % 256]) * 48 for index in range(3)]
    return {
        "debug_mode": True,
        "pcrs": Pcrs(pcr0=pins[0], pcr1=pins[1], pcr2=pins[2]),
        "timeout": TIMEOUT,
        "retries": 0,
    }


def run_threads(peer: Peer, what: Plan) -> tuple[Report, Report]:
    main, beside, done = Report(), Report(), threading.Event()
    numbers = itertools.count()

    def once(client: Client, request: Request, report: Report) -> None:
        started, error = time.perf_counter(), None
        try:
            request.check(client.request(request.method, request.path, content=request.body))
        except Exception as caught:
            error = caught
        report.add(time.perf_counter() - started, error)

    def caller(client: Client) -> None:
        while (number := next(numbers)) < what.count:
            once(client, what.requests[number % len(what.requests)], main)

    def other(client: Client, request: Request) -> None:
        while not done.is_set():
            once(client, request, beside)

    with (
        Client(peer.url, **options(peer)) as client,
        ThreadPoolExecutor(what.callers + what.beside_callers) as pool,
    ):
        started = time.perf_counter()
        others = [
            pool.submit(other, client, what.beside)
            for _ in range(what.beside_callers)
            if what.beside
        ]
        for future in [pool.submit(caller, client) for _ in range(what.callers)]:
            future.result()
        main.seconds = beside.seconds = time.perf_counter() - started
        done.set()
        for future in others:
            future.result()
    return main, beside


async def run_tasks(peer: Peer, what: Plan) -> tuple[Report, Report]:
    main, beside, done = Report(), Report(), asyncio.Event()
    numbers = itertools.count()

    async def once(client: AsyncClient, request: Request, report: Report) -> None:
        started, error = time.perf_counter(), None
        try:
            request.check(await client.request(request.method, request.path, content=request.body))
        except Exception as caught:
            error = caught
        report.add(time.perf_counter() - started, error)

    async def caller(client: AsyncClient) -> None:
        while (number := next(numbers)) < what.count:
            await once(client, what.requests[number % len(what.requests)], main)

    async def other(client: AsyncClient, request: Request) -> None:
        while not done.is_set():
            await once(client, request, beside)

    async with AsyncClient(peer.url, **options(peer)) as client, asyncio.TaskGroup() as group:
        started = time.perf_counter()
        if what.beside is not None:
            for _ in range(what.beside_callers):
                group.create_task(other(client, what.beside))
        await asyncio.gather(*(caller(client) for _ in range(what.callers)))
        main.seconds = beside.seconds = time.perf_counter() - started
        done.set()
    return main, beside


def run_ours(peer: Peer, case: str, scale: float, tasks: bool) -> tuple[Report, Report]:
    what = plan(case, scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return asyncio.run(run_tasks(peer, what)) if tasks else run_threads(peer, what)


def broken(peer: Peer) -> int:
    """Connections that the server gave up, other than those that the client had ended."""
    time.sleep(0.2)
    ended: dict[str, int] = peer.stats()["ended"]
    fine = ("early eof", "closed", "handshake")
    return sum(n for reason, n in ended.items() if not any(word in reason for word in fine))


# --- the published client ----------------------------------------------------------------------


def run_reference(client: ReferenceClient, peer: Peer, case: str, scale: float) -> tuple[int, int]:
    """Sent and failed; an upload counts with what is beside it."""
    what = plan(case, scale)
    common = ("--concurrency", what.callers, "--warmup", 0)
    reports = []
    match case:
        case "get64" | "get1":
            reports = [client("get", peer.url, "/health", "--count", what.count, *common)]
        case "upload":
            how = ("--size", 20 * MIB, "--beside", what.beside_callers, "--count", what.count)
            reports = [client("upload", peer.url, "/sha256", *how, *common)]
        case "post16" | "post64":
            sizes = (100, 300, 1_000, 3_000, 10_000, 30_000)
            for size in sizes:
                count = what.count // len(sizes)
                reports.append(
                    client("post", peer.url, "/echo", "--size", size, "--count", count, *common)
                )
    return sum(r["ok"] + r["failed"] for r in reports), sum(r["failed"] for r in reports)


# --- the table ---------------------------------------------------------------------------------


COLUMNS = ("sent", "failed", "broken", "cut", "s", "per s", "p50 ms", "p99 ms")
HEAD = f"{'case':<16}" + "".join(f"{name:>8}" for name in COLUMNS)


def losses(peer: Peer) -> str:
    return f"{broken(peer):>8}{peer.stats()['out_of_steps']:>8}"


def row(name: str, report: Report, lost: str = " " * 16) -> str:
    return (
        f"{name:<16}{report.sent:>8}{report.failed:>8}{lost}{report.seconds:>8.1f}"
        f"{report.sent / report.seconds:>8.0f}{report.percentile(50) * 1e3:>8.2f}"
        f"{report.percentile(99) * 1e3:>8.2f}"
    )


def show(programs: Path, workload: WorkloadServer, case: str, arguments: Any) -> bool:
    with Peer(programs, workload.address) as peer:
        main, beside = run_ours(peer, case, arguments.scale, arguments.tasks)
        print(row(case, main, losses(peer)))
        whole = broken(peer) == 0
    if beside.sent:
        print(row("  beside", beside))
    for why, n in (main.errors + beside.errors).most_common(4):
        print(f"    {n:>6} {why}")
    if arguments.reference:
        with Peer(programs, workload.address) as peer:
            sent, failed = run_reference(ReferenceClient(programs), peer, case, arguments.scale)
            if sent:
                print(f"{'  reference':<16}{sent:>8}{failed:>8}{losses(peer)}")
    sys.stdout.flush()
    return main.failed + beside.failed == 0 and whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--async", dest="tasks", action="store_true")
    parser.add_argument("--no-reference", dest="reference", action="store_false")
    arguments = parser.parse_args()
    programs = build_programs()
    print(HEAD)
    with WorkloadServer() as workload:
        good = [show(programs, workload, case, arguments) for case in arguments.cases]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
