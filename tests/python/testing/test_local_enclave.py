"""LocalEnclave: apps of every kind, identity, life, and a process of its own."""

from __future__ import annotations

import functools
import http.client
import itertools
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import cbor2
import pytest
from cryptography import x509
from plain_client import PlainClient
from raw_workload import RawWorkload
from resources import Held
from support import HANG, eventually
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from enclavia import Channel, Client, ConnectError, Pcrs
from enclavia.testing import Fault, LocalEnclave
from enclavia.testing._identity import Authority
from enclavia.testing._workload import WSGI_SETTINGS

if os.environ.get("HIDE_UVLOOP"):  # in the child process of a test: as where it is not installed
    sys.modules["uvloop"] = None  # type: ignore[assignment]

REQUEST = b"GET /path?q=1 HTTP/1.1\r\nHost: enclave\r\nConnection: close\r\n\r\n"
OTHER = Pcrs(pcr0=b"\1" * 48, pcr1=b"\2" * 48, pcr2=b"\3" * 48)


def wsgi(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    body = f"wsgi {environ['PATH_INFO']} {os.getpid()}".encode()
    start_response("200 OK", [("content-length", str(len(body)))])
    return [body]


lifespan: list[str] = []


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            lifespan.append(phase)
            await send({"type": f"lifespan.{phase}.complete"})
        return
    body = f"asgi {scope['path']} {os.getpid()}".encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class CallableAsgi:
    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await asgi(scope, receive, send)


def get(enclave: LocalEnclave) -> str:
    tls = None
    if enclave.tls_certificate is not None:
        tls = ssl.create_default_context(cafile=enclave.tls_certificate)
    with PlainClient.connect(enclave.url, tls=tls) as client:
        stream = client.open_stream(REQUEST)
        answer = client.read_stream(stream)
        client.close_stream(stream)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    return answer.partition(b"\r\n\r\n")[2].decode()


def receive_all(client: PlainClient) -> NoReturn:
    while True:
        client.receive()


def payload_of(document: bytes) -> dict[str, Any]:
    parsed: dict[str, Any] = cbor2.loads(cbor2.loads(document)[2])
    return parsed


def documents(enclave: LocalEnclave) -> dict[str, Any]:
    with PlainClient.connect(enclave.url) as client:
        return payload_of(client.attest())


# ---- apps


def test_a_wsgi_app_gets_bodies_of_any_length() -> None:
    """As waitress reads a request's head, which is where it refuses: a body of that length is not
    sent here."""
    parser = HTTPRequestParser(Adjustments(**WSGI_SETTINGS))
    parser.received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % 2**50)
    assert parser.headers_finished and parser.error is None


@pytest.mark.parametrize(
    ("app", "interface", "expected"),
    [
        (wsgi, "auto", "wsgi"),
        (wsgi, "wsgi", "wsgi"),
        (asgi, "auto", "asgi"),
        (CallableAsgi(), "auto", "asgi"),
        (functools.partial(asgi), "auto", "asgi"),
        (lambda *args: asgi(*args), "asgi", "asgi"),
        ("test_local_enclave:asgi", "auto", "asgi"),
        ("test_local_enclave:wsgi", "auto", "wsgi"),
    ],
)
def test_apps(app: Any, interface: Any, expected: str) -> None:
    with LocalEnclave(app, interface=interface, mode="stub") as enclave:
        assert get(enclave) == f"{expected} /path {os.getpid()}"


def delaying_sockets() -> list[str]:
    """The connected TCP sockets of this process that hold small writes back (Nagle's algorithm)."""
    found = []
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            copy = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue  # closed meanwhile
        with copy:
            tcp = copy.family in (socket.AF_INET, socket.AF_INET6)
            try:
                peer = copy.getpeername() if tcp else None
            except OSError:
                continue  # it listens
            if peer and not copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY):
                found.append(f"{copy.getsockname()} to {peer}")
    return found


