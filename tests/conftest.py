"""For all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# What the tests share asserts too, and is to say as much where it fails.
SHARED = Path(__file__).with_name("support").glob("*.py")
pytest.register_assert_rewrite(*(path.stem for path in SHARED))


def pytest_configure() -> None:
    # A shell that runs the tests in the background has SIGINT ignored, and whatever is started so
    # never hears of Ctrl-C. The tests of Ctrl-C, and what they start, have to.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
