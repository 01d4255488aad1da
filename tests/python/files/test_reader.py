"""Reading by ranges from servers that change, cut, redirect and break rules at random: what is read
is of the version that was opened, byte for byte, or an error.

``ENCLAVIA_READERS=20`` tries twenty times as many.
"""

from __future__ import annotations

import os
import random
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from ranged import Cut

import enclavia
from enclavia._files import blocks, reader
from enclavia._files.downloading import refuse_status
from enclavia._files.face import ThreadFace
from enclavia._files.opened import RemoteFile
from enclavia._files.source import Asked
from enclavia._io.face import run

EFFORT = int(os.environ.get("ENCLAVIA_READERS", "1"))
BLOCK = 16
READS = 12


class Fickle:
    """What a client is to a reader. Of each version, place and sender it has other bytes; its ETags
    say the version alone. ``honest``: it answers ranges rightly, whatever it has by then."""

    def __init__(self, choice: random.Random) -> None:
        self.choice = choice
        self.state = ("1", "one", "a", "nitro", "r")
        self.bodies: dict[tuple[str, ...], bytes] = {}
        self.sent: bytes | None = None
        """The body that the last answer with a first range was of."""

    def body(self) -> bytes:
        if self.state not in self.bodies:
            size = self.choice.choice([0, 5, BLOCK, 200, 200, 200])
            self.bodies[self.state] = self.choice.randbytes(size)
        return self.bodies[self.state]

    def change(self) -> None:
        choice = self.choice
        kinds = [("1", "2"), ("one", "two"), ("a", "b"), ("nitro", "debug"), ("r", "s")]
        self.state = tuple(  # type: ignore[assignment]
            choice.choice(kind) if choice.random() < 0.03 else kept
            for kind, kept in zip(kinds, self.state, strict=True)
        )

    def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        choice = self.choice
        self.change()
        if choice.random() < 0.05:
            raise enclavia.ConnectError("not reached", retryable=True)
        version, place, image, form, root = self.state
        etag = f'"{version}"'
        status, headers, body = self.answer(request, etag)
        if status == 200 or "If-Range" not in request.headers or choice.random() < 0.8:
            headers["ETag"] = etag
        if choice.random() < 0.6:
            headers["Content-Length"] = str(len(body))
        if "If-Range" not in request.headers:
            self.sent = self.body()
        cut = choice.randrange(len(body) + 1) if choice.random() < 0.3 else None
        measured = {"PCR0": image}
        fields = {"form": form, "pcrs": measured, "pins": None, "root": root, "via": None}
        return httpx2.Response(
            status,
            headers=headers,
            stream=Cut(body, cut, choice.random() < 0.9),
            request=httpx2.Request("GET", f"https://enclave/{place}"),
            extensions={"enclavia": SimpleNamespace(as_dict=lambda: fields)},
        )

    def answer(self, request: httpx2.Request, etag: str) -> tuple[int, dict[str, str], bytes]:
        choice, body = self.choice, self.body()
        wanted = request.headers.get("Range")
        if wanted is None or request.headers.get("If-Range", etag) != etag:
            return 200, {}, body
        if choice.random() < 0.03:
            return 200, {}, body
        begin, end = (int(each) for each in wanted.removeprefix("bytes=").split("-"))
        if begin >= len(body):
            return 416, {"Content-Range": f"bytes */{len(body)}"}, b""
        end = min(end + 1, len(body))
        if choice.random() < 0.2:
            end = choice.randrange(begin, end) + 1
        if choice.random() < 0.05:  # other bytes than those that were asked for
            begin = choice.randrange(len(body))
            end = choice.randrange(begin, len(body)) + 1
        return 206, {"Content-Range": f"bytes {begin}-{end - 1}/{len(body)}"}, body[begin:end]


def opened(server: Fickle, choice: random.Random) -> RemoteFile:
    cache = BLOCK * choice.choice([1, 3, 20])
    made = reader.RangeReader(
        ThreadFace(server),  # type: ignore[arg-type]
        lambda more: httpx2.Request("GET", "https://enclave/x", headers=[*more]),
        Asked("https://enclave/x"),
        refuse_status,
        {},
        goes_on=True,
        read_ahead=choice.choice([0, cache]),
        cache_size=cache,
    )
    run(made.open())
    return RemoteFile(made, "/x")


def test_what_is_read_is_of_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "pause_after", lambda _: 0.0)
    for module in (blocks, reader):
        monkeypatch.setattr(module, "BLOCK", BLOCK)
    read = changed = 0
    for seed in range(1000 * EFFORT):
        choice = random.Random(seed)
        server = Fickle(choice)
        try:
            file = opened(server, choice)
        except (httpx2.HTTPStatusError, enclavia.EnclaviaError):
            continue
        known = server.sent
        assert known is not None and file.size == len(known), seed
        for _ in range(READS):
            at, count = choice.randrange(len(known) + 3), choice.choice([1, 7, BLOCK, 90, -1])
            wanted = known[at:] if count < 0 else known[at : at + count]
            peeks = choice.random() < 0.2
            file.seek(at)
            try:
                got = file.peek() if peeks else file.read(count)
            except enclavia.FileChanged:
                changed += 1
            except (httpx2.HTTPStatusError, enclavia.EnclaviaError):
                pass
            else:
                read += 1
                if peeks:
                    assert known[at:].startswith(got) and bool(got) == (at < len(known)), seed
                else:
                    assert got == wanted, seed
    assert read > 4000 * EFFORT
    assert changed > 150 * EFFORT
