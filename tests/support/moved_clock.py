"""The clock of the package, which a test may put forward. Certificates are judged by the
machine's."""

from __future__ import annotations

import sys

import pytest

# A module that is loaded while the clock is moved would keep that clock for the next test.
from enclavia._exchange import traced as _traced  # noqa: F401
from enclavia._io import face

__all__ = ["Clock", "moved_clock"]


class Clock:
    """``ahead``: seconds by which it goes before the machine's."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._now = face.now

    def __call__(self) -> float:
        return self._now() + self.ahead


def moved_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In the place of every module's."""
    made, real = Clock(), face.now
    for name, module in list(sys.modules.items()):
        if name.startswith("enclavia.") and getattr(module, "now", None) is real:
            monkeypatch.setattr(module, "now", made)
    assert face.now is made  # type: ignore[comparison-overlap]
    return made
