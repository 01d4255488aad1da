"""Receipts: what was checked of one attestation document, when, and against what, as one JSON line.

A channel's receipt costs next to nothing while nobody asks for it: it keeps what the channel knew,
and becomes text when that is needed. Read again from text it proves nothing before
:meth:`Receipt.verify` has repeated every check at the time that the receipt names.

The format is ``enclavia/schemas/receipt-1.json``; docs/receipts.md says what each field means.

Writing, reading and verifying them is in receipt_text.py, which is loaded when the first receipt is
asked for something.

Decides which receipts are the same one. Calls: _core, _errors, _identity, _public. Locks: none.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from .._errors import ReceiptError, StateError
from .._identity.pcrs import PinSet
from .._identity.pins import PinNames, RootCertificate
from .._public import public

if TYPE_CHECKING:
    from .. import _core
    from .._identity.attestation import Attestation
    from .._identity.pcrs import Pcrs
    from .versions import AllowedVersions

__all__ = ["RECEIPTS_KEPT", "Facts", "Receipt"]

RECEIPTS_KEPT: Final = 64
"""How many a client or a channel has at most: the newest."""


class Facts(NamedTuple):
    """What a channel knows once a document of its enclave was verified."""

    enclave: str
    """``wss://`` and the authority; no path, which may have a secret in it."""
    via: str | None
    """The forwarder by way of which the enclave is reached."""
    reason: str
    """``"connect"``: a new channel's first document. ``"fresh"``: a later one of the same."""
    pins: Sequence[PinSet] | None
    """The sets that were pinned, as the core has them."""
    root: bytes | None
    """The root certificate, PEM or DER. None: AWS's."""
    clock_leeway: int
    handshake_hash: bytes
    raw: "_core.RawAttestation"
    names: PinNames = ()
    """What some sets of pins are called."""


