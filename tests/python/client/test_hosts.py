"""Which hosts a client talks to: the enclave, and no other. For the blocking client, and for the
awaited one in asyncio, uvloop and trio."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from support import (
    HANG,
    KINDS,
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

pytestmark = [
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning"),
]


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/", "http://127.0.0.1:1/", "https://127.0.0.1:1/", "ftp://x/",
        "ftp://{authority}/", "//other.example/", "//127.0.0.1:1/x", "//other.example", "//[::1]/",
    ],
)  # fmt: skip
def test_other_hosts_are_refused(kind: str, url: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, server):
        url = url.replace("{authority}", f"127.0.0.1:{enclave.port}")

        async def case(client: Face) -> None:
            with pytest.raises(enclavia.ForeignURL) as caught:
                await client.get(url)
            assert isinstance(caught.value, httpx2.UnsupportedProtocol | ValueError)

        with_client(kind, enclave, case)
        assert not server.connections
        assert enclave.stats()["connections_total"] == 0


@pytest.mark.parametrize("url", ["models:list", "https:/x", "javascript:x", "https:x", "http:///x"])
def test_a_scheme_without_a_host_is_refused(kind: str, url: str) -> None:
    """httpx2 would take what follows the colon for a path, and send that."""
    with byte_enclave(answering(ok())) as (enclave, server):

        async def case(client: Face) -> None:
            for shown in (url, httpx2.URL(url)):
                with pytest.raises(enclavia.InvalidURL, match="is a scheme and no host follows"):
                    await client.call(client.client.get(shown))

        with_client(kind, enclave, case)
        assert not server.connections


def test_a_url_without_a_scheme_leads_to_its_own_host(kind: str) -> None:
    """RFC 3986, section 4.2. It is not relative to the path of the client's base URL."""
    paths: list[bytes] = []

    def script(connection: Connection) -> None:
        while True:
            paths.append(connection.request()[0].split(b" ")[1])
            connection.send(ok())

    with byte_enclave(script) as (enclave, _):
        own = f"//127.0.0.1:{enclave.port}"

        async def case(client: Face) -> None:
            for url in (f"{own}/x?q", httpx2.URL(f"{own}/x?q"), f"{own}/{'x' * 300}", "models/a:b"):
                assert (await client.call(client.client.get(url))).status_code == 200

        with_client(kind, enclave, case, base_url="/api")
        assert paths == [b"/x?q", b"/x?q", b"/" + b"x" * 300, b"/api/models/a:b"]


def test_another_host_is_refused_each_time_also_after_the_own_one(kind: str) -> None:
    """A URL that led to the enclave is not looked at again; one that was refused is."""
    foreign = httpx2.URL("https://other.example/")
    own = "/own"
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            for _ in range(2):
                for _ in range(2):
                    assert (await client.get(own)).status_code == 200
                for _ in range(2):
                    with pytest.raises(enclavia.ForeignURL):
                        await client.call(client.client.get(foreign))
                request = client.client.build_request("GET", own)
                request.url = foreign
                for _ in range(2):
                    with pytest.raises(enclavia.ForeignURL):
                        await client.call(client.client.send(request))
            assert client.client.stats.requests == 4

        with_client(kind, enclave, case)


def test_redirects(kind: str) -> None:
    locations = [b"/next", b"https://{own}/absolute", b"https://other.example/", b"http://{own}/"]

    def script(connection: Connection) -> None:
        while True:
            head = connection.request()[0]
            number = int(head.split(b" ")[1][1:]) if head[5:6].isdigit() else None
            if number is None:
                connection.send(ok(b"arrived"))
            else:
                location = locations[number].replace(b"{own}", b"127.0.0.1:%d" % enclave.port)
                connection.send(
                    b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % location
                )

    with byte_enclave(script) as (enclave, server):

        async def case(client: Face) -> None:
            assert (await client.get("/0")).status_code == 302
            for number in (0, 1, 3):
                assert (await client.get(f"/{number}", follow_redirects=True)).content == b"arrived"
            with pytest.raises(enclavia.ForeignURL):
                await client.get("/2", follow_redirects=True)

        with_client(kind, enclave, case)
        assert len(server.connections) == 1


def test_environment_proxies_are_not_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(client: Face) -> None:
            assert (await client.get("/")).status_code == 200

        with_client(kind, enclave, case)


def test_base_url_of_another_host(kind: str) -> None:
    cls: Any = enclavia.Client if kind == "sync" else enclavia.AsyncClient
    with pytest.raises(enclavia.ForeignURL, match="base_url"):
        cls("wss://e.example", debug_mode=True, base_url="https://other.example/api")
    client = cls("wss://e.example", debug_mode=True, base_url="https://e.example/api")
    assert client.base_url == "https://e.example/api/"
    assert cls("wss://e.example/tunnel", debug_mode=True).base_url == "https://e.example/"
    assert client.base_url.join("/v1") == "https://e.example/v1"


def test_wss_of_an_enclave_without_tls_is_not_tried_again(kind: str) -> None:
    """It will speak no TLS the next time either, however long the patience is."""
    cls: Any = enclavia.Client if kind == "sync" else enclavia.AsyncClient
    with byte_enclave(answering(ok())) as (enclave, _):
        url = enclave.url.replace("ws://", "wss://")

        async def case() -> None:
            face = Face(cls(url, **keywords(enclave, patience=HANG)))
            try:
                with pytest.raises(enclavia.ConnectError, match="is it ws://") as caught:
                    await face.get("/")
                assert type(caught.value) is enclavia.ConnectError
                assert not caught.value.retryable
            finally:
                await face.close()

        drive(kind, case)
