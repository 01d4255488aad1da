"""Two that follow a chain at once, connections or processes, of which one was served less of it;
and pins that change while a chain is followed from the ones before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
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
    """What the backend serves: the first of them once, the last one ever after. A function is
    called first, and stands for what it returns."""
    answers: list[Any] = []

    async def fetch_chain(*_: object) -> Any:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer() if callable(answer) else answer

    monkeypatch.setattr(upgrades, "fetch_chain", fetch_chain)
    return answers


def texts(history: Made) -> tuple[bytes, bytes]:
    return history.row_json().encode(), history.links_json().encode()


def two_chains() -> tuple[Made, tuple[bytes, bytes], tuple[bytes, bytes]]:
    """Of one enclave: to the second version, and on to the third."""
    history = Made()
    history.boots(ONE, 0)
    history.upgrades(TWO, 1, 2)
    history.boots(TWO, 3)
    short = texts(history)
    history.upgrades(THREE, 4, 5)
    history.boots(THREE, 6)
    return history, short, texts(history)


def trusting(history: Made, **options: Any) -> Trust:
    settings = enclavia.TrustUpgrades("https://example.org", history.enclave_id, **options)
    pinned = pin_tuples(ONE.pcrs)
    return Trust(TrustSettings(pinned, root(), False, 1, upgrades=settings._settings))


def follows(trust: Trust) -> bool:
    pins = trust.in_force
    return run(trust.mismatch(ThreadIo(), PcrMismatch("other PCRs"), pins, None))


def test_the_longer_chain_stays_in_force(served: list[Any]) -> None:
    history, short, longer = two_chains()
    reached, go_on = threading.Event(), threading.Event()

    def slow(mark: str | None) -> None:
        """Keeps the mark of who comes first until the other one is done."""
        if mark is not None and not reached.is_set():
            reached.set()
            assert go_on.wait(HANG)

    pinned = pin_tuples(ONE.pcrs)
    trust = trusting(history, high_water=slow)

    def mismatch() -> bool:
        return run(trust.mismatch(ThreadIo(), PcrMismatch("other PCRs"), pinned, None))

    served.append(short)
    answers: list[bool] = []
    first = threading.Thread(target=lambda: answers.append(mismatch()))
    first.start()
    assert reached.wait(HANG)
    served[:] = [longer]
    assert mismatch()
    assert trust.in_force == pin_tuples(THREE.pcrs)
    go_on.set()
    first.join(HANG)
    assert answers == [True]  # there is something to connect with
    assert trust.in_force == pin_tuples(THREE.pcrs)
    assert trust.upgrades_followed == 1
    served[:] = [short]
    with pytest.raises(enclavia.UpgradeChainError, match="withheld"):
        run(trust.mismatch(ThreadIo(), PcrMismatch("other PCRs"), trust.in_force, None))


def elsewhere(history: Made, path: Path, chain: Any) -> Callable[[], Any]:
    """Another process follows the longer chain while this one is served ``chain``."""

    def answer() -> Any:
        mark = enclavia.verify_upgrade_chain(
            history.row_json(),
            history.links_json(),
            pcrs=ONE.pcrs,
            enclave_id=history.enclave_id,
            root=root(),
        ).high_water
        path.write_text(mark)
        return chain

    return answer


def test_another_process_has_kept_a_longer_mark_meanwhile(
    served: list[Any], tmp_path: Path
) -> None:
    """What was served was all that there was when it was asked for: nothing is withheld."""
    path = tmp_path / "mark"
    history, short, longer = two_chains()
    trust = trusting(history, high_water=path)
    served += [elsewhere(history, path, short), longer]
    assert follows(trust)
    assert trust.in_force == pin_tuples(THREE.pcrs)


def test_a_backend_that_goes_on_to_serve_less_withholds_links(
    served: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "mark"
    history, short, _ = two_chains()
    trust = trusting(history, high_water=path)
    served += [elsewhere(history, path, short), short]
    with pytest.raises(enclavia.UpgradeChainError, match="got 3: links are withheld"):
        follows(trust)
    assert trust.in_force == pin_tuples(ONE.pcrs)


def test_another_connection_was_served_more_meanwhile(served: list[Any]) -> None:
    history, short, longer = two_chains()
    trust = trusting(history)

    def overtaken() -> Any:
        served.insert(0, longer)
        assert follows(trust)
        return short

    served += [overtaken, longer]
    assert follows(trust)
    assert trust.in_force == pin_tuples(THREE.pcrs)
    assert trust.upgrades_followed == 1


def test_the_backend_is_not_asked_for_ever(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    history, short, _ = two_chains()
    asked: list[object] = []
    monkeypatch.setattr(upgrades, "keep", lambda *_: bool(asked.append(None)))
    served.append(short)
    with pytest.raises(enclavia.UpgradeChainError, match="links are withheld"):
        follows(trusting(history))
    assert len(asked) == 3


class Says:
    """A source of pins, which says what it is told to."""

    due = False

    def __init__(self, pins: Any) -> None:
        self.answer = pins

    async def pins(self, *_: object) -> Any:
        return self.answer

    def doubt(self) -> None:
        pass

    def refusal(self, error: PcrMismatch) -> None:
        pass


def test_newer_pins_are_not_replaced_by_what_follows_from_older_ones(served: list[Any]) -> None:
    history, short, _ = two_chains()
    trust = trusting(history)
    trust._source = source = Says(trust.pinned)
    newer = pin_tuples(THREE.pcrs)

    def renewed() -> Any:
        source.answer = newer
        run(trust.renew(ThreadIo(), None))
        return short

    served += [renewed, short]
    assert follows(trust)
    assert trust.pinned == trust.in_force == newer
    assert trust.upgrades_followed == 0
