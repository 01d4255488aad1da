"""The edges of arguments from the inside: what is at the edge of a domain is taken, and means what
it says. And the arguments of a single request."""

from __future__ import annotations

import contextlib
import decimal
import fractions
import functools
import math
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import enclave_peer
import httpx
import httpx2
import pytest
from argument_calls import Blocking, all_refused, refused
from argument_rows import (
    ABSURD,
    ENDLESS,
    HUGE,
    NAN,
    NOWHERE,
    PCRS,
    PINS,
    ROOT,
    TIMEOUT,
    WAIT,
    Index,
    Number,
    Row,
    Text,
    Whole,
)
from receipts_made import made
from support import HANG, byte_enclave

import enclavia
import enclavia.httpx
import enclavia.requests
import enclavia.testing
from enclavia._exchange.timeouts import Timeouts
from enclavia._pool.kinds import PoolLimits
from enclavia.testing import LocalEnclave


def hello(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


# ---- requests


def test_timeouts_of_a_request() -> None:
    with enclavia_client() as client:
        for send in (client.get, client.delete, functools.partial(client.request, "QUERY")):
            all_refused(
                lambda value, send=send: lambda: send("/", timeout=value), "timeout", TIMEOUT
            )
        assert client.stats.requests == client.stats.connects == 0


def enclavia_client() -> contextlib.closing[enclavia.Client]:
    return contextlib.closing(enclavia.Client(NOWHERE, pcrs=PINS, patience=0))


@pytest.mark.parametrize("row", WAIT, ids=range(len(WAIT)))
def test_timeouts_in_the_extensions_of_a_request(row: Row) -> None:
    """As other clients of the same transport give them."""
    with enclavia_client() as client:
        for member in ("connect", "read", "write", "pool"):
            extensions = {"timeout": {member: row.value}}
            refused(
                functools.partial(client.get, "/", extensions=extensions),
                f"timeout ({member})",
                row,
            )
        transport = enclavia.EnclaveTransport(NOWHERE, pcrs=PINS)
        plain = httpx2.Client(transport=transport, base_url=transport.base_url)
        call = functools.partial(plain.get, "/", timeout=httpx2.Timeout(5, read=row.value))
        refused(call, "timeout (read)", row)
        other = enclavia.httpx.EnclaveTransport(NOWHERE, pcrs=PINS)
        first = httpx.Client(transport=other, base_url=other.base_url)
        call = functools.partial(first.get, "/", timeout=httpx.Timeout(5, pool=row.value))
        refused(call, "timeout (pool)", row)
        assert client.stats.connects == transport.stats.connects == other.stats.connects == 0
        plain.close()
        first.close()


@pytest.mark.parametrize("value", [5, "5", [5], (1, 2)])
def test_timeouts_in_the_extensions_that_are_no_mapping(value: Any) -> None:
    with enclavia_client() as client:
        call = functools.partial(client.get, "/", extensions={"timeout": value})
        refused(call, "timeout", Row(value, TypeError, "expected a mapping"))


@pytest.mark.parametrize("value", [NAN, -math.inf, -1, "x", -HUGE])
def test_timeouts_of_a_session(value: Any) -> None:
    with enclavia.requests.session(NOWHERE, pcrs=PINS) as session:
        call = functools.partial(session.get, session.base_url, timeout=value)
        refused(call, "timeout", Row(value, ValueError))
        assert session._adapter.stats.connects == 0


# ---- receipts


def test_of_a_receipt_that_is_verified() -> None:
    receipt = made()
    for name, rows in (("root", ROOT), ("pcrs", PCRS)):
        own = {"root": enclave_peer.root()}
        all_refused(
            lambda value, name=name, own=own: lambda: receipt.verify(**{**own, name: value}),
            name,
            rows,
        )


# ---- what is inside a domain


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 5},
        {"timeout": None},
        {"timeout": 0},
        {"timeout": Index(5)},
        {"timeout": Number(0.5)},
        {"timeout": decimal.Decimal("0.5")},
        {"timeout": fractions.Fraction(1, 2)},
        {"timeout": threading.TIMEOUT_MAX},
        {"timeout": (1, None)},
        {"timeout": (1, 2, None, 4)},
        {"timeout": httpx.Timeout(5)},
        {"patience": 0},
        {"patience": Index(7)},
        {"keepalive": Number(0.1)},
        {"keepalive": Index(86_400)},
        {"clock_leeway": Number(2.5)},
        {"max_channels": Index(3)},
        {"max_channels": HUGE},
        {"max_in_flight": Index(64)},
        {"max_in_flight": Whole(3)},
        {"retries": Index(0)},
        {"retries": HUGE},
        {"retries": {"POST", Text("patch")}},
        {"retries": iter(["POST"])},
        {"retries": set()},
        {"retries": lambda *arguments: False},
        {"retries": lambda a, b, c=None: False},
        {"retries": max},
        {"limits": httpx2.Limits()},
        {"limits": httpx2.Limits(max_connections=Index(3), keepalive_expiry=Number(0.5))},
        {"limits": httpx2.Limits(max_keepalive_connections=0, keepalive_expiry=None)},
        {"limits": httpx.Limits(max_connections=3)},
        {"upgrade_headers": [["a", "b"]]},
        {"upgrade_headers": httpx2.Headers({"a": "b"})},
        {"verify": Path(__file__)},
    ],
)
def test_taken(options: dict[str, Any]) -> None:
    for maker in (
        enclavia.Client,
        enclavia.AsyncClient,
        enclavia.EnclaveTransport,
        enclavia.AsyncEnclaveTransport,
        enclavia.requests.EnclaveAdapter,
        enclavia.httpx.EnclaveTransport,
        enclavia.httpx.AsyncEnclaveTransport,
    ):
        maker(Text("wss://e.example"), pcrs=PINS, **options)  # type: ignore[operator]


