from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import Peer, ReferenceClient, WorkloadServer, build_programs

StartPeer = Callable[..., Peer]


@pytest.fixture(scope="session")
def programs() -> Path:
    return build_programs()


@pytest.fixture(scope="session")
def workload() -> Iterator[WorkloadServer]:
    with WorkloadServer() as server:
        yield server


@pytest.fixture
def start_peer(programs: Path, workload: WorkloadServer) -> Iterator[StartPeer]:
    """Starts peers with options of the test's own; all are stopped at its end."""
    started: list[Peer] = []

    def start(*, behind: str | None = None, **options: int | float | bool) -> Peer:
        started.append(Peer(programs, behind or workload.address, **options))
        return started[-1]

    yield start
    for peer in started:
        peer.stop()


@pytest.fixture
def peer(start_peer: StartPeer) -> Peer:
    return start_peer()


@pytest.fixture(scope="session")
def reference(programs: Path) -> ReferenceClient:
    return ReferenceClient(programs)
