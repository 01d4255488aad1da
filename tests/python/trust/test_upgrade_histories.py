"""Random histories of boots, upgrades and revocations, against a plain model of the rules."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from histories import ONE, Made, verify

import enclavia
from enclavia.testing._history import Spec, Version, version_of

ROUNDS = int(os.environ.get("ENCLAVIA_HISTORIES", "60"))
VERSIONS = [ONE, *(version_of(f"history {n}") for n in range(3))]


class Model:
    """The rules, written down once more and as plainly as can be: what may be the next link."""

    def __init__(self, allow_rollback: bool) -> None:
        self.allow_rollback = allow_rollback
        self.ran: list[Version] = []
        self.upgrades: list[dict[str, Any]] = []

    @property
    def running(self) -> Version:
        return self.ran[-1]

    def boot(self, version: Version, day: float) -> bool:
        if not self.ran:
            self.ran.append(version)
            return True
        if version == self.running:
            return True
        if version in self.ran:
            if self.allow_rollback:
                self.ran.append(version)
            return self.allow_rollback
        earlier = any(version.pcrs == ran.pcrs for ran in self.ran)  # under another digest
        if earlier and version.pcrs != self.running.pcrs and not self.allow_rollback:
            return False
        valid = [
            upgrade
            for upgrade in self.upgrades
            if not upgrade["revoked"]
            and upgrade["start"] == self.running.pcrs
            and upgrade["valid"] <= day
        ]
        if not valid or valid[-1]["target"] != version:
            return False
        self.ran.append(version)
        return True

    def upgrade(self, spec: Spec, start: Any, target: Version, valid: float) -> bool:
        if not self.ran:
            return False
        self.upgrades.append(
            {"id": spec.id, "start": start, "target": target, "valid": valid, "revoked": False}
        )
        return True

    def revoke(self, target: Spec, day: float) -> bool:
        for upgrade in self.upgrades:
            if upgrade["id"] == target.id:
                if upgrade["revoked"] or day >= upgrade["valid"]:
                    return False
                upgrade["revoked"] = True
                return True
        return False


def next_boot(rng: random.Random, model: Model, day: float) -> tuple[Version, float]:
    """Mostly one that the rules allow, and in time, so that histories grow."""
    ready = [
        upgrade
        for upgrade in model.upgrades
        if not upgrade["revoked"] and upgrade["start"] == model.running.pcrs
    ]
    if not ready or rng.random() < 0.2:
        return (model.running if rng.random() < 0.8 else rng.choice(VERSIONS)), day
    upgrade = ready[-1] if rng.random() < 0.8 else rng.choice(ready)
    return upgrade["target"], max(day, upgrade["valid"]) if rng.random() < 0.8 else day


def grow(rng: random.Random, allow_rollback: bool) -> tuple[Made, Model, int | None]:
    """A history, and the index of the first link that the rules refuse."""
    made, model = Made(), Model(allow_rollback)
    made.boots(ONE, 0)
    assert model.boot(ONE, 0)
    day = 0.0
    for index in range(1, rng.randrange(2, 12)):
        day += rng.choice((0.0, 0.5, 1.0, 2.0))
        choice = rng.random()
        if choice < 0.5:
            version, day = next_boot(rng, model, day)
            made.boots(version, day)
            good = model.boot(version, day)
        elif choice < 0.92:
            new = [version for version in VERSIONS if version not in model.ran]
            target = rng.choice(new if new and rng.random() < 0.7 else VERSIONS)
            valid = day + rng.choice((-1.0, 0.0, 0.5, 1.0, 3.0))
            start = model.running.pcrs if rng.random() < 0.8 else rng.choice(VERSIONS).pcrs
            spec = made.upgrades(target, day, valid, start=start)
            good = model.upgrade(spec, start, target, valid)
        else:
            upgrades = [spec for spec in made.specs if spec.kind == "upgrade"]
            target_spec = rng.choice(upgrades or made.specs)
            made.revokes(target_spec, day)
            good = model.revoke(target_spec, day)
        if not good:
            return made, model, index
    return made, model, None


@pytest.mark.parametrize("allow_rollback", [False, True])
def test_random_histories(allow_rollback: bool) -> None:
    rng = random.Random(f"histories {allow_rollback}")
    held = upgraded = refused = 0
    for _ in range(ROUNDS):
        made, model, wrong = grow(rng, allow_rollback)
        # The version that runs is not what attests a link after a refused boot.
        try:
            chain = verify(made, allow_rollback=allow_rollback)
        except enclavia.UpgradeChainError as error:
            assert error.link == wrong, (error, [spec.kind for spec in made.specs])
            refused += 1
        else:
            assert wrong is None, [spec.kind for spec in made.specs]
            assert chain.pcrs == model.running.pcrs
            assert chain.image_digest == model.running.image_digest
            held += 1
            upgraded += len(model.ran) > 1
    assert min(held, refused, upgraded) > ROUNDS // 10
