"""What a local enclave can be made to do wrong.

Decides nothing: the core carries them out. Calls: _core. Locks: none.
"""

from __future__ import annotations

import enum

from .. import _core

__all__ = ["Fault"]


class Fault(enum.IntFlag):
    """Switched on by :meth:`LocalEnclave.set_faults`, any number at a time."""

    WRONG_NONCE = _core.FAULT_WRONG_NONCE
    """Documents are made for another channel."""
    WRONG_PCRS = _core.FAULT_WRONG_PCRS
    BAD_SIGNATURE = _core.FAULT_BAD_SIGNATURE
    GARBAGE_RECORD = _core.FAULT_GARBAGE_RECORD
    """A record that does not decrypt follows the handshake."""
    SPLIT = _core.FAULT_SPLIT
    """Answers arrive in WebSocket messages of ``split`` bytes."""
    SILENT_HANDSHAKE = _core.FAULT_SILENT_HANDSHAKE
    SILENT_ATTESTATION = _core.FAULT_SILENT_ATTESTATION
    SHORT_HANDSHAKE = _core.FAULT_SHORT_HANDSHAKE
    """One byte of the first half is missing, then the connection is closed."""
    LONG_HANDSHAKE = _core.FAULT_LONG_HANDSHAKE
    """A stray byte follows the handshake's answer."""
    ZERO_KEY = _core.FAULT_ZERO_KEY
    """The ephemeral key is all zero."""
    TEXT_ONLY = _core.FAULT_TEXT_ONLY
    """Answers arrive as text messages, which carry nothing."""
    CLOSE_ON_REQUEST = _core.FAULT_CLOSE_ON_REQUEST
    """A request or a new stream is answered by a TCP reset."""
    HALF_RECORD_LOST = _core.FAULT_HALF_RECORD_LOST
    """A response that becomes ready while a record has arrived in part makes the enclave forget
    that part, as the real server does."""
    SILENT_STREAMS = _core.FAULT_SILENT_STREAMS
    """Streams and requests are taken, and nothing is ever answered."""
    RAW_RECORD_LENGTH = _core.FAULT_RAW_RECORD_LENGTH
    """A record head of ``record_length`` follows the handshake."""