@public
class Receipt:
    """What was checked of one attestation document, at what time, and against which pins and root.

    Clients, channels and forwarders make them (``receipts``, ``on_attestation``);
    :meth:`from_json` reads one. ``str(receipt)`` is its JSON, in one line. Immutable; equal where
    ``receipt_id`` is.
    """

    __slots__ = ("__weakref__", "_facts", "_fields", "_id")

    _facts: Facts | None
    _fields: dict[str, Any] | None
    _id: str | None

    def __init__(self) -> None:
        raise TypeError(
            "expected a receipt of a client, a channel or a forwarder (client.receipts), or "
            "Receipt.from_json(line), got Receipt(…)"
        )

    @classmethod
    def _of(cls, facts: Facts) -> Self:
        made = cls.__new__(cls)
        made._facts = facts
        made._fields = made._id = None
        return made

    def _fresh(self, raw: "_core.RawAttestation", handshake_hash: bytes | None = None) -> Self:
        """Of a later document of the same channel; of a forwarder, which may have another channel
        by now, with the handshake hash of that."""
        assert self._facts is not None  # noqa: S101 - it is a channel's
        fresh = self._facts._replace(reason="fresh", raw=raw)
        if handshake_hash is not None:
            fresh = fresh._replace(handshake_hash=handshake_hash)
        return self._of(fresh)

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Reads what ``str(receipt)`` was, of at most 1 MiB. Raises :class:`ReceiptError` where it
        is none, or where its ``receipt_id`` is not that of the rest. Proves nothing: see
        :meth:`verify`."""
        from .receipt_text import read

        fields = read(line)
        said = fields.pop("receipt_id")
        made = cls.__new__(cls)
        made._facts = None
        made._fields = fields
        made._id = None
        if made.receipt_id != said:
            raise ReceiptError(
                f"expected the receipt_id {made.receipt_id} of what stands in the receipt, got "
                f"{said}: it was changed after it was written"
            )
        return made

    # -- what it says -------------------------------------------------------------------------

    @property
    def receipt_id(self) -> str:
        """64 hex digits: the SHA-256 digest of the JSON with sorted keys and without this one. Two
        receipts with one id say the same."""
        if self._id is None:
            packed = json.dumps(self._known(), sort_keys=True, separators=(",", ":"))
            self._id = hashlib.sha256(packed.encode("ascii")).hexdigest()
        return self._id

    @property
    def enclave(self) -> str:
        """``wss://`` (or ``ws://``) and the enclave's authority."""
        return self._text("enclave")

    @property
    def via(self) -> str | None:
        """The forwarder by way of which the enclave was reached; None where it was reached
        directly. Then that the document was made for the channel is the forwarder's word."""
        value = self._known()["via"]
        return None if value is None else str(value)

    @property
    def reason(self) -> str:
        """``"connect"``: a new channel was verified. ``"fresh"``: a later document of a channel."""
        return self._text("reason")

    @property
    def verified_at(self) -> datetime:
        """When it was verified, by this machine's clock: the time at which certificates were
        judged."""
        return datetime.fromisoformat(self._text("verified_at"))

    @property
    def version(self) -> str | None:
        """What the client's policy called the version whose pins the document matched; None where
        the pins had no names. The word of who wrote the receipt: a document has no name in it."""
        value = self._known()["version"]
        return None if value is None else str(value)

    @property
    def checked(self) -> tuple[str, ...]:
        """What was checked, of ``structure``, ``certificates``, ``signature``, ``nonce`` and
        ``pcrs``."""
        return tuple(self._known()["checked"])

    @property
    def handshake_hash(self) -> bytes:
        """32 bytes: of the channel that the document vouches for."""
        return bytes.fromhex(self._text("handshake_hash"))

    @property
    def document(self) -> bytes:
        """The attestation document as it arrived."""
        return base64.b64decode(self._text("document"))

    @property
    def attestation(self) -> "Attestation":
        """What the document says. StateError for a receipt that was read and not verified:
        :meth:`verify` returns it."""
        if self._facts is None:
            raise StateError(
                "expected a receipt of this process's own channel, got one that was read: "
                "verify() checks it and returns its attestation"
            )
        from .receipt_text import attested

        return attested(self._facts.raw, self._facts.names)

    def as_dict(self) -> dict[str, Any]:
        """What its JSON says, for programs."""
        return json.loads(str(self))  # type: ignore[no-any-return]

    def __str__(self) -> str:
        fields = self._known()
        ordered = {"schema": fields["schema"], "receipt_id": self.receipt_id, **fields}
        return json.dumps(ordered, separators=(",", ":"))

    # -- whether it holds ---------------------------------------------------------------------

    def verify(
        self,
        *,
        root: RootCertificate = None,
        pcrs: "Pcrs | Iterable[Pcrs] | AllowedVersions | None" = None,
    ) -> "Attestation":
        """Repeats every check of the document offline, at the time when it was verified, and
        compares what the receipt says of the document with the document.

        ``root``: the root certificate that is trusted (PEM or DER, or the path of a file; default:
        AWS's). A receipt of another root does not hold, whichever it names itself. ``pcrs``: pins
        that the document has to match beside those that the receipt names; or a policy's
        (:attr:`Policy.pins`), of which those count that were allowed at the time, and whose name
        for them has to be the receipt's, where that names one. Only then has the attestation's
        ``matched`` a name: without a policy nothing says what the version is called but the
        receipt. Raises :class:`ReceiptError`, or the :class:`AttestationError` of the check that
        fails.
        """
        from .receipt_text import verified

        return verified(self._known(), root, pcrs)

    # -- inside -------------------------------------------------------------------------------

    def _known(self) -> dict[str, Any]:
        if self._fields is None:
            assert self._facts is not None  # noqa: S101 - one of the two is always there
            from .receipt_text import fields_of

            self._fields = fields_of(**self._facts._asdict())
        return self._fields

    def _text(self, name: str) -> str:
        value: str = self._known()[name]
        return value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Receipt):
            return NotImplemented
        return self is other or self.receipt_id == other.receipt_id

    def __hash__(self) -> int:
        return hash(self.receipt_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return Receipt.from_json, (str(self),)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        return (
            f"Receipt({self.receipt_id[:8]}…, enclave={self.enclave!r}, "
            f"verified_at={self.verified_at.isoformat()}, form={self._known()['form']!r})"
        )
