"""What ``Client`` does differently from httpx2's own, on purpose: the rows of docs/comparison.md
that no other test is about."""

from __future__ import annotations

import socket
import sys
from typing import Any

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


@pytest.mark.parametrize("url", ["no-scheme", "/x", "a/b:c", "?q"])
def test_a_url_without_scheme_and_host_is_a_path(url: str) -> None:
    client = enclavia.Client("wss://enclave.example", pcrs=PCRS)
    expected = httpx2.Client(base_url="https://enclave.example/").build_request("GET", url)
    assert client.build_request("GET", url).url == expected.url
    assert expected.url.host == "enclave.example"


@pytest.mark.parametrize("url", ["//x/y", "://x", "http:", "https:/y", "a:b/c"])
def test_a_url_with_only_one_of_the_two_is_refused(url: str) -> None:
    client = enclavia.Client("wss://enclave.example", pcrs=PCRS)
    like_httpx2 = httpx2.Client(base_url="https://enclave.example/").build_request("GET", url)
    assert like_httpx2.url.host == "enclave.example"
    with pytest.raises((enclavia.InvalidURL, enclavia.ForeignURL)):
        client.get(url)


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


HEADERS = {
    "a value": ({"x-word": "sécret"}, "'x-word'"),
    "a value of a bytes name": ({b"x-word": "sécret"}, "'x-word'"),
    "a value in a list": ([("a", "b"), ("x-word", "sécret")], "'x-word'"),
    "a value with half a character": ({"x-word": "sec\ud800ret"}, "'x-word'"),
    "a name": ({"x-wörd": "b"}, "'x-wörd'"),
}
CLIENTS: tuple[Any, ...] = (enclavia.Client, enclavia.AsyncClient)


@pytest.mark.parametrize("make", CLIENTS)
@pytest.mark.parametrize(("headers", "named"), HEADERS.values(), ids=HEADERS)
def test_text_that_no_header_can_have_is_named(make: Any, headers: Any, named: str) -> None:
    """httpx2 raises a bare UnicodeEncodeError, which does not say where the text came from."""
    client = make("wss://enclave.example", pcrs=PCRS)

    def assigned() -> None:
        client.headers = headers

    for call in (
        lambda: make("wss://enclave.example", pcrs=PCRS, headers=headers),
        assigned,
        lambda: client.build_request("GET", "/", headers=headers),
        lambda: client.sse("/", headers=headers),
    ):
        with pytest.raises(enclavia.InvalidRequest, match=named) as caught:
            call()
        assert "ret" not in str(caught.value)  # it may be a secret


@pytest.mark.parametrize("make", CLIENTS)
def test_text_that_no_cookie_can_have_is_named(make: Any) -> None:
    client = make("wss://enclave.example", pcrs=PCRS, cookies={"plain": "1"})
    jar = httpx2.Cookies({"word": "sécret"})
    for cookies in ({"word": "sécret"}, [("word", "sécret")], jar, jar.jar):
        with pytest.raises(enclavia.InvalidRequest, match="the cookie 'word'") as caught:
            client.build_request("GET", "/", cookies=cookies)
        assert "ret" not in str(caught.value)
    client.cookies = jar
    with pytest.raises(enclavia.InvalidRequest, match="the cookie 'word'"):
        client.build_request("GET", "/")


@pytest.mark.parametrize("make", CLIENTS)
@pytest.mark.parametrize(
    "options",
    [
        {"json": "\ud800"},
        {"content": "\ud800"},
        {"data": {"a": "\ud800"}},
        {"params": {"a": "\ud800"}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_text_that_no_request_can_have(make: Any, options: dict[str, Any]) -> None:
    client = make("wss://enclave.example", pcrs=PCRS)
    with pytest.raises(enclavia.InvalidRequest, match=r"utf-8, got U\+D800 at position"):
        client.build_request("POST", "/", **options)


@pytest.mark.parametrize("make", CLIENTS)
def test_bytes_and_headers_with_an_encoding_are_sent_as_they_are(make: Any) -> None:
    of_latin_1 = httpx2.Headers({"x": "é"}, encoding="latin-1")
    for headers in ({"x": b"\xe9"}, [(b"x", b"\xe9")], of_latin_1):
        client = make("wss://enclave.example", pcrs=PCRS, headers=headers)
        assert (b"x", b"\xe9") in client.build_request("GET", "/").headers.raw
        client = make("wss://enclave.example", pcrs=PCRS)
        assert (b"x", b"\xe9") in client.build_request("GET", "/", headers=headers).headers.raw
        client.headers = headers
        assert (b"x", b"\xe9") in client.build_request("GET", "/").headers.raw


@pytest.mark.parametrize("make", CLIENTS)
def test_a_missing_extra_is_named_as_this_package_has_it(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wsproto", None)
    client = make("wss://enclave.example", pcrs=PCRS)
    with pytest.raises(ImportError, match=r"wsproto.*pip install 'enclavia\[websocket\]'"):
        client.websocket("/ws")
