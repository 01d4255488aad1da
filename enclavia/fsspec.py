"""Files of an enclave's workload as a file system of fsspec, for pandas, pyarrow, polars, Dask
and what else takes one. https://filesystem-spec.readthedocs.io

Needs ``pip install 'enclavia[fsspec]'``.

>>> fs = EnclaviaFileSystem(client)
>>> fs.cat_file("/files/rows.csv", 0, 100)
>>> pandas.read_parquet("enclavia://files/rows.parquet", storage_options={"client": client})
"""

# Decides what of HTTP a file, a directory and an index are. Calls: _arguments, _client, _errors,
# _files. Locks: none.

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import os
import tempfile
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn, Self
from urllib.parse import quote

import httpx2

from ._arguments import flag
from ._client.client import Client
from ._errors import ProtocolError
from ._files.validators import length_of

try:
    import fsspec  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from fsspec.callbacks import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        DEFAULT_CALLBACK,
    )
    from fsspec.spec import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        AbstractFileSystem,
    )
    from fsspec.utils import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        isfilelike,
        stringify_path,
    )
except ImportError as error:
    raise ImportError(
        "enclavia.fsspec needs fsspec, which is not installed: pip install 'enclavia[fsspec]'",
        name=error.name,
    ) from None

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

__all__ = ["EnclaviaFileSystem"]

# For file systems with async methods of their own. zarr says these to every one, and wraps those
# that have none.
_OF_FSSPEC: Final = ("asynchronous", "loop")
_SPOOLED: Final = 16 * 1024 * 1024
_INDEX_MAX: Final = 64 * 1024 * 1024
_MOVED: Final = (301, 302, 303, 307, 308)
_REFUSED: Final = (405, 501)


