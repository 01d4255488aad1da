"""``Receipts``: whole lines, on the disk, from any number of threads and processes at once."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import in_child
from receipts_made import made
from support import together

import enclavia
from enclavia import Receipt, Receipts
from enclavia._trust import file_lock


@pytest.fixture(scope="module")
def one() -> Receipt:
    return made()


def numbered(one: Receipt, number: int | str) -> Receipt:
    """The same document in another receipt."""
    assert one._facts is not None
    return Receipt._of(one._facts._replace(enclave=f"wss://enclave-{number}.example"))


def read(path: Path) -> list[Receipt]:
    return [Receipt.from_json(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_lines_and_mode(tmp_path: Path, one: Receipt) -> None:
    file = Receipts(tmp_path / "receipts.jsonl")
    assert file.files() == []
    file.append(one)
    file(numbered(one, 2))
    assert read(file.path) == [one, numbered(one, 2)]
    assert file.path.read_bytes().endswith(b"\n")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert file.files() == [file.path]


def test_it_is_on_the_disk_before_it_returns(
    tmp_path: Path, one: Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, int]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((stat.S_ISDIR(found.st_mode), found.st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    Receipts(tmp_path / "a").append(one)
    line = len(str(one)) + 1
    assert [is_folder for is_folder, _ in synced] == [True, False]
    assert synced[1] == (False, line)  # after the write, with the lock held


def test_a_torn_line_takes_no_other_with_it(tmp_path: Path, one: Receipt) -> None:
    file = Receipts(tmp_path / "a")
    for length in (1, 20, len(str(one)) // 2, len(str(one)) - 1, len(str(one))):
        torn = str(one).encode()[:length]
        file.path.write_bytes(f"{one}\n".encode() + torn)
        file.append(numbered(one, length))
        lines = file.path.read_bytes().splitlines()
        assert lines[1] == torn
        assert Receipt.from_json(lines[0]) == one
        assert Receipt.from_json(lines[2]) == numbered(one, length)


@pytest.mark.parametrize("taken", [0, 1, 1000])
def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, one: Receipt, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    file = Receipts(tmp_path / "a")
    file.append(one)
    before = file.path.read_bytes()
    write = os.write
    left = [taken]

    def full(descriptor: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(descriptor, data[: left[0]])
        left[0] -= count
        return count

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            file.append(numbered(one, 2))
        assert file.path.read_bytes() == before
        # Where it cannot be cut either, what is there is no receipt, and the next one is whole.
        left[0] = taken
        patched.setattr(os, "ftruncate", full)
        with pytest.raises(OSError, match="No space"):
            file.append(numbered(one, 2))
    file.append(numbered(one, 3))
    assert Receipt.from_json(file.path.read_bytes().splitlines()[-1]) == numbered(one, 3)


def test_short_writes(tmp_path: Path, one: Receipt, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:100]))
    file = Receipts(tmp_path / "a")
    file.append(one)
    assert read(file.path) == [one]


def test_what_is_not_written_to(tmp_path: Path, one: Receipt) -> None:
    target = tmp_path / "target"
    target.write_text("")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        Receipts(tmp_path / "link").append(one)
    assert target.read_text() == ""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="regular file"):
        Receipts(tmp_path / "pipe").append(one)
    with pytest.raises(IsADirectoryError):
        Receipts(tmp_path).append(one)
    with pytest.raises(FileNotFoundError):
        Receipts(tmp_path / "absent" / "a").append(one)


def test_full_files_are_renamed(tmp_path: Path, one: Receipt) -> None:
    length = len(str(numbered(one, 10))) + 1
    file = Receipts(tmp_path / "a", max_bytes=2 * length + 10)
    for number in range(10, 17):
        file.append(numbered(one, number))
    assert [path.name for path in file.files()] == ["a.1", "a.2", "a.3", "a"]
    found = [receipt for path in file.files() for receipt in read(path)]
    assert found == [numbered(one, number) for number in range(10, 17)]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in file.files())
    (tmp_path / "a.x").touch()
    (tmp_path / "a.01").touch()
    Receipts(tmp_path / "a", max_bytes=length, keep=2).append(one)
    assert [path.name for path in file.files()] == ["a.3", "a.4", "a"]
    Receipts(tmp_path / "a", max_bytes=length, keep=0).append(one)
    assert [path.name for path in file.files()] == ["a"]


def test_a_line_longer_than_a_file_may_be(tmp_path: Path, one: Receipt) -> None:
    file = Receipts(tmp_path / "a", max_bytes=4096)
    assert len(str(one)) > 4096
    for number in range(3):
        file.append(numbered(one, number))
    assert [read(path) for path in file.files()] == [[numbered(one, n)] for n in range(3)]


def test_the_lock_is_not_waited_for_without_end(
    tmp_path: Path, one: Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_lock, "LOCK_WAIT", 0.0)
    file = Receipts(tmp_path / "a")
    file.append(one)
    with file.path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process holds it"):
            file.append(one)
    file.append(one)


def test_whoever_waited_for_a_file_that_was_renamed(
    tmp_path: Path, one: Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes to the one that is at the path by then."""
    file = Receipts(tmp_path / "a")
    file.append(one)
    lock = file_lock._lock
    renamed = []

    def after_another(descriptor: int, deadline: float, path: str) -> None:
        if not renamed:
            renamed.append(os.rename(path, f"{path}.1"))
        lock(descriptor, deadline, path)

    monkeypatch.setattr(file_lock, "_lock", after_another)
    file.append(numbered(one, 2))
    assert [read(path) for path in file.files()] == [[one], [numbered(one, 2)]]


