"""The outer TLS: whose certificate is taken, and that nothing is said to a peer whose is not."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import ipaddress
import os
import shutil
import ssl
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from enclave_peer import EnclavePeer, connect
from raw_server import LIMIT, PING, Peer, RawServer, frame
from support import ByteServer, Connection

import enclavia
from enclavia import _core
from enclavia._channel import trust_store
from enclavia.testing import LocalEnclave

pytestmark = pytest.mark.usefixtures("warm", "nothing_left")

SECRET = "a-bearer-token-only-for-the-real-router"
NOW = datetime.datetime.now(datetime.UTC)
HOUR = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    files: tuple[str, str]

    @property
    def path(self) -> str:
        return self.files[0]

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.files)
        return context


class Mint:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def issue(
        self,
        names: list[str],
        issuer: Issued | None = None,
        *,
        ca: bool = False,
        start: datetime.datetime = NOW - HOUR,
        end: datetime.datetime = NOW + HOUR,
        common_name: str = "test",
        usage: x509.ObjectIdentifier | None = None,
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if names:
            alternative = x509.SubjectAlternativeName([_name(name) for name in names])
            builder = builder.add_extension(alternative, critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        certificate = builder.sign(issuer.key if issuer else key, hashes.SHA256())
        self._count += 1
        stem = self._folder / f"{self._count}"
        chain = [certificate] if issuer is None else [certificate, issuer.certificate]
        stem.with_suffix(".pem").write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in chain))
        stem.with_suffix(".key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return Issued(certificate, key, (f"{stem}.pem", f"{stem}.key"))


def _name(name: str) -> x509.GeneralName:
    if name.startswith("dns:"):
        return x509.DNSName(name[4:])
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.fixture(scope="module")
def mint(tmp_path_factory: pytest.TempPathFactory) -> Mint:
    return Mint(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def ca(mint: Mint) -> Issued:
    return mint.issue([], ca=True, common_name="test CA")


@pytest.fixture(scope="module")
def good(mint: Mint, ca: Issued) -> Issued:
    return mint.issue(["localhost"], ca)


def serve(peer: Peer) -> None:
    peer.upgrade()
    enclave = EnclavePeer(peer)
    enclave.open()
    enclave.serve_echo()


def check_works(issued: Issued, host: str, **options: Any) -> None:
    with RawServer(serve, tls=issued.context()) as server:
        for scheme in ("wss", "https"):
            with connect(f"{scheme}://{host}:{server.port}", **options) as channel:
                assert channel.open_stream(b"hello").read(10) == b"hello"


def check_refused(issued: Issued, host: str, **options: Any) -> enclavia.ConnectError:
    with RawServer(serve, tls=issued.context()) as server:
        with pytest.raises(enclavia.ConnectError) as caught:
            connect(
                f"wss://{host}:{server.port}", upgrade_headers={"Authorization": SECRET}, **options
            )
        server.wait_done()
        for peer in server.peers:
            assert bytes(peer.received) == b"", "nothing may be said to this peer"
    assert type(caught.value) is enclavia.ConnectError
    assert not caught.value.retryable, "the same certificate will be there again"
    assert "certificate" in str(caught.value)
    return caught.value


# taken


def test_a_certificate_of_the_given_ca(good: Issued, ca: Issued) -> None:
    check_works(good, "localhost", verify=ca.path)


def test_a_path_object_and_a_file_of_many_cas(
    mint: Mint, good: Issued, ca: Issued, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    other = mint.issue([], ca=True, common_name="other CA")
    bundle.write_bytes(Path(other.path).read_bytes() + Path(ca.path).read_bytes())
    check_works(good, "localhost", verify=bundle)


def test_self_signed_and_pinned_as_its_own_ca(mint: Mint) -> None:
    pinned = mint.issue(["localhost"], ca=True)
    check_works(pinned, "localhost", verify=pinned.path)


def test_a_ca_of_a_system_whose_layout_is_not_debians(
    good: Issued, ca: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL's own places are empty there; the system's bundle is found and used."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setattr(_core, "default_ca_paths", lambda: ("/nowhere/cert.pem", "/nowhere/certs"))
    monkeypatch.setattr(trust_store, "BUNDLES", ("/nowhere/bundle.pem", str(ca.path)))
    check_works(good, "localhost")


def test_an_address_in_the_certificate(mint: Mint, ca: Issued) -> None:
    check_works(mint.issue(["127.0.0.1"], ca), "127.0.0.1", verify=ca.path)


def test_a_chain_through_an_intermediate(mint: Mint, ca: Issued) -> None:
    between = mint.issue([], ca, ca=True, common_name="between")
    check_works(mint.issue(["localhost"], between), "localhost", verify=ca.path)


def test_unverified_where_asked(mint: Mint) -> None:
    past = mint.issue(["elsewhere.example"], start=NOW - 2 * HOUR, end=NOW - HOUR)
    check_works(past, "localhost", verify=False)


# refused


def test_another_name(mint: Mint, ca: Issued) -> None:
    error = check_refused(mint.issue(["elsewhere.example"], ca), "localhost", verify=ca.path)
    assert "localhost" in str(error)


def test_a_wildcard_that_does_not_match(mint: Mint, ca: Issued) -> None:
    check_refused(mint.issue(["*.localhost", "*"], ca), "localhost", verify=ca.path)


def test_a_common_name_is_no_name_beside_alternative_names(mint: Mint, ca: Issued) -> None:
    issued = mint.issue(["elsewhere.example"], ca, common_name="localhost")
    check_refused(issued, "localhost", verify=ca.path)


def test_a_name_for_an_address(good: Issued, ca: Issued) -> None:
    check_refused(good, "127.0.0.1", verify=ca.path)


def test_another_address(mint: Mint, ca: Issued) -> None:
    check_refused(mint.issue(["127.0.0.2"], ca), "127.0.0.1", verify=ca.path)


def test_an_address_written_as_a_name(mint: Mint, ca: Issued) -> None:
    check_refused(mint.issue(["dns:127.0.0.1"], ca), "127.0.0.1", verify=ca.path)
    named = mint.issue([], ca, common_name="127.0.0.1")
    check_refused(named, "127.0.0.1", verify=ca.path)


def test_self_signed(mint: Mint, ca: Issued) -> None:
    check_refused(mint.issue(["localhost"]), "localhost", verify=ca.path)


def test_expired(mint: Mint, ca: Issued) -> None:
    issued = mint.issue(["localhost"], ca, start=NOW - 2 * HOUR, end=NOW - HOUR)
    assert "expired" in str(check_refused(issued, "localhost", verify=ca.path))


def test_not_yet_valid(mint: Mint, ca: Issued) -> None:
    issued = mint.issue(["localhost"], ca, start=NOW + HOUR, end=NOW + 2 * HOUR)
    assert "not yet valid" in str(check_refused(issued, "localhost", verify=ca.path))


def test_an_unknown_ca_with_the_systems_store(good: Issued) -> None:
    assert "verify=" in str(check_refused(good, "localhost"))


def test_the_systems_store_is_not_used_beside_a_given_file(
    mint: Mint, ca: Issued, good: Issued
) -> None:
    other = mint.issue([], ca=True, common_name="other CA")
    check_refused(good, "localhost", verify=other.path)
    check_works(good, "localhost", verify=ca.path)
    check_refused(good, "localhost", verify=other.path)


@pytest.mark.parametrize("how", ["another file", "another content", "another folder"])
def test_the_environments_authorities_are_those_of_now(
    how: str, mint: Mint, ca: Issued, good: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is not verified with what the environment said when an earlier one was made."""
    other = mint.issue([], ca=True, common_name="other CA")
    file = tmp_path / "ca.pem"
    nowhere = tmp_path / "nowhere"
    shutil.copy(ca.path, file)
    monkeypatch.setenv("SSL_CERT_FILE", str(nowhere if how == "another folder" else file))
    monkeypatch.setenv("SSL_CERT_DIR", str(hashed(ca, tmp_path / "one")))
    if how != "another folder":
        monkeypatch.setenv("SSL_CERT_DIR", str(nowhere))
    check_works(good, "localhost")
    if how == "another file":
        monkeypatch.setenv("SSL_CERT_FILE", other.path)
    elif how == "another content":
        shutil.copy(other.path, file)
    else:
        monkeypatch.setenv("SSL_CERT_DIR", str(hashed(other, tmp_path / "two")))
    check_refused(good, "localhost")
    check_works(good, "localhost", verify=ca.path)
    check_refused(good, "localhost")
    check_works(good, "localhost", verify=False)


