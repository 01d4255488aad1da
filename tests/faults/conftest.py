from __future__ import annotations

from interop.conftest import peer, programs, reference, start_peer, workload

__all__ = ["peer", "programs", "reference", "start_peer", "workload"]
