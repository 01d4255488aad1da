"""Runs a local enclave in this process: its certificates, its workload, its responder.

Decides the order in which these start and stop. Calls: _core, _errors, _identity. Locks: ``_lock``,
around what is running, while it starts and stops too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _core
from .._errors import ConnectError
from .._identity.pcrs import Pcrs
from ._backend import BackendFault, LocalBackend
from ._fault import OF_CERTIFICATES, Fault
from ._history import History, Spec, Version, version_of
from ._identity import Authority, Identity, Mode, identity_of
from ._tls import localhost_certificate
from ._workload import Interface, Workload, open_workload

if TYPE_CHECKING:
    from ._pki import EnclavePki

__all__ = ["Facts", "Faults", "Options", "Runner"]

_RENEW_SECONDS = 2 * 3600.0  # leaves live three hours
_STAGED = timedelta(hours=1)  # until an upgrade that does not boot at once is valid
_EXPIRED = timedelta(hours=-4)  # when a leaf began that ended an hour ago
_NOT_YET = timedelta(hours=1)


@dataclass(frozen=True)
class Faults:
    mask: int = 0
    split: int = 0
    record_length: int = 0
    delay: float = 0.0
    truncated_after: int = 0
    instead_of_attestation: bytes = b""
    after_attestation: bytes = b""

    def for_core(self) -> dict[str, Any]:
        """As the core's keywords, which know nothing of certificates."""
        return {
            "faults": self.mask & ~int(OF_CERTIFICATES),
            "split": self.split,
            "record_length": self.record_length,
            "delay": self.delay,
            "truncated_after": self.truncated_after,
            "instead_of_attestation": self.instead_of_attestation,
            "after_attestation": self.after_attestation,
        }

    @property
    def of_certificates(self) -> Fault:
        return Fault(self.mask) & OF_CERTIFICATES


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
    upgradable: bool = False


@dataclass(frozen=True)
class Facts:
    """What became of the options."""

    port: int
    pcrs: Pcrs
    root: bytes | None
    workload: tuple[str, int]
    tls_certificate: str | None
    backend: str | None = None
    enclave_id: uuid.UUID | None = None
    token: str | None = None


def _expect_port(port: int, error: ConnectError) -> None:
    """Raises ConnectError with the system's reason where the port cannot be had. The core knows
    only that it could not listen, so the same is tried with a socket of Python's."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as refused:
            raise ConnectError(
                f"expected to listen on 127.0.0.1 port {port}, got: {refused.strerror}: choose "
                "another port, or 0 for a free one",
                retryable=error.retryable,
            ) from refused


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
        self._backend: LocalBackend | None = None
        self._versions: list[tuple[Version, Workload]] = []
        self._staged: list[tuple[Spec, Version]] = []

    def start(self) -> Facts:
        with self._lock, contextlib.ExitStack() as ends:
            self._tls = self._tls_files(ends)
            self._identity = self._first_identity()
            self._workload = open_workload(self._options.app, self._options.interface)
            ends.callback(self._workload.close)
            self._listen()
            ends.callback(self._unlisten)
            if self._options.upgradable:
                self._begin_history()
                ends.callback(self._end_history)
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
            if faults.of_certificates != self._faults.of_certificates:
                self._attest(self._spoilt(self._identity, faults))
            self._enclave.set_faults(**faults.for_core())
            self._faults = faults

    def set_identity(self, pcrs: Pcrs | None, pki: EnclavePki | None) -> Facts:
        with self._lock:
            if pki is not None and self._options.mode != "production":
                raise ValueError("certificates have a meaning only in production mode")
            if pki is not None and self._faults.of_certificates:
                raise ValueError(
                    f"pki: expected none while the fault {self._faults.of_certificates.name} is "
                    "on, which is about certificates too, got one: switch the fault off before"
                )
            fresh = replace(self._identity, pcrs=pcrs or self._identity.pcrs)
            if pki is not None:
                self._authority = None  # we could not renew what others issued
                fresh = identity_of(fresh.module_id, fresh.pcrs, pki)
            self._use(fresh)
            return self._facts()

    # -- upgrades ---------------------------------------------------------------------------

    def upgrade(
        self,
        app: Callable[..., Any] | str | tuple[str, int] | None,
        pcrs: Pcrs | None,
        boot: bool,
    ) -> Facts:
        """A new version is authorised, and where ``boot`` is set it runs from now on."""
        with self._lock, self._history() as history:
            number = sum(spec.kind == "upgrade" for spec in history.specs) + 2
            version = version_of(f"version {number} of {history.enclave_id}", pcrs)
            now = datetime.now(UTC)
            valid_from = now if boot else now + _STAGED
            spec = history.upgrade(version, valid_from, now, self._pki())
            if not boot:
                self._staged.append((spec, version))
                return self._facts()
            workload = (
                self._workload if app is None else open_workload(app, self._options.interface)
            )
            if app is not None:
                self._ends.callback(workload.close)
            self._boot(history, version, workload)
            return self._facts()

    def revoke(self) -> Facts:
        """The upgrade that was authorised last, and has not booted."""
        with self._lock, self._history() as history:
            if not self._staged:
                raise ValueError("expected an upgrade that waits, got none: upgrade(boot=False)")
            spec, _ = self._staged.pop()
            assert spec.id is not None  # noqa: S101 - the history gives each one
            history.revoke(spec.id, datetime.now(UTC), self._pki())
            return self._facts()

    def rollback(self) -> Facts:
        """The version before this one runs again, and nobody has authorised it."""
        with self._lock, self._history() as history:
            if len(self._versions) < 2:
                raise ValueError("expected an earlier version, got none: nothing was upgraded yet")
            self._versions.pop()
            version, workload = self._versions.pop()
            self._boot(history, version, workload)
            return self._facts()

    def set_backend_faults(self, mask: int) -> None:
        with self._lock:
            self._expect_backend().set_faults(BackendFault(mask))

    def _history(self) -> contextlib.AbstractContextManager[History]:
        return self._expect_backend().changing()

    def _expect_backend(self) -> LocalBackend:
        if self._backend is None:
            raise RuntimeError("expected LocalEnclave(upgradable=True), got one that is not")
        return self._backend

    def _pki(self) -> EnclavePki:
        """As the document of the enclave that runs."""
        return self._authority_or_fail().issue()

    def _authority_or_fail(self) -> Authority:
        if self._authority is None:
            raise RuntimeError(
                "expected the enclave's own certificates, got those of set_identity(pki=…): no "
                "others can be issued, neither for its history nor for a fault"
            )
        return self._authority

    def _begin_history(self) -> None:
        history = History(self._authority_or_fail())
        version = version_of(f"version 1 of {history.enclave_id}", self._identity.pcrs)
        history.boot(version, datetime.now(UTC), self._pki())
        self._versions = [(version, self._workload)]
        self._staged = []
        self._backend = LocalBackend(history)
        self._backend.start()

    def _end_history(self) -> None:
        if self._backend is not None:
            self._backend.stop()
            self._backend = None

    def _boot(self, history: History, version: Version, workload: Workload) -> None:
        """The old enclave ends, and one of this version begins on the same port."""
        self._unlisten()
        self._identity = replace(self._identity, pcrs=version.pcrs)
        self._workload = workload
        self._listen()
        history.boot(version, datetime.now(UTC), self._pki())
        self._versions.append((version, workload))

    # -- about ------------------------------------------------------------------------------

    def drop_connections(self, reset: bool) -> None:
        with self._lock:
            self._enclave.drop_connections(reset)

    def stats(self) -> dict[str, int]:
        with self._lock:
            found: dict[str, int] = self._enclave.stats()
            return found

    def settle(self, seconds: float) -> None:
        """Returns when the app works on no request any more, at the latest after ``seconds``."""
        with self._lock:
            workload = self._workload
        workload.settle(seconds)

    # the lock is held by every caller of what follows

    def _facts(self) -> Facts:
        return Facts(
            port=self._port,
            pcrs=self._identity.pcrs,
            root=self._identity.root,
            workload=self._workload.address,
            tls_certificate=self._tls[0] if self._tls else None,
            backend=None if self._backend is None else self._backend.url,
            enclave_id=None if self._backend is None else self._backend.enclave_id,
            token=None if self._backend is None else self._backend.token,
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
        self._attest(self._spoilt(identity, self._faults))
        self._identity = identity

    def _attest(self, identity: Identity) -> None:
        self._enclave.set_document(
            module_id=identity.module_id,
            pcrs=identity.document_pcrs(),
            certificate=identity.certificate,
            cabundle=identity.cabundle,
            leaf_key=identity.leaf_key,
        )

    def _spoilt(self, identity: Identity, faults: Faults) -> Identity:
        """The same enclave, with certificates as the faults have them."""
        wrong = faults.of_certificates
        if not wrong:
            return identity
        now = datetime.now(UTC)
        leaf_at = now
        if Fault.EXPIRED_LEAF in wrong:
            leaf_at = now + _EXPIRED
        elif Fault.NOT_YET_VALID in wrong:
            leaf_at = now + _NOT_YET
        authority = Authority() if Fault.WRONG_ROOT in wrong else self._authority_or_fail()
        pki = authority.issue(now, leaf_at)
        return identity_of(identity.module_id, identity.pcrs, pki)

    def _listen(self) -> None:
        try:
            self._open_port()
        except ConnectError as error:
            _expect_port(self._port, error)
            raise

    def _open_port(self) -> None:
        options = self._options
        identity = self._spoilt(self._identity, self._faults)
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
            **self._faults.for_core(),
        )
        self._port = self._enclave.port

    def _unlisten(self) -> None:
        if self._enclave is not None:
            self._enclave.stop()
