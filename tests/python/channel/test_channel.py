"""The lower level: one verified connection, raw streams, one-shot requests, fresh documents."""

from __future__ import annotations

import gc
import io
import pickle
import socket
import threading
from typing import Any

import anyio
import pytest
from support import HANG, KINDS, ByteServer, Connection, drive, eventually, keywords, unless_ended

import enclavia
from enclavia.testing import Fault, LocalEnclave

pytestmark = pytest.mark.parametrize("kind", KINDS)


def echo(connection: Connection) -> None:
    while data := connection.buffer or connection.sock.recv(65536):
        connection.buffer = b""
        connection.send(data)


def silent(connection: Connection) -> None:
    connection.wait_closed()


async def result(value: Any) -> Any:
    return await value if hasattr(value, "__await__") else value


async def connect(kind: str, enclave: LocalEnclave, **options: Any) -> Any:
    cls: Any = enclavia.Channel if kind == "sync" else enclavia.AsyncChannel
    return await result(cls.connect(enclave.url, **{**keywords(enclave), **options}))


def test_streams(kind: str) -> None:
    with ByteServer(echo) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave)
            first = await result(channel.open_stream(b"hello"))
            second = await result(channel.open_stream())
            assert first.id != second.id
            got = b""
            while len(got) < 5:
                got += await result(first.read(3))
            assert got == b"hello"
            payload = bytes(range(256)) * 1024
            assert await result(second.write(memoryview(payload))) == len(payload)
            got = b""
            while len(got) < len(payload):
                got += await result(second.read(50_000))
            assert got == payload
            buffer = bytearray(10)
            await result(second.write(b"abc"))
            count = await result(second.readinto(buffer))
            assert bytes(buffer[:count]) == b"abc"[:count]
            assert channel.stats["streams_open"] == 2
            await result(first.close())
            await result(first.close())
            assert first.closed
            with pytest.raises((enclavia.StateError, ValueError)):
                await result(first.read(1))
            with pytest.raises((enclavia.StateError, ValueError)):
                await result(first.write(b"x"))
            await result(second.close())
            eventually(lambda: enclave.stats()["slots_open"] == 0)
            assert not channel.closed
            await result(channel.close())
            assert channel.closed

        drive(kind, case)
        eventually(lambda: enclave.stats()["connections_open"] == 0)


def test_a_large_first_payload(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.send(connection.read(1_000_000)[::-1])

    payload = bytes(range(250)) * 4000
    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave)
            stream = await result(channel.open_stream(payload))
            assert await result(stream.read()) == payload[::-1]
            assert stream.at_eof
            assert await result(stream.read(5)) == b""
            await result(stream.close())
            await result(channel.close())

        drive(kind, case)


def test_write_eof(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.send(b"got " + connection.wait_closed())

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave)
            stream = await result(channel.open_stream(b"one "))
            await result(stream.write(b"two"))
            await result(stream.write_eof())
            assert await result(stream.read()) == b"got one two"
            await result(stream.close())
            await result(channel.close())

        drive(kind, case)


def test_stream_timeouts(kind: str) -> None:
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave, timeout=10)
            stream = await result(channel.open_stream(timeout=0.1))
            assert stream.timeout == stream.write_timeout == 0.1
            with pytest.raises(enclavia.ReadTimeout):
                await result(stream.read(1))
            stream.timeout = 5
            stream.read_timeout = 0.05
            with pytest.raises(enclavia.ReadTimeout):
                await result(stream.readinto(bytearray(1)))
            await result(channel.close())

        drive(kind, case)


def test_slots(kind: str) -> None:
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave, max_in_flight=2)
            held = [await result(channel.open_stream()) for _ in range(2)]
            with unless_ended(channel._core.close), pytest.raises(enclavia.PoolTimeout):
                await result(channel.open_stream(timeout=0.1))
            await result(held.pop().close())
            held.append(await result(channel.open_stream(timeout=5)))
            await result(channel.close())

        drive(kind, case)


def test_forgotten_streams_free_their_slots(kind: str) -> None:
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave, max_in_flight=2)
            for _ in range(6):
                await result(channel.open_stream(timeout=5))
                gc.collect()
            eventually(lambda: enclave.stats()["slots_open"] == 0)
            await result(channel.close())

        drive(kind, case)


def test_one_shot(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.send(b"answer to " + connection.read(8))

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave)
            for _ in range(3):
                assert await result(channel.request(b"question")) == b"answer to question"
            await result(channel.close())

        drive(kind, case)
        assert enclave.stats()["requests_total"] == 3


def test_one_shot_timeout(kind: str) -> None:
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave)
            with pytest.raises(enclavia.ReadTimeout):
                await result(channel.request(b"question", timeout=0.1))
            with pytest.raises(ValueError, match=r"data: .* at most 65519; open_stream takes more"):
                await result(channel.request(b"x" * 100_000, timeout=0.1))
            await result(channel.close())

        drive(kind, case)


