"""The pytest plugin of enclavia: tests against a local enclave, or against a real one.

pytest loads this in every run where enclavia is installed. So it is a package of its own, which
imports nothing but pytest until one of its fixtures, markers or options is used, and it leaves runs
that use none of these as they are. docs/testing.md says what it is for. (PYTEST_DONT_REWRITE: it
asserts nothing.)

Decides when each part of the plugin acts. Calls: everything in this folder. Locks: none.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from enclavia import AsyncClient, Client
    from enclavia.testing import LocalEnclave

    from ._enclaves import EnclaveFactory, EnclaveFaults, Pool
    from ._marks import Settings
    from ._network import UnattestedConnection

__all__ = ["EnclaveFactory", "EnclaveFaults", "UnattestedConnection"]

_LAZY = {
    "EnclaveFactory": "._enclaves",
    "EnclaveFaults": "._enclaves",
    "UnattestedConnection": "._network",
}
_BLOCK = "enclavia_block_network"
_ASYNC = "async_enclave_client"
# Every test that has the plugin's own fixture `enclave` has this one too; a test that has another
# fixture of that name has not, and is left alone.
_OWN = "_enclavia_pool"
_FIXTURES = frozenset((_OWN, "enclave_client", _ASYNC, "enclave_faults", "enclave_factory", _BLOCK))


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value: object = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# -- options ----------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("enclavia_app", "the app behind the fixture enclave: 'package.module:app'")
    parser.addini(
        "enclavia_in_process",
        "false: local enclaves and their apps run in child processes (default: true)",
        type="bool",
        default=True,
    )
    group = parser.getgroup("enclavia", "tests against an enclave")
    group.addoption(
        "--enclavia-live",
        metavar="POLICY",
        help="run the suite against the real enclave of this policy's file; tests that need a "
        "local one are skipped",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "enclavia(app=…, mode=…, in_process=…, fault=…, **parameters): which local enclave the "
        "test gets, and what goes wrong there while it runs",
    )
    config.addinivalue_line(
        "markers",
        f"{_BLOCK}: the test fails where a connection to the enclave's host is made that is no "
        "attested channel",
    )
    # pytest-asyncio, which is loaded by now. A release that is too old is left alone.
    if config.pluginmanager.hasplugin("asyncio") and _part("_loops").has_loop_scopes(config):
        config.pluginmanager.register(_part("_asyncio"), "enclavia-asyncio")
    if config.getoption("--enclavia-live") is not None:
        _pool(config)  # a policy that cannot be used is said before anything runs


def _part(name: str) -> Any:  # noqa: ANN401 - a module
    return importlib.import_module(f".{name}", __name__)


def _pool(config: pytest.Config) -> Pool:
    pool: Pool = _part("_enclaves").pool_of(config)
    return pool


def _uses(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    return not _FIXTURES.isdisjoint(names) or item.get_closest_marker("enclavia") is not None


# -- collection -------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("enclavia") is None:
        return
    settings = _part("_marks").settings_for(metafunc.definition, metafunc.fixturenames)
    if settings is not None:
        metafunc.parametrize(
            "enclave", [settings], indirect=True, ids=[str(settings)], scope="session"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker(_BLOCK) is not None:
            names = getattr(item, "fixturenames", None)
            if names is not None and _BLOCK not in names:
                names.insert(0, _BLOCK)


# -- one test ---------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not _uses(item):
        return (yield)
    with _part("_report").watching(item):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.config.getoption("--enclavia-live") is not None and _uses(item):
        _part("_marks").skip_where_local(item)


# The next two are no wrappers: errors that pytest itself raises around a test would pass through
# them, and show them in the tracebacks of other suites.


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    if _uses(item):
        _part("_enclaves").begin_faults(item)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Inside of what captures logs and output, so that a failing test has what its app says. (A
    wrapper of the test function alone: pytest cuts tracebacks to that.)"""
    __tracebackhide__ = True
    try:
        return (yield)
    except (Exception, pytest.fail.Exception):
        if _uses(pyfuncitem):
            _part("_enclaves").settle(pyfuncitem)
        raise


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    if not _uses(item):
        return
    try:
        _part("_enclaves").end_faults(item)
    except Exception as error:  # told at the end: what the fixtures have made ends all the same
        item.addfinalizer(functools.partial(_raise, error))


def _raise(error: Exception) -> None:
    raise error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _uses(item):
        _part("_network").fail_where_seen(item, report)
        if report.failed:
            _part("_report").add_sections(item, report)
    return report


# -- fixtures ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _enclavia_pool(pytestconfig: pytest.Config) -> Iterator[Pool]:
    """The enclaves of this process, which run until the session ends."""
    pool = _pool(pytestconfig)
    yield pool
    pool.stop()


@pytest.fixture(scope="session")
def enclave(_enclavia_pool: Pool, request: pytest.FixtureRequest) -> LocalEnclave:
    """The running enclave of the test: a LocalEnclave in front of the ini's enclavia_app, or as
    the marker enclavia has it; with --enclavia-live the real one. Tests share it."""
    settings: Settings | None = getattr(request, "param", None)
    return _enclavia_pool.enclave(settings)


@pytest.fixture
def enclave_client(enclave: LocalEnclave) -> Iterator[Client]:
    """A Client that trusts the enclave; new for each test, and connected when it is used."""
    client = enclave.client()
    yield client
    client.close()


@pytest.fixture
def async_enclave_client(request: pytest.FixtureRequest, enclave: LocalEnclave) -> AsyncClient:
    """An AsyncClient that trusts the enclave, in the event loop of the test: of pytest-asyncio or
    of anyio's plugin."""
    name = _part("_loops").fixture_for(request)
    client: AsyncClient = request.getfixturevalue(name)
    return client


@pytest.fixture
async def _enclavia_anyio_client(enclave: LocalEnclave) -> Any:  # noqa: ANN401
    """Run by anyio's plugin."""
    client = enclave.async_client()
    yield client
    await client.aclose()


@pytest.fixture
def enclave_faults(enclave: LocalEnclave, request: pytest.FixtureRequest) -> EnclaveFaults:
    """Switches faults of the enclave on for this test: set(Fault.…), clear()."""
    faults: EnclaveFaults = _part("_enclaves").EnclaveFaults(enclave, request.node)
    return faults


@pytest.fixture
def enclave_factory(
    _enclavia_pool: Pool, request: pytest.FixtureRequest
) -> Iterator[EnclaveFactory]:
    """Starts further local enclaves, which end with the test: enclave_factory(app, mode=…)."""
    factory: EnclaveFactory = _part("_enclaves").EnclaveFactory(_enclavia_pool, request.node)
    yield factory
    factory.stop()


@pytest.fixture
def enclavia_block_network(enclave: LocalEnclave, request: pytest.FixtureRequest) -> Iterator[None]:
    """The test fails where a connection to the enclave's host is made that is no attested
    channel."""
    with _part("_network").watching(enclave, request.node):
        yield
