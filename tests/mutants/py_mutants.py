"""The same for the few decisions that Python makes: which URL, which pins.

if test: …    becomes    if (False if is_alive(7) else not test if is_alive(8) else test): …

So do the conditions of comprehensions, a condition that is returned, and the one that chooses
between two values that are returned.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from .c_mutants import Mutant

_BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_ASKS = "from tests.mutants.alive import is_alive as _mutant_is_alive"


class Rewriter(ast.NodeTransformer):
    """Of the functions named, or of one condition of theirs; the others stay as they are."""

    def __init__(self, file: str, chosen: Sequence[str], first_number: int) -> None:
        split = [name.partition(": ") for name in chosen]
        functions = {function for function, _, _ in split}
        self._only = {function: condition for function, _, condition in split if condition}
        self.mutants: list[Mutant] = []
        self._file = file
        self._functions = functions
        self._left = functions | set(self._only.items())
        self._first_number = first_number
        self._scope: list[str] = []

    def rewrite(self, source: str) -> str:
        tree = self.visit(ast.parse(source))
        if self._left:
            left = sorted(
                ": ".join(each) if isinstance(each, tuple) else each for each in self._left
            )
            raise SystemExit(f"{self._file} has no {', '.join(left)}")
        # Behind the imports from __future__, or behind the docstring where there are none.
        future = (i for i, node in enumerate(tree.body) if _is_from_future(node))
        at = 1 + max(future, default=0)
        tree.body.insert(at, ast.parse(_ASKS).body[0])
        return ast.unparse(ast.fix_missing_locations(tree))

    @property
    def _function(self) -> str:
        return ".".join(self._scope)

    def _in_scope(self, node: Any) -> Any:
        self._scope.append(node.name)
        self._left.discard(self._function)
        self.generic_visit(node)
        self._scope.pop()
        return node

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _in_scope

    def _checked(self, kind: str, constant: bool) -> Callable[[ast.expr], ast.expr]:
        def change(node: ast.expr) -> ast.expr:
            inverted = ast.UnaryOp(ast.Not(), node)
            changed = self._parts(node)
            changed = self._choice("inverted", node, inverted, changed)
            return self._choice(kind, node, ast.Constant(constant), changed)

        return change

    def _is_chosen(self, test: ast.expr) -> bool:
        text = ast.unparse(test)
        self._left.discard((self._function, text))
        return self._function in self._functions and text == self._only.get(self._function, text)

    def visit_If(self, node: ast.If) -> ast.If:
        if self._is_chosen(node.test):
            node.test = self._checked("never", False)(node.test)
        self.generic_visit(node)
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        never = self._checked("never", False)
        node.ifs = [never(test) if self._is_chosen(test) else test for test in node.ifs]
        return node

    def visit_Return(self, node: ast.Return) -> ast.Return:
        self.generic_visit(node)
        value = node.value
        if isinstance(value, ast.IfExp) and self._is_chosen(value.test):
            value.test = self._checked("never", False)(value.test)
        elif value is not None and _is_boolean(value) and self._is_chosen(value):
            node.value = self._checked("true", True)(value)
        return node

    def _parts(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.BoolOp):
            neutral = ast.Constant(isinstance(node.op, ast.And))
            values = [self._choice("without", v, neutral, self._parts(v)) for v in node.values]
            return ast.BoolOp(node.op, values)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ast.UnaryOp(node.op, self._parts(node.operand))
        kept = node
        for i, operator in enumerate(node.ops if isinstance(node, ast.Compare) else ()):
            assert isinstance(node, ast.Compare)
            if type(operator) in _BOUNDARY:
                other = list(node.ops)
                other[i] = _BOUNDARY[type(operator)]()
                moved = ast.Compare(node.left, other, node.comparators)
                kept = self._choice(f"boundary {i + 1}", node, moved, kept)
        return kept

    def _choice(self, kind: str, node: ast.expr, changed: ast.expr, kept: ast.expr) -> ast.expr:
        number = self._first_number + len(self.mutants)
        text = ast.unparse(node)
        self.mutants.append(Mutant(number, self._file, self._function, node.lineno, kind, text))
        alive = ast.Call(ast.Name("_mutant_is_alive", ast.Load()), [ast.Constant(number)], [])
        return ast.IfExp(alive, changed, kept)


def _is_from_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_boolean(node: ast.expr) -> bool:
    return isinstance(node, ast.BoolOp | ast.Compare) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )
