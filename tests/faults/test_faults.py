"""Every fault, in both directions, at every stage, for every kind of caller.

What is harmless changes nothing. What is not ends in a typed error within the deadlines, or is
survived; no byte is ever wrong, no POST reaches the workload twice, and the same caller works
again afterwards.
"""

from __future__ import annotations

import functools
import itertools
import json
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from interop.harness import Peer
from support import eventually

from enclavia import (
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    EnclaviaError,
    Pcrs,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    WriteTimeout,
)
from enclavia.testing import LocalEnclave

from .callers import KINDS, AsyncClientCaller, Caller, ClientCaller, make
from .faults import (
    Blackhole,
    Close,
    Coalesce,
    Corrupt,
    Cut,
    Delay,
    Direction,
    Duplicate,
    Fault,
    Fragment,
    HalfClose,
    Jitter,
    Merge,
    Oversized,
    Pings,
    Place,
    Pongs,
    Reset,
    Split,
    Stage,
    Stall,
    Texts,
    Throttle,
    Truncate,
)
from .proxy import FaultProxy
from .workload import Workload, content

UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT
KIB = 1024
PATIENT, IMPATIENT = 60.0, 1.0
# Longer than any deadline here, by far, and than a loaded machine makes it.
HANG = 120.0
TIMEOUTS = (ConnectTimeout, ReadTimeout, WriteTimeout, PoolTimeout)

pytestmark = pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")


@pytest.fixture(scope="module")
def behind() -> Iterator[Workload]:
    # A proxy can hold an answer's end back for longer than a connection is kept by default. The
    # next request would then meet its end, and a POST may not be sent again.
    with Workload(idle=600) as server:
        yield server


@pytest.fixture(scope="module")
def enclave(behind: Workload) -> Iterator[LocalEnclave]:
    with LocalEnclave(behind.address, max_connections=64) as started:
        yield started


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclavia._exchange.tunnel.SILENCE", 0.2)


def options(enclave: LocalEnclave, **more: Any) -> dict[str, Any]:
    return {"pcrs": enclave.pcrs, "root": enclave.root, **more}


def proxy_to(enclave: LocalEnclave, *faults: Fault, seed: int = 0) -> FaultProxy:
    """The first connection has the faults, those that replace it have none."""
    return FaultProxy(
        (enclave.host, enclave.port), lambda number: faults if number == 0 else (), seed=seed
    )


class Posts:
    """Numbers of POSTs, and what became of them at the workload."""

    _numbers = itertools.count()

    def __init__(self, behind: Workload) -> None:
        self._url = f"http://{behind.address}/counts"
        self.succeeded: set[str] = set()
        self.made: set[str] = set()

    def new(self) -> str:
        number = f"p{next(self._numbers)}"
        self.made.add(number)
        return number

    def check(self) -> None:
        with urllib.request.urlopen(self._url, timeout=HANG) as answer:
            counts = json.load(answer)
        begun = {number: counts["begun"].get(number, 0) for number in self.made}
        assert all(times <= 1 for times in begun.values()), begun
        assert all(counts["whole"].get(number) == 1 for number in self.succeeded)


def attempt(call: Callable[[], None]) -> EnclaviaError | None:
    """A right answer, or a typed error. Who hangs is ended by ``HANG`` (see ``in_parallel``)."""
    try:
        call()
    except EnclaviaError as caught:
        return caught
    return None


def post(caller: Caller, posts: Posts, size: int = 30 * KIB) -> EnclaviaError | None:
    number = posts.new()
    error = attempt(lambda: caller.post(number, size, 5))
    if error is None:
        posts.succeeded.add(number)
    return error


def ordinary_work(caller: Caller, posts: Posts) -> list[EnclaviaError | None]:
    return [
        attempt(lambda: caller.get(1, 9)),
        attempt(lambda: caller.get(100 * KIB, 7)),
        post(caller, posts),
        attempt(lambda: caller.get(2_000, 1)),
    ]


def in_parallel(work: Callable[..., None], *axes: Iterable[object]) -> None:
    """All combinations; most of their time is waiting for a deadline."""
    with ThreadPoolExecutor(12) as pool:
        running = {pool.submit(work, *case): case for case in itertools.product(*axes)}
        for future, case in running.items():
            try:
                future.result(3 * HANG)
            except BaseException as error:
                error.add_note(f"with {case}")
                raise


