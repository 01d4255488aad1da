"""A local enclave for tests and demos: the real protocol, in front of an app of yours.

Decides which calls need an enclave that runs, and which one that does not. Calls: _arguments,
_client, _identity. Locks: none.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, Unpack, get_args

from .._arguments import (
    address,
    byte_view,
    expect_file,
    flag,
    one_of,
    path_text,
    seconds,
    value_shown,
    whole,
)
from .._identity.pcrs import Pcrs
from ._backend import BackendFault
from ._child import ChildRunner
from ._fault import OF_CERTIFICATES, Fault
from ._identity import DEFAULT_MODULE_ID, Mode, default_pcrs
from ._runner import Facts, Faults, Options, Runner
from ._workload import Interface, named_address

if TYPE_CHECKING:
    from .._client.async_client import AsyncClient
    from .._client.client import Client
    from .._client.options import ClientOptions
    from ._pki import EnclavePki

__all__ = ["LocalEnclave"]

T = TypeVar("T")
C = TypeVar("C")

_NONE = Fault(0)
_NO_BACKEND_FAULTS = BackendFault(0)
_ALL = sum(Fault)
_LONGEST = 1e9
_LEAST_DELAY = 0.001
_MOST_CONNECTIONS = 65_536
_RECORD_LENGTH_MAX = 2**32 - 1
_PLAINTEXT_MAX = 65_535 - 16
_MODULE_ID_MAX = 1024


def _default_connections() -> int:
    """The real server's: two per CPU core."""
    return max(4, 2 * (os.cpu_count() or 2))


def _app(app: object) -> Callable[..., Any] | str | tuple[str, int]:
    if isinstance(app, str):
        if not named_address(app) and not all(app.partition(":")):
            raise ValueError(
                f"app: expected 'host:port', 'module:attribute', a WSGI or an ASGI app, got "
                f"{value_shown(app)}"
            )
        return app
    if isinstance(app, tuple):
        if len(app) != 2:
            raise ValueError(f"app: expected (host, port), got {len(app)} members")
        return address("app", *app)
    if not callable(app):
        raise TypeError(
            "app: expected a WSGI or an ASGI app, 'module:attribute', 'host:port' or (host, port), "
            f"got {type(app).__name__}"
        )
    return app


def _module_id(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"module_id: expected text, got {type(value).__name__}")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        length = 0
    if not 1 <= length <= _MODULE_ID_MAX:
        raise ValueError(
            f"module_id: expected text of 1 to {_MODULE_ID_MAX} bytes of UTF-8, got "
            f"{value_shown(value)}"
        )
    return value


def _pcrs(value: object) -> Pcrs:
    if not isinstance(value, Pcrs):
        raise TypeError(f"pcrs: expected Pcrs or None, got {type(value).__name__}")
    return value


def _tls(value: object) -> tuple[str, str] | bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, tuple):
        raise TypeError(
            f"tls: expected True, False or (certificate file, key file), got {type(value).__name__}"
        )
    if len(value) != 2:
        raise ValueError(f"tls: expected (certificate file, key file), got {len(value)} members")
    certificate, key = (path_text("tls", file, "the path of a PEM file") for file in value)
    for path in (certificate, key):
        expect_file("tls", path, "a PEM file")
    return certificate, key


def _faults(
    mode: Mode,
    faults: object,
    split: object,
    record_length: object,
    delay: object,
    truncated_after: object,
    instead_of_attestation: object,
    after_attestation: object,
) -> Faults:
    if not isinstance(faults, Fault):
        raise TypeError(f"faults: expected Fault, got {type(faults).__name__}")
    if int(faults) & ~_ALL:
        raise ValueError(f"faults: expected members of Fault, got {value_shown(faults)}")
    pieces = whole("split", split, 0, sys.maxsize)
    if Fault.SPLIT in faults and not pieces:
        raise ValueError("split: expected 1 or more, as Fault.SPLIT is on, got 0")
    late = seconds("delay", delay, most=_LONGEST)
    if Fault.SLOW in faults and late < _LEAST_DELAY:
        raise ValueError(
            f"delay: expected {_LEAST_DELAY:g} s or more, as Fault.SLOW is on, got "
            f"{value_shown(delay)}"
        )
    _expect_possible(faults, mode)
    return Faults(
        int(faults),
        pieces,
        whole("record_length", record_length, 0, _RECORD_LENGTH_MAX),
        late,
        whole("truncated_after", truncated_after, 0, sys.maxsize),
        _plaintext("instead_of_attestation", instead_of_attestation),
        _plaintext("after_attestation", after_attestation),
    )


