"""The exit codes of docs/cli.md, and the one of each error.

Decides which exit code each error has. Calls: nothing of the package but what is public. Locks:
none.
"""

from __future__ import annotations

from typing import Final

import httpx2

import enclavia

__all__ = [
    "BROKEN_PIPE",
    "CANNOT_WRITE",
    "HTTP_STATUS",
    "INTERNAL",
    "OK",
    "REFUSED",
    "UNREACHABLE",
    "USAGE",
    "Problem",
    "exit_code",
]

OK: Final = 0
REFUSED: Final = 1
UNREACHABLE: Final = 2
HTTP_STATUS: Final = 22  # as curl's for --fail
USAGE: Final = 64  # EX_USAGE of sysexits.h
INTERNAL: Final = 70  # EX_SOFTWARE
CANNOT_WRITE: Final = 73  # EX_CANTCREAT
BROKEN_PIPE: Final = 141  # 128 + SIGPIPE, as shells show a program that SIGPIPE has ended


class Problem(Exception):
    """Something that the program itself has to say, and the exit code that goes with it."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


_OF_THE_CALLER = (
    enclavia.ForeignURL,
    enclavia.InvalidRequest,
    enclavia.InvalidURL,
    httpx2.InvalidURL,
)
_OF_THE_IDENTITY = (
    enclavia.AttestationError,
    enclavia.SigstoreError,
    enclavia.UpgradeChainError,
)


def exit_code(error: BaseException) -> int:
    """Of an error of the package or of httpx2, or of a :class:`Problem`."""
    if isinstance(error, Problem):
        return error.code
    if isinstance(error, enclavia.AttestationRefused) and isinstance(error.__cause__, OSError):
        return CANNOT_WRITE  # the file of --receipts
    if isinstance(error, enclavia.DownloadError) and error.status is not None:
        return HTTP_STATUS
    if isinstance(error, _OF_THE_IDENTITY):
        return REFUSED
    if isinstance(error, _OF_THE_CALLER):
        return USAGE
    if isinstance(error, enclavia.InternalError | enclavia.StateError):
        return INTERNAL
    return UNREACHABLE
