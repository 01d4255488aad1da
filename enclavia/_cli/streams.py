"""Standard input, output and error: reading, writing, and what happens where one of them is closed.

Text that somebody else may have chosen (a server's, a file's, an argument's) is shown with
:func:`visible`. Bodies go out as the bytes they are.

Decides how text from outside is shown. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, BinaryIO, Final, TextIO, cast

from .exits import BROKEN_PIPE, CANNOT_WRITE, Problem

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "coloured",
    "error_terminal",
    "finish",
    "prepare",
    "read_all",
    "read_input",
    "read_some",
    "say",
    "stdin_bytes",
    "stdout_bytes",
    "visible",
    "warn",
]

_LONGEST: Final = 2000


def visible(text: str, limit: int = _LONGEST) -> str:
    """What can be printed stays as it is. Line ends, other controls, format characters (those that
    change the direction of writing among them) and surrogates become escapes, so that nobody who
    chose a part of a message can make it look like two, or steer the terminal that shows it. Cut
    after ``limit`` characters."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of an argument or a file name, not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def prepare() -> None:
    """To be called first. A closed descriptor 0, 1 or 2 would be the next file's or socket's, and
    whatever a library writes to standard error would end up in it, so each of them is opened on
    the null device. Python's own stream stays None, which says that it was closed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor, inheritable=True)
                os.close(opened)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def error_terminal() -> TextIO | None:
    """Standard error where a person looks at it; None otherwise."""
    return sys.stderr if _is_terminal(sys.stderr) else None


def coloured(text: str, code: int, stream: TextIO | None = None) -> str:
    """In the terminal's colour ``code`` (30 to 37) where standard output (or ``stream``) is a
    terminal and nobody has asked for none (https://no-color.org)."""
    stream = sys.stdout if stream is None else stream
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{code}m{text}\x1b[0m" if wanted and _is_terminal(stream) else text


def say(*lines: str) -> None:
    """Lines of the program's own answer, to standard output at once. Raises BrokenPipeError where
    nobody reads it, and a Problem where it cannot be written."""
    stream = sys.stdout
    if stream is None:
        raise Problem("expected standard output to be open, got a closed one", CANNOT_WRITE)
    try:
        stream.write("".join(f"{line}\n" for line in lines))
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Problem(f"standard output: {error.strerror}", CANNOT_WRITE) from None


def warn(text: str) -> None:
    """A line on standard error. Where that cannot be written nothing can be said about it."""
    stream = sys.stderr
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):
        stream.write(visible(text) + "\n")
        stream.flush()


def stdout_bytes() -> BinaryIO:
    """Standard output for a body."""
    if sys.stdout is None:
        raise Problem("expected standard output to be open, got a closed one", CANNOT_WRITE)
    return sys.stdout.buffer


def stdin_bytes() -> io.BufferedReader:
    """Standard input for a body or a file."""
    if sys.stdin is None:
        raise Problem("expected standard input to be open, got a closed one")
    file = cast(io.BufferedReader, sys.stdin.buffer)
    if os.get_blocking(file.fileno()):
        return file
    return io.BufferedReader(_Waiting(cast(io.RawIOBase, file.raw)))


class _Waiting(io.RawIOBase):
    """Of a descriptor that does not wait, since somebody who has the same pipe or terminal has made
    it so. A buffered file gives nothing there at the end and also before more comes: a part of a
    body, or of what is to be verified, would pass for the whole."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int | None:
        while (got := self._raw.readinto(buffer)) is None:
            select.select([self._raw], [], [])
        return got


def read_input(name: str, what: str, most: int) -> bytes:
    """A whole file, or standard input where it is named ``-``: at most ``most`` bytes. A Problem
    says what ``what`` it should have been."""
    if name == "-":
        return _bounded(stdin_bytes(), "standard input", what, most)
    try:
        with open(name, "rb") as file:
            return _bounded(file, visible(name), what, most)
    except OSError as error:
        got = f"{visible(name)}: {error.strerror}" if name else "an empty name"
        raise Problem(f"expected {what}, got {got}") from None


def _bounded(file: io.BufferedReader, name: str, what: str, most: int) -> bytes:
    try:
        content = read_all(file, most + 1)
    except OSError as error:
        raise Problem(f"expected {what}, got {name}: {error.strerror}") from None
    if len(content) > most:
        raise Problem(f"expected {what} of at most {most} bytes, got more in {name}")
    return content


def read_all(file: io.BufferedReader, most: int) -> bytes:
    """What there is, up to ``most`` bytes; fewer only at the end."""
    pieces: list[bytes] = []
    left = most
    while left and (piece := read_some(file, min(left, 65536))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def read_some(file: io.BufferedReader, most: int) -> bytes:
    """1 to ``most`` bytes, as soon as there are some; none at the end.

    By ``read1``, as everything that reads standard input: ``read`` swallows the end of a terminal's
    input (Ctrl-D) behind what was typed, and the next one waits for a second end."""
    return file.read1(most)


def finish(code: int) -> int:
    """Writes what is left, so that the interpreter has nothing to complain of when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except ValueError:
            pass  # closed by somebody
        except OSError as error:
            if code == 0:
                code = BROKEN_PIPE if error.errno == errno.EPIPE else CANNOT_WRITE
            _point_to_null(stream)
    return code


def _point_to_null(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
