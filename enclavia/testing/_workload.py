"""The workload behind a local enclave: an app served on loopback, or an address where one
listens already.

Decides what counts as an app, an address or a file. Calls: _arguments. Locks: none.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, cast

from .._arguments import address, value_shown
from ._extras import require

__all__ = ["Interface", "Workload", "open_workload"]

Interface = Literal["auto", "wsgi", "asgi"]
Address = tuple[str, int]
App: TypeAlias = Callable[..., Any]

# How the servers are set up, without where they listen.
WSGI_SETTINGS: dict[str, Any] = {
    "threads": 32,
    "connection_limit": 4096,
    "max_request_body_size": 2**63 - 1,  # an enclave has no limit, and waitress's is 1 GiB
    "clear_untrusted_proxy_headers": True,
    "ident": None,
}
ASGI_SETTINGS: dict[str, Any] = {
    "interface": "asgi3",
    "lifespan": "auto",
    "log_config": None,
    "log_level": "warning",
    "access_log": False,
    "timeout_graceful_shutdown": 1,
}
_WSGI_PARAMETERS = ("environ", "start_response")
_ASGI_PARAMETERS = ("scope", "receive", "send")
_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_LOOK_AGAIN_SECONDS = 0.002


class Workload(Protocol):
    @property
    def address(self) -> Address: ...

    def settle(self, seconds: float) -> None:
        """Returns when the app works on no request any more, so that all it has logged of those
        that came before is there; at the latest after ``seconds``."""

    def close(self) -> None: ...


class _Elsewhere:
    """Somebody else's server."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def settle(self, seconds: float) -> None:
        pass  # what it logs is not seen from here

    def close(self) -> None:
        pass


class _WsgiServer:
    """waitress in a thread."""

    def __init__(self, app: App) -> None:
        waitress = require("waitress.server", "serving a WSGI app")
        self._sockets: dict[int, Any] = {}
        self._server: Any = waitress.create_server(
            app, map=self._sockets, host="127.0.0.1", port=0, **WSGI_SETTINGS
        )
        self.address: Address = ("127.0.0.1", int(self._server.effective_port))
        self._thread = threading.Thread(target=self._server.run, name="enclavia-wsgi", daemon=True)
        self._thread.start()

    def _close_sockets(self) -> None:
        for dispatcher in list(self._sockets.values()):
            dispatcher.close()

    def settle(self, seconds: float) -> None:
        dispatcher = self._server.task_dispatcher
        _wait_until(lambda: not (dispatcher.queue or dispatcher.active_count), seconds)

    def close(self) -> None:
        if self._thread.is_alive():
            # In the server's own thread: its loop ends when no socket is left.
            self._server.trigger.pull_trigger(self._close_sockets)
            self._thread.join(_STOP_SECONDS)
        dispatcher = self._server.task_dispatcher
        dispatcher.logger.addFilter(_is_no_notice_of_stopping)
        try:
            dispatcher.shutdown(cancel_pending=True, timeout=_STOP_SECONDS)
        finally:
            dispatcher.logger.removeFilter(_is_no_notice_of_stopping)


def _is_no_notice_of_stopping(record: logging.LogRecord) -> bool:
    """False for the two lines that waitress logs while it stops. Where logging is not set up they
    go to stderr without saying which program's threads they mean; ``stop`` says what it does."""
    return not str(record.msg).startswith(("%d thread(s) still running", "Canceling %d pending"))


def _wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_SECONDS)


