"""``pki``: the package's certificates for local enclaves, also where the package is not built."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import repository

__all__ = ["pki"]


def _load() -> ModuleType:
    """By its path: importing the package would need the built extension."""
    path = repository.ROOT / "enclavia/testing/_pki.py"
    spec = importlib.util.spec_from_file_location("enclavia_testing_pki", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from enclavia.testing import _pki as pki
else:
    pki = _load()
