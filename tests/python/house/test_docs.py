"""What the documentation says is run, and what it names exists.

The code of a page runs in order and in one namespace. A local enclave stands in for the one of the
page: its URL is put in place of the example's, its root in place of AWS's, and its PCRs are what
``status.json`` says.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
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
from typing import Any

import httpx2
import pytest
from doc_blocks import OF_PROGRAMS, PAGES, blocks
from doc_numbers import CLAIMS, NO_QUANTITY, WHOLLY_CLAIMED, Claim, evaluate, quantity
from docs_app import app
from repository import ROOT
from sigstore_instance import Instance, statement

import enclavia
import enclavia.testing
from enclavia._exchange.engine import Stats
from enclavia._exchange.retry import IDEMPOTENT
from enclavia.testing import BackendFault, Fault, LocalEnclave

EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
URL_IN_DOCS = '"wss://<id>.enclaves.beta.enclavia.io"'

# What a page of tests takes as given: the imports at the head of its file. Every other page runs as
# it stands.
FOR_TESTS = """
import enclavia
import pytest
from enclavia.testing import Fault
"""

SHOP = """
async def app(scope, receive, send):
    assert scope["type"] in ("http", "lifespan")
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
"""

# Engines, whose imports change this process: what is about them is left out here, and run by
# tests/fleet/test_with_engines.py, which sets WITH_ENGINES.
ENGINES = {"dask.bag", "distributed", "pyspark", "ray"}
WITH_ENGINES = bool(os.environ.get("WITH_ENGINES"))

# What the examples need beyond pyproject.toml's group "test", and what came to that lately: left
# out, with a warning, where it is missing. Anything else that is missing fails.
NOT_IN_THE_TEST_GROUP = {"fsspec", "opentelemetry.sdk", "pandas", "polars", "pyarrow", "tqdm"}

# What a module of enclavia needs, where that has another name.
NEEDED_BY = {"dask": "distributed", "opentelemetry": "opentelemetry.sdk", "spark": "pyspark"}


def with_code() -> list[Path]:
    """Those of programs are run by tests/fleet/test_recipes.py and
    tests/python/integrations/test_programs.py."""
    return [page for page in PAGES if blocks(page) and page.name not in OF_PROGRAMS]


def name(page: Path) -> str:
    return page.name


def installed(module: str) -> bool:
    if module in ENGINES and not WITH_ENGINES:
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    with LocalEnclave(app, max_connections=32) as enclave:
        yield enclave


def signed_pins(folder: Path, pins: enclavia.Pcrs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pipeline publishes, and a Sigstore of its own in place of the public one."""
    content = json.dumps({"Measurements": pins.as_dict()}).encode()
    instance = Instance()
    (folder / "pcrs.json").write_bytes(content)
    bundle = instance.of_statement(statement(("pcrs.json", content)))
    (folder / "pcrs.json.sigstore.json").write_text(json.dumps(bundle))
    root = folder / "trusted_root.json"
    root.write_bytes(instance.trusted_root())
    monkeypatch.setattr("enclavia._trust.sigstore_pins.embedded_root", lambda: root)


@pytest.fixture
def desk(tmp_path: Path, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the reader sits: the files that the examples open, and a world in which the local
    enclave's root is the default one."""
    signed_pins(tmp_path, enclave.pcrs, monkeypatch)
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
    settings = (ROOT / "docs" / "testing.md").read_text().partition("```toml\n")[2]
    (tmp_path / "pyproject.toml").write_text(settings.partition("```")[0])
    for module in (
        "enclavia._channel.config",
        "enclavia._identity.attestation",
        "enclavia._trust.receipt_text",
    ):
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
    (desk / "test_block.py").write_text(FOR_TESTS + code)
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


def start_ray() -> None:
    """On loopback alone, which an example leaves to Ray."""
    import ray

    if not ray.is_initialized():
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _node_ip_address="127.0.0.1",
        )


