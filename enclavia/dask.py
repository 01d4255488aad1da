"""The enclave for `Dask <https://docs.dask.org>`_: one client for each worker, or one channel for
each machine.

Needs ``pip install 'enclavia[dask]'``, on the workers too.

>>> plugin = EnclavePlugin(url, pcrs=pcrs, per="node")
>>> cluster.register_plugin(plugin)
>>> score = lambda row: plugin.client().post("/score", json=row).json()
>>> answers = cluster.gather(cluster.map(score, rows))
>>> plugin.check(cluster)
"""

# Decides when a worker's client is made and closed. Calls: _arguments, _channel, _client, _errors,
# _fleet. Locks: none.

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from typing import TYPE_CHECKING, Any, Unpack

import httpx2

from ._arguments import timeout as checked_timeout
from ._channel.options import inserted, takes
from ._client.client import Client
from ._errors import StateError
from ._fleet.fleet import Fleet
from ._fleet.options import FLEET_DEFAULTS, FleetOptions
from ._fleet.report import FleetReport, WorkerReport, usable

try:
    import distributed
    from distributed import WorkerPlugin
except ImportError as error:
    raise ImportError(
        "enclavia.dask needs dask.distributed, which is not installed: "
        "pip install 'enclavia[dask]'",
        name=error.name,
    ) from None

if TYPE_CHECKING:
    from distributed import Worker

__all__ = ["EnclavePlugin", "client"]

_NAME = "enclavia"


class _Options(FleetOptions, total=False):
    name: str


class EnclavePlugin(Fleet, WorkerPlugin):
    """A ``WorkerPlugin`` that gives each worker a :class:`enclavia.Client`, verified when the
    worker gets the plugin and closed when the worker or the plugin ends.

    Takes a client's keywords (``max_channels`` is 1 unless given), and:

    per: ``"worker"``: each worker process has a channel of its own. ``"node"``: the workers of a
        machine share one, by a forwarder that is found there or started.
    name: the plugin's, for Dask and for :func:`client`.
    """

    @takes(_Options, inserted(FLEET_DEFAULTS, "pcrs", {"name": _NAME}))
    def __init__(self, url: str | httpx2.URL, **options: Unpack[_Options]) -> None:
        given = dict(options)
        name = given.pop("name", _NAME)
        if not isinstance(name, str):
            raise TypeError(f"name: expected text, got {type(name).__name__}")
        if not name:
            raise ValueError("name: expected the name of a plugin, got an empty text")
        super().__init__(url, given)
        self.name = name

    async def setup(self, worker: Worker) -> None:
        """Dask calls this where a worker gets the plugin; connects and verifies. What it raises,
        ``register_plugin`` raises."""
        await asyncio.to_thread(self._member.retain)
        self._tell(worker)

    async def teardown(self, worker: Worker) -> None:
        """Dask calls this where a worker, or the plugin, ends."""
        try:
            self._tell(worker)
        finally:
            await asyncio.to_thread(self._member.release)

    def check(self, cluster: distributed.Client, timeout: float | None = 30.0) -> FleetReport:
        """Has every worker of the cluster verify its channels again, and compares what they saw.

        ``timeout``: seconds for each document, None for no limit. Raises
        :class:`enclavia.FleetMismatch` where two saw different identities, or one was not verified
        or not reached. Workers that have gone are in the report's ``gone``, with what they had seen
        when they got the plugin, were checked last, and were closed.
        """
        if not isinstance(cluster, distributed.Client):
            raise TypeError(f"cluster: expected a distributed.Client, got {type(cluster).__name__}")
        if cluster.asynchronous:
            raise TypeError("cluster: expected a blocking distributed.Client, got an async one")
        seconds = checked_timeout("timeout", timeout)
        said = cluster.run(_worker_report, self, seconds, on_error="return")
        told = cluster.get_events(self._topic)
        reports = [
            WorkerReport(name, "", 0, error=f"{type(each).__name__}: {each}")
            if isinstance(each, BaseException)
            else dataclasses.replace(usable(each), worker=name)  # by the name that Dask asked it by
            for name, each in said.items()
        ]
        failed = {each.worker for each in reports if each.error is not None}
        earlier = [_unpickled(event) for _, event in told]
        return self._report_of(reports, [each for each in earlier if each.worker not in failed])

    @property
    def _topic(self) -> str:
        """Of the cluster's events, which the scheduler keeps also of workers that were killed: what
        each worker reports when it may be the last time."""
        return f"enclavia-fleet-{self._settings.name}"

    def _tell(self, worker: Worker) -> None:
        worker.log_event(self._topic, pickle.dumps(self._seen(worker.address)))


async def _worker_report(
    plugin: EnclavePlugin, timeout: float | None, dask_worker: Worker
) -> WorkerReport:
    # In a thread: what waits here would hold up the worker's event loop.
    report = await asyncio.to_thread(plugin.report, dask_worker.address, timeout)
    plugin._tell(dask_worker)
    return report


def _unpickled(event: Any) -> WorkerReport:  # noqa: ANN401 - of a topic that anybody may write to
    try:
        reported = pickle.loads(event)  # noqa: S301 - as cluster.run does
    except Exception as error:  # whatever unpickling meets, of another version of a class too
        return WorkerReport("unknown", "", 0, error=f"{type(error).__name__}: {error}")
    return usable(reported)


def client(name: str = _NAME) -> Client:
    """In a task: the client that the plugin of that name gave the task's worker. Raises
    :class:`enclavia.StateError` outside of a task, or where the worker has no such plugin."""
    try:
        plugin = distributed.get_worker().plugins.get(name)
    except ValueError:
        raise StateError("expected to run in a task of Dask, got a call outside of one") from None
    if not isinstance(plugin, EnclavePlugin):
        raise StateError(
            f"expected a worker with an EnclavePlugin named {name!r}, got one without: "
            "cluster.register_plugin(EnclavePlugin(url, pcrs=…))"
        )
    return plugin.client()
