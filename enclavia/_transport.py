"""The blocking httpx2 transport, and what it shares with the awaiting one."""

from __future__ import annotations

import datetime
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypedDict, cast

import httpx2

from . import _core
from ._arguments import flag, seconds, timeout_members, whole
from ._arguments import timeout as checked_timeout
from ._attestation import Attestation
from ._blocking import thread_hub
from ._config import KEEPALIVE, ChannelConfig, UpgradeHeaders, Verify
from ._errors import ReadTimeout
from ._flow import Engine, Exchange, Stats, Timeouts, positive, run
from ._pins import CLOCK_LEEWAY, Pins, RootCertificate
from ._pool import PoolLimits
from ._retry import Retries, RetryPolicy, checked_retries

if TYPE_CHECKING:
    from httpx2._types import TimeoutTypes

    from ._flow import Body, Io

__all__ = [
    "DEFAULT_TIMEOUT",
    "EnclaveTransport",
    "Response",
    "Settings",
    "TransportBase",
    "TransportOptions",
    "expected_body",
    "response_of",
]

DEFAULT_TIMEOUT = httpx2.Timeout(30.0)


class TransportOptions(TypedDict, total=False):
    """The keywords of :class:`EnclaveTransport`, for those who pass them on."""

    pcrs: Pins
    root: RootCertificate
    debug_mode: bool
    clock_leeway: float
    upgrade_headers: UpgradeHeaders
    verify: Verify
    proxy: str | httpx2.URL | None
    timeout: httpx2.Timeout | float | None
    retries: Retries
    patience: float | None
    auto_reconnect: bool
    max_channels: int
    max_in_flight: int
    keepalive: float | None
    limits: httpx2.Limits | None


class Settings(NamedTuple):
    """All that a transport is made from; what pickling keeps of it."""

    config: ChannelConfig
    limits: PoolLimits
    retries: Retries
    timeouts: Timeouts

    @classmethod
    def build(
        cls,
        url: str | httpx2.URL,
        *,
        pcrs: Pins = None,
        root: RootCertificate = None,
        debug_mode: bool = False,
        clock_leeway: float = CLOCK_LEEWAY,
        upgrade_headers: UpgradeHeaders = None,
        verify: Verify = True,
        proxy: str | httpx2.URL | None = None,
        timeout: TimeoutTypes = DEFAULT_TIMEOUT,
        retries: Retries = 2,
        patience: float | None = None,
        auto_reconnect: bool = True,
        max_channels: int = 2,
        max_in_flight: int = 64,
        keepalive: float | None = KEEPALIVE,
        limits: httpx2.Limits | None = None,
    ) -> Settings:
        config = ChannelConfig.build(
            url,
            pcrs=pcrs,
            root=root,
            debug_mode=debug_mode,
            clock_leeway=clock_leeway,
            upgrade_headers=upgrade_headers,
            verify=verify,
            proxy=proxy,
            max_in_flight=max_in_flight,
            keepalive=keepalive,
        )
        pool = PoolLimits(
            max_channels=whole("max_channels", max_channels, 1),
            max_in_flight=config.max_in_flight,
            patience=(
                None if patience is None else seconds("patience", patience, otherwise="None")
            ),
            reconnect=flag("auto_reconnect", auto_reconnect),
        )
        return cls(
            config=config,
            limits=_limited(pool, limits),
            retries=checked_retries(retries),
            timeouts=Timeouts(*map(positive, timeout_members("timeout", timeout))),
        )


_LIMITS = ("max_connections", "max_keepalive_connections", "keepalive_expiry")


def _limited(pool: PoolLimits, limits: object) -> PoolLimits:
    """An object of the first httpx has the same members and will do."""
    if limits is None:
        return pool
    if isinstance(limits, type) or not all(hasattr(limits, name) for name in _LIMITS):
        raise TypeError(f"limits: expected httpx2.Limits or None, got {type(limits).__name__}")
    connections, idle, expiry = (getattr(limits, name) for name in _LIMITS)
    return pool._replace(
        max_connections=(
            None if connections is None else whole("limits (max_connections)", connections, 1)
        ),
        max_idle=None if idle is None else whole("limits (max_keepalive_connections)", idle, 0),
        keepalive_expiry=checked_timeout("limits (keepalive_expiry)", expiry),
    )


def expected_body(request: object, kind: str) -> str:
    """Says that the request's body is not of this kind, which also a request of httpx's has not."""
    if type(request).__module__.partition(".")[0] == "httpx":
        return (
            "expected a request of httpx2, got one of httpx: the transports for clients of httpx "
            "are in enclavia.httpx"
        )
    if kind == "sync":
        return "expected a request with a sync body, got an async one: AsyncClient sends those"
    return "expected a request with an async body, got a sync one: Client sends those"


# Held while a forked child makes an engine of its own. The child begins with a new one, because a
# thread of its parent may have held the old one at that moment. Reentrant, because a destructor or
# the handler of a signal may use the client meanwhile.
_fork_lock = threading.RLock()


def _renew_fork_lock() -> None:
    global _fork_lock
    _fork_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_fork_lock)


