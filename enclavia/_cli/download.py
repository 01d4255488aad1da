"""Downloads a body into a file, and resumes where the connection was cut.

The rest is asked for by Range with If-Range (RFC 9110, sections 13.1.5 and 14.2), so that the
server sends it only where the representation is still the same one, which takes a strong validator.
Bytes are joined only where the enclave that sends the rest attests the same PCRs as the one that
sent the beginning.

Decides which bytes may be joined, and when a download is given up. Calls: nothing of the package
but what is public. Locks: none.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Final, NoReturn, Protocol, Self

import httpx2

import enclavia

from .exits import HTTP_STATUS, UNREACHABLE, Problem
from .files import FileOutput
from .partial import Source
from .progress import Progress

__all__ = ["Asked", "FreshStore", "Store", "download", "send", "status_problem"]

_IDLE_TRIES: Final = 5
_RESTARTS: Final = 3
_FIRST_PAUSE: Final = 0.25
_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]*"')
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request as the user asked for it."""

    method: str
    url: httpx2.URL
    headers: tuple[tuple[bytes, bytes], ...]
    content: bytes | Iterable[bytes] | None
    follow: bool
    fail: bool

    @property
    def is_partial(self) -> bool:
        """Whether the user asked for a range."""
        return any(name.lower() in (b"range", b"if-range") for name, _ in self.headers)

    @property
    def can_go_on(self) -> bool:
        """Not with a body: an answer may depend on it, and what was read from standard input is
        gone when it was sent."""
        return self.content is None and not self.is_partial


