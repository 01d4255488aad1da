"""``client.open``: reads as a file does, asks for nothing that is there, and never mixes two
versions of a file."""

from __future__ import annotations

import functools
import io
import logging
import os
import signal
import threading
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranged import BODY, Answer, Asked, Shelf, client_of
from support import Face, byte_enclave, with_client

import enclavia
from enclavia._files import reader
from enclavia._files.blocks import BLOCK, Ahead, Blocks

KINDS = ["sync", "asyncio", "trio"]


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "pause_after", lambda _: 0.0)


def on(kind: str, shelf: Shelf, case: Callable[[Face], Awaitable[None]]) -> None:
    with byte_enclave(shelf) as (enclave, _):
        with_client(kind, enclave, case)


# -- what is asked for


def test_the_first_answer_says_how_long_it_is() -> None:
    shelf = Shelf()
    with client_of(shelf) as client, client.open("/a/b.bin") as file:
        assert file.size == len(BODY)
        assert file.read(10) == BODY[:10]
        assert shelf.spans == [(0, BLOCK)]
        assert (file.name, file.mode, file.etag) == ("/a/b.bin", "rb", '"one"')


def test_nothing_is_asked_for_twice() -> None:
    shelf = Shelf()
    with client_of(shelf) as client, client.open("/x") as file:
        for _ in range(3):
            file.seek(0)
            assert file.read() == BODY
            file.seek(-5, os.SEEK_END)
            assert file.read() == BODY[-5:]
    spans = [span for span in shelf.spans if span]
    assert [begin for begin, _ in spans[1:]] == [end for _, end in spans[:-1]]
    assert spans[-1][1] == len(BODY)


def test_a_large_read_is_one_request() -> None:
    shelf = Shelf(BODY * 10)
    with client_of(shelf) as client, client.open("/x", cache_size=BLOCK, read_ahead=0) as file:
        file.seek(100)
        assert file.read() == shelf.body[100:]
    assert shelf.spans == [(0, BLOCK), (BLOCK, len(shelf.body))]


def test_read_ahead_grows_and_is_bounded() -> None:
    shelf = Shelf(BODY * 10)
    with client_of(shelf) as client, client.open("/x", read_ahead=4 * BLOCK) as file:
        whole = b"".join(iter(functools.partial(file.read, 1000), b""))
    assert whole == shelf.body
    lengths = [(end - begin) // BLOCK for begin, end in filter(None, shelf.spans)]
    assert lengths[:4] == [1, 2, 3, 5]
    assert max(lengths) == 5


def test_no_read_ahead_where_it_is_read_here_and_there() -> None:
    shelf = Shelf(BODY * 10)
    with client_of(shelf) as client, client.open("/x") as file:
        for position in (len(shelf.body) - 8, 1_000_000, 500_000):
            file.seek(position)
            assert file.read(8) == shelf.body[position : position + 8]
    assert all(end - begin <= BLOCK for begin, end in filter(None, shelf.spans))


def test_no_read_ahead_where_none_is_wanted() -> None:
    shelf = Shelf(BODY)
    with client_of(shelf) as client, client.open("/x", read_ahead=0) as file:
        while file.read(10_000):
            pass
    assert all(end - begin <= BLOCK for begin, end in filter(None, shelf.spans))


def test_the_cache_is_bounded() -> None:
    shelf = Shelf(BODY * 10)
    size = 2 * BLOCK
    with client_of(shelf) as client:
        file = client.open("/x", cache_size=size, read_ahead=BLOCK)
        while file.read(10_000):
            kept = file._position._reader.blocks._kept
            assert sum(map(len, kept.values())) <= size
        file.close()


def test_seeking_asks_for_nothing() -> None:
    shelf = Shelf()
    with client_of(shelf) as client, client.open("/x") as file:
        for offset, whence in ((200_000, 0), (5, 1), (-5, 2), (10, 2)):
            file.seek(offset, whence)
            file.tell()
        assert file.read() == b""
        assert len(shelf.asked) == 1


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 6)), max_size=60))
def test_blocks_that_are_there_are_not_missing(steps: list[tuple[bool, int, int]]) -> None:
    """Beside a plain list of what was used, the last used at its end."""
    blocks = Blocks(5 * BLOCK)
    known: list[int] = []
    for puts, index, count in steps:
        if puts:
            for each in range(index, index + count):
                blocks.put(each, b"%d" % each)
                known = [*(other for other in known if other != each), each][-5:]
        elif (got := blocks.get(index)) is not None:
            assert got == b"%d" % index
            known = [*(other for other in known if other != index), index]
        for each in range(20):
            assert (each in blocks) == (each in known)
        if index not in known:
            end = blocks.missing(index, index + count)
            assert not set(range(index, end)) & set(known)
            assert end == index + count + 1 or end in known