WRITERS, EACH = 4, 40


@pytest.mark.parametrize("how", ["threads", "processes"])
def test_many_at_once(tmp_path: Path, one: Receipt, how: str) -> None:
    """While files are renamed all the time: each line is whole, and there once."""
    path = tmp_path / "a"
    file = Receipts(path, max_bytes=3 * len(str(one)))
    statuses: list[int] = []

    def run(writer: int) -> None:
        def write() -> None:
            for number in range(EACH):
                file.append(numbered(one, f"{writer}-{number}"))

        if how == "processes":
            statuses.append(in_child(write))
        else:
            write()
            statuses.append(0)

    together(*(functools.partial(run, n) for n in range(WRITERS)))
    assert statuses == [0] * WRITERS
    found = [each.enclave for file in Receipts(path).files() for each in read(file)]
    assert len(found) == WRITERS * EACH
    assert set(found) == {
        f"wss://enclave-{w}-{n}.example" for w in range(WRITERS) for n in range(EACH)
    }
    for writer in range(WRITERS):  # and each writer's in their order
        own = [name for name in found if name.startswith(f"wss://enclave-{writer}-")]
        assert own == [f"wss://enclave-{writer}-{n}.example" for n in range(EACH)]
    assert len(Receipts(path).files()) > 10


def test_a_forked_child_appends_to_the_same_file(tmp_path: Path, one: Receipt) -> None:
    file = Receipts(tmp_path / "a")
    file.append(one)
    assert in_child(lambda: file.append(numbered(one, 2))) == 0
    file.append(numbered(one, 3))
    assert read(file.path) == [one, numbered(one, 2), numbered(one, 3)]


def test_copies_are_the_same(tmp_path: Path) -> None:
    file = Receipts(tmp_path / "a", max_bytes=None, keep=3)
    again = pickle.loads(pickle.dumps(file))
    assert again == file
    assert hash(again) == hash(file)
    assert again != Receipts(tmp_path / "a")
    assert file != str(file.path)
    assert repr(file) == f"Receipts({str(file.path)!r})"
    assert file.path == enclavia.Receipts(os.path.relpath(file.path)).path
