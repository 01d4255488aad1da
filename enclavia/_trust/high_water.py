"""Where a high-water mark is kept: in a file, or by somebody's function.

Decides how a mark is written so that it is whole after a crash. Calls: _arguments, _errors. Locks:
none of the process; a file's neighbour is locked while the mark is compared and replaced.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import Final

from .._arguments import path_text
from .._errors import EnclaviaError
from .file_lock import lock_deadline, locked, sync_folder
from .mark import Mark
from .served import failed

__all__ = ["HighWater", "checked_high_water", "keep", "load"]

HighWater = str | Callable[[str | None], str | None] | None
"""The path of a file, or a function: called with None it gives the mark or None, called with a mark
it keeps that."""

_MOST: Final = 1024 * 1024


def checked_high_water(value: object) -> HighWater:
    if value is None or callable(value):
        return value
    expected = "the path of a file, a function or None"
    return os.path.abspath(path_text("high_water", value, expected))


def load(kept: HighWater) -> Mark | None:
    """None where nothing was kept yet. Raises UpgradeChainError where the mark cannot be read: a
    chain is not taken without the mark that it was to be compared with."""
    if kept is None:
        return None
    if callable(kept):
        return _asked(kept, None)
    try:
        text = _read(kept)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failed(f"the high-water mark cannot be read: {kept}: {error.strerror}") from error
    return Mark.parse(text)


def keep(kept: HighWater, mark: Mark) -> bool:
    """False, and nothing is changed, where this mark does not extend the one that is kept by now:
    since it was loaded, another process may have kept a longer one. Raises UpgradeChainError where
    it cannot be kept."""
    if kept is None:
        return True
    if callable(kept):
        _asked(kept, mark.text())
        return True
    try:
        with _locked(kept):
            now = load(kept)
            if now is not None and not now.is_extended_by(mark):
                return False
            if now != mark:
                _replace(kept, mark.text().encode())
            return True
    except OSError as error:
        raise failed(f"the high-water mark cannot be kept: {kept}: {error.strerror}") from error


def _asked(function: Callable[[str | None], str | None], mark: str | None) -> Mark | None:
    try:
        answer = function(mark)
    except EnclaviaError:
        raise
    except Exception as error:
        what = "given" if mark is None else "kept"
        raise failed(
            f"the high-water mark cannot be {what}: the function raised {type(error).__name__}"
        ) from error
    if mark is not None or answer is None:
        return None
    if not isinstance(answer, str):
        raise failed(
            f"high_water: expected a function that gives text or None, got {type(answer).__name__}"
        )
    return Mark.parse(answer)


def _read(path: str) -> bytes:
    # A pipe is not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise failed(
                f"the high-water mark cannot be read: {path}: expected a regular file, got another "
                "kind"
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(_MOST + 1)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """For as long as this process compares and replaces. Ends with the process too."""
    name = f"{path}.lock"
    # A link is not followed: who may write to the folder would choose what is made where.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600)
    try:
        with locked(descriptor, lock_deadline(), name):
            yield
    finally:
        os.close(descriptor)


def _replace(path: str, content: bytes) -> None:
    """Whoever looks, also after a crash, finds the old content or the new one, whole."""
    folder = os.path.dirname(path)
    descriptor, name = tempfile.mkstemp(prefix=".high-water-", dir=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path)