def test_ahead_begins_again_after_a_jump() -> None:
    ahead = Ahead(5 * BLOCK)
    assert [ahead.asked(0), ahead.asked(0)] == [BLOCK, 2 * BLOCK]
    ahead.done(100)
    assert [ahead.asked(100), ahead.asked(100)] == [4 * BLOCK, 5 * BLOCK]
    assert [ahead.asked(99), ahead.asked(100)] == [0, BLOCK]


# -- beside plain bytes

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 200_000)),
        st.tuples(st.just("read"), st.none()),
        st.tuples(st.just("readinto"), st.integers(0, 150_000)),
        st.tuples(st.just("readline"), st.integers(-1, 400)),
        st.tuples(st.just("seek"), st.integers(0, 320_000)),
        st.tuples(st.just("from here"), st.integers(-70_000, 70_000)),
        st.tuples(st.just("from the end"), st.integers(-320_000, 10)),
        st.tuples(st.just("peek"), st.none()),
        st.tuples(st.just("read1"), st.integers(-1, 100_000)),
        st.tuples(st.just("cut"), st.integers(0, 70_000)),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def side_by_side() -> Iterator[tuple[Shelf, enclavia.Client]]:
    shelf = Shelf()
    with client_of(shelf) as client:
        client.get("/")
        yield shelf, client


