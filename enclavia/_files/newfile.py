"""A file that gets its name when it is whole: until then it has a random one, in the same folder,
that nobody can foresee.

Decides which permissions it has. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import BinaryIO, Final

from .target import mode_kept

__all__ = ["UNFINISHED", "NewFile", "sync_folder", "write_all"]

UNFINISHED: Final[set[str]] = set()
"""Files that have no last name yet, for a program that is ended in the middle."""

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE: Final = 0o600


class NewFile:
    """Takes the place of a file, or makes one. What it replaces keeps its permissions; those of a
    new file are what the umask leaves of ``mode``. Every method raises OSError, with a name."""

    def __init__(self, name: str, mode: int = 0o666) -> None:
        self.name = name
        self._mode = mode_kept(name)
        folder, base = os.path.split(name)
        # The base is cut so that the name stays below what file systems take.
        start = os.fsdecode(os.fsencode(base)[:128])
        self._path = os.path.join(folder, f".{start}.{secrets.token_hex(8)}.tmp")
        self._done = False
        UNFINISHED.add(self._path)
        try:
            made = os.open(self._path, _NEW, mode if self._mode is None else _PRIVATE)
            self.file: BinaryIO = open(made, "r+b", buffering=0)  # noqa: SIM115 - closed by close
        except BaseException as error:
            if not isinstance(error, OSError):
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
            UNFINISHED.discard(self._path)
            if isinstance(error, OSError):
                error.filename = name
            raise

    def write(self, data: bytes) -> None:
        write_all(self.file, data, self.name)

    def truncate(self) -> None:
        """Forgets what was written."""
        try:
            self.file.seek(0)
            self.file.truncate()
        except OSError as error:
            error.filename = self.name
            raise

    def commit(self, sync: bool = False) -> None:
        """``sync``: its bytes are on the disk before it has its name, and the name before this
        returns."""
        try:
            if self._mode is not None:
                os.fchmod(self.file.fileno(), self._mode)
            if sync:
                os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self._path, self.name)
        except OSError as error:
            error.filename, error.filename2 = self.name, None
            raise
        self._done = True
        UNFINISHED.discard(self._path)
        if sync:
            sync_folder(self.name)

    def close(self) -> None:
        """Removes it where it was not committed."""
        with contextlib.suppress(OSError):
            self.file.close()
        if not self._done:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            UNFINISHED.discard(self._path)


def write_all(file: BinaryIO, data: bytes, name: str) -> None:
    """A raw file's write may take a part."""
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        error.filename = name
        raise


def sync_folder(name: str) -> None:
    """Has the name of a file on the disk. Some file systems cannot do that for a folder."""
    with contextlib.suppress(OSError):
        folder = os.open(os.path.dirname(name) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
