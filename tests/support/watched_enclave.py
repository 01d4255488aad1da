"""A local enclave in front of a workload whose every connection a test holds, and how to wait for
what it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from raw_workload import RawWorkload

from enclavia.testing import LocalEnclave

CHUNK = 16384


SLOTS = 64


LISTENS = "0A"  # a socket's state in /proc/net/tcp


def settle(value: Callable[[], Any], quiet: float = 0.3) -> Any:
    """The value, once it has not changed for a while."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < quiet:
        time.sleep(0.02)
        now = value()
        if now != last:
            last, since = now, time.monotonic()
    return last


def enclave_for(workload: RawWorkload, **options: Any) -> LocalEnclave:
    options = {"mode": "debug"} | options
    return LocalEnclave(workload.address, **options)


def cose_parts(document: bytes) -> tuple[bytes, dict[str, Any], bytes]:
    cose = cbor2.loads(document)
    protected, _, payload, signature = cose.value if isinstance(cose, cbor2.CBORTag) else cose
    assert cbor2.loads(protected) == {1: -35}
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    return signed, cbor2.loads(payload), signature


def check_signature(document: bytes) -> None:
    signed, payload, signature = cose_parts(document)
    key = x509.load_der_x509_certificate(payload["certificate"]).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = signature[:48], signature[48:]
    pair = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    key.verify(pair, signed, ec.ECDSA(hashes.SHA384()))
