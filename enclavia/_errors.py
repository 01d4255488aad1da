"""The errors of the package: one tree, each also the httpx2 error of the same meaning.

Decides which class an error of the C core has, and whether it may help to try again. Calls:
_public, _text. Locks: none.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import httpx2

from ._public import public
from ._text import shown

__all__ = [
    "AttestationError",
    "AttestationRefused",
    "BackendError",
    "CertificateError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionClosed",
    "DebugModeWarning",
    "DigestMismatch",
    "DocumentError",
    "DownloadError",
    "EnclaviaError",
    "FileChanged",
    "FleetMismatch",
    "ForeignURL",
    "ForkedError",
    "IncompleteResponse",
    "InternalError",
    "InvalidRequest",
    "InvalidURL",
    "NonceMismatch",
    "PcrMismatch",
    "PinsUnavailable",
    "PolicyExpired",
    "PoolTimeout",
    "ProtocolError",
    "RangesUnsupported",
    "ReadTimeout",
    "ReceiptError",
    "ReconnectDisabled",
    "ServerError",
    "SignatureError",
    "SigstoreError",
    "SlowReader",
    "StateError",
    "UpgradeChainError",
    "UpgradeRejected",
    "WriteTimeout",
]


class DebugModeWarning(UserWarning):
    """``debug_mode`` is on: who runs at the other end is not proven."""


def _rebuild(cls: type[EnclaviaError], message: str, state: dict[str, Any]) -> EnclaviaError:
    error = cls.__new__(cls, message)
    error.args = (message,)
    error.__dict__.update(state)
    return error


class EnclaviaError(Exception):
    """The root of the tree. ``retryable``: the same call may succeed if it is made again, and
    making it again is safe wherever the request itself may be repeated."""

    retryable_by_default: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        message = shown(message)  # parts of it may be a peer's words
        Exception.__init__(self, message)
        self.message = message
        self.retryable = self.retryable_by_default if retryable is None else retryable
        self._request = request

    @property
    def request(self) -> httpx2.Request:
        """The request under way when this happened, as on every httpx2 error."""
        if self._request is None:
            raise RuntimeError("The .request property has not been set.")
        return self._request

    @request.setter
    def request(self, request: httpx2.Request) -> None:
        self._request = request

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))

    def __copy__(self) -> Self:
        """With its cause, which pickling leaves behind: it may be anything."""
        made = _rebuild(type(self), self.message, dict(self.__dict__))
        made.__cause__ = self.__cause__
        return made  # type: ignore[return-value]


class ConnectError(EnclaviaError, httpx2.ConnectError):
    """No connection: DNS, TCP, TLS or the proxy."""

    retryable_by_default = True


class UpgradeRejected(ConnectError):
    """The router answered the WebSocket upgrade with something else.

    ``head``: its status and those header lines that fit into 1 KiB, each whole.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        head: bytes = b"",
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        if retryable is None:
            retryable = status in (408, 429) or 500 <= status <= 599
        super().__init__(message, retryable=retryable, request=request)
        self.status = status
        self.head = head


class PinsUnavailable(ConnectError):
    """Who was asked for the pins gave none, and no earlier answer may be used any more. Nothing was
    sent. Retryable where asking failed, unless an error of this package says that it is not; not
    where the answer itself was no pins."""


class ConnectionClosed(EnclaviaError, httpx2.ReadError):
    """The connection is gone, or ended in the middle of something."""

    retryable_by_default = True


class IncompleteResponse(ConnectionClosed, httpx2.RemoteProtocolError):
    """The workload closed its connection before it answered, or within its answer. httpx2 raises
    ``RemoteProtocolError`` here, so this is one as well."""


class SlowReader(ConnectionClosed):
    """An answer was not read while others waited behind it, so the rest of it was dropped. Asking
    again in the same way would end in the same way: read faster, or use a client of its own."""

    retryable_by_default = False


class ReconnectDisabled(ConnectionClosed):
    """The connection was lost, and ``auto_reconnect=False`` says that no other is to be opened.
    The same client will say so each time."""

    retryable_by_default = False


class ConnectTimeout(EnclaviaError, httpx2.ConnectTimeout, TimeoutError):
    """DNS, TCP, TLS, upgrade, handshake and attestation together took too long."""

    retryable_by_default = True


