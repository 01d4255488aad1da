"""What bytes are a part of, and whether an answer goes on with it. Two parts are joined only where
it is certain that they are of one representation, from one image.

Decides which bytes may be joined (RFC 9110, sections 13.1.5 and 14.2). Calls: _errors. Locks: none.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, NamedTuple, Protocol

import httpx2

from .._errors import DownloadError, FileChanged, RangesUnsupported
from .validators import (
    content_range,
    is_coded,
    is_etag,
    length_of,
    says_other_version,
    strong_validator,
)

__all__ = [
    "Anew",
    "Answer",
    "Asked",
    "Identities",
    "Identity",
    "Source",
    "StartOverError",
    "first_of",
    "judged",
    "next_of",
]


_OF_IMAGES: Final = ("PCR0", "PCR1", "PCR2")


class _Receipt(Protocol):
    """Of an attestation document: what a response's extensions have under ``enclavia``."""

    def as_dict(self) -> dict[str, Any]: ...


class Identity(NamedTuple):
    """Who sent bytes, and on whose word: what the document was (``nitro``, or what debug mode
    takes), PCR0 to PCR2 and whichever further ones were pinned, the SHA-256 digest of the root it
    leads to, and the forwarder that vouches for the channel (empty: the document does). All of it,
    because PCRs alone prove nothing where a document was not signed, or by another root, and what
    came while nobody pinned PCR8 may be from an image that nobody has signed."""

    form: str
    pcrs: tuple[str, ...]
    """Each as ``PCR0=`` and its value in hex."""
    root: str
    via: str

    @classmethod
    def of(cls, response: httpx2.Response) -> Identity | None:
        """Of the channel that this response came over; None where it does not say."""
        receipt: _Receipt | None = response.extensions.get("enclavia")
        if receipt is None:
            return None
        fields = receipt.as_dict()
        measured = fields["pcrs"]
        names = {name for pins in fields["pins"] or () for name in pins}.union(_OF_IMAGES)
        pcrs = tuple(f"{name}={measured.get(name, '')}" for name in sorted(names))
        return cls(fields["form"], pcrs, fields["root"], fields["via"] or "")


