"""What a backend serves about an enclave, as JSON: its row, and the links of its upgrade chain.

Decides whether the texts have the form that they must have, and nothing about what they say. Calls:
_core, _errors, _identity. Locks: none.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from .. import _core
from .._errors import DocumentError, UpgradeChainError
from .._identity.pcrs import Pcrs
from .once import KeyTwice, once

__all__ = [
    "MOST_BYTES",
    "MOST_LINKS",
    "Link",
    "Row",
    "failed",
    "nanoseconds",
    "read_json",
    "read_links",
    "read_row",
    "read_uuid",
    "shown_time",
]

MOST_BYTES: Final = 4 * 1024 * 1024
"""Of each of the two texts."""
MOST_LINKS: Final = 1000
_DEPTH: Final = 32
_DIGITS: Final = 20
_KINDS: Final = {
    "boot": _core.LINK_BOOT,
    "upgrade": _core.LINK_UPGRADE,
    "revocation": _core.LINK_REVOCATION,
}
_STRING: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKET: Final = re.compile(r"[\[\]{}]")
_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))",
    re.ASCII,
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Row(NamedTuple):
    """What the backend says of the enclave. Nobody has signed it."""

    pcrs: Pcrs
    image_digest: str
    control_public_key: bytes | None
    upgradable: bool


class Link(NamedTuple):
    """One link as it was served; nothing of it is verified."""

    place: int
    """In the chain, from 0 on."""
    kind: str
    id: uuid.UUID | None
    payload: bytes
    attestation: bytes
    signature: bytes | None
    fields: dict[str, Any]
    """Of the payload, as :func:`enclavia._core.link_payload` reads them."""


def failed(reason: str, link: int | None = None, kind: str = "") -> UpgradeChainError:
    """The error that says which link is wrong, and why."""
    where = "the upgrade chain" if link is None else f"link {link}"
    of_kind = f" ({kind})" if kind else ""
    return UpgradeChainError(f"{where}{of_kind}: {reason}", link=link, reason=reason)


# -- JSON -------------------------------------------------------------------------------------


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise _Refused(f"expected numbers of at most {_DIGITS} digits, got {len(digits)}")
    return int(digits)


def _real(text: str) -> float:
    if len(text) > _DIGITS:
        raise _Refused(f"expected numbers of at most {_DIGITS} digits, got {len(text)}")
    return float(text)


def _constant(name: str) -> float:
    raise _Refused(f"expected a number, got {name}, which is none in JSON")


class _Refused(ValueError):
    """Why it is refused; its text is ours."""


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=once,
    parse_int=_integer,
    parse_float=_real,
    parse_constant=_constant,
)


def _check_depth(text: str) -> None:
    depth = 0
    for match in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if match[0] in "[{" else -1
        if depth > _DEPTH:
            raise _Refused(f"expected JSON nested at most {_DEPTH} deep, got more")


def read_json(what: str, text: str | bytes) -> object:
    """Of at most 4 MiB, 32 levels, and 20 digits in a number; no key of an object is there twice.
    Raises UpgradeChainError where it is anything else."""
    if len(text) > MOST_BYTES:
        raise failed(f"{what}: expected at most {MOST_BYTES} bytes, got {len(text)}")
    try:
        if not isinstance(text, str):
            text = str(text, "utf-8")
        _check_depth(text)
        return _DECODER.decode(text)
    except _Refused as error:
        raise failed(f"{what}: {error}") from None
    except KeyTwice as error:
        raise failed(f"{what}: expected each key of an object once, got {error}") from None
    except (ValueError, RecursionError):
        raise failed(f"{what}: expected JSON, got what is none") from None


def _object(what: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _Refused(f"{what}: expected an object, got {_kind(value)}")
    return value


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise _Refused(f"{what}: expected text, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "true or false"}
    return "null or nothing" if value is None else names.get(type(value), "a number")


def _base64(what: str, value: object) -> bytes:
    text = _text(what, value)
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _Refused(f"{what}: expected base64, got what is none") from None
    if base64.b64encode(raw).decode() != text:
        raise _Refused(f"{what}: expected base64, got one whose last character has stray bits")
    return raw


# -- the row ----------------------------------------------------------------------------------


def read_row(text: str | bytes) -> Row:
    """Raises UpgradeChainError where it is not of the form that a row has."""
    value = read_json("the enclave's row", text)
    try:
        row = _object("the row", value)
        return Row(
            pcrs=_pcrs(row.get("pcrs")),
            image_digest=_image_digest(row.get("image_digest")),
            control_public_key=_key(row.get("control_public_key")),
            upgradable=_upgradable(row.get("upgradable", False)),
        )
    except _Refused as error:
        raise failed(f"the enclave's row: {error}") from None


def _image_digest(value: object) -> str:
    digest = _text("image_digest", value)
    if not digest:
        raise _Refused("image_digest: expected text, got an empty one")
    return digest


def _upgradable(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Refused(f"upgradable: expected true or false, got {_kind(value)}")
    return value


def _pcrs(value: object) -> Pcrs:
    given = _object("pcrs", value)
    values = {}
    for index in range(3):
        names = [name for name in (f"PCR{index}", f"pcr{index}") if name in given]
        if len(names) != 1:
            got = "none" if not names else "two"
            raise _Refused(f"pcrs: expected one PCR{index}, got {got}")
        values[f"pcr{index}"] = _text(names[0], given[names[0]])
    try:
        return Pcrs(**values)
    except ValueError as error:
        raise _Refused(f"pcrs: {error}") from None


def _key(value: object) -> bytes | None:
    """An array of byte values, base64, or null."""
    what = "control_public_key"
    if value is None:
        return None
    if isinstance(value, list):
        if not all(type(each) is int and 0 <= each <= 255 for each in value):
            raise _Refused(f"{what}: expected byte values of 0 to 255, got others")
        key = bytes(value)
    else:
        key = _base64(what, value)
    if not 33 <= len(key) <= 65:
        raise _Refused(f"{what}: expected a SEC1 point of 33 or 65 bytes, got {len(key)}")
    return key


# -- the links --------------------------------------------------------------------------------


def read_links(text: str | bytes) -> list[Link]:
    """Raises UpgradeChainError where they are not of the form that links have."""
    value = read_json("the links", text)
    if not isinstance(value, list):
        raise failed(f"expected an array of links, got {_kind(value)}")
    if not value:
        raise failed("expected at least one link, got none")
    if len(value) > MOST_LINKS:
        raise failed(f"expected at most {MOST_LINKS} links, got {len(value)}")
    return [_link(index, each) for index, each in enumerate(value)]


def _link(index: int, value: object) -> Link:
    kind = ""
    try:
        given = _object("the link", value)
        kind = _known_kind(given.get("kind"))
        _check_sequence(index, given.get("sequence"))
        if given.get("created_at") is not None:
            nanoseconds("created_at", _text("created_at", given["created_at"]))
        payload = _base64("payload", given.get("payload"))
        return Link(
            place=index,
            kind=kind,
            id=_id(given.get("id")),
            payload=payload,
            attestation=_base64("attestation", given.get("attestation")),
            signature=_signature(kind, given.get("signature")),
            fields=_fields(kind, payload),
        )
    except _Refused as error:
        raise failed(str(error), index, kind) from None
    except DocumentError as error:
        raise failed(error.message, index, kind) from error


def _known_kind(value: object) -> str:
    if not isinstance(value, str) or value not in _KINDS:
        raise _Refused("kind: expected boot, upgrade or revocation, got another value")
    return value


def _check_sequence(index: int, value: object) -> None:
    if value is not None and (type(value) is not int or value != index):
        raise _Refused(
            f"sequence: expected {index}, the link's place in the chain, or null, got another "
            "value: links are missing or in another order"
        )


def _id(value: object) -> uuid.UUID | None:
    if value is None:
        return None
    text = _text("id", value)
    try:
        return read_uuid(text)
    except ValueError:
        raise _Refused("id: expected a UUID or null, got another text") from None


def read_uuid(text: str) -> uuid.UUID:
    """Of the form that RFC 9562 section 4 writes: 32 hexadecimal digits and four hyphens. Raises
    ValueError for every other text, of which ``uuid.UUID`` reads many: it takes signs, underscores
    and digits of other scripts for digits."""
    value = uuid.UUID(text)
    if str(value) != text.lower():
        raise ValueError("expected a UUID with hyphens")
    return value


def _signature(kind: str, value: object) -> bytes | None:
    if kind == "boot":
        if value is not None:
            raise _Refused("signature: expected none on a boot, got one")
        return None
    if value is None:
        raise _Refused("signature: expected one by the control key, got none")
    return _base64("signature", value)


def _fields(kind: str, payload: bytes) -> dict[str, Any]:
    fields = _core.link_payload(_KINDS[kind], payload)
    for name in ("booted_at", "valid_from", "issued_at"):
        if name in fields:
            fields[name] = nanoseconds(name, fields[name])
    return fields


# -- times ------------------------------------------------------------------------------------


def _offset(match: re.Match[str]) -> timezone:
    if match[8] is not None:
        return UTC
    if int(match[11]) > 59:
        raise ValueError
    offset = timedelta(hours=int(match[10]), minutes=int(match[11]))
    return timezone(-offset if match[9] == "-" else offset)


def nanoseconds(what: str, text: str) -> int:
    """Since 1970, of a time as RFC 3339 section 5.6 writes it. Leap seconds are refused."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise _Refused(f"{what}: expected a time in the form of RFC 3339, got another text")
    year, month, day, hour, minute, second = (int(match[n]) for n in range(1, 7))
    try:
        offset = _offset(match)
        moment = datetime(year, month, day, hour, minute, second, tzinfo=offset)
    except ValueError:
        raise _Refused(f"{what}: expected a time that the calendar has, got another") from None
    whole = moment - _EPOCH
    fraction = int((match[7] or "0").ljust(9, "0"))
    return (whole.days * 86_400 + whole.seconds) * 1_000_000_000 + fraction


def shown_time(value: int) -> str:
    """Of nanoseconds since 1970, to the second."""
    seconds = value // 1_000_000_000
    try:
        return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError:
        return f"{seconds} s"
