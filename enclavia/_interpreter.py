"""How this interpreter is started once more, to run a module of this package.

The new process finds modules where this one does. ``PYTHONPATH`` would do that too early: the
folder of a script comes first in ``sys.path``, and a file there that is named like a module of the
standard library (``enum.py``, ``queue.py``) would take its place while the interpreter starts, by
when the script itself has had the right one.

Decides where the new process looks for modules. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import json
import sys
from typing import Final

__all__ = ["python_command"]

_BEGINNING: Final = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "


def python_command(program: str, *arguments: str) -> list[str]:
    """The command that runs ``program``, which finds ``arguments`` in ``sys.argv[1:]``."""
    # Python passes over what is no text (a pathlib.Path), and JSON cannot have it.
    folders = json.dumps([folder for folder in sys.path if isinstance(folder, str)])
    # -P: without the current folder, which has no business before this one's list.
    return [sys.executable, "-P", "-c", _BEGINNING + program, folders, *arguments]
