"""Python allocations failing in turn, in a process of its own: tests/torture/python_torture.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from repository import TESTS
from support import ByteServer, Connection

SCRIPT = TESTS / "torture" / "python_torture.py"
# One in as many.
STEP = 2


def echo(connection: Connection) -> None:
    while data := connection.sock.recv(65_536):
        connection.send(data)


@pytest.mark.skipif(
    importlib.util.find_spec("_testcapi") is None, reason="this Python has no _testcapi"
)
def test_every_failing_allocation_ends_in_an_error_and_leaves_nothing_behind() -> None:
    with ByteServer(echo) as workload:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), workload.address, str(STEP)],
            capture_output=True,
            text=True,
            timeout=330,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing left behind" in done.stdout
