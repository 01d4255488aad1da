"""A backend on loopback that serves a local enclave's row and upgrade chain, and what it can be
made to do wrong.

Decides which history is served. Calls: nothing of the package. Locks: ``_lock``, around the history
while it is changed or made to JSON.
"""

from __future__ import annotations

import contextlib
import enum
import http.server
import json
import secrets
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from ._history import ControlKey, History, Spec

__all__ = ["BackendFault", "LocalBackend"]

_TOO_LARGE = 5 * 1024 * 1024
_SLOW_SECONDS = 60.0


class BackendFault(enum.IntFlag):
    """Switched on by :meth:`LocalEnclave.set_backend_faults`, any number at a time."""

    WITHHELD_LINK = enum.auto()
    """The last link is left out."""
    RELABELLED_ID = enum.auto()
    """The ids of the last two upgrades are exchanged; of a single one, another id stands there."""
    FOREIGN_ENCLAVE_ID = enum.auto()
    """The last link is that of another enclave."""
    WRONG_CONTROL_KEY = enum.auto()
    """The row has another control key than the one that signed."""
    OLD_LEAF = enum.auto()
    """The last link's document is signed by a leaf that had expired by then."""
    DOWN = enum.auto()
    """Every connection is closed without an answer."""
    SLOW = enum.auto()
    """Nothing is answered for a minute."""
    TOO_LARGE = enum.auto()
    """Answers have 5 MiB."""
    REDIRECT = enum.auto()
    """Every request is sent on to another host."""
    PRIVATE = enum.auto()
    """The row is shown to who has the token."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A client that closes its connection between two requests is no error to print."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class LocalBackend:
    """Serves in threads of its own from :meth:`start` to :meth:`stop`."""

    def __init__(self, history: History) -> None:
        self.token = secrets.token_urlsafe(24)
        self.requests: list[str] = []
        """Paths, in order."""
        self._history = history
        self._faults = BackendFault(0)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server: http.server.ThreadingHTTPServer | None = None

    def start(self) -> None:
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = _SLOW_SECONDS

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # its client may leave
                    backend.answer(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="enclavia-backend",
            daemon=True,
        ).start()

    def stop(self) -> None:
        self._stopping.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        if self._server is None:
            raise RuntimeError("the backend does not run")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def enclave_id(self) -> uuid.UUID:
        return self._history.enclave_id

    @contextlib.contextmanager
    def changing(self) -> Iterator[History]:
        """The history, while nobody is served of it."""
        with self._lock:
            yield self._history

    def set_faults(self, faults: BackendFault) -> None:
        self._faults = faults

    # -- serving ----------------------------------------------------------------------------

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.path)
        faults = self._faults
        if faults & BackendFault.DOWN:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if faults & BackendFault.SLOW:
            self._stopping.wait(_SLOW_SECONDS)
            handler.close_connection = True
            return
        if faults & BackendFault.REDIRECT:
            self._send(handler, 302, b"", {"Location": "http://localhost:1" + handler.path})
            return
        if faults & BackendFault.TOO_LARGE:
            self._send(handler, 200, b" " * _TOO_LARGE)
            return
        self._serve(handler, faults)

    def _serve(self, handler: http.server.BaseHTTPRequestHandler, faults: BackendFault) -> None:
        own = f"/enclaves/{self._history.enclave_id}"
        if handler.path == own:
            shown = handler.headers.get("Authorization") == f"Bearer {self.token}"
            if faults & BackendFault.PRIVATE and not shown:
                self._send(handler, 401, b'{"error": "unauthorized"}')
                return
            self._send(handler, 200, self._text(lambda: self._row(faults)))
        elif handler.path == f"{own}/upgrade-chain":
            self._send(handler, 200, self._text(lambda: self._links(faults)))
        else:
            self._send(handler, 404, b'{"error": "not found"}')

    def _text(self, make: Callable[[], object]) -> bytes:
        with self._lock:
            return json.dumps(make()).encode()

    def _send(
        self,
        handler: http.server.BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def _row(self, faults: BackendFault) -> dict[str, Any]:
        if faults & BackendFault.WRONG_CONTROL_KEY:
            return self._history.row(control_public_key=list(ControlKey().public))
        return self._history.row()

    def _links(self, faults: BackendFault) -> list[dict[str, Any]]:
        specs = list(self._history.specs)
        if faults & BackendFault.WITHHELD_LINK:
            specs.pop()
        if faults & BackendFault.FOREIGN_ENCLAVE_ID:
            fields = {**specs[-1].fields, "enclave_id": bytes(16)}
            specs[-1] = replace(specs[-1], fields=fields)
        if faults & BackendFault.OLD_LEAF:
            old = self._history.authority.issue(specs[-1].at - timedelta(hours=4))
            specs[-1] = replace(specs[-1], pki=old)
        if faults & BackendFault.RELABELLED_ID:
            specs = _relabelled(specs)
        return self._history.links(specs)


def _relabelled(specs: list[Spec]) -> list[Spec]:
    upgrades = [index for index, spec in enumerate(specs) if spec.kind == "upgrade"]
    if len(upgrades) > 1:
        first, second = upgrades[-2:]
        a, b = specs[first].id, specs[second].id
        specs[first] = replace(specs[first], id=b)
        specs[second] = replace(specs[second], id=a)
    elif upgrades:
        specs[upgrades[0]] = replace(specs[upgrades[0]], id=uuid.uuid4())
    return specs
