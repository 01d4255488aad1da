"""Downloads from servers that change, cut and redirect at random: a file that is taken for whole is
one representation from one image, byte for byte.

``ENCLAVIA_DOWNLOADS=20`` tries twenty times as many.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

import enclavia
from enclavia._cli import download
from enclavia._cli.exits import Problem
from enclavia._cli.partial import PartialOutput
from enclavia._cli.progress import Progress

EFFORT = int(os.environ.get("ENCLAVIA_DOWNLOADS", "1"))
RUNS = 8
SIZES = (0, 1, 40, 40, 40)


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


class Server:
    """What a client is to the download: an honest server behind an enclave. Its ETags say the
    version and nothing else, so that they are the same at both places where a redirect may lead."""

    def __init__(self, choice: random.Random) -> None:
        self.choice = choice
        self.version = 0
        self.place = "one"
        self.image = b"a"
        self.bodies: dict[tuple[str, int, bytes], bytes] = {}

    @property
    def attestation(self) -> Any:
        return SimpleNamespace(pcrs={0: self.image})

    def build_request(self, method: str, url: httpx2.URL, **parts: Any) -> httpx2.Request:
        return httpx2.Request(method, url, **parts)

    def body(self) -> bytes:
        choice, key = self.choice, (self.place, self.version, self.image)
        if key not in self.bodies:
            self.bodies[key] = choice.randbytes(choice.choice(SIZES))
        return self.bodies[key]

    def change(self) -> None:
        choice = self.choice
        if choice.random() < 0.15:
            self.version = choice.randrange(3)
        if choice.random() < 0.1:
            self.place = choice.choice(["one", "two"])
        if choice.random() < 0.3:
            self.image = choice.choice([b"a", b"b"])

    def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        choice = self.choice
        self.change()
        if choice.random() < 0.05:
            raise enclavia.ConnectError("not reached", retryable=True)
        etag = f'"{self.version}"'
        status, headers, body = self.answer(request, etag)
        if status != 206 or choice.random() < 0.8:
            headers["ETag"] = etag
        if choice.random() < 0.6:
            headers["Content-Length"] = str(len(body))
        cut = choice.randrange(len(body) + 1) if choice.random() < 0.6 else None
        final = httpx2.Request("GET", f"https://enclave/{self.place}")
        stream = Cut(body, cut, choice.random() < 0.7)
        return httpx2.Response(status, headers=headers, stream=stream, request=final)

    def answer(self, request: httpx2.Request, etag: str) -> tuple[int, dict[str, str], bytes]:
        choice, body = self.choice, self.body()
        wanted = request.headers.get("Range")
        if wanted is None or request.headers["If-Range"] != etag or choice.random() < 0.2:
            return 200, {}, body
        first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if first >= len(body):
            return 416, {}, b""
        # A server may send less than was asked for, and need not know how much there is.
        end = choice.choice([len(body), choice.randrange(first, len(body)) + 1])
        total = choice.choice([str(len(body)), "*"])
        return 206, {"Content-Range": f"bytes {first}-{end - 1}/{total}"}, body[first:end]


def test_what_is_whole_is_one_representation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=lambda _: None))
    asked = download.Asked("GET", httpx2.URL("https://enclave/x"), (), None, True, False)
    whole = went_on = 0
    for seed in range(1000 * EFFORT):
        server = Server(random.Random(seed))
        name = tmp_path / str(seed)
        for _ in range(RUNS):
            try:
                with PartialOutput(str(name)) as store:
                    went_on += store.size > 0
                    download.download(server, asked, store, Progress("x"))  # type: ignore[arg-type]
            except (Problem, enclavia.EnclaviaError):
                continue
            whole += 1
            assert name.read_bytes() in server.bodies.values(), seed
            break
    assert whole > 900 * EFFORT
    assert went_on > 100 * EFFORT
