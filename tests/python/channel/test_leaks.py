"""What is left behind: by channels opened, refused, abandoned, interrupted, forked."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from enclave_peer import EnclavePeer
from enclave_peer import connect as connect_peer
from raw_server import LIMIT, Peer, RawServer, unused_port
from resources import Held, eventually, resident_kib
from support import HANG, ByteServer, Connection

import enclavia
from enclavia.testing import Fault, LocalEnclave

ROOT = Path(enclavia.__file__).parent.parent

# What 1 000 of anything may add. One leaked kilobyte each would be 1 000 KiB; what is seen is below
# 100, and several hundred where threads come with arenas of their own.
RSS_TOLERANCE_KIB = 300
RSS_TOLERANCE_THREADS_KIB = 900


def echo(connection: Connection) -> None:
    while data := connection.sock.recv(262_144):
        connection.send(data)


def silent(connection: Connection) -> None:
    """Takes everything, and answers nothing."""
    while connection.sock.recv(262_144):
        pass


def deaf(connection: Connection) -> None:
    """Takes nothing."""
    time.sleep(30)


def connect(enclave: LocalEnclave, **options: Any) -> enclavia.Channel:
    return enclavia.Channel.connect(
        enclave.url, **{"pcrs": enclave.pcrs, "root": enclave.root, "timeout": 10.0, **options}
    )


@pytest.fixture(scope="module")
def remote() -> Iterator[LocalEnclave]:
    """In a process of its own, so that this one's memory is the client's."""
    with LocalEnclave("127.0.0.1:9", in_process=False, max_connections=64) as enclave:
        yield enclave


@pytest.fixture
def echoing() -> Iterator[LocalEnclave]:
    with ByteServer(echo) as server, LocalEnclave(server.address) as enclave:
        yield enclave


@pytest.fixture
def silently() -> Iterator[LocalEnclave]:
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:
        yield enclave


def check_flat(
    once: Callable[[], None],
    times: int = 1000,
    warm_up: int = 100,
    tolerance: int = RSS_TOLERANCE_KIB,
) -> None:
    """After a warm-up nothing may grow any more."""
    for _ in range(warm_up):
        once()
    gc.collect()
    held = Held()
    before = resident_kib()
    for _ in range(times):
        once()
    held.check_released()
    gc.collect()
    grown = resident_kib() - before
    assert grown < tolerance, f"{times} times: {grown} KiB more"


# a thousand


def test_connect_and_close(remote: LocalEnclave) -> None:
    check_flat(lambda: connect(remote).close())
    assert eventually(lambda: remote.stats()["connections_open"] == 0)


def test_connect_and_forget(remote: LocalEnclave) -> None:
    """Without close, and without the garbage collector: a channel has no cycles."""
    gc.disable()
    try:
        check_flat(lambda: (connect(remote), None)[1], 200)
    finally:
        gc.enable()
    assert eventually(lambda: remote.stats()["connections_open"] == 0)


def test_resolved_names(remote: LocalEnclave) -> None:
    """Names are looked up in a thread that ends with its answer."""
    url = remote.url.replace("127.0.0.1", "localhost")

    def once() -> None:
        enclavia.Channel.connect(url, pcrs=remote.pcrs, root=remote.root).close()

    check_flat(once, 100)


def test_refused_port() -> None:
    url = f"ws://127.0.0.1:{unused_port()}"

    def once() -> None:
        with pytest.raises(enclavia.ConnectError):
            connect_peer(url)

    check_flat(once)


def test_refused_upgrade(tmp_path: Path) -> None:
    """The server is another process: its threads would be counted here."""
    script = """
import socket
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
print(listener.getsockname()[1], flush=True)
while True:
    sock, _ = listener.accept()
    data = b""
    while not data.endswith(b"\\r\\n\\r\\n"):
        data += sock.recv(4096)
    sock.sendall(b"HTTP/1.1 404 Not Found\\r\\nContent-Length: 0\\r\\n\\r\\n")
    sock.close()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            url = f"ws://127.0.0.1:{int(process.stdout.readline())}"

            def once() -> None:
                with pytest.raises(enclavia.UpgradeRejected):
                    connect_peer(url)

            check_flat(once)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.WRONG_NONCE, enclavia.NonceMismatch),
        (Fault.BAD_SIGNATURE, enclavia.SignatureError),
        (Fault.WRONG_PCRS, enclavia.PcrMismatch),
        (Fault.ZERO_KEY, enclavia.ProtocolError),
        (Fault.GARBAGE_RECORD, enclavia.ProtocolError),
    ],
    ids=lambda value: getattr(value, "__name__", getattr(value, "name", "")),
)
def test_failed_attestation(
    remote: LocalEnclave, fault: Fault, error: type[enclavia.EnclaviaError]
) -> None:
    def once() -> None:
        with pytest.raises(error):
            connect(remote)

    remote.set_faults(fault)
    try:
        check_flat(once, 1000 if fault is Fault.WRONG_NONCE else 200)
    finally:
        remote.set_faults()
    assert eventually(lambda: remote.stats()["connections_open"] == 0)


