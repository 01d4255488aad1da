"""The reader of HTTP in Python, which takes httptools' place in Pyodide, beside httptools."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_http1 import CHUNKED, CLOSED, INFORMED, NO_REASON, OLD_KEPT, SIZED, UPGRADED, Outcome

from enclavia._http1 import chunks, head, plain

FOLDED = b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nX: a\r\n b\r\n\r\nhello"
EXTENDED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b;c="d"\r\nhello\r\n0\r\n\r\n'
WHOLE = [CHUNKED, CLOSED, EXTENDED, FOLDED, INFORMED, NO_REASON, OLD_KEPT, SIZED, UPGRADED]
PIECES = [
    b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b";", b"\0", b"\x01", b"\x7f", b"\x80", b",", b"0",
    b"5", b"f", b'"', b"=", b"\\", b"-", b"+", b"(", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
]  # fmt: skip


@pytest.fixture
def in_python() -> Iterator[None]:
    with using(plain):
        yield


class using:
    def __init__(self, reader: ModuleType) -> None:
        self._reader = reader

    def __enter__(self) -> None:
        self._before = head.load_httptools
        head.load_httptools = chunks.load_httptools = lambda: self._reader  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        head.load_httptools = chunks.load_httptools = self._before


def read(reader: ModuleType, pieces: list[bytes], eof: bool) -> Outcome:
    with using(reader):
        return Outcome(pieces, eof=eof)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    text = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text[at : at + draw(st.integers(0, 2))] = draw(st.sampled_from([b"", *PIECES]))
    return bytes(text)


@given(damaged(), st.integers(0, 200), st.booleans())
def test_what_httptools_refuses_is_refused_and_what_is_read_is_read_alike(
    text: bytes, cut: int, eof: bool
) -> None:
    pieces = [piece for piece in (text[:cut], text[cut:]) if piece]
    theirs, ours = read(httptools, pieces, eof), read(plain, pieces, eof)
    assert ours.heads == theirs.heads
    if theirs.error:
        assert ours.error
        assert ours.end is None
    elif not ours.error:  # it refuses some chunk extensions that llhttp passes
        assert ours.summary() == theirs.summary()
    else:
        assert b";" in text
        assert ours.error.startswith(("ProtocolError: expected a chunked", "IncompleteResponse"))


@pytest.mark.parametrize("text", WHOLE)
def test_each_kind_of_answer_is_read_as_httptools_reads_it(text: bytes) -> None:
    for cut in range(len(text)):
        pieces = [text[:cut], text[cut:]] if cut else [text]
        assert read(plain, pieces, True).summary() == read(httptools, pieces, True).summary()


@pytest.mark.parametrize(
    "line",
    [
        b"5\n", b"5\r", b" 5\r\n", b"5;\r\n", b'5;a="b\r\n', b"5;a b\r\n", b"-5\r\n", b"0x5\r\n",
        b"5" * 17 + b"\r\n", b"\r\n", b"5\x00\r\n",
    ],
)  # fmt: skip
def test_a_chunk_that_is_none_is_refused(in_python: None, line: bytes) -> None:
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    outcome = Outcome([start + line + b"hello\r\n0\r\n\r\n"])
    assert outcome.error.startswith("ProtocolError: expected a chunked body")
    assert outcome.body == b""


@pytest.mark.parametrize("name", [b"Content-Length", b"transfer-encoding"])
def test_a_trailer_that_would_frame_the_message_is_refused(in_python: None, name: bytes) -> None:
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    outcome = Outcome([start + b"0\r\n" + name + b": 5\r\n\r\n"])
    assert outcome.error.startswith("ProtocolError: expected a chunked body")


@pytest.mark.parametrize("around", [b"a:%b", b"a: x%b", b"a: x%by"])
@pytest.mark.parametrize("last", [b"", b"\0"])
def test_a_long_run_of_spaces_is_read_once(in_python: None, around: bytes, last: bytes) -> None:
    """With a pattern that may share it out in many ways, each of these took hours or minutes, in
    which a page stands still."""
    field = around % (b" \t" * 30_000) + last
    outcome = Outcome([b"HTTP/1.1 200 OK\r\n" + field + b"\r\nContent-Length: 0\r\n\r\n"])
    assert outcome.error.startswith("ProtocolError" if last else "")
    assert len(outcome.heads) == (0 if last else 1)
    trailer = Outcome([CHUNKED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n0\r\n" + field + b"\r\n\r\n"])
    assert bool(trailer.error) == bool(last)
