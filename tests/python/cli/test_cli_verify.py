"""``verify``, ``pcrs``, ``attestation`` and ``doctor``, run as programs."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import (
    CANNOT_WRITE,
    OK,
    REFUSED,
    ROOT,
    UNREACHABLE,
    USAGE,
    cli,
    environment,
    other_pins,
    pins_of,
)
from support import ByteServer, answering, ok

import enclavia
from enclavia.testing import LocalEnclave
from enclavia.testing._pki import mint, specs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ByteServer(answering(ok())) as server, LocalEnclave(server.address) as enclave:
        yield Place(enclave, server, tmp_path_factory.mktemp("pins"))


class Place:
    """An enclave, its workload, and what a client of it needs."""

    def __init__(self, enclave: LocalEnclave, server: ByteServer, folder: Path) -> None:
        self.enclave = enclave
        self.server = server
        self.pins = pins_of(enclave, folder)
        self.root = self.pins[-2:]
        self.other = [*other_pins(folder), *self.root]
        self.variables = {
            f"ENCLAVIA_PCR{n}": value.hex() for n, value in enumerate(enclave.pcrs.as_tuple())
        }

    def expect_untouched(self) -> None:
        """Nothing has ever come to the workload."""
        assert self.server.connections == []
        assert self.enclave.stats()["streams_total"] == 0


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"ws://127.0.0.1:{listener.getsockname()[1]}"


def test_verified(place: Place) -> None:
    ended = cli("verify", place.enclave.url, *place.pins).expect(OK)
    assert ended.text.startswith(f"verified     {place.enclave.url}\n")
    assert place.enclave.pcrs.pcr0.hex() in ended.text
    assert ended.err == ""
    place.expect_untouched()


def test_refused(place: Place) -> None:
    ended = cli("verify", place.enclave.url, *place.other).expect(REFUSED, "PcrMismatch: PCR0")
    assert ended.out == b""
    place.expect_untouched()


def test_refused_by_the_root(place: Place) -> None:
    """AWS's root is the one where no other is named."""
    cli("verify", place.enclave.url, *place.pins[:2]).expect(REFUSED, "CertificateError: ")
    place.expect_untouched()


def test_not_reached(place: Place) -> None:
    ended = cli("verify", closed_port(), *place.pins).expect(UNREACHABLE, "ConnectError: ")
    assert ended.out == b""


def test_json(place: Place) -> None:
    said = cli("verify", place.enclave.url, *place.pins, "--json").expect(OK).data
    assert said["verified"] is True
    assert said["attestation"]["pcrs"]["0"] == place.enclave.pcrs.pcr0.hex()
    assert said["attestation"]["proven"] is True
    said = cli("verify", place.enclave.url, *place.other, "--json").expect(REFUSED).data
    assert said["verified"] is False
    assert said["error"]["type"] == "PcrMismatch"
    assert said["error"]["actual"] == place.enclave.pcrs.pcr0.hex()
    said = cli("verify", closed_port(), *place.pins, "--json").expect(UNREACHABLE).data
    assert said["error"]["type"] == "ConnectError"
    assert said["error"]["retryable"] is True


def test_the_environment_names_the_enclave_and_its_pins(place: Place) -> None:
    given = {"ENCLAVIA_URL": place.enclave.url, **place.variables}
    cli("verify", *place.root, env=given).expect(OK)
    wrong = {**given, "ENCLAVIA_PCR1": "07" * 48}
    cli("verify", *place.root, env=wrong).expect(REFUSED, "PcrMismatch: PCR1")


def test_options_come_before_the_environment(place: Place) -> None:
    wrong = {"ENCLAVIA_URL": closed_port(), "ENCLAVIA_PCR0": ""}
    cli("verify", place.enclave.url, *place.pins, env=wrong).expect(OK)


def test_one_of_several_pins(place: Place) -> None:
    cli("verify", place.enclave.url, *place.other, *place.pins).expect(OK)


@pytest.mark.parametrize("name", ["ENCLAVIA_PCR0", "ENCLAVIA_PCR1", "ENCLAVIA_PCR2"])
def test_a_variable_that_is_empty_is_no_missing_one(place: Place, name: str) -> None:
    ended = cli("verify", place.enclave.url, *place.root, env={**place.variables, name: ""})
    ended.expect(USAGE, f"error: {name}: expected 64, 96 or 128 hex digits, got nothing")
    missing = {other: value for other, value in place.variables.items() if other != name}
    cli("verify", place.enclave.url, *place.root, env=missing).expect(USAGE, f"got no {name}")
    place.expect_untouched()


