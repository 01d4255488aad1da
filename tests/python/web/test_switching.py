"""Steps of blocking code that somebody else may end, in a thread and in a browser."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from enclavia._io.face import Ended, run
from enclavia._io.switching import SwitchIo
from enclavia._io.threads import ThreadIo


class Condition:
    def __init__(self) -> None:
        self.ended = False

    def __call__(self) -> bool:
        return self.ended


async def step(waits: Any) -> str:
    assert not waits.awaits
    return "done"


@pytest.mark.parametrize("io", [ThreadIo(), SwitchIo()], ids=["thread", "browser"])
def test_who_watches_a_step_does_not_keep_it_alive(io: ThreadIo) -> None:
    watching: list[Any] = []
    condition = Condition()
    freed = weakref.ref(condition)
    assert run(io.unless(condition, watching.append, step)) == "done"
    del condition
    assert freed() is None
    watching[0].set()  # nothing waits any more


@pytest.mark.parametrize("io", [ThreadIo(), SwitchIo()], ids=["thread", "browser"])
def test_a_step_that_nobody_wants_waits_for_nothing(io: ThreadIo) -> None:
    condition = Condition()
    condition.ended = True

    async def waiting(waits: Any) -> None:
        await waits.wait(None, None)

    with pytest.raises(Ended):
        run(io.unless(condition, lambda waits: None, waiting))
