"""Two connections that follow a chain at once, of which one was served less of it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from histories import ONE, THREE, TWO, Made, root
from support import HANG

import enclavia
from enclavia._errors import PcrMismatch
from enclavia._identity.pins import pin_tuples
from enclavia._io.face import run
from enclavia._io.threads import ThreadIo
from enclavia._trust import upgrades
from enclavia._trust.trust import Trust, TrustSettings


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Its last member is what the backend serves."""
    answers: list[Any] = []

    async def fetch_chain(*_: object) -> Any:
        return answers[-1]

    monkeypatch.setattr(upgrades, "fetch_chain", fetch_chain)
    return answers


def texts(history: Made) -> tuple[bytes, bytes]:
    return history.row_json().encode(), history.links_json().encode()


def test_the_longer_chain_stays_in_force(served: list[Any]) -> None:
    history = Made()
    history.boots(ONE, 0)
    history.upgrades(TWO, 1, 2)
    history.boots(TWO, 3)
    short = texts(history)
    history.upgrades(THREE, 4, 5)
    history.boots(THREE, 6)
    longer = texts(history)
    reached, go_on = threading.Event(), threading.Event()

    def slow(mark: str | None) -> None:
        """Keeps the mark of who comes first until the other one is done."""
        if mark is not None and not reached.is_set():
            reached.set()
            assert go_on.wait(HANG)

    settings = enclavia.TrustUpgrades("https://example.org", history.enclave_id, high_water=slow)
    pinned = pin_tuples(ONE.pcrs)
    trust = Trust(TrustSettings(pinned, root(), False, 1, upgrades=settings._settings))

    def mismatch() -> bool:
        return run(trust.mismatch(ThreadIo(), PcrMismatch("other PCRs"), pinned, None))

    served.append(short)
    answers: list[bool] = []
    first = threading.Thread(target=lambda: answers.append(mismatch()))
    first.start()
    assert reached.wait(HANG)
    served.append(longer)
    assert mismatch()
    assert trust.in_force == pin_tuples(THREE.pcrs)
    go_on.set()
    first.join(HANG)
    assert answers == [True]  # there is something to connect with
    assert trust.in_force == pin_tuples(THREE.pcrs)
    assert trust.upgrades_followed == 1
    served.append(short)
    with pytest.raises(enclavia.UpgradeChainError, match="withheld"):
        run(trust.mismatch(ThreadIo(), PcrMismatch("other PCRs"), trust.in_force, None))
