"""What the tests of pins share."""

from __future__ import annotations

from pinned import enclave, workload

__all__ = ["enclave", "workload"]
