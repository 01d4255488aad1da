"""What a workload may make this process hold while its answer is read.

Numbers alone; the files beside it decide by them. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

from typing import Final

__all__ = ["DEFAULT_LIMITS", "Limits"]


class Limits:
    """What a workload may make us hold."""

    __slots__ = ("chunk_overhead", "head_bytes", "header_count", "informational")

    def __init__(
        self,
        head_bytes: int = 65_536,
        header_count: int = 256,
        informational: int = 64,
        chunk_overhead: int = 65_536,
    ) -> None:
        self.head_bytes = head_bytes
        self.header_count = header_count
        self.informational = informational
        self.chunk_overhead = chunk_overhead


DEFAULT_LIMITS: Final = Limits()
