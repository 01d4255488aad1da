"""What belongs to the whole process is the program's: a client, or a local enclave, leaves it as it
was. Each case runs in a process of its own, whose state nothing else has touched."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from repository import ROOT

STATE = r"""
import contextlib, ctypes, fcntl, locale, os, resource, signal, socket, sys, threading, warnings

warnings.simplefilter("ignore")
sys.path.insert(0, "tests/support")

def status():
    # Of the thread that calls: what it blocks; of the process: what it ignores and catches.
    with open("/proc/thread-self/status") as lines:
        found = dict(line.rstrip("\n").split(":\t", 1) for line in lines)
    return {name: found[name] for name in ("Umask", "SigBlk", "SigIgn", "SigCgt", "NoNewPrivs")}

def state():
    libc = ctypes.CDLL(None)
    libc.setlocale.restype = ctypes.c_char_p
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        **status(),
        **{name: resource.getrlimit(getattr(resource, name)) for name in limits},
        **{str(s): str(signal.getsignal(s)) for s in signal.valid_signals()},
        "environment": open("/proc/self/environ", "rb").read(),
        "environ": dict(os.environ),
        "directory": os.getcwd(),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "locale": libc.setlocale(6, None),
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "standard": [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in range(3)],
        "dumpable": libc.prctl(3, 0, 0, 0, 0),
        "affinity": os.sched_getaffinity(0),
    }

def differences(before, after):
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}
"""

USED = r"""
import enclavia
from enclavia.testing import LocalEnclave

def app(environ, start_response):
    start_response("200 OK", [("content-length", "2")])
    return [b"ok"]

signal.signal(signal.SIGPIPE, PIPE)
threading.Thread(target=int).start()  # the C library sets a signal of its own up for threads
before = state()
for tls in (False, True):
    with LocalEnclave(app, mode="debug", tls=tls) as enclave:
        trusted = {"verify": enclave.tls_certificate} if tls else {}
        with enclavia.Client(enclave.url, pcrs=enclave.pcrs, debug_mode=True, **trusted) as client:
            assert client.get("/").content == b"ok"
        during = state()
print(differences(before, during) or differences(before, state()))
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", STATE + textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_signals_limits_and_the_rest_are_as_they_were() -> None:
    assert run(USED.replace("PIPE)", "signal.SIG_DFL)")) == "{}"


def test_a_handler_of_the_programs_stays() -> None:
    assert run(USED.replace("PIPE)", "lambda *_: None)")) == "{}"


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    assert run(USED.replace("PIPE)", "signal.SIG_IGN)")) == "{}"


def test_a_connection_that_breaks_raises_no_signal() -> None:
    script = r"""
    import enclavia
    from enclavia.testing import LocalEnclave

    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            peer = listener.accept()[0]
            threading.Thread(target=take_all, args=(peer,), daemon=True).start()

    def take_all(peer):
        with peer, contextlib.suppress(OSError):
            while peer.recv(65536):
                pass

    threading.Thread(target=serve, daemon=True).start()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    caught = []
    signal.signal(signal.SIGPIPE, lambda *_: caught.append(1))
    for tls in (False, True):
        with LocalEnclave(address, mode="debug", tls=tls) as enclave:
            trusted = {"verify": enclave.tls_certificate} if tls else {}
            for at in range(10):
                channel = enclavia.Channel.connect(
                    enclave.url, pcrs=enclave.pcrs, debug_mode=True, **trusted
                )
                stream = channel.open_stream(b"x")
                threading.Timer(0.02, enclave.drop_connections, [at % 2 == 0]).start()
                try:
                    while True:
                        stream.write(b"z" * 16384)
                except enclavia.ConnectionClosed:
                    pass
                channel.close()
    print(caught)
    """
    assert run(script) == "[]"
