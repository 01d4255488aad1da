"""Answers that break off or break HTTP: what was good of them comes first, and the error says the
same, by its class and by ``retryable``, however the workload ended its connection."""

from __future__ import annotations

import time
from typing import Any

import httpx2
import pytest
from support import KINDS, Connection, Face, answering, byte_enclave, with_client

import enclavia

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rest", "body"),
    [
        (b"zz\r\n", b""),
        (b"5\r\nhello\r\nzz\r\n", b"hello"),
        (b"5\r\nhello\r\n0\r\nX A\r\n", b"hello"),
    ],
)
def test_what_was_good_is_delivered(kind: str, rest: bytes, body: bytes) -> None:
    with byte_enclave(answering(CHUNKED + rest)) as (enclave, _):

        async def case(client: Face) -> None:
            got = b""
            async with client.stream("GET", "/") as answer:
                assert answer.response.status_code == 200
                try:
                    async for piece in answer.raw():
                        got += piece
                except enclavia.ProtocolError as error:
                    assert "chunked body" in str(error)
                    assert error.request.url.path == "/"
                    got += b" and then"
            assert got == body + b" and then"

        with_client(kind, enclave, case, retries=0)


def ending(answer: bytes, reset: bool) -> Any:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer)
        time.sleep(0.05)  # a reset may overtake what was sent
        if reset:
            connection.reset()

    return script


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"]
)
def test_a_cut_answer_is_retryable(kind: str, answer: bytes, reset: bool) -> None:
    with byte_enclave(ending(answer, reset)) as (enclave, _):

        async def case(client: Face) -> None:
            with pytest.raises(httpx2.ReadError) as caught:
                await client.post("/", content=b"1")
            error = caught.value
            assert isinstance(error, enclavia.ServerError if reset else enclavia.IncompleteResponse)
            assert isinstance(error, httpx2.RemoteProtocolError) is not reset
            assert isinstance(error, enclavia.EnclaviaError) and error.retryable

        with_client(kind, enclave, case)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_is_retryable(kind: str) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.wait_closed()

    with byte_enclave(script) as (enclave, _):

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.ReadTimeout) as caught:
                await client.get("/", timeout=httpx2.Timeout(10, read=0.1))
            assert caught.value.retryable

        with_client(kind, enclave, case)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_client_is_a_state(kind: str) -> None:
    with byte_enclave(answering(b"HTTP/1.1 204 No\r\n\r\n")) as (enclave, _):

        async def case(client: Face) -> None:
            await client.get("/")
            await client.close()
            with pytest.raises(enclavia.StateError, match="has been closed"):
                await client.get("/")
            enter = client.client.__aenter__ if client.is_async else client.client.__enter__
            with pytest.raises(enclavia.StateError, match="reopen"):
                await client.call(enter())

        with_client(kind, enclave, case)
