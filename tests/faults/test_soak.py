"""One minute of the soak, and that its accounts notice what they are kept for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enclavia import ConnectionClosed, ProtocolError, ReadTimeout, StateError

from . import traffic
from .traffic import Accounts

ROOT = Path(__file__).resolve().parents[2]
SEED = os.environ.get("ENCLAVIA_SOAK_SEED", "1")
LIMIT = 600.0


def test_a_minute_of_everything() -> None:
    command = [sys.executable, "-m", "tests.faults.soak", "--minutes", "1", "--seed", SEED]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    print(ran.stdout)
    assert ran.returncode == 0, f"{ran.stdout[-6000:]}\n{ran.stderr[-3000:]}"
    assert f"0 violations, seed {SEED}" in ran.stdout


def ended_with(error: BaseException | None, *trail: tuple[str, bool, bool]) -> Accounts:
    accounts = Accounts()
    with accounts.call("get", repeatable=True) as call:
        call.trail += trail
        if error is not None:
            raise error
    return accounts


def test_what_is_right_and_what_is_allowed() -> None:
    assert ended_with(None).report()["ok"] == {"get": 1}
    for error in (ReadTimeout("late"), ProtocolError("odd")):
        report = ended_with(error).report()
        assert report["failed"] == {"get": {type(error).__name__: 1}}
        assert report["violations"] == []


def test_a_wrong_answer_and_an_error_of_no_known_kind_are_noticed() -> None:
    wrong = ended_with(AssertionError("wrong body")).report()
    assert wrong["wrong"] == 1 and len(wrong["violations"]) == 1
    for error in (StateError("never"), KeyError("never")):
        assert len(ended_with(error).report()["violations"]) == 1


def test_a_get_that_was_not_sent_again_is_noticed() -> None:
    closed = ConnectionClosed("gone")
    lost = ("ConnectionClosed", True, False)
    answered = ("ConnectionClosed", True, True)
    unsent = ("ConnectionClosed", False, False)
    for fine in ([lost] * 3, [lost, answered], [unsent] * 9, []):
        assert ended_with(closed, *fine).report()["violations"] == []
    for bad in ([lost], [lost] * 2, [unsent] * 8):
        assert len(ended_with(closed, *bad).report()["violations"]) == 1


def test_a_call_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "HUNG_AFTER", 0.01)
    monkeypatch.setattr("faulthandler.dump_traceback", lambda *_, **__: None)
    accounts = Accounts()
    with accounts.call("get"):
        time.sleep(0.02)
        accounts.look_for_hung()
        accounts.look_for_hung()
        assert any("never ended" in told for told in accounts.report()["violations"])
    assert accounts.hung == 1
