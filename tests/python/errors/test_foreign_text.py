"""Text that a peer chose, in messages and log lines: shown, never obeyed.

A hostile peer says the same forged words wherever it can say any: the router before the enclave was
verified, an enclave gone wrong, the workload. No message, log record or warning may hold a line
end, another control, or a character that changes the direction of writing.
"""

from __future__ import annotations

import ctypes
import logging
import pickle
import re
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from typing import Any

import attest_ctypes
import httpx2
import pytest
from enclave_peer import PCRS, EnclavePeer, root, signed_document
from raw_server import CLOSE, Peer, RawServer, close_payload, frame
from repository import ROOT

import enclavia
from enclavia._text import shown
from enclavia.testing._pki import mint, specs

FORGED = (
    "x\n2026-11-27 00:00:00,000 INFO enclavia verified\r\x1b[2K\x07\x9b\u202e\u2028\u2066\ufeffy"
)
# Visible text stays as it is, whatever the language.
READABLE = "größer 日本語 🙂"
HIDDEN = frozenset(("Cc", "Cf", "Co", "Cs", "Zl", "Zp"))

Script = Callable[[Peer], None]


def hidden_in(text: str) -> list[str]:
    return [hex(ord(c)) for c in text if unicodedata.category(c) in HIDDEN]


# What a peer can say, and where.


def close_reason(peer: Peer) -> None:
    peer.upgrade()
    peer.read_binary()
    peer.send(frame(CLOSE, close_payload(1011, FORGED)))
    peer.finish()


def opened(after: Callable[[EnclavePeer], None]) -> Script:
    def script(peer: Peer) -> None:
        enclave = EnclavePeer(peer)
        peer.upgrade()
        enclave.open()
        after(enclave)
        peer.finish()

    return script


def before(what: Callable[[EnclavePeer], None]) -> Script:
    def script(peer: Peer) -> None:
        enclave = EnclavePeer(peer)
        peer.upgrade()
        enclave.handshake()
        enclave.expect_attestation_request()
        what(enclave)
        peer.finish()

    return script


def error_instead_of_attestation(enclave: EnclavePeer) -> None:
    enclave.send("Error", id=0, message=FORGED)


def error_for_nobody(enclave: EnclavePeer) -> None:
    enclave.send("Error", id=77, message=FORGED)


def error_for_the_stream(enclave: EnclavePeer) -> None:
    opening = enclave.receive()
    enclave.send("Error", id=opening["id"], message=FORGED)


def unknown_type(enclave: EnclavePeer) -> None:
    enclave.send(FORGED)


def close_after_opening(enclave: EnclavePeer) -> None:
    enclave.receive()
    enclave.peer.send(frame(CLOSE, close_payload(1011, FORGED)))


def document_with(**fields: Any) -> Callable[[EnclavePeer], None]:
    def what(enclave: EnclavePeer) -> None:
        enclave.send_bytes(enclave.attestation(signed_document(enclave.hash, **fields)))

    return what


def named_leaf(enclave: EnclavePeer) -> None:
    """A name of 64 characters is what X.509 has room for."""
    chain = specs()
    name = FORGED[:20] + FORGED[-12:]
    hostile = mint(chain=[*chain[:-1], _renamed(chain[-1], name)])
    enclave.send_bytes(enclave.attestation(signed_document(enclave.hash, made=hostile)))


def _renamed(spec: Any, name: str) -> Any:
    import dataclasses

    return dataclasses.replace(spec, common_name=name)


def refusal(head: bytes) -> Script:
    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(head)
        peer.finish()

    return script


def answer(head: bytes, body: bytes = b"") -> Callable[[EnclavePeer], None]:
    def what(enclave: EnclavePeer) -> None:
        opening = enclave.receive()
        while b"\r\n\r\n" not in opening["payload"]:
            opening["payload"] += enclave.receive()["payload"]
        enclave.send("StreamData", id=opening["id"], payload=head + body)
        enclave.send("StreamClose", id=opening["id"])

    return what


