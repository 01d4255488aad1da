"""The keywords of a channel: each stands here once, with its type and its default.

Whoever takes them declares ``**options: Unpack[ChannelOptions]``, which type checkers read, and has
:func:`takes` show them one by one to ``help()`` and :func:`inspect.signature`. Transports and
clients add their own in :mod:`enclavia._client.options`. Knows no other module of the channel.

Decides which keywords there are, not which values they may have. Calls: _core, _identity, _trust.
Locks: none.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, ForwardRef, TypedDict, TypeVar

import httpx2

from .. import _core
from .._identity.pins import CLOCK_LEEWAY, RootCertificate

if TYPE_CHECKING:
    from .._trust.hook import OnAttestation
    from .._trust.sources import PinsOrSource
    from .._trust.upgrades import TrustUpgrades

__all__ = [
    "CHANNEL_DEFAULTS",
    "KEEPALIVE",
    "ChannelOptions",
    "UpgradeHeaders",
    "Verify",
    "completed",
    "inserted",
    "takes",
]

F = TypeVar("F", bound=Callable[..., Any])

UpgradeHeaders = Mapping[str, str] | Iterable[tuple[str, str]] | None
Verify = bool | str | os.PathLike[str]

KEEPALIVE: Final = 20.0
"""Seconds without a byte from the peer after which it is asked for one, and after which it is given
up where none came."""


class ChannelOptions(TypedDict, total=False):
    """The keywords of a channel, except for its timeout."""

    pcrs: PinsOrSource
    root: RootCertificate
    debug_mode: bool
    clock_leeway: float
    trust_upgrades: TrustUpgrades | None
    upgrade_headers: UpgradeHeaders
    verify: Verify
    proxy: str | httpx2.URL | None
    max_in_flight: int
    keepalive: float | None
    on_attestation: OnAttestation | None


CHANNEL_DEFAULTS: Final[dict[str, Any]] = {
    "pcrs": None,
    "root": None,
    "debug_mode": False,
    "clock_leeway": CLOCK_LEEWAY,
    "trust_upgrades": None,
    "upgrade_headers": None,
    "verify": True,
    "proxy": None,
    "max_in_flight": 64,
    "keepalive": None if _core.WEB else KEEPALIVE,  # a browser sends no pings for a program
    "on_attestation": None,
}
"""In the order in which signatures show them."""


def inserted(defaults: Mapping[str, Any], before: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """``defaults``, and ``more`` of them in front of one of them."""
    names = list(defaults)
    at = names.index(before)
    first = {name: defaults[name] for name in names[:at]}
    last = {name: defaults[name] for name in names[at:]}
    return {**first, **more, **last}


def completed(
    caller: str, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The options that were given, and the defaults of the others. Refuses other names, as Python
    refuses a keyword that a function does not have."""
    for name in options:
        if name not in defaults:
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}")
    return {**defaults, **options}


def takes(
    options: type, defaults: Mapping[str, Any], *, others: str | None = None
) -> Callable[[F], F]:
    """Lists the keywords of ``options`` in the signature of a function that has ``**options``.

    ``defaults``: their names in the order to be shown, and what each is where it is not given. A
    name that is also a parameter of the function itself is shown in this order too. ``others``:
    the name under which the signature says that further keywords are refused one by one.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        positional, own = [], {}
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                own[parameter.name] = parameter
            elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                positional.append(parameter)
        shown = [own.get(name) or _keyword(options, name, defaults[name]) for name in defaults]
        if others is not None:
            kind = inspect.Parameter.VAR_KEYWORD
            shown.append(inspect.Parameter(others, kind, annotation="object"))
        shape: Any = function
        shape.__signature__ = signature.replace(parameters=[*positional, *shown])
        return function

    return decorate


def _keyword(options: type, name: str, default: object) -> inspect.Parameter:
    annotation = options.__annotations__[name]
    if isinstance(annotation, ForwardRef):  # written as text, like those of other signatures
        annotation = annotation.__forward_arg__
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)
