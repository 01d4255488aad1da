"""The pytest plugin, in suites of its own, each of which is run by a pytest of its own.

The suites are many tests in few runs: starting Python and pytest is what takes time here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import waitress.server  # noqa: F401
from repository import ROOT

import enclavia.testing._pki  # noqa: F401
from enclavia.testing import LocalEnclave
from pytest_enclavia._marks import _KEYWORDS

# pytester forgets, after each test, the modules that were imported meanwhile. What a local enclave
# needs is imported above, before the first: cryptography does not work when it is imported twice.
pytest_plugins = ["pytester"]

# What a user's project has. Two plugins that come with other packages of the tests take a second to
# be imported and have nothing to do with this one.
INI = """
[pytest]
addopts = --strict-markers -p no:cacheprovider -p no:zarr -p no:langsmith_plugin
asyncio_default_fixture_loop_scope = function
{more}
"""
APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"bought"]

def other(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"other"]
"""
PRELUDE = """
import os
import pytest
import enclavia
from enclavia.testing import Fault, LocalEnclave
"""


class Project:
    """A folder with an app, an ini file and a suite."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.path = pytester.path
        pytester.mkpydir("shop")
        (self.path / "shop" / "api.py").write_text(APP)
        self.ini("enclavia_app = shop.api:app")

    def ini(self, *lines: str) -> None:
        self._pytester.makeini(INI.format(more="\n".join(lines)))

    def suite(self, text: str, name: str = "test_shop.py") -> None:
        (self.path / name).write_text(PRELUDE + text)

    def run(self, *arguments: str) -> pytest.RunResult:
        return self._pytester.runpytest_subprocess(*arguments)


# What changes what pytest prints: on a CI system its summary repeats whole messages, for one.
PRINTED_OTHERWISE = ("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS", "FORCE_COLOR", "PY_COLORS", "NO_COLOR")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in PRINTED_OTHERWISE:
        monkeypatch.delenv(name, raising=False)
    return Project(pytester)


def text_of(result: pytest.RunResult) -> str:
    return "\n".join([*result.outlines, *result.errlines])


# ---- fixtures and the marker


def test_a_suite(project: Project) -> None:
    project.ini("enclavia_app = shop.api:app", "filterwarnings = error")
    project.suite("""
from shop.api import other

SEEN = []

def test_it_answers(enclave, enclave_client):
    assert enclave_client.get("/").text == "bought"
    assert enclave_client.attestation.proven
    assert enclave.pid == os.getpid()
    SEEN.append(enclave.url)

def test_tests_share_it(enclave, enclave_client):
    assert enclave.url == SEEN[0]
    assert enclave_client.stats.connects == 0, "a client is new, and has not connected"

@pytest.mark.enclavia(fault=Fault.WRONG_PCRS)
def test_a_fault(enclave_client):
    with pytest.raises(enclavia.PcrMismatch):
        enclave_client.get("/")

@pytest.mark.enclavia(fault=Fault.TRUNCATED, truncated_after=2)
def test_a_fault_with_a_parameter(enclave):
    with enclave.client(retries=0) as client:
        with pytest.raises(enclavia.IncompleteResponse, match="after 2 "):
            client.get("/")

def test_a_fault_is_off_after_its_test(enclave, enclave_client):
    assert enclave.faults == Fault(0)
    assert enclave_client.get("/").status_code == 200
    enclave.set_faults(Fault.WRONG_NONCE)

def test_also_one_that_a_test_has_switched_on(enclave, enclave_client, enclave_faults):
    assert enclave_client.get("/").status_code == 200
    enclave_faults.set(Fault.SPLIT, split=2)
    assert enclave.faults == Fault.SPLIT
    enclave_faults.clear()
    assert enclave.faults == Fault(0)
    enclave_faults.set(Fault.UPGRADE_503)
    with pytest.raises(enclavia.UpgradeRejected), enclave.client(patience=0):
        pass

def test_well_again(enclave):
    assert enclave.faults == Fault(0)

@pytest.fixture
def logged_in(enclave_client):
    assert enclave_client.get("/login").status_code == 200
    return enclave_client

