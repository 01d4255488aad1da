"""Receipts in a file: one JSON line for each verified document, on the disk before its channel is
used.

Any number of threads and processes may append to one file. Each appends whole lines, under a lock
of the file (flock(2)), and waits until they are on the disk (fsync(2)). A process that dies in the
middle of a line leaves it torn: the next one that appends ends it, so that no later line is lost
with it, and whoever reads finds a line that is no receipt.

Decides when a file is full, and what it is called then. Calls: _arguments, _public. Locks: the
file's, while a line is appended.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .._arguments import path_text, whole
from .._public import public
from .file_lock import lock_deadline, locked, sync_folder
from .receipts import Receipt

__all__ = ["Receipts"]

_MODE: Final = 0o600
_OPENED_AGAIN: Final = 100
"""How often the file may be another one by the time its lock is there."""
_LEAST: Final = 4096
_MAX_BYTES: Final = 64 * 1024 * 1024


@public
class Receipts:
    """Appends receipts to the file at ``path``, which is made with mode 0600.

    To be given as ``on_attestation``: then no byte goes over a channel whose receipt is not on the
    disk, and where it cannot be written the channel is refused. Usable from any thread and process
    at once, and picklable.

    ``max_bytes``: where a line would make the file longer, the file is renamed to ``path`` +
    ``.1``, ``.2`` and so on, in the order of time, and a new one is begun. ``None``: never.
    ``keep``: how many renamed files are kept; the oldest are removed. ``None``: all.
    """

    __slots__ = ("__weakref__", "_keep", "_max_bytes", "_path")

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int | None = _MAX_BYTES,
        keep: int | None = None,
    ) -> None:
        self._path = os.path.abspath(path_text("path", path, "text or a path"))
        self._max_bytes = None if max_bytes is None else whole("max_bytes", max_bytes, _LEAST)
        self._keep = None if keep is None else whole("keep", keep, 0)
        _alive.setdefault(self._settings, self)

    @property
    def path(self) -> Path:
        """Of the file that is appended to."""
        return Path(self._path)

    def files(self) -> list[Path]:
        """All there are now: those that were renamed, the oldest first, then ``path``."""
        found = [Path(f"{self._path}.{number}") for number in self._numbers()]
        return [*found, self.path] if self.path.exists() else found

    def append(self, receipt: Receipt) -> None:
        """Returns once the receipt is on the disk. Raises OSError where it cannot be written:
        nothing of it is left then, or a line that is no receipt. TimeoutError where another process
        holds the file's lock for more than 10 s."""
        if not isinstance(receipt, Receipt):
            raise TypeError(f"receipt: expected a Receipt, got {type(receipt).__name__}")
        self._append(f"{receipt}\n".encode("ascii"))

    __call__ = append

    # -- inside -------------------------------------------------------------------------------

    def _append(self, line: bytes) -> None:
        with self._locked() as descriptor:
            size = os.fstat(descriptor).st_size
            if self._max_bytes is None or not size or size + len(line) <= self._max_bytes:
                self._write(descriptor, size, line)
                return
            self._rename()
        with self._locked() as descriptor:  # perhaps another process has begun it meanwhile
            self._write(descriptor, os.fstat(descriptor).st_size, line)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file at the path, open and locked. Who waited for the lock of a file that was renamed
        meanwhile begins again."""
        deadline = lock_deadline()
        for _ in range(_OPENED_AGAIN):
            descriptor = self._open()
            try:
                with locked(descriptor, deadline, self._path):
                    if self._is_at_path(descriptor):
                        yield descriptor
                        return
            finally:
                os.close(descriptor)
        raise OSError(errno.EBUSY, "the file was replaced again and again", self._path)

    def _open(self) -> int:
        # A link is not followed: who may write to the folder would choose what is appended to. A
        # pipe is not waited for.
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags)
        except FileNotFoundError:
            descriptor = os.open(self._path, flags | os.O_CREAT, _MODE)
            sync_folder(self._path)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "expected a regular file, got another kind", self._path)
        return descriptor

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(
                os.fstat(descriptor), os.stat(self._path, follow_symlinks=False)
            )
        except FileNotFoundError:
            return False

    def _write(self, descriptor: int, size: int, line: bytes) -> None:
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
        data = memoryview(b"\n" + line if torn else line)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        except BaseException:
            # The caller is told that the receipt was not written, so nothing of it may be left.
            # Nobody else can have written behind it: the lock.
            _cut(descriptor, size)
            raise

    def _numbers(self) -> list[int]:
        folder, name = os.path.split(self._path)
        pattern = re.compile(re.escape(name) + r"\.([1-9][0-9]{0,8})", re.ASCII)
        matches = map(pattern.fullmatch, os.listdir(folder))
        return sorted(int(match[1]) for match in matches if match)

    def _rename(self) -> None:
        """Under the lock of the file at the path, so that nobody else renames it."""
        numbers = self._numbers()
        number = (numbers[-1] if numbers else 0) + 1
        os.rename(self._path, f"{self._path}.{number}")
        if self._keep is not None:
            numbers.append(number)
            for old in numbers[: max(0, len(numbers) - self._keep)]:
                Path(f"{self._path}.{old}").unlink(missing_ok=True)
        sync_folder(self._path)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Receipts):
            return NotImplemented
        return self._settings == other._settings

    def __hash__(self) -> int:
        return hash(self._settings)

    @property
    def _settings(self) -> tuple[str, int | None, int | None]:
        return self._path, self._max_bytes, self._keep

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, self._settings

    def __repr__(self) -> str:
        return f"Receipts({self._path!r})"


# Copies of a client share channels where their functions are the very same objects. So what is
# unpickled is the object that there is already, where there is one of the same settings.
_alive: weakref.WeakValueDictionary[tuple[object, ...], Receipts] = weakref.WeakValueDictionary()


def _restore(path: str, max_bytes: int | None, keep: int | None) -> Receipts:
    made = Receipts(path, max_bytes=max_bytes, keep=keep)
    return _alive.setdefault(made._settings, made)


def _cut(descriptor: int, size: int) -> None:
    try:
        os.ftruncate(descriptor, size)
    except OSError:
        return  # what was written stays; the next line begins behind its end