class TransportBase:
    """Keeps one engine per process: a forked child starts with nothing of its parent's."""

    def __init__(
        self, settings: Settings, make_io: Callable[[], Io[Any]], mountable: bool = True
    ) -> None:
        """``mountable``: it may be one of several transports of a client that is not ours."""
        self._settings = settings
        self._make_io = make_io
        self._mountable = mountable
        self._inherited: list[Engine] = []
        self._current = self._new_engine()
        # Answers are alike. Here, so that nothing of them outlives the client.
        self._fields_of = functools.lru_cache(maxsize=16)(_fields_of)

    def _new_engine(self) -> Engine:
        settings = self._settings
        return Engine(
            settings.config,
            settings.limits,
            RetryPolicy(settings.retries),
            settings.timeouts,
            self._make_io(),
        )

    @property
    def _engine(self) -> Engine:
        engine = self._current
        return engine if engine.pid == os.getpid() else self._after_fork()

    def _after_fork(self) -> Engine:
        with _fork_lock:
            engine = self._current
            if engine.pid == os.getpid():  # another thread was here first
                return engine
            # The parent's engine is kept, not dropped: nothing of it may be closed from here. Its
            # locks may be held by threads that do not exist in this process.
            self._inherited.append(engine)
            own = self._new_engine()
            if engine.pool.closed:
                own.close()
            if self._current is engine:
                self._current = own
            return self._current

    @property
    def base_url(self) -> httpx2.URL:
        """What relative URLs of requests are relative to."""
        return self._settings.config.url.base_url

    @property
    def attestation(self) -> Attestation:
        """What was verified when the newest channel was opened."""
        return self._engine.attestation()

    @property
    def stats(self) -> Stats:
        return self._engine.stats()

    def _response(
        self,
        request: httpx2.Request,
        exchange: Exchange,
        stream: httpx2.SyncByteStream | httpx2.AsyncByteStream,
        network_stream: Callable[[Exchange], object],
    ) -> Response:
        response = response_of(exchange, stream, network_stream, self._fields_of)
        if self._mountable and "location" in response.headers:
            from ._authority import keep_inside

            keep_inside(self._settings.config.url, response.headers, request.url, httpx2.InvalidURL)
        return response

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self._settings, "mountable": self._mountable}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.config.url}>"


class Response(httpx2.Response):
    """An :class:`httpx2.Response` that takes a body which is there already in one piece: an answer
    of a few bytes has half a dozen generators to go through otherwise."""

    _exchange: Exchange | None = None
    sets_cookies = True
    is_encoded = True

    def read(self) -> bytes:
        body = self._here()
        if body is None:
            return super().read()
        self._content = body
        self.is_closed = True
        self.stream.close()  # type: ignore[union-attr]
        return body

    async def aread(self) -> bytes:
        body = self._here()
        if body is None:
            return await super().aread()
        self._content = body
        self.is_closed = True
        await self.stream.aclose()  # type: ignore[union-attr]
        return body

    def _here(self) -> bytes | None:
        """The whole body, where nothing of it was taken, is missing, or has to be decoded."""
        if self.is_stream_consumed or self.is_closed or hasattr(self, "_content"):
            return None
        exchange = self._exchange
        if exchange is None or not exchange.settled or self.is_encoded:
            return None
        body = b"".join(exchange.pieces())
        self.is_stream_consumed = True
        self._num_bytes_downloaded = len(body)
        return body

    @property
    def has_redirect_location(self) -> bool:
        return self.status_code >= 300 and super().has_redirect_location

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_exchange", None)
        return state


def response_of(
    exchange: Exchange,
    stream: httpx2.SyncByteStream | httpx2.AsyncByteStream,
    network_stream: Callable[[Exchange], object],
    fields_of: Callable[[RawHeaders], Fields],
) -> Response:
    head = exchange.head
    extensions: dict[str, Any] = {
        "http_version": head.version,
        "reason_phrase": head.reason,
        "trailers": exchange.trailers,
    }
    if exchange.upgraded:
        extensions["network_stream"] = network_stream(exchange)
    fields = fields_of(head.headers)
    response = Response(head.status, headers=fields.headers, stream=stream, extensions=extensions)
    response.sets_cookies = fields.sets_cookies
    response.is_encoded = fields.is_encoded
    response._exchange = exchange
    return response


RawHeaders = tuple[tuple[bytes, bytes], ...]


class Fields(NamedTuple):
    headers: httpx2.Headers
    """Never given away: a response copies them."""
    sets_cookies: bool
    is_encoded: bool


def _fields_of(headers: RawHeaders) -> Fields:
    names = {name.lower() for name, _ in headers}
    return Fields(
        headers=httpx2.Headers(headers),
        sets_cookies=b"set-cookie" in names or b"set-cookie2" in names,
        is_encoded=b"content-encoding" in names,
    )