@pytest.mark.enclavia(fault=Fault.CLOSE_ON_REQUEST)
def test_a_fault_is_off_while_fixtures_are_set_up(enclave, logged_in):
    assert enclave.faults == Fault.CLOSE_ON_REQUEST

@pytest.fixture
def broken(enclave_faults):
    enclave_faults.set(Fault.WRONG_ROOT)

def test_but_a_fixture_may_switch_one_on(broken, enclave_client):
    with pytest.raises(enclavia.CertificateError):
        enclave_client.get("/")

def test_and_that_is_off_too(enclave):
    assert enclave.faults == Fault(0)

@pytest.mark.enclavia(instead_of_attestation=b"\\xf6")
def test_a_plaintext_alone(enclave_client):
    with pytest.raises(enclavia.ProtocolError):
        enclave_client.get("/")

class TestOther:
    pytestmark = pytest.mark.enclavia(app="shop.api:other", fault=Fault.WRONG_PCRS)

    @pytest.mark.enclavia(fault=Fault(0))
    def test_the_closest_marker_counts_for_each_keyword(self, enclave, enclave_client):
        assert enclave.url != SEEN[0]
        assert enclave_client.get("/").text == "other"

@pytest.mark.enclavia(app=other)
def test_an_app_itself(enclave_client):
    assert enclave_client.get("/").text == "other"

@pytest.mark.enclavia(in_process=False)
def test_a_child(enclave, enclave_client, enclave_faults):
    assert enclave.pid != os.getpid()
    assert enclave_client.get("/").text == "bought"
    enclave_faults.set(Fault.WRONG_PCRS)

@pytest.mark.enclavia(in_process=False)
def test_the_child_is_well_again(enclave, enclave_client):
    assert enclave_client.get("/").text == "bought"

@pytest.mark.enclavia(mode="debug")
@pytest.mark.filterwarnings("default::enclavia.DebugModeWarning")
def test_debug_mode(enclave, enclave_client):
    assert enclave.mode == "debug"
    assert enclave_client.get("/").text == "bought"
    assert not enclave_client.attestation.proven

FACTORY = []

def test_further_enclaves(enclave, enclave_factory):
    one = enclave_factory()
    two = enclave_factory("shop.api:other", tls=True)
    assert len({one.url, two.url, enclave.url}) == 3
    with one.client() as a, two.client() as b:
        assert (a.get("/").text, b.get("/").text) == ("bought", "other")
    FACTORY.extend([one, two])

def test_end_with_their_test():
    assert len(FACTORY) == 2
    for enclave in FACTORY:
        with pytest.raises(RuntimeError, match="does not run"):
            enclave.url

def test_the_session_one_goes_on(enclave, enclave_client):
    assert enclave.url == SEEN[0]
    assert enclave_client.get("/").text == "bought"
""")
    result = project.run("-v")
    result.assert_outcomes(passed=19)
    assert "test_debug_mode[debug]" in text_of(result)
    assert "[shop.api:other]" in text_of(result)


def test_the_ini_file_chooses_a_child_process(project: Project) -> None:
    project.ini("enclavia_app = shop.api:app", "enclavia_in_process = false")
    project.suite("""
@pytest.fixture(scope="session")
def shared(enclave):
    with enclave.client() as client:
        yield client

def test_in_a_child(enclave, shared, enclave_factory):
    assert enclave.pid != os.getpid()
    assert enclave_factory().pid != os.getpid()
    assert enclave_factory(in_process=True).pid == os.getpid()
    assert shared.get("/").text == "bought"

@pytest.mark.enclavia(in_process=True)
def test_in_this_process(enclave):
    assert enclave.pid == os.getpid()
""")
    project.run().assert_outcomes(passed=2)


def test_a_fixture_of_the_suite_in_its_place(project: Project) -> None:
    """The other fixtures follow, and what it has switched on for good stays on."""
    project.ini()
    project.suite("""
@pytest.fixture(scope="module")
def enclave():
    with LocalEnclave("shop.api:other", faults=Fault.SPLIT, split=5) as enclave:
        yield enclave

def test_it_is_used(enclave_client):
    assert enclave_client.get("/").text == "other"

@pytest.mark.enclavia(fault=Fault.WRONG_PCRS)
def test_faults_are_its(enclave, enclave_client):
    with pytest.raises(enclavia.PcrMismatch):
        enclave_client.get("/")

