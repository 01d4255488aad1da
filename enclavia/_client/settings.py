"""All that a transport is made from: checked once, immutable, and what pickling keeps of it.

Decides which settings of a transport are refused. Calls: _arguments, _channel, _core, _exchange,
_io, _pool. Locks: none.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Unpack

import httpx2

from .. import _core
from .._arguments import flag, seconds, timeout_members, whole
from .._arguments import timeout as checked_timeout
from .._channel.config import ChannelConfig
from .._channel.options import CHANNEL_DEFAULTS, completed
from .._exchange.retry import Retries, checked_retries
from .._exchange.timeouts import Timeouts
from .._io.face import positive
from .._pool.kinds import PoolLimits
from .options import TRANSPORT_DEFAULTS, TransportOptions

if TYPE_CHECKING:
    from .._channel.socket_path import Via

__all__ = ["SHARED_EXPIRY", "Settings"]

SHARED_EXPIRY: Final = 10.0
"""Seconds. A third of the default timeout for connecting, within which a process that waits for a
place has to get that of one whose tasks are done."""


class Settings(NamedTuple):
    """All that a transport is made from; what pickling keeps of it."""

    config: ChannelConfig
    limits: PoolLimits
    retries: Retries
    timeouts: Timeouts
    shared_expiry: float = SHARED_EXPIRY
    """Seconds. With a default, so that what an earlier version has pickled can be read."""

    @property
    def meaning(self) -> Hashable:
        """Equal for settings with which copies may share their channels: where everything in them
        is equal, now and in whatever is added to them later, and where this process would also
        trust the same authorities for the outer TLS."""
        from .._exchange.shared import key_of  # of copies only, which few programs have

        return key_of((self, self.config.trusted()))

    @classmethod
    def build(
        cls,
        url: str | httpx2.URL,
        caller: str = "Settings.build",
        /,
        **options: Unpack[TransportOptions],
    ) -> Settings:
        """``caller``: whose keywords these are, for the message about one that does not exist."""
        given = completed(caller, options, TRANSPORT_DEFAULTS)
        of_channel = {name: given[name] for name in CHANNEL_DEFAULTS}
        config = ChannelConfig.build(url, **of_channel)
        via = _via(config, given)
        if via is not None:
            config = config._replace(via=via)
        patience, expiry = given["patience"], given["shared_expiry"]
        pool = PoolLimits(
            max_channels=whole("max_channels", given["max_channels"], 1),
            max_in_flight=config.max_in_flight,
            patience=(
                None if patience is None else seconds("patience", patience, otherwise="None")
            ),
            reconnect=flag("auto_reconnect", given["auto_reconnect"]),
        )
        return cls(
            config=config,
            limits=_limited(pool, given["limits"]),
            retries=checked_retries(given["retries"]),
            timeouts=Timeouts(*map(positive, timeout_members("timeout", given["timeout"]))),
            shared_expiry=(
                SHARED_EXPIRY
                if expiry is None
                else seconds("shared_expiry", expiry, otherwise="None")
            ),
        )


def _via(config: ChannelConfig, given: Mapping[str, Any]) -> Via | None:
    if given["via"] is None:
        return None
    if _core.WEB:
        from .._channel.page import refuse_in_page

        refuse_in_page({"via": True})
    for name in ("upgrade_headers", "verify", "proxy"):
        if given[name] is not CHANNEL_DEFAULTS[name]:
            raise ValueError(
                f"{name}: expected nothing beside via=, got a value: the forwarder makes the "
                "connection to the enclave, so it is to be given to the forwarder"
            )
    from .._channel.socket_path import Via  # seldom, and slow to import

    return Via.parse(given["via"], config.url)


_LIMITS = ("max_connections", "max_keepalive_connections", "keepalive_expiry")


def _limited(pool: PoolLimits, limits: object) -> PoolLimits:
    """An object of the first httpx has the same members and will do."""
    if limits is None:
        return pool
    if isinstance(limits, type) or not all(hasattr(limits, name) for name in _LIMITS):
        raise TypeError(f"limits: expected httpx2.Limits or None, got {type(limits).__name__}")
    connections, idle, expiry = (getattr(limits, name) for name in _LIMITS)
    return pool._replace(
        max_connections=(
            None if connections is None else whole("limits (max_connections)", connections, 1)
        ),
        max_idle=None if idle is None else whole("limits (max_keepalive_connections)", idle, 0),
        keepalive_expiry=checked_timeout("limits (keepalive_expiry)", expiry),
    )
