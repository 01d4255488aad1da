"""Nothing for the enclave's authority leaves the tunnel, however a URL of it is spelled, and
whichever library follows it."""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from listening import end_listening
from support import Connection, byte_enclave, keywords, ok

import enclavia
from enclavia._channel.authority import keep_inside
from enclavia._channel.url import EnclaveURL

requests = pytest.importorskip("requests")
httpx = pytest.importorskip("httpx")

import enclavia.httpx as over_httpx  # noqa: E402
import enclavia.requests as over_requests  # noqa: E402

PCRS = enclavia.Pcrs(pcr0=b"\1" * 48, pcr1=b"\2" * 48, pcr2=b"\3" * 48)

# The enclave, and the authorities that are the same: each with http:// and https:// before it.
OWN: dict[str, tuple[str, ...]] = {
    "wss://enclave.example": (
        "enclave.example",
        "ENCLAVE.example",
        "enclave.example.",
        "enclave.example:443",
        "user:pass@enclave.example",
        "user@enclave.example:443",
        "%65nclave.example",
    ),
    "ws://enclave.example": ("enclave.example", "enclave.example:80", "eNclave.example.:80"),
    "wss://enclave.example:8443": ("enclave.example:8443", "me@Enclave.Example:8443"),
    "ws://enclave.example:443": ("enclave.example:443",),
    "wss://xn--bcher-kva.example": ("bücher.example", "BÜCHER.example", "XN--BCHER-KVA.example."),
    "wss://[2001:db8::1]": (
        "[2001:db8::1]",
        "[2001:DB8:0:0:0:0:0:1]",
        "[2001:db8::1]:443",
        "[2001:db8::1%251]",
        "[2001:db8::1%25eth0]",
    ),
    "ws://127.0.0.1:9000": ("127.0.0.1:9000", "[::ffff:127.0.0.1]:9000"),
}
ANY_SCHEME = [
    (enclave, f"{scheme}://{authority}/next?q=1")
    for enclave, authorities in OWN.items()
    for authority in authorities
    for scheme in ("https", "http", "HTTP")
]
# A port that is the default of the URL's scheme alone still names the usual port of the enclave.
ANY_SCHEME += [
    ("wss://enclave.example", "http://enclave.example:80/next?q=1"),
    ("ws://enclave.example", "https://enclave.example:443/next?q=1"),
    ("ws://enclave.example:443", "https://enclave.example/next?q=1"),
]
FOREIGN = [
    ("wss://enclave.example", "https://enclave.example:8443/"),
    ("wss://enclave.example", "http://enclave.example:8080/"),
    ("wss://enclave.example", "https://enclave.example@other.example/"),
    ("wss://enclave.example", "https://enclave.example.other.example/"),
    ("wss://enclave.example:8443", "https://enclave.example/"),
    ("wss://enclave.example:8443", "http://enclave.example:80/"),
    ("ws://127.0.0.1:9000", "http://127.0.0.1:9001/"),
    ("ws://127.0.0.1:9000", "http://127.0.0.2:9000/"),
]


