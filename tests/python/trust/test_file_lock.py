"""The files of receipts and marks, where another process, or another user, is in the way."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from receipts_made import made
from support import HANG

import enclavia
from enclavia import Receipts
from enclavia._trust import file_lock, high_water
from enclavia._trust.mark import Mark


def mark(links: int) -> Mark:
    return Mark(uuid.UUID(int=5), tuple(bytes([n]) * 32 for n in range(links)), frozenset())


def keeper(kind: str, path: Path) -> Callable[[int], None]:
    """Writes to the file under its lock; each number once."""
    if kind == "receipts":
        file, one = Receipts(path), made()
        return lambda number: file.append(one)
    return lambda number: high_water.keep(str(path), mark(number))


@contextmanager
def forking(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Another process is forked each time that a file is synced, which is done under the lock. It
    lives until this ends."""
    reader, writer = os.pipe()
    children: list[int] = []
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        children.append(pid)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", synced)
        try:
            yield children
        finally:
            os.close(writer)
            os.close(reader)
            for pid in children:
                os.waitpid(pid, 0)


@pytest.mark.parametrize("kind", ["receipts", "mark"])
def test_a_child_forked_in_the_middle_does_not_keep_the_lock(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_lock, "LOCK_WAIT", 0.0)
    keep = keeper(kind, tmp_path / "a")
    with forking(monkeypatch) as children:
        for number in (1, 2, 3):
            keep(number)
        assert len(children) >= 3


def test_the_lock_of_a_mark_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_lock, "LOCK_WAIT", 0.0)
    path = str(tmp_path / "mark")
    with open(f"{path}.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused: list[str] = []

        def keep() -> None:
            with pytest.raises(enclavia.UpgradeChainError) as caught:
                high_water.keep(path, mark(1))
            refused.append(str(caught.value))

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        thread.join(HANG)
        assert "another process holds it" in refused[0]
    high_water.keep(path, mark(1))
    assert high_water.load(path) == mark(1)


@pytest.mark.parametrize("name", ["mark", "mark.lock"])
def test_a_pipe_in_the_place_of_a_marks_files(tmp_path: Path, name: str) -> None:
    """Whoever opens one to read from it waits until somebody writes to it."""
    os.mkfifo(tmp_path / name)
    ended: list[BaseException | None] = []

    def use() -> None:
        try:
            high_water.keep(str(tmp_path / "mark"), mark(1))
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(HANG)
    assert ended, "it waits for a writer"
    if name == "mark":
        assert "a regular file" in str(ended[0])


def test_a_folder_in_the_place_of_a_mark(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(enclavia.UpgradeChainError, match="a regular file"):
        high_water.load(str(tmp_path))
    assert len(os.listdir("/dev/fd")) == before


def test_the_lock_of_a_mark_is_made_where_it_belongs(tmp_path: Path) -> None:
    """Who may write to the folder could otherwise have a file made anywhere."""
    (tmp_path / "mark.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(enclavia.UpgradeChainError, match="cannot be kept"):
        high_water.keep(str(tmp_path / "mark"), mark(1))
    assert not (tmp_path / "elsewhere").exists()


def test_a_receipt_that_is_not_on_the_disk_is_not_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its channel is refused, so a receipt of it would say what was not."""
    file, one = Receipts(tmp_path / "a"), made()
    file.append(one)
    before = file.path.read_bytes()

    def broken(descriptor: int) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            file.append(one)
    assert file.path.read_bytes() == before
    file.append(one)
    assert file.path.read_bytes() == 2 * before
