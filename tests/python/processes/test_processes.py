"""Processes and signals: fork, pickling across processes, Ctrl-C, the end of the interpreter."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from forked import in_child
from support import HANG, Connection, answering, byte_enclave, eventually, keywords, ok

import enclavia

ROOT = Path(enclavia.__file__).parent.parent


def test_used_client_in_a_forked_child() -> None:
    """The child opens a channel of its own; the parent's is not touched."""
    with (
        byte_enclave(answering(ok())) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        nonce = client.attestation.nonce
        client.get("/")

        def work() -> None:
            assert client.stats.connects == 0
            for _ in range(3):
                assert client.get("/").status_code == 200
            assert client.attestation.nonce != nonce
            assert client.stats.connects == 1
            client.close()

        assert in_child(work) == 0
        assert enclave.stats()["connections_total"] == 2
        assert client.get("/").status_code == 200
        assert client.stats.connects == 1
        assert client.attestation.nonce == nonce


def test_forked_in_the_middle_of_a_request() -> None:
    """Other threads of the parent are under way, and hold what locks they hold."""
    slow = threading.Event()

    def script(connection: Connection) -> None:
        while True:
            connection.request()
            slow.wait(0.01)
            connection.send(ok())

    with byte_enclave(script) as (enclave, _):
        client = enclavia.Client(enclave.url, **keywords(enclave), max_in_flight=4)
        stop = threading.Event()
        failures: list[BaseException] = []

        def busy() -> None:
            try:
                while not stop.is_set():
                    client.get("/")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=busy) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)

        def work() -> None:
            assert client.get("/").status_code == 200

        try:
            for _ in range(5):
                assert in_child(work) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert client.stats.connects == 1
        client.close()


def test_threads_of_a_child_begin_together() -> None:
    """At the moment of the fork another thread of the parent is inside of the client."""
    with (
        byte_enclave(answering(ok())) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        client.get("/")
        parents = client._enclave._current

        def work() -> None:
            begin = threading.Barrier(6)
            used: list[object] = []

            def request() -> None:
                begin.wait()
                used.append(client._enclave._engine)
                assert client.get("/").status_code == 200

            threads = [threading.Thread(target=request, daemon=True) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
            assert len(used) == 6 and len(set(map(id, used))) == 1
            assert used[0] is not parents

        with parents.pool._lock:
            child = in_child(work)
        assert child == 0


def test_child_that_only_exits() -> None:
    """Collecting the parent's objects in the child says nothing to the enclave."""
    with (
        byte_enclave(answering(ok())) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
        enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel,
    ):
        client.get("/")
        stream = channel.open_stream()
        holder: dict[str, Any] = {"stream": stream, "channel": channel}

        def work() -> None:
            with pytest.raises(enclavia.ForkedError):
                holder["stream"].write(b"x")
            with pytest.raises(enclavia.ForkedError):
                holder["channel"].open_stream()
            holder.clear()
            client.close()

        assert in_child(work) == 0
        assert client.get("/").status_code == 200
        stream.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in (stream.read(1000) or b"")
        assert enclave.stats()["connections_open"] == 2


def pooled(client: enclavia.Client, number: int) -> str:
    return client.get(f"/{number}").text


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method: str) -> None:
    def script(connection: Connection) -> None:
        while True:
            connection.send(ok(connection.request()[0].split(b" ")[1]))

    with (
        byte_enclave(script, max_connections=32) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)
        client.get("/")
        with multiprocessing.get_context(method).Pool(2) as pool:
            answers = pool.starmap(pooled, [(client, number) for number in range(8)])
        assert answers == [f"/{number}" for number in range(8)]
        assert client.stats.connects == 1


def run_script(enclave: Any, body: str, max_in_flight: int = 64) -> subprocess.Popen[str]:
    """A Python process with a client, `client`, of the enclave."""
    prelude = f"""
    import enclavia, os, signal, sys, threading, time
    pcrs = enclavia.Pcrs.parse({enclave.pcrs.as_dict()!r}.__repr__().replace("'", '"'))
    client = enclavia.Client({enclave.url!r}, pcrs=pcrs, root={enclave.root!r}, timeout=20,
        max_in_flight={max_in_flight})
    """
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(prelude) + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


class Silent:
    """Answers everything but ``/slow``, for which it waits until the client goes away."""

    def __init__(self) -> None:
        self.left = threading.Event()
        """Set when the client went away, and not the workload because it took too long."""

    def __call__(self, connection: Connection) -> None:
        while b"/slow" not in connection.head():
            connection.send(ok())
        connection.wait_closed()
        self.left.set()


@pytest.mark.parametrize(
    "call",
    [
        "client.get('/slow')",
        "enclavia.Channel.connect(client._enclave._settings.config.url.__str__(), pcrs=pcrs, "
        "root=client._enclave._settings.config.root).open_stream(b'GET /slow\\r\\n\\r\\n').read(1)",
        "client.post('/slow', content=(b'x' * 65536 for _ in range(10**9)))",
    ],
    ids=["get", "stream", "upload"],
)
def test_ctrl_c(call: str) -> None:
    """A wait ends by KeyboardInterrupt, and the client is as good as before. A call that waited on
    would wait until the workload goes away, which the workload tells."""
    body = f"""
    client.get('/')
    def interrupt():
        time.sleep(0.4)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        {call}
    except KeyboardInterrupt:
        print('interrupted')
    assert client.get('/').status_code == 200
    assert client.stats.streams_active == 0, client.stats
    client.close()
    """

    silent = Silent()
    with byte_enclave(silent) as (enclave, _):
        process = run_script(enclave, body)
        out, err = process.communicate(timeout=HANG)
        assert (process.returncode, out) == (0, "interrupted\n"), err
        eventually(silent.left.is_set)


@pytest.mark.parametrize(
    "body",
    [
        "client.get('/')",
        "stream = client.stream('GET', '/'); response = stream.__enter__()",
        "client.get('/'); other = client.send(client.build_request('GET', '/'), stream=True)",
        "channel = enclavia.Channel.connect(str(client._enclave._settings.config.url), pcrs=pcrs,"
        " root=client._enclave._settings.config.root); stream = channel.open_stream(b'x')",
        "threading.Thread(target=lambda: client.get('/slow'), daemon=True).start();"
        " time.sleep(0.3)",
        "client.get('/'); import gc; client.cycle = client; del client; gc.collect()",
    ],
    ids=["idle", "streaming", "unread", "channel", "daemon", "cycle"],
)
def test_interpreter_ends_with_open_clients(body: str) -> None:
    silent = Silent()
    with byte_enclave(silent) as (enclave, _):
        process = run_script(enclave, body)
        out, err = process.communicate(timeout=HANG)
        assert process.returncode == 0, err
        assert (out, err) == ("", "")
        if "/slow" in body:
            eventually(silent.left.is_set)  # it did not wait for its answer
        eventually(lambda: enclave.stats()["connections_open"] == 0)


def test_nothing_is_left_behind() -> None:
    """Threads, descriptors and slots after many clients: as before."""
    with byte_enclave(answering(ok())) as (enclave, _):

        def census() -> tuple[int, int]:
            return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

        def one() -> None:
            with enclavia.Client(enclave.url, **keywords(enclave)) as client:
                client.get("/")

        one()
        eventually(lambda: enclave.stats()["connections_open"] == 0)
        before = census()
        for _ in range(20):
            one()
        eventually(lambda: enclave.stats()["connections_open"] == 0)
        # The workload's threads and sockets end a moment later.
        eventually(lambda: census() <= before, what=[before])


def test_a_forgotten_client_closes_at_once() -> None:
    """Without the garbage collector: connections to an enclave are few."""
    with byte_enclave(answering(ok())) as (enclave, _):
        gc.disable()
        try:
            client = enclavia.Client(enclave.url, **keywords(enclave))
            client.get("/")
            del client
            eventually(lambda: enclave.stats()["connections_open"] == 0)
        finally:
            gc.enable()


def test_a_lost_response_gives_its_slot_back() -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")
        connection.wait_closed(30)

    with (
        byte_enclave(script) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave), max_in_flight=2) as client,
    ):
        for _ in range(10):
            response = client.send(client.build_request("GET", "/"), stream=True)
            assert next(response.iter_raw()) == b"begin"
            del response
        eventually(lambda: client.stats.streams_active == 0)
        eventually(lambda: enclave.stats()["slots_open"] == 0)


