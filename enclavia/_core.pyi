"""The C extension: crypto, codecs, the attestation state machine, sockets. Private; what is public
is re-exported by :mod:`enclavia`. Every call that waits or works on more than a few KiB releases
the GIL; every wait ends within 100 ms of a signal whose Python handler raises."""

from collections.abc import Callable, Sequence
from typing import Any, Final, final

from typing_extensions import Buffer

VERSION: Final[str]
WEB: Final[bool]
"""Whether this is the build for browsers (ENCLAVIA_WEB in setup.py): there are :class:`Link`,
:meth:`Channel.link` and :meth:`Notifier.on_wake`, and neither :meth:`Notifier.fileno`,
:class:`Pump` nor :class:`Enclave`. A call that would have to wait raises StateError there."""
MAX_IN_FLIGHT: Final[int]
READABLE: Final[int]
WRITABLE: Final[int]
STREAM_CHUNK: Final[int]  # bytes that one record of a stream carries, the opening one included
AWS_ROOT_G1: Final[bytes]
ERROR_NAMES: Final[tuple[str, ...]]
"""What csrc/base/error.c calls its codes, in their order: the names in ``_errors``."""

def default_ca_paths() -> tuple[str, str]:
    """The file and the folder in which OpenSSL looks for certificate authorities."""

def build_info() -> dict[str, str]: ...

RawAttestation = dict[str, object]
"""``form`` ("nitro", "debug" or "stub"), ``module_id`` str, ``timestamp`` int (ms), ``pcrs``
dict[int, bytes], ``certificate`` bytes, ``cabundle`` list[bytes], ``public_key``, ``user_data``,
``nonce`` bytes or None, ``verified_at`` int (Unix s), ``valid_until`` int (Unix s: when the first
certificate of the chain ends) or None in debug mode, ``document`` bytes, ``matched`` the index
of the policy's set of pins, or None, and ``matched_pcrs``, as bits, which PCRs that set has."""

PinSet = tuple[bytes | tuple[int, bytes], ...]
"""PCR0, PCR1 and PCR2, and after them an (index, value) for each further PCR that is pinned."""

@final
class Policy:
    """Pins, root and mode, checked and copied. ``pins``: sets of (PCR0, PCR1, PCR2) and, after
    these, an (index, value) of each further PCR; any one set may match. Or None; ``root``: one
    certificate, PEM or DER, or None for AWS's G1; ``clock_leeway``: seconds, 0 to 300, by which the
    leaf's notBefore may lie in the future. Only None means "not given": an empty value is a
    ValueError."""

    def __init__(
        self,
        pins: Sequence[PinSet] | None,
        root: bytes | None,
        debug: bool,
        need_pins: bool,
        clock_leeway: int = 0,
    ) -> None: ...
    @property
    def root(self) -> bytes:
        """The root certificate that it trusts, DER."""

def verify(document: Buffer, policy: Policy, nonce: bytes | None, at: int) -> RawAttestation: ...

@final
class LinkCache:
    """Links of certificate chains that verified before, for :func:`verify_recorded`: with it a
    document of the same certificates costs one signature. Used by one call at a time; another one
    meanwhile goes without."""

    def __init__(self) -> None: ...

def verify_recorded(
    document: Buffer, policy: Policy, cache: LinkCache | None = None
) -> RawAttestation:
    """As :func:`verify`, at the moment that the document states itself (its ``timestamp``), and
    without a nonce. Whether that moment is one that may be is the caller's to decide."""

