"""The libraries of the extra ``forward``, which are imported when a forwarder starts.

A forwarder that lacked one only where it is needed would run for days, and fail when it is asked.

Decides how a missing library is reported. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Final

__all__ = ["METRICS", "load"]

METRICS: Final = "prometheus_client"


def load(module: str) -> ModuleType:
    """Imports it, or says how to install what is missing: itself, or what it needs in turn."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise ImportError(
            f"a forwarder needs {missing}, which is not installed: pip install 'enclavia[forward]'",
            name=error.name,
        ) from None
