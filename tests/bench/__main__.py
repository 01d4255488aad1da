"""``make bench``: the package against what else one could use, on the same work, in one run.

    python -m tests.bench [--quick | --full] [--only WORD ...] [--rounds N] [--out DIRECTORY]

Contenders take turns, round after round, each in a process of its own; a ratio is made within a
round, and its median is printed with the least and the greatest. CPU is the client process's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enclavia.testing import LocalEnclave, Mode
from tests.interop.harness import Peer, ReferenceClient, Server, build_programs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
IDLE_SECONDS = 600
ANSWER_LIMIT = 300
MIB = 1024 * 1024
SIZES = {"64 KiB": 64 * 1024, "1 MiB": MIB, "32 MiB": 32 * MIB}
FULL_SIZES = {**SIZES, "256 MiB": 256 * MIB}

Report = dict[str, Any]


class Worker:
    """A Python client in its own process."""

    def __init__(self, kind: str, facts: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.worker", kind, json.dumps(facts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __call__(self, **command: object) -> Report:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended during {command}")
        answer: Report = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Reference:
    """The published Rust client: a run of its program for each command, connecting not counted."""

    def __init__(self, run: ReferenceClient, url: str, pcrs: list[str] | None = None) -> None:
        self._run = run
        self._url = url
        self._pcrs = ["--pcrs", ",".join(pcrs)] if pcrs else []

    def __call__(self, **command: Any) -> Report:
        what, size = command["do"], command.get("size", 0)
        words: list[str | int] = {
            "get": ["/small"],
            "connect": [],
            "download": [f"/bytes/{size}", "--no-hash"],
            "upload": ["/sha256", "--size", size],
        }[what]
        report = self._run(
            what,
            self._url,
            *words,
            *self._pcrs,
            *("--count", command["count"]),
            *("--concurrency", command.get("callers", 1)),
            *("--warmup", command.get("warmup", 0)),
        )
        if not report.get("ok"):
            raise RuntimeError(f"the reference client: {report}")
        return report

    def close(self) -> None:
        pass


class Workload(Server):
    def __init__(self) -> None:
        super().__init__([sys.executable, str(HERE / "workload.py")], env={"PYTHONPATH": str(ROOT)})

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass
class Row:
    """One figure of one contender, over the rounds, and its ratio to the reference's."""

    server: str
    what: str
    unit: str
    contender: str
    values: list[float]
    ratios: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        ratio = "-"
        if self.ratios:
            low, mid, high = min(self.ratios), statistics.median(self.ratios), max(self.ratios)
            ratio = f"{mid:.3g} ({low:.3g} to {high:.3g})"
        value = f"{statistics.median(self.values):,.3g}"
        if statistics.median(self.values) >= 1000:
            value = f"{statistics.median(self.values):,.0f}"
        return [self.server, self.what, self.contender, f"{value} {self.unit}", ratio]


Figure = tuple[str, Callable[[Report], float]]

P50: Figure = ("us", lambda r: r["p50_us"])
P99: Figure = ("us", lambda r: r["p99_us"])
CPU: Figure = ("us", lambda r: r["cpu_s"] / r["ok"] * 1e6)
RATE: Figure = ("/s", lambda r: r["ok"] / r["wall_s"])
SPEED: Figure = ("MB/s", lambda r: r["bytes"] / r["wall_s"] / 1e6)
CPU_MB: Figure = ("ms/MB", lambda r: r["cpu_s"] * 1e3 / (r["bytes"] / 1e6))


class Bench:
    def __init__(self, rounds: int, scale: float, sizes: dict[str, int], only: list[str]) -> None:
        self.rounds = rounds
        self.scale = scale
        self.sizes = sizes
        self.only = only
        self.rows: list[Row] = []

    def wants(self, *words: str) -> bool:
        text = " ".join(words)
        return not self.only or any(word in text for word in self.only)

    def compare(
        self,
        server: str,
        what: str,
        contenders: dict[str, Callable[..., Report]],
        figures: dict[str, Figure],
        *,
        base: str = "reference",
        count: int = 1,
        size: int = 0,
        **command: object,
    ) -> None:
        if not contenders or not self.wants(server, what):
            return
        counts = max(1, round(count * self.scale))
        rounds = min(self.rounds, 3) if size >= 32 * MIB else self.rounds  # half a minute each
        command["size"] = size
        reports: dict[str, list[Report]] = {name: [] for name in contenders}
        for turn in range(rounds):
            # Every other round backwards: nobody always comes after the same one.
            for name in list(contenders)[:: -1 if turn % 2 else 1]:
                reports[name].append(contenders[name](count=counts, **command))
        for label, (unit, of) in figures.items():
            values = {name: [of(report) for report in reports[name]] for name in contenders}
            for name, own in values.items():
                row = Row(server, f"{what}, {label}" if label else what, unit, name, own)
                if base in values and name != base:
                    row.ratios = [a / b for a, b in zip(own, values[base], strict=True) if b]
                self.rows.append(row)
                print(" | ".join(row.cells()), flush=True)


