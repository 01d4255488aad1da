"""``client.download``: checks of its arguments, and the transfer that they mean.

Decides which file a download goes to, and under which conditions an earlier part of it is used.
Calls: _arguments. Locks: none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx2

from .._arguments import byte_view, flag, path_text, value_shown
from .face import Face
from .progress import told_of
from .source import Asked
from .store import FreshStore, PartialStore, Store
from .target import check_target, refused
from .transfer import Fields, Transfer

__all__ = ["Build", "asked_of", "digest_of", "downloaded", "refuse_status"]

Build = Callable[[Fields], httpx2.Request]
"""Of the client's: the request with these headers beside its own."""

_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")
_EINVAL: Final = 22
# What a client sends of its own accord. Any other header may change which representation comes.
_OF_EVERY_REQUEST: Final = {"host", "accept", "accept-encoding", "connection", "user-agent"}


async def downloaded(
    face: Face,
    build: Build,
    dest: str | os.PathLike[str],
    *,
    resume: bool,
    sha256: str | bytes | None,
    progress: object,
    how: dict[str, Any],
    goes_on: bool,
    with_auth: bool,
) -> Path:
    """Nothing is sent before everything was checked that can be."""
    name = path_text("dest", dest, "the path of a file")
    digest = digest_of(sha256)
    flag("resume", resume)
    request = build(())
    told = told_of(progress, os.path.basename(name))
    asked = asked_of(request, with_auth, "client.open reads parts of a file")
    stores: list[Store] = []
    try:
        # Left in a list, because a task that is cancelled meanwhile gets no result.
        await face.work(lambda: stores.append(_opened(name, resume and asked.can_go_on)))
        transfer = Transfer(
            face=face,
            asked=asked,
            store=stores[0],
            told=told,
            build=build,
            refuse=refuse_status,
            how=how,
            goes_on=goes_on,
            sha256=digest,
        )
        await transfer.run()
    finally:
        try:
            for store in stores:
                await face.work(store.close)
        finally:
            told.end()
    return Path(name)


def asked_of(request: httpx2.Request, with_auth: bool, instead: str) -> Asked:
    names = {name.lower() for name in request.headers}
    if names & {"range", "if-range"}:
        raise ValueError(f"headers: expected none of Range and If-Range, got one: {instead}")
    return Asked(
        url=str(request.url),
        with_headers=with_auth or not names <= _OF_EVERY_REQUEST,
        may_be_coded=request.headers.get("accept-encoding") != "identity",
    )


def _opened(name: str, resume: bool) -> Store:
    if not check_target(name):
        raise refused(_EINVAL, name, "a device or a pipe")
    return PartialStore(name) if resume else FreshStore(name)


def digest_of(sha256: object) -> str | None:
    """In lower-case hex."""
    if sha256 is None:
        return None
    if isinstance(sha256, str):
        if not _HEX.fullmatch(sha256):
            raise ValueError(f"sha256: expected 64 hex digits, got {value_shown(sha256)}")
        return sha256.lower()
    if isinstance(sha256, int):  # bytes(64) would be 64 zeros
        raise TypeError(f"sha256: expected 64 hex digits or 32 bytes, got {value_shown(sha256)}")
    view = byte_view("sha256", sha256)
    if len(view) != 32:
        raise ValueError(f"sha256: expected 64 hex digits or 32 bytes, got {len(view)} bytes")
    return bytes(view).hex()


def refuse_status(response: httpx2.Response) -> NoReturn:
    """An answer whose body is not the file."""
    response.raise_for_status()
    raise httpx2.HTTPStatusError(
        f"expected a body to be kept, got status {response.status_code}",
        request=response.request,
        response=response,
    )
