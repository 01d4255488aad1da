"""The documentation site: that it is built without a warning, has every page, needs nothing from
elsewhere, and that its links lead somewhere; and what is made of it for programs that read."""

from __future__ import annotations

import functools
import inspect
import json
import os
import posixpath
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from repository import ROOT

from enclavia import Pcrs

CONF = ROOT / "docs" / "site"
SKILL = ROOT / "skills" / "enclavia" / "SKILL.md"
# Pages that a reader of the repository can reach, the README among them, which the site leaves out.
MARKDOWN = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "tests" / "README.md",
    SKILL,
]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def needs_the_generator() -> None:
    """Which `make test` installs."""
    if not os.environ.get("CI"):
        pytest.importorskip("furo", reason="the dependency group docs is not installed")


def built(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    needs_the_generator()
    options = "--quiet --fail-on-warning --keep-going --builder html --conf-dir"
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *options.split(), CONF, source, target],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make site` does."""
    target = tmp_path_factory.mktemp("site")
    ended = built(ROOT, target)
    assert ended.returncode == 0, ended.stderr
    return target


# ---------------------------------------------------------------------------------------------
# The navigation


@functools.cache
def navigation() -> list[tuple[str, list[str]]]:
    """The sections of docs/index.md with the paths of their pages."""
    text = (ROOT / "docs" / "index.md").read_text()
    return [
        (
            section.partition("\n")[0],
            [
                posixpath.normpath(f"docs/{target}")
                for target in re.findall(r"^- \[[^]]+\]\(([^)]+)\)", section, re.MULTILINE)
            ],
        )
        for section in text.split("\n## ")[1:]
    ]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [page for _, pages in navigation() for page in pages]
    assert len(listed) == len(set(listed))
    pages = {name(page) for page in (ROOT / "docs").glob("*.md")} - {"docs/index.md"}
    missing = pages - set(listed)
    assert not missing, f"docs/index.md has no line `- [Title](page.md): …` for {sorted(missing)}"
    assert all((ROOT / page).is_file() for page in listed)


def test_the_order_of_the_sections() -> None:
    """A tutorial, guides, reference, explanation, as https://diataxis.fr orders them."""
    titles = [title for title, _ in navigation()]
    assert titles == ["Start", "Guides", "Reference", "Explanation", "Contributing"]


def test_the_navigation_of_a_page_has_every_other(site: Path) -> None:
    side_bar = (site / "docs" / "guide.html").read_text().partition("sidebar-tree")[2]
    for _, pages in navigation():
        for page in pages:
            target = posixpath.relpath(page.replace(".md", ".html"), "docs")
            assert target == "guide.html" or f'href="{target}"' in side_bar, page


# ---------------------------------------------------------------------------------------------
# Links


class Links(HTMLParser):
    """What a page has anchors for, leads to, and has loaded."""

    LOADED = frozenset({"audio", "embed", "iframe", "img", "script", "source", "video"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        has = {key: value or "" for key, value in attributes}
        if "id" in has:
            self.anchors.add(has["id"])
        if tag == "a" and "href" in has:
            self.targets.append(has["href"])
        if tag == "link" and has.get("rel") not in ("canonical", "next", "prev", "index", "search"):
            self.loaded.append(has["href"])
        if tag in self.LOADED and "src" in has:
            self.loaded.append(has["src"])


def html(site: Path) -> dict[Path, Links]:
    return {page: Links(page.read_text()) for page in sorted(site.rglob("*.html"))}


def elsewhere(target: str) -> bool:
    parts = urlsplit(target)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def dead(pages: dict[Path, Links]) -> list[str]:
    found = []
    for page, links in pages.items():
        for target in (*links.targets, *links.loaded):
            if elsewhere(target) or target.startswith("data:"):
                continue
            path, _, anchor = target.partition("#")
            to = (page.parent / unquote(urlsplit(path).path)).resolve() if path else page
            if not to.is_file() or (
                anchor and to in pages and unquote(anchor) not in pages[to].anchors
            ):
                found.append(f"{page.name}: {target}")
    return found


def test_links_of_the_site_lead_somewhere(site: Path) -> None:
    pages = html(site.resolve())
    assert len(pages) > 20
    assert sum(len(links.targets) for links in pages.values()) > 1000
    assert dead(pages) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="#no"></a><a href="b.html"></a><a href="a.html#i">')
    (tmp_path / "c.html").write_text('<p id="i"><img src="d.png"><a href="a.html#i"><a href="#i">')
    assert sorted(dead(html(tmp_path.resolve()))) == [
        "a.html: #no",
        "a.html: a.html#i",
        "a.html: b.html",
        "c.html: a.html#i",
        "c.html: d.png",
    ]


def test_what_leads_nowhere_stops_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Index\n\n> It.\n\n## Start\n\n- [Guide](guide.md): all\n")
    lines = {
        "[a heading that is there](#heading)": None,
        "[a heading](guide.md#no-such-heading)": "no-such-heading",
        "[a page](no-such-page.md)": "no-such-page.md",
        "{py:class}`enclavia.NoSuchClass`": "enclavia.NoSuchClass",
    }
    (docs / "guide.md").write_text("# Guide\n\n## Heading\n\n" + "\n\n".join(lines))
    (docs / "in-no-section.md").write_text("# Other\n")
    ended = built(tmp_path, tmp_path / "built")
    assert ended.returncode != 0
    warnings = re.findall(r"^.*WARNING.*$", ended.stderr, re.MULTILINE)
    said = [text for text in lines.values() if text] + ["in-no-section.md"]
    for text in said:
        assert any(text in warning for warning in warnings), f"{text}: {ended.stderr}"
    assert len(warnings) == len(said)


_FENCE = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)
_MARKDOWN_LINK = re.compile(r"\]\(([^()\s]+)\)")


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as the repository's host makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", heading.strip().lower())
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(next(s for s in (slug, *(f"{slug}-{n}" for n in range(1, 99))) if s not in found))
    return found


def dead_in(page: Path) -> Iterator[str]:
    for target in _MARKDOWN_LINK.findall(_FENCE.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if elsewhere(target):
            if urlsplit(target).scheme != "https":
                yield f"expected https, got {target}"
        elif not to.exists() or (anchor and anchor not in slugs(to)):
            yield target


@pytest.mark.parametrize("page", MARKDOWN, ids=name)
def test_links_lead_somewhere_on_the_repositorys_host(page: Path) -> None:
    assert list(dead_in(page)) == []


def test_every_example_is_linked() -> None:
    linked = {
        (page.parent / target).resolve()
        for page in MARKDOWN
        for target in _MARKDOWN_LINK.findall(page.read_text())
    }
    examples = {path for path in (ROOT / "docs" / "examples").iterdir() if path.is_file()}
    assert examples <= linked, f"no page links to {[path.name for path in examples - linked]}"


def test_dead_links_of_markdown_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\n## B c, *d*\n\n## B\n\n## B\n")
    page = tmp_path / "page.md"
    dead = ["a.md#c", "b.md", "http://example.org", "#no", "a.md#b-2"]
    alive = ["a.md", "a.md#b-c-d", "a.md#b-1", "https://example.org", "#it"]
    page.write_text("# It\n" + "".join(f"[x]({target})\n" for target in (*alive, *dead)))
    assert [found.rpartition(" ")[2] for found in dead_in(page)] == dead


_BETWEEN_CELLS = re.compile(r"(?<!\\)\|")
_TABLE = re.compile(r"^\|.*\|\n\|(?: *:?-+:? *\|)+\n(?:\|.*\n?)*", re.MULTILINE)


def uneven_rows(text: str) -> list[str]:
    """Rows with another number of cells than their table's head. What is too much is dropped where
    the page is shown; a ``|`` in code separates cells too, unless a backslash stands before it."""
    found = []
    for table in _TABLE.findall(_FENCE.sub("", text)):
        head, _, *rows = table.splitlines()
        cells = len(_BETWEEN_CELLS.findall(head))
        found += [row for row in rows if len(_BETWEEN_CELLS.findall(row)) != cells]
    return found


@pytest.mark.parametrize("page", MARKDOWN, ids=name)
def test_no_cell_of_a_table_is_lost(page: Path) -> None:
    assert uneven_rows(page.read_text()) == []


def test_uneven_rows_are_found() -> None:
    table = "| a | b |\n| --- | --- |\n| 1 | `x \\| y` |\n| 2 | `x | y` |\n| 3 |\n\n| no table |\n"
    assert uneven_rows(table) == ["| 2 | `x | y` |", "| 3 |"]


# ---------------------------------------------------------------------------------------------
# Nothing from elsewhere

_IN_CSS = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""")


def loaded_from_elsewhere(site: Path) -> list[str]:
    found = [
        f"{page.name}: {target}"
        for page, links in html(site).items()
        for target in links.loaded
        if elsewhere(target)
    ]
    for sheet in (*site.rglob("*.css"), *site.rglob("*.html")):
        for match in _IN_CSS.finditer(sheet.read_text()):
            if elsewhere(match[1] or match[2]):
                found.append(f"{sheet.name}: {match[0]}")
    return found


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    assert loaded_from_elsewhere(site) == []


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://example.org/a.js"></script>',
        '<script src="//example.org/a.js"></script>',
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<link rel="preconnect" href="https://example.org">',
        '<img src="https://example.org/a.png">',
        "<style>@import 'https://example.org/a.css';</style>",
        "<style>p { background: url( https://example.org/a.png ) }</style>",
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f'{text}<a href="https://example.org"></a>')
    assert len(loaded_from_elsewhere(tmp_path)) == 1


def test_the_search_has_its_index_beside_it(site: Path) -> None:
    """As a script, which also a page that was opened from a disk may load."""
    scripts = Links((site / "search.html").read_text()).loaded
    assert "searchindex.js" in scripts
    text = (site / "searchindex.js").read_text()
    index = json.loads(text.removeprefix("Search.setIndex(").rstrip().removesuffix(")"))
    pages = index["terms"]["patienc"]  # by their stems
    assert {index["docnames"][page] for page in pages} >= {"docs/guide", "docs/reference"}
    named = {entry[4] or title for title, of in index["objects"].items() for entry in of}
    assert {"enclavia", "enclavia.Client"} <= named | set(index["objects"])


# ---------------------------------------------------------------------------------------------
# Docstrings


def test_every_public_name_is_on_the_page_of_docstrings(site: Path) -> None:
    import enclavia
    import enclavia.testing

    anchors = Links((site / "docs" / "api.html").read_text()).anchors
    for module in (enclavia, enclavia.testing):
        for public in module.__all__:
            thing = getattr(module, public)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert f"{module.__name__}.{public}" in anchors
    assert {"enclavia.Client.connect", "enclavia.dask.EnclavePlugin.check"} <= anchors
    assert "enclavia.Client.send" not in anchors  # httpx2's


def test_a_signature_stands_once(site: Path) -> None:
    page = (site / "docs" / "api.html").read_text()
    text = re.sub(r"<[^>]+>", "", page)
    assert "clock_leeway=60.0" in (site / "docs" / "reference.html").read_text()
    assert "clock_leeway=60.0" not in text
    assert "class PcrMismatch" in text and "PcrMismatch(" not in text  # users do not make it
    assert 'href="reference.html#client"' in page


# ---------------------------------------------------------------------------------------------
# For programs that read

_ENTRY = re.compile(r"- \[[^]\n]+\]\(([^)\s]+)\): \S.*")


def test_the_form_of_llms_txt(site: Path) -> None:
    """https://llmstxt.org: a title, a summary, sections that are lists of links."""
    text = (site / "llms.txt").read_text()
    head, *parts = text.split("\n## ")
    assert re.fullmatch(r"# enclavia\n\n(?:> .+\n)+", head)
    titles = []
    linked = []
    for part in parts:
        title, _, body = part.partition("\n")
        titles.append(title)
        for line in body.strip().splitlines():
            entry = _ENTRY.fullmatch(line)
            assert entry, line
            linked.append(entry[1])
    assert titles == ["Start", "Guides", "Reference", "Explanation", "Optional"]
    assert linked == [page for _, pages in navigation() for page in pages]
    for target in linked:
        assert (site / target).is_file(), f"llms.txt links to {target}, which the site lacks"


def test_llms_full_txt_has_every_page_whole(site: Path) -> None:
    text = (site / "llms-full.txt").read_text()
    for title, pages in navigation():
        for page in pages:
            assert ((ROOT / page).read_text() in text) == (title != "Contributing"), page
    assert "### Client\n\nSignature, units and defaults: [Reference](reference.md#client)." in text
    assert "* `debug_mode`: talk to a debug enclave, whose identity nothing proves." in text
    assert "**`Client.connect`**: A client that is connected" in text
    assert ":class:`" not in text