def test_interrupted_at_any_moment() -> None:
    """Hundreds of Ctrl-C, wherever they hit: every slot comes back, and nothing hangs."""
    body = """
    import random
    client.get("/")
    dice = random.Random(11)
    interrupted = 0
    while interrupted < 400:
        try:
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.004))
            # Python itself swallows one that hits a destructor.
            for _ in range(100):
                assert client.get("/").status_code == 200
        except KeyboardInterrupt:
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    for _ in range(200):
        assert client.get("/").status_code == 200
    import gc
    gc.collect()
    stats = client.stats
    assert (stats.streams_active, stats.waiting) == (0, 0), stats
    assert stats.streams_idle <= 4, stats
    client.close()
    """
    prepare = f"import faulthandler; faulthandler.dump_traceback_later({HANG}, exit=True)\n"
    prepare += "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
    with byte_enclave(answering(ok())) as (enclave, _):
        process = run_script(enclave, prepare + textwrap.dedent(body), max_in_flight=4)
        _out, err = process.communicate(timeout=2 * HANG)
        assert process.returncode == 0, err
        eventually(lambda: enclave.stats()["slots_open"] == 0)


PINNED = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)


def test_a_debug_client_warns_also_where_it_is_unpickled_or_copied() -> None:
    transports = (enclavia.EnclaveTransport, enclavia.AsyncEnclaveTransport)
    for cls in (enclavia.Client, enclavia.AsyncClient, *transports):
        with pytest.warns(enclavia.DebugModeWarning):
            made = cls("wss://e.example", debug_mode=True)
        pickled = pickle.dumps(made)
        for _ in range(2):
            with pytest.warns(enclavia.DebugModeWarning) as caught:
                pickle.loads(pickled)
            assert [each.filename for each in caught] == [__file__]
        with warnings.catch_warnings(record=True) as seen:
            warnings.resetwarnings()
            pickle.loads(
                pickle.dumps(
                    cls(
                        "wss://e.example",
                        pcrs=enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48),
                    )
                )
            )
        assert not [each for each in seen if each.category is enclavia.DebugModeWarning]
