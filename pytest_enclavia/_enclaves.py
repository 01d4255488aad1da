"""The enclaves of a session: local ones by their settings, or the real one of a policy; and faults,
which are off again after each test.

Decides what is started and how a failure to start is told. Calls: _live, _marks, enclavia. Locks:
none;
pytest runs tests one by one, and each process of pytest-xdist has enclaves of its own.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from enclavia.testing import Fault, LocalEnclave
from enclavia.testing._runner import Faults

from ._marks import Settings, wanted_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._live import LiveEnclave

__all__ = [
    "EnclaveFactory",
    "EnclaveFaults",
    "Pool",
    "begin_faults",
    "enclaves_of",
    "end_faults",
    "pool_of",
    "settle",
]

_NONE: Final = Faults()
# An app that streams without end, or hangs, has a failing test wait for so long.
_SETTLE_SECONDS: Final = 1.0
_NO_APP: Final = (
    'the fixture enclave has no app to run: set enclavia_app = "package.module:app" in pytest\'s '
    "ini options ([tool.pytest.ini_options] of pyproject.toml, [pytest] of pytest.ini), or mark "
    'the test with @pytest.mark.enclavia(app="package.module:app")'
)


def pool_of(config: pytest.Config) -> Pool:
    pool = config.stash.get(_POOL, None)
    if pool is None:
        pool = config.stash[_POOL] = Pool(config)
    return pool


class Pool:
    """Starts each enclave once, when it is asked for, and keeps it to the end of the session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._local: list[tuple[Settings, LocalEnclave]] = []
        path = config.getoption("--enclavia-live")
        self.live: LiveEnclave | None = None
        if path is not None:
            from ._live import live_enclave  # with what local enclaves do not need

            self.live = live_enclave(config, path)

    def enclave(self, settings: Settings | None) -> LocalEnclave:
        if self.live is not None:
            return cast("LocalEnclave", self.live)
        wanted = Settings() if settings is None else settings
        for known, running in self._local:
            if known == wanted:
                return running
        started = self.start(wanted.app, mode=wanted.mode, in_process=wanted.in_process)
        self._local.append((wanted, started))
        return started

    def start(self, app: Any, *, in_process: bool | None, **options: Any) -> LocalEnclave:  # noqa: ANN401
        source = "app"
        if app is None:
            app, source = self._config.getini("enclavia_app"), "enclavia_app"
        if app == "":
            pytest.fail(_NO_APP, pytrace=False)
        if in_process is None:
            in_process = bool(self._config.getini("enclavia_in_process"))
        try:
            enclave = LocalEnclave(app, in_process=in_process, **options)
        except (TypeError, ValueError) as error:
            pytest.fail(f"{source} = {app!r}: {error}", pytrace=False)
        try:
            return enclave.start()
        except Exception as error:
            _explain(error, source, app)
            raise

    def running(self) -> list[LocalEnclave]:
        """Those that tests share, without one that a test has stopped."""
        return [enclave for _, enclave in self._local if enclave._facts is not None]

    def stop(self) -> None:
        with contextlib.ExitStack() as ends:
            for _, enclave in self._local:
                ends.callback(enclave.stop)
            self._local = []


_POOL: Final = pytest.StashKey[Pool]()


def _explain(error: Exception, source: str, app: object) -> None:
    """An app that is not there is no matter for a traceback; one that fails is."""
    named = f"{source} = {app!r}"
    if isinstance(app, str) and _is_absent(error, app):
        pytest.fail(
            f"{named} cannot be imported: {type(error).__name__}: {error}. It is imported as a "
            'test would import it: where its folder is not found, set pythonpath = ["."] in '
            "pytest's ini options, or install the project",
            pytrace=False,
        )
    error.add_note(f"while a local enclave was started with {named}")


def _is_absent(error: Exception, app: str) -> bool:
    module, _, attribute = app.partition(":")
    if isinstance(error, ModuleNotFoundError):
        packages = [module.rsplit(".", n)[0] for n in range(module.count(".") + 1)]
        return any(f"No module named {name!r}" in str(error) for name in packages)
    return isinstance(error, AttributeError) and any(
        str(error).endswith(f"has no attribute {name!r}") for name in attribute.split(".")
    )


# -- faults -----------------------------------------------------------------------------------


