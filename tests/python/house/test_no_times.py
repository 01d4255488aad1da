"""No test asserts that something was quick: on a loaded machine nothing is.

What has to end by its own deadline is told from what does not by how it ends: the workload hangs up
later (``support.GIVES_UP``), or something else happens then (``support.unless_ended``).
"""

from __future__ import annotations

import ast

import pytest
from repository import TESTS

CLOCKS = {"monotonic", "perf_counter", "time"}


def reads_a_clock(node: ast.AST) -> bool:
    calls = (found for found in ast.walk(node) if isinstance(found, ast.Call))
    return any(
        isinstance(call.func, ast.Attribute)
        and call.func.attr in CLOCKS
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "time"
        for call in calls
    )


def asserted_times(source: str) -> list[int]:
    """The lines that assert an upper bound of time that passed: ``time.monotonic() - a < b``, also
    by way of a name. That a deadline of a loop has not passed is none: such loops wait."""
    tree = ast.parse(source)
    taken = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and elapsed(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assert) or not isinstance(node.test, ast.Compare):
            continue
        left = node.test.left
        for operator, right in zip(node.test.ops, node.test.comparators, strict=True):
            small, large = (
                (left, right) if isinstance(operator, ast.Lt | ast.LtE) else (right, left)
            )
            by_name = isinstance(small, ast.Name) and small.id in taken
            if not isinstance(large, ast.Call) and (by_name or elapsed(small)):
                lines.append(node.lineno)
            left = right
    return lines


def elapsed(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and reads_a_clock(node)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("assert time.monotonic() - started < 2", True),
        ("assert 0.1 < time.monotonic() - started <= 2", True),
        ("assert 2 > time.perf_counter() - started", True),
        ("took = time.monotonic() - started\nassert took < 2", True),
        ("assert time.monotonic() - started >= 0.1", False),
        ("assert time.monotonic() < deadline", False),
        ("assert len(took) < 2", False),
    ],
)
def test_what_is_found(line: str, found: bool) -> None:
    assert bool(asserted_times(line)) is found


def test_no_time_is_asserted() -> None:
    found = {
        f"{path.relative_to(TESTS)}:{line}"
        for folder in ("python", "support", "faults", "interop")
        for path in sorted((TESTS / folder).rglob("*.py"))
        for line in asserted_times(path.read_text())
    }
    assert found <= ALLOWED, f"assert how it ends, not how long it takes: {found - ALLOWED}"


ALLOWED: set[str] = set()
