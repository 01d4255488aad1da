"""docs/api.md: every public class, function and error with its docstring.

The page in the repository has an introduction only. What follows it is made here, for the site (as
directives of autodoc) and for programs that read (as Markdown).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple

from navigation import ROOT
from sphinx.ext.autodoc import mock

PAGE = "docs/api"

# The engines that these need take seconds to import, and change the process that imports them.
ENGINES = ["distributed", "pyspark", "ray"]


class Thing(NamedTuple):
    module: str
    name: str
    value: type | object

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.name}"


def modules() -> list[str]:
    """Those that users import: the package itself, and what has no underscore."""
    package = ROOT / "enclavia"
    names = [path.stem for path in package.glob("[!_]*.py")]
    names += [path.parent.name for path in package.glob("[!_]*/__init__.py")]
    return ["enclavia", *(f"enclavia.{name}" for name in sorted(names))]


def things(module: str) -> Iterator[Thing]:
    """The classes and functions of a module."""
    with mock(ENGINES):
        loaded = importlib.import_module(module)
    for name in getattr(loaded, "__all__", ()):
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield Thing(module, name, value)


def members(thing: Thing) -> list[str]:
    """The public members that a class of this package documents. What it only overrides is as
    httpx2, requests or the standard library say."""
    if not inspect.isclass(thing.value):
        return []
    found = []
    for name in sorted(set(dir(thing.value))):
        owner = next((cls for cls in thing.value.__mro__ if name in vars(cls)), object)
        if name.startswith("_") or owner.__module__.partition(".")[0] != "enclavia":
            continue
        if _own_docstring(vars(owner)[name]):
            found.append(name)
    return found


def _own_docstring(member: object) -> bool:
    if isinstance(member, classmethod | staticmethod):
        member = member.__func__
    documented = isinstance(member, property | functools.cached_property) or callable(member)
    return documented and bool(getattr(member, "__doc__", None))


# ---------------------------------------------------------------------------------------------
# Where the reference is

_HEADING = re.compile(r"^#{2,4} (.+)$")
_SIGNATURE = re.compile(r"^    (?:await )?([A-Za-z][\w.]*)\(", re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor of a heading, as the repository's host and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@functools.cache
def in_the_reference() -> dict[str, str]:
    """The names whose signature is in docs/reference.md, each with its section's anchor."""
    found: dict[str, str] = {}
    anchor = ""
    for line in (ROOT / "docs" / "reference.md").read_text(encoding="utf-8").splitlines():
        if heading := _HEADING.match(line):
            anchor = slug(heading[1])
            if heading[1].isidentifier():
                found.setdefault(heading[1], anchor)
        elif signature := _SIGNATURE.match(line):
            found.setdefault(signature[1], anchor)
    return found


def reference_of(full_name: str) -> str | None:
    """The anchor in the reference of a thing that is named ``enclavia.testing.LocalEnclave``."""
    known = in_the_reference()
    parts = full_name.split(".")
    return next(
        (known[name] for n in range(len(parts)) if (name := ".".join(parts[n:])) in known), None
    )


def has_signature_there(full_name: str) -> bool:
    parts = full_name.split(".")
    return any(".".join(parts[n:]) in _signatures() for n in range(len(parts)))


@functools.cache
def _signatures() -> frozenset[str]:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    return frozenset(re.findall(_SIGNATURE, text))


# ---------------------------------------------------------------------------------------------
# The page


def for_sphinx(introduction: str) -> str:
    parts = [introduction]
    for module in modules():
        parts.append(f"## {module}\n")
        for thing in things(module):
            kind = "class" if inspect.isclass(thing.value) else "function"
            directive = f".. auto{kind}:: {thing.full_name}\n"
            if names := members(thing):
                directive += f"   :members: {', '.join(names)}\n"
            parts.append(
                f"### {_heading(thing)}\n{_link(thing)}\n```{{eval-rst}}\n{directive}```\n"
            )
    return "\n".join(parts)


def for_programs(introduction: str) -> str:
    parts = [introduction]
    for module in modules():
        parts.append(f"## {module}\n")
        for thing in things(module):
            parts.append(f"### {_heading(thing)}\n{_link(thing)}\n{_text(thing.value)}\n")
            parts += [
                f"**`{thing.name}.{name}`**: {_text(inspect.getattr_static(thing.value, name))}\n"
                for name in members(thing)
            ]
    return "\n".join(parts)


def _heading(thing: Thing) -> str:
    """Two modules have classes of one name."""
    return thing.name if thing.module == "enclavia" else thing.full_name


def _link(thing: Thing) -> str:
    anchor = reference_of(thing.full_name)
    if anchor is None:
        return ""
    what = "Signature, units and defaults" if has_signature_there(thing.full_name) else "More"
    return f"\n{what}: [Reference](reference.md#{anchor}).\n"


def _text(member: object) -> str:
    """A docstring as Markdown: its roles and literals become code."""
    if isinstance(member, classmethod | staticmethod):
        member = member.__func__
    lines = inspect.cleandoc(getattr(member, "__doc__", None) or "").splitlines()
    text = "\n".join(with_lists(lines))
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`").strip()


_ITEM = re.compile(r"(?P<names>[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): (?P<text>.+)")
_HEADED = re.compile(r"(Args|Raises|Returns):")


def with_lists(lines: list[str]) -> list[str]:
    """A docstring whose parameters stand as ``name: text``, one below the other and continued by
    indented lines, with each of them as an item of a list."""
    result: list[str] = []
    for paragraph in _paragraphs(lines):
        headed = _HEADED.fullmatch(paragraph[0])
        body = [line.removeprefix("    ") for line in paragraph[1:]] if headed else paragraph
        if _are_items(body, 1 if headed else 2):
            if headed:
                result += [f"{headed[1]}:", ""]
            for line in body:
                item = _ITEM.match(line)
                if item is None:
                    result.append(f"  {line.strip()}")
                else:
                    names = ", ".join(f"``{name}``" for name in item["names"].split(", "))
                    result.append(f"* {names}: {item['text']}")
        else:
            result += paragraph
        result.append("")
    return result


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []


def _are_items(lines: list[str], least: int) -> bool:
    """Whether each line begins an item or continues one, and there are at least so many."""
    if not lines or lines[0].startswith(" "):
        return False
    begun = [line for line in lines if not line.startswith(" ")]
    return len(begun) >= least and all(_ITEM.match(line) for line in begun)
