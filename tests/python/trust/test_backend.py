"""The backend cannot be asked, for reasons of this machine: typed errors, and nothing hangs."""

from __future__ import annotations

import asyncio
import errno
import threading
import uuid
from typing import Any

import pytest
from support import drive

import enclavia
from enclavia._io.face import Io, now, run
from enclavia._io.loops import LoopIo
from enclavia._io.threads import ThreadIo
from enclavia._trust.backend import fetch_chain

ID = str(uuid.UUID(int=5))
SECRET = "secret-of-the-proxy"


def ask(how: str) -> None:
    async def fetch(io: Io[Any]) -> None:
        await fetch_chain(io, "https://backend.example", ID, "token", now() + 10)

    if how == "sync":
        run(fetch(ThreadIo()))
    else:
        drive("asyncio", lambda: fetch(LoopIo()))


@pytest.mark.parametrize("how", ["sync", "asyncio"])
@pytest.mark.parametrize(
    ("proxy", "retryable"),
    [
        (f"socks5://u:{SECRET}@127.0.0.1:1", None),  # may need a package that is not there
        (f"other://u:{SECRET}@127.0.0.1:1", False),
        (f"http://u:{SECRET}@127.0.0.1:1", True),
        (f"http://u:{SECRET}@127.0.0.1:999999", None),
    ],
)
def test_a_proxy_of_the_environment_that_is_of_no_use(
    how: str, proxy: str, retryable: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(enclavia.BackendError, match="cannot be reached") as caught:
        ask(how)
    assert SECRET not in str(caught.value)
    assert retryable in (None, caught.value.retryable)


def test_no_event_loop_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files: the thread that fetches ends at once, and who waits is told."""

    def refuse(main: Any) -> None:
        main.close()
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(asyncio, "run", refuse)
    with pytest.raises(enclavia.BackendError, match="too many open files") as caught:
        ask("sync")
    assert caught.value.retryable


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(enclavia.BackendError, match="start new thread") as caught:
        ask("sync")
    assert caught.value.retryable


@pytest.mark.parametrize("backend", ["https://h?", "https://h/#", "https://h/a?", "https://h#"])
def test_a_url_after_which_no_path_can_be_written(backend: str) -> None:
    """The path would be a query's or a fragment's."""
    with pytest.raises(ValueError, match="query or a fragment"):
        enclavia.TrustUpgrades(backend, ID)
