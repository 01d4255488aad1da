"""Downloads from servers that change, cut and redirect at random: a file that is taken for whole is
one representation from one image, byte for byte.

``ENCLAVIA_DOWNLOADS=20`` tries twenty times as many.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from ranged import Cut

import enclavia
from enclavia._files import transfer
from enclavia._files.downloading import refuse_status
from enclavia._files.face import ThreadFace
from enclavia._files.progress import told_of
from enclavia._files.source import Asked
from enclavia._files.store import PartialStore

EFFORT = int(os.environ.get("ENCLAVIA_DOWNLOADS", "1"))
RUNS = 8
SIZES = (0, 1, 40, 40, 40)


class Server:
    """What a client is to the download: an honest server behind an enclave. Its ETags say the
    version and nothing else, so that they are the same at both places where a redirect may lead."""

    def __init__(self, choice: random.Random) -> None:
        self.choice = choice
        self.version = 0
        self.place = "one"
        self.image = b"a"
        self.form = "nitro"
        self.root = "r"
        self.bodies: dict[tuple[str, ...], bytes] = {}

    def receipt(self) -> Any:
        """As much of it as is looked at: the PCRs, the form, the root."""
        pcrs = {"PCR0": self.image.hex(), "PCR1": "", "PCR2": ""}
        fields = {
            "form": self.form,
            "pcrs": pcrs,
            "pins": [pcrs],
            "root": self.root,
            "via": None,
        }
        return SimpleNamespace(as_dict=lambda: fields)

    def body(self) -> bytes:
        choice = self.choice
        key = (self.place, str(self.version), self.image.hex(), self.form, self.root)
        if key not in self.bodies:
            self.bodies[key] = choice.randbytes(choice.choice(SIZES))
        return self.bodies[key]

    def change(self) -> None:
        choice = self.choice
        if choice.random() < 0.15:
            self.version = choice.randrange(3)
        if choice.random() < 0.1:
            self.place = choice.choice(["one", "two"])
        if choice.random() < 0.2:
            self.image = choice.choice([b"a", b"b"])
        if choice.random() < 0.1:
            self.form = choice.choice(["nitro", "debug"])
        if choice.random() < 0.1:
            self.root = choice.choice(["r", "s"])

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
        told = {"enclavia": self.receipt()}
        return httpx2.Response(
            status, headers=headers, stream=stream, request=final, extensions=told
        )

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


def attempt(server: Server, name: Path, sha256: str | None = None) -> bool:
    """One call, as ``client.download`` makes it. Whether it went on with what was there."""
    store = PartialStore(str(name))
    went_on = store.size > 0
    try:
        transfer.Transfer(
            face=ThreadFace(server),  # type: ignore[arg-type]
            asked=Asked("https://enclave/x"),
            store=store,
            told=told_of(None, ""),
            build=lambda more: httpx2.Request("GET", "https://enclave/x", headers=[*more]),
            refuse=refuse_status,
            how={},
            sha256=sha256,
        ).run_blocking()
    finally:
        store.close()
    return went_on


def test_what_is_whole_is_one_representation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "pause_after", lambda _: 0.0)
    monkeypatch.setattr("enclavia._files.store.os.fsync", lambda _: None)
    whole = went_on = 0
    for seed in range(600 * EFFORT):
        server = Server(random.Random(seed))
        name = tmp_path / str(seed)
        for _ in range(RUNS):
            try:
                went_on += attempt(server, name)
            except (httpx2.HTTPStatusError, enclavia.EnclaviaError):
                continue
            whole += 1
            assert name.read_bytes() in server.bodies.values(), seed
            break
    assert whole > 500 * EFFORT
    assert went_on > 50 * EFFORT
