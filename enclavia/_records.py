"""The fields of a log record that programs read: what happened, with which enclave, for which
time, and what kind of error it was. docs/observability.md has all events.

Decides which fields there are, and that none of them is a text of somebody else's. Calls: nothing
of the package. Locks: none.
"""

from __future__ import annotations

__all__ = ["FIELDS", "fields"]

FIELDS = ("event", "enclave", "attempt", "error_class")


def fields(
    event: str,
    enclave: str | None = None,
    *,
    attempt: int | None = None,
    error: BaseException | None = None,
) -> dict[str, object]:
    """For ``extra=`` of a logger's call. Each record has all four, None where one means nothing.
    ``enclave``: its authority. Of an error there is the class: its text stands in the message."""
    return {
        "event": event,
        "enclave": enclave,
        "attempt": attempt,
        "error_class": None if error is None else type(error).__name__,
    }
