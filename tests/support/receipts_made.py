"""Receipts of documents made on the spot, and receipts that were changed by somebody who knows how
their id is made."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

import enclave_peer
from enclave_peer import PCRS, signed_document

import enclavia
from enclavia import _core
from enclavia._trust.receipts import Facts, Receipt
from enclavia.testing._pki import EnclavePki, mint

HASH = bytes(range(32))
OTHER = enclavia.Pcrs(pcr0=b"\x44" * 48, pcr1=b"\x55" * 48, pcr2=b"\x66" * 48)


def made(at: datetime | None = None, pki: EnclavePki | None = None, **changed: Any) -> Receipt:
    """A receipt as a channel makes it. ``at``: when its document was made and verified."""
    if pki is None:
        pki = enclave_peer.pki() if at is None else mint(at)
    moment = datetime.now().astimezone() if at is None else at
    seconds = int(moment.timestamp())
    document = signed_document(HASH, made=pki, timestamp=seconds * 1000 + 7)
    pins = [OTHER.as_tuple(), PCRS.as_tuple()]
    policy = _core.Policy(pins, pki.root_pem, False, True, 60)
    facts = Facts(
        enclave="wss://enclave.example",
        via=None,
        reason="connect",
        pins=pins,
        root=policy.root,
        clock_leeway=60,
        handshake_hash=HASH,
        raw=_core.verify(document, policy, HASH, seconds),
    )
    return Receipt._of(facts._replace(**changed))


def with_id(fields: dict[str, Any]) -> str:
    """The line of a receipt that says this, with the id that belongs to it."""
    rest = {name: value for name, value in fields.items() if name != "receipt_id"}
    packed = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return json.dumps({**rest, "receipt_id": hashlib.sha256(packed.encode()).hexdigest()})


def changed(receipt: Receipt, **fields: Any) -> str:
    return with_id({**json.loads(str(receipt)), **fields})
