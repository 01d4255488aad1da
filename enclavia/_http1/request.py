"""Requests to bytes. Refuses whatever could be read as more than one request.

Decides how a request is framed. Calls: _errors. Locks: none.
"""

from __future__ import annotations

import string
from typing import Final, NoReturn

from .._errors import InvalidRequest
from .fields import DIGITS, Headers, list_items, shown_bytes

__all__ = ["BodyEncoder", "asks_to_close", "body_encoder", "encode_head", "expects_continue"]

# The bytes that a token, a field's value and a target are made of. A pattern would say the same,
# and would have to be compiled when this is imported.
_TOKEN: Final = b"!#$%&'*+-.^_`|~" + (string.digits + string.ascii_letters).encode()
_TARGET: Final = bytes((*range(0x21, 0x7F), *range(0x80, 0x100)))
_VALUE: Final = b"\t " + _TARGET

# ---------------------------------------------------------------------------------------------
# Requests


def _has_others(text: bytes, allowed: bytes) -> bool:
    """Whether there is a byte in it that is none of these."""
    return bool(text.translate(None, allowed))


def encode_head(method: bytes, target: bytes, headers: Headers) -> bytes:
    """The request line and the headers; refuses what could be read as more than that."""
    if not method or _has_others(method, _TOKEN):
        raise InvalidRequest(f"expected a method name, got {shown_bytes(method)}")
    if not target or _has_others(target, _TARGET):
        raise InvalidRequest(
            f"expected a target without spaces or controls, got {shown_bytes(target)}"
        )
    names = [name for name, _ in headers]
    values = [value for _, value in headers]
    # All at once: what remains of them without the bytes that they may have is what joined them.
    joints = b"\n" * (len(names) - 1)
    if (
        not all(names)
        or b"\n".join(names).translate(None, _TOKEN) != joints
        or b"\n".join(values).translate(None, _VALUE) != joints
    ):
        _refuse_headers(headers)
    hosts = b"\n".join(names).lower().split(b"\n").count(b"host")
    if hosts != 1:
        raise InvalidRequest(f"expected one Host header, got {hosts}")
    if names[0].lower() != b"host":  # RFC 9110, section 7.2: it should be the first one
        headers = sorted(headers, key=lambda field: field[0].lower() != b"host")
    fields = b"\r\n".join(map(b": ".join, headers))
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method, target, fields)


def _refuse_headers(headers: Headers) -> NoReturn:
    for name, value in headers:
        if not name or _has_others(name, _TOKEN):
            raise InvalidRequest(f"expected a header name, got {shown_bytes(name)}")
        if _has_others(value, _VALUE):
            raise InvalidRequest(
                f"expected a value without line ends and controls for the header "
                f"{name.decode('ascii')}"
            )
    raise InvalidRequest("expected header names and values")


class BodyEncoder:
    """Frames a body, and checks it against the length that the head announced."""

    def __init__(self, length: int | None) -> None:
        self._length = length
        self._sent = 0

    @property
    def length(self) -> int | None:
        """None where the body is chunked."""
        return self._length

    def encode(self, chunk: bytes) -> bytes:
        if not chunk:
            return b""
        self._sent += len(chunk)
        if self._length is None:
            return b"%x\r\n%b\r\n" % (len(chunk), chunk)
        if self._sent > self._length:
            raise InvalidRequest(
                f"expected a body of {self._length} bytes (Content-Length), got at least "
                f"{self._sent}"
            )
        return chunk

    def finish(self) -> bytes:
        if self._length is None:
            return b"0\r\n\r\n"
        if self._sent != self._length:
            raise InvalidRequest(
                f"expected a body of {self._length} bytes (Content-Length), got {self._sent}"
            )
        return b""


def body_encoder(headers: Headers) -> BodyEncoder:
    """How the body of a request with these headers is framed."""
    lengths = [value.strip() for name, value in headers if name.lower() == b"content-length"]
    codings = [value.strip() for name, value in headers if name.lower() == b"transfer-encoding"]
    if lengths and codings:
        raise InvalidRequest("expected Content-Length or Transfer-Encoding, got both")
    if codings:
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise InvalidRequest(
                f"expected Transfer-Encoding: chunked, got {shown_bytes(b', '.join(codings))}"
            )
        return BodyEncoder(None)
    if not lengths:
        return BodyEncoder(0)
    if len(lengths) != 1 or not DIGITS.fullmatch(lengths[0]):
        raise InvalidRequest(
            f"expected one Content-Length of digits, got {shown_bytes(b', '.join(lengths))}"
        )
    return BodyEncoder(int(lengths[0]))


def expects_continue(headers: Headers) -> bool:
    return any(
        name.lower() == b"expect" and value.strip().lower() == b"100-continue"
        for name, value in headers
    )


def asks_to_close(headers: Headers) -> bool:
    return b"close" in list_items(headers, b"connection")