def test_an_empty_url(place: Place) -> None:
    cli("verify", *place.pins, env={"ENCLAVIA_URL": ""}).expect(USAGE, "ENCLAVIA_URL: expected")
    cli("verify", "", *place.pins, env={"ENCLAVIA_URL": place.enclave.url}).expect(USAGE, "URL")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify"], "expected the URL of an enclave"),
        (["verify", "ws://127.0.0.1:1"], "expected the pins of the enclave"),
        (["verify", "gopher://x", "--pcrs", "{pins}"], "InvalidURL: expected wss://"),
        (["verify", "http://x", "--pcrs", "{pins}"], "InvalidURL: expected wss://"),
        (["verify", "wss://u:secret@x", "--pcrs", "{pins}"], "without user name and password"),
        (["verify", "ws://x\ny", "--pcrs", "{pins}"], "InvalidURL: "),
        (["verify", "ws://127.0.0.1:1", "--pcrs", "absent"], "absent: No such file"),
        (["verify", "ws://127.0.0.1:1", "--pcrs", "{folder}"], "Is a directory"),
        (["verify", "ws://127.0.0.1:1", "--pcrs", ""], "got an empty name"),
        (["verify", "ws://127.0.0.1:1", "--pcrs", "{pins}", "--root", ""], "--root: expected"),
        (["verify", "ws://127.0.0.1:1", "--pcrs", "{pins}", "--root", "absent"], "absent"),
        (["verify", "ws://127.0.0.1:1", "--pcrs", "{pins}", "--timeout", "x"], "--timeout"),
        (["verify", "ws://127.0.0.1:1", "--pcrs", "{pins}", "--timeout", "nan"], "timeout"),
        (["verify", "ws://127.0.0.1:1", "--pcrs", "{pins}", "--proxy", "x"], "proxy: expected"),
        (["verify", "ws://127.0.0.1:1", "--pcrs", "-", "--pcrs", "-"], "standard input once"),
        (["verify", "ws://127.0.0.1:1", "--pcrs", "-"], "standard input: expected PCR0"),
        (["verify", "--nothing"], "No such option"),
        (["nothing"], "No such command"),
        ([], "Missing command"),
        (["pcrs", "absent"], "absent: No such file"),
        (["pcrs", "{folder}"], "Is a directory"),
        (["pcrs", "{pins}", "--json", "--env"], "got both"),
        (["pcrs"], "expected a file with PCR0, PCR1 and PCR2, got none"),
        (["attestation"], "Missing command"),
        (["attestation", "show", "absent"], "absent: No such file"),
        (["attestation", "verify", "{pins}"], "expected the pins"),
        (["attestation", "show", "{pins}", "--at", "yesterday"], "got 'yesterday'"),
        (["attestation", "show", "{pins}", "--at", ""], "expected ISO 8601"),
        (["attestation", "show", "{pins}", "--at", "2026-01-01"], "without a zone"),
        (["attestation", "show", "{pins}", "--at", "\x1b]0;x\x07"], r"\x1b]0;x\x07"),
        (["attestation", "show", "{pins}", "--at", "9" * 12], "years 1 to 9999"),
        (["attestation", "verify", "x", "--pcrs", "{pins}", "--nonce", "xy"], "--nonce"),
        (["attestation", "verify", "x", "--pcrs", "{pins}", "--nonce", ""], "--nonce"),
        (["attestation", "verify", "-", "--pcrs", "-"], "got it for both"),
        (["doctor", "gopher://x"], "expected wss://"),
    ],
)
def test_usage(place: Place, tmp_path: Path, arguments: list[str], said: str) -> None:
    names = {"{pins}": place.pins[1], "{folder}": str(tmp_path)}
    ended = cli(*(names.get(each, each) for each in arguments), cwd=tmp_path)
    ended.expect(USAGE, said)
    assert ended.out == b""
    assert "secret" not in ended.err
    assert "\x1b" not in ended.err


def test_pcrs_in_each_form(place: Place, tmp_path: Path) -> None:
    listed = cli("pcrs", place.pins[1]).expect(OK).text
    assert enclavia.Pcrs.parse(listed) == place.enclave.pcrs
    again = cli("pcrs", "-", "--json", given=listed.encode()).expect(OK)
    assert again.data == place.enclave.pcrs.as_dict()
    variables = dict(
        line.split("=") for line in cli("pcrs", place.pins[1], "--env").expect(OK).text.split()
    )
    assert variables == place.variables


