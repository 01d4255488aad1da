"""What a test that failed says about its enclave: what it did, what was verified, and the log.

Decides what is shown, and how much of the log. Calls: _enclaves. Locks: none; records that arrive
from several threads are appended to a list.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import pytest

from ._enclaves import enclaves_of, pool_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["add_sections", "watching"]

# Just below INFO, a number that nobody else uses: so it is known whether somebody has set another
# level since.
_LEVEL: Final = logging.INFO - 1
_MOST: Final = 200


class _Watch(logging.Filter):
    """Keeps what the logger ``enclavia`` says at INFO, and lets no handler have it that would not
    have got it otherwise: other tests look at what caplog has."""

    def __init__(self, item: pytest.Item) -> None:
        super().__init__()
        shared = pool_of(item.config).running()
        self.before = {id(each): _counted(each) for each in shared}
        self.others = WeakSet(client for each in shared for client in each._clients)
        self._logger = logging.getLogger("enclavia")
        self._level = self._logger.level
        self._effective = self._logger.getEffectiveLevel()
        self._begun = time.monotonic()
        self.lines: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.INFO and len(self.lines) < _MOST:
            passed = time.monotonic() - self._begun
            self.lines.append(f"+{passed:.3f} s {record.levelname} {record.getMessage()}")
        return self._logger.level != _LEVEL or record.levelno >= self._effective

    def __enter__(self) -> _Watch:
        if self._effective > _LEVEL:
            self._logger.setLevel(_LEVEL)
        self._logger.addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeFilter(self)
        if self._logger.level == _LEVEL:
            self._logger.setLevel(self._level)


_KEY: Final = pytest.StashKey[_Watch]()


def _counted(enclave: Any) -> dict[str, int]:  # noqa: ANN401
    """Nothing where its process has died."""
    try:
        counted: dict[str, int] = enclave.stats()
    except (RuntimeError, TimeoutError):
        return {}
    return counted


@contextlib.contextmanager
def watching(item: pytest.Item) -> Iterator[None]:
    with _Watch(item) as watch:
        item.stash[_KEY] = watch
        yield


def add_sections(item: pytest.Item, report: pytest.TestReport) -> None:
    watch = item.stash.get(_KEY, None)
    for enclave in enclaves_of(item):
        before = {} if watch is None else watch.before.get(id(enclave), {})
        report.sections.append(("enclavia: enclave", _enclave(enclave, before)))
        others = () if watch is None else watch.others
        report.sections.append(("enclavia: attestation", _attestations(enclave, others)))
    if watch is not None and watch.lines:
        lines = watch.lines if len(watch.lines) < _MOST else [*watch.lines, "…"]
        report.sections.append(("enclavia: log", "\n".join(lines)))


def _enclave(enclave: Any, before: dict[str, int]) -> str:  # noqa: ANN401
    if hasattr(enclave, "policy"):
        names = ", ".join(version.name for version in enclave.policy.allowed())
        return f"{enclave!r}\nversions of the policy that are allowed: {names or 'none'}"
    faults = enclave.faults.name if enclave.faults else "none"
    lines = [repr(enclave), f"faults: {faults}"]
    lines += [f"PCR{index} {value.hex()}" for index, value in enumerate(enclave.pcrs.as_tuple())]
    counted = _counted(enclave)
    if not counted:
        return "\n".join([*lines, "its process has ended or does not answer"])
    since = {name: value - before.get(name, 0) for name, value in counted.items()}
    since |= {name: value for name, value in counted.items() if name.endswith("_open")}
    said = ", ".join(f"{name} {value}" for name, value in since.items())
    return "\n".join([*lines, f"in this test: {said}"])


def _attestations(enclave: Any, others: Collection[object]) -> str:  # noqa: ANN401
    """Of the clients that the enclave has made for this test and that are still there."""
    from enclavia import StateError

    found = []
    for client in list(enclave._clients):
        if client in others:
            continue
        try:
            found.append(f"{client!r}\n{client.attestation}")
        except StateError:
            found.append(f"{client!r}\nnothing was verified")
    return "\n\n".join(found) or "no client was made by enclave.client() or a fixture"
