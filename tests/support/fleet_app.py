"""The workload of the tests of fleets, and the enclave around it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enclavia.testing import LocalEnclave

ROWS = int(os.environ.get("FLEET_ROWS", "200"))
"""Of each job: 200, or 10 000 in `make test-fleet`."""


def app(environ: Any, start_response: Any) -> Iterable[bytes]:
    """Scores a row with its own number. A GET is answered with score 0."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    row = json.loads(environ["wsgi.input"].read(length) or b'{"id": 0}')
    body = json.dumps({"score": row["id"]}).encode()
    head = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", head)
    return [body]


@contextlib.contextmanager
def small_enclave(connections: int = 4) -> Iterator[LocalEnclave]:
    """With room for few connections, as the real one has."""
    with LocalEnclave(app, max_connections=connections) as enclave:
        yield enclave


def keywords(enclave: LocalEnclave) -> dict[str, Any]:
    return {"pcrs": enclave.pcrs, "root": enclave.root}


@pytest.fixture(scope="session", autouse=True)
def runtime_folder() -> Iterator[Path]:
    """Where forwarders put their sockets, in a short path: a Unix socket's has 107 bytes. For the
    whole session, because engines are started once and give their workers the environment that
    they have then."""
    with (
        tempfile.TemporaryDirectory(prefix="enclavia-") as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", made)
        yield Path(made)
