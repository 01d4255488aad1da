"""One verified connection, and raw streams over it: the awaited surface.

Awaits the operations of :mod:`enclavia._channel.operations`. Brings anyio by way of
:mod:`enclavia._io.loops`, and is therefore imported when it is first asked for.

Decides nothing itself. Calls: _arguments, _core, _errors, _identity, _io, _public. Locks: none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NoReturn, Self, Unpack

import httpx2

from .. import _core
from .._arguments import timeout as checked_timeout
from .._errors import StateError
from .._identity.attestation import Attestation
from .._io.connecting import Connecting
from .._io.face import READ_SIZE
from .._io.loops import LoopIo, run_blocking
from .._public import public
from . import operations
from .config import ChannelConfig
from .options import CHANNEL_DEFAULTS, ChannelOptions, inserted, takes
from .payload import read_size
from .shared import UNSET, ChannelBase, StreamBase

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["AsyncChannel", "AsyncStream"]

_IO = LoopIo()


@public
class AsyncChannel(ChannelBase):
    """One WebSocket, one Noise channel, one verified enclave at the other end.

    Made with :meth:`connect`; usable from any event loop (asyncio, uvloop, trio).
    """

    _HOW = "await "

    @classmethod
    @takes(ChannelOptions, inserted(CHANNEL_DEFAULTS, "max_in_flight", {"timeout": 30.0}))
    def connect(
        cls,
        url: str | httpx2.URL,
        *,
        timeout: float | None = 30.0,
        **options: Unpack[ChannelOptions],
    ) -> Connecting[Self]:
        """Connects and verifies; to be awaited, or entered with ``async with``."""
        config = ChannelConfig.build(url, "AsyncChannel.connect", **options)
        timeout = checked_timeout("timeout", timeout)
        config.warn_debug()

        async def start() -> Self:
            return cls(config, *await operations.connect(_IO, config, timeout), timeout)

        return Connecting(cls.__name__, start)

    async def open_stream(
        self, payload: Buffer = b"", timeout: float | None = UNSET
    ) -> AsyncStream:
        """Opens a TCP connection from the enclave to the workload; ``payload`` is written to it
        first. ``timeout``: for a free slot, and then for each read and write."""
        self._expect_not_ended()
        timeout = self._or_default(timeout)
        core = await operations.open_stream(_IO, self._core, payload, timeout)
        return AsyncStream(core, timeout, self)

    async def request(self, data: Buffer, timeout: float | None = UNSET) -> bytes:
        """One shot; see :meth:`enclavia.Channel.request`."""
        self._expect_not_ended()
        return await operations.request(_IO, self._core, data, self._or_default(timeout))

    async def attest(self, timeout: float | None = UNSET) -> Attestation:
        """A fresh document, verified like the first one."""
        self._expect_not_ended()
        return await operations.attest(
            _IO, self._config, self._core, self._or_default(timeout), self._receipts
        )

    async def close(self) -> None:
        """Sends what was written, for which it waits at most one second, then closes; streams
        still open end. What a slow link has not taken by then is lost."""
        self._ended = True
        await run_blocking(self._core.close)

    aclose = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AsyncChannel cannot be pickled: its keys must exist once. An AsyncClient can "
            "(it opens its own)"
        )


@public
class AsyncStream(StreamBase):
    """One TCP connection to the workload. As :class:`enclavia.Stream`, awaited."""

    def __init__(self, core: _core.Stream, timeout: float | None, channel: AsyncChannel) -> None:
        self._core = core
        self._channel = channel  # which closes when nobody has it
        self._read_timeout = timeout
        self._write_timeout = timeout
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called."""
        return self._closed

    async def read(self, n: int | None = -1) -> bytes:
        """1 to n bytes; ``b""`` at the end. Without n: everything up to the end."""
        self._check_open()
        n = -1 if n is None else read_size(n)
        if n >= 0:
            return await _IO.read(self._core, n, self._read_timeout) if n else b""
        pieces: list[bytes] = []
        while piece := await _IO.read(self._core, READ_SIZE, self._read_timeout):
            pieces.append(piece)
        return b"".join(pieces)

    async def readinto(self, buffer: Buffer) -> int:
        """Reads into ``buffer``; how many bytes, 1 to ``len(buffer)``, or 0 at the end."""
        self._check_open()
        return await _IO.readinto(self._core, buffer, self._read_timeout)

    async def write(self, data: Buffer) -> int:
        """All of data, or an error."""
        self._check_open()
        return await _IO.write(self._core, data, self._write_timeout)

    async def write_eof(self) -> None:
        """Shuts down our writing side. Some HTTP servers hang up when they see that."""
        self._check_open()
        self._core.write_eof()

    async def close(self) -> None:
        """Closes the stream on both sides; what was written before is still sent."""
        self._closed = True
        self._core.close()

    aclose = close

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the stream was closed")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read(READ_SIZE):
            yield piece

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AsyncStream cannot be pickled: it is part of an AsyncChannel, whose keys must "
            "exist once. An AsyncClient can (it opens its own)"
        )

    def __repr__(self) -> str:
        return f"<AsyncStream {self._core.id} {'closed' if self._closed else 'open'}>"
