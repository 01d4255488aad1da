"""``make bench``: the package against what else one could use, on the same work, in one run.

    python -m tests.bench [--quick] [--only GROUP,...] [--on SERVER,...] [--rounds N] [--out DIR]
        [--wheel FILE]

Contenders take turns, round after round, each in a process of its own; a ratio is made within a
round, and its median is printed with the least and the greatest. CPU is the client process's own.
A part of it (``--only``, ``--on``) is printed and leaves docs/ as it is. With ``--wheel`` the
package's own clients take part twice, from this source tree and from the wheel.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from enclavia import verify_attestation
from enclavia.testing._identity import Authority
from tests.interop.harness import Peer, ReferenceClient, build_programs, trusting

from .figures import (
    CPU,
    CPU_MB,
    FORWARDER,
    FORWARDER_MB,
    GROWN,
    P50,
    P99,
    P999,
    RATE,
    SPEED,
    Bench,
)
from .parties import (
    CONNECTIONS,
    IDLE_SECONDS,
    REFERENCE_SECONDS,
    ROOT,
    Contender,
    Facts,
    Reference,
    Wheel,
    Workload,
    facts_of,
    facts_of_peer,
    forwarded,
    fresh,
    in_wheel,
    local_enclave,
    pinned,
    repeated,
    unpack_wheel,
    workers,
)
from .report import for_terminal, plot, write
from .targets import DOCUMENT, IN_PROCESS, LOCAL, PEER, PRODUCTION, targets, wheel_targets

MIB = 2**20
ON_SERVERS = ("connect", "get", "rps", "transfer", "flat", "pauses", "memory", "forward")
GROUPS = (*ON_SERVERS, "apps", "production", "document", "import")
AWS_DOCUMENT = ROOT.parent / "shared/vectors/nitro/production-2022-10-13.cose"
AWS_DOCUMENT_TIME = 1_665_651_482
FAKETIME = Path("/usr/lib") / f"{platform.machine()}-linux-gnu/faketime/libfaketimeMT.so.1"
SERVERS = {"rust": PEER, "local": LOCAL}
SIZE_NAMES = {64 * 1024: "64 KiB", 2**30: "1 GiB"}


def size_name(size: int) -> str:
    return SIZE_NAMES.get(size) or f"{size // MIB} MiB"


@dataclass(frozen=True)
class Plan:
    groups: list[str]
    servers: list[str]
    large: int
    larger: int
    large_rounds: int
    wheel: Wheel | None = None

    def wants(self, *groups: str) -> bool:
        return any(group in self.groups for group in groups)


Contenders = dict[str, Contender]


def pick(made: Contenders, names: str) -> Contenders:
    """Each with its twin in the wheel beside it, where there is one."""
    twins = ((name, in_wheel(name)) for name in names.split())
    return {name: made[name] for pair in twins for name in pair if name in made}


def builds(plan: Plan) -> dict[str, Wheel | None]:
    """What is imported, by what is added to a contender's name."""
    return {"": None} if plan.wheel is None else {"": None, in_wheel(""): plan.wheel}


def connecting(bench: Bench, server: str, made: Contenders) -> None:
    bench.compare(
        server,
        "connect, debug",
        pick(made, "reference client async stream plain"),
        {"p50": P50, "CPU": CPU},
        do="connect",
        count=30,
        warmup=2,
    )


def getting(bench: Bench, server: str, made: Contenders) -> None:
    bench.compare(
        server,
        "GET one by one",
        pick(made, "reference client async stream plain direct sockets sockets-each"),
        {"p50": P50, "p99": P99, "CPU": CPU},
        do="get",
        count=1000,
        warmup=100,
    )


def per_second(bench: Bench, server: str, made: Contenders) -> None:
    for callers in (1, 16, 64):
        bench.compare(
            server,
            f"requests/s, {callers} callers",
            pick(made, "reference client async stream direct direct-async sockets sockets-each"),
            {"": RATE, "CPU": CPU},
            do="get",
            count=2000,
            callers=callers,
            warmup=max(100, 2 * callers),
        )


BODIES = (8 * MIB, 32 * MIB)


def bodies_of_bytes(
    bench: Bench, server: str, made: Contenders, sizes: list[int], plan: Plan
) -> None:
    """Uploads of a body that is there at once, between the small ones and the large one."""
    for size in sizes:
        bench.compare(
            server,
            f"upload {size_name(size)}",
            pick(made, "reference client stream"),
            {"": SPEED, "CPU": CPU_MB},
            rounds=plan.large_rounds,
            do="upload",
            size=size,
            count=2,
            warmup=1,
        )


