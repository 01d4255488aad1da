"""Answers byte by byte: what ``Client``, ``AsyncClient`` and a ``Client`` over a kept connection
make of each is compared with what httpx2 makes of the same bytes over a plain socket, whole and
cut at every offset.

What is delivered before an error counts as well as the error. ``STRICTER`` are the only
answers that may be read differently, each with its reason.

The short form cuts at some offsets, the long one at each: ``ENCLAVIA_DIFFERENTIAL=1``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from support import ByteServer, Connection, eventually, keywords, ok

import enclavia
from enclavia.testing import LocalEnclave

WARM = b"GET /warm "
STEP = 1 if os.environ.get("ENCLAVIA_DIFFERENTIAL") else 9

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "sized": OK + b"Content-Length: 5\r\n\r\nhello",
    "sized, nothing": OK + b"Content-Length: 0\r\n\r\n",
    "chunked": CHUNKED + b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX-T: 1\r\n\r\n",
    "to the end": OK + b"\r\nhello",
    "old": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "old and kept": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
    "informed": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" + OK
    + b"Content-Length: 2\r\n\r\nok",
    "only informed": b"HTTP/1.1 103 Hints\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "204 with a body": b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
    "304 with a length": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
    "error": b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 2\r\n\r\nno",
    "gzip that is none": OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnone",
    "extra bytes": OK + b"Content-Length: 2\r\n\r\nokEXTRA",
    "second answer": (OK + b"Content-Length: 2\r\n\r\nok") * 2,
    "bad chunk": CHUNKED + b"5\r\nhello\r\nzz\r\n",
    "bad first chunk": CHUNKED + b"zz\r\n",
    "chunk too long": CHUNKED + b"2\r\nokX\r\n0\r\n\r\n",
    "huge chunk": CHUNKED + b"ffffffffffffffffffffff\r\n",
    "negative chunk": CHUNKED + b"-1\r\nx\r\n",
    "bad trailer": CHUNKED + b"2\r\nok\r\n0\r\nX A: b\r\n\r\n",
    "folded trailer": CHUNKED + b"2\r\nok\r\n0\r\nA: b\r\n c\r\n\r\n",
    "padded chunk": CHUNKED + b"2  \r\nok\r\n0 \r\n\r\n",
    "folded": OK + b"A: b\r\n  c\r\nContent-Length: 2\r\n\r\nok",
    "same lengths": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "same lengths in a list": OK + b"Content-Length: 2, 2\r\n\r\nok",
    "conflicting lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    "negative length": OK + b"Content-Length: -2\r\n\r\nok",
    "length of words": OK + b"Content-Length: two\r\n\r\nok",
    "later minor": b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "another coding": OK + b"Transfer-Encoding: gzip\r\n\r\nok",
    "two codings": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "bad status": b"HTTP/1.1 abc OK\r\n\r\n",
    "space before the colon": OK + b"A : b\r\nContent-Length: 2\r\n\r\nok",
    "no name": OK + b": b\r\nContent-Length: 2\r\n\r\nok",
    "NUL": OK + b"A: b\0\r\nContent-Length: 2\r\n\r\nok",
    "length and coding": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "unasked upgrade": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
}  # fmt: skip

STRICTER = {
    "length and coding": "the classic way to hide a second answer",
    "line feeds": "parsers differ about where such a head ends",
    "folded trailer": "llhttp, which reads the chunks, knows no folding",
}
"""Read by httpx2, a ProtocolError here."""


class Server:
    def __init__(self) -> None:
        self.answer = b""
        self.reset = False
        self.asked_again = False

    def __call__(self, connection: Connection) -> None:
        head, _ = connection.request()
        if head.startswith(WARM):
            connection.send(ok())
            connection.request()
            self.asked_again = True
        connection.send(self.answer)
        if self.reset:
            time.sleep(0.05)  # it may overtake what was sent
            connection.reset()


Seen = tuple[int | None, bytes, type[Exception] | None]


def seen(client: Any) -> Seen:
    """The status, what came of the body, and the error."""
    status, body = None, b""
    try:
        with client.stream("GET", "/") as response:
            status = response.status_code
            for piece in response.iter_bytes():
                body += piece
    except Exception as error:
        return status, body, type(error)
    return status, body, None


async def awaited(client: Any) -> Seen:
    status, body = None, b""
    try:
        async with client.stream("GET", "/") as response:
            status = response.status_code
            async for piece in response.aiter_bytes():
                body += piece
    except Exception as error:
        return status, body, type(error)
    return status, body, None


class Parties:
    def __init__(self, server: ByteServer, script: Server, enclave: LocalEnclave) -> None:
        self.script = script
        # Each request on a connection of its own: whether the end of an earlier one has been seen
        # before it is used again would depend on the load of the machine.
        alone = httpx2.Limits(max_keepalive_connections=0)
        self._options: dict[str, Any] = keywords(enclave, retries=0, timeout=10.0, limits=alone)
        self.direct = httpx2.Client(
            base_url=f"http://{server.address}", trust_env=False, limits=alone
        )
        self.ours = enclavia.Client(enclave.url, **self._options)
        self.kept = enclavia.Client(enclave.url, **{**self._options, "limits": httpx2.Limits()})
        self.runner = asyncio.Runner()
        self.awaited = enclavia.AsyncClient(enclave.url, **self._options)

    def close(self) -> None:
        self.direct.close()
        self.ours.close()
        self.kept.close()
        self.runner.run(self.awaited.aclose())
        self.runner.close()

    def compare(self, answer: bytes, *, reset: bool = False) -> tuple[Seen, list[Seen]]:
        self.script.answer, self.script.reset = answer, reset
        return seen(self.direct), [
            seen(self.ours),
            self.runner.run(awaited(self.awaited)),
            self.over_a_kept_connection(),
        ]

    def over_a_kept_connection(self) -> Seen:
        """The second request of a connection, for which a client that blocks has a way of its own.
        The connection of the answer before is gone by then, as its server ended it."""
        eventually(lambda: self.kept.stats.streams_idle == 0)
        assert self.kept.get("/warm").content == b"ok"
        self.script.asked_again = False
        got = seen(self.kept)
        assert self.script.asked_again
        return got


@pytest.fixture(scope="module")
def parties() -> Iterator[Parties]:
    script = Server()
    with ByteServer(script) as server, LocalEnclave(server.address) as enclave:
        made = Parties(server, script, enclave)
        try:
            yield made
        finally:
            made.close()


def assert_alike(expected: Seen, got: Seen, where: object) -> None:
    assert got[:2] == expected[:2], (where, expected, got)
    if expected[2] is None:
        assert got[2] is None, (where, expected, got)
    else:
        assert got[2] is not None and issubclass(got[2], expected[2]), (where, expected, got)


@pytest.mark.parametrize("name", ANSWERS)
def test_whole(parties: Parties, name: str) -> None:
    expected, all_got = parties.compare(ANSWERS[name])
    for got in all_got:
        if name in STRICTER:
            assert expected[2] is None and got[2] is enclavia.ProtocolError, (expected, got)
        else:
            assert_alike(expected, got, name)


@pytest.mark.parametrize("name", [each for each in ANSWERS if each not in STRICTER])
def test_cut(parties: Parties, name: str) -> None:
    answer = ANSWERS[name]
    first = len(name) % STEP  # not the same offsets in each
    for at in range(first, len(answer), STEP):
        expected, all_got = parties.compare(answer[:at])
        for got in all_got:
            assert_alike(expected, got, at)


@pytest.mark.parametrize("name", ["nothing", "sized", "chunked", "to the end", "old"])
def test_reset(parties: Parties, name: str) -> None:
    for at in {len(ANSWERS[name]) // 3, len(ANSWERS[name]) - 1 if ANSWERS[name] else 0}:
        expected, all_got = parties.compare(ANSWERS[name][:at], reset=True)
        for got in all_got:
            assert_alike(expected, got, at)
