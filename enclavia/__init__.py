"""Attested, end-to-end encrypted channels to AWS Nitro Enclaves.

>>> from enclavia import Client, Pcrs
>>> with Client("wss://<id>.enclaves.beta.enclavia.io", pcrs=Pcrs.load("status.json")) as client:
...     client.get("/health").raise_for_status()

PYTEST_DONT_REWRITE (for pytest, which would warn where this is imported before it begins).
"""

# Decides which names are public. Calls: _build_info, _channel, _client, _core, _errors, _files,
# _fleet, _forward, _identity, _libraries, _trust, _unfinished. Locks: none.

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

try:
    from ._core import AWS_ROOT_G1, VERSION
except ImportError as error:
    from ._libraries import explained

    raise explained(error) from error

from ._channel.trust_store import ca_store
from ._client.client import Client
from ._client.transport import EnclaveTransport
from ._errors import (
    AttestationError,
    AttestationRefused,
    BackendError,
    CertificateError,
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    DebugModeWarning,
    DigestMismatch,
    DocumentError,
    DownloadError,
    EnclaviaError,
    FileChanged,
    FleetMismatch,
    ForeignURL,
    ForkedError,
    IncompleteResponse,
    InternalError,
    InvalidRequest,
    InvalidURL,
    NonceMismatch,
    PcrMismatch,
    PinsUnavailable,
    PolicyExpired,
    PoolTimeout,
    ProtocolError,
    RangesUnsupported,
    ReadTimeout,
    ReceiptError,
    ReconnectDisabled,
    ServerError,
    SignatureError,
    SigstoreError,
    SlowReader,
    StateError,
    UpgradeChainError,
    UpgradeRejected,
    WriteTimeout,
)
from ._identity.pcrs import Pcrs
from ._trust.receipts import Receipt
from ._unfinished import hold_fork_back

if TYPE_CHECKING:
    from ._build_info import build_info
    from ._channel.async_channel import AsyncChannel, AsyncStream
    from ._channel.channel import Channel, Stream
    from ._client.async_client import AsyncClient
    from ._client.async_transport import AsyncEnclaveTransport
    from ._files.opened import AsyncRemoteFile, RemoteFile
    from ._fleet.report import FleetReport, WorkerReport
    from ._forward.forwarder import AsyncForwarder, Forwarder
    from ._identity.attestation import Attestation, MatchedPins, verify_attestation
    from ._trust.chain import UpgradeChain, UpgradeLink, verify_upgrade_chain
    from ._trust.policy import Policy, PolicyUpgrades, PolicyVersion
    from ._trust.receipt_file import Receipts
    from ._trust.sigstore_pins import SigstorePins
    from ._trust.sources import PinSource
    from ._trust.upgrades import TrustUpgrades

__all__ = [
    "AWS_ROOT_G1",
    "AsyncChannel",
    "AsyncClient",
    "AsyncEnclaveTransport",
    "AsyncForwarder",
    "AsyncRemoteFile",
    "AsyncStream",
    "Attestation",
    "AttestationError",
    "AttestationRefused",
    "BackendError",
    "CertificateError",
    "Channel",
    "Client",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionClosed",
    "DebugModeWarning",
    "DigestMismatch",
    "DocumentError",
    "DownloadError",
    "EnclaveTransport",
    "EnclaviaError",
    "FileChanged",
    "FleetMismatch",
    "FleetReport",
    "ForeignURL",
    "ForkedError",
    "Forwarder",
    "IncompleteResponse",
    "InternalError",
    "InvalidRequest",
    "InvalidURL",
    "MatchedPins",
    "NonceMismatch",
    "PcrMismatch",
    "Pcrs",
    "PinSource",
    "PinsUnavailable",
    "Policy",
    "PolicyExpired",
    "PolicyUpgrades",
    "PolicyVersion",
    "PoolTimeout",
    "ProtocolError",
    "RangesUnsupported",
    "ReadTimeout",
    "Receipt",
    "ReceiptError",
    "Receipts",
    "ReconnectDisabled",
    "RemoteFile",
    "ServerError",
    "SignatureError",
    "SigstoreError",
    "SigstorePins",
    "SlowReader",
    "StateError",
    "Stream",
    "TrustUpgrades",
    "UpgradeChain",
    "UpgradeChainError",
    "UpgradeLink",
    "UpgradeRejected",
    "WorkerReport",
    "WriteTimeout",
    "__version__",
    "build_info",
    "ca_store",
    "verify_attestation",
    "verify_upgrade_chain",
]

__version__ = VERSION

# A library says nothing unless its user sets logging up.
logging.getLogger("enclavia").addHandler(logging.NullHandler())

hold_fork_back()

# What needs anyio, and what few programs use, costs time to import: it is imported when it is first
# asked for. tests/python/house/test_imports.py says which modules are not.
_LAZY = {
    "AsyncChannel": "._channel.async_channel",
    "AsyncClient": "._client.async_client",
    "AsyncEnclaveTransport": "._client.async_transport",
    "AsyncForwarder": "._forward.forwarder",
    "AsyncRemoteFile": "._files.opened",
    "AsyncStream": "._channel.async_channel",
    "Attestation": "._identity.attestation",
    "Channel": "._channel.channel",
    "FleetReport": "._fleet.report",
    "Forwarder": "._forward.forwarder",
    "MatchedPins": "._identity.attestation",
    "RemoteFile": "._files.opened",
    "Receipts": "._trust.receipt_file",
    "Policy": "._trust.policy",
    "PolicyUpgrades": "._trust.policy",
    "PinSource": "._trust.sources",
    "PolicyVersion": "._trust.policy",
    "SigstorePins": "._trust.sigstore_pins",
    "Stream": "._channel.channel",
    "TrustUpgrades": "._trust.upgrades",
    "UpgradeChain": "._trust.chain",
    "UpgradeLink": "._trust.chain",
    "WorkerReport": "._fleet.report",
    "build_info": "._build_info",
    "verify_attestation": "._identity.attestation",
    "verify_upgrade_chain": "._trust.chain",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value: object = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