def test_attest_again(kind: str) -> None:
    with ByteServer(echo) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave)
            first = channel.attestation
            assert first.proven
            assert first.nonce is not None
            again = await result(channel.attest())
            assert again.nonce == first.nonce
            assert again.document != first.document
            assert channel.attestation == again
            await result(channel.close())

        drive(kind, case)
        assert enclave.stats()["attestations_total"] == 2


def test_attest_timeout(kind: str) -> None:
    with ByteServer(echo) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave)
            enclave.set_faults(Fault.SILENT_ATTESTATION)
            with pytest.raises(enclavia.ReadTimeout):
                await result(channel.attest(timeout=0.1))
            await result(channel.close())

        drive(kind, case)


def test_connect_fails(kind: str) -> None:
    other = enclavia.Pcrs(pcr0=b"7" * 48, pcr1=b"8" * 48, pcr2=b"9" * 48)
    with ByteServer(echo) as server, LocalEnclave(server.address) as enclave:
        url = enclave.url

        async def case() -> None:
            with pytest.raises(enclavia.PcrMismatch):
                await connect(kind, enclave, pcrs=other)
            with pytest.raises(enclavia.CertificateError):
                await connect(kind, enclave, root=None)
            enclave.set_faults(Fault.SILENT_ATTESTATION)
            with (
                unless_ended(lambda: enclave.drop_connections()),
                pytest.raises(enclavia.ConnectTimeout),
            ):
                await connect(kind, enclave, timeout=0.2)
            eventually(lambda: enclave.stats()["connections_open"] == 0)

        drive(kind, case)
        options = keywords(enclave)

    async def no_server() -> None:
        cls: Any = enclavia.Channel if kind == "sync" else enclavia.AsyncChannel
        with pytest.raises(enclavia.ConnectError):
            await result(cls.connect(url, **options))

    drive(kind, no_server)


def test_dropped(kind: str) -> None:
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave)
            stream = await result(channel.open_stream())
            timer = threading.Timer(0.1, enclave.drop_connections, (True,))
            timer.start()
            with pytest.raises(enclavia.ConnectionClosed) as caught:
                await result(stream.read(1))
            assert caught.value.retryable
            timer.join()
            assert channel.closed
            with pytest.raises(enclavia.ConnectionClosed):
                await result(channel.open_stream())
            with pytest.raises(enclavia.ConnectionClosed):
                await result(channel.attest())
            await result(channel.close())

        drive(kind, case)


def test_closed_while_reading(kind: str) -> None:
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave)
            stream = await result(channel.open_stream())
            threading.Timer(0.1, channel._core.close).start()
            with pytest.raises(enclavia.ConnectionClosed):
                await result(stream.read(1))

        drive(kind, case)


def test_context_managers(kind: str) -> None:
    with ByteServer(echo) as server, LocalEnclave(server.address) as enclave:
        options = keywords(enclave)

        async def case() -> None:
            if kind == "sync":
                with enclavia.Channel.connect(enclave.url, **options) as channel:
                    with channel.open_stream(b"x") as stream:
                        assert stream.read(1) == b"x"
                    assert stream.closed
                assert channel.closed
                return
            async with enclavia.AsyncChannel.connect(enclave.url, **options) as achannel:
                async with await achannel.open_stream(b"x") as astream:
                    assert await astream.read(1) == b"x"
                assert astream.closed
            assert achannel.closed
            async with await enclavia.AsyncChannel.connect(enclave.url, **options) as achannel:
                pass
            assert achannel.closed

        drive(kind, case)


def test_not_picklable(kind: str) -> None:
    with ByteServer(echo) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            channel = await connect(kind, enclave)
            stream = await result(channel.open_stream())
            for secret in (channel, stream):
                with pytest.raises(TypeError, match="pickled"):
                    pickle.dumps(secret)
            assert "open" in repr(channel)
            assert "open" in repr(stream)
            await result(channel.close())
            assert "closed" in repr(channel)

        drive(kind, case)


def test_files_fit_on_it(kind: str) -> None:
    if kind != "sync":
        return

    def script(connection: Connection) -> None:
        connection.send(b"one\ntwo\nthree")

    with (
        ByteServer(script) as server,
        LocalEnclave(server.address) as enclave,
        enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel,
    ):
        assert list(channel.open_stream()) == [b"one\n", b"two\n", b"three"]
        with io.BufferedReader(channel.open_stream()) as reader:
            assert reader.read(6) == b"one\ntw"
            assert reader.readline() == b"o\n"
        with io.TextIOWrapper(io.BufferedReader(channel.open_stream())) as text:
            assert text.read() == "one\ntwo\nthree"


