"""The enclave for `Ray <https://docs.ray.io>`_: one client for each worker process, or one channel
for each machine.

Needs ``pip install 'enclavia[ray]'``, on all nodes.

>>> fleet = EnclaveFleet(url, pcrs=pcrs, per="node")
>>> score = ray.remote(fleet.task(lambda row: fleet.client().post("/score", json=row).json()))
>>> answers = ray.get([score.remote(row) for row in rows])
>>> fleet.check()
"""

# Decides when a worker reports what it saw. Calls: _arguments, _channel, _client, _fleet. Locks:
# none.

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, Unpack

import httpx2

from ._arguments import timeout as checked_timeout
from ._channel.options import takes
from ._client.client import Client
from ._fleet.fleet import Fleet
from ._fleet.options import FLEET_DEFAULTS, FleetOptions
from ._fleet.report import FleetReport, WorkerReport, merged

try:
    import ray
    import ray.actor
    import ray.exceptions
except ImportError as error:
    raise ImportError(
        "enclavia.ray needs ray, which is not installed: pip install 'enclavia[ray]'",
        name=error.name,
    ) from None

__all__ = ["EnclaveFleet"]

P = ParamSpec("P")
R = TypeVar("R")


class _Collector:
    """An actor: keeps what the worker processes of a job reported, also of those that are gone."""

    def __init__(self) -> None:
        self._reports: list[WorkerReport] = []

    def add(self, report: WorkerReport) -> None:
        self._reports = merged([*self._reports, report])

    def reports(self) -> list[WorkerReport]:
        return self._reports


class EnclaveFleet(Fleet):
    """Gives each worker process of a Ray job a :class:`enclavia.Client`, made where a task or an
    actor first asks for it, and closed with the process.

    Made by the driver, after ``ray.init``; tasks and actors refer to it, and it travels with them.
    Takes a client's keywords (``max_channels`` is 1 unless given), and:

    per: ``"worker"``: each worker process has a channel of its own. ``"node"``: the processes of a
        machine share one, by a forwarder that is found there or started.
    """

    @takes(FleetOptions, FLEET_DEFAULTS)
    def __init__(self, url: str | httpx2.URL, **options: Unpack[FleetOptions]) -> None:
        super().__init__(url, options)
        self._collector: Any = ray.remote(num_cpus=0)(_Collector).remote()

    def client(self) -> Client:
        """In a task or an actor: the client of this process, for any number of its threads. When
        this process first asks for it, it is connected and verified, and what it saw is reported
        before this returns. It is closed with the process, so not by a task. Raises: Connecting,
        and what Ray raises where the job has ended."""
        made = super().client()
        if self._member.told == 0:
            self._tell()
        return made

    def task(self, function: Callable[P, R]) -> Callable[P, R]:
        """``function``, for ``ray.remote``. When it has ended, in whatever way, what its process
        has seen since the last time is reported: a channel that was lost and opened again may have
        led to another image, where the pins allow several."""

        self._expect_callable(function)

        @functools.wraps(function)
        def task(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            finally:
                self._tell()

        return task

    def check(self, actors: Iterable[Any] = (), timeout: float | None = 30.0) -> FleetReport:
        """Compares what all worker processes have reported so far, ended ones included. ``actors``
        (handles of Ray) verify their channels again first: an actor is asked in no other way.

        ``timeout``: seconds for each document, None for no limit. Raises
        :class:`enclavia.FleetMismatch` where two saw different identities, or one was not verified
        or not reached, or no process has reported anything.
        """
        seconds = checked_timeout("timeout", timeout)
        handles = list(actors)
        for actor in handles:
            if not isinstance(actor, ray.actor.ActorHandle):
                raise TypeError(f"actors: expected handles of Ray, got {type(actor).__name__}")
        asked = [
            (actor, actor.__ray_call__.remote(_worker_report, self, seconds)) for actor in handles
        ]
        reports = [_answer_of(actor, answer) for actor, answer in asked]
        reports += ray.get(self._collector.reports.remote())
        return self._report_of(reports)

    def _tell(self) -> None:
        member = self._member
        seen = len(member.seen())
        if seen > member.told:
            ray.get(self._collector.add.remote(self._seen(_worker())))
            member.told = seen


def _worker() -> str:
    context = ray.get_runtime_context()
    return str(context.get_worker_id())


def _worker_report(_: object, fleet: EnclaveFleet, timeout: float | None) -> WorkerReport:
    return fleet.report(_worker(), timeout)


def _answer_of(actor: object, answer: Any) -> WorkerReport:  # noqa: ANN401 - an ObjectRef
    try:
        report: WorkerReport = ray.get(answer)
    except ray.exceptions.RayError as error:
        return WorkerReport(str(actor), "", 0, error=f"{type(error).__name__}: {error}")
    return report
