"""Log records have fields that programs can rely on, and docs/observability.md has all of them."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from repository import ROOT
from support import Connection, Face, answering, byte_enclave, keywords, ok, with_client

import enclavia
from enclavia._records import FIELDS
from enclavia.testing import Fault, LocalEnclave

METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
PAGE = (ROOT / "docs" / "observability.md").read_text()


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a logger of the package."""
    for path in sorted((ROOT / "enclavia").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in METHODS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_logger_has_the_name_that_is_looked_for() -> None:
    """One of another name would write records without fields, and no test would see them."""
    names = {
        name
        for path in (ROOT / "enclavia").rglob("*.py")
        for name in re.findall(
            r"""(\w+)(?:: \w+)? = logging\.getLogger\(["']enclavia""", path.read_text()
        )
    }
    assert names == {"logger"}


def events_of(call: ast.Call) -> set[str]:
    extra = next((each.value for each in call.keywords if each.arg == "extra"), None)
    assert isinstance(extra, ast.Call), "expected extra=fields(…)"
    assert isinstance(extra.func, ast.Name)
    assert extra.func.id == "fields"
    first = extra.args[0]
    named = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
    return {each.value for each in named if isinstance(each, ast.Constant)}


def test_every_record_has_a_documented_event() -> None:
    table = PAGE.partition("| events |")[2].partition("\n\n")[0]
    documented = set(re.findall(r"`([a-z_]+)`", "\n".join(
        row.split("|")[1] for row in table.splitlines() if row.startswith("|")
    )))  # fmt: skip
    used: set[str] = set()
    for where, call in calls():
        events = events_of(call)
        assert events, f"{where}: expected the name of an event"
        used |= events
    assert len(used) > 15
    assert used == documented


def test_every_field_is_documented() -> None:
    table = PAGE.partition("| field |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(FIELDS)


def fields_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        {name: getattr(record, name) for name in FIELDS}
        for record in caplog.records
        if record.name == "enclavia"
    ]


def test_records_of_connecting_and_of_sending_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "enclavia")

    def script(connection: Connection) -> None:
        if connection.number:
            answering(ok())(connection)
        connection.request()

    with byte_enclave(script) as (enclave, _):
        authority = enclave.url.partition("//")[2].strip("/")

        async def case(face: Face) -> None:
            assert (await face.get("/")).text == "ok"

        with_client("sync", enclave, case)
    *rows, again = [tuple(each.values()) for each in fields_of(caplog)]
    assert rows == [("connecting", authority, None, None), ("verified", authority, None, None)]
    assert again[:3] == ("request_sent_again", authority, 2)
    assert again[3] in ("IncompleteResponse", "ServerError")


def test_records_of_attempts_to_connect(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "enclavia")
    with LocalEnclave("127.0.0.1:9") as enclave:
        enclave.set_faults(Fault.SHORT_HANDSHAKE)
        with pytest.raises(enclavia.EnclaviaError):
            enclavia.Client.connect(enclave.url, **keywords(enclave, timeout=1, patience=0))
    failed = [each for each in fields_of(caplog) if each["event"] == "connect_failed"]
    assert failed[0]["attempt"] == 1
    assert failed[0]["error_class"] in dir(enclavia)
