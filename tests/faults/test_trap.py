"""Nothing is lost to a server that forgets half a record when an answer is ready first.

A short form of trap.py, which measures (docs/reliability.md).
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from interop.harness import Peer
from interop.test_peer import (
    LIMIT,
    MIB,
    body_from,
    channel_to,
    client_for,
    in_background,
    raw_get,
)
from support import eventually

from enclavia import EnclaviaError

from .trap import GET, Plan, Request, bodies, broken, post, run_tasks, run_threads, upload

StartPeer = Callable[..., Peer]

pytestmark = pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")

PLANS = {
    "16 callers post": Plan(bodies(), 16, 600),
    "64 callers post": Plan(bodies(), 64, 600),
    "64 callers post 16 KB": Plan([post(os.urandom(16_000))], 64, 150),
    "64 callers get": Plan([GET], 64, 2_000),
    "uploads beside small requests": Plan([upload(8 * MIB)], 1, 1, GET, 8),
    "two uploads beside small requests": Plan([upload(3 * MIB)], 2, 2, GET, 4),
}


def stopped(pid: int) -> bool:
    """Whether each of a process's threads stands still."""
    tasks = Path(f"/proc/{pid}/task").glob("*/stat")
    return {task.read_text().rpartition(")")[2].split()[0] for task in tasks} == {"T"}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("tasks", [False, True], ids=["threads", "tasks"])
def test_nothing_is_lost(peer: Peer, name: str, tasks: bool) -> None:
    plan = PLANS[name]
    main, beside = asyncio.run(run_tasks(peer, plan)) if tasks else run_threads(peer, plan)
    assert main.errors + beside.errors == {}
    assert main.sent >= plan.count
    assert broken(peer) == 0


def test_without_room_for_a_second_connection(start_peer: StartPeer) -> None:
    """The enclave lets a connection in but does not answer it. The body waits a moment and then
    goes with the others."""
    peer = start_peer(max_connections=1)
    main, beside = run_threads(peer, Plan([upload(2 * MIB)], 1, 1, GET, 4))
    assert main.errors + beside.errors == {}
    assert broken(peer) == 0


def test_others_do_not_wait_with_a_body_for_a_second_connection(
    start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the body waits, here for as long as the test runs, others are answered."""
    monkeypatch.setattr("enclavia._exchange.waiting.SPARE_WAIT", 10 * LIMIT)
    peer = start_peer(max_connections=1)
    with client_for(peer) as client:
        beside = in_background(lambda: client.get(f"/slow?seconds={LIMIT}"))
        eventually(lambda: client.stats.streams_active == 1)
        body = in_background(lambda: client.post("/sha256", content=upload(2 * MIB).body))
        eventually(lambda: client.stats.waiting == 1)
        for _ in range(20):
            assert client.get("/health").text == "ok"
        assert client.stats.waiting == 1
    assert isinstance(body(), EnclaviaError)
    assert isinstance(beside(), EnclaviaError)


def test_a_long_body_has_a_connection_of_its_own(peer: Peer) -> None:
    with client_for(peer) as client:
        slow = in_background(lambda: client.get("/slow?seconds=3"))
        eventually(lambda: peer.stats()["slots_open"] == 1)
        upload(MIB).check(client.post("/sha256", content=upload(MIB).body))
        assert slow() is None
        assert client.stats.channels == 2
    assert peer.stats()["accepted"] == 2


def test_slow_requests_are_not_held_back(peer: Peer) -> None:
    """As many as there are slots are with the workload before one of them is answered."""
    slow = Request("GET", "/slow?seconds=0.5", answer=b"at last")
    main, _ = run_threads(peer, Plan([slow], 64, 256))
    assert main.errors == {}
    with client_for(peer) as client:
        path = f"/slow?seconds={LIMIT}"
        outcomes = [in_background(lambda: client.get(path)) for _ in range(64)]
        eventually(lambda: peer.stats()["slots_open"] == 64)
    assert all(isinstance(outcome(), EnclaviaError) for outcome in outcomes)


def test_streams_closed_unread_free_their_slots(peer: Peer) -> None:
    with channel_to(peer) as channel:
        for _ in range(200):
            with channel.open_stream() as stream:
                stream.write(raw_get("/bytes/40000"))
        assert body_from(channel.request(raw_get("/health"))) == b"ok"


def test_nothing_is_sent_to_a_stream_that_the_workload_closed(peer: Peer) -> None:
    """The enclave would answer each record with an error, into a queue that its own loop empties:
    many of them could stop the connection for good."""
    with channel_to(peer) as channel, channel.open_stream() as stream:
        stream.write(raw_get("/health"))
        while stream.read(65536):
            pass
        sent = channel.stats["records_out"]
        for _ in range(100):
            with pytest.raises(EnclaviaError):
                stream.write(b"x" * 100_000)
        assert channel.stats["records_out"] == sent
        assert body_from(channel.request(raw_get("/health"))) == b"ok"


def test_a_server_that_hangs_is_noticed(peer: Peer) -> None:
    """By the deadline of each request; one that did not keep it would be answered in the end."""
    with client_for(peer) as client:
        assert client.get("/health").text == "ok"
        os.kill(peer.pid, signal.SIGSTOP)
        eventually(lambda: stopped(peer.pid))
        goes_on = threading.Timer(LIMIT / 2, os.kill, (peer.pid, signal.SIGCONT))
        goes_on.start()
        with pytest.raises(httpx2.TimeoutException):
            client.get("/health", timeout=httpx2.Timeout(LIMIT, read=1.0))
        goes_on.cancel()
        os.kill(peer.pid, signal.SIGCONT)
        assert client.get("/health").text == "ok"