def test_by_the_fixture_too(enclave, enclave_faults):
    assert enclave.faults == Fault.SPLIT
    enclave_faults.set(Fault.FULL)

def test_what_was_on_is_on(enclave):
    assert enclave.faults == Fault.SPLIT
""")
    project.run().assert_outcomes(passed=4)


# ---- what is wrong is said


def test_markers_that_say_nothing_of_use(project: Project) -> None:
    one_of = "expected one of"
    wrong = {
        "name": ("(appp='x:y')", f"unknown keyword 'appp': {one_of} app, mode, in_process,"),
        "positional": ("('x:y')", "expected keywords alone, got the positional 'x:y'"),
        "mode": (
            "(mode='prod')",
            f"mode: {one_of} 'production', 'debug', 'stub', got 'prod'",
        ),
        "process": ("(in_process=1)", "in_process: expected True or False, got 1"),
        "fault": (
            "(fault='FULL')",
            "fault: expected a member of enclavia.testing.Fault, got 'FULL'",
        ),
        "app": ("(app='nothing')", "app: expected 'host:port', 'module:attribute', a WSGI"),
        "delay": ("(fault=Fault.SLOW)", "delay: expected 0.001 s or more, as Fault.SLOW is on"),
        "leaf": (
            "(mode='stub', fault=Fault.EXPIRED_LEAF)",
            "faults: EXPIRED_LEAF is about certificates",
        ),
        "other": ("(mode='debug')", "mode can be said of the plugin's own fixture enclave, and"),
    }
    for name, (arguments, _) in wrong.items():
        fixture = "@pytest.fixture\ndef enclave(): pass\n" if name == "other" else ""
        project.suite(
            f"{fixture}@pytest.mark.enclavia{arguments}\ndef test_{name}(enclave): pass",
            f"test_{name}.py",
        )
    result = project.run()
    result.assert_outcomes(errors=len(wrong))
    text = text_of(result)
    for name, (_, said) in wrong.items():
        assert f"test_{name}.py::test_{name}: @pytest.mark.enclavia: {said}" in text
    assert "Traceback" not in text


def test_apps_that_are_not_there(project: Project) -> None:
    project.ini()
    (project.path / "broken.py").write_text("1 / 0\n")
    project.suite("""
def test_none(enclave): pass

@pytest.mark.enclavia(app="nowhere.api:app")
def test_no_module(enclave): pass

@pytest.mark.enclavia(app="shop.nowhere:app")
def test_no_submodule(enclave): pass

@pytest.mark.enclavia(app="nowhere.api:app", in_process=False)
def test_no_module_in_a_child(enclave): pass

@pytest.mark.enclavia(app="shop.api:nowhere")
def test_no_attribute(enclave): pass

@pytest.mark.enclavia(app=lambda environ, start_response: [], in_process=False)
def test_not_importable(enclave): pass

@pytest.mark.enclavia(app="broken:app")
def test_broken(enclave): pass
""")
    result = project.run()
    result.assert_outcomes(errors=7)
    text = text_of(result)
    for said in (
        'has no app to run: set enclavia_app = "package.module:app"',
        "app = 'nowhere.api:app' cannot be imported: ModuleNotFoundError: No module named 'now",
        "app = 'shop.nowhere:app' cannot be imported: ModuleNotFoundError: No module named 'shop",
        "app = 'shop.api:nowhere' cannot be imported: AttributeError: module 'shop.api' has no",
        "an app for another process must be importable there",
        "broken.py:1: ZeroDivisionError",  # with its traceback: that is the app's own fault
        "while a local enclave was started with app = 'broken:app'",
    ):
        assert said in text
    assert text.count("cannot be imported") == 4
    assert text.count('pythonpath = ["."]') == 4


def test_an_app_of_the_ini_file_that_is_not_there(project: Project) -> None:
    project.ini("enclavia_app = shop")
    project.suite("def test_it(enclave): pass")
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["enclavia_app = 'shop': app: expected 'host:port', *, got 'shop'"])


# ---- reports


def test_a_failure_shows_the_enclave(project: Project) -> None:
    project.suite("""
import logging

