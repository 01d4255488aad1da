"""The smallest apps there are, and a server of each that has no enclave before it.

uvicorn is made to run on asyncio's own event loop, as it does where ``enclavia[testing]`` is all
that is installed. With uvloop, which the rest of the benchmarks needs, it would differ from what
the test suite of a user has: uvloop sets TCP_NODELAY on sockets on which asyncio does not.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

sys.modules["uvloop"] = None  # type: ignore[assignment]  # an import of it fails

import uvicorn  # noqa: E402
import waitress  # noqa: E402

from enclavia.testing._workload import ASGI_SETTINGS, WSGI_SETTINGS  # noqa: E402

Address = tuple[str, int]
Stop = Callable[[], None]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (kind := (await receive())["type"]) != "lifespan.shutdown":
            await send({"type": f"{kind}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def served(name: str) -> tuple[Address, Stop]:
    """The app in a thread of this process: its address, and what ends it."""
    return _served_by_uvicorn() if name == "asgi" else _served_by_waitress()


def _served_by_uvicorn() -> tuple[Address, Stop]:
    server = uvicorn.Server(uvicorn.Config(asgi, host="127.0.0.1", port=0, **ASGI_SETTINGS))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("uvicorn ended before it listened")
        time.sleep(0.01)
    address: Address = server.servers[0].sockets[0].getsockname()[:2]

    def stop() -> None:
        server.should_exit = True
        thread.join()

    return address, stop


def _served_by_waitress() -> tuple[Address, Stop]:
    server: Any = waitress.create_server(wsgi, host="127.0.0.1", port=0, **WSGI_SETTINGS)
    threading.Thread(target=server.run, daemon=True).start()
    return ("127.0.0.1", int(server.effective_port)), lambda: None  # it ends with the process