class EnclaveTransport(httpx2.BaseTransport, TransportBase):
    """Carries the requests of an httpx2 client to one enclave, and to nothing else.

    Connects and verifies when it is first used or entered with ``with``; again, and wholly, when
    the connection was lost. Usable from any number of threads.
    """

    def __init__(
        self,
        url: str | httpx2.URL,
        *,
        pcrs: Pins = None,
        root: RootCertificate = None,
        debug_mode: bool = False,
        clock_leeway: float = CLOCK_LEEWAY,
        upgrade_headers: UpgradeHeaders = None,
        verify: Verify = True,
        proxy: str | httpx2.URL | None = None,
        timeout: httpx2.Timeout | float | None = DEFAULT_TIMEOUT,
        retries: Retries = 2,
        patience: float | None = None,
        auto_reconnect: bool = True,
        max_channels: int = 2,
        max_in_flight: int = 64,
        keepalive: float | None = KEEPALIVE,
        limits: httpx2.Limits | None = None,
    ) -> None:
        settings = Settings.build(
            url,
            pcrs=pcrs,
            root=root,
            debug_mode=debug_mode,
            clock_leeway=clock_leeway,
            upgrade_headers=upgrade_headers,
            verify=verify,
            proxy=proxy,
            timeout=timeout,
            retries=retries,
            patience=patience,
            auto_reconnect=auto_reconnect,
            max_channels=max_channels,
            max_in_flight=max_in_flight,
            keepalive=keepalive,
            limits=limits,
        )
        settings.config.warn_debug(stacklevel=2)
        TransportBase.__init__(self, settings, ThreadIo)

    @classmethod
    def _of(cls, settings: Settings) -> Self:
        """For a client or an adapter of ours, which sees to redirects itself."""
        transport = cls.__new__(cls)
        TransportBase.__init__(transport, settings, ThreadIo, mountable=False)
        return transport

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["settings"].config.warn_debug(stacklevel=2)
        TransportBase.__init__(self, state["settings"], ThreadIo, state["mountable"])

    def connect(self, timeout: float | None = None) -> None:
        """Connects and verifies now, where that has not been done."""
        engine = self._engine
        timeouts = engine.timeouts
        if timeout is not None:
            timeouts = timeouts._replace(connect=positive(checked_timeout("timeout", timeout)))
        run(engine.open(timeouts))

    def handle_request(self, request: httpx2.Request) -> Response:
        exchange = run(self._engine.handle(request))
        return self._response(request, exchange, ResponseBody(exchange), _network_stream)

    def close(self) -> None:
        engine = self._engine
        try:
            for tunnel in engine.close():
                tunnel.close(1.0)
        except BaseException:  # Ctrl-C: without saying goodbye, but none stays open
            for tunnel in engine.close():
                tunnel.close()
            raise

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self


def _network_stream(exchange: Exchange) -> object:
    from ._upgraded import NetworkStream

    return NetworkStream(exchange)


class Timed:
    """Takes the time until a body is closed, where nothing of httpx2's does."""

    begun: float | None = None
    elapsed: datetime.timedelta | None = None

    def _ended(self) -> None:
        if self.begun is not None and self.elapsed is None:
            self.elapsed = datetime.timedelta(seconds=time.perf_counter() - self.begun)


class ResponseBody(Timed, httpx2.SyncByteStream):
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        # An answer that is here already needs no stepping through.
        return iter(self._exchange.pieces()) if self._exchange.settled else self._stepwise()

    def _stepwise(self) -> Iterator[bytes]:
        if self._exchange.upgraded:
            return
        while (data := run(self._exchange.next_data())) is not None:
            yield data

    def close(self) -> None:
        self._ended()
        if not self._exchange.settled:
            run(self._exchange.abandon())


class ThreadIo:
    """Waiting, as a thread does it: by blocking."""

    def waiter(self) -> threading.Event:
        return threading.Event()

    async def wait(self, waiter: threading.Event, timeout: float | None) -> bool:
        return waiter.wait(timeout)

    async def wait_open(self, channel: _core.Channel, timeout: float | None) -> bool:
        return thread_hub().wait(channel.notify_open, timeout)

    async def reserve(self, channel: _core.Channel, timeout: float | None) -> _core.Slot:
        slot = channel.reserve(None, 0)
        if not slot.granted:
            try:
                slot.wait(timeout)
            except BaseException:
                slot.release()
                raise
        return slot

    async def read(self, stream: _core.Stream, n: int, timeout: float | None) -> bytes:
        try:
            return cast(bytes, stream.read(n, timeout))
        except ReadTimeout:
            raise ReadTimeout(
                f"expected bytes from the workload within {timeout} s, got none"
            ) from None

    async def wait_stream(self, stream: _core.Stream, what: int, timeout: float | None) -> bool:
        return thread_hub().wait(
            lambda notifier, token: stream.notify(what, notifier, token), timeout
        )

    def body(self, request: httpx2.Request) -> Body:
        if not isinstance(request.stream, httpx2.SyncByteStream):
            raise TypeError(expected_body(request, "sync"))
        return _IteratedBody(request.stream)


class _IteratedBody:
    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream
        self._iterator: Iterator[bytes] | None = None

    async def next(self, timeout: float | None) -> bytes | None:
        if self._iterator is None:
            self._iterator = iter(self._stream)
        while True:
            try:
                chunk = next(self._iterator)
            except StopIteration:
                return None
            if chunk:
                return chunk

    async def close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
