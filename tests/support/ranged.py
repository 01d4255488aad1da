"""A workload with one file, which knows ranges, and can break each rule of them alone; and bodies
that are cut, for servers that are none."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx2
from support import Connection, byte_enclave, keywords

import enclavia

BODY = bytes(n * 7 % 251 for n in range(300_000))


class Asked(NamedTuple):
    """One request: its method, its header fields in lower case, its body."""

    method: bytes
    fields: dict[bytes, bytes]
    body: bytes

    @property
    def span(self) -> tuple[int, int] | None:
        """Of ``Range: bytes=a-b``: a and b + 1; without b, no end to speak of."""
        found = re.fullmatch(rb"bytes=(\d+)-(\d*)", self.fields.get(b"range", b""))
        return None if found is None else (int(found[1]), int(found[2] or 1 << 60) + 1)


Answer = tuple[int, dict[bytes, bytes], bytes]


class Shelf:
    """``cuts``: after so many bytes of a body the connection ends, for each answer that has one
    more. ``change``: is given each answer, and returns another one in its place. ``before``: called
    with each request before it is answered."""

    def __init__(self, body: bytes = BODY, etag: bytes | None = b'"one"') -> None:
        self.body = body
        self.etag = etag
        self.dates: dict[bytes, bytes] = {}
        self.cuts: list[int | None] = []
        self.ranges = True
        self.chunked = False
        self.most: int | None = None
        self.asked: list[Asked] = []
        self.statuses: list[int] = []
        self.change: Callable[[Asked, Answer], Answer] = lambda _, answer: answer
        self.before: Callable[[Asked], None] = lambda _: None

    def __call__(self, connection: Connection) -> None:
        while True:
            head, body = connection.request()
            lines = head.split(b"\r\n")
            named = (line.partition(b": ") for line in lines[1:] if line)
            fields = {name.lower(): value for name, _, value in named}
            asked = Asked(lines[0].split(b" ")[0], fields, body)
            self.before(asked)
            self.asked.append(asked)
            status, headers, content = self.change(asked, self.answer(asked))
            self.statuses.append(status)
            if not self.send(connection, status, headers, content):
                return

    def send(
        self, connection: Connection, status: int, headers: dict[bytes, bytes], content: bytes
    ) -> bool:
        cut = self.cuts.pop(0) if self.cuts else None
        headers = dict(headers)
        chunked = self.chunked and status == 200
        if chunked:
            headers[b"Transfer-Encoding"] = b"chunked"
        else:
            headers.setdefault(b"Content-Length", b"%d" % len(content))
        lines = [b"HTTP/1.1 %d X" % status, *(b"%b: %b" % each for each in headers.items())]
        connection.send(b"\r\n".join(lines) + b"\r\n\r\n")
        if cut is not None:
            content = content[:cut]
        if chunked:
            connection.send(b"%x\r\n%b\r\n" % (len(content), content) if content else b"")
            connection.send(b"0\r\n\r\n" if cut is None else b"")
        else:
            connection.send(content)
        return cut is None

    def answer(self, asked: Asked) -> Answer:
        validator = self.dates if self.etag is None else {b"ETag": self.etag}
        span = asked.span if self.ranges else None
        same = asked.fields.get(b"if-range") in (None, *validator.values())
        if asked.method == b"PUT":
            return 201, {}, b""
        if span is None or not same:
            return 200, validator, self.body
        begin, end = span
        if begin >= len(self.body):
            return 416, {b"Content-Range": b"bytes */%d" % len(self.body)}, b""
        end = min(end, len(self.body), begin + (self.most or len(self.body)))
        where = b"bytes %d-%d/%d" % (begin, end - 1, len(self.body))
        return 206, {**validator, b"Content-Range": where}, self.body[begin:end]

    @property
    def spans(self) -> list[tuple[int, int] | None]:
        """Of each request."""
        return [asked.span for asked in self.asked]


@contextlib.contextmanager
def client_of(script: Callable[[Connection], None], **options: Any) -> Iterator[enclavia.Client]:
    """A client of a local enclave whose workload is this."""
    with (
        byte_enclave(script) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave, **options)) as client,
    ):
        yield client


class Cut(httpx2.SyncByteStream):
    """A body in small pieces, which ends in an error after ``size`` bytes, None: whole."""

    def __init__(self, body: bytes, size: int | None, retryable: bool) -> None:
        self._body = body[:size]
        self._whole = size is None
        self._retryable = retryable

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), 7):
            yield self._body[start : start + 7]
        if not self._whole:
            raise enclavia.IncompleteResponse("cut", retryable=self._retryable)
