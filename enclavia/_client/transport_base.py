"""What both transports share: one engine per process, and how answers become responses.

Decides when an engine is another process's and a new one is made. Calls: _arguments, _channel,
_exchange, _identity, _io, _text, _trust. Locks: ``_fork_lock``, while a forked child makes its
engine.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import httpx2

from .._arguments import timeout as checked_timeout
from .._exchange.connections import Connections
from .._exchange.engine import Engine, Stats
from .._exchange.exchange import Exchange
from .._exchange.retry import RetryPolicy
from .._io.face import positive
from .._text import age_of, table_of
from .response import AsyncResponseBody, Response, ResponseBody, fields_of, response_of
from .settings import Settings

if TYPE_CHECKING:
    from .._exchange.shared import SharedConnections
    from .._identity.attestation import Attestation
    from .._io.face import Io
    from .._trust.receipts import Receipt

__all__ = ["TransportBase"]


# Held while a forked child makes an engine of its own. The child begins with a new one, because a
# thread of its parent may have held the old one at that moment. Reentrant, because a destructor or
# the handler of a signal may use the client meanwhile.
_fork_lock = threading.RLock()


def _renew_fork_lock() -> None:
    global _fork_lock
    _fork_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_fork_lock)


class TransportBase:
    """Keeps one engine per process: a forked child starts with nothing of its parent's.

    One that was made with a URL has channels of its own. A copy, which was unpickled or made by the
    module ``copy``, shares them with the other copies in its process that mean the same.
    """

    _make_io: Callable[[], Io[Any]]
    """How it waits; of the class."""
    _awaits: ClassVar[bool] = False
    """Whether that is in an event loop, so that functions of the caller's may be async."""
    _body: Callable[[Exchange], ResponseBody | AsyncResponseBody]
    """What steps through an answer; of the class."""

    def __init__(self, settings: Settings, mountable: bool = True, is_copy: bool = False) -> None:
        """``mountable``: it may be one of several transports of a client that is not ours."""
        if not self._awaits:
            settings.config.expect_blocking()
        self._settings = settings
        self._mountable = mountable
        self._is_copy = is_copy
        self._inherited: list[Engine] = []
        self._current = self._new_engine()
        # Answers of one workload tend to have the same headers, so parsed headers are cached. Per
        # transport, not per module: they must die with the client.
        self._fields_of = functools.lru_cache(maxsize=16)(fields_of)

    @classmethod
    def _of(cls, settings: Settings) -> Self:
        """For a client or an adapter of ours, which sees to redirects itself."""
        transport = cls.__new__(cls)
        TransportBase.__init__(transport, settings, mountable=False)
        return transport

    def _new_engine(self) -> Engine:
        settings, io = self._settings, self._make_io()
        make = functools.partial(Connections, settings.config, settings.limits, io)
        return Engine(
            settings.config,
            RetryPolicy(settings.retries),
            settings.timeouts,
            _shared(settings, io, make) if self._is_copy else make(),
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
            if engine.closed:
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
    def receipts(self) -> tuple[Receipt, ...]:
        """Of each verified document, the newest last; at most 64."""
        return self._engine.receipts()

    @property
    def stats(self) -> Stats:
        """Counters of all channels that this transport has had, as of now."""
        return self._engine.stats()

    async def _connect(self, timeout: float | None) -> None:
        """Connects and verifies now, where that has not been done."""
        __tracebackhide__ = True
        engine = self._engine
        timeouts = engine.timeouts
        if timeout is not None:
            timeouts = timeouts._replace(connect=positive(checked_timeout("timeout", timeout)))
        await engine.connect(timeouts)

    def _seen(self) -> list[Attestation]:
        """The first document of each identity that a channel in this process has led to."""
        connections = self._engine.known()
        raws = [] if connections is None else list(connections.verified.identities.values())
        return [self._attested(raw) for raw in raws]

    async def _fresh(self, timeout: float | None) -> list[Attestation]:
        """A fresh document of each open channel, verified. Connects where none is open."""
        engine = self._engine
        timeouts = engine.timeouts._replace(read=positive(timeout))
        use = engine.use()
        try:
            raws = await use.connections.verify_again(timeouts)
        finally:
            del use  # or an error that somebody keeps would hold it, by its traceback
        return [self._attested(raw) for raw in raws]

    def _attested(self, raw: Mapping[str, Any]) -> Attestation:
        from .._identity.attestation import Attestation  # no request needs it

        return Attestation._from_raw(raw, self._settings.config.names)

    def _response(self, request: httpx2.Request, exchange: Exchange) -> Response:
        response = response_of(exchange, self._body(exchange), self._fields_of)
        if self._mountable and "location" in response.headers:
            from .._channel.authority import keep_inside

            keep_inside(self._settings.config.url, response.headers, request.url, httpx2.InvalidURL)
        return response

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["settings"].config.warn_debug()
        TransportBase.__init__(self, state["settings"], state["mountable"], is_copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self._settings, "mountable": self._mountable}

    @property
    def shown(self) -> str:
        """What the representation of whatever has this transport says of it."""
        config = self._settings.config
        text = str(config.url)
        if config.via is not None:
            text += f" via {config.via}, trusting this machine's forwarder"
        return f"{text} (a copy: shares its channels)" if self._is_copy else text

    @property
    def state(self) -> str:
        """Whether it is connected, and what was verified how long ago, in a few words. Looks only:
        neither connects nor waits for anything."""
        engine = self._current
        if engine.closed:
            return "closed"
        connections = None if engine.pid != os.getpid() else engine.known()
        raw = None if connections is None else connections.verified.newest
        if connections is None or raw is None:
            return "not connected yet"
        channels = sum(tunnel.alive for tunnel in connections.pool.handles())
        open_ones = f"{channels} channel{'s' * (channels != 1)}" if channels else "no channel open"
        verified = age_of(time.time() - cast(int, raw["verified_at"]))
        proven = raw["form"] if raw["form"] == "nitro" else f"{raw['form']}, NOT PROVEN"
        return f"{open_ones}, verified {verified}: {proven}"

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("enclave", self.shown), ("state", self.state)]
        connections = self._engine.known()
        raw = None if connections is None else connections.verified.newest
        if raw is not None:
            rows += self._attested(raw)._rows()
        return rows

    def _repr_html_(self) -> str:
        return table_of(type(self).__name__, self._rows())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.shown}, {self.state}>"


def _shared(settings: Settings, io: Io[Any], make: Callable[[], Connections]) -> SharedConnections:
    """Of one kind of waiting: threads and event loops share none."""
    from .._exchange.shared import SharedConnections, key_of  # for few programs: settings.py

    def key() -> Hashable:
        return settings.meaning, key_of(type(io))

    return SharedConnections(key, settings.shared_expiry, io, make)
