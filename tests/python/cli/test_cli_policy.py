"""``--policy`` and further pins, for every command that connects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import OK, REFUSED, USAGE, cli, pins_of
from pinned import OTHER
from support import ByteServer, answering, ok

from enclavia import Pcrs
from enclavia.testing import LocalEnclave


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    pcrs = Pcrs(pcr0=b"\x01" * 48, pcr1=b"\x02" * 48, pcr2=b"\x03" * 48, pcr8=b"\x08" * 48)
    with (
        ByteServer(answering(ok(b"hello"))) as server,
        LocalEnclave(server.address, pcrs=pcrs) as enclave,
    ):
        yield enclave


def policy(folder: Path, enclave: LocalEnclave, *pins: Pcrs, **more: Any) -> str:
    versions = [{"name": f"v{n}", "pcrs": each.as_dict()} for n, each in enumerate(pins)]
    if more.pop("ended", False):
        for version in versions:
            version["not_after"] = "2020-01-01T00:00:00Z"  # type: ignore[assignment]
    assert enclave.root is not None
    said = {"format": 1, "endpoint": enclave.url, "root": enclave.root.decode(), **more}
    path = folder / "policy.json"
    path.write_text(json.dumps({**said, "versions": versions}))
    return str(path)


def test_a_policy_says_which_enclave_and_who_is_trusted(
    enclave: LocalEnclave, tmp_path: Path
) -> None:
    path = policy(tmp_path, enclave, OTHER, enclave.pcrs)
    ended = cli("verify", "--policy", path, "--json").expect(OK)
    assert ended.data["url"] == enclave.url
    matched = ended.data["attestation"]["matched"]
    assert matched == {"index": 1, "name": "v1", "pcrs": enclave.pcrs.as_dict()}
    assert "set 1: v1" in cli("verify", env={"ENCLAVIA_POLICY": path}).expect(OK).text
    assert cli("get", "/x", "--policy", path).expect(OK).text == "hello"
    assert cli("get", f"{enclave.url}/x", "--policy", path).expect(OK).text == "hello"
    assert "it is the pinned image" in cli("doctor", "--policy", path).text


def test_a_policy_refuses(enclave: LocalEnclave, tmp_path: Path) -> None:
    path = policy(tmp_path, enclave, OTHER)
    cli("verify", "--policy", path).expect(REFUSED, "PcrMismatch: PCR0")
    cli("get", "/", "--policy", path).expect(REFUSED, "PcrMismatch: PCR0")
    path = policy(tmp_path, enclave, enclave.pcrs, OTHER, ended=True)
    cli("verify", "--policy", path).expect(REFUSED, "PolicyExpired: expected a version")
    said = cli("doctor", "--policy", path).expect(REFUSED).text
    assert "the policy allows no version any more" in said


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--policy", "{path}", "--pcrs", "{pins}"], {}, "expected --policy or --pcrs, got both"),
        (["--policy", "{path}", "--root", "{root}"], {}, "expected --policy or --root, got both"),
        (["--policy", "-"], {}, "--policy: expected a file, got standard input"),
        (["--policy", ""], {}, "--policy: expected a value, got an empty one"),
        (["--policy", "absent.toml"], {}, "absent.toml: No such file"),
        ([], {"ENCLAVIA_POLICY": ""}, "expected a value, got an empty one"),
        (
            [],
            {"ENCLAVIA_POLICY": "{path}", "ENCLAVIA_PCR8": "08" * 48},
            "expected ENCLAVIA_POLICY or ENCLAVIA_PCR8, got both",
        ),
        (
            [],
            {"ENCLAVIA_POLICY": "{path}", "ENCLAVIA_PCR5": "05" * 48},
            "expected ENCLAVIA_POLICY or ENCLAVIA_PCR5, got both",
        ),
    ],
)
def test_what_does_not_go_together(
    enclave: LocalEnclave, tmp_path: Path, arguments: list[str], environ: dict[str, str], said: str
) -> None:
    pins = pins_of(enclave, tmp_path)
    names = {"path": policy(tmp_path, enclave, enclave.pcrs), "pins": pins[1], "root": pins[-1]}
    given = [each.format(**names) for each in arguments]
    env = {name: value.format(**names) for name, value in environ.items()}
    cli("verify", *given, env=env).expect(USAGE, said)


def test_pins_on_the_command_line_come_before_a_policy_of_the_environment(
    enclave: LocalEnclave, tmp_path: Path
) -> None:
    env = {"ENCLAVIA_POLICY": "absent"}
    cli("verify", enclave.url, *pins_of(enclave, tmp_path), env=env).expect(OK)


def test_a_debug_policy_verifies_nothing(enclave: LocalEnclave, tmp_path: Path) -> None:
    path = policy(tmp_path, enclave, enclave.pcrs, mode="debug")
    cli("verify", "--policy", path).expect(USAGE, "got one of mode debug")


def test_further_pins_of_the_environment(enclave: LocalEnclave, tmp_path: Path) -> None:
    pins = pins_of(enclave, tmp_path)
    env = dict(
        line.split("=", 1) for line in cli("pcrs", "--env", pins[1]).expect(OK).text.splitlines()
    )
    assert list(env) == ["ENCLAVIA_PCR0", "ENCLAVIA_PCR1", "ENCLAVIA_PCR2", "ENCLAVIA_PCR8"]
    cli("verify", enclave.url, *pins[-2:], env=env).expect(OK)
    env["ENCLAVIA_PCR8"] = "09" * 48
    cli("verify", enclave.url, *pins[-2:], env=env).expect(REFUSED, "PcrMismatch: PCR8")
    for name, value, said in (
        ("ENCLAVIA_PCR5", "05" * 48, "beside pcr0, pcr1 and pcr2"),
        ("ENCLAVIA_PCR5", "", "ENCLAVIA_PCR5: expected"),
    ):
        more = {**env, name: value}
        cli("verify", enclave.url, *pins[-2:], env=more).expect(USAGE, said)
    assert json.loads(cli("pcrs", "--json", pins[1]).expect(OK).text) == enclave.pcrs.as_dict()


@pytest.mark.parametrize("command", ["get", "forward"])
def test_a_mode_that_a_command_does_not_take_twice(
    enclave: LocalEnclave, tmp_path: Path, command: str
) -> None:
    path = policy(tmp_path, enclave, enclave.pcrs)
    target = ["/"] if command == "get" else ["--root", path]
    more = ["--debug-mode"] if command == "get" else []
    cli(command, *target, "--policy", path, *more).expect(USAGE, "the policy says who is trusted")
