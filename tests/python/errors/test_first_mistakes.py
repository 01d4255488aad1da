"""What the mistakes of a first hour are told: what was expected, what was got, where to look."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import enclavia
from enclavia import Channel, Client, Pcrs
from enclavia.testing import LocalEnclave


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers /late long after everybody went, and all else at once."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.failed", "message": "the app's own trouble"})
        return
    if scope["path"] == "/late":
        await asyncio.sleep(600)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    with LocalEnclave(app) as made:
        yield made


def pins(enclave: LocalEnclave) -> dict[str, Any]:
    return {"pcrs": enclave.pcrs, "root": enclave.root}


def nobody() -> int:
    """A port of loopback on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_wss_where_ws_is_spoken(enclave: LocalEnclave) -> None:
    with pytest.raises(enclavia.ConnectError, match=r"expected TLS.*is it ws://"):
        Client.connect(enclave.url.replace("ws:", "wss:"), patience=0, **pins(enclave))


def test_nobody_listens(enclave: LocalEnclave) -> None:
    with pytest.raises(enclavia.ConnectError, match="no server listens there"):
        Client.connect(f"ws://127.0.0.1:{nobody()}", patience=0, **pins(enclave))


def test_a_proxy_that_is_not_there_is_named(enclave: LocalEnclave) -> None:
    proxy = nobody()
    with pytest.raises(enclavia.ConnectError) as caught:
        Client.connect(enclave.url, patience=0, proxy=f"http://127.0.0.1:{proxy}", **pins(enclave))
    assert f"port {enclave.port} through the proxy 127.0.0.1 port {proxy}" in str(caught.value)


def test_a_nonce_of_ones_own(enclave: LocalEnclave) -> None:
    with Channel.connect(enclave.url, **pins(enclave)) as channel:
        document = channel.attestation.document
    for nonce in (b"12", bytes(32)):
        with pytest.raises(
            enclavia.NonceMismatch, match=rf"asked for \({len(nonce)} bytes.*another one"
        ):
            enclavia.verify_attestation(document, nonce=nonce, root=enclave.root)


def test_the_pcrs_of_a_document_are_no_pins(enclave: LocalEnclave) -> None:
    with Channel.connect(enclave.url, **pins(enclave)) as channel:
        seen = channel.attestation
    with pytest.raises(TypeError, match=r"got mappingproxy; Pcrs\(pcr0=…, pcr1=…, pcr2=…\)"):
        enclavia.verify_attestation(seen.document, pcrs=seen.pcrs, root=enclave.root)  # type: ignore[arg-type]
    same = Pcrs(pcr0=seen.pcrs[0], pcr1=seen.pcrs[1], pcr2=seen.pcrs[2])
    enclavia.verify_attestation(seen.document, pcrs=same, root=enclave.root)


def test_a_read_timeout_says_how_long_it_waited(enclave: LocalEnclave) -> None:
    with (
        Client(enclave.url, **pins(enclave)) as client,
        pytest.raises(enclavia.ReadTimeout, match=r"within 0\.05 s"),
    ):
        client.get("/late", timeout=0.05)

    async def same() -> None:
        async with enclavia.AsyncClient(enclave.url, **pins(enclave)) as client:
            await client.get("/late", timeout=0.05)

    with pytest.raises(enclavia.ReadTimeout, match=r"within 0\.05 s"):
        asyncio.run(same())


def test_a_client_that_was_not_awaited(enclave: LocalEnclave) -> None:
    forgotten: Any = enclavia.AsyncClient.connect(enclave.url, **pins(enclave))
    with pytest.raises(AttributeError, match=r"expected 'await AsyncClient\.connect.*got 'get'"):
        forgotten.get("/")
    with (
        pytest.raises(TypeError, match=r"'async with AsyncClient\.connect.*without 'async'"),
        forgotten,
    ):
        pass
    with pytest.raises(ValueError, match=r"AsyncClient\.connect\(…\), not awaited"):
        asyncio.run(forgotten)
    forgotten = enclavia.AsyncChannel.connect(enclave.url, **pins(enclave))
    with pytest.raises(AttributeError, match=r"await AsyncChannel\.connect"):
        forgotten.open_stream()


