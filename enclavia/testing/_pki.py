"""Certificates of the shape AWS gives a Nitro enclave, for enclaves on this machine.

Never a root of trust for anything but tests: the keys are made on the spot and not protected.

Decides the extensions of certificates and how long they are valid. Calls: nothing of the package.
Locks: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# AWS's own validity times, root first.
_ROOT_LIFETIME = timedelta(days=30 * 365)
_CA_LIFETIMES = (timedelta(days=20), timedelta(days=5), timedelta(days=1))
# CAs have been in use for a while. A leaf has not: AWS's begin in the second they are made.
_CA_AGE = timedelta(minutes=1)
_LONGEST_LEAF = timedelta(days=3650)

_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class CertificateSpec:
    """One certificate to be made. Tests change single fields to break single rules."""

    common_name: str
    not_before: datetime
    not_after: datetime
    ca: bool | None
    """None leaves basicConstraints out."""
    path_length: int | None
    key_usage: frozenset[str]
    """Names of :class:`cryptography.x509.KeyUsage`; empty leaves the extension out."""
    key: PrivateKey | None = None
    """None makes a new P-384 key."""
    signature_hash: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 = field(
        default_factory=hashes.SHA384
    )
    issuer_name: x509.Name | None = None
    """None takes the subject of the certificate above."""
    key_identifiers: bool = True
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = ()
    """Further ones, each with its critical flag."""


@dataclass(frozen=True)
class EnclavePki:
    """Certificates of one enclave, for ``LocalEnclave.set_identity(pki=…)``: a root, the bundle
    below it, and a leaf with its key. :meth:`mint` makes them."""

    root_der: bytes
    root_pem: bytes
    """What a client takes as ``root``."""
    cabundle: list[bytes]
    """DER, the root first, as documents carry it; at least one."""
    leaf_der: bytes
    leaf_key_der: bytes
    """PKCS#8."""

    def __post_init__(self) -> None:
        for name in ("root_der", "root_pem", "leaf_der", "leaf_key_der"):
            value = getattr(self, name)
            if not isinstance(value, bytes):
                raise TypeError(f"{name}: expected bytes, got {type(value).__name__}")
        if not isinstance(self.cabundle, list):
            raise TypeError(f"cabundle: expected a list, got {type(self.cabundle).__name__}")
        if not self.cabundle:
            raise ValueError("cabundle: expected at least one certificate, got none")
        for member in self.cabundle:
            if not isinstance(member, bytes):
                raise TypeError(f"cabundle: expected bytes, got {type(member).__name__}")

    @classmethod
    def mint(
        cls,
        now: datetime | None = None,
        *,
        leaf_lifetime: timedelta = timedelta(hours=3),
        intermediates: int = 3,
    ) -> EnclavePki:
        """New keys and certificates of the shape that AWS's have. ``now``: when the leaf begins to
        be valid (aware; None: now); ``leaf_lifetime``: for how long it is (more than 0, at most
        3650 days); ``intermediates``: how many certificates stand between root and leaf, 1 to 3.
        Raises TypeError and ValueError."""
        if now is not None and not isinstance(now, datetime):
            raise TypeError(f"now: expected a datetime or None, got {type(now).__name__}")
        if now is not None and now.utcoffset() is None:
            raise ValueError("now: expected an aware datetime (with tzinfo), got a naive one")
        if not isinstance(leaf_lifetime, timedelta):
            raise TypeError(
                f"leaf_lifetime: expected a timedelta, got {type(leaf_lifetime).__name__}"
            )
        if not timedelta(0) < leaf_lifetime <= _LONGEST_LEAF:
            raise ValueError(
                "leaf_lifetime: expected more than 0 and at most 3650 days, got "
                f"{leaf_lifetime.total_seconds():g} s"
            )
        if isinstance(intermediates, bool) or not isinstance(intermediates, int):
            raise TypeError(
                f"intermediates: expected a whole number, got {type(intermediates).__name__}"
            )
        if not 1 <= intermediates <= len(_CA_LIFETIMES):
            got = intermediates if -1000 < intermediates < 1000 else "another number"
            raise ValueError(f"intermediates: expected 1 to {len(_CA_LIFETIMES)}, got {got}")
        moment = None if now is None else now.astimezone(UTC)
        return mint(moment, leaf_lifetime, intermediates=intermediates)


