"""What a body is written to. A file gets its name when it is whole: until then it has a random one,
in the same folder, that nobody can foresee.

Decides which files may be written, and when a file gets its name. Calls: nothing of the package.
Locks: none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self

from . import streams
from .exits import CANNOT_WRITE, Problem
from .signals import LEFTOVERS

__all__ = ["DirectOutput", "FileOutput", "Output", "StandardOutput", "cannot_write", "output_for"]

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Output(Protocol):
    """What a body is written to."""

    def write(self, data: bytes) -> None:
        """All of it, or a Problem; BrokenPipeError where nobody reads it."""

    def commit(self) -> None:
        """The body is whole."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


def cannot_write(name: str, error: OSError) -> Problem:
    """What the system said, with the file's name."""
    return Problem(f"{streams.visible(name)}: {error.strerror or error}", CANNOT_WRITE)


class _Pipe:
    """Bytes that are gone once they were written."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise cannot_write(self._name, error) from None

    def commit(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self


class StandardOutput(_Pipe):
    """The body on standard output, as the bytes it is."""

    def __init__(self) -> None:
        super().__init__(streams.stdout_bytes(), "standard output")

    def __exit__(self, *_: object) -> None:
        pass


class DirectOutput(_Pipe):
    """A device, a pipe or a terminal that has a name: /dev/null, /dev/fd/63."""

    def __init__(self, name: str) -> None:
        try:
            descriptor = os.open(name, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise cannot_write(name, error) from None
        # Buffered, since the write of a raw file may take a part.
        file = open(descriptor, "wb")  # noqa: SIM115 - closed by __exit__
        super().__init__(file, name)
        # Whoever can write to its folder may have put a link to a file in its place since it was
        # looked at. Nothing was made or cut by opening it.
        if not _takes_bytes(os.fstat(descriptor).st_mode):
            file.close()
            raise _refused(name, "a file that was a device or a pipe just before")

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


class FileOutput:
    """A file that is not there, or a regular one, which is replaced when the new one is whole. Its
    permissions are what the umask leaves of ``mode``."""

    def __init__(self, name: str, mode: int = 0o666) -> None:
        self.name = name
        folder, base = os.path.split(name)
        # The base is cut so that the name stays below what file systems take.
        start = os.fsdecode(os.fsencode(base)[:128])
        self._path = os.path.join(folder, f".{start}.{secrets.token_hex(8)}.tmp")
        self._done = False
        LEFTOVERS.add(self._path)
        try:
            self._file: BinaryIO = open(_opened(self._path, mode), "wb", buffering=0)  # noqa: SIM115
        except BaseException as error:
            LEFTOVERS.discard(self._path)
            if isinstance(error, OSError):
                raise cannot_write(name, error) from None
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            raise

    @classmethod
    @contextmanager
    def maybe(cls, name: str | None) -> Iterator[FileOutput | None]:
        """The file of this name; where none is wanted, nothing."""
        if name is None:
            yield None
            return
        check_target(name)
        with cls(name) as output:
            yield output

    def write(self, data: bytes) -> None:
        write_all(self._file, data, self.name)

    def truncate(self) -> None:
        """Forgets what was written."""
        try:
            self._file.seek(0)
            self._file.truncate()
        except OSError as error:
            raise cannot_write(self.name, error) from None

    def commit(self) -> None:
        try:
            self._file.close()
            os.replace(self._path, self.name)
        except OSError as error:
            raise cannot_write(self.name, error) from None
        self._done = True
        LEFTOVERS.discard(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        if not self._done:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            LEFTOVERS.discard(self._path)


def _opened(path: str, mode: int) -> int:
    return os.open(path, _NEW, mode)


def write_all(file: BinaryIO, data: bytes, name: str) -> None:
    """A raw file's write may take a part."""
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        raise cannot_write(name, error) from None


def check_target(name: str) -> bool:
    """Whether a file of this name can be made or replaced; False for a device or a pipe, which is
    written to as it is. A Problem where it can be neither.

    A symbolic link to a file is refused: following it would write where whoever made the link
    wants, and replacing it is not what its owner means.
    """
    try:
        there = os.stat(name, follow_symlinks=False)
        leads_to = os.stat(name) if stat.S_ISLNK(there.st_mode) else there
    except FileNotFoundError:
        if os.path.islink(name):
            raise _refused(name, "a symbolic link that leads nowhere") from None
        if not os.path.basename(name):
            raise _refused(name, "a folder") from None
        return True
    except OSError as error:
        raise cannot_write(name, error) from None
    if stat.S_ISDIR(leads_to.st_mode):
        raise _refused(name, "a folder")
    if not stat.S_ISREG(leads_to.st_mode):
        if not _takes_bytes(leads_to.st_mode):
            raise _refused(name, "a socket or a disk")
        return False
    if stat.S_ISLNK(there.st_mode):
        raise _refused(name, "a symbolic link: name the file that it leads to")
    if not os.access(name, os.W_OK):
        raise cannot_write(name, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    return True


def _takes_bytes(mode: int) -> bool:
    """Whether it is a device or a pipe, to which a body can be written as it comes."""
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _refused(name: str, got: str) -> Problem:
    return Problem(
        f"expected the name of a file to write, got {streams.visible(name)}, {got}", CANNOT_WRITE
    )


def output_for(name: str | None) -> Output:
    """Standard output for None and ``-``."""
    if name is None or name == "-":
        return StandardOutput()
    if check_target(name):
        return FileOutput(name)
    return DirectOutput(name)