def test_numbers_are_kept_as_plain_ones() -> None:
    settings = enclavia.EnclaveTransport(
        NOWHERE,
        pcrs=PINS,
        timeout=(Index(5), Number(0.5), None, 0),  # type: ignore[arg-type]
        patience=Index(7),  # type: ignore[arg-type]
        max_channels=Index(3),  # type: ignore[arg-type]
        max_in_flight=Index(4),  # type: ignore[arg-type]
        retries=Index(6),  # type: ignore[arg-type]
        limits=httpx2.Limits(max_connections=Index(8)),  # type: ignore[arg-type]
    )._settings
    assert settings.timeouts == (5.0, 0.5, None, 1e-6)
    assert settings.retries == 6
    assert settings.limits == PoolLimits(
        max_channels=3,
        max_in_flight=4,
        patience=7.0,
        max_connections=8,
        max_idle=None,
        keepalive_expiry=5.0,
    )
    assert all(
        type(value) in (int, float, bool, type(None))
        for value in [*settings.limits, settings.retries]
    )


def test_any_number_of_bytes_may_be_asked_for(blocking: Blocking) -> None:
    stream = blocking.channel.open_stream(b"0123456789")
    assert stream.read(Index(1)) == b"0"  # type: ignore[arg-type]
    assert stream.read(0) == b""
    assert stream.readinto(bytearray()) == 0
    assert stream.readinto(memoryview(bytearray(4)).cast("B", (2, 2))) == 4
    assert stream.read(HUGE)
    assert stream.write(memoryview(b"")) == 0
    stream.write(memoryview(bytearray(b"abcd")).cast("I"))
    assert stream.read(ABSURD)
    stream.write_eof()
    assert stream.read(-HUGE) == b""
    stream.close()
    channel = blocking.channel
    channel.open_stream(memoryview(bytearray()).cast("B"), timeout=Number(HANG)).close()  # type: ignore[arg-type]


def test_any_number_of_bytes_may_be_awaited(enclave: LocalEnclave) -> None:
    async def main() -> None:
        async with enclavia.AsyncChannel.connect(
            enclave.url, pcrs=enclave.pcrs, root=enclave.root, timeout=HANG
        ) as channel:
            stream = await channel.open_stream(b"0123456789", timeout=Index(60))  # type: ignore[arg-type]
            assert await stream.read(Index(1)) == b"0"  # type: ignore[arg-type]
            assert await stream.read(0) == b""
            assert await stream.readinto(bytearray()) == 0
            assert await stream.readinto(memoryview(bytearray(4)).cast("B", (2, 2))) == 4
            assert await stream.read(HUGE)
            assert await stream.write(memoryview(b"")) == 0
            await stream.write_eof()
            assert await stream.read(None) == b""

    anyio.run(main)


def test_a_timeout_of_zero_is_a_deadline() -> None:
    """Also where it is the transport's own, and the request has none."""
    with byte_enclave(lambda connection: connection.wait_closed()) as (silent, _):
        transport = enclavia.EnclaveTransport(
            silent.url,
            pcrs=silent.pcrs,
            root=silent.root,
            timeout=httpx2.Timeout(HANG, read=0),
        )
        with transport, pytest.raises(enclavia.ReadTimeout):
            transport.handle_request(httpx2.Request("GET", transport.base_url))


