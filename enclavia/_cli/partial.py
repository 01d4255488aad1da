"""A download that a later run may resume (``--continue``): ``FILE.part``, and beside it
``FILE.part.json``, which says what its bytes are a part of.

Decides whether bytes of an earlier run can be used. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
from typing import BinaryIO, Final, NamedTuple, Self

from .exits import CANNOT_WRITE, Problem
from .files import FileOutput, cannot_write, write_all
from .streams import visible

__all__ = ["PartialOutput", "Source"]

_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NOTE_MAX: Final = 64 * 1024
_VALIDATOR: Final = re.compile(r"[\x20-\x7e]+")


class Source(NamedTuple):
    """What bytes are a part of. Two parts may be joined where all of this is the same: what was
    asked for, where redirects led, which representation it was (a strong validator), and which
    image sent it."""

    url: str
    final_url: str
    with_headers: bool
    """Whether the request had headers of the user's. Their values may be secret, so not even a
    digest of them is kept."""
    validator: str
    total: int | None
    pcrs: tuple[str, ...]


class PartialOutput:
    """Kept where the download ends early. ``source``: what the bytes that are there already are
    of, or None; ``size``: how many they are."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._part = f"{name}.part"
        self._note = f"{name}.part.json"
        self._done = False
        self._file = self._opened()
        self.source = self._noted()
        self.size = os.fstat(self._file.fileno()).st_size if self.source else 0
        if not self.size:
            self.source = None

    def _opened(self) -> BinaryIO:
        try:
            descriptor = os.open(self._part, _OPEN, 0o666)
        except OSError as error:
            raise cannot_write(self._part, error) from None
        file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115 - closed by __exit__
        try:
            self._expect_own(descriptor)
            self._lock(descriptor)
        except BaseException:
            file.close()
            raise
        return file

    def _expect_own(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        own = found.st_uid == os.geteuid() and found.st_nlink == 1
        if not (stat.S_ISREG(found.st_mode) and own):
            raise Problem(
                f"expected a regular file of your own, got {visible(self._part)}: remove it",
                CANNOT_WRITE,
            )

    def _lock(self, descriptor: int) -> None:
        """A run that ended between our opening and our locking has given the file its last name."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = os.path.samestat(os.stat(self._part), os.fstat(descriptor))
        except OSError:
            alone = False
        if not alone:
            raise Problem(
                f"expected no other download to {visible(self.name)}, got one beside this",
                CANNOT_WRITE,
            )

    def _noted(self) -> Source | None:
        """None where there is no note, or one that is not of this program."""
        try:
            descriptor = os.open(
                self._note, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            )
            with open(descriptor, "rb") as file:
                owned = os.fstat(descriptor).st_uid == os.geteuid()
                content = json.loads(file.read(_NOTE_MAX))
            source = Source(**{**content, "pcrs": tuple(content["pcrs"])})
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        usable = source.total is None or type(source.total) is int
        usable = usable and isinstance(source.validator, str)
        return source if owned and usable and _VALIDATOR.fullmatch(source.validator) else None

    def begin(self, source: Source | None) -> None:
        """From the first byte, of something else than before."""
        try:
            self._file.seek(0)
            self._file.truncate()
        except OSError as error:
            raise cannot_write(self._part, error) from None
        self.size = 0
        self.source = source
        if source is None:
            self._remove_note()
            return
        with FileOutput(self._note, 0o600) as note:
            note.write(json.dumps(source._asdict()).encode())
            note.commit()

    def _remove_note(self) -> None:
        """Left there, it would be taken for the note of the bytes that are written now."""
        try:
            os.unlink(self._note)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise cannot_write(self._note, error) from None

    def go_on(self) -> None:
        """Behind the bytes that are there."""
        self._file.seek(self.size)

    def write(self, data: bytes) -> None:
        write_all(self._file, data, self._part)
        self.size += len(data)

    def commit(self) -> None:
        """Under its lock, so that no other run finds the file between its two names."""
        try:
            os.replace(self._part, self.name)
        except OSError as error:
            raise cannot_write(self.name, error) from None
        self._done = True
        with contextlib.suppress(OSError):
            os.unlink(self._note)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keeps what can be gone on with, and nothing else."""
        if not self._done and (self.source is None or not self.size):
            for path in (self._part, self._note):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        with contextlib.suppress(OSError):
            self._file.close()
