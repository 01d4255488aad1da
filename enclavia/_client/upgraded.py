"""What an HTTP connection becomes after ``101 Switching Protocols``: a pair of byte streams.

The shape is httpcore2's network stream, which httpx2's own WebSocket client works on, and the
errors are caught as its errors too.

Decides which error of httpcore2 each error of ours is a subclass of. Calls: _errors, _exchange,
_io. Locks: none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import httpcore2

from .._errors import ConnectionClosed, EnclaviaError, ReadTimeout, WriteTimeout
from .._exchange.exchange import Exchange
from .._io.face import run

__all__ = ["AsyncNetworkStream", "NetworkStream"]


class _ReadError(ConnectionClosed, httpcore2.ReadError):
    pass


class _WriteError(ConnectionClosed, httpcore2.WriteError):
    pass


class _ReadTimeout(ReadTimeout, httpcore2.ReadTimeout):
    pass


class _WriteTimeout(WriteTimeout, httpcore2.WriteTimeout):
    pass


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except ReadTimeout as error:
        raise _ReadTimeout(str(error)) from error
    except EnclaviaError as error:
        raise _ReadError(str(error), retryable=error.retryable) from error
    except ValueError as error:
        # Closed meanwhile by another thread or task.
        raise _ReadError(str(error), retryable=False) from error


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except WriteTimeout as error:
        raise _WriteTimeout(str(error)) from error
    except EnclaviaError as error:
        raise _WriteError(str(error), retryable=error.retryable) from error
    except ValueError as error:
        raise _WriteError(str(error), retryable=False) from error


class _Upgraded:
    """The exchange's stream, and what came on it together with the head of the answer."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._leftover = exchange.leftover

    async def _read(self, n: int, timeout: float | None) -> bytes:
        if self._leftover:
            piece, self._leftover = self._leftover[:n], self._leftover[n:]
            return piece
        with _reading():
            return await self._exchange.io.read(self._exchange.stream, n, timeout)

    async def _write(self, buffer: bytes, timeout: float | None) -> None:
        with _writing():
            await self._exchange.io.write(self._exchange.stream, buffer, timeout)

    def get_extra_info(self, info: str) -> None:
        return None

    def start_tls(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError("TLS inside an upgraded connection of the tunnel")


class NetworkStream(_Upgraded, httpcore2.NetworkStream):
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return run(self._read(max_bytes, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        run(self._write(buffer, timeout))

    def close(self) -> None:
        self._exchange.drop()


class AsyncNetworkStream(_Upgraded, httpcore2.AsyncNetworkStream):
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._write(buffer, timeout)

    async def aclose(self) -> None:
        self._exchange.drop()
