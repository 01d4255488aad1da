"""What is imported, or made for the whole process, when it is first used: by several threads at
once, in a forked child, while the interpreter ends, and after Ctrl-C in the middle.

Each case runs in processes of its own, which have used nothing yet. Most are forked from one that
has imported the package and nothing else: that is as fresh, and costs less than to begin one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT
from support import HANG, answering, byte_enclave, keywords, ok

import enclavia

BEGINNING = """
import asyncio, atexit, importlib, json, os, random, signal, sys, threading, time
import enclavia

NAMES = sorted(enclavia._LAZY)

def in_fork(work):
    # The status of a forked child that does it: 0 where nothing was raised.
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.alarm(HANG)  # ends what hangs
        try:
            work()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def together(works):
    # All at once, each in a thread; what was raised.
    raised, barrier = [], threading.Barrier(len(works))

    def run(work):
        try:
            barrier.wait()
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised

def options():
    pcrs = enclavia.Pcrs(**{name: bytes.fromhex(value) for name, value in given["pcrs"].items()})
    return {"pcrs": pcrs, "root": bytes.fromhex(given["root"])}

def get():
    with enclavia.Client(given["url"], **options()) as client:
        assert client.get("/").status_code == 200

def get_in_loop():
    async def run():
        async with enclavia.AsyncClient(given["url"], **options()) as client:
            assert (await client.get("/")).status_code == 200

    asyncio.run(run())
"""


def run(script: str, **given: object) -> str:
    begun = BEGINNING.replace("HANG", str(int(HANG)))
    text = f"{begun}\ngiven = json.loads(sys.argv[1])\n{textwrap.dedent(script)}"
    done = subprocess.run(
        [sys.executable, "-c", text, json.dumps(given)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * HANG,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def peer() -> Iterator[dict[str, Any]]:
    """An enclave in another process than those of the cases: this one. And a document of it."""
    with byte_enclave(answering(ok()), max_connections=64) as (enclave, _):
        with enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel:
            attested = channel.attestation
        pins, root = enclave.pcrs, enclave.root
        assert root is not None
        yield {
            "url": enclave.url,
            "pcrs": {name: getattr(pins, name).hex() for name in ("pcr0", "pcr1", "pcr2")},
            "root": root.hex(),
            "document": attested.document.hex(),
            "nonce": attested.nonce.hex(),
        }


def test_names_in_threads_at_once() -> None:
    """In an order of its own each."""
    script = """
    def name_all(order, got):
        for name in order:
            got[name] = getattr(enclavia, name)

    def work():
        sys.setswitchinterval(1e-5)
        orders, gots = [random.sample(NAMES, len(NAMES)) for _ in range(6)], [{} for _ in range(6)]
        works = [lambda o=o, g=g: name_all(o, g) for o, g in zip(orders, gots)]
        assert together(works) == []
        assert all(got == gots[0] and len(got) == len(NAMES) for got in gots)

    print([in_fork(work) for _ in range(3)])
    """
    assert run(script) == "[0, 0, 0]"


def test_everything_in_threads_at_once(peer: dict[str, Any]) -> None:
    """The service thread, OpenSSL's first use, event loops, a local enclave, a copied client."""
    script = """
    import pickle
    import enclavia.testing

    def verify():
        document, nonce = bytes.fromhex(given["document"]), bytes.fromhex(given["nonce"])
        enclavia.verify_attestation(document, nonce=nonce, **options())

    def serve():
        with enclavia.testing.LocalEnclave("127.0.0.1:1") as enclave:
            assert enclave.url

    def copy():
        with enclavia.Client(given["url"], **options()) as client:
            with pickle.loads(pickle.dumps(client)) as copied:
                assert copied.get("/").status_code == 200

    def work():
        assert together([get, get, get_in_loop, verify, serve, copy]) == []

    print([in_fork(work) for _ in range(4)])
    """
    assert run(script, **peer) == "[0, 0, 0, 0]"


STOPPED = """
import importlib.machinery

first, begun, forks = threading.Event(), threading.Event(), threading.Event()

def slow(execute):
    def exec_module(self, module):
        # In the middle of its import, and there until a while after fork() was called.
        if module.__name__.startswith(given["stops_in"]) and not first.is_set():
            first.set()
            begun.set()
            forks.wait()
            time.sleep(0.3)
        execute(self, module)
    return exec_module

for loader in (importlib.machinery.SourceFileLoader, importlib.machinery.ExtensionFileLoader):
    loader.exec_module = slow(loader.exec_module)

os.register_at_fork(before=forks.set)
"""


