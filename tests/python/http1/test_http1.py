"""HTTP/1.1 without I/O: what is written, what is read however it is cut, and what is refused."""

from __future__ import annotations

import contextlib
import gc
import itertools
import re
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavia import IncompleteResponse, InvalidRequest, ProtocolError
from enclavia._http1.chunks import ChunkReader
from enclavia._http1.head import Head
from enclavia._http1.limits import DEFAULT_LIMITS, Limits
from enclavia._http1.request import BodyEncoder, body_encoder, encode_head, expects_continue
from enclavia._http1.response import End, Event, Failed, ResponseParser

HOST = (b"Host", b"enclave")
TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
EACH_BYTE = [bytes([number]) for number in range(256)]


class Outcome:
    """What a parser said to some bytes, with the pieces of the body joined."""

    def __init__(self, pieces: list[bytes], method: bytes = b"GET", eof: bool = False) -> None:
        self.parser = ResponseParser(method)
        self.heads: list[Head] = []
        self.body = b""
        self.end: End | None = None
        self.error = ""
        try:
            for piece in pieces:
                self._take(self.parser.feed(piece))
            if eof:
                self._take(self.parser.feed_eof())
        except IncompleteResponse as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error = f"{type(error).__name__}: {error}"

    def _take(self, events: list[Event]) -> None:
        for event in events:
            assert self.end is None and not self.error, "something after the end"
            if isinstance(event, Failed):
                self._fail(event.error)
            elif isinstance(event, Head):
                assert not self.body
                self.heads.append(event)
            elif isinstance(event, bytes):
                assert event
                self.body += event
            else:
                self.end = event

    def summary(self) -> tuple[object, ...]:
        return (
            self.heads, self.body, self.end, self.error, self.parser.reusable,
            self.parser.leftover, self.parser.finished,
        )  # fmt: skip


SIZED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5;ext="1"\r\nhello\r\n1\r\n \r\n00B\r\nbrave world\r\n0\r\nDigest: abc \r\nX-T: 2\r\n\r\n'
)
CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello brave world"
OLD = b"HTTP/1.0 200 OK\r\n\r\nhello"
OLD_KEPT = b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\nhello"
INFORMED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    b"HTTP/1.1 204 No Content\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n"
)
UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n\x81\x00raw"
)
NO_REASON = b"HTTP/1.1 200\r\nContent-Length:   0  \r\n\r\n"
SPURIOUS = SIZED + b"HTTP/1.1 200 OK\r\n\r\n"
SPURIOUS_CHUNKED = CHUNKED + b"HTTP/1.1 200 OK\r\n\r\n"