class EnclaveFaults:
    """The fixture ``enclave_faults``. Whatever is on when the test ends is off after it."""

    def __init__(self, enclave: LocalEnclave, item: pytest.Item) -> None:
        self._enclave = enclave
        _remember(item, enclave)

    def __repr__(self) -> str:
        return f"<faults of {self._enclave!r}: {self._enclave.faults!r}>"

    def set(
        self,
        faults: Fault,
        *,
        split: int = 0,
        record_length: int = 0,
        delay: float = 0.0,
        truncated_after: int = 0,
        instead_of_attestation: bytes = b"",
        after_attestation: bytes = b"",
    ) -> None:
        """Exactly these from now on, as by ``LocalEnclave.set_faults``. A client that is connected
        meets a fault of documents or of the handshake when it connects anew."""
        self._enclave.set_faults(
            faults,
            split=split,
            record_length=record_length,
            delay=delay,
            truncated_after=truncated_after,
            instead_of_attestation=instead_of_attestation,
            after_attestation=after_attestation,
        )

    def clear(self) -> None:
        """None from now on."""
        self._enclave.set_faults()


class EnclaveFactory:
    """The fixture ``enclave_factory``."""

    def __init__(self, pool: Pool, item: pytest.Item) -> None:
        self._pool = pool
        self._made = item.stash.setdefault(_MADE, [])

    def __call__(
        self,
        app: Callable[..., Any] | str | tuple[str, int] | None = None,
        *,
        in_process: bool | None = None,
        **options: Any,  # noqa: ANN401
    ) -> LocalEnclave:
        """Starts an enclave that ends with the test. ``app`` and ``in_process``: None: as the ini
        options have it; ``options``: the other keywords of LocalEnclave."""
        started = self._pool.start(app, in_process=in_process, **options)
        self._made.append(started)
        return started

    def stop(self) -> None:
        with contextlib.ExitStack() as ends:
            for enclave in self._made:
                ends.callback(enclave.stop)


def settle(item: pytest.Item) -> None:
    """Waits until the apps of this test have ended what they do, so that what they log of it
    belongs to the test function: Starlette's and FastAPI's raise an exception once the answer with
    status 500 was sent, and their servers log it after that."""
    for enclave in enclaves_of(item):
        if isinstance(enclave, LocalEnclave) and enclave._facts is not None:
            with contextlib.suppress(RuntimeError, TimeoutError):  # its process died, or hangs
                enclave._runner.settle(_SETTLE_SECONDS)


_MADE: Final = pytest.StashKey[list[LocalEnclave]]()
_BEFORE: Final = pytest.StashKey[list[tuple[LocalEnclave, Any]]]()


def enclaves_of(item: pytest.Item) -> list[Any]:
    """The local enclaves, or the real one, that this test has to do with."""
    own = getattr(item, "funcargs", {}).get("enclave")
    live = pool_of(item.config).live
    found = [own] if isinstance(own, LocalEnclave) or (own is live is not None) else []
    return [*found, *item.stash.get(_MADE, [])]


def _remember(item: pytest.Item, enclave: LocalEnclave) -> None:
    """What is on before the test, of an enclave that is not the plugin's: whoever made it may have
    switched something on for good."""
    known = item.stash.setdefault(_BEFORE, [])
    if all(each is not enclave for each, _ in known):
        known.append((enclave, enclave._faults))


def begin_faults(item: pytest.Item) -> None:
    """Those of the marker: on while the test function runs, not while its fixtures are set up."""
    wanted = wanted_by(item)
    own = getattr(item, "funcargs", {}).get("enclave")
    if wanted.has_fault and isinstance(own, LocalEnclave):
        _remember(item, own)
        own.set_faults(Fault(0) if wanted.fault is None else wanted.fault, **wanted.parameters)


def end_faults(item: pytest.Item) -> None:
    """Of the enclaves that tests share also those that a test has switched on by itself."""
    shared = pool_of(item.config).running()
    with contextlib.ExitStack() as ends:  # of all, also where the process of one has died
        for enclave in shared:
            if enclave._faults != _NONE:
                ends.callback(_switch_back, enclave, _NONE)
        for enclave, faults in item.stash.get(_BEFORE, []):
            if enclave not in shared and enclave._facts is not None and enclave._faults != faults:
                ends.callback(_switch_back, enclave, faults)


def _switch_back(enclave: LocalEnclave, faults: Faults) -> None:
    """One whose process has died, or hangs, is stopped: tests that come after it and do not use it
    are not told of it."""
    try:
        enclave._switch(faults)
    except (RuntimeError, TimeoutError):
        enclave.stop()
