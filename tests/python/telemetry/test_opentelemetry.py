"""``enclavia.opentelemetry``: spans and metrics by the conventions, of each kind of client, and no
secret in any of them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
import wrapt
from exported import Exported
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, StatusCode
from raw_workload import RawWorkload
from repository import ROOT
from support import (
    KINDS,
    ByteServer,
    Chunks,
    Connection,
    Face,
    answering,
    byte_enclave,
    keywords,
    ok,
    with_client,
)

import enclavia
import enclavia.httpx
import enclavia.requests
from enclavia.opentelemetry import EnclaviaInstrumentor, redacted
from enclavia.testing import Fault, LocalEnclave

CONNECTING = ["resolve", "connect_tcp", "start_tls", "upgrade", "handshake", "attest"]
TRACEPARENT = re.compile(rb"^traceparent: 00-(\w{32})-(\w{16})-\w\w\r$", re.M | re.I)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Recording:
    """A workload that keeps the heads of its requests."""

    def __init__(self, answer: bytes = ok()) -> None:
        self.heads: list[bytes] = []
        self.answer = answer

    def __call__(self, connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            self.heads.append(head)
            connection.send(self.answer)


def test_a_request_and_what_it_waited_for(kind: str, exported: Exported) -> None:
    seen, attestations = Recording(), []
    with ByteServer(seen) as server, LocalEnclave(server.address, tls=True) as enclave:

        async def case(face: Face) -> None:
            with exported.tracers.get_tracer("test").start_as_current_span("outer"):
                assert (await face.get("/a?b=c", extensions={})).text == "ok"
            attestations.append(face.client.attestation)

        with_client(kind, enclave, case, verify=enclave.tls_certificate)
        expected = {f"enclavia.{step}": "enclavia.connect" for step in CONNECTING}
        expected |= {"enclavia.connect": "enclavia.wait", "enclavia.wait": "GET"}
        assert exported.tree() == {**expected, "GET": "outer", "outer": None}
        span = exported.one("GET")
        port = httpx2.URL(enclave.url).port
        attested = {
            "enclavia.attestation.form": "nitro",
            "enclavia.attestation.pcr0": enclave.pcrs.pcr0.hex()[:16],
            "enclavia.attestation.module_id": attestations[0].module_id,
            "enclavia.attestation.pins": "set 0",
        }
        assert span.kind is SpanKind.CLIENT
        assert dict(span.attributes or {}) == {
            "http.request.method": "GET",
            "url.full": f"https://localhost:{port}/a?b=c",
            "server.address": "localhost",
            "server.port": port,
            "http.response.status_code": 200,
            "network.protocol.version": "1.1",
            **attested,
        }
        connect = exported.one("enclavia.connect")
        assert dict(connect.attributes or {}) == {
            "server.address": "localhost",
            "server.port": port,
            **attested,
        }
    steps = [exported.one(f"enclavia.{step}") for step in CONNECTING]
    for one, other in itertools.pairwise(steps):
        assert one.start_time <= one.end_time <= other.start_time
    found = TRACEPARENT.search(seen.heads[0])
    assert found is not None
    assert int(found[1], 16) == span.context.trace_id
    assert int(found[2], 16) == span.context.span_id


def relay(enclave: LocalEnclave, seen: bytearray) -> Callable[[socket.socket], None]:
    """The router: it passes bytes on, and keeps what the client sends."""
    url = httpx2.URL(enclave.url)

    def pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                kept += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def handler(client: socket.socket) -> None:
        with socket.create_connection((url.host, url.port)) as server:
            back = threading.Thread(target=pump, args=(server, client, bytearray()), daemon=True)
            back.start()
            pump(client, server, seen)
            back.join()

    return handler


@pytest.mark.parametrize("instrumented", ["enclavia", "httpx2"])
def test_the_router_sees_no_context(instrumented: str, plain_exported: Exported) -> None:
    """Neither in the WebSocket's upgrade, which is in the clear, nor anywhere behind it."""
    recording, seen = Recording(), bytearray()
    instrumentor = (
        EnclaviaInstrumentor() if instrumented == "enclavia" else HTTPX2ClientInstrumentor()
    )
    instrumentor.instrument(tracer_provider=plain_exported.tracers)
    try:
        with (
            byte_enclave(recording) as (enclave, _),
            RawWorkload(relay(enclave, seen)) as router,
            plain_exported.tracers.get_tracer("test").start_as_current_span("outer"),
            enclavia.Client(f"ws://127.0.0.1:{router.port}/", **keywords(enclave)) as client,
        ):
            assert client.get("/").text == "ok"
    finally:
        instrumentor.uninstrument()
    assert TRACEPARENT.search(recording.heads[0])
    head, _, rest = bytes(seen).partition(b"\r\n\r\n")
    assert head.startswith(b"GET / HTTP/1.1\r\n")
    assert rest
    trace_id = plain_exported.one("outer").context.trace_id
    for text in (b"traceparent", b"tracestate", b"baggage", f"{trace_id:032x}".encode()):
        assert text not in bytes(seen).lower()
    assert trace_id.to_bytes(16) not in bytes(seen)


