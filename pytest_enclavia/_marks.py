"""What the marker ``enclavia`` may say, and which tests need a local enclave.

Decides which keywords there are and which of several markers counts. Calls: enclavia.testing, and
that only for faults. Locks: none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Settings", "Wanted", "settings_for", "skip_where_local", "wanted_by"]

_MODES: Final = ("production", "debug", "stub")
_OF_SETTINGS: Final = ("app", "mode", "in_process")
_OF_FAULTS: Final = (
    "split",
    "record_length",
    "delay",
    "truncated_after",
    "instead_of_attestation",
    "after_attestation",
)
_KEYWORDS: Final = (*_OF_SETTINGS, "fault", *_OF_FAULTS)
_LOCAL: Final = {
    "enclave_faults": "the fixture enclave_faults makes a local enclave fail",
    "enclave_factory": "the fixture enclave_factory starts local enclaves",
}


@dataclass(frozen=True)
class Settings:
    """Which enclave is wanted. None: as the ini file has it."""

    app: Any = None
    mode: str = "production"
    in_process: bool | None = None

    def said(self) -> list[str]:
        return [name for name in _OF_SETTINGS if getattr(self, name) != getattr(Settings, name)]

    def __str__(self) -> str:
        """Part of a test's name: what differs from an enclave that nobody asked for."""
        parts = []
        if self.app is not None:
            named = getattr(self.app, "__qualname__", None) or type(self.app).__qualname__
            parts.append(self.app if isinstance(self.app, str) else named)
        if self.mode != "production":
            parts.append(self.mode)
        if self.in_process is not None:
            parts.append("in this process" if self.in_process else "in a child process")
        return "-".join(parts) or "production"


@dataclass(frozen=True)
class Wanted:
    """What the markers of one test say together."""

    settings: Settings | None = None
    fault: Any = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_fault(self) -> bool:
        return self.fault is not None or bool(self.parameters)


_WANTED: Final = pytest.StashKey[Wanted]()


def _refuse(item: pytest.Item, text: str) -> NoReturn:
    pytest.fail(f"{item.nodeid}: @pytest.mark.enclavia: {text}", pytrace=False)


def wanted_by(item: pytest.Item) -> Wanted:
    """Of several markers (module, class, function) the closest one counts, for each keyword."""
    known = item.stash.get(_WANTED, None)
    if known is None:
        known = item.stash[_WANTED] = _read(item)
    return known


def _read(item: pytest.Item) -> Wanted:
    said: dict[str, Any] = {}
    for marker in item.iter_markers("enclavia"):
        if marker.args:
            _refuse(item, f"expected keywords alone, got the positional {marker.args[0]!r}")
        for name, value in marker.kwargs.items():
            if name not in _KEYWORDS:
                known = ", ".join(_KEYWORDS)
                _refuse(item, f"unknown keyword {name!r}: expected one of {known}")
            said.setdefault(name, value)
    if "mode" in said and said["mode"] not in _MODES:
        _refuse(item, f"mode: expected one of {', '.join(map(repr, _MODES))}, got {said['mode']!r}")
    if "in_process" in said and not isinstance(said["in_process"], bool):
        _refuse(item, f"in_process: expected True or False, got {said['in_process']!r}")
    about = {name: said[name] for name in _OF_SETTINGS if name in said}
    wanted = Wanted(
        Settings(**about) if about else None,
        said.get("fault"),
        {name: said[name] for name in _OF_FAULTS if name in said},
    )
    if "app" in said or wanted.has_fault:
        _check(item, wanted, said)
    return wanted


def _check(item: pytest.Item, wanted: Wanted, said: Mapping[str, Any]) -> None:
    """As LocalEnclave checks it, and without starting one."""
    from enclavia.testing import Fault, LocalEnclave

    fault = Fault(0) if wanted.fault is None else wanted.fault
    if not isinstance(fault, Fault):
        _refuse(item, f"fault: expected a member of enclavia.testing.Fault, got {fault!r}")
    mode = said.get("mode", "production")
    try:
        LocalEnclave(said.get("app", "127.0.0.1:9"), mode=mode, faults=fault, **wanted.parameters)
    except (TypeError, ValueError) as error:
        _refuse(item, str(error))


def settings_for(item: pytest.Item, fixtures: Sequence[str]) -> Settings | None:
    """What the fixture ``enclave`` is to be for this test; None: as the ini file has it."""
    settings = wanted_by(item).settings
    if settings is None or "enclave" not in fixtures:
        return None
    if "_enclavia_pool" not in fixtures:
        _refuse(
            item,
            f"{' and '.join(settings.said())} can be said of the plugin's own fixture enclave, and "
            "this test has another fixture of that name",
        )
    return settings


def skip_where_local(item: pytest.Item) -> None:
    """With a real enclave: skips what only a local one can do, and says why."""
    fixtures = getattr(item, "fixturenames", ())
    reason = next((text for name, text in _LOCAL.items() if name in fixtures), None)
    wanted = wanted_by(item)
    if wanted.has_fault:
        reason = "a fault is something that a local enclave is made to do"
    elif wanted.settings is not None:
        reason = f"the marker asks for a local enclave ({wanted.settings})"
    if reason is not None:
        pytest.skip(f"--enclavia-live: {reason}")
