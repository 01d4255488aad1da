"""What the tests of fleets share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def runtime_folder() -> Iterator[Path]:
    """Where forwarders put their sockets, in a short path: a Unix socket's has 107 bytes. For the
    whole session, because engines are started once and give their workers the environment that
    they have then."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="enclavia-") as made:
        os.environ["XDG_RUNTIME_DIR"] = made
        try:
            yield Path(made)
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before
