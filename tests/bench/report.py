"""The tables and the picture."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import Any

from .figures import MORE_IS_BETTER, Bench, Series
from .targets import PEER, Target

NOTES = """\
- `client`, `async`: `enclavia.Client` and `AsyncClient`; `stream`: HTTP by hand over a stream of
  `enclavia.Channel` that is kept open.
- `reference`: the published Rust client, a program on its crate. A GET is its one-shot request, for
  which the enclave opens a connection to the workload each time; that is how this client does
  requests. A download or an upload is one stream of it (`Client::open_stream`), read in blocks of
  64 KiB that are dropped, written in records of 16 KiB: what a user of it would do for a large
  body.
- `plain`: websockets, cryptography and cbor2 in Python, a stream kept open; it verifies nothing.
  `direct`, `direct-async`: httpx2 to the workload, with no tunnel.
- `sockets`: HTTP by hand on connections to the workload that are kept open, one thread for all of
  them; `sockets-each`: the same with a connection for each request, which is what the workload sees
  of the published client. That is what the workload gives (an HTTP server of some 100 lines on
  uvloop, so that it is not what is measured).
- *Rust peer*: the published crates' server side in debug mode. *LocalEnclave*: the one of this
  package, in a process of its own. Both have the same workload behind them, a process of its own
  too.
- Every client is in a process of its own. It is started, imported, connected and warmed up before
  its clock and its CPU are read, which it reads itself. CPU is user and system time of the client's
  process, all threads of it.
- Callers are threads of `client`, `stream` and `direct`, tasks of the others.
- *Production connect*: all connect to one LocalEnclave in production mode, whose chain is as long
  as AWS's (root, three intermediates, leaf). The published client trusts AWS's root alone, which is
  compiled in; what is measured is a copy of its program in which the bytes of that certificate are
  the test root's, and nothing else differs. It verifies every link each time. `new chain`: before
  each connect the enclave gets certificates that the client has not seen, below the same root;
  `again`: the links are known. The first of a process is what comes after its start and imports.
- *LocalEnclave in the client's process*: what a test suite has, an ASGI app (uvicorn on asyncio's
  own loop) or a WSGI app (waitress) in a LocalEnclave, and the client, all in one process; `direct`
  is httpx2's client in one process with the same app on the same server with the same settings.
  The CPU is that of client and server together.
- *By way of a forwarder*: `via` is `Client` with `via=`, `http` is httpx2's client at the http
  socket of the same forwarder, and `http-raw` HTTP by hand there, so that httpx2's own cost is not
  what is measured. The forwarder is a process of its own with one channel; `client` has a channel
  of its own. The forwarder's CPU is beside that of the client's process, for the same
  requests or bytes.
- *A document of AWS's*: the same document verified by both with no connection around it, as of its
  own time and against AWS's root: by the unchanged program, through the function that its
  connecting calls, with a clock that libfaketime sets back; by `enclavia.verify_attestation`, which
  keeps no links. Left out where the document, which is not a part of the project, or libfaketime is
  not there.
