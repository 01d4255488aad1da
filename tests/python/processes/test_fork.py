"""fork() beside threads that verify and connect: a child can do both.

OpenSSL has locks of its own, and fork() would copy one that another thread holds as one that is
held for ever. Nothing is measured: a child that hangs is given up after a while.
``ENCLAVIA_FORKS=5000`` makes more children, ``ENCLAVIA_FORK_MS=100`` gives each fork() more time to
do what it must not.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import in_child
from repository import SUPPORT
from support import answering, byte_enclave, keywords, ok

import enclavia

FORKS = int(os.environ.get("ENCLAVIA_FORKS", "25"))

unsanitized = pytest.mark.skipif(
    "ENCLAVIA_SANITIZED" in os.environ, reason="the sanitizers' own locks are in the way"
)

CONTROL = """
#include <openssl/evp.h>
void takes_a_lock(void) { EVP_MD_free(EVP_MD_fetch(NULL, "SHA512", NULL)); }
"""


def library(source: Path, out: Path, *libraries: str) -> Path:
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", str(source), "-o", str(out)]
    subprocess.run([*command, *libraries, "-ldl", "-pthread"], check=True)
    return out


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return library(SUPPORT / "fork_watch.c", tmp_path_factory.mktemp("fork") / "fork_watch.so")


def run(watch: Path, patience_ms: int, *arguments: str) -> tuple[int, int, str]:
    """How many ways led to a lock of OpenSSL's, how many of them a fork() went by, and which. On a
    machine that has no time for it, fork() may come back too late to be noticed."""
    ended = subprocess.run(
        [sys.executable, str(SUPPORT / "fork_calls.py"), *arguments],
        env={**os.environ, "LD_PRELOAD": str(watch), "FORK_WATCH_MS": str(patience_ms)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr
    ways, found = map(int, ended.stdout.split())
    return ways, found, ended.stderr


@unsanitized
def test_a_fork_beside_a_lock_of_openssl_is_noticed(watch: Path, tmp_path: Path) -> None:
    """Without which the next test would prove nothing."""
    source = tmp_path / "control.c"
    source.write_text(CONTROL)
    control = library(source, tmp_path / "_core.control.so", "-lcrypto")
    ways, found, shown = run(watch, 20_000, "control", str(control))
    assert ways == found != 0, shown


@unsanitized
def test_no_lock_of_openssl_is_held_in_a_child(watch: Path) -> None:
    ways, found, shown = run(watch, int(os.environ.get("ENCLAVIA_FORK_MS", "10")), "all")
    assert ways > 20
    assert found == 0, shown


@contextlib.contextmanager
def busy(*works: Callable[[], None]) -> Iterator[None]:
    """Each again and again in a thread of its own."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_a_child_verifies_and_connects_whatever_its_parent_did() -> None:
    with byte_enclave(answering(ok()), tls=True, max_connections=64) as (enclave, _):
        options = keywords(enclave, verify=enclave.tls_certificate)
        client = enclavia.Client.connect(enclave.url, **options)
        attested = client.attestation

        def verify() -> None:
            enclavia.verify_attestation(
                attested.document, nonce=attested.nonce, **keywords(enclave)
            )

        def verify_once() -> None:
            thread = threading.Thread(target=verify)
            thread.start()
            thread.join()

        def connect() -> None:
            with enclavia.Client(enclave.url, **options) as another:
                assert another.get("/").status_code == 200

        def request() -> None:
            assert client.get("/").status_code == 200

        def child() -> None:
            verify()
            connect()
            request()

        with client, busy(verify, verify_once, connect, request):
            for _ in range(FORKS):
                assert in_child(child) == 0
