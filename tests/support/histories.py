"""Histories of upgradable enclaves for tests: made at any time, each link broken in any way."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from typing import Any

import enclavia
from enclavia.testing._history import ControlKey, History, Spec, Version, version_of
from enclavia.testing._identity import Authority

BEGIN = datetime(2025, 1, 6, 12, 0, 0, tzinfo=UTC)
NOW = datetime(2028, 3, 1, 12, 0, 0, tzinfo=UTC)
ONE, TWO, THREE = (version_of(name) for name in ("one", "two", "three"))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@functools.cache
def authority() -> Authority:
    """Whose root has been valid since before every history."""
    made = Authority(since=BEGIN - DAY)
    made.issue(BEGIN)
    return made


@functools.cache
def control_key() -> ControlKey:
    return ControlKey()


@functools.cache
def root() -> bytes:
    return authority().issue(BEGIN).root_pem


@functools.lru_cache(maxsize=512)
def issued(at: datetime) -> Any:
    """Certificates are slow to make, so links of one moment share them."""
    return authority().issue(at)


class Made(History):
    """A history whose moments are given in days since it began."""

    def __init__(self) -> None:
        super().__init__(authority(), key=control_key())

    def boots(self, version: Version, day: float) -> Spec:
        at = BEGIN + day * DAY
        return self.boot(version, at, issued(at))

    def upgrades(self, target: Version, day: float, valid: float, **more: Any) -> Spec:
        at = BEGIN + day * DAY
        return self.upgrade(target, BEGIN + valid * DAY, at, issued(at), **more)

    def revokes(self, upgrade: Spec, day: float) -> Spec:
        at = BEGIN + day * DAY
        assert upgrade.id is not None
        return self.revoke(upgrade.id, at, issued(at))


def began() -> Made:
    """One, on the first day."""
    made = Made()
    made.boots(ONE, 0)
    return made


def authorised(valid: float, **more: Any) -> Made:
    """The same, and an upgrade to two, authorised on day 1 and valid from day ``valid`` on."""
    made = began()
    made.upgrades(TWO, 1, valid, **more)
    return made


def upgraded() -> Made:
    """One, restarted, then two, then three, over years."""
    made = began()
    made.boots(ONE, 1)
    made.upgrades(TWO, 100, 101)
    made.boots(TWO, 102)
    made.upgrades(THREE, 800, 801)
    made.boots(THREE, 802)
    return made


def verify(history: History, specs: Any = None, **options: Any) -> enclavia.UpgradeChain:
    row = options.pop("row", None)
    given = {
        "pcrs": ONE.pcrs,
        "enclave_id": history.enclave_id,
        "root": root(),
        "at": NOW,
        **options,
    }
    text = history.row_json() if row is None else row
    return enclavia.verify_upgrade_chain(text, history.links_json(specs), **given)
