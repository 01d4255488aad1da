"""Local enclaves that keep an upgrade chain, in this process and in a child."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from support import eventually

import enclavia
from enclavia.testing import BackendFault, LocalEnclave
from enclavia.testing._pki import mint


def one(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "3")])
    return [b"one"]


def two(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "3")])
    return [b"two"]


def served(enclave: LocalEnclave) -> tuple[str, str]:
    base = f"{enclave.backend}/enclaves/{enclave.enclave_id}"
    return httpx2.get(base).text, httpx2.get(f"{base}/upgrade-chain").text


@pytest.mark.parametrize("in_process", [True, False])
def test_a_history(in_process: bool) -> None:
    with LocalEnclave(one, upgradable=True, in_process=in_process) as enclave:
        first, port, root = enclave.pcrs, enclave.port, enclave.root
        assert enclave.upgrade(two, boot=False) == first
        enclave.revoke()
        second = enclave.upgrade(two)
        assert second == enclave.pcrs != first
        assert (enclave.port, enclave.root) == (port, root)
        given = {"pcrs": second, "root": root, "timeout": 20.0}
        with enclavia.Client(enclave.url, **given) as client:
            assert client.get("/").text == "two"
        row, links = served(enclave)
        kinds = [link["kind"] for link in json.loads(links)]
        assert kinds == ["boot", "upgrade", "revocation", "upgrade", "boot"]
        chain = enclavia.verify_upgrade_chain(
            row, links, pcrs=first, enclave_id=enclave.enclave_id, root=root
        )
        assert chain.pcrs == second
        assert chain.row_agrees
        assert enclave.rollback() == first
        with enclavia.Client(enclave.url, **{**given, "pcrs": first}) as client:
            assert client.get("/").text == "one"
        enclave.set_backend_faults(BackendFault.PRIVATE)
        base = f"{enclave.backend}/enclaves/{enclave.enclave_id}"
        assert httpx2.get(base).status_code == 401
        shown = {"Authorization": f"Bearer {enclave.token}"}
        assert httpx2.get(base, headers=shown).status_code == 200
        assert httpx2.get(f"{base}/upgrade-chain").status_code == 200
        assert httpx2.get(f"{enclave.backend}/elsewhere").status_code == 404
        backend = enclave.backend
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(backend)


def test_the_same_app_under_pcrs_of_ones_own() -> None:
    other = enclavia.Pcrs(pcr0="1" * 96, pcr1="2" * 96, pcr2="3" * 96)
    with LocalEnclave(one, upgradable=True) as enclave:
        assert enclave.upgrade(pcrs=other) == other
        with enclavia.Client(enclave.url, pcrs=other, root=enclave.root, timeout=20.0) as client:
            assert client.get("/").text == "one"


@pytest.mark.parametrize(
    "call",
    [
        lambda enclave: enclave.upgrade(),
        lambda enclave: enclave.revoke(),
        lambda enclave: enclave.rollback(),
        lambda enclave: enclave.set_backend_faults(),
        lambda enclave: enclave.backend,
        lambda enclave: enclave.enclave_id,
        lambda enclave: enclave.token,
    ],
)
def test_one_that_is_not_upgradable(call: Callable[[LocalEnclave], object]) -> None:
    with LocalEnclave(one) as enclave, pytest.raises(RuntimeError, match="upgradable=True"):
        call(enclave)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="upgradable"):
        LocalEnclave(one, mode="debug", upgradable=True)
    with LocalEnclave(one, upgradable=True) as enclave:
        with pytest.raises(ValueError, match="expected an upgrade that waits"):
            enclave.revoke()
        with pytest.raises(ValueError, match="expected an earlier version"):
            enclave.rollback()
        enclave.set_identity(pki=mint())
        with pytest.raises(RuntimeError, match="neither for its history"):
            enclave.upgrade()


def test_an_app_that_a_child_cannot_import() -> None:
    with (
        LocalEnclave(one, upgradable=True, in_process=False) as enclave,
        pytest.raises(TypeError, match="importable"),
    ):
        enclave.upgrade(lambda environ, start_response: [])


def test_a_client_that_leaves_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with LocalEnclave(one, upgradable=True) as enclave:
        with socket.create_connection(("127.0.0.1", httpx2.URL(enclave.backend).port)) as left:
            left.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert left.recv(4096)
            left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
        eventually(lambda: not any("process_request" in t.name for t in threading.enumerate()))
    assert capfd.readouterr().err == ""
