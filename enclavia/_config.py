"""What it takes to open one channel: checked once, immutable, picklable (no keys, no sockets)."""

from __future__ import annotations

import functools
import logging
import math
import numbers
import os
import re
import ssl
import sys
import threading
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import httpx2

from . import _core, _trust_store
from ._errors import DebugModeWarning
from ._pcrs import Pcrs
from ._pins import (
    CLOCK_LEEWAY,
    Pins,
    RootCertificate,
    checked_leeway,
    pin_tuples,
    read_root,
)
from ._url import EnclaveURL

__all__ = ["KEEPALIVE", "ChannelConfig", "UpgradeHeaders", "Verify", "checked_seconds", "logger"]

UpgradeHeaders = Mapping[str, str] | Iterable[tuple[str, str]] | None
Verify = bool | str | os.PathLike[str]

logger = logging.getLogger("enclavia")

KEEPALIVE = 20.0
"""Seconds without a byte from the peer after which it is asked for one, and after which it is given
up where none came."""
_KEEPALIVE_MAX = 86_400

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_CONTENT = r"[\t\x20-\x7e\x80-\xff]*"
_OURS = frozenset(
    ("connection", "content-length", "host", "sec-websocket-extensions", "sec-websocket-key",
     "sec-websocket-protocol", "sec-websocket-version", "transfer-encoding", "upgrade")
)  # fmt: skip


@functools.lru_cache(maxsize=32)
def _policy(
    pins: tuple[tuple[bytes, bytes, bytes], ...] | None,
    root: bytes | None,
    debug_mode: bool,
    clock_leeway: int,
) -> _core.Policy:
    """Immutable. Checking a root costs as much as all the rest of making a client."""
    return _core.Policy(pins, root, debug_mode, not debug_mode, clock_leeway)


class ChannelConfig(NamedTuple):
    url: EnclaveURL
    pins: tuple[tuple[bytes, bytes, bytes], ...] | None
    root: bytes | None
    debug_mode: bool
    clock_leeway: int
    headers: tuple[tuple[str, str], ...]
    verify: bool
    ca_file: str | None
    proxy: tuple[str, int, str | None] | None
    max_in_flight: int
    keepalive_ms: int

    def __repr__(self) -> str:
        return f"ChannelConfig({self.url})"  # headers and the proxy's password stay out of logs

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
        max_in_flight: int = 64,
        keepalive: float | None = KEEPALIVE,
    ) -> ChannelConfig:
        if not isinstance(debug_mode, bool):
            raise TypeError(f"debug_mode: expected True or False, got {debug_mode!r}")
        parsed = EnclaveURL.parse(url)
        pins = pin_tuples(pcrs)
        _check_pins(pins, debug_mode)
        must_verify, ca_file = _tls(verify)
        config = cls(
            url=parsed,
            pins=pins,
            root=read_root(root),
            debug_mode=debug_mode,
            clock_leeway=checked_leeway(clock_leeway),
            headers=_headers(upgrade_headers),
            verify=must_verify,
            ca_file=ca_file,
            proxy=_proxy(proxy),
            max_in_flight=_in_flight(max_in_flight),
            keepalive_ms=_keepalive_ms(keepalive),
        )
        config.policy()  # refuses an unusable root or pin here, not at the first request
        return config

    def policy(self) -> _core.Policy:
        return _policy(self.pins, self.root, self.debug_mode, self.clock_leeway)

    def open(self) -> _core.Channel:
        """Starts connecting."""
        if self.debug_mode:
            logger.warning("debug mode: the identity of %s will not be proven", self.url.authority)
        if self.url.tls and not self.verify:
            logger.warning("TLS certificate of %s will not be verified", self.url.authority)
        logger.info("connecting to %s", self.url.authority)
        return _core.Channel(
            host=self.url.host,
            port=self.url.port,
            tls=self.url.tls,
            path=self.url.path,
            authority=self.url.authority,
            headers=list(self.headers),
            policy=self.policy(),
            max_in_flight=self.max_in_flight,
            verify=self.verify,
            ca_file=self._ca_file(),
            proxy=self.proxy,
            keepalive_ms=self.keepalive_ms,
        )

    def _ca_file(self) -> str | None:
        """Looked for where the connection is made: a pickled client may be elsewhere by now."""
        if self.ca_file is None and self.url.tls and self.verify:
            return _trust_store.ca_file()
        return self.ca_file

    def warn_debug(self, stacklevel: int) -> None:
        if not self.debug_mode:
            return
        frame = sys._getframe(stacklevel)
        # Without a registry: seen every time, not once per place. Filters apply as ever.
        warnings.warn_explicit(
            "debug_mode=True: who runs at the other end is NOT proven, and it may read "
            "everything. Never use it for anything that matters.",
            DebugModeWarning,
            frame.f_code.co_filename,
            frame.f_lineno,
        )


