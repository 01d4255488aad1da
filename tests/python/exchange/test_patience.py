"""How long connecting goes on while it fails, and when it is not to be done again."""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from listening import end_listening
from raw_server import Peer, RawServer
from support import (
    Connection,
    Face,
    answering,
    byte_enclave,
    drive,
    eventually,
    keywords,
    ok,
    with_client,
)

import enclavia
from enclavia.testing import Fault, LocalEnclave

kinds = pytest.mark.parametrize("kind", ["sync", "asyncio"])


class Failures(logging.Handler):
    """Counts the attempts that failed, and does something after the n-th."""

    def __init__(self, then: Callable[[], object], after: int) -> None:
        super().__init__()
        self.levels: list[int] = []
        self._then = then
        self._after = after

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("cannot connect"):
            self.levels.append(record.levelno)
            if len(self.levels) == self._after:
                self._then()


@contextlib.contextmanager
def failures(then: Callable[[], object] = lambda: None, after: int = 0) -> Iterator[Failures]:
    logger = logging.getLogger("enclavia")
    level, handler = logger.level, Failures(then, after)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """Nobody listens there, and nobody else gets it meanwhile."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def face(kind: str, url: str, **options: Any) -> Face:
    return Face((enclavia.Client if kind == "sync" else enclavia.AsyncClient)(url, **options))


# Nobody listens until the fourth attempt has failed.
@kinds
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"retries": 0},  # those of requests
        {"patience": 60, "timeout": httpx2.Timeout(60, connect=0.2)},
    ],
    ids=["default", "no-retries", "longer-than-connect"],
)
def test_the_first_connect_waits_for_the_server(kind: str, options: dict[str, Any]) -> None:
    with byte_enclave(answering(ok(b"here"))) as (enclave, _), taken_port() as port:
        # What listens there later is in front of the enclave, and passes on.
        gate = Gate(port, enclave.port)

        async def run() -> None:
            client = face(kind, f"ws://127.0.0.1:{port}", **keywords(enclave, **options))
            try:
                assert (await client.get("/")).text == "here"
            finally:
                await client.close()

        with failures(gate.open, after=4) as seen, gate:
            drive(kind, run)
        assert seen.levels[:4] == [logging.WARNING] + [logging.INFO] * 3


class Gate:
    """Passes connections on to another port, once it is open; the first ones nowhere."""

    def __init__(self, port: int, to: int, silent: int = 0) -> None:
        self._port, self._to, self._silent = port, to, silent
        self._kept: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        listener.listen(16)
        self._listener = listener
        self._thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
        self._thread.start()

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                if len(self._kept) < self._silent:
                    self._kept.append(near)
                    continue
                far = socket.create_connection(("127.0.0.1", self._to))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None and self._thread is not None:
            end_listening(self._listener, self._thread)


@kinds
def test_the_connect_timeout_says_what_failed(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _), taken_port() as port:
        options = keywords(enclave, timeout=httpx2.Timeout(30, connect=0.3))

        async def run() -> None:
            client = face(kind, f"ws://127.0.0.1:{port}", **options)
            with pytest.raises(enclavia.ConnectTimeout, match="no connection to") as caught:
                await client.get("/")
            assert isinstance(caught.value.__cause__, enclavia.ConnectError)
            await client.close()

        drive(kind, run)


@kinds
@pytest.mark.parametrize(("patience", "most"), [(0, 1), (0.12, 4)])
def test_patience_ends_with_the_error_itself(kind: str, patience: float, most: int) -> None:
    with byte_enclave(answering(ok())) as (enclave, _), taken_port() as port:

        async def run() -> None:
            client = face(
                kind, f"ws://127.0.0.1:{port}", **keywords(enclave, patience=patience, timeout=60)
            )
            with pytest.raises(enclavia.ConnectError, match="no connection to") as caught:
                await client.get("/")
            assert caught.value.retryable
            await client.close()

        with failures() as seen:
            drive(kind, run)
        assert 1 <= len(seen.levels) <= most


@kinds
def test_a_full_enclave_has_room_later(kind: str) -> None:
    """It closes a connection that it has no room for before the handshake begins."""
    with byte_enclave(answering(ok(b"in")), max_connections=1) as (enclave, _):

        async def run() -> None:
            first = enclavia.Client.connect(enclave.url, **keywords(enclave))
            second = face(kind, enclave.url, **keywords(enclave))
            with failures(first.close, after=4) as seen:
                assert (await second.get("/")).text == "in"
            assert len(seen.levels) >= 4
            await second.close()

        drive(kind, run)


@kinds
@pytest.mark.parametrize("patience", [None, 0, 0.2])
def test_a_full_enclave_is_named_as_such(kind: str, patience: float | None) -> None:
    """With what to do about it, whoever's patience ends."""
    with (
        byte_enclave(answering(ok()), max_connections=1) as (enclave, _),
        enclavia.Client.connect(enclave.url, **keywords(enclave)),
    ):

        async def run() -> None:
            options = keywords(enclave, patience=patience, timeout=httpx2.Timeout(30, connect=0.4))
            client = face(kind, enclave.url, **options)
            with pytest.raises((enclavia.ConnectTimeout, enclavia.ConnectionClosed)) as caught:
                await client.get("/")
            assert isinstance(caught.value, enclavia.ConnectTimeout) is (patience is None)
            assert caught.value.retryable
            for advice in ("connection limit", "share one client", "fewer processes", "patience"):
                assert advice in str(caught.value)
            await client.close()

        drive(kind, run)


