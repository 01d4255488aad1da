"""The tool that mutates: what it finds in a function, and what it says about its exceptions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from repository import ROOT

sys.path.insert(0, str(ROOT))

pytest.importorskip("tree_sitter_c")

from tests.mutants import c_mutants, py_mutants
from tests.mutants.__main__ import PYTHON_FUNCTIONS, PYTHON_TESTS
from tests.mutants.equivalents import Equivalents

SOURCE = """
encl_result check(const thing *t, encl_error *err) {
    ENCL_ENSURE(t->n < 4 && !t->failed, err, E, "came %zu", t->n > 9 ? 1 : 2);
    for (int i = 0; i < t->n; i++) {
        ENCL_TRY(step(t, i, err));
    }
    if (t->a == NULL || t->b) {
        t->failed = true;
    }
    return last(t, err);
}
"""


def kinds(mutants: list[c_mutants.Mutant]) -> set[tuple[str, str]]:
    return {(m.kind, m.text) for m in mutants}


def test_every_check_of_a_c_function_is_mutated() -> None:
    failing = c_mutants.failing_functions([SOURCE, "encl_code last(thing *t, encl_error *err);"])
    rewriter = c_mutants.Rewriter("a.c", failing, 1)
    text = rewriter.rewrite(SOURCE)
    assert kinds(rewriter.mutants) == {
        ("never", "t->n < 4 && !t->failed"),
        ("inverted", "t->n < 4 && !t->failed"),
        ("without", "t->n < 4"),
        ("without", "!t->failed"),
        ("boundary", "t->n < 4"),
        ("never", "i < t->n"),
        ("early", "i < t->n"),
        ("succeeds", "step(t, i, err)"),
        ("never", "t->a == NULL || t->b"),
        ("inverted", "t->a == NULL || t->b"),
        ("without", "t->a == NULL"),
        ("without", "t->b"),
        ("skipped", "t->failed = true;"),
        ("succeeds", "last(t, err)"),
    }
    assert {m.function for m in rewriter.mutants} == {"check"}
    assert [m.number for m in rewriter.mutants] == list(range(1, len(rewriter.mutants) + 1))
    assert all(f"({m.number}" in text for m in rewriter.mutants)
    c_mutants.parse(text, "a.c")


def test_what_is_no_c_is_not_passed_over() -> None:
    with pytest.raises(SystemExit, match=r"a\.c: not understood"):
        c_mutants.parse("int f( { if }", "a.c")


def test_all_that_is_to_be_mutated_in_python_is_there() -> None:
    """The files, functions and conditions, and the tests that are to notice: none of them has
    moved. The rewriter ends the program where one of a file is missing."""
    for file, chosen in PYTHON_FUNCTIONS.items():
        py_mutants.Rewriter(file, chosen, 1).rewrite((ROOT / file).read_text())
    for test in PYTHON_TESTS:
        file, _, name = test.partition("::")
        assert not name or f"def {name}(" in (ROOT / file).read_text(), test
        assert (ROOT / file).exists(), test


def test_python_is_mutated_where_asked() -> None:
    source = (
        "from __future__ import annotations\n"
        "def one(a, b):\n    if not a or b < 3:\n        return a == b\n"
        "def two(a):\n    if a:\n        return 1\n    if a is None:\n        return 2\n"
        "def three(a):\n    if a:\n        return 1\n"
    )
    rewriter = py_mutants.Rewriter("a.py", ("one", "two: a is None"), 5)
    compile(rewriter.rewrite(source), "a.py", "exec")
    assert kinds(rewriter.mutants) == {
        ("never", "not a or b < 3"),
        ("inverted", "not a or b < 3"),
        ("without", "not a"),
        ("without", "b < 3"),
        ("boundary 1", "b < 3"),
        ("true", "a == b"),
        ("inverted", "a == b"),
        ("never", "a is None"),
        ("inverted", "a is None"),
    }
    without_future = '"""A module."""\n' + source.partition("\n")[2]
    assert py_mutants.Rewriter("a.py", ("one",), 5).rewrite(without_future).startswith('"""A mo')
    with pytest.raises(SystemExit, match="has no four"):
        py_mutants.Rewriter("a.py", ("four",), 1).rewrite(source)
    with pytest.raises(SystemExit, match="has no two: b is None"):
        py_mutants.Rewriter("a.py", ("two: b is None",), 1).rewrite(source)


def test_python_is_mutated_where_a_condition_is_no_statement() -> None:
    source = (
        "from __future__ import annotations\n"
        "def one(a):\n    return [b for b in a if b > 1]\n"
        "def two(a):\n    return 1 if a else [b for b in a if b]\n"
    )
    rewriter = py_mutants.Rewriter("a.py", ("one", "two"), 1)
    compile(rewriter.rewrite(source), "a.py", "exec")
    assert kinds(rewriter.mutants) == {
        ("never", "b > 1"),
        ("inverted", "b > 1"),
        ("boundary 1", "b > 1"),
        ("never", "a"),
        ("inverted", "a"),
        ("never", "b"),
        ("inverted", "b"),
    }


def test_exceptions_that_are_none_are_reported(tmp_path: Path) -> None:
    entry = '[[equivalent]]\nfile = "a.c"\nfunctions = ["f"]\nkinds = ["never"]\ntext = "{}"\n'
    listed = tmp_path / "equivalent.toml"
    listed.write_text("".join(entry.format(t) + 'reason = "why"\n' for t in ("x", "y", "gone")))
    equivalents = Equivalents.read(listed)
    x, y, z = (c_mutants.Mutant(n, "a.c", "f", 1, "never", t) for n, t in enumerate("xyz"))
    assert x in equivalents and z not in equivalents
    assert equivalents.wrong([x, y, z], [x, y, z], {x}) == [
        "equivalent.toml names no mutant: ('a.c', 'f', 'never', 'gone')",
        "equivalent.toml: expected 1 of 1 to stay unnoticed, 0 did: ('a.c', 'f', 'never', 'y')",
    ]
    listed.write_text(entry.format("y") + 'at_times = true\nreason = "why"\n')
    for survived in ({y}, set()):
        assert Equivalents.read(listed).wrong([y], [y], survived) == []
    listed.write_text(entry.format("y") + 'alive = 1\nreason = "why"\n')
    equivalents = Equivalents.read(listed)
    twin = c_mutants.Mutant(9, "a.c", "f", 2, "never", "y")  # the same words, another place
    assert equivalents.wrong([y, twin], [y, twin], {twin}) == []
    assert equivalents.wrong([y, twin], [], set()) == []  # not asked for
    for survived in (set(), {y, twin}):
        (told,) = equivalents.wrong([y, twin], [y, twin], survived)
        assert f"expected 1 of 2 to stay unnoticed, {len(survived)} did" in told
    listed.write_text(entry.format("x") + 'reason = ""\n')
    with pytest.raises(SystemExit, match="without a reason"):
        Equivalents.read(listed)