def _check_pins(pins: tuple[tuple[bytes, bytes, bytes], ...] | None, debug_mode: bool) -> None:
    if debug_mode:
        return
    if pins is None:
        raise ValueError(
            "pcrs: expected the PCRs of the enclave (Pcrs(pcr0=…, pcr1=…, pcr2=…), "
            "Pcrs.load(path)), got none; without them nothing is proven. Only debug_mode=True "
            "works without, and proves nothing either"
        )
    for values in pins:
        if Pcrs(pcr0=values[0], pcr1=values[1], pcr2=values[2]).is_zero:
            raise ValueError(
                "pcrs: expected the PCRs of a production enclave, got all zeros: that is a debug "
                "enclave, whose memory its operator can read"
            )


def _tls(verify: object) -> tuple[bool, str | None]:
    if isinstance(verify, bool):
        return verify, None
    if isinstance(verify, ssl.SSLContext):
        raise TypeError(
            "verify: expected True, False or the path of a CA file, got an ssl.SSLContext: the "
            "TLS connection is made outside of Python's ssl module, which cannot hand it over"
        )
    if not isinstance(verify, str | os.PathLike):
        raise TypeError(
            f"verify: expected True, False or the path of a CA file, got {type(verify).__name__}"
        )
    if not os.fspath(verify):
        raise ValueError("verify: expected the path of a PEM file with CAs, got an empty text")
    path = Path(verify)
    if not path.is_file():
        raise ValueError(f"verify: expected the path of a PEM file with CAs, got {path}: no file")
    return True, str(path)


def _headers(headers: UpgradeHeaders) -> tuple[tuple[str, str], ...]:
    if headers is None:
        return ()
    if isinstance(headers, str | bytes):
        raise TypeError(
            "upgrade_headers: expected a mapping or pairs of names and values, got "
            f"{type(headers).__name__}"
        )
    if isinstance(headers, httpx2.Headers):
        pairs = list(headers.multi_items())
    else:
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("upgrade_headers: expected names and values as text")
        if not re.fullmatch(_NAME, name):
            raise ValueError(f"upgrade_headers: {name!r} is not a header name")
        if not re.fullmatch(_CONTENT, value):
            raise ValueError(f"upgrade_headers: the value of {name} has characters not allowed")
        if name.lower() in _OURS:
            raise ValueError(f"upgrade_headers: {name} is set by the WebSocket upgrade itself")
    return tuple((name, value) for name, value in pairs)


def _proxy(proxy: str | httpx2.URL | None) -> tuple[str, int, str | None] | None:
    if proxy is None:
        return None
    if isinstance(proxy, httpx2.Proxy):
        raise TypeError("proxy: expected http://[user:password@]host:port, got httpx2.Proxy")
    try:
        url = httpx2.URL(proxy)
    except (httpx2.InvalidURL, ValueError, TypeError) as error:
        raise ValueError(f"proxy: expected http://[user:password@]host:port: {error}") from None
    if url.scheme != "http" or not url.host:
        raise ValueError(
            "proxy: expected http://[user:password@]host:port (a proxy that understands CONNECT), "
            f"got the scheme {url.scheme!r}"
        )
    if url.raw_path != b"/" or url.fragment:
        raise ValueError("proxy: expected http://[user:password@]host:port without a path")
    credentials = f"{url.username}:{url.password}" if url.userinfo else None
    return url.raw_host.decode("ascii"), url.port or 80, credentials


def _keepalive_ms(seconds: float | None) -> int:
    """0: none."""
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(
            f"keepalive: expected a number of seconds or None, got {type(seconds).__name__}"
        )
    if not 0 < seconds <= _KEEPALIVE_MAX:
        raise ValueError(
            f"keepalive: expected more than 0 and at most {_KEEPALIVE_MAX} seconds, or None for "
            f"no keep-alive, got {seconds}"
        )
    return math.ceil(seconds * 1000)


def checked_seconds(name: str, seconds: float | None) -> float | None:
    """A timeout as callers give it. None, for no limit, also where it is more than a lock can wait
    for (``float("inf")``)."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real):
        raise TypeError(
            f"{name}: expected a number of seconds or None, got {type(seconds).__name__}"
        )
    if not seconds >= 0:  # nor is it a NaN
        raise ValueError(f"{name}: expected 0 or more seconds, or None for no limit, got {seconds}")
    return seconds if seconds <= threading.TIMEOUT_MAX else None


def _in_flight(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"max_in_flight: expected a number, got {type(value).__name__}")
    if not 1 <= value <= _core.MAX_IN_FLIGHT:
        raise ValueError(
            f"max_in_flight: expected 1 to {_core.MAX_IN_FLIGHT} (what the server allows), "
            f"got {value}"
        )
    return value
