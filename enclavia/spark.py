"""The enclave for `Spark <https://spark.apache.org>`_: one client for each Python worker, or one
channel for each machine.

Needs ``pip install 'enclavia[spark]'``, on the executors too. For classic sessions; those of Spark
Connect have no SparkContext.

>>> fleet = EnclaveFleet(spark.sparkContext, url, pcrs=pcrs, per="node")
>>> def score(client, rows):
...     for row in rows:
...         yield client.post("/score", json=row).json()
>>> answers = spark.sparkContext.parallelize(rows).mapPartitions(fleet.partitions(score)).collect()
>>> fleet.check()
"""

# Decides when a partition reports what its worker saw. Calls: _channel, _client, _fleet. Locks:
# none.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, Unpack

import httpx2

from ._channel.options import takes
from ._client.client import Client
from ._fleet.fleet import Fleet
from ._fleet.options import FLEET_DEFAULTS, FleetOptions
from ._fleet.report import FleetReport, WorkerReport, merged

try:
    from pyspark import AccumulatorParam, SparkContext
except ImportError as error:
    raise ImportError(
        "enclavia.spark needs pyspark, which is not installed: pip install 'enclavia[spark]'",
        name=error.name,
    ) from None

__all__ = ["EnclaveFleet"]

T = TypeVar("T")
R = TypeVar("R")


class _Reports(AccumulatorParam[list[WorkerReport]]):
    def zero(self, value: list[WorkerReport]) -> list[WorkerReport]:
        return []

    def addInPlace(
        self, value1: list[WorkerReport], value2: list[WorkerReport]
    ) -> list[WorkerReport]:
        return merged([*value1, *value2])


class EnclaveFleet(Fleet):
    """Gives each Python worker of a Spark job a :class:`enclavia.Client`, made with its first
    partition, kept for the following ones, and closed with the worker.

    Made by the driver. Takes a client's keywords (``max_channels`` is 1 unless given), and:

    context: the job's ``SparkContext``.
    per: ``"worker"``: each Python worker has a channel of its own. ``"node"``: those of a machine
        share one, by a forwarder that is found there or started.
    """

    @takes(FleetOptions, FLEET_DEFAULTS)
    def __init__(
        self, context: SparkContext, url: str | httpx2.URL, **options: Unpack[FleetOptions]
    ) -> None:
        if not isinstance(context, SparkContext):
            raise TypeError(f"context: expected a SparkContext, got {type(context).__name__}")
        super().__init__(url, options)
        self._seen_by = context.accumulator([], _Reports())

    def partitions(
        self, function: Callable[[Client, Iterator[T]], Iterable[R]]
    ) -> Callable[[Iterable[T]], Iterator[R]]:
        """``function(client, rows)`` for each partition, for ``RDD.mapPartitions`` (and
        ``DataFrame.mapInPandas`` and ``mapInArrow``, whose rows are whole batches).

        The enclave is verified before the first row is taken. What the worker has seen is reported
        with the partition's end, so that a partition that fails, which Spark runs again, reports
        nothing.
        """
        self._expect_callable(function)

        def partition(rows: Iterable[T]) -> Iterator[R]:
            client = self.client()
            try:
                yield from function(client, iter(rows))
            finally:
                self._seen_by.add([self._seen()])

        return partition

    def check(self) -> FleetReport:
        """Compares what the workers of all partitions that have ended so far saw.

        Raises :class:`enclavia.FleetMismatch` where two saw different identities, one was not
        verified, or no partition has ended yet.
        """
        return self._report_of(self._seen_by.value)
