"""``attestation``: verifies and prints attestation documents in files.

Decides what is printed of a verified document; of any other nothing is printed. Calls: nothing of
the package but what is public. Locks: none.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from datetime import UTC, datetime
from typing import Final

import click

import enclavia

from . import streams
from .exits import Problem
from .settings import given, pins_of, refusing

__all__ = ["Moment", "as_json", "attestation", "failure_as_json"]

_DOCUMENT_MAX: Final = 1024 * 1024
_FORM: Final = "an attestation document"


def as_json(attested: enclavia.Attestation) -> dict[str, object]:
    """All of it: bytes in hex, but certificates and the document in base64."""
    return {
        "form": attested.form,
        "proven": attested.proven,
        "module_id": attested.module_id,
        "timestamp": attested.timestamp.isoformat(),
        "verified_at": attested.verified_at.isoformat(),
        "pcrs": {str(index): value.hex() for index, value in attested.pcrs.items()},
        "matched": _matched(attested.matched),
        "nonce": _hex(attested.nonce),
        "user_data": _hex(attested.user_data),
        "public_key": _hex(attested.public_key),
        "certificate": _base64(attested.certificate),
        "cabundle": [_base64(each) for each in attested.cabundle],
        "document": _base64(attested.document),
    }


def _matched(matched: enclavia.MatchedPins | None) -> dict[str, object] | None:
    if matched is None:
        return None
    return {"index": matched.index, "name": matched.name, "pcrs": matched.pcrs.as_dict()}


def failure_as_json(error: enclavia.EnclaviaError) -> dict[str, object]:
    """What an error has to say, for programs."""
    said: dict[str, object] = {
        "type": type(error).__name__,
        "message": str(error),
        "retryable": error.retryable,
    }
    if isinstance(error, enclavia.PcrMismatch):
        said |= {
            "index": error.index,
            "expected": error.expected.hex(),
            "actual": error.actual.hex(),
        }
    return said


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


class Moment(click.ParamType[float]):
    """Unix seconds, or ISO 8601 with a zone."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value)
        if re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,9})?", text):
            return float(text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{_EXPECTED_TIME}, got '{streams.visible(text, 60)}'", param, ctx)
        if moment.utcoffset() is None:
            self.fail(
                f"{_EXPECTED_TIME}, got {text!r} without a zone: append Z or +01:00", param, ctx
            )
        return moment.timestamp()


_EXPECTED_TIME = "expected ISO 8601 with a zone (2026-11-27T09:30:00Z) or Unix seconds"


@click.group(no_args_is_help=False)
def attestation() -> None:
    """Verify and read attestation documents from files."""


def _options(command: click.Command) -> click.Command:
    for option in (
        click.Option(
            ["--root"],
            metavar="FILE",
            help="The root certificate, in place of AWS's.",
        ),
        click.Option(
            ["--at"],
            metavar="TIME",
            type=Moment(),
            help="When the certificates must be valid: ISO 8601 with a zone, or Unix seconds. "
            "Default: now. A document's own certificate lives for three hours.",
        ),
        click.Option(["--json", "json_wanted"], is_flag=True, help="Print all of it as JSON."),
    ):
        command.params.append(option)
    return command


@click.command()
@click.argument("file")
def show(file: str, root: str | None, at: float | None, json_wanted: bool) -> None:
    """Print what the document in FILE (- is standard input) says.

    Its structure, its certificates and its signature are verified first, and nothing is printed of
    one that fails. Which image it is of is not compared with anything: `verify` does that.

    FILE has the document as bytes or in base64.
    """
    attested = _verified(file, root, at, None)
    if json_wanted:
        streams.say(json.dumps(as_json(attested), indent=2))
        return
    _print(attested)
    streams.warn("note: these PCRs were compared with no pins")


@click.command()
@click.argument("file")
@click.option("--pcrs", metavar="FILE", multiple=True, help="The pins, as for every command.")
@click.option("--nonce", metavar="HEX", help="The nonce that the document must have.")
def verify(
    file: str,
    pcrs: tuple[str, ...],
    nonce: str | None,
    root: str | None,
    at: float | None,
    json_wanted: bool,
) -> None:
    """Verify the document in FILE (- is standard input) against pins.

    Exit codes: 0 verified, 1 refused, 64 usage.

    FILE has the document as bytes or in base64. A verified document says that such an enclave
    existed when it was made, and nothing about who sent the file.
    """
    if "-" in pcrs and file == "-":
        raise Problem("expected standard input for FILE or for --pcrs, got it for both")
    pins = pins_of(pcrs, need=True)
    try:
        attested = _verified(file, root, at, pins, _nonce(nonce))
    except enclavia.EnclaviaError as error:
        if json_wanted:
            said = {"verified": False, "error": failure_as_json(error)}
            streams.say(json.dumps(said, indent=2))
        raise
    if json_wanted:
        said = {"verified": True, "attestation": as_json(attested)}
        streams.say(json.dumps(said, indent=2))
        return
    streams.say(streams.coloured("verified", 32))
    _print(attested)


attestation.add_command(_options(show))
attestation.add_command(_options(verify))


def _print(attested: enclavia.Attestation) -> None:
    lines = str(attested).splitlines()
    if attested.nonce is not None:
        lines.append(f"{'nonce':<13}{attested.nonce.hex()}")
    streams.say(*map(streams.visible, lines))


def _nonce(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if not value:
        raise Problem("--nonce: expected an even number of hex digits, got something else")
    return value


def _verified(
    file: str,
    root: str | None,
    at: float | None,
    pins: list[enclavia.Pcrs] | None,
    nonce: bytes | None = None,
) -> enclavia.Attestation:
    document = _bytes_of(streams.read_input(file, _FORM, _DOCUMENT_MAX))
    with refusing():
        moment = datetime.now(UTC).timestamp() if at is None else at
        return enclavia.verify_attestation(
            document, pcrs=pins, nonce=nonce, root=given("--root", root), at=moment
        )


def _bytes_of(content: bytes) -> bytes:
    """A document begins with a CBOR tag or an array, and neither is a character of base64."""
    packed = b"".join(content.split())
    if not re.fullmatch(rb"[A-Za-z0-9+/]+={0,2}", packed):
        return content
    try:
        return base64.b64decode(packed, validate=True)
    except binascii.Error:
        return content
