"""Notices connections to the enclave's host that are no attested channel.

Python tells its audit hooks of every ``connect``, ``sendto`` and ``sendmsg`` of its ``socket``
module, in whatever thread and through whatever library: requests, httpx, urllib3, asyncio, trio.
Channels are connected by the C extension, which does not use that module: so whatever Python tells
of is none of them. For channels enclavia raises an audit event of its own, ``enclavia.connect``,
which says whether they are in debug mode and so prove nothing.

Decides which addresses are the enclave's. Calls: nothing of the package. Locks: ``_lock``, around
the list of what was seen.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UnattestedConnection", "fail_where_seen", "watching"]

_EVENTS: Final = frozenset(("socket.connect", "socket.sendto", "socket.sendmsg"))
_CHANNEL: Final = "enclavia.connect"
_LINES: Final = 4


class UnattestedConnection(ConnectionError):
    """Raised where a test that ``enclavia_block_network`` watches connects to the enclave's host by
    anything but an attested channel. The test fails also where this is caught."""


class _Watch:
    """What one test may not connect to, and what it tried."""

    def __init__(self, enclave: Any) -> None:  # noqa: ANN401 - a local or a real one
        self.name = f"{enclave.host}:{enclave.port}"
        self.proves_itself = enclave.mode == "production"
        self.seen: list[str] = []
        workload = None if _is_real(enclave) else enclave.workload
        places = [(enclave.host, None if workload is None else enclave.port)]
        if workload is not None:
            places.append(workload)
        self._names = {str(host).lower().rstrip(".") for host, _ in places}
        self._places = {(ip, port) for host, port in places for ip in _addresses(host)}

    def holds(self, address: object) -> bool:
        if not isinstance(address, tuple) or len(address) < 2:
            return False  # of a Unix socket, or none
        host, port = address[:2]
        if isinstance(host, bytes | bytearray):  # Python's sockets take these, too
            host = host.decode("utf-8", "replace")
        if not isinstance(host, str):
            return False
        host = host or "0.0.0.0"  # noqa: S104 - as Python's sockets read an empty one
        by_name = host.lower().rstrip(".") in self._names
        ips = _addresses(host)
        return any(
            (place_port is None or place_port == port) and (ip in ips or by_name)
            for ip, place_port in self._places
        ) or (by_name and not self._places)

    def note(self, event: str, address: object) -> str:
        frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        at = "".join(traceback.format_list(frames[-_LINES:]))
        text = (
            f"{event} to {address!r}, which is the enclave's host ({self.name}), by something that "
            "is no attested channel: who is there is not proven, and what is sent is not encrypted "
            "for the enclave. Use a client of enclavia"
        )
        with _lock:
            self.seen.append(f"{text}\nin thread {threading.current_thread().name}:\n{at}")
        return text


_lock = threading.Lock()
_watch: _Watch | None = None
_hooked = False
_KEY: Final = pytest.StashKey[_Watch]()


def _is_real(enclave: object) -> bool:
    return hasattr(enclave, "policy")


def _addresses(host: object) -> set[str]:
    text = str(host)
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None) or found
        # Connecting to the address of "all interfaces" leads to this machine.
        return {"127.0.0.1" if mapped.is_unspecified else str(mapped)}
    try:
        known = socket.getaddrinfo(text, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {str(entry[4][0]).partition("%")[0] for entry in known}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    watch = _watch
    if watch is None:
        return
    if event in _EVENTS:
        address = arguments[1]
    elif event == _CHANNEL and arguments[2] and watch.proves_itself:
        address = arguments[:2]
        event += " with debug_mode=True"
    else:
        return
    if watch.holds(address):
        raise UnattestedConnection(watch.note(event, address))


@contextlib.contextmanager
def watching(enclave: object, item: pytest.Item) -> Iterator[None]:
    """Python cannot take an audit hook away again: it is added when it is first needed, and does
    nothing while no test is watched."""
    global _hooked, _watch
    watch = item.stash[_KEY] = _Watch(enclave)
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _watch = watch
    try:
        yield
    finally:
        _watch = None
        _fail(_seen(item))  # what was seen after the test function


def fail_where_seen(item: pytest.Item, report: pytest.TestReport) -> None:
    """A connection fails the test function, whatever that has made of the exception."""
    text = _seen(item) if report.when == "call" else ""
    if not text:
        return
    if report.failed:
        report.sections.append(("enclavia_block_network", text))
    else:
        report.outcome = "failed"
        report.longrepr = text


def _fail(text: str) -> None:
    if text:
        pytest.fail(text, pytrace=False)


def _seen(item: pytest.Item) -> str:
    watch = item.stash.get(_KEY, None)
    if watch is None:
        return ""
    with _lock:
        seen, watch.seen = watch.seen, []
    return "enclavia_block_network: " + "\n".join(seen) if seen else ""
