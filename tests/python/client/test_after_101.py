"""What becomes of a connection after 101: raw bytes, and httpx2's own WebSocket client."""

from __future__ import annotations

import importlib.util
import threading
import time
from typing import Any

import anyio
import httpcore2
import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from support import (
    KINDS,
    Connection,
    Face,
    byte_enclave,
    drive,
    eventually,
    keywords,
    unless_ended,
    with_client,
)

import enclavia
from enclavia.testing import LocalEnclave

pytestmark = pytest.mark.parametrize("kind", KINDS)
needs_wsproto = pytest.mark.skipif(
    importlib.util.find_spec("wsproto") is None, reason="wsproto is not installed"
)
UPGRADE = {"Connection": "Upgrade", "Upgrade": "lines"}
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n"


async def result(value: Any) -> Any:
    return await value if hasattr(value, "__await__") else value


def lines(connection: Connection) -> None:
    connection.head()
    connection.send(SWITCH + b"welcome\n")
    while line := connection.read_until(b"\n"):
        connection.send(b"echo " + line)


def test_network_stream(kind: str) -> None:
    with byte_enclave(lines) as (enclave, _):

        async def case(client: Face) -> None:
            async with client.stream("GET", "/", headers=UPGRADE) as streamed:
                response = streamed.response
                assert response.status_code == 101
                stream = response.extensions["network_stream"]
                got = b""
                while len(got) < 8:
                    got += await result(stream.read(3))
                assert got == b"welcome\n"
                await result(stream.write(b"hello\n"))
                got = b""
                while not got.endswith(b"\n"):
                    got += await result(stream.read(100, timeout=5))
                assert got == b"echo hello\n"
                with (
                    unless_ended(enclave.drop_connections),
                    pytest.raises(httpcore2.ReadTimeout) as caught,
                ):
                    await result(stream.read(1, timeout=0.1))
                assert isinstance(caught.value, enclavia.ReadTimeout)
                assert stream.get_extra_info("socket") is None
                with pytest.raises(NotImplementedError):
                    stream.start_tls(None)
                assert client.client.stats.streams_active == 1
            assert client.client.stats.streams_active == 0
            with pytest.raises((httpcore2.ReadError, enclavia.EnclaviaError)):
                await result(stream.read(1))
            with pytest.raises(httpcore2.WriteError):
                await result(stream.write(b"x"))

        with_client(kind, enclave, case)


