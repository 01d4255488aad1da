"""The outer connection through an HTTP proxy that understands CONNECT."""

from __future__ import annotations

import base64
import contextlib
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from enclave_peer import EnclavePeer, connect
from raw_server import LIMIT, Peer, PeerGone, RawServer, header, unused_port
from repository import SUPPORT

import enclavia
from enclavia.testing import LocalEnclave
from enclavia.testing._tls import localhost_certificate

pytestmark = pytest.mark.usefixtures("nothing_left")

SECRET = "a-bearer-token-only-for-the-router"


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """What is made on first use, and kept."""
    with (
        LocalEnclave(hello) as enclave,
        enclavia.Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client,
    ):
        client.get("/")


def pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            for readable in select.select([one, other], [], [], 20)[0]:
                data = readable.recv(65536)
                if not data:
                    return
                (other if readable is one else one).sendall(data)


class Proxy(RawServer):
    """Connects where it is told to. ``credentials``: what it wants to see."""

    def __init__(
        self,
        credentials: bytes | None = None,
        answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n",
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__(self._script, host=host)
        self._credentials = credentials
        self._answer = answer
        self.heads: list[bytes] = []

    @property
    def proxy_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def _script(self, peer: Peer) -> None:
        head = peer.read_head()
        self.heads.append(head)
        if self._credentials is not None:
            scheme, _, given = header(head, b"proxy-authorization").partition(b" ")
            if (scheme.lower(), given) != (b"basic", base64.b64encode(self._credentials)):
                peer.send(b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic\r\n\r\n")
                raise PeerGone
        method, target, _ = head.split(b"\r\n")[0].split(b" ")
        assert method == b"CONNECT"
        host, _, port = target.rpartition(b":")
        with socket.create_connection((host.decode(), int(port)), 5) as upstream:
            peer.send(self._answer)
            pump(peer.socket, upstream)


def serve(peer: Peer) -> None:
    peer.upgrade()
    enclave = EnclavePeer(peer)
    enclave.open()
    enclave.serve_echo()


def check_works(url: str, proxy: str, **options: Any) -> None:
    with connect(url, proxy=proxy, **options) as channel:
        assert channel.open_stream(b"hello").read(10) == b"hello"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return localhost_certificate(Path(tmp_path_factory.mktemp("proxy")))


def tls(files: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


def test_through_a_proxy() -> None:
    with RawServer(serve) as server, Proxy() as proxy:
        check_works(server.url, proxy.proxy_url)
        (head,) = proxy.heads
        assert head.startswith(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % server.port)
        assert header(head, b"proxy-authorization") == b""
        assert len(server.peers) == 1


def test_the_upgrade_headers_are_not_for_the_proxy() -> None:
    with RawServer(serve) as server, Proxy() as proxy:
        check_works(server.url, proxy.proxy_url, upgrade_headers={"Authorization": SECRET})
        assert SECRET.encode() not in proxy.heads[0]


@pytest.mark.parametrize(
    ("userinfo", "credentials"),
    [
        ("user:password", b"user:password"),
        ("user:", b"user:"),
        ("us%40er:p%3Aass%2Fword%40x", b"us@er:p:ass/word@x"),
        ("user:" + "p" * 88, b"user:" + b"p" * 88),
        ("http:%2F%2Fpassword", b"http://password"),
    ],
    ids=["plain", "no password", "escaped", "long", "like a scheme"],
)
def test_credentials(userinfo: str, credentials: bytes) -> None:
    with RawServer(serve) as server, Proxy(credentials) as proxy:
        check_works(server.url, f"http://{userinfo}@127.0.0.1:{proxy.port}")
        assert credentials not in proxy.heads[0]
        assert b"authorization" not in bytes(server.peer.received).lower()


def test_wss_through_a_proxy(certificate: tuple[str, str]) -> None:
    """Checked against the enclave's name, which only the proxy resolves."""
    with RawServer(serve, tls=tls(certificate)) as server, Proxy(b"a:b") as proxy:
        url = f"wss://localhost:{server.port}"
        proxy_url = f"http://a:b@127.0.0.1:{proxy.port}"
        check_works(url, proxy_url, verify=certificate[0], upgrade_headers={"X-Token": SECRET})
        assert proxy.heads[0].startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % server.port)
        for peer in proxy.peers:
            assert SECRET.encode() not in bytes(peer.received)
        with pytest.raises(enclavia.ConnectError, match="certificate"):
            connect(url, proxy=proxy_url)


def test_the_name_is_not_resolved_here() -> None:
    def script(peer: Peer) -> None:
        assert peer.read_head().startswith(b"CONNECT only-the-proxy-knows.invalid:80 HTTP/1.1\r\n")
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        serve(peer)

    with RawServer(script) as proxy:
        check_works("ws://only-the-proxy-knows.invalid", f"http://127.0.0.1:{proxy.port}")
        assert b"Host: only-the-proxy-knows.invalid\r\n" in bytes(proxy.peer.received)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_proxy_with_an_ipv6_address() -> None:
    with RawServer(serve) as server, Proxy(b"a:b", host="::1") as proxy:
        check_works(server.url, proxy.proxy_url.replace("//", "//a:b@"))
        assert len(proxy.heads) == len(server.peers) == 1


def test_a_proxy_with_an_ipv6_address_is_not_gone_around() -> None:
    """libwebsockets would connect without it where its address has no brackets."""
    with RawServer(serve) as server:
        with pytest.raises(enclavia.ConnectError, match="through the proxy ::1"):
            connect(server.url, proxy=f"http://[::1]:{unused_port()}")
        assert server.peers == []


def test_an_ipv6_address_is_told_to_the_proxy_in_brackets() -> None:
    heads: list[bytes] = []

    def script(peer: Peer) -> None:
        heads.append(peer.read_head())
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        serve(peer)

    with RawServer(script) as proxy:
        check_works("ws://[2001:db8::5]:81", proxy.url.replace("ws://", "http://"))
    assert heads[0].startswith(b"CONNECT [2001:db8::5]:81 HTTP/1.1\r\n")
    assert header(heads[0], b"host") == b"[2001:db8::5]:81"


# Preloaded, this knows the proxy's name once, and never again.
FORGETFUL = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdatomic.h>
#include <string.h>

typedef int (*call)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
static atomic_int asked;

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    call real = (call)dlsym(RTLD_NEXT, "getaddrinfo");

    if (name == NULL || strncmp(name, "the-proxy", 9) != 0 ||
        (hints != NULL && (hints->ai_flags & AI_NUMERICHOST) != 0)) {
        return real(name, service, hints, found);
    }
    return asked++ == 0 ? real("127.0.0.1", service, hints, found) : EAI_NONAME;
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
@pytest.mark.skipif("ENCLAVIA_SANITIZED" in os.environ, reason="LD_PRELOAD is taken")
@pytest.mark.parametrize("length", [9, 119, 127])
def test_the_proxys_name_is_looked_up_once(length: int, tmp_path: Path) -> None:
    """In a thread of its own: a second time, in libwebsockets, would hold up all connections. The
    longest name leaves its port whole."""
    source, made = tmp_path / "forgetful.c", tmp_path / "forgetful.so"
    source.write_text(FORGETFUL)
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-o", str(made), "-ldl"]
    subprocess.run(command, check=True)
    name = ("the-proxy" + ("." + "p" * 49) * 3)[:length]
    program = (
        "import sys; from enclave_peer import connect\nconnect(sys.argv[1], proxy=sys.argv[2])"
    )

    def refuse(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with RawServer(refuse) as server, Proxy() as proxy:
        ended = subprocess.run(
            [sys.executable, "-c", program, server.url, f"http://{name}:{proxy.port}"],
            env={**os.environ, "LD_PRELOAD": str(made), "PYTHONPATH": str(SUPPORT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "UpgradeRejected" in ended.stderr, ended.stderr
        assert len(proxy.heads) == len(server.peers) == 1


def test_two_proxies_and_none_at_once() -> None:
    with RawServer(serve) as server, Proxy() as one, Proxy(b"a:b") as other:
        check_works(server.url, one.proxy_url)
        check_works(server.url, f"http://a:b@127.0.0.1:{other.port}")
        with connect(server.url) as direct:
            assert direct.open_stream(b"hello").read(10) == b"hello"
        check_works(server.url, one.proxy_url)
        assert (len(one.heads), len(other.heads), len(server.peers)) == (2, 1, 4)


def test_a_large_answer_of_the_proxy() -> None:
    answer = b"HTTP/1.0 200 OK\r\n" + b"X-Filler: yes\r\n" * 100 + b"\r\n"
    with RawServer(serve) as server, Proxy(answer=answer) as proxy:
        check_works(server.url, proxy.proxy_url)


# refused


def refused_by(answer: bytes, **options: Any) -> enclavia.ConnectError:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(answer)

    with RawServer(script) as proxy:
        with pytest.raises(enclavia.ConnectError) as caught:
            connect(
                f"ws://127.0.0.1:{unused_port()}",
                proxy=f"http://127.0.0.1:{proxy.port}",
                upgrade_headers={"Authorization": SECRET},
                **options,
            )
        proxy.wait_done()
        for peer in proxy.peers:
            assert SECRET.encode() not in bytes(peer.received)
    assert type(caught.value) is enclavia.ConnectError
    return caught.value


@pytest.mark.parametrize("status", [b"407 Proxy Authentication Required", b"403 Forbidden"])
def test_a_proxy_that_refuses(status: bytes) -> None:
    error = refused_by(b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\nno" % status)
    assert "proxy" in str(error)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1", b"SOCKS?", b"\x05\x00", b"HTTP/1.1 2000 \r\n\r\n"],
    ids=["nothing", "cut", "text", "socks", "2000"],
)
def test_a_proxy_that_is_none(answer: bytes) -> None:
    assert "proxy" in str(refused_by(answer))


def test_a_proxy_that_refuses_credentials() -> None:
    with Proxy(b"user:right") as proxy, pytest.raises(enclavia.ConnectError, match="proxy"):
        connect(
            f"ws://127.0.0.1:{unused_port()}", proxy=f"http://user:wrong@127.0.0.1:{proxy.port}"
        )


def test_a_proxy_that_hangs_up_after_connecting() -> None:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        peer.read_head()

    with RawServer(script) as proxy, pytest.raises(enclavia.ConnectError):
        connect("ws://127.0.0.1:9", proxy=f"http://127.0.0.1:{proxy.port}")


def test_a_silent_proxy() -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_to_end()
        gone.set()

    with RawServer(script) as proxy:
        with pytest.raises(enclavia.ConnectTimeout):
            connect("ws://127.0.0.1:9", proxy=f"http://127.0.0.1:{proxy.port}", timeout=0.3)
        assert gone.wait(LIMIT / 2)


def test_no_proxy_there() -> None:
    port = unused_port()
    with pytest.raises(enclavia.ConnectError) as caught:
        connect("ws://127.0.0.1:9", proxy=f"http://127.0.0.1:{port}")
    assert str(port) in str(caught.value)
    assert caught.value.retryable


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://127.0.0.1:1080",
        "https://127.0.0.1:3128",
        "127.0.0.1:3128",
        "http://",
        "http://127.0.0.1:3128/path",
        "http://127.0.0.1:99999",
        "http://user:" + "p" * 89 + "@127.0.0.1:3128",
    ],
)
def test_what_cannot_be_a_proxy(proxy: str) -> None:
    with pytest.raises(ValueError, match="proxy"):
        connect("ws://127.0.0.1:9", proxy=proxy)


# the environment


def test_the_environment_does_not_choose_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for programs that fetch pages; here it would only add someone who can listen."""
    with Proxy() as trap, RawServer(serve) as server:
        for name in (
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "ws_proxy",
            "wss_proxy",
            "socks_proxy",
        ):
            monkeypatch.setenv(name, trap.proxy_url)
            monkeypatch.setenv(name.upper(), trap.proxy_url)
        with connect(server.url) as channel:
            assert channel.open_stream(b"hello").read(10) == b"hello"
        assert trap.peers == []


def test_the_environment_and_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx2 would look there by itself."""
    with Proxy() as trap, LocalEnclave(hello) as enclave:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, trap.proxy_url)
            monkeypatch.setenv(name.upper(), trap.proxy_url)
        with enclavia.Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client:
            assert client.get("/").content == b"hello"
        assert trap.peers == []


def test_a_client_through_a_proxy() -> None:
    with Proxy(b"a:b") as proxy, LocalEnclave(hello) as enclave:
        with enclavia.Client(
            enclave.url,
            pcrs=enclave.pcrs,
            root=enclave.root,
            proxy=f"http://a:b@127.0.0.1:{proxy.port}",
        ) as client:
            assert client.get("/").content == b"hello"
        assert len(proxy.heads) == 1


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


def test_volume_through_a_proxy() -> None:
    block = bytes(range(256)) * 4096
    with RawServer(serve) as server, Proxy() as proxy:
        with connect(server.url, proxy=proxy.proxy_url) as channel:
            stream = channel.open_stream()
            writer = threading.Thread(target=stream.write, args=(block,))
            writer.start()
            came = bytearray()
            while len(came) < len(block):
                came += stream.read(65536) or b""
            writer.join(5)
        assert bytes(came) == block
