"""Enclaves on this machine, for tests: :class:`LocalEnclave`.

Needs ``pip install 'enclavia[testing]'``. docs/testing.md has the pytest plugin.
"""

# Decides which names are public. Calls: nothing of the package. Locks: none.

from __future__ import annotations

from typing import TYPE_CHECKING

from ._backend import BackendFault
from ._enclave import LocalEnclave
from ._extras import require
from ._fault import Fault
from ._identity import Mode
from ._workload import Interface

if TYPE_CHECKING:
    from ._pki import EnclavePki

__all__ = ["BackendFault", "EnclavePki", "Fault", "Interface", "LocalEnclave", "Mode"]


def __getattr__(name: str) -> object:
    if name == "EnclavePki":  # whose module imports cryptography, which takes long
        require("cryptography", "minting the certificates of a local enclave")
        from ._pki import EnclavePki

        return EnclavePki
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
