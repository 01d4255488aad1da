"""Servers that people run, as workloads: each with its own habits of keeping connections alive,
closing them, and framing answers."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclavia import Client
from enclavia.testing import LocalEnclave

CONTENT = hashlib.sha256(b"workload").digest() * 40_000  # 1.28 MB


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def standard_library(tmp_path: Path, protocol: str) -> Iterator[str]:
    handler = type("Versioned", (Handler,), {"protocol_version": protocol})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def http_1_0(tmp_path: Path) -> contextlib.AbstractContextManager[str]:
    return standard_library(tmp_path, "HTTP/1.0")


def http_1_1(tmp_path: Path) -> contextlib.AbstractContextManager[str]:
    return standard_library(tmp_path, "HTTP/1.1")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


NGINX = """
daemon off;
pid {root}/pid;
error_log {root}/error.log;
worker_processes 1;
user root;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {root}/body;
  proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi;
  scgi_temp_path {root}/scgi;
  keepalive_requests 3;
  gzip on;
  gzip_types application/octet-stream;
  server {{
    listen 127.0.0.1:{port};
    root {root}/www;
    location /gone {{ return 410; }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(tmp_path: Path) -> Iterator[str]:
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "content").write_bytes(CONTENT)
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(root=tmp_path, port=port))
    process = subprocess.Popen(
        [program, "-c", str(config), "-e", str(tmp_path / "error.log")],
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_for(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        assert process.poll() is None, "the workload ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError("the workload does not listen")


Start = Callable[[Path], contextlib.AbstractContextManager[str]]


@pytest.mark.parametrize("start", [http_1_0, http_1_1, nginx])
def test_downloads(start: Start, tmp_path: Path) -> None:
    with (
        start(tmp_path) as address,
        LocalEnclave(address) as enclave,
        Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client,
    ):
        for _ in range(10):
            assert client.get("/content").content == CONTENT
        with client.stream("GET", "/content") as response:
            assert b"".join(response.iter_bytes(1000)) == CONTENT


@pytest.mark.parametrize("start", [http_1_0, http_1_1])
def test_uploads(start: Start, tmp_path: Path) -> None:
    with (
        start(tmp_path) as address,
        LocalEnclave(address) as enclave,
        Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client,
    ):
        for size in (0, 1, 20_000, len(CONTENT)):
            body = CONTENT[:size]
            assert client.post("/", content=body).text == hashlib.sha256(body).hexdigest()


def test_nginx_closes_after_some_requests_and_nothing_is_lost(tmp_path: Path) -> None:
    with (
        nginx(tmp_path) as address,
        LocalEnclave(address) as enclave,
        Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client,
    ):
        for _ in range(20):
            assert client.get("/gone").status_code == 410
        ranged = client.get("/content", headers={"Range": "bytes=5-14"})
        assert (ranged.status_code, ranged.content) == (206, CONTENT[5:15])
        assert client.head("/content").headers["content-length"] == str(len(CONTENT))
        assert client.get("/content", headers={"Accept-Encoding": "gzip"}).content == CONTENT
        etag = client.get("/content").headers["etag"]
        assert client.get("/content", headers={"If-None-Match": etag}).status_code == 304
        assert enclave.stats()["connections_total"] == 1