def transfers(bench: Bench, server: str, made: Contenders, plan: Plan) -> None:
    names = "reference client async stream plain direct"
    for size in (64 * 1024, MIB):
        for way in ("download", "upload"):
            bench.compare(
                server,
                f"{way} {size_name(size)}",
                pick(made, names),
                {"": SPEED, "CPU": CPU_MB},
                do=way,
                size=size,
                count=min(50, 16 * MIB // size),
                warmup=2,
            )
    bodies_of_bytes(bench, server, made, [size for size in BODIES if size < plan.large], plan)
    for way in ("download", "upload"):
        for once in pick(made, "client async stream plain direct").values():
            once(do=way, size=MIB, count=1)  # whatever is done once, where only this is run
        bench.compare(
            server,
            f"{way} {size_name(plan.large)}",
            pick(made, names),
            {"": SPEED, "CPU": CPU_MB},
            rounds=plan.large_rounds,
            once="plain",
            do=way,
            size=plan.large,
        )


def requests_as_callers_grow(bench: Bench, server: str, made: Contenders) -> None:
    for kind, name in (("client", "`Client`"), ("async", "`AsyncClient`"), ("stream", "`Channel`")):
        bench.compare(
            server,
            f"GET, {name}",
            {str(callers): partial(made[kind], callers=callers) for callers in (1, 16, 64)},
            {"time each": ("us", lambda r: r["wall_s"] / r["ok"] * 1e6), "CPU each": CPU},
            base="1",
            do="get",
            count=2000,
            warmup=128,
        )


def bytes_as_bodies_grow(bench: Bench, server: str, made: Contenders, plan: Plan) -> None:
    sizes = [(MIB, 64), (64 * MIB, 2), (plan.larger, 1)]
    for way in ("download", "upload"):
        bench.compare(
            server,
            f"{way}, `Client`",
            {
                size_name(size): partial(made["client"], size=size, times=times)
                for size, times in sizes
            },
            {"CPU per MB": CPU_MB, "speed": SPEED},
            base="1 MiB",
            rounds=plan.large_rounds,
            do=way,
            pieces=True,
        )


def pauses(bench: Bench, server: str, made: Contenders) -> None:
    """How much later than asked a thread that sleeps for half a millisecond goes on.

    A download also keeps the enclave, the workload and the service thread busy, for which a
    sleeping thread waits on a machine with few processors whether or not it shares the GIL. So two
    comparisons are made under equal load. Two processes run at once, one that downloads and one
    that computes SHA-256 in C without the GIL, and the sleeping thread is of one or of the other.
    And beside a download alone, the sleeping thread is of the same process or of another. What is
    above that is the client's."""
    bench.compare(
        server,
        "a thread goes on late, one process downloads and one computes, beside",
        {
            "SHA-256": partial(made["client"], compute=True, elsewhere=True),
            "a download, `Client`": partial(made["client"], compute=True),
        },
        {"p50": P50, "p99": P99, "p99.9": P999},
        base="SHA-256",
        do="pauses",
        beside="download",
        count=6000,
    )
    bench.compare(
        server,
        "a thread goes on late, beside",
        {
            "SHA-256": partial(made["client"], beside="sha256"),
            "a download, `Client`": partial(made["client"], beside="download"),
            "a download, from another process": partial(
                made["client"], beside="download", elsewhere=True
            ),
        },
        {"p50": P50, "p99": P99, "p99.9": P999},
        base="a download, from another process",
        do="pauses",
        count=6000,
    )


def peak_memory(bench: Bench, server: str, facts: Facts, plan: Plan) -> None:
    idle = {"do": "get", "count": 10}
    for way in ("download", "upload"):
        for size in (64 * MIB, plan.larger):
            bench.compare(
                server,
                f"peak memory above idle, {way} {size_name(size)}",
                {kind: fresh(kind, facts, idle) for kind in ("client", "async", "stream")},
                {"": GROWN},
                rounds=plan.large_rounds,
                do=way,
                size=size,
                pieces=True,
            )


def forwarding(bench: Bench, server: str, facts: Facts) -> None:
    with forwarded(facts) as made:
        bench.compare(
            server,
            "by way of a forwarder, GET one by one",
            made,
            {"p50": P50, "p99": P99, "CPU": CPU, "the forwarder's CPU": FORWARDER},
            base="client",
            do="get",
            count=2000,
            warmup=200,
        )
        bench.compare(
            server,
            "by way of a forwarder, requests/s, 16 callers",
            pick(made, "client via http"),
            {"": RATE, "CPU": CPU, "the forwarder's CPU": FORWARDER},
            base="client",
            do="get",
            count=4000,
            callers=16,
            warmup=200,
        )
        for way in ("download", "upload"):
            bench.compare(
                server,
                f"by way of a forwarder, {way} 32 MiB",
                pick(made, "client via http"),
                {"": SPEED, "CPU": CPU_MB, "the forwarder's CPU": FORWARDER_MB},
                base="client",
                do=way,
                size=32 * MIB,
                count=3,
                warmup=1,
            )


def on_server(bench: Bench, server: str, facts: Facts, reference: Reference, plan: Plan) -> None:
    kinds = "client async stream plain direct direct-async sockets sockets-each"
    with workers(facts, *kinds.split(), wheel=plan.wheel) as made:
        made["reference"] = reference
        if plan.wants("connect"):
            connecting(bench, server, made)
        if plan.wants("get"):
            getting(bench, server, made)
        if plan.wants("rps"):
            per_second(bench, server, made)
        if plan.wants("transfer"):
            transfers(bench, server, made, plan)
        if plan.wants("flat"):
            requests_as_callers_grow(bench, server, made)
        if plan.wants("pauses") and server == LOCAL:
            pauses(bench, server, made)
        if plan.wants("flat") and server == LOCAL:
            bytes_as_bodies_grow(bench, server, made, plan)
    if plan.wants("forward") and server == LOCAL:
        forwarding(bench, server, facts)
    if plan.wants("memory") and server == LOCAL:
        peak_memory(bench, server, facts, plan)


def connecting_in_production(bench: Bench, programs: Path, address: str, plan: Plan) -> None:
    """The same enclave, chain and documents for all. The published client verifies every link each
    time; ours knows a link again, so it is also shown chains that are new."""
    authority = Authority()
    chain = authority.issue()
    chains = iter(lambda: authority.issue(), None)
    with (
        tempfile.TemporaryDirectory() as directory,
        local_enclave(address, "production") as enclave,
    ):
        enclave.set_identity(pki=chain)
        facts = facts_of(enclave, address)
        program = trusting(
            programs / "reference-client", chain.root_pem, Path(directory) / "reference-client"
        )
        reference = Reference(
            ReferenceClient(program.parent), enclave.url, "--production", *pinned(facts)
        )
        with workers(facts, "client", wheel=plan.wheel) as made:
            contenders: Contenders = {"reference": reference}
            for build in builds(plan):
                client = made[f"client{build}"]
                contenders[f"client, new chain{build}"] = repeated(
                    client, lambda: enclave.set_identity(pki=next(chains))
                )
                contenders[f"client, again{build}"] = client
            bench.compare(
                PRODUCTION,
                "connect",
                contenders,
                {"p50": P50, "CPU": CPU},
                do="connect",
                count=20,
                warmup=2,
            )
        first: Contenders = {"reference": repeated(reference)}
        for build, wheel in builds(plan).items():
            once = fresh("client", facts, wheel=wheel)
            once(do="connect", count=1)  # compiles what a first connect imports
            first[f"client{build}"] = repeated(once)
        bench.compare(
            PRODUCTION,
            "first connect of a process",
            first,
            {"p50": P50, "CPU": CPU},
            do="connect",
            count=5,
        )


def verifying(bench: Bench, programs: Path, plan: Plan) -> None:
    """One document of AWS's, without connecting. The published client takes the time from the
    clock, so it is run with one that libfaketime sets back."""
    for needed in (AWS_DOCUMENT, FAKETIME):
        if not needed.exists():
            print(f"{DOCUMENT}: left out, there is no {needed}", file=sys.stderr)
            return
    claims = verify_attestation(AWS_DOCUMENT.read_bytes(), at=AWS_DOCUMENT_TIME)
    assert claims.nonce is not None
    nonce = claims.nonce.hex()
    pcrs = {f"pcr{n}": claims.pcrs[n].hex() for n in range(3)}
    keywords = {"pcrs": pcrs, "at": AWS_DOCUMENT_TIME, "nonce": nonce}
    facts: Facts = {"url": str(AWS_DOCUMENT), "workload": "", "keywords": keywords}
    clock = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME": f"{datetime.fromtimestamp(AWS_DOCUMENT_TIME, UTC):@%Y-%m-%d %H:%M:%S}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "TZ": "UTC",
    }
    reference = Reference(
        ReferenceClient(programs, env=clock),
        str(AWS_DOCUMENT),
        "--production",
        *pinned(facts),
        *("--nonce", nonce),
    )
    with workers(facts, "verify", wheel=plan.wheel) as made:
        own = {f"verify_attestation{build}": made[f"verify{build}"] for build in builds(plan)}
        bench.compare(
            DOCUMENT,
            "verify",
            {"reference": reference, **own},
            {"p50": P50, "CPU": CPU},
            do="verify",
            count=100,
            warmup=5,
        )


