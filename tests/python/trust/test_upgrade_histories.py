"""Random histories of boots, upgrades and revocations, against a plain model of the rules."""

from __future__ import annotations

import collections
import copy
import os
import random
from typing import Any

import pytest
from histories import ONE, Made, verify

import enclavia
from enclavia.testing._history import Spec, Version, version_of

ROUNDS = int(os.environ.get("ENCLAVIA_HISTORIES", "60"))
KINDS = (None, "boot", "revocation")
"""Of the link that the rules refuse."""
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


class Growing:
    """A history and its model, which grow by links that the rules take, and may end with one that
    they refuse."""

    def __init__(self, rng: random.Random, allow_rollback: bool) -> None:
        self.rng = rng
        self.made, self.model = Made(), Model(allow_rollback)
        self.day = 0.0
        self.boot(ONE)

    def boot(self, version: Version) -> bool:
        self.made.boots(version, self.day)
        return self.model.boot(version, self.day)

    def authorise(self, target: Version, valid: float, start: Any = None) -> Spec:
        start = self.model.running.pcrs if start is None else start
        spec = self.made.upgrades(target, self.day, valid, start=start)
        assert self.model.upgrade(spec, start, target, valid)
        return spec

    def revoke(self, target: Spec) -> bool:
        self.made.revokes(target, self.day)
        return self.model.revoke(target, self.day)

    # What the rules take, whatever was before.

    def new_version(self) -> None:
        """Authorised and booted: one that has not run."""
        new = [version for version in VERSIONS if version not in self.model.ran]
        target = self.rng.choice(new or [version_of(f"later {len(self.model.ran)}")])
        valid = self.day + self.rng.choice((-1.0, 0.0, 0.5, 1.0))
        self.authorise(target, valid)
        self.day = max(self.day, valid)
        assert self.boot(target)

    def withdrawn(self) -> None:
        """Authorised and revoked before it is valid."""
        spec = self.authorise(self.rng.choice(VERSIONS), self.day + 3.0)
        self.day += self.rng.choice((0.0, 1.0, 2.0))
        assert self.revoke(spec)

    # What they may take or refuse, tried on a copy of the model.

    def try_boot(self, good: bool) -> bool:
        version, day = next_boot(self.rng, self.model, self.day)
        if not good:  # one that was authorised, but not so
            targets = [upgrade["target"] for upgrade in self.model.upgrades]
            version, day = self.rng.choice([*targets, *VERSIONS]), self.day
        if copy.deepcopy(self.model).boot(version, day) is not good:
            return False
        self.day = day
        assert self.boot(version) is good
        return True

    def try_revocation(self, good: bool) -> bool:
        upgrades = [spec for spec in self.made.specs if spec.kind == "upgrade"]
        spec = self.rng.choice(upgrades or self.made.specs)
        if copy.deepcopy(self.model).revoke(spec, self.day) is not good:
            return False
        assert self.revoke(spec) is good
        return True

    def links(self) -> None:
        """At random, of those that the rules take."""
        for _ in range(self.rng.randrange(5)):
            self.day += self.rng.choice((0.0, 0.5, 1.0, 2.0))
            choice = self.rng.random()
            if choice < 0.5:
                self.try_boot(good=True)
            elif choice < 0.9:
                valid = self.day + self.rng.choice((-1.0, 0.0, 0.5, 1.0, 3.0))
                start = None if self.rng.random() < 0.8 else self.rng.choice(VERSIONS).pcrs
                self.authorise(self.rng.choice(VERSIONS), valid, start)
            else:
                self.try_revocation(good=True)

    def wrong_link(self, kind: str) -> int:
        """The index of one that the rules refuse, the last."""
        attempt = self.try_boot if kind == "boot" else self.try_revocation
        if self.rng.random() < 0.5:
            self.withdrawn()
            self.day += 3.0
        for _ in range(20):
            self.day += self.rng.choice((0.0, 0.5, 1.0, 2.0))
            if attempt(good=False):
                break
        else:
            assert not self.boot(version_of("one that nobody has authorised"))
        return len(self.made.specs) - 1


def grow(
    rng: random.Random, allow_rollback: bool, again: bool, wrong: str | None
) -> tuple[Growing, int | None]:
    """With one upgrade, or with ``again`` two and one that was revoked in between. ``wrong``: the
    kind of a last link that the rules refuse, whose index is the result."""
    growing = Growing(rng, allow_rollback)
    growing.links()
    growing.new_version()
    growing.links()
    if again:
        growing.withdrawn()
        growing.new_version()
        growing.links()
    return growing, None if wrong is None else growing.wrong_link(wrong)


@pytest.mark.parametrize("allow_rollback", [False, True])
def test_random_histories(allow_rollback: bool) -> None:
    rng = random.Random(f"histories {allow_rollback}")
    found: collections.Counter[str] = collections.Counter()
    for number in range(ROUNDS):
        growing, wrong = grow(rng, allow_rollback, number % 2 == 0, KINDS[number % 3])
        made, model = growing.made, growing.model
        # The version that runs is not what attests a link after a refused boot.
        try:
            chain = verify(made, allow_rollback=allow_rollback)
        except enclavia.UpgradeChainError as error:
            assert error.link == wrong, (error, [spec.kind for spec in made.specs])
            found[f"refused {made.specs[-1].kind}"] += 1
        else:
            assert wrong is None, [spec.kind for spec in made.specs]
            assert chain.pcrs == model.running.pcrs
            assert chain.image_digest == model.running.image_digest
            found["held"] += 1
            found["upgraded"] += len(set(model.ran)) > 1
            found["upgraded twice"] += len(set(model.ran)) > 2
            found["revoked"] += any(upgrade["revoked"] for upgrade in model.upgrades)
    # By construction: a third of each kind, and half of those twice.
    assert found["held"] == found["upgraded"] == -(-ROUNDS // 3), found
    assert min(found["refused boot"], found["refused revocation"]) == ROUNDS // 3, found
    assert min(found["upgraded twice"], found["revoked"]) >= ROUNDS // 6, found
