"""Does what makes the extension call OpenSSL; test_fork.py runs this under fork_watch.c.

``python fork_calls.py all`` ends with how many ways to a lock there were, and how many of them a
fork() went by, how often handlers of fork() were registered, and how many times a fork() did not
come back meanwhile; ``python fork_calls.py control LIBRARY`` has a library take one of OpenSSL's
locks that nobody holds fork() back from.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from support import ByteServer, answering, keywords, ok

import enclavia
from enclavia import _core
from enclavia.testing import LocalEnclave

ROUNDS = 2
# The base point of P-256, uncompressed (SEC 2, section 2.4.2).
POINT = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)


def use(enclave: LocalEnclave) -> None:
    """Once for each kind of call: verifying, connecting, writing, another identity, the end."""
    options = keywords(enclave)
    verify = enclave.tls_certificate or True
    with enclavia.Client(enclave.url, verify=verify, **options) as client:
        assert client.post("/", content=bytes(100_000)).status_code == 200
        in_a_thread(client.post, "/")  # which calls OpenSSL for the first time
        attested = client.attestation
    enclavia.verify_attestation(attested.document, nonce=attested.nonce, **options)
    with_a_fault(attested.document, options)
    with_a_chain_of_upgrades(attested.document, enclave)
    enclave.set_identity()


def with_a_fault(document: bytes, options: dict[str, Any]) -> None:
    """What OpenSSL does where something is wrong leads to other locks."""
    for position in (10, len(document) // 2, len(document) - 1):
        spoiled = bytearray(document)
        spoiled[position] ^= 1
        with contextlib.suppress(enclavia.AttestationError):
            enclavia.verify_attestation(bytes(spoiled), **options)
    with contextlib.suppress(ValueError):
        enclavia.verify_attestation(document, root=b"no certificate")


def with_a_chain_of_upgrades(document: bytes, enclave: LocalEnclave) -> None:
    """What judges the documents and the signatures of one."""
    root = enclavia._identity.attestation.read_root(enclave.root)
    policy = _core.Policy(None, root, False, False)
    cache = _core.LinkCache()
    for _ in range(2):
        _core.verify_recorded(document, policy, cache)
    for key in (POINT, bytes(65)):
        with contextlib.suppress(ValueError, enclavia.EnclaviaError):
            _core.verify_es256(key, b"message", bytes(63) + b"\1")


def in_a_thread(work: Callable[..., object], *arguments: object) -> None:
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    thread.join()


def everything() -> None:
    with ByteServer(answering(ok())) as server:
        for tls in (True, False) * ROUNDS:
            with LocalEnclave(server.address, tls=tls) as enclave:
                use(enclave)
                in_a_thread(use, enclave)


def main() -> None:
    if sys.argv[1] == "control":
        ctypes.CDLL(sys.argv[2]).takes_a_lock()
    else:
        everything()
    watch = ctypes.CDLL(None)
    print(
        watch.fork_watch_ways(),
        watch.fork_watch_found(),
        watch.fork_watch_registered(),
        watch.fork_watch_stuck(),
        flush=True,
    )
    os._exit(0)


main()