def test_links_are_absolute_where_the_site_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_the_generator()
    monkeypatch.syspath_prepend(str(CONF))
    import for_programs

    text = for_programs.llms_txt("https://docs.example.org/")
    assert "](https://docs.example.org/docs/guide.md): " in text
    assert "](docs/" not in text


def test_the_skill_file_says_what_it_is_for() -> None:
    """The code in it is run by test_docs.py."""
    _, front, body = SKILL.read_text().split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in front.strip().splitlines())
    assert set(fields) == {"name", "description"}
    assert fields["name"] == SKILL.parent.name
    assert re.fullmatch(r"[a-z0-9-]{1,64}", fields["name"])
    assert 40 < len(fields["description"]) <= 1024
    never = body.partition("## Never")[2].partition("\n## ")[0]
    for warned_of in ("debug_mode=True", "verify=False", "AttestationError", "base_url", "pins"):
        assert warned_of in never
    code = "".join(re.findall(r"^```python\n(.*?)^```$", body, re.MULTILINE | re.DOTALL))
    assert "def test_" in code and "Pcrs.load" in code
    assert "debug_mode" not in code and "verify=" not in code


# ---------------------------------------------------------------------------------------------
# The front door


def test_the_readme_is_read_in_two_minutes() -> None:
    """At 240 words a minute, code left out, which is looked at rather than read."""
    words = _FENCE.sub("", (ROOT / "README.md").read_text()).split()
    assert len(words) <= 480