def test_timeouts() -> None:
    """Nobody answers; the kernel accepts."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        listener.setblocking(False)

        def one(_: int) -> None:
            with pytest.raises(enclavia.ConnectTimeout):
                connect_peer(url, timeout=0.02)

        def hundred() -> None:
            list(pool.map(one, range(100)))
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()

        with ThreadPoolExecutor(8) as pool:
            check_flat(hundred, 10, 3, RSS_TOLERANCE_THREADS_KIB)


def test_given_up_at_any_moment(remote: LocalEnclave) -> None:
    """Also at the very moment when the connection opens."""
    connect(remote).close()
    held = Held()
    outcomes = set()
    for number in range(360):
        try:
            connect(remote, timeout=number % 120 / 20_000).close()
            outcomes.add("opened")
        except enclavia.ConnectTimeout:
            outcomes.add("given up")
    held.check_released()
    assert eventually(lambda: remote.stats()["connections_open"] == 0)
    assert "given up" in outcomes


def test_streams_and_requests(echoing: LocalEnclave) -> None:
    with connect(echoing) as channel:

        def once() -> None:
            with channel.open_stream(b"hello") as stream:
                assert stream.read(10) == b"hello"

        for _ in range(300):
            once()
        held = Held()
        for _ in range(1000):
            once()
        held.check_released()
        assert channel.stats["streams_open"] == 0
        assert eventually(lambda: echoing.stats()["slots_open"] == 0)


# given up


def test_abandoned_streams_free_their_slots(silently: LocalEnclave) -> None:
    with connect(silently, max_in_flight=4) as channel:
        for _ in range(50):
            channel.open_stream(b"x", timeout=2)  # dropped at once
        assert channel.stats["streams_open"] == 0
        held = [channel.open_stream(b"x", timeout=2) for _ in range(4)]
        assert eventually(lambda: silently.stats()["slots_open"] == 4)
        held[0].cycle = held  # type: ignore[attr-defined]
        del held
        gc.collect()
        assert eventually(lambda: silently.stats()["slots_open"] == 0)


def test_a_stream_keeps_its_channel(echoing: LocalEnclave) -> None:
    stream = connect(echoing).open_stream(b"hello")
    gc.collect()
    with contextlib.suppress(enclavia.ConnectionClosed):
        # Whichever way: no crash, and an answer at once.
        stream.timeout = 2
        stream.read(10)
    del stream
    assert eventually(lambda: echoing.stats()["connections_open"] == 0)


# closed while others wait


class Waiting:
    """Calls in threads of their own, and how each ended."""

    def __init__(self, **calls: Callable[[], Any]) -> None:
        self.ended: dict[str, BaseException | None] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(name, call)) for name, call in calls.items()
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, name: str, call: Callable[[], Any]) -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as raised:
            error = raised
        self.ended[name] = error

    def check(self, **expected: type[BaseException]) -> None:
        """A wait that nobody ended would have ended by its own time-out, and so with another
        error."""
        for thread in self._threads:
            thread.join(HANG)
        assert self.ended.keys() == expected.keys()
        for name, error in self.ended.items():
            assert type(error) is expected[name], (name, error)


def test_closing_ends_every_wait_at_once() -> None:
    with ByteServer(silent) as server, LocalEnclave(server.address) as enclave:
        channel = connect(enclave, max_in_flight=3, timeout=20)
        # An enclave that stops reading stops writers too.
        enclave.set_faults(Fault.SILENT_STREAMS | Fault.SILENT_ATTESTATION)
        reading, writing = channel.open_stream(b"x"), channel.open_stream(b"x")
        into = channel.open_stream(b"x")
        waiting = Waiting(
            read=lambda: reading.read(1),
            readinto=lambda: into.readinto(bytearray(8)),
            slot=lambda: channel.open_stream(b"x"),
            request=lambda: channel.request(b"x"),
            attest=channel.attest,
        )
        time.sleep(0.2)
        assert waiting.ended == {}
        channel.close()
        waiting.check(
            read=enclavia.ConnectionClosed,
            readinto=enclavia.ConnectionClosed,
            slot=enclavia.ConnectionClosed,
            request=enclavia.ConnectionClosed,
            attest=enclavia.ConnectionClosed,
        )
        with pytest.raises(enclavia.ConnectionClosed, match="closed by its user") as caught:
            writing.write(b"x")
        assert not caught.value.retryable
        for call in (channel.request, channel.open_stream):
            with pytest.raises(enclavia.StateError, match="its user has closed"):
                call(b"x")
        channel.close()


def stuck_peer() -> tuple[RawServer, threading.Event]:
    """Opens as it should, and then reads nothing."""
    done = threading.Event()

    def script(peer: Peer) -> None:
        peer.upgrade()
        EnclavePeer(peer).open()
        done.wait(20)

    return RawServer(script), done


def test_closing_ends_a_write_that_waits() -> None:
    server, done = stuck_peer()
    with server:
        channel = connect_peer(server.url, timeout=20)
        stream = channel.open_stream()
        waiting = Waiting(write=lambda: stream.write(bytes(64 * 1024 * 1024)))
        time.sleep(0.3)
        assert waiting.ended == {}
        channel.close()
        waiting.check(write=enclavia.ConnectionClosed)
        done.set()


def test_closing_a_stream_ends_its_own_waits_only() -> None:
    server, done = stuck_peer()
    with server, connect_peer(server.url, timeout=20) as channel:
        first, second = channel.open_stream(), channel.open_stream()
        waiting = Waiting(
            read=lambda: first.read(1), write=lambda: first.write(bytes(64 * 1024 * 1024))
        )
        other = Waiting(read=lambda: second.read(1))
        time.sleep(0.3)
        first.close()
        waiting.check(read=ValueError, write=ValueError)
        assert other.ended == {}
        channel.close()
        other.check(read=enclavia.ConnectionClosed)
        done.set()


def test_a_lost_connection_ends_every_wait_at_once(silently: LocalEnclave) -> None:
    channel = connect(silently, max_in_flight=1)
    stream = channel.open_stream(b"x")
    waiting = Waiting(read=lambda: stream.read(1), slot=lambda: channel.open_stream(b"x"))
    time.sleep(0.1)
    silently.drop_connections(reset=True)
    waiting.check(read=enclavia.ConnectionClosed, slot=enclavia.ConnectionClosed)
    errors = waiting.ended.values()
    assert all(isinstance(error, enclavia.EnclaviaError) and error.retryable for error in errors)


# Ctrl-C

# Seconds that what is interrupted here would wait at least.
SHORTEST = 10.0


def interrupted(call: Callable[[], Any], after: float = 0.15) -> float:
    """The call must end by KeyboardInterrupt, and by the first SIGINT: a wait that is not
    interrupted goes on until its time-out, by when the second one is due. Returns how many seconds
    it took."""
    main = threading.main_thread().ident
    assert main is not None
    ended = threading.Event()
    due: list[float] = []

    def interrupt() -> None:
        time.sleep(after)
        due.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGINT)
        if not ended.wait(SHORTEST / 2):
            due.append(time.monotonic())

    thread = threading.Thread(target=interrupt)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        took = time.monotonic() - due[0]
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGINT, previous)
    assert len(due) == 1, "it waited on"
    return took


def test_ctrl_c_while_connecting() -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_to_end()
        gone.set()

    with RawServer(script) as server:
        interrupted(lambda: connect_peer(server.url, timeout=20))
        assert gone.wait(LIMIT / 2), "the connection must be given up"


def test_ctrl_c_while_attesting() -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.upgrade()
        EnclavePeer(peer).handshake()
        peer.finish()
        gone.set()

    with RawServer(script) as server:
        interrupted(lambda: connect_peer(server.url, timeout=20))
        assert gone.wait(LIMIT / 2)


def test_ctrl_c_in_a_stream_leaves_all_usable(echoing: LocalEnclave) -> None:
    with connect(echoing, max_in_flight=2) as channel:
        stream, other = channel.open_stream(), channel.open_stream()
        interrupted(lambda: stream.read(1))
        interrupted(lambda: stream.readinto(bytearray(1)))
        interrupted(stream.readall)
        interrupted(lambda: channel.open_stream(timeout=None))
        assert channel.stats["slots_waiting"] == 0
        for usable in (stream, other):
            usable.write(b"still here")
            assert usable.read(100) == b"still here"
        stream.close()
        assert channel.open_stream(b"next", timeout=2).read(10) == b"next"


def test_ctrl_c_in_a_request_and_an_attestation(silently: LocalEnclave) -> None:
    with connect(silently, max_in_flight=2) as channel:
        interrupted(lambda: channel.request(b"x"))
        channel.open_stream(b"x", timeout=2).close()


def test_attestations_nobody_waits_for_any_more() -> None:
    """Their answers come all the same, and are not taken for those of later questions."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.upgrade()
        enclave = EnclavePeer(peer)
        enclave.open()
        for _ in range(13):
            enclave.expect_attestation_request()
        go.wait(HANG)
        for _ in range(13):
            enclave.send_bytes(enclave.attestation())
        enclave.serve_echo()

    with RawServer(script) as server, connect_peer(server.url) as channel:
        interrupted(channel.attest)
        for _ in range(12):
            with pytest.raises(enclavia.ReadTimeout):
                channel.attest(timeout=0.01)
        before = channel.attestation
        go.set()
        for _ in range(20):
            assert channel.attest(timeout=HANG).nonce == before.nonce


