"""``-o`` and ``--continue``: whole files or none, whatever happens on the way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from command_line import (
    CANNOT_WRITE,
    HTTP_STATUS,
    INTERRUPTED,
    OK,
    REFUSED,
    UNREACHABLE,
    USAGE,
    Ended,
    cli,
    ended,
    interrupted,
    pins_of,
    started,
)
from support import ByteServer, Connection, byte_enclave, eventually, ok

import enclavia
from enclavia._cli.exits import Problem
from enclavia._cli.files import DirectOutput
from enclavia._files.source import Identity, Source
from enclavia._files.store import PartialStore
from enclavia.testing import LocalEnclave

if TYPE_CHECKING:
    from conftest import Place

BODY = bytes(n * 7 % 251 for n in range(200_000))


class Ranged:
    """A workload with one representation, which knows ranges, and breaks off answers: after so many
    bytes of a body for each number in ``cuts``. -1: it keeps the connection open, silent, after the
    half of the body."""

    def __init__(self, *cuts: int) -> None:
        self.cuts = list(cuts)
        self.body = BODY
        self.validator = b'ETag: "one"'
        self.heads: list[dict[bytes, bytes]] = []
        self.statuses: list[int] = []
        self.total: bytes | None = None
        self.always: bytes | None = None

    def __call__(self, connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            named = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
            fields = {name.lower(): value for name, _, value in named}
            self.heads.append(fields)
            answer, body = self.answer(fields)
            self.statuses.append(int(answer.split(b" ")[1]))
            cut = self.cuts.pop(0) if self.cuts else None
            if cut is None:
                connection.send(answer + body)
                continue
            connection.send(answer + body[: len(body) // 2 if cut < 0 else cut])
            if cut < 0:
                connection.wait_closed()
            return

    def answer(self, fields: dict[bytes, bytes]) -> tuple[bytes, bytes]:
        wanted = re.fullmatch(rb"bytes=(\d+)-", fields.get(b"range", b""))
        same = fields.get(b"if-range") in (None, self.validator.partition(b": ")[2])
        if self.always is not None and wanted:
            return self.always, b""
        first = int(wanted[1]) if wanted and same else 0
        rest = self.body[first:]
        status = b"206 Partial Content" if wanted and same else b"200 OK"
        lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(rest), self.validator]
        if wanted and same:
            total = self.total or b"%d" % len(self.body)
            lines.append(b"Content-Range: bytes %d-%d/%b" % (first, len(self.body) - 1, total))
        return b"\r\n".join(line for line in lines if line) + b"\r\n\r\n", rest


class Desk:
    """A workload, an enclave in front of it, and a folder for what is downloaded."""

    def __init__(
        self, workload: Ranged, enclave: LocalEnclave, server: ByteServer, folder: Path
    ) -> None:
        self.workload, self.enclave, self.server = workload, enclave, server
        (folder / "pins").mkdir()
        (folder / "out").mkdir()
        self.pins = pins_of(enclave, folder / "pins")
        self.out = folder / "out"
        self.file = self.out / "file"

    def arguments(self, *more: str) -> list[str]:
        return ["get", f"{self.enclave.url}/x", *self.pins, "-o", str(self.file), *more]

    def get(self, *more: str, **options: Any) -> Ended:
        return cli(*self.arguments(*more), **options)

    def left(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir())


@contextmanager
def desk(workload: Ranged, folder: Path, **options: Any) -> Iterator[Desk]:
    with byte_enclave(workload, **options) as (enclave, server):
        yield Desk(workload, enclave, server, folder)


def test_a_whole_file(tmp_path: Path) -> None:
    with desk(Ranged(), tmp_path) as at:
        got = at.get().expect(OK)
        assert (got.out, got.err) == (b"", "")
        assert at.file.read_bytes() == BODY
        assert at.left() == ["file"]


def test_its_permissions_are_what_the_umask_leaves(tmp_path: Path) -> None:
    with desk(Ranged(), tmp_path) as at:
        for mask, mode in (("077", 0o600), ("027", 0o640)):
            before = ("sh", "-c", f'umask {mask}; exec "$@"', "sh")
            ended(started(*at.arguments(), before=before)).expect(OK)
            assert stat.S_IMODE(at.file.stat().st_mode) == mode
            at.file.unlink()


def test_a_file_that_exists_is_replaced_at_the_end(tmp_path: Path) -> None:
    with desk(Ranged(), tmp_path) as at:
        at.file.write_bytes(b"old")
        at.file.chmod(0o600)
        other = tmp_path / "link"
        os.link(at.file, other)
        for more in ([], ["-C"]):
            at.get(*more).expect(OK)
            assert at.file.read_bytes() == BODY
            assert stat.S_IMODE(at.file.stat().st_mode) == 0o600
        assert other.read_bytes() == b"old"


def test_a_file_that_exists_outlives_a_failure(tmp_path: Path) -> None:
    workload = Ranged(1000)
    workload.validator = b""
    with desk(workload, tmp_path) as at:
        at.file.write_bytes(b"old")
        at.get("--timeout", "5").expect(UNREACHABLE, "IncompleteResponse: ")
        assert at.file.read_bytes() == b"old"
        assert at.left() == ["file"]


def test_refused_leaves_nothing(tmp_path: Path, place: Place) -> None:
    out = tmp_path / "x"
    cli("get", place.url("/"), "-o", out, *place.other).expect(REFUSED)
    cli("get", place.url("/"), "-C", "-o", out, *place.other).expect(REFUSED)
    assert list(tmp_path.iterdir()) == []
    place.expect_untouched()


def test_fail_leaves_nothing(tmp_path: Path, place: Place) -> None:
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nbody"
    place.answers = [missing, missing]
    cli("get", place.url("/"), "-f", "-o", tmp_path / "x", *place.pins).expect(HTTP_STATUS)
    cli("get", place.url("/"), "-f", "-C", "-o", tmp_path / "x", *place.pins).expect(HTTP_STATUS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [".", "absent/x", "link", "dangling", "folder/", "socket", "x" * 300]
)
def test_names_that_cannot_be_written(tmp_path: Path, place: Place, name: str) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        before = sorted(tmp_path.iterdir())
        for more in ([], ["-C"]):
            refused = cli("get", place.url("/"), "-o", name, *more, *place.pins, cwd=tmp_path)
            refused.expect(CANNOT_WRITE)
            assert refused.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "target").read_bytes() == b"mine"
    place.expect_untouched()


def test_no_permission(tmp_path: Path, place: Place) -> None:
    """As root too, whose right to write anywhere is taken from it."""
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        before = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "file").write_bytes(b"old")
    (closed / "file").chmod(0o444)
    closed.chmod(0o555)
    try:
        for name in ("new", "file"):
            refused = ended(
                started("get", place.url("/"), "-o", closed / name, *place.pins, before=before)
            )
            refused.expect(CANNOT_WRITE, "Permission denied")
    finally:
        closed.chmod(0o755)
    assert (closed / "file").read_bytes() == b"old"
    place.expect_untouched()


def test_devices_and_pipes(tmp_path: Path, place: Place) -> None:
    cli("get", place.url("/"), "-o", "/dev/null", *place.pins).expect(OK)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert cli("get", place.url("/"), "-o", "-", *place.pins).expect(OK).out == b"ok"
    piped = ended(started("get", place.url("/"), "-o", "/dev/stdout", *place.pins))
    assert piped.expect(OK).out == b"ok"
    full = cli("get", place.url("/"), "-o", "/dev/full", *place.pins)
    full.expect(CANNOT_WRITE, "/dev/full: No space left")
    cli("get", place.url("/"), "-C", "-o", "/dev/null", *place.pins).expect(USAGE, "a device")


@pytest.mark.parametrize("validator", [b'ETag: "one"', b"modified"])
def test_a_cut_download_goes_on(tmp_path: Path, validator: bytes) -> None:
    workload = Ranged(70_000, 0, 50_000)
    if validator == b"modified":
        validator = b"Last-Modified: Fri, 27 Nov 2020 09:00:00 GMT"
        date = b"Date: Fri, 27 Nov 2020 09:00:01 GMT"
        workload.validator = validator
    else:
        date = b""
        workload.validator = validator
    answer = workload.answer

    def dated(fields: dict[bytes, bytes]) -> tuple[bytes, bytes]:
        head, body = answer(fields)
        return (head[:-2] + date + b"\r\n\r\n" if date else head), body

    workload.answer = dated  # type: ignore[method-assign]
    with desk(workload, tmp_path) as at:
        at.get().expect(OK, "going on behind 70000 bytes", "going on behind 120000 bytes")
        assert at.file.read_bytes() == BODY
        assert workload.statuses == [200, 206, 206, 206]
        asked = [head.get(b"range") for head in workload.heads]
        assert asked == [None, b"bytes=70000-", b"bytes=70000-", b"bytes=120000-"]
        known = validator.partition(b": ")[2]
        assert [head.get(b"if-range") for head in workload.heads] == [None, known, known, known]
        assert at.left() == ["file"]


@pytest.mark.parametrize(
    "validator",
    [
        b"",
        b'ETag: W/"one"',
        b"ETag: one",
        b"Last-Modified: Fri, 27 Nov 2020 09:00:00 GMT",
        b"Last-Modified: Fri, 27 Nov 2020 09:00:00 GMT\r\nDate: Fri, 27 Nov 2020 09:00:00 GMT",
        b"Last-Modified: yesterday\r\nDate: today",
        b'ETag: "one"\r\nAccept-Ranges: none',
    ],
)
def test_without_a_strong_validator_nothing_is_joined(tmp_path: Path, validator: bytes) -> None:
    workload = Ranged(70_000)
    workload.validator = validator
    with desk(workload, tmp_path) as at:
        at.get("-C").expect(UNREACHABLE, "IncompleteResponse: ")
        assert len(workload.heads) == 1
        assert at.left() == []


def test_what_changed_meanwhile_begins_again(tmp_path: Path) -> None:
    workload = Ranged(70_000)
    answer = workload.answer

    def changing(fields: dict[bytes, bytes]) -> tuple[bytes, bytes]:
        if b"range" in fields:
            workload.body, workload.validator = BODY[::-1], b'ETag: "two"'
        return answer(fields)

    workload.answer = changing  # type: ignore[method-assign]
    with desk(workload, tmp_path) as at:
        at.get().expect(OK)
        assert at.file.read_bytes() == BODY[::-1]
        assert workload.statuses == [200, 200]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 70000-199999/200001\r\n"
        b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 70000-199999/200000\r\n"
        b'ETag: "two"\r\nContent-Length: 0\r\n\r\n',
        b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_rest_of_something_else_is_not_joined(tmp_path: Path, answer: bytes) -> None:
    workload = Ranged(70_000)
    workload.always = answer
    with desk(workload, tmp_path) as at:
        at.get().expect(OK)
        assert at.file.read_bytes() == BODY
        assert workload.statuses[0] == workload.statuses[-1] == 200
        assert len(workload.statuses) == 3


def test_a_part_that_was_not_asked_for_is_not_the_whole(tmp_path: Path) -> None:
    workload = Ranged()

    def part(fields: dict[bytes, bytes]) -> tuple[bytes, bytes]:
        return (
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/200000\r\n"
            b"Content-Length: 10\r\n\r\n"
        ), BODY[:10]

    workload.answer = part  # type: ignore[method-assign]
    with desk(workload, tmp_path) as at:
        at.get().expect(HTTP_STATUS, "a part of it (HTTP 206) that was not asked for")
        assert at.left() == []
        at.get("-H", "Range: bytes=0-9").expect(OK)
        assert at.file.read_bytes() == BODY[:10]


def test_no_rest_ends_somewhere(tmp_path: Path) -> None:
    workload = Ranged(*[70_000] * 99)
    workload.always = b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n"
    with desk(workload, tmp_path) as at:
        at.get().expect(UNREACHABLE)
        assert at.left() == []


def test_an_error_in_place_of_the_rest(tmp_path: Path) -> None:
    workload = Ranged(70_000)
    workload.always = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
    with desk(workload, tmp_path) as at:
        at.get("-C").expect(HTTP_STATUS, "HTTP 503 Busy")
        assert at.left() == ["file.part", "file.part.json"]
        workload.always = None
        at.get("-C").expect(OK)
        assert at.file.read_bytes() == BODY
        assert at.left() == ["file"]


def held_up(at: Desk, *more: str) -> subprocess.Popen[bytes]:
    """A download that stands still in the middle."""
    process = started(*at.arguments(*more))

    def half() -> bool:
        # Names of other files that are written meanwhile may be gone again.
        with contextlib.suppress(FileNotFoundError):
            sizes = [path.stat().st_size for path in at.out.iterdir() if path.suffix != ".json"]
            return len(BODY) // 2 in sizes
        return False

    eventually(half)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with desk(Ranged(-1), tmp_path) as at:
        stopped = interrupted(held_up(at), number)
        assert stopped == (128 + number, b"", "")
        assert at.left() == []


def test_ctrl_c_before_an_answer(place: Place, tmp_path: Path) -> None:
    place.answers = [b""]
    process = started("get", place.url("/"), "-o", tmp_path / "x", *place.pins)
    eventually(lambda: bool(place.heads))
    assert interrupted(process) == (INTERRUPTED, b"", "")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_with_continue_keeps_the_part(tmp_path: Path) -> None:
    workload = Ranged(-1)
    with desk(workload, tmp_path) as at:
        interrupted(held_up(at, "-C")).expect(INTERRUPTED)
        assert at.left() == ["file.part", "file.part.json"]
        assert (at.out / "file.part").read_bytes() == BODY[: len(BODY) // 2]
        at.get("-C").expect(OK)
        assert at.file.read_bytes() == BODY
        assert workload.statuses == [200, 206]
        assert at.left() == ["file"]


def test_a_part_of_another_image_is_not_gone_on_with(tmp_path: Path) -> None:
    """Both images are trusted; but no file is made of bytes of two."""
    workload = Ranged(-1)
    other = enclavia.Pcrs(**{f"pcr{n}": f"{n + 7:02x}" * 48 for n in range(3)})
    with desk(workload, tmp_path) as at:
        (tmp_path / "pins" / "next.json").write_text(json.dumps(other.as_dict()))
        both = ["--pcrs", str(tmp_path / "pins" / "next.json"), "-C"]
        interrupted(held_up(at, *both)).expect(INTERRUPTED)
        at.enclave.set_identity(pcrs=other)
        at.get(*both).expect(OK)
        assert workload.statuses == [200, 206, 200]
        assert at.file.read_bytes() == BODY


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 60_000,
        b'{"url": "https://elsewhere/x", "validator": "\\"one\\"", "total": 200000, "pcrs": []}',
        b'{"url": 1, "validator": 2, "total": "x", "pcrs": 3}',
        b'{"url": "%s", "validator": "\\"one\\"\\r\\nX: y", "total": 200000, "pcrs": []}',
        b'{"url": "%s", "validator": "\\u0100", "total": 200000, "pcrs": []}',
    ],
)
def test_a_note_that_is_none(tmp_path: Path, note: bytes) -> None:
    workload = Ranged()
    with desk(workload, tmp_path) as at:
        (at.out / "file.part").write_bytes(b"wrong")
        url = at.enclave.url.replace("ws://", "https://").encode() + b"/x"
        (at.out / "file.part.json").write_bytes(note.replace(b"%s", url))
        at.get("-C").expect(OK)
        assert at.file.read_bytes() == BODY
        assert at.left() == ["file"]


def test_a_part_that_somebody_else_has_put_there(tmp_path: Path) -> None:
    with desk(Ranged(), tmp_path) as at:
        victim = tmp_path / "victim"
        victim.write_bytes(b"mine")
        part = at.out / "file.part"
        for plant in (part.symlink_to, part.hardlink_to):
            plant(victim)
            at.get("-C").expect(CANNOT_WRITE, "file.part")
            part.unlink()
        os.mkfifo(part)
        at.get("-C").expect(CANNOT_WRITE, "file.part")
        part.unlink()
        (at.out / "file.part.json").symlink_to(victim)
        at.get("-C").expect(OK)
        assert victim.read_bytes() == b"mine"
        assert at.server.connections
        assert at.left() == ["file"]


def test_two_downloads_to_one_file(tmp_path: Path) -> None:
    with desk(Ranged(-1), tmp_path) as at:
        process = held_up(at, "-C")
        at.get("-C").expect(CANNOT_WRITE, "expected no other download")
        interrupted(process).expect(INTERRUPTED)


def test_temporary_names_cannot_be_foreseen(tmp_path: Path) -> None:
    names = set()
    for _ in range(2):
        folder = tmp_path / str(len(names))
        folder.mkdir()
        with desk(Ranged(-1), folder) as at:
            process = held_up(at)
            names |= {
                name for name in at.left() if re.fullmatch(r"\.file\.[0-9a-f]{16}\.tmp", name)
            }
            interrupted(process).expect(INTERRUPTED)
    assert len(names) == 2


def test_a_range_of_the_callers_is_the_answer(tmp_path: Path) -> None:
    workload = Ranged()
    with desk(workload, tmp_path) as at:
        at.get("-H", "Range: bytes=199990-").expect(OK)
        assert at.file.read_bytes() == BODY[-10:]


def test_an_empty_body_is_an_empty_file(tmp_path: Path, place: Place) -> None:
    place.answers = [ok(b"", b'ETag: "e"\r\n')] * 2
    for more in ([], ["-C"]):
        cli("get", place.url("/"), "-o", tmp_path / "x", *more, *place.pins).expect(OK)
        assert (tmp_path / "x").read_bytes() == b""
        assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("total", [b"200000", b"*"])
def test_a_part_of_the_rest_is_not_the_rest(tmp_path: Path, total: bytes) -> None:
    """The first answer has no length, and a server may send less than the range asked for."""
    workload = Ranged(70_000)

    def bounded(fields: dict[bytes, bytes]) -> tuple[bytes, bytes]:
        if b"range" not in fields:
            head = b'HTTP/1.1 200 OK\r\nETag: "one"\r\nTransfer-Encoding: chunked\r\n\r\n'
            return head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
        first = int(fields[b"range"][len(b"bytes=") : -1])
        rest = BODY[first : first + 50_000]
        span = b"%d-%d/%b" % (first, first + len(rest) - 1, total)
        head = (
            b'HTTP/1.1 206 Partial Content\r\nETag: "one"\r\nContent-Range: bytes %b\r\n'
            b"Content-Length: %d\r\n\r\n" % (span, len(rest))
        )
        return head, rest

    workload.answer = bounded  # type: ignore[method-assign]
    with desk(workload, tmp_path) as at:
        at.get().expect(OK)
        assert at.file.read_bytes() == BODY


def test_more_than_the_range_is_not_joined(tmp_path: Path) -> None:
    workload = Ranged(70_000)
    workload.always = (
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 70000-70003/200000\r\n"
        b"Content-Length: 130000\r\n\r\n" + bytes(130_000)
    )
    with desk(workload, tmp_path) as at:
        at.get().expect(OK)
        assert at.file.read_bytes() == BODY


@pytest.mark.parametrize("size", [4, 1 << 20])
def test_a_request_with_a_body_is_sent_once(tmp_path: Path, size: int) -> None:
    """What came from standard input is gone; sent again, it would be another request."""
    workload = Ranged(70_000)
    with desk(workload, tmp_path) as at:
        at.get("-C", "-d", "-", given=b"q" * size).expect(UNREACHABLE, "IncompleteResponse: ")
        assert len(workload.heads) == 1
        assert at.left() == []


def test_a_part_is_not_gone_on_with_for_another_body(tmp_path: Path) -> None:
    workload = Ranged(-1)
    with desk(workload, tmp_path) as at:
        interrupted(held_up(at, "-C")).expect(INTERRUPTED)
        at.get("-C", "-d", "q").expect(OK)
        assert workload.statuses == [200, 200]


def test_a_redirect_that_leads_elsewhere_meanwhile(tmp_path: Path) -> None:
    """Where a server makes an ETag of a file's size and time, two files may have the same."""
    workload = Ranged(0, 70_000)
    answer = workload.answer
    asked: list[bytes] = []

    def redirecting(fields: dict[bytes, bytes]) -> tuple[bytes, bytes]:
        asked.append(b"")
        if len(asked) % 2:
            where = b"/one" if len(asked) == 1 else b"/two"
            return b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % where, b""
        if len(asked) > 2:
            workload.body = BODY[::-1]
        return answer(fields)

    workload.answer = redirecting  # type: ignore[method-assign]
    with desk(workload, tmp_path) as at:
        at.get("-L").expect(OK)
        assert at.file.read_bytes() == BODY[::-1]
        assert workload.statuses == [302, 200, 302, 206, 302, 200]


