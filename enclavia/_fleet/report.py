"""What the workers of one job saw, and whether they saw the same.

Two workers saw different identities where the form of their documents, PCR0, PCR1 or PCR2 differs:
that is what pins say, and it names the image. Two enclaves that run one image have different module
ids (and other values in PCR3, PCR4 and above), so those are shown and not compared.

Decides when the workers of a job disagree. Calls: _core, _errors, _identity, _public, _text.
Locks: none.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

from .. import _core
from .._errors import AttestationError, FleetMismatch
from .._identity.attestation import Attestation
from .._public import public
from .._text import shown
from .fields import REPORT, wrong_in, wrong_in_attestation

__all__ = ["FleetReport", "WorkerReport", "identity_of", "merged", "usable"]

_COMPARED: Final = (0, 1, 2)
_FROM_THE_DOCUMENT: Final = ("form", "module_id", "timestamp", "pcrs", "nonce", "document")


def identity_of(attestation: Attestation) -> str:
    """What is compared: the document's form and PCR0 to PCR2 as text."""
    pcrs = (attestation.pcrs.get(index, b"").hex() for index in _COMPARED)
    return ":".join((attestation.form, *pcrs))


@public
@dataclasses.dataclass(frozen=True)
class WorkerReport:
    """What one process of a job saw.

    ``worker`` is the engine's name of the worker, ``node`` the host's name. ``attestations``: one
    for each identity that any channel of the worker has led to, then the fresh one of each channel
    that was open when the report was made, each verified by the worker against its own pins;
    ``nonce`` of each is the handshake hash of its channel. ``error``: why nothing could be
    verified, None where it could. ``via``: the forwarder that was used.
    """

    worker: str
    node: str
    pid: int
    attestations: tuple[Attestation, ...] = ()
    error: str | None = None
    via: str | None = None

    @property
    def verified(self) -> bool:
        """The worker verified at least one document, and failed to verify none."""
        return self.error is None and bool(self.attestations)

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold: bytes as hexadecimal text, the documents in base64."""
        return {
            "worker": self.worker,
            "node": self.node,
            "pid": self.pid,
            "verified": self.verified,
            "error": self.error,
            "via": self.via,
            "attestations": [_fields(each) for each in self.attestations],
        }


def _fields(attestation: Attestation) -> dict[str, Any]:
    return {
        "form": attestation.form,
        "module_id": attestation.module_id,
        "timestamp": attestation.timestamp.isoformat(),
        "verified_at": attestation.verified_at.isoformat(),
        "pcrs": {str(index): value.hex() for index, value in attestation.pcrs.items()},
        "handshake_hash": (attestation.nonce or b"").hex(),
        "document": base64.b64encode(attestation.document).decode("ascii"),
    }


def usable(reported: object) -> WorkerReport:
    """What a process reported; where that is no report, one in its place that fails the job."""
    wrong = _wrong(reported)
    if wrong is None:
        return cast(WorkerReport, reported)
    name = vars(reported).get("worker") if type(reported) is WorkerReport else None
    return WorkerReport(
        name if isinstance(name, str) else "unknown",
        "",
        0,
        error=f"{wrong}: see to it that all workers have this version of enclavia",
    )


def _wrong(reported: object) -> str | None:
    wrong = wrong_in("the report", reported, WorkerReport, REPORT)
    if wrong is not None:
        return wrong
    seen = cast(WorkerReport, reported).attestations
    each = (wrong_in_attestation(f"attestations[{n}]", one) for n, one in enumerate(seen))
    return next((wrong for wrong in each if wrong is not None), None)


def merged(reports: Iterable[object]) -> list[WorkerReport]:
    """One report for each process, of all that it reported at different times. An error stays."""
    found: dict[tuple[str, str, int], WorkerReport] = {}
    for report in map(usable, reports):
        key = (report.worker, report.node, report.pid)
        before = found.get(key)
        found[key] = report if before is None else _joined(before, report)
    return [found[key] for key in sorted(found)]


def _joined(before: WorkerReport, after: WorkerReport) -> WorkerReport:
    documents = {each.document: each for each in (*before.attestations, *after.attestations)}
    return dataclasses.replace(
        after, attestations=tuple(documents.values()), error=before.error or after.error
    )


@public
@dataclasses.dataclass(frozen=True)
class FleetReport:
    """What all workers of one job saw.

    ``url``: of the enclave. ``workers``: one :class:`WorkerReport` each. ``made_at``: when they
    were put together. ``debug_mode``: the job was allowed to talk to a debug enclave, so nothing
    is proven.
    """

    url: str
    workers: tuple[WorkerReport, ...]
    made_at: datetime
    debug_mode: bool = False
    problems: tuple[str, ...] = ()
    """Why the job is not to be trusted, one sentence each; empty where all is well."""
    gone: tuple[WorkerReport, ...] = ()
    """Workers that were there and cannot be asked any more, each with what it reported last. What
    they saw counts: another identity is a problem, and so is a document that does not verify."""

    @classmethod
    def _of(
        cls,
        url: str,
        workers: Iterable[WorkerReport],
        policy: _core.Policy,
        made_at: datetime,
        *,
        debug_mode: bool = False,
        gone: Iterable[WorkerReport] = (),
    ) -> FleetReport:
        """Compares them, and verifies each signed document again, by ``policy``, as of the moment
        at which its worker did. What a worker says of a document is so not taken on its word."""
        each = tuple(merged(workers))
        there = {(worker.worker, worker.node, worker.pid) for worker in each}
        left = tuple(
            worker
            for worker in merged(gone)
            if (worker.worker, worker.node, worker.pid) not in there
        )
        problems = tuple(_problems(each, left, policy, debug_mode))
        return cls(url, each, made_at, debug_mode, problems, left)

    @property
    def consistent(self) -> bool:
        """Every worker verified, and all saw one identity."""
        return not self.problems

    @property
    def identities(self) -> Mapping[str, tuple[str, ...]]:
        """Which workers saw what, those that have gone among them: by the document's form and PCR0
        to PCR2, joined by colons."""
        return _identities((*self.workers, *self.gone))

    @property
    def module_ids(self) -> tuple[str, ...]:
        """Of all enclaves that were seen. Several where one image runs more than once, or was
        restarted."""
        return tuple(sorted({each.module_id for each in self._attestations()}))

    @property
    def channels(self) -> int:
        """How many different channels the documents were made for."""
        return len({each.nonce for each in self._attestations()})

    def raise_for_mismatch(self) -> FleetReport:
        """Itself where all is well. Raises :class:`FleetMismatch`, which has it as ``report``,
        where two workers saw different identities or one was not verified."""
        if self.problems:
            raise FleetMismatch("; ".join(self.problems), report=self)
        return self

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "url": self.url,
            "made_at": self.made_at.isoformat(),
            "consistent": self.consistent,
            "debug_mode": self.debug_mode,
            "problems": list(self.problems),
            "channels": self.channels,
            "module_ids": list(self.module_ids),
            "identities": {key: list(value) for key, value in self.identities.items()},
            "workers": [each.as_dict() for each in self.workers],
            "gone": [each.as_dict() for each in self.gone],
        }

    def to_json(self, indent: int | None = None) -> str:
        """As one JSON object (RFC 8259), documents included, so that it can be verified later."""
        return json.dumps(self.as_dict(), indent=indent)

    def _attestations(self) -> Iterable[Attestation]:
        seen_by = (*self.workers, *self.gone)
        return (each for worker in seen_by for each in worker.attestations)

    def _verdict(self) -> str:
        if self.problems:
            return "NOT to be trusted: " + "; ".join(map(shown, self.problems))
        proof = "NOT PROVEN (debug mode)" if self.debug_mode else "verified"
        left = f", and {len(self.gone)} gone since" if self.gone else ""
        return f"{len(self.workers)} workers {proof}{left}, one identity, {self.channels} channels"

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        there = len(self.workers)
        for number, worker in enumerate((*self.workers, *self.gone)):
            word = "yes" if worker.verified else f"no: {shown(worker.error or 'nothing seen')}"
            last = worker.attestations[-1] if worker.attestations else None
            rows.append(
                (
                    shown(worker.worker),
                    shown(worker.node),
                    str(worker.pid),
                    word if number < there else f"{word} (gone)",
                    "-" if last is None else last.pcrs.get(0, b"").hex()[:16],
                    "-" if last is None else shown(last.module_id) or "-",
                    "-" if last is None else last.timestamp.isoformat(timespec="seconds"),
                    "-" if last is None else (last.nonce or b"").hex()[:16],
                )
            )
        return rows

    def __str__(self) -> str:
        table = [_HEAD, *self._rows()]
        widths = [max(len(row[column]) for row in table) for column in range(len(_HEAD))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return "\n".join((f"{shown(self.url)}: {self._verdict()}", *lines))

    def _repr_html_(self) -> str:
        import html  # of use in notebooks only, and slow to import

        def line(tag: str, cells: Iterable[str]) -> str:
            inner = "".join(
                f"<{tag} style='text-align:left'>{html.escape(cell)}</{tag}>" for cell in cells
            )
            return f"<tr>{inner}</tr>"

        body = "".join(line("td", row) for row in self._rows())
        caption = html.escape(f"{shown(self.url)}: {self._verdict()}")
        return f"<table><caption>{caption}</caption>{line('th', _HEAD)}{body}</table>"


_HEAD: Final = (
    "worker", "node", "process", "verified", "PCR0", "module id", "document of", "handshake hash",
)  # fmt: skip


def _identities(workers: Iterable[WorkerReport]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for worker in workers:
        for each in worker.attestations:
            found.setdefault(identity_of(each), {})[worker.worker] = None
    return {key: tuple(names) for key, names in found.items()}


def _problems(
    workers: Sequence[WorkerReport],
    gone: Sequence[WorkerReport],
    policy: _core.Policy,
    debug_mode: bool,
) -> list[str]:
    if not workers:
        return ["expected at least one worker that verified the enclave, got none that reported"]
    problems = [
        f"expected worker {worker.worker} to have verified the enclave, got: "
        f"{worker.error or 'no document'}"
        for worker in workers
        if not worker.verified
    ]
    problems += [
        f"expected worker {worker.worker}, which has gone, to have reported what it saw, got: "
        f"{worker.error}"
        for worker in gone
        if worker.error is not None
    ]
    for worker in (*workers, *gone):
        problems += _unproven(worker, policy, debug_mode)
    identities = _identities((*workers, *gone))
    if len(identities) > 1:
        seen = "; ".join(
            f"{_short(key)} (seen by {_some(names)})" for key, names in identities.items()
        )
        problems.append(f"expected one identity for all workers, got {len(identities)}: {seen}")
    return problems


def _unproven(worker: WorkerReport, policy: _core.Policy, debug_mode: bool) -> list[str]:
    problems = []
    for each in worker.attestations:
        if each.form != "nitro" and debug_mode:
            continue
        at = int(each.verified_at.timestamp())
        try:
            raw = _core.verify(each.document, policy, each.nonce, at)
        except AttestationError as error:
            problems.append(
                f"expected a document of worker {worker.worker} that verifies here too, got: "
                f"{error}"
            )
            continue
        really = Attestation._from_raw(raw)
        other = [
            name for name in _FROM_THE_DOCUMENT if getattr(really, name) != getattr(each, name)
        ]
        if other:
            problems.append(
                f"expected worker {worker.worker} to report what its document says, got another "
                f"{', '.join(other)}"
            )
    return problems


def _short(identity: str) -> str:
    form, *pcrs = identity.split(":")
    return " ".join((form, *(f"PCR{i}={value[:16]}…" for i, value in enumerate(pcrs))))


def _some(names: Sequence[str]) -> str:
    """A message names three workers at most."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
