"""What bytes are a part of, and whether an answer goes on with it. Two parts are joined only where
it is certain that they are of one representation, from one image.

Decides which bytes may be joined (RFC 9110, sections 13.1.5 and 14.2). Calls: _errors. Locks: none.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import httpx2

from .._errors import DownloadError
from .validators import (
    content_range,
    is_coded,
    is_etag,
    length_of,
    strong_validator,
)

__all__ = ["Anew", "Answer", "Asked", "Identity", "Source", "StartOverError", "judged"]


class _Receipt(Protocol):
    """Of an attestation document: what a response's extensions have under ``enclavia``."""

    def as_dict(self) -> dict[str, Any]: ...


class Identity(NamedTuple):
    """Who sent bytes: what the document was (``nitro``, or what debug mode takes), PCR0 to PCR2 in
    hex, and the SHA-256 digest of the root it leads to. All of it, because PCRs alone prove nothing
    where a document was not signed, or by another root."""

    form: str
    pcrs: tuple[str, ...]
    root: str

    @classmethod
    def of(cls, response: httpx2.Response) -> Identity | None:
        """Of the channel that this response came over; None where it does not say."""
        receipt: _Receipt | None = response.extensions.get("enclavia")
        if receipt is None:
            return None
        fields = receipt.as_dict()
        pcrs = tuple(fields["pcrs"].get(f"PCR{index}", "") for index in range(3))
        return cls(fields["form"], pcrs, fields["root"])


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


class StartOverError(Exception):
    """The answer is no rest of what is there. Never leaves the package."""


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
        raise StartOverError
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
        raise StartOverError
    total = source.total if span.total is None else span.total
    if total is None or source.total not in (None, total) or span.end > total:
        raise StartOverError
    # A validator tells apart what one resource is at different times, and not two resources.
    if answer.identity != source.identity or answer.url != source.final_url:
        raise StartOverError
    etag = answer.headers.get("etag")
    if is_etag(source.validator) and etag is not None and etag.strip() != source.validator:
        raise StartOverError
    return Rest(source._replace(total=total), span.end)


def _new_source(answer: Answer, asked: Asked) -> Source | None:
    """None for what cannot be gone on with."""
    validator = strong_validator(answer.headers)
    refuses = answer.headers.get("accept-ranges", "").strip().lower() == "none"
    usable = answer.status == 200 and asked.can_go_on and not refuses
    if not usable or validator is None or answer.identity is None or is_coded(answer.headers):
        return None
    return Source(
        asked.url,
        answer.url,
        asked.with_headers,
        validator,
        length_of(answer.headers),
        answer.identity,
    )
