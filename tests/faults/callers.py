"""One face for the four kinds of caller: Client, AsyncClient, and HTTP by hand over a Channel or an
AsyncChannel. All block; those that are awaited run in an event loop of their own."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, Self

import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal

from enclavia import (
    AsyncChannel,
    AsyncClient,
    Channel,
    Client,
    ConnectionClosed,
    ReadTimeout,
)

from .workload import content

TimeoutTypes = httpx2.Timeout | float

KINDS = ["Client", "AsyncClient", "Channel", "AsyncChannel"]


class Caller(Protocol):
    """Answers were checked when these return; a false one is an AssertionError."""

    def get(self, size: int, at: int) -> None: ...
    def post(self, number: str, size: int, at: int) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


def make(kind: str, url: str, timeout: TimeoutTypes, options: dict[str, Any]) -> Caller:
    kinds: dict[str, Callable[..., Caller]] = {
        "Client": ClientCaller,
        "AsyncClient": AsyncClientCaller,
        "Channel": ChannelCaller,
        "AsyncChannel": AsyncChannelCaller,
    }
    return kinds[kind](url, timeout, options)


def check_bytes(got: bytes, size: int, at: int) -> None:
    assert got == content(size, at), f"wrong bytes: {len(got)} of {size} from {at}"


def check_digest(answer: Any, size: int, at: int) -> None:
    digest = hashlib.sha256(content(size, at)).hexdigest()
    assert answer == {"sha256": digest, "length": size}, f"wrong digest of {size} from {at}"


def request_bytes(method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: e\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def body_of(answer: bytes) -> bytes:
    """With nothing before it that says how long it is, an answer cut short looks whole: the end of
    the stream says only that the workload closed."""
    head, end, body = answer.partition(b"\r\n\r\n")
    assert end and head.startswith(b"HTTP/1.1 200"), f"no answer: {answer[:80]!r}"
    lengths = [
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    ]
    assert lengths == [len(body)], f"{len(body)} bytes of {lengths}"
    return body


class _Context:
    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ClientCaller(_Context):
    def __init__(self, url: str, timeout: TimeoutTypes, options: dict[str, Any]) -> None:
        self.client = Client(url, timeout=timeout, **options)

    def get(self, size: int, at: int) -> None:
        response = self.client.get(f"/bytes/{size}?at={at}")
        assert response.status_code == 200
        check_bytes(response.content, size, at)

    def post(self, number: str, size: int, at: int) -> None:
        response = self.client.post(f"/post/{number}", content=content(size, at))
        assert response.status_code == 200
        check_digest(response.json(), size, at)

    def close(self) -> None:
        self.client.close()


class ChannelCaller(_Context):
    """Opens a channel when it has none, and another one when that is gone."""

    def __init__(self, url: str, timeout: float, options: dict[str, Any]) -> None:
        self._connect: Callable[[], Channel] = lambda: Channel.connect(
            url, timeout=timeout, **options
        )
        self._channel: Channel | None = None
        self._given_up = False

    def _ask(self, request: bytes) -> bytes:
        if self._channel is not None and (self._channel.closed or self._given_up):
            self.close()
        if self._channel is None:
            self._channel = self._connect()
        try:
            with self._channel.open_stream(request) as stream:
                return body_of(stream.readall())
        except (ConnectionClosed, ReadTimeout):
            self._given_up = True
            raise

    def get(self, size: int, at: int) -> None:
        check_bytes(self._ask(request_bytes("GET", f"/bytes/{size}?at={at}")), size, at)

    def post(self, number: str, size: int, at: int) -> None:
        answer = self._ask(request_bytes("POST", f"/post/{number}", content(size, at)))
        check_digest(json.loads(answer), size, at)

    def close(self) -> None:
        channel, self._channel = self._channel, None
        self._given_up = False
        if channel is not None:
            channel.close()


class _InLoop(_Context):
    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._portal: BlockingPortal = self._stack.enter_context(start_blocking_portal())

    def _run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        return self._portal.call(work)

    async def _aclose(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        with self._stack:
            self._run(self._aclose)


class AsyncClientCaller(_InLoop):
    def __init__(self, url: str, timeout: TimeoutTypes, options: dict[str, Any]) -> None:
        super().__init__()
        self.client = AsyncClient(url, timeout=timeout, **options)

    def get(self, size: int, at: int) -> None:
        response = self._run(lambda: self.client.get(f"/bytes/{size}?at={at}"))
        assert response.status_code == 200
        check_bytes(response.content, size, at)

    def post(self, number: str, size: int, at: int) -> None:
        body = content(size, at)
        response = self._run(lambda: self.client.post(f"/post/{number}", content=body))
        assert response.status_code == 200
        check_digest(response.json(), size, at)

    async def _aclose(self) -> None:
        await self.client.aclose()


class AsyncChannelCaller(_InLoop):
    def __init__(self, url: str, timeout: float, options: dict[str, Any]) -> None:
        super().__init__()
        self._connect: Callable[[], Awaitable[AsyncChannel]] = lambda: AsyncChannel.connect(
            url, timeout=timeout, **options
        )
        self._channel: AsyncChannel | None = None
        self._given_up = False

    async def _ask(self, request: bytes) -> bytes:
        if self._channel is not None and (self._channel.closed or self._given_up):
            await self._aclose()
        if self._channel is None:
            self._channel = await self._connect()
        try:
            async with await self._channel.open_stream(request) as stream:
                return body_of(await stream.read())
        except (ConnectionClosed, ReadTimeout):
            self._given_up = True
            raise

    def get(self, size: int, at: int) -> None:
        request = request_bytes("GET", f"/bytes/{size}?at={at}")
        check_bytes(self._run(lambda: self._ask(request)), size, at)

    def post(self, number: str, size: int, at: int) -> None:
        request = request_bytes("POST", f"/post/{number}", content(size, at))
        check_digest(json.loads(self._run(lambda: self._ask(request))), size, at)

    async def _aclose(self) -> None:
        channel, self._channel = self._channel, None
        self._given_up = False
        if channel is not None:
            await channel.close()