def importing(bench: Bench, plan: Plan) -> None:
    nowhere: Facts = {"url": "", "workload": "", "keywords": {}}
    made: Contenders = {"import httpx2": partial(fresh("import", nowhere), module="httpx2")}
    for build, wheel in builds(plan).items():
        once = fresh("import", nowhere, wheel=wheel)
        made[f"import enclavia{build}"] = partial(once, module="enclavia")
    for each in made.values():
        each(do="import")  # compiles what is imported
    bench.compare(
        "-",
        "import",
        made,
        {"": ("ms", lambda r: r["wall_s"] * 1e3), "CPU": ("ms", lambda r: r["cpu_s"] * 1e3)},
        base="import httpx2",
        rounds=max(5, bench.rounds),
        do="import",
    )


def serving_apps(bench: Bench) -> None:
    """What a test suite has: LocalEnclave with an app and the client in one process; beside it the
    same app, served with the same settings, and httpx2's client in one."""
    for name in ("asgi", "wsgi"):
        facts: Facts = {"url": "", "workload": name, "keywords": {}}
        with workers(facts, "app-direct", "app-httpx2", "app-client") as made:
            bench.compare(
                IN_PROCESS,
                f"GET, {name.upper()} app",
                {
                    "direct": made["app-direct"],
                    "httpx2, `EnclaveTransport`": made["app-httpx2"],
                    "client": made["app-client"],
                },
                {"p50": P50, "p99": P99, "CPU": CPU},
                base="direct",
                do="get",
                count=1000,
                warmup=100,
            )