def test_a_client_that_connects_before_its_first_request(kind: str, exported: Exported) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(face: Face) -> None:
            if face.is_async:
                await face.client.__aenter__()
            else:
                face.client.__enter__()
            assert exported.tree()["enclavia.wait"] is None
            assert not exported.named("GET")
            await face.get("/")
            assert exported.tree()["GET"] is None

        with_client(kind, enclave, case)
    assert len(exported.named("enclavia.connect")) == 1


def test_a_request_that_is_sent_again(kind: str, exported: Exported) -> None:
    """Each has a span and a context of its own."""
    heads: list[bytes] = []

    def script(connection: Connection) -> None:
        head, _ = connection.request()
        heads.append(head)
        if connection.number:
            connection.send(ok())

    with byte_enclave(script) as (enclave, _):

        async def case(face: Face) -> None:
            assert (await face.get("/")).text == "ok"

        with_client(kind, enclave, case)
    first, second = exported.named("GET")
    assert (first.attributes or {})["error.type"] == "enclavia.ServerError" or (
        first.attributes or {}
    )["error.type"].startswith("enclavia.")
    assert first.status.status_code is StatusCode.ERROR
    assert "http.request.resend_count" not in (first.attributes or {})
    assert (second.attributes or {})["http.request.resend_count"] == 1
    assert second.status.status_code is StatusCode.UNSET
    ids = [int(TRACEPARENT.search(head)[2], 16) for head in heads]  # type: ignore[index]
    assert ids == [first.context.span_id, second.context.span_id]
    points = exported.points("http.client.request.duration")
    assert sorted(point.count for point in points) == [1, 1]


def test_an_answer_that_says_no(kind: str, exported: Exported) -> None:
    answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with byte_enclave(answering(answer)) as (enclave, _):

        async def case(face: Face) -> None:
            assert (await face.request("BREW", "/")).status_code == 503

        with_client(kind, enclave, case)
    span = exported.one("HTTP")
    attributes = dict(span.attributes or {})
    assert attributes["http.request.method"] == "_OTHER"
    assert attributes["http.request.method_original"] == "BREW"
    assert attributes["http.response.status_code"] == 503
    assert attributes["error.type"] == "503"
    assert span.status.status_code is StatusCode.ERROR
    (point,) = exported.points("http.client.request.duration")
    assert point.attributes["error.type"] == "503"
    assert point.attributes["http.request.method"] == "_OTHER"


def test_an_enclave_that_is_not_the_pinned_one(kind: str, exported: Exported) -> None:
    with LocalEnclave("127.0.0.1:9") as enclave:
        enclave.set_faults(Fault.WRONG_PCRS)

        async def case(face: Face) -> None:
            with pytest.raises(enclavia.PcrMismatch):
                await face.get("/")

        with_client(kind, enclave, case)
    for name in ("GET", "enclavia.wait", "enclavia.connect", "enclavia.attest"):
        span = exported.one(name)
        assert (span.attributes or {})["error.type"] == "enclavia.PcrMismatch"
        assert span.status.status_code is StatusCode.ERROR
        assert not any(key.startswith("enclavia.attestation") for key in span.attributes or {})
    (point,) = exported.points("http.client.request.duration")
    assert point.attributes["error.type"] == "enclavia.PcrMismatch"


def test_the_span_of_a_streamed_answer_ends_with_its_head(kind: str, exported: Exported) -> None:
    with byte_enclave(answering(ok(b"x" * 3_000_000))) as (enclave, _):

        async def case(face: Face) -> None:
            content = Chunks(b"a" * 1000, b"b" * 1000)
            async with face.stream("POST", "/", content=content) as streamed:
                assert exported.one("POST").end_time is not None
                assert len(await streamed.read()) == 3_000_000
            async with face.stream("GET", "/"):
                pass

        with_client(kind, enclave, case)
    assert len(exported.named("GET")) == 1