def test_pcrs_of_zeros_are_named(tmp_path: Path) -> None:
    path = tmp_path / "zero"
    path.write_text("".join(f"PCR{n}: {'00' * 48}\n" for n in range(3)))
    cli("pcrs", path).expect(OK, "warning: all zero")


def test_pcrs_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "bad\n\x1b[31m"
    path.write_text("PCR0: 12")
    ended = cli("pcrs", path).expect(USAGE, "PCR1 and PCR2 missing", r"bad\n\x1b[31m")
    assert ended.err.count("\n") == 1
    path.write_bytes(b"\0" * (1024 * 1024 + 1))
    cli("pcrs", path).expect(USAGE, "at most 1048576 bytes")


def test_a_document_in_a_file(place: Place, tmp_path: Path) -> None:
    document = tmp_path / "document"
    url = place.enclave.url
    cli("verify", url, *place.pins, "--save-document", document).expect(OK)
    assert enclavia.verify_attestation(document.read_bytes(), root=place.enclave.root).proven
    shown = cli("attestation", "show", document, *place.root).expect(OK, "compared with no pins")
    assert place.enclave.pcrs.pcr1.hex() in shown.text
    verified = cli("attestation", "verify", document, *place.pins, "--json").expect(OK).data
    assert base64.b64decode(verified["attestation"]["document"]) == document.read_bytes()
    nonce = verified["attestation"]["nonce"]
    cli("attestation", "verify", document, *place.pins, "--nonce", nonce).expect(OK)
    refused = cli("attestation", "verify", document, *place.pins, "--nonce", "00", "--json")
    assert refused.expect(REFUSED, "NonceMismatch: ").data["verified"] is False
    refused = cli("attestation", "verify", document, *place.other)
    refused.expect(REFUSED, "PcrMismatch: ")
    assert refused.out == b""
    cli("attestation", "show", document).expect(REFUSED, "CertificateError: ")


def test_a_document_in_base64_and_on_standard_input(place: Place) -> None:
    url = place.enclave.url
    said = cli("verify", url, *place.pins, "--json").expect(OK).data
    text = said["attestation"]["document"].encode()
    folded = b"\n".join(text[n : n + 64] for n in range(0, len(text), 64))
    cli("attestation", "verify", "-", *place.pins, given=folded + b"\n").expect(OK)
    raw = base64.b64decode(text)
    cli("attestation", "verify", "-", *place.pins, given=raw).expect(OK)
    cli("attestation", "verify", "-", *place.pins, given=raw[:-1]).expect(REFUSED)
    cli("attestation", "show", "-", *place.root, given=b"").expect(REFUSED, "DocumentError: ")


def test_the_moment_of_a_document(place: Place, tmp_path: Path) -> None:
    document = tmp_path / "document"
    cli("verify", place.enclave.url, *place.pins, "--save-document", document).expect(OK)
    at = ["attestation", "verify", str(document), *place.pins, "--at"]
    cli(*at, str(int(time.time()))).expect(OK)
    cli(*at, "2020-01-01T00:00:00Z").expect(REFUSED, "CertificateError: ", "2020-01-01T00:00:00Z")
    cli(*at, "2020-01-01T01:00:00+01:00").expect(REFUSED, "2020-01-01T00:00:00Z")
    cli(*at, "-1").expect(REFUSED, "1969-12-31T23:59:59Z")


def test_a_document_that_cannot_be_saved(place: Place, tmp_path: Path) -> None:
    before = place.enclave.stats()["connections_total"]
    save = ["verify", place.enclave.url, *place.pins, "--save-document"]
    cli(*save, tmp_path).expect(CANNOT_WRITE, "a folder")
    cli(*save, tmp_path / "absent" / "x").expect(CANNOT_WRITE, "No such file")
    cli(*save, "-").expect(USAGE, "got standard output")
    cli(*save, "").expect(USAGE, "got an empty one")
    assert place.enclave.stats()["connections_total"] == before
    refused = cli(*save, tmp_path / "x", *place.other[:2], env={}).expect(OK)
    assert refused.err == ""