def test_async_iteration(kind: str) -> None:
    if kind == "sync":
        return

    def script(connection: Connection) -> None:
        connection.send(b"x" * 300_000)

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            async with enclavia.AsyncChannel.connect(enclave.url, **keywords(enclave)) as channel:
                stream = await channel.open_stream()
                total = 0
                async for piece in stream:
                    total += len(piece)
                assert total == 300_000

        drive(kind, case)


def test_many_tasks_on_one_channel(kind: str) -> None:
    """Every task gets what is its own, though all wait for one descriptor."""
    if kind == "sync":
        return
    with ByteServer(echo) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            async with enclavia.AsyncChannel.connect(enclave.url, **keywords(enclave)) as channel:

                async def one(number: int) -> None:
                    stream = await channel.open_stream()
                    for turn in range(5):
                        message = b"%d-%d;" % (number, turn)
                        await stream.write(message)
                        got = b""
                        while len(got) < len(message):
                            got += await stream.read(100)
                        assert got == message
                    await stream.close()

                async with anyio.create_task_group() as group:
                    for number in range(200):
                        group.start_soon(one, number)

        drive(kind, case)


@pytest.mark.parametrize("victims", [1, 5, 9])
def test_cancelled_leaders_and_followers(kind: str, victims: int) -> None:
    """Tasks are cancelled while they wait, the one that waits for the descriptor first; those that
    stay are still woken."""
    if kind == "sync":
        return
    release = threading.Event()
    asked: list[bytes] = []

    def script(connection: Connection) -> None:
        name = connection.read(2)
        asked.append(name)
        release.wait(HANG)
        connection.send(name)
        connection.wait_closed()

    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:

        async def case() -> None:
            got: list[bytes] = []
            async with enclavia.AsyncChannel.connect(enclave.url, **keywords(enclave)) as channel:

                async def one(number: int, scope: anyio.CancelScope) -> None:
                    with scope:
                        stream = await channel.open_stream(b"%02d" % number)
                        try:
                            got.append(await stream.read(2))
                        finally:
                            await stream.close()

                scopes = [anyio.CancelScope() for _ in range(10)]
                with anyio.fail_after(HANG):
                    async with anyio.create_task_group() as group:
                        for number, scope in enumerate(scopes):
                            group.start_soon(one, number, scope)
                        while len(asked) < len(scopes):
                            await anyio.sleep(0.005)
                        await anyio.wait_all_tasks_blocked()
                        for scope in scopes[:victims]:
                            scope.cancel()
                            await anyio.sleep(0.001)
                        release.set()
            assert sorted(got) == [b"%02d" % number for number in range(victims, 10)]

        drive(kind, case)
        eventually(lambda: enclave.stats()["slots_open"] == 0)
        release.clear()


def test_a_full_enclave_says_what_to_do(kind: str) -> None:
    async def main() -> None:
        with LocalEnclave("127.0.0.1:1", max_connections=1) as enclave:
            first = await connect(kind, enclave)
            try:
                with pytest.raises(
                    enclavia.ConnectionClosed, match=r"about two for each of its cores.*wait longer"
                ) as caught:
                    await connect(kind, enclave)
                assert caught.value.retryable
            finally:
                await result(first.close() if kind == "sync" else first.aclose())

    drive(kind, main)


def test_messages_of_timeouts_name_the_seconds(kind: str) -> None:
    """Whether the wait was one of the core's (in a thread) or of an event loop."""
    with (
        ByteServer(silent) as server,
        LocalEnclave(server.address) as enclave,
        socket.create_server(("127.0.0.1", 0)) as nobody,
    ):
        url = f"ws://127.0.0.1:{nobody.getsockname()[1]}"

        async def case() -> None:
            cls: Any = enclavia.Channel if kind == "sync" else enclavia.AsyncChannel
            channel = await connect(kind, enclave, max_in_flight=1)
            stream = await result(channel.open_stream())
            stream.read_timeout = 0.25

            async def opened() -> None:
                await result(cls.connect(url, **keywords(enclave), timeout=0.25))

            async def read() -> None:
                await result(stream.read(1))

            async def read_into() -> None:
                await result(stream.readinto(bytearray(1)))

            async def another() -> None:
                await result(channel.open_stream(timeout=0.25))

            async def answered() -> None:
                await result(channel.request(b"x", timeout=0.25))

            for kinds, act in (
                (enclavia.ConnectTimeout, opened),
                (enclavia.ReadTimeout, read),
                (enclavia.ReadTimeout, read_into),
                (enclavia.PoolTimeout, another),
                (enclavia.PoolTimeout, answered),
            ):
                with pytest.raises(kinds, match=r"expected .* within 0\.250? s") as got:
                    await act()
                if kinds is enclavia.ConnectTimeout:
                    assert "WebSocket upgrade" in str(got.value)
            await result(channel.close())

        drive(kind, case)