@settings(
    max_examples=int(os.environ.get("ENCLAVIA_READS", "40")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(STEPS, st.sampled_from([0, BLOCK, 4 * BLOCK]), st.sampled_from([0, 1, 70_000, 300_000]))
def test_as_bytes_in_memory(
    side_by_side: tuple[Shelf, enclavia.Client],
    steps: list[tuple[str, int | None]],
    ahead: int,
    size: int,
) -> None:
    shelf, client = side_by_side
    shelf.body, shelf.cuts = BODY[:size], []
    plain = io.BytesIO(shelf.body)
    with client.open("/x", read_ahead=ahead, cache_size=4 * BLOCK) as file:
        for step, value in steps:
            assert file.tell() == plain.tell()
            if step == "seek":
                assert file.seek(value or 0) == plain.seek(value or 0)
            elif step in ("from here", "from the end"):
                whence = 1 if step == "from here" else 2
                origin = plain.tell() if whence == 1 else size
                if origin + (value or 0) >= 0:
                    assert file.seek(value or 0, whence) == plain.seek(value or 0, whence)
            elif step == "readinto":
                ours, theirs = bytearray(value or 0), bytearray(value or 0)
                assert file.readinto(ours) == plain.readinto(theirs)
                assert ours == theirs
            elif step == "peek":
                there = file.peek()
                assert plain.getvalue()[plain.tell() :].startswith(there)
                assert bool(there) == (plain.tell() < size)
            elif step == "read1":
                piece = file.read1(-1 if value is None else value)
                assert plain.read(len(piece)) == piece
                assert bool(piece) == (value != 0 and plain.tell() - len(piece) < size)
            elif step == "cut":
                shelf.cuts = [value]
            else:
                assert getattr(file, step)(value) == getattr(plain, step)(value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_method(kind: str) -> None:
    lines = b"".join(b"line %d\n" % n * (n % 9) for n in range(3000))
    shelf = Shelf(lines)

    async def case(face: Face) -> None:
        call = face.call
        file = await call(face.client.open("/lines"))
        plain = io.BytesIO(lines)
        assert file.size == len(lines) > BLOCK
        for _ in range(2000):
            assert await call(file.readline()) == plain.readline()
        assert await call(file.read(100_000)) == plain.read(100_000)
        assert await call(file.seek(-70_000, 2)) == plain.seek(-70_000, 2)
        assert await call(file.tell()) == plain.tell()
        buffer = bytearray(1000)
        assert await call(file.readinto(buffer)) == plain.readinto(bytearray(1000)) == 1000
        assert await call(file.readlines()) == plain.readlines()
        await call(file.seek(0))
        read = [line async for line in file] if face.is_async else list(file)
        assert read == lines.splitlines(keepends=True)
        await call(file.seek(0))
        piece = await call(file.read1(10))
        assert piece == lines[:10]
        assert not file.closed
        assert f"'/lines', 10 of {len(lines)} bytes" in repr(file)
        await call(file.aclose() if face.is_async else file.close())
        assert file.closed
        for name, arguments in (("read", ()), ("readline", ()), ("seek", (0,)), ("tell", ())):
            with pytest.raises(ValueError, match="closed"):
                await call(getattr(file, name)(*arguments))

    on(kind, shelf, case)


def test_entered() -> None:
    shelf = Shelf()

    async def case(face: Face) -> None:
        async with face.client.open("/x") as file:
            assert await file.read() == BODY
        assert file.closed
        opening = face.client.open("/x")
        with pytest.raises(AttributeError, match=r"await AsyncClient\.open"):
            opening.read()

    on("asyncio", shelf, case)


def test_what_it_is_not() -> None:
    with client_of(Shelf()) as client, client.open("/x") as file:
        assert file.readable() and file.seekable() and not file.writable()
        for call in (lambda: file.write(b""), file.truncate, file.fileno, file.detach):
            with pytest.raises(io.UnsupportedOperation):
                call()
        assert isinstance(file, io.BufferedIOBase)


# -- two versions, two images


def changed_to(**fields: Any) -> Callable[[Shelf], None]:
    def change(shelf: Shelf) -> None:
        for name, value in fields.items():
            setattr(shelf, name, value)

    return change


def in_a_206(more: int = 0, **changed: bytes) -> Callable[[Shelf], None]:
    """Changes header fields of answers to ranges; an empty one is left out. ``more``: so many bytes
    than there should be."""

    def change(_: Asked, answer: Answer) -> Answer:
        status, headers, body = answer
        if status == 206:
            named = {name.replace("_", "-").encode(): value for name, value in changed.items()}
            headers = {name: value for name, value in {**headers, **named}.items() if value}
        return status, headers, body[::-1] + b"x" * more

    return changed_to(change=change)


CHANGED: dict[str, Callable[[Shelf], None]] = {
    "another version": changed_to(body=BODY[::-1], etag=b'"two"'),
    "a shorter one": changed_to(body=b"short", etag=b'"two"'),
    "one without a validator": changed_to(body=BODY[::-1], etag=None),
    "a part of another version": in_a_206(ETag=b'"two"'),
    "a part of a longer file": in_a_206(Content_Range=b"bytes 196608-262143/300001"),
    "nothing there": changed_to(change=lambda *_: (416, {}, b"")),
}
# By position 200 000 and the block there.
BROKEN: dict[str, Callable[[Shelf], None]] = {
    "no Content-Range": in_a_206(Content_Range=b""),
    "another beginning": in_a_206(Content_Range=b"bytes 131072-196607/300000"),
    "a later beginning": changed_to(
        change=lambda asked, answer: (
            (
                206,
                {**answer[1], b"Content-Range": b"bytes 200000-262143/300000"},
                BODY[200000:262144],
            )
            if asked.span == (196_608, 262_144)
            else answer
        )
    ),
    "more than was asked for": in_a_206(1, Content_Range=b"bytes 196608-262144/300000"),
    "more than it says": in_a_206(1),
    "another unit": in_a_206(Content_Range=b"items 196608-262143/300000"),
    "a content coding": in_a_206(Content_Encoding=b"gzip"),
    "several parts": in_a_206(Content_Type=b"multipart/byteranges; boundary=x"),
    "no ranges any more": changed_to(ranges=False),
}


@pytest.mark.parametrize("changed", CHANGED)
def test_a_file_that_changes(changed: str) -> None:
    shelf = Shelf()
    with client_of(shelf) as client, client.open("/x", read_ahead=0) as file:
        CHANGED[changed](shelf)
        file.seek(200_000)
        with pytest.raises(enclavia.FileChanged) as caught:
            file.read(10)
        assert isinstance(caught.value, OSError)
        assert file.tell() == 200_000
        # What is there is of the version that was opened, and stays so.
        file.seek(0)
        assert file.read(BLOCK) == BODY[:BLOCK]
        file.seek(200_000)
        with pytest.raises(enclavia.FileChanged):
            file.read(1)


@pytest.mark.parametrize("broken", BROKEN)
def test_answers_that_are_wrong(broken: str) -> None:
    shelf = Shelf()
    with client_of(shelf) as client, client.open("/x", read_ahead=0) as file:
        BROKEN[broken](shelf)
        file.seek(200_000)
        with pytest.raises(enclavia.RangesUnsupported) as caught:
            file.read(10)
        assert isinstance(caught.value, io.UnsupportedOperation)


def test_a_change_in_the_middle_of_a_read() -> None:
    """The connection is cut, and what goes on is another version."""
    shelf = Shelf()

    def change(asked: Asked) -> None:
        if asked.span and asked.span[0] not in (0, BLOCK):
            shelf.body, shelf.etag = BODY[::-1], b'"two"'

    with client_of(shelf) as client, client.open("/x") as file:
        shelf.cuts = [10_000]
        shelf.before = change
        with pytest.raises(enclavia.FileChanged):
            file.read()
        assert file.tell() == 0


def test_another_image() -> None:
    other = enclavia.Pcrs(**{f"pcr{n}": f"{n + 7:02x}" * 48 for n in range(3)})
    with byte_enclave(Shelf()) as (enclave, _):
        both = {"pcrs": [enclave.pcrs, other], "root": enclave.root}
        with enclavia.Client(enclave.url, **both) as client, client.open("/x") as file:
            enclave.set_identity(pcrs=other)
            enclave.drop_connections()
            file.seek(200_000)
            with pytest.raises(enclavia.FileChanged, match="image"):
                file.read(1)


def test_a_redirect_that_leads_elsewhere() -> None:
    shelf = Shelf()
    places = [b"/one", b"/two"]
    moved: list[bool] = []

    def redirecting(asked: Asked, answer: Answer) -> Answer:
        moved.append(True)
        if len(moved) % 2:
            return 302, {b"Location": places.pop(0)}, b""
        return answer

    shelf.change = redirecting
    with client_of(shelf) as client, client.open("/x", follow_redirects=True) as file:
        file.seek(200_000)
        with pytest.raises(enclavia.FileChanged, match="redirect"):
            file.read(1)


# -- workloads that do less


def test_a_workload_without_ranges() -> None:
    """A file that fits into the cache is read at once, and others are not."""
    shelf = Shelf()
    shelf.ranges = False
    for chunked in (False, True):
        shelf.chunked = chunked
        with client_of(shelf) as client:
            with client.open("/x") as file:
                file.seek(250_000)
                assert file.read() == BODY[250_000:]
                file.seek(0)
                assert file.read() == BODY
            with pytest.raises(enclavia.RangesUnsupported, match=r"client\.download"):
                client.open("/x", cache_size=BLOCK, read_ahead=0)


@pytest.mark.parametrize("etag", [None, b'W/"one"', b"one"])
def test_a_workload_without_a_strong_validator(etag: bytes | None) -> None:
    shelf = Shelf(etag=etag)
    with client_of(shelf) as client:
        with pytest.raises(enclavia.RangesUnsupported, match="strong validator"):
            client.open("/x")
        shelf.body = BODY[:BLOCK]
        with client.open("/x") as file:
            assert file.read() == BODY[:BLOCK]
            assert file.etag is None


def test_a_date_as_validator() -> None:
    shelf = Shelf(etag=None)
    shelf.dates = {
        b"Last-Modified": b"Fri, 27 Nov 2020 09:00:00 GMT",
        b"Date": b"Fri, 27 Nov 2020 09:00:01 GMT",
    }
    with client_of(shelf) as client, client.open("/x") as file:
        assert file.read() == BODY


def refusing_empty(asked: Asked, answer: Answer) -> Answer:
    return (416, {}, b"") if asked.span else answer


def refusing_empty_without_unit(asked: Asked, answer: Answer) -> Answer:
    return (416, {b"Content-Range": b"*/0"}, b"") if asked.span else answer


@pytest.mark.parametrize("how", [None, refusing_empty, refusing_empty_without_unit])
def test_an_empty_file(how: Any) -> None:
    shelf = Shelf(b"")
    shelf.change = how or shelf.change
    with client_of(shelf) as client, client.open("/x") as file:
        assert (file.size, file.read(), file.peek(), file.readline()) == (0, b"", b"", b"")


@pytest.mark.parametrize("status", [302, 404, 503])
def test_statuses(status: int) -> None:
    shelf = Shelf()
    shelf.change = lambda *_: (status, {}, b"")
    with client_of(shelf) as client, pytest.raises(httpx2.HTTPStatusError) as caught:
        client.open("/x")
    assert caught.value.response.status_code == status


def test_the_length_is_needed() -> None:
    shelf = Shelf()
    shelf.change = lambda _, answer: (
        206, {**answer[1], b"Content-Range": b"bytes 0-65535/*"}, answer[2]
    )  # fmt: skip
    with client_of(shelf) as client, pytest.raises(enclavia.RangesUnsupported, match="length"):
        client.open("/x")


def test_parts_of_parts_and_cuts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "enclavia")
    shelf = Shelf()
    shelf.most = 30_000
    shelf.cuts = [100, 0, None, 5000, 0, 29_999]
    with client_of(shelf) as client, client.open("/x") as file:
        assert file.read() == BODY
    events = [each.event for each in caplog.records if each.name == "enclavia"]  # type: ignore[attr-defined]
    assert "transfer_resumed" in events


def test_a_fork_while_another_thread_reads() -> None:
    """The child has that thread's lock, and nobody who would ever release it."""
    shelf = Shelf()
    asked, go = threading.Event(), threading.Event()
    with client_of(shelf) as client, client.open("/x") as file:

        def wait(_: Asked) -> None:
            asked.set()
            assert go.wait(60)

        shelf.before = wait
        reading = threading.Thread(target=file.read)
        reading.start()
        try:
            assert asked.wait(60)
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(20)  # ends a child that hangs
                try:
                    file.seek(5)
                    os._exit(0 if file.read(10) == BODY[5:15] else 1)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
        finally:
            go.set()
            reading.join()
        assert file.tell() == len(BODY)


def test_cuts_without_a_byte_end_somewhere() -> None:
    shelf = Shelf()
    with client_of(shelf) as client, client.open("/x") as file:
        shelf.cuts = [0] * 99
        with pytest.raises(enclavia.IncompleteResponse):
            file.read()
    assert len(shelf.asked) < 20


def test_nothing_is_sent_again_with_no_retries() -> None:
    shelf = Shelf()
    with client_of(shelf, retries=0) as client, client.open("/x") as file:
        shelf.cuts = [1000]
        with pytest.raises(enclavia.IncompleteResponse):
            file.read()
        assert len(shelf.asked) == 2


# -- threads, arguments


def test_threads_that_share_one() -> None:
    shelf = Shelf(BODY * 3)
    pieces: list[bytes] = []
    with client_of(shelf) as client, client.open("/x") as file:

        def read() -> None:
            while piece := file.read(1000):
                pieces.append(piece)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    known = sorted(shelf.body[at : at + 1000] for at in range(0, len(shelf.body), 1000))
    assert sorted(pieces) == known


def test_what_is_refused_before_anything_is_sent() -> None:
    shelf = Shelf()
    rows: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"read_ahead": -1}, ValueError, "read_ahead: "),
        ({"read_ahead": 1.5}, TypeError, "read_ahead: "),
        ({"read_ahead": None}, TypeError, "read_ahead: "),
        ({"cache_size": BLOCK - 1}, ValueError, "cache_size: "),
        ({"cache_size": "64"}, TypeError, "cache_size: "),
        ({"read_ahead": 2 * BLOCK, "cache_size": BLOCK}, ValueError, "read_ahead: .*cache_size"),
        ({"headers": {"Range": "bytes=0-1"}}, ValueError, "Range"),
        ({"timeout": -1}, ValueError, "timeout"),
    ]
    with client_of(shelf) as client:
        for options, error, says in rows:
            with pytest.raises(error, match=says):
                client.open("/x", **options)
        with pytest.raises(enclavia.ForeignURL):
            client.open("https://elsewhere/x")
        assert shelf.asked == []
        with client.open("/x") as file:
            for call in (
                lambda: file.seek(-1),
                lambda: file.seek(-1, 1),
                lambda: file.seek(0, 3),
                lambda: file.seek("x"),  # type: ignore[arg-type]
                lambda: file.read("x"),  # type: ignore[arg-type]
                lambda: file.readinto(b"read-only"),
            ):
                with pytest.raises((ValueError, TypeError)):
                    call()
            assert file.tell() == 0


