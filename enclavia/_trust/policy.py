"""A policy: which versions of which enclave are trusted, and until when, as a team keeps it.

Decides what a policy's file may say. Calls: _arguments, _errors, _identity, _public, _text. Locks:
none.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

from .._arguments import path_text
from .._errors import SigstoreError
from .._identity.pcrs import FURTHER, Pcrs
from .._identity.pins import read_root
from .._public import public
from .._text import shown
from .backend import checked_token
from .once import KeyTwice, once
from .served import read_uuid
from .upgrades import TrustUpgrades
from .versions import AllowedVersion, AllowedVersions

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._identity.pcrs import FurtherPcrs

__all__ = ["Policy", "PolicyUpgrades", "PolicyVersion"]

_FORMAT: Final = 1
_MODES: Final = ("production", "debug")
_MAX_TEXT: Final = 1024 * 1024
_MOST_VERSIONS: Final = 256
_MOST_NAME: Final = 100
_PCR_INDICES: Final = (0, 1, 2, *FURTHER)
_PCR_KEY: Final = re.compile(r"(?:PCR|pcr)(0|[1-9][0-9]?)")


@public
class PolicyVersion(NamedTuple):
    """One version that a policy allows."""

    name: str
    pcrs: Pcrs
    not_after: datetime | None = None
    """The last moment at which it is allowed; None: without an end."""


@public
class PolicyUpgrades(NamedTuple):
    """Whose authorised upgrades are followed: the parameters of ``TrustUpgrades``."""

    backend: str
    enclave_id: str
    allow_rollback: bool = False
    high_water: str | None = None
    """The path of a file."""


@public
@dataclasses.dataclass(frozen=True)
class Policy:
    """Which versions of which enclave are trusted, and until when; immutable.

    Read from a TOML or JSON file with :meth:`load`; docs/policy.md describes the file, and
    :meth:`schema` is its JSON Schema. ``Client.from_policy`` makes a client of one.
    """

    endpoint: str | None
    """The enclave's URL."""
    mode: str
    """``"production"``, or ``"debug"``, which proves nothing."""
    versions: tuple[PolicyVersion, ...]
    root: bytes | None = None
    """The attestation root, PEM or DER; None: AWS's."""
    upgrades: PolicyUpgrades | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Reads a file of at most 1 MiB, and verifies the signed files that it names. Raises
        ValueError, which names the file and the key and is a :class:`SigstoreError` for such a
        file, and OSError where a file cannot be read."""
        path = path_text("path", path, "text or a path")
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_TEXT + 1)
        try:
            return cls.parse(raw, folder=Path(path).parent)
        except SigstoreError as error:
            raise SigstoreError(f"{shown(path)}: {error}") from error.__cause__
        except ValueError as error:
            raise ValueError(f"{shown(path)}: {error}") from None

    @classmethod
    def parse(cls, text: str | bytes, *, folder: str | os.PathLike[str] | None = None) -> Policy:
        """Reads TOML, or JSON where it begins with ``{``. ``folder``: what paths in it are relative
        to; default the working directory. Raises as :meth:`load` does."""
        table = _Table(_read(text), "")
        at = Path("." if folder is None else path_text("folder", folder, "text or a path"))
        form = table.take("format", _whole, None)
        if form != _FORMAT:
            got = "none" if form is None else repr(form)
            table.refuse("format", f"{_FORMAT}, which this version of enclavia reads", got)
        mode = table.take("mode", _text, "production")
        if mode not in _MODES:
            table.refuse("mode", "'production' or 'debug'", repr(mode))
        policy = cls(
            endpoint=table.take("endpoint", _text, None),
            mode=mode,
            versions=_versions(table.take("versions", _list, []), mode, at),
            root=_root(table, at),
            upgrades=_upgrades(table, at),
        )
        table.end()
        return policy

    @staticmethod
    def schema() -> dict[str, Any]:
        """The JSON Schema (2020-12) of a policy's file."""
        from importlib import resources  # which few programs need

        text = resources.files("enclavia").joinpath("schemas", "policy-1.json").read_text("utf-8")
        schema: dict[str, Any] = json.loads(text)
        return schema

    @property
    def pins(self) -> AllowedVersions | None:
        """For ``pcrs=``: those of the versions that are allowed when a connection is made, each
        with its name. None where there are no versions, which debug mode alone takes."""
        if not self.versions:
            return None
        return AllowedVersions(
            tuple(
                AllowedVersion(
                    version.name,
                    version.pcrs._pin_set(),
                    None if version.not_after is None else version.not_after.timestamp(),
                )
                for version in self.versions
            )
        )

    def allowed(self, at: datetime | None = None) -> tuple[PolicyVersion, ...]:
        """The versions that are allowed at a moment (aware; default now)."""
        moment = datetime.now(UTC) if at is None else at
        if moment.utcoffset() is None:
            raise ValueError("at: expected an aware datetime (with tzinfo), got a naive one")
        return tuple(
            version
            for version in self.versions
            if version.not_after is None or moment <= version.not_after
        )

    def options(self, *, token: str | None = None) -> dict[str, Any]:
        """All that it says but the endpoint, as keywords of clients, transports and channels.
        ``token``: for the backend of a private enclave whose upgrades are followed, which is no
        thing to have in a policy."""
        token = checked_token(token)  # also where there are no upgrades to use it for
        options: dict[str, Any] = {
            "pcrs": self.pins,
            "root": self.root,
            "debug_mode": self.mode == "debug",
        }
        if self.upgrades is not None:
            options["trust_upgrades"] = TrustUpgrades(
                self.upgrades.backend,
                self.upgrades.enclave_id,
                token=token,
                allow_rollback=self.upgrades.allow_rollback,
                high_water=self.upgrades.high_water,
            )
        return options


# -- the file -------------------------------------------------------------------------------------


class _Table:
    """A table of the file, each of whose keys is taken once."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            _wrong(where or "the policy", "a table", value)
        self._left = dict(value)
        self._where = where

    def named(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def take(self, key: str, check: Callable[[str, object], Any], *default: Any) -> Any:  # noqa: ANN401
        """JSON's null is no value: what is not meant is left out."""
        if key not in self._left:
            if default:
                return default[0]
            raise ValueError(f"{self.named(key)}: expected a value, got none")
        return check(self.named(key), self._left.pop(key))

    def refuse(self, key: str, expected: str, got: str) -> NoReturn:
        raise ValueError(f"{self.named(key)}: expected {expected}, got {got}")

    def rest(self) -> dict[str, object]:
        left, self._left = self._left, {}
        return left

    def end(self) -> None:
        """What nobody has taken was meant to say something: a key that is written wrongly must not
        leave out a limit."""
        for key in self._left:
            raise ValueError(f"{self.named(key)}: expected no such key, got one")


def _read(text: object) -> object:
    if not isinstance(text, str | bytes | bytearray):
        raise TypeError(f"text: expected str or bytes, got {type(text).__name__}")
    if len(text) > _MAX_TEXT:
        raise ValueError(f"expected at most {_MAX_TEXT} characters of text, got {len(text)}")
    if not isinstance(text, str):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("expected UTF-8 text, got what is not UTF-8") from None
    try:
        if text.lstrip()[:1] == "{":
            return json.loads(text, object_pairs_hook=once, parse_constant=_no_constant)
        return tomllib.loads(text)
    except KeyTwice as error:
        raise ValueError(f"expected each key once, got {error}") from None
    except RecursionError:
        raise ValueError("expected a few tables, got ones that are nested too deep") from None
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        kind = "JSON" if isinstance(error, json.JSONDecodeError) else "TOML"
        raise ValueError(f"expected TOML or JSON, got what is no {kind}: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"expected JSON, got {name}, which JSON does not have")


def _versions(values: list[object], mode: str, folder: Path) -> tuple[PolicyVersion, ...]:
    if not values and mode != "debug":
        raise ValueError("versions: expected at least one, got none: no enclave could match")
    if len(values) > _MOST_VERSIONS:
        raise ValueError(f"versions: expected at most {_MOST_VERSIONS}, got {len(values)}")
    tables = [_Table(each, f"versions[{number}]") for number, each in enumerate(values)]
    versions = [_version(table, mode, folder) for table in tables]
    for n, version in enumerate(versions):
        for before in versions[:n]:
            if before.name == version.name:
                raise ValueError(f"versions[{n}].name: expected each once, got {version.name!r}")
            if before.pcrs == version.pcrs:
                raise ValueError(
                    f"versions[{n}].pcrs: expected others than those of {before.name!r}, got the "
                    "same: one version would have two ends"
                )
    return tuple(versions)


def _version(table: _Table, mode: str, folder: Path) -> PolicyVersion:
    name = table.take("name", _text)
    if len(name) > _MOST_NAME or not name.isprintable():
        table.refuse("name", f"at most {_MOST_NAME} printable characters", repr(shown(name)[:40]))
    version = PolicyVersion(
        name,
        _signed_or_written(table, folder),
        table.take("not_after", _moment, None),
    )
    table.end()
    if version.pcrs.is_zero and mode != "debug":
        table.refuse("pcrs", "those of a production enclave", "zeros, which a debug enclave has")
    return version


def _signed_or_written(table: _Table, folder: Path) -> Pcrs:
    """With ``sigstore``, ``pcrs`` is the path of a signed file; without, the PCRs themselves."""
    value = table.take("sigstore", _any, None)
    if value is None:
        return _pcrs(_Table(table.take("pcrs", _any), table.named("pcrs")))
    return _signed(_Table(value, table.named("sigstore")), table.take("pcrs", _text, None), folder)


def _signed(table: _Table, pcrs: str | None, folder: Path) -> Pcrs:
    from .sigstore_pins import SigstorePins  # few policies have any

    def path(name: str | None) -> Path | None:
        return None if name is None else folder / name

    bundle = folder / table.take("bundle", _text)
    trusted_root = path(table.take("trusted_root", _text, None))
    identity, issuer = table.take("identity", _text), table.take("issuer", _text)
    names = ("repository", "ref", "subject", "predicate_type")
    further: dict[str, Any] = {name: table.take(name, _text, None) for name in names}
    table.end()
    try:
        return SigstorePins(
            pcrs=path(pcrs),
            bundle=bundle,
            identity=identity,
            issuer=issuer,
            trusted_root=trusted_root,
            **further,
        ).verify()
    except SigstoreError as error:
        raise SigstoreError(f"{table.named('')[:-1]}: {error}") from error.__cause__
    except ValueError as error:
        raise ValueError(f"{table.named('')[:-1]}: {error}") from None


def _pcrs(table: _Table) -> Pcrs:
    values: dict[str, str] = {}
    for key, value in table.rest().items():
        match = _PCR_KEY.fullmatch(key)
        if match is None or int(match[1]) not in _PCR_INDICES:
            table.refuse(key, "PCR0 to PCR4, PCR8, or PCR16 to PCR31", "another key")
        if key.lower() in values:
            table.refuse(key, "each PCR once", "it twice")
        values[key.lower()] = _text(table.named(key), value)
    for name in ("pcr0", "pcr1", "pcr2"):
        if name not in values:
            table.refuse(name.upper(), "PCR0, PCR1 and PCR2", "none")
    further = cast("FurtherPcrs", {key: values[key] for key in values if key[3:] not in "012"})
    try:
        return Pcrs(pcr0=values["pcr0"], pcr1=values["pcr1"], pcr2=values["pcr2"], **further)
    except ValueError as error:
        raise ValueError(f"{table.named('')[:-1]}: {error}") from None


def _root(table: _Table, folder: Path) -> bytes | None:
    root = table.take("root", _text, None)
    if root is None or "-----BEGIN" in root:
        return read_root(root)
    return read_root(folder / root)


def _upgrades(table: _Table, folder: Path) -> PolicyUpgrades | None:
    value = table.take("upgrades", _any, None)
    if value is None:
        return None
    upgrades = _Table(value, "upgrades")
    high_water = upgrades.take("high_water", _text, None)
    made = PolicyUpgrades(
        backend=upgrades.take("backend", _text),
        enclave_id=upgrades.take("enclave_id", _uuid),
        allow_rollback=upgrades.take("allow_rollback", _flag, False),
        high_water=None if high_water is None else str(folder / high_water),
    )
    upgrades.end()
    try:
        TrustUpgrades(*made[:2])
    except ValueError as error:
        raise ValueError(f"upgrades.{error}") from None
    return made


# -- values ---------------------------------------------------------------------------------------


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "text", list: "an array", dict: "a table"}
    names |= {datetime: "a date and time", date: "a date", time: "a time"}
    return names.get(type(value), type(value).__name__)


def _wrong(name: str, expected: str, value: object) -> NoReturn:
    raise ValueError(f"{name}: expected {expected}, got {_kind(value)}")


def _any(name: str, value: object) -> object:
    return _wrong(name, "a value", value) if value is None else value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        _wrong(name, "text", value)
    if not value.strip():
        raise ValueError(f"{name}: expected text, got an empty one")
    return value


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        _wrong(name, "a whole number", value)
    return value


def _flag(name: str, value: object) -> bool:
    return value if isinstance(value, bool) else _wrong(name, "true or false", value)


def _list(name: str, value: object) -> list[object]:
    return value if isinstance(value, list) else _wrong(name, "an array of tables", value)


def _uuid(name: str, value: object) -> str:
    text = _text(name, value)
    try:
        return str(read_uuid(text))
    except ValueError:
        raise ValueError(
            f"{name}: expected a UUID with hyphens, got {shown(text)[:40]!r}"
        ) from None


_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
    r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _moment(name: str, value: object) -> datetime:
    """RFC 3339, of which JSON has the text and TOML a type."""
    moment: datetime | None = value if isinstance(value, datetime) else None
    if isinstance(value, str) and _RFC3339.fullmatch(value):
        try:
            moment = datetime.fromisoformat(value.upper())
        except ValueError:
            moment = None
    if moment is not None and moment.utcoffset() is not None:
        try:
            moment = moment.astimezone(UTC)
        except OverflowError:  # before the year 1, or after 9999
            moment = None
    if moment is None or moment.utcoffset() is None:
        got = repr(shown(value)[:40]) if isinstance(value, str) else _kind(value)
        if isinstance(value, datetime) and value.utcoffset() is None:
            got = "one without an offset"
        raise ValueError(
            f"{name}: expected a date and time with its offset (2027-01-31T12:00:00Z), got {got}"
        )
    return moment
