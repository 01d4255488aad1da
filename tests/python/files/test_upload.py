"""``client.upload``: a file as the body of one request, which can be sent again where it may be."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ranged import BODY, Shelf, client_of
from support import Connection, Face, byte_enclave, ok, with_client

import enclavia

KINDS = ["sync", "asyncio", "trio"]


def on(kind: str, script: Any, case: Callable[[Face], Awaitable[None]], **options: Any) -> None:
    with byte_enclave(script) as (enclave, _):
        with_client(kind, enclave, case, **options)


class Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False


class OnlyRead:
    """As a socket's or a library's own: nothing but ``read``."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._file.read(size)


def further(data: bytes) -> io.BytesIO:
    file = io.BytesIO(b"skipped" + data)
    file.seek(7)
    return file


def contents(folder: Path) -> dict[str, tuple[Callable[[], Any], int | None]]:
    """What can be uploaded, and the length that is announced."""
    path = folder / "batch.bin"
    path.write_bytes(BODY)
    size = len(BODY)
    return {
        "a path": (lambda: path, size),
        "the text of a path": (lambda: str(path), size),
        "bytes": (lambda: BODY, size),
        "a bytearray": (lambda: bytearray(BODY), size),
        "a memoryview": (lambda: memoryview(BODY).cast("I"), size),
        "a file": (lambda: io.BytesIO(BODY), size),
        "a file that was read from": (lambda: further(BODY), size),
        "a pipe": (lambda: Unseekable(BODY), None),
        "what can be read": (lambda: OnlyRead(BODY), None),
        "a list": (lambda: [BODY[:5], b"", BODY[5:]], None),
        "a generator": (lambda: (BODY[n : n + 1000] for n in range(0, size, 1000)), None),
        "nothing": (lambda: b"", 0),
        "an empty file": (lambda: io.BytesIO(), 0),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_a_file(kind: str, tmp_path: Path) -> None:
    shelf = Shelf()

    async def case(face: Face) -> None:
        for name, (make, length) in contents(tmp_path).items():
            seen: list[tuple[int, int | None]] = []
            response = await face.call(
                face.client.upload(
                    "/x", make(), progress=lambda *each, seen=seen: seen.append(each)
                )
            )
            assert response.status_code == 201
            asked = shelf.asked[-1]
            body = b"" if length == 0 else BODY
            assert (asked.method, asked.body) == (b"PUT", body), name
            if length is None:
                assert asked.fields[b"transfer-encoding"] == b"chunked", name
            else:
                assert asked.fields[b"content-length"] == b"%d" % length, name
                assert b"transfer-encoding" not in asked.fields
            assert seen[0] == (0, length)
            assert seen[-1] == (len(body), length)

    on(kind, shelf, case)


@pytest.mark.parametrize("kind", ["asyncio", "trio"])
def test_an_async_iterable(kind: str) -> None:
    shelf = Shelf()

    async def produced() -> AsyncIterator[bytes]:
        yield BODY[:1000]
        yield BODY[1000:]

    async def case(face: Face) -> None:
        await face.client.upload("/x", produced())
        assert shelf.asked[-1].body == BODY

    on(kind, shelf, case)


class Losing:
    """Reads a part of the first ``times`` bodies, and closes the connection."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.bodies: list[bytes] = []

    def __call__(self, connection: Connection) -> None:
        while True:
            head = connection.head()
            if self.times:
                self.times -= 1
                connection.read(100_000)
                self.bodies.append(b"")
                return
            connection.buffer = head + connection.buffer
            self.bodies.append(connection.request()[1])
            connection.send(ok())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a path", "a file that was read from", "a bytearray"])
def test_it_is_sent_again_from_where_it_began(kind: str, name: str, tmp_path: Path) -> None:
    workload = Losing(2)
    seen: list[int] = []

    async def case(face: Face) -> None:
        make, _ = contents(tmp_path)[name]
        answer = face.client.upload("/x", make(), progress=lambda done, _: seen.append(done))
        assert (await face.call(answer)).status_code == 200

    on(kind, workload, case)
    assert workload.bodies == [b"", b"", BODY]
    assert seen.count(0) == 3


@pytest.mark.parametrize("name", ["a pipe", "a list", "a generator"])
def test_what_is_used_up_is_sent_once(name: str, tmp_path: Path) -> None:
    workload = Losing(1)
    with client_of(workload) as client, pytest.raises(enclavia.EnclaviaError) as caught:
        client.upload("/x", contents(tmp_path)[name][0]())
    assert caught.value.retryable
    assert workload.bodies == [b""]


def test_a_post_is_sent_once(tmp_path: Path) -> None:
    for options, times in (({}, 1), ({"retries": {"POST"}}, 0)):
        workload = Losing(1)
        with client_of(workload, **options) as client:
            if times:
                with pytest.raises(enclavia.EnclaviaError):
                    client.upload("/x", BODY, method="POST")
                assert workload.bodies == [b""]
            else:
                client.upload("/x", BODY, method="POST")
                assert workload.bodies == [b"", BODY]


def test_nothing_is_sent_again_with_no_retries() -> None:
    workload = Losing(1)
    with client_of(workload, retries=0) as client, pytest.raises(enclavia.EnclaviaError):
        client.upload("/x", BODY)
    assert workload.bodies == [b""]


def test_a_redirect_has_the_body_again() -> None:
    bodies: list[bytes] = []

    def script(connection: Connection) -> None:
        while True:
            head, body = connection.request()
            bodies.append(body)
            if b" /x " in head:
                lines = b"HTTP/1.1 307 X\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n"
                connection.send(lines)
            else:
                connection.send(ok())

    with client_of(script) as client:
        assert client.upload("/x", io.BytesIO(BODY), follow_redirects=True).status_code == 200
        assert bodies == [BODY, BODY]
        with pytest.raises(httpx2.StreamConsumed):
            client.upload("/x", iter([BODY]), follow_redirects=True)


def test_a_file_that_grows_or_shrinks(tmp_path: Path) -> None:
    """What was announced is sent, or the request is broken off."""
    shelf = Shelf()
    path = tmp_path / "log"
    path.write_bytes(BODY * 3)

    def appended(done: int, total: int | None) -> None:
        if done == 0:
            with open(path, "ab") as file:
                file.write(b"more")

    def cut(done: int, total: int | None) -> None:
        if done == 0:
            os.truncate(path, 1000)

    with client_of(shelf) as client:
        client.upload("/x", path, progress=appended)
        assert shelf.asked[-1].body == BODY * 3
        with pytest.raises(enclavia.InvalidRequest):
            client.upload("/x", path, progress=cut)
        assert len(shelf.asked) == 1


def test_files_are_closed_where_they_were_opened_here(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(BODY)
    opened = set(os.listdir("/proc/self/fd"))
    with client_of(Shelf()) as client:
        client.get("/")
        before = len(os.listdir("/proc/self/fd"))
        client.upload("/x", path)
        assert len(os.listdir("/proc/self/fd")) == before
        with open(path, "rb") as own:
            client.upload("/x", own)
            assert not own.closed
    assert opened


def test_an_answer_is_returned_whatever_its_status() -> None:
    shelf = Shelf()
    shelf.change = lambda *_: (507, {}, b"full")
    with client_of(shelf) as client:
        response = client.upload("/x", BODY)
    assert (response.status_code, response.content) == (507, b"full")


def test_what_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    shelf = Shelf()

    async def awaited() -> AsyncIterator[bytes]:
        yield b""

    rows: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (5, {}, TypeError, "file: expected a path, a binary file"),
        (None, {}, TypeError, "file: expected a path, a binary file"),
        ({"a": b"b"}, {}, TypeError, "file: expected a path, a binary file"),
        (io.StringIO("text"), {}, TypeError, "binary mode"),
        (awaited(), {}, TypeError, "AsyncClient"),
        ("", {}, ValueError, "file: .*empty"),
        ("a\0b", {}, ValueError, "file: .*NUL"),
        (tmp_path / "absent", {}, FileNotFoundError, "absent"),
        (tmp_path, {}, IsADirectoryError, str(tmp_path)),
        (b"", {"progress": 5}, TypeError, "progress: "),
        (b"", {"timeout": -1}, ValueError, "timeout"),
        (b"", {"method": 3}, TypeError, "method: expected text, got int"),
        (b"", {"method": None}, TypeError, "method: expected text, got NoneType"),
    ]
    with client_of(shelf) as client:
        for file, options, error, says in rows:
            with pytest.raises(error, match=says):
                client.upload("/x", file, **options)
        with pytest.raises(enclavia.ForeignURL):
            client.upload("https://elsewhere/x", b"")
        assert shelf.asked == []
        with pytest.raises(TypeError, match="pieces that are bytes"):
            client.upload("/x", ["text"])


def test_options_of_the_request() -> None:
    shelf = Shelf()
    with client_of(shelf) as client:
        client.upload(
            "/x",
            iter([b"abc"]),
            params={"a": "b"},
            headers={"Content-Type": "a/b", "Content-Length": "3"},
            auth=("u", "p"),
        )
    fields = shelf.asked[-1].fields
    assert (fields[b"content-type"], fields[b"content-length"]) == (b"a/b", b"3")
    assert b"transfer-encoding" not in fields
    assert fields[b"authorization"].startswith(b"Basic ")


def test_a_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    path = tmp_path / "batch.bin"
    path.write_bytes(BODY)
    with client_of(Shelf()) as client:
        client.upload("/x", path, progress=True)
    shown = capfd.readouterr().err
    assert "batch.bin" in shown and "100%" in shown
