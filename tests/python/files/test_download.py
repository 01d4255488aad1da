"""``client.download``: a file is whole, of one version and from one image, or it is not there."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import os
import resource
import signal
import stat
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ranged import BODY, Answer, Asked, Shelf, client_of
from support import Face, byte_enclave, keywords, with_client

import enclavia
from enclavia._files import downloading, store, transfer
from enclavia.testing import LocalEnclave

KINDS = ["sync", "asyncio", "trio"]
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "pause_after", lambda _: 0.0)


def on(kind: str, shelf: Shelf, case: Callable[[Face], Awaitable[None]], **options: Any) -> None:
    with byte_enclave(shelf) as (enclave, _):
        with_client(kind, enclave, case, **options)


def left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def half(client: enclavia.Client, shelf: Shelf, dest: Path, size: int = 100_000) -> None:
    """Leaves a part of so many bytes: the connection is cut, and nothing comes after it."""
    shelf.cuts = [size, 0, 0, 0, 0, 0, 0]
    with pytest.raises(enclavia.IncompleteResponse):
        client.download("/x", dest)
    assert left(dest.parent) == [f"{dest.name}.part", f"{dest.name}.part.json"]
    assert (dest.parent / f"{dest.name}.part").read_bytes() == shelf.body[:size]
    shelf.cuts = []
    shelf.asked.clear()
    shelf.statuses.clear()


def download_with_note(note: str, dest: Path) -> Shelf:
    """Goes on with a part beside which this note stands. Returns who was asked for it."""
    shelf = Shelf()
    with client_of(shelf) as client:
        half(client, shelf, dest)
        (dest.parent / f"{dest.name}.part.json").write_text(note)
        client.download("/x", dest)
    assert dest.read_bytes() == BODY
    return shelf


# -- the whole way, for each kind of client


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_twice(kind: str, tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.cuts = [70_000, 0, 50_000]
    seen: list[tuple[int, int | None]] = []

    async def case(face: Face) -> None:
        dest = tmp_path / "file"
        got = await face.call(
            face.client.download(
                "/x", dest, sha256=SHA256, progress=lambda *each: seen.append(each)
            )
        )
        assert got == dest
        assert dest.read_bytes() == BODY

    on(kind, shelf, case)
    assert left(tmp_path) == ["file"]
    assert shelf.spans[0] is None
    assert [span and span[0] for span in shelf.spans[1:]] == [70_000, 70_000, 120_000]
    assert [asked.fields[b"accept-encoding"] for asked in shelf.asked] == [b"identity"] * 4
    assert all(asked.fields[b"if-range"] == b'"one"' for asked in shelf.asked[1:])
    assert (seen[0], seen[-1]) == ((0, len(BODY)), (len(BODY), len(BODY)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_earlier_call_left_is_gone_on_with(kind: str, tmp_path: Path) -> None:
    shelf = Shelf()

    async def case(face: Face) -> None:
        dest = tmp_path / "file"
        shelf.cuts = [100_000, 0, 0, 0, 0, 0, 0]
        with pytest.raises(enclavia.IncompleteResponse):
            await face.call(face.client.download("/x", dest))
        assert left(tmp_path) == ["file.part", "file.part.json"]
        await face.call(face.client.download("/x", dest, sha256=SHA256.upper()))
        assert dest.read_bytes() == BODY
        assert left(tmp_path) == ["file"]

    on(kind, shelf, case)
    assert shelf.spans[-1] is not None and shelf.spans[-1][0] == 100_000


@pytest.mark.parametrize("kind", KINDS)
def test_without_resume_nothing_is_left(kind: str, tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.cuts = [100_000, 0, 0, 0, 0, 0, 0]

    async def case(face: Face) -> None:
        with pytest.raises(enclavia.IncompleteResponse):
            await face.call(face.client.download("/x", tmp_path / "file", resume=False))

    on(kind, shelf, case)
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resume", [True, False])
def test_what_the_caller_raises_ends_it(kind: str, resume: bool, tmp_path: Path) -> None:
    """As Ctrl-C does wherever it comes."""
    shelf = Shelf()

    def stop(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    async def case(face: Face) -> None:
        dest = tmp_path / "file"
        dest.write_bytes(b"old")
        with pytest.raises(KeyboardInterrupt):
            await face.call(face.client.download("/x", dest, progress=stop, resume=resume))
        assert dest.read_bytes() == b"old"
        assert left(tmp_path) == (["file", "file.part", "file.part.json"] if resume else ["file"])
        await face.call(face.client.download("/x", dest))
        assert dest.read_bytes() == BODY

    on(kind, shelf, case)


def test_ctrl_c_while_nothing_comes(tmp_path: Path) -> None:
    shelf = Shelf()
    told = threading.Event()

    def silent(asked: Asked) -> None:
        told.set()
        threading.Event().wait(1.0)
        signal.pthread_kill(main, signal.SIGINT)
        threading.Event().wait(20.0)

    main = threading.main_thread().ident
    assert main is not None
    with client_of(shelf) as client:
        client.get("/x")
        shelf.before = silent
        with pytest.raises(KeyboardInterrupt):
            client.download("/x", tmp_path / "file")
        shelf.before = lambda _: None
    assert told.is_set()
    assert left(tmp_path) == []


def test_cancelled(tmp_path: Path) -> None:
    """What has come by then is kept."""
    shelf = Shelf(BODY * 20)
    stop = threading.Event()

    async def case(face: Face) -> None:
        import anyio

        scope = anyio.CancelScope()

        def seen(done: int, total: int | None) -> None:
            if done:
                scope.cancel()

        with scope:
            await face.client.download("/x", tmp_path / "file", progress=seen)
        assert scope.cancelled_caught
        part = (tmp_path / "file.part").read_bytes()
        assert part and shelf.body.startswith(part)
        await face.client.download("/x", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == shelf.body

    on("asyncio", shelf, case)
    on("trio", shelf, case)
    stop.set()


# -- each rule of ranges, broken alone


def in_a_206(**changed: bytes) -> Callable[[Asked, Answer], Answer]:
    """Changes header fields of answers to ranges; an empty one is left out."""

    def change(_: Asked, answer: Answer) -> Answer:
        status, headers, body = answer
        if status == 206:
            named = {name.replace("_", "-").encode(): value for name, value in changed.items()}
            headers = {name: value for name, value in {**headers, **named}.items() if value}
        return status, headers, body

    return change


def shifted(begin: int, end: int) -> Callable[[Asked, Answer], Answer]:
    """Other bytes than those that were asked for first, and rightly called so."""

    def change(asked: Asked, answer: Answer) -> Answer:
        status, headers, _ = answer
        if status != 206 or asked.span is None or asked.span[0] != 100_000:
            return answer
        where = b"bytes %d-%d/300000" % (begin, end - 1)
        return 206, {**headers, b"Content-Range": where}, BODY[begin:end]

    return change


BROKEN: dict[str, Callable[[Asked, Answer], Answer]] = {
    "no Content-Range": in_a_206(Content_Range=b""),
    "another beginning": shifted(50_000, 250_000),
    "a later beginning": shifted(150_000, 300_000),
    "another total": in_a_206(Content_Range=b"bytes 100000-299999/300001"),
    "a total before its end": in_a_206(Content_Range=b"bytes 100000-299999/299999"),
    "an end before its beginning": in_a_206(Content_Range=b"bytes 100000-99999/300000"),
    "another unit": in_a_206(Content_Range=b"items 100000-299999/300000"),
    "more than it says": in_a_206(Content_Range=b"bytes 100000-199999/300000"),
    "another ETag": in_a_206(ETag=b'"two"'),
    "a content coding": in_a_206(Content_Encoding=b"gzip"),
    "several parts": in_a_206(Content_Type=b"multipart/byteranges; boundary=x"),
    "not satisfiable": lambda asked, answer: (416, {}, b"") if asked.span else answer,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_rest_is_not_joined(broken: str, tmp_path: Path) -> None:
    shelf = Shelf()
    dest = tmp_path / "file"
    with client_of(shelf) as client:
        half(client, shelf, dest)
        # The bytes are other ones, so that a file that they are joined to is seen to be wrong.
        change = BROKEN[broken]
        shelf.change = lambda asked, answer: (
            change(asked, (answer[0], answer[1], answer[2][::-1])) if asked.span else answer
        )
        client.download("/x", dest)
    assert dest.read_bytes() == BODY
    assert shelf.statuses[-1] == 200
    assert shelf.spans[0] is not None and shelf.spans[-1] is None


def test_another_version_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "enclavia")
    shelf = Shelf()
    dest = tmp_path / "file"
    with client_of(shelf) as client:
        half(client, shelf, dest)
        assert restarted(caplog) == []
        shelf.body, shelf.etag = BODY[::-1], b'"two"'
        client.download("/x", dest)
    assert dest.read_bytes() == BODY[::-1]
    assert shelf.statuses == [200]
    assert ["the whole file" in each.getMessage() for each in restarted(caplog)] == [True]


def test_a_server_that_ignores_ranges(tmp_path: Path) -> None:
    shelf = Shelf()
    dest = tmp_path / "file"
    with client_of(shelf) as client:
        half(client, shelf, dest)
        shelf.ranges = False
        client.download("/x", dest)
    assert dest.read_bytes() == BODY


@pytest.mark.parametrize("etag", [None, b'W/"one"', b"one"])
def test_without_a_strong_validator_no_part_is_kept(
    etag: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "enclavia")
    shelf = Shelf(etag=etag)
    shelf.cuts = [100_000]
    with client_of(shelf) as client, pytest.raises(enclavia.IncompleteResponse):
        client.download("/x", tmp_path / "file")
    assert len(shelf.asked) == 1
    assert left(tmp_path) == []
    (record,) = logged(caplog, "transfer_dropped")
    assert "100000 bytes" in record.getMessage()
    assert "nothing tells" in record.getMessage()
    assert record.error_class == "IncompleteResponse"  # type: ignore[attr-defined]


def test_what_nobody_wants_kept_is_not_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "enclavia")
    shelf = Shelf(etag=None)
    shelf.cuts = [100_000]
    with client_of(shelf) as client, pytest.raises(enclavia.IncompleteResponse):
        client.download("/x", tmp_path / "file", resume=False)
    assert logged(caplog, "transfer_dropped") == []


def test_another_digest_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "enclavia")
    with client_of(Shelf()) as client, pytest.raises(enclavia.DigestMismatch):
        client.download("/x", tmp_path / "file", sha256="0" * 64)
    (record,) = logged(caplog, "transfer_dropped")
    assert f"{len(BODY)} bytes" in record.getMessage()
    assert record.error_class == "DigestMismatch"  # type: ignore[attr-defined]


@pytest.mark.parametrize("note", ["", "{}", '{"version": 2, "size": 10}'])
def test_a_part_whose_note_says_nothing_is_told_of(
    note: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "enclavia")
    download_with_note(note, tmp_path / "file")
    (record,) = restarted(caplog)
    assert "100000 bytes" in record.getMessage()
    assert "note" in record.getMessage()


def test_a_coded_body_is_refused(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.change = lambda _, answer: (200, {b"Content-Encoding": b"gzip", **answer[1]}, answer[2])
    with client_of(shelf) as client:
        with pytest.raises(enclavia.DownloadError, match="content coding"):
            client.download("/x", tmp_path / "file")
        assert left(tmp_path) == []
        # Who says which codings they take is given the body as it was sent.
        client.download("/x", tmp_path / "file", headers={"Accept-Encoding": "gzip"})
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_part_that_was_not_asked_for(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.change = lambda _, answer: (
        206, {b"Content-Range": b"bytes 0-9/300000"}, BODY[:10]
    )  # fmt: skip
    with client_of(shelf) as client, pytest.raises(enclavia.DownloadError) as caught:
        client.download("/x", tmp_path / "file")
    assert caught.value.status == 206
    assert left(tmp_path) == []


@pytest.mark.parametrize("status", [204, 302, 404, 500])
def test_other_statuses(status: int, tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.change = lambda *_: (status, {}, b"")
    dest = tmp_path / "file"
    dest.write_bytes(b"old")
    with client_of(shelf) as client:
        if status == 204:
            assert client.download("/x", dest).read_bytes() == b""
            return
        with pytest.raises(httpx2.HTTPStatusError) as caught:
            client.download("/x", dest)
    assert caught.value.response.status_code == status
    assert dest.read_bytes() == b"old"
    assert left(tmp_path) == ["file"]


def test_an_error_in_place_of_the_rest_keeps_the_part(tmp_path: Path) -> None:
    shelf = Shelf()
    dest = tmp_path / "file"
    with client_of(shelf) as client:
        half(client, shelf, dest)
        shelf.change = lambda *_: (503, {}, b"")
        with pytest.raises(httpx2.HTTPStatusError):
            client.download("/x", dest)
        shelf.change = lambda _, answer: answer
        client.download("/x", dest)
    assert dest.read_bytes() == BODY
    assert shelf.statuses == [503, 206]


def test_the_rest_in_small_parts(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.chunked = True
    shelf.most = 50_000
    shelf.cuts = [100_000]
    with client_of(shelf) as client:
        client.download("/x", tmp_path / "file", sha256=bytes.fromhex(SHA256))
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("resume", [False, True])
def test_an_empty_body(chunked: bool, resume: bool, tmp_path: Path) -> None:
    shelf = Shelf(b"")
    shelf.chunked = chunked
    seen: list[Any] = []
    with client_of(shelf) as client:
        client.download(
            "/x", tmp_path / "file", resume=resume, progress=lambda *each: seen.append(each)
        )
    assert (tmp_path / "file").read_bytes() == b""
    assert left(tmp_path) == ["file"]
    assert seen == [(0, None if chunked else 0)]


def test_a_part_that_is_whole_is_looked_at_again(tmp_path: Path) -> None:
    """The process ended between the last byte and the last name."""
    shelf = Shelf()
    dest = tmp_path / "file"
    with client_of(shelf) as client:
        half(client, shelf, dest, len(BODY) - 1)
        with open(tmp_path / "file.part", "ab") as part:
            part.write(BODY[-1:])
        note = json.loads((tmp_path / "file.part.json").read_text())
        (tmp_path / "file.part.json").write_text(json.dumps({**note, "size": len(BODY)}))
        client.download("/x", dest)
        assert shelf.statuses == [206]
        assert dest.read_bytes() == BODY


def test_nothing_is_sent_again_with_no_retries(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.cuts = [100_000]
    with client_of(shelf, retries=0) as client:
        with pytest.raises(enclavia.IncompleteResponse):
            client.download("/x", tmp_path / "file")
        assert len(shelf.asked) == 1
        client.download("/x", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert shelf.statuses == [200, 206]


def test_no_rest_ends_somewhere(tmp_path: Path) -> None:
    """Neither the rest nor a whole body comes."""
    shelf = Shelf()
    shelf.cuts = [100_000] * 99
    shelf.change = lambda asked, answer: (416, {}, b"") if asked.span else answer
    with client_of(shelf) as client, pytest.raises(enclavia.EnclaviaError):
        client.download("/x", tmp_path / "file")
    assert len(shelf.asked) < 20


# -- who sent it


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    records = [each for each in caplog.records if each.name == "enclavia"]
    return [each for each in records if each.event == event]  # type: ignore[attr-defined]


def restarted(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return logged(caplog, "transfer_restarted")


def test_a_part_of_another_image_is_not_gone_on_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "enclavia")
    other = enclavia.Pcrs(**{f"pcr{n}": f"{n + 7:02x}" * 48 for n in range(3)})
    shelf = Shelf()
    dest = tmp_path / "file"
    with byte_enclave(shelf) as (enclave, _):
        both = {"pcrs": [enclave.pcrs, other], "root": enclave.root}
        with enclavia.Client(enclave.url, **both) as client:
            half(client, shelf, dest)
        enclave.set_identity(pcrs=other)
        with enclavia.Client(enclave.url, **both) as client:
            client.download("/x", dest)
            authority = httpx2.URL(enclave.url).netloc.decode()
    assert shelf.statuses == [206, 200]
    assert dest.read_bytes() == BODY
    (record,) = restarted(caplog)
    assert "100000 bytes" in record.getMessage()
    assert "another image" in record.getMessage()
    assert (record.enclave, record.error_class) == (authority, None)  # type: ignore[attr-defined]


def test_what_debug_mode_left_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its PCRs are what whoever answered said they are: here, those of the production image."""
    shelf = Shelf()
    dest = tmp_path / "file"
    with byte_enclave(shelf) as (enclave, _):
        pcrs, port = enclave.pcrs, enclave.port
        with LocalEnclave(enclave.workload, mode="debug", pcrs=pcrs) as debug:
            url, debug_port = debug.url, debug.port
            with (
                pytest.warns(enclavia.DebugModeWarning),
                enclavia.Client(url, pcrs=pcrs, debug_mode=True) as client,
            ):
                half(client, shelf, dest)
        note = json.loads((tmp_path / "file.part.json").read_text())
        assert note["identity"]["form"] == "debug"
        # As if it had been behind the same address.
        told = json.dumps(note).replace(f":{debug_port}/", f":{port}/")
        (tmp_path / "file.part.json").write_text(told)
        with enclavia.Client(enclave.url, **keywords(enclave)) as client:
            client.download("/x", dest)
    assert shelf.statuses == [206, 200]


