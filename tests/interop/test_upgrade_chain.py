"""Chains of upgrades: those made by the published crate judged by us, ours by it, and where the two
differ (docs/upgrades.md, "What differs from the reference client")."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from histories import (
    BEGIN,
    DAY,
    NOW,
    ONE,
    THREE,
    TWO,
    Made,
    authorised,
    began,
    issued,
    root,
    upgraded,
    verify,
)

import enclavia


def asked(programs: Path, command: str, given: object = None) -> Any:
    ended = subprocess.run(
        [programs / "upgrade-chain", command],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(ended.stdout)


@pytest.fixture(scope="module", autouse=True)
def built(programs: Path) -> None:
    if not (programs / "upgrade-chain").exists():
        pytest.skip(f"{programs} has no upgrade-chain: build tests/interop/peer anew")


@pytest.fixture(scope="module")
def made(programs: Path) -> Any:
    return asked(programs, "make")


def judged_by_us(made: Any, **options: Any) -> enclavia.UpgradeChain:
    pins = enclavia.Pcrs(**{name.lower(): value for name, value in made["pcrs"].items()})
    given = {"pcrs": pins, "enclave_id": made["enclave_id"], "debug_mode": True, **options}
    return enclavia.verify_upgrade_chain(
        json.dumps(made["row"]), json.dumps(made["links"]), **given
    )


def judged_by_the_crate(programs: Path, history: Made, specs: Any = None) -> Any:
    """In its debug mode, because AWS's root is compiled in: it looks at structure, PCRs and user
    data of documents, and at everything else of the links."""
    given = {"row": history.row(), "links": history.links(specs), "debug": True}
    return asked(programs, "validate", given)


def test_a_chain_of_the_crate_is_followed(made: Any) -> None:
    chain = judged_by_us(made)
    assert chain.pcrs.as_dict() == made["final_pcrs"]
    assert chain.row_agrees
    assert [link.kind for link in chain.links] == [
        "boot", "upgrade", "revocation", "upgrade", "boot",
    ]  # fmt: skip
    with pytest.raises(enclavia.UpgradeChainError):
        judged_by_us(made, debug_mode=False)


def test_a_chain_of_the_crate_that_was_changed_is_refused(made: Any) -> None:
    for index, link in enumerate(made["links"]):
        signature = link.get("signature")
        if signature is None:
            continue
        other = {**link, "signature": ("A" if signature[0] != "A" else "B") + signature[1:]}
        links = [*made["links"][:index], other, *made["links"][index + 1 :]]
        with pytest.raises(enclavia.UpgradeChainError, match=f"link {index}"):
            judged_by_us({**made, "links": links})


def test_a_chain_of_ours_is_taken_by_the_crate(programs: Path) -> None:
    history = upgraded()
    del history.specs[1]  # the crate records no restarts
    told = judged_by_the_crate(programs, history)
    assert told["outcomes"] == ["ok"] * len(history.specs), told
    assert told["tip_matches_row"]
    assert told["final_pcrs"] == THREE.pcrs.as_dict()
    assert verify(history).pcrs == THREE.pcrs


def earlier_version() -> Made:
    history = upgraded()
    history.upgrades(TWO, 803, 804)
    history.boots(TWO, 805)
    return history


def other_start() -> Made:
    history = authorised(2, start=THREE.pcrs)
    history.boots(TWO, 3)
    return history


def too_early() -> Made:
    history = authorised(9)
    history.boots(TWO, 3)
    return history


def superseded() -> Made:
    history = authorised(2)
    history.upgrades(THREE, 1.5, 2)
    history.boots(TWO, 3)
    return history


def foreign() -> Made:
    history = authorised(2)
    history.boots(TWO, 3)
    fields = {**history.specs[1].fields, "enclave_id": bytes(16)}
    history.specs[1] = replace(history.specs[1], fields=fields)
    return history


def back_in_time() -> Made:
    history = Made()
    history.boots(ONE, 5)
    history.upgrades(TWO, 1, 1)
    history.boots(TWO, 6)
    return history


def unknown_field() -> Made:
    history = began()
    history.specs[0] = replace(history.specs[0], fields={**history.specs[0].fields, "version": 2})
    return history


def another_sequence() -> Made:
    history = began()
    history.specs[0] = replace(history.specs[0], served=(("sequence", 7),))
    return history


@pytest.mark.parametrize(
    "make",
    [
        earlier_version, other_start, too_early, superseded, foreign, back_in_time, unknown_field,
        another_sequence,
    ],
)  # fmt: skip
def test_what_the_crate_takes_and_we_refuse(programs: Path, make: Callable[[], Made]) -> None:
    history = make()
    told = judged_by_the_crate(programs, history)
    assert told["outcomes"] == ["ok"] * len(history.specs), told
    assert told["tip_matches_row"]
    with pytest.raises(enclavia.UpgradeChainError):
        verify(history)


def test_what_we_follow_and_the_crate_does_not(programs: Path) -> None:
    """Settings alone: the same image digest, other PCRs."""
    history = Made()
    settings = replace(TWO, image_digest=ONE.image_digest)
    history.boots(ONE, 0)
    history.upgrades(settings, 1, 2)
    history.boots(settings, 3)
    assert verify(history).pcrs == TWO.pcrs
    assert not judged_by_the_crate(programs, history)["tip_matches_row"]


def test_what_both_refuse(programs: Path) -> None:
    history = began()
    history.boots(TWO, 1)
    told = judged_by_the_crate(programs, history)
    assert told["outcomes"][1] != "ok"
    with pytest.raises(enclavia.UpgradeChainError):
        verify(history)
    history = upgraded()
    specs = history.changed(2, attested=b"another payload")
    assert judged_by_the_crate(programs, history, specs)["outcomes"][2] != "ok"
    with pytest.raises(enclavia.UpgradeChainError):
        verify(history, specs)


def test_the_times_and_the_root_are_those_of_the_histories() -> None:
    assert BEGIN + DAY < NOW
    assert issued(BEGIN).root_pem == root()