class EnclaviaFileSystem(AbstractFileSystem):  # type: ignore[misc, unused-ignore]
    """The files of one enclave's workload, by paths of its URLs: ``enclavia://files/x`` is
    ``/files/x``. A path names no host, so none leads anywhere else.

    client: the :class:`enclavia.Client` that is used. Without one, a client is made of ``url`` and
        ``options`` (its keywords), or, without these, of the environment (``Client.from_env``).
    writable: True: PUT and DELETE are sent. Otherwise whatever would change a file is refused.

    A file is what HEAD answers. A directory is what redirects to itself with a slash behind it, and
    its listing what GET answers there as JSON, in the form of nginx's ``autoindex_format json``.
    """

    protocol = "enclavia"
    root_marker = "/"
    # Instances are cached by the text of their arguments, and two clients of different pins may
    # have the same text: what one of them trusts must never be what another one reads.
    cachable = False

    def __init__(
        self,
        client: Client | None = None,
        *,
        url: str | httpx2.URL | None = None,
        writable: bool = False,
        **options: Any,  # noqa: ANN401 - a client's
    ) -> None:
        super().__init__()
        for name in _OF_FSSPEC:
            options.pop(name, None)
        self.writable = flag("writable", writable)
        self._own_token = uuid.uuid4().hex
        if client is None:
            client = Client.from_env(**options) if url is None else Client(url, **options)
        elif url is not None or options:
            raise TypeError("client: expected no url and no options beside a client, got some")
        if not isinstance(client, Client):
            raise TypeError(f"client: expected an enclavia.Client, got {type(client).__name__}")
        self.client = client

    @property
    def _fs_token(self) -> str:
        """No two are the same, for the reason that none is cached for."""
        return self._own_token

    # -- paths --------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:  # noqa: ANN401 - text, a path, or a list of these
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = str(stringify_path(path))
        for prefix in ("enclavia://", "enclavia::"):
            text = text.removeprefix(prefix)
        parts = [part for part in text.split("/") if part]
        if any(part in (".", "..") for part in parts):
            raise ValueError(f"path: expected no part of it to be '.' or '..', got {text!r}")
        return "/" + "/".join(parts)

    def _url(self, path: str, folder: bool = False) -> str:
        text = quote(str(self._strip_protocol(path)), safe="/~!$&'()*+,;=:@")
        return text.rstrip("/") + "/" if folder else text

    # -- what is there ------------------------------------------------------------------------

    def info(self, path: str, **_: object) -> dict[str, Any]:
        """``name``, ``size`` (bytes, or None where the workload does not say) and ``type``; of a
        file also ``ETag``, and ``mtime`` (Last-Modified, in seconds since 1970) where it has one.
        FileNotFoundError."""
        path = self._strip_protocol(path)
        if path == self.root_marker:
            return _folder(path)
        url = self._url(path)
        response = self.client.head(
            url, headers={"Accept-Encoding": "identity"}, follow_redirects=False
        )
        if response.status_code in _MOVED and _leads_to_folder(response):
            return _folder(path)
        if response.status_code in _MOVED:
            response = self.client.head(
                url, headers={"Accept-Encoding": "identity"}, follow_redirects=True
            )
        if response.status_code in _REFUSED:
            with self._open(path) as file:
                return {**_file(path, file.size, None), "ETag": file.etag}
        _expect_success(response, path)
        size = length_of(response.headers)
        found = _file(path, size, response.headers.get("last-modified"))
        return {**found, "ETag": response.headers.get("etag")}

    def ls(self, path: str, detail: bool = True, **_: object) -> list[Any]:
        """The entries of a directory; of a file, the file. ``io.UnsupportedOperation`` where the
        workload has no index there that can be read."""
        path = self._strip_protocol(path)
        with self.client.stream(
            "GET", self._url(path, folder=True), headers={"Accept": "application/json"}
        ) as response:
            missing = response.status_code in (404, 410, *_MOVED)
            if not missing:
                _expect_success(response, path)
            entries = [self.info(path)] if missing else _index(response, path)
        if missing and entries[0]["type"] != "file":
            raise _no_index(path, f"status {response.status_code}")
        return entries if detail else sorted(entry["name"] for entry in entries)

    def exists(self, path: str, **_: object) -> bool:
        """Whether there is a file or a directory. What prevents an answer is raised: fsspec would
        take it for a no, an enclave that is another one among it."""
        return self._type(path) is not None

    def isfile(self, path: str) -> bool:
        """Whether there is a file; raises what prevents an answer."""
        return self._type(path) == "file"

    def isdir(self, path: str) -> bool:
        """Whether there is a directory; raises what prevents an answer."""
        return self._type(path) == "directory"

    def _type(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return None

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",  # noqa: ANN401 - "omit", "raise" or a function
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - a generator
        """As fsspec's; but ``"omit"`` passes over what is not there, and nothing else: a listing
        that lacks what could not be listed would pass for the whole."""
        if on_error == "omit":
            on_error = _raise_but_missing
        return super().walk(path, maxdepth, topdown, on_error, **options)

    def modified(self, path: str) -> datetime:
        """When it was last modified, as the workload says."""
        when = self.info(path).get("mtime")
        if when is None:
            raise NotImplementedError(f"expected a Last-Modified for {path}, got none")
        return datetime.fromtimestamp(when, UTC)

    # -- reading ------------------------------------------------------------------------------

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: object = None,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - a file
        """``options``: ``read_ahead`` and ``cache_size``, as of :meth:`enclavia.Client.open`."""
        if mode == "rb":
            try:
                return self.client.open(self._url(path), follow_redirects=True, **options)
            except httpx2.HTTPStatusError as error:
                _refuse(error.response, path, error)
        if mode not in ("wb", "xb"):
            raise io.UnsupportedOperation(f"mode: expected 'rb', 'wb' or 'xb', got {mode!r}")
        self._expect_writable(path)
        if mode == "xb" and self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        return _Outgoing(self, path, mode == "xb", autocommit)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: object
    ) -> bytes:
        """The bytes of a file, or those from ``start`` to ``end``, as of a slice."""
        if start is not None or end is not None:
            return bytes(super().cat_file(path, start, end, **options))
        response = self.client.get(self._url(path), follow_redirects=True)
        _expect_success(response, path)
        return response.content

    def get_file(
        self,
        rpath: str,
        lpath: Any,  # noqa: ANN401 - a path or a file
        callback: Any = DEFAULT_CALLBACK,  # noqa: ANN401
        outfile: Any = None,  # noqa: ANN401
        **options: object,
    ) -> None:
        """Downloads a file, whole or not at all, as :meth:`enclavia.Client.download` does."""
        if outfile is not None or isfilelike(lpath):
            super().get_file(rpath, lpath, callback=callback, outfile=outfile, **options)
            return
        if self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
        try:
            self.client.download(
                self._url(rpath),
                lpath,
                resume=False,
                progress=_telling(callback),
                follow_redirects=True,
            )
        except httpx2.HTTPStatusError as error:
            _refuse(error.response, rpath, error)

    # -- writing ------------------------------------------------------------------------------

    def _expect_writable(self, path: str) -> None:
        if not self.writable:
            raise io.UnsupportedOperation(
                f"expected a file system that was made with writable=True, to change {path}"
            )

    def _put(
        self,
        path: str,
        content: Any,  # noqa: ANN401
        create: bool,
        callback: Any = None,  # noqa: ANN401
    ) -> None:
        self._expect_writable(path)
        response = self.client.upload(
            self._url(path),
            content,
            headers={"If-None-Match": "*"} if create else None,
            progress=None if callback is None else _telling(callback),
        )
        _expect_success(response, path)

    def put_file(
        self,
        lpath: str,
        rpath: str,
        callback: Any = DEFAULT_CALLBACK,  # noqa: ANN401
        mode: str = "overwrite",
        **_: object,
    ) -> None:
        """Uploads a file by PUT; with ``mode="create"`` only where there is none."""
        if not os.path.isdir(lpath):
            self._put(rpath, lpath, mode == "create", callback)

    def pipe_file(self, path: str, value: Buffer, mode: str = "overwrite", **_: object) -> None:
        """Puts these bytes into a file; with ``mode="create"`` only where there is none."""
        self._put(path, value, mode == "create")

    def cp_file(self, path1: str, path2: str, **_: object) -> None:
        """Reads a file and puts it there: the bytes go by way of this machine."""
        if not self.isdir(path1):
            with self._open(path1) as file:
                self._put(path2, file, create=False)

    def rm_file(self, path: str) -> None:
        """Deletes a file. FileNotFoundError where there is none."""
        self._expect_writable(path)
        _expect_success(self.client.delete(self._url(path)), path)

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def rm(
        self,
        path: str | list[str],
        recursive: bool = False,
        maxdepth: int | None = None,
    ) -> None:
        """Deletes files; directories are there as long as a file is in them."""
        for each in reversed(self.expand_path(path, recursive=recursive, maxdepth=maxdepth)):
            # A directory may be gone with the last file in it.
            if not recursive or self._type(each) == "file":
                self.rm_file(each)


