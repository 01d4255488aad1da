"""``receipts verify`` and ``--receipts``, run as programs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import enclave_peer
import pytest
from command_line import CANNOT_WRITE, OK, REFUSED, USAGE, cli, ended, environment, started
from enclave_peer import PCRS
from receipts_made import OTHER, changed, made
from support import HANG, eventually

from enclavia import Receipt, Receipts
from enclavia.testing._pki import mint

if TYPE_CHECKING:
    from conftest import Place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("receipts")
    (folder / "root.pem").write_bytes(enclave_peer.root())
    (folder / "pcrs.json").write_text(json.dumps(PCRS.as_dict()))
    (folder / "other.json").write_text(json.dumps(OTHER.as_dict()))
    return folder


@pytest.fixture(scope="module")
def receipt() -> Receipt:
    return made()


def verify(folder: Path, *arguments: str, **options: Any) -> Any:
    return cli("receipts", "verify", *arguments, "--root", "root.pem", cwd=folder, **options)


def test_all_hold(folder: Path, receipt: Receipt) -> None:
    (folder / "two").write_text(f"{receipt}\n{made(reason='fresh')}\n")
    assert verify(folder, "two").expect(OK).text == "2 receipts hold\n"
    assert verify(folder, "two", "two").expect(OK).text == "4 receipts hold\n"
    assert verify(folder, "-", given=f"{receipt}".encode()).expect(OK).text == "1 receipt holds\n"
    verify(folder, "two", "--pcrs", "pcrs.json").expect(OK)
    assert verify(folder, "two", "--pcrs", "other.json").expect(REFUSED, "PcrMismatch: ").text == (
        "0 receipts hold, 2 do not\n"
    )
    verify(folder, "two", "--pcrs", "pcrs.json", "--pcrs", "other.json").expect(OK)
    cli("receipts", "verify", "two", cwd=folder).expect(REFUSED, "ReceiptError: ", "of the root")


def test_what_comes_late_on_standard_input_is_verified_too(folder: Path, receipt: Receipt) -> None:
    """Where the pipe does not wait: that nothing is there yet is no end."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    arguments = ("receipts", "verify", "-", "--root", "root.pem")
    process = started(*arguments, cwd=folder, stdin=ours)
    with open(theirs, "wb", buffering=0) as file:
        for line in (f"{receipt}\n", "no receipt\n"):
            file.write(line.encode())
            eventually(lambda: not select.select([ours], [], [], 0)[0])  # the program has read it
    os.close(ours)
    assert ended(process).expect(REFUSED, "standard input:2").text == (
        "1 receipt holds, 1 does not\n"
    )


def test_a_policy_says_what_a_version_is_called(folder: Path) -> None:
    names = {"names": [(PCRS.as_tuple(), "2027-01")]}
    (folder / "named").write_text(f"{made(**names)}\n{made()}\n")

    def judged(*versions: dict[str, object], root: str | None = "root.pem") -> Any:
        said: dict[str, object] = {"format": 1, "versions": versions}
        said |= {} if root is None else {"root": root}
        (folder / "policy.json").write_text(json.dumps(said))
        return cli("receipts", "verify", "named", "--policy", "policy.json", cwd=folder)

    other = {"name": "other", "pcrs": OTHER.as_dict()}
    right = {"name": "2027-01", "pcrs": PCRS.as_dict()}
    assert judged(other, right).expect(OK).text == "2 receipts hold\n"
    # One of them says another name than the policy; the other says none.
    told = judged({**right, "name": "2026-12"}).expect(REFUSED, "named:1: ReceiptError: version: ")
    assert told.text == "1 receipt holds, 1 does not\n"
    judged(other).expect(REFUSED, "named:1: PcrMismatch", "named:2: PcrMismatch")
    judged({**right, "not_after": "2026-01-01T00:00:00Z"}).expect(REFUSED, "allowed a version")
    judged(right, root=None).expect(REFUSED, "of the root")
    judged().expect(USAGE, "at least one")
    for beside in (("--root", "root.pem"), ("--pcrs", "pcrs.json")):
        both = ("receipts", "verify", "named", "--policy", "policy.json", *beside)
        cli(*both, cwd=folder).expect(USAGE, f"expected --policy or {beside[0]}, got both")
    shown = verify(folder, "named", "--json").expect(OK).text.splitlines()
    assert [json.loads(line)["version"] for line in shown] == ["2027-01", None]


def test_years_later(folder: Path) -> None:
    long_ago = datetime(2021, 5, 4, 3, 2, 1, tzinfo=UTC)
    pki = mint(long_ago)
    (folder / "old").write_text(f"{made(at=long_ago, pki=pki)}\n")
    (folder / "old.pem").write_bytes(pki.root_pem)
    told = cli("receipts", "verify", "old", "--root", "old.pem", cwd=folder).expect(OK)
    assert told.text == "1 receipt holds\n"


def test_each_line_that_does_not_hold_is_named(folder: Path, receipt: Receipt) -> None:
    lines = [
        str(receipt),
        changed(receipt, pins=[OTHER.as_dict()]),
        "",
        changed(receipt, handshake_hash="00" * 32),
        str(receipt).replace("connect", "fresh"),
        "no receipt",
        str(receipt),
        '{"schema":"enclavia-receipt-9"}',
    ]
    (folder / "mixed").write_text("\n".join(lines))
    told = verify(folder, "mixed").expect(
        REFUSED,
        "mixed:2: PcrMismatch: ",
        "mixed:4: NonceMismatch: ",
        "mixed:5: ReceiptError: expected the receipt_id",
        "mixed:6: ReceiptError: ",
        "mixed:8: ReceiptError: ",
    )
    assert len(told.err.splitlines()) == 5
    assert told.text == "2 receipts hold, 5 do not\n"


