"""The shared library of the pure C layers that tests load with ctypes."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from repository import ROOT


@cache
def path() -> Path:
    """Built here where it has to be; tests/mutants gives one of its own."""
    given = os.environ.get("ENCLAVIA_TESTING_LIBRARY")
    if given is not None:
        return Path(given)
    make = ["make", "-s", "-C", str(ROOT / "tests" / "c"), "lib"]
    subprocess.run(make, check=True, capture_output=True)
    return ROOT / "build" / "tests-c" / "plain" / "libencl_testing.so"
