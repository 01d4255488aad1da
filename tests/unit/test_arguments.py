"""The edges of arguments: what is outside a domain is refused where it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx2
import pytest

import enclavia
from enclavia.testing import LocalEnclave


def hello(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


PINS = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)
MAKERS: dict[str, Callable[..., Any]] = {
    "Client": enclavia.Client,
    "AsyncClient": enclavia.AsyncClient,
    "EnclaveTransport": enclavia.EnclaveTransport,
    "AsyncEnclaveTransport": enclavia.AsyncEnclaveTransport,
    "Channel.connect": enclavia.Channel.connect,
    "AsyncChannel.connect": enclavia.AsyncChannel.connect,
}


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("pcrs", [], ValueError, "an empty list"),
        ("pcrs", "11" * 48, TypeError, "got str"),
        ("pcrs", b"", TypeError, "got bytes"),
        ("pcrs", 5, TypeError, "got int"),
        ("pcrs", [None], TypeError, "got NoneType"),
        ("root", b"", ValueError, "no bytes"),
        ("root", "", ValueError, "an empty text"),
        ("root", 5, TypeError, "got int"),
        ("debug_mode", 1, TypeError, "got 1"),
        ("debug_mode", None, TypeError, "got None"),
        ("debug_mode", "", TypeError, "got ''"),
        ("clock_leeway", -1, ValueError, "got -1"),
        ("clock_leeway", float("nan"), ValueError, "got nan"),
        ("clock_leeway", True, TypeError, "got bool"),
        ("upgrade_headers", "", TypeError, "got str"),
        ("upgrade_headers", b"a: b", TypeError, "got bytes"),
        ("upgrade_headers", {"": "x"}, ValueError, "is not a header name"),
        ("upgrade_headers", {"a\nb": "x"}, ValueError, "is not a header name"),
        ("upgrade_headers", {"a": "x\r\nb: c"}, ValueError, "characters not allowed"),
        ("upgrade_headers", {"a": 5}, TypeError, "as text"),
        ("verify", "", ValueError, "an empty text"),
        ("verify", None, TypeError, "got NoneType"),
        ("verify", 1, TypeError, "got int"),
        ("proxy", "", ValueError, "expected http://"),
        ("pcrs", {0: b"1" * 48}, TypeError, "got dict"),
        ("timeout", "5", TypeError, "got str"),
        ("timeout", True, TypeError, "got bool"),
        ("timeout", -1, ValueError, "got -1"),
        ("timeout", float("nan"), ValueError, "got nan"),
        ("max_in_flight", 0, ValueError, "got 0"),
        ("max_in_flight", 65, ValueError, "got 65"),
        ("max_in_flight", True, TypeError, "got bool"),
        ("max_in_flight", 1.5, TypeError, "got float"),
    ],
)
@pytest.mark.parametrize("maker", MAKERS)
def test_refused_where_it_is_given(
    maker: str, name: str, value: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        MAKERS[maker]("wss://e.example", **{"pcrs": PINS, name: value})
    assert name in str(caught.value), "which argument it is about"
    assert words in str(caught.value), "what was got"


CLIENTS = [name for name in MAKERS if not name.endswith("connect")]


@pytest.mark.parametrize("part", ["connect", "read", "write", "pool"])
@pytest.mark.parametrize(
    ("value", "error", "got"),
    [("5", TypeError, "got str"), (-0.5, ValueError, "got -0.5"), (True, TypeError, "got bool")],
)
@pytest.mark.parametrize("maker", CLIENTS)
def test_each_timeout_is_checked(
    maker: str, part: str, value: Any, error: type[Exception], got: str
) -> None:
    with pytest.raises(error) as caught:
        MAKERS[maker]("wss://e.example", pcrs=PINS, timeout=httpx2.Timeout(5, **{part: value}))
    assert f"timeout ({part})" in str(caught.value)
    assert got in str(caught.value)


@pytest.mark.parametrize("maker", CLIENTS)
def test_limits_are_httpx2s(maker: str) -> None:
    with pytest.raises(TypeError, match=r"limits: expected httpx2\.Limits, got int"):
        MAKERS[maker]("wss://e.example", pcrs=PINS, limits=5)


@pytest.mark.parametrize("retries", [None, 2.5, True])
@pytest.mark.parametrize("maker", CLIENTS)
def test_retries_are_a_number_methods_or_a_callable(maker: str, retries: Any) -> None:
    with pytest.raises(TypeError, match=r"retries: expected a number, methods or a callable, got"):
        MAKERS[maker]("wss://e.example", pcrs=PINS, retries=retries)


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    with LocalEnclave(hello) as made:
        yield made


@pytest.mark.parametrize("value", ["5", True, -1, float("nan")])
def test_a_request_with_an_unusable_timeout_is_not_sent(enclave: LocalEnclave, value: Any) -> None:
    with enclavia.Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client:
        sent = client.stats.requests
        with pytest.raises((TypeError, ValueError), match=r"timeout \(read\): expected"):
            client.get("/", timeout=httpx2.Timeout(5, read=value))
        assert client.stats.requests == sent
        assert client.get("/", timeout=5).text == "hello"


@pytest.mark.parametrize("endless", [None, float("inf"), 1e300])
def test_no_limit(enclave: LocalEnclave, endless: float | None) -> None:
    pins = {"pcrs": enclave.pcrs, "root": enclave.root}
    with enclavia.Client(enclave.url, timeout=endless, **pins) as client:
        assert client.get("/").text == "hello"
        assert client.get("/", timeout=endless).text == "hello"
    with enclavia.Channel.connect(enclave.url, timeout=endless, **pins) as channel:
        channel.attest(timeout=endless)


@pytest.mark.parametrize("value", ["5", True, -1, float("nan")])
def test_a_channels_timeouts_are_checked(enclave: LocalEnclave, value: Any) -> None:
    pins = {"pcrs": enclave.pcrs, "root": enclave.root}
    with enclavia.Channel.connect(enclave.url, **pins) as channel:
        for call in (channel.open_stream, channel.attest, lambda **kw: channel.request(b"x", **kw)):
            with pytest.raises((TypeError, ValueError), match="timeout: expected"):
                call(timeout=value)
    transport = enclavia.EnclaveTransport(enclave.url, **pins)
    with pytest.raises((TypeError, ValueError), match="timeout: expected"):
        transport.connect(timeout=value)
    transport.close()


def test_requests_of_the_other_httpx_say_so(enclave: LocalEnclave) -> None:
    httpx = pytest.importorskip("httpx")
    adapter = pytest.importorskip("enclavia.httpx")
    pins = {"pcrs": enclave.pcrs, "root": enclave.root}
    ours, theirs = (
        enclavia.EnclaveTransport(enclave.url, **pins),
        adapter.EnclaveTransport(enclave.url, **pins),
    )
    with ours, pytest.raises(TypeError, match=r"of httpx2, got one of httpx: .*enclavia\.httpx"):
        httpx.Client(transport=ours, base_url=str(ours.base_url)).get("/")
    with theirs, pytest.raises(TypeError, match=r"of httpx, got one of httpx2: .*EnclaveTransport"):
        httpx2.Client(transport=theirs, base_url=str(ours.base_url)).get("/")


def test_no_room_for_connections_is_not_the_default() -> None:
    with pytest.raises(ValueError, match="max_connections"):
        LocalEnclave(hello, max_connections=0).start()


def test_errors_are_named_as_they_are_imported() -> None:
    public = [getattr(enclavia, name) for name in enclavia.__all__]
    errors = [it for it in public if isinstance(it, type) and issubclass(it, Exception)]
    assert enclavia.PcrMismatch in errors
    assert {it.__module__ for it in errors} == {"enclavia"}
