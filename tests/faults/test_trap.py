"""Our client against a server that forgets half a record when an answer is ready first."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from interop.harness import Peer
from interop.test_peer import (
    LIMIT,
    MIB,
    assert_echo,
    body_from,
    channel_to,
    client_for,
    raw_get,
)
from interop.workload import body_of

from enclavia import Client

pytestmark = pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")


def test_many_posts_at_once_lose_nothing(peer: Peer) -> None:
    """The reference client loses several in a hundred of these: the enclave drops half a record."""
    with client_for(peer) as client, ThreadPoolExecutor(32) as pool:
        posts = [pool.submit(assert_echo, client, os.urandom(16_000)) for _ in range(640)]
        for future in posts:
            future.result(LIMIT)


def test_an_upload_beside_small_requests(peer: Peer) -> None:
    body = body_of(20 * MIB, 1)
    done = threading.Event()

    def small_requests(client: Client) -> int:
        count = 0
        while not done.is_set():
            assert client.get("/health").text == "ok"
            count += 1
        return count

    with client_for(peer) as client, ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(small_requests, client) for _ in range(4)]
        try:
            answer = client.post("/sha256", content=body).json()
        finally:
            done.set()
        assert all(future.result(LIMIT) > 0 for future in beside)
    assert answer == {"sha256": hashlib.sha256(body).hexdigest(), "length": len(body)}


def test_streams_closed_unread_free_their_slots(peer: Peer) -> None:
    with channel_to(peer) as channel:
        for _ in range(200):
            with channel.open_stream() as stream:
                stream.write(raw_get("/bytes/40000"))
        assert body_from(channel.request(raw_get("/health"))) == b"ok"
