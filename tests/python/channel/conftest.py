"""What the tests of channels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from channels import echo, silent
from enclave_peer import connect
from raw_server import unused_port
from resources import Held
from support import ByteServer

import enclavia
from enclavia.testing import LocalEnclave


@pytest.fixture(scope="module")
def warm() -> None:
    """The service thread and its descriptors are made once and kept."""
    with pytest.raises(enclavia.ConnectError):
        connect(f"ws://127.0.0.1:{unused_port()}")


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No descriptor and no thread of the test outlives it."""
    held = Held()
    yield
    held.check_released()


@pytest.fixture(scope="module")
def remote() -> Iterator[LocalEnclave]:
    """In a process of its own, so that this one's memory is the client's."""
    with LocalEnclave("127.0.0.1:9", in_process=False, max_connections=64) as enclave:
        yield enclave


@pytest.fixture
def echoing() -> Iterator[LocalEnclave]:
    with ByteServer(echo) as server, LocalEnclave(server.address) as enclave:
        yield enclave


@pytest.fixture
def silently() -> Iterator[LocalEnclave]:
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:
        yield enclave