class Source(NamedTuple):
    """What bytes are a part of. Parts may be joined where all of this is the same: what was asked
    for, where redirects led, which representation it was (a strong validator), and who sent it."""

    url: str
    final_url: str
    with_headers: bool
    """Whether the request said more than its URL. Headers may be secret, so not even a digest of
    them is kept."""
    validator: str
    total: int | None
    identity: Identity


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked for, without any range."""

    url: str
    with_headers: bool = False
    can_go_on: bool = True
    """Not where the request has a body, which the answer may depend on and which may be used up,
    nor where it is for a range already."""
    for_range: bool = False
    """The caller has asked for a range: a part is the answer."""
    may_be_coded: bool = False
    """The caller has said which content codings it takes: the body is kept as it comes."""
    any_status: bool = False
    """The body of an error is an answer, too."""

    def is_of(self, source: Source) -> bool:
        """Whether what an earlier run has left may be a beginning of this. The date of the last
        modification does not tell apart what a server has for other headers."""
        dated = not is_etag(source.validator)
        with_headers = source.with_headers or self.with_headers
        return self.can_go_on and source.url == self.url and not (dated and with_headers)


class Answer(NamedTuple):
    """The head of an answer, and who sent it."""

    status: int
    headers: httpx2.Headers
    url: str
    identity: Identity | None


class Identities:
    """Who sent answers. To read a receipt takes a quarter of the time of a small answer, and most
    answers of one client come over one channel."""

    def __init__(self) -> None:
        self._last: tuple[object, Identity | None] = (None, None)

    def answer(self, response: httpx2.Response) -> Answer:
        receipt = response.extensions.get("enclavia")
        if receipt is not self._last[0]:
            self._last = (receipt, Identity.of(response))
        return Answer(response.status_code, response.headers, str(response.url), self._last[1])


class StartOverError(Exception):
    """The answer is no rest of what is there; the text says why. Never leaves the package."""


class Rest(NamedTuple):
    """It goes on with what is there, up to ``end``."""

    source: Source
    end: int


class Anew(NamedTuple):
    """It begins from the first byte. ``source``: None where it cannot be gone on with."""

    source: Source | None
    total: int | None


def judged(answer: Answer, asked: Asked, source: Source | None, size: int) -> Rest | Anew | None:
    """What an answer is to who has ``size`` bytes of ``source``, and asked for the rest where that
    is more than 0. None: its status is not one of a body to be kept. Raises StartOverError, and
    DownloadError where neither this answer nor another attempt can be used."""
    resuming = source is not None and size > 0
    if resuming and source is not None and answer.status == 206:
        return rest_of(answer, source, size)
    if resuming and answer.status == 416:
        raise StartOverError("the workload has no bytes behind them (HTTP 416)")
    if not 200 <= answer.status < 300:
        if resuming or not asked.any_status:
            return None
    elif answer.status == 206 and not resuming and not asked.for_range:
        # Saved as it is, a part would pass for the whole.
        raise DownloadError(
            "expected the whole body, got a part of it (HTTP 206) that was not asked for",
            status=206,
        )
    if is_coded(answer.headers) and not asked.may_be_coded:
        raise DownloadError(
            "expected the bytes as they are (Accept-Encoding: identity), got a body with a content "
            "coding: read it with client.stream, which decodes it"
        )
    return Anew(_new_source(answer, asked), length_of(answer.headers))


def rest_of(answer: Answer, source: Source, begin: int) -> Rest:
    """That a 206 goes on with this source at ``begin``, and where this answer ends, which may be
    before the whole does."""
    span = content_range(answer.headers)
    if span is None or span.begin != begin or is_coded(answer.headers):
        raise StartOverError("the answer is not the range that was asked for")
    total = source.total if span.total is None else span.total
    if total is None or source.total not in (None, total) or span.end > total:
        raise StartOverError("the rest is of a file of another length")
    # A validator tells apart what one resource is at different times, and not two resources.
    if answer.identity != source.identity:
        raise StartOverError("the rest comes from another image than they do")
    if answer.url != source.final_url:
        raise StartOverError("a redirect leads to another URL than before")
    if says_other_version(answer.headers, source.validator):
        raise StartOverError("the rest is of another version")
    return Rest(source._replace(total=total), span.end)


def _new_source(answer: Answer, asked: Asked) -> Source | None:
    """None for what cannot be gone on with."""
    refuses = answer.headers.get("accept-ranges", "").strip().lower() == "none"
    if answer.status != 200 or not asked.can_go_on or refuses or is_coded(answer.headers):
        return None
    return _source(answer, asked, length_of(answer.headers))


def _source(answer: Answer, asked: Asked, total: int | None) -> Source | None:
    validator = strong_validator(answer.headers)
    if validator is None or answer.identity is None:
        return None
    return Source(asked.url, answer.url, asked.with_headers, validator, total, answer.identity)


# -- reading by ranges ------------------------------------------------------------------------


def first_of(answer: Answer, asked: Asked, end: int) -> tuple[Source | None, int, int]:
    """Of the 206 that answers the first range, of bytes 0 up to ``end``: what it is a part of (None
    where nothing tells its versions apart), where it ends, and how long the whole is."""
    span = content_range(answer.headers)
    if span is None or span.begin != 0 or span.end > end or is_coded(answer.headers):
        raise _wrong_range(answer, 0, end)
    if span.total is None:
        raise RangesUnsupported(
            "expected a Content-Range with the length of the file, got one without"
        )
    return _source(answer, asked, span.total), span.end, span.total


def next_of(answer: Answer, source: Source, begin: int, end: int) -> int:
    """Where an answer to a range of this source ends, which may be before ``end``. For an answer of
    200, 206 or 416."""
    if answer.identity != source.identity:
        raise FileChanged(
            "expected the file from the image that it was opened at, got it from another one"
        )
    if answer.url != source.final_url:
        raise FileChanged("expected a redirect to where it led before, got one to another URL")
    if answer.status != 206:
        if answer.status == 200 and strong_validator(answer.headers) == source.validator:
            raise RangesUnsupported(f"expected {_bytes(begin, end)}, got the whole file")
        raise _changed(f"{_bytes(begin, end)} of the version {source.validator}", answer)
    if says_other_version(answer.headers, source.validator):
        raise _changed(f"the version {source.validator}", answer)
    span = content_range(answer.headers)
    if span is None or span.begin != begin or span.end > end or is_coded(answer.headers):
        raise _wrong_range(answer, begin, end)
    if span.total not in (None, source.total):
        raise FileChanged(f"expected a file of {source.total} bytes, got one of {span.total}")
    return span.end


def _bytes(begin: int, end: int) -> str:
    return f"bytes {begin}-{end - 1}"


def _changed(expected: str, answer: Answer) -> FileChanged:
    etag = answer.headers.get("etag")
    got = "none of it" if etag is None else f"the version {etag}"
    return FileChanged(
        f"expected {expected}, got {got} (HTTP {answer.status}): the file has changed since it was "
        "opened; open it again"
    )


def _wrong_range(answer: Answer, begin: int, end: int) -> RangesUnsupported:
    named = answer.headers.get("content-range", "no Content-Range")
    coded = ", with a content coding" if is_coded(answer.headers) else ""
    return RangesUnsupported(f"expected {_bytes(begin, end)}, got {named}{coded}")
