"""The map for contributors names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "development.md"
PAGES = [
    PAGE,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "tests" / "README.md",
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


def test_every_suite_has_its_question() -> None:
    table = (ROOT / "tests" / "README.md").read_text()
    suites = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    named = set(re.findall(r"^\| `(\w+)/`", table, re.MULTILINE))
    assert named == suites


def test_every_layer_and_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([\w-]+)", page.read_text()):
            if not target.startswith("-"):
                assert target in targets, f"{page.name} names `make {target}`"
