"""Enclaves on this machine, for tests: :class:`LocalEnclave`.

Needs ``pip install 'enclavia[testing]'``.
"""

# Decides which names are public. Calls: nothing of the package. Locks: none.

from __future__ import annotations

from ._backend import BackendFault
from ._enclave import LocalEnclave
from ._fault import Fault
from ._identity import Mode
from ._workload import Interface

__all__ = ["BackendFault", "Fault", "Interface", "LocalEnclave", "Mode"]
