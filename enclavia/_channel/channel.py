"""One verified connection, and raw streams over it: the blocking surface."""

from __future__ import annotations

import io
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import httpx2

from .. import _core
from .._arguments import byte_view, check_buffer
from .._arguments import timeout as checked_timeout
from .._errors import ReadTimeout, StateError, WriteTimeout
from .._identity.attestation import Attestation
from .._identity.pins import CLOCK_LEEWAY, Pins, RootCertificate
from .._text import shown
from .config import KEEPALIVE, ChannelConfig, UpgradeHeaders, Verify, expect_connect, logger
from .payload import first_piece, read_size

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Channel", "Stream"]
_READ_SIZE = 65_536
_UNSET: Any = object()


class Channel:
    """One WebSocket, one Noise channel, one verified enclave at the other end.

    Made with :meth:`connect`; usable from any thread. It does not reconnect: that is what
    :class:`enclavia.Client` does.
    """

    def __new__(cls, *arguments: object, **options: object) -> Self:
        expect_connect(cls, arguments, "")
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
    ) -> Self:
        """Connects and verifies; raises where either fails. ``timeout`` bounds all of it, and is
        what the channel's other calls wait at most where they are given none."""
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
        core = config.open()
        try:
            core.wait_open(timeout)
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

    def open_stream(self, payload: Buffer = b"", timeout: float | None = _UNSET) -> Stream:
        """Opens a TCP connection from the enclave to the workload; ``payload`` is written to it
        first. ``timeout``: for a free slot, and then for each read and write."""
        self._expect_not_ended()
        timeout = self._or_default(timeout)
        first, rest = first_piece(payload)
        slot = self._core.reserve(None, 0)
        try:
            if not slot.granted:
                slot.wait(timeout)
            stream = Stream(self._core.open_stream(slot, first), timeout, self)
        except BaseException:
            slot.release()
            raise
        if rest:
            try:
                stream._put_all(rest)
            except BaseException:
                stream.close()
                raise
        return stream

    def request(self, data: Buffer, timeout: float | None = _UNSET) -> bytes:
        """One shot: ``data`` is written to a new connection of the workload, which is read to its
        end. Limited to about 34 KB of random bytes each way; use :meth:`open_stream` or
        :class:`enclavia.Client` for more. An HTTP request needs ``Connection: close``."""
        self._expect_not_ended()
        timeout = self._or_default(timeout)
        view = byte_view("data", data)
        deadline = None if timeout is None else time.monotonic() + timeout
        slot = self._core.reserve(None, 0)
        try:
            if not slot.granted:
                slot.wait(timeout)
            under_way = self._core.start_request(slot, view)
        except BaseException:
            slot.release()
            raise
        try:
            answer = under_way.result(
                None if deadline is None else max(1e-6, deadline - time.monotonic())
            )
        except BaseException:
            under_way.abandon()
            raise
        if answer is None:
            raise ReadTimeout(f"expected an answer within {timeout} s, got none")
        return answer

    def attest(self, timeout: float | None = _UNSET) -> Attestation:
        """A fresh document, verified like the first one."""
        self._expect_not_ended()
        timeout = self._or_default(timeout)
        number = self._core.start_attest(None, 0)
        try:
            raw = self._core.finish_attest(number, None if timeout is None else max(1e-6, timeout))
        except BaseException:
            self._core.abandon_attest(number)
            raise
        if raw is None:
            raise ReadTimeout(f"expected an attestation document within {timeout} s, got none")
        return Attestation._from_raw(raw)

    def close(self) -> None:
        """Sends what was written, then closes; streams still open end."""
        self._ended = True
        self._core.close()

    def _expect_not_ended(self) -> None:
        if self._ended:
            raise StateError("expected an open channel, got one that its user has closed")

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is _UNSET else checked_timeout("timeout", timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Channel cannot be pickled: its keys must exist once. A Client can (it opens its own)"
        )

    def __repr__(self) -> str:
        return f"<Channel {self._config.url} {self._core.state}>"


class Stream(io.RawIOBase):
    """One TCP connection to the workload, file-like; ``io.BufferedReader`` and friends fit on it.

    Reads and writes wait at most ``read_timeout`` and ``write_timeout`` seconds (None: for ever).
    """

    def __init__(self, core: _core.Stream, timeout: float | None, channel: Channel) -> None:
        super().__init__()
        self._core = core
        self._channel = channel  # which closes when nobody has it
        self._read_timeout = timeout
        self._write_timeout = timeout

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
    def at_eof(self) -> bool:
        """The workload closed and everything was read."""
        return self._core.at_eof

    def readable(self) -> bool:
        self._check_open()
        return True

    def writable(self) -> bool:
        self._check_open()
        return True

    def read(self, n: int | None = -1, /) -> bytes | None:
        """1 to n bytes; ``b""`` at the end. Without n: everything up to the end. With
        ``read_timeout`` 0: None where nothing is there yet."""
        self._check_open()
        n = -1 if n is None else read_size(n)
        if n < 0:
            return self.readall()
        return self._core.read(n, self._read_timeout) if n else b""

    def readall(self) -> bytes | None:  # type: ignore[override] # as io documents it
        """Everything up to the end. With ``read_timeout`` 0 what is there; None where that is
        nothing, and the end has not come."""
        self._check_open()
        pieces: list[bytes] = []
        while piece := self._core.read(_READ_SIZE, self._read_timeout):
            pieces.append(piece)
        return None if piece is None and not pieces else b"".join(pieces)

    def readinto(self, buffer: Buffer, /) -> int | None:
        self._check_open()
        try:
            return self._core.readinto(buffer, self._read_timeout)
        except (TypeError, ValueError, BufferError):
            check_buffer("buffer", buffer, writable=True)
            raise

    def write(self, data: Buffer, /) -> int | None:
        """All of data, or an error; with ``write_timeout`` 0 as much as can be taken now, and None
        where that is nothing."""
        put = self._put(data)
        return put if put or memoryview(data).nbytes == 0 else None

    def _put_all(self, data: memoryview) -> None:
        if self._put(data) < len(data):  # a timeout of 0 takes what fits
            raise WriteTimeout(
                f"expected to send the payload within {self._write_timeout} s, could not"
            )

    def _put(self, data: Buffer) -> int:
        self._check_open()
        try:
            return self._core.write(data, self._write_timeout)
        except (TypeError, ValueError, BufferError):
            check_buffer("data", data)
            raise

    def write_eof(self) -> None:
        """Shuts down our writing side. Some HTTP servers hang up when they see that."""
        self._check_open()
        self._core.write_eof()

    def close(self) -> None:
        if not super().closed:
            try:
                super().close()
            finally:
                self._core.close()

    def _check_open(self) -> None:
        if super().closed:
            raise StateError("the stream was closed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream cannot be pickled")

    def __repr__(self) -> str:
        state = "closed" if super().closed or self._core.closed else "open"
        return f"<Stream {self._core.id} {state}>"
