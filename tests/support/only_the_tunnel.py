"""Runs a program that may reach the network through the extension only.

``python only_the_tunnel.py PROGRAM``. Whatever Python itself tries is refused and noted, with who
tried, in the file that ``CONNECT_WATCH_LOG`` names. What the extension does raises no event of
Python's: it calls the C library, where ``connect_watch.c`` tells it from other native libraries.
"""

from __future__ import annotations

import errno
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

# Everything by which Python's standard library can reach another machine, or ask where it is.
REACHES_OUT = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyaddr",
    "socket.gethostbyname",
    "socket.getnameinfo",
    "socket.sendmsg",
    "socket.sendto",
}
_LOOPBACK_NAMES = (None, "", "127.0.0.1", "::1")


def leaves(event: str, arguments: tuple[Any, ...]) -> bool:
    first = arguments[0]
    if isinstance(first, socket.socket):  # and its address, which a connected one may leave out
        return first.family != socket.AF_UNIX and arguments[1] is not None
    # A lookup: of an address it asks nobody.
    return event != "socket.getaddrinfo" or first not in _LOOPBACK_NAMES


def callers() -> str:
    """The innermost frames that are no part of Python."""
    frames = [
        f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_stack()[:-2]
        if "site-packages" in frame.filename or "/lib/python" not in frame.filename
    ]
    return " < ".join(reversed(frames[-5:]))


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in REACHES_OUT and leaves(event, arguments):
        shown = arguments[1] if isinstance(arguments[0], socket.socket) else arguments[0]
        line = f"{event} {shown!r} by {callers()}\n"
        log = os.open(os.environ["CONNECT_WATCH_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, line.encode(errors="backslashreplace"))
        os.close(log)
        raise OSError(errno.ENETUNREACH, "refused, since it would not go through the tunnel")


if __name__ == "__main__":
    program = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(program).parent)
    sys.addaudithook(refuse)
    runpy.run_path(program, run_name="__main__")