class ReadTimeout(EnclaviaError, httpx2.ReadTimeout, TimeoutError):
    """Nothing came for too long."""

    retryable_by_default = True


class WriteTimeout(EnclaviaError, httpx2.WriteTimeout, TimeoutError):
    """Nothing could be sent, or the body gave nothing to send, for too long."""

    retryable_by_default = True


class PoolTimeout(EnclaviaError, httpx2.PoolTimeout, TimeoutError):
    """All slots of the connection were taken for too long."""

    retryable_by_default = True


class ProtocolError(EnclaviaError, httpx2.RemoteProtocolError):
    """The peer broke the wire contract, or the workload HTTP's."""


class AttestationError(EnclaviaError, httpx2.TransportError):
    """The peer did not prove that it is the enclave that was asked for.

    ``hint``: what the refused document looks like, where that is known: ``"debug enclave"`` (it
    proves nothing, as those of enclaves in debug mode do) or ``"another root"`` (its certificates
    lead to a root, but not to the pinned one). Otherwise None. The message says it in words. It is
    nothing to rely on: whoever made the document chose what it looks like.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: Literal["debug enclave", "another root"] | None = None,
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, request=request)
        self.hint = hint


class DocumentError(AttestationError):
    """The attestation document is not well-formed."""


class CertificateError(AttestationError):
    """The document's certificates do not lead to the pinned root, or are not valid now."""


class SignatureError(AttestationError):
    """The document is not signed with its certificate's key."""


class NonceMismatch(AttestationError):
    """The document was made for another channel."""


class PcrMismatch(AttestationError):
    """Another image runs in the enclave than the pinned one."""

    def __init__(
        self,
        message: str,
        *,
        index: int = -1,
        expected: bytes = b"",
        actual: bytes = b"",
        hint: Literal["debug enclave", "another root"] | None = None,
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retryable=retryable, request=request)
        self.index = index
        self.expected = expected
        self.actual = actual


class FleetMismatch(AttestationError):
    """Two workers of one job saw different identities, or one was not verified. ``report``: the
    :class:`enclavia.FleetReport` of all of them."""

    def __init__(
        self,
        message: str,
        *,
        report: Any = None,  # noqa: ANN401 - a FleetReport, which this module must not know
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, request=request)
        self.report = report


class AttestationRefused(AttestationError):
    """The caller's own ``on_attestation`` raised: the document was verified, and its channel is not
    used. ``__cause__`` is what was raised there; of an error of this package it says whether this
    one is ``retryable``."""


class ReceiptError(AttestationError):
    """A receipt is not well-formed, was changed, or says what its document does not say."""


class PolicyExpired(AttestationError):
    """The policy allows no version any more, or not the one that runs: ``version`` is the name of
    the version that was allowed last."""

    def __init__(
        self,
        message: str,
        *,
        version: str = "",
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, request=request)
        self.version = version


class SigstoreError(EnclaviaError, ValueError):
    """A Sigstore bundle does not prove that the identity that was asked for has signed these PCRs.
    ``__cause__``: the error of the library ``sigstore``, where that has refused the bundle. Clients
    that ask :class:`SigstorePins` raise :class:`PinsUnavailable` with this one as its cause."""


class UpgradeChainError(EnclaviaError, httpx2.TransportError):
    """The chain of upgrades does not lead from the pinned image to the running one.

    ``link``: the index of the link that is wrong, 0 for the first; None where it is no single one.
    ``reason``: what is wrong, without the link. ``__cause__``: the error of its document, or the
    :class:`PcrMismatch` for which the chain was asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        link: int | None = None,
        reason: str = "",
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, request=request)
        self.link = link
        self.reason = shown(reason) or self.message


class BackendError(EnclaviaError, httpx2.TransportError):
    """The backend that serves chains of upgrades gave no usable answer. ``status``: that of its
    answer, 0 where there was none. Retryable where it could not be reached, was busy, or failed."""

    retryable_by_default = True

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, request=request)
        self.status = status


class ServerError(EnclaviaError, httpx2.ReadError):
    """The enclave answered ``Error`` for one request or stream; ``id`` says which. For a request of
    HTTP that is how a workload's reset arrives: httpx2 raises ``ReadError`` there, and asking again
    may help, so it is retryable then."""

    def __init__(
        self,
        message: str,
        *,
        id: int = 0,
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, request=request)
        self.id = id


class DownloadError(EnclaviaError):
    """What the workload answered cannot be made into the whole file; the destination is as it was.
    ``status``: that of the answer, where it is what cannot be used; else None."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, request=request)
        self.status = status


