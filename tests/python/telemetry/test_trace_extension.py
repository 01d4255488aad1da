"""The request extension ``trace``: what httpx2's own transports tell, ours tell as well, in the
same order; and what they have no name for is told by names of ours."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from support import (
    KINDS,
    ByteServer,
    Chunks,
    Connection,
    Face,
    answering,
    byte_enclave,
    drive,
    keywords,
    ok,
    with_client,
)

import enclavia
from enclavia.testing import Fault, LocalEnclave

CONNECTING = [
    "enclavia.resolve",
    "connection.connect_tcp",
    "connection.start_tls",
    "enclavia.upgrade",
    "enclavia.handshake",
    "enclavia.attest",
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Told:
    """A function for either kind of client that keeps what it is told."""

    def __init__(self, kind: str) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.act: Callable[[str, dict[str, Any]], None] = lambda name, info: None
        self.function: Any = self.plain if kind == "sync" else self.awaited

    def plain(self, name: str, info: dict[str, Any]) -> None:
        self.events.append((name, info))
        self.act(name, info)

    async def awaited(self, name: str, info: dict[str, Any]) -> None:
        self.plain(name, info)

    @property
    def extensions(self) -> dict[str, Any]:
        return {"trace": self.function}

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def info(self, name: str) -> dict[str, Any]:
        found = [info for told, info in self.events if told == name]
        assert len(found) == 1, (name, self.names)
        return found[0]

    def expect_whole(self) -> None:
        """Whatever has begun has ended, the last one first."""
        open_ones = []
        for name in self.names:
            step, _, what = name.rpartition(".")
            if what == "started":
                open_ones.append(step)
            else:
                assert what in ("complete", "failed"), name
                assert open_ones.pop() == step, self.names
        assert not open_ones, self.names


def test_a_connection_is_told_step_by_step(kind: str) -> None:
    told = Told(kind)
    with ByteServer(answering(ok())) as server, LocalEnclave(server.address, tls=True) as enclave:

        async def case(face: Face) -> None:
            response = await face.get("/a", extensions=told.extensions)
            assert response.text == "ok"
            connected = told.info("enclavia.connect.complete")["return_value"]
            assert connected is response.extensions["enclavia"]

        with_client(kind, enclave, case, verify=enclave.tls_certificate)
    told.expect_whole()
    inside = told.names[2 : told.names.index("enclavia.wait.complete") + 1]
    steps = [f"{step}.{what}" for step in CONNECTING for what in ("started", "complete")]
    assert told.names[:2] == ["enclavia.attempt.started", "enclavia.wait.started"]
    assert inside == [
        "enclavia.connect.started", *steps, "enclavia.connect.complete", "enclavia.wait.complete"
    ]  # fmt: skip
    begun = told.info("connection.connect_tcp.started")
    assert (begun["host"], begun["tls"], begun["via"]) == ("localhost", True, None)
    times = [
        told.info(f"{step}.{what}")["time_ns"]
        for step in CONNECTING
        for what in ("started", "complete")
    ]
    assert times == sorted(times)
    assert times[1:-1:2] == times[2::2], "one step begins when the one before it ends"


def test_without_tls_there_is_no_such_step(kind: str) -> None:
    told = Told(kind)
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(face: Face) -> None:
            await face.get("/a", extensions=told.extensions)

        with_client(kind, enclave, case)
    assert "connection.start_tls.started" not in told.names
    assert "enclavia.attest.complete" in told.names


def asked(connection: Connection) -> None:
    while True:
        head, _ = connection.request()
        if head.startswith(b"GET /chunked"):
            connection.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"
            )
        elif head.startswith(b"HEAD"):
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        else:
            connection.send(ok(b"x" * 100_000))


async def ask_all(face: Face, told: Told) -> None:
    for method, path, options in (
        ("GET", "/", {}),
        ("HEAD", "/", {}),
        ("GET", "/chunked", {}),
        ("POST", "/", {"content": b"x" * 300_000}),
        ("POST", "/", {"content": Chunks(b"a", b"b")}),
    ):
        told.events.append((f"-- {method} {path}", {}))
        await face.request(method, path, extensions=told.extensions, **options)
    told.events.append(("-- left early", {}))
    async with face.stream("GET", "/", extensions=told.extensions) as streamed:
        assert streamed.response.status_code == 200


def http11(events: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """What both tell, with what a function can rely on of the details."""
    return [
        (name, info.get("return_value", ())[:1] if name.endswith("headers.complete") and
         info.get("return_value") else None, sorted(info))
        for name, info in events
        if name.startswith(("--", "http11."))
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_it_is_told_as_httpx2_tells_it(kind: str) -> None:
    ours, theirs = Told(kind), Told(kind)
    with ByteServer(asked) as server, LocalEnclave(server.address) as enclave:

        async def case(face: Face) -> None:
            await ask_all(face, ours)

        with_client(kind, enclave, case)

        async def plain() -> None:
            make: Any = httpx2.Client if kind == "sync" else httpx2.AsyncClient
            face = Face(make(base_url=f"http://{server.address}"))
            face.is_async = kind != "sync"
            try:
                await ask_all(face, theirs)
            finally:
                await face.close()

        drive(kind, plain)
    assert http11(ours.events) == http11(theirs.events)
    head = next(i["return_value"] for n, i in ours.events if n.endswith("headers.complete") and
                i["return_value"])  # fmt: skip
    other = next(i["return_value"] for n, i in theirs.events if n.endswith("headers.complete") and
                 i["return_value"])  # fmt: skip
    assert head[:4] == other[:4]
    assert {name for name, _ in theirs.events if name.startswith("connection.")} == {
        "connection.connect_tcp.started",
        "connection.connect_tcp.complete",
    }


def test_each_attempt_is_told(kind: str) -> None:
    """The first connection of the workload's hangs up on a whole request."""

    def script(connection: Connection) -> None:
        connection.request()
        if connection.number:
            connection.send(ok())

    told = Told(kind)
    with byte_enclave(script) as (enclave, _):

        async def case(face: Face) -> None:
            assert (await face.get("/", extensions=told.extensions)).text == "ok"

        with_client(kind, enclave, case)
    told.expect_whole()
    begun = [info for name, info in told.events if name == "enclavia.attempt.started"]
    assert [(info["attempt"], info["resend_count"]) for info in begun] == [(1, 0), (2, 1)]
    failed = told.info("enclavia.attempt.failed")["exception"]
    assert isinstance(failed, enclavia.EnclaviaError)
    assert told.info("http11.receive_response_headers.failed")["exception"] is failed