def hashed(issued: Issued, folder: Path) -> Path:
    """A folder in which OpenSSL finds the certificate: by X509_NAME_hash(3) of its subject."""
    folder.mkdir()
    (name,) = issued.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    der = str(name.value).lower().encode()
    for head in (b"\x06\x03\x55\x04\x03\x0c", b"\x30", b"\x31"):
        der = head + bytes([len(der)]) + der
    digest = hashlib.sha1(der, usedforsecurity=False).digest()
    shutil.copy(issued.path, folder / f"{int.from_bytes(digest[:4], 'little'):08x}.0")
    return folder


def test_a_file_that_changed_is_read_again(
    mint: Mint, ca: Issued, good: Issued, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(Path(ca.path).read_bytes())
    check_works(good, "localhost", verify=path)
    path.write_bytes(Path(mint.issue([], ca=True, common_name="next CA").path).read_bytes())
    check_refused(good, "localhost", verify=path)


def test_a_certificate_that_may_not_issue(mint: Mint, ca: Issued) -> None:
    not_ca = mint.issue(["other.example"], ca, common_name="not a CA")
    check_refused(mint.issue(["localhost"], not_ca), "localhost", verify=ca.path)


def test_a_clients_certificate_is_no_servers(mint: Mint, ca: Issued) -> None:
    issued = mint.issue(["localhost"], ca, usage=ExtendedKeyUsageOID.CLIENT_AUTH)
    check_refused(issued, "localhost", verify=ca.path)


def test_one_that_skips_checks_does_not_open_the_way_for_others(good: Issued) -> None:
    """Both go through one service thread, and may share its settings."""
    with RawServer(serve, tls=good.context()) as server:
        url = f"wss://localhost:{server.port}"
        connect(url, verify=False).close()
        with pytest.raises(enclavia.ConnectError, match="certificate"):
            connect(url)
        connect(url, verify=False).close()


# not TLS, or not for long


def test_a_plain_server_behind_wss() -> None:
    def script(peer: Peer) -> None:
        peer.read_exactly(5)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.read_to_end()

    with RawServer(script) as server:
        with pytest.raises(enclavia.ConnectError) as caught:
            connect(
                f"wss://localhost:{server.port}",
                upgrade_headers={"Authorization": SECRET},
                timeout=5,
            )
        server.wait_done()
        for peer in server.peers:
            assert SECRET.encode() not in bytes(peer.received)
    assert type(caught.value) is enclavia.ConnectError
    assert not caught.value.retryable, "it will speak no TLS the next time either"
    assert "got something that is no TLS; is it ws://" in str(caught.value)


def test_a_tls_server_behind_ws(good: Issued) -> None:
    with RawServer(serve, tls=good.context()) as server:
        with pytest.raises(enclavia.EnclaviaError) as caught:
            connect(f"ws://localhost:{server.port}", timeout=2)
        assert isinstance(caught.value, enclavia.ConnectError | enclavia.ProtocolError)


@pytest.mark.parametrize("wait_for", [0, 5], ids=["at once", "after the ClientHello began"])
def test_a_server_that_hangs_up_in_the_tls_handshake(wait_for: int) -> None:
    def script(peer: Peer) -> None:
        peer.read_exactly(wait_for)

    with (
        RawServer(script) as server,
        pytest.raises(enclavia.ConnectError) as caught,  # no ConnectTimeout
    ):
        connect(f"wss://localhost:{server.port}", timeout=LIMIT)
    assert caught.value.retryable


def test_a_server_that_is_silent_in_the_tls_handshake() -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_to_end()
        gone.set()

    with RawServer(script) as server:
        with pytest.raises(enclavia.ConnectTimeout):
            connect(f"wss://localhost:{server.port}", timeout=0.3)
        assert gone.wait(LIMIT / 2)


@pytest.mark.parametrize("orderly", [True, False], ids=["close_notify", "cut"])
def test_a_server_that_hangs_up_later(good: Issued, ca: Issued, orderly: bool) -> None:
    def script(peer: Peer) -> None:
        peer.upgrade()
        enclave = EnclavePeer(peer)
        enclave.open()
        enclave.receive()
        if orderly:
            assert isinstance(peer.socket, ssl.SSLSocket)
            peer.socket.settimeout(1)
            with contextlib.suppress(OSError):
                peer.socket.unwrap()

    with (
        RawServer(script, tls=good.context()) as server,
        connect(f"wss://localhost:{server.port}", verify=ca.path) as channel,
    ):
        with pytest.raises(enclavia.ConnectionClosed) as caught:  # no ReadTimeout
            channel.open_stream(b"x").read(1)
        assert caught.value.retryable


def test_old_versions_are_not_spoken(good: Issued, ca: Issued) -> None:
    context = good.context()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with RawServer(serve, tls=context) as server, pytest.raises(enclavia.ConnectError):
        connect(f"wss://localhost:{server.port}", verify=ca.path, timeout=5)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_that_are(good: Issued, ca: Issued, version: ssl.TLSVersion) -> None:
    context = good.context()
    context.minimum_version = context.maximum_version = version
    with (
        RawServer(serve, tls=context) as server,
        connect(f"wss://localhost:{server.port}", verify=ca.path) as channel,
    ):
        assert channel.open_stream(b"hello").read(10) == b"hello"


def test_the_server_name_is_sent(good: Issued, ca: Issued) -> None:
    names: list[str | None] = []
    context = good.context()
    context.sni_callback = lambda sock, name, _: names.append(name)
    with RawServer(serve, tls=context) as server:
        connect(f"wss://localhost:{server.port}", verify=ca.path).close()
    assert names == ["localhost"]


def test_early_bytes_over_tls(good: Issued, ca: Issued) -> None:
    """A ping in the TLS record of the 101, and half of one."""
    ping = frame(PING, b"early")

    def script(peer: Peer) -> None:
        peer.upgrade(behind=ping + ping[:3])
        enclave = EnclavePeer(peer)
        answer = enclave.answer_for(enclave.read_key())
        assert peer.read_pong() == b"early"
        peer.send(ping[3:])
        assert peer.read_pong() == b"early"
        enclave.send_bytes(answer)
        enclave.expect_attestation_request()
        enclave.send_bytes(enclave.attestation())
        enclave.serve_echo()

    with (
        RawServer(script, tls=good.context()) as server,
        connect(f"wss://localhost:{server.port}", verify=ca.path) as channel,
    ):
        assert channel.open_stream(b"hello").read(10) == b"hello"


@pytest.mark.parametrize(
    "text",
    [b"", b"not a certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n"],
    ids=["empty", "text", "cut"],
)
def test_a_file_without_cas_is_said_to_be_one(good: Issued, tmp_path: Path, text: bytes) -> None:
    """And is not taken for the system's store, or for no check at all."""
    path = tmp_path / "ca.pem"
    path.write_bytes(text)
    with RawServer(serve, tls=good.context()) as server:
        with pytest.raises((enclavia.ConnectError, ValueError)) as caught:
            connect(f"wss://localhost:{server.port}", verify=path)
        for peer in server.peers:
            assert bytes(peer.received) == b""
    assert "PEM" in str(caught.value)


# volume


def echo(connection: Connection) -> None:
    while data := connection.sock.recv(262_144):
        connection.send(data)


def test_20_mib_both_ways_at_once(good: Issued, ca: Issued) -> None:
    size = 20 * 1024 * 1024
    block = os.urandom(1024 * 1024)
    sent, came = hashlib.sha256(), hashlib.sha256()
    with (
        ByteServer(echo) as workload,
        LocalEnclave(workload.address, tls=good.files) as enclave,
        enclavia.Channel.connect(
            enclave.url, pcrs=enclave.pcrs, root=enclave.root, verify=ca.path, timeout=30
        ) as channel,
        channel.open_stream() as stream,
    ):

        def write() -> None:
            for number in range(size // len(block)):
                piece = number.to_bytes(4, "big") + block[4:]
                sent.update(piece)
                stream.write(piece)

        writer = threading.Thread(target=write)
        writer.start()
        count = 0
        while count < size:
            piece = stream.read(262_144)
            assert piece
            came.update(piece)
            count += len(piece)
        writer.join(10)
        assert not writer.is_alive()
    assert came.digest() == sent.digest()