def test_before(enclave_client):
    enclave_client.get("/")
    enclave_client.get("/")

@pytest.mark.enclavia(fault=Fault.SPLIT, split=7)
def test_fails(enclave_client):
    assert enclave_client.get("/").text == "sold"

@pytest.mark.enclavia(fault=Fault.WRONG_PCRS)
def test_unverified(enclave_client):
    enclave_client.get("/")

def test_passes(enclave_client, caplog):
    enclave_client.get("/")
    assert caplog.records == [], "the level that the suite has set is the one that counts"

def test_own_level(enclave_client, caplog):
    with caplog.at_level(logging.INFO, "enclavia"):
        enclave_client.get("/")
    assert [record.name for record in caplog.records].count("enclavia") >= 2

def test_levels_are_as_they_were(enclave):
    logger = logging.getLogger("enclavia")
    assert logger.getEffectiveLevel() < logging.INFO

def test_without_an_enclave():
    assert logging.getLogger("enclavia").level == logging.NOTSET
    assert False
""")
    result = project.run()
    result.assert_outcomes(passed=4, failed=3)
    first, second, third = re.split(r"^_{5,} (?=test_)", text_of(result), flags=re.MULTILINE)[1:]
    for said in (
        r"-+ enclavia: enclave -+\n<LocalEnclave production ws://[\d.:]+>\nfaults: SPLIT\n",
        r"in this test: connections_total 1, connections_open \d, slots_open \d, streams_total 1, ",
        r"-+ enclavia: attestation -+\n<Client ws://[\d.:]+/.*>\nform +signed, and chained",
        r"-+ enclavia: log -+\n\+0\.\d\d\d s INFO connecting to 127\.0\.0\.1:\d+\n",
    ):
        assert re.search(said, first), (said, first)
    assert "faults: WRONG_PCRS\nPCR0 " in second
    assert second.count("nothing was verified") == 1, "of this test's client alone"
    assert "enclavia:" not in third.partition("short test summary")[0]


def test_children_that_print_and_that_die(project: Project) -> None:
    project.suite("""
import signal
import sys

def printing(environ, start_response):
    sys.stderr.write("said inside of the child\\n")
    sys.stderr.flush()
    start_response("200 OK", [("Content-Length", "0")])
    return []

@pytest.mark.enclavia(app="test_shop:printing", in_process=False)
def test_printed(enclave_client):
    enclave_client.get("/")
    assert False

@pytest.mark.enclavia(in_process=False)
def test_killed(enclave):
    os.kill(enclave.pid, signal.SIGKILL)
    enclave.set_faults(Fault.FULL)

ENDED = []

@pytest.fixture
def ends():
    yield
    ENDED.append(1)

@pytest.mark.enclavia(app="shop.api:other", in_process=False)
def test_killed_with_a_fault_on(ends, enclave):
    enclave.set_faults(Fault.FULL)
    os.kill(enclave.pid, signal.SIGKILL)

def test_another(enclave_client):
    assert ENDED == [1]
    assert enclave_client.get("/").text == "bought"
""")
    result = project.run()
    text = text_of(result)
    assert "its process has ended or does not answer" in text
    assert re.search(r"-+ Captured stderr call -+\nsaid inside of the child\n", text)
    assert "2 failed, 2 passed in" in text


# As Starlette and FastAPI do it: an answer, and then the exception, which the server logs.
FAILS_LATE = """
import asyncio

