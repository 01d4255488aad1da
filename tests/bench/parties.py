"""Who takes part: clients in processes of their own, the published client, the workload."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from enclavia.testing import LocalEnclave, Mode
from tests.interop.harness import Peer, ReferenceClient, Server

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
IDLE_SECONDS = 600
CONNECTIONS = 32
REFERENCE_SECONDS = 400.0
BYTECODE = ROOT / "build" / "bytecode"

Report = dict[str, Any]
Contender = Callable[..., Report]
Facts = dict[str, Any]


def compiled_environment() -> dict[str, str]:
    """With a place for bytecode, so that only the first import of a module compiles it. An
    installed package has its bytecode beside it; this one's sources have none where the
    environment forbids to write it, and would be compiled in every process."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(BYTECODE)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


# Kinds of workers that are the package's own clients, and so differ between its builds.
OF_THE_PACKAGE = frozenset(("client", "async", "stream", "verify", "import"))


class Wheel(NamedTuple):
    """A wheel, unpacked: what a process imports that has its folder first on its path."""

    folder: Path
    shown: str
    """Its file, and what it says that it was built from."""

    def environment(self) -> dict[str, str]:
        return {**compiled_environment(), "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}"}


def in_wheel(name: str) -> str:
    """What a contender is called that uses the wheel."""
    return f"{name} (wheel)"


_TOLD = """
import json, enclavia
print(json.dumps([enclavia.__file__, enclavia.build_info()]))
"""


def unpack_wheel(file: Path) -> Wheel:
    """Raises ValueError where the file is no wheel of this package that runs here."""
    if not zipfile.is_zipfile(file):
        raise ValueError(f"expected a wheel, got {file}, which is none")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    folder = ROOT / "build" / "bench-wheel" / digest[:16]
    if not folder.is_dir():
        made = folder.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(made)
        made.rename(folder)
    found = Wheel(folder, file.name)
    told = subprocess.run(
        [sys.executable, "-c", _TOLD],
        cwd=folder,
        env=found.environment(),
        capture_output=True,
        text=True,
    )
    if told.returncode != 0:
        raise ValueError(f"expected a wheel that can be imported here: {told.stderr[-1000:]}")
    imported, built = json.loads(told.stdout)
    if not Path(imported).is_relative_to(folder):
        raise ValueError(f"expected a wheel with enclavia in it, got one without: {file}")
    parts = ", ".join(f"{name} {built[name]}" for name in ("platform", "openssl", "codec"))
    return found._replace(shown=f"{file.name} ({parts})")


