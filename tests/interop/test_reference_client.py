"""The published Rust client against our local enclave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclavia.testing import LocalEnclave

from .harness import ReferenceClient, trusting
from .workload import app

SIZE = 10 * 1024 * 1024


def as_hex(value: bytes | str) -> str:
    return value if isinstance(value, str) else bytes(value).hex()


def pins(enclave: LocalEnclave) -> tuple[str, str]:
    pcrs = enclave.pcrs
    return "--pcrs", ",".join(as_hex(value) for value in (pcrs.pcr0, pcrs.pcr1, pcrs.pcr2))


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    with LocalEnclave(app, mode="debug") as enclave:
        yield enclave


def assert_all(report: dict[str, Any], count: int) -> None:
    assert report.get("ok") == count, report
    assert report["failed"] == 0, report


def test_connects_and_verifies(reference: ReferenceClient, enclave: LocalEnclave) -> None:
    report = reference("connect", enclave.url, *pins(enclave), "--count", 20)
    assert_all(report, 20)


def test_verifies_a_production_chain(
    reference: ReferenceClient, programs: Path, tmp_path: Path
) -> None:
    """Its root is compiled in: a copy of the program has ours in its place."""
    with LocalEnclave(app, mode="production") as enclave:
        assert enclave.root is not None
        copy = trusting(programs / "reference-client", enclave.root, tmp_path / "reference-client")
        options = (*pins(enclave), "--production", "--count", 5)
        assert_all(ReferenceClient(copy.parent)("connect", enclave.url, *options), 5)
        refused = reference("connect", enclave.url, *options)
    assert refused.get("ok") == 0, refused
    assert "UnknownIssuer" in str(refused["errors"]), refused


def test_gets(reference: ReferenceClient, enclave: LocalEnclave) -> None:
    report = reference("get", enclave.url, "/health", *pins(enclave), "--count", 200)
    assert_all(report, 200)
    assert report["bytes"] == 200 * len("ok")


def test_concurrent_gets(reference: ReferenceClient, enclave: LocalEnclave) -> None:
    options = ("--count", 400, "--concurrency", 16)
    assert_all(reference("get", enclave.url, "/health", *pins(enclave), *options), 400)


@pytest.mark.parametrize("callers", [1, 8])
def test_posts(reference: ReferenceClient, enclave: LocalEnclave, callers: int) -> None:
    options = ("--size", 20_000, "--count", 80, "--concurrency", callers)
    assert_all(reference("post", enclave.url, "/echo", *pins(enclave), *options), 80)


def test_many_posts_at_once(reference: ReferenceClient, enclave: LocalEnclave) -> None:
    """Several in a hundred are lost in the Rust enclave; ours keeps half-read records."""
    options = ("--size", 16_000, "--count", 640, "--concurrency", 32, "--warmup", 0)
    assert_all(reference("post", enclave.url, "/echo", *pins(enclave), *options), 640)


def test_stream_download(reference: ReferenceClient, enclave: LocalEnclave) -> None:
    report = reference("download", enclave.url, f"/bytes/{SIZE}", *pins(enclave), "--count", 2)
    assert_all(report, 2)
    assert report["bytes"] == 2 * SIZE


def test_stream_upload(reference: ReferenceClient, enclave: LocalEnclave) -> None:
    options = ("--size", SIZE, "--warmup", 0)
    assert_all(reference("upload", enclave.url, "/sha256", *pins(enclave), *options), 1)


def test_websocket_upgrade(reference: ReferenceClient, enclave: LocalEnclave) -> None:
    options = ("--size", 16_000, "--count", 20)
    assert_all(reference("upgrade", enclave.url, "/ws", *pins(enclave), *options), 20)


def test_wrong_pins_are_refused(reference: ReferenceClient, enclave: LocalEnclave) -> None:
    wrong = ",".join(["ab" * 48] * 3)
    report = reference("get", enclave.url, "/health", "--pcrs", wrong)
    assert "PCRs" in report["fatal"]


def test_reads_production_documents(reference: ReferenceClient) -> None:
    """Its debug mode skips signature and chain, not the structure, the nonce and the PCRs."""
    with LocalEnclave(app, mode="production") as enclave:
        report = reference("get", enclave.url, "/health", *pins(enclave))
    assert_all(report, 1)


def test_refuses_the_stub_form(reference: ReferenceClient) -> None:
    """Release 0.2 has no reader for it, but must get as far as the document."""
    with LocalEnclave(app, mode="stub") as enclave:
        report = reference("get", enclave.url, "/health")
    assert "Attestation verification failed" in report["fatal"]