async def fails_late(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError("no lifespan")
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    await asyncio.sleep(0.2)
    raise RuntimeError("the app is " + "broken")

@pytest.mark.parametrize("say", [AssertionError, pytest.fail.Exception])
def test_fails(enclave_client, say):
    if enclave_client.get("/").status_code == 500:
        raise say("as is " + "expected")
"""


@pytest.mark.parametrize("in_process", [True, False])
def test_an_apps_traceback_is_the_test_functions(project: Project, in_process: bool) -> None:
    project.ini("enclavia_app = test_shop:fails_late", f"enclavia_in_process = {in_process}")
    project.suite(FAILS_LATE)
    result = project.run()
    result.assert_outcomes(failed=2)
    where = "Captured log call" if in_process else "Captured stderr call"
    for report in text_of(result).split("___ test_fails")[1:]:
        said = report.partition(f"- {where} -")[2].partition("- enclavia: enclave -")[0]
        assert "RuntimeError: the app is broken\n" in said, report
        assert "pytest_enclavia" not in report, "its frames are nobody's business"


# ---- with other plugins


def test_each_process_of_xdist_has_its_enclaves(project: Project) -> None:
    pytest.importorskip("xdist")
    project.suite("""
@pytest.mark.parametrize("n", range(6))
def test_it(enclave, enclave_client, n, worker_id):
    assert enclave.pid == os.getpid()
    assert enclave_client.get("/").text == "bought"
    print(worker_id)

@pytest.mark.enclavia(fault=Fault.WRONG_PCRS, mode="debug")
def test_a_marker(enclave, enclave_client):
    enclave_client.get("/")
    assert enclave.faults == Fault(0)
""")
    result = project.run("-n", "2", "-rP")
    result.assert_outcomes(passed=6, failed=1)
    assert {"gw0", "gw1"} <= set(text_of(result).split())
    result.stdout.fnmatch_lines(["*enclavia: enclave*", "faults: WRONG_PCRS"])


def test_event_loops(project: Project) -> None:
    pytest.importorskip("pytest_asyncio")
    project.ini("enclavia_app = shop.api:app", "filterwarnings = error")
    project.suite("""
import asyncio
import threading
import anyio

@pytest.mark.asyncio
async def test_asyncio(enclave, async_enclave_client):
    assert (await async_enclave_client.get("/")).text == "bought"

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_anyio(async_enclave_client):
    answers = []
    async def ask():
        answers.append((await async_enclave_client.get("/")).text)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask)
    assert answers == ["bought"] * 3

@pytest.mark.asyncio(loop_scope="module")
class TestModule:
    loop = None

    async def test_one(self, async_enclave_client):
        type(self).loop = asyncio.get_running_loop()
        assert (await async_enclave_client.get("/")).text == "bought"

    async def test_two(self, async_enclave_client):
        assert asyncio.get_running_loop() is self.loop
        assert (await async_enclave_client.get("/")).text == "bought"

@pytest.mark.asyncio
@pytest.mark.enclavia(fault=Fault.WRONG_PCRS)
async def test_a_fault(async_enclave_client):
    with pytest.raises(enclavia.PcrMismatch):
        await async_enclave_client.get("/")

def test_every_client_was_closed(enclave):
    for _ in range(1000):
        if enclave.stats()["connections_open"] == 0:
            return
        threading.Event().wait(0.01)
    assert False

def test_without_a_loop(async_enclave_client):
    pass
""")
    result = project.run()
    result.assert_outcomes(passed=7, errors=1)
    assert "needs a test that runs in an event loop" in text_of(result)
    assert "pytest-asyncio 0.24 or later, which is installed" in text_of(result)


def test_the_automatic_mode_of_pytest_asyncio(project: Project) -> None:
    pytest.importorskip("pytest_asyncio")
    project.ini("enclavia_app = shop.api:app", "asyncio_mode = auto")
    project.suite("""
async def test_it(async_enclave_client):
    assert (await async_enclave_client.get("/")).text == "bought"
""")
    project.run().assert_outcomes(passed=1)


def test_without_pytest_asyncio(project: Project) -> None:
    project.suite("""
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it(async_enclave_client):
    assert (await async_enclave_client.get("/")).text == "bought"

def test_without_a_loop(async_enclave_client):
    pass
""")
    result = project.run("-p", "no:asyncio", "-W", "ignore::pytest.PytestConfigWarning")
    result.assert_outcomes(passed=1, errors=1)
    assert "pytest-asyncio 0.24 or later, which is not installed" in text_of(result)


def test_a_pytest_asyncio_that_is_too_old(project: Project) -> None:
    """Its fixtures have no loop_scope. Suites that have it must run as they did."""
    package = project.path / "pytest_asyncio"
    package.mkdir()
    (package / "__init__.py").write_text("from .plugin import fixture")
    (package / "plugin.py").write_text("""
import pytest

def fixture(function=None, **options):
    return pytest.fixture(function, **options)
""")
    project.suite("""
def test_it(): pass

