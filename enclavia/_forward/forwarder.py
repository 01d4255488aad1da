"""``Forwarder`` and ``AsyncForwarder``: the forwarder's thread, and what is asked of it.

Decides when the thread begins and ends. Calls: _arguments, _channel, _client, _core, _errors,
_exchange, _identity, _io, _public, _trust. Locks: ``_asking``, around handing a call to the event
loop, which takes none once it ends; the path's file lock.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack

import httpx2

from .. import _core
from .._arguments import seconds
from .._channel.options import inserted, takes
from .._channel.socket_path import HTTP
from .._client.options import TRANSPORT_DEFAULTS
from .._errors import ConnectError, StateError
from .._exchange.engine import Stats
from .._identity.attestation import Attestation
from .._io.connecting import Connecting
from .._public import public
from . import uvicorn_inside
from .libraries import METRICS, load
from .loop import new_loop
from .options import ForwarderOptions, ForwarderSettings, forwarder_settings
from .sockets import PathLock

if TYPE_CHECKING:
    from .._trust.receipts import Receipt
    from .._trust.sources import PinsOrSource
    from .server import Listeners, Server

__all__ = ["AsyncForwarder", "Forwarder"]

T = TypeVar("T")

_DRAIN: Final = 30.0
FORWARDER_DEFAULTS: Final[dict[str, Any]] = {
    **inserted(
        {
            name: value
            for name, value in TRANSPORT_DEFAULTS.items()
            if name not in ("via", "shared_expiry")  # its channels are nobody else's
        },
        "pcrs",
        {"socket": None, "http": False, "listen": None, "way": "http", "token": None},
    )
}


class _Running:
    """The thread of one started forwarder."""

    def __init__(self, settings: ForwarderSettings) -> None:
        from .server import Listeners

        _expect_libraries()
        self.pid = os.getpid()
        self._lock = PathLock(settings.path)
        try:
            self.listeners: Listeners = Listeners(settings)
        except BaseException:
            self._lock.close()
            raise
        self.address: tuple[str, int] | None = None
        if self.listeners.tcp is not None:
            self.address = self.listeners.tcp.getsockname()[:2]
        self.loop: asyncio.AbstractEventLoop
        self.server: Server
        self._stop: asyncio.Event
        self._asking = threading.RLock()  # the handler of a signal may come by in between
        self._over = False
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run, args=(settings,), name="enclavia-forwarder", daemon=True
        )
        # Thread.start() does not tell whether there is a thread where a signal's handler raises
        # in it. Until this is set, the thread does nothing that would have to be ended.
        self._wanted = threading.Event()
        self._given_up = False
        _running.add(self)
        self._begin()

    def _begin(self) -> None:
        """Returns once the forwarder serves. Where it cannot, or a signal's handler raises, nothing
        is left of it."""
        try:
            self._thread.start()
            self._wanted.set()
            self._started.result()
        except BaseException as error:
            if self._wanted.is_set():
                self._wanted.set()  # again: its own notification may be what was interrupted
                if self._started.exception() is None:  # the handler's, and the thread would go on
                    self.stop(0.0)
                self._thread.join()
                # Its event loop needs descriptors and memory.
                lacking: type[Exception] = OSError
            else:
                self._given_up = True
                self._close()
                self._wanted.set()
                # Python's error where the process can have no more threads.
                lacking = RuntimeError
            if isinstance(error, lacking):
                raise _cannot_start(error) from error
            raise

    def _run(self, settings: ForwarderSettings) -> None:
        self._wanted.wait()
        if self._given_up:
            return
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(self._serve(settings))
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            else:
                raise
        finally:
            self._close()

    def _close(self) -> None:
        self.listeners.close()
        self._lock.close()

    async def _serve(self, settings: ForwarderSettings) -> None:
        from .server import Server

        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.server = Server(settings, self.listeners)
        try:
            await self.server.start()
            self._started.set_result(None)
            await self._stop.wait()
            await self.server.drain()
        finally:
            try:
                await self.server.close()
            finally:
                with self._asking:
                    self._over = True
                # What was asked for before begins, and is cancelled at the end.
                await asyncio.sleep(0)

    @property
    def alive(self) -> bool:
        return self.pid == os.getpid() and self._thread.is_alive()

    def ask(self, coroutine: Coroutine[Any, Any, T], timeout: float | None) -> T:
        """Has the forwarder's thread run it. Raises StateError where that ends meanwhile."""
        with self._asking:
            if self._over:
                coroutine.close()
                raise _ended()
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except concurrent.futures.CancelledError:
            raise _ended() from None
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return self.ask(run(), None)

    def stop(self, drain: float) -> None:
        if not self.alive:
            return
        with contextlib.suppress(RuntimeError):  # its loop has just been closed
            self.loop.call_soon_threadsafe(self._end, drain)
        self._thread.join()

    def _end(self, drain: float) -> None:
        self.server.end_within(drain)
        self._stop.set()

    def leave(self) -> None:
        """In a forked child: nothing here is its own. What it has copies of is closed, so that
        nobody connects to sockets that no thread listens at."""
        self._lock.close()


