"""What a receipt says: from what a channel knew to the fields of its JSON, from JSON to its fields,
and back to the document, which is verified once more.

Connecting needs none of this: receipts.py loads it where somebody asks a receipt for something.

Decides what is a well-formed receipt, and whether one holds. Calls: _arguments, _core, _errors,
_identity. Locks: none.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .. import _core
from .._arguments import value_shown
from .._errors import ReceiptError
from .._identity.attestation import Attestation
from .._identity.pins import PinNames, RootCertificate, indexed, pin_tuples, read_root
from .once import KeyTwice, once
from .versions import AllowedVersions, pins_of

if TYPE_CHECKING:
    from .._identity.pcrs import Pcrs, PinSet

__all__ = ["RECEIPT_MAX", "SCHEMA", "attested", "fields_of", "read", "verified"]

SCHEMA: Final = "enclavia-receipt-1"
"""What the first field of every receipt of this format says."""
RECEIPT_MAX: Final = 1024 * 1024
"""Bytes of one line. A document has at most 32 KiB; the rest is left for pins."""
_PINS_MAX: Final = 1024
_LEEWAY_MAX: Final = 300
_TEXT_MAX: Final = 65_536
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def attested(raw: _core.RawAttestation, names: PinNames = ()) -> Attestation:
    return Attestation._from_raw(raw, names)


# -- from a channel to text -------------------------------------------------------------------


def fields_of(
    *,
    enclave: str,
    via: str | None,
    reason: str,
    pins: Sequence[PinSet] | None,
    root: bytes | None,
    clock_leeway: int,
    handshake_hash: bytes,
    raw: _core.RawAttestation,
    names: PinNames,
) -> dict[str, Any]:
    """Of what is known (``Facts``) all but the id, in the order in which it is written."""
    said = attested(raw, names)
    matched = said.matched
    return {
        "schema": SCHEMA,
        "enclave": enclave,
        "via": via,
        "reason": reason,
        "verified_at": said.verified_at.isoformat(),
        "checked": _checked(said.form, via, pins),
        "form": said.form,
        "module_id": said.module_id,
        "timestamp": said.timestamp.isoformat(),
        "valid_until": None if said.valid_until is None else said.valid_until.isoformat(),
        "pcrs": {f"PCR{index}": value.hex() for index, value in said.pcrs.items()},
        "pins": None if pins is None else [_named(each) for each in pins],
        "matched": None if matched is None else matched.index,
        "version": None if matched is None else matched.name,
        "root": _digest_of(root),
        "clock_leeway": clock_leeway,
        "handshake_hash": handshake_hash.hex(),
        "nonce": None if said.nonce is None else said.nonce.hex(),
        "document": base64.b64encode(said.document).decode("ascii"),
    }


@functools.lru_cache(maxsize=32)
def _digest_of(root: bytes | None) -> str:
    return hashlib.sha256(_core.Policy(None, root, False, False).root).hexdigest()


def _checked(form: str, via: str | None, pins: Sequence[PinSet] | None) -> list[str]:
    """By way of a forwarder the nonce is its word; in debug mode hardly anything is looked at."""
    checks = ["structure", "certificates", "signature"] if form == "nitro" else []
    if via is None:
        checks.append("nonce")
    if pins is not None and form != "stub":
        checks.append("pcrs")
    return checks


def _named(pins: PinSet) -> dict[str, str]:
    return {f"PCR{index}": value.hex() for index, value in indexed(pins)}


def _set_of(named: Mapping[str, str]) -> tuple[Any, ...]:
    """As the core takes it; :func:`read` has made sure that the first three are there."""
    values = {int(name[3:]): bytes.fromhex(value) for name, value in named.items()}
    first = tuple(values.pop(index) for index in range(3))
    return first + tuple(sorted(values.items()))


def _seconds(moment: str) -> int:
    return (datetime.fromisoformat(moment) - _EPOCH) // timedelta(seconds=1)


def _expect_same(really: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    for name, value in really.items():
        if said[name] != value:
            raise ReceiptError(
                f"{name}: expected what the document says, {value_shown(value)}, got "
                f"{value_shown(said[name])}"
            )


# -- whether it holds -------------------------------------------------------------------------


def verified(
    fields: Mapping[str, Any],
    root: RootCertificate,
    pcrs: Pcrs | Iterable[Pcrs] | AllowedVersions | None,
) -> Attestation:
    """:meth:`Receipt.verify`, of a receipt that says ``fields``."""
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
    raw = _verified(fields, pins, trusted)
    really = fields_of(
        enclave=fields["enclave"],
        via=fields["via"],
        reason=fields["reason"],
        pins=pins,
        root=trusted,
        clock_leeway=fields["clock_leeway"],
        handshake_hash=bytes.fromhex(fields["handshake_hash"]),
        raw=raw,
        names=() if fields["version"] is None else ((pins[fields["matched"]], fields["version"]),),
    )
    _expect_same(really, fields)
    if isinstance(pcrs, AllowedVersions):
        return _verified_by(fields, pcrs, trusted)
    if pcrs is not None:
        raw = _verified(fields, pin_tuples(pcrs), trusted)
    return attested(raw)


def _verified(
    fields: Mapping[str, Any], pins: Sequence[PinSet] | None, root: bytes | None
) -> _core.RawAttestation:
    """Its document, by these pins, at its own time."""
    policy = _core.Policy(pins, root, False, True, fields["clock_leeway"])
    nonce = bytes.fromhex(fields["handshake_hash" if fields["via"] is None else "nonce"])
    return _core.verify(
        base64.b64decode(fields["document"]), policy, nonce, _seconds(fields["verified_at"])
    )


def _verified_by(
    fields: Mapping[str, Any], policy: AllowedVersions, root: bytes | None
) -> Attestation:
    """By the versions that the policy allowed then, of one of which the receipt may speak."""
    allowed = policy.in_force(_seconds(fields["verified_at"]))
    if not allowed:
        raise ReceiptError(
            "expected a receipt of a time at which the policy allowed a version, got one of "
            f"{fields['verified_at']}"
        )
    attestation = attested(_verified(fields, pins_of(allowed), root), policy.names)
    name = None if attestation.matched is None else attestation.matched.name
    if fields["version"] not in (None, name):
        raise ReceiptError(
            f"version: expected {value_shown(name)}, as the policy calls these PCRs, got "
            f"{value_shown(fields['version'])}"
        )
    return attestation


# -- from text --------------------------------------------------------------------------------


def _refuse(message: str) -> NoReturn:
    raise ReceiptError(f"expected a receipt, got {message}")


def read(line: object) -> dict[str, Any]:
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
