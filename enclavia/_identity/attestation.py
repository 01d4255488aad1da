"""What an attestation document says once it was verified, and the verification by hand.

Decides nothing about trust: the core verifies, and this shows what was proved. Calls: _arguments,
_core, _public, _text. Locks: none.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from .. import _core
from .._arguments import byte_view, real, value_shown
from .._public import public
from .._text import shown, table_of
from .pcrs import Pcrs, PinSet
from .pins import CLOCK_LEEWAY, PinNames, checked_leeway, pin_tuples, read_root

if TYPE_CHECKING:
    from os import PathLike

    from typing_extensions import Buffer

__all__ = ["Attestation", "MatchedPins", "unix_seconds", "verify_attestation"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_FORMS = {
    "nitro": "signed, and chained to the pinned root",
    "debug": "NOT PROVEN: self-signed debug document",
    "stub": "NOT PROVEN: debug stub, a bare nonce",
}


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def _value(cls: type[T]) -> type[T]:
    """A dataclass that cannot be changed, for type checkers and for what dataclasses have to offer.
    Its methods are written by hand: compiling generated ones took a tenth of the package's import.
    """
    return dataclasses.dataclass(init=False, repr=False, eq=False)(cls)


@public
@dataclasses.dataclass(frozen=True)
class MatchedPins:
    """Which of the pins a document was found to agree with."""

    index: int
    """The set's place among those that were in force when the document was verified, from 0."""
    pcrs: Pcrs
    """The set itself."""
    name: str | None = None
    """That of the version, where the pins are those of a :class:`Policy`."""


