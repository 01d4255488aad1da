"""Calls that wait when what they wait for is closed or lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from channels import connect, silent, stuck_peer
from enclave_peer import connect as connect_peer
from support import HANG, ByteServer

import enclavia
from enclavia.testing import Fault, LocalEnclave


class Waiting:
    """Calls in threads of their own, and how each ended."""

    def __init__(self, **calls: Callable[[], Any]) -> None:
        self.ended: dict[str, BaseException | None] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(name, call)) for name, call in calls.items()
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, name: str, call: Callable[[], Any]) -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as raised:
            error = raised
        self.ended[name] = error

    def check(self, **expected: type[BaseException]) -> None:
        """A wait that nobody ended would have ended by its own time-out, and so with another
        error."""
        for thread in self._threads:
            thread.join(HANG)
        assert self.ended.keys() == expected.keys()
        for name, error in self.ended.items():
            assert type(error) is expected[name], (name, error)


def test_closing_ends_every_wait_at_once() -> None:
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:
        channel = connect(enclave, max_in_flight=3, timeout=20)
        # An enclave that stops reading stops writers too.
        enclave.set_faults(Fault.SILENT_STREAMS | Fault.SILENT_ATTESTATION)
        reading, writing = channel.open_stream(b"x"), channel.open_stream(b"x")
        into = channel.open_stream(b"x")
        waiting = Waiting(
            read=lambda: reading.read(1),
            readinto=lambda: into.readinto(bytearray(8)),
            slot=lambda: channel.open_stream(b"x"),
            request=lambda: channel.request(b"x"),
            attest=channel.attest,
        )
        time.sleep(0.2)
        assert waiting.ended == {}
        channel.close()
        waiting.check(
            read=enclavia.ConnectionClosed,
            readinto=enclavia.ConnectionClosed,
            slot=enclavia.ConnectionClosed,
            request=enclavia.ConnectionClosed,
            attest=enclavia.ConnectionClosed,
        )
        with pytest.raises(enclavia.ConnectionClosed, match="closed by its user") as caught:
            writing.write(b"x")
        assert not caught.value.retryable
        for call in (channel.request, channel.open_stream):
            with pytest.raises(enclavia.StateError, match="its user has closed"):
                call(b"x")
        channel.close()


def test_closing_ends_a_write_that_waits() -> None:
    server, done = stuck_peer()
    with server:
        channel = connect_peer(server.url, timeout=20)
        stream = channel.open_stream()
        waiting = Waiting(write=lambda: stream.write(bytes(64 * 1024 * 1024)))
        time.sleep(0.3)
        assert waiting.ended == {}
        channel.close()
        waiting.check(write=enclavia.ConnectionClosed)
        done.set()


def test_closing_a_stream_ends_its_own_waits_only() -> None:
    server, done = stuck_peer()
    with server, connect_peer(server.url, timeout=20) as channel:
        first, second = channel.open_stream(), channel.open_stream()
        waiting = Waiting(
            read=lambda: first.read(1), write=lambda: first.write(bytes(64 * 1024 * 1024))
        )
        other = Waiting(read=lambda: second.read(1))
        time.sleep(0.3)
        first.close()
        waiting.check(read=ValueError, write=ValueError)
        assert other.ended == {}
        channel.close()
        other.check(read=enclavia.ConnectionClosed)
        done.set()


def test_a_lost_connection_ends_every_wait_at_once(silently: LocalEnclave) -> None:
    channel = connect(silently, max_in_flight=1)
    stream = channel.open_stream(b"x")
    waiting = Waiting(read=lambda: stream.read(1), slot=lambda: channel.open_stream(b"x"))
    time.sleep(0.1)
    silently.drop_connections(reset=True)
    waiting.check(read=enclavia.ConnectionClosed, slot=enclavia.ConnectionClosed)
    errors = waiting.ended.values()
    assert all(isinstance(error, enclavia.EnclaviaError) and error.retryable for error in errors)
