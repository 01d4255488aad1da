"""What a local enclave can be made to do wrong.

Decides which faults are about certificates, which are issued in Python; the core carries out all
others. Calls: _core. Locks: none.
"""

from __future__ import annotations

import enum
from typing import Final

from .. import _core

__all__ = ["OF_CERTIFICATES", "Fault"]


class Fault(enum.IntFlag):
    """Switched on by :meth:`LocalEnclave.set_faults`, any number at a time. docs/testing.md has
    what a client raises because of each."""

    WRONG_NONCE = _core.FAULT_WRONG_NONCE
    """Documents are made for another channel."""
    WRONG_PCRS = _core.FAULT_WRONG_PCRS
    """Documents show other PCRs than the enclave's."""
    BAD_SIGNATURE = _core.FAULT_BAD_SIGNATURE
    """The signature of documents does not fit them."""
    GARBAGE_RECORD = _core.FAULT_GARBAGE_RECORD
    """A record that does not decrypt follows the handshake."""
    SPLIT = _core.FAULT_SPLIT
    """Answers arrive in WebSocket messages of ``split`` bytes."""
    SILENT_HANDSHAKE = _core.FAULT_SILENT_HANDSHAKE
    """The handshake is never answered."""
    SILENT_ATTESTATION = _core.FAULT_SILENT_ATTESTATION
    """The question for a document is never answered."""
    SHORT_HANDSHAKE = _core.FAULT_SHORT_HANDSHAKE
    """One byte of the first half is missing, then the connection is closed."""
    LONG_HANDSHAKE = _core.FAULT_LONG_HANDSHAKE
    """A stray byte follows the handshake's answer."""
    ZERO_KEY = _core.FAULT_ZERO_KEY
    """The ephemeral key is all zero."""
    TEXT_ONLY = _core.FAULT_TEXT_ONLY
    """Answers arrive as text messages, which carry nothing."""
    CLOSE_ON_REQUEST = _core.FAULT_CLOSE_ON_REQUEST
    """A request, a new stream, or what is written to an open one is answered by a TCP reset."""
    HALF_RECORD_LOST = _core.FAULT_HALF_RECORD_LOST
    """A response that becomes ready while a record has arrived in part makes the enclave forget
    that part, as the real server does."""
    SILENT_STREAMS = _core.FAULT_SILENT_STREAMS
    """Streams and requests are taken, also on streams that are open already, and nothing is ever
    answered."""
    RAW_RECORD_LENGTH = _core.FAULT_RAW_RECORD_LENGTH
    """A record head of ``record_length`` follows the handshake."""
    UPGRADE_503 = _core.FAULT_UPGRADE_503
    """The WebSocket upgrade is refused with HTTP status 503, as by a router without an enclave."""
    FULL = _core.FAULT_FULL
    """New connections end before the handshake is answered, as where ``max_connections`` are there
    already. Open ones go on."""
    SLOW = _core.FAULT_SLOW
    """Whatever a client sends, a handshake or a request, is taken ``delay`` seconds late."""
    TRUNCATED = _core.FAULT_TRUNCATED
    """The workload's answer ends ``truncated_after`` bytes into its body, as where the workload
    crashed. An answer whose body is not longer than that is whole."""
    EXPIRED_LEAF = 1 << 24
    """The certificate that signs documents ended an hour ago. ``mode="production"`` only."""
    NOT_YET_VALID = 1 << 25
    """The certificate that signs documents begins in an hour. ``mode="production"`` only."""
    WRONG_ROOT = 1 << 26
    """Documents chain to another root than the enclave's. ``mode="production"`` only."""


OF_CERTIFICATES: Final = Fault.EXPIRED_LEAF | Fault.NOT_YET_VALID | Fault.WRONG_ROOT