@public
@_value
class Attestation:
    """A verified attestation document.

    ``form`` is ``"nitro"`` for one that was verified against a root certificate; ``"debug"`` and
    ``"stub"`` appear in debug mode only and prove nothing. ``matched`` says which set of the pins
    it agrees with: None where none were pinned, and in debug mode where the document does not have
    every pinned PCR.
    """

    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    form: str
    verified_at: datetime
    document: bytes
    valid_until: datetime | None = None
    """When the first certificate of its chain ends, which is in practice the enclave's own, about
    three hours after it was made. None in debug mode, where no certificate was judged."""
    matched: MatchedPins | None = dataclasses.field(default=None, compare=False)

    def __init__(
        self,
        module_id: str,
        timestamp: datetime,
        pcrs: Mapping[int, bytes],
        certificate: bytes,
        cabundle: tuple[bytes, ...],
        public_key: bytes | None,
        user_data: bytes | None,
        nonce: bytes | None,
        form: str,
        verified_at: datetime,
        document: bytes,
        valid_until: datetime | None = None,
        matched: MatchedPins | None = None,
    ) -> None:
        vars(self).update(
            module_id=module_id,
            timestamp=timestamp,
            pcrs=pcrs,
            certificate=certificate,
            cabundle=cabundle,
            public_key=public_key,
            user_data=user_data,
            nonce=nonce,
            form=form,
            verified_at=verified_at,
            document=document,
            valid_until=valid_until,
            matched=matched,
        )

    @classmethod
    def _from_raw(cls, raw: Mapping[str, Any], names: PinNames = ()) -> Attestation:
        """``names``: of sets of pins, of which one may be what the document agrees with."""
        return cls(
            module_id=raw["module_id"] or "",
            timestamp=_EPOCH + timedelta(milliseconds=raw["timestamp"]),
            pcrs=MappingProxyType(dict(sorted(raw["pcrs"].items()))),
            certificate=raw["certificate"] or b"",
            cabundle=tuple(raw["cabundle"] or ()),
            public_key=raw["public_key"],
            user_data=raw["user_data"],
            nonce=raw["nonce"],
            form=raw["form"],
            verified_at=_EPOCH + timedelta(seconds=raw["verified_at"]),
            document=raw["document"],
            valid_until=_moment(raw["valid_until"]),
            matched=_matched(raw, names),
        )

    @property
    def proven(self) -> bool:
        """Signed by hardware under the pinned root, not a debug stand-in."""
        return self.form == "nitro"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("an Attestation cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("an Attestation cannot be changed")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        compared = [field.name for field in dataclasses.fields(self) if field.compare]
        return all(getattr(self, name) == getattr(other, name) for name in compared)

    def __hash__(self) -> int:
        return hash((self.form, self.document, self.verified_at))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, ({**vars(self), "pcrs": dict(self.pcrs)},)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [
            ("form", _FORMS.get(self.form, self.form)),
            ("module id", shown(self.module_id) or "-"),
            ("timestamp", self.timestamp.isoformat(sep=" ", timespec="seconds")),
            ("verified at", self.verified_at.isoformat(sep=" ", timespec="seconds")),
        ]
        if self.valid_until is not None:
            rows.append(("valid until", self.valid_until.isoformat(sep=" ", timespec="seconds")))
        measured = {index: value for index, value in self.pcrs.items() if index < 3 or any(value)}
        rows += [(f"PCR{index}", value.hex()) for index, value in measured.items()]
        if self.matched is not None:
            named = "" if self.matched.name is None else f": {shown(self.matched.name)}"
            rows.append(("matched pins", f"set {self.matched.index}{named}"))
        if self.user_data is not None:
            rows.append(("user data", self.user_data.hex()))
        if self.public_key is not None:
            rows.append(("public key", self.public_key.hex()))
        rows.append(("certificates", f"leaf and {len(self.cabundle)} above it"))
        return rows

    def __repr__(self) -> str:
        pcrs = ", ".join(
            f"{index}: {value.hex()[:8]}…" for index, value in self.pcrs.items() if index < 3
        )
        return (
            f"Attestation(form={self.form!r}, module_id={self.module_id!r}, "
            f"timestamp={self.timestamp.isoformat()}, pcrs={{{pcrs}}})"
        )

    def __str__(self) -> str:
        return "\n".join(f"{name:<13}{value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        return table_of("Enclave attestation", self._rows())


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else _EPOCH + timedelta(seconds=seconds)


def _matched(raw: Mapping[str, Any], names: PinNames) -> MatchedPins | None:
    if raw["matched"] is None:
        return None
    index, pinned, values = raw["matched"], raw["matched_pcrs"], raw["pcrs"]
    further = [(each, values[each]) for each in range(3, 32) if pinned >> each & 1]
    pins: PinSet = (values[0], values[1], values[2], *further)
    return MatchedPins(index, Pcrs._of_pin_set(pins), dict(names).get(pins))


def _restore(state: dict[str, Any]) -> Attestation:
    return Attestation(**{**state, "pcrs": MappingProxyType(state["pcrs"])})


def verify_attestation(
    document: Buffer,
    *,
    pcrs: Pcrs | Iterable[Pcrs] | None = None,
    nonce: bytes | None = None,
    root: bytes | str | PathLike[str] | None = None,
    at: datetime | float | None = None,
    clock_leeway: float = CLOCK_LEEWAY,
) -> Attestation:
    """Verifies an AWS Nitro attestation document from anywhere.

    Structure, certificate chain up to ``root`` (default: AWS's), signature, then, where given,
    ``nonce`` and ``pcrs``. Only None means "not given": an empty value is a ValueError. ``at`` is
    the moment at which the certificates must be valid (an aware datetime or Unix seconds; default
    now), to which ``clock_leeway`` (seconds, 0 to 300) is added for the beginning of the leaf's
    validity. Raises an :class:`AttestationError`.
    """
    policy = _core.Policy(
        pin_tuples(pcrs), read_root(root), False, False, checked_leeway(clock_leeway)
    )
    view = byte_view("document", document)
    return Attestation._from_raw(_core.verify(view, policy, _nonce(nonce), unix_seconds(at)))


def _nonce(nonce: object) -> bytes | None:
    if nonce is None:
        return None
    if not isinstance(nonce, bytes | bytearray | memoryview):
        raise TypeError(f"nonce: expected bytes or None, got {type(nonce).__name__}")
    value = bytes(byte_view("nonce", nonce))
    if not value:
        raise ValueError("nonce: expected bytes or None, got no bytes, which bind to nothing")
    return value


def unix_seconds(at: datetime | float | None) -> int:
    """Of a moment as callers give it: an aware datetime, Unix seconds, or None for now."""
    if at is None:
        return int(time.time())
    if isinstance(at, datetime):
        if at.utcoffset() is None:
            raise ValueError("at: expected an aware datetime (with tzinfo), got a naive one")
        at = at.timestamp()
    number = real(at)
    if number is None:
        raise TypeError(f"at: expected an aware datetime or Unix seconds, got {type(at).__name__}")
    if not _FIRST_SECOND <= number <= _LAST_SECOND:  # also where it is no number
        raise ValueError(
            "at: expected a moment of the years 1 to 9999 (Unix seconds), got " + value_shown(at)
        )
    return int(number)


_FIRST_SECOND = -62_135_596_800
_LAST_SECOND = 253_402_300_799
