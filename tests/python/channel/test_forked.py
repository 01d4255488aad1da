"""Channels and fork, and the end of an interpreter that has open channels."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from channels import connect
from enclave_peer import EnclavePeer
from enclave_peer import connect as connect_peer
from forked import in_child
from raw_server import LIMIT, Peer, RawServer
from support import HANG, eventually

import enclavia
from enclavia.testing import LocalEnclave

ROOT = Path(enclavia.__file__).parent.parent


def test_every_method_says_that_it_was_forked(echoing: LocalEnclave) -> None:
    with connect(echoing) as channel:
        stream = channel.open_stream(b"hello")
        core = channel._core
        request = core.start_request(core.reserve(None, 0), b"x")
        slot = core.reserve(None, 0)

        calls: dict[str, Callable[[], Any]] = {
            "open_stream": lambda: channel.open_stream(b"x"),
            "request": lambda: channel.request(b"x"),
            "attest": channel.attest,
            "attestation": lambda: channel.attestation,
            "handshake_hash": lambda: core.handshake_hash,
            "wait_open": lambda: core.wait_open(1),
            "reserve": lambda: core.reserve(None, 0),
            "slot": lambda: slot.wait(1),
            "core open_stream": lambda: core.open_stream(slot, b"x"),
            "start_request": lambda: core.start_request(slot, b"x"),
            "result": lambda: request.result(1),
            "start_attest": lambda: core.start_attest(None, 0),
            "read": lambda: stream.read(1),
            "readinto": lambda: stream.readinto(bytearray(1)),
            "readall": stream.readall,
            "write": lambda: stream.write(b"x"),
            "write_eof": stream.write_eof,
        }

        def work() -> None:
            assert core.forked
            for name, call in calls.items():
                try:
                    call()
                except enclavia.ForkedError as error:
                    assert "parent process" in str(error), name
                    assert not error.retryable
                else:
                    raise AssertionError(f"{name} did not raise")
            assert channel.closed
            assert isinstance(core.error, enclavia.ForkedError)
            stream.close()
            channel.close()

        assert in_child(work) == 0
        assert stream.read(10) == b"hello"
        stream.write(b"still mine")
        assert stream.read(20) == b"still mine"
        assert channel.attest().nonce


def test_a_child_opens_its_own(echoing: LocalEnclave) -> None:
    with connect(echoing) as channel:
        stream = channel.open_stream(b"hello")
        nonce = channel.attestation.nonce

        def work() -> None:
            with connect(echoing) as own:
                assert own.attestation.nonce != nonce
                assert own.open_stream(b"child").read(10) == b"child"

                def grandchild() -> None:
                    with pytest.raises(enclavia.ForkedError):
                        own.open_stream(b"x")
                    connect(echoing).close()

                assert in_child(grandchild) == 0
                assert own.open_stream(b"child").read(10) == b"child"

        assert in_child(work) == 0
        assert stream.read(10) == b"hello"


def test_the_peer_sees_the_end_although_a_child_lives() -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.upgrade()
        EnclavePeer(peer).open()
        peer.finish()
        gone.set()

    with RawServer(script) as server:
        channel = connect_peer(server.url)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
        os.close(reader)
        try:
            channel.close()
            assert gone.wait(LIMIT / 2)  # the child, which has the descriptor, still lives
        finally:
            os.close(writer)
            os.waitpid(pid, 0)


def test_forked_while_connecting() -> None:
    """The parent goes on; the child has neither the channel nor its locks."""
    go = threading.Event()

    def collect() -> None:
        gc.collect()

    def script(peer: Peer) -> None:
        peer.upgrade()
        enclave = EnclavePeer(peer)
        key = enclave.read_key()
        go.wait(10)
        enclave.send_bytes(enclave.answer_for(key))
        enclave.expect_attestation_request()
        enclave.send_bytes(enclave.attestation())
        enclave.serve_echo()

    with RawServer(script) as server:
        opened: list[enclavia.Channel] = []
        thread = threading.Thread(target=lambda: opened.append(connect_peer(server.url)))
        thread.start()
        eventually(lambda: bool(server.peers))
        assert in_child(collect) == 0
        go.set()
        thread.join(10)
        with opened[0] as channel:
            assert channel.open_stream(b"hello").read(10) == b"hello"


# the end of the interpreter


@pytest.mark.parametrize(
    "body",
    [
        "channel = connect()",
        "channel = connect(); stream = channel.open_stream(b'x')",
        "import threading; channel = connect(); stream = channel.open_stream(b'')\n"
        "threading.Thread(target=stream.read, args=(1,), daemon=True).start()",
        "import builtins; builtins.kept = [connect(), connect().open_stream(b'x')]",
        "import sys; channel = connect(); sys.exit(0)",
    ],
    ids=["channel", "stream", "daemon thread", "immortal", "exit"],
)
def test_the_interpreter_ends_with_open_channels(echoing: LocalEnclave, body: str) -> None:
    """It does not wait for what waits: no wait here ends by itself."""
    pins = {f"pcr{index}": value for index, value in enumerate(echoing.pcrs.as_tuple())}
    script = f"""
import enclavia
def connect():
    return enclavia.Channel.connect({echoing.url!r}, root={echoing.root!r}, timeout=None,
        pcrs=enclavia.Pcrs(**{pins!r}))
{body}
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=HANG,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    eventually(lambda: echoing.stats()["connections_open"] == 0)