class _Outgoing(io.BufferedIOBase):
    """What is written is kept, in memory up to 16 MiB and in a file without a name above, and sent
    when it is closed. A block that ends in an error sends nothing."""

    def __init__(self, fs: EnclaviaFileSystem, path: str, create: bool, autocommit: bool) -> None:
        self.path = path
        self._fs = fs
        self._create = create
        self._autocommit = autocommit
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOLED)  # noqa: SIM115
        self._sent = False

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def commit(self) -> None:
        """Sends it, once."""
        if not self._sent:
            self._sent = True
            try:
                self._file.seek(0)
                self._fs._put(self.path, self._file, self._create)
            finally:
                self._file.close()

    def discard(self) -> None:
        """Sends nothing."""
        self._sent = True
        self._file.close()

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._autocommit:
                self.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        """Forgotten and not closed: nothing is sent from a destructor."""
        if "_file" in self.__dict__ and not self._sent and not self.closed:
            self.discard()


def _raise_but_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _telling(callback: Any) -> Callable[[int, int | None], None]:  # noqa: ANN401
    def tell(done: int, total: int | None) -> None:
        if done == 0:
            callback.set_size(total)
        callback.absolute_update(done)

    return tell


def _file(path: str, size: int | None, changed: object) -> dict[str, Any]:
    """``mtime`` is there where the workload says a date; in seconds, as libraries expect it."""
    found: dict[str, Any] = {"name": path, "size": size, "type": "file"}
    if isinstance(changed, str):
        with contextlib.suppress(ValueError, OverflowError):
            found["mtime"] = parsedate_to_datetime(changed).timestamp()
    return found


