"""Makes every call of ``enclavia._core``; test_gil.py runs this under lock_watch.c.

``python gil_calls.py all`` ends with the names of what was called; ``python gil_calls.py control
LIBRARY`` calls a function of a library with the GIL held that waits for a lock.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from support import ByteServer, Connection, eventually, keywords

import enclavia
from enclavia import _core
from enclavia.testing import Fault, LocalEnclave

WAIT = 20.0


class Recorded:
    """Stands for one of the core's objects, and notes what is used of it."""

    used: set[str] = set()  # noqa: RUF012

    def __init__(self, target: Any) -> None:
        self.target = target
        self.used.add(type(target).__name__)

    def __getattr__(self, name: str) -> Any:
        self.used.add(f"{type(self.target).__name__}.{name}")
        value = getattr(self.target, name)
        return self._calling(value) if callable(value) else value

    @staticmethod
    def _calling(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            plain = [a.target if isinstance(a, Recorded) else a for a in arguments]
            result = method(*plain, **options)
            return Recorded(result) if type(result).__module__ == "enclavia._core" else result

        return call


def echo(connection: Connection) -> None:
    while data := connection.sock.recv(65536):
        connection.send(data)


def use_channel(enclave: LocalEnclave, notifier: Recorded) -> None:
    with enclavia.Channel.connect(enclave.url, **keywords(enclave, timeout=WAIT)) as channel:
        core = Recorded(channel._core)
        core.wait_open(WAIT)
        core.notify_open(notifier, 1).end()
        core.notify_stage(0, notifier, 1).end()
        assert list(core.stages())[-1] == "verified"
        assert core.state == "open"
        assert core.error is None
        assert not core.forked
        assert len(core.handshake_hash) == 32
        core.attestation()
        for timeout in (0, WAIT):
            number = core.start_attest(notifier, 2)
            while core.finish_attest(number, timeout) is None:
                pass
        core.abandon_attest(core.start_attest(None, 0))
        slot = core.reserve(notifier, 3)
        slot.wait(WAIT)
        assert slot.granted
        slot.release()
        waiting = [core.reserve(None, 0) for _ in range(_core.MAX_IN_FLIGHT + 1)]
        assert not waiting[-1].granted
        waiting.clear()
        use_stream(core, notifier)
        use_request(core, notifier)
        assert core.stats()["streams_total"] == 2
        assert core.records_in
        core.close(WAIT)
        assert core.state == "closed"
        assert core.error is not None


def use_stream(core: Recorded, notifier: Recorded) -> None:
    slot = core.reserve(None, 0)
    slot.wait(WAIT)
    stream = core.open_stream(slot, b"hello")
    stream.notify(_core.READABLE, notifier, 4)
    watch = stream.notify(_core.READABLE | _core.WRITABLE, notifier, 5)
    eventually(lambda: bool(stream.readable))
    assert stream.id
    assert not stream.closed
    assert not stream.at_eof
    while not stream.read(2, 0):
        pass
    assert stream.readinto(bytearray(100), WAIT) == 3
    assert stream.read(1, 0) is None
    for size in (1, 4096, 300_000):
        # Little and much, at once and waiting: each goes another way through the binding.
        written = stream.write(bytes(size), 0) + stream.write(bytes(size), WAIT)
        while written:
            written -= len(stream.read(65536, WAIT))
    stream.write_eof()
    assert stream.read(1, WAIT) == b""
    watch.end()
    notifier.drain()
    stream.close()
    use_pump(core, notifier)


def use_pump(core: Recorded, notifier: Recorded) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        slot = core.reserve(None, 0)
        slot.wait(WAIT)
        stream = core.open_stream(slot, b"")
        pump = stream.pump(ours.fileno(), notifier, 7)
        theirs.sendall(b"hello")
        assert theirs.recv(5, socket.MSG_WAITALL) == b"hello"
        pump.stats()
        pump.stop()
        eventually(lambda: pump.state == "stopped")
        assert pump.rest() == (b"", b"")
        stream.pump(ours.fileno(), notifier, 8)  # ends with its object
        stream.close()


def use_request(core: Recorded, notifier: Recorded) -> None:
    slot = core.reserve(None, 0)
    slot.wait(WAIT)
    request = core.start_request(slot, b"question")
    request.notify(notifier, 6)
    request.result(0)
    request.abandon()


def use_enclave(server: ByteServer) -> None:
    with LocalEnclave(server.address) as enclave:
        notifier = Recorded(_core.Notifier())
        notifier.wake()
        notifier.fileno()
        use_channel(enclave, notifier)
        use_channel(enclave, notifier)
        notifier.close()
        enclave.stats()
        enclave.set_faults(Fault(0))
        enclave.set_identity()
        enclave.drop_connections()
        with enclavia.Client(enclave.url, **keywords(enclave)) as client:
            assert client.stats.channels >= 0
    enclave.stats()


def control(library: str) -> None:
    ctypes.PyDLL(library).takes_a_lock()


def main() -> None:
    if sys.argv[1] == "control":
        control(sys.argv[2])
    else:
        with ByteServer(echo) as server:
            use_enclave(server)
    print("called", *sorted(Recorded.used), flush=True)
    # The interpreter's end is nobody's call, and without an interpreter the GIL is no more.
    os._exit(0)


if __name__ == "__main__":
    main()
