"""Where a forwarder's sockets are, and the checks of their folder.

Whoever can write to the folder of a socket can put another one in its place. So the folder has to
be a real one, of the user's own, that nobody else can enter.

Decides whose sockets are safe to use. Calls: _arguments, _errors. Locks: none.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

from .._arguments import path_text, value_shown
from .._errors import ConnectError
from .url import EnclaveURL

__all__ = [
    "CONTROL",
    "HTTP",
    "PATH_MAX",
    "Via",
    "check_folder",
    "check_socket",
    "default_path",
    "identity_suffix",
    "socket_path",
]

CONTROL: Final = ".control"
HTTP: Final = ".http"
_LONGEST_SUFFIX: Final = 13
PATH_MAX: Final = 107
"""Bytes of a socket's path (``sun_path`` of unix(7), without its NUL)."""


class Via(tuple[str, bool]):
    """``via=``: the path of a forwarder's socket, and whether its process may be root's."""

    __slots__ = ()

    def __new__(cls, path: str, root: bool = False) -> Via:
        return super().__new__(cls, (path, root))

    def __getnewargs__(self) -> tuple[str, bool]:
        return self[0], self[1]

    @property
    def path(self) -> str:
        return self[0]

    @property
    def owners(self) -> frozenset[int]:
        own = os.geteuid()
        return frozenset((own, 0)) if self[1] else frozenset((own,))

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def __repr__(self) -> str:
        return f"Via({self.path!r}, root={self[1]})"

    @classmethod
    def parse(cls, text: object, url: EnclaveURL) -> Via:
        """``unix:PATH``, or ``unix:`` for the place that a forwarder of ``url`` takes by itself;
        either with ``?owner=root`` where the forwarder may be one that root runs."""
        if not isinstance(text, str):
            raise TypeError(f"via: expected 'unix:PATH' or None, got {type(text).__name__}")
        scheme, colon, rest = text.partition(":")
        if scheme != "unix" or not colon:
            raise ValueError(f"via: expected 'unix:PATH' or 'unix:', got {value_shown(text)}")
        path, mark, query = rest.partition("?")
        root = False
        if mark:
            if parse_qsl(query, keep_blank_values=True) != [("owner", "root")]:
                raise ValueError(
                    f"via: expected nothing or owner=root after '?', got {value_shown(query)}"
                )
            root = True
        if path.startswith("//"):
            path = "/" + path.lstrip("/")
        if not path:
            return cls(default_path(url), root)
        return cls(socket_path("via", path), root)


def socket_path(name: str, path: object) -> str:
    """A path that a socket, and those beside it, can have."""
    text = path_text(name, path, "the path of a Unix socket")
    if not os.path.isabs(text):
        raise ValueError(f"{name}: expected an absolute path, got {value_shown(text)}")
    if "?" in text:  # a client that is given such a path would take what follows for an option
        raise ValueError(
            f"{name}: expected a path without '?', after which via= has its options, got "
            f"{value_shown(text)}"
        )
    length = len(os.fsencode(text)) + _LONGEST_SUFFIX
    if length > PATH_MAX:
        raise ValueError(
            f"{name}: expected a path of at most {PATH_MAX - _LONGEST_SUFFIX} bytes (a Unix "
            f"socket's has at most {PATH_MAX}, and those beside it need {_LONGEST_SUFFIX} more), "
            f"got {length - _LONGEST_SUFFIX}: choose a shorter one"
        )
    return text


def identity_suffix(pcrs: bytes) -> str:
    """Of the socket that leads only to channels of one identity: 12 hexadecimal digits."""
    return "." + hashlib.sha256(pcrs).hexdigest()[:12]


def default_path(url: EnclaveURL) -> str:
    """``enclavia/NAME.sock`` in the user's runtime directory: ``XDG_RUNTIME_DIR`` (XDG Base
    Directory Specification), or a folder of the user's own in the temporary directory."""
    name = re.sub(r"[^0-9A-Za-z.-]", "_", url.host)[:30]
    digest = hashlib.sha256(str(url).encode()).hexdigest()[:12]
    return socket_path("socket", str(_default_folder() / f"{name}-{digest}.sock"))