@dataclass(frozen=True)
class _Minted:
    certificate: x509.Certificate
    key: PrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


def specs(
    now: datetime | None = None,
    *,
    leaf_lifetime: timedelta = timedelta(hours=3),
    intermediates: int = 3,
) -> list[CertificateSpec]:
    """The AWS shape: a root, one to three CAs that allow ever fewer below them, a leaf."""
    if not 1 <= intermediates <= len(_CA_LIFETIMES):
        raise ValueError(f"intermediates: expected 1 to {len(_CA_LIFETIMES)}, got {intermediates}")
    made = (now or datetime.now(UTC)).replace(microsecond=0)
    start = made - _CA_AGE
    ca_usage = frozenset({"digital_signature", "key_cert_sign", "crl_sign"})
    root = CertificateSpec(
        "aws.nitro-enclaves", start, start + _ROOT_LIFETIME, True, None, ca_usage
    )
    cas = [
        CertificateSpec(
            f"ca{level + 1}.local.nitro-enclaves",
            start,
            start + lifetime,
            True,
            intermediates - 1 - level,
            ca_usage,
        )
        for level, lifetime in enumerate(_CA_LIFETIMES[:intermediates])
    ]
    leaf = CertificateSpec(
        "i-0123456789abcdef0-enc0123456789abcdef.local.nitro-enclaves",
        made,
        made + leaf_lifetime,
        False,
        None,
        frozenset({"digital_signature", "content_commitment"}),
    )
    return [root, *cas, leaf]


def mint(
    now: datetime | None = None,
    leaf_lifetime: timedelta = timedelta(hours=3),
    *,
    intermediates: int = 3,
    chain: Sequence[CertificateSpec] | None = None,
) -> EnclavePki:
    """Make a chain that is valid at ``now``, or exactly the given ``chain``, root first."""
    wanted = (
        specs(now, leaf_lifetime=leaf_lifetime, intermediates=intermediates)
        if chain is None
        else chain
    )
    minted: list[_Minted] = []
    for spec in wanted:
        minted.append(_issue(spec, minted[-1] if minted else None))
    *cas, leaf = minted
    return EnclavePki(
        root_der=cas[0].der,
        root_pem=cas[0].certificate.public_bytes(serialization.Encoding.PEM),
        cabundle=[ca.der for ca in cas],
        leaf_der=leaf.der,
        leaf_key_der=leaf.key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def _issue(spec: CertificateSpec, issuer: _Minted | None) -> _Minted:
    key = spec.key or ec.generate_private_key(ec.SECP384R1())
    subject = _name(spec.common_name)
    issuer_name = issuer.certificate.subject if issuer else subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(spec.issuer_name or issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(spec.not_before)
        .not_valid_after(spec.not_after)
    )
    for extension, critical in _extensions(spec, key, issuer):
        builder = builder.add_extension(extension, critical)
    signer = issuer.key if issuer else key
    return _Minted(builder.sign(signer, spec.signature_hash), key)


def _extensions(
    spec: CertificateSpec, key: PrivateKey, issuer: _Minted | None
) -> list[tuple[x509.ExtensionType, bool]]:
    found: list[tuple[x509.ExtensionType, bool]] = []
    if spec.ca is not None:
        found.append((x509.BasicConstraints(spec.ca, spec.path_length), True))
    if spec.key_usage:
        flags = {name: name in spec.key_usage for name in _KEY_USAGES}
        found.append((x509.KeyUsage(**flags), True))
    if spec.key_identifiers:
        found.append((x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False))
        if issuer:
            above = issuer.key.public_key()
            found.append((x509.AuthorityKeyIdentifier.from_issuer_public_key(above), False))
    return [*found, *spec.extensions]


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Local test enclave"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