class Worker:
    """A Python client in its own process. It is started, imported and connected before anything
    is measured, and measures itself. ``wheel``: what it imports instead of this source tree."""

    def __init__(self, kind: str, facts: Facts, wheel: Wheel | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.worker", kind, json.dumps(facts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT if wheel is None else wheel.folder,
            env=compiled_environment() if wheel is None else wheel.environment(),
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
    """The published Rust client: a run of its program for each command. It measures itself too,
    once it is connected."""

    def __init__(self, program: ReferenceClient, target: str, *options: str) -> None:
        self._program = program
        self._target = target
        self._options = options

    def __call__(self, **command: Any) -> Report:
        what, size = command["do"], command.get("size", 0)
        words: list[str | int] = {
            "get": ["/small"],
            "connect": [],
            "verify": [],
            "download": [f"/bytes/{size}", "--no-hash"],
            "upload": ["/sha256", "--size", size],
        }[what]
        report = self._program(
            what,
            self._target,
            *words,
            *self._options,
            *("--count", command["count"]),
            *("--concurrency", command.get("callers", 1)),
            *("--warmup", command.get("warmup", 0)),
        )
        if report.get("failed") or not report.get("ok"):
            return {"failed": str(report.get("errors") or report)}
        return report


class Workload(Server):
    def __init__(self) -> None:
        super().__init__([sys.executable, str(HERE / "workload.py")], env={"PYTHONPATH": str(ROOT)})

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def workers(
    facts: Facts, *kinds: str, wheel: Wheel | None = None
) -> Iterator[dict[str, Contender]]:
    """By kind; those of the package also as they are in the wheel."""
    with contextlib.ExitStack() as ends:
        made: dict[str, Contender] = {}
        for kind in kinds:
            worker = Worker(kind, facts)
            ends.callback(worker.close)
            made[kind] = worker
            if wheel is not None and kind in OF_THE_PACKAGE:
                worker = Worker(kind, facts, wheel)
                ends.callback(worker.close)
                made[in_wheel(kind)] = worker
        yield made


def fresh(
    kind: str, facts: Facts, *before: dict[str, Any], wheel: Wheel | None = None
) -> Contender:
    """A worker of its own for each command, which does what is in ``before`` first."""

    def once(**command: object) -> Report:
        worker = Worker(kind, facts, wheel)
        try:
            for other in before:
                worker(**other)
            return worker(**command)
        finally:
            worker.close()

    return once


def repeated(
    once: Contender, prepare: Callable[[], object] = lambda: None, warmup: int = 0
) -> Contender:
    """``count`` times one, each prepared for; as one report."""

    def many(count: int, **command: object) -> Report:
        reports: list[Report] = []
        for _ in range(count):
            prepare()
            report = once(**{**command, "count": 1, "warmup": warmup})
            if report.get("failed"):
                return report
            reports.append(report)
        totals = {name: sum(r[name] for r in reports) for name in ("ok", "wall_s", "cpu_s")}
        return {**totals, "p50_us": statistics.median(r["p50_us"] for r in reports)}

    return many


@contextlib.contextmanager
def forwarded(facts: Facts) -> Iterator[dict[str, Contender]]:
    """``client``, which has a channel of its own, and those that go by way of one forwarder, in a
    process of its own too: ``via``, ``http``, which is httpx2's client, and ``http-raw``, which is
    HTTP by hand. Their reports have the forwarder's CPU."""
    with tempfile.TemporaryDirectory(prefix="enclavia-") as folder, contextlib.ExitStack() as ends:
        path = os.path.join(folder, "f")

        def worker(kind: str, **changed: Any) -> Worker:
            made = Worker(kind, {**facts, **changed})
            ends.callback(made.close)
            return made

        forwarder = worker("forwarder", workload=path)
        forwarder(do="cpu")  # it listens from then on
        via = {**facts["keywords"], "via": f"unix:{path}"}
        yield {
            "client": worker("client"),
            "via": _beside(forwarder, worker("client", keywords=via)),
            "http": _beside(forwarder, worker("http", workload=f"{path}.http")),
            "http-raw": _beside(forwarder, worker("http-raw", workload=f"{path}.http")),
        }


def _beside(forwarder: Contender, client: Contender) -> Contender:
    def measured(**command: Any) -> Report:
        if warmup := command.pop("warmup", 0):
            client(**{**command, "count": warmup})
        before = forwarder(do="cpu")["cpu_s"]
        report = client(**command)
        return {**report, "forwarder_cpu_s": forwarder(do="cpu")["cpu_s"] - before}

    return measured


def local_enclave(workload: str, mode: Mode) -> LocalEnclave:
    return LocalEnclave(
        workload,
        mode=mode,
        in_process=False,
        idle_timeout=IDLE_SECONDS,
        max_connections=CONNECTIONS,
    )


def hexes(enclave: LocalEnclave) -> dict[str, str]:
    return {name: getattr(enclave.pcrs, name).hex() for name in ("pcr0", "pcr1", "pcr2")}


def facts_of(enclave: LocalEnclave, workload: str) -> Facts:
    keywords: dict[str, Any] = {"pcrs": hexes(enclave)}
    if enclave.root is None:
        keywords["debug_mode"] = True
    else:
        keywords["root"] = enclave.root.decode()
    return {"url": enclave.url, "workload": workload, "keywords": keywords}


def facts_of_peer(peer: Peer, workload: str) -> Facts:
    pcrs = {f"pcr{n}": bytes([peer.seed + n] * 48).hex() for n in range(3)}
    return {
        "url": peer.url,
        "workload": workload,
        "keywords": {"debug_mode": True, "pcrs": pcrs},
    }


def pinned(facts: Facts) -> tuple[str, str]:
    """The facts' PCRs as the reference client's option."""
    return "--pcrs", ",".join(facts["keywords"]["pcrs"].values())
