"""What the tests of fleets share."""

from __future__ import annotations

from fleet_app import runtime_folder

__all__ = ["runtime_folder"]
