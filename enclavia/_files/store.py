"""Where the bytes of a download are until they are whole: in a file of this call alone, or in
``FILE.part``, which a later call may go on with. Beside that, ``FILE.part.json`` says what its
bytes are a part of.

Only bytes that were on the disk when the note was written are gone on with: after a power cut a
file may be as long as before and have zeros at its end.

Decides whether bytes of an earlier run can be used. Calls: _core. Locks: none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from typing import Any, BinaryIO, Final, Protocol

from .. import _core
from .newfile import NewFile, sync_folder, write_all
from .source import Identity, Source
from .target import mode_kept

__all__ = ["FreshStore", "PartialStore", "Store"]

_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NOTE_MAX: Final = 64 * 1024
_NOTE_VERSION: Final = 2
_VALIDATOR: Final = re.compile(r"[\x20-\x7e]+")
_SYNC_STEP: Final = 32 * 1024 * 1024
_READ: Final = 1024 * 1024


def _user() -> int:
    """Whose files are ours. Pyodide has one user, and no effective one."""
    return os.geteuid() if hasattr(os, "geteuid") else os.getuid()


def _flock(descriptor: int, *how: str) -> None:
    """Nothing in a browser: a tab is one process, and its files are nobody else's. JupyterLite has
    a module fcntl that is empty."""
    if not _core.WEB:
        fcntl.flock(descriptor, sum(getattr(fcntl, name) for name in how))


class Store(Protocol):
    """A file that knows what its bytes are of. Its methods block, and raise OSError."""

    source: Source | None
    """What the bytes are a part of; None where they cannot be gone on with."""
    size: int
    """How many they are."""
    keeps: bool
    """Whether a later call finds what this one leaves."""
    unusable: int
    """How many bytes an earlier call left that cannot be gone on with: no note tells of what."""

    def begin(self, source: Source | None) -> None:
        """From the first byte, of something else than before."""

    def go_on(self, size: int) -> None:
        """Behind the first ``size`` of the bytes that are there."""

    def write(self, data: bytes) -> None: ...
    def digest(self) -> str:
        """SHA-256, in hex, of all bytes, those of earlier runs among them."""

    def discard(self) -> None:
        """These bytes are wrong: nothing of them is kept."""

    def commit(self) -> None:
        """The file is whole, on the disk, and has its name."""

    def close(self) -> None: ...


class FreshStore:
    """A file of this call only: it is removed if it is closed before it is committed."""

    keeps = False
    unusable = 0

    def __init__(self, name: str) -> None:
        self.source: Source | None = None
        self.size = 0
        self._file = NewFile(name)

    def begin(self, source: Source | None) -> None:
        self._file.truncate()
        self.size = 0
        self.source = source

    def go_on(self, size: int) -> None:
        _cut(self._file.file, size, self._file.name)
        self.size = size

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)

    def digest(self) -> str:
        return _digest(self._file.file)

    def discard(self) -> None:
        self.begin(None)

    def commit(self) -> None:
        self._file.commit(sync=True)

    def close(self) -> None:
        self._file.close()


class PartialStore:
    """A file that is kept when the download ends early, for a later call. It is locked, so that
    one download at a time writes to it."""

    keeps = True

    def __init__(self, name: str) -> None:
        self.name = name
        self._part = f"{name}.part"
        self._note = f"{name}.part.json"
        self._done = False
        self._doubted = False
        self._mode = mode_kept(name)
        self._file = self._opened()
        self.source: Source | None = None
        self.size = 0
        noted = self._noted()
        if noted is not None:
            self.source, self.size = noted
        self.unusable = 0 if noted is not None else os.fstat(self._file.fileno()).st_size
        self._synced = self.size

    def _opened(self) -> BinaryIO:
        try:
            descriptor = os.open(self._part, _OPEN, 0o666 if self._mode is None else 0o600)
        except OSError as error:
            error.filename = self._part
            raise
        file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115 - closed by close
        try:
            self._expect_own(descriptor)
            self._lock(descriptor)
            self._expect_part(descriptor)
        except BaseException:
            file.close()
            raise
        return file

    def _expect_own(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        own = found.st_uid == _user() and found.st_nlink == 1
        if not (stat.S_ISREG(found.st_mode) and own):
            raise OSError(
                errno.EEXIST,
                "expected a regular file of your own, got another one: it is left alone; move it "
                "away, or save under another name",
                self._part,
            )

    def _lock(self, descriptor: int) -> None:
        """Another call may have renamed the file to its final name after it was opened here and
        before it was locked. So the name is looked at again under the lock."""
        try:
            _flock(descriptor, "LOCK_EX", "LOCK_NB")
        except OSError:
            alone = False
        else:
            alone = self._names(descriptor)
        if not alone:
            raise BlockingIOError(
                errno.EAGAIN,
                "expected no other download to this file, got one beside this",
                self.name,
            )

    def _expect_part(self, descriptor: int) -> None:
        """Each part has a note from its first byte on. A file without one was not written by a
        download, and would be lost if this one began in it."""
        if os.fstat(descriptor).st_size == 0:
            return
        with contextlib.suppress(OSError):
            note = os.stat(self._note, follow_symlinks=False)
            if stat.S_ISREG(note.st_mode) and note.st_uid == _user():
                return
        raise FileExistsError(
            errno.EEXIST,
            f"expected the part of an earlier download, with {os.path.basename(self._note)} of "
            "your own beside it, got a file without: it is left alone; move it away, or save under "
            "another name",
            self._part,
        )

    def _names(self, descriptor: int) -> bool:
        """Whether the part's name is still that of the file that is open here."""
        try:
            there = os.stat(self._part, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(descriptor))

    def _is_named(self) -> bool:
        return not self._file.closed and self._names(self._file.fileno())

    def _expect_named(self) -> None:
        """Somebody may have removed the part, and another call begun one of that name since: that
        one is neither whole nor what was verified here."""
        if not self._is_named():
            raise FileNotFoundError(
                errno.ENOENT,
                "expected the file that was downloaded to, got none or another one of its name",
                self._part,
            )

    def _noted(self) -> tuple[Source, int] | None:
        """What is there, and how much of it. None where there is no note, or none of ours."""
        try:
            descriptor = os.open(
                self._note, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            )
            with open(descriptor, "rb") as file:
                owned = os.fstat(descriptor).st_uid == _user()
                content = json.loads(file.read(_NOTE_MAX))
            noted = _read_note(content)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        there = os.fstat(self._file.fileno()).st_size
        return noted if owned and 0 < noted[1] <= there else None

    def begin(self, source: Source | None) -> None:
        self._remove_note()
        _cut(self._file, 0, self._part)
        self.size = self._synced = 0
        self.source = source
        self._write_note()

    def _write_note(self) -> None:
        note = NewFile(self._note, 0o600)
        try:
            note.write(json.dumps(_note_of(self.source, self._synced)).encode())
            note.commit()
        finally:
            note.close()

    def _remove_note(self) -> None:
        """An old note must not be read as the note of the new bytes, not even after a power cut. So
        its removal is synced before the first new byte is written."""
        try:
            os.unlink(self._note)
        except FileNotFoundError:
            return
        except OSError as error:
            error.filename = self._note
            raise
        sync_folder(self._note)

    def go_on(self, size: int) -> None:
        if size < self._synced and self.source is not None:
            self._synced = size
            self._write_note()
        _cut(self._file, size, self._part)
        self.size = size

    def write(self, data: bytes) -> None:
        write_all(self._file, data, self._part)
        self.size += len(data)
        if self.size - self._synced >= _SYNC_STEP:
            self._checkpoint()

    def _checkpoint(self) -> None:
        if self.source is None:
            return
        self._sync(self._part)
        self._synced = self.size
        self._write_note()

    def _sync(self, name: str) -> None:
        """The system reports a failed write once: a second fsync may succeed although the bytes are
        not on the disk. So after a failure no note counts further bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._doubted = True
            error.filename = name
            raise

    def digest(self) -> str:
        return _digest(self._file)

    def discard(self) -> None:
        self.begin(None)

    def commit(self) -> None:
        """Under its lock, so that no other call finds the file between its two names."""
        try:
            if self._mode is not None:
                os.fchmod(self._file.fileno(), self._mode)
            self._sync(self.name)
            self._expect_named()
            os.replace(self._part, self.name)
        except OSError as error:
            error.filename, error.filename2 = self.name, None
            raise
        self._done = True
        with contextlib.suppress(OSError):
            os.unlink(self._note)
        sync_folder(self.name)

    def close(self) -> None:
        """Keeps what can be gone on with, and nothing else."""
        if not self._done:
            if not self._is_named():
                pass  # what has these names by now is another call's
            elif self.source is None or not self.size:
                for path in (self._note, self._part):  # the locked one last
                    with contextlib.suppress(OSError):
                        os.unlink(path)
            elif self._synced != self.size and not self._doubted:
                with contextlib.suppress(OSError):  # then less of it is gone on with
                    self._checkpoint()
        with contextlib.suppress(OSError, ValueError):
            # A process that was forked meanwhile has the descriptor, too, and would keep the lock.
            _flock(self._file.fileno(), "LOCK_UN")
        with contextlib.suppress(OSError):
            self._file.close()


def _cut(file: BinaryIO, size: int, name: str) -> None:
    """Only the first ``size`` bytes are kept, and writing goes on behind them."""
    try:
        file.seek(size)
        file.truncate()
    except OSError as error:
        error.filename = name
        raise


def _digest(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_READ):
        digest.update(piece)
    return digest.hexdigest()


def _note_of(source: Source | None, size: int) -> dict[str, Any]:
    """Without a source it says only that the part is a download's: nothing goes on with it."""
    if source is None:
        return {"version": _NOTE_VERSION, "size": size}
    identity = source.identity._asdict()
    return {"version": _NOTE_VERSION, **source._asdict(), "identity": identity, "size": size}


def _read_note(content: Any) -> tuple[Source, int]:  # noqa: ANN401 - JSON
    """Raises ValueError, TypeError or KeyError for what is no note."""
    if not isinstance(content, dict):
        raise TypeError("an object")
    kept = {name: content.pop(name) for name in ("version", "identity", "size")}
    said = kept["identity"]
    identity = Identity(**{**said, "pcrs": tuple(said["pcrs"])})
    source = Source(**content, identity=identity)
    of_source = (source.url, source.final_url, source.validator)
    of_identity = (identity.form, identity.root, identity.via, *identity.pcrs)
    if not all(isinstance(text, str) for text in (*of_source, *of_identity)):
        raise TypeError("text")
    numbers = (kept["size"], *(() if source.total is None else (source.total,)))
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TypeError("a number")
    if kept["version"] != _NOTE_VERSION or type(source.with_headers) is not bool:
        raise ValueError("another version")
    if not _VALIDATOR.fullmatch(source.validator):
        raise ValueError("validator")
    return source, kept["size"]