def test_a_client(async_enclave_client): pass
""")
    result = project.run()
    result.assert_outcomes(passed=1, errors=1)
    assert "pytest-asyncio 0.24 or later, which is not installed" in text_of(result)


# ---- a real enclave


SUITE = """
def test_anywhere(enclave, enclave_client):
    assert enclave_client.get("/").text == "bought"
    assert enclave_client.attestation.matched.name == "one"
    with enclavia.Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client:
        assert client.get("/").text == "bought"

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_awaited(enclave, async_enclave_client):
    assert enclave.mode == "production"
    assert (await async_enclave_client.get("/")).text == "bought"

@pytest.mark.enclavia(fault=Fault.FULL)
def test_fault(enclave_client): assert False

@pytest.mark.enclavia(mode="debug")
def test_debug(enclave): assert False

def test_faults(enclave_faults): assert False

def test_factory(enclave_factory): assert False

def test_restart(enclave):
    enclave.restart()
    assert False

def test_no_such_thing(enclave):
    enclave.nothing

@pytest.mark.enclavia_block_network
def test_watched(enclave, enclave_client):
    assert enclave_client.get("/").text == "bought"

@pytest.mark.enclavia_block_network
def test_seen(enclave):
    import socket
    with pytest.raises(ConnectionError):
        socket.create_connection((enclave.host, 1))
"""


def policy_of(enclave: LocalEnclave, folder: Path, endpoint: str) -> str:
    assert enclave.root is not None
    pcrs = ", ".join(f'{name} = "{value}"' for name, value in enclave.pcrs.as_dict().items())
    (folder / "policy.toml").write_text(
        f'format = 1\n{endpoint}\nroot = """{enclave.root.decode()}"""\n'
        f'[[versions]]\nname = "one"\npcrs = {{ {pcrs} }}\n'
    )
    return "policy.toml"


def bought(environ: object, start_response: object) -> list[bytes]:
    assert callable(start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"bought"]


def test_the_same_suite_against_a_real_enclave(project: Project) -> None:
    project.ini()  # no app is needed
    project.suite(SUITE)
    with LocalEnclave(bought) as enclave:
        url = enclave.url
        policy = policy_of(enclave, project.path, f'endpoint = "{url}"')
        result = project.run("--enclavia-live", policy, "-rs")
        assert enclave.stats()["connections_total"] == 4
    result.assert_outcomes(passed=3, skipped=5, failed=2)
    text = text_of(result)
    for reason in (
        "a fault is something that a local enclave is made to do",
        "the marker asks for a local enclave (debug)",
        "the fixture enclave_faults makes a local enclave fail",
        "the fixture enclave_factory starts local enclaves",
        "enclave.restart is something that only a local enclave has",
    ):
        assert f"--enclavia-live: {reason}" in text
    assert "'LiveEnclave' object has no attribute 'nothing'" in text
    assert f"<the production enclave {url}>\nversions of the policy" in text
    assert "enclavia_block_network: socket.connect to ('127.0.0.1', 1)" in text


@pytest.mark.parametrize(
    ("endpoint", "policy", "said"),
    [
        ("", "", "expected the file of a policy, got an empty name"),
        ("", "nowhere.toml", "No such file or directory"),
        ("", "policy.toml", "expected a policy with an endpoint, got policy.toml without one"),
        ("endpont = 'ws://x'", "policy.toml", "endpont: expected no such key, got one"),
    ],
)
def test_policies_of_no_use(project: Project, endpoint: str, policy: str, said: str) -> None:
    project.suite("def test_it(): pass")
    with LocalEnclave(bought) as enclave:
        policy_of(enclave, project.path, endpoint)
    result = project.run("--enclavia-live", policy)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert re.search(f"^ERROR: --enclavia-live: .*{said}", text_of(result), re.MULTILINE)


# ---- connections that are no attested channel


def test_connections_that_are_seen(project: Project) -> None:
    project.ini("enclavia_app = shop.api:app", "usefixtures = enclavia_block_network")
    project.suite("""
import asyncio
import contextlib
import socket
import threading
import urllib.request
import httpx2
from pytest_enclavia import UnattestedConnection

@pytest.fixture
def elsewhere():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()

def test_ok_channels(enclave, enclave_client):
    assert enclave_client.get("/").text == "bought"

