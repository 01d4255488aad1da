"""``pcrs FILE --bundle``: pins are printed only where the bundle proves who has signed them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import OK, REFUSED, UNREACHABLE, USAGE, cli
from sigstore_instance import IDENTITY, ISSUER, REF, REPOSITORY, SLSA, Instance, statement

from enclavia import Pcrs

pytest.importorskip("sigstore", reason="needs the extra sigstore")

PCRS = Pcrs(pcr0=b"\x01" * 48, pcr1=b"\x02" * 48, pcr2=b"\x03" * 48)
CONTENT = json.dumps(PCRS.as_dict()).encode()
BY = ("--identity", IDENTITY, "--issuer", ISSUER, "--trusted-root", "root.json")
MEASURED = "https://acme.example/pcrs/v1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    instance = Instance()
    measured = statement(("image.eif", b""), predicateType=MEASURED, predicate=PCRS.as_dict())
    for name, content in (
        ("pcrs.json", CONTENT),
        ("bundle.json", json.dumps(instance.of_statement(statement(("pcrs.json", CONTENT))))),
        ("measured.json", json.dumps(instance.of_statement(measured))),
        ("root.json", instance.trusted_root()),
    ):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_signed_pins_are_printed(folder: Path) -> None:
    command = ("pcrs", "pcrs.json", "--bundle", "bundle.json", *BY)
    lines = "".join(f"{name}: {value}\n" for name, value in PCRS.as_dict().items())
    assert cli(*command, cwd=folder).expect(OK).text == lines
    further = ("--repository", REPOSITORY, "--ref", REF, "--subject", "pcrs.json")
    ended = cli(*command, *further, "--predicate-type", SLSA, "--json", cwd=folder).expect(OK)
    assert ended.data == PCRS.as_dict()
    of_input = ("pcrs", "-", "--bundle", "bundle.json", *BY)
    assert cli(*of_input, cwd=folder, given=CONTENT).expect(OK).text == lines
    predicate = ("pcrs", "--bundle", "measured.json", *BY, "--predicate-type", MEASURED)
    assert cli(*predicate, cwd=folder).expect(OK).text == lines


def test_others_are_not(folder: Path) -> None:
    command = ("pcrs", "pcrs.json", "--bundle", "bundle.json")
    for by, message in (
        (("--identity", "another", *BY[2:]), "SANs do not match"),
        ((*BY[:2], "--issuer", "another", *BY[4:]), "OIDCIssuer does not match"),
        (BY[:4], "SigstoreError: bundle: expected the statement signed by"),
        ((*BY, "--repository", "https://another"), "OIDCSourceRepositoryURI does not match"),
        ((*BY, "--ref", "refs/heads/another"), "OIDCSourceRepositoryRef does not match"),
        ((*BY, "--subject", "another"), "named 'another'"),
        ((*BY, "--predicate-type", "another"), "predicateType: expected another"),
    ):
        ended = cli(*command, *by, cwd=folder).expect(REFUSED, message)
        assert ended.text == ""
    ended = cli("pcrs", "-", *command[2:], *BY, cwd=folder, given=CONTENT + b" ")
    ended.expect(REFUSED, "SigstoreError: the statement: expected a subject with the SHA-256")
    assert ended.text == ""


def test_options_that_go_together(folder: Path) -> None:
    for arguments, message in (
        ((), "expected a file with PCR0, PCR1 and PCR2, got none"),
        (("pcrs.json", "--identity", "a"), "--identity: expected --bundle FILE beside it"),
        (("pcrs.json", "--trusted-root", "a"), "--trusted-root: expected --bundle FILE beside"),
        (("pcrs.json", "--bundle", "bundle.json"), "--bundle: expected --identity beside it"),
        (("pcrs.json", "--bundle", "bundle.json", *BY[:2]), "--bundle: expected --issuer beside"),
        (("--bundle", "measured.json", *BY), "or --predicate-type of the statement that has them"),
        (("pcrs.json", "--bundle", "", *BY), "--bundle: expected a value, got an empty one"),
        (("pcrs.json", "--bundle", "bundle.json", *BY, "--ref", ""), "--ref: expected a value"),
        (("pcrs.json", "--bundle", "bundle.json", *BY, "--ref", "main"), "ref: expected a full"),
        (("pcrs.json", "--bundle", "gone.json", *BY), "gone.json: bundle: expected the path of"),
    ):
        cli("pcrs", *arguments, cwd=folder).expect(USAGE, message)


def test_a_policy_with_signed_pins(folder: Path) -> None:
    """That it is verified before anything is connected to."""
    policy = {
        "format": 1,
        "endpoint": "ws://127.0.0.1:9",
        "versions": [
            {
                "name": "now",
                "pcrs": "pcrs.json",
                "sigstore": {
                    "bundle": "bundle.json",
                    "identity": IDENTITY,
                    "issuer": ISSUER,
                    "trusted_root": "root.json",
                },
            }
        ],
    }
    path = folder / "policy.json"
    path.write_text(json.dumps(policy))
    cli("verify", "--policy", path).expect(UNREACHABLE, "ConnectError")
    path.write_text(json.dumps(policy).replace(IDENTITY, "another"))
    cli("verify", "--policy", path).expect(REFUSED, "SigstoreError: ")
    path.write_text(json.dumps(policy).replace("bundle.json", "gone.json"))
    cli("verify", "--policy", path).expect(USAGE, "gone.json: ")
