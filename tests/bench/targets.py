"""What the package is to reach, as ratios within one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from .figures import Bench, significant, spread
from .parties import in_wheel

PEER = "Rust peer"
LOCAL = "LocalEnclave"
IN_PROCESS = "LocalEnclave in the client's process"
PRODUCTION = "LocalEnclave, production"
DOCUMENT = "a document of AWS's"
REFERENCE = "reference"

Measure = Callable[[Bench], list[float]]


@dataclass(frozen=True)
class Target:
    what: str
    measure: Measure
    bound: float
    goal: float | None = None
    most: bool = True
    """At most the bound; else at least."""
    unit: str = ""

    def reaches(self, value: float, bound: float) -> bool:
        return value <= bound if self.most else value >= bound

    def bounds(self) -> str:
        text = f"at {'most' if self.most else 'least'} {self.quantity(self.bound)}"
        return text if self.goal is None else f"{text} (goal {self.quantity(self.goal)})"

    def quantity(self, value: float) -> str:
        return f"{significant(value)} {self.unit}".rstrip()

    def verdict(self, values: list[float]) -> str:
        value = statistics.median(values)
        if not self.reaches(value, self.bound):
            return "no"
        return "yes, and the goal" if self.goal and self.reaches(value, self.goal) else "yes"

    def cells(self, values: list[float]) -> list[str]:
        measured = f"{spread(values)} {self.unit}".rstrip()
        return [self.what, measured, self.bounds(), self.verdict(values)]


Key = tuple[str, str, str]


def value(key: Key) -> Measure:
    return lambda bench: bench.values(*key)


def paired(key: Key, other: Key, of: Callable[[float, float], float]) -> Measure:
    """Round by round."""
    return lambda bench: [
        of(a, b) for a, b in zip(bench.values(*key), bench.values(*other), strict=False)
    ]


def ratio(key: Key, other: Key) -> Measure:
    return paired(key, other, lambda a, b: a / b)


def difference(key: Key, other: Key) -> Measure:
    return paired(key, other, lambda a, b: a - b)


def against(server: str, what: str, contender: str, base: str = REFERENCE) -> Measure:
    return ratio((server, what, contender), (server, what, base))


def wheel_targets(large: str) -> list[Target]:
    """What the wheel is to reach, which carries a newer OpenSSL than most systems have: beside the
    reference, and beside the build from source."""
    get, connect, first = "GET one by one, p50", "connect, p50", "first connect of a process, p50"
    beside_reference = [
        (f"{way} of {large}, `Client.stream`, {PEER}: CPU per MB", PEER, f"{way} {large}, CPU",
         "client", 1 / 28)
        for way in ("download", "upload")
    ]  # fmt: skip
    beside_reference += [
        (f"GET, p50, `Client`, {PEER}", PEER, get, "client", 0.85),
        (f"GET, p50, a kept `Channel` stream, {PEER}", PEER, get, "stream", 0.6),
        ("production connect, the first of a process", PRODUCTION, first, "client", 0.9),
        ("production connect, a chain not seen before", PRODUCTION, connect, "client, new chain",
         0.7),
        ("production connect, again", PRODUCTION, connect, "client, again", 0.25),
    ]  # fmt: skip
    found = []
    for what, server, measured, contender, bound in beside_reference:
        wheel = in_wheel(contender)
        found.append(
            Target(
                f"the wheel: {what}: to the reference's", against(server, measured, wheel), bound
            )
        )
        found.append(
            Target(
                f"the wheel: {what}: to the build's from source",
                against(server, measured, wheel, contender),
                1.05,
            )
        )
    enclavia = ("-", "import", in_wheel("import enclavia"))
    found.append(
        Target(
            "the wheel: `import enclavia` beyond `import httpx2`",
            difference(enclavia, ("-", "import", "import httpx2")),
            10,
            unit="ms",
        )
    )
    return found


def targets(large: str, larger: str) -> list[Target]:
    """``large``: the size that is compared with the reference's; ``larger``: ours alone."""
    found: list[Target] = []
    for way in ("download", "upload"):
        found.append(
            Target(
                f"{way} of {large}, `Client.stream`, {PEER}: CPU per MB to the reference's",
                against(PEER, f"{way} {large}, CPU", "client"),
                1 / 20,
                1 / 30,
            )
        )
    found += [
        Target(
            f"upload of {size}, `Client`, {PEER}: CPU per MB to the reference's",
            against(PEER, f"upload {size}, CPU", "client"),
            1 / 25,
        )
        for size in ("8 MiB", "32 MiB")
        if size != large
    ]
    for way in ("download", "upload"):
        found.append(
            Target(
                f"{way} of {large}, `Client.stream`, {LOCAL}",
                value((LOCAL, f"{way} {large}", "client")),
                150,
                300,
                most=False,
                unit="MB/s",
            )
        )
    get = "GET one by one, p50"
    found += [
        Target(
            f"GET, p50, `Client`, {PEER}: to the reference's",
            against(PEER, get, "client"),
            0.9,
            0.8,
        ),
        Target(
            f"GET, p50, a kept `Channel` stream, {PEER}: to the reference's",
            against(PEER, get, "stream"),
            0.7,
            0.6,
        ),
    ]
    sixteen, sixty_four = "requests/s, 16 callers", "requests/s, 64 callers"
    for callers, contender, base, bound, text in (
        (sixteen, "client", REFERENCE, 0.5, "16 threads of `Client`, {}: to the reference's"),
        (sixteen, "client", "direct", 2, "16 threads of `Client`, {}: to httpx2's with no tunnel"),
        (sixty_four, "async", REFERENCE, 0.6, "64 tasks of `AsyncClient`, {}: to the reference's"),
        (
            sixteen,
            "stream",
            REFERENCE,
            0.8,
            "16 threads of `Channel` streams, {}: to the reference's",
        ),
    ):
        found.append(
            Target(
                "requests/s, " + text.format(PEER),
                against(PEER, callers, contender, base),
                bound,
                most=False,
            )
        )
    connect = "connect, p50"
    found += [
        Target(
            "production connect, a chain not seen before: to the reference's",
            against(PRODUCTION, connect, "client, new chain"),
            0.7,
        ),
        Target(
            "production connect, the first of a process: to the reference's",
            against(PRODUCTION, "first connect of a process, p50", "client"),
            0.7,
        ),
        Target(
            "production connect, again: to the reference's",
            against(PRODUCTION, connect, "client, again"),
            0.25,
        ),
        Target(
            "`import enclavia` beyond `import httpx2`",
            difference(("-", "import", "import enclavia"), ("-", "import", "import httpx2")),
            10,
            unit="ms",
        ),
        Target(
            f"peak memory above idle, download of {larger}, `Client`",
            value((LOCAL, f"peak memory above idle, download {larger}", "client")),
            16,
            unit="MiB",
        ),
    ]
    for name in ("ASGI", "WSGI"):
        for contender in ("httpx2, `EnclaveTransport`", "client"):
            found.append(
                Target(
                    f"GET, p50, {contender}, LocalEnclave with {name} app: to httpx2's and a "
                    "server with no tunnel",
                    against(IN_PROCESS, f"GET, {name} app, p50", contender, "direct"),
                    1.5,
                )
            )
    for contender, bound, text in (
        ("via", 1.3, "`Client` with `via=`"),
        ("http-raw", 1.6, "HTTP by hand to its http way"),
    ):
        found.append(
            Target(
                f"GET, p50, by way of a forwarder, {text}, {LOCAL}: to `Client`'s own channel",
                against(LOCAL, "by way of a forwarder, GET one by one, p50", contender, "client"),
                bound,
            )
        )
    late = "a thread goes on late, one process downloads and one computes, beside, p99"
    found.append(
        Target(
            f"pause of a thread beside a download, p99, `Client`, {LOCAL}: to that beside SHA-256 "
            "in another process at the same time",
            against(LOCAL, late, "a download, `Client`", "SHA-256"),
            1,
        )
    )
    late = "a thread goes on late, beside, p99"
    found.append(
        Target(
            f"pause of a thread beside a download, p99, `Client`, {LOCAL}: to that beside SHA-256 "
            "with no download anywhere",
            against(LOCAL, late, "a download, `Client`", "SHA-256"),
            1,
        )
    )
    found.append(
        Target(
            f"pause of a thread beside a download, p99, `Client`, {LOCAL}: to that of a thread in "
            "another process beside the same download",
            against(LOCAL, late, "a download, `Client`", "a download, from another process"),
            1.1,
        )
    )
    for way in ("download", "upload"):
        key = f"{way}, `Client`, CPU per MB"
        found.append(
            Target(
                f"{way}, `Client`, {LOCAL}: CPU per MB at {larger} to that at 1 MiB",
                against(LOCAL, key, larger, "1 MiB"),
                1.1,
            )
        )
    for kind, callers in (("`Client`", "threads"), ("`AsyncClient`", "tasks")):
        key = f"GET, {kind}, time each"
        found.append(
            Target(
                f"GET, {kind}, {PEER}: time each at 64 {callers} to that at 1",
                against(PEER, key, "64", "1"),
                1.1,
            )
        )
    found.append(
        Target(
            f"peak memory above idle, `Client`: download of {larger} beyond one of 64 MiB",
            difference(
                (LOCAL, f"peak memory above idle, download {larger}", "client"),
                (LOCAL, "peak memory above idle, download 64 MiB", "client"),
            ),
            1,
            unit="MiB",
        )
    )
    return found
