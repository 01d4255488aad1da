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
from typing import NamedTuple

import pytest
from forked import in_child
from repository import SUPPORT
from support import HANG, answering, byte_enclave, keywords, ok

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


class Watched(NamedTuple):
    ways: int  # that led to a lock of OpenSSL's
    found: int  # of them, that a fork() went by
    registered: int  # how often handlers of fork() were registered
    stuck: int  # how many times a fork() did not come back meanwhile
    shown: str


def run(watch: Path, patience_ms: int, *arguments: str) -> Watched:
    """On a machine that has no time for it, a fork() that goes by a lock may come back too late to
    be noticed."""
    ended = subprocess.run(
        [sys.executable, str(SUPPORT / "fork_calls.py"), *arguments],
        env={**os.environ, "LD_PRELOAD": str(watch), "FORK_WATCH_MS": str(patience_ms)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr
    return Watched(*map(int, ended.stdout.split()), ended.stderr)


@pytest.fixture(scope="module")
def all_calls(watch: Path) -> Watched:
    return run(watch, int(os.environ.get("ENCLAVIA_FORK_MS", "10")), "all")


@unsanitized
def test_a_fork_beside_a_lock_of_openssl_is_noticed(watch: Path, tmp_path: Path) -> None:
    """Without which the next test would prove nothing."""
    source = tmp_path / "control.c"
    source.write_text(CONTROL)
    control = library(source, tmp_path / "_core.control.so", "-lcrypto")
    watched = run(watch, 20_000, "control", str(control))
    assert watched.ways == watched.found != 0, watched.shown


@unsanitized
def test_no_lock_of_openssl_is_held_in_a_child(all_calls: Watched) -> None:
    assert all_calls.ways > 20
    assert all_calls.found == 0, all_calls.shown


@unsanitized
def test_fork_waits_for_nobody_who_registers_handlers(all_calls: Watched) -> None:
    """musl, macOS and glibc before 2.36 have who registers wait for fork(): nobody would go on."""
    assert all_calls.registered > 1
    assert all_calls.stuck == 0


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

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(HANG)
    assert not any(thread.is_alive() for thread in threads)
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
