"""What the tests of the command line have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import other_pins, pins_of
from support import ByteServer, Connection, byte_enclave, ok

from enclavia.testing import LocalEnclave


class Place:
    """An enclave in front of a workload that keeps what came to it, and what a client needs."""

    def __init__(self, enclave: LocalEnclave, server: ByteServer, folder: Path) -> None:
        self.enclave = enclave
        self.server = server
        self.pins = pins_of(enclave, folder)
        self.root = self.pins[-2:]
        self.other = [*other_pins(folder), *self.root]
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.answers: list[bytes] = []

    def url(self, path: str) -> str:
        return self.enclave.url + path

    def expect_untouched(self) -> None:
        """Nothing has ever come to the workload."""
        assert self.server.connections == []
        assert self.enclave.stats()["streams_total"] == 0


@contextmanager
def made(folder: Path) -> Iterator[Place]:
    """Its workload keeps each request, and gives the answers of the place in turn, else "ok"."""

    def script(connection: Connection) -> None:
        while True:
            head, body = connection.request()
            place.heads.append(head)
            place.bodies.append(body)
            connection.send(place.answers.pop(0) if place.answers else ok())

    with byte_enclave(script) as (enclave, server):
        place = Place(enclave, server, folder)
        yield place


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with made(tmp_path_factory.mktemp("pins")) as place:
        yield place
