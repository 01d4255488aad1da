"""The history of an upgradable local enclave: what booted, what was authorised and revoked, as
links that the enclaves of then attested.

Decides nothing about what may follow what: it attests whatever it is told, so that tests can have
wrong histories. Calls: _identity. Locks: none; whoever shares one holds a lock.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .._identity.pcrs import Pcrs
from ._extras import require
from ._identity import DEFAULT_MODULE_ID, Authority

if TYPE_CHECKING:
    from ._pki import EnclavePki

__all__ = ["ControlKey", "History", "Spec", "Version", "version_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# -- CBOR and COSE, as enclaves write them ----------------------------------------------------


def _head(major: int, n: int) -> bytes:
    if n < 24:
        return bytes([major << 5 | n])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if n < 1 << (8 * size):
            return bytes([major << 5 | info]) + n.to_bytes(size, "big")
    raise ValueError(n)


def encode(value: object) -> bytes:
    """CBOR of what payloads and documents are made of."""
    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(encode, value))
    if isinstance(value, dict):
        body = b"".join(encode(key) + encode(member) for key, member in value.items())
        return _head(5, len(value)) + body
    raise TypeError(type(value).__name__)


_PROTECTED = encode({1: -35})  # ES384


def _raw_signature(der: bytes, size: int) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    r, s = decode_dss_signature(der)
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def signed_document(
    pki: EnclavePki, pcrs: Pcrs, user_data: bytes, at: datetime, /, **fields: object
) -> bytes:
    """A COSE_Sign1 of an attestation document of that moment. ``fields`` replaces some of it."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    values = {index: bytes(48) for index in range(16)} | dict(enumerate(pcrs.as_tuple()))
    payload = encode(
        {
            "module_id": DEFAULT_MODULE_ID,
            "digest": "SHA384",
            "timestamp": milliseconds(at),
            "pcrs": values,
            "certificate": pki.leaf_der,
            "cabundle": list(pki.cabundle),
            "public_key": None,
            "user_data": user_data,
            "nonce": None,
            **fields,
        }
    )
    signed = encode(["Signature1", _PROTECTED, b"", payload])
    key = serialization.load_der_private_key(pki.leaf_key_der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - that is what _pki makes
    signature = _raw_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())), 48)
    return encode([_PROTECTED, {}, payload, signature])


def milliseconds(at: datetime) -> int:
    passed = at - _EPOCH
    return (passed.days * 86_400 + passed.seconds) * 1000 + passed.microseconds // 1000


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


# -- versions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """One image, as it is measured and by the digest of its manifest."""

    pcrs: Pcrs
    image_digest: str


def version_of(name: str, pcrs: Pcrs | None = None) -> Version:
    """Random-looking, and the same for the same name."""
    if pcrs is None:
        values = [hashlib.sha384(f"{name}, PCR{n}".encode()).digest() for n in range(3)]
        pcrs = Pcrs(pcr0=values[0], pcr1=values[1], pcr2=values[2])
    return Version(pcrs, f"sha256:{hashlib.sha256(name.encode()).hexdigest()}")


_CHAIN = ("PCR0", "PCR1", "PCR2")


def _three(pcrs: Pcrs) -> dict[str, str]:
    """A chain is of PCR0 to PCR2, whatever further ones the enclave has."""
    return {name: value for name, value in pcrs.as_dict().items() if name in _CHAIN}


