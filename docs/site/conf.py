"""Sphinx's configuration of the documentation site (`make site`).

The source folder is the repository itself, so that links between docs/ and the files around it mean
the same here and on the repository's host.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import api
import for_programs
from navigation import INDEX, ROOT, with_toctrees
from sphinx.application import Sphinx

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = _PROJECT["name"]
version = release = _PROJECT["version"]
author = _PROJECT["authors"][0]["name"]
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = INDEX
include_patterns = ["docs/*.md", "tests/README.md", "skills/*/SKILL.md"]
include_patterns += ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
# Folders without pages, some of them large.
exclude_patterns = [".*", "build", "csrc", "dist", "enclavia", "packaging", "tests/[!R]*"]

# Where the site will be, with a final slash: links in llms.txt are absolute then.
html_baseurl = os.environ.get("ENCLAVIA_SITE_URL", "")

myst_heading_anchors = 4
myst_heading_slug_func = "api.slug"
highlight_language = "default"  # what is indented is no program

nitpicky = True
# Names of other packages, such as httpx2.Client. Ours are classes, or begin with `enclavia`.
nitpick_ignore_regex = [(r"py:.*", r"(?!enclavia\.)[a-z_]\w*\..*")]
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autodoc_mock_imports = api.ENGINES
add_module_names = False
toc_object_entries = False  # each class has a heading
python_display_short_literal_types = True

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options: dict[str, list[str]] = {"footer_icons": [], "top_of_page_buttons": []}


def read(app: Sphinx, name: str, source: list[str]) -> None:
    if name == INDEX:
        source[0] = with_toctrees(source[0])
    elif name == api.PAGE:
        source[0] = api.for_sphinx(source[0])


def shorten(
    app: Sphinx,
    what: str,
    name: str,
    thing: object,
    options: object,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """A signature that the reference has does not stand here again. Classes whose construction it
    leaves out are not made by users."""
    if api.has_signature_there(name):
        return "(…)", None
    if signature and what in ("class", "exception"):
        return "", None
    return signature, returned


def list_parameters(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    lines[:] = api.with_lists(lines)


def finish(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        for_programs.write(Path(app.outdir), html_baseurl)
        (Path(app.outdir) / "index.html").write_text(
            "<!doctype html>\n"
            f'<html lang="en"><head><meta charset="utf-8"><title>{project}</title>\n'
            f'<meta http-equiv="refresh" content="0; url={INDEX}.html"></head>\n'
            f'<body><a href="{INDEX}.html">{project}</a></body></html>\n',
            encoding="utf-8",
        )


def setup(app: Sphinx) -> None:
    app.connect("source-read", read)
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-process-docstring", list_parameters)
    app.connect("build-finished", finish)