# -- those who read files


def test_a_zip_archive() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small.txt", "well")
        archive.writestr("large.bin", os.urandom(500_000))
    shelf = Shelf(made.getvalue())
    with (
        client_of(shelf) as client,
        client.open("/a.zip") as file,
        zipfile.ZipFile(file) as archive,
    ):
        assert archive.read("small.txt") == b"well"
        asked = sum(end - begin for begin, end in filter(None, shelf.spans))
        assert asked <= 3 * BLOCK, "the end, where the directory is, and the beginning"
        assert archive.testzip() is None


def test_text_and_buffering() -> None:
    shelf = Shelf("ärger\n".encode() * 50_000)
    with (
        client_of(shelf) as client,
        io.TextIOWrapper(client.open("/x"), encoding="utf-8") as text,
    ):
        assert sum(1 for line in text if line == "ärger\n") == 50_000


def test_pandas_and_pyarrow() -> None:
    pandas = pytest.importorskip("pandas")
    parquet = pytest.importorskip("pyarrow.parquet")
    made = io.BytesIO()
    frame = pandas.DataFrame({"a": range(50_000), "b": [f"row {n}" for n in range(50_000)]})
    frame.to_parquet(made)
    shelf = Shelf(made.getvalue())
    with client_of(shelf) as client:
        with client.open("/rows.parquet") as file:
            assert pandas.read_parquet(file, columns=["a"])["a"].sum() == sum(range(50_000))
        with client.open("/rows.parquet") as file:
            assert parquet.read_table(file).num_rows == 50_000
        shelf.body, shelf.etag = frame.to_csv(index=False).encode(), b'"csv"'
        with client.open("/rows.csv") as file:
            assert pandas.read_csv(file).equals(frame)


