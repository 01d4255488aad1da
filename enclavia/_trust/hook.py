"""The caller's own word on a channel whose enclave was verified: ``on_attestation``.

Decides which functions are taken, and what becomes of what they raise. Calls: _arguments, _errors,
_io, _text. Locks: none, also while the function runs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from .._arguments import hook, is_async
from .._errors import AttestationRefused, ConnectTimeout, EnclaviaError, StateError
from .._io.face import Io, time_left
from .._text import text_of
from .receipts import Receipt

__all__ = ["OnAttestation", "checked_hook", "expect_not_within", "refuse_async", "tell", "within"]

OnAttestation = Callable[[Receipt], object] | Callable[[Receipt], Awaitable[object]]

_within = threading.local()
"""``owners``: whose functions run in this thread, of those that block. Of an awaited one nobody can
tell whether it waits for the request that a task of its makes."""


def checked_hook(value: object) -> OnAttestation | None:
    if value is not None:
        hook("on_attestation", value, "receipt")
    return value  # type: ignore[return-value]


def refuse_async(value: object) -> None:
    """For those that block: of an async function nothing would run."""
    if value is not None and is_async(value):
        raise TypeError(
            "on_attestation: expected a plain function, because this blocks, got an async "
            "function: an AsyncClient or AsyncChannel awaits it"
        )


async def tell(
    io: Io[Any],
    on_attestation: OnAttestation,
    receipt: Receipt,
    owner: object,
    deadline: float | None,
) -> None:
    """Raises AttestationRefused where the function raises, ConnectTimeout where one that is awaited
    does not end in time. ``owner``: whose connections the function must not wait for."""
    try:
        with contextlib.nullcontext() if io.awaits else within(owner):
            in_time = await io.tell(on_attestation, receipt, time_left(deadline))
    except Exception as error:
        raise AttestationRefused(
            f"on_attestation refused the channel to {receipt.enclave}, so nothing was sent on it: "
            f"{type(error).__name__}: {text_of(error)}",
            retryable=isinstance(error, EnclaviaError) and error.retryable,
        ) from error
    if not in_time:
        raise ConnectTimeout(
            f"expected on_attestation to end while there was time to connect to {receipt.enclave}, "
            "it did not"
        )


@contextlib.contextmanager
def within(owner: object) -> Iterator[None]:
    """Around a function of the caller's that runs in this thread, and that ``owner`` waits for."""
    owners: list[object] = _within.__dict__.setdefault("owners", [])
    owners.append(owner)
    try:
        yield
    finally:
        owners.remove(owner)


def expect_not_within(*owners: object) -> None:
    """A function that waits for the connection that waits for it would wait for ever."""
    running = _within.__dict__.get("owners", ())
    if any(owner in running for owner in owners):
        raise StateError(
            "expected a function that is called while connecting (on_attestation, or one that is "
            "asked for pcrs) to use another client, got a request of the client that calls it: its "
            "channel is not usable before the function returns"
        )
