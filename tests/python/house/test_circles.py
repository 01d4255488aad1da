"""No circle among files: in a folder of csrc by the functions they name, in enclavia by imports.

A file of C stands here together with the header of its own name. It leads to another file of its
folder where it names one of that file's functions: in a call, as a pointer, in a table, or by a
macro whose text does.
"""

from __future__ import annotations

import ast
import re
from collections import deque
from pathlib import Path

import pytest
from repository import ROOT

Graph = dict[str, dict[str, str]]  # who leads to whom, and by what name

KEYWORDS = {"if", "for", "while", "switch", "return", "sizeof", "do", "else"}


def circle(graph: Graph) -> list[str]:
    """The shortest circle as "a -(name)-> b" steps, or nothing."""
    best: list[str] = []
    for start in graph:
        came_from: dict[str, str] = {}
        queue = deque([start])
        while queue and start not in came_from:
            at = queue.popleft()
            for other in graph.get(at, {}):
                if other not in came_from:
                    came_from[other] = at
                    queue.append(other)
        if start in came_from:
            steps: list[str] = []
            at = start
            while not steps or at != start:
                before = came_from[at]
                steps.insert(0, f"{before} -({graph[before][at]})-> {at}")
                at = before
            if not best or len(steps) < len(best):
                best = steps
    return best


# ---- C


def code_of(text: str) -> str:
    """Without comments and the contents of literals; lines that go on are joined."""
    text = re.sub(r"\\\n", " ", text)
    literal = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    return re.sub(literal, lambda m: "0" if m[0][0] in "\"'" else " ", text, flags=re.DOTALL)


def names_in(text: str) -> set[str]:
    """Identifiers, members left out."""
    return set(re.findall(r"(?<![\w.>])(?<!->)[A-Za-z_]\w*", text)) - KEYWORDS


def macros_in(code: str) -> dict[str, set[str]]:
    found = re.findall(
        r"^[ \t]*#[ \t]*define[ \t]+(\w+)(?:\([^)\n]*\))?([^\n]*)", code, re.MULTILINE
    )
    return {name: names_in(body) for name, body in found}


def top_level(code: str) -> list[tuple[str, str]]:
    """For each definition or declaration: what stands before the first brace, and in braces."""
    found, head, body, depth = [], "", "", 0
    for part in re.split(r"([{};])", re.sub(r"^[ \t]*#[^\n]*", "", code, flags=re.MULTILINE)):
        if part == "{":
            depth += 1
        elif part == "}":
            depth -= 1
        if depth > 0 or part == "}":
            body += part
        elif part != ";":
            head = head + " " + part if body == "" or "=" in head else part
        if depth == 0 and (part == ";" or (part == "}" and is_function(head))):
            found.append((head, body))
            head, body = "", ""
    return found


def is_function(head: str) -> bool:
    """It ends with its arguments, or with attributes behind them."""
    return "=" not in head and re.search(r"\)\s*(?:[A-Z][A-Z0-9_]*\s*)*$", head) is not None


def defined(head: str) -> str:
    """The first name before a parenthesis that is not an attribute's."""
    for name in re.findall(r"(\w+)\s*\(", head):
        if name != "__attribute__" and not name.isupper() and name not in KEYWORDS:
            return str(name)
    return ""


class Source:
    """What one file of C defines and names."""

    def __init__(self, path: Path) -> None:
        code = code_of(path.read_text())
        self.macros = macros_in(code)
        self.own: set[str] = set()
        self.shared: set[str] = set()
        self.named: set[str] = set()
        for head, body in top_level(code):
            if body and is_function(head):
                # What a header defines is for those who include it, static or not.
                hidden = re.search(r"\bstatic\b", head) and path.suffix == ".c"
                (self.own if hidden else self.shared).add(defined(head))
                self.named |= names_in(body)
            elif "=" in head:
                self.named |= names_in(head.partition("=")[2]) | names_in(body)


def expanded(names: set[str], macros: dict[str, set[str]]) -> set[str]:
    done: set[str] = set()
    todo = set(names)
    while todo:
        name = todo.pop()
        done.add(name)
        todo |= macros.get(name, set()) - done
    return done


def c_graph(folder: Path, everywhere: Path) -> Graph:
    macros: dict[str, set[str]] = {}
    for path in everywhere.glob("*/*.[ch]"):
        macros.update(Source(path).macros)
    sources = [(path.stem, Source(path)) for path in sorted(folder.glob("*.[ch]"))]
    owners = {name: stem for stem, source in sources for name in source.shared}
    graph: Graph = {stem: {} for stem, _ in sources}
    for stem, source in sources:
        for name in sorted(expanded(source.named, macros) - source.own):
            if owners.get(name, stem) != stem:
                graph[stem].setdefault(owners[name], name)
    return graph