def _listen() -> socket.socket:
    """A listening socket on loopback whose connections send small writes at once.

    asyncio sets TCP_NODELAY only on sockets whose protocol number is IPPROTO_TCP, and the sockets
    of ``socket.create_server`` have 0. Without the option, Nagle's algorithm holds the second part
    of an answer on a kept connection back until the client's delayed acknowledgement, about 40 ms.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener


class _AsgiServer:
    """uvicorn in a thread with an event loop of its own; the app's lifespan is run."""

    def __init__(self, app: App) -> None:
        uvicorn = require("uvicorn", "serving an ASGI app")
        self._socket = _listen()
        self.address: Address = self._socket.getsockname()[:2]
        self._server: Any = uvicorn.Server(uvicorn.Config(app, **ASGI_SETTINGS))
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="enclavia-asgi", daemon=True)
        self._thread.start()
        self._wait_started()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as error:
            self._failure = error
        finally:
            self._socket.close()
            self._ended.set()

    def _wait_started(self) -> None:
        waited = 0.0
        while not self._server.started and not self._ended.wait(0.01):
            waited += 0.01
            if waited > _START_SECONDS:
                self._server.should_exit = True
                raise TimeoutError(f"the ASGI app did not start within {_START_SECONDS:g} s")
        if not self._server.started:
            raise RuntimeError(
                "the ASGI app did not start: its lifespan failed (its log says why)"
            ) from self._failure

    def settle(self, seconds: float) -> None:
        """An app may fail after its answer was sent (Starlette's do), and be logged after that."""
        _wait_until(lambda: not self._server.server_state.tasks, seconds)

    def close(self) -> None:
        log = logging.getLogger("uvicorn.error")
        log.addFilter(self._is_news)
        try:
            self._server.should_exit = True
            self._thread.join(_STOP_SECONDS)
            if self._thread.is_alive():
                self._server.force_exit = True
                self._thread.join(_STOP_SECONDS)
        finally:
            log.removeFilter(self._is_news)

    def _is_news(self, record: logging.LogRecord) -> bool:
        """Not that stopping cancels what the app still does for clients that no longer wait:
        uvicorn shows each with its traceback, as if the app had failed."""
        failed = record.exc_info is not None and record.exc_info[0] is asyncio.CancelledError
        cancels = str(record.msg).startswith("Cancel %s running task(s)")
        return record.thread != self._thread.ident or not (failed or cancels)


def _unwrap(app: object) -> object:
    while isinstance(app, functools.partial):
        app = app.func
    return app


def _is_asgi(app: App) -> bool:
    bare = _unwrap(app)
    if inspect.iscoroutinefunction(bare):
        return True
    return not inspect.isclass(bare) and inspect.iscoroutinefunction(
        getattr(bare, "__call__", None)  # noqa: B004 - the method itself is looked at
    )


def named_address(text: str) -> tuple[str, int] | None:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal():
        return None
    bare = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if "/" in bare:
        raise ValueError(
            f"app: expected 'host:port' without a scheme or a path, got {value_shown(text)}"
        )
    # More digits than these are no port, and Python refuses to read thousands of them.
    return address("app", bare, int(port[:9]))


def _resolve(host: str, port: int) -> Address:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0]), port


def _load(path: str) -> App:
    module, colon, attribute = path.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(
            f"workload {path!r}: expected 'host:port', 'module:attribute', a WSGI or an ASGI app"
        )
    if "/" in module or module.startswith("."):  # a file, and no name that can be imported
        raise ValueError(
            f"workload {path!r}: expected 'module:attribute' with a module as it is imported "
            f"(package.module), got {value_shown(module)}"
        )
    loaded: Any = importlib.import_module(module)
    for name in attribute.split("."):
        loaded = getattr(loaded, name)
    if not callable(loaded):
        raise TypeError(f"workload {path!r}: expected an app, got {type(loaded).__name__}")
    return cast("App", loaded)


def open_workload(app: App | str | Address, interface: Interface) -> Workload:
    """Serves ``app``, or finds the address it names."""
    if isinstance(app, tuple):
        return _Elsewhere(_resolve(*app))
    if isinstance(app, str):
        elsewhere = named_address(app)
        if elsewhere is not None:
            return _Elsewhere(_resolve(*elsewhere))
        app = _load(app)
    if not callable(app):
        raise TypeError(f"expected a WSGI or an ASGI app, got {type(app).__name__}")
    asgi = interface == "asgi" or (interface == "auto" and _is_asgi(app))
    _expect_parameters(app, _ASGI_PARAMETERS if asgi else _WSGI_PARAMETERS)
    return _AsgiServer(app) if asgi else _WsgiServer(app)


def _expect_parameters(app: App, names: tuple[str, ...]) -> None:
    """Refuses what cannot be called as such an app is: each request would be answered with 500."""
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):  # of a callable of C that says nothing about itself
        return
    try:
        signature.bind(*names)
    except TypeError as error:
        raise TypeError(
            f"app: expected one that is called with ({', '.join(names)}), got "
            f"{value_shown(app)}: {error}; of a function or a class that makes the app, give the "
            "app it makes"
        ) from None
