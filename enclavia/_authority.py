"""Whether a URL names the enclave, however it spells it: what the adapters of other libraries need,
whose clients choose by a URL's text who carries a request."""

from __future__ import annotations

import ipaddress
import re
import socket
import urllib.parse

from ._url import EnclaveURL

__all__ = ["names_enclave"]

_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def names_enclave(enclave: EnclaveURL, scheme: str, host: str, port: int | None) -> bool:
    """Whether host and port, with any scheme of HTTP or WebSocket, are those of the enclave.

    A workload behind a tunnel knows its authority, from the Host header, but not the scheme it is
    reached by. So a URL without a port, or with its scheme's default port, names an enclave that is
    itself on the default port of its scheme, whichever the two schemes are.
    """
    default = _DEFAULT_PORTS.get(scheme.lower())
    if default is None or _canonical(host) != _canonical(enclave.host):
        return False
    usual = enclave.port == _DEFAULT_PORTS[enclave.scheme]
    return (port or default) == enclave.port or (usual and port in (None, default))


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
