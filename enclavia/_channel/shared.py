"""What the blocking and the awaiting classes of a channel and its streams have in common.

State and properties only: nothing here waits.

Decides when a channel or a stream is over for its user. Calls: _arguments, _core, _errors,
_identity, _trust. Locks: none.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar, Final, Self

from .. import _core
from .._arguments import timeout as checked_timeout
from .._errors import StateError
from .._identity.attestation import Attestation
from .._trust.receipts import RECEIPTS_KEPT, Receipt
from .config import ChannelConfig, expect_connect

__all__ = ["UNSET", "ChannelBase", "StreamBase"]

UNSET: Final[Any] = object()
"""The default of a timeout: the channel's own. None means no limit, and so cannot say this."""


class ChannelBase:
    """The core's channel, and what its calls wait at most where they are given no timeout."""

    _HOW: ClassVar = ""
    """What stands before a call of ``connect``."""

    def __new__(cls, *arguments: object, **options: object) -> Self:
        expect_connect(cls, arguments, cls._HOW)
        return super().__new__(cls)

    def __init__(
        self, config: ChannelConfig, core: _core.Channel, receipt: Receipt, timeout: float | None
    ) -> None:
        self._config = config
        self._core = core
        self._receipts = deque((receipt,), RECEIPTS_KEPT)
        self._timeout = timeout
        self._ended = False

    @property
    def attestation(self) -> Attestation:
        """What was verified last."""
        return Attestation._from_raw(self._core.attestation(), self._config.names)

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """Of each document that was verified on this channel, the newest last; at most 64."""
        return tuple(self._receipts.copy())

    @property
    def stats(self) -> dict[str, int]:
        """Counters of this channel, by name, as of now."""
        return self._core.stats()

    @property
    def closed(self) -> bool:
        """True once nothing more can be sent: it was closed here, by the peer, or by an error."""
        return self._core.state == "closed"

    def _expect_not_ended(self) -> None:
        if self._ended:
            raise StateError("expected an open channel, got one that its user has closed")

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is UNSET else checked_timeout("timeout", timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._config.url} {self._core.state}>"


class StreamBase:
    """The core's stream, and its two timeouts."""

    _core: _core.Stream
    _read_timeout: float | None
    _write_timeout: float | None

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
        """The number of this stream in the records of its channel; no two open ones share it."""
        return self._core.id

    @property
    def at_eof(self) -> bool:
        """The workload closed and everything was read."""
        return self._core.at_eof
