"""The verified document as Python shows it, and verification of documents from anywhere."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import enclave_peer
import pytest
from cryptography import x509
from support import answering, byte_enclave, keywords, ok

import enclavia
from enclavia import Attestation, MatchedPins, Pcrs, _core, verify_attestation
from enclavia._identity.pins import Pins
from enclavia._trust.sources import Ask
from enclavia.testing import LocalEnclave
from enclavia.testing._pki import mint, specs

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


def test_several_pins_are_whatever_has_them_one_after_another() -> None:
    with byte_enclave(answering(ok(b"x"))) as (enclave, _):
        for several in (list, tuple, set, frozenset, iter):
            pins = several([STRANGER, enclave.pcrs])
            with enclavia.Client.connect(enclave.url, pcrs=pins, root=enclave.root) as client:
                document = client.attestation.document
            pins = several([STRANGER, enclave.pcrs])
            assert verify_attestation(document, pcrs=pins, root=enclave.root).proven


def test_so_a_type_checker_takes_them() -> None:
    for function in (verify_attestation, enclavia.verify_upgrade_chain, enclavia.Receipt.verify):
        annotation = inspect.signature(function).parameters["pcrs"].annotation
        assert "Iterable[Pcrs]" in annotation, function
    assert Iterable[Pcrs] in get_args(Pins)
    asked = Pcrs | Iterable[Pcrs]
    assert Ask == Callable[[], asked | Awaitable[asked]]


SIGNED = Pcrs(pcr0=b"4" * 48, pcr1=b"5" * 48, pcr2=b"6" * 48, pcr8=b"8" * 48, pcr31=b"9" * 48)
STRANGER = Pcrs(pcr0=b"7" * 48, pcr1=b"7" * 48, pcr2=b"7" * 48)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_which_pins_matched(index: int) -> None:
    """Wherever an attestation is made."""
    with byte_enclave(answering(ok(b"x")), pcrs=SIGNED) as (enclave, _):
        known = enclave.pcrs
        pins: list[Pcrs] = [STRANGER] * 3
        pins[index] = known
        options = {"pcrs": pins, "root": enclave.root}
        expected = MatchedPins(index, known)
        with enclavia.Channel.connect(enclave.url, **options) as channel:
            document = channel.attestation.document
            assert channel.attestation.matched == expected
            assert channel.attest().matched == expected
        with enclavia.Client(enclave.url, **options) as client:
            assert client.attestation.matched == expected
            assert pickle.loads(pickle.dumps(client.attestation)).matched == expected
        got = verify_attestation(document, pcrs=pins, root=enclave.root)
        assert got.matched == expected
        assert f"matched pins set {index}" in re.sub(" +", " ", str(got))
        assert verify_attestation(document, root=enclave.root).matched is None
        got = verify_attestation(document, pcrs=known, root=enclave.root)
        assert got.matched == MatchedPins(0, known, None)


def test_an_attestation_that_an_earlier_version_pickled() -> None:
    got = verify_attestation(own_document(), pcrs=enclave_peer.PCRS, root=enclave_peer.root())
    restore, (state,) = got.__reduce__()
    del state["matched"]
    assert restore(state) == got
    assert restore(state).matched is None


def own_document(**options: Any) -> bytes:
    return enclave_peer.signed_document(b"n" * 32, **options)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"pcrs": []}, "pcrs: expected Pcrs or several of them, got an empty list"),
        ({"pcrs": ()}, "pcrs: expected Pcrs or several of them, got an empty list"),
        ({"root": b""}, "root: expected one certificate, PEM or DER, got no bytes"),
        ({"root": bytearray()}, "root: expected one certificate, PEM or DER, got no bytes"),
        ({"root": ""}, "root: expected PEM or DER bytes, PEM text or a path, got an empty text"),
        ({"nonce": b""}, "nonce: expected bytes or None, got no bytes"),
        ({"nonce": bytearray()}, "nonce: expected bytes or None, got no bytes"),
    ],
    ids=repr,
)
def test_only_none_means_not_given(keywords: dict[str, Any], message: str) -> None:
    """An empty value that meant "do not look" would let any enclave pass, or any root count."""
    good = {"pcrs": enclave_peer.PCRS, "root": enclave_peer.root(), "nonce": b"n" * 32}
    for rest in (good, {"root": good["root"]}, {}):
        with pytest.raises(ValueError, match=re.escape(message)):
            verify_attestation(own_document(), **{**rest, **keywords})
    assert verify_attestation(own_document(), **{**good, "nonce": None, "pcrs": None}).proven


def test_an_empty_root_file_is_not_awss_root(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    for content, message in ((b"", "got the empty file"), (b" \n", "DER or PEM")):
        path.write_bytes(content)
        for root in (path, str(path)):
            with pytest.raises(ValueError, match=message):
                verify_attestation(own_document(), root=root)
            with pytest.raises(ValueError, match=message):
                enclavia.Client("wss://e.example", pcrs=enclave_peer.PCRS, root=root)
    with pytest.raises(ValueError, match="got the directory"):
        verify_attestation(own_document(), root=tmp_path)
    path.write_bytes(bytes(1024 * 1024 + 1))
    with pytest.raises(ValueError, match="above 1048576 bytes"):
        verify_attestation(own_document(), root=path)
    with pytest.raises(FileNotFoundError):
        verify_attestation(own_document(), root=tmp_path / "none.pem")


@pytest.mark.parametrize("nonce", ["n" * 32, 5, [110] * 32])
def test_nonces_are_bytes(nonce: Any) -> None:
    with pytest.raises(TypeError, match="nonce: expected bytes or None, got"):
        verify_attestation(own_document(), nonce=nonce, root=enclave_peer.root())


def test_the_core_takes_no_empty_value_either() -> None:
    pins = [enclave_peer.PCRS.as_tuple()]
    for debug in (False, True):
        with pytest.raises(ValueError, match="empty list"):
            _core.Policy([], None, debug, False)
        with pytest.raises(ValueError, match="got nothing"):
            _core.Policy(pins, b"", debug, False)
        policy = _core.Policy(pins, None, debug, False)
        with pytest.raises(ValueError, match="empty nonce"):
            _core.verify(own_document(), policy, b"", 0)


LAST_MS = 253_402_300_799_999  # the end of the year 9999


@pytest.mark.parametrize("timestamp", [LAST_MS + 1, 300_000_000_000_000, 2**63, 2**64 - 1])
def test_times_beyond_the_year_9999_are_no_times(timestamp: int) -> None:
    document = own_document(timestamp=timestamp)
    with pytest.raises(enclavia.DocumentError, match="up to the end of the year 9999"):
        verify_attestation(document, root=enclave_peer.root())
    policy = _core.Policy(None, None, True, False)
    with pytest.raises(enclavia.DocumentError, match="up to the end of the year 9999"):
        _core.verify(document, policy, None, 0)


def test_the_last_time_is_exact() -> None:
    got = verify_attestation(own_document(timestamp=LAST_MS), root=enclave_peer.root())
    assert got.timestamp == datetime.max.replace(microsecond=999000, tzinfo=UTC)


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -float("inf"), 2**63, -(2**70), 1e300])
def test_moments_that_are_none(at: float) -> None:
    with pytest.raises(ValueError, match="at: expected a moment of the years 1 to 9999"):
        verify_attestation(own_document(), root=enclave_peer.root(), at=at)


def document_of_a_leaf_that_begins_in(seconds: int) -> tuple[bytes, bytes]:
    chain = specs()
    begin = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    made = mint(chain=[*chain[:-1], dataclasses.replace(chain[-1], not_before=begin)])
    return own_document(made=made), made.root_pem


def test_a_clock_that_is_a_little_behind() -> None:
    document, root = document_of_a_leaf_that_begins_in(50)
    assert verify_attestation(document, root=root).proven
    with pytest.raises(enclavia.CertificateError, match="is not yet valid") as caught:
        verify_attestation(document, root=root, clock_leeway=0)
    assert caught.value.retryable
    document, root = document_of_a_leaf_that_begins_in(3600)
    with pytest.raises(enclavia.CertificateError, match="is not yet valid") as caught:
        verify_attestation(document, root=root, clock_leeway=300)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, ValueError),
        (301, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (True, TypeError),
        ("60", TypeError),
        (None, TypeError),
    ],
)
def test_leeways_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="clock_leeway: expected"):
        verify_attestation(b"x", clock_leeway=value)
    for cls in (enclavia.Client, enclavia.AsyncClient, enclavia.EnclaveTransport):
        with pytest.raises(error, match="clock_leeway: expected"):
            cls("wss://e.example", pcrs=PINS, clock_leeway=value)


def test_local_enclaves_have_leaves_as_fresh_as_awss() -> None:
    with LocalEnclave("127.0.0.1:9") as enclave:
        with enclavia.Channel.connect(
            enclave.url, pcrs=enclave.pcrs, root=enclave.root, timeout=10
        ) as channel:
            got = channel.attestation
        leaf = x509.load_der_x509_certificate(got.certificate)
        assert leaf.not_valid_before_utc <= got.timestamp
        before_it = leaf.not_valid_before_utc - timedelta(seconds=1)
        with pytest.raises(enclavia.CertificateError, match="is not yet valid"):
            verify_attestation(got.document, root=enclave.root, at=before_it, clock_leeway=0)
        assert verify_attestation(got.document, root=enclave.root, at=before_it).proven


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


def test_what_a_dataclass_offers() -> None:
    """Its methods are written by hand, and still do what those of a frozen dataclass do."""
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "module_id": "i-1", "timestamp": now, "pcrs": MappingProxyType({0: b"0"}),
        "certificate": b"c", "cabundle": (b"b",), "public_key": b"k", "user_data": None,
        "nonce": b"n", "form": "nitro", "verified_at": now, "document": b"d",
        "valid_until": now, "matched": None,
    }  # fmt: skip
    made = Attestation(**values)
    assert [field.name for field in dataclasses.fields(made)] == list(values)
    assert made == Attestation(*values.values())
    assert hash(made) == hash(Attestation(**values))
    for name, value in values.items():
        assert getattr(made, name) is value
        with pytest.raises(AttributeError, match="cannot be changed"):
            setattr(made, name, value)
        with pytest.raises(AttributeError, match="cannot be changed"):
            delattr(made, name)
        other = dataclasses.replace(made, **{name: object()})
        assert (other == made) is (name == "matched")  # which says nothing about the document
        assert getattr(made, name) is value
    assert made != values
    again = pickle.loads(pickle.dumps(made))
    assert again == made
    with pytest.raises(TypeError):
        again.pcrs[0] = b""


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
