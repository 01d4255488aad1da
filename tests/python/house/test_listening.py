"""No server of the tests closes a descriptor that a thread of it may still use."""

from __future__ import annotations

import ast
import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from raw_server import RawServer
from raw_workload import RawWorkload
from repository import ROOT
from support import HANG, ByteServer, Connection, eventually

LATE = 0.2
"""Seconds for which a thread stays in accept() after the socket was shut down, as a loaded machine
may make it."""


class Watched(socket.socket):
    def __init__(self, made: socket.socket) -> None:
        super().__init__(fileno=made.detach())
        self.inside = 0
        self.inside_when_closed: list[int] = []
        self._closing = threading.Event()

    def accept(self) -> Any:
        self.inside += 1
        try:
            return super().accept()
        except OSError:
            self._closing.wait(LATE)
            raise
        finally:
            self.inside -= 1

    def close(self) -> None:
        self.inside_when_closed.append(self.inside)
        self._closing.set()
        super().close()


def hang_up_at_once(connection: Connection) -> None:
    pass


SERVERS: list[Callable[[], AbstractContextManager[Any]]] = [
    lambda: ByteServer(hang_up_at_once),
    lambda: RawServer(lambda peer: None),
    RawWorkload,
]


@pytest.mark.parametrize("server", SERVERS, ids=["ByteServer", "RawServer", "RawWorkload"])
def test_a_listener_is_closed_after_its_thread_has_ended(
    server: Callable[[], AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Watched] = []
    create_server = socket.create_server

    def watched(*args: Any, **options: Any) -> socket.socket:
        made.append(Watched(create_server(*args, **options)))
        return made[-1]

    monkeypatch.setattr(socket, "create_server", watched)
    with server():
        eventually(lambda: made[0].inside == 1)
    assert made[0].inside_when_closed == [0]


Read = Callable[[socket.socket], None]


@pytest.mark.parametrize(
    "make",
    [lambda read: ByteServer(lambda connection: read(connection.sock)), RawWorkload],
    ids=["ByteServer", "RawWorkload"],
)
def test_a_connection_is_closed_by_the_thread_that_reads_it(make: Callable[[Read], Any]) -> None:
    """The end of the server wakes that thread, for which the descriptor is still its own."""
    reading = threading.Event()
    own: queue.Queue[bool] = queue.Queue()

    def read(sock: socket.socket) -> None:
        reading.set()
        with contextlib.suppress(OSError):
            sock.recv(1)
        own.put(sock.fileno() != -1)

    with make(read) as server:
        client = socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])))
        assert reading.wait(HANG)
    with client:
        assert own.get(timeout=HANG)


def calls(path: Path) -> set[str]:
    """The names of methods and functions that are called, awaited ones left out."""
    tree = ast.parse(path.read_text())
    awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}
    named = [
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and id(node) not in awaited
    ]
    return {n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", "") for n in named}


def test_whoever_accepts_in_a_thread_ends_it_by_the_helper() -> None:
    found = {path: calls(path) for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)}
    accepting = {path for path, called in found.items() if {"accept", "Thread"} <= called}
    assert len(accepting) >= 6
    assert [path for path in accepting if "end_listening" not in found[path]] == []
