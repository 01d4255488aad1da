"""A request with nothing around it is sent by a shorter way than httpx2's. Whatever can be seen of
its answer must be the same: each case goes both ways. And nothing that has something to do around
the request may take the shorter one.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from support import KINDS, Face, answering, byte_enclave, keywords, ok, with_client

import enclavia
from enclavia._client import async_client, client, httpx2_inside
from enclavia.testing import LocalEnclave

pytestmark = pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")

RESPONSES = {
    "small": ok(b"hello"),
    "empty": b"HTTP/1.1 204 No Content\r\n\r\n",
    "long": ok(b"x" * 300_000),
    "cookies": ok(extra=b"Set-Cookie: a=1\r\nSet-Cookie: b=2; Path=/p\r\n"),
    "latin": ok(b"\xe9", b"Content-Type: text/plain; charset=latin-1\r\n"),
    "undeclared": ok(b"\xe9", b"Content-Type: text/plain\r\n"),
    "redirect": b"HTTP/1.1 303 See\r\nLocation: /there\r\nContent-Length: 2\r\n\r\nxx",
    "bad redirect": b"HTTP/1.1 302 Found\r\nLocation: https://[bad/\r\nContent-Length: 0\r\n\r\n",
    "no location": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
    "error": b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n",
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Which way each request went: True where it was the shorter one."""
    ways: list[bool] = []
    asked = httpx2_inside.is_simple

    def noted(*args: Any) -> bool:
        ways.append(asked(*args))
        return ways[-1]

    for module in (client, async_client):
        monkeypatch.setattr(module, "is_simple", noted)
    return ways


def facts(response: httpx2.Response) -> dict[str, object]:
    following = response.next_request
    return {
        "status": response.status_code,
        "reason": response.reason_phrase,
        "version": response.http_version,
        "headers": response.headers.raw,
        "content": response.content,
        "text": response.text,
        "bytes": response.num_bytes_downloaded,
        "url": str(response.url),
        "sent": response.request.headers.raw,
        "history": response.history,
        "next": following and (following.method, str(following.url)),
        "closed": (response.is_closed, response.is_stream_consumed),
        "timed": response.elapsed.total_seconds() > 0,
        "cookies": dict(response.cookies),
    }


def both_ways(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], list[object]]
) -> tuple[list[object], list[object]]:
    plainly = run()
    for module in (client, async_client):
        monkeypatch.setattr(module, "is_simple", lambda *args: False)
    return plainly, run()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RESPONSES)
def test_the_same_answer(
    kind: str,
    name: str,
    taken: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="httpx2")

    with byte_enclave(answering(*[RESPONSES[name]] * 12)) as (enclave, _):

        def run() -> list[object]:
            seen: list[object] = []

            async def case(client: Face) -> None:
                for _ in range(3):
                    try:
                        seen.append(facts(await client.get("/p/a")))
                    except Exception as error:
                        seen.append((type(error), str(error)))

            caplog.clear()
            with_client(kind, enclave, case, default_encoding="latin-1")
            return [*seen, *(each.getMessage() for each in caplog.records if each.name == "httpx2")]

        plainly, wholly = both_ways(monkeypatch, run)
    assert any(taken)
    assert plainly == wholly and len(plainly) >= 3


def test_errors_name_their_request() -> None:
    with byte_enclave(answering(b"nonsense\r\n\r\n")) as (enclave, _):
        options = keywords(enclave, retries=0)
        with enclavia.Client(enclave.url, **options) as client:
            request = client.build_request("GET", "/x")
            with pytest.raises(httpx2.RemoteProtocolError) as caught:
                client.send(request)
            assert caught.value.request is request


@pytest.mark.parametrize(
    ("made", "sent"),
    [
        ({"auth": ("u", "p")}, {}),
        ({}, {"auth": ("u", "p")}),
        ({"follow_redirects": True}, {}),
        ({}, {"follow_redirects": True}),
        ({"event_hooks": {"request": [lambda request: None]}}, {}),
        ({"event_hooks": {"response": [lambda response: None]}}, {}),
    ],
    ids=["auth", "auth of one", "redirects", "redirects of one", "before", "after"],
)
def test_what_is_not_plain_goes_through_httpx2(
    made: dict[str, Any], sent: dict[str, Any], taken: list[bool]
) -> None:
    with (
        byte_enclave(answering(ok(), ok())) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave, **made)) as client,
    ):
        assert client.get("/", **sent).status_code == 200
    assert taken == [False]


