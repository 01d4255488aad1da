"""Every call that takes a caller's buffer, while others change it: a thread that rewrites and
resizes a bytearray, and another process that writes to shared memory, which no lock of ours can
hold back.

Such a caller gets some mixture of old and new bytes, or an error of the documented tree. What must
never happen is a step beyond a buffer, which is looked for under AddressSanitizer
(``.ci/python-san``, part of ``make test``), or an answer that is wrong in form: the enclave here
decodes every record, and closes the connection for one that is malformed.

``ENCLAVIA_BUFFERS_SECONDS`` is how long each case goes on; it is short by default.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from support import ByteServer, Connection, keywords

import enclavia
from enclavia.testing import LocalEnclave

SECONDS = float(os.environ.get("ENCLAVIA_BUFFERS_SECONDS", "0.4"))

# Encoded, a byte below 24 takes one byte and any other two: the former fit a record, the latter do
# not.
SIZE = 65_000
NARROW, WIDE = b"\0", b"\xff"

_WRITER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    shared = mmap.mmap(file.fileno(), 0)
narrow, wide = bytes(len(shared)), b"\\xff" * len(shared)
print("ready", flush=True)
while True:
    shared[:] = wide
    shared[:] = narrow
"""


@contextlib.contextmanager
def thread_rewrites() -> Iterator[bytearray]:
    """A bytearray that a thread rewrites all the time, and resizes when nobody has hold of it."""
    buffer = bytearray(SIZE)
    narrow, wide = NARROW * SIZE, WIDE * SIZE
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for pattern in (wide, narrow):
                view = memoryview(buffer)
                view[:] = pattern[: len(view)]
                view.release()
                with contextlib.suppress(BufferError):
                    del buffer[SIZE // 2 :]
                with contextlib.suppress(BufferError):
                    buffer.extend(pattern[len(buffer) :])

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        yield buffer
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def process_rewrites() -> Iterator[mmap.mmap]:
    """Memory that another process writes to all the time."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(SIZE)
        shared = mmap.mmap(file.fileno(), SIZE)
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, file.name], stdout=subprocess.PIPE, text=True
        )
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            yield shared
        finally:
            writer.kill()
            writer.communicate()


def answers_each(connection: Connection) -> None:
    """One byte for whatever comes, until the client leaves."""
    while connection.sock.recv(1 << 20):
        connection.send(b"k")


def answers_once(connection: Connection) -> None:
    """As a server answers a one-shot request: the answer ends with the connection."""
    if connection.sock.recv(1 << 20):
        connection.send(b"k")
        connection.sock.shutdown(socket.SHUT_WR)
        while connection.sock.recv(1 << 20):
            pass


def speaks(connection: Connection) -> None:
    block = bytes(range(256)) * 256
    with contextlib.suppress(OSError):
        while True:
            connection.send(block)


Case = Callable[[LocalEnclave, Any], Iterator[int]]
"""Each step is one call; it gives how many bytes of the buffer were taken."""


def request(enclave: LocalEnclave, buffer: Any) -> Iterator[int]:
    with enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel:
        while True:
            assert set(channel.request(buffer, timeout=20)) == {ord("k")}
            yield 1


def open_stream(enclave: LocalEnclave, buffer: Any) -> Iterator[int]:
    with enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel:
        while True:
            with channel.open_stream(buffer, timeout=20) as stream:
                assert stream.read(1) == b"k"
            yield 1


def write(enclave: LocalEnclave, buffer: Any) -> Iterator[int]:
    with enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel:
        stream = channel.open_stream(b"first", timeout=20)
        while True:
            yield stream.write(buffer)
            yield stream.write(memoryview(buffer)[:3000])
            assert stream.read(1 << 16)


def readinto(enclave: LocalEnclave, buffer: Any) -> Iterator[int]:
    with enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel:
        stream = channel.open_stream(timeout=20)
        while True:
            count = stream.readinto(buffer)
            assert count is not None
            yield count


def _stepped(each: Callable[[LocalEnclave, Any, Callable[[int], None]], Any]) -> Case:
    """An asynchronous case as a blocking one: it runs whole, and counts as it goes."""

    def case(enclave: LocalEnclave, buffer: Any) -> Iterator[int]:
        counts: list[int] = []
        end = time.monotonic() + SECONDS

        def took(count: int) -> None:
            counts.append(count)
            if time.monotonic() > end:
                raise EOFError

        with contextlib.suppress(EOFError):
            anyio.run(each, enclave, buffer, took)
        yield from counts

    case.__name__ = each.__name__
    return case


async def async_request(enclave: LocalEnclave, buffer: Any, took: Callable[[int], None]) -> None:
    async with enclavia.AsyncChannel.connect(enclave.url, **keywords(enclave)) as channel:
        while True:
            try:
                assert set(await channel.request(buffer, timeout=20)) == {ord("k")}
            except ValueError as error:
                assert_does_not_fit(error)
            took(1)


async def async_open_stream(
    enclave: LocalEnclave, buffer: Any, took: Callable[[int], None]
) -> None:
    async with enclavia.AsyncChannel.connect(enclave.url, **keywords(enclave)) as channel:
        while True:
            async with await channel.open_stream(buffer, timeout=20) as stream:
                assert await stream.read(1) == b"k"
            took(1)


async def async_write(enclave: LocalEnclave, buffer: Any, took: Callable[[int], None]) -> None:
    async with enclavia.AsyncChannel.connect(enclave.url, **keywords(enclave)) as channel:
        stream = await channel.open_stream(b"first", timeout=20)
        while True:
            took(await stream.write(buffer))
            took(await stream.write(memoryview(buffer)[:3000]))
            assert await stream.read(1 << 16)


async def async_readinto(enclave: LocalEnclave, buffer: Any, took: Callable[[int], None]) -> None:
    async with enclavia.AsyncChannel.connect(enclave.url, **keywords(enclave)) as channel:
        stream = await channel.open_stream(timeout=20)
        while True:
            took(await stream.readinto(buffer))


def assert_does_not_fit(error: ValueError) -> None:
    assert "bytes of payload" in str(error)
    assert "expected at most 65519" in str(error)


def verify(enclave: LocalEnclave, buffer: Any) -> Iterator[int]:
    """A document that changes is refused as whatever it was when it was read."""
    with enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel:
        document = channel.attestation.document
    while True:
        try:
            view = memoryview(buffer)
            view[: len(document)] = document
            enclavia.verify_attestation(view[: len(document)], **keywords(enclave))
        except enclavia.AttestationError:
            pass
        yield 1


def root(enclave: LocalEnclave, buffer: Any) -> Iterator[int]:
    while True:
        view = memoryview(buffer)[:4096]
        with pytest.raises((enclavia.EnclaviaError, ValueError)):
            enclavia.Client(enclave.url, pcrs=enclave.pcrs, root=view)  # type: ignore[arg-type]
        view.release()
        yield 1


CASES: dict[str, tuple[Case, Callable[[Connection], None]]] = {
    "request": (request, answers_once),
    "open_stream": (open_stream, answers_each),
    "write": (write, answers_each),
    "readinto": (readinto, speaks),
    "async_request": (_stepped(async_request), answers_once),
    "async_open_stream": (_stepped(async_open_stream), answers_each),
    "async_write": (_stepped(async_write), answers_each),
    "async_readinto": (_stepped(async_readinto), speaks),
    "verify": (verify, answers_each),
    "root": (root, answers_each),
}


@pytest.mark.parametrize("rewriter", [thread_rewrites, process_rewrites])
@pytest.mark.parametrize("name", CASES)
def test_a_buffer_that_changes(
    name: str, rewriter: Callable[[], contextlib.AbstractContextManager[Any]]
) -> None:
    case, script = CASES[name]
    taken = 0
    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        rewriter() as buffer,
    ):
        end = time.monotonic() + SECONDS
        for turn in itertools.count():
            steps = case(enclave, buffer)
            try:
                for count in steps:
                    assert 0 < count <= SIZE
                    taken += 1
                    if time.monotonic() > end:
                        break
            except ValueError as error:
                # Only where it was too large for one record at the moment when it was read.
                assert "request" in name, error
                assert_does_not_fit(error)
            finally:
                steps.close()  # type: ignore[attr-defined]
            if time.monotonic() > end and (taken or turn > 5000):
                break
    assert taken