@pytest.mark.parametrize("field", ["url", "final_url", "validator", "total", "size", "version"])
def test_a_note_of_something_else(field: str, tmp_path: Path) -> None:
    shelf = Shelf()
    dest = tmp_path / "file"
    with client_of(shelf) as client:
        half(client, shelf, dest)
        note = json.loads((tmp_path / "file.part.json").read_text())
        other = note[field] + (999_999 if isinstance(note[field], int) else "x")
        (tmp_path / "file.part.json").write_text(json.dumps({**note, field: other}))
        client.download("/x", dest)
    assert dest.read_bytes() == BODY
    assert shelf.statuses[-1] == 200


def test_only_what_is_known_to_be_on_the_disk_is_gone_on_with(tmp_path: Path) -> None:
    """After a power cut, a file may be as long as it was, and have zeros at its end."""
    shelf = Shelf()
    dest = tmp_path / "file"
    with client_of(shelf) as client:
        half(client, shelf, dest)
        with open(tmp_path / "file.part", "ab") as part:
            part.write(bytes(50_000))
        client.download("/x", dest)
    assert dest.read_bytes() == BODY
    assert shelf.spans[0] is not None and shelf.spans[0][0] == 100_000


def test_what_comes_is_synced_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a process that is killed has something to go on with."""
    monkeypatch.setattr("enclavia._files.store._SYNC_STEP", 50_000)
    sizes: list[int] = []

    def seen(done: int, total: int | None) -> None:
        if done > 200_000:
            sizes.append(json.loads((tmp_path / "file.part.json").read_text())["size"])

    with client_of(Shelf()) as client:
        client.download("/x", tmp_path / "file", progress=seen)
    assert sizes and min(sizes) > 100_000


def test_a_part_with_other_headers_and_a_date(tmp_path: Path) -> None:
    """A date does not tell apart what one URL has for several callers."""
    shelf = Shelf(etag=None)
    shelf.dates = {
        b"Last-Modified": b"Fri, 27 Nov 2020 09:00:00 GMT",
        b"Date": b"Fri, 27 Nov 2020 09:00:01 GMT",
    }
    dest = tmp_path / "file"
    with client_of(shelf) as client:
        half(client, shelf, dest)
        client.download("/x", dest, auth=("a", "b"))
        assert shelf.statuses == [200]
        dest.unlink()
        half(client, shelf, dest)
        client.download("/x", dest)
        assert shelf.statuses == [206]


# -- the digest


@pytest.mark.parametrize("resume", [True, False])
def test_another_digest_leaves_the_destination(resume: bool, tmp_path: Path) -> None:
    dest = tmp_path / "file"
    dest.write_bytes(b"old")
    wrong = "0" * 64
    with client_of(Shelf()) as client, pytest.raises(enclavia.DigestMismatch) as caught:
        client.download("/x", dest, sha256=wrong, resume=resume)
    assert (caught.value.expected, caught.value.actual) == (wrong, SHA256)
    assert dest.read_bytes() == b"old"
    assert left(tmp_path) == ["file"]


def test_the_digest_is_of_the_bytes_of_earlier_calls_too(tmp_path: Path) -> None:
    shelf = Shelf()
    dest = tmp_path / "file"
    with client_of(shelf) as client:
        half(client, shelf, dest)
        with open(tmp_path / "file.part", "r+b") as part:
            part.write(b"changed")
        with pytest.raises(enclavia.DigestMismatch):
            client.download("/x", dest, sha256=SHA256)
        assert left(tmp_path) == []


# -- the file


def test_destinations_that_cannot_be(tmp_path: Path) -> None:
    shelf = Shelf()
    (tmp_path / "folder").mkdir()
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    before = left(tmp_path)
    rows = [
        ("folder", IsADirectoryError, "a folder"),
        ("absent/file", FileNotFoundError, "absent/file"),
        ("link", OSError, "a symbolic link: name the file"),
        ("dangling", OSError, "a symbolic link that leads nowhere"),
        ("pipe", OSError, "a device or a pipe"),
        ("x" * 300, OSError, "x" * 300),
    ]
    with client_of(shelf) as client:
        for name, error, says in rows:
            for resume in (True, False):
                with pytest.raises(error, match=says):
                    client.download("/x", tmp_path / name, resume=resume)
    assert left(tmp_path) == before
    assert (tmp_path / "target").read_bytes() == b"mine"
    assert shelf.asked == []


@pytest.mark.parametrize("resume", [True, False])
def test_permissions(resume: bool, tmp_path: Path) -> None:
    """A file that is replaced keeps its own, and is not readable by more while it is made."""
    dest = tmp_path / "file"
    modes: list[int] = []

    def seen(done: int, total: int | None) -> None:
        paths = (path for path in tmp_path.iterdir() if path.suffix in (".part", ".tmp"))
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in paths)

    mask = os.umask(0o022)
    try:
        with client_of(Shelf()) as client:
            client.download("/x", dest, resume=resume)
            assert stat.S_IMODE(dest.stat().st_mode) == 0o644
            for mode in (0o600, 0o664):
                dest.chmod(mode)
                modes.clear()
                client.download("/x", dest, resume=resume, progress=seen)
                assert stat.S_IMODE(dest.stat().st_mode) == mode
                assert set(modes) == {0o600}
    finally:
        os.umask(mask)


@pytest.mark.parametrize("resume", [True, False])
def test_a_disk_that_is_full(resume: bool, tmp_path: Path) -> None:
    dest = tmp_path / "file"
    dest.write_bytes(b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with client_of(Shelf()) as client:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
        try:
            with pytest.raises(OSError, match=r"file") as caught:
                client.download("/x", dest, resume=resume)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert caught.value.errno == errno.EFBIG
        assert dest.read_bytes() == b"old"
        # What fits was kept, and is gone on with once there is room.
        client.download("/x", dest, resume=resume)
    assert dest.read_bytes() == BODY
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("resume", [True, False])
def test_the_last_steps_fail(
    step: str, resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "file"
    dest.write_bytes(b"old")
    note = str(tmp_path / "file.part.json")
    really = getattr(os, step)

    def failing(*given: Any) -> Any:
        if step == "replace" and given[1] == note:
            return really(*given)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with client_of(Shelf()) as client:
        monkeypatch.setattr(os, step, failing)
        with pytest.raises(OSError, match="No space left") as caught:
            client.download("/x", dest, resume=resume)
        assert caught.value.filename == str(dest)
        assert dest.read_bytes() == b"old"
        monkeypatch.undo()
        client.download("/x", dest, resume=resume)
    assert dest.read_bytes() == BODY
    assert left(tmp_path) == ["file"]


def test_it_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for name in ("fsync", "replace"):
        really = getattr(os, name)

        def noted(*given: Any, name: str = name, really: Any = really) -> Any:
            if not str(given[-1]).endswith(".json"):
                steps.append(name)
            return really(*given)

        monkeypatch.setattr(os, name, noted)
    with client_of(Shelf()) as client:
        for resume in (True, False):
            client.download("/x", tmp_path / "file", resume=resume)
            assert steps == ["fsync", "replace", "fsync"], "the file, its name, the folder"
            steps.clear()


def test_two_at_once_to_one_file(tmp_path: Path) -> None:
    dest = tmp_path / "file"
    refused: list[BaseException] = []
    with client_of(Shelf()) as client:

        def second(done: int, total: int | None) -> None:
            if refused:
                return
            with pytest.raises(BlockingIOError, match="no other download") as caught:
                client.download("/x", dest)
            refused.append(caught.value)
            # Those that keep nothing do not meet.
            client.download("/x", dest, resume=False)
            assert dest.read_bytes() == BODY

        client.download("/x", dest, progress=second)
    assert refused
    assert dest.read_bytes() == BODY
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize("plant", ["symlink", "hardlink", "pipe"])
def test_a_part_that_somebody_else_has_put_there(plant: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    part = tmp_path / "file.part"
    if plant == "pipe":
        os.mkfifo(part)
    else:
        getattr(part, f"{plant}_to")(victim)
    shelf = Shelf()
    with client_of(shelf) as client, pytest.raises(OSError, match=r"file\.part"):
        client.download("/x", tmp_path / "file")
    assert victim.read_bytes() == b"mine"
    assert shelf.asked == []


@pytest.mark.parametrize("beside", ["nothing", "symlink"])
def test_a_file_of_the_users_own_is_not_taken_for_a_part(beside: str, tmp_path: Path) -> None:
    part, note = tmp_path / "file.part", tmp_path / "file.part.json"
    part.write_bytes(b"mine")
    if beside == "symlink":
        note.symlink_to(part)
    shelf = Shelf()
    with client_of(shelf) as client:
        with pytest.raises(FileExistsError, match=r"of an earlier .* it is left alone") as caught:
            client.download("/x", tmp_path / "file")
        assert caught.value.filename == str(part)
        assert part.read_bytes() == b"mine"
        assert shelf.asked == []
        client.download("/x", tmp_path / "file", resume=False)
    assert part.read_bytes() == b"mine"
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("etag", [None, b'"one"'])
def test_a_process_that_is_killed_leaves_a_part_that_is_known(
    etag: bytes | None, tmp_path: Path
) -> None:
    shelf = Shelf(etag=etag)
    dest = tmp_path / "file"

    def killed(done: int, total: int | None) -> None:
        if done:
            os._exit(0)

    with byte_enclave(shelf) as (enclave, _):
        child = os.fork()
        if child == 0:
            try:
                with enclavia.Client(enclave.url, **keywords(enclave)) as client:
                    client.download("/x", dest, progress=killed)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert (tmp_path / "file.part").stat().st_size > 0
        with enclavia.Client(enclave.url, **keywords(enclave)) as client:
            client.download("/x", dest)
    assert dest.read_bytes() == BODY
    assert left(tmp_path) == ["file"]


# -- arguments


def test_what_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    shelf = Shelf()
    dest = tmp_path / "file"

    async def awaited(done: int, total: int | None) -> None:
        pass

    rows: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"dest": ""}, ValueError, "dest: .*empty"),
        ({"dest": 5}, TypeError, "dest: .*int"),
        ({"dest": "a\0b"}, ValueError, "dest: .*NUL"),
        ({"resume": 1}, TypeError, "resume: "),
        ({"sha256": "00"}, ValueError, "sha256: expected 64 hex digits"),
        ({"sha256": "g" * 64}, ValueError, "sha256: expected 64 hex digits"),
        ({"sha256": b"00"}, ValueError, "sha256: .*got 2 bytes"),
        ({"sha256": 64}, TypeError, "sha256: "),
        ({"progress": 1}, TypeError, "progress: expected True"),
        ({"progress": "yes"}, TypeError, "progress: expected True"),
        ({"progress": awaited}, TypeError, "progress: .*an async function"),
        ({"headers": {"Range": "bytes=0-1"}}, ValueError, "Range"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"path": "https://elsewhere/x"}, enclavia.ForeignURL, "elsewhere"),
    ]
    with client_of(shelf) as client:
        for options, error, says in rows:
            given: dict[str, Any] = {"path": "/x", "dest": dest, **options}
            with pytest.raises(error, match=says):
                client.download(given.pop("path"), given.pop("dest"), **given)
    assert left(tmp_path) == []
    assert shelf.asked == []


def test_options_of_the_request(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.cuts = [100_000]
    with client_of(shelf) as client:
        client.download(
            "/x", str(tmp_path / "file"), params={"a": "b"}, headers={"X-Y": "z"}, auth=("u", "p")
        )
    assert len(shelf.asked) == 2
    for asked in shelf.asked:
        assert asked.fields[b"x-y"] == b"z"
        assert asked.fields[b"authorization"].startswith(b"Basic ")


# -- what only one line in a hundred thousand meets


@pytest.mark.parametrize("note", ["null", "5", '"text"', "[]", "{}", "", "\0" * 100])
def test_a_note_that_is_none(note: str, tmp_path: Path) -> None:
    shelf = download_with_note(note, tmp_path / "file")
    assert shelf.statuses == [200]
    assert left(tmp_path) == ["file"]


def test_a_part_from_before_a_further_pcr_was_pinned(tmp_path: Path) -> None:
    """Nobody has looked at PCR8 by then: what came may be from an image that is not signed."""
    shelf = Shelf()
    dest = tmp_path / "file"
    with byte_enclave(shelf) as (enclave, _):
        three = enclave.pcrs
        values = dict(zip(("pcr0", "pcr1", "pcr2"), three.as_tuple(), strict=True))
        signed = enclavia.Pcrs(
            **{name: value.hex() for name, value in values.items()}, pcr8="5a" * 48
        )
        with enclavia.Client(enclave.url, pcrs=three, root=enclave.root) as client:
            half(client, shelf, dest)
        enclave.set_identity(pcrs=signed)
        with enclavia.Client(enclave.url, pcrs=signed, root=enclave.root) as client:
            client.download("/x", dest)
            assert shelf.statuses == [206, 200], "whose rest is not used"
            dest.unlink()
            half(client, shelf, dest)
            client.download("/x", dest)
            assert shelf.statuses == [206]
    assert dest.read_bytes() == BODY


def test_another_date_in_the_rest(tmp_path: Path) -> None:
    """Of a server that knows Range, and not If-Range."""
    shelf = Shelf(etag=None)
    first = b"Fri, 27 Nov 2020 09:00:00 GMT"
    second = b"Fri, 27 Nov 2020 09:30:00 GMT"
    sent = {b"Date": b"Fri, 27 Nov 2020 10:00:00 GMT"}
    shelf.dates = {b"Last-Modified": first, **sent}
    dest = tmp_path / "file"
    with client_of(shelf) as client:
        half(client, shelf, dest)

        def ignoring(asked: Asked, answer: Answer) -> Answer:
            if asked.span is None:
                return 200, {b"Last-Modified": second, **sent}, BODY[::-1]
            where = b"bytes %d-299999/300000" % asked.span[0]
            fields = {b"Last-Modified": second, **sent, b"Content-Range": where}
            return 206, fields, BODY[::-1][asked.span[0] :]

        shelf.change = ignoring
        client.download("/x", dest)
    assert dest.read_bytes() == BODY[::-1]
    assert shelf.statuses == [206, 200]


@pytest.mark.parametrize(
    "date",
    [
        b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        b"Mon, 01 Jan 2024 00:00:00 +99999999999999999999",
    ],
)
def test_a_date_that_is_out_of_all_bounds(date: bytes, tmp_path: Path) -> None:
    shelf = Shelf(etag=None)
    shelf.dates = {b"Last-Modified": date, b"Date": b"Fri, 27 Nov 2020 10:00:00 GMT"}
    with client_of(shelf) as client:
        client.download("/x", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_part_that_somebody_has_removed_is_not_what_another_call_has_begun(
    tmp_path: Path,
) -> None:
    shelf = Shelf()
    dest, part = tmp_path / "file", tmp_path / "file.part"
    dest.write_bytes(b"old")
    begun: list[bool] = []

    def seen(done: int, total: int | None) -> None:
        if done == len(BODY) and not begun:
            begun.append(True)
            part.unlink()
            part.write_bytes(b"of another call")

    with (
        client_of(shelf) as client,
        pytest.raises(FileNotFoundError, match="another one of its name"),
    ):
        client.download("/x", dest, sha256=SHA256, progress=seen)
    assert begun
    assert dest.read_bytes() == b"old"
    assert part.read_bytes() == b"of another call"


def test_what_another_call_has_begun_is_not_removed(tmp_path: Path) -> None:
    """By one that ends early, and keeps nothing."""
    shelf = Shelf(etag=None)
    part, note = tmp_path / "file.part", tmp_path / "file.part.json"

    def seen(done: int, total: int | None) -> None:
        if done:
            part.unlink()
            part.write_bytes(b"of another call")
            note.write_bytes(b"its note")
            raise KeyboardInterrupt

    with client_of(shelf) as client, pytest.raises(KeyboardInterrupt):
        client.download("/x", tmp_path / "file", progress=seen)
    assert part.read_bytes() == b"of another call"
    assert note.read_bytes() == b"its note"


def test_no_note_says_more_after_the_disk_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second fsync succeeds, and proves nothing."""
    shelf = Shelf()
    dest, note = tmp_path / "file", tmp_path / "file.part.json"
    really = os.fsync
    failed: list[int] = []

    def fsync(descriptor: int) -> None:
        if not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        really(descriptor)

    with client_of(shelf) as client:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Input/output error"):
            client.download("/x", dest)
        assert failed
        assert json.loads(note.read_text())["size"] == 0
        client.download("/x", dest)
    assert dest.read_bytes() == BODY
    assert shelf.statuses == [200, 200]