def _expect_possible(faults: Fault, mode: Mode) -> None:
    wrong = faults & OF_CERTIFICATES
    if wrong and mode != "production":
        raise ValueError(
            f"faults: {wrong.name} is about certificates: expected mode='production', whose "
            f"documents have them, got {value_shown(mode)}"
        )
    if Fault.EXPIRED_LEAF | Fault.NOT_YET_VALID in faults:
        raise ValueError(
            "faults: expected EXPIRED_LEAF or NOT_YET_VALID, got both, which are about one "
            "certificate"
        )


def _plaintext(name: str, value: object) -> bytes:
    plaintext = bytes(byte_view(name, value))
    if len(plaintext) > _PLAINTEXT_MAX:
        raise ValueError(f"{name}: expected at most {_PLAINTEXT_MAX} bytes, got {len(plaintext)}")
    return plaintext


def _expect_pki(value: object) -> None:
    from ._pki import EnclavePki

    if not isinstance(value, EnclavePki):
        raise TypeError(f"pki: expected EnclavePki or None, got {type(value).__name__}")


def _stop_in_its_own_process(runner: Runner | ChildRunner, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has neither the threads nor the right to end them
        runner.stop()


class LocalEnclave:
    """A responder on loopback that speaks the enclave's side of the protocol and behaves like the
    real server: 64 slots a connection, an idle timeout, one-shot limits, answers in chunks.

    >>> with LocalEnclave(app) as enclave:
    ...     with Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client:
    ...         client.get("/")

    ``app`` is a WSGI app (served by waitress), an ASGI app (served by uvicorn), ``"host:port"`` of
    a server that runs already, or ``"module:attribute"``. What kind of app it is is looked at
    unless ``interface`` says so.

    ``in_process=False`` runs all of it in a child process, which ends with this one; the app must
    then be importable there.

    ``mode`` is what attestation documents are: ``"production"`` (signed, up to a root made on the
    spot), ``"debug"`` (self-signed) or ``"stub"`` (the bare handshake hash).

    ``tls``: a certificate file and its key, or True for a certificate of ``localhost`` made on the
    spot, which :attr:`tls_certificate` names.

    ``upgradable``: it keeps an upgrade chain, from a first boot on, which a backend on loopback
    (:attr:`backend`) serves; :meth:`upgrade`, :meth:`revoke` and :meth:`rollback` go on with it.
    """

    def __init__(
        self,
        app: Callable[..., Any] | str | tuple[str, int],
        *,
        mode: Mode = "production",
        pcrs: Pcrs | None = None,
        module_id: str = DEFAULT_MODULE_ID,
        interface: Interface = "auto",
        in_process: bool = True,
        port: int = 0,
        tls: tuple[str, str] | bool = False,
        idle_timeout: float = 30.0,
        workload_grace: float = 60.0,
        one_shot_timeout: float = 60.0,
        max_connections: int | None = None,
        faults: Fault = _NONE,
        split: int = 0,
        record_length: int = 0,
        delay: float = 0.0,
        truncated_after: int = 0,
        instead_of_attestation: bytes = b"",
        after_attestation: bytes = b"",
        upgradable: bool = False,
    ) -> None:
        one_of("mode", mode, get_args(Mode))
        self._faults = _faults(
            mode,
            faults,
            split,
            record_length,
            delay,
            truncated_after,
            instead_of_attestation,
            after_attestation,
        )
        options = Options(
            app=_app(app),
            interface=interface,
            mode=mode,
            module_id=_module_id(module_id),
            pcrs=default_pcrs() if pcrs is None else _pcrs(pcrs),
            port=whole("port", port, 0, 65535),
            tls=_tls(tls),
            idle_timeout=seconds("idle_timeout", idle_timeout, most=_LONGEST),
            workload_grace=seconds("workload_grace", workload_grace, most=_LONGEST),
            one_shot_timeout=seconds("one_shot_timeout", one_shot_timeout, most=_LONGEST),
            max_connections=_default_connections()
            if max_connections is None
            else whole("max_connections", max_connections, 1, _MOST_CONNECTIONS),
            faults=self._faults,
            upgradable=flag("upgradable", upgradable),
        )
        if upgradable and mode != "production":
            raise ValueError(
                "upgradable: expected mode='production', whose documents are signed, got "
                f"{value_shown(mode)}"
            )
        one_of("interface", interface, get_args(Interface))
        flag("in_process", in_process)
        self._options = options
        self._runner: Runner | ChildRunner = Runner(options) if in_process else ChildRunner(options)
        self._facts: Facts | None = None
        self._last_stats: dict[str, int] = {}
        # For who reports on them: the test plugin says what they verified.
        self._clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self._finalizer: weakref.finalize[..., LocalEnclave] | None = None

    def start(self) -> Self:
        """Listens when it returns. Raises :class:`enclavia.ConnectError` where it cannot, because
        of an ``OSError`` of the system, its ``__cause__``: its port is another program's."""
        if self._facts is not None:
            raise RuntimeError("this enclave runs already")
        self._facts = self._runner.start()
        self._finalizer = weakref.finalize(
            self, _stop_in_its_own_process, self._runner, os.getpid()
        )
        return self

    def stop(self) -> None:
        """Ends every connection, the responder and the app. May be called again.

        Waits at most 5 s for requests that a WSGI app still works on: nothing can end its threads,
        which go on as daemons. An ASGI app's are cancelled after 1 s; one that resists is waited
        for 10 s. A child process is killed where it takes more than 10 s."""
        if self._facts is None:
            return
        try:
            with contextlib.suppress(RuntimeError, TimeoutError):  # its process died, or hangs
                self._last_stats = self._runner.stats()
        finally:  # also after Ctrl-C
            self._facts = None
            if self._finalizer is not None:
                self._finalizer()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        where = "not running" if self._facts is None else self.url
        if self._facts is not None and isinstance(self._runner, ChildRunner) and self._runner.ended:
            where = "ended: its process was killed or failed; stop() and start() make another"
        return f"<LocalEnclave {self.mode} {where}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a LocalEnclave cannot be pickled: its sockets and keys must exist once. Give its url, "
            "pcrs and root, or a client that client() has made"
        )

    def _running(self) -> Facts:
        if self._facts is None:
            raise RuntimeError("this enclave does not run: use it in a with statement, or start()")
        return self._facts

    @property
    def url(self) -> str:
        """What a client connects to: ``ws://127.0.0.1:PORT``; with TLS ``wss://localhost:PORT``."""
        facts = self._running()
        scheme = "ws" if facts.tls_certificate is None else "wss"
        return f"{scheme}://{self.host}:{facts.port}"

    @property
    def host(self) -> str:
        """The host in :attr:`url`."""
        return "127.0.0.1" if self._running().tls_certificate is None else "localhost"

    @property
    def port(self) -> int:
        """The TCP port in :attr:`url`, 1 to 65535."""
        return self._running().port

    @property
    def pcrs(self) -> Pcrs:
        """What a client must pin."""
        return self._options.pcrs if self._facts is None else self._facts.pcrs

    @property
    def root(self) -> bytes | None:
        """PEM of the root that documents chain to; None where they are not signed."""
        return self._running().root

    @property
    def mode(self) -> Mode:
        """``"production"``, ``"debug"`` or ``"stub"``, as it was made."""
        return self._options.mode

    @property
    def workload(self) -> tuple[str, int]:
        """Where the app listens."""
        return self._running().workload

    @property
    def tls_certificate(self) -> str | None:
        """A file that a client can give as ``verify``; None without TLS."""
        return self._running().tls_certificate

    @property
    def pid(self) -> int:
        """Of the process it runs in."""
        self._running()
        child = self._runner.pid if isinstance(self._runner, ChildRunner) else None
        return os.getpid() if child is None else child

    def set_faults(
        self,
        faults: Fault = _NONE,
        *,
        split: int = 0,
        record_length: int = 0,
        delay: float = 0.0,
        truncated_after: int = 0,
        instead_of_attestation: bytes = b"",
        after_attestation: bytes = b"",
    ) -> None:
        """Exactly these from now on, in open connections too; without arguments none.

        ``split`` (bytes), ``record_length`` (bytes), ``delay`` (seconds) and ``truncated_after``
        (bytes) are parameters of the faults SPLIT, RAW_RECORD_LENGTH, SLOW and TRUNCATED.
        ``instead_of_attestation`` and ``after_attestation`` are plaintexts that are sent, sealed,
        in place of an answer to RequestAttestation, or right after the first one.
        """
        self._running()
        self._switch(
            _faults(
                self.mode,
                faults,
                split,
                record_length,
                delay,
                truncated_after,
                instead_of_attestation,
                after_attestation,
            )
        )

    def _switch(self, faults: Faults) -> None:
        self._runner.set_faults(faults)
        self._faults = faults

    @property
    def faults(self) -> Fault:
        """Those that are switched on."""
        return Fault(self._faults.mask)

    def client(self, **options: Unpack[ClientOptions]) -> Client:
        """A client that trusts this enclave as it is now: its URL, PCRs and root, its TLS
        certificate, and ``debug_mode`` where it is no production enclave. ``options``: the keywords
        of :class:`enclavia.Client`, which come before these. It connects when it is entered with
        ``with``, or else with its first request."""
        from .._client.client import Client

        return self._made(Client(self.url, **self._trusting(options)))

    def async_client(self, **options: Unpack[ClientOptions]) -> AsyncClient:
        """The same as :meth:`client`, an :class:`enclavia.AsyncClient`."""
        from .._client.async_client import AsyncClient

        return self._made(AsyncClient(self.url, **self._trusting(options)))

    def _trusting(self, options: ClientOptions) -> ClientOptions:
        trusted: ClientOptions = {"pcrs": self.pcrs, "root": self.root}
        if self.mode != "production":
            trusted["debug_mode"] = True
        if self.tls_certificate is not None:
            trusted["verify"] = self.tls_certificate
        return {**trusted, **options}

    def _made(self, client: C) -> C:
        self._clients.add(client)
        return client

    def set_identity(self, *, pcrs: Pcrs | None = None, pki: EnclavePki | None = None) -> None:
        """Another identity from now on, as after an upgrade. Open connections stay."""
        self._running()
        if pki is not None:
            _expect_pki(pki)
        self._facts = self._runner.set_identity(None if pcrs is None else _pcrs(pcrs), pki)

    def restart(self) -> None:
        """As after a crash: every connection ends, then the same identity on the same port. The
        app goes on."""
        self._running()
        self._facts = self._runner.restart()

    @property
    def backend(self) -> str:
        """URL of the backend that serves the row and the upgrade chain; where it is upgradable."""
        return self._expect_upgradable(self._running().backend)

    @property
    def enclave_id(self) -> uuid.UUID:
        """By which the backend knows it; where it is upgradable."""
        return self._expect_upgradable(self._running().enclave_id)

    @property
    def token(self) -> str:
        """What the backend asks for while ``BackendFault.PRIVATE`` is on."""
        return self._expect_upgradable(self._running().token)

    def _expect_upgradable(self, value: T | None) -> T:
        if value is None:
            raise RuntimeError("expected LocalEnclave(upgradable=True), got one that is not")
        return value

    def upgrade(
        self,
        app: Callable[..., Any] | str | tuple[str, int] | None = None,
        *,
        pcrs: Pcrs | None = None,
        boot: bool = True,
    ) -> Pcrs:
        """Authorises another version and boots it: every connection ends, and the new version
        listens at the same port, with other PCRs. Returns those that run now.

        ``app``: that of the new version; None: the same. ``pcrs``: made up where they are None.
        ``boot=False``: only authorised, valid in an hour, and so to be revoked.
        """
        self._running()
        self._facts = self._runner.upgrade(
            None if app is None else _app(app),
            None if pcrs is None else _pcrs(pcrs),
            flag("boot", boot),
        )
        return self._facts.pcrs

    def revoke(self) -> None:
        """Revokes the version that was authorised last and has not booted."""
        self._running()
        self._facts = self._runner.revoke()

    def rollback(self) -> Pcrs:
        """The version before this one runs again, although nobody authorised that. Returns its
        PCRs."""
        self._running()
        self._facts = self._runner.rollback()
        return self._facts.pcrs

    def set_backend_faults(self, faults: BackendFault = _NO_BACKEND_FAULTS) -> None:
        """Exactly these from now on; without arguments none."""
        self._running()
        if not isinstance(faults, BackendFault):
            raise TypeError(f"faults: expected BackendFault, got {type(faults).__name__}")
        self._runner.set_backend_faults(int(faults))

    def drop_connections(self, reset: bool = False) -> None:
        """Ends every connection at once, by TCP reset if asked, and goes on listening."""
        self._running()
        self._runner.drop_connections(flag("reset", reset))

    def stats(self) -> dict[str, int]:
        """Counters of the responder: ``connections_total``, ``connections_open``, ``slots_open``,
        ``streams_total``, ``requests_total``, ``attestations_total``, ``bytes_from_workload``,
        ``bytes_to_workload``, ``protocol_errors``. Of a stopped enclave the last ones."""
        return dict(self._last_stats) if self._facts is None else self._runner.stats()
