"""One verified connection, and raw streams over it: the blocking surface.

Runs the operations of :mod:`enclavia._channel.operations` in the calling thread. Reading and
writing a stream are direct calls of the C core.

Decides nothing itself. Calls: _arguments, _core, _errors, _identity, _io, _public.
Locks: none.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NoReturn, Self, Unpack, cast

import httpx2

from .. import _core
from .._arguments import check_buffer
from .._arguments import timeout as checked_timeout
from .._errors import StateError
from .._identity.attestation import Attestation
from .._io.blocking import blocking_io
from .._io.face import READ_SIZE, run
from .._public import public
from . import operations
from .config import ChannelConfig
from .options import CHANNEL_DEFAULTS, ChannelOptions, inserted, takes
from .payload import read_size
from .shared import UNSET, ChannelBase, StreamBase

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Channel", "Stream"]

_IO = blocking_io()


def _waiting(core: _core.Stream) -> _core.Stream:
    """In a browser, where a call of the core's cannot wait, one whose calls do."""
    if not _core.WEB:
        return core
    from .._io.switching import SwitchStream

    return cast(_core.Stream, SwitchStream(core))


@public
class Channel(ChannelBase):
    """One WebSocket, one Noise channel, one verified enclave at the other end.

    Made with :meth:`connect`; usable from any thread. It does not reconnect: that is what
    :class:`enclavia.Client` does.
    """

    @classmethod
    @takes(ChannelOptions, inserted(CHANNEL_DEFAULTS, "max_in_flight", {"timeout": 30.0}))
    def connect(
        cls,
        url: str | httpx2.URL,
        *,
        timeout: float | None = 30.0,
        **options: Unpack[ChannelOptions],
    ) -> Self:
        """Connects and verifies; raises where either fails. ``timeout`` bounds all of it, and is
        what the channel's other calls wait at most where they are given none."""
        config = ChannelConfig.build(url, "Channel.connect", **options)
        timeout = checked_timeout("timeout", timeout)
        config.expect_blocking()
        config.warn_debug()
        return cls(config, *run(operations.connect(_IO, config, timeout)), timeout)

    def open_stream(self, payload: Buffer = b"", timeout: float | None = UNSET) -> Stream:
        """Opens a TCP connection from the enclave to the workload; ``payload`` is written to it
        first. ``timeout``: for a free slot, and then for each read and write."""
        self._expect_not_ended()
        timeout = self._or_default(timeout)
        core = run(operations.open_stream(_IO, self._core, payload, timeout))
        return Stream(core, timeout, self)

    def request(self, data: Buffer, timeout: float | None = UNSET) -> bytes:
        """One shot: ``data`` is written to a new connection of the workload, which is read to its
        end. Limited to about 34 KB of random bytes each way; use :meth:`open_stream` or
        :class:`enclavia.Client` for more. An HTTP request needs ``Connection: close``."""
        self._expect_not_ended()
        return run(operations.request(_IO, self._core, data, self._or_default(timeout)))

    def attest(self, timeout: float | None = UNSET) -> Attestation:
        """A fresh document, verified like the first one."""
        self._expect_not_ended()
        return run(
            operations.attest(
                _IO, self._config, self._core, self._or_default(timeout), self._receipts
            )
        )

    def close(self) -> None:
        """Sends what was written, for which it waits at most one second, then closes; streams
        still open end. What a slow link has not taken by then is lost."""
        self._ended = True
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Channel cannot be pickled: its keys must exist once. A Client can (it opens its own)"
        )


@public
class Stream(StreamBase, io.RawIOBase):
    """One TCP connection to the workload, file-like; ``io.BufferedReader`` and friends fit on it.

    Reads and writes wait at most ``read_timeout`` and ``write_timeout`` seconds (None: for ever).
    """

    def __init__(self, core: _core.Stream, timeout: float | None, channel: Channel) -> None:
        super().__init__()
        self._core = _waiting(core)
        self._channel = channel  # which closes when nobody has it
        self._read_timeout = timeout
        self._write_timeout = timeout

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
        while piece := self._core.read(READ_SIZE, self._read_timeout):
            pieces.append(piece)
        return None if piece is None and not pieces else b"".join(pieces)

    def readinto(self, buffer: Buffer, /) -> int | None:
        """Reads into ``buffer``; how many bytes, 1 to ``len(buffer)``, or 0 at the end. None where
        a timeout of 0 would have to wait."""
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
        raise TypeError(
            "a Stream cannot be pickled: it is part of a Channel, whose keys must exist once. A "
            "Client can (it opens its own)"
        )

    def __repr__(self) -> str:
        state = "closed" if super().closed or self._core.closed else "open"
        return f"<Stream {self._core.id} {state}>"