def test_who_waited_for_a_full_enclave_is_served_in_order() -> None:
    """Also before one that comes when there is room again."""
    served: list[bytes] = []

    def script(connection: Connection) -> None:
        while True:
            served.append(connection.request()[0].split(b" ")[1])
            connection.send(ok())

    with byte_enclave(script, max_connections=1) as (enclave, _):
        first = enclavia.Client.connect(enclave.url, **keywords(enclave))
        options = keywords(enclave, timeout=60, max_in_flight=1, max_channels=1)
        client = enclavia.Client(enclave.url, **options)
        threads = []
        with failures() as seen:
            for number in range(6):
                thread = threading.Thread(target=client.get, args=(f"/{number}",))
                threads.append(thread)
                thread.start()
                eventually(lambda number=number: client.stats.waiting == number + 1)  # type: ignore[misc]
            eventually(lambda: len(seen.levels) >= 3)
            first.close()
            client.get("/late")
            for thread in threads:
                thread.join()
        client.close()
    assert served == [b"/%d" % number for number in range(6)] + [b"/late"]


@kinds
@pytest.mark.parametrize(
    ("status", "attempts"),
    [(403, 1), (404, 1), (301, 1), (503, 3), (429, 3), (408, 3)],
)
def test_a_refused_upgrade_is_repeated_where_that_may_help(
    kind: str, status: int, attempts: int
) -> None:
    asked: list[int] = []

    def script(peer: Peer) -> None:
        peer.read_head()
        asked.append(1)
        # The third refusal is final, so that this ends.
        code = status if len(asked) < 3 else 403
        peer.send(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % code)

    with byte_enclave(answering(ok())) as (enclave, _), RawServer(script) as server:

        async def run() -> None:
            client = face(kind, server.url, **keywords(enclave))
            with pytest.raises(enclavia.UpgradeRejected):
                await client.get("/")
            await client.close()

        drive(kind, run)
    assert len(asked) == attempts


@kinds
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.WRONG_PCRS, enclavia.PcrMismatch),
        (Fault.WRONG_NONCE, enclavia.NonceMismatch),
        (Fault.BAD_SIGNATURE, enclavia.SignatureError),
        (Fault.ZERO_KEY, enclavia.ProtocolError),
    ],
)
def test_what_is_final_ends_at_once(kind: str, fault: Fault, error: type[Exception]) -> None:
    with byte_enclave(answering(ok()), faults=fault) as (enclave, _):

        async def case(client: Face) -> None:
            with pytest.raises(error):
                await client.get("/")

        with_client(kind, enclave, case, patience=60, timeout=60)
        assert enclave.stats()["connections_total"] == 1


@kinds
def test_a_name_that_does_not_exist_is_final(kind: str, enclave: LocalEnclave) -> None:
    try:
        socket.getaddrinfo("no-such-host.invalid", 443)
    except socket.gaierror as error:
        if error.errno != socket.EAI_NONAME:
            pytest.skip(f"the resolver of this machine does not know either: {error}")

    async def run() -> None:
        client = face(
            kind, "wss://no-such-host.invalid", **keywords(enclave, patience=600, timeout=600)
        )
        with pytest.raises(enclavia.ConnectError, match="no address") as caught:
            await client.get("/")
        assert not caught.value.retryable
        await client.close()

    with failures() as seen:
        drive(kind, run)
    assert len(seen.levels) == 1


