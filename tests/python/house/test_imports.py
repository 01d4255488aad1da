"""What ``import enclavia`` loads. Its time is made of this: a module costs a third of a millisecond
of a slow machine, whether anybody uses it or not, and so does a class that is generated.

Counted, not timed: a loaded machine tells nothing by its clock. ``make bench`` has the time.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable

from repository import ROOT

from enclavia._unfinished import WAITED_FOR

# Modules of the package that every program with a blocking client uses. A module that few programs
# use is imported where it is used, or by enclavia.__getattr__.
EAGER = frozenset(
    """
    _arguments _core _errors _public _records _text _unfinished
    _channel _channel.config _channel.operations _channel.options _channel.payload
    _channel.trust_store _channel.url
    _client _client.client _client.configured _client.fast_path _client.files
    _client.header_text _client.httpx2_inside
    _client.options _client.request_cache _client.response _client.settings _client.transport
    _client.transport_base
    _exchange _exchange.connecting _exchange.connections _exchange.engine _exchange.exchange
    _exchange.message _exchange.pinning _exchange.remembering _exchange.renewal _exchange.retry
    _exchange.timeouts _exchange.tunnel _exchange.validity _exchange.verified _exchange.waiting
    _exchange.watching
    _http1 _http1.chunks _http1.fields _http1.head _http1.limits _http1.llhttp _http1.request
    _http1.response
    _identity _identity.pcrs _identity.pins
    _io _io.blocking _io.face _io.late _io.polling _io.threads
    _pool _pool.choose _pool.guard _pool.kinds _pool.members _pool.outage _pool.outbox _pool.pool
    _pool.queue _pool.ticket _pool.turns
    _trust _trust.receipts
    """.split()
)
# Of other packages and of Python, beyond what httpx2 has loaded.
ALSO = frozenset(("_contextvars", "contextvars"))
# How often Python compiles a text at most: once for each field of a typed tuple or dictionary whose
# type is written as text, and once for each such tuple; half a dozen times for a dataclass. Where
# all types are there at import, a module of typed tuples does without
# `from __future__ import annotations`, which makes texts of them.
COMPILED = 120

REPORT = """
import json, sys
import httpx2
before = set(sys.modules)
compiled = []
def note(event, arguments):  # not modules, which are compiled where no bytecode is kept
    if event == "compile" and not str(arguments[1]).endswith(".py"):
        compiled.append(event)
sys.addaudithook(note)
{statement}
print(json.dumps([sorted(set(sys.modules) - before), len(compiled)]))
"""


def after(statement: str) -> tuple[set[str], int]:
    """The modules that the statement loads where httpx2 is loaded, and how often it had Python
    compile a text: generated methods and annotations that are looked up are such texts."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", REPORT.format(statement=statement)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    modules, compiled = json.loads(done.stdout)
    return set(modules), compiled


def own(modules: Iterable[str]) -> set[str]:
    package = "enclavia."
    return {name.removeprefix(package) for name in modules if name.startswith(package)}


def others(modules: Iterable[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] != "enclavia"}


def test_what_few_programs_use_is_not_loaded() -> None:
    loaded, _ = after("import enclavia")
    assert own(loaded) - EAGER == set(), "import these where they are used"
    assert EAGER - own(loaded) == set(), "these are no longer loaded: take them out of EAGER"
    assert others(loaded) - ALSO == set(), "import these where they are used"


def test_hardly_anything_is_compiled() -> None:
    """Python 3.14 looks types up when somebody asks for them; earlier ones when a class is made."""
    _, compiled = after("import enclavia")
    assert compiled <= COMPILED, "a class costs more than it has to: see COMPILED"


def imported_late(source: str) -> set[str]:
    """The top names of what functions import of other packages."""
    found: set[str] = set()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(str(node.module).partition(".")[0])
    return found


def test_fork_waits_for_whatever_is_imported_late() -> None:
    """tests/python/processes/test_first_use.py has what happens in a child otherwise."""
    files = (ROOT / "enclavia").rglob("*.py")
    late = set().union(*(imported_late(path.read_text()) for path in files))
    assert {"httptools", "sigstore"} <= late
    only_in_browsers = {"js", "pyodide"}
    assert late - only_in_browsers <= WAITED_FOR, "add these to WAITED_FOR"


def test_making_a_client_loads_nothing_more() -> None:
    """Nothing that everybody needs was only put off."""
    pins = "pcr0='11' * 48, pcr1='22' * 48, pcr2='33' * 48"
    made = f"import enclavia; enclavia.Client('wss://example.com', pcrs=enclavia.Pcrs({pins}))"
    assert after(made)[0] == after("import enclavia")[0]
