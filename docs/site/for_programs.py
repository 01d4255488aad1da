"""llms.txt and llms-full.txt, and each page as Markdown beside its HTML.

The form is that of https://llmstxt.org: a title, a summary in a quotation, and sections of links,
of which one that is named "Optional" may be left out where room is short.
"""

from __future__ import annotations

import re
from pathlib import Path

import api
from navigation import INDEX, ROOT, Page, sections

# For people who change this package: of no use to who writes programs with it.
OPTIONAL = "Contributing"

_TITLE = re.compile(r"\A# .+\n")
_SUMMARY = re.compile(r"^(?:> .+\n)+", re.MULTILINE)


def text_of(page: Page) -> str:
    text = page.path.read_text(encoding="utf-8")
    return api.for_programs(text) if page.name == api.PAGE else text


def llms_txt(base_url: str) -> str:
    """``base_url`` ends with a slash, or is empty: then links are relative to the file."""
    index = (ROOT / f"{INDEX}.md").read_text(encoding="utf-8")
    title, summary = _TITLE.search(index), _SUMMARY.search(index)
    if title is None or summary is None:
        raise ValueError("docs/index.md: expected a title and below it a summary in a quotation")
    parts = [title[0], summary[0]]
    for section in sections(index):
        parts.append(f"## {'Optional' if section.title == OPTIONAL else section.title}\n")
        parts.append(
            "".join(
                f"- [{page.title}]({base_url}{page.name}.md): {page.about}\n"
                for page in section.pages
            )
        )
    return "\n".join(parts)


def llms_full_txt() -> str:
    """The whole documentation, without what is optional."""
    index = (ROOT / f"{INDEX}.md").read_text(encoding="utf-8")
    shown = [p for s in sections(index) if s.title != OPTIONAL for p in s.pages]
    return "\n".join(f"<!-- {page.name}.md -->\n\n{text_of(page)}" for page in shown)


def write(folder: Path, base_url: str) -> None:
    (folder / "llms.txt").write_text(llms_txt(base_url), encoding="utf-8")
    (folder / "llms-full.txt").write_text(llms_full_txt(), encoding="utf-8")
    index = (ROOT / f"{INDEX}.md").read_text(encoding="utf-8")
    for page in (page for section in sections(index) for page in section.pages):
        copy = folder / f"{page.name}.md"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text_of(page), encoding="utf-8")