def _default_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):
        return Path(runtime) / "enclavia"
    return Path(_temporary_folder()) / f"enclavia-{os.geteuid()}"


def _temporary_folder() -> str:
    """As the module ``tempfile`` finds it, except that nothing is written to try it: while a disk
    is full, a client would look for its forwarder in another folder than that one listens in."""
    named = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    for folder in (*named, "/tmp", "/var/tmp"):  # noqa: S108 - made with mode 0700, and checked
        if folder and os.path.isabs(folder) and os.path.isdir(folder):
            return folder
    return "/tmp"  # noqa: S108 - as above


def check_folder(path: str, owners: frozenset[int]) -> None:
    """Raises ConnectError where anybody else than ``owners`` could replace the socket at ``path``.

    The folder itself is looked at, and no link to it followed."""
    folder = os.path.dirname(path)
    try:
        found = os.lstat(folder)
    except OSError as error:
        raise ConnectError(
            f"expected the folder {folder} of a forwarder's socket, got: {error.strerror}"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "something else"
        raise _unsafe(f"expected {folder} to be a folder, got {kind}: {_elsewhere(folder)}")
    if found.st_uid not in owners:
        raise _unsafe(
            f"expected {folder} to belong to user {_names(owners)}, got user {found.st_uid}: "
            f"{_elsewhere(folder)}"
        )
    # A folder of root's that others can only look into is one where root alone can replace things.
    of_root = found.st_uid == 0 != os.geteuid()
    if found.st_mode & (0o022 if of_root else 0o077):
        wanted = "write to it (mode 0755)" if of_root else "have access to it (mode 0700)"
        raise _unsafe(
            f"expected {folder} to be a folder whose owner alone may {wanted}, got mode "
            f"{stat.S_IMODE(found.st_mode):04o}: {_remedy(folder, found)}"
        )


def _remedy(folder: str, found: os.stat_result) -> str:
    """Whoever runs as root could close a folder of the system's to everybody, and others one that
    they share: only of the package's own folder, and of one that nobody shares, is that advised."""
    default = str(_default_folder())
    own = os.geteuid()
    shared = found.st_mode & (stat.S_ISVTX | stat.S_IWGRP | stat.S_IWOTH)
    home = os.path.realpath(folder) == os.path.realpath(os.path.expanduser("~"))
    if folder == default or not (own == 0 or found.st_uid != own or shared or home):
        return f"chmod 700 it, or {_elsewhere(folder)}"
    return _elsewhere(folder)


def _elsewhere(folder: str) -> str:
    """What to use in place of ``folder``, which is left as it is."""
    default = str(_default_folder())
    if folder == default:
        return "use another folder of your own that has mode 0700"
    return (
        f"use a folder of your own that has mode 0700, or name none: {default} is what a forwarder "
        "without socket= (--socket) takes, and where via='unix:' looks"
    )


def check_socket(path: str, owners: frozenset[int]) -> None:
    """Raises ConnectError where what is at ``path`` is no socket of one of ``owners``."""
    try:
        found = os.lstat(path)
    except FileNotFoundError as error:
        raise ConnectError(
            f"expected a forwarder that listens at {path}, got no such file: start one with "
            "enclavia.Forwarder"
        ) from error
    except OSError as error:
        raise ConnectError(f"expected a socket at {path}, got: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise _unsafe(f"expected a socket at {path}, got another kind of file")
    if found.st_uid not in owners:
        raise _unsafe(
            f"expected the socket {path} to belong to user {_names(owners)}, got user "
            f"{found.st_uid}"
        )


def _names(owners: frozenset[int]) -> str:
    return " or ".join(str(owner) for owner in sorted(owners))


def _unsafe(message: str) -> ConnectError:
    return ConnectError(message, retryable=False)
