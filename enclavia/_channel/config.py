"""What it takes to open one channel: checked once, immutable, picklable (no keys, no sockets).

Decides which settings are refused before anything is connected. Calls: _arguments, _core, _errors,
_identity, _io, _records, _trust. Locks: none.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import ssl
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack, cast

import httpx2

from .. import _core
from .._arguments import expect_file, flag, path_text, seconds, value_shown, whole
from .._errors import DebugModeWarning, InvalidURL
from .._identity.pcrs import Pcrs
from .._identity.pins import (
    PinNames,
    Pins,
    PinTuples,
    checked_leeway,
    checked_pins,
    read_root,
)
from .._records import fields
from .._trust.receipts import Facts, Receipt
from . import trust_store
from .options import CHANNEL_DEFAULTS, ChannelOptions, UpgradeHeaders, completed
from .url import EnclaveURL

if TYPE_CHECKING:
    from .._io.local import AnyChannel
    from .._trust.hook import OnAttestation
    from .._trust.sources import PinsOrSource, Source
    from .._trust.trust import Trust
    from .._trust.upgrades import Upgrades
    from .socket_path import Via

__all__ = ["ChannelConfig", "expect_connect", "logger"]

logger = logging.getLogger("enclavia")

_KEEPALIVE_MAX = 86_400
_FIXED = (type(None), Pcrs, tuple, list)
"""What is given as the pins themselves. A policy's are of a type of their own."""

# What csrc/net takes.
_HEADERS_MAX = 16 * 1024
_PROXY_HOST_MAX = 127
_PROXIED_HOST_MAX = 99
_PROXY_AUTH_MAX = 93

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_CONTENT = r"[\t\x20-\x7e\x80-\xff]*"
_OURS = frozenset(
    ("connection", "content-length", "host", "sec-websocket-extensions", "sec-websocket-key",
     "sec-websocket-protocol", "sec-websocket-version", "transfer-encoding", "upgrade")
)  # fmt: skip


@functools.lru_cache(maxsize=32)
def _policy(
    pins: PinTuples | None,
    root: bytes | None,
    debug_mode: bool,
    clock_leeway: int,
) -> _core.Policy:
    """Immutable. Checking a root costs as much as all the rest of making a client."""
    return _core.Policy(pins, root, debug_mode, not debug_mode, clock_leeway)


