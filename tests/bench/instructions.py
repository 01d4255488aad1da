"""``make instructions``: how many instructions the client executes for a byte, for a request and
for connecting.

    python -m tests.bench.instructions [--keep]

A figure that does not depend on what else the machine does: valgrind counts, a run of N is taken
from a run of more than N, and what is left over is divided. The workload answers 30 ms late, so the
client always waits for it, once: whether it has to would depend on the neighbours, and makes up to
20 % of what it executes.

Compared with the last kept counts (instructions.json, ``--keep`` writes them): more than 5 % above
one of them, twice in a row, is a failure. Counts of another compiler, Python, OpenSSL or kind of
processor are no measure; then they are only printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import re
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

from enclavia.testing import LocalEnclave

from .parties import IDLE_SECONDS, ROOT, Workload, facts_of

HERE = Path(__file__).resolve().parent
KEPT = HERE / "instructions.json"
ALLOWED = 1.05
ATTEMPTS = 3
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}
PAYLOAD = 16_320
LAYERS = ("base", "noise", "cbor", "wire")

Program = Callable[[int], tuple[list[str], str]]
"""A command that does so much, and what it is told."""
Count = Callable[[], float]


def machine() -> dict[str, str]:
    """What has to be the same for counts to be comparable."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    words = set(flags.group(1).split()) if flags else set()
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True)
    return {
        "processor": " ".join([platform.machine(), *sorted(words & {"ssse3", "avx2", "avx512f"})]),
        "compiler": compiler.stdout.splitlines()[0],
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "httpx2": version("httpx2"),
    }


def build(directory: Path) -> Path:
    """count.c, compiled as setup.py compiles the extension."""
    out = directory / "count"
    sources = [HERE / "count.c", ROOT / "csrc" / "session" / "record.c"]
    for layer in LAYERS:
        sources += sorted((ROOT / "csrc" / layer).glob("*.c"))
    libraries = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libsodium", "openssl"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    flags = ["-std=gnu11", "-O3", "-D_GNU_SOURCE", f"-I{ROOT / 'csrc'}", "-pthread"]
    subprocess.run(
        ["cc", *flags, "-o", str(out), *map(str, sources), *libraries, "-lcbor"], check=True
    )
    return out


def executed(command: list[str], told: str) -> int:
    """Of a run on one connection: one that had to connect again is no measure of requests."""
    for _ in range(ATTEMPTS):
        count, answer = counted(command, told)
        if not answer or not json.loads(answer).get("reconnects"):
            return count
    raise RuntimeError(f"{command}: the connection was lost in {ATTEMPTS} runs")


def counted(command: list[str], told: str) -> tuple[int, str]:
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *command],
        input=told,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    return int(found.group(1)), done.stdout


def each(program: Program, few: int, many: int) -> float:
    return (executed(*program(many)) - executed(*program(few))) / (many - few)


def loops(directory: Path) -> dict[str, Count]:
    pure = str(build(directory))

    def loop(what: str, n: int) -> tuple[list[str], str]:
        return [pure, what, str(n)], ""

    def a_byte(what: str) -> float:
        return each(partial(loop, what), 100, 400) / PAYLOAD

    return {f"{what}, a byte": partial(a_byte, what) for what in ("encode", "decode", "record")}


def worker(kind: str, facts: str, **command: object) -> tuple[list[str], str]:
    told = json.dumps({"seconds": 600, **command}) + "\n"
    return [sys.executable, "-m", "tests.bench.worker", kind, facts], told


def compile_for(command: list[str], told: str) -> None:
    """Python compiles what was not run before, and keeps it: not in a run that is counted."""
    subprocess.run(
        command,
        input=told,
        text=True,
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )


def requests(facts: str) -> dict[str, Count]:
    def asking(kind: str, n: int) -> tuple[list[str], str]:
        return worker(kind, facts, do="get", path="/later", count=n)

    def a_request(kind: str) -> float:
        compile_for(*asking(kind, 1))
        return each(partial(asking, kind), 20, 60)

    return {
        "GET, Client": partial(a_request, "client"),
        "GET, AsyncClient": partial(a_request, "async"),
    }


def connects(facts: str) -> dict[str, Count]:
    """To an enclave in production mode: a document with its chain is verified each time."""

    def connecting(n: int) -> tuple[list[str], str]:
        return worker("client", facts, do="connect", count=n)

    def first() -> float:
        command, told = connecting(1)
        compile_for(command, told)
        return executed(command, told) - executed(command, "")

    def again() -> float:
        compile_for(*connecting(1))
        return each(connecting, 5, 25)

    return {"connect, first of a process": first, "connect, again": again}


@contextlib.contextmanager
def counting() -> Iterator[dict[str, Count]]:
    with (
        tempfile.TemporaryDirectory() as directory,
        Workload() as workload,
        LocalEnclave(
            workload.address, mode="debug", in_process=False, idle_timeout=IDLE_SECONDS
        ) as enclave,
        LocalEnclave(
            workload.address, mode="production", in_process=False, idle_timeout=IDLE_SECONDS
        ) as production,
    ):
        facts = json.dumps(facts_of(enclave, workload.address))
        proven = json.dumps(facts_of(production, workload.address))
        yield {**loops(Path(directory)), **requests(facts), **connects(proven)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.instructions", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="write what was counted")
    asked = parser.parse_args()
    here = machine()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"machine": {}, "counts": {}}
    comparable = kept["machine"] == here
    counts: dict[str, float] = {}
    grown = []
    with counting() as known:
        for name, count in known.items():
            value = count()
            before = kept["counts"].get(name)
            if before and comparable and value > before * ALLOWED and not asked.keep:
                value = min(value, count())
                grown += [name] * (value > before * ALLOWED)
            counts[name] = value
            line = f"{name:32} {value:12,.1f} instructions"
            if before:
                line += f", {value / before:.3f} of the kept {before:,.1f}"
            print(line, flush=True)
    if asked.keep:
        rounded = {name: float(f"{value:.4g}") for name, value in counts.items()}
        KEPT.write_text(json.dumps({"machine": here, "counts": rounded}, indent=2) + "\n")
        return 0
    if not comparable:
        print(f"not compared: kept for {kept['machine']}, this is {here}")
    if grown:
        print(f"expected at most {ALLOWED:.2f} of the kept counts: {', '.join(grown)}")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
