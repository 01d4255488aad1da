"""Which enclave, which pins, and how it is reached: from options and from the environment.

What an option says comes before what the environment says. A variable that is set and empty is an
error and not "not given", which click takes it for; so the environment is read here.

Decides which source of a setting wins, and which settings are refused. Calls: nothing of the
package but what is public. Locks: none.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, ParamSpec, TypedDict

import click

import enclavia

from . import streams
from .exits import Problem

__all__ = [
    "BACKEND",
    "BACKEND_VARIABLE",
    "PCR_VARIABLES",
    "TOKEN_VARIABLE",
    "URL_VARIABLE",
    "Connection",
    "channel",
    "client",
    "connection_options",
    "load_pins",
    "needed_url",
    "pins_of",
    "refusing",
]

P = ParamSpec("P")

URL_VARIABLE: Final = "ENCLAVIA_URL"
PCR_VARIABLES: Final = ("ENCLAVIA_PCR0", "ENCLAVIA_PCR1", "ENCLAVIA_PCR2")
BACKEND: Final = "https://api.beta.enclavia.io"
BACKEND_VARIABLE: Final = "ENCLAVIA_BACKEND_URL"
TOKEN_VARIABLE: Final = "ENCLAVIA_TOKEN"  # noqa: S105 - the name of one
_PINS_MAX: Final = 1024 * 1024


class _ConnectOptions(TypedDict):
    """What ``Channel.connect`` and ``Client`` have in common."""

    pcrs: Sequence[enclavia.Pcrs] | None
    root: str | None
    debug_mode: bool
    verify: bool | str
    proxy: str | None
    on_attestation: enclavia.Receipts | None
    timeout: float
    trust_upgrades: enclavia.TrustUpgrades | None


@dataclasses.dataclass(frozen=True)
class Connection:
    """The options that every command has that connects."""

    pcrs: tuple[str, ...]
    root: str | None
    ca_file: str | None
    proxy: str | None
    receipts: str | None
    timeout: float
    trust_upgrades: str | None = None
    backend: str | None = None
    high_water: str | None = None
    allow_rollback: bool = False

    def options(self, debug_mode: bool = False, need_pins: bool = True) -> _ConnectOptions:
        """Raises a Problem where no pins are given and some are needed."""
        return {
            "pcrs": pins_of(self.pcrs, need=need_pins and not debug_mode),
            "root": given("--root", self.root),
            "debug_mode": debug_mode,
            "verify": True if self.ca_file is None else _text("--ca-file", self.ca_file),
            "proxy": given("--proxy", self.proxy),
            "on_attestation": _receipts(given("--receipts", self.receipts)),
            "timeout": self.timeout,
            "trust_upgrades": self._upgrades(),
        }

    def _upgrades(self, environ: Mapping[str, str] = os.environ) -> enclavia.TrustUpgrades | None:
        if self.trust_upgrades is None:
            for name, value in (
                ("--backend", self.backend),
                ("--high-water", self.high_water),
                ("--allow-rollback", self.allow_rollback or None),
            ):
                if value is not None:
                    raise Problem(f"{name}: expected --trust-upgrades UUID beside it, got none")
            return None
        backend = self.backend if self.backend is not None else environ.get(BACKEND_VARIABLE)
        token = environ.get(TOKEN_VARIABLE)
        with refusing():
            return enclavia.TrustUpgrades(
                BACKEND if backend is None else _text("--backend", backend),
                _text("--trust-upgrades", self.trust_upgrades),
                token=None if token is None else _text(TOKEN_VARIABLE, token),
                allow_rollback=self.allow_rollback,
                high_water=given("--high-water", self.high_water),
            )


_OPTIONS: Final = (
    click.option(
        "--pcrs",
        metavar="FILE",
        multiple=True,
        help="The pins: a file with PCR0, PCR1 and PCR2 (- is standard input), as "
        "`enclavia enclave status --json` prints them. Given more than once, one must match. Else "
        "ENCLAVIA_PCR0, 1 and 2.",
    ),
    click.option(
        "--root",
        metavar="FILE",
        help="The root certificate of attestation, in place of AWS's: a local enclave's.",
    ),
    click.option(
        "--ca-file", metavar="FILE", help="The authorities for TLS, in place of the system's."
    ),
    click.option(
        "--proxy", metavar="URL", help="http://[user:password@]host:port, used by CONNECT."
    ),
    click.option(
        "--receipts",
        metavar="FILE",
        help="Append the receipt of each verified document to FILE, before anything is sent.",
    ),
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=30.0,
        show_default=True,
        help="For connecting, and for each wait for bytes.",
    ),
    click.option(
        "--trust-upgrades",
        metavar="UUID",
        help="Follow the authorised upgrades of the enclave with this id. A private enclave's "
        "backend asks for ENCLAVIA_TOKEN.",
    ),
    click.option(
        "--backend",
        metavar="URL",
        help="Who serves the upgrade chain. Else ENCLAVIA_BACKEND_URL, else Enclavia's.",
    ),
    click.option(
        "--high-water",
        metavar="FILE",
        help="Keeps how far the upgrade chain was seen, so that links cannot be withheld later.",
    ),
    click.option("--allow-rollback", is_flag=True, help="Take an earlier version that runs again."),
)


def connection_options(
    command: Callable[..., None],
) -> Callable[..., None]:
    """Gives a command the options of a :class:`Connection`, which becomes its first argument."""

    @functools.wraps(command)  # with its attributes: click keeps there what it was told before
    def wrapped(**values: Any) -> None:  # noqa: ANN401
        names = [field.name for field in dataclasses.fields(Connection)]
        command(Connection(**{name: values.pop(name) for name in names}), **values)

    decorated: Callable[..., None] = wrapped
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def given(name: str, value: str | None) -> str | None:
    """Refuses what is empty: only what is left out is not given."""
    return None if value is None else _text(name, value)


def _text(name: str, value: str) -> str:
    if not value:
        raise Problem(f"{name}: expected a value, got an empty one")
    return value


def _receipts(name: str | None) -> enclavia.Receipts | None:
    if name == "-":
        raise Problem("--receipts: expected a file, got standard output")
    return None if name is None else enclavia.Receipts(name)


def needed_url(argument: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The argument or option, or ENCLAVIA_URL."""
    if argument is not None:
        return _text("URL", argument)
    url = environ.get(URL_VARIABLE)
    if url is None:
        raise Problem(
            f"expected the URL of an enclave (wss://<host>), got none: give it, or set "
            f"{URL_VARIABLE}"
        )
    return _text(URL_VARIABLE, url)


