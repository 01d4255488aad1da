"""For tests of pins: PCRs that no enclave has, and a workload that tells what reached it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import ByteServer, Connection, ok

from enclavia import Pcrs
from enclavia.testing import LocalEnclave

__all__ = ["OTHER", "Workload", "enclave", "workload"]

OTHER = Pcrs(pcr0=b"\x77" * 48, pcr1=b"\x77" * 48, pcr2=b"\x77" * 48)


class Workload:
    """Answers every request, and keeps the targets that were asked for."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def __call__(self, connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            self.seen.append(head.split(b" ")[1])
            connection.send(ok(b"ok"))


@pytest.fixture
def workload() -> Workload:
    return Workload()


@pytest.fixture
def enclave(workload: Workload) -> Iterator[LocalEnclave]:
    with ByteServer(workload) as server, LocalEnclave(server.address) as enclave:
        yield enclave