FOLDERS = sorted(path.name for path in (ROOT / "csrc").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_of_c_without_a_circle(folder: str) -> None:
    found = circle(c_graph(ROOT / "csrc" / folder, ROOT / "csrc"))
    assert not found, f"csrc/{folder}: " + "; ".join(found)


@pytest.mark.parametrize(
    ("up", "name"),
    [
        ("void low(void) { high(1); }", "high"),
        ("typedef void (*f)(int);\nvoid low(void) { f g = high; g(1); }", "high"),
        (
            "static const struct t all = {\n    .act = high,\n};\nvoid low(void) { use(&all); }",
            "high",
        ),
        ("static void (*const act)(int) = high;\nvoid low(void) { act(1); }", "high"),
        ("#define UP(n) \\\n    high(n)\nvoid low(void) { UP(1); }", "high"),
        (
            "ENCL_HAS(lock) static int own(int a) { return a; }\nvoid low(void) { high(own(1)); }",
            "high",
        ),
    ],
    ids=["call", "pointer", "table", "variable", "macro", "annotated"],
)
def test_a_circle_is_found_and_named(tmp_path: Path, up: str, name: str) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "internal.h").write_text(
        "void low(void);\nvoid high(int a);\nstruct s {\n    int high;\n};\n"
    )
    (room / "a.c").write_text(
        "/* high() stands above */\nvoid high(int a) {\n    if (a) {\n        low();\n    }\n}\n"
    )
    (room / "b.c").write_text(up + "\n")
    assert circle(c_graph(room, tmp_path)) == ["a -(low)-> b", f"b -({name})-> a"]


@pytest.mark.parametrize(
    "low",
    [
        "void low(void) { /* high(1) */ }",
        'void low(void) { say("high(1)"); }',
        "void low(void) { it->high = 1; it.high(2); }",
        "static void high(int a) { use(a); }\nvoid low(void) { high(1); }",
        "void high(int a);\nvoid low(void) { }",
    ],
    ids=["comment", "text", "member", "its own", "declared"],
)
def test_what_only_looks_like_a_circle_is_none(tmp_path: Path, low: str) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "a.c").write_text("void high(int a) {\n    low();\n}\n")
    (room / "b.c").write_text(low + "\n")
    assert circle(c_graph(room, tmp_path)) == []


def test_a_circle_through_an_inline_function_and_three_files(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "a.c").write_text("void one(void) {\n    two();\n}\n")
    (room / "b.h").write_text("static inline void two(void) {\n    three();\n}\n")
    (room / "c.c").write_text("void three(void) {\n    one();\n}\n")
    assert circle(c_graph(room, tmp_path)) == ["a -(two)-> b", "b -(three)-> c", "c -(one)-> a"]


def test_every_function_of_this_project_is_seen() -> None:
    """The reader of definitions, against declarations in headers that every folder has."""
    for folder in FOLDERS:
        paths = sorted((ROOT / "csrc" / folder).glob("*.[ch]"))
        shared = set().union(*(Source(path).shared for path in paths))
        declared = {
            defined(head)
            for path in paths
            if path.suffix == ".h"
            for head, body in top_level(code_of(path.read_text()))
            if not body and "typedef" not in head and re.search(r"\w\s+\**\w+\s*\(", head)
        }
        assert declared - {""} <= shared, (
            f"csrc/{folder}: declared and not found: {declared - shared}"
        )


# ---- Python


def modules(package: Path) -> dict[str, Path]:
    """Dotted names; a package's own file stands under the package's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(node: ast.AST, name: str, is_package: bool) -> list[str]:
    """The absolute names that an import may bring in, the longest first."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parts = name.split(".") + (["__init__"] if is_package else [])
    base = parts[: len(parts) - node.level] if node.level else []
    module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
    return [f"{module}.{alias.name}" for alias in node.names]


def python_graph(package: Path) -> Graph:
    known = modules(package)
    compiled = {f"{package.name}.{path.stem}" for path in package.glob("*.pyi")}
    graph: Graph = {}
    for name, path in known.items():
        graph[name] = {}
        for node in ast.walk(ast.parse(path.read_text())):
            for target in imported(node, name, path.name == "__init__.py"):
                owner = target
                while owner and owner not in known and owner not in compiled:
                    owner = owner.rpartition(".")[0]
                if owner and owner != name:
                    graph[name].setdefault(owner, target)
    return graph


def test_modules_of_python_without_a_circle() -> None:
    found = circle(python_graph(ROOT / "enclavia"))
    assert not found, "; ".join(found)


@pytest.mark.parametrize(
    "up",
    [
        "from ._a import high",
        "from . import _a",
        "import p._a",
        "from p._a import high",
        "def f():\n    from p import _a",
    ],
)
def test_a_circle_of_imports_is_found_and_named(tmp_path: Path, up: str) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("from ._a import high\n")
    (package / "_a.py").write_text("from ._b import low\n")
    (package / "_b.py").write_text(up + "\n")
    found = circle(python_graph(package))
    assert [step.split(" -(")[0] for step in found] == ["p._a", "p._b"]


def test_a_circle_of_imports_between_packages(tmp_path: Path) -> None:
    package = tmp_path / "p"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("from .sub import low\n")
    (package / "sub" / "__init__.py").write_text("from .x import low\n")
    (package / "sub" / "x.py").write_text("from .._a import high\n")
    (package / "_a.py").write_text("from p import _core\n")
    (package / "_core.pyi").write_text("")
    assert circle(python_graph(package)) == []
    (package / "_a.py").write_text("from .sub import low\n")
    assert circle(python_graph(package)) == [
        "p._a -(p.sub.low)-> p.sub",
        "p.sub -(p.sub.x.low)-> p.sub.x",
        "p.sub.x -(p._a.high)-> p._a",
    ]
