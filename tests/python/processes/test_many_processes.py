"""Jobs of many processes, each task with a client that was pickled for it, against an enclave that
takes few connections: one channel for each process.

``ENCLAVIA_ROWS=10000`` sends more.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from support import Connection, byte_enclave, keywords, ok

import enclavia

ROWS = int(os.environ.get("ENCLAVIA_ROWS", "60"))
WORKERS = 2

Map = Callable[[Callable[..., str], "list[tuple[enclavia.Client, int]]"], Iterable[str]]


def score(client: enclavia.Client, row: int) -> str:
    return client.get(f"/{row}").text


def one_argument(task: tuple[enclavia.Client, int]) -> str:
    return score(*task)


def echo(connection: Connection) -> None:
    while True:
        connection.send(ok(connection.request()[0].split(b" ")[1]))


def of_multiprocessing(method: str) -> Map:
    def run(work: Callable[..., str], tasks: list[Any]) -> list[str]:
        with multiprocessing.get_context(method).Pool(WORKERS) as pool:
            return pool.starmap(work, tasks, chunksize=1)

    return run


def of_futures(method: str) -> Map:
    def run(work: Callable[..., str], tasks: list[Any]) -> list[str]:
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
            return list(pool.map(one_argument, tasks))

    return run


def of_joblib(work: Callable[..., str], tasks: list[Any]) -> list[str]:
    joblib = pytest.importorskip("joblib")
    delayed = [joblib.delayed(work)(*task) for task in tasks]
    answers: list[str] = joblib.Parallel(n_jobs=WORKERS, backend="loky")(delayed)
    return answers


def of_dask(work: Callable[..., str], tasks: list[Any]) -> list[str]:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with (
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=2, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as scheduler,
    ):
        futures = [scheduler.submit(work, *task, pure=False) for task in tasks]
        answers: list[str] = scheduler.gather(futures)
        return answers


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(of_multiprocessing("fork"), id="multiprocessing-fork"),
        pytest.param(of_multiprocessing("spawn"), id="multiprocessing-spawn"),
        pytest.param(of_multiprocessing("forkserver"), id="multiprocessing-forkserver"),
        pytest.param(of_futures("spawn"), id="futures-spawn"),
        pytest.param(of_joblib, id="joblib"),
        pytest.param(of_dask, id="dask"),
    ],
)
def test_one_channel_for_each_process(run: Map) -> None:
    with (
        byte_enclave(echo, max_connections=4) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: that is the test
        answers = list(run(score, [(client, row) for row in range(ROWS)]))
        assert answers == [f"/{row}" for row in range(ROWS)]
        assert enclave.stats()["connections_total"] <= WORKERS + 1


def test_more_processes_than_places_take_turns_with_the_defaults() -> None:
    """A process whose tasks are done, and which lives on, gives its place up before another one has
    waited for it as long as connecting may take."""
    with byte_enclave(echo, max_connections=1) as (enclave, _):
        client = enclavia.Client(enclave.url, **keywords(enclave))  # not entered: takes no place
        answers = list(of_futures("spawn")(score, [(client, row) for row in range(ROWS)]))
        assert answers == [f"/{row}" for row in range(ROWS)]
