"""The map for contributors names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from repository import ROOT, TESTS

PAGE = ROOT / "docs" / "development.md"
PAGES = [
    PAGE,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    TESTS / "README.md",
]
_PATH = re.compile(r"`((?:csrc|enclavia|tests|docs)/[\w./-]*)(?:::\w+)?`")


def paths(page: Path) -> list[str]:
    return _PATH.findall(page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    missing = [path for path in paths(page) if not (ROOT / path).exists()]
    assert not missing, f"{page.name} names {missing}"


def test_paths_are_found() -> None:
    assert len(paths(PAGE)) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    for target in links:
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def folders(path: Path) -> set[str]:
    """Those with a file of their own: what an older checkout left of one may be only a cache."""
    return {
        file.relative_to(path).parts[0]
        for file in path.glob("*/**/*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_every_suite_has_its_question() -> None:
    table = (TESTS / "README.md").read_text().partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)/`", table, re.MULTILINE)) == folders(TESTS)


def test_every_folder_of_python_tests_is_a_package_or_says_what_it_is() -> None:
    table = (TESTS / "README.md").read_text().partition("## The folders of `python/`")[2]
    rows = re.findall(r"^\| (`.*?`) \|", table.partition("\n## ")[0], re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)/`", row)]
    assert len(named) == len(set(named))
    assert set(named) == folders(TESTS / "python")
    packages = {path.parent.name for path in (ROOT / "enclavia").glob("*/__init__.py")}
    assert {name.lstrip("_") for name in packages} <= set(named)
    assert not list((TESTS / "python").glob("test_*.py")), "every test stands in a folder"


def test_every_layer_and_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([\w-]+)", page.read_text()):
            if not target.startswith("-"):
                assert target in targets, f"{page.name} names `make {target}`"