@pytest.mark.parametrize(
    ("stops_in", "use"),
    [
        ("enclavia._channel.channel", "enclavia.Channel"),
        ("enclavia._channel.async_channel", "enclavia.AsyncChannel"),
        ("enclavia._io.loops", "get_in_loop()"),
        ("enclavia._identity.attestation", "attestation()"),
        ("httptools", "get()"),
    ],
)
def test_a_child_uses_what_another_thread_was_importing(
    peer: dict[str, Any], stops_in: str, use: str
) -> None:
    """Forked in the middle: Python's lock of the module would be held for ever in the child."""
    script = """
    def attestation():
        with enclavia.Client(given["url"], **options()) as client:
            client.get("/")
            assert client.attestation.nonce

    def work():
        eval(given["use"])

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(HANG)
    print(in_fork(work))
    thread.join()
    """.replace("HANG", str(HANG))
    assert run(STOPPED + textwrap.dedent(script), stops_in=stops_in, use=use, **peer) == "0"


def test_fork_waits_for_no_import_of_somebody_else(tmp_path: Path) -> None:
    """A program may run for as long as a module of it is imported."""
    (tmp_path / "serves.py").write_text("import go\ngo.on.set()\ngo.ends.wait()\n")
    script = """
    import types

    sys.path.append(given["folder"])
    go = sys.modules["go"] = types.ModuleType("go")
    go.on, go.ends = threading.Event(), threading.Event()
    threading.Thread(target=importlib.import_module, args=("serves",)).start()
    assert go.on.wait(HANG)
    print(in_fork(lambda: enclavia.Channel))
    go.ends.set()
    """.replace("HANG", str(HANG))
    assert run(script, folder=str(tmp_path)) == "0"


def test_fork_does_not_wait_for_ever_for_an_import_that_waits_for_it() -> None:
    """Whoever forks holds a lock that the other thread's import wants."""
    script = """
    from enclavia import _unfinished
    _unfinished._LONGEST = 0.2
    held = threading.Lock()

    def use():
        enclavia.Channel

    with held:
        forks.wait = lambda: held.acquire() and held.release()
        thread = threading.Thread(target=use)
        thread.start()
        assert begun.wait(HANG)
        print(in_fork(lambda: None))
    thread.join()
    """.replace("HANG", str(HANG))
    assert run(STOPPED + textwrap.dedent(script), stops_in="enclavia._channel.channel") == "0"


def test_a_name_is_usable_after_an_interrupt() -> None:
    """Ctrl-C at some lines of what is run for a first import."""
    script = """
    class Interrupt:
        # Raises at the n-th line of the package's modules.
        def __init__(self, n):
            self.left = n

        def __call__(self, frame, event, argument):
            if "/enclavia/" in frame.f_code.co_filename and event == "line":
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt
            return self

    def work():
        interrupt = Interrupt(at)
        sys.settrace(interrupt)
        try:
            getattr(enclavia, name)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert interrupt.left <= 0, "nothing was interrupted"
        for again in (name, *NAMES):
            getattr(enclavia, again)
        for module in [m for n, m in sys.modules.items() if n.startswith("enclavia.")]:
            for value in vars(module).values():
                if isinstance(value, type) and value.__module__.startswith("enclavia."):
                    owner = sys.modules[value.__module__]
                    assert getattr(owner, value.__name__, value) is value, (module, value)

    statuses = set()
    for name in ("Channel", "Forwarder"):
        for at in (1, 9, 40, 150):
            statuses.add(in_fork(work))
    print(statuses)
    """
    assert run(script) == "{0}"


@pytest.mark.parametrize("when", ["atexit", "thread"])
def test_while_the_interpreter_ends(peer: dict[str, Any], when: str) -> None:
    script = """
    def work():
        get()
        get_in_loop()
        print([bool(getattr(enclavia, name)) for name in NAMES] == [True] * len(NAMES))

    if given["when"] == "atexit":
        atexit.register(work)
    else:  # which goes on when the program is over
        over = threading.main_thread().join
        threading.Thread(target=lambda: (over(), work())).start()
    """
    assert run(script, when=when, **peer) == "True"


def test_where_the_path_leads_no_longer_to_the_package() -> None:
    """What is imported late is found by the package's own folder."""
    script = """
    def work():
        sys.path[:] = [folder for folder in sys.path if folder not in ("", os.getcwd())]
        importlib.invalidate_caches()
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
        os.chdir("/")
        assert importlib.util.find_spec("enclavia.testing") is not None
        for name in NAMES:
            getattr(enclavia, name)

    print(in_fork(work))
    """
    assert run(script) == "0"
