"""A local enclave in front of an echo, and an independent client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from plain_client import PlainClient
from raw_workload import RawWorkload
from watched_enclave import (
    enclave_for,
)

from enclavia.testing import LocalEnclave


@pytest.fixture
def echoing() -> Iterator[RawWorkload]:
    with RawWorkload() as workload:
        yield workload


@pytest.fixture
def enclave(echoing: RawWorkload) -> Iterator[LocalEnclave]:
    with enclave_for(echoing) as running:
        yield running


@pytest.fixture
def client(enclave: LocalEnclave) -> Iterator[PlainClient]:
    with PlainClient.connect(enclave.url) as connected:
        yield connected
