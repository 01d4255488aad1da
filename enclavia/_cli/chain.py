"""``chain``: verifies a chain of upgrades that was saved to files, and prints it.

Decides what is printed of a chain; of one that does not hold nothing is printed. Calls: nothing of
the package but what is public. Locks: none.
"""

from __future__ import annotations

import json
from typing import Final

import click

import enclavia

from . import streams
from .documents import Moment
from .exits import Problem
from .settings import given, pins_of, refusing

__all__ = ["chain"]

_MOST: Final = 4 * 1024 * 1024


@click.group(no_args_is_help=False)
def chain() -> None:
    """Verify the chain of an enclave's upgrades."""


@chain.command()
@click.argument("file")
@click.option(
    "--row",
    metavar="FILE",
    required=True,
    help="What GET {backend}/enclaves/{id} answered (- is standard input).",
)
@click.option("--enclave-id", metavar="UUID", required=True, help="Whose chain it has to be.")
@click.option(
    "--pcrs",
    metavar="FILE",
    multiple=True,
    help="The pins, one of which has to be a version on the chain. Else ENCLAVIA_PCR0, 1 and 2.",
)
@click.option("--root", metavar="FILE", help="The root certificate, in place of AWS's.")
@click.option(
    "--at",
    metavar="TIME",
    type=Moment(),
    help="The present, after which no link may lie: ISO 8601 with a zone, or Unix seconds.",
)
@click.option(
    "--high-water", metavar="FILE", help="A mark that the chain has to extend. It is not changed."
)
@click.option("--allow-rollback", is_flag=True, help="Take an earlier version that runs again.")
@click.option("--json", "json_wanted", is_flag=True, help="Print all of it as JSON.")
def verify(
    file: str,
    row: str,
    enclave_id: str,
    pcrs: tuple[str, ...],
    root: str | None,
    at: float | None,
    high_water: str | None,
    allow_rollback: bool,
    json_wanted: bool,
) -> None:
    """Verify the upgrade chain in FILE (- is standard input), offline.

    FILE is what GET {backend}/enclaves/{id}/upgrade-chain answered. Every document is verified at
    its own signed time, every rule of the chain is checked, and what each link changed is printed.
    """
    if [file, row, *pcrs].count("-") > 1:
        raise Problem("expected standard input once at most, got it twice")
    pins = pins_of(pcrs, need=True)
    links = streams.read_input(file, "a file with the links of an upgrade chain", _MOST)
    of_row = streams.read_input(row, "a file with an enclave's row", _MOST)
    mark_name = given("--high-water", high_water)
    mark = (
        None
        if mark_name is None
        else streams.read_input(mark_name, "a file with a high-water mark", _MOST)
    )
    with refusing():
        verified = enclavia.verify_upgrade_chain(
            bytes(of_row),
            bytes(links),
            pcrs=pins or (),
            enclave_id=enclave_id,
            at=at,
            root=given("--root", root),
            high_water=None if mark is None else bytes(mark),
            allow_rollback=allow_rollback,
        )
    if json_wanted:
        streams.say(json.dumps(_as_json(verified), indent=2))
    else:
        streams.say(streams.coloured("verified", 32))
        streams.say(*map(streams.visible, str(verified).splitlines()))


def _as_json(verified: enclavia.UpgradeChain) -> dict[str, object]:
    return {
        "enclave_id": str(verified.enclave_id),
        "pcrs": verified.pcrs.as_dict(),
        "image_digest": verified.image_digest,
        "pinned": verified.pinned,
        "row_agrees": verified.row_agrees,
        "verified_at": verified.verified_at.isoformat(),
        "links": [
            {
                "index": link.index,
                "kind": link.kind,
                "id": None if link.id is None else str(link.id),
                "timestamp": link.timestamp.isoformat(),
                "change": link.change,
                "pcrs": link.pcrs.as_dict(),
                "image_digest": link.image_digest,
                "payload_sha256": link.payload_sha256.hex(),
            }
            for link in verified.links
        ],
        "high_water": json.loads(verified.high_water),
    }
