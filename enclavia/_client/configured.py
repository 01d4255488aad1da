"""Clients that are made from a policy's file, or from the environment.

Decides which source of a setting wins, and which do not go together. Calls: _channel,
_errors, _identity, _trust. Locks: none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from .._channel.url import EnclaveURL
from .._errors import InvalidURL
from .._identity.pcrs import Pcrs

if TYPE_CHECKING:
    import httpx2

    from .._trust.policy import Policy
    from .options import ClientOptions

__all__ = ["Configured", "of_environment", "of_policy"]

_POLICY: Final = "ENCLAVIA_POLICY"
_URL: Final = "ENCLAVIA_URL"
_DEBUG: Final = "ENCLAVIA_DEBUG_MODE"
_BACKEND: Final = "ENCLAVIA_BACKEND_URL"
_ENCLAVE: Final = "ENCLAVIA_ENCLAVE_ID"
_TOKEN: Final = "ENCLAVIA_TOKEN"  # noqa: S105 - the name of one
_PCR: Final = r"ENCLAVIA_PCR[0-9]+"
"""With any number: which of them can be pinned is for :class:`Pcrs` to say; none is passed over."""
_PINNED: Final = ("ENCLAVIA_PCR0", "ENCLAVIA_PCR1", "ENCLAVIA_PCR2")
_FLAGS: Final = {"1": True, "true": True, "0": False, "false": False}
_SAID_BY_POLICY: Final = ("pcrs", "root", "debug_mode")


class Configured:
    """What both clients can be made from beside a URL."""

    @classmethod
    def from_policy(
        cls,
        policy: Policy | str | os.PathLike[str],
        url: str | httpx2.URL | None = None,
        **options: Unpack[ClientOptions],
    ) -> Self:
        """A client of the enclave that a policy is about: a :class:`Policy`, or the path of its
        file. ``url`` is needed where the policy has no endpoint, and otherwise has to be the same.
        ``options``: any keyword of the client but ``pcrs``, ``root`` and ``debug_mode``, which the
        policy says. Raises ValueError, and OSError where a file cannot be read."""
        return cls._of(*of_policy(cls.__name__, policy, url, options))

    @classmethod
    def from_env(cls, **options: Unpack[ClientOptions]) -> Self:
        """A client of what the environment names: ``ENCLAVIA_POLICY`` (the file of a policy), or
        ``ENCLAVIA_URL`` with ``ENCLAVIA_PCR0``, ``1`` and ``2`` (and further ones), or with
        ``ENCLAVIA_DEBUG_MODE=true``. ``ENCLAVIA_ENCLAVE_ID`` with ``ENCLAVIA_BACKEND_URL`` has
        authorised upgrades followed. ``options``: keywords of the client, which come before what
        the environment says. Raises ValueError, and OSError where a file cannot be read."""
        return cls._of(*of_environment(cls.__name__, os.environ, options))

    @classmethod
    def _of(cls, url: str | httpx2.URL, options: Mapping[str, Any]) -> Self:
        make: Any = cls
        made: Self = make(url, **options)
        return made


def of_policy(
    owner: str,
    policy: Policy | str | os.PathLike[str],
    url: str | httpx2.URL | None,
    options: Mapping[str, Any],
    token: str | None = None,
) -> tuple[str | httpx2.URL, dict[str, Any]]:
    """The URL and the keywords of a client."""
    from .._trust.policy import Policy  # which few programs need

    for name in _SAID_BY_POLICY:
        if name in options:
            raise TypeError(
                f"{owner}.from_policy() does not take {name!r}: the policy says who is trusted"
            )
    if not isinstance(policy, Policy):
        policy = Policy.load(policy)
    said = policy.options(token=token)
    return _endpoint(policy, url), {**said, **options}


def _endpoint(policy: Policy, url: str | httpx2.URL | None) -> str | httpx2.URL:
    if url is None:
        if policy.endpoint is None:
            raise ValueError("url: expected the enclave's URL, got none, and the policy has none")
        _parsed(policy.endpoint)
        return policy.endpoint
    if policy.endpoint is not None and _parsed(policy.endpoint) != EnclaveURL.parse(url):
        raise ValueError(f"url: expected {policy.endpoint}, which the policy is about, got {url}")
    return url


def _parsed(endpoint: str) -> EnclaveURL:
    """Which of the two URLs is wrong, the caller cannot see from a message about a URL."""
    try:
        return EnclaveURL.parse(endpoint)
    except InvalidURL as error:
        raise InvalidURL(f"endpoint, of the policy: {error}") from None


def of_environment(
    owner: str, environ: Mapping[str, str], options: Mapping[str, Any]
) -> tuple[str | httpx2.URL, dict[str, Any]]:
    """The URL and the keywords of a client."""
    values = {
        name: value
        for name, value in environ.items()
        if name in (_POLICY, _URL, _DEBUG, _BACKEND, _ENCLAVE, _TOKEN) or re.fullmatch(_PCR, name)
    }
    for name, value in values.items():
        if not value.strip():
            raise ValueError(f"{name}: expected a value, got nothing: it is set and empty")
    debug_mode = _flag(values[_DEBUG]) if _DEBUG in values else None
    said: dict[str, Any] = {}
    upgrades = _upgrades(values)
    if upgrades is not None:
        said["trust_upgrades"] = upgrades
    if _POLICY in values:
        from .._trust.policy import Policy

        policy = Policy.load(values[_POLICY])
        for name in sorted(name for name in values if re.fullmatch(_PCR, name)):
            raise ValueError(f"expected {_POLICY} or {name}, got both: which is meant is not known")
        if debug_mode is not None and debug_mode != (policy.mode == "debug"):
            raise ValueError(f"expected {_DEBUG} as the policy says (mode), got {values[_DEBUG]!r}")
        if upgrades is not None and policy.upgrades is not None:
            raise ValueError(f"expected {_ENCLAVE} or the policy's upgrades, got both")
        return of_policy(owner, policy, values.get(_URL), {**said, **options}, values.get(_TOKEN))
    if _URL not in values:
        raise ValueError(f"expected {_URL} or {_POLICY} in the environment, got neither")
    pcrs = _pcrs(values)
    if pcrs is not None:
        said["pcrs"] = pcrs
    if debug_mode is not None:
        said["debug_mode"] = debug_mode
    return values[_URL], {**said, **options}


def _flag(text: str) -> bool:
    value = _FLAGS.get(text.strip().lower())
    if value is None:
        raise ValueError(f"{_DEBUG}: expected true, false, 1 or 0, got {text!r}")
    return value


def _pcrs(values: Mapping[str, str]) -> Pcrs | None:
    given = {name: values[name] for name in sorted(values) if re.fullmatch(_PCR, name)}
    if not given:
        return None
    missing = [name for name in _PINNED if name not in given]
    if missing:
        raise ValueError(
            f"expected {', '.join(_PINNED)} together, got no {' and no '.join(missing)}"
        )
    pins: Any = {name.removeprefix("ENCLAVIA_").lower(): value for name, value in given.items()}
    try:
        return Pcrs(**pins)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{', '.join(given)}: {error}") from None


def _upgrades(values: Mapping[str, str]) -> object | None:
    """A backend alone follows nothing: other programs have that variable for their own use."""
    if _ENCLAVE not in values:
        return None
    if _BACKEND not in values:
        raise ValueError(f"{_ENCLAVE}: expected {_BACKEND} beside it, got none")
    from .._trust.upgrades import TrustUpgrades

    return TrustUpgrades(values[_BACKEND], values[_ENCLAVE], token=values.get(_TOKEN))
