"""``on_attestation``, where its answer fails to come, and where others look at the channel
meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from support import answering, byte_enclave, drive, ok

import enclavia
from enclavia import Receipt
from enclavia._exchange.connections import Connections
from enclavia._exchange.tunnel import Tunnel
from enclavia._io.face import run
from enclavia.testing import LocalEnclave


def keywords(enclave: LocalEnclave) -> dict[str, object]:
    return {"pcrs": enclave.pcrs, "root": enclave.root}


def connections_of(client: enclavia.Client | enclavia.AsyncClient) -> Connections:
    return client._enclave._engine.connections


def test_an_error_without_a_text_refuses_like_any_other() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise LookupError("no text")

    def refuse(receipt: Receipt) -> None:
        raise Mute

    with byte_enclave(answering(ok())) as (enclave, server):
        with (
            pytest.raises(enclavia.AttestationRefused, match="Mute") as caught,
            enclavia.Client(enclave.url, on_attestation=refuse, **keywords(enclave)) as client,  # type: ignore[arg-type]
        ):
            client.get("/")
        assert isinstance(caught.value.__cause__, Mute)
        assert server.connections == []


def test_a_hook_that_gives_no_answer_about_a_fresh_document() -> None:
    """The channel is used no more, as a new one would not be."""
    asked = [0]

    async def hook(receipt: Receipt) -> None:
        asked[0] += 1
        if asked[0] == 2:
            await anyio.sleep_forever()

    with byte_enclave(answering(ok())) as (enclave, _):

        async def case() -> None:
            client = enclavia.AsyncClient(
                enclave.url,
                on_attestation=hook,
                timeout=1.0,
                **keywords(enclave),  # type: ignore[arg-type]
            )
            async with client:
                await client.get("/")
                connections = connections_of(client)
                with pytest.raises(enclavia.ConnectTimeout, match="on_attestation"):
                    await connections.verify_again(client._enclave._engine.timeouts)
                assert not any(tunnel.alive for tunnel in connections.pool.handles())
                await client.get("/")
                assert asked[0] == 3  # of another channel

        drive("asyncio", case)


def test_a_channel_that_is_being_connected_is_not_verified_again() -> None:
    """Its hook has not answered yet, so it is no channel of the client's."""
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case() -> None:
            async with enclavia.AsyncClient(enclave.url, **keywords(enclave)) as client:  # type: ignore[arg-type]
                connections = connections_of(client)
                (tunnel,) = connections.pool.handles()
                unasked = Tunnel(tunnel.core, connections.connecting.past, tunnel.pins)
                assert unasked.alive
                with pytest.MonkeyPatch.context() as patched:
                    patched.setattr(connections.pool, "handles", lambda: [tunnel, unasked])
                    timeouts = client._enclave._engine.timeouts
                    assert len(await connections.verify_again(timeouts)) == 1

        drive("asyncio", case)


class Interrupted(BaseException):
    """As Ctrl-C."""


def interrupting(asked: list[Receipt]) -> Callable[[Receipt], None]:
    """Agrees to the first document alone."""

    def hook(receipt: Receipt) -> None:
        asked.append(receipt)
        if len(asked) == 2:
            raise Interrupted

    return hook


def test_a_hook_that_is_interrupted_has_not_agreed_to_the_channel() -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        channel = enclavia.Channel.connect(
            enclave.url,
            on_attestation=interrupting([]),
            **keywords(enclave),  # type: ignore[arg-type]
        )
        with channel:
            with pytest.raises(Interrupted):
                channel.attest()
            with pytest.raises(enclavia.EnclaviaError):
                channel.open_stream(b"GET / HTTP/1.1\r\n\r\n")
            assert len(channel.receipts) == 1


def test_a_hook_that_is_cancelled_has_not_agreed_to_the_channel() -> None:
    asked = [0]

    async def hook(receipt: Receipt) -> None:
        asked[0] += 1
        if asked[0] == 2:
            await anyio.sleep_forever()

    with byte_enclave(answering(ok())) as (enclave, _):

        async def case() -> None:
            channel = await enclavia.AsyncChannel.connect(
                enclave.url,
                on_attestation=hook,
                **keywords(enclave),  # type: ignore[arg-type]
            )
            async with anyio.create_task_group() as group:
                group.start_soon(channel.attest)
                while asked[0] < 2:
                    await anyio.sleep(0.01)
                group.cancel_scope.cancel()
            with pytest.raises(enclavia.EnclaviaError):
                await channel.open_stream(b"GET / HTTP/1.1\r\n\r\n")
            await channel.close()

        drive("asyncio", case)


def test_a_clients_hook_that_is_interrupted_is_asked_again_before_the_next_request() -> None:
    asked: list[Receipt] = []
    with (
        byte_enclave(answering(ok())) as (enclave, _),
        enclavia.Client(
            enclave.url,
            on_attestation=interrupting(asked),
            **keywords(enclave),  # type: ignore[arg-type]
        ) as client,
    ):
        client.get("/")
        engine = client._enclave._engine
        with pytest.raises(Interrupted):
            run(engine.connections.verify_again(engine.timeouts))
        client.get("/")
        assert [receipt.reason for receipt in asked] == ["connect", "fresh", "fresh"]
        assert client.receipts == (asked[0], asked[2])
        assert client.stats.connects == 1