"""


def rows_of(bench: Bench, wanted: list[Target]) -> list[list[str]]:
    found = ((target, target.measure(bench)) for target in wanted)
    return [target.cells(values) for target, values in found if values]


HEAD = ["target", "measured", "to reach", "met"]


def for_terminal(bench: Bench, wanted: list[Target]) -> str:
    rows = [HEAD, *rows_of(bench, wanted)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def as_table(head: list[str], rows: list[list[str]], right: int = 0) -> list[str]:
    rule = ["---" if at < right else "---:" for at in range(len(head))]
    return ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]


def write(
    bench: Bench, wanted: list[Target], path: Path, arguments: str, wheel: str | None = None
) -> None:
    lines = [
        "# Benchmarks",
        "",
        f"`make bench{arguments and f' OPTIONS={arguments}'}` wrote this: {bench.rounds} rounds "
        "(of the large bodies 3) in which the contenders took turns, on "
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, all on "
        "loopback. A ratio is made within a round; a value is the median of the rounds, with the "
        "least and the greatest where there is room.",
        "",
        "## The targets",
        "",
        *as_table(HEAD, rows_of(bench, wanted), right=4),
        "",
        "![The targets, and the cost beside the published client](benchmarks.png)",
        "",
        "## What is compared",
        "",
        NOTES,
        *([f"- `(wheel)`: the same client of {wheel}.", ""] if wheel else []),
        *(
            [f"Measured again, for the connection was lost: {'; '.join(bench.lost)}.", ""]
            * bool(bench.lost)
        ),
        "## All figures",
        "",
        "The ratio is to the published client's (else to the first of its group).",
        "",
        *as_table(
            ["server", "what", "contender", "median", "ratio"],
            [row.cells() for row in bench.series.values()],
            right=3,
        ),
    ]
    path.write_text("\n".join(lines) + "\n")


def plot(bench: Bench, wanted: list[Target], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    reached = [(target, values) for target in wanted if (values := target.measure(bench))]
    costs = costs_of(bench)
    if not reached or not costs:
        return
    figure, (above, below) = pyplot.subplots(
        2,
        figsize=(10, 2.2 + 0.27 * (len(reached) + len(costs))),
        height_ratios=[len(reached) + 1, len(costs) + 1],
        layout="constrained",
    )
    plot_targets(above, reached)
    plot_costs(below, costs)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def line(axes: Any, at: float, values: list[float], colour: str, label: str | None = None) -> None:
    axes.plot([min(values), max(values)], [at, at], color=colour, linewidth=1.6, alpha=0.6)
    axes.plot([statistics.median(values)], [at], "o", color=colour, markersize=5, label=label)


LEAST_SHOWN = 0.1


def share(target: Target, value: float) -> float:
    """Of what is allowed: below 1 is met, whichever way is better."""
    found = value / target.bound if target.most else target.bound / value
    return min(max(found, LEAST_SHOWN), 1 / LEAST_SHOWN)


def plot_targets(axes: Any, reached: list[tuple[Target, list[float]]]) -> None:
    for at, (target, values) in enumerate(reached):
        met = target.verdict(values) != "no"
        line(axes, at, [share(target, v) for v in values], "tab:green" if met else "tab:red")
        if target.goal is not None:
            axes.plot([share(target, target.goal)], [at], "|", color="black", markersize=10)
        measured = target.quantity(statistics.median(values))
        axes.annotate(
            measured,
            (1.01, at),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            verticalalignment="center",
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(LEAST_SHOWN / 1.1, 1.1 / LEAST_SHOWN)
    finish(axes, [target.what.replace("`", "") for target, _ in reached])
    axes.set_title(
        "Targets, as a share of what may be: below 1 is met (bar: all rounds; tick: the goal)",
        fontsize=9,
    )


COLOURS = {
    "client": "tab:blue",
    "async": "tab:cyan",
    "stream": "tab:orange",
    "plain": "tab:purple",
    "direct": "tab:grey",
}


def costs_of(bench: Bench) -> dict[str, list[Series]]:
    """What the Rust peer was asked for, and who was compared in it."""
    found: dict[str, list[Series]] = {}
    for row in bench.series.values():
        shown = row.server == PEER and "p99" not in row.what and " each" not in row.what
        if shown and row.ratios and row.contender in COLOURS:
            found.setdefault(row.what, []).append(row)
    return found


def plot_costs(axes: Any, costs: dict[str, list[Series]]) -> None:
    labelled: set[str] = set()
    for at, rows in enumerate(costs.values()):
        for row, shift in zip(rows, (-0.3, -0.15, 0, 0.15, 0.3), strict=False):
            ratios = [1 / r for r in row.ratios] if row.unit in MORE_IS_BETTER else row.ratios
            label = None if row.contender in labelled else row.contender
            labelled.add(row.contender)
            line(axes, at + shift, ratios, COLOURS[row.contender], label)
    axes.axvline(1, color="black", linewidth=1)
    finish(axes, list(costs))
    axes.legend(fontsize=7, loc="best")
    axes.set_title(
        f"{PEER}: time or CPU for the same work, to the published client's (1)", fontsize=9
    )


def finish(axes: Any, names: list[str]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for at in range(0, len(names), 2):
        axes.axhspan(at - 0.5, at + 0.5, color="black", alpha=0.04, linewidth=0)
    axes.grid(axis="x", which="both", alpha=0.2)
