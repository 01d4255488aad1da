"""The URL of an enclave, taken apart once.

Decides which URLs can name an enclave, and which others lead to the same one. Calls: _errors.
Locks: none.
"""

import string
from typing import NamedTuple, Self

import httpx2

from .._errors import InvalidURL

__all__ = ["DEFAULT_PORTS", "EnclaveURL"]

# Sets and no regular expression: a process that connects once would compile it for one host, which
# takes longer than all else here.
_NAME = frozenset(string.ascii_letters + string.digits + "._-")
_ADDRESS = frozenset(string.hexdigits + ":.")
# What csrc/net takes.
_AUTHORITY_MAX = 119
_PATH_MAX = 2032
DEFAULT_PORTS = {"ws": 80, "wss": 443, "https": 443, "http": 80}


class EnclaveURL(NamedTuple):
    """``ws://`` or ``wss://`` (also written ``https://``): where the WebSocket is."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str | httpx2.URL) -> Self:
        if not isinstance(url, str | httpx2.URL):
            raise TypeError(f"url: expected text or httpx2.URL, got {type(url).__name__}")
        text = str(url)
        try:
            parsed = httpx2.URL(text.strip())
        except (httpx2.InvalidURL, ValueError) as error:
            raise InvalidURL(f"expected wss://<host>, got {_shown(text)}: {error}") from None
        if parsed.userinfo:
            raise InvalidURL(
                "expected a URL without user name and password, got one with them: an enclave's "
                "URL has none (upgrade_headers can carry an Authorization header)"
            )
        if parsed.scheme == "http":
            raise InvalidURL(
                f"expected wss:// (or ws:// for a local enclave), got {_shown(text)}: "
                "an enclave is reached over a WebSocket"
            )
        if parsed.scheme not in ("ws", "wss", "https"):
            raise InvalidURL(f"expected wss://<host> or ws://<host>, got {_shown(text)}")
        if not parsed.host:
            raise InvalidURL(f"expected a host in the URL, got {_shown(text)}")
        if parsed.fragment:
            raise InvalidURL(f"expected a URL without a #fragment, got {_shown(text)}")
        host = _host_of(parsed)
        if host is None or not _is_host(host):
            raise InvalidURL(f"expected a host name or an address in the URL, got {_shown(text)}")
        if len(parsed.raw_path) > _PATH_MAX:
            raise InvalidURL(
                f"expected a path and query of at most {_PATH_MAX} bytes, got "
                f"{len(parsed.raw_path)}"
            )
        port = parsed.port if parsed.port is not None else DEFAULT_PORTS[parsed.scheme]
        if not 0 < port < 65536:
            raise InvalidURL(f"expected a port from 1 to 65535, got {port}")
        made = cls(
            scheme="ws" if parsed.scheme == "ws" else "wss",
            host=host,
            port=port,
            path=parsed.raw_path.decode("ascii"),
        )
        if len(made.authority) > _AUTHORITY_MAX:
            raise InvalidURL(
                f"expected a host and port of at most {_AUTHORITY_MAX} characters, got "
                f"{len(made.authority)}: {_shown(text)}"
            )
        return made

    @property
    def tls(self) -> bool:
        return self.scheme == "wss"

    @property
    def _explicit_port(self) -> int | None:
        return None if self.port == DEFAULT_PORTS[self.scheme] else self.port

    @property
    def authority(self) -> str:
        """Host and, where it is not the default, port: what a Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self._explicit_port is None else f"{host}:{self._explicit_port}"

    @property
    def base_url(self) -> httpx2.URL:
        """What relative URLs of requests are relative to."""
        return httpx2.URL(f"https://{self.authority}/")

    def refusal(self, url: httpx2.URL) -> str | None:
        """Why a request for this URL cannot go to this enclave; None where it can."""
        default = DEFAULT_PORTS.get(url.scheme)
        if default is None:
            return (
                f"expected a URL of this enclave, {self.base_url}…, got the scheme "
                f"{url.scheme!r} in {_shown(str(url))}"
            )
        # A workload knows its authority from the Host header and writes any scheme before it, most
        # often ``http``. Without a port that is the enclave's own where the enclave has none.
        own_port = self._explicit_port is None and url.port is None
        if _host_of(url) != self.host or not (own_port or (url.port or default) == self.port):
            return (
                f"expected a URL of this enclave, {self.base_url}…, got another host in "
                f"{_shown(str(url))}: use another client for it"
            )
        return None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def _host_of(url: httpx2.URL) -> str | None:
    """None where the zone of an IPv6 address is no ASCII, which httpx2 lets pass."""
    try:
        return url.raw_host.decode("ascii")
    except UnicodeError:
        return None


def _is_host(host: str) -> bool:
    if ":" in host:
        return _ADDRESS.issuperset(host)
    return _NAME.issuperset(host) and not host.startswith(".") and host != ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:197] + "…")