def verify_es256(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Raises SignatureError where ``signature`` (64 bytes, r and s) is not one of ``public_key`` (a
    SEC1 point of P-256) over ``message`` with SHA-256, or the key is none."""

LINK_BOOT: Final[int]
LINK_UPGRADE: Final[int]
LINK_REVOCATION: Final[int]

def link_payload(kind: int, payload: bytes) -> dict[str, Any]:
    """Reads the CBOR payload of a link of an upgrade chain: ``enclave_id`` (16 bytes), ``nonce``,
    and of a boot ``image_digest``, ``pcrs`` (three values), ``booted_at``; of an upgrade
    ``image_digest``, ``pcrs`` (from_pcrs), ``to_pcrs``, ``valid_from``, ``issued_at``; of a
    revocation ``revokes`` (16 bytes), ``issued_at``. Times are text. Raises DocumentError."""

@final
class Notifier:
    """A file descriptor that becomes readable when something that was asked for by ``notify`` is
    there, and the tokens of what that was."""

    def __init__(self) -> None: ...
    def fileno(self) -> int: ...
    def on_wake(self, callback: Callable[[], object] | None) -> None:
        """``callback`` is called soon after tokens were announced, or :meth:`wake` was called: by
        the main thread, between two bytecodes, with no lock held. It should only ask its event
        loop for a call of :meth:`drain`. What it raises is unraisable."""
    def drain(self) -> list[int]: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...

@final
class Watch:
    """That somebody waits, as ``notify`` registered it. Withdrawn by :meth:`end`, or when nobody
    has this object any more; until then the core counts it as waiting."""

    def end(self) -> None:
        """Can be called again. A token that was announced before may still come."""

@final
class Channel:
    """One WebSocket, one Noise channel, one verified document. Starts connecting when made."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        tls: bool,
        path: str,
        authority: str,
        headers: Sequence[tuple[str, str]],
        policy: Policy,
        max_in_flight: int,
        verify: bool,
        ca_file: str | None,
        proxy: tuple[str, int, str | None] | None,
        keepalive_ms: int = 0,
    ) -> None: ...
    @property
    def state(self) -> str:
        """ "connecting", "open" or "closed"."""
    @property
    def error(self) -> Exception | None:
        """Why it closed; None while it has not."""
    @property
    def forked(self) -> bool:
        """Made by a parent process: nothing of it may be used here."""
    @property
    def records_in(self) -> int:
        """Received so far, whole and decrypted."""
    @property
    def handshake_hash(self) -> bytes: ...
    def wait_open(self, timeout: float | None) -> None:
        """Raises ConnectTimeout (and closes), or why it closed."""
    def attestation(self) -> RawAttestation:
        """What was verified last. Raises while nothing was."""
    def notify_open(self, notifier: Notifier, token: int) -> Watch:
        """Once: when it is open or closed."""
    def notify_stage(self, seen: int, notifier: Notifier, token: int) -> Watch:
        """Once: when more than ``seen`` stages are reached, or it is open or closed."""
    def stages(self) -> dict[str, int]:
        """The stages of connecting that were reached, in their order, and how many ns ago:
        ``resolved``, ``connected`` (TCP), ``secured`` (TLS, where there is any), ``upgraded`` (to
        a WebSocket), ``handshake`` (Noise), ``verified``."""
    def reserve(self, notifier: Notifier | None, token: int) -> Slot:
        """Asks for one of the ``max_in_flight`` slots, in order. The token comes when granted or
        closed; without a notifier use :meth:`Slot.wait`."""
    def open_stream(self, slot: Slot, payload: Buffer) -> Stream:
        """Takes over a granted slot. The payload is the first bytes to the workload."""
    def start_request(self, slot: Slot, payload: Buffer) -> Request: ...
    def start_attest(self, notifier: Notifier | None, token: int) -> int:
        """Asks for a fresh document; returns its number for :meth:`finish_attest`."""
    def finish_attest(self, number: int, timeout: float | None) -> RawAttestation | None:
        """timeout 0: None where it has not come yet."""
    def abandon_attest(self, number: int) -> None: ...
    def close(self, timeout: float | None = ...) -> None:
        """Orderly: what was written is sent, at most ``timeout`` seconds (default 1)."""
    def link(self) -> Link:
        """The WebSocket's side of it; once. Headers, a proxy, an own CA, ``verify=False`` and
        ``keepalive_ms`` were refused with ValueError when the channel was made."""
    def stats(self) -> dict[str, int]:
        """``bytes_in``, ``bytes_out`` (on the wire), ``records_in``, ``records_out``,
        ``streams_open``, ``slots_waiting``, ``streams_total``."""

@final
class Link:
    """What the owner of a WebSocket tells a channel, and does for it. It does not keep the channel.
    Dropped without :meth:`closed`, it counts as closed with code 1006."""

    def opened(self) -> None: ...
    def received(self, data: Buffer) -> int:
        """Bytes of a binary message; returns how many were taken. The rest is to be given again
        once ``wants_reading`` is true: a channel whose readers do not read may stop within a
        message. An empty message is given too, and counts. After the end all is taken."""
    def text(self) -> None:
        """A text message has come, which carries nothing; too many of them end the channel."""
    def closed(self, code: int, reason: str) -> None:
        """It has closed, or could never be opened (code 1006). Later calls do nothing.
        With code 1006 a ``reason`` says why this side gave it up."""
    def take(self) -> bytes:
        """The next binary message to send; b"" where there is none. What is not taken counts
        against those who write."""
    def on_work(self, callback: Callable[[], object] | None) -> None:
        """As :meth:`Notifier.on_wake`, where there may be something to take, reading is held back
        or wanted again, a timer was set for an earlier time, or the WebSocket is to be closed."""
    def tick(self) -> float | None:
        """Fires the timers that are due, of all channels. Seconds until the next one, or None."""
    @property
    def wants_reading(self) -> bool: ...
    @property
    def closing(self) -> bool:
        """Nothing is sent after what :meth:`take` still gives: hand all of it over now."""
    @property
    def finished(self) -> bool:
        """Everything was taken and nothing more will come: the WebSocket is to be closed."""
    @property
    def code(self) -> int:
        """With which close code (RFC 6455, section 7.4)."""
    @property
    def reason(self) -> str: ...

@final
class Slot:
    @property
    def granted(self) -> bool: ...
    def wait(self, timeout: float | None) -> None:
        """Raises PoolTimeout, or why the channel closed."""
    def release(self) -> None:
        """Gives it (or the place in the queue) up; also on garbage collection."""

@final
class Request:
    """A one-shot request under way."""

    def result(self, timeout: float | None) -> bytes | None:
        """The answer. timeout 0: None where it has not come yet. Raises ReadTimeout."""
    def notify(self, notifier: Notifier, token: int) -> Watch: ...
    def abandon(self) -> None: ...