class DigestMismatch(DownloadError):
    """The whole file has another SHA-256 digest than it should have; the destination is as it was.
    ``expected``, ``actual``: 64 hex digits each."""

    def __init__(
        self,
        message: str,
        *,
        expected: str = "",
        actual: str = "",
        status: int | None = None,
        retryable: bool | None = None,
        request: httpx2.Request | None = None,
    ) -> None:
        super().__init__(message, status=status, retryable=retryable, request=request)
        self.expected = expected
        self.actual = actual


class FileChanged(EnclaviaError, OSError):
    """A file that is read by ranges is another one than when it was opened, or another image sends
    it now. No bytes of the other one were returned. Opening it anew reads what is there now."""


class RangesUnsupported(EnclaviaError, io.UnsupportedOperation):
    """A file cannot be read by ranges: the workload does not answer them, does not answer them
    rightly, or has no strong validator (ETag), by which parts of one version are known."""


class InvalidURL(EnclaviaError, httpx2.InvalidURL, ValueError):
    """This cannot be the URL of an enclave, or of a request to one."""


class ForeignURL(EnclaviaError, httpx2.UnsupportedProtocol, ValueError):
    """A URL that is not the enclave's: another host, another port, or a scheme other than https,
    wss, http and ws, which all mean the tunnel. Nothing was sent."""


class InvalidRequest(EnclaviaError, httpx2.LocalProtocolError, ValueError):
    """This request cannot be written as HTTP/1.1. Nothing of it was sent, or it was broken off."""


class StateError(EnclaviaError, RuntimeError):
    """Not possible any more, or not yet."""


class ForkedError(StateError):
    """A forked child must not use its parent's keys: the same key and counter, used twice, would
    give both plaintexts away."""


class InternalError(EnclaviaError, RuntimeError):
    """A library refused what it must not refuse: a bug here, or a broken installation."""


# Tracebacks, reprs and pickles name the module that they are imported from.
for _name in __all__:
    public(globals()[_name])

# By the names that csrc/base/error.c gives its codes (``_core.ERROR_NAMES``).
_CLASSES: dict[str, type[Exception]] = {
    "out of memory": MemoryError,
    "invalid argument": ValueError,
    "invalid URL": InvalidURL,
    "wrong state": StateError,
    "connect error": ConnectError,
    "upgrade rejected": UpgradeRejected,
    "connection closed": ConnectionClosed,
    "connect timeout": ConnectTimeout,
    "read timeout": ReadTimeout,
    "write timeout": WriteTimeout,
    "pool timeout": PoolTimeout,
    "protocol error": ProtocolError,
    "document error": DocumentError,
    "certificate error": CertificateError,
    "signature error": SignatureError,
    "nonce mismatch": NonceMismatch,
    "PCR mismatch": PcrMismatch,
    "server error": ServerError,
    "forked process": ForkedError,
    "internal error": InternalError,
    "slow reader": SlowReader,
}


def from_core(name: str, message: str, retryable: bool, detail: Mapping[str, Any]) -> Exception:
    """Makes the exception for an error of the C core."""
    cls = _CLASSES.get(name, InternalError)
    if not issubclass(cls, EnclaviaError):
        return cls(message)
    if cls is PcrMismatch:
        return PcrMismatch(
            message,
            index=detail.get("index", -1),
            expected=detail.get("expected", b""),
            actual=detail.get("actual", b""),
            hint=detail.get("hint"),
            retryable=retryable,
        )
    if issubclass(cls, AttestationError):
        return cls(message, hint=detail.get("hint"), retryable=retryable)
    if cls is ServerError:
        return ServerError(message, id=detail.get("id", 0), retryable=retryable)
    if cls is UpgradeRejected:
        return UpgradeRejected(
            message,
            status=detail.get("status", 0),
            head=detail.get("head", b""),
            retryable=retryable,
        )
    return cls(message, retryable=retryable)