class ControlKey:
    """With which an enclave's owner signs upgrades: P-256."""

    def __init__(self) -> None:
        require("cryptography", "signing the upgrades of a local enclave")
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        self._key = ec.generate_private_key(ec.SECP256R1())
        self.public = self._key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        self.compressed = self._key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )

    def sign(self, payload: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        return _raw_signature(self._key.sign(payload, ec.ECDSA(hashes.SHA256())), 32)


# -- links ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """One link to be made. Tests change single fields to break single rules."""

    kind: str
    at: datetime
    fields: dict[str, Any]
    """Of the payload, as they are encoded."""
    attested_by: Pcrs
    pki: EnclavePki
    id: uuid.UUID | None
    key: ControlKey | None
    """None: not signed."""
    payload: bytes | None = None
    """Instead of what the fields give."""
    attested: bytes | None = None
    """What the document is about, instead of the payload."""
    document: tuple[tuple[str, Any], ...] = ()
    """Fields of the document that are replaced."""
    served: tuple[tuple[str, Any], ...] = ()
    """Members of the JSON that are replaced."""

    def encoded(self) -> bytes:
        return encode(self.fields) if self.payload is None else self.payload

    def json(self, sequence: int) -> dict[str, Any]:
        payload = self.encoded()
        about = payload if self.attested is None else self.attested
        document = signed_document(
            self.pki,
            self.attested_by,
            hashlib.sha256(about).digest(),
            self.at,
            **dict(self.document),
        )
        made: dict[str, Any] = {
            "id": None if self.id is None else str(self.id),
            "kind": self.kind,
            "sequence": sequence,
            "payload": base64.b64encode(payload).decode(),
            "attestation": base64.b64encode(document).decode(),
            "created_at": _rfc3339(self.at),
        }
        if self.key is not None:
            made["signature"] = base64.b64encode(self.key.sign(payload)).decode()
        return {**made, **dict(self.served)}


class History:
    """The links of one enclave, in order."""

    def __init__(
        self,
        authority: Authority,
        enclave_id: uuid.UUID | None = None,
        key: ControlKey | None = None,
    ) -> None:
        self.authority = authority
        self.enclave_id = uuid.uuid4() if enclave_id is None else enclave_id
        self.key = ControlKey() if key is None else key
        self.specs: list[Spec] = []
        self.in_force: Version | None = None
        self._made: list[tuple[Spec, dict[str, Any]]] = []

    def boot(self, version: Version, at: datetime, pki: EnclavePki | None = None) -> Spec:
        fields = {
            "enclave_id": self.enclave_id.bytes,
            "image_digest": version.image_digest,
            "pcrs": _three(version.pcrs),
            "booted_at": _rfc3339(at),
            "nonce": os.urandom(32),
        }
        self.in_force = version
        return self._add("boot", at, fields, version.pcrs, pki, None)

    def upgrade(
        self,
        target: Version,
        valid_from: datetime,
        at: datetime,
        pki: EnclavePki | None = None,
        start: Pcrs | None = None,
    ) -> Spec:
        by = self._running().pcrs
        fields = {
            "enclave_id": self.enclave_id.bytes,
            "from_pcrs": _three(by if start is None else start),
            "to_pcrs": _three(target.pcrs),
            "image_digest": target.image_digest,
            "valid_from": _rfc3339(valid_from),
            "issued_at": _rfc3339(at),
            "nonce": os.urandom(32),
        }
        return self._add("upgrade", at, fields, by, pki, self.key)

    def revoke(self, upgrade: uuid.UUID, at: datetime, pki: EnclavePki | None = None) -> Spec:
        fields = {
            "enclave_id": self.enclave_id.bytes,
            "revokes": upgrade.bytes,
            "issued_at": _rfc3339(at),
            "nonce": os.urandom(32),
        }
        return self._add("revocation", at, fields, self._running().pcrs, pki, self.key)

    def _running(self) -> Version:
        if self.in_force is None:
            raise ValueError("expected a boot before anything else")
        return self.in_force

    def _add(
        self,
        kind: str,
        at: datetime,
        fields: dict[str, Any],
        by: Pcrs,
        pki: EnclavePki | None,
        key: ControlKey | None,
    ) -> Spec:
        spec = Spec(
            kind=kind,
            at=at,
            fields=fields,
            attested_by=by,
            pki=self.authority.issue(at) if pki is None else pki,
            id=uuid.uuid4(),
            key=key,
        )
        self.specs.append(spec)
        return spec

    def links(self, specs: Sequence[Spec] | None = None) -> list[dict[str, Any]]:
        """As the backend serves them. A link is made once: its signatures are random."""
        wanted = self.specs if specs is None else specs
        made = []
        for index, spec in enumerate(wanted):
            known = next((link for each, link in self._made if each is spec), None)
            if known is None or known["sequence"] != index:
                known = spec.json(index)
                self._made.append((spec, known))
            made.append(known)
        return made

    def links_json(self, specs: Sequence[Spec] | None = None) -> str:
        return json.dumps(self.links(specs))

    def row(self, **changes: object) -> dict[str, Any]:
        version = self._running()
        return {
            "id": str(self.enclave_id),
            "pcrs": _three(version.pcrs),
            "image_digest": version.image_digest,
            "control_public_key": list(self.key.public),
            "upgradable": True,
            **changes,
        }

    def row_json(self, **changes: object) -> str:
        return json.dumps(self.row(**changes))

    def changed(self, index: int, **changes: Any) -> list[Spec]:  # noqa: ANN401 - replace's
        """The same links, one of them changed."""
        specs = list(self.specs)
        specs[index] = replace(specs[index], **changes)
        return specs
