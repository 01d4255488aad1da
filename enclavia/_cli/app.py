"""The table of commands. Each is loaded when it is named.

A command is a click command in a module of this folder. ``_COMMANDS`` says where.

Decides which commands there are, and the message about a wrong use of one. Calls: nothing of the
package but what is public. Locks: none.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Final

import click

import enclavia

from . import streams
from .exits import USAGE, Problem

__all__ = ["PROGRAM", "program", "run"]

PROGRAM: Final = "enclavia-client"
_COMPLETE: Final = "_ENCLAVIA_CLIENT_COMPLETE"

# Name on the command line: module of this folder and attribute.
_COMMANDS: Final = {
    "verify": "verification:verify",
    "get": "requests:get",
    "head": "requests:head",
    "post": "requests:post",
    "put": "requests:put",
    "patch": "requests:patch",
    "delete": "requests:delete",
    "attestation": "documents:attestation",
    "pcrs": "pins:pcrs",
    "chain": "chain:chain",
    "receipts": "receipts:receipts",
    "forward": "forward:command",
    "serve": "serving:serve",
    "doctor": "doctor:doctor",
}


class _Program(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        loaded = getattr(importlib.import_module(f".{module}", __package__), attribute)
        assert isinstance(loaded, click.Command)  # noqa: S101 - a mistake of this folder
        return loaded


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        streams.say(f"{PROGRAM} {enclavia.__version__}")
        ctx.exit()


@click.command(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version.",
)
def program() -> None:
    """Talk to a verified AWS Nitro enclave.

    Nothing is sent to an enclave, and nothing of it printed, before its attestation was verified
    against the pins. Exit codes: 0 done, 1 refused (not the pinned enclave), 2 not reached or no
    whole answer, 22 an HTTP error with --fail, 64 usage, 73 output that cannot be written, 130
    interrupted.
    """


def run(arguments: list[str]) -> int:
    """Runs one command line. Raises what ends it, but for what click says about its use."""
    if os.environ.get(_COMPLETE):
        program.main(arguments, prog_name=PROGRAM, complete_var=_COMPLETE)
    name = "python -m enclavia" if _by_module() else PROGRAM
    try:
        with program.make_context(name, arguments) as context:
            program.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        _show(error)
        return USAGE
    except click.ClickException as error:
        raise Problem(error.format_message()) from None
    return 0


def _by_module() -> bool:
    """Whether Python was given ``-m enclavia``."""
    return os.path.basename(sys.argv[0]) == "__main__.py" if sys.argv else False


def _show(error: click.UsageError) -> None:
    if error.ctx is not None:
        usage = error.ctx.get_usage().splitlines()
        for line in (*usage, f"Try '{error.ctx.command_path} --help' for help."):
            streams.warn(line)
    streams.warn(f"error: {_message(error)}")


def _message(error: click.UsageError) -> str:
    """click's, but for what was given too much: it may be a part of a header whose quotes were
    forgotten."""
    message = error.format_message()
    if message.startswith("Got unexpected extra argument"):
        return (
            "expected fewer arguments, got more than the command takes (is a value with spaces in "
            "it without quotes?)"
        )
    return message
