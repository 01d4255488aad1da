"""One verified connection, and raw streams over it: the awaited surface."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

import anyio
import anyio.to_thread
import httpx2

from .. import _core
from .._arguments import byte_view
from .._arguments import timeout as checked_timeout
from .._errors import ConnectTimeout, ReadTimeout, StateError
from .._identity.attestation import Attestation
from .._identity.pins import CLOCK_LEEWAY, Pins, RootCertificate
from .._io.connecting import Connecting
from .._io.loops import (
    deadline_of,
    in_time,
    loop_hub,
    read_stream,
    reserve_slot,
    time_left,
    write_stream,
)
from .._text import shown
from .config import KEEPALIVE, ChannelConfig, UpgradeHeaders, Verify, expect_connect, logger
from .payload import first_piece, read_size

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["AsyncChannel", "AsyncStream"]

_READ_SIZE = 65_536
_UNSET: Any = object()


class AsyncChannel:
    """One WebSocket, one Noise channel, one verified enclave at the other end.

    Made with :meth:`connect`; usable from any event loop (asyncio, uvloop, trio).
    """

    def __new__(cls, *arguments: object, **options: object) -> Self:
        expect_connect(cls, arguments, "await ")
        return super().__new__(cls)

    def __init__(self, config: ChannelConfig, core: _core.Channel, timeout: float | None) -> None:
        self._config = config
        self._core = core
        self._timeout = timeout
        self._ended = False

    @classmethod
    def connect(
        cls,
        url: str | httpx2.URL,
        *,
        pcrs: Pins = None,
        root: RootCertificate = None,
        debug_mode: bool = False,
        clock_leeway: float = CLOCK_LEEWAY,
        upgrade_headers: UpgradeHeaders = None,
        verify: Verify = True,
        proxy: str | httpx2.URL | None = None,
        timeout: float | None = 30.0,
        max_in_flight: int = 64,
        keepalive: float | None = KEEPALIVE,
    ) -> Connecting[Self]:
        """Connects and verifies; to be awaited, or entered with ``async with``."""
        config = ChannelConfig.build(
            url,
            pcrs=pcrs,
            root=root,
            debug_mode=debug_mode,
            clock_leeway=clock_leeway,
            upgrade_headers=upgrade_headers,
            verify=verify,
            proxy=proxy,
            max_in_flight=max_in_flight,
            keepalive=keepalive,
        )
        timeout = checked_timeout("timeout", timeout)
        config.warn_debug(stacklevel=2)
        return Connecting(cls.__name__, lambda: cls._open(config, timeout))

    @classmethod
    async def _open(cls, config: ChannelConfig, timeout: float | None) -> Self:
        core = config.open()
        try:
            await in_time(
                loop_hub().wait(core.notify_open, timeout),
                ConnectTimeout,
                f"expected a verified connection within {timeout} s, got none",
            )
            core.wait_open(0)
            channel = cls(config, core, timeout)
            logger.info(
                "verified %s: form %s, module %s",
                config.url.authority,
                channel.attestation.form,
                shown(channel.attestation.module_id) or "-",
            )
        except BaseException:
            core.close(0)
            raise
        return channel

    @property
    def attestation(self) -> Attestation:
        """What was verified last."""
        return Attestation._from_raw(self._core.attestation())

    @property
    def stats(self) -> dict[str, int]:
        return self._core.stats()

    @property
    def closed(self) -> bool:
        return self._core.state == "closed"

    async def open_stream(
        self, payload: Buffer = b"", timeout: float | None = _UNSET
    ) -> AsyncStream:
        """Opens a TCP connection from the enclave to the workload; ``payload`` is written to it
        first. ``timeout``: for a free slot, and then for each read and write."""
        self._expect_not_ended()
        timeout = self._or_default(timeout)
        first, rest = first_piece(payload)
        slot = await reserve_slot(self._core, timeout)
        try:
            stream = AsyncStream(self._core.open_stream(slot, first), timeout, self)
        except BaseException:
            slot.release()
            raise
        if rest:
            try:
                await stream.write(rest)
            except BaseException:
                await stream.close()
                raise
        return stream

    async def request(self, data: Buffer, timeout: float | None = _UNSET) -> bytes:
        """One shot; see :meth:`enclavia.Channel.request`."""
        self._expect_not_ended()
        timeout = self._or_default(timeout)
        view = byte_view("data", data)
        deadline = deadline_of(timeout)
        slot = await reserve_slot(self._core, timeout)
        try:
            under_way = self._core.start_request(slot, view)
        except BaseException:
            slot.release()
            raise
        try:
            answer = under_way.result(0)
            if answer is None:
                await in_time(
                    loop_hub().wait(under_way.notify, time_left(deadline)),
                    ReadTimeout,
                    f"expected an answer within {timeout} s, got none",
                )
                answer = under_way.result(0)
        except BaseException:
            under_way.abandon()
            raise
        return cast(bytes, answer)

    async def attest(self, timeout: float | None = _UNSET) -> Attestation:
        """A fresh document, verified like the first one."""
        self._expect_not_ended()
        timeout = self._or_default(timeout)
        hub = loop_hub()
        waiter = hub.waiter()
        number = hub.start_attest(self._core, waiter)
        try:
            raw = self._core.finish_attest(number, 0)
            if raw is None:
                await in_time(
                    hub.wait_for(waiter, timeout),
                    ReadTimeout,
                    f"expected an attestation document within {timeout} s, got none",
                )
                raw = self._core.finish_attest(number, 0)
        except BaseException:
            self._core.abandon_attest(number)
            raise
        return Attestation._from_raw(cast("_core.RawAttestation", raw))

    async def close(self) -> None:
        """Sends what was written, then closes; streams still open end."""
        self._ended = True
        with anyio.CancelScope(shield=True):
            # A limiter of its own: the threads that all share may wait for this very task.
            await anyio.to_thread.run_sync(self._core.close, limiter=anyio.CapacityLimiter(1))

    aclose = close

    def _expect_not_ended(self) -> None:
        if self._ended:
            raise StateError("expected an open channel, got one that its user has closed")

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is _UNSET else checked_timeout("timeout", timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AsyncChannel cannot be pickled: its keys must exist once. An AsyncClient can "
            "(it opens its own)"
        )

    def __repr__(self) -> str:
        return f"<AsyncChannel {self._config.url} {self._core.state}>"


class AsyncStream:
    """One TCP connection to the workload. As :class:`enclavia.Stream`, awaited."""

    def __init__(self, core: _core.Stream, timeout: float | None, channel: AsyncChannel) -> None:
        self._core = core
        self._channel = channel  # which closes when nobody has it
        self._read_timeout = timeout
        self._write_timeout = timeout
        self._closed = False

    @property
    def read_timeout(self) -> float | None:
        """Seconds that a read waits at most; None: for ever."""
        return self._read_timeout

    @read_timeout.setter
    def read_timeout(self, value: float | None) -> None:
        self._read_timeout = checked_timeout("read_timeout", value)

    @property
    def write_timeout(self) -> float | None:
        """Seconds that a write waits at most until something can be sent; None: for ever."""
        return self._write_timeout

    @write_timeout.setter
    def write_timeout(self, value: float | None) -> None:
        self._write_timeout = checked_timeout("write_timeout", value)

    @property
    def timeout(self) -> float | None:
        """Both timeouts; setting it sets both."""
        return self._read_timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._read_timeout = self._write_timeout = checked_timeout("timeout", value)

    @property
    def id(self) -> int:
        return self._core.id

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def at_eof(self) -> bool:
        """The workload closed and everything was read."""
        return self._core.at_eof

    async def read(self, n: int | None = -1) -> bytes:
        """1 to n bytes; ``b""`` at the end. Without n: everything up to the end."""
        self._check_open()
        n = -1 if n is None else read_size(n)
        if n >= 0:
            return await read_stream(self._core, n, self._read_timeout) if n else b""
        pieces: list[bytes] = []
        while piece := await read_stream(self._core, _READ_SIZE, self._read_timeout):
            pieces.append(piece)
        return b"".join(pieces)

    async def readinto(self, buffer: Buffer) -> int:
        self._check_open()
        view = byte_view("buffer", buffer, writable=True)
        deadline = deadline_of(self._read_timeout)
        while (count := self._core.readinto(view, 0)) is None:
            if not await loop_hub().wait(
                lambda notifier, token: self._core.notify(_core.READABLE, notifier, token),
                time_left(deadline),
            ):
                raise ReadTimeout(
                    f"expected bytes from the workload within {self.read_timeout} s, got none"
                )
        return count

    async def write(self, data: Buffer) -> int:
        """All of data, or an error."""
        self._check_open()
        return await write_stream(self._core, data, self._write_timeout)

    async def write_eof(self) -> None:
        """Shuts down our writing side. Some HTTP servers hang up when they see that."""
        self._check_open()
        self._core.write_eof()

    async def close(self) -> None:
        self._closed = True
        self._core.close()

    aclose = close

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the stream was closed")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read(_READ_SIZE):
            yield piece

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncStream cannot be pickled")

    def __repr__(self) -> str:
        return f"<AsyncStream {self._core.id} {'closed' if self._closed else 'open'}>"
