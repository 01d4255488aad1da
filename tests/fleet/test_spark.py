"""``enclavia.spark`` on a real local Spark. FLEET_ROWS: how many rows a job has."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_app import ROWS, keywords, small_enclave
from repository import ROOT
from support import eventually

from enclavia import FleetMismatch, Pcrs
from enclavia.testing import LocalEnclave

pyspark = pytest.importorskip(
    "pyspark", reason="pyspark is not installed (pip install --group fleet)"
)
if shutil.which("java") is None:
    pytest.skip("pyspark needs java, which is not installed", allow_module_level=True)
fleets = pytest.importorskip("enclavia.spark")

# Workers cannot import this file.
pyspark.cloudpickle.register_pickle_by_value(sys.modules[__name__])

OTHER = Pcrs(pcr0=b"\x77" * 48, pcr1=b"\x77" * 48, pcr2=b"\x77" * 48)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from pyspark import SparkConf, SparkContext

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]))
        conf = SparkConf().setMaster("local[2]").setAppName("enclavia")
        conf.set("spark.ui.enabled", "false")
        conf.set("spark.local.dir", str(tmp_path_factory.mktemp("spark")))
        context = SparkContext(conf=conf)
        context.setLogLevel("OFF")
        yield context
        context.stop()


@pytest.fixture
def enclave() -> Iterator[LocalEnclave]:
    with small_enclave() as enclave:
        yield enclave


def fleet_of(context: Any, enclave: LocalEnclave, **options: Any) -> Any:
    return fleets.EnclaveFleet(context, enclave.url, **{**keywords(enclave), **options})


def score(client: Any, rows: Iterator[int]) -> Iterator[int]:
    for number in rows:
        yield client.post("/score", json={"id": number}).json()["score"]


def scores(context: Any, fleet: Any, rows: int = ROWS) -> None:
    data = context.parallelize(range(rows), 8)
    assert data.mapPartitions(fleet.partitions(score)).collect() == list(range(rows))


def test_each_worker_has_one_channel(context: Any, enclave: LocalEnclave) -> None:
    fleet = fleet_of(context, enclave)
    scores(context, fleet)
    report = fleet.check()
    assert report.consistent and len(report.identities) == 1
    assert 1 <= len(report.workers) <= 4
    assert enclave.stats()["connections_total"] == len(report.workers) == report.channels


def test_a_machine_has_one_channel(context: Any, enclave: LocalEnclave) -> None:
    pins = enclave.pcrs  # asked for by a function, which a forwarder is given as the workers are
    fleet = fleet_of(context, enclave, per="node", pcrs=lambda: pins)
    scores(context, fleet)
    report = fleet.check()
    assert enclave.stats()["connections_total"] == report.channels == 1
    (via,) = {each.via for each in report.workers}
    assert via is not None


def test_a_partition_whose_rest_is_not_taken_reports(context: Any, enclave: LocalEnclave) -> None:
    fleet = fleet_of(context, enclave)
    data = context.parallelize(range(1000), 2)
    assert data.mapPartitions(fleet.partitions(score)).take(1) == [0]
    assert fleet.check().consistent


def test_two_workers_that_saw_different_images_fail_the_job(
    context: Any, enclave: LocalEnclave
) -> None:
    fleet = fleet_of(context, enclave, pcrs=[enclave.pcrs, OTHER], retries={"POST"})
    scores(context, fleet, 20)
    assert fleet.check().consistent
    enclave.set_identity(pcrs=OTHER)
    enclave.drop_connections()
    scores(context, fleet, 20)
    with pytest.raises(FleetMismatch, match="got 2"):
        fleet.check()


def test_a_worker_that_cannot_verify_fails_the_job(context: Any, enclave: LocalEnclave) -> None:
    fleet = fleet_of(context, enclave, pcrs=OTHER)
    with pytest.raises(Exception, match="PcrMismatch"):
        scores(context, fleet, 20)
    assert enclave.stats()["streams_total"] == 0
    with pytest.raises(FleetMismatch, match="none that reported"):
        fleet.check()


def test_arguments(context: Any, enclave: LocalEnclave) -> None:
    with pytest.raises(TypeError, match="context: expected a SparkContext, got int"):
        fleets.EnclaveFleet(5, enclave.url, **keywords(enclave))
    with pytest.raises(ValueError, match="per: expected"):
        fleet_of(context, enclave, per="thread")
    with pytest.raises(TypeError, match="function: expected a callable, got int"):
        fleet_of(context, enclave).partitions(5)


def test_workers_close_with_the_job(context: Any, enclave: LocalEnclave) -> None:
    """Here Spark ends its workers when its context stops, so this is the last test."""
    fleet = fleet_of(context, enclave)
    scores(context, fleet, 20)
    context.stop()
    eventually(lambda: enclave.stats()["connections_open"] == 0)
