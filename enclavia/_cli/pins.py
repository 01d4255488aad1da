"""``pcrs``: reads pins from a file, and prints them in the form that was asked for.

Decides how they are printed. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import json

import click

from . import streams
from .exits import Problem
from .settings import load_pins

__all__ = ["pcrs"]


@click.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="As JSON, which --pcrs reads.")
@click.option("--env", "as_variables", is_flag=True, help="As ENCLAVIA_PCR0=… and so on.")
def pcrs(file: str, as_json: bool, as_variables: bool) -> None:
    """Read pins from FILE (- is standard input) and print them.

    FILE is what `enclavia enclave status`, `enclavia deploy` or `nitro-cli build-enclave` print.
    """
    if as_json and as_variables:
        raise Problem("expected --json or --env, got both")
    pins = load_pins(file)
    values = pins.as_dict()
    if as_json:
        streams.say(json.dumps(values, indent=2))
    elif as_variables:
        streams.say(*(f"ENCLAVIA_{name}={value}" for name, value in values.items()))
    else:
        streams.say(*map(": ".join, values.items()))
    if pins.is_zero:
        streams.warn("warning: all zero: these are the PCRs of a debug enclave and prove nothing")
