"""What the Python tests share: a workload made of bytes, and one face for both kinds of client."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx2
from listening import end_listening, hang_up
from resources import came_true

import enclavia
from enclavia.testing import LocalEnclave

KINDS = ["sync", "asyncio", "uvloop", "trio"]

HANG = 60.0
"""Seconds after which something hangs, however loaded the machine is. No test fails by being slower
than this alone: it is only waited for where something is broken."""

BUFFERS = ("wmem", "rmem")

GIVES_UP = 15.0
"""Seconds after which a silent workload hangs up. They are far above the deadlines that tests set
and below the default of 30, so a call that does not keep its own ends with another error."""


class Connection:
    """One connection to the byte-level workload."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.buffer = b""

    def read_until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(f"closed by the client after {self.buffer!r}")
            self.buffer += data
        taken, _, self.buffer = self.buffer.partition(end)
        return taken + end

    def read(self, n: int) -> bytes:
        while len(self.buffer) < n:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(f"closed by the client after {len(self.buffer)} of {n} bytes")
            self.buffer += data
        taken, self.buffer = self.buffer[:n], self.buffer[n:]
        return taken

    def head(self) -> bytes:
        return self.read_until(b"\r\n\r\n")

    def request(self) -> tuple[bytes, bytes]:
        """A whole request: its head and its body."""
        head = self.head()
        fields = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
        named = {name.lower(): value.strip() for name, _, value in fields}
        if named.get(b"transfer-encoding") == b"chunked":
            return head, self.chunked()
        return head, self.read(int(named.get(b"content-length", b"0")))

    def chunked(self) -> bytes:
        body = b""
        while size := int(self.read_until(b"\r\n"), 16):
            body += self.read(size)
            assert self.read(2) == b"\r\n"
        assert self.read(2) == b"\r\n"
        return body

    def wait_closed(self, timeout: float = GIVES_UP) -> bytes:
        """What comes until the client closes; the workload closes when that takes too long."""
        self.sock.settimeout(timeout)
        pieces = [self.buffer]
        while data := self.sock.recv(65536):
            pieces.append(data)
        return b"".join(pieces)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


class ByteServer:
    """A workload that says exactly what the test wants: ``script`` runs for each connection."""

    def __init__(self, script: Callable[[Connection], None]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self.connections: list[Connection] = []
        self.errors: list[BaseException] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, len(self.connections))
            self.connections.append(connection)
            thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
            thread.start()

    def _run(self, connection: Connection) -> None:
        try:
            self._script(connection)
        except (EOFError, OSError):
            pass  # a client may leave
        except BaseException as error:
            self.errors.append(error)
        finally:
            connection.sock.close()

    def __enter__(self) -> ByteServer:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        end_listening(self._listener, self._thread)
        for connection in self.connections:
            hang_up(connection.sock)
        assert not self.errors, self.errors


def answering(*responses: bytes) -> Callable[[Connection], None]:
    """Answers the requests of each connection with these, in turn, then goes on with the last."""

    def script(connection: Connection) -> None:
        count = 0
        while True:
            connection.request()
            connection.send(responses[min(count, len(responses) - 1)])
            count += 1

    return script


def ok(body: bytes = b"ok", extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (extra, len(body), body)


@contextlib.contextmanager
def byte_enclave(
    script: Callable[[Connection], None], **options: Any
) -> Iterator[tuple[LocalEnclave, ByteServer]]:
    with ByteServer(script) as server, LocalEnclave(server.address, **options) as enclave:
        yield enclave, server


def keywords(enclave: LocalEnclave, **more: Any) -> dict[str, Any]:
    return {"pcrs": enclave.pcrs, "root": enclave.root, **more}


class Face:
    """A client of either kind, awaited. Awaiting the sync kind blocks."""

    def __init__(self, client: enclavia.Client | enclavia.AsyncClient) -> None:
        self.client: Any = client
        self.is_async = isinstance(client, enclavia.AsyncClient)

    async def call(self, result: Any) -> Any:
        return await result if self.is_async else result

    async def request(self, method: str, url: str, **options: Any) -> httpx2.Response:
        content = options.get("content")
        if isinstance(content, Chunks):
            options["content"] = content.asynchronous() if self.is_async else content.blocking()
        return await self.call(self.client.request(method, url, **options))

    async def get(self, url: str, **options: Any) -> httpx2.Response:
        return await self.request("GET", url, **options)

    async def post(self, url: str, **options: Any) -> httpx2.Response:
        return await self.request("POST", url, **options)

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, url: str, **options: Any
    ) -> AsyncIterator[StreamedResponse]:
        content = options.get("content")
        if isinstance(content, Chunks):
            options["content"] = content.asynchronous() if self.is_async else content.blocking()
        manager = self.client.stream(method, url, **options)
        if self.is_async:
            async with manager as response:
                yield StreamedResponse(response, True)
        else:
            with manager as response:
                yield StreamedResponse(response, False)

    async def sleep(self, seconds: float) -> None:
        if self.is_async:
            await anyio.sleep(seconds)
        else:
            time.sleep(seconds)

    async def close(self) -> None:
        if self.is_async:
            await self.client.aclose()
        else:
            self.client.close()


