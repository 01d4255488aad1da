"""The methods of both clients that are about files. What they do is in _files, which is loaded when
one of them is called.

Decides which settings of a client a file's requests have. Calls: _files, _io. Locks: none.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import httpx2

from .._io.face import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from httpx2._types import HeaderTypes, QueryParamTypes, TimeoutTypes

    from .._files.opened import AsyncRemoteFile, RemoteFile
    from .._files.progress import Progress
    from .._files.uploading import File
    from .._io.connecting import Connecting
    from .httpx2_inside import Auth, Follow

    Fields = tuple[tuple[bytes, bytes], ...]

__all__ = ["AsyncFiles", "Files"]

_UNSET: Final = httpx2.USE_CLIENT_DEFAULT
_READ_AHEAD: Final = 4 * 1024 * 1024
_CACHE: Final = 16 * 1024 * 1024


def _building(
    client: Any,  # noqa: ANN401 - either client
    path: httpx2.URL | str,
    params: QueryParamTypes | None,
    headers: HeaderTypes | None,
    timeout: TimeoutTypes | Any,  # noqa: ANN401 - or what says "not given"
) -> Callable[[Fields], httpx2.Request]:
    """Returns a function that makes the GET request with further header fields, such as Range."""
    own = httpx2.Headers(headers)
    own.setdefault("Accept-Encoding", "identity")
    options = {} if timeout is _UNSET else {"timeout": timeout}

    def build(more: Fields) -> httpx2.Request:
        fields = httpx2.Headers([*own.raw, *more])
        request: httpx2.Request = client.build_request(
            "GET", path, params=params, headers=fields, **options
        )
        return request

    return build


def _uploading(
    client: Any,  # noqa: ANN401 - either client
    method: str,
    path: httpx2.URL | str,
    params: QueryParamTypes | None,
    headers: HeaderTypes | None,
    timeout: TimeoutTypes | Any,  # noqa: ANN401 - or what says "not given"
) -> Callable[[Any, int | None], httpx2.Request]:
    """Returns a function that makes the request of an upload from its body and the body's length
    in bytes (None: not known)."""
    if not isinstance(method, str):
        raise TypeError(f"method: expected text, got {type(method).__name__}")
    fields = httpx2.Headers(headers)
    options = {} if timeout is _UNSET else {"timeout": timeout}

    def build(body: object, length: int | None) -> httpx2.Request:
        if length is not None and "Transfer-Encoding" not in fields:
            fields.setdefault("Content-Length", str(length))
        request: httpx2.Request = client.build_request(
            method, path, params=params, headers=fields, content=body, **options
        )
        return request

    return build


def _goes_on(client: Any) -> bool:  # noqa: ANN401
    """Whether a transfer that was cut may send further requests: not with ``retries=0``."""
    retries = client._enclave._settings.retries
    return not (isinstance(retries, int) and retries == 0)


class Files:
    """The methods about files of the blocking client."""

    def download(
        self,
        path: httpx2.URL | str,
        dest: str | os.PathLike[str],
        *,
        resume: bool = True,
        sha256: str | bytes | None = None,
        progress: Progress = None,
        params: QueryParamTypes | None = None,
        headers: HeaderTypes | None = None,
        auth: Auth = _UNSET,
        follow_redirects: Follow = _UNSET,
        timeout: TimeoutTypes | Any = _UNSET,  # noqa: ANN401
    ) -> Path:
        """Downloads a file, and returns its path. ``dest`` is replaced when the file is whole and
        on the disk, and untouched until then. If the connection is cut, the rest is asked for.

        resume: keep the bytes of a download that fails in ``dest`` + ``.part``, and go on with
            those that an earlier call left there, if they are of the same version from the same
            image.
        sha256: the digest that the file must have, as 64 hex digits or 32 bytes; compared before
            ``dest`` is replaced.
        progress: True for a bar (extra: ``progress``), or a function of two numbers: how many bytes
            have been received, and how many there will be (None: not known).

        Raises :class:`DownloadError`, :class:`DigestMismatch`, ``httpx2.HTTPStatusError`` for any
        status but a success, OSError of the file, and what any request raises.
        """
        from .._files.downloading import downloaded
        from .._files.face import ThreadFace

        client: Any = self
        return run(
            downloaded(
                ThreadFace(client),
                _building(client, path, params, headers, timeout),
                dest,
                resume=resume,
                sha256=sha256,
                progress=progress,
                how={"auth": auth, "follow_redirects": follow_redirects},
                goes_on=_goes_on(client),
                with_auth=client.auth is not None or auth not in (_UNSET, None),
            )
        )

    def open(
        self,
        path: httpx2.URL | str,
        *,
        read_ahead: int = _READ_AHEAD,
        cache_size: int = _CACHE,
        params: QueryParamTypes | None = None,
        headers: HeaderTypes | None = None,
        auth: Auth = _UNSET,
        follow_redirects: Follow = _UNSET,
        timeout: TimeoutTypes | Any = _UNSET,  # noqa: ANN401
    ) -> RemoteFile:
        """Opens a file of the workload as a seekable binary file object, for pandas, pyarrow, PIL,
        zipfile and the like. It requests ranges of one version of the file.

        read_ahead: how many bytes, at most, are requested beyond a read that begins where the one
            before it ended.
        cache_size: how many bytes are kept in memory, 64 KiB or more. They are not requested again
            while they are there.

        Raises :class:`RangesUnsupported`, ``httpx2.HTTPStatusError`` and what any request raises.
        """
        from .._files.opened import opened

        client: Any = self
        how = {"auth": auth, "follow_redirects": follow_redirects}
        build = _building(client, path, params, headers, timeout)
        return opened(client, build, how, _goes_on(client), read_ahead, cache_size)

    def upload(
        self,
        path: httpx2.URL | str,
        file: File,
        *,
        method: str = "PUT",
        progress: Progress = None,
        params: QueryParamTypes | None = None,
        headers: HeaderTypes | None = None,
        auth: Auth = _UNSET,
        follow_redirects: Follow = _UNSET,
        timeout: TimeoutTypes | Any = _UNSET,  # noqa: ANN401
    ) -> httpx2.Response:
        """Sends a file as the body of one request, and returns the response, whatever its status.

        file: a path, a binary file (sent from its current position), bytes, or an iterable of
            bytes. Its length is announced if it is known. If the connection is lost, the request is
            sent again as ``retries`` allows, but not with an iterable or a file that is not
            seekable.
        progress: as for :meth:`download`; it begins at 0 again when the request is sent again.

        Raises OSError of the file, and what any request raises.
        """
        from .._files.face import ThreadFace
        from .._files.uploading import uploaded

        client: Any = self
        build = _uploading(client, method, path, params, headers, timeout)
        how = {"auth": auth, "follow_redirects": follow_redirects}
        return run(uploaded(ThreadFace(client), build, file, progress, how))


class AsyncFiles:
    """The methods about files of the asynchronous client."""

    async def download(
        self,
        path: httpx2.URL | str,
        dest: str | os.PathLike[str],
        *,
        resume: bool = True,
        sha256: str | bytes | None = None,
        progress: Progress = None,
        params: QueryParamTypes | None = None,
        headers: HeaderTypes | None = None,
        auth: Auth = _UNSET,
        follow_redirects: Follow = _UNSET,
        timeout: TimeoutTypes | Any = _UNSET,  # noqa: ANN401
    ) -> Path:
        """As :meth:`Client.download`, awaited. The disk is worked on in a thread; ``progress`` is
        called in the event loop."""
        from .._files.downloading import downloaded
        from .._files.loop_face import LoopFace

        client: Any = self
        return await downloaded(
            LoopFace(client),
            _building(client, path, params, headers, timeout),
            dest,
            resume=resume,
            sha256=sha256,
            progress=progress,
            how={"auth": auth, "follow_redirects": follow_redirects},
            goes_on=_goes_on(client),
            with_auth=client.auth is not None or auth not in (_UNSET, None),
        )

    def open(
        self,
        path: httpx2.URL | str,
        *,
        read_ahead: int = _READ_AHEAD,
        cache_size: int = _CACHE,
        params: QueryParamTypes | None = None,
        headers: HeaderTypes | None = None,
        auth: Auth = _UNSET,
        follow_redirects: Follow = _UNSET,
        timeout: TimeoutTypes | Any = _UNSET,  # noqa: ANN401
    ) -> Connecting[AsyncRemoteFile]:
        """As :meth:`Client.open`, to be awaited or entered with ``async with``: an
        :class:`AsyncRemoteFile`, whose methods are those of anyio's files."""
        from .._files.opened import opening

        client: Any = self
        how = {"auth": auth, "follow_redirects": follow_redirects}
        build = _building(client, path, params, headers, timeout)
        return opening(client, build, how, _goes_on(client), read_ahead, cache_size)

    async def upload(
        self,
        path: httpx2.URL | str,
        file: File,
        *,
        method: str = "PUT",
        progress: Progress = None,
        params: QueryParamTypes | None = None,
        headers: HeaderTypes | None = None,
        auth: Auth = _UNSET,
        follow_redirects: Follow = _UNSET,
        timeout: TimeoutTypes | Any = _UNSET,  # noqa: ANN401
    ) -> httpx2.Response:
        """As :meth:`Client.upload`, awaited; takes async iterables, too. A file is read in a
        thread."""
        from .._files.loop_face import LoopFace
        from .._files.uploading import uploaded

        client: Any = self
        build = _uploading(client, method, path, params, headers, timeout)
        how = {"auth": auth, "follow_redirects": follow_redirects}
        return await uploaded(LoopFace(client), build, file, progress, how)