class ChannelConfig(NamedTuple):
    url: EnclaveURL
    pins: PinTuples | None
    root: bytes | None
    debug_mode: bool
    clock_leeway: int
    headers: tuple[tuple[str, str], ...]
    verify: bool
    ca_file: str | None
    proxy: tuple[str, int, str | None] | None
    max_in_flight: int
    keepalive_ms: int
    via: Via | None = None
    """A forwarder of this machine that keeps the channel."""
    # What a Trust is made from beside the pins, each None where it is not given.
    pins_source: Source | None = None
    upgrades: Upgrades | None = None
    on_attestation: Any = None

    def __repr__(self) -> str:
        return f"ChannelConfig({self.url})"  # headers and the proxy's password stay out of logs

    @classmethod
    def build(
        cls,
        url: str | httpx2.URL,
        caller: str = "ChannelConfig.build",
        /,
        **options: Unpack[ChannelOptions],
    ) -> ChannelConfig:
        """``caller``: whose keywords these are, for the message about one that does not exist."""
        given = completed(caller, options, CHANNEL_DEFAULTS)
        debug_mode = flag("debug_mode", given["debug_mode"])
        parsed = EnclaveURL.parse(url)
        pins, source = _pins_or_source(given["pcrs"], debug_mode)
        must_verify, ca_file = _tls(given["verify"])
        if parsed.tls and must_verify and ":" in parsed.host:
            raise InvalidURL(
                f"expected a host name for wss://, got the IPv6 address {parsed.host}, for which a "
                "certificate cannot be checked: use a host name"
            )
        proxy = _proxy(given["proxy"])
        if proxy is not None and len(parsed.host) > _PROXIED_HOST_MAX:
            raise InvalidURL(
                f"expected a host name of at most {_PROXIED_HOST_MAX} characters through a proxy, "
                f"got {len(parsed.host)}"
            )
        config = cls(
            url=parsed,
            pins=pins,
            root=read_root(given["root"]),
            debug_mode=debug_mode,
            clock_leeway=checked_leeway(given["clock_leeway"]),
            headers=_headers(given["upgrade_headers"]),
            verify=must_verify,
            ca_file=ca_file,
            proxy=proxy,
            max_in_flight=_in_flight(given["max_in_flight"]),
            keepalive_ms=_keepalive_ms(given["keepalive"]),
            pins_source=source,
            upgrades=_upgrades(given["trust_upgrades"], pins is not None or source is not None),
            on_attestation=_hook(given["on_attestation"]),
        )
        # Refuses an unusable root or pin here, not at the first request.
        _policy(pins, config.root, debug_mode or source is not None, config.clock_leeway)
        config._expect_possible()
        return config

    @property
    def names(self) -> PinNames:
        """What the sets of pins are called that it may be verified against."""
        if self.pins_source is None:
            return ()
        from .._trust.versions import AllowedVersions  # as all of where pins are not fixed

        return self.pins_source.names if isinstance(self.pins_source, AllowedVersions) else ()

    def with_pins(self, pcrs: PinsOrSource) -> ChannelConfig:
        """The same with other pins. Raises where those are not usable."""
        pins, source = _pins_or_source(pcrs, self.debug_mode)
        return self._replace(pins=pins, pins_source=source)

    def policy(self) -> _core.Policy:
        return _policy(self.pins, self.root, self.debug_mode, self.clock_leeway)

    def expect_blocking(self) -> None:
        """For those that block: functions of the caller's must not have to be awaited."""
        if self.on_attestation is not None:
            from .._trust.hook import refuse_async

            refuse_async(self.on_attestation)
        if self.pins_source is not None:
            from .._trust.sources import expect_blocking

            expect_blocking(self.pins_source)
        if _core.WEB:
            from .._io.switching import expect_can_wait

            expect_can_wait()

    def receipt(
        self, raw: _core.RawAttestation, handshake_hash: bytes, pins: PinTuples | None
    ) -> Receipt:
        """Of a new channel's document, verified against these pins."""
        return Receipt._of(
            Facts(
                enclave=f"{self.url.scheme}://{self.url.authority}",
                via=None if self.via is None else str(self.via),
                reason="connect",
                pins=pins,
                root=self.root,
                clock_leeway=self.clock_leeway,
                handshake_hash=handshake_hash,
                raw=raw,
                names=self.names,
            )
        )

    def trust(self) -> Trust | None:
        """What to ask beside connecting; None where the pins say everything. One for all the
        connections of an engine: it remembers which pins are in force."""
        if self.pins_source is None and self.upgrades is None and self.on_attestation is None:
            return None  # then connecting has no steps to wait for
        from .._trust.trust import Trust, TrustSettings  # seldom, and slow to import

        return Trust(
            TrustSettings(
                pins=self.pins,
                root=self.root,
                debug_mode=self.debug_mode,
                clock_leeway=self.clock_leeway,
                pins_source=self.pins_source,
                upgrades=self.upgrades,
                on_attestation=self.on_attestation,
            )
        )

    def _expect_possible(self) -> None:
        if _core.WEB:
            from .page import refuse_in_page

            refuse_in_page(
                {
                    "upgrade_headers": bool(self.headers),
                    "verify": not self.verify or self.ca_file is not None,
                    "proxy": self.proxy is not None,
                    "keepalive": bool(self.keepalive_ms),
                    "via": self.via is not None,
                }
            )

    def _audit(self) -> None:
        """Tells Python's audit hooks, which see no connection that the extension makes."""
        sys.audit("enclavia.connect", self.url.host, self.url.port, self.debug_mode)

    def open(self) -> _core.Channel:
        """Starts connecting."""
        self._expect_possible()  # it may have been pickled elsewhere
        self._audit()
        if self.debug_mode:
            logger.warning(
                "debug mode: the identity of %s will not be proven",
                self.url.authority,
                extra=fields("debug_mode", self.url.authority),
            )
        if self.url.tls and not self.verify:
            logger.warning(
                "TLS certificate of %s will not be verified",
                self.url.authority,
                extra=fields("tls_unverified", self.url.authority),
            )
        logger.info(
            "connecting to %s", self.url.authority, extra=fields("connecting", self.url.authority)
        )
        channel = _core.Channel(
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
        if _core.WEB:
            from .._io.web_socket import open_socket

            open_socket(channel, f"{self.url.scheme}://{self.url.authority}{self.url.path}")
        return channel

    def reach(self) -> AnyChannel:
        """Starts connecting, to the enclave or to the forwarder that has a channel to it."""
        self._expect_possible()
        if self.via is None:
            return self.open()
        from .via import ViaChannel  # seldom, and slow to import

        self._audit()
        logger.info(
            "reaching %s via %s",
            self.url.authority,
            self.via,
            extra=fields("reaching_via", self.url.authority),
        )
        return ViaChannel(self.url, self.policy(), self.via)

    def _ca_file(self) -> str | None:
        """Looked for where the connection is made: a pickled client may be elsewhere by now."""
        if self.ca_file is None and self.url.tls and self.verify and not _core.WEB:
            return trust_store.ca_file()
        return self.ca_file

    def trusted(self) -> tuple[object, ...]:
        """What of this machine decides, beside the settings, whom a new connection's outer TLS
        trusts: which file ``verify`` names now and in what state, or what the environment says."""
        if not self.url.tls or not self.verify:
            return ()
        if self.ca_file is None:
            return tuple(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
        path = os.path.abspath(self.ca_file)
        try:
            seen = os.stat(path)
        except OSError:
            return (path,)
        return path, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns

    def warn_debug(self) -> None:
        """With the line of the program that asked for it, however many of this package's functions
        are between."""
        if not self.debug_mode:
            return
        frame = sys._getframe(1)
        while frame.f_back is not None and _is_own(frame.f_globals):
            frame = frame.f_back
        # Without a registry: seen every time, not once per place. Filters apply as ever.
        warnings.warn_explicit(
            "debug_mode=True: who runs at the other end is NOT proven, and it may read "
            "everything. Never use it for anything that matters.",
            DebugModeWarning,
            frame.f_code.co_filename,
            frame.f_lineno,
        )


def _is_own(module: Mapping[str, object]) -> bool:
    return str(module.get("__name__")).partition(".")[0] == __name__.partition(".")[0]


def _pins_or_source(pcrs: object, debug_mode: bool) -> tuple[PinTuples | None, Source | None]:
    if type(pcrs) not in _FIXED:
        from .._trust.sources import source_of  # seldom, and slow to import

        source = source_of(pcrs)
        if source is not None:
            return None, source
    return checked_pins(cast(Pins, pcrs), debug_mode), None


def expect_connect(cls: type, arguments: tuple[object, ...], how: str) -> None:
    """A channel is connected and verified before it is there, so ``connect`` alone makes one."""
    if not arguments or not isinstance(arguments[0], ChannelConfig):
        raise TypeError(
            f"expected {how}{cls.__name__}.connect(url, pcrs=…), which connects and verifies, got "
            f"{cls.__name__}(…)"
        )


def _hook(value: object) -> OnAttestation | None:
    if value is None:
        return None
    from .._trust.hook import checked_hook  # seldom, and slow to import

    return checked_hook(value)


def _upgrades(value: object, pinned: bool) -> Upgrades | None:
    if value is None:
        return None
    from .._trust.upgrades import checked_upgrades  # seldom, and slow to import

    upgrades = checked_upgrades(value)
    if upgrades is not None and not pinned:
        raise ValueError(
            "trust_upgrades: expected pcrs= beside it, got none: a chain of upgrades begins at the "
            "pinned version"
        )
    return upgrades


def _tls(verify: object) -> tuple[bool, str | None]:
    if isinstance(verify, bool):
        return verify, None
    if isinstance(verify, ssl.SSLContext):
        raise TypeError(
            "verify: expected True, False or the path of a CA file, got an ssl.SSLContext: the "
            "TLS connection is made outside of Python's ssl module, which cannot hand it over"
        )
    path = path_text("verify", verify, "True, False or the path of a PEM file with CAs")
    try:
        path.encode()  # C has its paths in UTF-8
    except UnicodeEncodeError:
        raise ValueError(
            "verify: expected the path of a PEM file with CAs, got one that is not UTF-8: "
            f"{value_shown(path)}"
        ) from None
    expect_file("verify", path, "a PEM file with CAs")
    if not Path(path).is_file():
        raise ValueError(
            f"verify: expected the path of a PEM file with CAs, got no regular file: {path!r}"
        )
    return True, path


def _headers(headers: UpgradeHeaders) -> tuple[tuple[str, str], ...]:
    if headers is None:
        return ()
    if isinstance(headers, str | bytes) or not hasattr(headers, "__iter__"):
        raise TypeError(
            "upgrade_headers: expected a mapping or pairs of names and values, got "
            f"{type(headers).__name__}"
        )
    given: list[object]
    if isinstance(headers, httpx2.Headers):
        given = list(headers.multi_items())
    else:
        given = list(headers.items() if isinstance(headers, Mapping) else headers)
    pairs = tuple(_header(pair) for pair in given)
    size = sum(len(f"{name}: {value}\r\n".encode()) for name, value in pairs)
    if size > _HEADERS_MAX:
        raise ValueError(
            f"upgrade_headers: expected at most {_HEADERS_MAX} bytes in all, got {size}"
        )
    return pairs


def _header(pair: object) -> tuple[str, str]:
    """No message has the value: it may be a credential."""
    if not isinstance(pair, tuple | list):
        raise TypeError(
            f"upgrade_headers: expected pairs of names and values, got {type(pair).__name__}"
        )
    if len(pair) != 2:
        raise ValueError(
            f"upgrade_headers: expected pairs of names and values, got {len(pair)} members"
        )
    name, value = pair
    for each in (name, value):
        if not isinstance(each, str):
            raise TypeError(
                f"upgrade_headers: expected names and values as text, got {type(each).__name__}"
            )
    if not re.fullmatch(_NAME, name):
        raise ValueError(
            "upgrade_headers: expected the name of a header (letters, digits, some signs), got "
            f"{value_shown(name)}, which is not a header name"
        )
    if not re.fullmatch(_CONTENT, value):
        raise ValueError(
            "upgrade_headers: expected a value of printable characters up to U+00FF, got "
            f"characters not allowed in that of {name}"
        )
    if name.lower() in _OURS:
        raise ValueError(
            f"upgrade_headers: expected other headers than the WebSocket's, got {name}, which is "
            "set by the WebSocket upgrade itself"
        )
    return name, value


def _proxy(proxy: str | httpx2.URL | None) -> tuple[str, int, str | None] | None:
    if proxy is None:
        return None
    if not isinstance(proxy, str | httpx2.URL):
        got = "httpx2.Proxy" if isinstance(proxy, httpx2.Proxy) else type(proxy).__name__
        raise TypeError(
            f"proxy: expected http://[user:password@]host:port as text or httpx2.URL, got {got}"
        )
    try:
        url = httpx2.URL(proxy)
        host = url.raw_host.decode("ascii")
    except (httpx2.InvalidURL, ValueError) as error:
        raise ValueError(
            "proxy: expected http://[user:password@]host:port, got what is no URL: "
            f"{_without_text(error)}"
        ) from None
    if url.scheme != "http" or not url.host:
        raise ValueError(
            "proxy: expected http://[user:password@]host:port (a proxy that understands CONNECT), "
            f"got the scheme {url.scheme!r}"
        )
    if url.raw_path != b"/" or url.fragment:
        raise ValueError(
            "proxy: expected http://[user:password@]host:port without a path, got one with a path, "
            "a query or a fragment"
        )
    port = 80 if url.port is None else url.port
    if not 1 <= port <= 65535:
        raise ValueError(f"proxy: expected a port of 1 to 65535, got {port}")
    if len(host) > _PROXY_HOST_MAX:
        raise ValueError(
            f"proxy: expected a host name of at most {_PROXY_HOST_MAX} characters, got {len(host)}"
        )
    credentials = f"{url.username}:{url.password}" if url.userinfo else None
    if credentials is not None and "\0" in credentials:
        raise ValueError("proxy: expected a user name and a password, got a NUL in one of them")
    if credentials is not None and len(credentials.encode()) > _PROXY_AUTH_MAX:
        raise ValueError(
            f"proxy: expected a user name and a password of at most {_PROXY_AUTH_MAX} bytes "
            f"together, got {len(credentials.encode())}"
        )
    return host, port, credentials


def _without_text(error: Exception) -> str:
    """A codec's error has the whole text in it, password included."""
    return (
        error.reason if isinstance(error, UnicodeError) and hasattr(error, "reason") else str(error)
    )


def _keepalive_ms(value: float | None) -> int:
    """0: none."""
    if value is None:
        return 0
    checked = seconds("keepalive", value, most=_KEEPALIVE_MAX, above_zero=True, otherwise="None")
    return math.ceil(checked * 1000)


def _in_flight(value: int) -> int:
    return whole(
        "max_in_flight", value, 1, _core.MAX_IN_FLIGHT, because=" (what the server allows)"
    )
