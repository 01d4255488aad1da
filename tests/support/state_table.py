"""The table of the session's states in docs/architecture.md, made from csrc/session/session.c.

``python tests/support/state_table.py`` prints the table; ``--write`` puts it into the page. The
test ``test_state_table.py`` fails where the page says something else than the code.

What is read of the code: the table of steps (what a state does with bytes), the tables of
handlers (which message a state takes, and who takes it), and every assignment to ``state`` in a
function that such a step or handler reaches.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from repository import ROOT

SOURCE = ROOT / "csrc" / "session" / "session.c"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- made by tests/support/state_table.py: begin -->\n"
END = "<!-- made by tests/support/state_table.py: end -->\n"

# Which table of handlers a role uses in a state: the choice that handlers_of() makes.
HANDLERS = {
    ("initiator", "ATTESTING"): "initiator_attesting",
    ("initiator", "OPEN"): "initiator_open",
    ("responder", "OPEN"): "responder_open",
}
# What leads from one state to another without a step of the table: a call of the user.
STARTED = ("initiator", "NEW", "encl_session_start")

_FUNCTION = re.compile(
    r"^(?:static )?[\w ]+[ *](?P<name>\w+)\([^;{]*\) \{\n(?P<body>.*?)^\}", re.MULTILINE | re.DOTALL
)
_ENTRY = re.compile(r"\[ENCL_(?:SESSION|MSG)_(\w+)\] = (\w+)")
_STATE_SET = re.compile(r"->state = ENCL_SESSION_(\w+);")


class Row(NamedTuple):
    state: str
    role: str
    takes: str
    leads_to: str


def bodies(source: str) -> dict[str, str]:
    return {match["name"]: match["body"] for match in _FUNCTION.finditer(source)}


def entries(source: str, table: str) -> dict[str, str]:
    found = re.search(rf"\b{table}\[[^\]]*\] = \{{(.*?)\}};", source, re.DOTALL)
    if found is None:
        raise LookupError(f"expected a table {table} in {SOURCE.name}, got none")
    return dict(_ENTRY.findall(found[1]))


def reached(functions: dict[str, str], name: str, seen: set[str]) -> Iterator[str]:
    """The function and all of this file that it calls; a failure's way to CLOSED is left out,
    because every state has it."""
    if name in seen or name not in functions or name == "encl_session_close":
        return
    seen.add(name)
    yield functions[name]
    for called in re.findall(r"\b(\w+)\(", functions[name]):
        yield from reached(functions, called, seen)


def leads_to(functions: dict[str, str], name: str) -> list[str]:
    states: list[str] = []
    for body in reached(functions, name, set()):
        states += [state for state in _STATE_SET.findall(body) if state not in states]
    return states


def spelled(message: str) -> str:
    return "`" + message.title().replace("_", "") + "`"


def of_role(role: str, states: list[str]) -> list[str]:
    """One function does the handshake of both roles: only the initiator attests, and only the
    responder opens right after the handshake."""
    other = {"initiator": "OPEN", "responder": "ATTESTING"}[role]
    return [state for state in states if state != other]


def row(source: str, functions: dict[str, str], role: str, state: str, step: str) -> Row:
    if step == "step_refused":
        if (role, state) == STARTED[:2]:
            return Row(state, role, "nothing", f"start → {leads_to(functions, STARTED[2])[0]}")
        return Row(state, role, "nothing", "nothing" if state == "CLOSED" else "")
    if step == "step_handshake":
        arrives = {"initiator": "the answer to the handshake", "responder": "the first message"}[
            role
        ]
        after = of_role(role, leads_to(functions, step))
        return Row(state, role, arrives, f"→ {', '.join(after)}")
    messages = entries(source, HANDLERS[role, state])
    steps = [
        f"{spelled(message)} → {after[0]}"
        for message, handler in messages.items()
        if (after := leads_to(functions, handler))
    ]
    return Row(state, role, ", ".join(map(spelled, messages)), "; ".join(steps) or "the same state")


def rows() -> list[Row]:
    source = SOURCE.read_text()
    functions = bodies(source)
    found = []
    for state, step in entries(source, "steps").items():
        for role in ("initiator", "responder"):
            # A responder begins in HANDSHAKE and attests nobody; CLOSED is the same for both.
            if role == "responder" and state in ("NEW", "ATTESTING", "CLOSED"):
                continue
            found.append(row(source, functions, role, state, step))
    return found


def table() -> str:
    lines = ["| state | role | what may arrive | what it leads to |", "| --- | --- | --- | --- |"]
    for each in rows():
        role = "both" if each.state == "CLOSED" else each.role
        lines.append(f"| {each.state} | {role} | {each.takes} | {each.leads_to} |")
    return "\n".join(lines) + "\n"


def in_page(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    if "--write" in sys.argv[1:]:
        text = PAGE.read_text()
        PAGE.write_text(text.replace(BEGIN + in_page(text) + END, BEGIN + table() + END))
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
