"""Receipts: what was checked of one attestation document, when, and against what, as one JSON line.

A channel's receipt costs next to nothing while nobody asks for it: it keeps what the channel knew,
and becomes text when that is needed. Read again from text it proves nothing before
:meth:`Receipt.verify` has repeated every check at the time that the receipt names.

The format is ``enclavia/schemas/receipt-1.json``; docs/receipts.md says what each field means.

Decides what is a well-formed receipt, and whether one holds. Calls: _arguments, _core, _errors,
_identity, _public. Locks: none.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Self

from .. import _core
from .._arguments import value_shown
from .._errors import ReceiptError, StateError
from .._identity.pins import PinNames, RootCertificate, indexed, pin_tuples, read_root
from .._public import public
from .versions import AllowedVersions, pins_of

if TYPE_CHECKING:
    from .._identity.attestation import Attestation
    from .._identity.pcrs import Pcrs, PinSet

__all__ = ["RECEIPTS_KEPT", "RECEIPT_MAX", "SCHEMA", "Facts", "Receipt"]

SCHEMA: Final = "enclavia-receipt-1"
"""What the first field of every receipt of this format says."""
RECEIPT_MAX: Final = 1024 * 1024
"""Bytes of one line. A document has at most 32 KiB; the rest is left for pins."""
RECEIPTS_KEPT: Final = 64
"""How many a client or a channel has at most: the newest."""
_PINS_MAX: Final = 1024
_LEEWAY_MAX: Final = 300
_TEXT_MAX: Final = 65_536
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


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
    raw: _core.RawAttestation
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

    def _fresh(self, raw: _core.RawAttestation, handshake_hash: bytes | None = None) -> Self:
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
        fields = _read(line)
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
    def attestation(self) -> Attestation:
        """What the document says. StateError for a receipt that was read and not verified:
        :meth:`verify` returns it."""
        if self._facts is None:
            raise StateError(
                "expected a receipt of this process's own channel, got one that was read: "
                "verify() checks it and returns its attestation"
            )
        return _attested(self._facts.raw, self._facts.names)

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
        pcrs: Pcrs | Sequence[Pcrs] | AllowedVersions | None = None,
    ) -> Attestation:
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
        fields = self._known()
        if fields["form"] != "nitro":
            raise ReceiptError(
                f"expected a receipt of a signed document, got one of the form {fields['form']!r}: "
                "debug mode proves nothing"
            )
        trusted = read_root(root)
        digest = _digest_of(trusted)
        if fields["root"] != digest:
            raise ReceiptError(
                f"expected a receipt of the root certificate with the SHA-256 digest {digest}, got "
                f"one of {fields['root']}: give the root that was trusted then, if it is to be"
            )
        pins = [_set_of(each) for each in fields["pins"]]
        raw = self._verified(pins, trusted)
        facts = Facts(
            enclave=self.enclave,
            via=self.via,
            reason=self.reason,
            pins=pins,
            root=trusted,
            clock_leeway=fields["clock_leeway"],
            handshake_hash=self.handshake_hash,
            raw=raw,
            names=() if self.version is None else ((pins[fields["matched"]], self.version),),
        )
        _expect_same(_fields_of(facts), fields)
        if isinstance(pcrs, AllowedVersions):
            return self._verified_by(pcrs, trusted)
        if pcrs is not None:
            raw = self._verified(pin_tuples(pcrs), trusted)
        return _attested(raw)

    def _verified(self, pins: Sequence[PinSet] | None, root: bytes | None) -> _core.RawAttestation:
        """Its document, by these pins, at its own time."""
        fields = self._known()
        policy = _core.Policy(pins, root, False, True, fields["clock_leeway"])
        nonce = self.handshake_hash if self.via is None else bytes.fromhex(fields["nonce"])
        return _core.verify(self.document, policy, nonce, _seconds(self.verified_at))

    def _verified_by(self, policy: AllowedVersions, root: bytes | None) -> Attestation:
        """By the versions that the policy allowed then, of one of which the receipt may speak."""
        allowed = policy.in_force(_seconds(self.verified_at))
        if not allowed:
            raise ReceiptError(
                "expected a receipt of a time at which the policy allowed a version, got one of "
                f"{self.verified_at.isoformat()}"
            )
        attestation = _attested(self._verified(pins_of(allowed), root), policy.names)
        name = None if attestation.matched is None else attestation.matched.name
        if self.version not in (None, name):
            raise ReceiptError(
                f"version: expected {value_shown(name)}, as the policy calls these PCRs, got "
                f"{value_shown(self.version)}"
            )
        return attestation

    # -- inside -------------------------------------------------------------------------------

    def _known(self) -> dict[str, Any]:
        if self._fields is None:
            assert self._facts is not None  # noqa: S101 - one of the two is always there
            self._fields = _fields_of(self._facts)
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


def _attested(raw: _core.RawAttestation, names: PinNames = ()) -> Attestation:
    from .._identity.attestation import Attestation  # neither connecting nor a request needs it

    return Attestation._from_raw(raw, names)


# -- from a channel to text -------------------------------------------------------------------


def _fields_of(facts: Facts) -> dict[str, Any]:
    """All but the id, in the order in which it is written."""
    raw = facts.raw
    attested = _attested(raw, facts.names)
    matched = attested.matched
    return {
        "schema": SCHEMA,
        "enclave": facts.enclave,
        "via": facts.via,
        "reason": facts.reason,
        "verified_at": attested.verified_at.isoformat(),
        "checked": _checked(attested.form, facts),
        "form": attested.form,
        "module_id": attested.module_id,
        "timestamp": attested.timestamp.isoformat(),
        "valid_until": None if attested.valid_until is None else attested.valid_until.isoformat(),
        "pcrs": {f"PCR{index}": value.hex() for index, value in attested.pcrs.items()},
        "pins": None if facts.pins is None else [_named(each) for each in facts.pins],
        "matched": None if matched is None else matched.index,
        "version": None if matched is None else matched.name,
        "root": _digest_of(facts.root),
        "clock_leeway": facts.clock_leeway,
        "handshake_hash": facts.handshake_hash.hex(),
        "nonce": None if attested.nonce is None else attested.nonce.hex(),
        "document": base64.b64encode(attested.document).decode("ascii"),
    }


@functools.lru_cache(maxsize=32)
def _digest_of(root: bytes | None) -> str:
    return hashlib.sha256(_core.Policy(None, root, False, False).root).hexdigest()


def _checked(form: str, facts: Facts) -> list[str]:
    """By way of a forwarder the nonce is its word; in debug mode hardly anything is looked at."""
    checks = ["structure", "certificates", "signature"] if form == "nitro" else []
    if facts.via is None:
        checks.append("nonce")
    if facts.pins is not None and form != "stub":
        checks.append("pcrs")
    return checks


def _named(pins: PinSet) -> dict[str, str]:
    return {f"PCR{index}": value.hex() for index, value in indexed(pins)}


def _set_of(named: Mapping[str, str]) -> tuple[Any, ...]:
    """As the core takes it; :func:`_read` has made sure that the first three are there."""
    values = {int(name[3:]): bytes.fromhex(value) for name, value in named.items()}
    first = tuple(values.pop(index) for index in range(3))
    return first + tuple(sorted(values.items()))


def _seconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(seconds=1)


def _expect_same(really: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    for name, value in really.items():
        if said[name] != value:
            raise ReceiptError(
                f"{name}: expected what the document says, {value_shown(value)}, got "
                f"{value_shown(said[name])}"
            )


# -- from text --------------------------------------------------------------------------------


def _refuse(message: str) -> NoReturn:
    raise ReceiptError(f"expected a receipt, got {message}")


def _read(line: object) -> dict[str, Any]:
    """The fields of a well-formed receipt, the id among them."""
    if not isinstance(line, str | bytes | bytearray):
        raise TypeError(f"line: expected str or bytes, got {type(line).__name__}")
    if len(line) > RECEIPT_MAX:
        _refuse(f"more than {RECEIPT_MAX} bytes")
    fields = _parse(line)
    if not isinstance(fields, dict):
        _refuse("JSON that is no object")
    schema = fields.get("schema")
    if schema != SCHEMA:
        _refuse(f"one whose schema is {value_shown(schema)}, and this reads {SCHEMA!r}")
    for name in fields:
        if name not in _SHAPE:
            _refuse(f"one with a field that there is not: {value_shown(name)}")
    for name, (expected, fits) in _SHAPE.items():
        if name not in fields:
            _refuse(f"one without {name}")
        if not fits(fields[name]):
            _refuse(f"one whose {name} is not {expected}: {value_shown(fields[name])}")
    _check_together(fields)
    # In one order, whichever they came in.
    fields["pcrs"] = _by_index(fields["pcrs"])
    if fields["pins"] is not None:
        fields["pins"] = [_by_index(each) for each in fields["pins"]]
    return {name: fields[name] for name in _SHAPE}


def _by_index(named: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(named.items(), key=lambda each: int(each[0][3:])))


def _check_together(fields: Mapping[str, Any]) -> None:
    """What one field means for another."""
    if fields["form"] == "nitro":
        for name in ("valid_until", "pins", "nonce"):
            if fields[name] is None:
                _refuse(f"one of a signed document without {name}")
    matches = fields["matched"] is not None and fields["matched"] < len(fields["pins"] or ())
    if fields["version"] is not None and not matches:
        _refuse("one that names a version and no set of its pins")


def _parse(line: str | bytes | bytearray) -> object:
    from .once import KeyTwice, once  # few programs read receipts

    try:
        text = line if isinstance(line, str) else line.decode("utf-8")
        return json.loads(
            text, object_pairs_hook=once, parse_constant=_no_number, parse_float=_no_number
        )
    except ReceiptError:
        raise
    except KeyTwice as error:
        _refuse(f"JSON with {error}")
    except UnicodeDecodeError:
        _refuse("what is not UTF-8")
    except (ValueError, RecursionError) as error:
        # Of an absurd number Python's message is as good as any.
        _refuse(f"what is no JSON: {error}")


def _no_number(text: str) -> NoReturn:
    _refuse(f"a number that is not whole: {value_shown(text)}")


Fits = Callable[[Any], bool]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _TEXT_MAX


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _matches(pattern: str) -> Fits:
    # Compiled when a receipt is read for the first time, which few programs do.
    return lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value, re.ASCII))


def _one_of(*choices: str) -> Fits:
    return lambda value: isinstance(value, str) and value in choices


def _whole(most: int) -> Fits:
    return lambda value: type(value) is int and 0 <= value <= most


def _is_moment(value: object) -> bool:
    """As datetime writes it in UTC, and in no other spelling: a receipt has one id."""
    if not isinstance(value, str) or len(value) > 40:
        return False
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return False
    return moment.utcoffset() == timedelta(0) and moment.isoformat() == value


def _is_base64(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return base64.b64encode(base64.b64decode(value, validate=True)) == value.encode("ascii")
    except (ValueError, binascii.Error):
        return False


_is_pcr: Final = _matches("(?:[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})")
_is_pcr_name: Final = _matches("PCR(?:[12]?[0-9]|3[01])")


def _is_pcrs(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_pcr_name(name) and _is_pcr(each) for name, each in value.items()
    )


def _is_pins(value: object) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= _PINS_MAX
        and all(_is_pcrs(each) and {"PCR0", "PCR1", "PCR2"} <= each.keys() for each in value)
    )


_CHECKS: Final = ("structure", "certificates", "signature", "nonce", "pcrs")


def _is_checks(value: object) -> bool:
    return isinstance(value, list) and value == [each for each in _CHECKS if each in value]


_SHAPE: Final[dict[str, tuple[str, Fits]]] = {
    "schema": (repr(SCHEMA), _one_of(SCHEMA)),
    "receipt_id": ("64 hex digits", _matches("[0-9a-f]{64}")),
    "enclave": ("wss:// or ws:// and an authority", _matches("wss?://[!-~]{1,600}")),
    "via": ("text or null", _or_none(_is_text)),
    "reason": ("'connect' or 'fresh'", _one_of("connect", "fresh")),
    "verified_at": ("a time in UTC, as 2026-11-27T09:30:00+00:00", _is_moment),
    "checked": ("a list of checks in their order", _is_checks),
    "form": ("'nitro', 'debug' or 'stub'", _one_of("nitro", "debug", "stub")),
    "module_id": ("text", _is_text),
    "timestamp": ("a time in UTC, as 2026-11-27T09:30:00+00:00", _is_moment),
    "valid_until": ("a time in UTC, as 2026-11-27T09:30:00+00:00, or null", _or_none(_is_moment)),
    "pcrs": ("an object of PCR0 to PCR31 with hex text", _is_pcrs),
    "pins": ("a list of objects with PCR0, PCR1 and PCR2, or null", _or_none(_is_pins)),
    "matched": ("the index of a set of pins, or null", _or_none(_whole(_PINS_MAX - 1))),
    "version": ("text or null", _or_none(_is_text)),
    "root": ("64 hex digits", _matches("[0-9a-f]{64}")),
    "clock_leeway": ("seconds, 0 to 300", _whole(_LEEWAY_MAX)),
    "handshake_hash": ("64 hex digits", _matches("[0-9a-f]{64}")),
    "nonce": ("hex digits or null", _or_none(_matches("(?:[0-9a-f]{2}){1,1024}"))),
    "document": ("base64", _is_base64),
}