def assert_recovers(caller: Caller, allowed: tuple[type[EnclaviaError], ...]) -> None:
    for _ in range(10):
        error = attempt(lambda: caller.get(3_000, 3))
        if error is None:
            break
        assert isinstance(error, allowed), repr(error)
    else:
        raise AssertionError(f"does not work again: {error!r}")
    for size in (1, 70 * KIB):
        caller.get(size, 4)


# --- what changes nothing ----------------------------------------------------------------------

HARMLESS: dict[str, Sequence[Fault]] = {
    **{f"{cls.__name__} {way.value}": [cls(way)] for way in Direction for cls in (
        Delay, Jitter, Throttle, Split, Coalesce, Fragment, Pings, Pongs, Texts,
    )},
    "Merge": [Merge(DOWN)],
    "single bytes": [Split(way, largest=3) for way in Direction],
    "stalls": [Stall(way, Place(stage, 3), seconds=0.1) for way in Direction for stage in Stage],
    "pings between fragments": [
        fault
        for way in Direction
        for fault in (Fragment(way, largest=700), Pings(way, every=40), Texts(way, every=5))
    ],
    "all": [
        fault
        for way in Direction
        for fault in (
            Fragment(way, largest=3_000), Texts(way, every=3), Pings(way, every=9),
            Pongs(way, every=5), Jitter(way, seconds=0.002), Coalesce(way, seconds=0.004),
            Split(way, largest=2_000), Throttle(way, rate=5e6),
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless(enclave: LocalEnclave, behind: Workload, name: str) -> None:
    faults = HARMLESS[name]

    def one(kind: str) -> None:
        posts = Posts(behind)
        with (
            proxy_to(enclave, *faults) as proxy,
            make(kind, proxy.url, PATIENT, options(enclave)) as caller,
        ):
            assert ordinary_work(caller, posts) == [None] * 4
        assert proxy.connections == 1
        assert proxy.counts.total() == len(faults)
        posts.check()

    in_parallel(one, KINDS)


# --- what does ----------------------------------------------------------------------------------

ENDS: list[type[Fault]] = [Reset, HalfClose, Cut]
DAMAGE: list[type[Fault]] = [Corrupt, Truncate, Duplicate]
# How far into each stage: its very first byte, and somewhere in the middle.
AFTER = {Stage.UPGRADE: 60, Stage.HANDSHAKE: 20, Stage.ATTESTATION: 21, Stage.OPEN: 4_000}


def meet(
    kind: str,
    enclave: LocalEnclave,
    behind: Workload,
    fault: Fault,
    timeout: float,
    allowed: tuple[type[EnclaviaError], ...],
    **more: Any,
) -> list[EnclaviaError | None]:
    """Ordinary work into the fault, then recovery; gives what became of the work. On a busy machine
    a short timeout may pass before the place of the fault is reached: then a longer one is tried,
    until the fault was met."""
    met: Counter[str] = Counter()
    while not met:
        posts = Posts(behind)
        with (
            proxy_to(enclave, fault) as proxy,
            make(kind, proxy.url, timeout, options(enclave, **more)) as caller,
        ):
            outcomes = ordinary_work(caller, posts)
            for outcome in outcomes:
                assert outcome is None or isinstance(outcome, allowed), repr(outcome)
            assert_recovers(caller, allowed)
            met = proxy.counts
        posts.check()
        assert met or timeout < PATIENT, "the fault was not met"
        timeout *= 4
    assert met == {type(fault).__name__: 1}
    return outcomes


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("fault", ENDS)
def test_ends(enclave: LocalEnclave, behind: Workload, fault: type[Fault], stage: Stage) -> None:
    """A client's GETs do not notice; while connecting, nothing does."""

    def one(kind: str, way: Direction, after: int) -> None:
        outcomes = meet(
            kind, enclave, behind, fault(way, Place(stage, after)), PATIENT,
            (ConnectError, ConnectionClosed),
        )  # fmt: skip
        assert all(error is None or error.retryable for error in outcomes)
        if "Client" in kind:
            gets = [*outcomes[:2], outcomes[3]]
            # An answer that has begun is not asked for again: the second GET's may have.
            begun = way is DOWN and stage is Stage.OPEN and after > 0
            assert gets == [None] * 3 or (begun and gets[0] is gets[2] is None)
            assert stage is Stage.OPEN or outcomes == [None] * 4

    in_parallel(one, KINDS, Direction, (0, AFTER[stage]))


@pytest.mark.parametrize("stage", Stage)
def test_silence(enclave: LocalEnclave, behind: Workload, stage: Stage) -> None:
    def one(kind: str, way: Direction, fault: type[Fault]) -> None:
        place = Place(stage, AFTER[stage])
        value = Blackhole(way, place) if fault is Blackhole else Stall(way, place, seconds=HANG)
        outcomes = meet(kind, enclave, behind, value, IMPATIENT, TIMEOUTS)
        assert any(isinstance(error, TIMEOUTS) for error in outcomes)

    in_parallel(one, KINDS, Direction, (Blackhole, Stall))


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("fault", DAMAGE)
def test_damage(enclave: LocalEnclave, behind: Workload, fault: type[Fault], stage: Stage) -> None:
    allowed = (ConnectError, ConnectionClosed, ProtocolError, *TIMEOUTS)

    def one(kind: str, way: Direction) -> None:
        place = Place(stage, AFTER[stage])
        outcomes = meet(kind, enclave, behind, fault(way, place), IMPATIENT, allowed)
        if stage is Stage.OPEN and "Channel" in kind:
            assert any(outcomes), "a record was damaged and nobody noticed"

    in_parallel(one, KINDS, Direction)


@pytest.mark.parametrize("stage", [Stage.HANDSHAKE, Stage.ATTESTATION, Stage.OPEN])
def test_frames_that_are_too_long(enclave: LocalEnclave, behind: Workload, stage: Stage) -> None:
    def one(kind: str, way: Direction) -> None:
        outcomes = meet(
            kind, enclave, behind, Oversized(way, Place(stage)), IMPATIENT,
            (ConnectionClosed, ProtocolError, *TIMEOUTS),
        )  # fmt: skip
        if way is DOWN:
            assert any(isinstance(error, ProtocolError) for error in outcomes)

    in_parallel(one, KINDS, Direction)


@pytest.mark.parametrize("stage", [Stage.HANDSHAKE, Stage.ATTESTATION, Stage.OPEN])
def test_close_frames(enclave: LocalEnclave, behind: Workload, stage: Stage) -> None:
    def one(kind: str, way: Direction, code: int) -> None:
        fault = Close(way, Place(stage), code=code, reason="because")
        outcomes = meet(kind, enclave, behind, fault, PATIENT, (ConnectionClosed,))
        if "Client" in kind:
            assert [outcomes[0], outcomes[1], outcomes[3]] == [None] * 3
        elif way is DOWN:
            assert [str(code) in str(error) for error in outcomes if error] == [True]

    in_parallel(one, KINDS, Direction, [1000, 1001, 1002, 1008, 1009, 1011, 1012, 3000, 4999])


def test_close_codes_that_do_not_exist(enclave: LocalEnclave, behind: Workload) -> None:
    def one(kind: str, code: int) -> None:
        fault = Close(DOWN, Place(Stage.OPEN), code=code)
        outcomes = meet(kind, enclave, behind, fault, PATIENT, (ProtocolError,))
        assert any(outcomes)

    in_parallel(one, ("Client", "Channel"), [0, 999, 1005, 1006, 1015, 2999, 5000])


def test_every_bit_near_every_edge(enclave: LocalEnclave, behind: Workload) -> None:
    """Of the frame around an answer, of its record's length, its ciphertext and its tag: a typed
    error or the right answer, whichever bit it is."""
    allowed = (ConnectionClosed, ProtocolError, *TIMEOUTS)
    offsets = [*range(12), 30, 100, *range(290, 310), 400]

    def flip(case: tuple[Direction, int, int]) -> int:
        way, offset, bit = case
        fault = Corrupt(way, Place(Stage.OPEN, offset), bit=bit)
        with (
            proxy_to(enclave, fault) as proxy,
            make("Client", proxy.url, IMPATIENT, options(enclave)) as caller,
        ):
            gets = [functools.partial(caller.get, size, 2) for size in (40, 400, 4)]
            errors = [attempt(get) for get in gets]
            assert all(error is None or isinstance(error, allowed) for error in errors), errors
            return proxy.counts["Corrupt"]

    cases = [(way, at, bit) for way in Direction for at in offsets for bit in (0, 3, 7)]
    with ThreadPoolExecutor(16) as pool:
        hits = list(pool.map(flip, cases))
    assert sum(hits) > len(cases) / 2


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_a_record_that_is_said_to_be_longer_than_it_is(enclave: LocalEnclave, kind: str) -> None:
    """Bytes go on coming, and would all belong to it. The channel is given up at the first
    deadline, not when the answers to hundreds of requests have filled the record."""
    frame_head, upper_bytes = 4, 2
    fault = Corrupt(DOWN, Place(Stage.OPEN, frame_head + upper_bytes), bit=7)
    timeout = httpx2.Timeout(PATIENT, read=IMPATIENT)
    with (
        proxy_to(enclave, fault, Pings(DOWN, Place(Stage.OPEN, 1))) as proxy,
        make(kind, proxy.url, timeout, options(enclave)) as caller,
    ):
        assert isinstance(attempt(functools.partial(caller.get, 2, 1)), ReadTimeout)
        assert isinstance(caller, ClientCaller | AsyncClientCaller)
        caller.client.timeout = PATIENT
        for at in range(3):
            caller.get(2, at)
        assert proxy.connections == 2


def test_many_callers_in_one_channel_that_breaks(enclave: LocalEnclave, behind: Workload) -> None:
    """Again and again, for every connection but the last ones; no GET fails of which no answer had
    begun."""
    posts = Posts(behind)
    endings: list[type[Fault]] = [Reset, Cut, HalfClose]

    def plan(number: int) -> list[Fault]:
        if number > 8:
            return []
        way = Direction.TO_SERVER if number % 2 else Direction.TO_CLIENT
        return [endings[number % 3](way, Place(Stage.OPEN, 20_000))]

    with (
        FaultProxy((enclave.host, enclave.port), plan, seed=3) as proxy,
        make("Client", proxy.url, PATIENT, options(enclave, retries=20)) as caller,
        ThreadPoolExecutor(16) as pool,
    ):
        assert isinstance(caller, ClientCaller)
        client = caller.client

        def get() -> None:
            with client.stream("GET", "/bytes/50?at=6") as response, suppress(ConnectionClosed):
                assert response.read() == content(50, 6)

        gets = [pool.submit(get) for _ in range(400)]
        made = [pool.submit(post, caller, posts, 900) for _ in range(200)]
        for future in gets:
            future.result(HANG)
        for error in (future.result(HANG) for future in made):
            assert error is None or (isinstance(error, ConnectionClosed) and error.retryable)
        assert proxy.counts.total() >= 3
    posts.check()


# --- the same against an enclave on the published crate ----------------------------------------

RUST: list[Fault] = [
    fault
    for way in Direction
    for fault in (
        *(cls(way, Place(Stage.OPEN, 4_000)) for cls in (Reset, Cut, HalfClose, Truncate)),
        Blackhole(way, Place(Stage.OPEN, 4_000)),
        Corrupt(way, Place(Stage.OPEN, 4_000)),
        Corrupt(way, Place(Stage.ATTESTATION, 12)),
        Duplicate(way, Place(Stage.OPEN, 4_000)),
        Fragment(way), Texts(way), Pings(way), Pongs(way), Split(way), Coalesce(way),
        Close(way, Place(Stage.OPEN)),
        Oversized(way, Place(Stage.OPEN)),
    )
]  # fmt: skip


def test_the_published_server(start_peer: Callable[..., Peer], behind: Workload) -> None:
    peer = start_peer(behind=behind.address, max_connections=64)
    pins = [bytes([(peer.seed + index) % 256]) * 48 for index in range(3)]
    pcrs = Pcrs(pcr0=pins[0], pcr1=pins[1], pcr2=pins[2])
    keywords = {"debug_mode": True, "pcrs": pcrs}
    allowed = (ConnectError, ConnectionClosed, ProtocolError, *TIMEOUTS)

    def one(fault: Fault, kind: str) -> None:
        posts = Posts(behind)
        with (
            FaultProxy(
                ("127.0.0.1", peer.port), lambda number: [fault] if number == 0 else []
            ) as proxy,
            make(kind, proxy.url, PATIENT if fault.harmless else 2.0, keywords) as caller,
        ):
            outcomes = ordinary_work(caller, posts)
            if fault.harmless:
                assert outcomes == [None] * 4
            assert all(error is None or isinstance(error, allowed) for error in outcomes)
            assert_recovers(caller, allowed)
            assert proxy.counts.total() == 1
        posts.check()

    in_parallel(one, RUST, KINDS)
    eventually(lambda: not peer.stats()["open"], HANG, what=["connections stay open"])
    assert peer.stats()["slots_open"] == 0
