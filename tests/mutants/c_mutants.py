"""One C source rewritten so that all of its mutants are compiled at once.

An expression with mutants becomes a choice by the number of the one that is alive (mutant.h):

    if (a < b) …    becomes    if (encl_other(7, 0, encl_other(8, a <= b, a < b))) …
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import tree_sitter_c
from tree_sitter import Language, Node, Parser

PARSER = Parser(Language(tree_sitter_c.language()))

FAILING_TYPES = ("encl_result", "encl_code")
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
BOUNDARY = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
NEUTRAL = {"&&": "1", "||": "0"}

# What these are given only words an error message.
TEXT_MAKERS = frozenset(("encl_fail", "snprintf", "encl_error_prefix", "_Static_assert"))
# And these do nothing else, or exist for tests: to play a hostile server, to meet attack vectors.
LEFT_ALONE = frozenset(
    (
        "encl_session_state_name",
        "advice",
        "aead_once",
        "agreeing",
        "encl_app_raw",
        "encl_hint_add",
        "encl_noise_aead_open",
        "encl_noise_aead_seal",
        "encl_record_seal_raw",
        "certificate_in",
        "has_another_root",
        "hex",
        "is_debug_document",
        "is_self_issued",
        "pcr_advice",
        "pcr_failure",
        "refuse_message",
        "say_what_was_awaited",
        "say_what_was_lost",
        "set_label",
        "time_text",
    )
)


@dataclass(frozen=True)
class Mutant:
    number: int
    file: str
    function: str
    line: int
    kind: str
    text: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names it in equivalent.toml; lines move, these do not."""
        return self.file, self.function, self.kind, self.text

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.kind}: {self.text}"


def of(node: Node | None) -> str:
    assert node is not None and node.text is not None
    return node.text.decode()


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def parse(source: str, file: str) -> Node:
    root = PARSER.parse(source.encode()).root_node
    if root.has_error:
        raise SystemExit(f"{file}: not understood by tree-sitter's grammar for C")
    return root


def failing_functions(texts: Iterable[str]) -> frozenset[str]:
    """The names of functions declared there whose result says whether they failed."""
    declared = rf"\b(?:{'|'.join(FAILING_TYPES)})\s+(\w+)\("
    return frozenset(name for text in texts for name in re.findall(declared, text)) - TEXT_MAKERS