RAW = FORGED.encode().replace(b"\r", b"").replace(b"\n", b"")
SPLIT = FORGED.encode()
SAID: dict[str, Script] = {
    "close reason": close_reason,
    "close reason after opening": opened(close_after_opening),
    "Error instead of attestation": before(error_instead_of_attestation),
    "Error for nobody": opened(error_for_nobody),
    "Error for a stream": opened(error_for_the_stream),
    "unknown message": opened(unknown_type),
    "unknown message before": before(unknown_type),
    "module id": before(document_with(module_id=FORGED)),
    "digest": before(document_with(digest=FORGED)),
    "key of the document": before(document_with(**{FORGED: 1})),
    "name of a certificate": before(named_leaf),
    "refused upgrade": refusal(b"HTTP/1.1 403 " + RAW + b"\r\nX: " + RAW + b"\r\n\r\n" + SPLIT),
    "no HTTP": refusal(SPLIT + b"\r\n\r\n"),
    "wrong accept": refusal(
        b"HTTP/1.1 101 " + RAW + b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + RAW + b"\r\n\r\n"
    ),
    "wrong upgrade": refusal(
        b"HTTP/1.1 101 x\r\nUpgrade: " + RAW + b"\r\nConnection: " + RAW + b"\r\n\r\n"
    ),
    "status line": opened(answer(b"HTTP/1.1 200 " + RAW + b"\r\nContent-Length: 0\r\n\r\n")),
    "no status line": opened(answer(SPLIT + b"\r\n\r\n")),
    "length": opened(answer(b"HTTP/1.1 200 OK\r\nContent-Length: " + RAW + b"\r\n\r\n")),
    "coding": opened(answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + RAW + b"\r\n\r\n")),
    "header name": opened(answer(b"HTTP/1.1 200 OK\r\n" + RAW + b": 1\r\n\r\n")),
    "chunk": opened(
        answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", SPLIT + b"\r\n")
    ),
    "content coding": opened(
        answer(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(SPLIT),
            SPLIT,
        )
    ),
    "redirect": opened(answer(b"HTTP/1.1 302 Found\r\nLocation: https://" + RAW + b"/\r\n\r\n")),
    "redirect to a scheme": opened(
        answer(b"HTTP/1.1 302 Found\r\nLocation: " + RAW + b"://x/\r\n\r\n")
    ),
}


def texts_of(error: BaseException) -> list[str]:
    found = [str(error), repr(error)]
    if isinstance(error, enclavia.EnclaviaError):
        found += [error.message, str(pickle.loads(pickle.dumps(error)))]
    for line in "".join(traceback.format_exception_only(error)).splitlines(keepends=True):
        found.append(line.removesuffix("\n"))
    for linked in (error.__cause__, error.__context__):
        if linked is not None:
            found += texts_of(linked)
    return found


@pytest.mark.parametrize("where", SAID)
@pytest.mark.parametrize("debug", [False, True], ids=["production", "debug"])
def test_what_a_hostile_peer_says_is_shown_not_obeyed(
    where: str, debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"debug_mode": True} if debug else {"pcrs": PCRS, "root": root()}
    # Who is verified all the same does not answer; the others need no time.
    timeout = httpx2.Timeout(5, read=0.5 if "before" in SAID[where].__qualname__ else 5)
    said: list[str] = []
    caplog.set_level(logging.DEBUG)
    with RawServer(SAID[where]) as server, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with enclavia.Client(
                server.url, timeout=timeout, retries=0, follow_redirects=True, **options
            ) as client:
                said += [repr(client.attestation), *str(client.attestation).splitlines()]
                client.get("/").raise_for_status()
        except httpx2.HTTPError as error:
            said += texts_of(error)
        said += [str(one.message) for one in warned]
    said += [record.getMessage() for record in caplog.records]
    assert any(said)
    for text in said:
        assert not hidden_in(text), (where, text)


def test_the_errors_keep_what_can_be_read() -> None:
    def script(peer: Peer) -> None:
        peer.upgrade()
        peer.read_binary()
        peer.send(frame(CLOSE, close_payload(1011, READABLE + "\n")))
        peer.finish()

    with RawServer(script) as server:
        with pytest.raises(enclavia.ConnectionClosed) as caught:
            enclavia.Channel.connect(server.url, pcrs=PCRS, root=root(), timeout=5)
        assert READABLE + "\\n" in str(caught.value)