def test_the_note_of_other_bytes_is_gone_from_the_disk_before_the_first_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut it would be the note of what is written now."""
    shelf = Shelf()
    dest = tmp_path / "file"
    steps: list[tuple[str, bool, int]] = []
    with client_of(shelf) as client:
        half(client, shelf, dest)
        note, part = tmp_path / "file.part.json", tmp_path / "file.part"
        really = store.sync_folder

        def sync(name: str) -> None:
            really(name)
            if part.exists():
                steps.append((os.path.basename(name), note.exists(), part.stat().st_size))

        monkeypatch.setattr(store, "sync_folder", sync)
        shelf.body, shelf.etag = BODY[::-1], b'"two"'
        client.download("/x", dest)
    assert dest.read_bytes() == BODY[::-1]
    assert steps == [("file.part.json", False, 100_000)], "before the part is cut"


def test_a_process_that_was_forked_meanwhile_keeps_no_lock(tmp_path: Path) -> None:
    shelf = Shelf()
    dest = tmp_path / "file"
    stop, go = os.pipe()
    children: list[int] = []

    def seen(done: int, total: int | None) -> None:
        if done and not children:
            child = os.fork()
            if child == 0:
                os.close(go)
                os.read(stop, 1)  # holds every descriptor until the test lets it go
                os._exit(0)
            children.append(child)
            raise KeyboardInterrupt

    with client_of(shelf) as client:
        try:
            with pytest.raises(KeyboardInterrupt):
                client.download("/x", dest, progress=seen)
            client.download("/x", dest)
        finally:
            os.close(go)
            os.close(stop)
            for child in children:
                os.waitpid(child, 0)
    assert children
    assert dest.read_bytes() == BODY


# -- a task that asyncio cancels, which no shield of anyio's holds off


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("step", ["_opened", "begin", "write", "commit"])
def test_cancelled_by_asyncio_while_the_disk_is_worked_on(
    step: str, resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread comes to its end before anything else happens to its file, and nothing is left of
    it that a later call does not use."""
    shelf = Shelf(etag=None)  # no part is kept
    there, go_on = threading.Event(), threading.Event()
    where: Any = downloading if step == "_opened" else store.PartialStore
    if step != "_opened" and not resume:
        where = store.FreshStore
    really = getattr(where, step)

    def slow(*given: Any) -> Any:
        made = really(*given)
        there.set()
        assert go_on.wait(20.0)
        ended.append(step)
        return made

    monkeypatch.setattr(where, step, slow)
    ended: list[str] = []

    async def case(face: Face) -> None:
        dest = tmp_path / "file"
        task = asyncio.ensure_future(face.client.download("/x", dest, resume=resume))
        while not there.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()  # once more, as by a timeout around a timeout
        await asyncio.sleep(0.01)
        assert not task.done(), "the thread still works on the file"
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [step]
        assert left(tmp_path) == (["file"] if step == "commit" else [])

    on("asyncio", shelf, case)


# -- progress


def test_a_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    shelf = Shelf()
    shelf.cuts = [100_000]
    with client_of(shelf) as client:
        client.download("/x", tmp_path / "model.bin", progress=True)
    shown = capfd.readouterr().err
    assert "model.bin" in shown
    assert "100%" in shown
    assert "293k/293k" in shown


def test_a_bar_of_the_callers(tmp_path: Path) -> None:
    made: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.n, self.total, self.closed = options["initial"], options["total"], False
            made.append(self)

        def update(self, count: int) -> None:
            self.n += count

        def refresh(self) -> None: ...
        def close(self) -> None:
            self.closed = True

    shelf = Shelf()
    shelf.cuts = [100_000]
    with client_of(shelf) as client:
        client.download("/x", tmp_path / "file", progress=Bar)
    (bar,) = made
    assert (bar.n, bar.total, bar.closed) == (len(BODY), len(BODY), True)


def test_tqdm_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    shelf = Shelf()
    with client_of(shelf) as client, pytest.raises(ImportError, match=r"enclavia\[progress\]"):
        client.download("/x", tmp_path / "file", progress=True)
    assert shelf.asked == []
    assert left(tmp_path) == []
