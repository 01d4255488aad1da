"""Pieces of a request's body: what is sent is as long as it says, whatever buffer a piece is."""

from __future__ import annotations

import array
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest
from support import Connection, Face, byte_enclave, keywords, ok, with_client

NUMBERS = array.array("I", range(1, 9))
BODY = NUMBERS.tobytes()
# What makes BODY, in pieces whose len() is not the number of their bytes.
WIDE_PIECES: dict[str, Callable[[], list[Any]]] = {
    "an array": lambda: [NUMBERS],
    "a memoryview of one": lambda: [memoryview(NUMBERS)],
    "two dimensions": lambda: [memoryview(BODY).cast("B", (4, 8))],
    "several, and empty ones": lambda: [b"", NUMBERS[:3], array.array("I"), NUMBERS[3:]],
}
pieces_of_all_kinds = pytest.mark.parametrize("pieces", WIDE_PIECES.values(), ids=WIDE_PIECES)
framings = pytest.mark.parametrize(
    "headers", [{}, {"Content-Length": str(len(BODY))}], ids=["chunked", "length"]
)
kinds = pytest.mark.parametrize("kind", ["sync", "asyncio"])


async def awaited(pieces: Iterable[Any]) -> AsyncIterator[Any]:
    for piece in pieces:
        yield piece


def body(kind: str, pieces: Iterable[Any]) -> Any:
    return iter(pieces) if kind == "sync" else awaited(pieces)


def echo(connection: Connection) -> None:
    """Answers each request with its body. After a body of another length than was announced, what
    follows is no request, and this fails."""
    while True:
        connection.send(ok(connection.request()[1]))


@kinds
@framings
@pieces_of_all_kinds
def test_a_piece_is_as_long_as_its_bytes(
    kind: str, headers: dict[str, str], pieces: Callable[[], list[Any]]
) -> None:
    async def case(face: Face) -> None:
        for _ in range(2):
            answer = await face.post("/", content=body(kind, pieces()), headers=headers)
            assert answer.content == BODY

    with byte_enclave(echo) as (enclave, server):
        with_client(kind, enclave, case)
        assert len(server.connections) == 1


@pieces_of_all_kinds
def test_in_the_adapters_too(pieces: Callable[[], list[Any]]) -> None:
    pytest.importorskip("requests")
    httpx = pytest.importorskip("httpx")
    import enclavia.httpx
    import enclavia.requests

    with byte_enclave(echo) as (enclave, _):
        with enclavia.requests.session(enclave.url, **keywords(enclave)) as session:
            for _ in range(2):
                assert session.post(session.base_url, data=iter(pieces())).content == BODY
        transport = enclavia.httpx.EnclaveTransport(enclave.url, **keywords(enclave))
        with httpx.Client(transport=transport, base_url=transport.base_url) as client:
            for _ in range(2):
                assert client.post("/", content=iter(pieces())).content == BODY


@kinds
@framings
def test_the_memory_of_a_piece_may_be_used_again(kind: str, headers: dict[str, str]) -> None:
    """A bytearray cannot be resized while something still refers to its memory."""

    def refilled() -> Iterator[bytearray]:
        buffer = bytearray()
        for start in range(0, len(BODY), 8):
            buffer += BODY[start : start + 8]
            yield buffer
            buffer.clear()

    async def case(face: Face) -> None:
        answer = await face.post("/", content=body(kind, refilled()), headers=headers)
        assert answer.content == BODY

    with byte_enclave(echo) as (enclave, _):
        with_client(kind, enclave, case)


def closed_view() -> memoryview:
    view = memoryview(b"x")
    view.release()
    return view


@kinds
@framings
@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: ["text"], TypeError, r"pieces that are bytes.*got str: encode the text.*'rb'"),
        (lambda: [""], TypeError, r"pieces that are bytes.*got str: encode the text.*'rb'"),
        (
            lambda: io.StringIO("a text file"),
            TypeError,
            r"pieces that are bytes.*got str: encode the text.*'rb'",
        ),
        (
            lambda: bytearray(b"ab"),
            TypeError,
            r"pieces that are bytes.*got int: give a whole body as bytes\(…\)",
        ),
        (
            lambda: bytearray(b"\0"),
            TypeError,
            r"pieces that are bytes.*got int: give a whole body as bytes\(…\)",
        ),
        (lambda: [{"a": 1}], TypeError, "bytes or another buffer, got dict"),
        (lambda: [closed_view()], ValueError, "bytes or another buffer, got one that is closed"),
    ],
)
def test_what_is_no_piece_of_a_body(
    kind: str, headers: dict[str, str], make: Any, error: type[Exception], says: str
) -> None:
    async def case(face: Face) -> None:
        with pytest.raises(error, match=f"content: expected {says}"):
            await face.post("/", content=body(kind, make()), headers=headers)
        assert (await face.post("/", content=b"next")).content == b"next"

    with byte_enclave(echo) as (enclave, _):
        with_client(kind, enclave, case)