class Outside(requests.adapters.BaseAdapter):
    """Stands for a session's own adapters: remembers what would have left."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        self.sent.append(request.url)
        response = requests.Response()
        response.status_code, response.url, response.request = 200, request.url, request
        response._content = b"outside"
        return response

    def close(self) -> None:
        pass


class Inside:
    """Stands for the tunnel: remembers what goes into it, and redirects the first request."""

    def __init__(self, location: str | None) -> None:
        self.location = location
        self.requests: list[httpx2.Request] = []

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        location, self.location = self.location, None
        if location is None:
            return httpx2.Response(200, content=b"inside")
        headers = [(b"Location", location.encode()), (b"Content-Length", b"0")]
        return httpx2.Response(307, headers=headers, content=b"")

    async def aanswer(self, request: httpx2.Request) -> httpx2.Response:
        return self.answer(request)


def verified(enclave: str) -> bool:
    """Whether TLS is: an IPv6 address stands in no certificate that the core can check."""
    return "[" not in enclave


def adapter_of(enclave: str, location: str | None, monkeypatch: Any) -> tuple[Any, Inside]:
    adapter = over_requests.EnclaveAdapter(enclave, pcrs=PCRS, verify=verified(enclave))
    inside = Inside(location)
    monkeypatch.setattr(adapter._enclave, "handle_request", inside.answer)
    return adapter, inside


def session_with_others(outside: Outside) -> Any:
    session = requests.Session()
    session.trust_env = False
    for prefix in ("https://", "http://", "https://enclave.example/next"):
        session.mount(prefix, outside)
    return session


def expect_inside(enclave: str, inside: Inside, count: int) -> None:
    assert len(inside.requests) == count
    base = EnclaveURL.parse(enclave).base_url
    for request in inside.requests:
        assert request.url.copy_with(raw_path=b"/") == base
        assert request.headers["host"] == base.netloc.decode()
    assert inside.requests[-1].extensions["target"] == b"/next?q=1"


@pytest.mark.parametrize("spelling", ["https", "http"])
@pytest.mark.parametrize(("enclave", "url"), ANY_SCHEME)
def test_requests_follows_into_the_tunnel(
    enclave: str, url: str, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounted on the base URL only, or on the same authority by http."""
    outside = Outside()
    adapter, inside = adapter_of(enclave, url, monkeypatch)
    authority = EnclaveURL.parse(enclave).authority
    base = adapter.base_url if spelling == "https" else f"http://{authority}/"
    session = requests.Session()
    session.trust_env = False
    session.mount("https://", outside)
    session.mount("http://", outside)
    session.mount(base, adapter)
    got = session.post(base + "first", data=b"secret", headers={"Authorization": "Bearer t"})
    assert outside.sent == []
    expect_inside(enclave, inside, 2)
    assert got.text == "inside"
    assert inside.requests[1].read() == b"secret"
    assert inside.requests[1].headers["authorization"] == "Bearer t"