def test_the_changelog_has_versions_and_dates() -> None:
    """In the form of https://keepachangelog.com: the newest first, with a date once released."""
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    versions = [re.fullmatch(r"(\d+\.\d+\.\d+) \((.+)\)", heading) for heading in headings]
    assert all(versions), headings
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    numbers = [tuple(map(int, found[1].split("."))) for found in versions if found]
    assert numbers == sorted(set(numbers), reverse=True)
    assert numbers[0] == tuple(map(int, project["version"].split(".")))
    for index, found in enumerate(versions):
        assert found is not None
        date = re.fullmatch(r"\d{4}-\d{2}-\d{2}", found[2])
        assert date or (index == 0 and found[2] == "unreleased"), found[0]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds


def test_every_extra_is_named_where_the_package_is_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    section = (
        (ROOT / "docs" / "start.md").read_text().partition("## Install")[2].partition("\n## ")[0]
    )
    rows = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
    assert {extra for row in rows for extra in re.findall(r"`([\w-]+)`", row)} == set(extras)


def test_the_sample_of_a_status_is_explained_and_read() -> None:
    sample = ROOT / "docs" / "examples" / "status.json"
    status = json.loads(sample.read_text())
    section = (ROOT / "docs" / "pins.md").read_text().partition("## `status.json`")[2]
    rows = re.findall(r"^\| `(\w+)` \|", section.partition("\n## ")[0], re.MULTILINE)
    assert rows == list(status)
    pins = Pcrs.load(sample)
    for index, value in enumerate((pins.pcr0, pins.pcr1, pins.pcr2)):
        assert value == bytes(range(16 * index, 16 * index + 48)), "plainly made up: it counts up"
