"""Tests of tests/python that also know of engines, run with them in a process of their own.

Importing dask.distributed, Ray or PySpark changes how errors are pickled, which threads and sockets
a process has, and more, and tests of this package look at such things."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from repository import ROOT

ENGINES = ("distributed", "ray", "pyspark")


@pytest.mark.parametrize(
    ("file", "chosen", "at_least"),
    [
        ("arguments/test_arguments.py", "EnclavePlugin or EnclaveFleet or reason", 20),
        ("house/test_docs.py", "guide.md or enclavia.dask or enclavia.ray or enclavia.spark "
         "or public_member", 9),
    ],
)  # fmt: skip
def test_in_a_process_with_engines(file: str, chosen: str, at_least: int) -> None:
    missing = [engine for engine in ENGINES if importlib.util.find_spec(engine) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed (pip install --group fleet)")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--color=no", f"tests/python/{file}", "-k", chosen],
        cwd=ROOT,
        env=os.environ | {"WITH_ENGINES": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    passed = int(ended.stdout.rsplit(" passed", 1)[0].rsplit(maxsplit=1)[-1])
    assert passed >= at_least
    assert " skipped" not in ended.stdout.splitlines()[-1]