def pins_of(
    files: Sequence[str], *, need: bool, environ: Mapping[str, str] = os.environ
) -> list[enclavia.Pcrs] | None:
    """Those of the files; without any, those of the environment."""
    if files:
        if files.count("-") > 1:
            raise Problem("--pcrs: expected standard input once at most, got it twice")
        return [load_pins(name) for name in files]
    values = {name: environ[name] for name in PCR_VARIABLES if name in environ}
    if values:
        return [_pins_of_environment(values)]
    if need:
        raise Problem(
            "expected the pins of the enclave, got none: give --pcrs FILE, or set "
            f"{', '.join(PCR_VARIABLES[:-1])} and {PCR_VARIABLES[-1]}"
        )
    return None


def _pins_of_environment(values: Mapping[str, str]) -> enclavia.Pcrs:
    missing = [name for name in PCR_VARIABLES if name not in values]
    if missing:
        raise Problem(
            f"expected {', '.join(PCR_VARIABLES)} together, got no {' and no '.join(missing)}"
        )
    for name, value in values.items():
        if not value.strip():
            raise Problem(
                f"{name}: expected 64, 96 or 128 hex digits, got nothing: it is set and empty"
            )
    pcr0, pcr1, pcr2 = (values[name] for name in PCR_VARIABLES)
    try:
        return enclavia.Pcrs(pcr0=pcr0, pcr1=pcr1, pcr2=pcr2)
    except ValueError as error:
        raise Problem(f"ENCLAVIA_PCR0, 1 and 2: {error}") from None


def load_pins(name: str) -> enclavia.Pcrs:
    """Of a file, or of standard input where it is named ``-``."""
    content = streams.read_input(name, "a file with PCR0, PCR1 and PCR2", _PINS_MAX)
    try:
        return enclavia.Pcrs.parse(content)
    except ValueError as error:
        where = "standard input" if name == "-" else streams.visible(name)
        raise Problem(f"{where}: {error}") from None


@contextmanager
def refusing() -> Iterator[None]:
    """What the package refuses of what it was given is a mistake in the use of the program. The
    package's warnings become lines on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except enclavia.EnclaviaError:
            raise
        except (ValueError, TypeError) as error:
            raise Problem(str(error)) from None
        except OSError as error:
            name = "" if error.filename is None else f"{error.filename}: "
            raise Problem(f"{name}{error.strerror or error}") from None
        finally:
            for warning in caught:
                if issubclass(warning.category, enclavia.DebugModeWarning):
                    streams.warn(f"{warning.category.__name__}: {warning.message}")


def client(
    url: str,
    connection: Connection,
    *,
    debug_mode: bool,
    patience: float,
    headers: Mapping[str, str],
) -> enclavia.Client:
    """Not connected yet. One channel at a time, so that ``attestation`` is the one in use."""
    options = connection.options(debug_mode)
    with refusing():
        return enclavia.Client(url, **options, patience=patience, max_channels=1, headers=headers)


def channel(url: str, options: _ConnectOptions) -> enclavia.Channel:
    """Connected and verified, by one attempt."""
    with refusing():
        return enclavia.Channel.connect(url, **options)
