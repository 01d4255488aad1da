"""Imports packages that only local enclaves need, when one is started.

Decides how a missing package is reported. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module: str, purpose: str) -> ModuleType:
    """Imports ``module``, or says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise
        raise ImportError(
            f"{purpose} needs {package}, which is not installed: pip install 'enclavia[testing]'",
            name=error.name,
        ) from None
