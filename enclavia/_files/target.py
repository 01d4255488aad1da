"""Which names can be written to: a file that is not there yet, or a regular one.

Decides which files may be replaced. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

__all__ = ["check_target", "mode_kept", "refused"]

_EXPECTED: Final = "expected the name of a file to write, got"


def refused(number: int, name: str, got: str) -> OSError:
    return OSError(number, f"{_EXPECTED} {got}", name)


def check_target(name: str) -> bool:
    """Whether a file of this name can be made or replaced; False for a device or a pipe, which
    can be written to as it is, but not replaced. An OSError where it can be neither.

    A symbolic link to a file is refused: following it would write where whoever made the link
    wants, and replacing it is not what its owner means.
    """
    try:
        there = os.stat(name, follow_symlinks=False)
        leads_to = os.stat(name) if stat.S_ISLNK(there.st_mode) else there
    except FileNotFoundError:
        if os.path.islink(name):
            raise refused(errno.ELOOP, name, "a symbolic link that leads nowhere") from None
        if not os.path.basename(name):
            raise refused(errno.EISDIR, name, "a folder") from None
        return True
    if stat.S_ISDIR(leads_to.st_mode):
        raise refused(errno.EISDIR, name, "a folder")
    if not stat.S_ISREG(leads_to.st_mode):
        if not (stat.S_ISCHR(leads_to.st_mode) or stat.S_ISFIFO(leads_to.st_mode)):
            raise refused(errno.EINVAL, name, "a socket or a disk")
        return False
    if stat.S_ISLNK(there.st_mode):
        raise refused(errno.ELOOP, name, "a symbolic link: name the file that it leads to")
    if not os.access(name, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return True


def mode_kept(name: str) -> int | None:
    """The permissions of the file that is going to be replaced; None where there is none."""
    try:
        return stat.S_IMODE(os.stat(name, follow_symlinks=False).st_mode) & 0o777
    except OSError:
        return None
