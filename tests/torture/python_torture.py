"""Every Python allocation of the binding failing in turn; run by
tests/python/house/test_torture.py in a process of its own, which a crash would end.

    python tests/torture/python_torture.py HOST:PORT
"""

from __future__ import annotations

import _testcapi  # CPython's own; not in every build
import faulthandler
import gc
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import enclavia
from enclavia.testing import LocalEnclave

HANG_S = 300
END_AFTER = 150


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def use(enclave: LocalEnclave) -> None:
    """Connect, verify, verify once more by hand, write, read, close."""
    channel = enclavia.Channel.connect(
        enclave.url, pcrs=enclave.pcrs, root=enclave.root, timeout=20.0
    )
    try:
        seen = channel.attestation
        enclavia.verify_attestation(
            seen.document, pcrs=enclave.pcrs, root=enclave.root, nonce=seen.nonce
        )
        with channel.open_stream(b"first", timeout=20.0) as stream:
            stream.write(b"second")
            got = b""
            while len(got) < len(b"firstsecond"):
                got += stream.read(64)
            assert got == b"firstsecond", got
    finally:
        channel.close()


def fail_each(run: Callable[[], None], step: int) -> tuple[int, int]:
    """How many allocations were failed, and how many of those runs ended in an error. Python does
    not say when an allocation comes that is beyond the last: that is when none has mattered for
    long."""
    failed = errors = unharmed = 0
    while unharmed < END_AFTER:
        n = 1 + failed * step
        try:
            _testcapi.set_nomemory(n, n + 1)
            run()
        except (MemoryError, enclavia.EnclaviaError) as error:
            if isinstance(error, TimeoutError):
                raise
            unharmed = 0
            errors += 1
        else:
            unharmed += 1
        finally:
            _testcapi.remove_mem_hooks()
        failed += 1
    return failed - unharmed, errors


def main(address: str, step: int) -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    with LocalEnclave(address, workload_grace=1.0) as enclave:
        run = partial(use, enclave)
        run()
        gc.collect()
        before = descriptors()
        failed, errors = fail_each(run, step)
        run()
        gc.collect()
        until = time.monotonic() + 10
        while descriptors() > before or enclave.stats()["slots_open"] != 0:
            if time.monotonic() > until:
                raise SystemExit(
                    f"left behind: {descriptors() - before} descriptors, {enclave.stats()}"
                )
            time.sleep(0.05)
    print(f"python: {failed} failed, {errors} with an error, nothing left behind")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)
