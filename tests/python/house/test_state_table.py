"""The session's states in docs/architecture.md are those of the code."""

from __future__ import annotations

import pytest
from state_table import PAGE, SOURCE, bodies, in_page, row, rows, table


def test_the_page_says_what_the_code_does() -> None:
    assert in_page(PAGE.read_text()) == table(), (
        "docs/architecture.md differs from csrc/session/session.c: "
        "run `python tests/support/state_table.py --write`"
    )


def test_only_a_verified_document_opens_an_initiator() -> None:
    opening = [(each.state, each.takes) for each in rows() if each.role == "initiator"]
    assert [state for state, takes in opening if takes == "`Attestation`"] == ["ATTESTING"]
    assert [each.state for each in rows() if "→ OPEN" in each.leads_to] == [
        "HANDSHAKE",  # the responder's
        "ATTESTING",
    ]


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("[ENCL_MSG_DATA] = on_answer,", "", "takes"),
        ("s->state = ENCL_SESSION_OPEN;", "", "leads_to"),
    ],
)
def test_a_changed_state_machine_changes_the_table(old: str, new: str, changed: str) -> None:
    source = SOURCE.read_text()
    assert old in source
    source = source.replace(old, new)
    functions = bodies(source)
    state = "OPEN" if changed == "takes" else "ATTESTING"
    before = next(each for each in rows() if (each.role, each.state) == ("initiator", state))
    after = row(source, functions, "initiator", state, "step_record")
    assert getattr(after, changed) != getattr(before, changed)