def test_polars() -> None:
    polars = pytest.importorskip("polars")
    made = io.BytesIO()
    frame = polars.DataFrame({"a": range(1000)})
    frame.write_parquet(made)
    with client_of(Shelf(made.getvalue())) as client, client.open("/rows.parquet") as file:
        assert polars.read_parquet(file).equals(frame)


def test_pillow() -> None:
    image = pytest.importorskip("PIL.Image")
    made = io.BytesIO()
    image.new("RGB", (300, 200), "teal").save(made, "PNG")
    with client_of(Shelf(made.getvalue())) as client, client.open("/teal.png") as file:
        shown = image.open(file)
        shown.load()
        assert (shown.size, shown.getpixel((5, 5))) == ((300, 200), (0, 128, 128))


def test_a_short_body_of_a_file_without_a_validator() -> None:
    """The rest cannot be asked for, and the file is not taken for whole."""
    shelf = Shelf(b"0123456789", etag=None)
    shelf.change = lambda asked, answer: (answer[0], answer[1], answer[2][:5])
    with client_of(shelf) as client, pytest.raises(enclavia.RangesUnsupported, match="got 5"):
        client.open("/x")


def test_another_date_in_a_later_range() -> None:
    """Of a server that knows Range, and not If-Range."""
    shelf = Shelf(etag=None)
    sent = {b"Date": b"Fri, 27 Nov 2020 10:00:00 GMT"}
    shelf.dates = {b"Last-Modified": b"Fri, 27 Nov 2020 09:00:00 GMT", **sent}
    with client_of(shelf) as client, client.open("/x", read_ahead=0) as file:
        assert file.read(10) == BODY[:10]
        later = {b"Last-Modified": b"Fri, 27 Nov 2020 09:30:00 GMT", **sent}
        shelf.change = lambda _, answer: (answer[0], {**answer[1], **later}, answer[2])
        file.seek(200_000)
        with pytest.raises(enclavia.FileChanged):
            file.read(10)


def test_closed_by_another_thread_in_the_middle_of_a_read() -> None:
    """What is being read is read, and nothing but that."""
    shelf = Shelf()
    with client_of(shelf) as client:
        file = client.open("/x", read_ahead=0)
        shelf.before = lambda _: file.close()
        assert file.read(100_000) == BODY[:100_000]
        with pytest.raises(ValueError, match="closed"):
            file.read(1)
    blocks = Blocks(None)
    blocks.put(0, b"a")

    class Closing(int):
        """Closes the file where a block is found, before that is marked as used."""

        def __eq__(self, other: object) -> bool:
            blocks.clear()
            return int(self) == other

        __hash__ = int.__hash__

    assert blocks.get(Closing(0)) in (b"a", None)


def test_the_validator_is_that_of_the_answer_that_counts() -> None:
    """The first one was cut, and a workload without ranges has answered the second."""
    shelf = Shelf()
    shelf.cuts = [1000]

    def change(_: Asked, answer: Answer) -> Answer:
        return answer if len(shelf.asked) == 1 else (200, {}, b"other")

    shelf.change = change
    with client_of(shelf) as client, client.open("/x") as file:
        assert (file.read(), file.etag) == (b"other", None)