@dataclass
class Rewriter:
    """Walks the syntax tree and puts the text together again, with the mutants in it."""

    file: str
    failing: frozenset[str]
    first_number: int
    mutants: list[Mutant] = field(default_factory=list)
    _function: str = ""

    def rewrite(self, source: str) -> str:
        text = self._render(parse(source, self.file))
        return f'#include "base/mutant.h"\n#line 1 "{self.file}"\n{text}'

    # -- the tree ---------------------------------------------------------------------------

    def _pieces(self, node: Node, special: dict[int, Callable[[Node], str]] | None = None) -> str:
        """The text of a node, its children rendered; special: some of them in another way."""
        raw, at, out = of(node).encode(), node.start_byte, []
        for child in node.children:
            out.append(raw[at - node.start_byte : child.start_byte - node.start_byte].decode())
            out.append((special or {}).get(child.id, self._render)(child))
            at = child.end_byte
        out.append(raw[at - node.start_byte :].decode())
        return "".join(out)

    def _render(self, node: Node) -> str:
        handler: Callable[[Node], str] | None = getattr(self, f"_on_{node.type}", None)
        return handler(node) if handler is not None else self._pieces(node)

    def _on_function_definition(self, node: Node) -> str:
        declarator = node.child_by_field_name("declarator")
        while declarator is not None and declarator.type != "identifier":
            declarator = declarator.child_by_field_name("declarator")
        self._function = of(declarator)
        return of(node) if self._function in LEFT_ALONE else self._pieces(node)

    def _on_if_statement(self, node: Node) -> str:
        return self._with_condition(node, self._check("never", "0"))

    def _on_conditional_expression(self, node: Node) -> str:
        return self._with_condition(node, self._check("never", "0"))

    def _on_while_statement(self, node: Node) -> str:
        return self._with_condition(node, self._loop)

    _on_for_statement = _on_while_statement

    def _with_condition(self, node: Node, render: Callable[[Node], str]) -> str:
        condition = node.child_by_field_name("condition")
        return self._pieces(node, {} if condition is None else {condition.id: render})

    def _on_declaration(self, node: Node) -> str:
        # Tables of constants.
        return of(node) if of(node).startswith("static ") else self._pieces(node)

    def _on_init_declarator(self, node: Node) -> str:
        return self._pieces(node, self._value_of(node.child_by_field_name("value")))

    def _on_assignment_expression(self, node: Node) -> str:
        return self._pieces(node, self._value_of(node.child_by_field_name("right")))

    def _on_return_statement(self, node: Node) -> str:
        return self._pieces(
            node, self._value_of(node.named_children[0] if node.named_children else None)
        )

    def _value_of(self, node: Node | None) -> dict[int, Callable[[Node], str]]:
        return {node.id: self._check("true", "1")} if node is not None and is_boolean(node) else {}

    def _on_expression_statement(self, node: Node) -> str:
        changed = changed_field(node)
        if changed is None:
            return self._pieces(node)
        number = self._new(node, "skipped")
        return f"if (!encl_skipped({number})) {{ {self._pieces(node)} }}"

    def _on_call_expression(self, node: Node) -> str:
        name = of(node.child_by_field_name("function"))
        arguments = node.child_by_field_name("arguments")
        if name in TEXT_MAKERS or arguments is None:
            return of(node)
        if name in ("ENCL_ENSURE", "ENCL_ENSURE_GOTO"):
            return self._with_first(node, arguments, self._check("never", "1"), rest=of)
        if name in ("ENCL_TRY", "ENCL_TRY_GOTO"):
            return self._with_first(node, arguments, self._result, rest=of)
        return self._result(node) if name in self.failing else self._pieces(node)

    def _with_first(
        self,
        node: Node,
        arguments: Node,
        render: Callable[[Node], str],
        rest: Callable[[Node | None], str],
    ) -> str:
        first, *others = arguments.named_children
        ways: dict[int, Callable[[Node], str]] = {first.id: render}
        ways.update((other.id, rest) for other in others)
        return self._pieces(node, {arguments.id: lambda a: self._pieces(a, ways)})

    # -- mutants ----------------------------------------------------------------------------

    def _new(self, node: Node, kind: str, text: str | None = None) -> int:
        number = self.first_number + len(self.mutants)
        line = node.start_point[0] + 1
        text = one_line(of(node) if text is None else text)
        self.mutants.append(Mutant(number, self.file, self._function, line, kind, text))
        return number

    def _result(self, node: Node) -> str:
        """What was called says that all is well."""
        number = self._new(node, "succeeds")
        call = self._pieces(node)
        return f"encl_succeeds({number}, {call})"

    def _check(self, kind: str, constant: str) -> Callable[[Node], str]:
        def render(node: Node) -> str:
            if node.type == "parenthesized_expression":
                return f"({render(node.named_children[0])})"
            removed, inverted = self._new(node, kind), self._new(node, "inverted")
            text = self._boolean(node)
            return f"encl_other({removed}, {constant}, encl_inverted({inverted}, {text}))"

        return render

    def _loop(self, node: Node) -> str:
        if node.type == "parenthesized_expression":
            return f"({self._loop(node.named_children[0])})"
        never = self._new(node, "never")
        text = self._boolean(node, in_loop=True)
        return f"encl_other({never}, 0, {text})"

    def _boolean(self, node: Node, in_loop: bool = False) -> str:
        if node.type == "parenthesized_expression":
            return f"({self._boolean(node.named_children[0], in_loop)})"
        operator = operator_of(node)
        if operator in NEUTRAL:
            left, right = operands(node)
            first, second = (self._operand(side, operator, in_loop) for side in (left, right))
            return f"{first} {operator} {second}"
        if operator in BOUNDARY:
            return self._boundary(node, operator, in_loop)
        if operator == "!":
            inner = node.child_by_field_name("argument")
            return self._pieces(node, {} if inner is None else {inner.id: self._boolean})
        return self._render(node)

    def _operand(self, node: Node, operator: str, in_loop: bool) -> str:
        text = self._boolean(node, in_loop)
        if operator_of(unwrapped(node)) == operator:
            return text  # a || b of a || b || c: its own operands are removed one by one
        number = self._new(node, "without")
        return f"encl_other({number}, {NEUTRAL[operator]}, {text})"

    def _boundary(self, node: Node, operator: str, in_loop: bool) -> str:
        left, right = (self._render(side) for side in operands(node))
        kind = "early" if in_loop else "boundary"
        number = self._new(node, kind)
        # A loop with a turn more would read beyond its array: that is the sanitizers' to find.
        a, b = f"left_{number}", f"right_{number}"
        other = f"{a} + 1 {operator} {b}" if in_loop else f"{a} {BOUNDARY[operator]} {b}"
        once = f"__auto_type {a} = {left}; __auto_type {b} = {right};"
        return f"({{ {once} encl_other({number}, {other}, {a} {operator} {b}); }})"


def operator_of(node: Node) -> str:
    if node.type in ("binary_expression", "unary_expression"):
        return of(node.child_by_field_name("operator"))
    return ""


def operands(node: Node) -> tuple[Node, Node]:
    left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
    assert left is not None and right is not None
    return left, right


def unwrapped(node: Node) -> Node:
    while node.type == "parenthesized_expression":
        node = node.named_children[0]
    return node


def is_boolean(node: Node) -> bool:
    return operator_of(unwrapped(node)) in (*COMPARISONS, *NEUTRAL, "!")


def changed_field(statement: Node) -> Node | None:
    """The struct member that a statement counts or sets to a constant."""
    inner = statement.named_children[0] if statement.named_children else None
    if inner is None:
        return None
    if inner.type == "update_expression":
        target = inner.child_by_field_name("argument")
    elif inner.type == "assignment_expression":
        target, right = inner.child_by_field_name("left"), inner.child_by_field_name("right")
        if right is None or right.type not in ("true", "false", "identifier", "number_literal"):
            return None
    else:
        return None
    return target if target is not None and target.type == "field_expression" else None
