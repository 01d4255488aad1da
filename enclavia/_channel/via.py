"""A client's view of a channel that a forwarder of this machine keeps.

Before the first request, the client asks the forwarder's control socket (HTTP/1.1) for the document
of a verified channel, verifies it itself against its own pins, and is told which socket leads to
channels of that identity and to no others. What the client cannot check is that the document was
made for the forwarder's channel: that is what it trusts the forwarder for.

Decides whether requests may be sent to a forwarder. Calls: _core, _errors, _identity, _io. Locks:
none.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from typing import TYPE_CHECKING, Final

from .. import _core, _errors
from .._errors import ConnectError, EnclaviaError, NonceMismatch, PcrMismatch, ProtocolError
from .._identity.pins import pcr_bytes
from .._io.local import LocalChannel, LocalSocket, Place
from .socket_path import CONTROL, check_folder, check_socket, identity_suffix
from .url import EnclaveURL

if TYPE_CHECKING:
    from .socket_path import Via

__all__ = ["CONTROL_TARGET", "ViaChannel", "error_fields"]

CONTROL_TARGET: Final = "/v1/channel"
_REQUEST: Final = (
    f"GET {CONTROL_TARGET} HTTP/1.1\r\nHost: forwarder\r\nAccept: application/json\r\n\r\n"
).encode()
_ANSWER_MAX: Final = 256 * 1024
_READ: Final = 65_536


def error_fields(error: EnclaviaError) -> dict[str, object]:
    """An error as JSON has it, for who is asked by way of the control socket."""
    fields: dict[str, object] = {
        "type": type(error).__name__,
        "message": error.message,
        "retryable": error.retryable,
    }
    if isinstance(error, PcrMismatch):
        fields["index"] = error.index
        fields["expected"] = error.expected.hex()
        fields["actual"] = error.actual.hex()
    return fields


def _error_of(fields: object) -> EnclaviaError:
    """The error that the forwarder met when it connected."""
    if not isinstance(fields, dict):
        return ConnectError("the forwarder could not connect, and did not say why")
    message = f"the forwarder could not connect: {fields.get('message')}"
    retryable = fields.get("retryable") is True
    cls: object = getattr(_errors, str(fields.get("type")), None)
    if cls is PcrMismatch:
        index = fields.get("index")
        return PcrMismatch(
            message,
            index=index if isinstance(index, int) else -1,
            expected=_hex(fields.get("expected")),
            actual=_hex(fields.get("actual")),
            retryable=retryable,
        )
    if isinstance(cls, type) and issubclass(cls, EnclaviaError):
        error: EnclaviaError = cls(message, retryable=retryable)
        return error
    return ConnectError(message, retryable=retryable)


def _hex(value: object) -> bytes:
    try:
        return bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        return b""


class _Answer:
    """The answer on the control connection, as httptools tells it."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False
        self._received = 0
        import httptools  # which costs time, and which only this needs at once

        self._foreign = httptools.HttpParserError
        self._switch = httptools.HttpParserUpgrade
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        # All of it: a head without an end could come as fast as it is read, and no deadline is
        # looked at while there is more to read.
        self._received += len(data)
        if self._received > _ANSWER_MAX:
            raise ProtocolError(
                f"expected an answer of at most {_ANSWER_MAX} bytes from the forwarder"
            )
        try:
            self._parser.feed_data(data)
        except self._switch as error:
            raise ProtocolError(
                "expected an HTTP answer from the forwarder, got a switch to another protocol"
            ) from error
        except self._foreign as error:
            raise ProtocolError(
                f"expected an HTTP answer from the forwarder, got what is none: {error}"
            ) from error

    @property
    def status(self) -> int:
        status: int = self._parser.get_status_code()
        return status

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


class ViaChannel(LocalChannel):
    """One client's view of a forwarder's channels of one identity."""

    def __init__(self, url: EnclaveURL, policy: _core.Policy, via: Via) -> None:
        super().__init__()
        self._url = url
        self._policy = policy
        self._via = via
        self._answer = _Answer()

    def waits_for(self) -> tuple[LocalSocket, int]:
        if self._control is None:
            raise self._error or ConnectError("the connection to the forwarder was closed")
        return self._control, _core.READABLE

    def advance(self) -> bool:
        if self._state != "connecting":
            return True
        try:
            if self._control is None:
                self._ask()
            return self._listen()
        except EnclaviaError as error:
            self.fail(error)
            return True

    def _ask(self) -> None:
        owners = self._via.owners
        path = self._via.path + CONTROL
        check_folder(path, owners)
        check_socket(path, owners)
        control = Place(path, owners).connect()
        try:
            sent = control.send(_REQUEST)
        except OSError as error:
            raise ConnectError(f"cannot ask the forwarder: {error.strerror}") from error
        if sent != len(_REQUEST):
            raise ConnectError("cannot ask the forwarder: its socket takes nothing")
        self._control = control

    def _listen(self) -> bool:
        control = self._control
        while control is not None:
            try:
                data = control.recv(_READ)
            except BlockingIOError:
                return False
            except OSError as error:
                raise ConnectError(f"the forwarder does not answer: {error.strerror}") from error
            if not data:
                raise ConnectError(
                    "expected an answer of the forwarder, got the end: it may be "
                    "ending, or refuse this user's processes"
                )
            self._answer.feed(data)
            if self._answer.complete:
                self._open()
                return True
        return True  # closed meanwhile

    def _open(self) -> None:
        try:
            told = json.loads(self._answer.body)
        except (ValueError, RecursionError) as error:  # the latter where it is nested too deep
            raise ProtocolError("expected JSON from the forwarder, got what is none") from error
        if not isinstance(told, dict):
            raise ProtocolError("expected a JSON object from the forwarder, got another value")
        if self._answer.status != 200:
            raise _error_of(told.get("error"))
        if told.get("url") != str(self._url):
            raise ConnectError(
                f"expected a forwarder to {self._url} at {self._via.path}, got one to "
                f"{told.get('url')}: nothing was sent to it",
                retryable=False,
            )
        # By the client's own pins and root, whatever the forwarder's are. That the document was
        # made for the forwarder's channel (its nonce) is the forwarder's word.
        raw = _core.verify(_bytes(told, "document"), self._policy, None, int(time.time()))
        handshake_hash = _bytes(told, "handshake_hash")
        if raw["nonce"] != handshake_hash:
            raise NonceMismatch(
                "expected a document that was made for the forwarder's channel, got one whose "
                "nonce is not the handshake hash that the forwarder tells"
            )
        self.handshake_hash = handshake_hash
        owners = self._via.owners
        self._place = Place(self._via.path + identity_suffix(pcr_bytes(raw)), owners)
        check_socket(self._place.path, owners)
        self._raw = raw
        self._answer = _Answer()
        self._state = "open"


def _bytes(told: dict[str, object], name: str) -> bytes:
    value = told.get(name)
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"expected base64 in {name!r} of the forwarder's answer") from error