@pytest.mark.parametrize("page", with_code(), ids=name)
def test_code_of(page: Path, desk: Path, enclave: LocalEnclave) -> None:
    module = types.ModuleType(f"code_of_{page.stem.lower()}")
    sys.modules[module.__name__] = module  # so that its functions can be sent to workers
    namespace = module.__dict__
    left_out = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", enclavia.DebugModeWarning)
            for block in blocks(page):
                if block.needs in ENGINES and not installed(block.needs):
                    continue
                if block.needs in NOT_IN_THE_TEST_GROUP and not installed(block.needs):
                    left_out.append(f"{page.name}:{block.line} needs {block.needs}")
                    continue
                code = block.code.replace(URL_IN_DOCS, repr(enclave.url))
                if block.needs == "ray":
                    start_ray()
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
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
    if left_out:
        warnings.warn(f"not run: {', '.join(left_out)}", stacklevel=1)


class _Names(ast.NodeVisitor):
    """Of a block: what it reads, and what it makes anywhere."""

    def __init__(self, code: str) -> None:
        self.read: set[str] = set()
        self.made: set[str] = set()
        self.visit(compile(code, "", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))

    def generic_visit(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                self.read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                self.made.add(name)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self.made.add(node.name)
            case ast.alias():
                self.made.add((node.asname or node.name).partition(".")[0])
        super().generic_visit(node)


@pytest.mark.parametrize("page", with_code(), ids=name)
def test_a_page_imports_what_it_uses(page: Path) -> None:
    """Before it is used, in a block that is always run, or in one that needs something as well."""
    always = set(dir(builtins)) | {"__name__"}
    with_extras: set[str] = set()
    for block in blocks(page):
        names = _Names(block.code)
        there = always | (with_extras if block.needs else set())
        missing = names.read - names.made - there
        assert not missing, f"{page.name}:{block.line} uses {', '.join(sorted(missing))}"
        (with_extras if block.needs else always).update(names.made)


def test_code_is_found() -> None:
    """The pattern above finds every fence that says Python."""
    for page in PAGES:
        assert len(blocks(page)) == len(re.findall(r"^\s*```py", page.read_text(), re.MULTILINE))
    assert {page.name for page in with_code()} >= {"README.md", "SKILL.md", "guide.md"}


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
    if dotted.startswith("enclavia."):
        module = dotted.split(".")[1]
        needed = NEEDED_BY.get(module, module)
        if not installed(needed):
            pytest.skip(f"{needed} is not installed, or left to tests/fleet")
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
    positional = [argument.arg for argument in (*where.posonlyargs, *where.args)]
    defaults = dict(
        zip(positional[len(positional) - len(where.defaults) :], where.defaults, strict=True)
    )
    defaults |= {
        argument.arg: value
        for argument, value in zip(where.kwonlyargs, where.kw_defaults, strict=True)
        if value is not None
    }
    for name, value in defaults.items():
        text = ast.unparse(value)
        if text != "...":  # which stands for one that says "not given"
            said = eval(text, vars(enclavia.testing))
            really = inspect.signature(thing).parameters[name].default
            assert alike(said, really), f"{dotted}({name}=…): {really!r}, not {text}"
    optional = len(where.defaults) + sum(value is not None for value in where.kw_defaults)
    assert optional == sum(p.default is not inspect.Parameter.empty for p in real)


def alike(said: Any, real: Any) -> bool:
    """A number stands for a timeout of that many seconds."""
    if isinstance(real, httpx2.Timeout):
        return bool(real == httpx2.Timeout(said))
    return type(said) is type(real) and said == real


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


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.page}: {claim.text}")
def test_a_number_is_the_codes(claim: Claim) -> None:
    page = ROOT / claim.page if claim.page == "README.md" else ROOT / "docs" / claim.page
    found = claim.found(page.read_text())
    assert found, f"{claim.page} does not say this any more; change it in doc_numbers.py too"
    expected = [source() for source in claim.sources]
    for numbers in found:
        for said, value in zip(numbers, expected, strict=True):
            assert quantity(said) == pytest.approx(value), f"{said} is {value} in the code"


def numbers_without_source(page: str, section: str) -> list[str]:
    """What stands in a section's text, and is neither claimed nor known to be something else."""
    left = section
    for claim in CLAIMS:
        if claim.page == page:
            left = claim.left_out(left)
    for known in NO_QUANTITY:
        left = re.sub(known, " ", left, flags=re.DOTALL | re.MULTILINE)
    return [line for line in left.splitlines() if re.search(r"\d", line)]


