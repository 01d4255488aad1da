"""``enclavia.ray`` on a real Ray of this machine. FLEET_ROWS: how many rows a job has."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_app import ROWS, keywords, small_enclave
from support import eventually

import enclavia
from enclavia import FleetMismatch, Pcrs
from enclavia.testing import LocalEnclave

ray = pytest.importorskip("ray", reason="ray is not installed (pip install --group fleet)")
fleets = pytest.importorskip("enclavia.ray")

# Workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

OTHER = Pcrs(pcr0=b"\x77" * 48, pcr1=b"\x77" * 48, pcr2=b"\x77" * 48)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


@pytest.fixture
def enclave() -> Iterator[LocalEnclave]:
    with small_enclave() as enclave:
        yield enclave


def scoring(fleet: Any) -> Any:
    def score(numbers: list[int]) -> list[int]:
        client = fleet.client()
        return [client.post("/score", json={"id": n}).json()["score"] for n in numbers]

    return score


def scores(fleet: Any, rows: int = ROWS) -> None:
    task = ray.remote(fleet.task(scoring(fleet)))
    batch = max(1, rows // 50)
    batches = [list(range(n, min(rows, n + batch))) for n in range(0, rows, batch)]
    found = ray.get([task.remote(each) for each in batches])
    assert [n for each in found for n in each] == list(range(rows))


def test_each_worker_has_one_channel(enclave: LocalEnclave) -> None:
    fleet = fleets.EnclaveFleet(enclave.url, **keywords(enclave))
    scores(fleet)
    report = fleet.check()
    assert report.consistent and len(report.identities) == 1
    assert 1 <= len(report.workers) <= 4
    assert enclave.stats()["connections_total"] == len(report.workers) == report.channels


def test_a_machine_has_one_channel(enclave: LocalEnclave) -> None:
    pins = enclave.pcrs  # asked for by a function, which a forwarder is given as the workers are
    fleet = fleets.EnclaveFleet(
        enclave.url, per="node", **{**keywords(enclave), "pcrs": lambda: pins}
    )
    scores(fleet)
    report = fleet.check()
    assert enclave.stats()["connections_total"] == report.channels == 1
    (via,) = {each.via for each in report.workers}
    assert via is not None


class Scorer:
    def __init__(self, fleet: Any) -> None:
        self.client = fleet.client()

    def score(self, number: int) -> int:
        answer: dict[str, int] = self.client.post("/score", json={"id": number}).json()
        return answer["score"]

    def pid(self) -> int:
        return os.getpid()

    def lose(self) -> None:
        self.client.close()


def actors(fleet: Any, count: int) -> list[Any]:
    made = [ray.remote(num_cpus=0)(Scorer).remote(fleet) for _ in range(count)]
    assert ray.get([each.score.remote(n) for n, each in enumerate(made)]) == list(range(count))
    return made


def test_actors_verify_again(enclave: LocalEnclave) -> None:
    fleet = fleets.EnclaveFleet(enclave.url, **keywords(enclave))
    made = actors(fleet, 2)
    report = fleet.check(actors=made)
    assert len(report.workers) == 2
    assert all(len(each.attestations) == 2 for each in report.workers)
    assert enclave.stats()["connections_total"] == 2
    for each in made:
        ray.kill(each)
    eventually(lambda: enclave.stats()["connections_open"] == 0)


def test_an_actor_that_is_gone_fails_the_check(enclave: LocalEnclave) -> None:
    fleet = fleets.EnclaveFleet(enclave.url, **keywords(enclave))
    one, other = actors(fleet, 2)
    os.kill(ray.get(one.pid.remote()), signal.SIGKILL)
    with pytest.raises(FleetMismatch, match="ActorDiedError") as met:
        fleet.check(actors=[one, other])
    assert sum(not each.verified for each in met.value.report.workers) == 1
    assert fleet.check(actors=[other]).consistent
    ray.kill(other)


def test_two_workers_that_saw_different_images_fail_the_job(enclave: LocalEnclave) -> None:
    fleet = fleets.EnclaveFleet(
        enclave.url, pcrs=[enclave.pcrs, OTHER], root=enclave.root, retries={"POST"}
    )
    first = actors(fleet, 1)
    enclave.set_identity(pcrs=OTHER)
    second = actors(fleet, 1)
    with pytest.raises(FleetMismatch, match="got 2"):
        fleet.check()
    for each in (*first, *second):
        ray.kill(each)


def test_another_image_in_the_middle_of_a_task_is_reported(enclave: LocalEnclave) -> None:
    """By `task`, after it: the process asked for its client before."""
    fleet = fleets.EnclaveFleet(
        enclave.url, pcrs=[enclave.pcrs, OTHER], root=enclave.root, retries={"POST"}
    )
    task = ray.remote(fleet.task(scoring(fleet)))
    ray.get(task.remote([1]))
    assert fleet.check().consistent
    enclave.set_identity(pcrs=OTHER)
    enclave.drop_connections()
    # Whichever process takes it, one of the two images was seen before, and the other is now.
    ray.get([task.remote([n]) for n in range(4)])
    with pytest.raises(FleetMismatch, match="got 2"):
        fleet.check()


def test_a_worker_that_cannot_verify_has_the_error(enclave: LocalEnclave) -> None:
    fleet = fleets.EnclaveFleet(enclave.url, pcrs=OTHER, root=enclave.root)
    with pytest.raises(enclavia.PcrMismatch):
        ray.get(ray.remote(fleet.task(scoring(fleet))).remote([1]))
    assert enclave.stats()["streams_total"] == 0
    with pytest.raises(FleetMismatch, match="none that reported"):
        fleet.check()


def test_arguments(enclave: LocalEnclave) -> None:
    with pytest.raises(ValueError, match="per: expected 'worker' or 'node'"):
        fleets.EnclaveFleet(enclave.url, per="thread", **keywords(enclave))
    fleet = fleets.EnclaveFleet(enclave.url, **keywords(enclave))
    with pytest.raises(ValueError, match="timeout: expected"):
        fleet.check(timeout=-1)
    with pytest.raises(TypeError, match="actors: expected"):
        fleet.check(actors=[5])
    with pytest.raises(TypeError, match="function: expected a callable, got int"):
        fleet.task(5)