@kinds
def test_an_attempt_without_an_answer_is_given_up_for_another(kind: str) -> None:
    """The first two are never answered; a third one, where patience lasts longer, is."""
    with byte_enclave(answering(ok(b"third"))) as (enclave, _), taken_port() as port:
        gate = Gate(port, enclave.port, silent=2)

        async def run() -> None:
            options = keywords(enclave, patience=60, timeout=httpx2.Timeout(60, connect=0.4))
            client = face(kind, f"ws://127.0.0.1:{port}", **options)
            assert (await client.get("/")).text == "third"
            await client.close()

        with failures() as seen, gate:
            gate.open()
            drive(kind, run)
        assert len(seen.levels) >= 2


@kinds
def test_a_closed_client_stops_waiting(kind: str) -> None:
    """A request that pauses before its next attempt hears of it."""
    with byte_enclave(answering(ok())) as (enclave, _), taken_port() as port:

        async def run() -> None:
            client = face(kind, f"ws://127.0.0.1:{port}", **keywords(enclave, timeout=60))
            transport = client.client._enclave

            def close() -> None:
                threading.Thread(target=transport._current.close).start()

            with failures(close, after=4), pytest.raises(enclavia.StateError, match="closed"):
                await client.get("/")

        drive(kind, run)


# ---------------------------------------------------------------------------------------------
# auto_reconnect=False


@kinds
def test_no_second_connection(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            await client.get("/")
            enclave.drop_connections()
            eventually(lambda: client.client.stats.channels == 0)
            for _ in range(3):
                with pytest.raises(enclavia.ReconnectDisabled) as caught:
                    await client.get("/")
                assert isinstance(caught.value, enclavia.ConnectionClosed)
                assert not caught.value.retryable
            assert client.client.stats.connects == 1

        with_client(kind, enclave, case, auto_reconnect=False)
        assert enclave.stats()["connections_total"] == 1


@kinds
def test_who_was_in_flight_hears_of_the_loss(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        enclave.drop_connections()

    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.ConnectionClosed) as caught:
                await client.get("/")
            assert not isinstance(caught.value, enclavia.ReconnectDisabled)
            assert caught.value.retryable

        with_client(kind, enclave, case, auto_reconnect=False)
        assert len(server.connections) == 1


def test_settings_travel_with_a_pickle(enclave: LocalEnclave) -> None:
    with enclavia.Client(
        enclave.url, **keywords(enclave, auto_reconnect=False, patience=7.5)
    ) as client:
        again = pickle.loads(pickle.dumps(client))
    limits = again._enclave._settings.limits
    assert (limits.reconnect, limits.patience) == (False, 7.5)


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    with byte_enclave(answering(ok())) as (enclave, _):
        yield enclave


def test_adapters_take_them(enclave: LocalEnclave) -> None:
    requests = pytest.importorskip("enclavia.requests")
    httpx = pytest.importorskip("enclavia.httpx")
    options = keywords(enclave, auto_reconnect=False, patience=3)
    for make in (requests.EnclaveAdapter, httpx.EnclaveTransport, httpx.AsyncEnclaveTransport):
        limits = make(enclave.url, **options)._enclave._settings.limits
        assert (limits.reconnect, limits.patience) == (False, 3)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"patience": -1}, ValueError),
        ({"patience": math.nan}, ValueError),
        ({"patience": math.inf}, ValueError),
        ({"patience": 10**400}, ValueError),
        ({"patience": True}, TypeError),
        ({"patience": "5"}, TypeError),
        ({"auto_reconnect": None}, TypeError),
        ({"auto_reconnect": 0}, TypeError),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        enclavia.Client,
        enclavia.AsyncClient,
        enclavia.EnclaveTransport,
        enclavia.AsyncEnclaveTransport,
    ],
)
def test_unusable_settings(
    make: Any, options: dict[str, Any], error: type[Exception], enclave: LocalEnclave
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        make(enclave.url, **keywords(enclave, **options))