def test_ctrl_c_in_a_write() -> None:
    server, done = stuck_peer()
    with server:
        channel = connect_peer(server.url)
        stream = channel.open_stream()
        interrupted(lambda: stream.write(bytes(64 * 1024 * 1024)))
        assert not channel.closed
        stream.write_timeout = 0
        assert stream.write(b"x" * 100) in (None, 100)
        done.set()
        channel.close()


def test_ctrl_c_while_closing() -> None:
    """Closing waits for a second, so here the time counts: that of the best of a few tries. Load
    makes some of them longer, waiting all."""
    took = []
    while not took or (min(took) > 0.5 and len(took) < 5):
        server, done = stuck_peer()
        with server:
            channel = connect_peer(server.url)
            took.append(interrupted(channel.close))
            assert channel.closed
            done.set()
    assert min(took) < 0.5


def test_a_handler_that_does_not_raise_does_not_disturb(echoing: LocalEnclave) -> None:
    seen: list[int] = []
    main = threading.main_thread().ident
    assert main is not None
    previous = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with connect(echoing) as channel:
            stream = channel.open_stream()

            def disturb() -> None:
                for _ in range(20):
                    time.sleep(0.01)
                    signal.pthread_kill(main, signal.SIGUSR1)
                stream.write(b"at last")

            thread = threading.Thread(target=disturb)
            thread.start()
            assert stream.read(100) == b"at last"
            thread.join()
        assert seen
    finally:
        signal.signal(signal.SIGUSR1, previous)


