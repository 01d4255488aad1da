"""The enclave's URL and everything else a channel is configured with: taken, or refused early."""

from __future__ import annotations

import os
import pickle
import ssl
from pathlib import Path
from typing import Any

import httpx2
import pytest

import enclavia
from enclavia._channel.config import ChannelConfig
from enclavia._channel.url import EnclaveURL

PINS = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "path", "authority"),
    [
        ("wss://e.example", "wss", "e.example", 443, "/", "e.example"),
        ("https://e.example", "wss", "e.example", 443, "/", "e.example"),
        ("wss://e.example:443/", "wss", "e.example", 443, "/", "e.example"),
        ("wss://E.Example:8443/a/b?c=d", "wss", "e.example", 8443, "/a/b?c=d", "e.example:8443"),
        ("ws://127.0.0.1:9000", "ws", "127.0.0.1", 9000, "/", "127.0.0.1:9000"),
        ("ws://localhost", "ws", "localhost", 80, "/", "localhost"),
        ("ws://localhost:443", "ws", "localhost", 443, "/", "localhost:443"),
        ("wss://[::1]:9000/x", "wss", "::1", 9000, "/x", "[::1]:9000"),
        ("wss://[2001:db8::1]", "wss", "2001:db8::1", 443, "/", "[2001:db8::1]"),
        ("wss://bücher.example", "wss", "xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example"),
        (" wss://e.example/a b\n", "wss", "e.example", 443, "/a%20b", "e.example"),
    ],
)
def test_taken(text: str, scheme: str, host: str, port: int, path: str, authority: str) -> None:
    url = EnclaveURL.parse(text)
    assert (url.scheme, url.host, url.port, url.path) == (scheme, host, port, path)
    assert url.authority == authority
    assert url.tls is (scheme == "wss")
    assert url.base_url == f"https://{authority}/"
    assert EnclaveURL.parse(httpx2.URL(text.strip())) == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wss://"),
        ("not a url", "wss://"),
        ("e.example", "wss://"),
        ("//e.example", "wss://"),
        ("ftp://e.example", "wss://"),
        ("http://e.example", "ws://.*WebSocket"),
        ("wss://", "expected a host in"),
        ("wss:///path", "expected a host in"),
        ("wss://user:secret@e.example", "without user name"),
        ("http://user:secret@e.example", "without user name"),
        ("wss://e.example/#top", "#fragment"),
        ("wss://e.example:0", "port"),
        ("wss://e.example:65536", "port"),
        ("wss://e.example:99999", "port"),
        ("wss://e.example:port", "expected wss"),
        ("wss://exa mple", "host name"),
        ("wss://.e.example", "host name"),  # "any name below" to a check of certificates
        ("wss://[::%\u00e9]/", "host name"),
        ("wss://e.example/\x00", "expected wss"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(enclavia.InvalidURL, match=message) as caught:
        enclavia.Client(text, pcrs=PINS)
    assert isinstance(caught.value, ValueError | httpx2.InvalidURL)
    assert "secret" not in str(caught.value)


def test_not_text() -> None:
    with pytest.raises(TypeError, match="url: expected text"):
        EnclaveURL.parse(b"wss://e.example")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("enclave", "request_url", "allowed"),
    [
        ("wss://e.example", "https://e.example/x", True),
        ("wss://e.example", "https://e.example:443/x", True),
        ("wss://e.example", "wss://E.EXAMPLE/ws", True),
        ("wss://e.example", "http://e.example/x", True),
        ("wss://e.example", "http://e.example:443/x", True),
        ("wss://e.example", "http://e.example:8080/x", False),
        ("wss://e.example", "ws://e.example/x", True),
        ("wss://e.example", "https://e.example./x", False),
        ("wss://e.example", "//e.example/x", False),
        ("wss://e.example", "https://e.example:8443/x", False),
        ("wss://e.example", "https://other.example/x", False),
        ("wss://e.example", "https://e.example.other/x", False),
        ("wss://e.example", "ftp://e.example/x", False),
        ("wss://e.example:8443", "https://e.example:8443/x", True),
        ("wss://e.example:8443", "https://e.example/x", False),
        ("ws://127.0.0.1:9", "https://127.0.0.1:9/x", True),
        ("ws://127.0.0.1:9", "ws://127.0.0.1:9/x", True),
        ("ws://127.0.0.1:9", "http://127.0.0.1:9/x", True),
        ("ws://127.0.0.1:9", "http://127.0.0.1/x", False),
        ("ws://[::1]:9", "https://[::1]:9/x", True),
        ("ws://localhost", "https://localhost/x", True),
        ("ws://localhost", "https://localhost:80/x", True),
        ("ws://localhost:443", "https://localhost:443/x", True),
        ("wss://localhost:80", "http://localhost/x", True),
        ("wss://localhost:80", "https://localhost/x", False),
        ("ws://[::1]", "https://[::%\u00e9]/x", False),
    ],
)
def test_what_may_be_requested(enclave: str, request_url: str, allowed: bool) -> None:
    refusal = EnclaveURL.parse(enclave).refusal(httpx2.URL(request_url))
    assert (refusal is None) is allowed, refusal


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pcrs": None}, ValueError, "pcrs: expected the PCRs"),
        ({"pcrs": []}, ValueError, "got an empty list"),
        ({"pcrs": "4f"}, TypeError, "pcrs: expected Pcrs"),
        ({"pcrs": {"PCR0": "4f"}}, TypeError, "pcrs: expected Pcrs"),
        (
            {"pcrs": enclavia.Pcrs(pcr0=b"\0" * 48, pcr1=b"\0" * 48, pcr2=b"\0" * 48)},
            ValueError,
            "all zeros: that is a debug enclave",
        ),
        ({"debug_mode": "yes"}, TypeError, "debug_mode"),
        ({"root": b"no certificate"}, ValueError, "certificate"),
        ({"root": 5}, TypeError, "root: expected"),
        ({"root": "/does/not/exist.pem"}, FileNotFoundError, "exist"),
        ({"verify": ssl.create_default_context()}, TypeError, "which cannot hand it over"),
        ({"verify": "/does/not/exist.pem"}, FileNotFoundError, "no file"),
        ({"verify": 5}, TypeError, "verify"),
        ({"verify": ""}, ValueError, "got an empty text"),
        ({"proxy": "socks5://127.0.0.1:9"}, ValueError, "CONNECT"),
        ({"proxy": "https://127.0.0.1:9"}, ValueError, "CONNECT"),
        ({"proxy": "http://"}, ValueError, "proxy"),
        ({"proxy": "http://p/x"}, ValueError, "without a path"),
        ({"proxy": httpx2.Proxy("http://p")}, TypeError, "httpx2.Proxy"),
        ({"max_in_flight": 0}, ValueError, "1 to 64"),
        ({"max_in_flight": 65}, ValueError, "1 to 64"),
        ({"max_in_flight": True}, TypeError, "max_in_flight"),
        ({"upgrade_headers": {"Host": "x"}}, ValueError, "Host"),
        ({"upgrade_headers": {"a b": "x"}}, ValueError, "header name"),
        ({"upgrade_headers": {"a": "x\r\ny: z"}}, ValueError, "not allowed"),
        ({"upgrade_headers": [("a", 5)]}, TypeError, "as text"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_configuration_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ChannelConfig.build("wss://e.example", **{"pcrs": PINS, **options})


def test_configuration_taken(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("x")
    config = ChannelConfig.build(
        "wss://e.example",
        pcrs=[PINS, enclavia.Pcrs(pcr0=b"4" * 32, pcr1=b"5" * 32, pcr2=b"6" * 32)],
        root=enclavia.AWS_ROOT_G1,
        upgrade_headers={"X-Enclave-Host": "e"},
        verify=ca,
        proxy="http://user:pass%20word@[::1]:3128",
        max_in_flight=8,
    )
    assert len(config.pins) == 2
    assert config.headers == (("X-Enclave-Host", "e"),)
    assert (config.verify, config.ca_file) == (True, str(ca))
    assert config.proxy == ("::1", 3128, "user:pass word")
    assert "pass word" not in repr(config)
    assert pickle.loads(pickle.dumps(config)) == config


def test_debug_mode_needs_no_pins() -> None:
    zeros = enclavia.Pcrs(pcr0=b"\0" * 48, pcr1=b"\0" * 48, pcr2=b"\0" * 48)
    for pcrs in (None, zeros, PINS):
        assert ChannelConfig.build("wss://e.example", pcrs=pcrs, debug_mode=True).debug_mode


def test_root_from_everywhere(tmp_path: Path) -> None:
    root = enclavia.AWS_ROOT_G1
    path = tmp_path / "root.der"
    path.write_bytes(root)
    for given in (root, bytearray(root), path, str(path)):
        assert ChannelConfig.build("wss://e", pcrs=PINS, root=given).root == root  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "most"),
    [("ws://" + "h" * 63 + ".", 55), ("ws://" + "h" * 63 + ".a", 54), ("ws://h/", 2031)],
)
def test_hosts_and_paths_have_a_longest(before: str, most: int) -> None:
    EnclaveURL.parse(before + "x" * most)
    with pytest.raises(enclavia.InvalidURL, match="at most"):
        EnclaveURL.parse(before + "x" * (most + 1))


def test_a_device_is_no_file_for_verify() -> None:
    with pytest.raises(ValueError, match="got no regular file"):
        ChannelConfig.build("wss://h", pcrs=PINS, verify=os.devnull)
