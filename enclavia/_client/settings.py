"""All that a transport is made from: checked once, immutable, and what pickling keeps of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypedDict

import httpx2

from .._arguments import flag, seconds, timeout_members, whole
from .._arguments import timeout as checked_timeout
from .._channel.config import KEEPALIVE, ChannelConfig, UpgradeHeaders, Verify
from .._exchange.retry import Retries, checked_retries
from .._exchange.timeouts import Timeouts, positive
from .._identity.pins import CLOCK_LEEWAY, Pins, RootCertificate
from .._pool.pool import PoolLimits

if TYPE_CHECKING:
    from httpx2._types import TimeoutTypes

__all__ = ["DEFAULT_TIMEOUT", "Settings", "TransportOptions"]

DEFAULT_TIMEOUT = httpx2.Timeout(30.0)


class TransportOptions(TypedDict, total=False):
    """The keywords of :class:`EnclaveTransport`, for those who pass them on."""

    pcrs: Pins
    root: RootCertificate
    debug_mode: bool
    clock_leeway: float
    upgrade_headers: UpgradeHeaders
    verify: Verify
    proxy: str | httpx2.URL | None
    timeout: httpx2.Timeout | float | None
    retries: Retries
    patience: float | None
    auto_reconnect: bool
    max_channels: int
    max_in_flight: int
    keepalive: float | None
    limits: httpx2.Limits | None


class Settings(NamedTuple):
    """All that a transport is made from; what pickling keeps of it."""

    config: ChannelConfig
    limits: PoolLimits
    retries: Retries
    timeouts: Timeouts

    @classmethod
    def of_options(cls, owner: str, url: str | httpx2.URL, options: TransportOptions) -> Settings:
        """Of the keywords that ``owner`` was given and passes on."""
        for name in options:
            if name not in TransportOptions.__annotations__:
                raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}")
        return cls.build(url, **options)

    @classmethod
    def build(
        cls,
        url: str | httpx2.URL,
        *,
        pcrs: Pins = None,
        root: RootCertificate = None,
        debug_mode: bool = False,
        clock_leeway: float = CLOCK_LEEWAY,
        upgrade_headers: UpgradeHeaders = None,
        verify: Verify = True,
        proxy: str | httpx2.URL | None = None,
        timeout: TimeoutTypes = DEFAULT_TIMEOUT,
        retries: Retries = 2,
        patience: float | None = None,
        auto_reconnect: bool = True,
        max_channels: int = 2,
        max_in_flight: int = 64,
        keepalive: float | None = KEEPALIVE,
        limits: httpx2.Limits | None = None,
    ) -> Settings:
        config = ChannelConfig.build(
            url,
            pcrs=pcrs,
            root=root,
            debug_mode=debug_mode,
            clock_leeway=clock_leeway,
            upgrade_headers=upgrade_headers,
            verify=verify,
            proxy=proxy,
            max_in_flight=max_in_flight,
            keepalive=keepalive,
        )
        pool = PoolLimits(
            max_channels=whole("max_channels", max_channels, 1),
            max_in_flight=config.max_in_flight,
            patience=(
                None if patience is None else seconds("patience", patience, otherwise="None")
            ),
            reconnect=flag("auto_reconnect", auto_reconnect),
        )
        return cls(
            config=config,
            limits=_limited(pool, limits),
            retries=checked_retries(retries),
            timeouts=Timeouts(*map(positive, timeout_members("timeout", timeout))),
        )


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
