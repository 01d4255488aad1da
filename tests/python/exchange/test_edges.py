"""Edges that ordinary use does not reach: waits that are longer than poll() can count, timeouts of
0, bodies whose pieces change, answers that come before a body, and signals in the middle of a wait.
"""

from __future__ import annotations

import array
import http.cookiejar
import io
import os
import pickle
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.to_thread
import httpx2
import pytest
from support import (
    GIVES_UP,
    HANG,
    KINDS,
    Chunks,
    Connection,
    Face,
    answering,
    byte_enclave,
    drive,
    keywords,
    ok,
    unless_ended,
    with_client,
)

import enclavia
from enclavia._exchange.tunnel import Traffic, Tunnel
from enclavia._io import loops, polling, threads
from enclavia.testing import LocalEnclave

ASYNC_KINDS = [kind for kind in KINDS if kind != "sync"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---------------------------------------------------------------------------------------------
# Waits


@pytest.mark.parametrize("timeout", [2_147_484, 3e6, threading.TIMEOUT_MAX])
def test_a_timeout_above_what_poll_counts(timeout: float) -> None:
    """poll() takes milliseconds in a C int, which is 24 days."""
    with byte_enclave(answering(ok())) as (enclave, _):
        with enclavia.Client(enclave.url, **keywords(enclave, timeout=timeout)) as client:
            assert client.post("/", content=bytes(3_000_000)).text == "ok"
        transport = enclavia.EnclaveTransport(enclave.url, **keywords(enclave))
        transport.connect(timeout)
        transport.close()


def test_a_wait_goes_on_where_poll_came_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_TURN_MS", 1)
    with (
        byte_enclave(answering(ok())) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave, timeout=HANG)) as client,
    ):
        assert client.get("/").text == "ok"


class _Interrupted:
    """A poll object that a signal's handler interrupts, after what it waits for was announced."""

    def __init__(self, poll: Any, handler: Any) -> None:
        self._inner = poll
        self._handler = handler
        self.interruptions = 0

    def poll(self, timeout: float | None) -> Any:
        if not self.interruptions:
            self.interruptions += 1
            ready = self._inner.poll(timeout)
            assert ready
            self._handler()
        return self._inner.poll(timeout)


def test_a_handler_that_waits_takes_nothing_from_the_wait_it_interrupts() -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        inner = enclavia.Client(enclave.url, **keywords(enclave, timeout=HANG))
        outer = enclavia.Client(enclave.url, **keywords(enclave, timeout=GIVES_UP))
        answers = []
        hub = threads.thread_hub()
        poll = _Interrupted(hub._poll, lambda: answers.append(inner.get("/").text))
        hub._poll = poll  # type: ignore[assignment]
        try:
            assert outer.get("/").text == "ok"
            assert (answers, poll.interruptions) == (["ok"], 1)
        finally:
            hub._poll = poll._inner
            inner.close()
            outer.close()


@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_closing_needs_none_of_the_threads_that_others_hold(kind: str) -> None:
    """They may wait for the very task that closes."""
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case() -> None:
            client = await enclavia.AsyncClient.connect(enclave.url, **keywords(enclave))
            channel = await enclavia.AsyncChannel.connect(enclave.url, **keywords(enclave))
            release, limiter = threading.Event(), anyio.to_thread.current_default_thread_limiter()
            async with anyio.create_task_group() as tasks:
                for _ in range(int(limiter.total_tokens)):
                    tasks.start_soon(anyio.to_thread.run_sync, release.wait)
                while limiter.available_tokens:
                    await anyio.sleep(0.001)
                with unless_ended(release.set):
                    await client.aclose()
                    await channel.close()
                    assert not release.is_set()
                release.set()

        drive(kind, case)