def test_metrics_of_requests_and_of_the_pool(exported: Exported) -> None:
    with (
        byte_enclave(answering(ok())) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        for _ in range(3):
            client.get("/")
        server = {"server.address": "127.0.0.1", "server.port": httpx2.URL(enclave.url).port}
        server["server.address"] = httpx2.URL(enclave.url).host
        (point,) = exported.points("http.client.request.duration")
        assert point.count == 3
        assert dict(point.attributes) == {
            "http.request.method": "GET",
            "http.response.status_code": 200,
            "network.protocol.version": "1.1",
            **server,
        }
        assert point.explicit_bounds[0] == 0.005
        connections = {
            point.attributes["http.connection.state"]: point.value
            for point in exported.points("http.client.open_connections")
        }
        stats = client.stats
        assert connections == {"active": stats.streams_active, "idle": stats.streams_idle}
        assert connections["idle"] == 1
        assert [p.value for p in exported.points("enclavia.client.channels")] == [1]
        assert [dict(p.attributes) for p in exported.points("enclavia.client.waiting")] == [server]
    EnclaviaInstrumentor().uninstrument()
    assert not exported.points("enclavia.client.channels")
    EnclaviaInstrumentor().instrument()


# ---------------------------------------------------------------------------------------------
# Beside instrumentations of other libraries


class Shop:
    """One enclave, asked in every way there is."""

    def __init__(self, enclave: LocalEnclave) -> None:
        self.enclave = enclave
        self.options = keywords(enclave)
        self.base = str(httpx2.URL(enclave.url).copy_with(scheme="https"))

    def client(self) -> None:
        with enclavia.Client(self.enclave.url, **self.options) as client:
            assert client.get("/").text == "ok"

    def client_with_hooks(self) -> None:
        hooks: Any = {"request": [lambda request: None]}
        with enclavia.Client(self.enclave.url, event_hooks=hooks, **self.options) as client:
            assert client.get("/").text == "ok"

    def async_client(self) -> None:
        async def run() -> None:
            async with enclavia.AsyncClient(self.enclave.url, **self.options) as client:
                assert (await client.get("/")).text == "ok"

        anyio.run(run)

    def transport(self) -> None:
        transport = enclavia.EnclaveTransport(self.enclave.url, **self.options)
        with httpx2.Client(transport=transport, base_url=transport.base_url) as client:
            assert client.get("/").text == "ok"

    def classic(self) -> None:
        transport = enclavia.httpx.EnclaveTransport(self.enclave.url, **self.options)
        with httpx.Client(transport=transport, base_url=transport.base_url) as client:
            assert client.get("/").text == "ok"

    def async_classic(self) -> None:
        async def run() -> None:
            transport = enclavia.httpx.AsyncEnclaveTransport(self.enclave.url, **self.options)
            async with httpx.AsyncClient(
                transport=transport, base_url=transport.base_url
            ) as client:
                assert (await client.get("/")).text == "ok"

        anyio.run(run)

    def session(self) -> None:
        with enclavia.requests.session(self.enclave.url, **self.options) as session:
            assert session.get(session.base_url, timeout=30).text == "ok"


OF_HTTPX2 = ["client", "client_with_hooks", "async_client", "transport"]
OF_HTTPX = ["classic", "async_classic"]
WAYS = [*OF_HTTPX2, *OF_HTTPX, "session"]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_seen_once(way: str, exported: Exported) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        getattr(Shop(enclave), way)()
    assert [span.name for span in exported.spans if span.kind is SpanKind.CLIENT] == ["GET"]
    assert exported.one("enclavia.attest")


@pytest.mark.parametrize("ours", [False, True], ids=["alone", "with ours"])
@pytest.mark.parametrize("way", WAYS)
def test_the_instrumentation_of_the_library_sees_it(
    way: str, ours: bool, plain_exported: Exported
) -> None:
    """Once, and the context is sent; where ours is on as well, there are its inner spans, too."""
    instrumentors: list[Any] = [
        HTTPX2ClientInstrumentor(),
        HTTPXClientInstrumentor(),
        RequestsInstrumentor(),
    ]
    if ours:
        instrumentors.append(EnclaviaInstrumentor())
    for instrumentor in instrumentors:
        instrumentor.instrument(
            tracer_provider=plain_exported.tracers, meter_provider=plain_exported.meters
        )
    recording = Recording()
    try:
        with byte_enclave(recording) as (enclave, _):
            getattr(Shop(enclave), way)()
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
    (span,) = [span for span in plain_exported.spans if span.kind is SpanKind.CLIENT]
    found = TRACEPARENT.search(recording.heads[0])
    assert found is not None
    assert int(found[2], 16) == span.context.span_id
    assert bool(plain_exported.named("enclavia.attest")) is ours


@pytest.mark.parametrize("way", OF_HTTPX2)
def test_nothing_is_left_when_it_is_taken_back(way: str, plain_exported: Exported) -> None:
    for instrumentor in (HTTPX2ClientInstrumentor(), EnclaviaInstrumentor()):
        instrumentor.instrument(tracer_provider=plain_exported.tracers)
        instrumentor.uninstrument()
    recording = Recording()
    with byte_enclave(recording) as (enclave, _):
        getattr(Shop(enclave), way)()
    assert not plain_exported.spans
    assert b"traceparent" not in recording.heads[0]


def test_one_client_that_is_instrumented(kind: str, plain_exported: Exported) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(face: Face) -> None:
            await face.get("/")
            HTTPX2ClientInstrumentor.instrument_client(face.client, plain_exported.tracers)
            await face.get("/")
            HTTPX2ClientInstrumentor.uninstrument_client(face.client)
            await face.get("/")

        with_client(kind, enclave, case)
    assert [span.name for span in plain_exported.spans] == ["GET"]


def test_a_wrapper_that_is_switched_off_is_not_called(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As wrapt does it, for each request anew, and in the order of the wrappers."""
    called: list[str] = []
    on = {"outer": True, "inner": True}

    def named(name: str) -> Any:
        def wrapper(handle: Any, transport: Any, args: Any, options: Any) -> Any:
            called.append(name)
            on["inner"] = False  # an outer one may switch an inner one off
            return handle(*args, **options)

        return wrapper

    for cls, name in (
        (httpx2.HTTPTransport, "handle_request"),
        (httpx2.AsyncHTTPTransport, "handle_async_request"),
    ):
        made = vars(cls)[name]
        for layer, enabled in (
            ("never", False),
            ("inner", lambda: on["inner"]),
            ("outer", lambda: on["outer"]),
            ("always", None),
        ):
            made = wrapt.FunctionWrapper(made, named(layer), enabled=enabled)
        monkeypatch.setattr(cls, name, made)
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(face: Face) -> None:
            on["inner"] = True
            assert (await face.get("/")).text == "ok"
            on["outer"] = False
            assert (await face.get("/")).text == "ok"

        with_client(kind, enclave, case)
    assert called == ["always", "outer", "always"]


def test_a_mock_of_the_transport_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could send the request anywhere."""

    def mock(*_: object) -> httpx2.Response:
        raise AssertionError("asked")

    with byte_enclave(answering(ok())) as (enclave, _):
        monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", mock)
        Shop(enclave).client()
        HTTPX2ClientInstrumentor().instrument()
        try:
            Shop(enclave).client()
        finally:
            HTTPX2ClientInstrumentor().uninstrument()


def test_instrumentation_that_is_suppressed(exported: Exported) -> None:
    recording = Recording()
    with byte_enclave(recording) as (enclave, _), suppress_instrumentation():
        Shop(enclave).client()
    assert not exported.spans
    assert b"traceparent" not in recording.heads[0]


@pytest.mark.parametrize("api_alone", [False, True])
def test_the_instrumentor_in_a_process_of_its_own(api_alone: bool, tmp_path: Path) -> None:
    """With OpenTelemetry's command, which finds it by its entry point; and where nothing but the
    API is installed."""
    program = tmp_path / "program.py"
    hide = """
import sys
for name in ("instrumentation", "sdk"):
    sys.modules[f"opentelemetry.{name}"] = None
from enclavia.opentelemetry import EnclaviaInstrumentor
assert EnclaviaInstrumentor() is EnclaviaInstrumentor()
EnclaviaInstrumentor().instrument()
"""
    program.write_text(
        (hide if api_alone else "")
        + """
import enclavia
from enclavia._exchange import watching
from enclavia.testing import LocalEnclave
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
with LocalEnclave(app) as enclave:
    with enclavia.Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client:
        print(client.get("/").text, watching.current() is not None)
"""
    )
    command = [] if api_alone else [str(Path(sys.executable).with_name("opentelemetry-instrument"))]
    exporters = {f"OTEL_{what}_EXPORTER": "none" for what in ("TRACES", "METRICS", "LOGS")}
    done = subprocess.run(
        [*command, *([sys.executable] if api_alone else ["python"]), str(program)],
        env={
            **os.environ,
            **exporters,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ok", "True"], done.stderr


# ---------------------------------------------------------------------------------------------
# Secrets


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h/a?b=c&d", "https://h/a?b=c&d"),
        ("https://u:p@h/a", "https://REDACTED:REDACTED@h/a"),
        ("https://h/?sig=1&x=2", "https://h/?sig=REDACTED&x=2"),
        ("https://h/?AWSAccessKeyId=1&Signature=2", "https://h/?AWSAccessKeyId=REDACTED&"
         "Signature=REDACTED"),
        ("https://h/?access_key=1&Session=2&private-key=3&accesskey=4&x=5",
         "https://h/?access_key=REDACTED&Session=REDACTED&private-key=REDACTED"
         "&accesskey=REDACTED&x=5"),
        ("https://h/?X-Goog-Signature=1", "https://h/?X-Goog-Signature=REDACTED"),
        ("https://h/?access_token=1&a=%20b", "https://h/?access_token=REDACTED&a=%20b"),
        ("https://h/?userpwd=1&Passphrase=2", "https://h/?userpwd=REDACTED&Passphrase=REDACTED"),
        ("https://h/?%0Atoken=1&to%0Aken=2", "https://h/?%0Atoken=REDACTED&to%0Aken=2"),
        ("https://h/?api%5Fkey=1#frag", "https://h/?api%5Fkey=REDACTED"),
    ],
)  # fmt: skip
def test_what_a_url_shows(url: str, expected: str) -> None:
    assert redacted(httpx2.URL(url)) == expected


def test_no_secret_is_exported_or_logged(
    exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    """In good and in bad cases: of the request, of the answer, of the outer connection, and of the
    channel."""
    secrets = {
        "header": "s3cret-header",
        "authorization": "s3cret-bearer",
        "cookie": "s3cret-cookie",
        "body": "s3cret-body",
        "query": "s3cret-query",
        "answer": "s3cret-answer",
        "answered": "s3cret-set-cookie",
        "upgrade": "s3cret-upgrade",
        "path": "s3cret-path",
        "raised": "s3cret-raised",
        "fragment": "s3cret-fragment",
    }
    caplog.set_level(logging.DEBUG)
    extra = f"Set-Cookie: a={secrets['answered']}\r\n".encode()
    good = answering(ok(secrets["answer"].encode(), extra))

    def script(connection: Connection) -> None:
        if connection.number == 1:
            connection.request()
            connection.reset()
        good(connection)

    def raising() -> Iterator[bytes]:
        yield secrets["body"].encode()
        raise ZeroDivisionError(secrets["raised"])

    with byte_enclave(script) as (enclave, _):
        client = enclavia.Client(
            f"{enclave.url}/{secrets['path']}",
            upgrade_headers={"X-Token": secrets["upgrade"]},
            headers={"X-Key": secrets["header"]},
            cookies={"c": secrets["cookie"]},
            auth=("user", secrets["authorization"]),
            **keywords(enclave),
        )
        with client:
            url = f"/?token={secrets['query']}#{secrets['fragment']}"
            client.post(url, content=secrets["body"], headers={"connection": "close"})
            with pytest.raises(enclavia.ServerError):
                client.post(url, content=secrets["body"])
            client.get(url)
            with pytest.raises(ZeroDivisionError):
                client.post(url, content=raising())
            enclave.set_faults(Fault.WRONG_PCRS)
            enclave.drop_connections()
            with pytest.raises(enclavia.PcrMismatch):
                client.get(url)
            enclave.set_faults()
            enclave.drop_connections()
            client.get(url)
            hashes = [receipt.handshake_hash for receipt in client.receipts]
    ours = [record for record in caplog.records if record.name.startswith("enclavia")]
    assert ours
    texts = [exported.everything(), *(repr(vars(record)) + record.getMessage() for record in ours)]
    assert any("POST" in text for text in texts)
    for text in texts:
        for what, secret in secrets.items():
            assert secret not in text, what
        for handshake_hash in hashes:
            assert handshake_hash.hex() not in text
            assert repr(handshake_hash) not in text
