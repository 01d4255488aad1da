"""The sockets that a forwarder listens at: who may have the path, and how a dead one's is taken.

Decides what may be taken over. Calls: _channel, _errors, _io. Locks: none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from typing import Final

from .._channel.socket_path import check_folder
from .._errors import ConnectError, StateError
from .._io.local import LocalSocket

__all__ = [
    "BACKLOG",
    "OUT_OF_DESCRIPTORS",
    "PathLock",
    "UnixListener",
    "listen_tcp",
    "listen_unix",
]

BACKLOG: Final = 4096
OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class PathLock:
    """The right to the sockets at one path: an flock(2) on a file beside it, which the system lets
    go when its process ends, however it ends. The file is never removed: two processes could then
    each have the lock of a file of that name."""

    def __init__(self, path: str) -> None:
        """Raises StateError where another forwarder has it, ConnectError where the place is not
        safe."""
        owners = frozenset((os.geteuid(),))
        folder = os.path.dirname(path)
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise ConnectError(
                f"expected to be able to make the folder {folder}, got: {error.strerror}: see to "
                "the folder that it is to stand in, or give the forwarder another socket",
                retryable=False,
            ) from error
        check_folder(path, owners)
        name = path + ".lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(name, flags, 0o600)
        except OSError as error:
            raise ConnectError(
                f"expected to be able to lock {name}, got: {error.strerror}", retryable=False
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._holder()
            os.close(self._file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise ConnectError(
                    f"expected to be able to lock {name}, got: {error.strerror}", retryable=False
                ) from error
            raise StateError(
                f"expected no other forwarder at {path}, got one that runs{holder}: use that one, "
                "or give this one another socket"
            ) from None
        with contextlib.suppress(OSError):  # of a full disk: the lock counts, and not what is in it
            os.ftruncate(self._file, 0)
            os.write(self._file, f"{os.getpid()}\n".encode())

    def _holder(self) -> str:
        with contextlib.suppress(OSError):
            number = os.pread(self._file, 20, 0).strip().decode("ascii", "replace")
            if number.isdigit():
                return f" as process {number}"
        return ""

    def close(self) -> None:
        """May be called again."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class UnixListener(LocalSocket):
    """A socket that listens at a path, and knows the file that it made there."""

    path: str
    made: os.stat_result

    @property
    def is_there(self) -> bool:
        """Whether who connects to the path comes here. Somebody may have cleared the folder away,
        and another forwarder may have the path since: its lock was cleared away as well."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        # A file system may use an inode again.
        return os.path.samestat(found, self.made) and found.st_mtime_ns == self.made.st_mtime_ns

    def unlisten(self) -> None:
        """No one can come any more."""
        if self.is_there:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.close()


def listen_unix(path: str) -> UnixListener:
    """Listens at ``path``, mode 0600 from the beginning. What a dead forwarder of this user has
    left there is taken away; nothing else is. The path's lock is held by the caller."""
    try:
        _take_over(path)
        sock = UnixListener()
    except OSError as error:
        raise _cannot_listen(path, error, "use another path") from error
    try:
        # Of an unbound socket the mode is what bind(2) gives the file: there is no moment at which
        # others could open it, and no umask of the process to be changed.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        sock.path, sock.made = path, os.lstat(path)
        if stat.S_IMODE(sock.made.st_mode) & 0o077:
            os.chmod(path, 0o600)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot_listen(path, error, "use another path") from error
    return sock


def _cannot_listen(place: str, error: OSError, remedy: str) -> ConnectError:
    return ConnectError(
        f"expected to listen at {place}, got: {error.strerror or error}: {remedy}", retryable=False
    )


def _take_over(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConnectError(
            f"expected nothing or a forwarder's socket at {path}, got another kind of file: it is "
            "left alone; use another path",
            retryable=False,
        )
    if found.st_uid != os.geteuid():
        raise ConnectError(
            f"expected a socket of user {os.geteuid()} at {path}, got one of user {found.st_uid}: "
            "it is left alone",
            retryable=False,
        )
    if _answers(path):
        raise StateError(f"expected no listener at {path}, got one that is no forwarder")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _answers(path: str) -> bool:
    """Whether a process listens there, which has no lock and so is no forwarder."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def listen_tcp(host: str, port: int) -> LocalSocket:
    """Listens on an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = f"{host}:{port}"
    try:
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise _cannot_listen(place, error, "see to what is missing") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot_listen(
            place, error, "choose another address or port; port 0 is a free one"
        ) from error
    return LocalSocket(sock.detach())
