"""Many at once, and a server that does not stay up. ENCLAVIA_FULL=1 runs them at full size."""

from __future__ import annotations

import collections
import hashlib
import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from support import ByteServer, Connection, drive, eventually, keywords, ok

import enclavia
from enclavia.testing import LocalEnclave

FULL = os.environ.get("ENCLAVIA_FULL") == "1"
REQUESTS = 20_000 if FULL else 2_000
BLOCKS = 16_384 if FULL else 1_024  # of 64 KiB: 1 GiB, or 64 MiB
KILLS = 50 if FULL else 10


class Counting:
    """Answers each request with its path, and counts how often each one came."""

    def __init__(self) -> None:
        self.seen: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def __call__(self, connection: Connection) -> None:
        while True:
            path = connection.request()[0].split(b" ")[1]
            with self._lock:
                self.seen[path.decode()] += 1
            connection.send(ok(path))


def in_threads(count: int, work: Any) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a thread hangs"
    assert not failures, failures[0]


def test_64_threads() -> None:
    counting = Counting()
    with (
        ByteServer(counting) as server,
        LocalEnclave(server.address, in_process=False) as enclave,
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):

        def work(thread: int) -> None:
            for number in range(REQUESTS // 64 + 1):
                path = f"/{thread}-{number}"
                assert client.get(path).text == path

        in_threads(64, work)
        stats = client.stats
        assert (stats.connects, stats.retries, stats.streams_active) == (1, 0, 0)
        assert len(counting.seen) >= REQUESTS
        assert set(counting.seen.values()) == {1}


@pytest.mark.parametrize("kind", ["asyncio", "uvloop", "trio"])
def test_1000_tasks(kind: str) -> None:
    counting = Counting()
    with (
        ByteServer(counting) as server,
        LocalEnclave(server.address, in_process=False) as enclave,
    ):

        async def case() -> None:
            async with enclavia.AsyncClient(enclave.url, **keywords(enclave)) as client:

                async def work(task: int) -> None:
                    for number in range(REQUESTS // 1000):
                        path = f"/{task}-{number}"
                        assert (await client.get(path)).text == path

                async with anyio.create_task_group() as group:
                    for task in range(1000):
                        group.start_soon(work, task)
                stats = client.stats
                assert (stats.connects, stats.retries, stats.streams_active) == (1, 0, 0)

        drive(kind, case)
        assert len(counting.seen) == REQUESTS
        assert set(counting.seen.values()) == {1}


def test_killed_again_and_again() -> None:
    """Every idempotent request succeeds; any other one succeeds or says that it may be retried; and
    none of those reaches the workload twice."""
    counting = Counting()
    with (
        ByteServer(counting) as server,
        LocalEnclave(server.address, in_process=False) as enclave,
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        stop = threading.Event()
        lost: list[tuple[str, enclavia.EnclaviaError]] = []
        answered: list[str] = []

        def kill() -> None:
            """Again each time that work goes on."""
            dice = random.Random(5)
            try:
                for number in range(KILLS):
                    goal = len(answered) + dice.randrange(50, 250)
                    eventually(lambda goal=goal: len(answered) >= goal)  # type: ignore[misc]
                    if number % 2:
                        enclave.restart()
                    else:
                        enclave.drop_connections(reset=number % 4 == 0)
            finally:
                stop.set()

        def work(thread: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                method = ("GET", "POST")[number % 2]
                path = f"/{method}-{thread}-{number}"
                try:
                    assert client.request(method, path).text == path
                    answered.append(path)
                except enclavia.EnclaviaError as error:
                    lost.append((method, error))

        killer = threading.Thread(target=kill)
        killer.start()
        in_threads(8, work)
        killer.join()
        assert client.stats.reconnects >= KILLS // 2
        posts = {path: count for path, count in counting.seen.items() if "POST" in path}
        assert set(posts.values()) == {1}
        assert len(lost) < len(posts)
        assert all(method == "POST" and error.retryable for method, error in lost), lost


BLOCK = bytes(range(256)) * 256


async def bulk_app(scope: Any, receive: Any, send: Any) -> None:
    """For a child process: sends and hashes bodies of any size."""
    if scope["type"] != "http":
        return
    start = {"type": "http.response.start", "status": 200, "headers": []}
    if scope["method"] == "GET":
        await send(start)
        for _ in range(int(scope["path"][1:])):
            await send({"type": "http.response.body", "body": BLOCK, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    digest = hashlib.sha256()
    while True:
        message = await receive()
        digest.update(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send(start)
    await send({"type": "http.response.body", "body": digest.hexdigest().encode()})


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Memory:
    """How much more than at its start was ever in use."""

    def __init__(self) -> None:
        self._start = resident()
        self.growth = 0

    def look(self) -> None:
        self.growth = max(self.growth, resident() - self._start)


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_bulk_in_bounded_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), *sys.path]))
    whole = hashlib.sha256()
    for _ in range(BLOCKS):
        whole.update(BLOCK)
    with LocalEnclave("test_load:bulk_app", interface="asgi", in_process=False) as enclave:

        def blocks(memory: Memory) -> Iterator[bytes]:
            for _ in range(BLOCKS):
                memory.look()
                yield BLOCK

        def blocking() -> None:
            with enclavia.Client(enclave.url, **keywords(enclave)) as client:
                memory, digest = Memory(), hashlib.sha256()
                with client.stream("GET", f"/{BLOCKS}") as response:
                    for chunk in response.iter_bytes():
                        digest.update(chunk)
                        memory.look()
                assert digest.digest() == whole.digest()
                assert memory.growth <= 16 * 2**20
                memory = Memory()
                response = client.post("/", content=blocks(memory))
                assert response.text == whole.hexdigest()
                assert memory.growth <= 16 * 2**20

        async def awaited() -> None:
            async with enclavia.AsyncClient(enclave.url, **keywords(enclave)) as client:
                memory, digest = Memory(), hashlib.sha256()
                async with client.stream("GET", f"/{BLOCKS}") as response:
                    async for chunk in response.aiter_bytes():
                        digest.update(chunk)
                        memory.look()
                assert digest.digest() == whole.digest()
                assert memory.growth <= 16 * 2**20
                memory = Memory()

                async def body() -> AsyncIterator[bytes]:
                    for block in blocks(memory):
                        yield block

                response = await client.post("/", content=body())
                assert response.text == whole.hexdigest()
                assert memory.growth <= 16 * 2**20

        if kind == "sync":
            blocking()
        else:
            drive(kind, awaited)