@pytest.mark.parametrize(("enclave", "url"), ANY_SCHEME)
def test_requests_asks_into_the_tunnel(
    enclave: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever mounts it as the documentation says may write a URL in any way."""
    outside = Outside()
    adapter, inside = adapter_of(enclave, None, monkeypatch)
    session = session_with_others(outside)
    adapter.mount_on(session)
    adapter.mount_on(session)  # again does no harm
    assert session.get(url).text == "inside"
    assert outside.sent == []
    expect_inside(enclave, inside, 1)


@pytest.mark.parametrize(("enclave", "url"), ANY_SCHEME)
def test_requests_session_takes_any_spelling(
    enclave: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = over_requests.session(enclave, pcrs=PCRS, verify=verified(enclave))
    inside = Inside(url)
    monkeypatch.setattr(session._adapter._enclave, "handle_request", inside.answer)
    assert session.get(url).text == "inside"
    expect_inside(enclave, inside, 2)


@pytest.mark.parametrize(("enclave", "url"), FOREIGN)
def test_requests_leaves_others_alone(
    enclave: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = Outside()
    adapter, inside = adapter_of(enclave, url, monkeypatch)
    session = session_with_others(outside)
    adapter.mount_on(session)
    assert session.get(url).text == "outside"
    assert not inside.requests
    assert session.get(adapter.base_url + "first").text == "outside"
    assert outside.sent == [url, url]
    with pytest.raises(requests.exceptions.InvalidSchema):
        over_requests.session(enclave, pcrs=PCRS, verify=verified(enclave)).get(url)


@pytest.mark.parametrize(
    "outside_url",
    [
        "http://enclave.example:8080/",  # cookies know no ports
        "https://enclave.example:80/",
        "https://other.enclave.example/",  # the domain of the second cookie
    ],
)
@pytest.mark.parametrize("how", ["asked", "redirected", "pickled"])
def test_cookies_of_the_enclave_stay_in_the_tunnel(
    outside_url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [
        httpx2.Response(
            200,
            headers=[
                (b"Set-Cookie", b"sid=secret; Path=/"),
                (b"set-cookie", b'wide="a secret"; Domain=enclave.example; Path=/; HttpOnly'),
                (b"Set-Cookie", b"odd"),
                (b"Set-Cookie", b""),
            ],
            content=b"inside",
        ),
        httpx2.Response(307, headers=[(b"Location", outside_url.encode())], content=b""),
        httpx2.Response(200, content=b"inside"),
    ]
    if how != "redirected":
        del answers[1]
    asked: list[httpx2.Request] = []

    def answer(_: Any, request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return answers.pop(0)

    left: list[Any] = []

    def send(self: Outside, request: Any, *args: Any, **options: Any) -> Any:
        left.append(request)
        return plain_send(self, request, *args, **options)

    plain_send = Outside.send
    monkeypatch.setattr(Outside, "send", send)
    monkeypatch.setattr(enclavia.EnclaveTransport, "handle_request", answer)
    adapter = over_requests.EnclaveAdapter("wss://enclave.example", pcrs=PCRS)
    session = session_with_others(Outside())
    adapter.mount_on(session)
    session.cookies.set("own", "mine", domain="")
    session.get(adapter.base_url)
    assert session.cookies["sid"] == "secret"
    if how == "pickled":
        session = pickle.loads(pickle.dumps(session))
    url = adapter.base_url if how == "redirected" else outside_url
    assert session.get(url, cookies={"more": "1"}).text == "outside"
    assert [request.url for request in left] == [outside_url]
    sent = left[0].headers.get("Cookie", "")
    assert sorted(sent.split("; ")) == ["more=1", "own=mine"]
    session.get(adapter.base_url)
    assert "sid=secret" in asked[-1].headers["cookie"]
    assert 'wide="a secret"' in asked[-1].headers["cookie"]


def test_requests_mounting_survives_pickling(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_with_others(Outside())
    over_requests.EnclaveAdapter("wss://enclave.example", pcrs=PCRS).mount_on(session)
    copy = pickle.loads(pickle.dumps(session))
    inside = Inside(None)
    monkeypatch.setattr(enclavia.EnclaveTransport, "handle_request", lambda _, r: inside.answer(r))
    for url in ("http://enclave.example/next?q=1", "https://me@enclave.example./next?q=1"):
        assert copy.get(url).text == "inside"
    expect_inside("wss://enclave.example", inside, 2)
    assert copy.get("https://other.example/").text == "outside"
    own = over_requests.session("wss://enclave.example", pcrs=PCRS)
    assert pickle.loads(pickle.dumps(own)).base_url == own.base_url == "https://enclave.example/"


def test_requests_original_location_is_kept_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    location = "http://enclave.example/next?q=1#part"
    adapter, _ = adapter_of("wss://enclave.example", location, monkeypatch)
    session = requests.Session()
    session.mount(adapter.base_url, adapter)
    got = session.get(adapter.base_url, allow_redirects=False)
    assert got.headers["Location"] == "https://enclave.example/next?q=1#part"
    assert got.raw.headers["Location"] == location
    assert list(got.headers) == ["Location", "Content-Length"]


@pytest.mark.parametrize(
    "location", ["/a", "b?c", "//enclave.example/d", "https://enclave.example/e"]
)
def test_requests_other_locations_stay_as_they_are(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = adapter_of("wss://enclave.example", location, monkeypatch)
    session = requests.Session()
    session.mount(adapter.base_url, adapter)
    got = session.get(adapter.base_url, allow_redirects=False)
    assert got.headers["Location"] == location


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
@pytest.mark.parametrize("mounts", [False, True])
@pytest.mark.parametrize(("enclave", "url"), ANY_SCHEME)
def test_httpx_follows_into_the_tunnel(
    enclave: str, url: str, mounts: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "%65" in url:
        pytest.skip("httpx takes no percent-encoded host")
    inside = Inside(url)
    left: list[httpx.Request] = []

    def outside(request: httpx.Request) -> httpx.Response:
        left.append(request)
        return httpx.Response(200, content=b"outside")

    def options(transport: Any) -> dict[str, Any]:
        if not mounts:
            return {"transport": transport}
        pattern = f"https://{httpx.URL(transport.base_url).netloc.decode()}"
        return {"mounts": {pattern: transport}, "transport": httpx.MockTransport(outside)}

    sent = {"content": b"secret", "headers": {"Authorization": "Bearer t"}}

    async def asynchronously() -> str:
        transport = over_httpx.AsyncEnclaveTransport(enclave, pcrs=PCRS, verify=verified(enclave))
        monkeypatch.setattr(transport._enclave, "handle_async_request", inside.aanswer)
        client = httpx.AsyncClient(follow_redirects=True, **options(transport))
        return (await client.post(transport.base_url + "first", **sent)).text

    if kind == "sync":
        transport = over_httpx.EnclaveTransport(enclave, pcrs=PCRS, verify=verified(enclave))
        monkeypatch.setattr(transport._enclave, "handle_request", inside.answer)
        client = httpx.Client(follow_redirects=True, **options(transport))
        got = client.post(transport.base_url + "first", **sent).text
    else:
        got = anyio.run(asynchronously)
    assert not left
    assert got == "inside"
    expect_inside(enclave, inside, 2)
    assert inside.requests[1].headers["authorization"] == "Bearer t"


@pytest.mark.parametrize("location", ["http://[fe80::1%é]/", "//[fe80::1%25é]/x", "http://[::1]x/"])
def test_httpx_takes_an_answer_whose_location_names_nothing(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = over_httpx.EnclaveTransport("wss://enclave.example", pcrs=PCRS)
    monkeypatch.setattr(transport._enclave, "handle_request", Inside(location).answer)
    got = transport.handle_request(httpx.Request("GET", transport.base_url))
    assert got.status_code == 307
    assert got.headers.raw[0] == (b"Location", location.encode())


@pytest.mark.parametrize(("enclave", "url"), ANY_SCHEME)
def test_httpx_asks_into_the_tunnel(
    enclave: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "%65" in url:
        pytest.skip("httpx takes no percent-encoded host")
    inside = Inside(None)
    transport = over_httpx.EnclaveTransport(enclave, pcrs=PCRS, verify=verified(enclave))
    monkeypatch.setattr(transport._enclave, "handle_request", inside.answer)
    assert httpx.Client(transport=transport).get(url).text == "inside"
    expect_inside(enclave, inside, 1)


@pytest.mark.parametrize(("enclave", "url"), FOREIGN)
def test_httpx_reaches_nothing_else(enclave: str, url: str) -> None:
    transport = over_httpx.EnclaveTransport(enclave, pcrs=PCRS, verify=verified(enclave))
    with pytest.raises(httpx.UnsupportedProtocol) as caught:
        httpx.Client(transport=transport).get(url)
    assert isinstance(caught.value.__cause__, enclavia.ForeignURL)


# ---------------------------------------------------------------------------------------------
# on the wire


@contextlib.contextmanager
def watched(port: int) -> Iterator[tuple[int, bytearray]]:
    """A router on loopback, and all that it can read of what clients send."""
    seen = bytearray()

    def pump(source: socket.socket, sink: socket.socket, keep: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if keep:
                    seen.extend(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                enclave = socket.create_connection(("127.0.0.1", port))
                for ends in ((client, enclave, True), (enclave, client, False)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        end_listening(listener, acceptor)


def redirecting_by_http(connection: Connection) -> None:
    """As Starlette and Flask do where a slash is missing."""
    while True:
        head, body = connection.request()
        host = head.partition(b"Host: ")[2].partition(b"\r\n")[0]
        if head.split(b" ")[1].endswith(b"/"):
            connection.send(ok(body))
        else:
            connection.send(
                b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://%b/items/\r\n"
                b"Content-Length: 0\r\n\r\n" % host
            )


def test_the_router_reads_nothing_of_a_redirected_request() -> None:
    with byte_enclave(redirecting_by_http) as (enclave, _), watched(enclave.port) as (port, seen):
        url, options = f"ws://127.0.0.1:{port}", keywords(enclave)
        sent: dict[str, Any] = {"headers": {"X-Key": "SECRET"}, "cookies": {"c": "SECRET"}}
        adapter = over_requests.EnclaveAdapter(url, **options)
        with requests.Session() as own:
            own.trust_env = False
            own.mount(adapter.base_url, adapter)
            got = own.post(adapter.base_url + "items", data=b"SECRET", timeout=5, **sent)
            assert (got.text, len(got.history)) == ("SECRET", 1)
        with over_requests.session(url, **options) as session:
            got = session.post(session.base_url + "items", data=b"SECRET", timeout=5, **sent)
            assert (got.text, len(got.history)) == ("SECRET", 1)
        with (
            over_httpx.EnclaveTransport(url, **options) as transport,
            httpx.Client(mounts={f"https://127.0.0.1:{port}": transport}) as client,
        ):
            got = client.post(
                transport.base_url + "items",
                content=b"SECRET",
                headers=sent["headers"],
                follow_redirects=True,
            )
            assert (got.text, len(got.history)) == ("SECRET", 1)
    assert b"Upgrade: websocket" in seen
    assert b"SECRET" not in seen
    assert b"/items" not in seen


@pytest.mark.parametrize("scheme", ["https", "http", "all"])
@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_the_router_reads_nothing_where_a_transport_is_mounted(kind: str, scheme: str) -> None:
    """Ours, on a client of httpx2's that has another transport for all else. Mounted for one
    scheme, for which the enclave is asked, or for all; and after pickling."""
    with byte_enclave(redirecting_by_http) as (enclave, _), watched(enclave.port) as (port, seen):
        url, authority = f"ws://127.0.0.1:{port}", f"127.0.0.1:{port}"
        asked = f"{'https' if scheme == 'all' else scheme}://{authority}/items"
        sent: dict[str, Any] = {"content": b"SECRET", "headers": {"X-Key": "SECRET"}}
        cookies = {"c": "SECRET"}
        options: dict[str, Any] = {"follow_redirects": True, "trust_env": False, "cookies": cookies}

        def check(got: httpx2.Response) -> None:
            assert (got.text, len(got.history)) == ("SECRET", 1)
            assert str(got.url) == asked + "/"

        def synchronously(transport: enclavia.EnclaveTransport) -> None:
            mounts = {f"{scheme}://{authority}": transport}
            with httpx2.Client(mounts=mounts, **options) as client:
                check(client.post(asked, **sent))

        async def asynchronously(transport: enclavia.AsyncEnclaveTransport) -> None:
            mounts = {f"{scheme}://{authority}": transport}
            async with httpx2.AsyncClient(mounts=mounts, **options) as client:
                check(await client.post(asked, **sent))

        if kind == "sync":
            transport = enclavia.EnclaveTransport(url, **keywords(enclave))
            synchronously(pickle.loads(pickle.dumps(transport)))
            synchronously(transport)
        else:
            awaited = enclavia.AsyncEnclaveTransport(url, **keywords(enclave))
            anyio.run(asynchronously, pickle.loads(pickle.dumps(awaited)))
            anyio.run(asynchronously, awaited)
    assert b"Upgrade: websocket" in seen
    assert b"SECRET" not in seen
    assert b"/items" not in seen


LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])


@LIBRARIES
@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.parametrize(("enclave", "url"), ANY_SCHEME)
def test_a_location_is_written_as_what_was_asked_for(
    enclave: str, url: str, scheme: str, library: Any
) -> None:
    if "%65" in url:
        pytest.skip("httpx takes no percent-encoded host")
    own = EnclaveURL.parse(enclave)
    asked = library.URL(f"{scheme}://{own.authority}/first")
    headers = library.Headers([(b"Location", url.encode())])
    keep_inside(own, headers, asked, library.InvalidURL)
    found = library.URL(headers["location"])
    assert (found.scheme, found.host, found.port) == (scheme, asked.host, asked.port)
    assert found.raw_path == b"/next?q=1"


@LIBRARIES
@pytest.mark.parametrize(
    ("enclave", "location"),
    [
        *FOREIGN,
        *(("wss://enclave.example", text) for text in ("/a", "b?c", "", "http://[", "javascript:1",
          "https://enclave.example/e", "//enclave.example/d", "ftp://enclave.example/")),
    ],
)  # fmt: skip
def test_another_location_stays_as_it_is(enclave: str, location: str, library: Any) -> None:
    own = EnclaveURL.parse(enclave)
    headers = library.Headers({"Location": location})
    keep_inside(own, headers, library.URL(f"https://{own.authority}/first"), library.InvalidURL)
    assert headers["location"] == location


def test_a_client_of_ours_shows_a_location_as_it_was_sent() -> None:
    """It follows it inside the tunnel by itself, and has no other transport."""
    with byte_enclave(redirecting_by_http) as (enclave, _):
        with enclavia.Client(enclave.url, **keywords(enclave)) as client:
            got = client.get("/items")
            assert got.headers["location"] == f"http://127.0.0.1:{enclave.port}/items/"
            assert got.next_request is not None
            assert got.next_request.url.scheme == client.base_url.scheme
        copy = pickle.loads(pickle.dumps(enclavia.Client(enclave.url, **keywords(enclave))))
        with copy:
            assert copy.get("/items").headers["location"].startswith("http://")


# ---------------------------------------------------------------------------------------------
# the environment


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials in all places where libraries look for them."""
    netrc = tmp_path / ".netrc"
    netrc.write_text(
        "machine 127.0.0.1 login corp password SECRET\ndefault login corp password SECRET\n"
    )
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://corp:SECRET@127.0.0.1:1")
        monkeypatch.setenv(name.lower(), "http://corp:SECRET@127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("path", ["items/", "items"])
def test_credentials_of_the_environment_are_not_used(path: str) -> None:
    heads: list[bytes] = []

    def script(connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            heads.append(head)
            redirect = b"HTTP/1.1 302 Found\r\nLocation: http://%b/to/\r\nContent-Length: 0\r\n\r\n"
            host = head.partition(b"Host: ")[2].partition(b"\r\n")[0]
            connection.send(ok() if head.split(b" ")[1].endswith(b"/") else redirect % host)

    with byte_enclave(script) as (enclave, _):
        options = keywords(enclave)
        with over_requests.session(enclave.url, **options) as session:
            assert session.get(session.base_url + path).text == "ok"
            copy = pickle.loads(pickle.dumps(session))
            assert copy.get(session.base_url + path).text == "ok"
            copy.close()
            by_http = session.base_url.replace("https", "http")
            assert session.get(by_http + path).text == "ok"
        with (
            over_httpx.EnclaveTransport(enclave.url, **options) as transport,
            httpx.Client(transport=transport, follow_redirects=True) as client,
        ):
            assert client.get(transport.base_url + path).text == "ok"
        with enclavia.Client(enclave.url, **options) as ours:
            assert ours.get(path, follow_redirects=False).status_code in (200, 302)

        async def asynchronously() -> None:
            transport = over_httpx.AsyncEnclaveTransport(enclave.url, **options)
            async with httpx.AsyncClient(transport=transport, follow_redirects=True) as client:
                assert (await client.get(transport.base_url + path)).text == "ok"

        anyio.run(asynchronously)
    assert len(heads) >= 6
    for head in heads:
        assert b"authorization" not in head.lower()
        assert b"SECRET" not in head


@pytest.mark.usefixtures("environment")
def test_credentials_for_a_proxy_stay_out_of_the_tunnel() -> None:
    """A session of the user's own adds the proxy's credentials to what it follows by http://."""
    heads: list[bytes] = []

    def script(connection: Connection) -> None:
        heads.append(connection.request()[0])
        connection.send(b"HTTP/1.1 302 Found\r\nLocation: /to\r\nContent-Length: 0\r\n\r\n")
        heads.append(connection.request()[0])
        connection.send(ok())

    with byte_enclave(script) as (enclave, _), requests.Session() as session:
        adapter = over_requests.EnclaveAdapter(enclave.url, **keywords(enclave))
        adapter.mount_on(session)
        session.get(adapter.base_url.replace("https", "http"), auth=("me", "mine"))
    assert len(heads) == 2
    assert not [head for head in heads if b"proxy-authorization" in head.lower()]
