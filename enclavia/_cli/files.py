"""What a body is written to. A file gets its name when it is whole: until then it has a random one,
in the same folder, that nobody can foresee.

Decides what is written to as it is: devices and pipes. Calls: _files. Locks: none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from .._files.newfile import NewFile
from .._files.target import check_target as _check_target
from .._files.target import refused
from . import streams
from .exits import CANNOT_WRITE, Problem

__all__ = ["DirectOutput", "FileOutput", "Output", "StandardOutput", "cannot_write", "output_for"]


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
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
            file.close()
            got = "a file that was a device or a pipe just before"
            raise cannot_write(name, refused(errno.EINVAL, name, got))

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


class FileOutput:
    """A file that is not there, or a regular one, which is replaced when the new one is whole."""

    def __init__(self, name: str, mode: int = 0o666) -> None:
        self.name = name
        with _problems(name):
            self._file = NewFile(name, mode)

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
        with _problems(self.name):
            self._file.write(data)

    def commit(self) -> None:
        with _problems(self.name):
            self._file.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def _problems(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(name, error) from None


def check_target(name: str) -> bool:
    """As that of ``enclavia._files``, with a Problem where the file cannot be written."""
    with _problems(name):
        return _check_target(name)


def output_for(name: str | None) -> Output:
    """Standard output for None and ``-``."""
    if name is None or name == "-":
        return StandardOutput()
    if check_target(name):
        return FileOutput(name)
    return DirectOutput(name)
