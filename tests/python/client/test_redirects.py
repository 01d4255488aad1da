"""Where a redirect may lead. ``http://`` before the enclave's own authority is what frameworks
write that redirect to the same path with a slash: it is the enclave, and stays in the tunnel."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from listening import end_listening, hang_up
from support import HANG, KINDS, Connection, Face, byte_enclave, drive, keywords, ok, with_client

import enclavia
from enclavia.testing import LocalEnclave

pytestmark = pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")

# Location (``{own}``: host and port of the enclave), and the target that is asked for inside the
# tunnel; None where nothing is.
LOCATIONS: list[tuple[str, str | None]] = [
    ("/items/", "/items/"),
    ("items/?a=b", "/items/?a=b"),
    ("//{own}/items/", "/items/"),
    ("http://{own}/items/", "/items/"),
    ("HTTP://{own}/items/", "/items/"),
    ("https://{own}/items/", "/items/"),
    ("ws://{own}/items/", "/items/"),
    ("wss://{own}/items/", "/items/"),
    ("http://{own}", "/"),
    ("http://user:pass@{own}/items/", "/items/"),
    ("http://{own}@other.example/items/", None),
    ("http://{own}.other.example/items/", None),
    ("http:///items/", None),
    ("http://{host}/items/", None),
    ("http://{host}:1/items/", None),
    ("https://{host}.:{port}/items/", None),
    ("http://other.example/items/", None),
    ("//other.example/items/", None),
    ("ftp://{own}/items/", None),
    ("file:///etc/passwd", None),
    ("javascript:alert(1)", None),
    ("data:,x", None),
]


def redirecting(location: str, requests: list[tuple[bytes, bytes]], port: list[int]) -> Any:
    def script(connection: Connection) -> None:
        while True:
            requests.append(connection.request())
            if not requests[-1][0].startswith((b"POST /items ", b"GET /items ")):
                connection.send(ok(b"arrived"))
                continue
            own = location.format(own=f"127.0.0.1:{port[0]}", host="127.0.0.1", port=port[0])
            connection.send(
                b"HTTP/1.1 307 Slash\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % own.encode()
            )

    return script


@contextlib.contextmanager
def tapped(enclave: LocalEnclave) -> Iterator[tuple[int, bytearray]]:
    """A relay before the enclave, and all bytes that go through it: what the network sees."""
    seen = bytearray()
    listener = socket.create_server(("127.0.0.1", 0))
    sockets: list[socket.socket] = []
    pumps: list[threading.Thread] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                seen.extend(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                inner = listener.accept()[0]
                outer = socket.create_connection(("127.0.0.1", enclave.port))
                sockets.extend((inner, outer))
                for ends in ((inner, outer), (outer, inner)):
                    pumps.append(threading.Thread(target=pump, args=ends, daemon=True))
                    pumps[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        end_listening(listener, acceptor)
        for each in sockets:
            hang_up(each)
        for thread in pumps:
            thread.join(HANG)
        for each in sockets:
            each.close()


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
@pytest.mark.parametrize(("location", "target"), LOCATIONS, ids=[each[0] for each in LOCATIONS])
def test_where_a_redirect_leads(kind: str, location: str, target: str | None) -> None:
    requests: list[tuple[bytes, bytes]] = []
    port: list[int] = []
    with contextlib.ExitStack() as stack:
        enclave, _ = stack.enter_context(byte_enclave(redirecting(location, requests, port)))
        with tapped(enclave) as (tap, seen):
            port.append(tap)

            async def case(client: Face) -> None:
                client.client.cookies.set("session", "COOKIESECRET")
                sending = client.post(
                    "/items", content=b"BODYSECRET", follow_redirects=True, auth=("u", "KEYSECRET")
                )
                if target is None:
                    with pytest.raises((enclavia.ForeignURL, enclavia.ProtocolError)):
                        await sending
                else:
                    response = await sending
                    assert response.content == b"arrived"
                    assert response.url.scheme == "https"
                    assert (response.url.host, response.url.port) == ("127.0.0.1", tap)

            cls = enclavia.Client if kind == "sync" else enclavia.AsyncClient
            through = cls(f"ws://127.0.0.1:{tap}", **keywords(enclave, timeout=5.0))

            async def run() -> None:
                face = Face(through)
                try:
                    await case(face)
                finally:
                    await face.close()

            drive(kind, run)
            assert b"SECRET" not in seen
            assert b"items" not in seen
    if target is None:
        assert len(requests) == 1
        return
    (first, _), (second, body) = requests
    assert second.split(b" ")[1] == target.encode()
    assert body == b"BODYSECRET"
    # Nothing is lost on the way: for httpx2 another scheme is another origin, whose requests get
    # neither the Authorization header nor cookies for https alone.
    for line in (b"Authorization: Basic", b"Cookie: session=COOKIESECRET", b"Host: 127.0.0.1:"):
        assert line in first and line in second
    assert second.count(b"Host:") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_frameworks_that_redirect_to_a_slash(kind: str) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def items(request: Request) -> JSONResponse:
        return JSONResponse({"got": (await request.body()).decode()})

    app = Starlette(routes=[Route("/items/", items, methods=["POST"])])
    with LocalEnclave(app) as enclave:

        async def case(client: Face) -> None:
            response = await client.post("/items", content=b"body")
            assert response.json() == {"got": "body"}
            assert response.history[0].headers["location"].startswith("http://")

        with_client(kind, enclave, case, follow_redirects=True)


def test_a_redirect_that_is_not_followed_is_prepared_alike() -> None:
    requests: list[tuple[bytes, bytes]] = []
    port: list[int] = []
    with byte_enclave(redirecting("http://{own}/items/", requests, port)) as (enclave, _):
        port.append(enclave.port)
        with enclavia.Client(enclave.url, **keywords(enclave)) as client:
            response = client.get("/items")
            assert response.next_request is not None
            assert str(response.next_request.url) == f"https://127.0.0.1:{enclave.port}/items/"
            assert client.send(response.next_request).content == b"arrived"


HOSTILE = [
    "https://[fe80::1%é]/".encode(), b"https://[fe80::1%25\xe9]/", b"https://[bad/",
    b"https://x:99999999/", b"https://xn--/", "https://\u2179.example/".encode(), b"\xff\xfe",
    b"https://x.example/" + b"a" * 60_000, b"http://[::1]:x/", b"//[", b"?" * 500, b"a:b:c",
    "https://💩.example/".encode(), b"https:", b"://", b"https://\xc2\xad/", b"#" + b"f" * 100,
]  # fmt: skip


def redirected(client: enclavia.Client, location: bytes) -> None:
    request = client.build_request("GET", "/a#fragment")
    response = httpx2.Response(302, headers=[(b"Location", location)], request=request)
    try:
        following = client._build_redirect_request(request, response)
    except enclavia.ProtocolError as error:
        assert error.request is request
        return
    # What is not the enclave ends in ForeignURL before anything is sent.
    own = client._enclave._settings.config.url
    if own.refusal(following.url) is None:
        assert following.url.scheme == "https"
        assert following.url.netloc == client.base_url.netloc
        assert following.headers["host"] == client.base_url.netloc.decode()
    else:
        with pytest.raises(enclavia.ForeignURL):
            client.send(following)


@pytest.mark.parametrize("location", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_locations(location: bytes) -> None:
    client = enclavia.Client("wss://x.example", pcrs=PINS)
    redirected(client, location)


PINS = enclavia.Pcrs(pcr0="11" * 48, pcr1="22" * 48, pcr2="33" * 48)
_CLIENT = enclavia.Client("wss://x.example", pcrs=PINS)
_PARTS = st.sampled_from(
    ["http", "https", "ws", ":", "//", "/", "x.example", "X.EXAMPLE", "[", "]", "::1", "%", "é",
     "@",
     "\u2179", "443", ":80", "?", "#", "\\", " ", "\t", "xn--", "%25", ".", "..", "u:p@", "\ud7ff"]
)  # fmt: skip


@given(st.lists(_PARTS, max_size=12).map("".join).map(str.encode) | st.binary(max_size=40))
def test_any_location(location: bytes) -> None:
    """Whatever a workload writes there is a ProtocolError, a ForeignURL, or the enclave."""
    redirected(_CLIENT, location)


def test_hostile_locations_over_the_wire() -> None:
    locations = iter(HOSTILE)

    def script(connection: Connection) -> None:
        while True:
            connection.request()
            connection.send(
                b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % next(locations)
            )

    with (
        byte_enclave(script) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        assert client.get("/").status_code == 302
        with pytest.raises(enclavia.ProtocolError, match="redirect"):
            client.get("/", follow_redirects=True)


def test_a_transport_mounted_for_every_scheme_keeps_redirects_inside() -> None:
    requests: list[tuple[bytes, bytes]] = []
    port: list[int] = []
    with byte_enclave(redirecting("http://{own}/items/", requests, port)) as (enclave, _):
        port.append(enclave.port)
        transport = enclavia.EnclaveTransport(enclave.url, **keywords(enclave))
        authority = f"{transport.base_url.host}:{transport.base_url.port}"
        mounts = {f"all://{authority}": transport}
        with httpx2.Client(mounts=mounts, follow_redirects=True, trust_env=False) as client:
            response = client.post(f"https://{authority}/items", content=b"body")
    assert response.content == b"arrived"
    assert [body for _, body in requests] == [b"body", b"body"]
