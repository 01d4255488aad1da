"""``pcrs``: reads pins from a file, verifies who has signed it where that is asked for, and prints
them in the form that was asked for.

Decides how they are printed, and which options go together. Calls: nothing of the package but what
is public. Locks: none.
"""

from __future__ import annotations

import json
from typing import Any

import click

import enclavia

from . import streams
from .exits import Problem
from .settings import given, load_pins, read_pins, refusing

__all__ = ["pcrs"]


@click.command()
@click.argument("file", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON, which --pcrs reads.")
@click.option("--env", "as_variables", is_flag=True, help="As ENCLAVIA_PCR0=… and so on.")
@click.option(
    "--bundle",
    metavar="FILE",
    help="Print them only if this Sigstore bundle proves that --identity of --issuer has signed "
    "FILE. Needs the extra sigstore; the network is not used.",
)
@click.option(
    "--identity",
    metavar="NAME",
    help="Who has to have signed: the URL of a workflow with its ref, or an e-mail address.",
)
@click.option("--issuer", metavar="URL", help="The OIDC issuer that vouches for the identity.")
@click.option("--repository", metavar="URL", help="The source repository of the workflow's run.")
@click.option("--ref", metavar="REF", help="The full ref of the source, as refs/heads/main.")
@click.option("--subject", metavar="NAME", help="The name that the statement gives to FILE.")
@click.option(
    "--predicate-type",
    metavar="URI",
    help="The type of the statement's predicate, in place of SLSA's provenance. Without FILE, the "
    "predicate has the pins.",
)
@click.option(
    "--trusted-root",
    metavar="FILE",
    help="The trusted_root.json of a Sigstore instance, in place of the public one's.",
)
def pcrs(
    file: str | None, as_json: bool, as_variables: bool, bundle: str | None, **signed: str | None
) -> None:
    """Read pins from FILE (- is standard input) and print them.

    FILE is what `enclavia enclave status`, `enclavia deploy` or `nitro-cli build-enclave` print.
    """
    if as_json and as_variables:
        raise Problem("expected --json or --env, got both")
    pins = _plain(file, signed) if bundle is None else _signed(file, bundle, signed)
    values = pins.as_dict()
    if as_json:
        streams.say(json.dumps(values, indent=2))
    elif as_variables:
        streams.say(*(f"ENCLAVIA_{name}={value}" for name, value in values.items()))
    else:
        streams.say(*map(": ".join, values.items()))
    if pins.is_zero:
        streams.warn("warning: all zero: these are the PCRs of a debug enclave and prove nothing")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(file: str | None, signed: dict[str, str | None]) -> enclavia.Pcrs:
    for name, value in signed.items():
        if value is not None:
            raise Problem(f"{_option(name)}: expected --bundle FILE beside it, got none")
    if file is None:
        raise Problem("expected a file with PCR0, PCR1 and PCR2, got none")
    return load_pins(file)


def _signed(file: str | None, bundle: str, signed: dict[str, str | None]) -> enclavia.Pcrs:
    for name in ("identity", "issuer"):
        if signed[name] is None:
            raise Problem(f"--bundle: expected {_option(name)} beside it, got none")
    if file is None and signed["predicate_type"] is None:
        raise Problem(
            "expected a file with PCR0, PCR1 and PCR2, or --predicate-type of the statement that "
            "has them, got neither"
        )
    options: Any = {name: given(_option(name), value) for name, value in signed.items()}
    content = None if file is None else read_pins(file)
    with refusing():
        source = enclavia.SigstorePins(
            pcrs=content, bundle=str(given("--bundle", bundle)), **options
        )
        return source.verify()