def _ended() -> StateError:
    return StateError("expected a forwarder that runs, got one that has just ended")


def _cannot_start(error: Exception) -> ConnectError:
    return ConnectError(
        f"expected to be able to start the forwarder's thread and its event loop, got: {error}",
        retryable=False,
    )


_running: weakref.WeakSet[_Running] = weakref.WeakSet()


def _leave_all() -> None:
    for running in list(_running):
        running.leave()


os.register_at_fork(after_in_child=_leave_all)


class _ForwarderBase:
    """What both have in common: settings, and the thread while it runs."""

    def __init__(self, settings: ForwarderSettings) -> None:
        self._settings = settings
        self._running: _Running | None = None
        self._ended: weakref.finalize[..., Any] | None = None

    @property
    def path(self) -> str:
        """The path of the stream socket."""
        return self._settings.path

    @property
    def via(self) -> str:
        """What a client is given: ``Client(url, via=…)``."""
        return f"unix:{self._settings.path}"

    @property
    def http_path(self) -> str | None:
        """The path of the HTTP socket; None where there is none."""
        return self._settings.path + HTTP if self._settings.http else None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of the TCP listener, while it runs; None where there is none."""
        return None if self._running is None else self._running.address

    @property
    def running(self) -> bool:
        """Whether it listens, in this process."""
        return self._running is not None and self._running.alive

    @property
    def attestation(self) -> Attestation:
        """What was verified when the newest channel was opened."""
        return self._expect_running().server.engine.attestation()

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """Of each document that its channels verified, the newest last; at most 64."""
        return self._expect_running().server.engine.receipts()

    @property
    def stats(self) -> Stats:
        """Of its channels. Requests and retries are those of the http way."""
        return self._expect_running().server.engine.stats()

    def reload(self, pcrs: PinsOrSource) -> None:
        """Other pins from now on. Channels whose enclave does not match them are closed at once,
        and what goes over them ends. Raises, and leaves the old pins, where these are unusable."""
        running = self._expect_running()
        settings = self._settings.with_pins(pcrs)
        running.call(lambda: running.server.reload(settings))
        self._settings = settings

    def _expect_running(self) -> _Running:
        running = self._running
        if running is None or not running.alive:
            raise StateError("expected a forwarder that runs, got one that was not started here")
        return running

    def _start(self) -> None:
        if self._running is not None and self._running.alive:
            raise StateError("expected a forwarder that does not run, got one that was started")
        self._running = running = _Running(self._settings)
        self._ended = weakref.finalize(self, running.stop, 0.0)

    def _stop(self, drain: float) -> None:
        drain = seconds("drain", drain)
        running = self._running
        if running is not None:
            running.stop(drain)
            self._running = None
        if self._ended is not None:
            self._ended.detach()

    def _verify(self, timeout: float | None) -> None:
        running = self._expect_running()
        running.ask(running.server.connect(timeout), None)

    def __reduce__(self) -> Any:  # noqa: ANN401
        name = type(self).__name__
        raise TypeError(
            f"{'an' if name.startswith('A') else 'a'} {name} cannot be pickled: its sockets must "
            "exist once. Give its via, which is text, to Client(url, via=…)"
        )

    def __repr__(self) -> str:
        state = "running" if self.running else "not running"
        url = self._settings.settings.config.url
        return f"<{type(self).__name__} {url} at {self._settings.path} {state}>"


def _expect_libraries() -> None:
    """Raises ImportError where one is missing without which something of a forwarder fails. uvloop
    is none of them: asyncio's loop takes its place."""
    uvicorn_inside.uvicorn()
    uvicorn_inside.module()
    load(METRICS)