@contextlib.contextmanager
def workers(facts: dict[str, Any], *kinds: str) -> Iterator[dict[str, Callable[..., Report]]]:
    with contextlib.ExitStack() as ends:
        made: dict[str, Callable[..., Report]] = {}
        for kind in kinds:
            worker = Worker(kind, facts)
            ends.callback(worker.close)
            made[kind] = worker
        yield made


def pick(made: dict[str, Callable[..., Report]], names: str) -> dict[str, Callable[..., Report]]:
    return {name: made[name] for name in names.split() if name in made}


def on_server(bench: Bench, server: str, facts: dict[str, Any], reference: Reference) -> None:
    with workers(facts, "client", "async", "stream", "plain", "direct") as made:
        made["reference"] = reference
        bench.compare(
            server,
            "connect, debug",
            pick(made, "reference client plain"),
            {"p50": P50, "CPU": CPU},
            do="connect",
            count=30,
            warmup=1,
        )
        bench.compare(
            server,
            "GET one by one",
            pick(made, "reference client async stream plain direct"),
            {"p50": P50, "p99": P99, "CPU": CPU},
            do="get",
            count=1000,
            warmup=50,
        )
        for callers in (1, 16, 64):
            bench.compare(
                server,
                f"requests/s, {callers} callers",
                pick(made, "reference client async stream direct"),
                {"": RATE, "CPU": CPU},
                do="get",
                count=1500,
                callers=callers,
                warmup=callers,
            )
        for name, size in bench.sizes.items():
            for what in ("download", "upload"):
                bench.compare(
                    server,
                    f"{what} {name}",
                    pick(made, "reference client async stream plain direct"),
                    {"": SPEED, "CPU": CPU_MB},
                    do=what,
                    size=size,
                    count=max(1, min(50, 16 * MIB // size)),
                )


def connect_production(bench: Bench, facts: dict[str, Any]) -> None:
    """Cold: with a cache of no links, in a process that has connected before."""
    server, what = "LocalEnclave, production", "connect"
    if not bench.wants(server, what):
        return

    def cold(count: int, **command: object) -> Report:
        worker = Worker("client", facts)
        try:
            return worker(do="connect", count=1)
        finally:
            worker.close()

    with workers(facts, "client") as made:
        bench.compare(
            server,
            what,
            {"first of a process": cold, "again": made["client"]},
            {"p50": P50, "CPU": CPU},
            base="first of a process",
            do="connect",
            count=20,
            warmup=1,
        )


def importing(bench: Bench) -> None:
    def run(module: str) -> Callable[..., Report]:
        def once(**command: object) -> Report:
            worker = Worker("import", {"url": "", "workload": "", "keywords": {}})
            try:
                return worker(do="import", module=module)
            finally:
                worker.close()

        return once

    bench.compare(
        "-",
        "import",
        {"import httpx2": run("httpx2"), "import enclavia": run("enclavia")},
        {"": ("ms", lambda r: r["wall_s"] * 1e3), "CPU": ("ms", lambda r: r["cpu_s"] * 1e3)},
        base="import httpx2",
    )


def peak_memory(bench: Bench, server: str, facts: dict[str, Any], size: int) -> None:
    def run(kind: str) -> Callable[..., Report]:
        def once(**command: object) -> Report:
            worker = Worker(kind, facts)
            try:
                worker(do="get", count=10)
                return worker(do="download", count=1, size=size, seconds=60)
            finally:
                worker.close()

        return once

    bench.compare(
        server,
        f"peak memory above idle, download of {size // MIB} MiB",
        {kind: run(kind) for kind in ("client", "async", "stream")},
        {"": ("MiB", lambda r: r["grown"] / MIB)},
    )


def local_enclave(workload: str, mode: Mode) -> LocalEnclave:
    return LocalEnclave(
        workload, mode=mode, in_process=False, idle_timeout=IDLE_SECONDS, max_connections=32
    )


def facts_of(enclave: LocalEnclave, workload: str) -> dict[str, Any]:
    pcrs = enclave.pcrs
    keywords: dict[str, Any] = {
        "pcrs": {name: getattr(pcrs, name).hex() for name in ("pcr0", "pcr1", "pcr2")}
    }
    if enclave.root is None:
        keywords["debug_mode"] = True
    else:
        keywords["root"] = enclave.root.decode()
    return {"url": enclave.url, "workload": workload, "keywords": keywords}


def run_all(bench: Bench, memory_size: int) -> None:
    programs = build_programs()
    run = ReferenceClient(programs)
    with Workload() as workload:
        address = workload.address
        with Peer(programs, address, idle_seconds=IDLE_SECONDS, max_connections=32) as peer:
            pcrs = {f"pcr{n}": bytes([peer.seed + n] * 48).hex() for n in range(3)}
            keywords = {"debug_mode": True, "pcrs": pcrs}
            facts = {"url": peer.url, "workload": address, "keywords": keywords}
            on_server(bench, "Rust peer", facts, Reference(run, peer.url))
        with local_enclave(address, "debug") as enclave:
            facts = facts_of(enclave, address)
            hexes = list(facts["keywords"]["pcrs"].values())
            on_server(bench, "LocalEnclave", facts, Reference(run, enclave.url, hexes))
            peak_memory(bench, "LocalEnclave", facts, memory_size)
        with local_enclave(address, "production") as enclave:
            connect_production(bench, facts_of(enclave, address))
    importing(bench)


def as_table(bench: Bench, arguments: str) -> str:
    cpus = os.cpu_count()
    lines = [
        "# Benchmarks",
        "",
        f"`make bench` wrote this{arguments and f' ({arguments})'}: {bench.rounds} rounds in which "
        f"the contenders took turns, on {cpus} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, all on loopback. The value is the median of the rounds; the "
        "ratio is to the published Rust client's (where there is one) in the same round: its "
        "median, least and greatest. CPU is that of the client's process.",
        "",
        "- `client`, `async`: `enclavia.Client` and `AsyncClient`; `stream`: HTTP by hand over a "
        "stream of `enclavia.Channel` that is kept open.",
        "- `reference`: the published Rust client. Its GET opens a connection to the workload each "
        "time, as that client does.",
        "- `plain`: websockets, cryptography and cbor2 in Python, a stream kept open; it verifies "
        "nothing. `direct`: httpx2 to the workload, with no tunnel.",
        "- *Rust peer*: the published crates' server side in debug mode. *LocalEnclave*: the one "
        "of this package, in a process of its own.",
        "",
        "![Ratios to the Rust client](benchmarks.png)",
        "",
        "| server | what | contender | median | ratio |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in bench.rows]
    return "\n".join(lines) + "\n"


def plot(bench: Bench, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in bench.rows if row.ratios and row.contender in ("client", "stream")]
    shown = [row for row in shown if "p99" not in row.what][::-1]
    if not shown:
        return
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.22 * len(shown)))
    for at, row in enumerate(shown):
        mid = statistics.median(row.ratios)
        colour = "tab:blue" if row.contender == "client" else "tab:orange"
        axes.plot([min(row.ratios), max(row.ratios)], [at, at], color=colour, linewidth=1)
        axes.plot([mid], [at], "o", color=colour, markersize=5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(
        range(len(shown)), [f"{r.server}: {r.what} ({r.contender})" for r in shown], fontsize=7
    )
    axes.margins(y=0.01)
    axes.set_xlabel("ratio to the Rust client (MB/s and requests/s: more is better; else less)")
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="about a minute")
    length.add_argument("--full", action="store_true", help="with 256 MiB, and more of everything")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="part of a row's name"
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    asked = parser.parse_args()

    rounds = asked.rounds or (3 if asked.quick else 9 if asked.full else 5)
    sizes = FULL_SIZES if asked.full else SIZES
    if asked.quick:
        sizes = {name: size for name, size in SIZES.items() if size <= MIB}
    bench = Bench(rounds, 0.2 if asked.quick else 1.0, sizes, asked.only)
    try:
        run_all(bench, (1024 if asked.full else 64 if asked.quick else 256) * MIB)
    finally:
        if not asked.only or asked.out != ROOT / "docs":  # a part is no table for everybody
            arguments = "--quick" if asked.quick else "--full" if asked.full else ""
            asked.out.mkdir(parents=True, exist_ok=True)
            (asked.out / "benchmarks.md").write_text(as_table(bench, arguments))
            plot(bench, asked.out / "benchmarks.png")


if __name__ == "__main__":
    main()
