"""``enclavia.dask`` on a real cluster of this machine. FLEET_ROWS: how many rows a job has."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_app import ROWS, keywords, small_enclave
from support import HANG, eventually

import enclavia
from enclavia import FleetMismatch, Pcrs
from enclavia.testing import LocalEnclave

distributed = pytest.importorskip(
    "distributed", reason="dask.distributed is not installed (pip install --group fleet)"
)
dask = pytest.importorskip("enclavia.dask")

OTHER = Pcrs(pcr0=b"\x77" * 48, pcr1=b"\x77" * 48, pcr2=b"\x77" * 48)
WORKERS = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=2, dashboard_address=None, host="127.0.0.1"
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.fixture
def enclave() -> Iterator[LocalEnclave]:
    with small_enclave() as enclave:
        yield enclave


@pytest.fixture
def registered(cluster: Any) -> Iterator[Any]:
    """Registers a plugin, and takes it away in the end."""
    names: list[str] = []

    def register(enclave: LocalEnclave, **options: Any) -> Any:
        plugin = dask.EnclavePlugin(enclave.url, **{**keywords(enclave), **options})
        names.append(plugin.name)
        cluster.register_plugin(plugin)
        return plugin

    yield register
    for name in names:
        cluster.unregister_worker_plugin(name)


def scores(cluster: Any, plugin: Any, rows: int = ROWS) -> None:
    def score(number: int) -> int:
        answer: dict[str, int] = plugin.client().post("/score", json={"id": number}).json()
        return answer["score"]

    found = cluster.gather(cluster.map(score, range(rows), pure=False))
    assert found == list(range(rows))


def test_each_worker_has_one_channel(cluster: Any, enclave: LocalEnclave, registered: Any) -> None:
    plugin = registered(enclave)
    assert enclave.stats()["connections_total"] == WORKERS  # verified before any task
    scores(cluster, plugin)
    report = plugin.check(cluster)
    assert enclave.stats()["connections_total"] == WORKERS
    assert len(report.workers) == report.channels == WORKERS
    assert {each.worker for each in report.workers} == set(cluster.scheduler_info()["workers"])
    assert len(report.identities) == 1 and report.consistent
    cluster.unregister_worker_plugin(plugin.name)
    eventually(lambda: enclave.stats()["connections_open"] == 0)
    cluster.register_plugin(plugin)


@pytest.mark.parametrize("asked", [False, True])
def test_a_machine_has_one_channel(
    asked: bool, cluster: Any, enclave: LocalEnclave, registered: Any
) -> None:
    """Pins of a function, too, which travels to the forwarder as it does to the workers."""
    pins = enclave.pcrs
    plugin = registered(enclave, per="node", pcrs=(lambda: pins) if asked else pins)
    scores(cluster, plugin)
    report = plugin.check(cluster)
    assert enclave.stats()["connections_total"] == 1
    assert len(report.workers) == WORKERS and report.channels == 1
    (via,) = {each.via for each in report.workers}
    assert via is not None
    cluster.unregister_worker_plugin(plugin.name)
    eventually(lambda: not os.path.exists(via.removeprefix("unix:")))
    eventually(lambda: enclave.stats()["connections_open"] == 0)
    cluster.register_plugin(plugin)


def test_a_task_finds_the_client_of_its_worker(
    cluster: Any, enclave: LocalEnclave, registered: Any
) -> None:
    registered(enclave, name="mine")

    def work(name: str) -> int:
        import enclavia.dask

        return enclavia.dask.client(name).post("/score", json={"id": 9}).status_code

    assert cluster.submit(work, "mine").result(timeout=HANG) == 200
    with pytest.raises(enclavia.StateError, match="without"):
        cluster.submit(work, "another").result(timeout=HANG)
    with pytest.raises(enclavia.StateError, match="in a task of Dask"):
        dask.client()


def test_a_worker_that_is_lost_is_replaced_by_one_that_verifies(
    cluster: Any, enclave: LocalEnclave, registered: Any
) -> None:
    plugin = registered(enclave)
    pids = cluster.run(os.getpid)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    eventually(lambda: len(set(cluster.run(os.getpid, on_error="ignore")) - set(pids)) == 1)
    cluster.wait_for_workers(WORKERS)
    scores(cluster, plugin, 50)
    report = plugin.check(cluster)
    assert len(report.workers) == WORKERS
    assert enclave.stats()["connections_total"] == WORKERS + 1
    (gone,) = report.gone
    assert gone.pid in pids.values() and gone.worker in pids
    assert gone.verified and gone.pid not in {each.pid for each in report.workers}


def test_an_enclave_of_another_image_keeps_the_plugin_from_being_registered(
    cluster: Any, enclave: LocalEnclave
) -> None:
    plugin = dask.EnclavePlugin(enclave.url, pcrs=OTHER, root=enclave.root)
    with pytest.raises(enclavia.PcrMismatch):
        cluster.register_plugin(plugin)
    cluster.unregister_worker_plugin(plugin.name)
    assert enclave.stats()["streams_total"] == 0


def lose_the_channel(plugin: Any) -> None:
    plugin._member.client().close()


def test_two_workers_that_saw_different_images_fail_the_job(
    cluster: Any, enclave: LocalEnclave, registered: Any
) -> None:
    plugin = registered(enclave, pcrs=[enclave.pcrs, OTHER])
    assert plugin.check(cluster).consistent
    enclave.set_identity(pcrs=OTHER)
    one = next(iter(cluster.scheduler_info()["workers"]))
    cluster.run(lose_the_channel, plugin, workers=[one])
    with pytest.raises(FleetMismatch, match="got 2") as met:
        plugin.check(cluster)
    report = met.value.report
    assert len(report.workers) == WORKERS and len(report.identities) == 2
    assert pickle.loads(pickle.dumps(met.value)).report == report


@pytest.mark.parametrize("event", [b"no pickle", None, pickle.dumps(5)])
def test_an_event_that_is_no_report_fails_the_job(
    cluster: Any, enclave: LocalEnclave, registered: Any, event: Any
) -> None:
    """Of a worker that has gone, perhaps, with another version of the package."""
    plugin = registered(enclave)
    cluster.log_event(plugin._topic, event)
    with pytest.raises(FleetMismatch, match="worker unknown, which has gone") as met:
        plugin.check(cluster)
    assert all(each.verified for each in met.value.report.workers)


def test_a_worker_that_cannot_verify_fails_the_job(
    cluster: Any, enclave: LocalEnclave, registered: Any
) -> None:
    plugin = registered(enclave)
    enclave.set_identity(pcrs=OTHER)
    with pytest.raises(FleetMismatch, match="PcrMismatch") as met:
        plugin.check(cluster)
    assert [each.verified for each in met.value.report.workers] == [False] * WORKERS


def test_arguments(cluster: Any, enclave: LocalEnclave) -> None:
    options = keywords(enclave)
    with pytest.raises(ValueError, match="per: expected 'worker' or 'node'"):
        dask.EnclavePlugin(enclave.url, per="thread", **options)
    with pytest.raises(TypeError, match="name: expected text, got int"):
        dask.EnclavePlugin(enclave.url, name=5, **options)
    with pytest.raises(ValueError, match="name: expected"):
        dask.EnclavePlugin(enclave.url, name="", **options)
    plugin = dask.EnclavePlugin(enclave.url, **options)
    with pytest.raises(TypeError, match=r"cluster: expected a distributed\.Client, got int"):
        plugin.check(5)
    with pytest.raises(ValueError, match="timeout: expected"):
        plugin.check(cluster, timeout=-1)
