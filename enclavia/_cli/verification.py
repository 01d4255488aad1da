"""``verify``: is this the pinned enclave?

Decides how the result is printed, and when the document is saved. Calls: nothing of the package but
what is public. Locks: none.
"""

from __future__ import annotations

import json

import click

import enclavia

from . import streams
from .documents import as_json, failure_as_json
from .exits import Problem
from .files import FileOutput
from .settings import Connection, channel, connection_options, given

__all__ = ["verify"]


@click.command()
@click.argument("url", required=False)
@connection_options
@click.option("--json", "json_wanted", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--save-document",
    "save",
    metavar="FILE",
    help="Write the verified attestation document to FILE.",
)
def verify(connection: Connection, url: str | None, json_wanted: bool, save: str | None) -> None:
    """Connect to the enclave at URL (or ENCLAVIA_URL), verify it, and print what it attests.

    Nothing is sent to the workload. Exit codes: 0 verified, 1 refused, 2 not reached, 64 usage.
    """
    url = connection.needed_url(url)
    name = given("--save-document", save)
    if name == "-":
        raise Problem("--save-document: expected a file, got standard output")
    options = connection.options()
    with FileOutput.maybe(name) as output:
        try:
            with channel(url, options) as opened:
                attested = opened.attestation
        except enclavia.EnclaviaError as error:
            if json_wanted:
                _say_json({"verified": False, "url": url, "error": failure_as_json(error)})
            raise
        if output is not None:
            output.write(attested.document)
            output.commit()
    if json_wanted:
        _say_json({"verified": True, "url": url, "attestation": as_json(attested)})
    else:
        streams.say(f"{streams.coloured('verified', 32)}     {streams.visible(url)}")
        streams.say(*map(streams.visible, str(attested).splitlines()))


def _say_json(said: dict[str, object]) -> None:
    streams.say(json.dumps(said, indent=2))