@contextlib.contextmanager
def rust_peer(programs: Path, address: str) -> Iterator[Facts]:
    with Peer(programs, address, idle_seconds=IDLE_SECONDS, max_connections=CONNECTIONS) as peer:
        yield facts_of_peer(peer, address)
        print(f"{PEER}: {peer.stats()}", file=sys.stderr)


@contextlib.contextmanager
def local(address: str) -> Iterator[Facts]:
    with local_enclave(address, "debug") as enclave:
        yield facts_of(enclave, address)


def beside_the_reference(bench: Bench, plan: Plan) -> None:
    programs = build_programs()
    program = ReferenceClient(programs, timeout=REFERENCE_SECONDS)
    with Workload() as workload:
        address = workload.address
        for server, started in ((PEER, rust_peer(programs, address)), (LOCAL, local(address))):
            if server in plan.servers and plan.wants(*ON_SERVERS):
                with started as facts:
                    reference = Reference(program, facts["url"], *pinned(facts))
                    on_server(bench, server, facts, reference, plan)
        if plan.wants("production"):
            connecting_in_production(bench, programs, address, plan)
    if plan.wants("document"):
        verifying(bench, programs, plan)


def run_all(bench: Bench, plan: Plan) -> None:
    if plan.wants(*ON_SERVERS, "production", "document"):
        beside_the_reference(bench, plan)
    if plan.wants("apps"):
        serving_apps(bench)
    if plan.wants("import"):
        importing(bench, plan)


def wheel_file(text: str) -> Wheel:
    try:
        return unpack_wheel(Path(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def words(known: Any) -> Any:
    def split(text: str) -> list[str]:
        found = [word for word in text.split(",") if word]
        for word in found:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r}: expected some of {', '.join(known)}")
        return found

    return split


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five minutes, smaller bodies")
    parser.add_argument("--only", type=words(GROUPS), help=", ".join(GROUPS))
    parser.add_argument("--on", type=words(SERVERS), help=", ".join(SERVERS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--wheel", type=wheel_file, metavar="FILE", help="measured beside the rest")
    asked = parser.parse_args()

    plan = Plan(
        groups=asked.only or list(GROUPS),
        servers=[SERVERS[word] for word in asked.on or SERVERS],
        large=(32 if asked.quick else 256) * MIB,
        larger=(256 if asked.quick else 1024) * MIB,
        large_rounds=asked.rounds or 3,
        wheel=asked.wheel,
    )
    bench = Bench(asked.rounds or (3 if asked.quick else 5), 0.3 if asked.quick else 1.0)
    run_all(bench, plan)
    reached = targets(size_name(plan.large), size_name(plan.larger))
    if plan.wheel is not None:
        reached += wheel_targets(size_name(plan.large))
        print(f"the wheel: {plan.wheel.shown}")
    print("\n" + for_terminal(bench, reached))
    out = asked.out or (None if asked.only or asked.on else ROOT / "docs")
    if out is not None:  # a part is no table for everybody
        out.mkdir(parents=True, exist_ok=True)
        shown = None if plan.wheel is None else plan.wheel.shown
        write(bench, reached, out / "benchmarks.md", "--quick" if asked.quick else "", shown)
        plot(bench, reached, out / "benchmarks.png")


if __name__ == "__main__":
    main()
