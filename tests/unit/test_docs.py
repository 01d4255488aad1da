"""What the documentation says is run, and what it names exists.

The code of a page runs in order and in one namespace. A local enclave stands in for the one of the
page: its URL is put in place of the example's, its root in place of AWS's, and its PCRs are what
``status.json`` says.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import importlib
import importlib.util
import inspect
import json
import logging
import os
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from docs_app import app

import enclavia
import enclavia.testing
from enclavia.testing import LocalEnclave

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
URL_IN_DOCS = '"wss://<id>.enclaves.beta.enclavia.io"'

# What a page takes as given: the imports of its reader's file.
PRELUDE = """
import asyncio
import pytest
import enclavia
from enclavia import AsyncClient, Client, Pcrs
from enclavia.testing import LocalEnclave
rows = [{"id": n} for n in range(10)]
"""

SHOP = """
async def app(scope, receive, send):
    assert scope["type"] in ("http", "lifespan")
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
"""

_BLOCK = re.compile(
    r"(?:^<!-- run only with: (?P<needs>[\w.]+) -->\n)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    line: int
    code: str
    needs: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(text.count("\n", 0, match.start("code")), match["code"], match["needs"])
        for match in _BLOCK.finditer(text)
    ]


def with_code() -> list[Path]:
    return [page for page in PAGES if blocks(page)]


def name(page: Path) -> str:
    return page.name


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    with LocalEnclave(app, max_connections=32) as enclave:
        yield enclave


@pytest.fixture
def desk(tmp_path: Path, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the reader sits: the files that the examples open, and a world in which the local
    enclave's root is the default one."""
    pins = enclave.pcrs
    (tmp_path / "status.json").write_text(
        json.dumps(
            {
                "endpoint": enclave.url,
                "pcrs": {
                    "PCR0": pins.pcr0.hex(),
                    "PCR1": pins.pcr1.hex(),
                    "PCR2": pins.pcr2.hex(),
                },
            }
        )
    )
    (tmp_path / "batch.parquet").write_bytes(b"PAR1" * 100_000)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "api.py").write_text(SHOP)
    for module in ("enclavia._config", "enclavia._attestation"):
        read_root = importlib.import_module(module).read_root
        monkeypatch.setattr(
            f"{module}.read_root",
            lambda root, read=read_root: read(enclave.root if root is None else root),
        )
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("enclavia").level
    yield tmp_path
    logging.getLogger("enclavia").setLevel(level)


def run(code: str, where: str, namespace: dict[str, Any]) -> None:
    compiled = compile(code, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, namespace)
    if inspect.iscoroutine(result):
        asyncio.run(result)