def test_errors_of_adapters_say_no_more(caplog: pytest.LogCaptureFixture) -> None:
    import requests

    import enclavia.httpx
    import enclavia.requests

    httpx = pytest.importorskip("httpx")
    with (
        RawServer(SAID["Error for a stream"]) as server,
        enclavia.requests.session(
            server.url, pcrs=PCRS, root=root(), timeout=5, retries=0
        ) as session,
    ):
        adapter: Any = next(iter(session.adapters.values()))
        with pytest.raises(requests.RequestException) as caught:
            session.get(str(adapter.base_url))
        assert not any(map(hidden_in, texts_of(caught.value)))
    with RawServer(SAID["Error for a stream"]) as server:
        transport = enclavia.httpx.EnclaveTransport(
            server.url, pcrs=PCRS, root=root(), timeout=5, retries=0
        )
        with httpx.Client(transport=transport, base_url=str(transport.base_url)) as client:
            with pytest.raises(httpx.HTTPError) as failed:
                client.get("/")
            assert not any(map(hidden_in, texts_of(failed.value)))
    for record in caplog.records:
        assert not hidden_in(record.getMessage())


# The two functions that show it.


def core_shows(text: bytes, cap: int = 512) -> str:
    function = attest_ctypes.lib().encl_utf8_show_in
    function.restype = ctypes.c_void_p
    function.argtypes = [attest_ctypes.Slice, ctypes.c_char_p, ctypes.c_size_t]
    block = ctypes.create_string_buffer(b"\xaa" * (cap + 8), cap + 8)
    given = attest_ctypes.as_slice(text)
    function(given, ctypes.cast(block, ctypes.c_char_p), cap)
    assert block.raw[cap:] == b"\xaa" * 8, "wrote beyond its room"
    assert len(block.value) < cap
    return block.value.decode()


def test_the_core_shows_every_character_as_python_does() -> None:
    # Planes without characters show one in 256 of theirs.
    assigned = [*range(0, 0x20000, 16), *range(0x20000, 0xE0000, 4096)]
    for first in (*assigned, *range(0xE0000, 0xE0200, 16), *range(0xE0200, 0x110000, 4096)):
        characters = [chr(c) for c in range(first, first + 16) if not 0xD800 <= c < 0xE000]
        text = "".join(characters)
        got = core_shows(text.encode())
        assert not hidden_in(got), (hex(first), got)
        for character in characters:
            if character in got:
                continue
            # The whole plane of tags and selectors is, of which not all are assigned.
            hidden = unicodedata.category(character) in HIDDEN | {"Cn"}
            assert hidden or ord(character) >= 0xE0000, hex(ord(character))
            escape = character.encode("unicode_escape").decode()
            number = f"\\u{ord(character):04x}" if ord(character) >= 0x80 else escape
            assert escape in got or number in got, (hex(ord(character)), got)
    for code in range(0x20000):
        character = chr(code)
        got = shown(character)
        assert not hidden_in(got)
        visible = unicodedata.category(character) not in HIDDEN | {"Cn", "Zs"}
        assert got == character or not visible


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b"a\nb\r\tc", r"a\nb\r\tc"),
        (b"\x00\x1b[2K\x7f", r"\x00\x1b[2K\x7f"),
        ("\x9b\u202e\U000e0001".encode(), r"\u009b\u202e\U000e0001"),
        (b"\xff\xe2\x82\xed\xa0\x80", r"\xff\xe2\x82\xed\xa0\x80"),
        ("größer 日本 🙂".encode(), "größer 日本 🙂"),
    ],
)
def test_how_it_is_shown(raw: bytes, text: str) -> None:
    assert core_shows(raw) == text


def test_what_is_too_long_is_cut_between_characters() -> None:
    for text in (b"a" * 40, b"\n" * 40, "ä🙂".encode() * 10, b"\xff" * 40):
        whole = core_shows(text)
        for cap in range(8, 60):
            got = core_shows(text, cap)
            if len(whole.encode()) < cap:
                assert got == whole
            else:
                assert got.endswith("...") and whole.startswith(got[:-3])
    assert shown("a" * 2000) == "a" * 999 + "…"


def test_messages_of_the_core_are_made_in_one_place() -> None:
    """encl_fail and encl_error_prefix show what they are given: nothing else writes a message."""
    core = ROOT / "csrc"
    for path in core.glob("*/*.c"):
        if path.parts[-2:] == ("base", "error.c"):
            continue
        written = re.findall(
            r"(?:printf|memcpy|strcpy|strncpy|memmove)\([^;]{0,8}(?:\.|->)message\b",
            path.read_text(),
        )
        assert not written, f"{path} writes an error's message: {written}"


def test_surrogates_that_python_allows() -> None:
    assert shown("\ud800") == "\\ud800"
    assert str(enclavia.EnclaviaError("a\ud800\nb")) == "a\\ud800\\nb"
