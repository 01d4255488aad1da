"""What a channel cannot have in a browser, where the WebSocket is the page's.

JavaScript's ``WebSocket`` takes a URL and nothing else: no header, no proxy, no certificate of the
caller's, and no ping. A setting that would be passed over is refused, before anything is sent.

Decides which settings are refused in a browser. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["refuse_in_page"]

_WHY = {
    "upgrade_headers": "a browser adds no headers of a program's to a WebSocket; put what the "
    "workload needs into the request's own headers, which go through the channel",
    "verify": "the browser itself checks certificates, by its own authorities, and cannot be told "
    "otherwise; of wss:// it opens what those know",
    "proxy": "the browser chooses the proxy of its connections",
    "keepalive": "a browser sends no WebSocket pings for a program, so a connection that leads "
    "nowhere is found by the timeouts of requests",
    "via": "a browser reaches no Unix socket, so no forwarder of the machine",
}


def refuse_in_page(given: Mapping[str, bool]) -> None:
    """``given``: which of these settings are. Raises ValueError, which names the first one."""
    for name, is_given in given.items():
        if is_given:
            raise ValueError(
                f"{name}: expected none in a browser (Pyodide), got a value: {_WHY[name]}"
            )