MESSAGES = {
    "sized": (SIZED, b"GET", False),
    "sized-head": (SIZED[:-5], b"HEAD", False),
    "chunked": (CHUNKED, b"GET", False),
    "chunked-head": (CHUNKED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", b"HEAD", False),
    "closed": (CLOSED, b"GET", True),
    "old": (OLD, b"GET", True),
    "old-kept": (OLD_KEPT, b"GET", False),
    "informed": (INFORMED, b"GET", False),
    "upgraded": (UPGRADED, b"GET", False),
    "connected": (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nraw", b"CONNECT", False),
    "refused-connect": (b"HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nraw", b"CONNECT", False),
    "no-reason": (NO_REASON, b"GET", False),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", b"GET", False),
    "spurious": (SPURIOUS, b"GET", False),
    "spurious-chunked": (SPURIOUS_CHUNKED, b"GET", False),
    "h2c-offer": (
        b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 1\r\n\r\nx",
        b"GET",
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "request_with"),
    [
        (TCHAR, lambda byte: (byte, b"/", [HOST])),
        (rb"[\x21-\x7e\x80-\xff]", lambda byte: (b"GET", b"/" + byte, [HOST])),
        (TCHAR, lambda byte: (b"GET", b"/", [HOST, (byte, b"")])),
        (rb"[\t\x20-\x7e\x80-\xff]", lambda byte: (b"GET", b"/", [HOST, (b"A", byte)])),
    ],
    ids=["method", "target", "name", "value"],
)
def test_each_byte_of_a_head_is_one_that_may_stand_there(
    pattern: bytes, request_with: Callable[[bytes], tuple[bytes, bytes, list[tuple[bytes, bytes]]]]
) -> None:
    """RFC 9110, sections 5.5 and 5.6.2; of a target, whatever is neither a space nor a control."""
    taken = set()
    for byte in EACH_BYTE:
        with contextlib.suppress(InvalidRequest):
            encode_head(*request_with(byte))
            taken.add(byte)
    assert taken == {byte for byte in EACH_BYTE if re.fullmatch(pattern, byte)}


def test_sized() -> None:
    got = Outcome([SIZED])
    assert got.heads[0].status == 200
    assert got.heads[0].reason == b"OK"
    assert got.heads[0].headers == ((b"Content-Type", b"text/plain"), (b"Content-Length", b"5"))
    assert (got.body, got.end, got.parser.reusable) == (b"hello", End(), True)


def test_chunked() -> None:
    got = Outcome([CHUNKED])
    assert got.body == b"hello brave world"
    assert got.end == End(trailers=((b"Digest", b"abc"), (b"X-T", b"2")))
    assert got.parser.reusable


def test_ends_at_close() -> None:
    assert Outcome([CLOSED]).end is None
    for message in (CLOSED, OLD):
        got = Outcome([message], eof=True)
        assert got.body.startswith(b"hello")
        assert got.end == End()
        assert not got.parser.reusable
    assert Outcome([OLD_KEPT]).parser.reusable


def test_informational() -> None:
    got = Outcome([INFORMED])
    assert [head.status for head in got.heads] == [100, 103, 204]
    assert got.heads[1].headers == ((b"Link", b"</a>"),)
    assert got.heads[2].headers == ((b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"))
    assert got.parser.reusable


def test_upgrade_keeps_what_followed() -> None:
    got = Outcome([UPGRADED])
    assert got.end == End(upgraded=True)
    assert got.parser.leftover == b"\x81\x00raw"
    assert not got.parser.reusable
    got = Outcome([MESSAGES["connected"][0]], b"CONNECT")
    assert got.end == End(upgraded=True)
    assert got.parser.leftover == b"raw"


@pytest.mark.parametrize("message", [SPURIOUS, SPURIOUS_CHUNKED, SIZED + b"x", CHUNKED + b"x"])
def test_unasked_bytes_end_the_reuse(message: bytes) -> None:
    got = Outcome([message])
    assert got.end is not None
    assert not got.error
    assert not got.parser.reusable


@pytest.mark.parametrize("name", MESSAGES)
def test_split_at_every_offset(name: str) -> None:
    message, method, eof = MESSAGES[name]
    whole = Outcome([message], method, eof).summary()
    byte_by_byte = [message[at : at + 1] for at in range(len(message))]
    assert Outcome(byte_by_byte, method, eof).summary() == whole
    for at in range(len(message) + 1):
        assert Outcome([message[:at], message[at:]], method, eof).summary() == whole, at


@pytest.mark.parametrize("name", MESSAGES)
def test_cut_at_every_offset(name: str) -> None:
    """An end of file before the end of the response is always told from the end."""
    message, method, eof = MESSAGES[name]
    if name.startswith("spurious"):
        return
    ends_with_head = message.index(b"\r\n\r\n") + 4
    for at in range(len(message)):
        got = Outcome([message[:at]], method, eof=True)
        if got.end is not None:
            assert eof or got.end.upgraded, at
            assert at >= ends_with_head
        else:
            assert got.error.startswith("IncompleteResponse: "), (at, got.error)


def test_cut_short_says_where() -> None:
    assert "before it answered" in Outcome([], eof=True).error
    assert "after 20 bytes" in Outcome([SIZED[:20]], eof=True).error
    assert "after 3 of 5 bytes" in Outcome([SIZED[:-2]], eof=True).error
    assert "without its last chunk" in Outcome([CHUNKED[:-30]], eof=True).error


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "status line"),
        (b"<html>", "status line"),
        (b"HTTP/2 200 OK\r\n", "status line"),
        (b"HTTP/1.1 099 OK\r\n", "status line"),
        (b"HTTP/1.1 20 OK\r\n", "status line"),
        (b"HTTP/1.1 2000 OK\r\n", "status line"),
        (b"HTTP/1.1  200 OK\r\n", "status line"),
        (b"http/1.1 200 OK\r\n", "status line"),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\nA: b\n\n", "status line"),
        (OK + b"A: b\nC: d\r\n\r\n", "CR"),
        (OK + b"A : b\r\n\r\n", "header token"),
        (OK + b": b\r\n\r\n", "header token"),
        (OK + b" A: b\r\n\r\n", "whitespace"),
        (OK + b"\tA: b\r\n\r\n", "whitespace"),
        (OK + b"Content-Length: 5\r\n 6\r\n\r\n", "folded"),
        (OK + b"Content-Length:\r\n 5\r\n\r\n", "folded"),
        (OK + b"transfer-encoding:\r\n chunked\r\n\r\n", "folded"),
        (OK + b"Transfer-Encoding: chunked\r\n\t\r\n\r\n", "folded"),
        (OK + b"Connection: x,\r\n close\r\n\r\n", "folded"),
        (OK + b"A: b\r\n folded\0\r\n\r\n", "value char"),
        (OK + b"A: b\r\n folded\r\nB : c\r\n\r\n", "header token"),
        (b"HTTP/1.2 200 OK\r\nA : b\r\n\r\n", "header token"),
        (OK + b"Content-Length: 5, 6\r\n\r\n", "Content-Length"),
        (OK + b"Content-Length: 5, 05\r\n\r\n", "Content-Length"),
        (OK + b"Content-Length: 5,\r\n\r\n", "Content-Length"),
        (OK + b"Content-Length: +5, +5\r\n\r\n", "Content-Length"),
        (
            OK + b"Content-Length: 5\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Transfer-Encoding",
        ),
        (OK + b"A: b\0c\r\n\r\n", "value char"),
        (OK + b"A: b\rc\r\n\r\n", "LF"),
        (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", "Content-Length"),
        (OK + b"Content-Length: -5\r\n\r\n", "Content-Length"),
        (OK + b"Content-Length: +5\r\n\r\n", "Content-Length"),
        (OK + b"Content-Length: 0x5\r\n\r\n", "Content-Length"),
        (OK + b"Content-Length: 99999999999999999999\r\n\r\n", "Content-Length"),
        (OK + b"Content-Length:\r\n\r\n", "Content-Length"),
        (OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding"),
        (OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "Content-Length"),
        (OK + b"Transfer-Encoding: gzip\r\n\r\n", "Transfer-Encoding: chunked"),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "Transfer-Encoding: chunked"),
        (OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n", "Transfer-Encoding: chunked"),
        (OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n", "Transfer-Encoding: chunked"),
        (OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "chunked"),
        (OK + b"Transfer-Encoding: xchunked\r\n\r\n", "Transfer-Encoding: chunked"),
        (OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n", "value char"),
    ],
)
def test_heads_refused(message: bytes, why: str) -> None:
    for pieces in ([message], [message[at : at + 1] for at in range(len(message))]):
        got = Outcome(pieces)
        assert got.error.startswith("ProtocolError: "), got.summary()
        assert why in got.error
        assert not got.parser.reusable


@pytest.mark.parametrize(
    ("message", "headers", "body"),
    [
        (OK + b"A: b\r\n c\r\n\t \td\r\n", ((b"A", b"b c d"),), b""),
        (OK + b"A:\r\n b\r\n \r\nC: d\r\n", ((b"A", b"b"), (b"C", b"d")), b""),
        (OK + b"A: b\r\n Content-Length: 9\r\n", ((b"A", b"b Content-Length: 9"),), b""),
        (OK + b"Content-Length: 2\r\ncontent-length:  2 \r\n", ((b"Content-Length", b"2"),), b"ok"),
        (
            OK + b"A: b\r\nContent-Length: 2,2, 2\r\n",
            ((b"A", b"b"), (b"Content-Length", b"2")),
            b"ok",
        ),
        (b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n", ((b"Content-Length", b"2"),), b"ok"),
        (b"HTTP/1.9 200\r\n", (), b""),
    ],
)
def test_heads_tolerated(
    message: bytes, headers: tuple[tuple[bytes, bytes], ...], body: bytes
) -> None:
    """What RFC 9110 and 9112 let a client read, where it can be read in one way only."""
    message += b"\r\n" + body
    for pieces in ([message], [message[at : at + 1] for at in range(len(message))]):
        got = Outcome(pieces, eof=True)
        assert not got.error
        assert (got.heads[0].headers, got.body, got.end) == (headers, body, End())
        assert got.heads[0].version == message[:8]
        assert got.parser.reusable is bool(body)


def test_a_head_of_nothing_but_folds_takes_no_time() -> None:
    message = OK + b"A: b\r\n" + b" \r\n" * 20_000 + b"\r\n"
    assert Outcome([message]).heads[0].headers == ((b"A", b"b"),)


@pytest.mark.parametrize("size", [b"2 ", b"2  ", b"2\t", b"2 ;a=b", b"02   "])
def test_padded_chunk_sizes(size: bytes) -> None:
    message = OK + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\nok\r\n0  \r\n\r\n"
    for pieces in ([message], [message[at : at + 1] for at in range(len(message))]):
        got = Outcome(pieces)
        assert (got.body, got.end, got.parser.reusable) == (b"ok", End(), True)


BROKEN = {
    "no chunk": (b"zz\r\n", b""),
    "second chunk": (b"5\r\nhello\r\nzz\r\n", b"hello"),
    "too long": (b"5\r\nhello!\r\n", b"hello"),
    "trailer": (b"5\r\nhello\r\n2\r\n w\r\n0\r\nX A b\r\n\r\n", b"hello w"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_was_good_comes_first_however_it_is_cut(name: str) -> None:
    rest, body = BROKEN[name]
    message = OK + b"Transfer-Encoding: chunked\r\n\r\n" + rest
    whole = Outcome([message])
    assert [head.status for head in whole.heads] == [200]
    assert whole.body == body
    assert whole.error.startswith("ProtocolError: expected a chunked body")
    for at in range(len(message)):
        assert Outcome([message[:at], message[at:]]).summary() == whole.summary(), at
    assert Outcome([message], eof=True).summary() == whole.summary()


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n", b"-1\r\nx", b"+1\r\nx", b"0x1\r\nx", b" 1\r\nx", b"1 2\r\nx", b"1\nx\r\n",
        b"1\r\nxy\r\n", b"1\r\nx\n0\r\n\r\n", b"\r\n", b";a\r\n", b"1\r\nx0\r\n",
        b"fffffffffffffffff\r\n", b"10000000000000000\r\n", b"0\r\nBad Name: x\r\n\r\n",
        b"0\r\nA: b\0\r\n\r\n", b"1\r\nx\r\n0\r\n: v\r\n\r\n",
    ],
)  # fmt: skip
def test_chunks_refused(body: bytes) -> None:
    message = OK + b"Transfer-Encoding: chunked\r\n\r\n" + body
    for pieces in ([message], [message[at : at + 1] for at in range(len(message))]):
        got = Outcome(pieces)
        assert got.error.startswith("ProtocolError: expected a chunked body"), got.summary()


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b"0;x=y\r\nA:\r\n\r\n"])
@pytest.mark.parametrize("excess", [b"", b"\r", b"\n", b"\r\n", b"\r\n\r\n"])
def test_line_ends_after_the_last_chunk(end: bytes, excess: bytes) -> None:
    body = b"4\r\n\r\n\r\n\r\n" + end + excess
    message = OK + b"Transfer-Encoding: chunked\r\n\r\n" + body
    for size in range(1, len(message) + 1):
        got = Outcome([message[at : at + size] for at in range(0, len(message), size)])
        assert (got.body, got.error) == (b"\r\n\r\n", "")
        assert got.parser.reusable is (excess == b""), size


def test_trusted_no_further_when_old_and_chunked() -> None:
    got = Outcome([b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"])
    assert got.body == b"x"
    assert not got.parser.reusable


@pytest.mark.parametrize(
    ("connection", "reusable"),
    [
        (b"keep-alive", True), (b"close", False), (b"Close", False), (b"x, close", False),
        (b"closed", True), (b"upgrade", True),
    ],
)  # fmt: skip
def test_connection_header(connection: bytes, reusable: bool) -> None:
    got = Outcome([OK + b"Connection: %b\r\nContent-Length: 0\r\n\r\n" % connection])
    assert got.parser.reusable is reusable


def feed_each(parser: ResponseParser, pieces: list[bytes]) -> list[Event]:
    """What is said about them; what is wrong with them is raised, with all that is good behind
    it lost."""
    events = [event for piece in pieces for event in parser.feed(piece)]
    for event in events:
        if isinstance(event, Failed):
            raise event.error
    return events


class TestLimits:
    def test_head_bytes(self) -> None:
        limits = Limits(head_bytes=1000)
        fits = OK + b"A: %b\r\nContent-Length: 0\r\n\r\n"
        room = 1000 - len(fits) + 2
        assert feed_each(ResponseParser(b"GET", limits), [fits % (b"x" * room)])
        with pytest.raises(ProtocolError, match="at most 1000 bytes, got 1001"):
            feed_each(ResponseParser(b"GET", limits), [fits % (b"x" * (room + 1))])
        parser = ResponseParser(b"GET", limits)
        with pytest.raises(ProtocolError, match="at most 1000 bytes"):
            feed_each(parser, [OK, *[b"x"] * 1001])

    def test_header_count(self) -> None:
        head = OK + b"A: b\r\n" * 256 + b"\r\n"
        assert len(feed_each(ResponseParser(b"HEAD"), [head])) == 2
        with pytest.raises(ProtocolError, match="at most 256 response headers, got 257"):
            feed_each(ResponseParser(b"HEAD"), [OK + b"A: b\r\n" * 257 + b"\r\n"])

    def test_informational(self) -> None:
        parser = ResponseParser(b"GET", Limits(informational=3))
        with pytest.raises(ProtocolError, match="at most 3 informational"):
            feed_each(parser, [b"HTTP/1.1 102 Processing\r\n\r\n" * 4])

    def test_chunk_extension(self) -> None:
        parser = ResponseParser(b"GET", Limits(chunk_overhead=1000))
        parser.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n1;")
        with pytest.raises(ProtocolError, match="chunk extensions"):
            feed_each(parser, [b"x"] * 1001)

    def test_trailers(self) -> None:
        parser = ResponseParser(b"GET", Limits(header_count=8))
        parser.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        with pytest.raises(ProtocolError, match="at most 8 trailers"):
            feed_each(parser, [b"A: b\r\n"] * 20)

    @pytest.mark.parametrize("cut", [1, 7, 100, 65_536, 1 << 30])
    def test_many_chunk_extensions(self, cut: int) -> None:
        """Each read may bring a byte of data, and each extension may be below the limit."""
        chunk = b"1;" + b"x" * 600 + b"\r\ny\r\n"
        sent = OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 1000 + b"0\r\n\r\n"
        parser = ResponseParser(b"GET")
        events = [
            event for at in range(0, len(sent), cut) for event in parser.feed(sent[at : at + cut])
        ]
        assert isinstance(events[-1], Failed)
        assert "at most 65536 bytes of chunk extensions" in str(events[-1].error)
        data = b"".join(event for event in events if isinstance(event, bytes))
        assert data == b"y" * 137  # of each, all but 129 bytes are counted

    @pytest.mark.parametrize("cut", [1, 1000, 1 << 30])
    def test_one_long_chunk_extension(self, cut: int) -> None:
        """Between two chunks of a body that is much longer than it."""
        most = Limits(chunk_overhead=2000)
        body = b"1000\r\n" + b"y" * 4096 + b"\r\n"
        for extension, last in ((1996, End), (1997, Failed)):
            sent = body + b"1;" + b"x" * extension + b"\r\nz\r\n0\r\n\r\n"
            parser = ResponseParser(b"GET", most)
            parser.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n")
            pieces = [sent[at : at + cut] for at in range(0, len(sent), cut)]
            seen = [event for piece in pieces for event in parser.feed(piece)]
            assert type(seen[-1]) is last
            data = b"".join(event for event in seen if isinstance(event, bytes))
            assert data == b"y" * 4096 + b"z" * (last is End)

    def test_a_signature_in_each_chunk_is_no_overhead(self) -> None:
        parser = ResponseParser(b"GET")
        parser.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(2000):
            sent = b"1;chunk-signature=" + b"0" * 64 + b"\r\ny\r\n"
            assert parser.feed(sent) == [b"y"]

    @pytest.mark.parametrize("cut", [1, 1000, 1 << 30])
    def test_length_of_trailers(self, cut: int) -> None:
        parser = ResponseParser(b"GET", Limits(chunk_overhead=1000))
        sent = OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: " + b"b" * 995 + b"\r\n\r\n"
        with pytest.raises(ProtocolError, match="trailers"):
            feed_each(parser, [sent[at : at + cut] for at in range(0, len(sent), cut)])

    def test_many_small_chunks_are_no_overhead(self) -> None:
        parser = ResponseParser(b"GET", Limits(chunk_overhead=100))
        parser.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000):
            assert parser.feed(b"1;x\r\ny\r\n") == [b"y"]


class TestRequests:
    def test_head(self) -> None:
        assert encode_head(b"GET", b"/a?b=c", [HOST, (b"X", b"\xe9 y\tz"), (b"Empty", b"")]) == (
            b"GET /a?b=c HTTP/1.1\r\nHost: enclave\r\nX: \xe9 y\tz\r\nEmpty: \r\n\r\n"
        )

    def test_host_comes_first(self) -> None:
        assert encode_head(b"GET", b"/", [(b"B", b"1"), HOST, (b"A", b"2")]) == (
            b"GET / HTTP/1.1\r\nHost: enclave\r\nB: 1\r\nA: 2\r\n\r\n"
        )

    @pytest.mark.parametrize(
        ("method", "target", "headers"),
        [
            (b"GET /x", b"/", [HOST]),
            (b"", b"/", [HOST]),
            (b"GE\r\nT", b"/", [HOST]),
            (b"GET", b"", [HOST]),
            (b"GET", b"/ HTTP/1.1\r\nX: y", [HOST]),
            (b"GET", b"/a b", [HOST]),
            (b"GET", b"/\0", [HOST]),
            (b"GET", b"/", [HOST, (b"A:", b"b")]),
            (b"GET", b"/", [HOST, (b"A ", b"b")]),
            (b"GET", b"/", [HOST, (b"", b"b")]),
            (b"GET", b"/", [HOST, (b"A\r\nB", b"b")]),
            (b"GET", b"/", [HOST, (b"A", b"b\r\nB: c")]),
            (b"GET", b"/", [HOST, (b"A", b"b\nB: c")]),
            (b"GET", b"/", [HOST, (b"A", b"b\r")]),
            (b"GET", b"/", [HOST, (b"A", b"b\0")]),
            (b"GET", b"/", []),
            (b"GET", b"/", [HOST, HOST]),
        ],
    )
    def test_injection_refused(
        self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        with pytest.raises(InvalidRequest):
            encode_head(method, target, headers)

    @given(
        st.binary(max_size=12),
        st.binary(max_size=20),
        st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=12)), max_size=4),
    )
    def test_nothing_becomes_more_than_it_was(
        self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        """Whatever is given, what is written has as many lines as was asked for."""
        try:
            head = encode_head(method, target, [HOST, *headers])
        except InvalidRequest:
            return
        assert head.endswith(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        assert len(lines) == 2 + len(headers)
        assert lines[0].split(b" ") == [method, target, b"HTTP/1.1"]
        assert not re.search(rb"[\r\n\0]", b"".join(lines))
        for line, (name, value) in zip(lines[2:], headers, strict=True):
            assert line == name + b": " + value

    @pytest.mark.parametrize(
        ("headers", "length"),
        [
            ([], 0),
            ([(b"Content-Length", b"12")], 12),
            ([(b"content-length", b"0")], 0),
            ([(b"Transfer-Encoding", b"chunked")], None),
            ([(b"transfer-encoding", b"Chunked")], None),
        ],
    )
    def test_framing(self, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        assert body_encoder(headers).length == length

    @pytest.mark.parametrize(
        "headers",
        [
            [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")],
            [(b"Content-Length", b"1"), (b"Content-Length", b"1")],
            [(b"Content-Length", b"-1")],
            [(b"Content-Length", b"1, 1")],
            [(b"Content-Length", b"")],
            [(b"Transfer-Encoding", b"gzip")],
            [(b"Transfer-Encoding", b"gzip, chunked")],
            [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        ],
    )
    def test_framing_refused(self, headers: list[tuple[bytes, bytes]]) -> None:
        with pytest.raises(InvalidRequest):
            body_encoder(headers)

    def test_length_is_kept(self) -> None:
        encoder = BodyEncoder(3)
        assert encoder.encode(b"ab") == b"ab"
        with pytest.raises(InvalidRequest, match=r"3 bytes .*got 2"):
            encoder.finish()
        assert encoder.encode(b"c") == b"c"
        assert encoder.finish() == b""
        with pytest.raises(InvalidRequest, match=r"3 bytes .*at least 4"):
            encoder.encode(b"d")

    @given(st.lists(st.binary(max_size=40), max_size=6))
    def test_chunks_come_back(self, pieces: list[bytes]) -> None:
        """What is written in chunks is what our own reader, and so llhttp, reads."""
        encoder = BodyEncoder(None)
        encoded = b"".join(map(encoder.encode, pieces)) + encoder.finish()
        got = Outcome([OK + b"Transfer-Encoding: chunked\r\n\r\n" + encoded])
        assert got.body == b"".join(pieces)
        assert got.end == End()
        assert got.parser.reusable

    def test_expect(self) -> None:
        assert expects_continue([(b"expect", b" 100-Continue ")])
        assert not expects_continue([(b"Expect", b"nothing")])
        assert not expects_continue([])


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes, bool]:
    """A well-formed response, its body, and whether it ends by closing."""
    body = draw(st.binary(max_size=60))
    names = st.from_regex(rb"\AX-[A-Za-z0-9-]{1,6}\Z")
    values = st.from_regex(rb"\A[!-~\x80-\xff]([ -~]{0,8}[!-~])?\Z")
    headers = draw(st.lists(st.tuples(names, values), max_size=4))
    head = b"HTTP/1.1 200 Fine\r\n" + b"".join(b"%b:%b\r\n" % field for field in headers)
    framing = draw(st.sampled_from(["sized", "chunked", "closed"]))
    if framing == "sized":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body, body, False
    if framing == "closed":
        return head + b"\r\n" + body, body, True
    encoder = BodyEncoder(None)
    cut = draw(st.integers(0, len(body)))
    chunks = encoder.encode(body[:cut]) + encoder.encode(body[cut:]) + encoder.finish()
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, body, False


@given(responses(), st.lists(st.integers(0, 200), max_size=6))
def test_any_response_however_cut(response: tuple[bytes, bytes, bool], cuts: list[int]) -> None:
    message, body, closes = response
    edges = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    pieces = [message[start:end] for start, end in itertools.pairwise(edges)]
    got = Outcome(pieces, eof=closes)
    assert not got.error
    assert got.body == body
    assert got.end == End()
    assert got.parser.reusable is not closes


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes(garbage: bytes, cut: int) -> None:
    """Typed errors only, and the same ones however the bytes are cut."""
    for prefix in (b"", OK, OK + b"Transfer-Encoding: chunked\r\n\r\n"):
        message = prefix + garbage
        whole = Outcome([message], eof=True)
        split = Outcome([message[:cut], message[cut:]], eof=True)
        for outcome in (whole, split):
            outcome.error = outcome.error.partition(":")[0]  # the text may show less of a line
        assert whole.summary() == split.summary()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
    ids=["length", "chunked"],
)
def test_a_parser_leaves_nothing_to_the_garbage_collector(answer: bytes) -> None:
    gc.collect()
    gc.disable()
    try:
        parser = ResponseParser(b"GET")
        assert isinstance(parser.feed(answer)[-1], End)
        kept = [weakref.ref(parser)]
        if hasattr(parser, "_chunks"):
            kept.append(weakref.ref(parser._chunks))
        del parser
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


@given(
    method=st.sampled_from([b"GET", b"get", b"HEAD", b"CONNECT", b"POST"]),
    version=st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.7", b"HTTP/2.0"]),
    status=st.sampled_from([b"100", b"101", b"103", b"200", b"204", b"304", b"404", b"2x0"]),
    fields=st.lists(
        st.sampled_from([
            b"Content-Length: 2", b"Content-Length: 0", b"Content-Length: +2", b"content-length: 3",
            b"Transfer-Encoding: chunked", b"Connection: close", b"Connection: keep-alive",
            b"Upgrade: x", b"Set-Cookie: a=b", b"A: " + b"x" * 1100, b" folded", b"no field", b"",
        ]),
        max_size=4,
    ),
    end=st.sampled_from([b"\r\n\r\n", b"\r\n\r", b"\n\n"]),
    body=st.sampled_from([b"", b"ok", b"okk", b"2\r\nok\r\n0\r\n\r\n", SIZED]),
)  # fmt: skip
def test_an_answer_that_is_taken_whole_is_what_it_is_step_by_step(
    method: bytes, version: bytes, status: bytes, fields: list[bytes], end: bytes, body: bytes
) -> None:
    answer = b"\r\n".join([version + b" " + status + b" OK", *fields]) + end + body
    stepwise = Outcome([answer], method)
    parser = ResponseParser(method)
    try:
        whole = parser.whole(answer)
    except ProtocolError as error:
        assert stepwise.error == f"ProtocolError: {error}" and not stepwise.heads
        assert not parser.finished and not parser.reusable
        return
    if whole is None:  # nothing was taken: the same parser reads it from the beginning
        after = Outcome([], method)
        after.parser = parser
        after._take(parser.feed(answer))
        assert after.summary() == stepwise.summary()
        return
    assert ([whole[0]], whole[1], End()) == (stepwise.heads, stepwise.body, stepwise.end)
    assert parser.started and parser.finished and parser.reusable == stepwise.parser.reusable
    assert parser.whole(answer) is None
    assert parser.feed(b"more") == [] and not parser.reusable


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_which_answers_are_taken_whole(name: str) -> None:
    answer, method, _ = MESSAGES[name]
    taken = ResponseParser(method).whole(answer) is not None
    assert taken == (name in {"sized", "old-kept", "no-reason", "h2c-offer"})


def test_an_answer_is_taken_whole_within_the_limits_only() -> None:
    head = SIZED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    for most in (len(head), len(head) - 1):
        parser = ResponseParser(b"GET", Limits(head_bytes=most))
        assert (parser.whole(SIZED) is None) == (most < len(head))
    with pytest.raises(ProtocolError, match="at most 1 response headers"):
        ResponseParser(b"GET", Limits(header_count=1)).whole(SIZED)


@pytest.mark.parametrize("callback", ["on_message_begin", "on_header"])
def test_ctrl_c_while_a_chunked_body_begins(monkeypatch: pytest.MonkeyPatch, callback: str) -> None:
    """It may come within a callback of llhttp, which raises an error of its own then."""

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ChunkReader, callback, interrupted)
    with pytest.raises(KeyboardInterrupt):
        ChunkReader(DEFAULT_LIMITS)
