"""The verified document as Python shows it, and verification of documents from anywhere."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import answering, byte_enclave, keywords, ok

import enclavia
from enclavia import Pcrs, verify_attestation

VECTORS = Path(enclavia.__file__).parent.parent.parent / "shared" / "vectors" / "nitro"
TAKEN = 1665651482136 / 1000
PINS = Pcrs(
    pcr0="f4d48b81a460c9916d1e685119074bf24660afd3e34fae9fca0a0d28d9d5599936332687e6f66fc890ac8cf150142d8b",
    pcr1="bcdf05fefccaa8e55bf2c8d6dee9e79bbff31e34bf28a99aa19e6b29c37ee80b214a414b7607236edf26fcb78654e63f",
    pcr2="d8f114da658de5481f8d9ec73907feb553560787522f705c92d7d96beed8e15e2aa611984e098c576832c292e8dc469a",
)


def vector(name: str) -> bytes:
    path = VECTORS / name
    if not path.is_file():
        pytest.skip(f"needs {path.name} of ../shared/vectors/nitro, which is not here")
    return path.read_bytes()


@pytest.fixture
def document() -> bytes:
    return vector("production-2022-10-13.cose")


def test_a_real_document_at_its_time(document: bytes) -> None:
    at = datetime.fromtimestamp(TAKEN, UTC)
    for moment in (at, TAKEN, int(TAKEN), at.astimezone()):
        got = verify_attestation(document, pcrs=PINS, at=moment)
        assert got.proven
        assert got.form == "nitro"
        assert got.timestamp == datetime.fromtimestamp(1665651482, UTC) + timedelta(
            milliseconds=136
        )
        assert got.module_id.startswith("i-")
        assert (got.pcrs[0], got.pcrs[1], got.pcrs[2]) == PINS.as_tuple()
        assert list(got.pcrs) == sorted(got.pcrs)
        assert (got.user_data, got.public_key) == (None, None)
        assert got.nonce is not None
        assert len(got.nonce) == 256
        assert got.verified_at == datetime.fromtimestamp(int(TAKEN), UTC)
        assert got.document == document
        assert len(got.cabundle) >= 1
    assert verify_attestation(document, nonce=got.nonce, at=at) == verify_attestation(
        bytearray(document), root=enclavia.AWS_ROOT_G1, at=at
    )


def test_refused(document: bytes) -> None:
    with pytest.raises(enclavia.CertificateError, match=r"20\d\d"):
        verify_attestation(document, pcrs=PINS)
    with pytest.raises(enclavia.NonceMismatch):
        verify_attestation(document, nonce=b"other", at=TAKEN)
    other = Pcrs(pcr0=PINS.pcr0, pcr1=b"1" * 48, pcr2=PINS.pcr2)
    with pytest.raises(enclavia.PcrMismatch) as caught:
        verify_attestation(document, pcrs=other, at=TAKEN)
    assert (caught.value.index, caught.value.actual) == (1, PINS.pcr1)
    assert verify_attestation(document, pcrs=[other, PINS], at=TAKEN).proven
    with pytest.raises(enclavia.SignatureError):
        verify_attestation(document[:-1] + bytes([document[-1] ^ 1]), at=TAKEN)
    with pytest.raises(enclavia.DocumentError):
        verify_attestation(b"", at=TAKEN)
    bad = vector("bad-signature-2024-07-23.cose")
    with pytest.raises(enclavia.AttestationError):
        verify_attestation(bad, at=1721770180)


@pytest.mark.parametrize(
    ("at", "error"),
    [
        (datetime(2022, 10, 13), ValueError),  # naive
        ("2022-10-13", TypeError),
        (True, TypeError),
    ],
)
def test_moments_refused(at: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="at: expected an aware datetime"):
        verify_attestation(b"x", at=at)


def test_shown(document: bytes) -> None:
    got = verify_attestation(document, at=TAKEN)
    assert repr(got).startswith("Attestation(form='nitro', module_id='i-")
    assert "\n" not in repr(got)
    assert len(repr(got)) < 300
    text = str(got)
    assert "pinned root" in text
    assert PINS.pcr2.hex() in text
    html = got._repr_html_()
    assert html.startswith("<table>")
    assert PINS.pcr1.hex() in html
    assert "<script" not in html


def test_html_is_escaped(document: bytes) -> None:
    import dataclasses

    got = dataclasses.replace(
        verify_attestation(document, at=TAKEN), module_id="<script>alert(1)</script>"
    )
    assert "<script" not in got._repr_html_()


def test_is_a_value(document: bytes) -> None:
    got = verify_attestation(document, at=TAKEN)
    assert pickle.loads(pickle.dumps(got)) == got
    with pytest.raises(AttributeError):
        got.module_id = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        got.pcrs[0] = b""  # type: ignore[index]


@pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")
@pytest.mark.parametrize("mode", ["production", "debug", "stub"])
def test_of_a_channel(mode: Any) -> None:
    with byte_enclave(answering(ok()), mode=mode) as (enclave, _):
        options = keywords(enclave) if mode == "production" else {"debug_mode": True}
        with enclavia.Client(enclave.url, **options) as client:
            got = client.attestation
        assert got.proven is (mode == "production")
        assert got.form == {"production": "nitro"}.get(mode, mode)
        assert ("NOT PROVEN" in str(got)) is (mode != "production")
        assert "NOT PROVEN" in got._repr_html_() or mode == "production"
        if mode == "production":
            again = verify_attestation(
                got.document, pcrs=enclave.pcrs, root=enclave.root, nonce=got.nonce
            )
            assert again.pcrs == got.pcrs
            assert abs(got.timestamp - datetime.now(UTC)) < timedelta(minutes=1)
