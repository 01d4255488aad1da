"""What ``Client`` does differently from httpx2's own, on purpose: the rows of docs/comparison.md
that no other test is about."""

from __future__ import annotations

import socket

import httpx2
import pytest
from enclave_peer import PCRS
from support import Connection, answering, byte_enclave, keywords, ok

import enclavia


def test_an_answer_that_is_here_frees_its_connection_before_it_is_read() -> None:
    with byte_enclave(answering(ok())) as (enclave, server):
        options = keywords(enclave, limits=httpx2.Limits(max_connections=1))
        with (
            enclavia.Client(enclave.url, **options) as client,
            client.stream("GET", "/") as first,
        ):
            assert client.get("/", timeout=httpx2.Timeout(10, pool=5)).text == "ok"
            assert first.read() == b"ok"
        assert len(server.connections) == 1


@pytest.mark.parametrize("url", ["no-scheme", "://x", "http:", "https:/y"])
def test_a_url_without_a_host_is_a_path(url: str) -> None:
    client = enclavia.Client("wss://enclave.example", pcrs=PCRS)
    expected = httpx2.Client(base_url="https://enclave.example/").build_request("GET", url)
    assert client.build_request("GET", url).url == expected.url
    assert expected.url.host == "enclave.example"


def test_cookies_for_https_alone_are_sent() -> None:
    heads: list[bytes] = []

    def script(connection: Connection) -> None:
        while True:
            heads.append(connection.request()[0])
            connection.send(ok(extra=b"Set-Cookie: s=1; Secure\r\n"))

    with (
        byte_enclave(script) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        client.get("/")
        client.get("/")
    assert b"Cookie: s=1" not in heads[0]
    assert b"Cookie: s=1" in heads[1]


def test_a_deadline_of_nothing_ends_in_connecting() -> None:
    """The server never answers: one that does may be faster than the thread that waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        client = enclavia.Client(url, pcrs=PCRS, timeout=1e-9)
        with pytest.raises(enclavia.ConnectTimeout):
            client.post("/", content=b"x")
        client.close()


def test_extensions_of_httpcore_are_ignored() -> None:
    with (
        byte_enclave(answering(ok())) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        answer = client.get("/", extensions={"sni_hostname": "other.example", "stream_id": 7})
        assert answer.text == "ok"
        assert "stream_id" not in answer.extensions
