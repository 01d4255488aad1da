"""One that does not read, or whose answer is broken, is nobody else's matter."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator

import anyio
import pytest
from enclave_peer import PCRS, EnclavePeer, root
from raw_server import Peer, RawServer
from resources import resident_kib
from support import Connection, Face, byte_enclave, eventually, keywords, ok, with_client

import enclavia

MIB = 1024 * 1024
# csrc/channel: what one stream may hold, all of a channel's, and how long others wait at most.
HIGH_WATER, UNREAD_MAX, HOLD = MIB, 15 * MIB, 10.0
BLOCK = hashlib.sha256(b"block").digest() * (2 * MIB // 32)


def serve(connection: Connection) -> None:
    """``/big/n`` answers with n blocks of 2 MiB, and others break off in their own ways."""
    while True:
        head, _ = connection.request()
        path = head.split(b" ")[1]
        match path.strip(b"/").split(b"/"):
            case [b"big", count]:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (
                    int(count) * len(BLOCK)
                ))  # fmt: skip
                for _ in range(int(count)):
                    connection.send(BLOCK)
            case [b"abort"]:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(5000))
                connection.reset()
                return
            case [b"garbage"]:
                connection.send(b"\0\1\2 this is no HTTP\r\n\r\n" * 500)
            case [b"chunks"]:
                connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
            case _:
                connection.send(ok(b"small"))


class Others:
    """Eight threads of small requests, each of which has to be answered."""

    def __init__(self, client: enclavia.Client) -> None:
        self._client = client
        self._over = threading.Event()
        self.answered = 0
        self.slowest = 0.0
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(8)]

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                began = time.monotonic()
                assert self._client.get("/small").text == "small"
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.answered += 1
        except BaseException as error:
            self.failures.append(error)

    def __enter__(self) -> Others:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        assert not self.failures, self.failures

    def go_on(self, more: int) -> None:
        goal = self.answered + more
        eventually(lambda: self.answered >= goal or bool(self.failures), timeout=60)


def test_one_that_stops_reading_neither_stops_others_nor_loses_its_answer() -> None:
    with (
        byte_enclave(serve) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        with client.stream("GET", "/big/5") as response, Others(client) as others:
            pieces = response.iter_raw()
            first = next(pieces)
            others.go_on(200)
            assert first + b"".join(pieces) == BLOCK * 5
        assert client.stats.connects == 1


@contextlib.contextmanager
def unread(client: enclavia.Client, path: str) -> Iterator[Iterator[bytes]]:
    with client.stream("GET", path) as response:
        pieces = response.iter_raw()
        next(pieces)
        yield pieces


def test_others_wait_for_a_bounded_time_and_memory_is_bounded() -> None:
    """A reader that has stopped is ended where others wait behind it, and only there."""
    with byte_enclave(serve) as (enclave, _), contextlib.ExitStack() as stack:
        options = keywords(enclave)
        alone = stack.enter_context(enclavia.Client(enclave.url, **options))
        shared = stack.enter_context(enclavia.Client(enclave.url, **options))
        patient = stack.enter_context(unread(alone, "/big/20"))
        before = resident_kib()
        slow = stack.enter_context(unread(shared, "/big/50"))
        began = time.monotonic()
        with Others(shared) as others:
            peak = 0

            def went_on_again() -> bool:
                """A request that was on its way meanwhile is answered."""
                nonlocal peak
                peak = max(peak, resident_kib() - before)
                return others.slowest > HOLD / 2 or bool(others.failures)

            eventually(went_on_again, timeout=60)
            others.go_on(100)
        with pytest.raises(enclavia.SlowReader, match="were not read") as caught:
            list(slow)
        assert isinstance(caught.value, enclavia.ConnectionClosed)
        assert not caught.value.retryable
        held = re.match(r"(\d+) bytes", str(caught.value))
        assert held is not None
        assert UNREAD_MAX - MIB < int(held[1]) < UNREAD_MAX + MIB
        # What is held, twice while a buffer grows, and what else a client needs.
        assert peak < 3 * UNREAD_MAX // 1024, f"{peak} KiB"
        assert shared.stats.connects == 1
        time.sleep(max(0.0, began + HOLD + 2 - time.monotonic()))
        assert sum(map(len, patient)) > 19 * len(BLOCK)


def test_who_reads_too_little_goes_after_who_reads_nothing() -> None:
    """The furthest behind goes first; where that is not enough, the next. That each has its whole
    time is shown in tests/c/test_stall.c, where a second takes none."""

    def nibble(pieces: Iterator[bytes]) -> None:
        for _ in pieces:
            time.sleep(0.1)

    with (
        byte_enclave(serve) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
        Others(client) as others,
        unread(client, "/big/6") as nothing,
    ):
        # All 12 MiB of it are there, so whoever comes now can at most be 3 MiB behind.
        eventually(lambda: enclave.stats()["bytes_from_workload"] > 6 * len(BLOCK))
        others.go_on(100)
        with unread(client, "/big/50") as little, pytest.raises(enclavia.SlowReader):
            nibble(little)
        # It would be whole, had the other one been ended in its place: 12 MiB may be unread.
        with pytest.raises(enclavia.SlowReader):
            list(nothing)
        others.go_on(100)


@pytest.mark.parametrize("kind", ["asyncio", "uvloop", "trio"])
def test_a_task_that_stops_reading_does_not_stop_other_tasks(kind: str) -> None:
    async def case(face: Face) -> None:
        async with face.stream("GET", "/big/5") as response:
            pieces = response.raw()
            read = [await anext(pieces)]
            for _ in range(50):
                async with anyio.create_task_group() as group:
                    for _ in range(4):
                        group.start_soon(face.get, "/small")
            read += [piece async for piece in pieces]
            assert b"".join(read) == BLOCK * 5

    with byte_enclave(serve) as (enclave, _):
        with_client(kind, enclave, case)


POISONS = ["/abort", "/garbage", "/chunks", "/big/20"]


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_broken_answer_harms_no_other(kind: str) -> None:
    """Cut off, no HTTP, bad chunks, or abandoned while megabytes of it still come."""

    async def poisoned(face: Face, path: str) -> None:
        if path.startswith("/big"):
            async with face.stream("GET", path) as response:
                await anext(response.raw())
            return
        with pytest.raises(
            (enclavia.ConnectionClosed, enclavia.ServerError, enclavia.ProtocolError)
        ):
            await face.post(path)

    async def case(face: Face) -> None:
        for _ in range(5):
            for path in POISONS:
                await poisoned(face, path)

    with byte_enclave(serve) as (enclave, _):
        with enclavia.Client(enclave.url, **keywords(enclave)) as client:
            with Others(client) as others:
                mixed = Face(client)
                if kind == "sync":
                    for path in POISONS * 5:
                        with contextlib.suppress(StopIteration):
                            poisoned(mixed, path).send(None)
                others.go_on(50)
            assert client.stats.connects == 1
        if kind != "sync":
            with_client(kind, enclave, case)


def test_an_error_for_one_stream_is_no_other_ones() -> None:
    """``Error`` for one id, in the middle of its answer, from a peer that holds the keys."""

    def script(peer: Peer) -> None:
        enclave = EnclavePeer(peer)
        enclave.peer.upgrade()
        enclave.open()
        ids = []
        for _ in range(2):
            ids.append(enclave.receive()["id"])
            enclave.send(
                "StreamData",
                id=ids[-1],
                payload=b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc",
            )
        enclave.send("Error", id=ids[0], message="the workload is gone")
        enclave.send("StreamData", id=ids[0], payload=b"late")
        enclave.send("StreamData", id=ids[1], payload=b"def")
        while enclave.receive()["type"] != "StreamClose":
            pass

    with (
        RawServer(script) as server,
        enclavia.Client(server.url, pcrs=PCRS, root=root()) as client,
        client.stream("GET", "/1") as first,
        client.stream("GET", "/2") as second,
    ):
        assert b"".join(second.iter_raw()) == b"abcdef"
        with pytest.raises(enclavia.ServerError, match="the workload is gone"):
            first.read()
