"""``receipts``: verifies files of receipts, offline.

Decides what is said of each line, and how the program ends. Calls: nothing of the package but what
is public. Locks: none.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, NamedTuple

import click

import enclavia

from . import streams
from .documents import failure_as_json
from .exits import OK, REFUSED, Problem
from .settings import given, load_pins, refusing

__all__ = ["receipts"]

_FORM: Final = "a file of receipts"
_LINE_MAX: Final = 1024 * 1024
_SKIPPED: Final = 65536
_BEGINS: Final = b'{"schema":"enclavia-receipt-'


@click.group(no_args_is_help=False)
def receipts() -> None:
    """Verify receipts of attestation documents from files."""


class _Line(NamedTuple):
    number: int
    content: bytes | None
    """Without its end. None: it is longer than any receipt."""


class _Counts:
    def __init__(self) -> None:
        self.hold = self.fail = self.torn = 0

    def __str__(self) -> str:
        said = f"{self.hold} {'receipt holds' if self.hold == 1 else 'receipts hold'}"
        if self.fail:
            said += f", {self.fail} {'does' if self.fail == 1 else 'do'} not"
        if self.torn:
            said += f"; {self.torn} torn {'line' if self.torn == 1 else 'lines'}"
        return said


@receipts.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--root",
    metavar="FILE",
    help="The root certificate that is trusted, in place of AWS's.",
)
@click.option(
    "--pcrs",
    metavar="FILE",
    multiple=True,
    help="Pins that each document has to match, beside those that its receipt names. Given more "
    "than once, one must match.",
)
@click.option(
    "--policy",
    metavar="FILE",
    help="A policy, TOML or JSON, in place of --pcrs and --root: each document has to match a "
    "version that was allowed at its time, and a receipt that names a version, that name.",
)
@click.option(
    "--json", "json_wanted", is_flag=True, help="Print one line of JSON for each receipt."
)
@click.pass_context
def verify(
    context: click.Context,
    files: tuple[str, ...],
    root: str | None,
    pcrs: tuple[str, ...],
    policy: str | None,
    json_wanted: bool,
) -> None:
    """Verify every receipt in FILE (- is standard input), each at its own time.

    Exit codes: 0 all hold, 1 one does not, 64 usage (a file that cannot be read, or without any
    receipt).

    Of each receipt the document's signature, its certificates at the time that the receipt names,
    its nonce, its PCRs against the pins that the receipt names, and that the receipt says of its
    document what stands there. A line that a crash has cut off is told and not counted as one
    that does not hold: nothing was sent on its channel.
    """
    if [*files, *pcrs].count("-") > 1:
        raise Problem("expected standard input once at most, got it twice")
    options = _by_files(root, pcrs) if policy is None else _by_policy(policy, root, pcrs)
    counts = _Counts()
    for name in files:
        with _opened(name) as file:
            before = counts.hold + counts.fail
            for line in _lines(name, file):
                _judge(name, line, options, counts, json_wanted)
            if counts.hold + counts.fail == before:
                raise Problem(f"expected {_FORM}, got {_shown(name)} without any")
    streams.say(*([] if json_wanted else [str(counts)]))
    context.exit(REFUSED if counts.fail else OK)


def _by_files(root: str | None, pcrs: tuple[str, ...]) -> dict[str, Any]:
    """What Receipt.verify is given."""
    name = given("--root", root)
    trusted = None if name is None else streams.read_input(name, "a root certificate", _LINE_MAX)
    return {"root": trusted, "pcrs": [load_pins(name) for name in pcrs] or None}


def _by_policy(name: str, root: str | None, pcrs: tuple[str, ...]) -> dict[str, Any]:
    if root is not None or pcrs:
        other = "--pcrs" if pcrs else "--root"
        raise Problem(f"expected --policy or {other}, got both: the policy says who is trusted")
    with refusing():
        policy = enclavia.Policy.load(str(given("--policy", name)))
    if policy.pins is None:
        raise Problem("--policy: expected a policy with versions, got one without any")
    return {"root": policy.root, "pcrs": policy.pins}


def _judge(
    name: str,
    line: _Line,
    options: dict[str, Any],
    counts: _Counts,
    json_wanted: bool,
) -> None:
    said: dict[str, object] = {"file": name, "line": line.number}
    content = line.content
    if content is not None and _is_torn(content):
        counts.torn += 1
        said |= {"torn": True}
        told = "torn: cut off by a crash while it was written, so nothing was sent on its channel"
    else:
        try:
            receipt = _read(content)
            said |= {"receipt_id": receipt.receipt_id, "enclave": receipt.enclave}
            said |= {"verified_at": receipt.verified_at.isoformat(), "via": receipt.via}
            said |= {"version": receipt.version}
            with refusing():
                receipt.verify(**options)
        except enclavia.EnclaviaError as error:
            counts.fail += 1
            said |= {"holds": False, "error": failure_as_json(error)}
            told = f"{type(error).__name__}: {error}"
        else:
            counts.hold += 1
            said |= {"holds": True}
            told = ""
    if json_wanted:
        streams.say(json.dumps(said))
    elif told:
        streams.warn(f"{_shown(name)}:{line.number}: {told}")


def _read(content: bytes | None) -> enclavia.Receipt:
    if content is None:
        raise enclavia.ReceiptError(
            f"expected a receipt of at most {_LINE_MAX} bytes, got a longer line"
        )
    return enclavia.Receipt.from_json(content)


def _is_torn(content: bytes) -> bool:
    """Where a writer died there is the beginning of a receipt, which the next writer has ended. A
    machine that died may have left zeros in the place of what was not on the disk yet."""
    content = content.rstrip(b"\0")
    begins = _BEGINS[: len(content)] == content[: len(_BEGINS)]
    return not content or (begins and not _is_closed(content))


def _is_closed(content: bytes) -> bool:
    """Whether the object that begins here ends here too."""
    depth = 0
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*"?|[{}]', content):
        text = token[0]
        if text[:1] == b'"':
            if len(text) == 1 or not text.endswith(b'"'):
                return False
        else:
            depth += 1 if text == b"{" else -1
    return depth <= 0


def _lines(name: str, file: BinaryIO) -> Iterator[_Line]:
    """One after the other, with never more than one in memory."""
    number = 0
    while True:
        number += 1
        try:
            content = file.readline(_LINE_MAX + 1)
            if len(content) > _LINE_MAX and not content.endswith(b"\n"):
                while (rest := file.readline(_SKIPPED)) and not rest.endswith(b"\n"):
                    pass
                yield _Line(number, None)
                continue
        except OSError as error:
            raise Problem(f"expected {_FORM}, got {_shown(name)}: {error.strerror}") from None
        if not content:
            return
        if content.strip():
            yield _Line(number, content.removesuffix(b"\n"))


def _opened(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if name == "-":
        return contextlib.nullcontext(streams.stdin_bytes())
    try:
        return open(name, "rb")
    except OSError as error:
        got = f"{streams.visible(name)}: {error.strerror}" if name else "an empty name"
        raise Problem(f"expected {_FORM}, got {got}") from None


def _shown(name: str) -> str:
    return "standard input" if name == "-" else streams.visible(name)
