"""Where the certificate authorities of the outer TLS connection are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclavia import Client, ConnectError, _core
from enclavia._channel import trust_store
from enclavia._channel.trust_store import BUNDLES, ca_file
from enclavia.testing import LocalEnclave


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any authority: all places that are looked at are below one empty folder."""
    nowhere = (str(tmp_path / "usr/lib/ssl/cert.pem"), str(tmp_path / "usr/lib/ssl/certs"))
    monkeypatch.setattr(_core, "default_ca_paths", lambda: nowhere)
    monkeypatch.setattr(trust_store, "BUNDLES", tuple(f"{tmp_path}{path}" for path in BUNDLES))
    monkeypatch.setattr(trust_store, "_of_certifi", lambda: None)
    return tmp_path


def put(root: Path, path: str, data: bytes = b"-") -> Path:
    where = root / path.lstrip("/")
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_bytes(data)
    return where


@pytest.mark.parametrize("bundle", BUNDLES)
def test_each_system_keeps_them_elsewhere(bundle: str, bare: Path) -> None:
    put(bare, bundle)
    assert ca_file({}) == str(bare / bundle.lstrip("/"))


@pytest.mark.parametrize("name", ["usr/lib/ssl/cert.pem", "usr/lib/ssl/certs/4a6481c9.0"])
def test_openssls_own_places_come_first(name: str, bare: Path) -> None:
    put(bare, BUNDLES[0])
    put(bare, name)
    assert ca_file({}) is None


def test_a_folder_without_hashes_is_no_store(bare: Path) -> None:
    put(bare, "usr/lib/ssl/certs/ca-bundle.crt")
    put(bare, BUNDLES[2])
    assert ca_file({}) == str(bare / BUNDLES[2].lstrip("/"))


def test_an_empty_bundle_is_none(bare: Path) -> None:
    put(bare, BUNDLES[0], b"")
    put(bare, BUNDLES[1])
    assert ca_file({}) == str(bare / BUNDLES[1].lstrip("/"))


def test_certifi_is_the_last_resort(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_store, "_of_certifi", lambda: "/certifi.pem")
    assert ca_file({}) == "/certifi.pem"
    put(bare, BUNDLES[-1])
    assert ca_file({}) != "/certifi.pem"


def test_none_at_all_says_where_was_looked(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = tuple(f"/nowhere{path}" for path in BUNDLES)
    monkeypatch.setattr(trust_store, "BUNDLES", places)
    monkeypatch.setattr(_core, "default_ca_paths", lambda: ("/nowhere/a.pem", "/nowhere/certs"))
    with pytest.raises(ConnectError) as caught:
        ca_file({})
    assert not caught.value.retryable
    for place in (*places, "/nowhere/a.pem", "/nowhere/certs", "certifi"):
        assert place in str(caught.value)
    assert "SSL_CERT_FILE" in str(caught.value)


def test_a_place_is_named_once(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL's own may be one of those where a system keeps them, as on Alpine."""
    bundle = trust_store.BUNDLES[0]
    monkeypatch.setattr(_core, "default_ca_paths", lambda: (bundle, str(bare)))
    with pytest.raises(ConnectError) as caught:
        ca_file({})
    assert str(caught.value).count(bundle) == 1


def test_the_environment_comes_before_everything(bare: Path) -> None:
    put(bare, BUNDLES[0])
    mine = put(bare, "mine.pem")
    assert ca_file({"SSL_CERT_FILE": str(mine)}) is None
    hashed = put(bare, "dir/12345678.0").parent
    assert ca_file({"SSL_CERT_DIR": f"/nowhere:{hashed}"}) is None


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_an_environment_that_names_nothing_is_told(name: str, bare: Path) -> None:
    put(bare, BUNDLES[0])
    for value in ("/nowhere/at/all", ""):
        with pytest.raises(ConnectError, match="SSL_CERT_FILE and SSL_CERT_DIR"):
            ca_file({name: value})


def test_without_any_a_client_says_so_and_connects_nowhere(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with LocalEnclave(lambda environ, start: []) as enclave:
        client = Client("wss://127.0.0.1:9", pcrs=enclave.pcrs, root=enclave.root)
        with pytest.raises(ConnectError, match="certificate authorities"), client:
            pass
