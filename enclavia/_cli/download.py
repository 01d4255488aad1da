"""Downloads a body into a file, by the same code as the library's ``client.download``
(``enclavia/_files``), which goes on where the connection was cut.

Decides what the command line takes for an answer, and which line its failure becomes. Calls:
_files. Locks: none.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import NoReturn

import httpx2

import enclavia

from .._files.face import ThreadFace
from .._files.source import Asked as Wanted
from .._files.store import FreshStore, PartialStore
from .._files.transfer import Fields, Told, Transfer
from .exits import HTTP_STATUS, Problem
from .files import cannot_write

__all__ = ["Asked", "download", "send", "status_problem"]


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request as the user asked for it."""

    method: str
    url: httpx2.URL
    headers: tuple[tuple[bytes, bytes], ...]
    content: bytes | Iterable[bytes] | None
    follow: bool
    fail: bool

    def wanted(self, url: str) -> Wanted:
        names = {name.lower() for name, _ in self.headers}
        for_range = bool(names & {b"range", b"if-range"})
        return Wanted(
            url=url,
            with_headers=bool(self.headers),
            can_go_on=self.content is None and not for_range,
            for_range=for_range,
            may_be_coded=b"accept-encoding" in names,
            any_status=not self.fail,
        )


def status_problem(response: httpx2.Response) -> Problem:
    """An HTTP error is told by its status, and nothing of its body."""
    reason = response.extensions.get("reason_phrase", b"")
    words = reason.decode("utf-8", "backslashreplace") if isinstance(reason, bytes) else ""
    return Problem(f"HTTP {response.status_code} {words}".rstrip(), HTTP_STATUS)


def _refuse(response: httpx2.Response) -> NoReturn:
    raise status_problem(response)


def _build(client: enclavia.Client, asked: Asked, more: Fields = ()) -> httpx2.Request:
    return client.build_request(
        asked.method, asked.url, headers=[*asked.headers, *more], content=asked.content
    )


def send(client: enclavia.Client, asked: Asked) -> httpx2.Response:
    """The response with its body unread; the caller closes it."""
    request = _build(client, asked)
    return client.send(request, stream=True, follow_redirects=asked.follow)


def download(
    client: enclavia.Client, asked: Asked, name: str, told: Told, *, go_on: bool = False
) -> None:
    """Whole when it returns, under its name. ``go_on``: what came of it is kept where it ends
    early, and what an earlier run has left is used."""
    # With the enclave in it, also where only a path was asked for.
    url = str(client.build_request(asked.method, asked.url).url)
    with _writing(name):
        store = PartialStore(name) if go_on else FreshStore(name)
        try:
            Transfer(
                face=ThreadFace(client),
                asked=asked.wanted(url),
                store=store,
                told=told,
                build=lambda more: _build(client, asked, more),
                refuse=_refuse,
                how={"follow_redirects": asked.follow},
            ).run_blocking()
        finally:
            store.close()


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    """What the system says of a file is a line, and has its name."""
    try:
        yield
    except (enclavia.EnclaviaError, BrokenPipeError):  # some of the package's are an OSError, too
        raise
    except OSError as error:
        raise cannot_write(str(error.filename or name), error) from None
