"""The two Rust programs against each other: what fails here is not ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .harness import DEFAULT_SEED, Peer, ReferenceClient

StartPeer = Callable[..., Peer]

MIB = 1024 * 1024


def assert_all(report: dict[str, Any], count: int) -> None:
    assert report.get("ok") == count, report
    assert report["failed"] == 0, report


@pytest.mark.parametrize("split", [0, 1, 7, 1000])
def test_everything_the_client_can_do(
    start_peer: StartPeer, reference: ReferenceClient, split: int
) -> None:
    url = start_peer(ws_chunk=split).url
    assert_all(reference("connect", url, "--count", 5), 5)
    assert_all(reference("get", url, "/health", "--count", 50), 50)
    assert_all(reference("post", url, "/echo", "--size", 20_000, "--count", 10), 10)
    assert_all(reference("download", url, f"/bytes/{MIB}"), 1)
    assert_all(reference("upload", url, "/sha256", "--size", MIB), 1)
    assert_all(reference("upgrade", url, "/ws", "--size", 16_000), 1)


def test_documents_carry_the_seed(start_peer: StartPeer, reference: ReferenceClient) -> None:
    url = start_peer(seed=DEFAULT_SEED + 1).url
    assert_all(reference("get", url, "/health", "--pcr-seed", DEFAULT_SEED + 1), 1)
    assert "PCRs" in reference("get", url, "/health")["fatal"]


def test_the_stub_form_is_not_read(start_peer: StartPeer, reference: ReferenceClient) -> None:
    report = reference("get", start_peer(stub=True).url, "/health")
    assert "Attestation verification failed" in report["fatal"]


def test_one_answer_too_large_ends_the_connection(
    start_peer: StartPeer, reference: ReferenceClient
) -> None:
    peer = start_peer()
    report = reference("get", peer.url, "/bytes/100000", "--warmup", 0)
    assert report["errors"] == {"Connection closed": 1}
    assert list(peer.stats()["ended"]) == ["send: input error"]


def test_the_idle_timeout_takes_a_slow_one_shot_with_it(
    start_peer: StartPeer, reference: ReferenceClient
) -> None:
    """Only open streams suspend the timeout, a one-shot request under way does not."""
    peer = start_peer(idle_seconds=0.5)
    report = reference("get", peer.url, "/slow?seconds=2", "--warmup", 0)
    assert report["errors"] == {"Connection closed": 1}
    assert peer.stats()["ended"] == {"idle timeout": 1}


def test_the_peer_ends_with_its_standard_input(start_peer: StartPeer) -> None:
    assert start_peer().stop() == 0