class StreamedResponse:
    def __init__(self, response: httpx2.Response, is_async: bool) -> None:
        self.response = response
        self._is_async = is_async

    async def raw(self) -> AsyncIterator[bytes]:
        if self._is_async:
            async for chunk in self.response.aiter_raw():
                yield chunk
        else:
            for chunk in self.response.iter_raw():
                yield chunk

    async def read(self) -> bytes:
        return await self.response.aread() if self._is_async else self.response.read()


class Chunks:
    """A body that is produced piece by piece, with pauses where a piece is a number."""

    def __init__(self, *pieces: bytes | float) -> None:
        self.pieces = pieces
        self.produced = 0
        self.closed = False

    def blocking(self) -> Iterator[bytes]:
        try:
            for piece in self.pieces:
                if isinstance(piece, bytes):
                    self.produced += 1
                    yield piece
                else:
                    time.sleep(piece)
        finally:
            self.closed = True

    async def asynchronous(self) -> AsyncIterator[bytes]:
        try:
            for piece in self.pieces:
                if isinstance(piece, bytes):
                    self.produced += 1
                    yield piece
                else:
                    await anyio.sleep(piece)
        finally:
            self.closed = True


def drive(kind: str, case: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a case: stepwise where it only blocks, in an event loop otherwise."""
    if kind == "sync":
        coroutine = case()
        try:
            coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError("a blocking case was suspended")
    backend, options = ("asyncio", {"use_uvloop": True}) if kind == "uvloop" else (kind, {})
    anyio.run(case, backend=backend, backend_options=options)


def with_client(
    kind: str,
    enclave: LocalEnclave,
    case: Callable[[Face], Awaitable[None]],
    **options: Any,
) -> None:
    """Runs a case with a client of one kind, and looks that nothing is left behind."""

    async def run() -> None:
        cls = enclavia.Client if kind == "sync" else enclavia.AsyncClient
        face = Face(cls(enclave.url, **keywords(enclave, **options)))
        try:
            await case(face)
        finally:
            await face.close()

    drive(kind, functools.partial(run))
    eventually(lambda: enclave.stats()["slots_open"] == 0)


def heard_the_close(client: enclavia.Client | enclavia.AsyncClient) -> bool:
    """Whether every workload connection that is kept for a next request is known to be closed."""
    members = client._enclave._engine.pool._members.all
    return all(not link.fresh for member in members for _, link in member.idle)


@contextlib.contextmanager
def unless_ended(act: Callable[[], object]) -> Iterator[None]:
    """``act`` is done where the block has not ended after GIVES_UP seconds. What should have ended
    by its own, much shorter deadline then ends in another way, and the test tells the two apart
    without looking at a clock."""
    timer = threading.Timer(GIVES_UP, act)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def kernel_buffers(*names: str) -> int:
    """Bytes that this machine's kernel may hold between two ends of a TCP connection over loopback:
    the largest send buffer ("wmem") and the largest receive buffer ("rmem"), or one of them where
    the test has set the other."""
    limits = [Path(f"/proc/sys/net/ipv4/tcp_{name}").read_text() for name in names or BUFFERS]
    return sum(int(limit.split()[2]) for limit in limits)


def together(*works: Callable[[], object]) -> None:
    """Each in a thread of its own, until all of them have ended. One that hangs fails the test, and
    does not keep the process from ending."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def eventually(
    condition: Callable[[], bool], timeout: float = HANG, what: Sequence[object] = ()
) -> None:
    assert came_true(condition, timeout), ("did not come true", condition, *what)
