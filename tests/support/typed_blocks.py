"""Writes the documentation's code blocks as modules that type checkers read.

``python tests/support/typed_blocks.py FOLDER``. The code of a page is one module, in which it
stands in the page's own lines, so that a checker's message names the line of the page; a program of
a page of programs is a module of its own, and so is a file of tests.
"""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
from pathlib import Path

from doc_blocks import OF_PROGRAMS, PAGES, Block, blocks

__all__ = ["modules", "write"]

# A page shows one thing after another under the same name.
HEAD = "# pyright: reportRedeclaration=false\n"
# What a page of tests takes as given (tests/python/house/test_docs.py).
OF_TESTS = "import enclavia, pytest; from enclavia.testing import Fault\n"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _is_awaiting(code: str) -> bool:
    """Whether it is for a notebook, or a function that is left out."""
    try:
        compile(code, "", "exec", ast.PyCF_ONLY_AST)
        compile(code, "", "exec", dont_inherit=True)
    except SyntaxError:
        return True
    return False


def _placed(lines: list[str], block: Block) -> None:
    """In the lines of the page. The fence's own line is there for the head of a function."""
    code = block.code
    lines += [""] * (block.line - len(lines))
    if _is_awaiting(code):
        lines[-1] = f"async def block_{block.line}() -> None:"
        code = "".join(f"    {line}" if line.strip() else line for line in code.splitlines(True))
    lines += code.splitlines()


def _module(parts: list[Block], beginning: str = "") -> str:
    lines = [HEAD.strip(), beginning.strip()]
    for block in parts:
        _placed(lines, block)
    return "\n".join(lines) + "\n"


def modules() -> dict[str, str]:
    """The text of each module, by its name."""
    found = {}
    for page in PAGES:
        parts = [block for block in blocks(page) if block.needs is None or _is_there(block.needs)]
        name = page.stem.lower().replace("-", "_")
        if page.name in OF_PROGRAMS:
            for block in parts[1:]:
                found[f"page_{name}_{block.line}"] = _module([parts[0], block])
            continue
        tests = [block for block in parts if "def test_" in block.code]
        for block in tests:
            found[f"page_{name}_{block.line}"] = _module([block], OF_TESTS)
        found[f"page_{name}"] = _module([block for block in parts if block not in tests])
    return found


def write(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in modules().items():
        (folder / f"{name}.py").write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