class Store(Protocol):
    """A file that knows what its bytes are of."""

    source: Source | None
    size: int

    def begin(self, source: Source | None) -> None: ...
    def go_on(self) -> None: ...
    def write(self, data: bytes) -> None: ...
    def commit(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


class FreshStore:
    """Of this run only: what is not whole at its end is removed."""

    def __init__(self, output: FileOutput) -> None:
        self.source: Source | None = None
        self.size = 0
        self._output = output

    def begin(self, source: Source | None) -> None:
        self._output.truncate()
        self.size = 0
        self.source = source

    def go_on(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self._output.write(data)
        self.size += len(data)

    def commit(self) -> None:
        self._output.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._output.__exit__(*error)


class _StartOverError(Exception):
    """What is there cannot be gone on with."""


def status_problem(response: httpx2.Response) -> Problem:
    """An HTTP error is told by its status, and nothing of its body."""
    reason = response.extensions.get("reason_phrase", b"")
    words = reason.decode("utf-8", "backslashreplace") if isinstance(reason, bytes) else ""
    return Problem(f"HTTP {response.status_code} {words}".rstrip(), HTTP_STATUS)


def send(
    client: enclavia.Client, asked: Asked, more: tuple[tuple[bytes, bytes], ...] = ()
) -> httpx2.Response:
    """The response with its body unread; the caller closes it."""
    request = client.build_request(
        asked.method,
        asked.url,
        headers=[*asked.headers, *more],
        content=asked.content,
    )
    return client.send(request, stream=True, follow_redirects=asked.follow)


def download(client: enclavia.Client, asked: Asked, store: Store, progress: Progress) -> None:
    """Whole when it returns; ``store`` is committed. Goes on after each cut as long as bytes come,
    and gives up after five tries in a row without any."""
    if store.source is not None and not _is_of(store.source, client, asked):
        store.begin(None)
    idle = restarts = 0
    while True:
        before = store.size
        try:
            if _try(client, asked, store, progress):
                store.commit()
                return
            idle = 0 if store.size > before else idle + 1
            if idle > _IDLE_TRIES:
                _give_up(store)
        except _StartOverError:
            restarts += 1
            if restarts > _RESTARTS:
                _give_up(store)
            store.begin(None)
        except enclavia.EnclaviaError as error:
            idle = 0 if store.size > before else idle + 1
            if not error.retryable or store.source is None or idle > _IDLE_TRIES:
                raise
            progress.note(f"{type(error).__name__}: {error}; going on behind {store.size} bytes")
            time.sleep(_FIRST_PAUSE * 2**idle)


def _is_of(source: Source, client: enclavia.Client, asked: Asked) -> bool:
    """Whether what an earlier run has left may be a beginning of what is asked for now. The date of
    the last modification does not tell apart what a server has for other headers."""
    dated = not source.validator.startswith('"')
    with_headers = source.with_headers or bool(asked.headers)
    return asked.can_go_on and source.url == _url(client, asked) and not (dated and with_headers)


def _give_up(store: Store) -> NoReturn:
    raise Problem(
        f"expected the rest of the body behind {store.size} bytes, got answers without it",
        UNREACHABLE,
    )


def _try(client: enclavia.Client, asked: Asked, store: Store, progress: Progress) -> bool:
    """One request. Whether the body is whole."""
    source = store.source
    resuming = source is not None and store.size > 0
    more: tuple[tuple[bytes, bytes], ...] = ()
    if source is not None and resuming:
        more = (
            (b"Range", b"bytes=%d-" % store.size),
            (b"If-Range", source.validator.encode("ascii")),
        )
    response = send(client, asked, more)
    end: int | None = None
    try:
        pcrs = _identity(client)
        if source is not None and resuming and response.status_code == 206:
            end, whole = _expect_rest(response, source, store.size, pcrs)
            store.source = source = source._replace(total=whole)
            store.go_on()
        elif resuming and response.status_code == 416:
            raise _StartOverError
        else:
            if response.status_code >= 400 and (asked.fail or resuming):
                raise status_problem(response)
            if response.status_code == 206 and not resuming and not asked.is_partial:
                # Saved as it is, a part would pass for the whole.
                raise Problem(
                    "expected the whole body, got a part of it (HTTP 206) that was not asked for",
                    HTTP_STATUS,
                )
            source = _source_of(response, asked, _url(client, asked), pcrs)
            store.begin(source)
        total = source.total if source is not None else _length(response)
        progress.begin(store.size, total)
        for chunk in response.iter_raw():
            if end is not None and store.size + len(chunk) > end:
                raise _StartOverError
            store.write(chunk)
            progress.add(len(chunk))
    finally:
        response.close()
    return source is None or source.total is None or store.size == source.total


def _identity(client: enclavia.Client) -> tuple[str, ...]:
    pcrs = client.attestation.pcrs
    return tuple(pcrs[index].hex() for index in sorted(pcrs) if index < 3)


def _expect_rest(
    response: httpx2.Response, source: Source, size: int, pcrs: tuple[str, ...]
) -> tuple[int, int]:
    """That this goes on with that representation, from the same image. Where this answer ends,
    which may be before the representation does, and where that does."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
    if found is None or int(found[1]) != size or pcrs != source.pcrs:
        raise _StartOverError
    total = source.total if found[3] is None else int(found[3])
    if total is None or (source.total is not None and source.total != total):
        raise _StartOverError
    end = int(found[2]) + 1
    if not size < end <= total:
        raise _StartOverError
    # A validator tells apart what one resource is at different times, and not two resources.
    if str(response.url) != source.final_url:
        raise _StartOverError
    etag = response.headers.get("etag")
    if source.validator.startswith('"') and etag is not None and etag != source.validator:
        raise _StartOverError
    return end, total


def _url(client: enclavia.Client, asked: Asked) -> str:
    """With the enclave in it, also where only a path was asked for."""
    return str(client.build_request(asked.method, asked.url).url)


def _source_of(
    response: httpx2.Response, asked: Asked, url: str, pcrs: tuple[str, ...]
) -> Source | None:
    """None for what cannot be gone on with."""
    validator = _strong_validator(response.headers)
    refuses = response.headers.get("accept-ranges", "").strip().lower() == "none"
    if response.status_code != 200 or validator is None or not asked.can_go_on or refuses:
        return None
    final_url = str(response.url)
    return Source(url, final_url, bool(asked.headers), validator, _length(response), pcrs)


def _length(response: httpx2.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _strong_validator(headers: httpx2.Headers) -> str | None:
    """The ETag where it is strong; else the date of the last modification, where it is a second
    older than the answer at least (RFC 9110, section 8.8.2.2)."""
    etag = headers.get("etag", "").strip()
    if _ETAG.fullmatch(etag):
        return str(etag)
    changed, sent = _date(headers, "last-modified"), _date(headers, "date")
    if changed is None or sent is None or sent - changed < timedelta(seconds=1):
        return None
    return str(headers["last-modified"]).strip()


def _date(headers: httpx2.Headers, name: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(headers[name])
    except (KeyError, ValueError):
        return None
    return date if date.utcoffset() is not None else None
