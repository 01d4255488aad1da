"""The walk along an enclave's upgrade chain: which version is in force, and who authorised it.

A pure function over the two texts that a backend serves, so that it can be tested and run offline.
The backend is not trusted for anything but to serve them: what counts is signed by the enclaves
themselves, up to the root, and upgrades by the control key beside.

Decides whether a chain leads from pins to another version. Calls: _arguments, _core, _errors,
_identity, _public, _text. Locks: none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, cast

from .. import _core
from .._arguments import flag, value_shown
from .._errors import AttestationError, SignatureError
from .._identity.attestation import unix_seconds
from .._identity.pcrs import Pcrs
from .._identity.pins import (
    CLOCK_LEEWAY,
    PinTuples,
    checked_leeway,
    pin_tuples,
    read_root,
)
from .._public import public
from .._text import shown
from .mark import Mark
from .served import Link, Row, failed, read_links, read_row, read_uuid, shown_time

__all__ = [
    "Rules",
    "UpgradeChain",
    "UpgradeLink",
    "checked_enclave_id",
    "verify_upgrade_chain",
    "walked",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = 1_000_000

PcrTuple = tuple[bytes, bytes, bytes]


@public
@dataclasses.dataclass(frozen=True)
class UpgradeLink:
    """One verified link. ``kind``: "boot", "upgrade" or "revocation". ``timestamp``: its document's
    own. ``change``: what it changed, in words. ``pcrs`` and ``image_digest``: in force after it.
    ``payload_sha256``: of what was attested (32 bytes)."""

    index: int
    kind: str
    id: uuid.UUID | None
    timestamp: datetime
    change: str
    pcrs: Pcrs
    image_digest: str
    payload_sha256: bytes


@public
@dataclasses.dataclass(frozen=True, repr=False)
class UpgradeChain:
    """A verified chain of upgrades. ``pcrs`` and ``image_digest``: of its last version, the only
    one that may run. ``pinned``: the index of the newest boot whose PCRs were pinned.
    ``row_agrees``: whether the backend's row, which nobody has signed, names the same version; it
    may be ahead while an upgrade is under way. ``high_water``: the mark to be kept (JSON text)."""

    enclave_id: uuid.UUID
    links: tuple[UpgradeLink, ...]
    pcrs: Pcrs
    image_digest: str
    pinned: int
    row_agrees: bool
    verified_at: datetime
    high_water: str

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (
                str(link.index),
                link.timestamp.isoformat(" ", "seconds"),
                link.kind,
                shown(link.change),
            )
            for link in self.links
        ]

    def __repr__(self) -> str:
        return (
            f"UpgradeChain(enclave_id={self.enclave_id}, links={len(self.links)}, "
            f"pcrs={self.pcrs!r})"
        )

    def __str__(self) -> str:
        lines = [
            f"enclave {self.enclave_id}, {len(self.links)} links, image {shown(self.image_digest)}"
        ]
        lines += [
            f"{index:>4}  {at}  {kind:<10}  {change}" for index, at, kind, change in self._rows()
        ]
        lines += [f"PCR{index} {value.hex()}" for index, value in enumerate(self.pcrs.as_tuple())]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        import html  # of use in notebooks only, and slow to import

        cells = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in self._rows()
        )
        final = "".join(
            f"<tr><th>PCR{index}</th><td colspan=3><code>{value.hex()}</code></td></tr>"
            for index, value in enumerate(self.pcrs.as_tuple())
        )
        return (
            f"<table><caption>Upgrades of enclave {self.enclave_id}</caption>"
            f"<tr><th>link</th><th>time</th><th>kind</th><th>change</th></tr>{cells}{final}</table>"
        )


class Rules(NamedTuple):
    """What a chain is judged by. Hashable."""

    pins: PinTuples
    enclave_id: uuid.UUID
    root: bytes | None
    debug_mode: bool
    clock_leeway: int
    allow_rollback: bool
    mark: Mark | None


class _Version(NamedTuple):
    pcrs: PcrTuple
    image_digest: str


@dataclasses.dataclass
class _Upgrade:
    link: Link
    start: PcrTuple
    target: _Version
    valid_from: int
    revoked: bool = False


def verify_upgrade_chain(
    row: str | bytes,
    links: str | bytes,
    *,
    pcrs: Pcrs | Iterable[Pcrs],
    enclave_id: str | uuid.UUID,
    at: datetime | float | None = None,
    root: bytes | str | os.PathLike[str] | None = None,
    high_water: str | bytes | None = None,
    allow_rollback: bool = False,
    debug_mode: bool = False,
    clock_leeway: float = CLOCK_LEEWAY,
) -> UpgradeChain:
    """Verifies the chain of upgrades of an enclave, offline.

    ``row`` and ``links`` are the JSON texts of ``GET {backend}/enclaves/{id}`` and ``GET
    {backend}/enclaves/{id}/upgrade-chain``. ``pcrs``: what is pinned, which has to be a version on
    the chain; ``enclave_id``: its UUID. ``at``: the present (an aware datetime or Unix seconds,
    default now), beyond which by ``clock_leeway`` (seconds, 0 to 300) no document may lie; each
    document's certificates are judged at its own signed time. ``root``: default AWS's.
    ``high_water``: the mark of an earlier chain, which this one has to extend.
    ``allow_rollback``: an earlier version may be in force again. ``debug_mode``: take documents
    that prove nothing.

    docs/upgrades.md lists the rules. Raises :class:`UpgradeChainError`, which names the link.
    """
    for name, text in (("row", row), ("links", links)):
        if not isinstance(text, str | bytes):
            raise TypeError(f"{name}: expected JSON as str or bytes, got {type(text).__name__}")
    if high_water is not None and not isinstance(high_water, str | bytes):
        raise TypeError(
            f"high_water: expected JSON as str or bytes, or None, got {type(high_water).__name__}"
        )
    pins = pin_tuples(pcrs)
    if pins is None:
        raise TypeError("pcrs: expected Pcrs or several of them, got None: a chain begins at a pin")
    rules = Rules(
        pins=pins,
        enclave_id=checked_enclave_id(enclave_id),
        root=read_root(root),
        debug_mode=flag("debug_mode", debug_mode),
        clock_leeway=checked_leeway(clock_leeway),
        allow_rollback=flag("allow_rollback", allow_rollback),
        mark=None if high_water is None else Mark.parse(high_water),
    )
    return walked(row, links, rules, unix_seconds(at))


def checked_enclave_id(value: object) -> uuid.UUID:
    if isinstance(value, uuid.UUID):
        return value
    if not isinstance(value, str):
        raise TypeError(f"enclave_id: expected a UUID, got {type(value).__name__}")
    try:
        return read_uuid(value)
    except ValueError:
        raise ValueError(
            f"enclave_id: expected a UUID with hyphens, got {value_shown(value)}"
        ) from None


def walked(row: str | bytes, links: str | bytes, rules: Rules, now: int) -> UpgradeChain:
    """The whole walk. ``now``: Unix seconds."""
    walk = _Walk(read_row(row), rules, now)
    for link in read_links(links):
        walk.step(link)
    return walk.result()


class _Walk:
    """What is known after the links so far."""

    def __init__(self, row: Row, rules: Rules, now: int) -> None:
        self._row = row
        self._rules = rules
        self._now = now
        self._policy = _core.Policy(None, rules.root, rules.debug_mode, False, rules.clock_leeway)
        self._cache = _core.LinkCache()
        self._time = 0
        self._in_force: _Version | None = None
        self._ran: set[_Version] = set()
        self._upgrades: list[_Upgrade] = []
        self._ids: set[uuid.UUID] = set()
        self._pinned: int | None = None
        self._payloads: list[bytes] = []
        self._links: list[UpgradeLink] = []

    def step(self, link: Link) -> None:
        if link.id in self._ids:
            raise _wrong(link, "id: expected one of its own, got that of an earlier link")
        document = self._verified(link)
        if link.fields["enclave_id"] != self._rules.enclave_id.bytes:
            other = uuid.UUID(bytes=link.fields["enclave_id"])
            raise _wrong(
                link,
                f"enclave_id: expected {self._rules.enclave_id}, got {other}: another "
                "enclave's link",
            )
        time = self._checked_time(link, document)
        if link.kind == "boot":
            change = self._boot(link, document, time)
        elif link.kind == "upgrade":
            change = self._upgrade(link, document)
        else:
            change = self._revocation(link, document, time)
        self._time = time
        if link.id is not None:
            self._ids.add(link.id)
        self._append(link, time, change)

    def _append(self, link: Link, time: int, change: str) -> None:
        version = cast(_Version, self._in_force)
        digest = hashlib.sha256(link.payload).digest()
        self._payloads.append(digest)
        self._links.append(
            UpgradeLink(
                index=link.place,
                kind=link.kind,
                id=link.id,
                timestamp=_EPOCH + timedelta(milliseconds=time),
                change=change,
                pcrs=_pcrs(version.pcrs),
                image_digest=version.image_digest,
                payload_sha256=digest,
            )
        )

    # -- every link -------------------------------------------------------------------------

    def _verified(self, link: Link) -> _core.RawAttestation:
        """Its document, by itself and as one of this payload."""
        try:
            document = _core.verify_recorded(link.attestation, self._policy, self._cache)
        except AttestationError as error:
            raise _wrong(link, f"its document: {error.message}") from error
        if document["user_data"] != hashlib.sha256(link.payload).digest():
            raise _wrong(
                link,
                "its document: expected the SHA-256 of the payload as user_data, got another "
                "value: it was made for another payload",
            )
        return document

    def _checked_time(self, link: Link, document: _core.RawAttestation) -> int:
        """Milliseconds since 1970, of the document."""
        time = cast(int, document["timestamp"])
        if time < self._time:
            raise _wrong(
                link,
                f"timestamp: expected {_shown(self._time)} or later, which the link before "
                f"it has, got {_shown(time)}",
            )
        latest = (self._now + self._rules.clock_leeway) * 1000 + 999
        if time > latest:
            raise _wrong(
                link,
                f"timestamp: expected {_shown(latest)} or earlier, got {_shown(time)}, which "
                "is in the future; is this machine's clock right?",
            )
        return time

    def _expect_measured(
        self, link: Link, document: _core.RawAttestation, pcrs: PcrTuple, whose: str
    ) -> None:
        measured = cast("dict[int, bytes]", document["pcrs"])
        for index, expected in enumerate(pcrs):
            actual = measured.get(index, b"")
            if actual == expected or (self._rules.debug_mode and not actual):
                continue
            raise _wrong(
                link,
                f"its document: expected PCR{index} {expected.hex()} ({whose}), got "
                f"{actual.hex() or 'nothing'}",
            )

    # -- boots ------------------------------------------------------------------------------

    def _boot(self, link: Link, document: _core.RawAttestation, time: int) -> str:
        version = _Version(link.fields["pcrs"], link.fields["image_digest"])
        self._expect_measured(link, document, version.pcrs, "what the payload says")
        if _pcrs(version.pcrs).is_zero and not self._rules.debug_mode:
            raise _wrong(link, "expected measured PCRs, got all zeros: that is a debug enclave")
        change = self._change(link, version, time)
        self._in_force = version
        self._ran.add(version)
        # A chain is of PCR0 to PCR2: further pins are for the enclave that runs.
        if any(version.pcrs == pins[:3] for pins in self._rules.pins):
            self._pinned = link.place
        return change

    def _change(self, link: Link, version: _Version, time: int) -> str:
        """What a boot of this version is. Raises where nobody allowed it."""
        if self._in_force is None:
            return f"first boot of image {version.image_digest}"
        if version == self._in_force:
            return "restart"
        if self._is_earlier(version) and not self._rules.allow_rollback:
            raise _wrong(
                link,
                f"expected no earlier version again, got that of image "
                f"{version.image_digest}: allow_rollback=True takes it",
            )
        if version in self._ran:
            return f"rolled back to image {version.image_digest}"
        upgrade = self._authorised(time)
        if upgrade is None:
            raise _wrong(
                link,
                "expected the version in force, or one that an upgrade authorises by then, "
                "got another one: no upgrade from the version in force is valid and unrevoked",
            )
        if upgrade.target != version:
            what = "PCRs" if upgrade.target.pcrs != version.pcrs else "an image digest"
            raise _wrong(
                link,
                f"expected the version that the last upgrade authorises (link "
                f"{upgrade.link.place}), got {what} of another one",
            )
        return f"upgraded to image {version.image_digest}, as link {upgrade.link.place} authorised"

    def _is_earlier(self, version: _Version) -> bool:
        """PCRs say what runs: the same under another image digest is the same version, unless it is
        what runs now, whose digest alone an upgrade may change."""
        return version in self._ran or (
            version.pcrs != cast(_Version, self._in_force).pcrs
            and any(version.pcrs == ran.pcrs for ran in self._ran)
        )

    def _authorised(self, time: int) -> _Upgrade | None:
        """The last upgrade that says what may follow the version in force."""
        in_force = cast(_Version, self._in_force)
        for upgrade in reversed(self._upgrades):
            if (
                not upgrade.revoked
                and upgrade.start == in_force.pcrs
                and upgrade.valid_from <= time * _MS
            ):
                return upgrade
        return None

    # -- upgrades and revocations -----------------------------------------------------------

    def _expect_authority(self, link: Link, document: _core.RawAttestation) -> None:
        """The version in force attested it, and the control key signed it."""
        if self._in_force is None:
            raise _wrong(link, "expected a boot as the first link, got another kind")
        if not self._row.upgradable:
            raise _wrong(link, "expected boots only of an enclave that is not upgradable")
        self._expect_measured(link, document, self._in_force.pcrs, "the version in force")
        if self._row.control_public_key is None:
            raise _wrong(link, "signature: expected a control key to check it with, got none")
        try:
            _core.verify_es256(
                self._row.control_public_key, link.payload, cast(bytes, link.signature)
            )
        except SignatureError as error:
            raise _wrong(
                link, f"signature: expected one by the control key: {error.message}"
            ) from error

    def _upgrade(self, link: Link, document: _core.RawAttestation) -> str:
        self._expect_authority(link, document)
        fields = link.fields
        target = _Version(fields["to_pcrs"], fields["image_digest"])
        if _pcrs(target.pcrs).is_zero and not self._rules.debug_mode:
            raise _wrong(link, "to_pcrs: expected measured PCRs, got all zeros: a debug enclave's")
        self._upgrades.append(_Upgrade(link, fields["pcrs"], target, fields["valid_from"]))
        return f"authorises image {target.image_digest} from {shown_time(fields['valid_from'])}"

    def _revocation(self, link: Link, document: _core.RawAttestation, time: int) -> str:
        self._expect_authority(link, document)
        revoked = uuid.UUID(bytes=link.fields["revokes"])
        upgrade = next((each for each in self._upgrades if each.link.id == revoked), None)
        if upgrade is None:
            raise _wrong(
                link, f"revokes: expected an earlier upgrade, got {revoked}, which is none"
            )
        if upgrade.revoked:
            raise _wrong(link, f"revokes: expected link {upgrade.link.place} once, got it twice")
        if time * _MS >= upgrade.valid_from:
            raise _wrong(
                link,
                f"revokes: expected a revocation before {shown_time(upgrade.valid_from)}, "
                f"from when on link {upgrade.link.place} is valid, got one at {_shown(time)}",
            )
        upgrade.revoked = True
        return f"revokes link {upgrade.link.place}"

    # -- the end ----------------------------------------------------------------------------

    def result(self) -> UpgradeChain:
        version = cast(_Version, self._in_force)
        if self._pinned is None:
            raise failed(
                "expected a boot with the pinned PCRs, got none: the pins are of another enclave, "
                "or of a version that never ran"
            )
        mark = Mark(
            self._rules.enclave_id,
            tuple(self._payloads),
            frozenset(self._payloads[each.link.place] for each in self._upgrades if each.revoked),
        )
        if self._rules.mark is not None:
            self._rules.mark.expect_extended_by(mark)
        named = _Version(self._row.pcrs.as_tuple(), self._row.image_digest)
        return UpgradeChain(
            enclave_id=self._rules.enclave_id,
            links=tuple(self._links),
            pcrs=_pcrs(version.pcrs),
            image_digest=version.image_digest,
            pinned=self._pinned,
            row_agrees=named == version,
            verified_at=_EPOCH + timedelta(seconds=self._now),
            high_water=mark.text(),
        )


def _wrong(link: Link, reason: str) -> Exception:
    return failed(reason, link.place, link.kind)


def _pcrs(values: PcrTuple) -> Pcrs:
    return Pcrs(pcr0=values[0], pcr1=values[1], pcr2=values[2])


def _shown(time: int) -> str:
    return shown_time(time * _MS)
