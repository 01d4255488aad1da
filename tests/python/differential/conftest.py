"""The server that every call of these tests reaches, directly and through an enclave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import ByteServer
from test_differential import Recorder

from enclavia.testing import LocalEnclave


@pytest.fixture(scope="module")
def parties() -> Iterator[tuple[LocalEnclave, ByteServer, Recorder]]:
    recorder = Recorder()
    with ByteServer(recorder) as server, LocalEnclave(server.address) as enclave:
        yield enclave, server, recorder
