"""The headers and the body of a request, from arguments, files and standard input. No error message
has a header's value or a body in it: they may be secret.

Decides what an argument stands for: text, a file or standard input. Calls: nothing of the package.
Locks: none.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from typing import BinaryIO, Final, NoReturn

from . import streams
from .exits import Problem

__all__ = ["body_of", "headers_of", "json_body"]

Headers = list[tuple[bytes, bytes]]

_HEADERS_MAX: Final = 1024 * 1024
_IN_MEMORY: Final = 1024 * 1024
_JSON_MAX: Final = 256 * 1024 * 1024
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_EXPECTED: Final = "-H: expected 'Name: value'"


def headers_of(texts: tuple[str, ...]) -> Headers:
    """Of ``Name: value`` each, or ``@FILE`` with one in each line."""
    found: Headers = []
    for text in texts:
        if text.startswith("@"):
            content = streams.read_input(text[1:], "a file with headers", _HEADERS_MAX)
            found += [_header(line) for line in content.splitlines() if line.strip()]
        else:
            found.append(_header(os.fsencode(text)))
    return found


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon:
        raise Problem(f"{_EXPECTED}, got one without a colon")
    if not _NAME.fullmatch(name):
        raise Problem(f"{_EXPECTED}, got a name with characters that no header's name may have")
    if not _VALUE.fullmatch(value):
        raise Problem(f"{_EXPECTED}, got controls or line ends in that of {name.decode('ascii')}")
    return name, value


def body_of(text: str) -> bytes | BinaryIO | Iterator[bytes]:
    """``@FILE``: the file's bytes. ``-`` and ``@-``: those of standard input. Else the text's.

    What is short is read at once, and can be sent again where a connection was lost; a long file is
    sent with its length, and a long standard input in chunks."""
    if text in ("-", "@-"):
        return _stdin()
    if text.startswith("@"):
        return _file(text[1:])
    return os.fsencode(text)


def _stdin() -> bytes | Iterator[bytes]:
    file = streams.stdin_bytes()
    try:
        first = streams.read_all(file, _IN_MEMORY)
    except OSError as error:
        raise Problem(f"standard input: {error.strerror}") from None
    return first if len(first) < _IN_MEMORY else _pieces(first, file)


def _pieces(first: bytes, file: io.BufferedReader) -> Iterator[bytes]:
    yield first
    while True:
        try:
            piece = streams.read_some(file, 65536)
        except OSError as error:
            raise Problem(f"standard input: {error.strerror}") from None
        if not piece:
            return
        yield piece


def _file(name: str) -> bytes | BinaryIO | Iterator[bytes]:
    try:
        file = open(name, "rb")  # noqa: SIM115 - it is read while it is sent
        first = streams.read_all(file, _IN_MEMORY)
        if len(first) < _IN_MEMORY:
            file.close()
            return first
        if file.seekable():
            file.seek(0)
    except OSError as error:
        got = f"{streams.visible(name)}: {error.strerror}" if name else "an empty name"
        raise Problem(f"expected a file with the body, got {got}") from None
    return file if file.seekable() else _pieces(first, file)


def json_body(text: str) -> bytes:
    """As :func:`body_of`, checked to be JSON, and sent as it was written."""
    if text in ("-", "@-") or text.startswith("@"):
        name = "-" if text == "-" else text[1:]
        content = streams.read_input(name, "a file with JSON", _JSON_MAX)
    else:
        content = os.fsencode(text)
    try:
        json.loads(content, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise Problem(
            f"--json: expected JSON, got something else at line {error.lineno}, column "
            f"{error.colno}: {error.msg}"
        ) from None
    except UnicodeDecodeError:
        raise Problem("--json: expected JSON in UTF-8, got what is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        got = str(error) if isinstance(error, _ConstantError) else "what is too deep or too long"
        raise Problem(f"--json: expected JSON, got {got}") from None
    return content


class _ConstantError(ValueError):
    pass


def _no_constant(name: str) -> NoReturn:
    raise _ConstantError(f"{name}, which JSON does not have")
