"""The Python code of the documentation's pages, block by block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from repository import ROOT

__all__ = ["OF_PROGRAMS", "PAGES", "SKILL", "Block", "blocks"]

SKILL = ROOT / "skills" / "enclavia" / "SKILL.md"
PAGES = [ROOT / "README.md", SKILL, *sorted((ROOT / "docs").glob("*.md"))]

# Pages whose code blocks are whole programs, each behind the page's first block.
OF_PROGRAMS = {"fleet.md", "integrations.md"}

_BLOCK = re.compile(
    r"(?:^<!-- run only with: (?P<needs>[\w.]+) -->\n)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    line: int
    """So many lines of the page stand before its first one."""
    code: str
    needs: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(text.count("\n", 0, match.start("code")), match["code"], match["needs"])
        for match in _BLOCK.finditer(text)
    ]
