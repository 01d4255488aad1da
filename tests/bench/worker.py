"""One client in a process of its own: takes commands as JSON lines, answers each with one.

python -m tests.bench.worker KIND '{"url": ..., "workload": ..., "keywords": {...}}'
{"do": "get", "count": 1000, "callers": 16}  ->  {"ok": 1000, "wall_s": ..., "cpu_s": ..., ...}
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import itertools
import json
import math
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from .naps import NAP, Beside, naps, sha256

UPLOAD_PIECE = 64 * 1024
BLOCK = 2**20


def cpu_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory(field: str) -> int:
    """Of this process, in bytes."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """VmHWM starts anew. Where that may not be written the peak of the start counts too."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")


class Body:
    """What is uploaded, and the hash that must come back. In pieces: one random block again and
    again, so that a body may be larger than what one would hold."""

    def __init__(self, size: int, in_pieces: bool) -> None:
        self.size = size
        self.whole: bytes | None = None if in_pieces else os.urandom(size)
        self.block = os.urandom(min(BLOCK, size)) if in_pieces else b""
        digest = hashlib.sha256()
        for piece in self:
            digest.update(piece)
        self.digest = digest.hexdigest().encode()

    def __iter__(self) -> Iterator[memoryview]:
        if self.whole is not None:
            view = memoryview(self.whole)
            for at in range(0, self.size, UPLOAD_PIECE):
                yield view[at : at + UPLOAD_PIECE]
            return
        left = self.size
        while left:
            piece = memoryview(self.block)[: min(left, len(self.block))]
            yield piece
            left -= len(piece)

    def headers(self) -> dict[str, str]:
        return {"Content-Length": str(self.size)}

    def content(self) -> Any:
        return self.whole if self.whole is not None else (bytes(piece) for piece in self)

    async def acontent(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield bytes(piece)


def percentile(ordered: list[float], percent: float) -> float:
    """Nearest rank."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class Elsewhere:
    """The delays of a thread in a process of its own, which may have a thread that computes."""

    def __init__(self, seconds: float, *work: str) -> None:
        program = str(Path(__file__).with_name("naps.py"))
        self._process = subprocess.Popen(
            [sys.executable, program, str(seconds), *work], stdout=subprocess.PIPE
        )

    def delays(self) -> list[float]:
        printed, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.returncode}")
        delays: list[float] = json.loads(printed)
        return delays


class Driver:
    """What is measured, whoever the client is. A command that takes too long ends early and says
    how much was done."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.path = "/small"
        self.url: str = facts["url"]
        self.workload: str = facts["workload"]
        self.keywords: dict[str, Any] = facts["keywords"]
        if isinstance(nonce := self.keywords.get("nonce"), str):
            self.keywords["nonce"] = bytes.fromhex(nonce)
        pcrs = self.keywords.get("pcrs")
        if pcrs is not None:
            import enclavia

            self.keywords["pcrs"] = enclavia.Pcrs(**pcrs)
        root = self.keywords.get("root")
        if root is not None:
            self.keywords["root"] = root.encode()

    def open(self) -> None: ...

    def close(self) -> None: ...

    def get(self) -> None:
        raise NotImplementedError

    def download(self, size: int) -> None:
        raise NotImplementedError

    def upload(self, body: Body) -> None:
        raise NotImplementedError

    def reconnects(self) -> int:
        """How often a client so far connected again by itself."""
        stats = getattr(getattr(self, "client", None), "stats", None)
        return getattr(stats, "reconnects", 0)

    def connect(self) -> None:
        """Another one, closed at once."""
        raise NotImplementedError

    def run(self, job: Callable[[], None], count: int, callers: int, seconds: float) -> list[float]:
        turns = itertools.count()
        until = time.perf_counter() + seconds
        taken: list[float] = []
        failed: list[BaseException] = []

        def caller() -> None:
            try:
                while next(turns) < count and (begun := time.perf_counter()) < until:
                    job()
                    taken.append(time.perf_counter() - begun)
            except BaseException as error:
                failed.append(error)

        if callers == 1:
            caller()
        else:
            threads = [threading.Thread(target=caller) for _ in range(callers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if failed:
            raise failed[0]
        return taken

    def job(self, command: dict[str, Any]) -> Callable[[], None]:
        size = command.get("size", 0)
        match command["do"]:
            case "get":
                return self.get
            case "connect":
                return self.connect
            case "download":
                return lambda: self.download(size)
            case "upload":
                body = Body(size, command.get("pieces", False))
                return lambda: self.upload(body)
            case other:
                raise ValueError(f"no such command: {other!r}")

    def measure(self, command: dict[str, Any]) -> dict[str, Any]:
        self.path = command.get("path", "/small")
        job = self.job(command)
        callers = command.get("callers", 1)
        seconds = command.get("seconds", 20.0)
        count = command["count"] * command.get("times", 1)
        if warmup := command.get("warmup", 0):
            self.run(job, warmup, callers, seconds)
        gc.collect()  # of what was before; the collector stays on, as a user has it
        forget_peak()
        idle = memory("VmRSS")
        connected = self.reconnects()
        cpu, begun = cpu_time(), time.perf_counter()
        taken = sorted(self.run(job, count, callers, seconds))
        wall, cpu = time.perf_counter() - begun, cpu_time() - cpu
        return {
            "ok": len(taken),
            "bytes": len(taken) * command.get("size", 0),
            "wall_s": wall,
            "cpu_s": cpu,
            "p50_us": percentile(taken, 50) * 1e6,
            "p99_us": percentile(taken, 99) * 1e6,
            "grown": memory("VmHWM") - idle,
            "reconnects": self.reconnects() - connected,
        }


class Sync(Driver):
    """``enclavia.Client``."""

    def make(self) -> Any:
        import enclavia

        return enclavia.Client.connect(self.url, **self.keywords)

    def open(self) -> None:
        self.client = self.make()

    def close(self) -> None:
        self.client.close()

    def connect(self) -> None:
        self.make().close()

    def get(self) -> None:
        assert self.client.get(self.path).content == b"ok"

    def download(self, size: int) -> None:
        got = 0
        with self.client.stream("GET", f"/bytes/{size}") as response:
            for piece in response.iter_raw():
                got += len(piece)
        assert got == size

    def upload(self, body: Body) -> None:
        with self.client.stream(
            "POST", "/sha256", content=body.content(), headers=body.headers()
        ) as response:
            assert response.read() == body.digest

    def measure(self, command: dict[str, Any]) -> dict[str, Any]:
        return self.pauses(command) if command["do"] == "pauses" else super().measure(command)

    def pauses(self, command: dict[str, Any]) -> dict[str, Any]:
        """Of one thread, beside another of this process that downloads, or that computes in C
        without the GIL.

        ``elsewhere``: the thread is of another process. ``compute``: that process has a thread
        which computes, too. With both, and with ``compute`` alone, the machine has the same work to
        do; what differs is with which work the thread shares its interpreter."""
        work: Callable[[], object] = (
            (lambda: self.download(8 * 2**20)) if command["beside"] == "download" else sha256
        )
        seconds = command["count"] * NAP
        work()
        gc.collect()
        cpu, begun = cpu_time(), time.perf_counter()
        with Beside(work):
            other: Elsewhere | None = None
            if command.get("compute"):
                other = Elsewhere(seconds, "sha256")
            elif command.get("elsewhere"):
                other = Elsewhere(seconds)
            late = [] if command.get("elsewhere") else naps(seconds)
            there = other.delays() if other is not None else []
        late = sorted(there if command.get("elsewhere") else late)
        return {
            "ok": len(late),
            "bytes": 0,
            "wall_s": time.perf_counter() - begun,
            "cpu_s": cpu_time() - cpu,
            "p50_us": percentile(late, 50) * 1e6,
            "p99_us": percentile(late, 99) * 1e6,
            "p999_us": percentile(late, 99.9) * 1e6,
            "grown": 0,
            "reconnects": 0,
        }


class Direct(Sync):
    """httpx2 to the workload, no tunnel: nothing is attested, nothing encrypted."""

    def make(self) -> Any:
        import httpx2

        limits = httpx2.Limits(max_connections=64, max_keepalive_connections=64)
        client = httpx2.Client(
            base_url=f"http://{self.workload}", trust_env=False, timeout=30, limits=limits
        )
        client.get("/small")
        return client


class ByForwardersHttp(Direct):
    """httpx2 to a forwarder's http way."""

    def make(self) -> Any:
        import httpx2

        transport = httpx2.HTTPTransport(uds=self.workload)
        client = httpx2.Client(
            base_url="http://localhost", transport=transport, trust_env=False, timeout=30
        )
        client.get("/small")
        return client


class Forwarding(Driver):
    """The forwarder itself, of which other processes are clients. Says what CPU it has used."""

    def open(self) -> None:
        import enclavia

        self.forwarder = enclavia.Forwarder(
            self.url, socket=self.workload, http=True, **self.keywords
        ).start()
        self.forwarder.connect()

    def close(self) -> None:
        self.forwarder.stop(0)

    def measure(self, command: dict[str, Any]) -> dict[str, Any]:
        return {"cpu_s": cpu_time()}


class Async(Driver):
    """``enclavia.AsyncClient`` on asyncio; callers are tasks."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self.runner = asyncio.Runner()

    async def make(self) -> Any:
        import enclavia

        return await enclavia.AsyncClient.connect(self.url, **self.keywords)

    def open(self) -> None:
        self.client = self.runner.run(self.make())

    def close(self) -> None:
        self.runner.run(self.client.aclose())

    async def aconnect(self) -> None:
        await (await self.make()).aclose()

    async def aget(self) -> None:
        assert (await self.client.get(self.path)).content == b"ok"

    async def adownload(self, size: int) -> None:
        got = 0
        async with self.client.stream("GET", f"/bytes/{size}") as response:
            async for piece in response.aiter_raw():
                got += len(piece)
        assert got == size

    async def aupload(self, body: Body) -> None:
        content = body.whole if body.whole is not None else body.acontent()
        async with self.client.stream(
            "POST", "/sha256", content=content, headers=body.headers()
        ) as response:
            assert await response.aread() == body.digest

    def job(self, command: dict[str, Any]) -> Any:
        size = command.get("size", 0)
        match command["do"]:
            case "get":
                return self.aget
            case "connect":
                return self.aconnect
            case "download":
                return lambda: self.adownload(size)
            case "upload":
                body = Body(size, command.get("pieces", False))
                return lambda: self.aupload(body)
            case other:
                raise ValueError(f"no such command: {other!r}")

    def run(self, job: Any, count: int, callers: int, seconds: float) -> list[float]:
        return self.runner.run(self._run(job, count, callers, seconds))

    async def _run(
        self, job: Callable[[], Awaitable[None]], count: int, callers: int, seconds: float
    ) -> list[float]:
        turns = itertools.count()
        until = time.perf_counter() + seconds
        taken: list[float] = []

        async def caller() -> None:
            while next(turns) < count and (begun := time.perf_counter()) < until:
                await job()
                taken.append(time.perf_counter() - begun)

        await asyncio.gather(*(caller() for _ in range(callers)))
        return taken


class DirectAsync(Async):
    """httpx2 to the workload, no tunnel; callers are tasks."""

    async def make(self) -> Any:
        import httpx2

        limits = httpx2.Limits(max_connections=64, max_keepalive_connections=64)
        client = httpx2.AsyncClient(
            base_url=f"http://{self.workload}", trust_env=False, timeout=30, limits=limits
        )
        await client.get("/small")
        return client


GET = b"GET /small HTTP/1.1\r\nHost: enclave\r\n\r\n"


def length_of(head: bytes) -> int:
    return int(head.lower().split(b"content-length:")[1].split(b"\r\n", 1)[0])


class Raw(Driver):
    """HTTP by hand over a stream that is kept open; one a thread."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self.local = threading.local()

    def write(self, data: bytes | memoryview) -> None:
        raise NotImplementedError

    def read(self) -> bytes | memoryview:
        raise NotImplementedError

    def head(self) -> tuple[int, bytes]:
        """The length of the body, and what came of it."""
        held = b""
        while b"\r\n\r\n" not in held:
            held += bytes(self.read())
        head, _, body = held.partition(b"\r\n\r\n")
        return length_of(head), body

    def get(self) -> None:
        self.write(GET)
        length, body = self.head()
        while len(body) < length:
            body += bytes(self.read())
        assert body == b"ok"

    def download(self, size: int) -> None:
        self.write(b"GET /bytes/%d HTTP/1.1\r\nHost: enclave\r\n\r\n" % size)
        length, body = self.head()
        got = len(body)
        while got < length:
            got += len(self.read())
        assert got == length == size

    def upload(self, body: Body) -> None:
        self.write(
            b"POST /sha256 HTTP/1.1\r\nHost: enclave\r\nContent-Length: %d\r\n\r\n" % body.size
        )
        for piece in body:
            self.write(piece)
        length, answer = self.head()
        while len(answer) < length:
            answer += bytes(self.read())
        assert answer == body.digest


class Stream(Raw):
    """A stream of ``enclavia.Channel``, kept open."""

    def make(self) -> Any:
        import enclavia

        return enclavia.Channel.connect(self.url, **self.keywords)

    def open(self) -> None:
        self.channel = self.make()
        self.free: list[Any] = []
        self.local = threading.local()

    def close(self) -> None:
        self.channel.close()

    def connect(self) -> None:
        self.make().close()

    def mine(self) -> tuple[Any, bytearray]:
        kept = getattr(self.local, "kept", None)
        if kept is None:
            try:
                kept = self.free.pop()
            except IndexError:
                kept = (self.channel.open_stream(), bytearray(UPLOAD_PIECE))
            self.local.kept = kept
        return kept

    def run(self, job: Callable[[], None], count: int, callers: int, seconds: float) -> list[float]:
        if callers == 1:
            return super().run(job, count, callers, seconds)
        used: list[Any] = []
        if hasattr(self.local, "kept"):
            self.free.append(self.local.kept)
            del self.local.kept

        def noted() -> None:
            if getattr(self.local, "kept", None) is None:
                used.append(self.mine())
            job()

        try:
            return super().run(noted, count, callers, seconds)
        finally:
            self.free.extend(used)

    def write(self, data: bytes | memoryview) -> None:
        self.mine()[0].write(data)

    def read(self) -> memoryview:
        stream, block = self.mine()
        return memoryview(block)[: stream.readinto(block)]


class RawByForwardersHttp(Raw):
    """HTTP by hand to a forwarder's http way, on a connection that is kept open. One thread."""

    def open(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(self.workload)

    def close(self) -> None:
        self.socket.close()

    def write(self, data: bytes | memoryview) -> None:
        self.socket.sendall(bytes(data).replace(b"Host: enclave", b"Host: localhost"))

    def read(self) -> bytes:
        return self.socket.recv(UPLOAD_PIECE)


class Plain(Raw):
    """websockets, cryptography and cbor2; it verifies no attestation. One thread."""

    def make(self) -> Any:
        from tests.support.plain_client import PlainClient

        client = PlainClient.connect(self.url)
        client.attest()
        return client

    def open(self) -> None:
        self.client = self.make()
        self.stream: int | None = None

    def close(self) -> None:
        self.client.close()

    def connect(self) -> None:
        self.make().close()

    def write(self, data: bytes | memoryview) -> None:
        if self.stream is None:
            self.stream = self.client.open_stream()
        self.client.write_stream(self.stream, bytes(data))

    def read(self) -> bytes:
        assert self.stream is not None
        chunk: bytes = self.client.read_chunk(self.stream)
        return chunk


class Sockets(Driver):
    """HTTP by hand on connections to the workload that are kept open, one thread for all: each
    batch is written to all of them, then read. As little as a client can do."""

    request = GET

    def dial(self) -> socket.socket:
        host, _, port = self.workload.rpartition(":")
        made = socket.create_connection((host, int(port)))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def open(self) -> None:
        self.sockets = [self.dial() for _ in range(64)]

    def close(self) -> None:
        for each in self.sockets:
            each.close()

    def get(self) -> None:
        raise NotImplementedError

    def batch(self, callers: int) -> list[socket.socket]:
        return self.sockets[:callers]

    def answered(self, each: socket.socket) -> None:
        assert each.recv(4096).endswith(b"\r\n\r\nok")

    def run(self, job: Callable[[], None], count: int, callers: int, seconds: float) -> list[float]:
        until = time.perf_counter() + seconds
        taken: list[float] = []
        while len(taken) < count and (begun := time.perf_counter()) < until:
            used = self.batch(callers)
            for each in used:
                each.sendall(self.request)
            for each in used:
                self.answered(each)
                taken.append(time.perf_counter() - begun)
        return taken


class SocketsEach(Sockets):
    """The same with a connection for each request."""

    request = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    def open(self) -> None:
        self.sockets = []

    def batch(self, callers: int) -> list[socket.socket]:
        return [self.dial() for _ in range(callers)]

    def answered(self, each: socket.socket) -> None:
        super().answered(each)
        assert each.recv(1) == b""
        each.close()


class Verifying(Driver):
    """A document in a file, as of its own time."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self.document = Path(self.url).read_bytes()

    def verify(self) -> None:
        import enclavia

        enclavia.verify_attestation(self.document, **self.keywords)

    def job(self, command: dict[str, Any]) -> Callable[[], None]:
        return self.verify


class AppInEnclave(Sync):
    """``enclavia.Client`` to a LocalEnclave that serves an app in this process: what a test suite
    has."""

    def open(self) -> None:
        from enclavia.testing import LocalEnclave

        self.enclave = LocalEnclave(getattr(apps(), self.workload)).start()
        self.keywords = {"pcrs": self.enclave.pcrs, "root": self.enclave.root}
        self.url = self.enclave.url
        super().open()

    def close(self) -> None:
        super().close()
        self.enclave.stop()


class AppInEnclaveByHttpx2(AppInEnclave):
    """The same through httpx2's own client, so that nothing but the transport differs."""

    def make(self) -> Any:
        import httpx2

        import enclavia

        transport = enclavia.EnclaveTransport(self.url, **self.keywords)
        return httpx2.Client(transport=transport, base_url=transport.base_url, trust_env=False)


class AppDirect(Direct):
    """httpx2 to a server in this process that serves the same app with the same settings. It binds
    its socket by itself, so that nothing of LocalEnclave's is measured on both sides."""

    def open(self) -> None:
        address, self.stop = apps().served(self.workload)
        self.workload = f"{address[0]}:{address[1]}"
        super().open()

    def close(self) -> None:
        super().close()
        self.stop()


def apps() -> Any:
    """Imported by those alone that serve an app: it decides which event loop uvicorn takes."""
    from tests.bench import apps as found

    return found


class Importing(Driver):
    """How long an import takes, in a fresh interpreter: this one."""

    def measure(self, command: dict[str, Any]) -> dict[str, Any]:
        cpu, begun = cpu_time(), time.perf_counter()
        __import__(command["module"])
        return {"wall_s": time.perf_counter() - begun, "cpu_s": cpu_time() - cpu}


KINDS: dict[str, type[Driver]] = {
    "client": Sync,
    "async": Async,
    "stream": Stream,
    "plain": Plain,
    "direct": Direct,
    "direct-async": DirectAsync,
    "http": ByForwardersHttp,
    "http-raw": RawByForwardersHttp,
    "forwarder": Forwarding,
    "sockets": Sockets,
    "sockets-each": SocketsEach,
    "app-client": AppInEnclave,
    "app-httpx2": AppInEnclaveByHttpx2,
    "app-direct": AppDirect,
    "verify": Verifying,
    "import": Importing,
}


def answer(driver: Driver, command: dict[str, Any]) -> dict[str, Any]:
    """What was measured, or why it could not be: the real server's loop loses a connection now and
    then (docs/reliability.md). A new one is made then, outside of what is measured."""
    try:
        return driver.measure(command)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    with contextlib.suppress(Exception):
        driver.close()
    driver.open()
    return {"failed": reason}


def main() -> None:
    warnings.simplefilter("ignore")
    driver = KINDS[sys.argv[1]](json.loads(sys.argv[2]))
    opened = False
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] not in ("connect", "import", "verify") and not opened:
            driver.open()
            opened = True
        print(json.dumps(answer(driver, command)), flush=True)
    if opened:
        driver.close()


if __name__ == "__main__":
    main()
