"""What a job's client is made from: checked once where the job is described, then pickled.

Decides which keywords a job refuses. Calls: _arguments, _channel, _client, _core, _identity. Locks:
none.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

import httpx2

from .. import _core
from .._arguments import one_of
from .._channel.options import inserted
from .._channel.url import EnclaveURL
from .._client.client import Client
from .._client.options import CLIENT_DEFAULTS, ClientOptions
from .._client.settings import Settings
from .._identity.pins import read_root

__all__ = ["FLEET_DEFAULTS", "FleetOptions", "FleetSettings", "Per", "fleet_settings"]

Per = Literal["worker", "node"]


class FleetOptions(ClientOptions, total=False):
    """The keywords of a fleet: a client's, and which processes share one channel."""

    per: Per


FLEET_DEFAULTS: Final[dict[str, Any]] = {
    **inserted(CLIENT_DEFAULTS, "pcrs", {"per": "worker"}),
    "max_channels": 1,
}


class FleetSettings(NamedTuple):
    """What travels to the workers."""

    name: str
    """Of this one fleet, in every process."""
    url: EnclaveURL
    per: Per
    options: dict[str, Any]
    """Of the client."""

    def __repr__(self) -> str:
        return f"FleetSettings({self.url}, per={self.per!r})"  # credentials stay out of logs

    @property
    def debug_mode(self) -> bool:
        return self.options.get("debug_mode") is True

    def policy(self) -> _core.Policy:
        """By which whoever puts the reports together verifies the documents once more. Where the
        pins may move (upgrades, a source of pins), the workers alone know where they are."""
        names = ("pcrs", "root", "debug_mode", "clock_leeway")
        given = {name: self.options[name] for name in names if name in self.options}
        config = Settings.build(str(self.url), "FleetSettings.policy", **given).config
        if self.options.get("trust_upgrades") is None and config.pins_source is None:
            return config.policy()
        return _core.Policy(None, config.root, False, False, config.clock_leeway)


def fleet_settings(url: str | httpx2.URL, options: Mapping[str, Any]) -> FleetSettings:
    """Raises what a client raises for unusable settings. Files are read here, except for that of
    ``verify``, which each worker looks for on its own machine."""
    given = dict(options)
    per = given.pop("per", "worker")
    one_of("per", per, get_args(Per))
    given.setdefault("max_channels", FLEET_DEFAULTS["max_channels"])
    if isinstance(given.get("pcrs"), Iterator):  # which gives its pins once, and not each worker
        given["pcrs"] = list(given["pcrs"])
    Client(url, **given).close()
    if given.get("root") is not None:
        given["root"] = read_root(given["root"])
    return FleetSettings(uuid.uuid4().hex, EnclaveURL.parse(url), per, given)
