"""The one client that a job has in a process.

Every copy of a fleet that is unpickled in a process finds the same member, by the fleet's name. A
forked child has none of its parent's.

Decides when the client is made, and when it is closed. Calls: _client, _errors, _identity. Locks:
``_lock``, around a member's client while it is made and closed; ``_members_lock``, around which
members there are.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from typing import Any, Final

from .._client.client import Client
from .._errors import EnclaviaError
from .._identity.attestation import Attestation
from .node import NodeForwarder
from .options import FleetSettings
from .report import identity_of

__all__ = ["Member", "member_of"]


class Member:
    """One process's part of a job."""

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._lock = threading.RLock()  # of a signal's handler that comes by meanwhile, too
        self._client: Client | None = None
        self._forwarder: NodeForwarder | None = None
        self._holders = 0
        self._seen_before: list[Attestation] = []  # by clients that were closed
        self.told = 0
        """How many identities were reported to where the engine collects reports."""

    def client(self) -> Client:
        """Connected and verified when it is returned for the first time. Raises: Connecting."""
        client = self._client
        if client is not None and not client.is_closed:
            return client
        with self._lock:
            client = self._client
            if client is None or client.is_closed:
                self._seen_before = self.seen()
                client = self._client = self._made()
            return client

    def _made(self) -> Client:
        options: dict[str, Any] = dict(self._settings.options)
        if self._settings.per == "node" and options.get("via") is None:
            for name in _OF_THE_FORWARDER:
                options.pop(name, None)
            options["via"] = self._node().via
        return Client.connect(str(self._settings.url), **options)

    def _node(self) -> NodeForwarder:
        if self._forwarder is None:
            forwarder = NodeForwarder(self._settings.url, self._settings.options)
            forwarder.open()
            self._forwarder = forwarder
        return self._forwarder

    @property
    def via(self) -> str | None:
        """The forwarder that is used."""
        given: str | None = self._settings.options.get("via")
        if given is None and self._forwarder is not None:
            return self._forwarder.via
        return given

    def seen(self) -> list[Attestation]:
        """One document for each identity that a channel in this process has led to, also one of a
        client that was closed since: the next client may meet another image."""
        client = self._client
        now = [] if client is None else client._enclave._seen()
        found: dict[str, Attestation] = {}
        for each in (*self._seen_before, *now):
            found.setdefault(identity_of(each), each)
        return list(found.values())

    def verified_again(self, timeout: float | None) -> list[Attestation]:
        """A fresh document of each open channel, verified. Raises: Connecting, Exchanging."""
        return self.client()._enclave._verify_again(timeout)

    def retain(self) -> None:
        """Connects, and keeps it until as many calls of ``release``."""
        with self._lock:
            self.client()
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders <= 0:
                self.close()

    def close(self) -> None:
        """Closes the client, and ends the forwarder that this process has started. The next use
        makes others. May be called again."""
        with self._lock:
            self._seen_before = self.seen()
            client, self._client = self._client, None
            forwarder, self._forwarder = self._forwarder, None
            self._holders = 0
            try:
                if client is not None:
                    client.close()
            finally:
                if forwarder is not None:
                    forwarder.close()


_OF_THE_FORWARDER: Final = ("upgrade_headers", "verify", "proxy")
"""Settings of the connection to the enclave, which a client with ``via=`` does not make."""

_members: dict[str, Member] = {}
_members_lock = threading.RLock()
# Of parents of this process, kept so that nothing of theirs is closed from here.
_inherited: list[dict[str, Member]] = []


def member_of(settings: FleetSettings) -> Member:
    """The member of this process."""
    with _members_lock:
        member = _members.get(settings.name)
        if member is None:
            member = _members[settings.name] = Member(settings)
        return member


def _forget() -> None:
    global _members, _members_lock
    _inherited.append(_members)
    _members = {}
    _members_lock = threading.RLock()


def _close_all() -> None:
    for member in list(_members.values()):
        with contextlib.suppress(EnclaviaError, OSError):
            member.close()


os.register_at_fork(after_in_child=_forget)
atexit.register(_close_all)