@pytest.mark.parametrize("endless", ENDLESS, ids=range(len(ENDLESS)))
def test_an_endless_wait_is_none(endless: Any) -> None:
    parts = dict.fromkeys(("connect", "read", "write", "pool"), endless)
    for timeout in (endless, (endless, endless, endless, endless), httpx2.Timeout(**parts)):
        transport = enclavia.EnclaveTransport(NOWHERE, pcrs=PINS, timeout=timeout)
        assert transport._settings.timeouts == (None, None, None, None)
    limits = httpx2.Limits(keepalive_expiry=endless)
    transport = enclavia.EnclaveTransport(NOWHERE, pcrs=PINS, limits=limits)
    assert transport._settings.limits.keepalive_expiry is None
    with enclavia_client() as client:
        client.timeout = endless
        assert client.timeout == httpx2.Timeout(None)
        assert client.build_request("GET", "/", timeout=endless).extensions["timeout"] == {
            "connect": None,
            "read": None,
            "write": None,
            "pool": None,
        }
    request = httpx2.Request("GET", "/", extensions={"timeout": parts})
    default = Timeouts(1.0, 1.0, 1.0, 1.0)
    assert Timeouts.of(request, default) == (None, None, None, None)


@pytest.mark.parametrize("endless", [None, *ENDLESS], ids=range(len(ENDLESS) + 1))
def test_no_limit(blocking: Blocking, endless: Any) -> None:
    stream = blocking.channel.open_stream(b"0123456789", timeout=endless)
    for name in ("timeout", "read_timeout", "write_timeout"):
        setattr(stream, name, endless)
        assert getattr(stream, name) is None
    assert stream.read(1) == b"0"
    stream.close()
    blocking.channel.attest(timeout=endless)


def test_no_limit_of_what_is_awaited(enclave: LocalEnclave) -> None:
    async def main() -> None:
        pins = {"pcrs": enclave.pcrs, "root": enclave.root}
        async with enclavia.AsyncChannel.connect(enclave.url, timeout=math.inf, **pins) as channel:
            stream = await channel.open_stream(b"0123456789", timeout=HUGE)
            for name in ("timeout", "read_timeout", "write_timeout"):
                setattr(stream, name, math.inf)
                assert getattr(stream, name) is None
            assert await stream.read(1) == b"0"
            await channel.attest(timeout=ABSURD)
        async with enclavia.AsyncEnclaveTransport(enclave.url, **pins) as transport:
            await transport.connect(timeout=math.inf)

    anyio.run(main)


def test_no_limit_of_a_client() -> None:
    with LocalEnclave(hello) as enclave:
        pins = {"pcrs": enclave.pcrs, "root": enclave.root}
        for endless in (None, math.inf, HUGE):
            with enclavia.Client(enclave.url, timeout=endless, **pins) as client:
                assert client.get("/").text == "hello"
                assert client.get("/", timeout=endless).text == "hello"
            with enclavia.EnclaveTransport(enclave.url, **pins) as transport:
                transport.connect(timeout=endless)
            with enclavia.Channel.connect(enclave.url, timeout=endless, **pins):
                pass
            with enclavia.requests.session(enclave.url, **pins) as session:
                assert session.get(session.base_url, timeout=endless).text == "hello"


def test_a_request_after_one_that_was_refused() -> None:
    with LocalEnclave(hello) as enclave:
        pins = {"pcrs": enclave.pcrs, "root": enclave.root}
        with enclavia.Client(enclave.url, **pins) as client:
            for value in ("5", True, -1, NAN):
                sent = client.stats.requests
                with pytest.raises((TypeError, ValueError), match=r"timeout \(read\): expected"):
                    client.get("/", timeout=httpx2.Timeout(5, read=value))
                assert client.stats.requests == sent
                assert client.get("/", timeout=5).text == "hello"


def test_requests_of_the_other_httpx_say_so(enclave: LocalEnclave) -> None:
    pins = {"pcrs": enclave.pcrs, "root": enclave.root}
    ours = enclavia.EnclaveTransport(enclave.url, **pins)
    theirs = enclavia.httpx.EnclaveTransport(enclave.url, **pins)
    with ours, pytest.raises(TypeError, match=r"of httpx2, got one of httpx: .*enclavia\.httpx"):
        httpx.Client(transport=ours, base_url=str(ours.base_url)).get("/")  # type: ignore[arg-type]
    with theirs, pytest.raises(TypeError, match=r"of httpx, got one of httpx2: .*EnclaveTransport"):
        httpx2.Client(transport=theirs, base_url=str(ours.base_url)).get("/")  # type: ignore[arg-type]
