"""Who a local enclave says it is: PCRs, module id, certificates.

Decides which PCRs and ids are used where none are given. Calls: _identity. Locks: none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from .._identity.pcrs import Pcrs
from ._extras import require

if TYPE_CHECKING:
    from ._pki import EnclavePki

__all__ = ["DEFAULT_MODULE_ID", "Authority", "Identity", "Mode", "default_pcrs", "identity_of"]

Mode = Literal["production", "debug", "stub"]

DEFAULT_MODULE_ID = "i-0123456789abcdef0-enc0123456789abcdef"

_PCR_COUNT = 16  # what AWS's documents carry; zero where nothing was measured
_PCR_BYTES = 48
_DEBUG_CERTIFICATE = bytes(64)  # what the published stand-ins carry


def default_pcrs() -> Pcrs:
    """Random-looking, and the same each time."""
    values = [hashlib.sha384(b"enclavia local enclave, PCR%d" % n).digest() for n in range(3)]
    return Pcrs(pcr0=values[0], pcr1=values[1], pcr2=values[2])


class Authority:
    """A root that was made on the spot and can issue again: leaves live three hours, and an
    enclave may be left running for longer."""

    def __init__(self, since: datetime | None = None) -> None:
        """``since``: when the root begins to be valid; None: just now."""
        require("cryptography", "minting the certificates of a local enclave")
        from cryptography.hazmat.primitives.asymmetric import ec

        self._root_key = ec.generate_private_key(ec.SECP384R1())
        self._since = since
        self._first: EnclavePki | None = None

    def issue(self, at: datetime | None = None, leaf_at: datetime | None = None) -> EnclavePki:
        """Certificates that begin to be valid at a moment, and the leaf at another; None: now, and
        the same."""
        from ._pki import mint, specs

        root, *below = specs(at)
        if leaf_at is not None:
            below[-1] = specs(leaf_at)[-1]
        if self._first is None and self._since is not None:
            root = specs(self._since)[0]
        pki = mint(chain=[replace(root, key=self._root_key), *below])
        if self._first is None:
            self._first = pki
            return pki
        first = self._first
        return replace(
            pki,
            root_der=first.root_der,
            root_pem=first.root_pem,
            cabundle=[first.root_der, *pki.cabundle[1:]],
        )


@dataclass(frozen=True)
class Identity:
    module_id: str
    pcrs: Pcrs
    certificate: bytes
    cabundle: tuple[bytes, ...]
    leaf_key: bytes
    root: bytes | None
    """PEM."""

    def document_pcrs(self) -> dict[int, bytes]:
        values = {index: bytes(_PCR_BYTES) for index in range(_PCR_COUNT)}
        return {**values, **dict(enumerate(self.pcrs.as_tuple())), **self.pcrs.further}


def identity_of(module_id: str, pcrs: Pcrs, pki: EnclavePki | None) -> Identity:
    """``pki`` is None where documents are not signed."""
    if pki is None:
        certificate = _DEBUG_CERTIFICATE
        return Identity(module_id, pcrs, certificate, (certificate,), b"", None)
    return Identity(
        module_id, pcrs, pki.leaf_der, tuple(pki.cabundle), pki.leaf_key_der, pki.root_pem
    )
