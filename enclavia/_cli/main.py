"""Runs one command line and gives its exit code. Every error ends here: as one line on standard
error, never as a traceback. Imports click only to run it, because ``doctor`` works without.

Decides which line an error becomes, and how the process ends. Calls: nothing of the package but
what is public. Locks: none.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import httpx2

import enclavia

from . import exits, signals, streams
from .exits import Problem

__all__ = ["main"]

_NO_CLICK = (
    "the command line needs click, which is not installed: pip install 'enclavia[cli]' "
    "(`python -m enclavia doctor` works without it)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. For the process that it has to itself: it takes
    over signals and standard streams."""
    streams.prepare()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        signals.install()
        code = streams.finish(_guarded(given))
        signals.done()
    except signals.Signalled as error:
        code = 128 + error.number
    return code


def _guarded(arguments: list[str]) -> int:
    try:
        return _run(arguments)
    except signals.Signalled as error:
        return 128 + error.number
    except BrokenPipeError:
        return exits.BROKEN_PIPE
    except Problem as problem:
        streams.warn(f"error: {problem}")
        return problem.code
    except (enclavia.EnclaviaError, httpx2.HTTPError, httpx2.InvalidURL) as error:
        streams.warn(f"{type(error).__name__}: {error}")
        return exits.exit_code(error)
    except MemoryError:
        streams.warn("MemoryError: expected memory for the answer, got none")
        return exits.INTERNAL
    except Exception as error:
        # Its text is left out: nobody knows whether it has a header or a body in it.
        streams.warn(
            f"InternalError: expected no {type(error).__name__} at {_place(error)}: this is a bug; "
            "please report it with the output of `enclavia-client doctor`"
        )
        return exits.INTERNAL


def _run(arguments: list[str]) -> int:
    try:
        import click  # noqa: F401 - looks whether it is there
    except ImportError:
        if arguments == ["doctor"]:
            from .examination import plain

            return plain()
        raise Problem(_NO_CLICK) from None
    from .app import run

    return run(arguments)


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
