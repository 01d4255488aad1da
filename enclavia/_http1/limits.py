"""What a workload may make this process hold while its answer is read.

Numbers alone; the files beside it decide by them. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["DEFAULT_LIMITS", "Limits"]


class Limits(NamedTuple):
    """What a workload may make us hold."""

    head_bytes: int = 65_536
    header_count: int = 256
    informational: int = 64
    chunk_overhead: int = 65_536


DEFAULT_LIMITS: Final = Limits()