def test_closed_by_the_workload(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        connection.send(SWITCH + b"bye")

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            async with client.stream("GET", "/", headers=UPGRADE) as streamed:
                stream = streamed.response.extensions["network_stream"]
                assert await result(stream.read(100)) == b"bye"
                assert await result(stream.read(100)) == b""
                await result(stream.aclose() if client.is_async else stream.close())

        with_client(kind, enclave, case)


def test_channel_drops(kind: str) -> None:
    with byte_enclave(lines) as (enclave, _):

        async def case(client: Face) -> None:
            async with client.stream("GET", "/", headers=UPGRADE) as streamed:
                stream = streamed.response.extensions["network_stream"]
                assert await result(stream.read(100)) == b"welcome\n"
                threading.Timer(0.1, enclave.drop_connections).start()
                with pytest.raises(httpcore2.ReadError) as caught:
                    await result(stream.read(100))
                assert isinstance(caught.value, enclavia.ConnectionClosed)

        with_client(kind, enclave, case)


async def chat(socket: WebSocket) -> None:
    await socket.accept(subprotocol="chat")
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") == "leave":
                await socket.close(4001, "asked to")
                return
            if message.get("bytes") is not None:
                await socket.send_bytes(message["bytes"][::-1])
            else:
                await socket.send_text(message["text"].upper())
    except WebSocketDisconnect:
        return


APP = Starlette(routes=[WebSocketRoute("/chat", chat)])


@needs_wsproto
def test_websocket(kind: str) -> None:
    from httpx2.websockets import WebSocketDisconnect as Disconnected

    big = bytes(range(256)) * 200
    with LocalEnclave(APP) as enclave:

        async def case() -> None:
            if kind == "sync":
                with enclavia.Client(enclave.url, **keywords(enclave)) as client:
                    for url in ("/chat", f"wss://127.0.0.1:{enclave.port}/chat"):
                        with client.websocket(url, subprotocols=["chat"]) as socket:
                            assert socket.subprotocol == "chat"
                            for number in range(20):
                                socket.send_text(f"hello {number}")
                                assert socket.receive_text(timeout=5) == f"HELLO {number}"
                            socket.send_bytes(big)
                            assert socket.receive_bytes(timeout=5) == big[::-1]
                            socket.ping().wait(5)
                            socket.send_text("leave")
                            with pytest.raises(Disconnected) as caught:
                                socket.receive_text(timeout=5)
                            assert caught.value.code == 4001
                    eventually(lambda: client.stats.streams_active == 0)
                return
            async with enclavia.AsyncClient(enclave.url, **keywords(enclave)) as aclient:
                for url in ("/chat", f"wss://127.0.0.1:{enclave.port}/chat"):
                    async with aclient.websocket(url, subprotocols=["chat"]) as asocket:
                        assert asocket.subprotocol == "chat"
                        for number in range(20):
                            await asocket.send_text(f"hello {number}")
                            assert await asocket.receive_text(timeout=5) == f"HELLO {number}"
                        await asocket.send_bytes(big)
                        assert await asocket.receive_bytes(timeout=5) == big[::-1]
                        with anyio.fail_after(5):
                            await (await asocket.ping()).wait()
                        await asocket.send_text("leave")
                        with pytest.raises(Disconnected) as acaught:
                            await asocket.receive_text(timeout=5)
                        assert acaught.value.code == 4001
                assert aclient.stats.streams_active == 0

        drive(kind, case)
        eventually(lambda: enclave.stats()["slots_open"] == 0)


@needs_wsproto
def test_websocket_left_by_the_client(kind: str) -> None:
    with LocalEnclave(APP) as enclave:

        async def case() -> None:
            if kind == "sync":
                with enclavia.Client(enclave.url, **keywords(enclave)) as client:
                    for _ in range(3):
                        with client.websocket("/chat") as socket:
                            socket.send_text("x")
                            assert socket.receive_text(timeout=5) == "X"
            else:
                async with enclavia.AsyncClient(enclave.url, **keywords(enclave)) as aclient:
                    for _ in range(3):
                        async with aclient.websocket("/chat") as asocket:
                            await asocket.send_text("x")
                            assert await asocket.receive_text(timeout=5) == "X"

        drive(kind, case)
        eventually(lambda: enclave.stats()["slots_open"] == 0)


def test_closed_while_it_is_read(kind: str) -> None:
    """httpx2's blocking WebSocket session reads in a thread and closes in another."""
    with byte_enclave(lines) as (enclave, _):

        async def case(client: Face) -> None:
            async with client.stream("GET", "/", headers=UPGRADE) as streamed:
                stream = streamed.response.extensions["network_stream"]
                await result(stream.read(100, timeout=5))
                errors: list[Exception] = []

                async def read() -> None:
                    try:
                        await result(stream.read(100))
                    except Exception as error:
                        errors.append(error)

                if client.is_async:
                    async with anyio.create_task_group() as group:
                        group.start_soon(read)
                        await anyio.sleep(0.05)
                        await stream.aclose()
                else:
                    thread = threading.Thread(target=lambda: drive("sync", read))
                    thread.start()
                    time.sleep(0.05)
                    stream.close()
                    thread.join(5)
                for _ in range(2):
                    assert isinstance(errors[-1], httpcore2.ReadError)
                    await read()
                with pytest.raises(httpcore2.WriteError):
                    await result(stream.write(b"x"))

        with_client(kind, enclave, case)
