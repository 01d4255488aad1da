"""What the tests of arguments need running."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from argument_calls import Blocking
from support import byte_enclave

from enclavia.testing import LocalEnclave


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    def echo(connection: Any) -> None:
        with contextlib.suppress(OSError):
            while data := connection.sock.recv(65536):
                connection.sock.sendall(data)

    with byte_enclave(echo) as (running, _):
        yield running


@pytest.fixture(scope="module")
def blocking(enclave: LocalEnclave) -> Iterator[Blocking]:
    both = Blocking(enclave)
    yield both
    both.close()