def wsgi_delaying(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = json.dumps(delaying_sockets()).encode()
    start_response("200 OK", [("content-length", str(len(body)))])
    return [body]


async def asgi_delaying(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        body = json.dumps(delaying_sockets()).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("app", ["asgi_delaying", "wsgi_delaying"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("options", [{}, {"tls": True}, {"in_process": False}])
def test_no_socket_holds_small_writes_back(
    app: str, loop: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With Nagle's algorithm every request on a kept connection waits 40 ms for an acknowledgement.
    if loop == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
        monkeypatch.setenv("HIDE_UVLOOP", "1")
    with LocalEnclave(f"test_local_enclave:{app}", **options) as enclave:
        verify = enclave.tls_certificate or True
        with Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root, verify=verify) as client:
            assert client.get("/").json() == []


def test_the_lifespan_is_run() -> None:
    lifespan.clear()
    with LocalEnclave(asgi, mode="stub"):
        assert lifespan == ["startup"]
    assert lifespan == ["startup", "shutdown"]


def test_an_app_that_does_not_start() -> None:
    async def failing(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="did not start"):
        LocalEnclave(failing, mode="stub").start()
    assert threading.active_count() == before


def test_addresses() -> None:
    with RawWorkload() as workload:
        for app in (workload.address, ("127.0.0.1", workload.port), f"localhost:{workload.port}"):
            with LocalEnclave(app, mode="stub") as enclave:
                assert enclave.workload == ("127.0.0.1", workload.port)
                with PlainClient.connect(enclave.url) as client:
                    assert client.read_chunk(client.open_stream(b"echo")) == b"echo"


@pytest.mark.parametrize(
    ("app", "error"),
    [
        ("nothing", ValueError),
        ("host:0", ValueError),
        ("host:65536", ValueError),
        ("no.such.module:app", ModuleNotFoundError),
        ("os:no_such_attribute", AttributeError),
        ("os:sep", TypeError),
        (42, TypeError),
    ],
)
def test_what_is_no_app(app: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        LocalEnclave(app, mode="stub").start()


def test_a_port_that_is_taken_is_said() -> None:
    with LocalEnclave("127.0.0.1:1", mode="stub") as enclave:
        port = enclave.port
        second = LocalEnclave("127.0.0.1:1", mode="stub", port=port)
        with pytest.raises(ConnectError, match="choose another port, or 0") as met:
            second.start()
    assert isinstance(met.value.__cause__, OSError)
    with second:  # it is free now
        assert second.port == port


@pytest.mark.parametrize("app", [wsgi, asgi])
def test_missing_extras_are_named(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("waitress", "waitress.server", "uvicorn", "cryptography"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'enclavia\[testing\]'"):
        LocalEnclave(app, mode="stub").start()
    with pytest.raises(ImportError, match=r"cryptography.*pip install 'enclavia\[testing\]'"):
        LocalEnclave("127.0.0.1:1").start()
    with LocalEnclave("127.0.0.1:1", mode="stub"):  # which needs none of them
        pass


# ---- identity


def test_pcrs_have_defaults_that_do_not_change() -> None:
    one, two = LocalEnclave(wsgi), LocalEnclave(wsgi)
    assert one.pcrs == two.pcrs
    assert not one.pcrs.is_zero
    assert len({*one.pcrs.as_tuple()}) == 3
    assert {len(value) for value in one.pcrs.as_tuple()} == {48}


def test_the_identity_can_change_while_it_runs() -> None:
    with LocalEnclave("127.0.0.1:1", pcrs=OTHER, module_id="i-one") as enclave:
        assert documents(enclave)["pcrs"][1] == b"\2" * 48
        assert documents(enclave)["module_id"] == "i-one"
        with PlainClient.connect(enclave.url) as client:
            first = payload_of(client.attest())
            pki = Authority().issue()
            enclave.set_identity(
                pcrs=Pcrs(pcr0=b"\7" * 48, pcr1=b"\7" * 48, pcr2=b"\7" * 48), pki=pki
            )
            second = payload_of(client.attest())  # the connection stayed
        assert enclave.root == pki.root_pem
        assert enclave.pcrs.pcr0 == second["pcrs"][0] == b"\7" * 48
        assert second["certificate"] == pki.leaf_der != first["certificate"]
        enclave.set_identity(pcrs=OTHER)
        third = documents(enclave)
        assert (third["pcrs"][0], third["certificate"]) == (b"\1" * 48, pki.leaf_der)


def test_renewed_certificates_chain_to_the_same_root() -> None:
    authority = Authority()
    first, second = authority.issue(), authority.issue()
    assert second.root_pem == first.root_pem
    assert second.cabundle[0] == first.root_der
    assert second.leaf_der != first.leaf_der
    chain = [x509.load_der_x509_certificate(der) for der in [*second.cabundle, second.leaf_der]]
    for above, below in itertools.pairwise(chain):
        below.verify_directly_issued_by(above)


def test_an_enclave_renews_its_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclavia.testing._runner._RENEW_SECONDS", 0.1)
    with LocalEnclave("127.0.0.1:1") as enclave:
        first, root = documents(enclave), enclave.root
        eventually(lambda: documents(enclave)["certificate"] != first["certificate"])
        assert enclave.root == root
        assert documents(enclave)["cabundle"][0] == first["cabundle"][0]


# ---- life


def test_stopping_leaves_no_thread_and_no_descriptor() -> None:
    with LocalEnclave(asgi), LocalEnclave(wsgi):  # what libraries keep for good
        pass
    held = Held()
    for app in (wsgi, asgi):
        with LocalEnclave(app, tls=True) as enclave:
            tls = ssl.create_default_context(cafile=enclave.tls_certificate)
            client = PlainClient.connect(enclave.url, tls=tls)
            client.open_stream(b"GET / HTTP/1.1\r\nHost: x\r\n")
            client.start_request(b"GET / HTTP/1.1\r\nHost: x\r\n")
            certificate = enclave.tls_certificate
        with pytest.raises(ConnectionClosed):
            client.receive()
        client.close()
        assert certificate is not None
        assert not Path(certificate).exists()
    held.check_released()


def test_start_and_stop() -> None:
    enclave = LocalEnclave("127.0.0.1:1", mode="stub")
    with pytest.raises(RuntimeError, match="does not run"):
        _ = enclave.url
    enclave.stop()
    enclave.start()
    with pytest.raises(RuntimeError, match="runs already"):
        enclave.start()
    documents_before = enclave.stats()["attestations_total"]
    with PlainClient.connect(enclave.url) as client:
        client.attest()
    enclave.stop()
    enclave.stop()
    assert enclave.stats()["attestations_total"] == documents_before + 1
    with pytest.raises(RuntimeError, match="does not run"):
        enclave.set_faults()


def test_an_enclave_that_nobody_stops_goes_when_it_is_forgotten() -> None:
    enclave = LocalEnclave("127.0.0.1:1", mode="stub").start()
    port = enclave.port
    del enclave
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_restart_keeps_port_and_identity() -> None:
    with RawWorkload() as workload, LocalEnclave(workload.address) as enclave:
        port, root = enclave.port, enclave.root
        enclave.set_faults(Fault.WRONG_PCRS)
        for _ in range(3):
            with PlainClient.connect(enclave.url) as client:
                client.attest()
                stream = client.open_stream(b"x")
                assert client.read_chunk(stream) == b"x"
                nonce = client.control_nonce
                enclave.restart()
                with pytest.raises(ConnectionClosed):
                    client.read_chunk(stream)
            assert (enclave.port, enclave.root) == (port, root)
            with PlainClient.connect(enclave.url) as client:
                pcrs = payload_of(client.attest())["pcrs"]
                assert pcrs[0] != enclave.pcrs.pcr0  # faults outlive it
                assert client.control_nonce != nonce


@pytest.mark.parametrize("reset", [False, True])
def test_drop_connections(reset: bool) -> None:
    with RawWorkload() as workload, LocalEnclave(workload.address, mode="stub") as enclave:
        clients = [PlainClient.connect(enclave.url) for _ in range(3)]
        for client in clients:
            client.open_stream(b"x")
            client.attest()
        enclave.drop_connections(reset)
        for client in clients:
            with pytest.raises(ConnectionClosedError) as caught:
                receive_all(client)
            assert caught.value.rcvd is None
            client.close()
        assert enclave.stats()["slots_open"] == 0
        with PlainClient.connect(enclave.url) as client:
            client.attest()


def test_a_port_can_be_chosen_but_not_shared() -> None:
    with LocalEnclave("127.0.0.1:1", mode="stub") as one:
        with pytest.raises(Exception, match=str(one.port)):
            LocalEnclave("127.0.0.1:1", mode="stub", port=one.port).start()
        port = one.port
    with LocalEnclave("127.0.0.1:1", mode="stub", port=port) as two:
        assert two.url == f"ws://127.0.0.1:{port}"


def test_tls() -> None:
    with LocalEnclave(wsgi, tls=True) as enclave:
        assert enclave.url == f"wss://localhost:{enclave.port}"
        assert get(enclave).startswith("wsgi")
        with pytest.raises(ssl.SSLCertVerificationError):
            PlainClient.connect(enclave.url)


def test_max_connections() -> None:
    with LocalEnclave("127.0.0.1:1", mode="stub", max_connections=1) as enclave:
        with PlainClient.connect(enclave.url):
            with pytest.raises(ConnectionClosed):
                PlainClient.connect(enclave.url)
            assert enclave.stats()["connections_total"] == 1
        eventually(lambda: enclave.stats()["connections_open"] == 0)
        with PlainClient.connect(enclave.url) as client:
            client.attest()


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "other"},
        {"idle_timeout": -1.0},
        {"idle_timeout": float("nan")},
        {"port": 70000},
        {"split": 0, "faults": Fault.SPLIT},
        {"module_id": ""},
        {"tls": ("/does/not/exist.pem", "/does/not/exist.key")},
    ],
)
def test_impossible_settings(options: dict[str, Any]) -> None:
    before = threading.active_count()
    with pytest.raises(Exception, match=r"."):
        LocalEnclave(wsgi, **options).start()
    assert threading.active_count() == before


# ---- a process of its own


@pytest.mark.parametrize("app", [wsgi, asgi, "test_local_enclave:wsgi"])
def test_in_a_child(app: Any) -> None:
    with LocalEnclave(app, in_process=False, module_id="i-child") as enclave:
        kind, path, pid = get(enclave).split()
        assert (kind, path) == ("asgi" if app is asgi else "wsgi", "/path")
        assert int(pid) == enclave.pid != os.getpid()
        assert documents(enclave)["module_id"] == "i-child"
        root = enclave.root
        assert root is not None
        assert b"BEGIN CERTIFICATE" in root
        enclave.set_faults(Fault.WRONG_PCRS)
        assert documents(enclave)["pcrs"][0] != enclave.pcrs.pcr0
        enclave.set_faults()
        enclave.set_identity(pcrs=OTHER)
        assert enclave.pcrs == OTHER
        assert documents(enclave)["pcrs"][0] == OTHER.pcr0
        port = enclave.port
        enclave.restart()
        assert (enclave.port, enclave.root) == (port, root)
        enclave.drop_connections(reset=True)
        assert enclave.stats()["connections_open"] == 0
        child = enclave.pid
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_what_fails_in_a_child_is_raised_here() -> None:
    with pytest.raises(ValueError, match="expected 'host:port'"):
        LocalEnclave("nothing", in_process=False).start()
    with pytest.raises(TypeError, match="must be importable"):
        LocalEnclave(lambda *_: [], in_process=False)
    with LocalEnclave("127.0.0.1:1", in_process=False, mode="stub") as enclave:
        with pytest.raises(ValueError, match="production"):
            enclave.set_identity(pki=Authority().issue())
        assert enclave.stats()["connections_total"] == 0


def test_an_app_that_still_works_is_stopped_without_a_word_of_waitress(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line "1 thread(s) still running" on stderr does not say whose."""
    monkeypatch.setattr("enclavia.testing._workload._STOP_SECONDS", 0.05)
    begun, end = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        begun.set()
        end.wait(HANG)
        start_response("200 OK", [])
        return [b"late"]

    with LocalEnclave(app) as enclave:
        channel = Channel.connect(enclave.url, pcrs=enclave.pcrs, root=enclave.root)
        channel.open_stream(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert begun.wait(HANG)
    assert not end.is_set()  # it was still at work
    end.set()
    channel.close()
    assert [record for record in caplog.records if record.name.startswith("waitress")] == []


def test_a_child_that_died_is_reported() -> None:
    enclave = LocalEnclave("127.0.0.1:1", in_process=False, mode="stub").start()
    assert repr(enclave) == f"<LocalEnclave stub {enclave.url}>"
    os.kill(enclave.pid, signal.SIGKILL)
    eventually(lambda: "ended: its process was killed" in repr(enclave))
    with pytest.raises(RuntimeError, match="ended"):
        enclave.stats()
    enclave.stop()
    assert repr(enclave) == "<LocalEnclave stub not running>"


@pytest.fixture
def interrupt() -> Iterator[Callable[[float], None]]:
    """Ctrl-C after so many seconds.

    Where it comes while the interpreter is in a destructor or in the callback of a weak reference,
    no caller can see it: Python reports it to ``sys.unraisablehook`` and goes on. pytest would take
    that report for a failure."""
    report = sys.unraisablehook

    def unraisable(what: sys.UnraisableHookArgs) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            report(what)

    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = unraisable
    try:
        yield lambda seconds: (signal.setitimer(signal.ITIMER_REAL, seconds), None)[1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        sys.unraisablehook = report


def test_a_late_answer_is_nobody_elses(interrupt: Callable[[float], None]) -> None:
    with LocalEnclave("127.0.0.1:1", in_process=False, mode="stub") as enclave:
        os.kill(enclave.pid, signal.SIGSTOP)
        try:
            interrupt(0.1)
            with pytest.raises(KeyboardInterrupt):
                enclave.restart()
        finally:
            os.kill(enclave.pid, signal.SIGCONT)
        assert enclave.stats()["connections_total"] == 0
        enclave.restart()
        assert enclave.stats()["connections_total"] == 0


def test_an_answer_after_its_time_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalEnclave("127.0.0.1:1", in_process=False, mode="stub") as enclave:
        os.kill(enclave.pid, signal.SIGSTOP)
        try:
            with monkeypatch.context() as patch:
                patch.setattr("enclavia.testing._child._CALL_SECONDS", 0.1)
                with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
                    enclave.restart()
        finally:
            os.kill(enclave.pid, signal.SIGCONT)
        assert enclave.stats()["connections_total"] == 0


def test_a_child_is_interrupted_at_any_moment(interrupt: Callable[[float], None]) -> None:
    with LocalEnclave("127.0.0.1:1", in_process=False, mode="stub") as enclave:
        interrupted = 0
        for step in range(60):
            try:
                interrupt(1e-5 + step * 5e-5)
                enclave.restart()
                interrupt(0)
            except KeyboardInterrupt:
                interrupted += 1
            assert enclave.stats()["connections_total"] == 0
        assert interrupted


def test_ctrl_c_is_meant_for_the_parent() -> None:
    """A terminal and a notebook send it to the whole process group."""
    with LocalEnclave("127.0.0.1:1", in_process=False, mode="stub") as enclave:
        for _ in range(3):
            os.kill(enclave.pid, signal.SIGINT)
            assert enclave.stats()["connections_total"] == 0
        pid = enclave.pid
    assert has_ended(pid)


def test_a_child_dies_with_its_parent() -> None:
    script = (
        "import os, signal\n"
        "from enclavia.testing import LocalEnclave\n"
        "e = LocalEnclave('127.0.0.1:1', in_process=False, mode='stub').start()\n"
        "print(e.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    child = int(done.stdout)
    eventually(lambda: has_ended(child))


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # ended, and nobody has waited for it


def test_a_forked_child_leaves_its_parents_enclave_alone() -> None:
    with (
        RawWorkload() as workload,
        LocalEnclave(workload.address, mode="stub") as enclave,
        PlainClient.connect(enclave.url) as client,
    ):
        stream = client.open_stream(b"a")
        assert client.read_chunk(stream) == b"a"
        child = os.fork()
        if child == 0:
            try:
                enclave.stop()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        client.write_stream(stream, b"b")
        assert client.read_chunk(stream) == b"b"


def imported_at_startup() -> set[str]:
    bare = [sys.executable, "-P", "-c", "import sys; print(*sys.modules)"]
    return set(subprocess.check_output(bare, text=True).split())


@pytest.mark.parametrize("name", ["enum", "re"])
def test_a_script_beside_a_file_named_like_the_standard_library(tmp_path: Path, name: str) -> None:
    """The script's folder is the first in which modules are looked for, but what the interpreter
    needs to start was imported before that. So it is in the other process."""
    if name not in imported_at_startup():
        pytest.skip(f"this interpreter starts without {name}, so the script would fail by itself")
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('the file beside the script')")
    (tmp_path / "apps.py").write_text(
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', '2')])\n"
        "    return [b'ok']\n"
    )
    script = """
        import enclavia.testing
        with enclavia.testing.LocalEnclave("apps:app", in_process=False) as enclave:
            with enclavia.Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client:
                assert client.get("/").text == "ok"
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert ended.returncode == 0, ended.stderr


UPGRADE = "Host: a\r\nConnection: upgrade\r\nUpgrade: "
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
H2C = "Host: a\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\nUpgrade: h2c"


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        ("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n", 426),
        (f"GET / HTTP/1.1\r\n{H2C}\r\n", 426),
        (f"GET / HTTP/1.1\r\n{UPGRADE}websocket\r\n", 426),  # and no key
        (f"POST / HTTP/1.1\r\n{UPGRADE}websocket\r\n{KEY}", 426),
        ("GET / HTTP/1.0\r\n", 426),
        ("DELETE / HTTP/1.1\r\nHost: a\r\n", 426),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n", 403),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n", 403),
        ("GET http://a/ HTTP/1.1\r\nHost: a\r\n", 403),
    ],
)
def test_whatever_is_no_websocket_is_answered_and_ended(
    request_head: str, status: int, tls: bool
) -> None:
    """No tunnel, no other protocol, and no connection that stays."""
    with LocalEnclave(wsgi, tls=tls) as enclave:
        trusting = ssl.create_default_context(cafile=enclave.tls_certificate)
        with socket.create_connection((enclave.host, enclave.port), HANG) as sock:
            raw = trusting.wrap_socket(sock, server_hostname=enclave.host) if tls else sock
            raw.sendall(request_head.encode() + b"\r\n")
            answer = b"".join(iter(lambda: raw.recv(4096), b""))
        assert answer.split(b" ", 2)[1] == str(status).encode()
        if status == 426:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"\r\nupgrade: websocket" in head
            assert f"content-length: {len(body)}".encode() in head
            assert b"enclavia.Client" in body
        assert enclave.stats()["connections_total"] == 0
        assert get(enclave).startswith("wsgi")


def test_no_http2_by_tls() -> None:
    """A WebSocket over HTTP/2 would have no socket of its own."""
    with LocalEnclave(wsgi, tls=True) as enclave:
        context = ssl.create_default_context(cafile=enclave.tls_certificate)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection((enclave.host, enclave.port), HANG) as sock,
            context.wrap_socket(sock, server_hostname=enclave.host) as raw,
        ):
            assert raw.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("body", [b"", b"three"])
def test_a_request_without_websocket_is_told_what_to_use(tls: bool, body: bytes) -> None:
    with LocalEnclave(wsgi, tls=tls) as enclave:
        plain: http.client.HTTPConnection
        trusting = ssl.create_default_context(cafile=enclave.tls_certificate)
        if tls:
            plain = http.client.HTTPSConnection(
                enclave.host, enclave.port, timeout=HANG, context=trusting
            )
        else:
            plain = http.client.HTTPConnection(enclave.host, enclave.port, timeout=HANG)
        plain.request("POST" if body else "GET", "/path", body or None)
        answer = plain.getresponse()
        assert answer.status == 426  # RFC 9110, section 15.5.22
        assert answer.headers["upgrade"] == "websocket"
        assert "upgrade" in answer.headers["connection"]
        assert b"enclavia.Client" in answer.read()
        assert answer.will_close
        plain.close()
        with socket.create_connection((enclave.host, enclave.port), HANG) as sock:
            raw = trusting.wrap_socket(sock, server_hostname=enclave.host) if tls else sock
            raw.sendall(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            head = b"".join(iter(lambda: raw.recv(4096), b""))
        assert head.startswith(b"HTTP/1.1 426 ")
        assert head.endswith(b"\r\n\r\n")  # RFC 9110, section 9.3.2
        assert enclave.stats()["requests_total"] == enclave.stats()["streams_total"] == 0
        assert get(enclave).startswith("wsgi")


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Before anything listens: the core could say only that one of several things failed."""
    for name, rows in {"cert.pem": FileNotFoundError, "": ValueError}.items():
        with pytest.raises(rows, match="tls: expected the path of a PEM file, got"):
            LocalEnclave(wsgi_delaying, tls=(str(tmp_path / name), str(tmp_path / "key.pem")))