def test_a_refused_document_is_not_saved(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "document"
    cli("verify", place.enclave.url, *place.other, "--save-document", path).expect(REFUSED)
    assert list(tmp_path.iterdir()) == []


def test_doctor_of_the_installation() -> None:
    ended = cli("doctor").expect(OK)
    for words in (enclavia.__version__, enclavia.ca_store(), *enclavia.build_info().values()):
        assert words in ended.text
    said = cli("doctor", "--json").expect(OK).data
    assert said["enclavia"] == enclavia.__version__
    assert said["well"] is True


def test_doctor_without_authorities(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "absent")
    ended = cli("doctor", env={"SSL_CERT_FILE": nowhere, "SSL_CERT_DIR": nowhere}).expect(REFUSED)
    assert "expected certificate authorities" in ended.text


def test_doctor_of_an_enclave(place: Place) -> None:
    ended = cli("doctor", place.enclave.url, *place.pins).expect(OK)
    assert "production: signed" in ended.text
    assert "yes: it is the pinned image" in ended.text
    assert "agrees with the document's" in ended.text
    ended = cli("doctor", place.enclave.url, *place.root).expect(OK)
    assert "no pins were given" in ended.text
    ended = cli("doctor", place.enclave.url, *place.other).expect(REFUSED)
    assert "no: PcrMismatch" in ended.text
    ended = cli("doctor", place.enclave.url).expect(REFUSED)
    assert "no: CertificateError" in ended.text
    ended = cli("doctor", env={"ENCLAVIA_URL": closed_port()}).expect(UNREACHABLE)
    assert "no: ConnectError" in ended.text
    place.expect_untouched()


@pytest.mark.parametrize("mode", ["debug", "stub"])
def test_doctor_of_a_debug_enclave(mode: enclavia.testing.Mode) -> None:
    with (
        ByteServer(answering(ok())) as server,
        LocalEnclave(server.address, mode=mode) as enclave,
    ):
        said = cli("doctor", enclave.url, "--json").expect(REFUSED).data
        assert said["mode"] == "debug"
        assert said["verified"].startswith("no: ")
        assert said["well"] is False
        cli("verify", enclave.url, *("--pcrs", "-"), given=PINS).expect(REFUSED)
        assert server.connections == []


def test_doctor_takes_no_name_for_a_debug_enclave() -> None:
    """Names of certificates are the peer's words, and stand in the message."""
    chain = [replace(spec, common_name=f"no debug enclave {n}") for n, spec in enumerate(specs())]
    with (
        ByteServer(answering(ok())) as server,
        LocalEnclave(server.address) as enclave,
    ):
        enclave.set_identity(pki=mint(chain=chain))
        said = cli("doctor", enclave.url, "--json").expect(REFUSED).data
        assert "no debug enclave" in said["verified"]
        assert said["mode"] == "unknown"


PINS = b"".join(b"PCR%d: %b\n" % (n, b"01" * 48) for n in range(3))


def test_without_click(tmp_path: Path) -> None:
    """A package of that name which cannot be imported stands for none."""
    (tmp_path / "click.py").write_text("raise ImportError('no click')")
    env = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    run = [sys.executable, "-m", "enclavia"]
    ended = subprocess.run([*run, "verify", "x"], env=env, capture_output=True, text=True)
    assert ended.returncode == USAGE
    assert "pip install 'enclavia[cli]'" in ended.stderr
    assert "Traceback" not in ended.stderr
    ended = subprocess.run([*run, "doctor"], env=env, capture_output=True, text=True)
    assert ended.returncode == OK, ended.stderr
    assert enclavia.__version__ in ended.stdout


def test_the_package_does_not_import_the_program() -> None:
    code = (
        "import enclavia, sys; print([n for n in sys.modules if n in ('click', 'enclavia._cli')])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


def test_version_and_help() -> None:
    assert cli("--version").expect(OK).text == f"enclavia-client {enclavia.__version__}\n"
    assert "verify" in cli("--help").expect(OK).text


def test_completion() -> None:
    script = cli(env={"_ENCLAVIA_CLIENT_COMPLETE": "bash_source"}).expect(OK).text
    assert "complete " in script
    asked = {
        "_ENCLAVIA_CLIENT_COMPLETE": "bash_complete",
        "COMP_WORDS": "enclavia-client ver",
        "COMP_CWORD": "1",
    }
    assert cli(env=asked).expect(OK).text.split() == ["plain,verify"]


def test_json_is_one_value(place: Place) -> None:
    """Nothing else is on standard output, and all of it is ASCII."""
    out = cli("verify", place.enclave.url, *place.pins, "--json").expect(OK).out
    json.loads(out.decode("ascii"))
