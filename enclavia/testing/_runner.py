"""Runs a local enclave in this process: its certificates, its workload, its responder.

Decides the order in which these start and stop. Calls: _core, _identity. Locks: ``_lock``, around
what is running, while it starts and stops too.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _core
from .._identity.pcrs import Pcrs
from ._identity import Authority, Identity, Mode, identity_of
from ._tls import localhost_certificate
from ._workload import Interface, Workload, open_workload

if TYPE_CHECKING:
    from ._pki import EnclavePki

__all__ = ["Facts", "Faults", "Options", "Runner"]

_RENEW_SECONDS = 2 * 3600.0  # leaves live three hours


@dataclass(frozen=True)
class Faults:
    mask: int = 0
    split: int = 0
    record_length: int = 0
    instead_of_attestation: bytes = b""
    after_attestation: bytes = b""


@dataclass(frozen=True)
class Options:
    """Everything that is asked of one enclave; picklable where ``app`` is."""

    app: Callable[..., Any] | str | tuple[str, int]
    interface: Interface
    mode: Mode
    module_id: str
    pcrs: Pcrs
    port: int
    tls: tuple[str, str] | bool
    idle_timeout: float
    workload_grace: float
    one_shot_timeout: float
    max_connections: int
    faults: Faults


@dataclass(frozen=True)
class Facts:
    """What became of the options."""

    port: int
    pcrs: Pcrs
    root: bytes | None
    workload: tuple[str, int]
    tls_certificate: str | None


class Runner:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()  # guards all below
        self._ends = contextlib.ExitStack()
        self._faults = options.faults
        self._authority: Authority | None = None
        self._renewal: threading.Timer | None = None
        self._port = options.port
        self._tls: tuple[str, str] | None = None
        self._identity: Identity
        self._workload: Workload
        self._enclave: Any = None

    def start(self) -> Facts:
        with self._lock, contextlib.ExitStack() as ends:
            self._tls = self._tls_files(ends)
            self._identity = self._first_identity()
            self._workload = open_workload(self._options.app, self._options.interface)
            ends.callback(self._workload.close)
            self._listen()
            ends.callback(self._unlisten)
            if self._authority is not None:
                self._renew_later()
                ends.callback(self._renew_never)
            self._ends = ends.pop_all()
            return self._facts()

    def stop(self) -> None:
        with self._lock:
            self._ends.close()

    def restart(self) -> Facts:
        """A new enclave of the same identity on the same port; the workload goes on."""
        with self._lock:
            self._unlisten()
            self._listen()
            return self._facts()

    def set_faults(self, faults: Faults) -> None:
        with self._lock:
            self._enclave.set_faults(
                faults.mask,
                split=faults.split,
                record_length=faults.record_length,
                instead_of_attestation=faults.instead_of_attestation,
                after_attestation=faults.after_attestation,
            )
            self._faults = faults

    def set_identity(self, pcrs: Pcrs | None, pki: EnclavePki | None) -> Facts:
        with self._lock:
            if pki is not None and self._options.mode != "production":
                raise ValueError("certificates have a meaning only in production mode")
            fresh = replace(self._identity, pcrs=pcrs or self._identity.pcrs)
            if pki is not None:
                self._authority = None  # we could not renew what others issued
                fresh = identity_of(fresh.module_id, fresh.pcrs, pki)
            self._use(fresh)
            return self._facts()

    def drop_connections(self, reset: bool) -> None:
        with self._lock:
            self._enclave.drop_connections(reset)

    def stats(self) -> dict[str, int]:
        with self._lock:
            found: dict[str, int] = self._enclave.stats()
            return found

    # the lock is held by every caller of what follows

    def _facts(self) -> Facts:
        return Facts(
            port=self._port,
            pcrs=self._identity.pcrs,
            root=self._identity.root,
            workload=self._workload.address,
            tls_certificate=self._tls[0] if self._tls else None,
        )

    def _tls_files(self, ends: contextlib.ExitStack) -> tuple[str, str] | None:
        wanted = self._options.tls
        if isinstance(wanted, tuple):
            return os.fspath(wanted[0]), os.fspath(wanted[1])
        if not wanted:
            return None
        folder = ends.enter_context(tempfile.TemporaryDirectory(prefix="enclavia-"))
        return localhost_certificate(Path(folder))

    def _first_identity(self) -> Identity:
        pki = None
        if self._options.mode == "production":
            self._authority = Authority()
            pki = self._authority.issue()
        return identity_of(self._options.module_id, self._options.pcrs, pki)

    def _renew_later(self) -> None:
        self._renewal = threading.Timer(_RENEW_SECONDS, self._renew)
        self._renewal.daemon = True
        self._renewal.start()

    def _renew_never(self) -> None:
        self._authority = None
        if self._renewal is not None:
            self._renewal.cancel()

    def _renew(self) -> None:
        with self._lock:
            if self._authority is None:
                return
            self._use(
                identity_of(self._identity.module_id, self._identity.pcrs, self._authority.issue())
            )
            self._renew_later()

    def _use(self, identity: Identity) -> None:
        self._enclave.set_document(
            module_id=identity.module_id,
            pcrs=identity.document_pcrs(),
            certificate=identity.certificate,
            cabundle=identity.cabundle,
            leaf_key=identity.leaf_key,
        )
        self._identity = identity

    def _listen(self) -> None:
        options, identity, faults = self._options, self._identity, self._faults
        self._enclave = _core.Enclave(
            mode=options.mode,
            workload=self._workload.address,
            port=self._port,
            module_id=identity.module_id,
            pcrs=identity.document_pcrs(),
            certificate=identity.certificate,
            cabundle=identity.cabundle,
            leaf_key=identity.leaf_key,
            idle_timeout=options.idle_timeout,
            grace=options.workload_grace,
            one_shot_timeout=options.one_shot_timeout,
            max_connections=options.max_connections,
            tls=self._tls,
            faults=faults.mask,
            split=faults.split,
            record_length=faults.record_length,
            instead_of_attestation=faults.instead_of_attestation,
            after_attestation=faults.after_attestation,
        )
        self._port = self._enclave.port

    def _unlisten(self) -> None:
        if self._enclave is not None:
            self._enclave.stop()
