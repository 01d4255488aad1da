"""What an answer's headers say about ranges: validators (RFC 9110, section 8.8), lengths and
Content-Range (section 14.4).

Decides which validator is strong. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

import httpx2

__all__ = [
    "Span",
    "content_range",
    "is_coded",
    "is_etag",
    "length_of",
    "says_other_version",
    "strong_validator",
    "unsatisfied_length",
]

_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]*"')
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")
_UNSATISFIED: Final = re.compile(r"(?:bytes )?\*/([0-9]{1,18})")  # some leave the unit out


class Span(NamedTuple):
    """Bytes ``begin`` up to ``end``, which is not among them, of ``total`` (None: not said)."""

    begin: int
    end: int
    total: int | None


def is_etag(validator: str) -> bool:
    """Whether it is a strong ETag, and no date."""
    return _ETAG.fullmatch(validator) is not None


def strong_validator(headers: httpx2.Headers) -> str | None:
    """The ETag where it is strong; else the date of the last modification, where it is a second
    older than the answer at least (RFC 9110, section 8.8.2.2)."""
    etag = str(headers.get("etag", "")).strip()
    if is_etag(etag):
        return etag
    changed, sent = _date(headers, "last-modified"), _date(headers, "date")
    if changed is None or sent is None or sent - changed < timedelta(seconds=1):
        return None
    text = str(headers["last-modified"]).strip()
    return text if text.isascii() else None


def says_other_version(headers: httpx2.Headers, validator: str) -> bool:
    """Whether a 206 has another validator of this kind. It may have none (RFC 9110, section
    15.3.7), and a server that does not know If-Range sends the range of whatever it has by then."""
    got = headers.get("etag" if is_etag(validator) else "last-modified")
    return got is not None and str(got).strip() != validator


def _date(headers: httpx2.Headers, name: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(headers[name])
    except (KeyError, ValueError, OverflowError):  # the last one for a year of twenty digits
        return None
    return date if date.utcoffset() is not None else None


def length_of(headers: httpx2.Headers) -> int | None:
    """Content-Length, where there is one."""
    text = str(headers.get("content-length", ""))
    return int(text) if _LENGTH.fullmatch(text) else None


def content_range(headers: httpx2.Headers) -> Span | None:
    """That of a 206 answer with one range. None where there is none, or none that makes sense: also
    for ``multipart/byteranges``, which a request for a single range must not be answered with
    (RFC 9110, section 15.3.7.2)."""
    found = _CONTENT_RANGE.fullmatch(str(headers.get("content-range", "")).strip())
    if found is None or _media_type(headers) == "multipart/byteranges":
        return None
    span = Span(int(found[1]), int(found[2]) + 1, None if found[3] is None else int(found[3]))
    makes_sense = span.begin < span.end and (span.total is None or span.end <= span.total)
    return span if makes_sense else None


def unsatisfied_length(headers: httpx2.Headers) -> int | None:
    """How long a 416 answer says that the representation is."""
    found = _UNSATISFIED.fullmatch(str(headers.get("content-range", "")).strip())
    return None if found is None else int(found[1])


def is_coded(headers: httpx2.Headers) -> bool:
    """Whether the body has a content coding (gzip and the like)."""
    codings = str(headers.get("content-encoding", "")).lower().split(",")
    return any(coding.strip() not in ("", "identity") for coding in codings)


def _media_type(headers: httpx2.Headers) -> str:
    return str(headers.get("content-type", "")).partition(";")[0].strip().lower()