def test_what_was_wrong_is_told_of_the_step_in_which_it_was(kind: str) -> None:
    told = Told(kind)
    with LocalEnclave("127.0.0.1:9", tls=True) as enclave:
        enclave.set_faults(Fault.BAD_SIGNATURE)

        async def case(face: Face) -> None:
            with pytest.raises(enclavia.SignatureError):
                await face.get("/", extensions=told.extensions)

        with_client(kind, enclave, case, verify=enclave.tls_certificate)
    told.expect_whole()
    failed = [name for name in told.names if name.endswith(".failed")]
    steps = ["attest", "connect", "wait", "attempt"]
    assert failed == [f"enclavia.{step}.failed" for step in steps]
    assert isinstance(told.info("enclavia.attest.failed")["exception"], enclavia.SignatureError)


def test_a_step_that_does_not_end_in_time(kind: str) -> None:
    told = Told(kind)
    with LocalEnclave("127.0.0.1:9") as enclave:
        enclave.set_faults(Fault.SILENT_HANDSHAKE)

        async def case(face: Face) -> None:
            timeout = httpx2.Timeout(30, connect=0.3)
            with pytest.raises(enclavia.ConnectTimeout):
                await face.get("/", timeout=timeout, extensions=told.extensions)

        with_client(kind, enclave, case)
    told.expect_whole()
    assert "enclavia.upgrade.complete" in told.names
    assert isinstance(told.info("enclavia.handshake.failed")["exception"], enclavia.ConnectTimeout)


def test_waiting_for_another_request(kind: str) -> None:
    if kind != "sync":
        pytest.skip("one kind is enough: it is the pool that has it wait")
    told, first = Told(kind), threading.Event()
    goes_on = threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        first.set()
        goes_on.wait()
        connection.send(ok())
        answering(ok())(connection)

    with byte_enclave(script) as (enclave, _):
        options = keywords(enclave, max_in_flight=1, max_channels=1)
        with enclavia.Client(enclave.url, **options) as client:
            one = threading.Thread(target=client.get, args=["/"])
            one.start()
            first.wait()
            told.act = lambda name, info: goes_on.set() if name == "enclavia.wait.started" else None
            assert client.get("/", extensions=told.extensions).text == "ok"
            one.join()
    assert told.info("enclavia.wait.started")["phase"] == "pool"
    assert "enclavia.connect.started" not in told.names


def test_what_a_function_raises_ends_the_request(kind: str) -> None:
    """At whichever event it is; the slot is free afterwards, which with_client looks at."""
    with byte_enclave(answering(ok(b"x" * 1000))) as (enclave, _):

        async def case(face: Face) -> None:
            whole = Told(kind)
            await face.post("/", content=b"y", extensions=whole.extensions)
            whole = Told(kind)
            await face.post("/", content=b"y", extensions=whole.extensions)
            for name in whole.names:
                told = Told(kind)

                def act(now: str, info: dict[str, Any], name: str = name) -> None:
                    if now == name:
                        raise ZeroDivisionError(name)

                told.act = act
                with pytest.raises(ZeroDivisionError, match=name):
                    await face.post("/", content=b"y", extensions=told.extensions)
            assert (await face.get("/")).status_code == 200

        with_client(kind, enclave, case)


def test_a_function_of_the_wrong_kind(kind: str) -> None:
    wrong = Told("asyncio" if kind == "sync" else "sync")
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(face: Face) -> None:
            expected = "a plain function" if kind == "sync" else "an async function"
            with pytest.raises(TypeError, match=f"trace: expected {expected}"):
                await face.get("/", extensions=wrong.extensions)
            with pytest.raises(TypeError, match=r"trace: expected a function.*got int"):
                await face.get("/", extensions={"trace": 7})
            assert (await face.get("/", extensions={"trace": None})).text == "ok"

        with_client(kind, enclave, case)


def test_a_header_that_is_added_when_an_attempt_begins_is_sent(kind: str) -> None:
    seen: list[bytes] = []

    def script(connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            seen.append(head)
            connection.send(ok())

    told = Told(kind)

    def act(name: str, info: dict[str, Any]) -> None:
        if name == "enclavia.attempt.started":
            info["request"].headers["x-added"] = "yes"

    def lie(name: str, info: dict[str, Any]) -> None:
        if name == "enclavia.attempt.started":
            info["request"].headers["content-length"] = "1"

    with byte_enclave(script) as (enclave, _):

        async def case(face: Face) -> None:
            told.act = act
            await face.post("/", content=b"body", extensions=told.extensions)
            await face.get("/")
            told.act = lie
            with pytest.raises(ValueError, match="trace: expected the headers"):
                await face.post("/", content=b"body", extensions=told.extensions)

        with_client(kind, enclave, case)
    assert [b"x-added: yes" in head.lower() for head in seen] == [True, False]