@pytest.mark.parametrize("kind", [enclavia.Channel, enclavia.AsyncChannel])
def test_a_channel_that_was_not_connected(enclave: LocalEnclave, kind: Any) -> None:
    for options in ({}, pins(enclave)):
        with pytest.raises(TypeError, match=rf"{kind.__name__}\.connect\(url, pcrs=…\)"):
            kind(enclave.url, **options)
    with pytest.raises(TypeError, match="connect"):
        kind()


@pytest.mark.parametrize("name", ["root", "verify"])
def test_a_file_that_is_not_there(enclave: LocalEnclave, name: str) -> None:
    for make in (Client, enclavia.AsyncClient, Channel.connect, enclavia.AsyncChannel.connect):
        with pytest.raises(FileNotFoundError, match=f"{name}: expected .* no file") as caught:
            make(enclave.url, **{**pins(enclave), name: "/no/such.pem"})
        assert caught.value.filename == "/no/such.pem"


def test_requests_shows_what_was_verified(enclave: LocalEnclave) -> None:
    pytest.importorskip("requests")
    from enclavia.requests import session

    with session(enclave.url, **pins(enclave)) as ours:
        with pytest.raises(enclavia.StateError):
            _ = ours.attestation
        assert ours.get(ours.base_url).text == "hello"
        assert ours.attestation.proven
        assert ours.stats.requests == 1


def test_stopping_does_not_show_what_it_cancels(caplog: pytest.LogCaptureFixture) -> None:
    with LocalEnclave(app) as enclave:
        with Client(enclave.url, **pins(enclave)) as client, pytest.raises(enclavia.ReadTimeout):
            client.get("/late", timeout=0.05)
        caplog.clear()
    shown = [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]
    assert not any("task" in line or "Exception" in line for line in shown)
    assert any("trouble" in line for line in shown), "what the app itself says is"
    assert not logging.getLogger("uvicorn.error").filters


def test_an_option_that_an_adapter_does_not_have(enclave: LocalEnclave) -> None:
    pytest.importorskip("requests")
    pytest.importorskip("httpx")
    import enclavia.httpx
    import enclavia.requests

    options: dict[str, Any] = {**pins(enclave), "max_retries": 3}
    with pytest.raises(TypeError, match=r"^EnclaveAdapter\(\) got an unexpected .*'max_retries'"):
        enclavia.requests.session(enclave.url, **options)
    with pytest.raises(TypeError, match=r"^EnclaveTransport\(\) got an unexpected.*'max_retries'"):
        enclavia.httpx.EnclaveTransport(enclave.url, **options)


def test_another_host_by_a_session_of_the_enclave(enclave: LocalEnclave) -> None:
    requests = pytest.importorskip("requests")
    import enclavia.requests

    with enclavia.requests.session(enclave.url, **pins(enclave)) as session:
        said = f"{re.escape(session.base_url)}….*other.example.*another session"
        with pytest.raises(requests.exceptions.InvalidSchema, match=said):
            session.get("https://other.example/")


def make_app() -> Any:
    return app


class NoApp:
    def __init__(self, *, debug: bool = False) -> None:
        self.debug = debug


@pytest.mark.parametrize("maker", [make_app, lambda: app, NoApp])
def test_what_makes_an_app_is_not_the_app(maker: Any) -> None:
    enclave = LocalEnclave(maker)
    said = r"called with \(environ, start_response\).*give the app it makes"
    with pytest.raises(TypeError, match=said):
        enclave.start()


def test_an_asgi_app_that_takes_too_little() -> None:
    async def little(scope: Any) -> None: ...

    with pytest.raises(TypeError, match=r"called with \(scope, receive, send\)"):
        LocalEnclave(little).start()


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("http://127.0.0.1:80", "without a scheme or a path"),
        ("127.0.0.1/path:80", "without a scheme or a path"),
        ("./app.py:app", r"as it is imported \(package.module\)"),
        ("src/app:app", r"as it is imported \(package.module\)"),
    ],
)
def test_an_app_named_by_a_url_or_a_file(named: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LocalEnclave(named).start()


def test_an_enclave_whose_process_was_killed_says_what_to_do() -> None:
    with LocalEnclave("test_first_mistakes:app", in_process=False) as enclave:
        os.kill(enclave.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"killed.*stop\(\) and start\(\)"):
            enclave.stats()
        enclave.stop()
        enclave.start()
        with Client(enclave.url, **pins(enclave)) as client:
            assert client.get("/").text == "hello"
