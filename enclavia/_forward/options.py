"""All that a forwarder is made from, checked once.

Decides which combinations of keywords are refused. Calls: _arguments, _channel, _client, _trust.
Locks: none.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Unpack, get_args

import httpx2

from .._arguments import address, flag, one_of, value_shown
from .._channel.socket_path import default_path, socket_path
from .._client.options import TransportOptions
from .._client.settings import Settings

if TYPE_CHECKING:
    from .._trust.sources import PinsOrSource

__all__ = ["ForwarderOptions", "ForwarderSettings", "Way", "forwarder_settings"]

Way = Literal["http", "stream"]
_TOKEN_LEAST = 16


class ForwarderOptions(TransportOptions, total=False):
    """The keywords of a forwarder: a transport's, for its channels, and its own."""

    socket: str | os.PathLike[str] | None
    http: bool
    listen: str | tuple[str, int] | None
    way: Way
    token: str | None


class ForwarderSettings(NamedTuple):
    settings: Settings
    path: str
    http: bool
    listen: tuple[str, int] | None
    way: Way
    token: bytes | None

    def __repr__(self) -> str:
        return f"ForwarderSettings({self.settings.config.url}, {self.path!r})"  # without the token

    def with_pins(self, pcrs: PinsOrSource) -> ForwarderSettings:
        """The same with other pins. Raises where those are not usable."""
        config = self.settings.config.with_pins(pcrs)
        return self._replace(settings=self.settings._replace(config=config))


def forwarder_settings(
    url: str | httpx2.URL, owner: str, options: ForwarderOptions
) -> ForwarderSettings:
    given: dict[str, Any] = dict(options)
    place = given.pop("socket", None)
    http = flag("http", given.pop("http", False))
    listen = given.pop("listen", None)
    way = given.pop("way", "http")
    token = _token(given.pop("token", None))
    one_of("way", way, get_args(Way))
    for name in ("via", "shared_expiry"):
        if name in given:
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}")
    of_transport: TransportOptions = given  # type: ignore[assignment]
    settings = _build(url, owner, **of_transport)
    listening = None if listen is None else _address(listen)
    if listening is not None and way == "http" and token is None:
        raise ValueError(
            "token: expected a secret of at least 16 characters, got None: every user of this "
            "machine can reach a TCP port, so a forwarder that speaks HTTP there asks for one"
        )
    if token is not None and (listening is None or way != "http"):
        raise ValueError(
            "token: expected None, got one: it is asked for where HTTP is spoken at a TCP port "
            "(listen= and way='http'), and nowhere else"
        )
    path = default_path(settings.config.url) if place is None else socket_path("socket", place)
    return ForwarderSettings(settings, path, http, listening, way, token)


def _build(url: str | httpx2.URL, owner: str, **options: Unpack[TransportOptions]) -> Settings:
    return Settings.build(url, owner, **options)


def _address(listen: object) -> tuple[str, int]:
    if isinstance(listen, str):
        host, colon, port = listen.rpartition(":")
        if not colon or not port.isascii() or not port.isdecimal() or len(port) > 5:
            raise ValueError(f"listen: expected 'HOST:PORT', got {value_shown(listen)}")
        host, number = host.removeprefix("[").removesuffix("]"), int(port)
    elif isinstance(listen, tuple) and len(listen) == 2:
        host, number = listen
    else:
        raise TypeError(
            f"listen: expected 'HOST:PORT' or (host, port), got {type(listen).__name__}"
        )
    if number == 0:
        return address("listen", host, 1)[0], 0
    return address("listen", host, number)


def _token(token: object) -> bytes | None:
    if token is None:
        return None
    if not isinstance(token, str):
        raise TypeError(f"token: expected text or None, got {type(token).__name__}")
    # Its value is in no message.
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("token: expected printable ASCII without spaces, got other characters")
    if len(token) < _TOKEN_LEAST:
        raise ValueError(
            f"token: expected at least {_TOKEN_LEAST} characters, got {len(token)}: make one with "
            "secrets.token_urlsafe()"
        )
    return token.encode("ascii")
