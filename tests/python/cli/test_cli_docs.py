"""docs/cli.md: its options are those of the program, and its examples run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from command_line import environment, started
from repository import ROOT
from support import HANG, eventually

from enclavia._cli import exits
from enclavia._cli.app import program

TEXT = (ROOT / "docs" / "cli.md").read_text()

APP = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    message = await receive()
    body = message["body"].rstrip() + b"\\n" if scope["path"] == "/echo" else b"ok\\n"
    status = 404 if scope["path"] == "/absent" else 200
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": body})
"""


def commands(group: click.Group = program, name: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for each in group.list_commands(context):
        found = group.get_command(context, each)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, f"{each} ")
        else:
            yield f"{name}{each}", found


def options(command: click.Command) -> set[str]:
    return {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }


UPGRADES = {"--trust-upgrades", "--backend", "--high-water", "--allow-rollback"}
CONNECTING = {
    "--policy", "--pcrs", "--root", "--ca-file", "--proxy", "--receipts", "--timeout", *UPGRADES
}  # fmt: skip
REQUESTS = ["get", "post", "put", "patch", "delete", "head"]


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    assert found, title
    return found[1]


def listed(title: str) -> set[str]:
    """The options in the first column of a section's tables."""
    rows = re.findall(r"^\| (`-[^|]*) \|", section(title), re.M)
    return {option for row in rows for option in re.findall(r"`(--?[\w-]+)", row)}


def test_every_command_is_documented() -> None:
    named = {name for name, _ in commands()}
    titles = {
        "serve",
        "verify",
        *REQUESTS,
        "attestation show",
        "attestation verify",
        "pcrs",
        "chain verify",
        "receipts verify",
        "forward",
    }
    assert named == titles | {"doctor"}


def test_options_are_those_of_the_program() -> None:
    of = {name: options(command) for name, command in commands()}
    assert listed("An enclave to try it with") == of["serve"]
    assert listed("verify") == of["verify"] - CONNECTING
    assert listed("forward") == of["forward"] - CONNECTING
    for method in REQUESTS[:-1]:
        assert listed("get, head, post, put, patch, delete") == of[method] - CONNECTING, method
    without = listed("get, head, post, put, patch, delete") - of["head"]
    assert without == {"-d", "--data", "--json", "-o", "--output", "-C", "--continue"}
    documents = of["attestation verify"] | of["attestation show"]
    assert listed("attestation") == documents
    assert of["attestation verify"] - of["attestation show"] == {"--pcrs", "--nonce"}
    assert listed("receipts") == of["receipts verify"]
    assert set(re.findall(r"`(--[\w-]+)`", section("pcrs"))) == of["pcrs"]
    assert listed("chain") == of["chain verify"]
    assert set(re.findall(r"`(--[\w-]+)`", section("doctor"))) == of["doctor"] - CONNECTING
    for name in ("verify", "doctor", *REQUESTS):
        assert of[name] >= CONNECTING
    for option in CONNECTING:
        assert re.search(rf"`{option}[ `]", section("Which enclave, and which pins"))


def test_exit_codes_are_those_of_the_program() -> None:
    told = re.findall(r"^\| ([\d, ]+) \|", section("Exit codes"), re.M)
    codes = {int(code) for row in told for code in row.split(", ")}
    ours = {value for value in vars(exits).values() if type(value) is int}
    signals = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    assert codes == ours | signals


def blocks() -> list[str]:
    return re.findall(r"^```console\n(.*?)^```$", TEXT, re.M | re.S)


def test_examples_run(tmp_path: Path) -> None:
    """In one shell, in their order. ``…`` stands for anything, on a line of its own for lines."""
    (tmp_path / "demo.py").write_text(APP)
    shim = tmp_path / "enclavia-client"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m enclavia "$@"\n')
    shim.chmod(0o755)
    env = environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    serve, *others = blocks()
    assert serve.startswith("$ enclavia-client serve demo:app --write-pins pins &\n")
    server = started("serve", "demo:app", "--write-pins", "pins", cwd=tmp_path)
    try:
        eventually(lambda: (tmp_path / "pins" / "url").exists())
        given = subprocess.run(
            [shim, "pcrs", "pins/pcrs.json", "--env"],
            cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        exported = f"export {given.stdout.replace(chr(10), ' ')}"
        script, expected = [], []
        for block in others:
            for piece in re.split(r"^\$ ", block, flags=re.M)[1:]:
                line, _, said = piece.partition("\n")
                line = exported if line.startswith("export ENCLAVIA_PCR0") else line
                script.append(f"{line} 2>&1\necho '{MARK}'\n")
                expected.append((line, said))
        done = subprocess.run(
            ["sh"], input="".join(script), cwd=tmp_path, env=env, capture_output=True, text=True,
            timeout=HANG,
        )  # fmt: skip
        answers = done.stdout.split(f"{MARK}\n")[:-1]
        assert len(answers) == len(expected) > 10
        for (line, said), answer in zip(expected, answers, strict=True):
            assert re.fullmatch(pattern_of(said), answer), (line, said, answer)
        assert (tmp_path / "model.bin").read_bytes() == b"ok\n"
    finally:
        server.terminate()
        out, _ = server.communicate(timeout=HANG)
    assert re.fullmatch(pattern_of(serve.partition("\n")[2]), out.decode())


MARK = "-- end --"


def pattern_of(said: str) -> str:
    lines = (
        "(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
        for line in said.splitlines()
    )
    return "".join(lines)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_as_documented(shell: str) -> None:
    assert f"_ENCLAVIA_CLIENT_COMPLETE={shell}_source enclavia-client" in TEXT
