"""What a forwarder counts, and how Prometheus is told.

Decides nothing. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .libraries import METRICS, load

__all__ = ["Counters", "exposition"]


class Counters:
    """Changed in the forwarder's own thread only."""

    def __init__(self) -> None:
        self.accepted = 0
        self.refused = 0
        self.failed = 0
        self.active = 0
        self.bytes_to_enclave = 0
        self.bytes_to_clients = 0
        self.http_requests = 0
        self.http_refused = 0
        self.out_of_descriptors = 0
        self.reloads = 0


class _Metric(NamedTuple):
    name: str
    text: str
    counter: bool
    value: float


def exposition(measure: Callable[[], list[tuple[str, str, bool, float]]]) -> tuple[bytes, str]:
    """The text of all metrics, and its media type."""
    prometheus: Any = load(METRICS)
    core: Any = load(f"{METRICS}.core")

    class Collector:
        def collect(self) -> Iterator[Any]:
            for metric in map(_Metric._make, measure()):
                family = core.CounterMetricFamily if metric.counter else core.GaugeMetricFamily
                yield family(f"enclavia_forwarder_{metric.name}", metric.text, value=metric.value)

    registry = prometheus.CollectorRegistry()
    registry.register(Collector())
    return prometheus.generate_latest(registry), prometheus.CONTENT_TYPE_LATEST
