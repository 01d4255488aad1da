"""Every program of docs/fleet.md is run, as it stands, and its channels are counted.

A local enclave stands in for the one of the page: its URL is put in place of the example's, and its
root in place of AWS's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from fleet_app import keywords, small_enclave
from raw_server import unused_port
from repository import ROOT
from support import HANG, eventually

import enclavia
from enclavia.testing import LocalEnclave

PAGE = ROOT / "docs" / "fleet.md"
URL_IN_DOCS = '"wss://<id>.enclaves.beta.enclavia.io"'

# By heading: how many channels the program may open at most.
CHANNELS = {
    "Dask": 2,
    "Ray": 1,
    "Spark": 4,  # of two at a time; Spark may have started others before
    "Threads": 1,
    "multiprocessing, fork": 2,
    "multiprocessing, spawn": 2,
    "joblib": 2,
    "Celery, prefork": 2,
    "gunicorn, preloaded": 2,
    "Tasks with a process each: Airflow, Prefect": 1,
}
_FENCE = re.compile(
    r"(?:^<!-- (?:run only with: (?P<needs>[\w.]+)|[\w ]+) -->\n)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Recipe(NamedTuple):
    heading: str
    code: str
    needs: str | None


def recipes() -> tuple[str, list[Recipe]]:
    """What every program begins with, and the programs."""
    beginning, *programs = [
        Recipe(
            re.findall(r"^#+ (.*)$", PAGE.read_text()[: found.start()], re.MULTILINE)[-1],
            found["code"],
            found["needs"],
        )
        for found in _FENCE.finditer(PAGE.read_text())
    ]
    return beginning.code, programs


BEGINNING, PROGRAMS = recipes()
BY_HEADING = {recipe.heading: recipe for recipe in PROGRAMS}


@pytest.fixture
def enclave() -> Iterator[LocalEnclave]:
    with small_enclave() as enclave:
        yield enclave


@pytest.fixture
def desk(tmp_path: Path, enclave: LocalEnclave) -> Path:
    (tmp_path / "status.json").write_text(json.dumps(enclave.pcrs.as_dict()))
    (tmp_path / "root.pem").write_bytes(enclave.root or b"")
    return tmp_path


def written(desk: Path, enclave: LocalEnclave, heading: str, name: str, **instead: str) -> Path:
    recipe = BY_HEADING[heading]
    if recipe.needs is not None and importlib.util.find_spec(recipe.needs) is None:
        pytest.skip(f"{recipe.needs} is not installed (pip install --group fleet)")
    code = (BEGINNING + recipe.code).replace(URL_IN_DOCS, repr(enclave.url))
    code = code.replace("pcrs=pcrs", f"pcrs=pcrs, root={str(desk / 'root.pem')!r}")
    for old, new in instead.items():
        assert old in code
        code = code.replace(old, new)
    program = desk / f"{name}.py"
    program.write_text(code)
    return program


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "RAY_ADDRESS": "local",
        # Ray then listens on loopback alone, as it does on the other two systems.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def run(program: Path) -> None:
    ended = subprocess.run(
        [sys.executable, program.name],
        cwd=program.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=3 * HANG,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_recipe_is_run() -> None:
    assert set(BY_HEADING) == set(CHANNELS)
    assert len(PROGRAMS) == len(CHANNELS)
    assert len(re.findall(r"^```py", PAGE.read_text(), re.MULTILINE)) == len(PROGRAMS) + 1


@pytest.mark.parametrize(
    "heading",
    [
        "Dask",
        "Ray",
        "Spark",
        "Threads",
        "multiprocessing, fork",
        "multiprocessing, spawn",
        "joblib",
    ],
)
def test_a_program(heading: str, desk: Path, enclave: LocalEnclave) -> None:
    if heading == "Spark" and shutil.which("java") is None:
        pytest.skip("pyspark needs java, which is not installed")
    run(written(desk, enclave, heading, "program"))
    assert 1 <= enclave.stats()["connections_total"] <= CHANNELS[heading]
    assert enclave.stats()["streams_total"] >= 1


def test_tasks_with_a_process_each(desk: Path, enclave: LocalEnclave) -> None:
    heading = "Tasks with a process each: Airflow, Prefect"
    with enclavia.Forwarder(enclave.url, **keywords(enclave)):
        run(written(desk, enclave, heading, "program"))
    assert enclave.stats()["connections_total"] == CHANNELS[heading]


def test_celery(desk: Path, enclave: LocalEnclave) -> None:
    """With a broker of files in place of Redis."""
    broker = (
        "broker='filesystem://', backend='file://' + __file__ + '.results', "
        "broker_transport_options={'data_folder_in': __file__ + '.queue', "
        "'data_folder_out': __file__ + '.queue', 'processed_folder': __file__ + '.done'}"
    )
    program = written(
        desk,
        enclave,
        "Celery, prefork",
        "scores",
        **{'broker="redis://localhost", backend="redis://localhost"': broker},
    )
    for folder in ("queue", "results", "done"):
        Path(f"{program}.{folder}").mkdir()
    asking = (
        "import scores\n"
        "asked = [scores.score.delay(row) for row in scores.rows]\n"
        f"assert [each.get(timeout={HANG}) for each in asked] == [r['id'] for r in scores.rows]\n"
    )
    (desk / "asking.py").write_text(asking)
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "--app", "scores", "worker"),
            *("--pool", "prefork", "--concurrency", "2", "--loglevel", "error"),
            *("--without-gossip", "--without-mingle"),
        ],
        cwd=desk,
        env=environment(),
    )
    try:
        run(desk / "asking.py")
        assert 1 <= enclave.stats()["connections_total"] <= CHANNELS["Celery, prefork"]
    finally:
        worker.terminate()
        worker.wait(HANG)


def test_gunicorn(desk: Path, enclave: LocalEnclave) -> None:
    program = written(desk, enclave, "gunicorn, preloaded", "front")
    port = unused_port()
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "--preload", "--workers", "2"),
            *("--bind", f"127.0.0.1:{port}", "--log-level", "error", "front:app"),
        ],
        cwd=program.parent,
        env=environment(),
    )

    def score(number: int) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{number}", timeout=HANG) as answer:
            found: dict[str, int] = json.load(answer)
        return found["score"]

    def listens() -> bool:
        try:
            return score(1) == 1
        except OSError:
            return False

    try:
        eventually(listens)
        assert [score(n) for n in range(50)] == list(range(50))
        assert 1 <= enclave.stats()["connections_total"] <= CHANNELS["gunicorn, preloaded"]
        assert server.poll() is None
    finally:
        server.terminate()
        server.wait(HANG)


def test_no_process_stays() -> None:
    """Of the forwarders that workers started."""

    def left() -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes()
                    parent = re.search(r"PPid:\s*(\d+)", (entry / "status").read_text())
                except OSError:
                    continue
                if b"enclavia._fleet.node" in line and parent and parent[1] == "1":
                    found.append(entry.name)
        return found

    deadline = time.monotonic() + HANG
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left() == []
