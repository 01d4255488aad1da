"""A forwarder as a service: what a service manager's signals mean.

Decides what each signal leads to. Calls: _errors, _identity. Locks: none.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

from .._errors import EnclaviaError
from .._identity.pcrs import Pcrs
from .forwarder import Forwarder
from .options import ForwarderOptions

__all__ = ["serve"]


def serve(
    url: str,
    pins: Path | None,
    *,
    drain: float = 30.0,
    say: Callable[[str], Any] = print,
    **options: Unpack[ForwarderOptions],
) -> int:
    """Runs a forwarder in the main thread until SIGTERM or SIGINT, then drains it; a second one of
    these ends it at once. SIGHUP reads ``pins`` again: a file that cannot be used leaves the old
    ones. Returns the exit code of the process.

    ``pins``: what :meth:`Pcrs.load` reads, or None where ``options`` have the pins."""
    if pins is not None:
        options["pcrs"] = Pcrs.load(pins)
    forwarder = Forwarder(url, **options)
    woken = threading.Event()
    asked: list[int] = []

    def note(number: int, _frame: object) -> None:
        asked.append(number)
        woken.set()

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        forwarder.start()
        say(f"listening at {forwarder.via}")
        with contextlib.suppress(EnclaviaError):
            forwarder.connect()
            say(f"verified {url}")
        while True:
            woken.wait()
            woken.clear()
            while asked:
                number = asked.pop(0)
                if number != signal.SIGHUP:
                    return _drain(forwarder, drain, woken, number, say)
                _reload(forwarder, pins, say)
    finally:
        forwarder.stop(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _reload(forwarder: Forwarder, pins: Path | None, say: Callable[[str], Any]) -> None:
    if pins is None:
        say("kept the old pins: they were not read from a file")
        return
    try:
        forwarder.reload(Pcrs.load(pins))
    except (OSError, ValueError, TypeError) as error:
        say(f"kept the old pins: {error}")
    else:
        say(f"reloaded the pins of {pins}")


def _drain(
    forwarder: Forwarder,
    drain: float,
    woken: threading.Event,
    number: int,
    say: Callable[[str], Any],
) -> int:
    say("draining: no new connections are taken")
    stopping = threading.Thread(target=forwarder.stop, args=(drain,), daemon=True)
    stopping.start()
    while stopping.is_alive():
        if woken.wait(0.1):
            say("ending at once")
            break
    return 130 if number == signal.SIGINT else 0