@pytest.mark.parametrize(("page", "begin", "end"), WHOLLY_CLAIMED)
def test_no_number_is_left_out(page: str, begin: str, end: str) -> None:
    """A number that is added to these sections needs a claim in doc_numbers.py."""
    section = (ROOT / "docs" / page).read_text().partition(begin)[2].partition(end)[0]
    assert section
    assert numbers_without_source(page, section) == []


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("15 MiB", 15 * 2**20),
        ("10 ms", 0.01),
        ("65 519 bytes", 65519),
        ("65 535", 65535),
        ("twice", 2),
        ("a third", 1 / 3),
        ("0.1 ms", 1e-4),
        ("48-byte", 48),
        ("two", 2),
    ],
)
def test_quantities_are_read(said: str, value: float) -> None:
    assert quantity(said.replace("-byte", " bytes")) == pytest.approx(value)


def test_constants_are_read() -> None:
    names = {"A": "((size_t)128 * 1024)", "B": "(A + 2 * (size_t)C)", "C": "0x10u"}
    assert evaluate("B", names) == 128 * 1024 + 32
    with pytest.raises(ValueError, match="no arithmetic"):
        evaluate("f(1)", names)


def test_lists_of_the_reference_are_whole() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    for kind in (Fault, BackendFault):
        faults = text.partition(f"* `{kind.__name__}`")[2].partition("\n* ")[0].partition("\n\n")[0]
        assert set(re.findall(r"`([A-Z_0-9]{4,})`", faults)) == {str(fault.name) for fault in kind}
    stats = text.partition("| `client.stats` |")[2].partition("\n")[0]
    assert set(re.findall(r"`(\w+)`", stats)) == set(Stats.__annotations__)
    guide = (ROOT / "docs" / "guide.md").read_text()
    methods = re.search(r"its method is idempotent \(([A-Z,\s]+)\)", guide)
    assert methods is not None
    assert set(re.split(r",\s+", methods[1])) == IDEMPOTENT


def test_the_table_of_mutants_adds_up() -> None:
    """Figures of a run; that they belong to one run can be seen in the page."""
    text = (ROOT / "docs" / "security.md").read_text()
    table = text.partition("## Mutation")[2].partition("\n## ")[0]
    rows = re.findall(
        r"^\| [^|]*\|(?: \**([\d ]+)\** \|)(?: \**([\d ]+)\** \|)"
        r"(?: \**([\d ]+)\** \|)(?: \**([\d ]+)\** \|)$",
        table,
        re.MULTILINE,
    )
    counts = [[int(cell.replace(" ", "")) for cell in row] for row in rows]
    assert len(counts) > 3
    for made, killed, equivalent, survived in counts:
        assert made == killed + equivalent + survived
    *parts, total = counts
    assert [sum(column) for column in zip(*parts, strict=True)] == total


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


def public_members() -> Iterator[tuple[str, object]]:
    """Every class, function, method and property that users are told of, by its full name."""
    extras = ("dask", "fsspec", "httpx", "opentelemetry", "ray", "requests", "spark")
    names = [f"enclavia.{extra}" for extra in extras if installed(NEEDED_BY.get(extra, extra))]
    for name in ("enclavia", "enclavia.testing", *names):
        module = importlib.import_module(name)
        for public in module.__all__:
            thing = getattr(module, public)
            if not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            yield f"{name}.{public}", thing
            for member in dir(thing) if inspect.isclass(thing) else ():
                owner = next((c for c in thing.__mro__ if member in vars(c)), object)
                if member.startswith("_") or owner.__module__.partition(".")[0] != "enclavia":
                    continue
                found = inspect.getattr_static(thing, member)
                if isinstance(found, property | functools.cached_property):
                    yield f"{name}.{public}.{member}", found
                elif callable(getattr(thing, member)):
                    yield f"{name}.{public}.{member}", getattr(thing, member)


def test_every_public_member_says_what_it_is() -> None:
    members = list(public_members())
    assert len(members) > 150
    assert [name for name, member in members if not inspect.getdoc(member)] == []


@pytest.mark.parametrize("cls", [enclavia.Client, enclavia.AsyncClient])
def test_the_docstring_of_a_client_names_every_option(cls: type) -> None:
    """It is what ``Client?`` shows in a notebook."""
    said = set(re.findall(r"\b[a-z_]+\b", cls.__doc__ or ""))
    parameters = inspect.signature(cls).parameters.values()
    options = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert "pcrs" in options
    assert not options - said