@final
class Stream:
    """One TCP connection to the workload. Closed (StreamClose Both) when closed, failed or
    garbage-collected."""

    @property
    def id(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    @property
    def at_eof(self) -> bool:
        """The workload closed and everything was read."""
    @property
    def readable(self) -> bool:
        """A read would not wait: bytes, end of file or an error are there."""
    def read(self, n: int, timeout: float | None) -> bytes | None:
        """1..n bytes; b"" at the end. timeout 0: None where it would wait."""
    def readinto(self, buffer: Buffer, timeout: float | None) -> int | None: ...
    def write(self, data: Buffer, timeout: float | None) -> int:
        """All of data, in records of at most STREAM_CHUNK bytes. timeout 0: as much as can be taken
        now, and how much that was."""
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    def notify(self, what: int, notifier: Notifier, token: int) -> Watch:
        """Once: when reading (READABLE) or writing (WRITABLE) would not wait. ``what`` 0: take the
        request back."""
    def pump(self, fd: int, notifier: Notifier, token: int) -> Pump:
        """Bytes both ways between this and a connected, non-blocking stream socket, until one of
        them ends or fails. Who has both does not read or write them meanwhile. The token is
        announced once, when nothing is moved any more. Raises where there is no descriptor for
        it; nothing was read then."""

@final
class Pump:
    """Bytes both ways between a stream and a socket, moved by the core's thread. Stops when nobody
    has this object; both are left as they are."""

    @property
    def state(self) -> str:
        """ "moves"; "stopped" where one side has ended, the stream has failed, or :meth:`stop` was
        called; "gone" where the socket was reset, or both its directions are shut; "lost" where
        bytes were, for want of memory."""
    def stop(self) -> None:
        """Soon after this nothing is moved any more, which is announced."""
    def rest(self) -> tuple[bytes, bytes]:
        """What was read of the socket and not taken by the stream, and what was read of the stream
        and not taken by the socket. Both are empty while it moves."""
    def stats(self) -> dict[str, Any]:
        """``bytes_in`` (that the stream has taken), ``bytes_out`` (that the socket has),
        ``answered`` (whether the last that was read came from the stream), ``pending`` (whether
        anything was read and not passed on); in seconds ago, or None: ``touched`` (something was
        read or passed on), ``asked`` (the socket was read, and no record has come over the channel
        since that was so the first time), with ``asked_records``, what the channel had received by
        then."""

@final
class Enclave:
    """A local enclave in front of a TCP workload, for tests. Listens on 127.0.0.1 once made."""

    def __init__(
        self,
        *,
        mode: str,
        workload: tuple[str, int],
        module_id: str,
        pcrs: dict[int, bytes],
        certificate: bytes,
        cabundle: Sequence[bytes],
        leaf_key: bytes,
        idle_timeout: float,
        grace: float,
        one_shot_timeout: float,
        max_connections: int,
        port: int = 0,
        tls: tuple[str, str] | None = None,
        faults: int = 0,
        split: int = 0,
        record_length: int = 0,
        delay: float = 0.0,
        truncated_after: int = 0,
        instead_of_attestation: bytes = b"",
        after_attestation: bytes = b"",
    ) -> None: ...
    @property
    def port(self) -> int: ...
    def set_faults(
        self,
        faults: int = 0,
        *,
        split: int = 0,
        record_length: int = 0,
        delay: float = 0.0,
        truncated_after: int = 0,
        instead_of_attestation: bytes = b"",
        after_attestation: bytes = b"",
    ) -> None:
        """Switches exactly these on, all others off."""
    def set_document(
        self,
        *,
        module_id: str,
        pcrs: dict[int, bytes],
        certificate: bytes,
        cabundle: Sequence[bytes],
        leaf_key: bytes,
    ) -> None:
        """Another identity from now on; open connections stay."""
    def stats(self) -> dict[str, int]:
        """Of a stopped enclave the last ones."""
    def drop_connections(self, reset: bool = False) -> None:
        """Ends every connection at once, and goes on listening."""
    def stop(self) -> None:
        """Ends everything. May be called again."""

FAULT_WRONG_NONCE: Final[int]
FAULT_WRONG_PCRS: Final[int]
FAULT_BAD_SIGNATURE: Final[int]
FAULT_GARBAGE_RECORD: Final[int]
FAULT_SPLIT: Final[int]
FAULT_SILENT_HANDSHAKE: Final[int]
FAULT_SILENT_ATTESTATION: Final[int]
FAULT_SHORT_HANDSHAKE: Final[int]
FAULT_LONG_HANDSHAKE: Final[int]
FAULT_ZERO_KEY: Final[int]
FAULT_TEXT_ONLY: Final[int]
FAULT_CLOSE_ON_REQUEST: Final[int]
FAULT_HALF_RECORD_LOST: Final[int]
FAULT_SILENT_STREAMS: Final[int]
FAULT_RAW_RECORD_LENGTH: Final[int]
FAULT_UPGRADE_503: Final[int]
FAULT_FULL: Final[int]
FAULT_SLOW: Final[int]
FAULT_TRUNCATED: Final[int]
