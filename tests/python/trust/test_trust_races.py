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
from enclavia.testing._history import version_of


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


def trusting(history: Made, pins: Any = None, **options: Any) -> Trust:
    settings = enclavia.TrustUpgrades("https://example.org", history.enclave_id, **options)
    pinned = pin_tuples(ONE.pcrs) if pins is None else pins
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


def test_two_that_meet_the_mismatch_at_once_follow_once(served: list[Any]) -> None:
    """As two channels of one client that connect at the same time. One has followed before the
    other has its chain: neither fails, and one upgrade was followed."""
    history, short, _ = two_chains()
    trust = trusting(history)
    pinned = trust.in_force
    asking, go_on = threading.Event(), threading.Event()

    def waits() -> Any:
        asking.set()
        assert go_on.wait(HANG)
        return short

    def mismatch() -> bool:
        return run(trust.mismatch(ThreadIo(), PcrMismatch("other PCRs"), pinned, None))

    served += [waits, short]
    answers: list[bool] = []
    first = threading.Thread(target=lambda: answers.append(mismatch()))
    first.start()
    assert asking.wait(HANG)
    assert mismatch()
    assert trust.in_force == pin_tuples(TWO.pcrs)
    go_on.set()
    first.join(HANG)
    assert answers == [True]
    assert trust.in_force == pin_tuples(TWO.pcrs)
    assert trust.upgrades_followed == 1


def test_who_meets_the_mismatch_after_another_has_followed_asks_nothing(
    served: list[Any],
) -> None:
    history, short, _ = two_chains()
    trust = trusting(history)
    pinned = trust.in_force
    asked: list[None] = []

    def counted() -> Any:
        asked.append(None)
        return short

    served += [counted, counted]
    assert follows(trust)
    for _ in range(3):  # each of them had connected with the pins before
        assert run(trust.mismatch(ThreadIo(), PcrMismatch("other PCRs"), pinned, None))
    assert len(asked) == trust.upgrades_followed == 1
    # Who was refused with those in force by now is told why.
    with pytest.raises(enclavia.UpgradeChainError, match="to be the last one on it"):
        follows(trust)
    assert trust.in_force == pin_tuples(TWO.pcrs)


def test_further_pins_are_kept(served: list[Any]) -> None:
    """A chain is of PCR0 to PCR2, and says nothing of what is pinned beside them: that goes on to
    be pinned, of each set whose version is on the chain. A set of another enclave leads nowhere."""
    history, short, longer = two_chains()
    three = dict(zip(("pcr0", "pcr1", "pcr2"), ONE.pcrs.as_tuple(), strict=True))
    other = dict(
        zip(("pcr0", "pcr1", "pcr2"), version_of("elsewhere").pcrs.as_tuple(), strict=True)
    )
    role, key = b"\x03" * 48, b"\x08" * 48
    sets = [
        enclavia.Pcrs(**three, pcr3=role, pcr8=key),
        enclavia.Pcrs(**other, pcr8=b"\x09" * 48),
        enclavia.Pcrs(**three, pcr16=b"\x10" * 48),
        enclavia.Pcrs(**three, pcr3=role, pcr8=key),
    ]
    trust = trusting(history, pins=pin_tuples(sets))
    served += [short, longer]
    for version in (TWO, THREE):  # the second time from the same pins of the caller's
        assert follows(trust)
        first = version.pcrs.as_tuple()
        assert trust.in_force == (
            (*first, (3, role), (8, key)),
            (*first, (16, b"\x10" * 48)),
        )
    assert trust.upgrades_followed == 2


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