def test_ok_other_places(enclave, elsewhere):
    with socket.create_connection(elsewhere):
        pass
    with socket.socket(socket.AF_UNIX) as unix, pytest.raises(FileNotFoundError):
        unix.connect("/no/such/socket")

def test_ok_further_enclaves(enclave_factory):
    with enclave_factory().client() as client:
        assert client.get("/").text == "bought"

def test_bad_connect(enclave):
    with pytest.raises(UnattestedConnection):
        socket.create_connection((enclave.host, enclave.port))

def test_bad_connect_ex(enclave):
    with socket.socket() as sock, contextlib.suppress(ConnectionError):
        sock.connect_ex(("localhost", enclave.port))

def test_bad_all_interfaces(enclave):
    with socket.socket() as sock, contextlib.suppress(ConnectionError):
        sock.connect(("0.0.0.0", enclave.port))

def test_bad_mapped(enclave):
    with socket.socket(socket.AF_INET6) as sock, contextlib.suppress(ConnectionError):
        sock.connect(("::ffff:127.0.0.1", enclave.port))

def test_bad_bytes(enclave):
    with socket.socket() as sock, contextlib.suppress(ConnectionError):
        sock.connect((b"127.0.0.1", enclave.port))

def test_bad_bytearray(enclave):
    with socket.socket() as sock, contextlib.suppress(ConnectionError):
        sock.connect((bytearray(b"localhost"), enclave.port))

def test_bad_empty(enclave):
    with socket.socket() as sock, contextlib.suppress(ConnectionError):
        sock.connect(("", enclave.port))

def test_bad_number(enclave):
    with socket.socket() as sock, contextlib.suppress(ConnectionError):
        sock.connect(("2130706433", enclave.port))

def test_bad_workload(enclave):
    with contextlib.suppress(ConnectionError):
        socket.create_connection(enclave.workload)

@pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")
def test_bad_debug_mode(enclave):
    client = enclave.client(debug_mode=True)
    with pytest.raises(UnattestedConnection):
        client.get("/")
    client.close()

@pytest.mark.enclavia(mode="debug")
def test_ok_debug_mode_of_a_debug_enclave(enclave_client):
    assert enclave_client.get("/").text == "bought"

def test_bad_datagram(enclave):
    with socket.socket(type=socket.SOCK_DGRAM) as sock, contextlib.suppress(ConnectionError):
        sock.sendto(b"x", (enclave.host, enclave.port))

def test_bad_urllib(enclave):
    with pytest.raises(OSError):
        urllib.request.urlopen(enclave.url.replace("ws", "http"), timeout=5)

def test_bad_httpx(enclave):
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(enclave.url.replace("ws", "http"), trust_env=False)

def test_bad_asyncio(enclave):
    with pytest.raises(OSError):
        asyncio.run(asyncio.open_connection(enclave.host, enclave.port))

def test_bad_thread(enclave):
    def work():
        with contextlib.suppress(OSError):
            socket.create_connection((enclave.host, enclave.port))
    thread = threading.Thread(target=work, name="sneaky")
    thread.start()
    thread.join()

def test_bad_skipped(enclave):
    with contextlib.suppress(OSError):
        socket.create_connection((enclave.host, enclave.port))
    pytest.skip("no")

def test_bad_and_otherwise_too(enclave):
    with contextlib.suppress(OSError):
        socket.create_connection((enclave.host, enclave.port))
    assert enclave.port == 0
""")
    result = project.run("-rA")
    result.assert_outcomes(passed=4, failed=17)
    text = text_of(result)
    assert set(re.findall(r"^PASSED .*::(\w+)", text, re.MULTILINE)) == {
        "test_ok_channels",
        "test_ok_other_places",
        "test_ok_further_enclaves",
        "test_ok_debug_mode_of_a_debug_enclave",
    }
    assert text.count("enclavia_block_network: socket.") >= 16
    assert "enclavia_block_network: enclavia.connect with debug_mode=True to ('127.0.0.1', " in text
    assert "enclavia_block_network: socket.sendto to" in text
    assert "in thread sneaky:" in text
    assert "assert enclave.port == 0" in text
    assert "E       AssertionError" in text or "E       assert" in text


def test_only_marked_tests_are_watched(project: Project) -> None:
    project.suite("""
