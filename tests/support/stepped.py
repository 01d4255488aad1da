"""What surrounds a client whose steps a scheduler (scheduler.py) chooses: channels that open at
once, the configuration that opens them, and a process in which nothing else happens meanwhile."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator

import enclavia

__all__ = ["Config", "Core", "undisturbed"]


class Core:
    """As ``_core.Channel``: open at once, or failed where it is given an error."""

    records_in = 0
    handshake_hash = b""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.state = "open" if error is None else "failed"

    def attestation(self) -> dict[str, object]:
        return {"form": "stub", "module_id": "", "pcrs": {}, "valid_until": None}

    def stats(self) -> dict[str, int]:
        return {"bytes_in": 0, "bytes_out": 0}

    def close(self, timeout: float) -> None:
        self.state = "closed"

    def wait_open(self, timeout: float) -> None:
        raise enclavia.ConnectTimeout("nothing came")


class Url:
    """As ``EnclaveURL``: takes every URL."""

    authority = "enclave"

    def refusal(self, url: object) -> None:
        return None


class Config:
    """As ``ChannelConfig``. ``reach`` is what its client gets channels from."""

    url = Url()
    max_in_flight = 1
    pins = None
    pins_source = None

    def __init__(self, reach: Callable[[], Core]) -> None:
        self.reach = reach

    def trust(self) -> None:
        return None

    def expect_blocking(self) -> None:
        pass

    def receipt(self, raw: object, handshake_hash: bytes, pins: None) -> None:
        return None


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing is collected, and nothing is said of what a destructor raised."""
    # What a signal's handler raises in a destructor is not raised further.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    # What is collected when must not depend on what ran before.
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.unfreeze()
        sys.unraisablehook = hook
