"""``chain verify``, and the options with which a command follows upgrades."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import cli
from histories import ONE, THREE, root, upgraded

from enclavia.testing import BackendFault, LocalEnclave


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("chain")
    history = upgraded()
    texts = {
        "links": history.links_json(),
        "row": history.row_json(),
        "pcrs": json.dumps(ONE.pcrs.as_dict()),
        "root": root().decode(),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {**{name: str(folder / name) for name in texts}, "id": str(history.enclave_id)}


def arguments(saved: dict[str, str], *more: str) -> list[str]:
    return [
        "chain", "verify", saved["links"], "--row", saved["row"], "--enclave-id", saved["id"],
        "--pcrs", saved["pcrs"], "--root", saved["root"], *more,
    ]  # fmt: skip


NOW = ("--at", "2028-03-01T12:00:00Z")


def test_a_chain_in_files(saved: dict[str, str]) -> None:
    ended = cli(*arguments(saved, *NOW))
    assert ended.code == 0, ended
    assert ended.out.startswith(b"verified\n")
    assert THREE.pcrs.pcr0.hex().encode() in ended.out
    assert b"authorises" in ended.out


def test_as_json(saved: dict[str, str], tmp_path: Path) -> None:
    ended = cli(*arguments(saved, *NOW, "--json"))
    assert ended.code == 0, ended
    told = json.loads(ended.out)
    assert told["pcrs"] == THREE.pcrs.as_dict()
    assert [link["kind"] for link in told["links"]].count("upgrade") == 2
    mark = tmp_path / "mark"
    mark.write_text(json.dumps(told["high_water"]))
    assert cli(*arguments(saved, *NOW, "--high-water", str(mark))).code == 0
    shorter = told["high_water"] | {"links": 1, "payloads": ["00" * 32]}
    mark.write_text(json.dumps(shorter))
    ended = cli(*arguments(saved, *NOW, "--high-water", str(mark)))
    assert ended.code == 1
    assert "past was changed" in ended.err


def test_a_chain_that_does_not_hold(saved: dict[str, str]) -> None:
    ended = cli(*arguments(saved, "--at", "2026-01-01T00:00:00Z"))
    assert ended.code == 1
    assert ended.out == b""
    assert "link 4" in ended.err
    assert "in the future" in ended.err
    ended = cli(*arguments(saved, *NOW, "--enclave-id", "not-an-id"))
    assert ended.code == 64
    assert "enclave_id" in ended.err


def app(environ: object, start_response: object) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])  # type: ignore[operator]
    return [b"hi"]


def test_a_command_follows(tmp_path: Path) -> None:
    with LocalEnclave(app, upgradable=True) as enclave:
        (tmp_path / "pcrs").write_text(json.dumps(enclave.pcrs.as_dict()))
        assert enclave.root is not None
        (tmp_path / "root").write_bytes(enclave.root)
        enclave.upgrade()
        base = ["--pcrs", str(tmp_path / "pcrs"), "--root", str(tmp_path / "root")]
        ended = cli("verify", enclave.url, *base)
        assert ended.code == 1
        follow = [*base, "--trust-upgrades", str(enclave.enclave_id)]
        backend = {"ENCLAVIA_BACKEND_URL": enclave.backend}
        mark = tmp_path / "mark"
        ended = cli("verify", enclave.url, *follow, "--high-water", str(mark), env=backend)
        assert ended.code == 0, ended
        assert json.loads(mark.read_text())["links"] == 3
        ended = cli("get", f"{enclave.url}/", *follow, "--backend", enclave.backend)
        assert ended.out == b"hi", ended
        enclave.set_backend_faults(BackendFault.PRIVATE)
        ended = cli("verify", enclave.url, *follow, env=backend)
        assert ended.code == 2
        assert "401" in ended.err
        ended = cli("verify", enclave.url, *follow, env=backend | {"ENCLAVIA_TOKEN": enclave.token})
        assert ended.code == 0, ended
        ended = cli("verify", enclave.url, *follow, env=backend | {"ENCLAVIA_TOKEN": ""})
        assert ended.code == 64


@pytest.mark.parametrize(
    "option", [["--backend", "https://e.example"], ["--high-water", "x"], ["--allow-rollback"]]
)
def test_options_that_need_another(saved: dict[str, str], option: list[str]) -> None:
    ended = cli("verify", "ws://127.0.0.1:9", "--pcrs", saved["pcrs"], *option)
    assert ended.code == 64
    assert "--trust-upgrades" in ended.err
