"""What the fleets of all engines have in common.

Decides what a process reports. Calls: _arguments, _client. Locks: none.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx2

from .._arguments import timeout as checked_timeout
from .._client.client import Client
from .member import Member, member_of
from .options import Per, fleet_settings
from .report import FleetReport, WorkerReport

__all__ = ["Fleet"]


class Fleet:
    """One client for each worker of a job, or one channel for each machine. Pickled, it is how to
    connect, never a key or a socket."""

    def __init__(self, url: str | httpx2.URL, options: Mapping[str, Any]) -> None:
        self._settings = fleet_settings(url, options)

    @property
    def url(self) -> str:
        """The enclave's."""
        return str(self._settings.url)

    @property
    def per(self) -> Per:
        """What has one channel: each ``"worker"``, or each ``"node"``."""
        return self._settings.per

    @property
    def _member(self) -> Member:
        return member_of(self._settings)

    def client(self) -> Client:
        """The client of this process, for any number of its threads: connected and verified when
        it is returned for the first time. It is closed with the worker, so not by a task. Raises:
        Connecting, and with ``per="node"`` ``ImportError`` where the extra ``forward`` is missing
        on this machine and no forwarder runs there."""
        return self._member.client()

    def report(self, worker: str | None = None, timeout: float | None = 30.0) -> WorkerReport:
        """What this process saw. Connects where that has not been done, and has every open channel
        show a fresh document, which is verified. What fails is in ``error``; nothing is raised.

        ``worker``: how the report names it; default: the host's name and the process's number.
        ``timeout``: seconds for each document, None for no limit.
        """
        if not isinstance(worker, str | None):
            raise TypeError(f"worker: expected text or None, got {type(worker).__name__}")
        seconds = checked_timeout("timeout", timeout)
        member = self._member
        error = None
        fresh = []
        try:
            fresh = member.verified_again(seconds)
        except Exception as caught:  # a file that is missing on this machine, too
            error = f"{type(caught).__name__}: {caught}"
        return self._of_member(worker, [*member.seen(), *fresh], error)

    def _seen(self, worker: str | None = None) -> WorkerReport:
        """As :meth:`report`, without anything being asked."""
        return self._of_member(worker, self._member.seen(), None)

    def _of_member(
        self, worker: str | None, seen: Iterable[Any], error: str | None
    ) -> WorkerReport:
        node, pid = socket.gethostname(), os.getpid()
        documents = {each.document: each for each in seen}
        return WorkerReport(
            worker=f"{node}:{pid}" if worker is None else worker,
            node=node,
            pid=pid,
            attestations=tuple(documents.values()),
            error=error,
            via=self._member.via,
        )

    def _report_of(
        self, reports: Iterable[WorkerReport], gone: Iterable[WorkerReport] = ()
    ) -> FleetReport:
        """Of the whole job. ``gone``: what workers reported that may be gone. Raises
        FleetMismatch."""
        return FleetReport._of(
            self.url,
            reports,
            self._settings.policy(),
            datetime.now(UTC),
            debug_mode=self._settings.debug_mode,
            gone=gone,
        ).raise_for_mismatch()

    @staticmethod
    def _expect_callable(function: object) -> None:
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} per {self.per}>"