@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_a_one_shot_request_has_one_deadline(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for a slot is a part of it."""
    answer = threading.Event()

    def script(connection: Connection) -> None:
        connection.read(1)
        answer.wait(0.4)
        connection.send(b"late")

    reserve = loops.LoopIo.reserve

    async def late(*args: Any) -> Any:
        slot = await reserve(*args)
        await anyio.sleep(0.6)
        return slot

    monkeypatch.setattr(loops.LoopIo, "reserve", late)
    with byte_enclave(script) as (enclave, _):

        async def case() -> None:
            async with enclavia.AsyncChannel.connect(enclave.url, **keywords(enclave)) as channel:
                with pytest.raises(enclavia.ReadTimeout):
                    await channel.request(b"x", timeout=0.5)

        drive(kind, case)
    answer.set()


# ---------------------------------------------------------------------------------------------
# Answers that come before the body


@pytest.mark.parametrize("status", [b"200 OK", b"417 No"])
def test_a_body_held_back_is_not_taken_from_the_next_request(kind: str, status: bytes) -> None:
    """A server that answered before it had the body still counts the next bytes as that body."""
    heads, bodies = [], []

    def script(connection: Connection) -> None:
        while True:
            head = connection.head()
            heads.append(head.split(b" ")[0])
            if b"expect" not in head.lower():
                connection.send(ok())
                continue
            connection.send(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nno" % status)
            bodies.append(connection.read(5))

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            held = await client.post("/", content=b"hello", headers={"Expect": "100-continue"})
            assert held.text == "no"
            assert (await client.get("/")).text == "ok"

        with_client(kind, enclave, case)
    assert (heads, bodies) == ([b"POST", b"GET"], [])


def test_a_workload_that_hangs_up_within_a_head(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(connection: Connection) -> None:
        connection.read(20_000)
        connection.send(b"HTTP/1.1 431 Large\r\nContent-Length: 0\r\n\r\n")

    def in_small_pieces(exchange: Any) -> None:
        threading.Event().wait(0.005)
        taken = exchange.stream.write(exchange._pending[:1000], 0)
        exchange.sent = exchange.sent or taken > 0
        exchange._pending = exchange._pending[taken:]

    monkeypatch.setattr("enclavia._exchange.exchange.Exchange._write", in_small_pieces)
    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            headers = {"Expect": "100-continue", "X": "a" * 60_000}
            with unless_ended(enclave.drop_connections):
                answer = await client.post("/", content=b"hello", headers=headers)
            assert answer.status_code == 431

        with_client(kind, enclave, case)
        assert len(server.connections) == 1


# ---------------------------------------------------------------------------------------------
# Bodies


def _reused() -> Iterator[Any]:
    buffer = bytearray(b"x" * 10)
    yield buffer
    buffer.clear()
    buffer.extend(b"y" * 20)
    yield buffer


def _numbers() -> Iterator[Any]:
    yield memoryview(array.array("I", [1, 2]))
    yield array.array("I", [3])


NUMBERS = array.array("I", [1, 2, 3]).tobytes()


@pytest.mark.parametrize("framing", ["chunked", "sized"])
@pytest.mark.parametrize(
    ("make", "expected"), [(_reused, b"x" * 10 + b"y" * 20), (_numbers, NUMBERS)]
)
def test_pieces_of_other_kinds_than_bytes(
    kind: str, make: Any, expected: bytes, framing: str
) -> None:
    """A producer may fill the same buffer again; and a buffer of numbers has more bytes than its
    length says, so what followed them would be read as something else."""
    bodies = []

    def script(connection: Connection) -> None:
        while True:
            bodies.append(connection.request()[1])
            connection.send(ok())

    async def later() -> AsyncIterator[Any]:
        for piece in make():
            yield piece

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            headers = {"Content-Length": str(len(expected))} if framing == "sized" else {}
            content = later() if client.is_async else make()
            assert (await client.post("/", content=content, headers=headers)).text == "ok"

        with_client(kind, enclave, case)
    assert bodies == [expected]


def test_a_piece_that_is_no_buffer(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def texts() -> AsyncIterator[Any]:
            yield "text"

        async def case(client: Face) -> None:
            content: Any = texts() if client.is_async else iter(["text"])
            with pytest.raises(
                TypeError,
                match="content: expected pieces that are bytes or another buffer, got str",
            ):
                await client.post("/", content=content)
            assert (await client.get("/")).text == "ok"

        with_client(kind, enclave, case)


@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_a_body_that_stalls_says_nothing_about_the_connection(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclavia._exchange.tunnel.SILENCE", 0.0)
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            assert (await client.get("/")).text == "ok"
            stalls = Chunks(b"some", HANG)
            with pytest.raises(enclavia.WriteTimeout):
                await client.post("/", content=stalls, timeout=httpx2.Timeout(HANG, write=0.2))
            assert (await client.get("/")).text == "ok"
            assert client.client.stats.connects == 1

        with_client(kind, enclave, case)


# ---------------------------------------------------------------------------------------------
# Timeouts of 0


TOO_MUCH = bytes(1 << 27)
"""More than all buffers between a client and a workload that does not read hold."""


class Stuck:
    """A workload that reads nothing until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> None:
        connection.read(1)
        self.go.wait(HANG)
        connection.wait_closed()


def test_reading_what_is_there() -> None:
    """None where nothing is; the end is something else."""
    go_on = threading.Event()

    def script(connection: Connection) -> None:
        connection.read(1)
        go_on.wait(HANG)
        connection.send(b"hello")

    with (
        byte_enclave(script) as (enclave, _),
        enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel,
    ):
        stream = channel.open_stream(b"x")
        stream.read_timeout = 0
        assert (stream.read(5), stream.read(), stream.readall()) == (None, None, None)
        reader = io.BufferedReader(stream)  # type: ignore[type-var]
        assert reader.read() is None
        reader.detach()
        go_on.set()
        stream.read_timeout = HANG
        assert stream.readall() == b"hello"
        assert stream.read() == b""
        stream.close()
        with pytest.raises(enclavia.StateError):
            stream.readall()


def test_writing_where_nothing_is_taken() -> None:
    stuck = Stuck()
    with (
        byte_enclave(stuck) as (enclave, _),
        enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel,
    ):
        stream = channel.open_stream(b"x")
        stream.write_timeout = 0
        block = bytes(1 << 22)
        while stream.write(block):
            pass
        assert stream.write(b"") == 0
        writer = io.BufferedWriter(stream, 1000)  # type: ignore[type-var]
        with unless_ended(stream.close), pytest.raises(BlockingIOError):
            writer.write(TOO_MUCH)
        stuck.go.set()
        stream.write_timeout = HANG
        writer.close()


def test_a_payload_that_does_not_fit_into_no_time() -> None:
    stuck = Stuck()
    with (
        byte_enclave(stuck) as (enclave, _),
        enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel,
    ):
        with pytest.raises(enclavia.WriteTimeout, match=r"to send within 0\.0 s"):
            channel.open_stream(TOO_MUCH, timeout=0)
        stuck.go.set()


def test_an_upgraded_connection_writes_all_or_says_so(kind: str) -> None:
    go = threading.Event()

    def script(connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        go.wait(HANG)

    upgrade = {"Connection": "upgrade", "Upgrade": "x"}
    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            async with client.stream("GET", "/", headers=upgrade) as response:
                stream = response.response.extensions["network_stream"]
                with pytest.raises(enclavia.WriteTimeout):
                    await client.call(stream.write(TOO_MUCH, timeout=0))
                go.set()

        with_client(kind, enclave, case)


# ---------------------------------------------------------------------------------------------
# Cookies


def _sets_a_cookie(connection: Connection) -> None:
    while True:
        head, _ = connection.request()
        connection.send(ok(b"sent" if b"a=b" in head else b"none", b"Set-Cookie: a=b\r\n"))


@pytest.mark.parametrize("pickled", [False, True])
def test_the_settings_of_a_jar_hold(pickled: bool) -> None:
    refusing = http.cookiejar.DefaultCookiePolicy(allowed_domains=[])
    jar = http.cookiejar.CookieJar(refusing)
    with byte_enclave(_sets_a_cookie) as (enclave, _):
        client = enclavia.Client(enclave.url, cookies=jar, **keywords(enclave))
        if pickled:
            client = pickle.loads(pickle.dumps(client))
        with client:
            assert [client.get("/").text for _ in range(3)] == ["none"] * 3
            assert not client.cookies
            if not pickled:
                refusing.set_allowed_domains(None)
                assert [client.get("/").text for _ in range(2)] == ["none", "sent"]


# ---------------------------------------------------------------------------------------------
# The last connection, and the end


def test_the_only_connection_is_not_given_up_on_a_suspicion(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclavia._exchange.tunnel.SILENCE", 0.0)
    answer = threading.Event()

    def script(connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            if b"/slow" in head:
                answer.wait(HANG)
            connection.send(ok())

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            assert (await client.get("/")).text == "ok"
            with pytest.raises(enclavia.ReadTimeout):
                await client.get("/slow", timeout=httpx2.Timeout(HANG, read=0.2))
            answer.set()
            assert (await client.get("/")).text == "ok"
            assert client.client.stats.connects == 1

        with_client(kind, enclave, case, auto_reconnect=False)


def test_closing_closes_and_what_was_sent_still_counts(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            await client.get("/")
            before = client.client.stats
            await client.close()
            after = client.client.stats
            assert after.channels == 0
            assert after.bytes_in >= before.bytes_in > 0
            assert after.bytes_out >= before.bytes_out > 0

        with_client(kind, enclave, case)


def test_a_full_pool_says_which_limit_it_is(kind: str) -> None:
    with byte_enclave(answering(ok(b"x" * 100_000))) as (enclave, _):

        async def case(client: Face) -> None:
            async with client.stream("GET", "/"):
                with pytest.raises(enclavia.PoolTimeout, match=r"all 1 that limits \(max_conn"):
                    await client.get("/", timeout=httpx2.Timeout(HANG, pool=0.1))

        with_client(kind, enclave, case, limits=httpx2.Limits(max_connections=1))


def test_an_enclave_whose_process_hangs_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclavia.testing._child._CALL_SECONDS", 0.5)
    monkeypatch.setattr("enclavia.testing._child._STOP_SECONDS", 0.5)
    enclave = LocalEnclave("127.0.0.1:9", in_process=False).start()
    pid = enclave.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        enclave.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise


# ---------------------------------------------------------------------------------------------
# Settings that no connection could be made with

PCRS = enclavia.Pcrs(pcr0="11" * 48, pcr1="22" * 48, pcr2="33" * 48)


def _host(length: int) -> str:
    """A name of so many characters that no resolver knows."""
    labels = (length - 9) // 32
    return ("a" * 31 + ".") * labels + "b" * (length - 8 - 32 * labels) + ".invalid"


def _settings(length: int, kind: str) -> tuple[str, dict[str, Any]]:
    match kind:
        case "host":
            return f"ws://{_host(length)}", {}
        case "proxied":
            return f"ws://{_host(length)}", {"proxy": "http://127.0.0.1:1"}
        case "path":
            return "ws://127.0.0.1:1/" + "p" * (length - 1), {}
        case "upgrade_headers":
            return "ws://127.0.0.1:1", {"upgrade_headers": {"n": "v" * (length - 5)}}
        case "proxy":
            return "ws://127.0.0.1:1", {"proxy": f"http://{_host(length)}"}
        case _:
            user = "u:" + "p" * (length - 2)
            return "ws://127.0.0.1:1", {"proxy": f"http://{user}@127.0.0.1:1"}


@pytest.mark.parametrize(
    ("kind", "most", "error"),
    [
        ("host", 119, enclavia.InvalidURL),
        ("proxied", 99, enclavia.InvalidURL),
        ("path", 2032, enclavia.InvalidURL),
        ("upgrade_headers", 16_384, ValueError),
        ("proxy", 127, ValueError),
        ("credentials", 93, ValueError),
    ],
)
def test_what_is_too_long_is_refused_where_it_is_given(
    kind: str, most: int, error: type[Exception]
) -> None:
    """The core refuses it as well, when it connects: the two have the same limits."""
    url, options = _settings(most, kind)
    with pytest.raises((enclavia.ConnectError, enclavia.ConnectTimeout)):
        enclavia.Channel.connect(url, pcrs=PCRS, timeout=HANG, **options)
    url, options = _settings(most + 1, kind)
    for make in (enclavia.Client, enclavia.AsyncClient, enclavia.EnclaveTransport):
        with pytest.raises(error, match=f"at most {most}"):
            make(url, pcrs=PCRS, **options)


def test_no_certificate_of_an_ipv6_address_can_be_checked() -> None:
    with pytest.raises(enclavia.InvalidURL, match="use a host name"):
        enclavia.Client("wss://[::1]", pcrs=PCRS)
    enclavia.Client("wss://[::1]", pcrs=PCRS, verify=False).close()
    enclavia.Client("ws://[::1]", pcrs=PCRS).close()


def test_a_turn_to_ask_for_a_document_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes after it was taken and before its holder sees to its end. Without the turn
    nobody would ask again, and the channel would be used beyond the end of its document."""
    shown = SimpleNamespace(state="open")
    tunnel = Tunnel(cast(Any, shown), Traffic())

    def interrupted(of: Tunnel) -> None:
        of.take_turn()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tunnel)
    turn = tunnel.take_turn()
    assert turn
    assert not tunnel.take_turn(), "one at a time"
    turn.give_back()
    turn.give_back()
    assert tunnel.take_turn()
    gone = weakref.ref(tunnel)
    del tunnel, turn
    assert gone() is None, "no cycle keeps it"


def test_ctrl_c_between_the_first_read_and_the_coroutine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer does not come whole, and the coroutine that would wait for its rest never begins:
    the connection is given up all the same, even while somebody keeps the error."""

    def script(connection: Connection) -> None:
        connection.request()
        connection.send(ok(b"kept"))
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n")
        connection.wait_closed()

    def interrupted(steps: Any) -> None:
        steps.close()
        raise KeyboardInterrupt

    with (
        byte_enclave(script) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        assert client.get("/").content == b"kept"
        monkeypatch.setattr("enclavia._exchange.engine.run", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            client.get("/")
        assert kept.value.__traceback__ is not None
        assert client.stats.streams_active == 0


@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_a_task_cancelled_in_its_wait_gives_the_connection_back(kind: str) -> None:
    """Also while somebody keeps the error, whose traceback keeps what waited."""
    asked = threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        connection.send(ok(b"kept"))
        connection.request()
        asked.set()
        connection.wait_closed()

    async def case(face: Face) -> None:
        kept: list[BaseException] = []

        async def ask() -> None:
            try:
                await face.get("/")
            except BaseException as error:
                kept.append(error)
                raise

        assert (await face.get("/")).content == b"kept"
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            assert await anyio.to_thread.run_sync(asked.wait, HANG)
            group.cancel_scope.cancel()
        assert kept
        assert face.client.stats.streams_active == 0

    with byte_enclave(script) as (enclave, _):
        with_client(kind, enclave, case)
