"""The order of the pages, which docs/index.md alone says.

Each section of that page is a list of links: ``- [Title](page.md): what it is about``. This is also
the form of an llms.txt, which is made of it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
INDEX = "docs/index"

_SECTION = re.compile(r"^## (?P<title>.+)\n(?P<body>(?:(?!^## ).*\n?)*)", re.MULTILINE)
_ENTRY = re.compile(r"^- \[(?P<title>[^]\n]+)\]\((?P<target>[^)\s]+)\)(?:: (?P<about>.+))?$")


class Page(NamedTuple):
    """``name`` is the path from the repository's root without ``.md``, as Sphinx names it."""

    title: str
    name: str
    about: str

    @property
    def path(self) -> Path:
        return ROOT / f"{self.name}.md"


class Section(NamedTuple):
    title: str
    pages: list[Page]


def sections(index: str) -> list[Section]:
    """Those of the text of docs/index.md. Raises ValueError where a line links to no page."""
    return [
        Section(
            found["title"],
            [_page(line) for line in found["body"].splitlines() if line.strip()],
        )
        for found in _SECTION.finditer(index)
    ]


def _page(line: str) -> Page:
    entry = _ENTRY.match(line)
    if entry is None or not entry["target"].endswith(".md"):
        raise ValueError(
            f"docs/index.md: expected `- [Title](page.md): what it is about` in a section, got "
            f"{line!r}"
        )
    target = posixpath.normpath(posixpath.join("docs", entry["target"]))
    return Page(entry["title"], target.removesuffix(".md"), entry["about"] or "")


def pages() -> list[Page]:
    index = (ROOT / f"{INDEX}.md").read_text(encoding="utf-8")
    return [page for section in sections(index) for page in section.pages]


def with_toctrees(index: str) -> str:
    """The same text with a hidden table of contents for each section, which is what Sphinx makes
    its navigation of."""
    trees = [
        "```{toctree}\n:hidden:\n"
        f":caption: {section.title}\n\n"
        + "".join(f"{page.title} </{page.name}>\n" for page in section.pages)
        + "```\n"
        for section in sections(index)
    ]
    return "\n".join([index, *trees])