@pytest.mark.parametrize("headers", [(["-H", "Accept: a/b"], []), ([], ["-H", "Accept: a/b"])])
def test_a_date_does_not_tell_apart_what_headers_ask_for(
    tmp_path: Path, headers: tuple[list[str], list[str]]
) -> None:
    workload = Ranged(-1)
    workload.validator = b"Last-Modified: Fri, 27 Nov 2020 09:00:00 GMT"
    answer = workload.answer

    def chosen(fields: dict[bytes, bytes]) -> tuple[bytes, bytes]:
        workload.body = BODY[::-1] if b"a/b" in fields[b"accept"] else BODY
        head, body = answer(fields)
        return head[:-2] + b"Date: Fri, 27 Nov 2020 09:00:01 GMT\r\n\r\n", body

    workload.answer = chosen  # type: ignore[method-assign]
    with desk(workload, tmp_path) as at:
        interrupted(held_up(at, "-C", *headers[0])).expect(INTERRUPTED)
        at.get("-C", *headers[1]).expect(OK)
        assert at.file.read_bytes() == (BODY[::-1] if headers[1] else BODY)
        assert workload.statuses == [200, 200]


def test_a_note_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stay beside bytes that it does not speak of."""
    name = str(tmp_path / "file")
    source = Source("u", "u", False, '"one"', 9, Identity("nitro", ("1", "2"), "r", ""))
    part = PartialStore(name)
    part.begin(source)
    part.write(b"some")
    part.close()
    again = PartialStore(name)
    assert (again.source, again.size) == (source, 4)

    def refused(_: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "unlink", refused)
    with pytest.raises(PermissionError, match=r"file\.part\.json"):
        again.begin(None)
    again.close()


def test_a_file_in_the_place_of_a_device(tmp_path: Path) -> None:
    """Put there after it was looked at."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(Problem, match="link"):
        DirectOutput(str(tmp_path / "link"))
    with pytest.raises(Problem, match="No such file"):
        DirectOutput(str(tmp_path / "absent"))
    assert victim.read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["link", "victim"]
