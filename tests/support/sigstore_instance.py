"""A Sigstore instance of a test's own: a certificate authority for code signing, its transparency
log of certificates, and a log of signatures, with bundles made by it and its trusted root.

Made of ``cryptography`` and JSON alone, from RFC 6962 (certificate transparency, Merkle trees), RFC
3161 and 5652 (timestamps, and the signed data that they are), the signed notes of transparency
logs, and the published schemas of bundles and of log entries. The
library that is tested takes no part in what it is tested with. :class:`Signed` has a switch for
each thing that can be wrong with a bundle, so that one rule is broken at a time.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

ISSUER: Final = "https://token.actions.githubusercontent.com"
REPOSITORY: Final = "https://github.com/acme/enclave"
REF: Final = "refs/heads/main"
IDENTITY: Final = f"{REPOSITORY}/.github/workflows/release.yml@{REF}"
SLSA: Final = "https://slsa.dev/provenance/v1"
IN_TOTO: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"

_FULCIO: Final = "1.3.6.1.4.1.57264.1"
_SCTS: Final = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_ORIGIN: Final = "rekor.example - 1193050959916656506"
_CERTIFICATE_LIFE: Final = timedelta(minutes=10)


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def der(tag: int, *parts: bytes) -> bytes:
    """One value of ASN.1."""
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


_SEQUENCE, _SET, _INTEGER, _OCTETS, _UTF8, _GENERALIZED_TIME = 0x30, 0x31, 2, 4, 0x0C, 0x18


def der_oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    content = b""
    for number in (40 * first + second, *rest):
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(number & 0x7F | 0x80)
        content += bytes(reversed(digits))
    return der(6, content)


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(spki(key)).digest()


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def pae(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE envelope's signature is over."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def statement(*subjects: tuple[str, bytes], **changed: Any) -> dict[str, Any]:
    """Of in-toto, about the named contents."""
    made = {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": hashlib.sha256(content).hexdigest()}}
            for name, content in subjects
        ],
        "predicateType": SLSA,
        "predicate": {"buildDefinition": {"buildType": "https://actions.github.io/buildtypes/"}},
    }
    return {**made, **changed}


@dataclasses.dataclass(frozen=True)
class Signed:
    """What a bundle is made of: a right one by default."""

    content: bytes | None = None
    """What a message signature is over."""
    payload: bytes | None = None
    """What a DSSE envelope holds."""
    payload_type: str = IN_TOTO
    identity: str = IDENTITY
    issuer: str | None = ISSUER
    repository: str | None = REPOSITORY
    ref: str | None = REF
    at: datetime | None = None
    """When the certificate was issued; default a year ago, so that it ended long before now."""
    logged: timedelta = timedelta(minutes=1)
    """After the certificate was issued."""
    usage: ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING
    alternative_name: bool = True
    rsa_key: bool = False
    transparent: bool = True
    """Whether the log of certificates has the certificate."""
    logged_digest_of: bytes | None = None
    """What the entry of the log is about, where that is something else."""
    tree_size: int = 3
    second_log: bool = False
    """As the second version of the log has it: the time is from a timestamp authority."""
    stamped: bytes | None = None
    """What the timestamp is of, where that is not the signature."""


class Instance:
    """One that may be trusted or not."""

    def __init__(self) -> None:
        self.began = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3650)
        self.root_key = ec.generate_private_key(ec.SECP256R1())
        self.ca_key = ec.generate_private_key(ec.SECP256R1())
        self.ct_key = ec.generate_private_key(ec.SECP256R1())
        self.log_key = ec.generate_private_key(ec.SECP256R1())
        self.stamp_key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._authority("sigstore", self.root_key, None, 1)
        self.ca = self._authority("sigstore-intermediate", self.ca_key, self.root, 0)
        self.stamper = self._stamper()

    # -- who is trusted

    def trusted_root(self) -> bytes:
        valid = {"start": self.began.isoformat().replace("+00:00", "Z")}

        def log(key: ec.EllipticCurvePrivateKey, url: str) -> dict[str, Any]:
            return {
                "baseUrl": url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": b64(spki(key)),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": valid,
                },
                "logId": {"keyId": b64(key_id(key))},
            }

        def authority(name: str, *chain: x509.Certificate) -> dict[str, Any]:
            certificates = [{"rawBytes": b64(each.public_bytes(_DER))} for each in chain]
            return {
                "subject": {"organization": "sigstore.example", "commonName": name},
                "uri": f"https://{name}.example",
                "certChain": {"certificates": certificates},
                "validFor": valid,
            }

        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.log_key, "https://rekor.example")],
                "certificateAuthorities": [authority("sigstore", self.ca, self.root)],
                "ctlogs": [log(self.ct_key, "https://ctfe.example")],
                "timestampAuthorities": [authority("timestamp", self.stamper, self.root)],
            }
        ).encode()

    # -- bundles

    def of_file(self, content: bytes, **changed: Any) -> dict[str, Any]:
        """As ``sigstore sign`` makes it."""
        return self.bundle(Signed(content=content, **changed))

    def of_statement(self, said: object, **changed: Any) -> dict[str, Any]:
        """As GitHub's attesting actions make it. ``said``: a statement, or the bytes of one."""
        payload = said if isinstance(said, bytes) else json.dumps(said).encode()
        return self.bundle(Signed(payload=payload, **changed))

    def bundle(self, signed: Signed) -> dict[str, Any]:
        key: Any
        if signed.rsa_key:
            key = rsa.generate_private_key(65537, 2048)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
        issued = signed.at or datetime.now(UTC).replace(microsecond=0) - timedelta(days=365)
        certificate = self._certificate(signed, key, issued)
        pem = b64(certificate.public_bytes(serialization.Encoding.PEM))
        content: dict[str, Any]
        if signed.payload is not None:
            message = pae(signed.payload_type, signed.payload)
            signature = self._signature(key, message)
            about = signed.payload if signed.logged_digest_of is None else signed.logged_digest_of
            entry = self._of_dsse(about, signature, pem)
            content = {
                "dsseEnvelope": {
                    "payload": b64(signed.payload),
                    "payloadType": signed.payload_type,
                    "signatures": [{"sig": b64(signature)}],
                }
            }
        else:
            assert signed.content is not None
            signature = self._signature(key, signed.content)
            about = signed.content if signed.logged_digest_of is None else signed.logged_digest_of
            entry = self._of_file(about, signature, pem)
            if signed.second_log:
                entry = self._of_second_log(about, signature, certificate)
            content = {
                "messageSignature": {
                    "messageDigest": {
                        "algorithm": "SHA2_256",
                        "digest": b64(hashlib.sha256(signed.content).digest()),
                    },
                    "signature": b64(signature),
                }
            }
        logged = self._logged(entry, issued + signed.logged, signed.tree_size)
        timestamps = []
        if signed.second_log:
            del logged["integratedTime"], logged["inclusionPromise"]
            of = signature if signed.stamped is None else signed.stamped
            timestamps = [{"signedTimestamp": b64(self.timestamp(of, issued + signed.logged))}]
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(certificate.public_bytes(_DER))},
                "tlogEntries": [logged],
                "timestampVerificationData": {"rfc3161Timestamps": timestamps},
            },
            **content,
        }

    def _signature(self, key: Any, message: bytes) -> bytes:
        if isinstance(key, rsa.RSAPrivateKey):
            from cryptography.hazmat.primitives.asymmetric import padding

            return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return sign(key, message)

    # -- certificates

    def _authority(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: x509.Certificate | None,
        below: int,
    ) -> x509.Certificate:
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "sigstore.example"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.began)
            .not_valid_after(self.began + timedelta(days=7300))
            .add_extension(x509.BasicConstraints(True, below), True)
            .add_extension(_usage("key_cert_sign", "crl_sign"), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )
        if issuer is not None:
            above = self.root_key.public_key()
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False
            ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above), False)
        return builder.sign(self.root_key, hashes.SHA256())

    def _certificate(self, signed: Signed, key: Any, issued: datetime) -> x509.Certificate:
        above = self.ca_key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(issued)
            .not_valid_after(issued + _CERTIFICATE_LIFE)
            .add_extension(_usage("digital_signature"), True)
            .add_extension(x509.ExtendedKeyUsage([signed.usage]), False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above), False)
        )
        if signed.alternative_name:
            name = (
                x509.RFC822Name(signed.identity)
                if "@" in signed.identity and "://" not in signed.identity
                else x509.UniformResourceIdentifier(signed.identity)
            )
            builder = builder.add_extension(x509.SubjectAlternativeName([name]), True)
        for number, value, encoded in (
            (1, signed.issuer, False),
            (8, signed.issuer, True),
            (12, signed.repository, True),
            (14, signed.ref, True),
        ):
            if value is not None:
                raw = value.encode()
                content = der(_UTF8, raw) if encoded else raw
                oid = ObjectIdentifier(f"{_FULCIO}.{number}")
                builder = builder.add_extension(x509.UnrecognizedExtension(oid, content), False)
        before = builder.sign(self.ca_key, hashes.SHA256())
        timestamps = self._certificate_timestamps(before, issued, signed.transparent)
        listed = x509.UnrecognizedExtension(_SCTS, der(_OCTETS, timestamps))
        return builder.add_extension(listed, False).sign(self.ca_key, hashes.SHA256())

    def _certificate_timestamps(
        self, certificate: x509.Certificate, issued: datetime, right: bool
    ) -> bytes:
        """RFC 6962, section 3.2 and 3.3: what the log of certificates says of one, before it says
        so in it."""
        body = certificate.tbs_certificate_bytes
        milliseconds = int(issued.timestamp() * 1000)
        head = struct.pack(">BBQH", 0, 0, milliseconds, 1)
        entry = key_id(self.ca_key) + len(body).to_bytes(3, "big") + body
        signature = sign(self.ct_key, head + entry + struct.pack(">H", 0))
        if not right:
            signature = sign(self.ct_key, b"of another certificate")
        one = b"".join(
            (
                struct.pack(">B32sQH", 0, key_id(self.ct_key), milliseconds, 0),
                bytes((4, 3)),
                struct.pack(">H", len(signature)),
                signature,
            )
        )
        several = struct.pack(">H", len(one)) + one
        return struct.pack(">H", len(several)) + several

    # -- times

    def _stamper(self) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "timestamp")]))
            .issuer_name(self.root.subject)
            .public_key(self.stamp_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.began)
            .not_valid_after(self.began + timedelta(days=7300))
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(_usage("digital_signature"), True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root_key.public_key()),
                False,
            )
            .sign(self.root_key, hashes.SHA256())
        )

    def timestamp(self, of: bytes, at: datetime) -> bytes:
        """RFC 3161's response: that these bytes were there at that time."""
        sha256 = der(_SEQUENCE, der_oid("2.16.840.1.101.3.4.2.1"))
        one, kind = der(_INTEGER, b"\x01"), der_oid("1.2.840.113549.1.9.16.1.4")
        said = der(
            _SEQUENCE,
            one,
            der_oid("1.3.6.1.4.1.57264.2"),
            der(_SEQUENCE, sha256, der(_OCTETS, hashlib.sha256(of).digest())),
            one,
            der(_GENERALIZED_TIME, at.strftime("%Y%m%d%H%M%SZ").encode()),
        )
        certificate = self.stamper.public_bytes(_DER)
        hashed = der(_OCTETS, hashlib.sha256(certificate).digest())
        attributes = (
            (der_oid("1.2.840.113549.1.9.3"), kind),
            (der_oid("1.2.840.113549.1.9.4"), der(_OCTETS, hashlib.sha256(said).digest())),
            (
                der_oid("1.2.840.113549.1.9.16.2.47"),
                der(_SEQUENCE, der(_SEQUENCE, der(_SEQUENCE, hashed))),
            ),
        )
        signed = sorted(der(_SEQUENCE, name, der(_SET, value)) for name, value in attributes)
        number = self.stamper.serial_number
        serial = number.to_bytes(number.bit_length() // 8 + 1, "big")
        signer = der(
            _SEQUENCE,
            one,
            der(
                _SEQUENCE,
                self.stamper.issuer.public_bytes(),
                der(_INTEGER, serial),
            ),
            sha256,
            der(0xA0, *signed),
            der(_SEQUENCE, der_oid("1.2.840.10045.4.3.2")),
            der(_OCTETS, sign(self.stamp_key, der(_SET, *signed))),
        )
        content = der(
            _SEQUENCE,
            der(_INTEGER, b"\x03"),
            der(_SET, sha256),
            der(_SEQUENCE, kind, der(0xA0, der(_OCTETS, said))),
            der(0xA0, certificate),
            der(_SET, signer),
        )
        token = der(_SEQUENCE, der_oid("1.2.840.113549.1.7.2"), der(0xA0, content))
        return der(_SEQUENCE, der(_SEQUENCE, der(_INTEGER, b"\0")), token)

    # -- the log

    @staticmethod
    def _of_second_log(
        content: bytes, signature: bytes, certificate: x509.Certificate
    ) -> dict[str, Any]:
        raw = b64(certificate.public_bytes(_DER))
        return {
            "apiVersion": "0.0.2",
            "kind": "hashedrekord",
            "spec": {
                "hashedRekordV002": {
                    "data": {
                        "algorithm": "SHA2_256",
                        "digest": b64(hashlib.sha256(content).digest()),
                    },
                    "signature": {
                        "content": b64(signature),
                        "verifier": {
                            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                            "x509Certificate": {"rawBytes": raw},
                        },
                    },
                }
            },
        }

    @staticmethod
    def _of_file(content: bytes, signature: bytes, pem: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        return {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": digest}},
                "signature": {"content": b64(signature), "publicKey": {"content": pem}},
            },
        }

    @staticmethod
    def _of_dsse(payload: bytes, signature: bytes, pem: str) -> dict[str, Any]:
        return {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": {"algorithm": "sha256", "value": "00" * 32},
                "payloadHash": {
                    "algorithm": "sha256",
                    "value": hashlib.sha256(payload).hexdigest(),
                },
                "signatures": [{"signature": b64(signature), "verifier": pem}],
            },
        }

    def _logged(self, entry: dict[str, Any], at: datetime, size: int) -> dict[str, Any]:
        """As the last of ``size`` entries, with the proof that it is in the tree."""
        body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        others = [b"entry %d" % number for number in range(size - 1)]
        root, proof = merkle([*others, body], size - 1)
        note = f"{_ORIGIN}\n{size}\n{b64(root)}\n"
        signature = key_id(self.log_key)[:4] + sign(self.log_key, note.encode())
        moment = int(at.timestamp())
        promised = json.dumps(
            {
                "body": b64(body),
                "integratedTime": moment,
                "logID": key_id(self.log_key).hex(),
                "logIndex": 1000 + size,
            },
            sort_keys=True,
            separators=(",", ":"),
        )
        return {
            "logIndex": str(1000 + size),
            "logId": {"keyId": b64(key_id(self.log_key))},
            "kindVersion": {"kind": entry["kind"], "version": entry["apiVersion"]},
            "integratedTime": str(moment),
            "inclusionPromise": {
                "signedEntryTimestamp": b64(sign(self.log_key, promised.encode()))
            },
            "inclusionProof": {
                "logIndex": str(size - 1),
                "rootHash": b64(root),
                "treeSize": str(size),
                "hashes": [b64(each) for each in proof],
                "checkpoint": {"envelope": f"{note}\n— rekor.example {b64(signature)}\n"},
            },
            "canonicalizedBody": b64(body),
        }


_DER: Final = serialization.Encoding.DER


def _usage(*names: str) -> x509.KeyUsage:
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in names for name in every})


def merkle(entries: Sequence[bytes], index: int) -> tuple[bytes, list[bytes]]:
    """The hash of a tree, and the proof that it has the entry (RFC 6962, section 2.1)."""
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest(), []
    half = 1 << (len(entries) - 1).bit_length() - 1
    left, right = entries[:half], entries[half:]
    if index < half:
        root, proof = merkle(left, index)
        other, _ = merkle(right, 0)
        pair = root + other
    else:
        root, proof = merkle(right, index - half)
        other, _ = merkle(left, 0)
        pair = other + root
    return hashlib.sha256(b"\x01" + pair).digest(), [*proof, other]
