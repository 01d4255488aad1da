"""What the pool lends: a channel, and a stream that was kept for another request.

Decides when a channel on which nothing comes is given up. Calls: _identity, _io, _trust. Locks:
``_lock``, around the bytes of closed channels.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._identity.pins import PinTuples
from .._io.face import now
from .validity import Validity

if TYPE_CHECKING:
    from .._io.local import AnyChannel, AnyStream
    from .._trust.receipts import Receipt

__all__ = ["IdleStream", "Traffic", "Tunnel"]
_NONE_YET: PinTuples = ((),)
# From when on a deadline that passed without a record from the enclave is held against the channel.
SILENCE = 5.0


class Traffic:
    """Bytes of channels that are closed. No part of the engine: a cycle through it would keep a
    forgotten client's connection open until the garbage collector comes by."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a destructor may come by in between
        self._bytes_in = 0
        self._bytes_out = 0

    def add(self, bytes_in: int, bytes_out: int) -> None:
        with self._lock:
            self._bytes_in += bytes_in
            self._bytes_out += bytes_out

    def total(self) -> tuple[int, int]:
        with self._lock:
            return self._bytes_in, self._bytes_out


class Turn:
    """The right to ask for a fresh document of a channel. One that is lost, because Ctrl-C came
    before its holder could see to its end, comes back by itself."""

    __slots__ = ("__weakref__", "_tunnel")

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel: weakref.ref[Tunnel] | None = weakref.ref(tunnel)

    def give_back(self) -> None:
        """Doing so twice does nothing."""
        reference, self._tunnel = self._tunnel, None
        tunnel = None if reference is None else reference()
        if tunnel is not None:
            tunnel._turn.append(Turn(tunnel))

    __del__ = give_back


class Tunnel:
    """A channel, as the pool knows it."""

    def __init__(self, core: AnyChannel, past: Traffic, pins: PinTuples | None = None) -> None:
        """``pins``: those that it is verified against."""
        self.core = core
        self.pins = pins
        self.pinned: PinTuples | None = _NONE_YET
        """What the caller pinned when this was found to match; the same object, not only equal."""
        self.receipt: Receipt | None = None
        """Of its newest document; None while none was verified."""
        self.validity = Validity()
        self._retired = False
        self._turn = [Turn(self)]
        self._past = past
        self._counted = False
        self._heard = -1
        self._heard_at = 0.0

    @property
    def alive(self) -> bool:
        return not self._retired and self.core.state == "open"

    def retire(self) -> None:
        """No request begins on it any more. Who uses it goes on to their end."""
        self._retired = True

    def certified(self, receipt: Receipt, raw: Mapping[str, Any], verified_at: float) -> None:
        """A document of its was verified, and nobody has refused it."""
        self.receipt = receipt
        self.validity = Validity.of(raw, verified_at)

    def renewed(self, receipt: Receipt, raw: Mapping[str, Any], verified_at: float) -> None:
        """As :meth:`certified`, by a later document. What that says may be something else: pins of
        which the earlier one was known to be are compared with it again."""
        self.pinned = _NONE_YET
        self.certified(receipt, raw, verified_at)

    def take_turn(self) -> Turn | None:
        """For who asks for a fresh document; None where another does. To be given back."""
        try:
            return self._turn.pop()  # by one thread alone
        except IndexError:
            return None

    def asked(self) -> None:
        """Something is expected to come from now on."""
        heard = self.core.records_in
        if heard != self._heard:
            self._heard = heard
            self._heard_at = now()

    def asked_before(self, heard: int, at: float) -> None:
        """As :meth:`asked`, of a moment that is over, when so many records had come."""
        if heard > self._heard:
            self._heard, self._heard_at = heard, at
        elif heard == self._heard:
            self._heard_at = min(self._heard_at, at)

    def unanswered(self) -> None:
        """A deadline passed. A channel on which no record came for a while may lead nowhere any
        more, which nobody is told by TCP; bytes that make no record prove nothing."""
        if self.core.records_in == self._heard and now() - self._heard_at >= SILENCE:
            self.retire()

    def traffic(self) -> tuple[int, int]:
        stats = self.core.stats()
        return stats["bytes_in"], stats["bytes_out"]

    def close(self, timeout: float = 0.0) -> None:
        self.core.close(timeout)
        if not self._counted:
            self._counted = True
            self._past.add(*self.traffic())


class IdleStream:
    """A workload connection that waits for its next request."""

    def __init__(self, stream: AnyStream) -> None:
        self.stream = stream

    @property
    def fresh(self) -> bool:
        return not self.stream.readable  # nor is it closed

    def close(self) -> None:
        self.stream.close()
