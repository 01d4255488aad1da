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
import re
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
    "POLICY_VARIABLE",
    "TOKEN_VARIABLE",
    "URL_VARIABLE",
    "ConnectOptions",
    "Connection",
    "channel",
    "client",
    "connection_options",
    "load_pins",
    "needed_url",
    "pins_of",
    "read_pins",
    "refusing",
]

P = ParamSpec("P")

URL_VARIABLE: Final = "ENCLAVIA_URL"
POLICY_VARIABLE: Final = "ENCLAVIA_POLICY"
PCR_VARIABLES: Final = ("ENCLAVIA_PCR0", "ENCLAVIA_PCR1", "ENCLAVIA_PCR2")
_PCR_VARIABLE: Final = re.compile(r"ENCLAVIA_PCR[0-9]+")
"""With any number: which of them can be pinned is for ``Pcrs`` to say; none is passed over."""
BACKEND: Final = "https://api.beta.enclavia.io"
BACKEND_VARIABLE: Final = "ENCLAVIA_BACKEND_URL"
TOKEN_VARIABLE: Final = "ENCLAVIA_TOKEN"  # noqa: S105 - the name of one
_PINS_MAX: Final = 1024 * 1024


class ConnectOptions(TypedDict, total=False):
    """What ``Channel.connect`` and ``Client`` have in common."""

    pcrs: Any
    root: str | bytes | None
    debug_mode: bool
    verify: bool | str
    proxy: str | None
    on_attestation: enclavia.Receipts | None
    timeout: float
    trust_upgrades: enclavia.TrustUpgrades | None


@dataclasses.dataclass(frozen=True)
class Connection:
    """The options that every command has that connects."""

    policy: str | None
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

    def options(self, debug_mode: bool = False, need_pins: bool = True) -> ConnectOptions:
        """Raises a Problem where no pins are given and some are needed."""
        options: ConnectOptions = {
            "pcrs": None,
            "root": given("--root", self.root),
            "debug_mode": debug_mode,
            "verify": True if self.ca_file is None else _text("--ca-file", self.ca_file),
            "proxy": given("--proxy", self.proxy),
            "on_attestation": _receipts(given("--receipts", self.receipts)),
            "timeout": self.timeout,
            "trust_upgrades": self._upgrades(),
        }
        policy = self.loaded()
        if policy is None:
            options["pcrs"] = pins_of(self.pcrs, need=need_pins and not debug_mode)
            return options
        if self.root is not None or debug_mode:
            name = "--debug-mode" if debug_mode else "--root"
            raise Problem(f"expected --policy or {name}, got both: the policy says who is trusted")
        if need_pins and policy.mode == "debug":
            raise Problem("expected a policy of mode production, got one of mode debug")
        if policy.upgrades is not None and options["trust_upgrades"] is not None:
            raise Problem("expected --trust-upgrades or the policy's upgrades, got both")
        token = os.environ.get(TOKEN_VARIABLE)
        said: Any = policy.options(token=None if token is None else _text(TOKEN_VARIABLE, token))
        return {**options, **said}

    def loaded(self) -> enclavia.Policy | None:
        """The policy, read anew each time. That of the environment is not looked at where pins were
        given."""
        name = self.policy
        if name is None and not self.pcrs:
            name = os.environ.get(POLICY_VARIABLE)
            both = list(_pcr_variables(os.environ))
            if name is not None and both:
                raise Problem(f"expected {POLICY_VARIABLE} or {both[0]}, got both")
        elif name is not None and self.pcrs:
            raise Problem("expected --policy or --pcrs, got both")
        if name is None:
            return None
        if _text("--policy", name) == "-":
            raise Problem("--policy: expected a file, got standard input")
        with refusing():
            return enclavia.Policy.load(name)

    def needed_url(self, argument: str | None) -> str:
        """The argument or option, the policy's endpoint, or ENCLAVIA_URL."""
        if argument is None:
            policy = self.loaded()
            if policy is not None and policy.endpoint is not None:
                return policy.endpoint
        return needed_url(argument)

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
        "--policy",
        metavar="FILE",
        help="A policy, TOML or JSON: which versions of which enclave are "
        "trusted, in place of --pcrs and --root. Else ENCLAVIA_POLICY.",
    ),
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
    values = _pcr_variables(environ)
    if values:
        return [_pins_of_environment(values)]
    if need:
        raise Problem(
            "expected the pins of the enclave, got none: give --pcrs FILE, or set "
            f"{', '.join(PCR_VARIABLES[:-1])} and {PCR_VARIABLES[-1]}"
        )
    return None


def _pcr_variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in sorted(environ) if _PCR_VARIABLE.fullmatch(name)}


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
    pins: Any = {name.removeprefix("ENCLAVIA_").lower(): value for name, value in values.items()}
    try:
        return enclavia.Pcrs(**pins)
    except (TypeError, ValueError) as error:
        raise Problem(f"{', '.join(values)}: {error}") from None


def read_pins(name: str) -> bytes:
    """What a file has, or standard input where it is named ``-``."""
    return streams.read_input(name, "a file with PCR0, PCR1 and PCR2", _PINS_MAX)


def load_pins(name: str) -> enclavia.Pcrs:
    """Of a file, or of standard input where it is named ``-``."""
    content = read_pins(name)
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
        except (ValueError, TypeError, ImportError) as error:  # ImportError: an extra is missing
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


def channel(url: str, options: ConnectOptions) -> enclavia.Channel:
    """Connected and verified, by one attempt."""
    with refusing():
        return enclavia.Channel.connect(url, **options)