import contextlib
import socket

def connect(enclave):
    with contextlib.suppress(ConnectionError):
        socket.create_connection((enclave.host, enclave.port)).close()

@pytest.mark.enclavia_block_network
@pytest.mark.parametrize("n", range(2))
def test_marked(enclave, n):
    connect(enclave)

def test_unmarked(enclave):
    socket.create_connection((enclave.host, enclave.port)).close()

@pytest.fixture
def late(enclave, enclavia_block_network):
    yield
    connect(enclave)

def test_after_it(late):
    pass
""")
    result = project.run()
    result.assert_outcomes(passed=2, failed=2, errors=1)


# ---- everybody else's suites


PLAIN = """
import pytest

@pytest.fixture
def enclave():
    return 5

def test_own_fixture(enclave):
    assert enclave == 5

@pytest.mark.parametrize("n", range(3))
def test_fails(n, caplog):
    assert n != 1

class Broken:
    def __del__(self):
        raise ValueError

@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_fails_around_it():
    Broken()

@pytest.fixture
def ends_badly():
    yield
    Broken()

@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_ends_badly(ends_badly):
    pass
"""
MODULES = """
import json, sys

def pytest_unconfigure():
    with open("modules.json", "w") as file:
        json.dump(sorted(sys.modules), file)
"""


def test_a_suite_that_uses_nothing_of_it(pytester: pytest.Pytester) -> None:
    """It runs as without the plugin, and nothing but the plugin's first module is imported."""
    pytester.makepyfile(test_plain=PLAIN)
    pytester.makeconftest(MODULES)
    said, modules = [], []
    for arguments in ([], ["-p", "no:enclavia"]):
        result = pytester.runpytest_subprocess("-v", "-p", "no:cacheprovider", *arguments)
        result.assert_outcomes(passed=4, failed=2, errors=1)
        plain = re.sub(r"\d+\.\d+s|=+|0x\w+", "", text_of(result))
        said.append(re.sub(r"^plugins: .*$|--basetemp=\S+", "", plain, flags=re.MULTILINE))
        modules.append(set(eval((pytester.path / "modules.json").read_text())))
    with_it, without = modules
    # The latter two where pytest-asyncio is installed.
    small = {"pytest_enclavia", "pytest_enclavia._asyncio", "pytest_enclavia._loops"}
    assert "pytest_enclavia" in with_it
    assert with_it - without <= small
    assert "enclavia" not in with_it
    assert said[0] == said[1]


def test_pytest_does_not_warn_of_what_was_imported_before_it(pytester: pytest.Pytester) -> None:
    """pytest has every package of a distribution with a plugin rewritten, and warns of one that it
    finds imported, unless that says no. A checkout is not marked so: done here as there."""
    pytester.makeconftest("""
import enclavia
import pytest
pytest.register_assert_rewrite("enclavia")
""")
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("-W", "error::pytest.PytestAssertRewriteWarning")
    result.assert_outcomes(passed=1)


def test_the_page_has_every_fixture_option_and_keyword(project: Project) -> None:
    page = (ROOT / "docs" / "testing.md").read_text()

    def named(section: str) -> set[str]:
        table = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", table, re.MULTILINE)
        return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}

    shown = text_of(project.run("--fixtures"))
    of_plugin = shown.partition("fixtures defined from pytest_enclavia")[2].partition("fixtures de")
    fixtures = set(re.findall(r"^(\w+)(?: \[session scope\])? -- \.*", of_plugin[0], re.MULTILINE))
    assert named("Fixtures") == fixtures
    assert named("The marker") == set(_KEYWORDS)
    helped = text_of(project.run("--help"))
    options = set(re.findall(r"^ +(enclavia_\w+|--enclavia-\w+=POLICY)", helped, re.MULTILINE))
    assert {name.replace(" ", "=") for name in named("The ini file and the option")} == options


def test_the_package_needs_no_pytest() -> None:
    program = """
import sys
for name in ("pytest", "_pytest"):
    sys.modules[name] = None
import enclavia, enclavia.testing
from enclavia.testing import EnclavePki, LocalEnclave
assert "pytest_enclavia" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