def run_as_tests(code: str, desk: Path) -> None:
    """A block with tests is a test file."""
    (desk / "test_block.py").write_text(PRELUDE + code)
    path = os.pathsep.join([str(desk), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_block.py"],
        cwd=desk,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout


@pytest.mark.parametrize("page", with_code(), ids=name)
def test_code_of(page: Path, desk: Path, enclave: LocalEnclave) -> None:
    module = types.ModuleType(f"code_of_{page.stem.lower()}")
    sys.modules[module.__name__] = module  # so that its functions can be sent to workers
    namespace = module.__dict__
    exec(PRELUDE, namespace)
    left_out = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", enclavia.DebugModeWarning)
            for block in blocks(page):
                if block.needs is not None and not installed(block.needs):
                    left_out.append(f"{page.name}:{block.line} needs {block.needs}")
                    continue
                code = block.code.replace(URL_IN_DOCS, repr(enclave.url))
                if "def test_" in code:
                    run_as_tests(code, desk)
                else:
                    # Lines of a traceback are those of the page.
                    run("\n" * block.line + code, str(page), namespace)
    finally:
        client = namespace.get("client")
        if isinstance(client, enclavia.Client):
            client.close()
        del sys.modules[module.__name__]
    if left_out:
        warnings.warn(f"not run: {', '.join(left_out)}", stacklevel=1)


def test_code_is_found() -> None:
    """The pattern above finds every fence that says Python."""
    for page in PAGES:
        assert len(blocks(page)) == len(re.findall(r"^\s*```py", page.read_text(), re.MULTILINE))
    assert {page.name for page in with_code()} >= {"README.md", "guide.md"}


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_example(example: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout
    assert not ended.stderr


# ---------------------------------------------------------------------------------------------
# Names


def public_names() -> list[tuple[str, str]]:
    return [
        (module.__name__, name)
        for module in (enclavia, enclavia.testing)
        for name in module.__all__
    ]


@pytest.mark.parametrize(("module", "name"), public_names())
def test_reference_names(module: str, name: str) -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    assert re.search(rf"^(?:    |\| |\* |### ).*`?\b{name}\b", text, re.MULTILINE), (
        f"{module}.{name} is not in docs/reference.md"
    )


_SIGNATURE = re.compile(
    r"^    (?:await )?(?P<name>[A-Za-z][\w.]*)"
    r"\((?P<arguments>[^()]*(?:\([^()]*\)[^()]*)*)\)",
    re.MULTILINE,
)


def signatures() -> list[tuple[str, str]]:
    text = (ROOT / "docs" / "reference.md").read_text()
    return [(match["name"], match["arguments"]) for match in _SIGNATURE.finditer(text)]


def found(dotted: str) -> Any:
    """What a name of the reference means: a thing of a module, or of an object's class."""
    first, *rest = dotted.split(".")
    modules = [enclavia, enclavia.testing]
    modules += [
        importlib.import_module(f"enclavia.{extra}")
        for extra in ("requests", "httpx")
        if installed(extra)
    ]
    if first == "enclavia":
        return operator_path(importlib.import_module(f"enclavia.{rest[0]}"), rest[1:])
    for module in modules:
        if hasattr(module, first):
            return operator_path(getattr(module, first), rest)
    raise AssertionError(f"docs/reference.md: there is no {dotted}")


def operator_path(thing: Any, rest: list[str]) -> Any:
    for name in rest:
        thing = getattr(thing, name)
    return thing


@pytest.mark.parametrize(("dotted", "arguments"), signatures())
def test_reference_signatures(dotted: str, arguments: str) -> None:
    if dotted.startswith("enclavia.") and not installed(dotted.split(".")[1]):
        pytest.skip(f"{dotted.split('.')[1]} is not installed")
    thing = found(dotted)
    real = [
        parameter
        for parameter in inspect.signature(thing).parameters.values()
        if parameter.name not in ("self", "unsupported")
    ]
    said = ast.parse(f"def f({arguments.replace('…', '...')}): ...").body[0]
    assert isinstance(said, ast.FunctionDef)
    where = said.args
    ours = [argument.arg for argument in (*where.posonlyargs, *where.args, *where.kwonlyargs)]
    ours += [where.kwarg.arg] if where.kwarg else []
    assert ours == [parameter.name for parameter in real]
    keyword_only = [p.name for p in real if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert [argument.arg for argument in where.kwonlyargs] == keyword_only
    optional = len(where.defaults) + sum(value is not None for value in where.kw_defaults)
    assert optional == sum(p.default is not inspect.Parameter.empty for p in real)


def test_reference_has_signatures() -> None:
    assert len(signatures()) > 30


_TEST_NAME = re.compile(r"`(tests/[\w/]+\.(?:py|c))::(\w+)`")


@functools.cache
def functions_in(path: str) -> set[str]:
    text = (ROOT / path).read_text()
    if path.endswith(".c"):
        return set(re.findall(r"cmocka_unit_test\((\w+)\)", text))
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef))
    return {node.name for node in functions if node.name.startswith("test_")}


def test_comparison_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "comparison.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| |", "| ---", "| **"))]
    assert len(rows) > 30
    for row in rows:
        named = _TEST_NAME.findall(row)
        assert named, f"no test backs this row: {row}"
        for path, test in named:
            assert test in functions_in(path), f"{path} has no {test}"


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    table = text.partition("## What is promised")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 15
    for row in rows:
        assert _TEST_NAME.search(row.rsplit(" | ", 1)[1]), f"no test backs this promise: {row}"
    for path, test in _TEST_NAME.findall(text):
        assert test in functions_in(path), f"{path} has no {test}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