def test_credentials_in_the_url_are_sent(taken: list[bool]) -> None:
    heads: list[bytes] = []

    def script(connection: Any) -> None:
        heads.append(connection.request()[0])
        connection.send(ok())

    with (
        byte_enclave(script) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        client.get(f"https://user:pass@127.0.0.1:{enclave.port}/")
    assert taken == [False]
    assert b"Authorization: Basic dXNlcjpwYXNz" in heads[0]


def test_a_closed_client_says_so(taken: list[bool]) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        client = enclavia.Client(enclave.url, **keywords(enclave))
        client.get("/")
        client.close()
        with pytest.raises(RuntimeError, match="has been closed"):
            client.get("/")


def test_a_body_of_the_other_kind_is_refused() -> None:
    async def pieces() -> Any:
        yield b"x"

    def blocking() -> Iterator[bytes]:
        yield b"x"

    async def awaited(enclave: LocalEnclave) -> None:
        async with enclavia.AsyncClient(enclave.url, **keywords(enclave)) as client:
            with pytest.raises(RuntimeError, match="sync request"):
                await client.post("/", content=blocking())

    with byte_enclave(answering(ok())) as (enclave, _):
        with (
            enclavia.Client(enclave.url, **keywords(enclave)) as client,
            pytest.raises(RuntimeError, match="async request"),
        ):
            client.post("/", content=pieces())
        asyncio.run(awaited(enclave))


def test_what_is_changed_in_an_answer_stays_there() -> None:
    with (
        byte_enclave(answering(*[ok(extra=b"X-A: 1\r\n")] * 2)) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        first = client.get("/")
        first.headers["x-a"] = "changed"
        del first.headers["content-length"]
        second = client.get("/")
    assert second.headers["x-a"] == "1" and second.headers["content-length"] == "2"


def test_a_head_seen_before_means_what_the_request_makes_of_it() -> None:
    """The same bytes answer a GET with a body, a HEAD without one."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    with (
        byte_enclave(answering(head + b"ok", head, head + b"no")) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        assert client.get("/").content == b"ok"
        assert client.head("/").content == b""
        assert client.get("/").content == b"no"


def test_headers_changed_after_a_request_are_sent_with_the_next() -> None:
    heads: list[bytes] = []

    def script(connection: Any) -> None:
        while True:
            heads.append(connection.request()[0])
            connection.send(ok())

    with (
        byte_enclave(script) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        request = client.build_request("GET", "/")
        client.send(request)
        request.headers["x-late"] = "1"
        client.send(request)
        client.headers["x-client"] = "2"
        client.get("/")
    assert [b"x-late: 1" in head for head in heads] == [False, True, False]
    assert [b"x-client: 2" in head for head in heads] == [False, False, True]


def test_what_was_said_to_one_enclave_is_remembered_by_its_client_only() -> None:
    """Heads hold cookies and credentials: no part of them stays where the whole process looks."""
    modules = [
        module
        for name, module in sys.modules.items()
        if name.startswith(("enclavia._client.", "enclavia._exchange.", "enclavia._http1."))
    ]
    assert len(modules) > 15
    for module in modules:
        for name, value in vars(module).items():
            info = getattr(value, "cache_info", None)
            assert info is None or info().maxsize is None, f"{module.__name__}.{name}"
    with (
        byte_enclave(answering(*[ok()] * 2)) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as one,
        enclavia.Client(enclave.url, **keywords(enclave)) as other,
    ):
        one.get("/")
        assert [c._enclave._fields_of.cache_info().currsize for c in (one, other)] == [1, 0]
        assert [c._enclave._engine._head_of.cache_info().currsize for c in (one, other)] == [1, 0]


@pytest.mark.parametrize("empty", [{}, [], (), "", httpx2.QueryParams()], ids=repr)
@pytest.mark.parametrize("cls", [enclavia.Client, enclavia.AsyncClient])
def test_what_empty_params_did_to_a_url_is_not_remembered(cls: Any, empty: Any) -> None:
    client = cls("wss://enclave.example", debug_mode=True)
    plain = httpx2.Client(base_url="https://enclave.example/")
    for params in (empty, None, {"a": "1"}, None, empty, None):
        for method in ("GET", "DELETE"):
            ours, theirs = (
                each.build_request(method, "/rows?id=7", params=params) for each in (client, plain)
            )
            assert ours.url == theirs.url
    assert client.build_request("DELETE", "/rows?id=7").url.query == b"id=7"


def test_an_option_of_another_name_is_refused_each_time() -> None:
    client = enclavia.Client("wss://enclave.example", debug_mode=True)
    for _ in range(2):
        client.build_request("GET", "/")
        with pytest.raises(TypeError, match="parms"):
            client.build_request("GET", "/", parms=None)
