"""The C core's objects where several threads, processes or interpreters meet on one."""

from __future__ import annotations

import select
import sys
import threading
from typing import Any

import pytest
from forked import in_child
from support import HANG, ByteServer, Connection, keywords

import enclavia
from enclavia import _core
from enclavia.testing import LocalEnclave


def silent(connection: Connection) -> None:
    connection.wait_closed(30)


def test_a_request_abandoned_while_another_thread_waits() -> None:
    with (
        ByteServer(silent) as server,
        LocalEnclave(server.address) as enclave,
        enclavia.Channel.connect(enclave.url, **keywords(enclave)) as channel,
    ):
        request = channel._core.start_request(channel._core.reserve(None, 0), b"x")
        threading.Timer(0.1, request.abandon).start()
        # Nothing that came later, such as the time-out of the wait, would say so.
        with pytest.raises(ValueError, match="abandoned"):
            request.result(HANG)
        with pytest.raises(ValueError, match="abandoned"):
            request.result(0)
        request.abandon()


def test_headers_that_are_changed_while_a_channel_is_made() -> None:
    class Fleeting:
        """Its items live no longer than one look at them."""

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[str, str]:
            if index > 1:
                raise IndexError
            return (f"x-{'name' * 20}-{index}", f"{'value' * 20}-{index}")

    make: Any = _core.Channel
    policy = _core.Policy(None, None, True, False)
    channel = make("127.0.0.1", 1, False, "/", "localhost", Fleeting(), policy, 1, True, None, None)
    channel.close()
    with pytest.raises(TypeError, match="headers"):
        make("127.0.0.1", 1, False, "/", "h", [("a",)], policy, 1, True, None, None)


def test_a_notifier_in_a_forked_child() -> None:
    """Its counter is the parent's, who would miss what the child took."""
    notifier = _core.Notifier()
    notifier.wake()

    def drain() -> None:
        assert notifier.drain() == []

    assert in_child(drain) == 0
    assert select.select([notifier.fileno()], [], [], 0)[0] != []
    notifier.drain()
    assert in_child(notifier.wake) == 0
    assert select.select([notifier.fileno()], [], [], 0)[0] == []


def test_an_enclave_in_a_forked_child() -> None:
    """Whatever its lock was doing when the child was made."""
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:
        runner: Any = enclave._runner
        core = runner._enclave
        ended = threading.Event()

        def busy() -> None:
            while not ended.is_set():
                core.drop_connections()

        thread = threading.Thread(target=busy)
        thread.start()
        try:
            for _ in range(10):

                def work() -> None:
                    core.stats()
                    core.stop()

                assert in_child(work) == 0
        finally:
            ended.set()
            thread.join()


def test_only_in_the_main_interpreter() -> None:
    interpreters = pytest.importorskip(
        "_xxsubinterpreters", reason="this Python keeps its subinterpreters elsewhere"
    )
    made = interpreters.create()
    try:
        with pytest.raises(Exception, match="main interpreter"):
            interpreters.run_string(
                made, f"import sys; sys.path[:] = {sys.path!r}; import enclavia._core"
            )
    finally:
        interpreters.destroy(made)