def test_as_json(folder: Path, receipt: Receipt) -> None:
    torn = str(receipt)[:700]
    (folder / "some").write_text(f"{receipt}\n{torn}\n{changed(receipt, form='debug')}\n")
    told = verify(folder, "some", "--json").expect(REFUSED)
    first, second, third = map(json.loads, told.text.splitlines())
    assert first == {
        "file": "some", "line": 1, "receipt_id": receipt.receipt_id, "holds": True,
        "enclave": receipt.enclave, "via": None, "verified_at": receipt.as_dict()["verified_at"],
        "version": None,
    }  # fmt: skip
    assert second == {"file": "some", "line": 2, "torn": True}
    assert third["holds"] is False
    assert third["error"]["type"] == "ReceiptError"
    assert told.err == ""


def test_every_cut_of_a_receipt_is_torn(folder: Path, receipt: Receipt) -> None:
    """Wherever a writer died, and whether or not another one has come after it."""
    line = str(receipt).encode()
    cuts = [*range(1, 60), *range(60, len(line), 211), len(line) - 2, len(line) - 1]
    (folder / "cut").write_bytes(b"".join(line[:end] + b"\n" for end in cuts) + line + b"\n")
    told = verify(folder, "cut").expect(OK, "cut:1: torn")
    assert told.text == f"1 receipt holds; {len(cuts)} torn lines\n"
    for tail in (line[:1], line[:500], line[:-1], b"\0" * 100, line[:500] + b"\0" * 40):
        (folder / "cut").write_bytes(line + b"\n" + tail)
        told = verify(folder, "cut").expect(OK, "cut:2: torn")
        assert told.text == "1 receipt holds; 1 torn line\n"


def test_what_is_cut_out_is_not_torn(folder: Path, receipt: Receipt) -> None:
    line = str(receipt)
    for damaged in (line[5:], line[:100] + line[200:], line.replace('"via":null,', ""), "x"):
        (folder / "damaged").write_text(f"{line}\n{damaged}\n")
        verify(folder, "damaged").expect(REFUSED, "damaged:2: ReceiptError")


def test_what_another_writer_has_ended(folder: Path, receipt: Receipt) -> None:
    file = Receipts(folder / "appended")
    file.path.write_bytes(str(receipt).encode()[:1000])
    file.append(receipt)
    told = verify(folder, "appended").expect(OK, "appended:1: torn")
    assert told.text == "1 receipt holds; 1 torn line\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], "absent: No such file"),
        (["."], "Is a directory"),
        ([""], "an empty name"),
        (["empty"], "without any"),
        (["two", "empty"], "without any"),
        (["-", "-"], "standard input once"),
        (["-", "--pcrs", "-"], "standard input once"),
        ([], "FILE"),
        (["two", "--pcrs", "absent"], "absent"),
    ],
)
def test_wrong_use(folder: Path, receipt: Receipt, arguments: list[str], words: str) -> None:
    (folder / "empty").write_text("\n\n")
    (folder / "two").write_text(f"{receipt}\n{receipt}\n")
    verify(folder, *arguments).expect(USAGE, words)


def test_a_bad_root(folder: Path, receipt: Receipt) -> None:
    (folder / "one").write_text(f"{receipt}\n")
    for root in ("absent", "one", ""):
        cli("receipts", "verify", "one", "--root", root, cwd=folder).expect(USAGE)


def test_memory_is_that_of_one_line(folder: Path, receipt: Receipt) -> None:
    """Of a line of any length, too."""
    with (folder / "large").open("wb") as file:
        file.write(f"{receipt}\n".encode())
        for _ in range(64):
            file.write(b"x" * (4 * 1024 * 1024))
        file.write(f"\n{receipt}\n".encode())
    limit = (
        "import resource, sys, runpy;"
        "import enclavia, click, enclavia._cli.receipts;"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 48 * 2**20,) * 2);"
        "sys.argv = ['enclavia-client', *sys.argv[1:]];"
        "from enclavia.__main__ import main; sys.exit(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", limit, "receipts", "verify", "large", "--root", "root.pem"],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    (folder / "large").unlink()
    assert ended.returncode == REFUSED, ended.stderr
    assert "large:2: ReceiptError: expected a receipt of at most" in ended.stderr
    assert ended.stdout == "2 receipts hold, 1 does not\n"


# ---------------------------------------------------------------------------------------------
# --receipts


def test_commands_append(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "receipts.jsonl"
    cli("verify", place.url(""), *place.pins, "--receipts", file).expect(OK)
    cli("get", place.url("/"), *place.pins, "--receipts", file).expect(OK)
    found = [Receipt.from_json(line) for line in file.read_bytes().splitlines()]
    assert len({receipt.handshake_hash for receipt in found}) == 2
    assert oct(file.stat().st_mode & 0o777) == "0o600"
    cli("receipts", "verify", file, *place.root).expect(OK)
    cli("get", place.url("/"), *place.other, "--receipts", file).expect(REFUSED)
    assert len(file.read_bytes().splitlines()) == 2


def test_where_it_cannot_be_written_nothing_is_sent(place: Place, tmp_path: Path) -> None:
    for name in (tmp_path / "absent" / "file", tmp_path):
        cli("get", place.url("/"), *place.pins, "--receipts", name).expect(
            CANNOT_WRITE, "AttestationRefused"
        )
    cli("get", place.url("/"), *place.pins, "--receipts", "-").expect(USAGE, "--receipts")
    cli("get", place.url("/"), *place.pins, "--receipts", "").expect(USAGE, "--receipts")
    place.expect_untouched()
    assert os.listdir(tmp_path) == []