def _folder(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _leads_to_folder(response: httpx2.Response) -> bool:
    following = response.next_request
    own = response.request.url.path
    return following is not None and following.url.path == own + "/"


def _expect_success(response: httpx2.Response, path: str) -> None:
    if not response.is_success:
        _refuse(response, path, None)


def _refuse(response: httpx2.Response, path: str, cause: Exception | None) -> NoReturn:
    status = response.status_code
    kinds: dict[int, tuple[type[OSError], int]] = {
        404: (FileNotFoundError, errno.ENOENT),
        410: (FileNotFoundError, errno.ENOENT),
        401: (PermissionError, errno.EACCES),
        403: (PermissionError, errno.EACCES),
        412: (FileExistsError, errno.EEXIST),
    }
    if status in kinds:
        kind, number = kinds[status]
        raise kind(number, f"{os.strerror(number)} (HTTP {status})", path) from cause
    if status in _REFUSED:
        raise io.UnsupportedOperation(
            f"expected a workload that takes {response.request.method} for {path}, got HTTP "
            f"{status}"
        ) from cause
    if cause is not None:
        raise cause
    response.raise_for_status()
    raise httpx2.HTTPStatusError(
        f"expected a success, got status {status}", request=response.request, response=response
    )


def _no_index(path: str, got: str) -> io.UnsupportedOperation:
    return io.UnsupportedOperation(
        f"expected an index of {path}/ as JSON, in the form of nginx's autoindex_format json, got "
        f"{got}: name the files instead"
    )


def _index(response: httpx2.Response, path: str) -> list[dict[str, Any]]:
    """The names are those of one directory, and nothing else: whoever gets its files makes local
    files of these names."""
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > _INDEX_MAX:
            raise _no_index(path, f"more than {_INDEX_MAX} bytes")
    try:
        listed = httpx2.Response(200, content=bytes(body)).json()
    except (ValueError, RecursionError):
        raise _no_index(path, "what is no JSON") from None
    if not isinstance(listed, list):
        raise _no_index(path, "JSON that is no list")
    return [_entry(each, path) for each in listed]


def _entry(listed: object, path: str) -> dict[str, Any]:
    if not isinstance(listed, dict) or not isinstance(listed.get("name"), str):
        raise _no_index(path, "an entry without a name")
    name = listed["name"].removesuffix("/")
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ProtocolError(
            f"expected names of files in {path}/, got one that leads elsewhere: {name!r}"
        )
    whole = path.rstrip("/") + "/" + name
    if listed.get("type") == "directory":
        return _folder(whole)
    size = listed.get("size")
    return _file(whole, size if type(size) is int and size >= 0 else None, listed.get("mtime"))


# fsspec's metaclass takes any arguments; this is what they are.
EnclaviaFileSystem.__signature__ = inspect.Signature(
    list(inspect.signature(EnclaviaFileSystem.__init__).parameters.values())[1:]
)
fsspec.register_implementation("enclavia", EnclaviaFileSystem, clobber=True)
