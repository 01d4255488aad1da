"""Rounds in which the contenders take turns, and what comes of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .parties import Contender, Report

Figure = tuple[str, Callable[[Report], float]]

P50: Figure = ("us", lambda r: r["p50_us"])
P99: Figure = ("us", lambda r: r["p99_us"])
P999: Figure = ("us", lambda r: r["p999_us"])
CPU: Figure = ("us", lambda r: r["cpu_s"] / r["ok"] * 1e6)
RATE: Figure = ("/s", lambda r: r["ok"] / r["wall_s"])
SPEED: Figure = ("MB/s", lambda r: r["bytes"] / r["wall_s"] / 1e6)
CPU_MB: Figure = ("ms/MB", lambda r: r["cpu_s"] * 1e3 / (r["bytes"] / 1e6))
FORWARDER: Figure = ("us", lambda r: r.get("forwarder_cpu_s", 0.0) / r["ok"] * 1e6)
FORWARDER_MB: Figure = (
    "ms/MB", lambda r: r.get("forwarder_cpu_s", 0.0) * 1e3 / (r["bytes"] / 1e6),
)  # fmt: skip
GROWN: Figure = ("MiB", lambda r: r["grown"] / 2**20)

ATTEMPTS = 4

MORE_IS_BETTER = {"/s", "MB/s"}


def significant(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(values: list[float]) -> str:
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{significant(mid)} ({significant(low)} to {significant(high)})"


@dataclass(frozen=True)
class Series:
    """One figure of one contender: a value a round, and its ratio to the base's of that round."""

    server: str
    what: str
    contender: str
    unit: str
    values: list[float]
    ratios: list[float]

    def cells(self) -> list[str]:
        value = f"{significant(statistics.median(self.values))} {self.unit}"
        ratio = spread(self.ratios) if self.ratios else "-"
        return [self.server, self.what, self.contender, value, ratio]


class Bench:
    def __init__(self, rounds: int, scale: float) -> None:
        self.rounds = rounds
        self.scale = scale
        self.series: dict[tuple[str, str, str], Series] = {}
        self.lost: list[str] = []
        """What had to be measured again."""
        self._begun = time.monotonic()

    def _measure(self, title: str, contender: Contender, **command: object) -> Report:
        for _ in range(ATTEMPTS):
            report = contender(**command)
            why = report.get("failed") or ("connected again" if report.get("reconnects") else "")
            if not why:
                return report
            self.lost.append(f"{title}: {why}")
            print(f"again, {self.lost[-1]}", file=sys.stderr, flush=True)
        raise RuntimeError(f"failed {ATTEMPTS} times, {self.lost[-1]}")

    def compare(
        self,
        server: str,
        what: str,
        contenders: Mapping[str, Contender],
        figures: Mapping[str, Figure],
        *,
        base: str = "reference",
        count: int = 1,
        rounds: int | None = None,
        once: str = "",
        **command: object,
    ) -> None:
        """``once``: names that have a turn in the first round only, they take so long."""
        count = max(1, round(count * self.scale))
        reports: dict[str, list[Report]] = {name: [] for name in contenders}
        for turn in range(rounds or self.rounds):
            # Every other round backwards: nobody always comes after the same one.
            for name in list(contenders)[:: -1 if turn % 2 else 1]:
                if turn == 0 or name not in once.split():
                    title = f"{server}, {what}, {name}"
                    reports[name].append(
                        self._measure(title, contenders[name], count=count, **command)
                    )
        for label, (unit, of) in figures.items():
            values = {name: [of(report) for report in reports[name]] for name in contenders}
            title = f"{what}, {label}" if label else what
            for name, own in values.items():
                ratios: list[float] = []
                if base in values and name != base:
                    ratios = [a / b for a, b in zip(own, values[base], strict=False) if b]
                row = Series(server, title, name, unit, own, ratios)
                self.series[server, title, name] = row
                print(" | ".join(row.cells()), flush=True)
        print(f"  {time.monotonic() - self._begun:.0f} s", file=sys.stderr, flush=True)

    def values(self, server: str, what: str, contender: str) -> list[float]:
        """Empty where it was not measured."""
        found = self.series.get((server, what, contender))
        return found.values if found else []
