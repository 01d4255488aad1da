"""Whether a URL names the enclave, in whichever spelling. For transports and adapters on a client
of another library, which chooses a transport by the text of the URL.

Decides which spellings of scheme, host and port are the enclave's. Calls: nothing of the package.
Locks: none.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import urllib.parse
from typing import Any

from .url import DEFAULT_PORTS, EnclaveURL

__all__ = ["keep_inside", "names_enclave", "url_names_enclave"]


def names_enclave(enclave: EnclaveURL, scheme: str, host: str, port: int | None) -> bool:
    """Whether host and port, with any scheme of HTTP or WebSocket, are those of the enclave.

    A workload behind a tunnel knows its authority, from the Host header, but not the scheme it is
    reached by. So a URL without a port, or with its scheme's default port, names an enclave that is
    itself on the default port of its scheme, whichever the two schemes are.
    """
    default = DEFAULT_PORTS.get(scheme.lower())
    if default is None or _canonical(host) != _canonical(enclave.host):
        return False
    usual = enclave.port == DEFAULT_PORTS[enclave.scheme]
    return (port or default) == enclave.port or (usual and port in (None, default))


def url_names_enclave(enclave: EnclaveURL, url: Any) -> bool:  # noqa: ANN401
    """The same of a URL of httpx or httpx2."""
    try:
        host = url.raw_host.decode("ascii")
    except UnicodeError:  # of an IPv6 zone, which both let pass
        return False
    return names_enclave(enclave, url.scheme, host, url.port)


def keep_inside(
    enclave: EnclaveURL,
    headers: Any,  # noqa: ANN401
    asked: Any,  # noqa: ANN401
    invalid_url: type[Exception],
) -> None:
    """Writes a Location that names the enclave as the URL that was asked for names it.

    A workload often writes ``http://`` before the authority of the Host header. A client with
    ``mounts`` goes by scheme and host, and would send what follows outside the tunnel.

    ``headers``, ``asked``, ``invalid_url``: an answer's ``Headers``, its request's ``URL`` and the
    class ``InvalidURL``, all three of httpx or of httpx2. A Location is read as those do that
    follow it.
    """
    try:
        location = type(asked)(headers["location"])
        if location.scheme and not location.host:
            location = location.copy_with(host=asked.host)
    except (invalid_url, ValueError):
        return  # who follows it refuses it
    if not location.scheme:
        if not location.host:
            return
        location = location.copy_with(scheme=asked.scheme)
    if not url_names_enclave(enclave, location):
        return
    if (location.scheme, location.netloc) != (asked.scheme, asked.netloc):
        name = next(name for name, _ in headers.raw if name.lower() == b"location")
        headers[name.decode("ascii")] = str(
            location.copy_with(scheme=asked.scheme, host=asked.host, port=asked.port, userinfo=b"")
        )


def _canonical(host: str) -> str:
    """One spelling of a host: no percent-encoding, IDNA (RFC 5891, mapped by UTS 46), lower case,
    no final dot; addresses as ``ipaddress`` and the system's resolver read them.

    The zone of an IPv6 address (RFC 6874) is left out: an enclave's URL has none, and the resolver
    takes any number as one for an address that needs none, so ``[2001:db8::1%251]`` is reached as
    well as ``[2001:db8::1]``."""
    host = host.removeprefix("[").removesuffix("]")
    if ":" in host:
        host = host.partition("%")[0]
    host = urllib.parse.unquote(host)
    if not host.isascii():
        host = _idna(host)
    host = host.lower().rstrip(".")
    if re.fullmatch(r"[0-9a-fx.]+", host):
        try:
            host = socket.inet_ntoa(socket.inet_aton(host))  # also 127.1 and 0x7f000001
        except OSError:
            return host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _idna(host: str) -> str:
    import idna

    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return host
