"""The versions that a policy allows: their pins, their names, and how long each is allowed.

Decides which of them are allowed at a moment. Calls: _identity. Locks: none.
"""

from typing import NamedTuple

from .._identity.pcrs import PinSet
from .._identity.pins import PinNames, PinTuples

__all__ = ["AllowedVersion", "AllowedVersions", "pins_of"]


class AllowedVersion(NamedTuple):
    """One version of a policy."""

    name: str
    pins: PinSet
    not_after: float | None
    """Unix seconds: the last moment at which it is allowed."""


class AllowedVersions(NamedTuple):
    """The versions of a policy, as ``pcrs=``. See :attr:`Policy.pins`."""

    versions: tuple[AllowedVersion, ...]

    @property
    def names(self) -> PinNames:
        return tuple((version.pins, version.name) for version in self.versions)

    def in_force(self, at: float) -> tuple[AllowedVersion, ...]:
        return tuple(
            version
            for version in self.versions
            if version.not_after is None or at <= version.not_after
        )


def pins_of(versions: tuple[AllowedVersion, ...]) -> PinTuples:
    return tuple(version.pins for version in versions)