# fork


def in_child(work: Callable[[], None]) -> None:
    """Runs it in a forked child, which must end by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(status)
    ended: list[int] = []

    def waited() -> bool:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(done)

    if not eventually(waited, within=15):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.fail("the child hangs")
    assert ended == [0]


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

        in_child(work)
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

                in_child(grandchild)
                assert own.open_stream(b"child").read(10) == b"child"

        in_child(work)
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
        assert eventually(lambda: bool(server.peers))
        in_child(collect)
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
    assert eventually(lambda: echoing.stats()["connections_open"] == 0)


# many threads


def test_16_threads_on_one_channel(echoing: LocalEnclave) -> None:
    with connect(echoing, max_in_flight=8) as channel:

        def work(number: int) -> int:
            count = 0
            for turn in range(40):
                payload = bytes([number, turn]) * (1 + 97 * turn)
                with channel.open_stream(payload, timeout=20) as stream:
                    came = b""
                    while len(came) < len(payload):
                        came += stream.read(65536) or b""
                    assert came == payload
                if turn % 10 == 0:
                    assert channel.attest().pcrs[0] == echoing.pcrs.pcr0
                count += 1
            return count

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(work, range(16))) == 640
        assert channel.stats["streams_open"] == 0
        assert channel.stats["slots_waiting"] == 0
        assert eventually(lambda: echoing.stats()["slots_open"] == 0)


def test_threads_that_share_one_stream(echoing: LocalEnclave) -> None:
    """Each byte goes to one reader."""
    with connect(echoing) as channel, channel.open_stream() as stream:
        count, total, lock = 0, 400_000, threading.Lock()

        def read() -> None:
            nonlocal count
            while True:
                try:
                    data = stream.read(1000)
                except ValueError:  # closed
                    return
                with lock:
                    count += len(data or b"")
                    if count >= total or not data:
                        return

        readers = [threading.Thread(target=read, daemon=True) for _ in range(4)]
        for thread in readers:
            thread.start()
        for _ in range(40):
            stream.write(bytes(10_000))
        assert eventually(lambda: count >= total)
        stream.close()
        for thread in readers:
            thread.join(5)
            assert not thread.is_alive()


def test_opening_and_closing_from_many_threads(remote: LocalEnclave) -> None:
    held = Held()
    with ThreadPoolExecutor(8) as pool:
        for future in [
            pool.submit(lambda: connect(remote, timeout=20).close()) for _ in range(100)
        ]:
            future.result()
    held.check_released()