def _expect_sockets() -> None:
    if _core.WEB:
        raise StateError(
            "expected a system with sockets and threads, on which a forwarder listens, got a "
            "browser (Pyodide), which has none: clients in a page have channels of their own"
        )


@public
class Forwarder(_ForwarderBase):
    """Shares verified channels to one enclave among the processes of this machine and user.

    Listens at a Unix socket (mode 0600, in a folder of mode 0700) while it runs: each connection to
    it is one raw stream to the workload. ``Client(url, via=forwarder.via)`` sends its requests over
    it. Runs in a thread of its own; nothing is forwarded before the enclave is verified.

    Takes an :class:`EnclaveTransport`'s keywords for its channels, except for ``via``, and:

    socket: the absolute path of the socket. Default: in the user's runtime directory, by the URL.
    http: also listen at the socket's path + ``.http``, as a reverse proxy.
    listen: ``"HOST:PORT"``: also listen at a TCP port, which every local user can reach.
    way: what is spoken at that port: ``"http"`` or ``"stream"``.
    token: for HTTP at that port: the secret that each request has to bring, as
        ``Proxy-Authorization: Bearer TOKEN``.
    """

    @takes(ForwarderOptions, FORWARDER_DEFAULTS)
    def __init__(self, url: str | httpx2.URL, **options: Unpack[ForwarderOptions]) -> None:
        _expect_sockets()
        settings = forwarder_settings(url, "Forwarder.__init__", options)
        settings.settings.config.warn_debug()
        super().__init__(settings)

    def start(self) -> Self:
        """Listens when it returns. Raises :class:`StateError` where another forwarder has the
        socket, :class:`ConnectError` where the place is not safe or cannot be had, ImportError
        where a library of the extra ``forward`` is missing (uvloop may be)."""
        self._start()
        return self

    def connect(self, timeout: float | None = None) -> None:
        """Connects and verifies now, where that has not been done."""
        self._verify(timeout)

    def stop(self, drain: float = _DRAIN) -> None:
        """Takes no new connection, waits ``drain`` seconds at most until those that are there have
        come to their end, and closes the rest. Called while another thread does the same, it ends
        both by the earlier of the two moments."""
        self._stop(drain)

    close = stop

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop(0.0)


@public
class AsyncForwarder(_ForwarderBase):
    """As :class:`Forwarder`, awaited. It runs in a thread of its own all the same, so a busy event
    loop does not hold up other processes."""

    @takes(ForwarderOptions, FORWARDER_DEFAULTS)
    def __init__(self, url: str | httpx2.URL, **options: Unpack[ForwarderOptions]) -> None:
        _expect_sockets()
        settings = forwarder_settings(url, "AsyncForwarder.__init__", options)
        settings.settings.config.warn_debug()
        super().__init__(settings)

    def start(self) -> Connecting[Self]:
        """To be awaited, or entered with ``async with``."""

        async def start() -> Self:
            await _in_thread(self._start)
            return self

        return Connecting(type(self).__name__, start)

    async def connect(self, timeout: float | None = None) -> None:
        """Connects and verifies now, where that has not been done."""
        await _in_thread(self._verify, timeout)

    async def stop(self, drain: float = _DRAIN) -> None:
        """See :meth:`Forwarder.stop`."""
        await _in_thread(self._stop, drain)

    async def aclose(self) -> None:
        """Stops at once."""
        await self.stop(0.0)

    async def __aenter__(self) -> Self:
        if not self.running:
            await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _in_thread(call: Callable[..., object], *arguments: object) -> None:
    from .._io.loops import run_blocking

    await run_blocking(call, *arguments)
