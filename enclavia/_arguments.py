"""Checks of arguments: what is outside the domain is refused where it is given.

A wrong kind of object is a TypeError, a value outside the domain a ValueError; the messages say
which argument it is, what was expected and what was got.

Decides nothing else. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import errno
import inspect
import operator
import os
import stat
import threading
from typing import Final

import httpx2

__all__ = [
    "TIMEOUT_MAX",
    "address",
    "byte_view",
    "check_buffer",
    "expect_file",
    "flag",
    "hook",
    "is_async",
    "one_of",
    "path_text",
    "real",
    "seconds",
    "timeout",
    "timeout_members",
    "value_shown",
    "whole",
]

TIMEOUT_MAX: Final = threading.TIMEOUT_MAX
"""Seconds: about 292 years, the longest wait that Python's own locks take."""

_SHOWN = 60


def value_shown(value: object) -> str:
    """``repr``, not above one line. Python refuses to write integers of thousands of digits."""
    try:
        text = repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value_shown(value)}")
    return value


def whole(
    name: str, value: object, least: int | None, most: int | None = None, *, because: str = ""
) -> int:
    """An int, or what can be used as one (``__index__``: the integers of numpy)."""
    number: int | None = None
    if not isinstance(value, bool):
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            number = None
    if number is None:
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}")
    if (least is not None and number < least) or (most is not None and number > most):
        domain = f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: expected {domain}{because}, got {value_shown(value)}")
    return number


def seconds(
    name: str,
    value: object,
    *,
    most: float = TIMEOUT_MAX,
    above_zero: bool = False,
    otherwise: str = "",
) -> float:
    """A finite number of seconds of any numeric type. ``otherwise``: what else the caller takes."""
    number = real(value)
    if number is None:
        kind = "a number of seconds"
        if otherwise:
            kind += f" or {otherwise}"
        raise TypeError(f"{name}: expected {kind}, got {type(value).__name__}")
    if not (0 < number <= most if above_zero else 0 <= number <= most):  # nor is it a NaN
        domain = f"more than 0 and at most {most:g}" if above_zero else f"0 to {most:g}"
        or_else = f" or {otherwise}" if otherwise else ""
        raise ValueError(f"{name}: expected {domain} seconds{or_else}, got {value_shown(value)}")
    return number


def real(value: object) -> float | None:
    """None where it is no real number. Text has no ``__float__``; a bool is no number of anything.
    Fractions, decimals and the numbers of numpy have one of the two methods."""
    kind = type(value)
    if isinstance(value, bool) or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")  # type: ignore[operator]
    except (TypeError, ValueError):
        return None


def timeout(name: str, value: object, *, otherwise: str = " or None") -> float | None:
    """Seconds that a call may wait. None: without a limit, which is also what a wait is that is
    longer than any lock of Python's takes (``float("inf")``)."""
    if value is None:
        return None
    number = real(value)
    if number is None:
        raise TypeError(
            f"{name}: expected a number of seconds{otherwise}, got {type(value).__name__}"
        )
    if not number >= 0:  # nor is it a NaN
        raise ValueError(
            f"{name}: expected 0 or more seconds, or None for no limit, got {value_shown(value)}"
        )
    return number if number <= TIMEOUT_MAX else None


_MEMBERS: Final = ("connect", "read", "write", "pool")


def timeout_members(
    name: str, value: object
) -> tuple[float | None, float | None, float | None, float | None]:
    """What ``httpx2.Timeout`` takes: a number, None, one of its objects, or a tuple of its members
    in their order, of which the last two may be missing. Another library's object of the same
    members will do."""
    members: tuple[object, ...]
    if isinstance(value, tuple):
        if not 2 <= len(value) <= 4:
            raise ValueError(
                f"{name}: expected 2 to 4 numbers ({', '.join(_MEMBERS)}), got {len(value)}"
            )
        members = (*value, None, None)[:4]
    elif isinstance(value, httpx2.Timeout) or all(hasattr(value, each) for each in _MEMBERS):
        members = tuple(getattr(value, each) for each in _MEMBERS)
    else:
        one = timeout(name, value, otherwise=", None, or an httpx2.Timeout")
        return one, one, one, one
    connect, read, write, pool = (
        timeout(f"{name} ({each})", member) for each, member in zip(_MEMBERS, members, strict=True)
    )
    return connect, read, write, pool


def is_async(function: object) -> bool:
    """Whether calling it makes a coroutine, as far as that can be told without calling it."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is looked at
    )


def hook(name: str, value: object, parameters: str) -> None:
    """A function of the caller's that takes as many arguments as there are words in ``parameters``
    (with commas between them); whether it is async is for others to say."""
    shape = f"f({parameters})"
    if not callable(value):
        raise TypeError(f"{name}: expected {shape} or None, got {type(value).__name__}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # of some written in C nothing is known
        return
    try:
        signature.bind(*parameters.split(", "))
    except TypeError:
        raise TypeError(f"{name}: expected {shape}, got one that takes {signature}") from None


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    expected = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name}: expected {expected}, got {value_shown(value)}")


def path_text(name: str, value: object, expected: str) -> str:
    """The path of a file as text that both Python and C can open."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(path, str):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if not path:
        raise ValueError(f"{name}: expected {expected}, got an empty text")
    if "\0" in path:
        raise ValueError(f"{name}: expected {expected}, got one with a NUL: {value_shown(path)}")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(
            f"{name}: expected {expected}, got one that no file can have: {value_shown(path)}"
        ) from None
    return path


def expect_file(name: str, path: str, expected: str) -> None:
    """FileNotFoundError where there is nothing, ValueError where there is a directory."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            errno.ENOENT, f"{name}: expected the path of {expected}, got one of no file", path
        ) from None
    if stat.S_ISDIR(mode):
        raise ValueError(
            f"{name}: expected the path of {expected}, got the directory {value_shown(path)}"
        )


def address(name: str, host: object, port: object) -> tuple[str, int]:
    """A host and a port that the resolver can be asked for."""
    if not isinstance(host, str):
        raise TypeError(f"{name}: expected a host as text, got {type(host).__name__}")
    try:
        host.encode("idna")
    except UnicodeError:
        usable = False
    else:
        usable = bool(host) and "\0" not in host
    if not usable:
        raise ValueError(f"{name}: expected the name or address of a host, got {value_shown(host)}")
    return host, whole(f"{name} (port)", port, 1, 65535)


def byte_view(name: str, data: object, *, writable: bool = False) -> memoryview:
    """The bytes of a buffer of any type and shape."""
    check_buffer(name, data, writable=writable)
    view = memoryview(data)  # type: ignore[arg-type]
    # An array with nothing in it cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def check_buffer(name: str, data: object, *, writable: bool = False) -> None:
    expected = "a writable buffer" if writable else "bytes or another buffer"
    try:
        view = memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected {expected}, got {type(data).__name__}") from None
    except (ValueError, BufferError) as error:  # a released memoryview
        raise ValueError(f"{name}: expected {expected}, got one that is closed: {error}") from None
    with view:
        if writable and view.readonly:
            raise TypeError(f"{name}: expected {expected}, got {type(data).__name__}: read-only")
        if not view.c_contiguous:
            raise ValueError(f"{name}: expected {expected} in one piece, got a strided one")
