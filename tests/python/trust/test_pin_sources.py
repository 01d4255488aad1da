"""Pins that somebody is asked for: when, how often, for how long an answer counts, and what becomes
of channels that were verified against an earlier one."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import pytest
from pinned import OTHER, Workload
from support import (
    HANG,
    Connection,
    byte_enclave,
    drive,
    eventually,
    keywords,
    ok,
    together,
    with_client,
)

import enclavia
import enclavia.httpx
import enclavia.requests
from enclavia import (
    AsyncChannel,
    AsyncClient,
    Channel,
    Client,
    MatchedPins,
    PcrMismatch,
    Pcrs,
    PinSource,
    PinsUnavailable,
)
from enclavia._io import face
from enclavia._io.threads import ThreadIo
from enclavia._trust import sources
from enclavia.testing import LocalEnclave

KINDS = ["sync", "asyncio", "trio"]


class Store:
    """Where a team keeps its pins: what it answers can be changed, and what it does counted."""

    def __init__(self, *answers: Any) -> None:
        self.answers: list[Any] = list(answers)
        self.asked = 0
        self.at_once = 0
        self.most_at_once = 0
        self.threads: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        """The next answer, and the last one over and over. An exception is raised."""
        with self._lock:
            self.asked += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.threads.add(threading.get_ident())
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            if isinstance(answer, BaseException):
                raise answer
            return answer() if callable(answer) else answer
        finally:
            with self._lock:
                self.at_once -= 1

    def says(self, *answers: Any) -> None:
        self.answers = list(answers)


class AsyncStore(Store):
    async def __call__(self) -> Any:  # type: ignore[override]
        await anyio.lowlevel.checkpoint()
        return super().__call__()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Clock:
        time = 1000.0

    monkeypatch.setattr(sources, "now", lambda: Clock.time)
    return Clock


def asked(store: Store, **options: Any) -> sources.Answers:
    return sources.Answers(PinSource(store, **options), debug_mode=False)


def ask(answers: sources.Answers, deadline: float | None = None) -> Any:
    try:
        answers.pins(ThreadIo(), deadline).send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a blocking question was suspended")


def named(value: object) -> str | None:
    """For ids of tests, which must be the same in each run: a repr may have an address in it."""
    return None if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


# -- one source ----------------------------------------------------------------------------------


def test_an_answer_is_used_for_a_period(clock: Any) -> None:
    store = Store(OTHER)
    answers = asked(store, period=10, keep=100)
    assert answers.due
    first = ask(answers)
    assert first == ((b"\x77" * 48,) * 3,)
    clock.time += 9.9
    assert not answers.due
    assert ask(answers) is first
    assert store.asked == 1
    clock.time += 0.1
    assert answers.due
    assert ask(answers) is first  # the same pins are the same object: nothing has changed
    assert store.asked == 2
    assert not answers.due


def test_the_last_answer_is_kept_where_asking_fails(clock: Any) -> None:
    store = Store(OTHER, OSError("no route"))
    answers = asked(store, period=10, keep=100)
    first = ask(answers)
    for age in (10, 20, 90, 100):
        clock.time = 1000.0 + age
        assert answers.due
        assert ask(answers) is first
        assert not answers.due  # and is not asked for each request
        assert ask(answers) is first
    assert store.asked == 5
    clock.time += 0.1
    with pytest.raises(
        PinsUnavailable, match=r"expected the pins from PinSource.*OSError: no route"
    ):
        ask(answers)
    store.says([OTHER])
    clock.time += 1
    assert ask(answers) == first
    store.says(OSError("again"))
    clock.time += 50
    assert ask(answers) == first  # from the newest answer on


def test_a_mismatch_is_a_reason_to_ask_before_the_period_is_over(clock: Any) -> None:
    store = Store(OTHER)
    answers = asked(store, period=10, keep=100)
    ask(answers)
    clock.time += 0.9
    answers.doubt()
    assert not answers.due  # what was answered just now is not asked for with each mismatch
    clock.time += 0.1
    answers.doubt()
    assert answers.due
    ask(answers)
    assert store.asked == 2
    assert not answers.due


def test_a_first_question_that_fails(clock: Any) -> None:
    store = Store(LookupError("nothing there"))
    answers = asked(store, period=10, keep=100)
    with pytest.raises(PinsUnavailable) as caught:
        ask(answers)
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, LookupError)
    assert isinstance(caught.value, enclavia.ConnectError)
    with pytest.raises(PinsUnavailable) as again:
        ask(answers)
    assert again.value is not caught.value  # each has a traceback and a request of its own
    assert store.asked == 1  # not for each of many requests
    clock.time += 1
    store.says(OTHER)
    assert ask(answers)
    assert store.asked == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "got none; without them nothing is proven"),
        ([], "an empty list"),
        ("11" * 48, "got str"),
        ([OTHER, "x"], "got str"),
        (Pcrs(pcr0=bytes(48), pcr1=bytes(48), pcr2=bytes(48)), "got all zeros"),
        (lambda: Store(OTHER), "another source"),
    ],
    ids=named,
)
def test_an_answer_that_is_no_pins_leaves_none(answer: Any, message: str, clock: Any) -> None:
    """Whoever answers that nothing may run means it: an earlier answer is not kept."""
    store = Store(OTHER, answer)
    answers = asked(store, period=10, keep=1000)
    ask(answers)
    clock.time += 10
    for _ in range(2):
        with pytest.raises(PinsUnavailable, match=message) as caught:
            ask(answers)
        assert not caught.value.retryable
    store.says(OTHER)
    clock.time += 10
    assert ask(answers)


def test_nothing_is_no_answer_in_debug_mode_either() -> None:
    """Without pins a debug client connects; a function that gives none was meant to give some."""
    answers = sources.Answers(PinSource(Store(None)), debug_mode=True)
    with pytest.raises(PinsUnavailable, match="got None"):
        ask(answers)


class WithoutText(Exception):
    def __str__(self) -> str:
        raise LookupError


def broken_off() -> Iterator[Pcrs]:
    yield OTHER
    raise OSError("the store is away")


def ended() -> Iterator[Pcrs]:
    yield OTHER
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (WithoutText(), "got WithoutText: .its text cannot be had"),
        (SystemExit(3), "got SystemExit: 3"),
        (broken_off, "got OSError: the store is away"),
        (ended, "got SystemExit: 3"),
    ],
    ids=["without a text", "an exit", "a generator that fails", "a generator that exits"],
)
def test_whatever_goes_wrong_ends_the_question(answer: Any, message: str, clock: Any) -> None:
    """Or everybody would wait for it, for as long as the process lives."""
    store = Store(answer)
    answers = asked(store)
    with pytest.raises(PinsUnavailable, match=message) as caught:
        ask(answers, face.now() + HANG)
    assert caught.value.retryable
    store.says(OTHER)
    clock.time += 1
    assert ask(answers, face.now() + HANG)
    # And what was good before is kept, since nobody has answered.
    store.says(answer)
    clock.time += 60
    assert ask(answers, face.now() + HANG)


def test_more_sets_than_can_be_pinned(clock: Any) -> None:
    with pytest.raises(PinsUnavailable, match="expected at most 1024 sets, got 1025") as caught:
        ask(asked(Store([OTHER] * 1025)))
    assert not caught.value.retryable


@pytest.mark.parametrize("connected", [False, True])
def test_a_function_that_uses_the_client_which_asks_it(
    connected: bool, enclave: LocalEnclave
) -> None:
    """Without a timeout it would wait for ever."""
    client: Any = None
    store = Store(enclave.pcrs if connected else lambda: client.get("/"))
    source = PinSource(store, period=0, keep=0)
    client = enclavia.Client(enclave.url, pcrs=source, root=enclave.root, timeout=None)
    with contextlib.closing(client):
        if connected:
            client.get("/")
            store.says(lambda: client.get("/"))
        with pytest.raises(PinsUnavailable, match="to use another client") as caught:
            client.get("/")
        assert isinstance(caught.value.__cause__, enclavia.StateError)
        assert not caught.value.retryable
        store.says(enclave.pcrs)
        assert client.get("/").is_success


def test_nothing_is_kept_without_being_asked_to(clock: Any) -> None:
    store = Store(OTHER, OSError())
    answers = asked(store, period=0, keep=0)
    ask(answers)
    clock.time += 0.1
    with pytest.raises(PinsUnavailable):
        ask(answers)


def test_a_question_that_is_late_goes_on_alone() -> None:
    """Its thread cannot be stopped; nobody asks beside it, and its answer counts when it comes."""
    free = threading.Event()

    def slow() -> Pcrs:
        assert free.wait(HANG)
        return OTHER

    store = Store(slow, OTHER)
    answers = asked(store)
    for _ in range(3):
        with pytest.raises(PinsUnavailable, match="no answer in time"):
            ask(answers, sources.now() + 0.02)
    assert store.asked == 1
    free.set()
    eventually(lambda: not answers.due)
    assert ask(answers)
    assert store.asked == 1


def test_many_threads_ask_once() -> None:
    ready = threading.Barrier(9)
    free = threading.Event()

    def slow() -> Pcrs:
        assert free.wait(HANG)
        return OTHER

    store = Store(slow, OTHER)
    answers = asked(store)
    got: list[Any] = []

    def run() -> None:
        ready.wait(HANG)
        got.append(ask(answers))

    def release() -> None:
        ready.wait(HANG)
        eventually(lambda: store.asked == 1)
        free.set()

    together(release, *[run] * 8)
    assert len(got) == 8
    assert all(each is got[0] for each in got)
    assert store.asked == 1


def test_the_context_goes_along() -> None:
    variable: contextvars.ContextVar[Pcrs] = contextvars.ContextVar("variable")
    variable.set(OTHER)
    answers = asked(Store(variable.get))
    assert ask(answers)


def test_a_lock_of_ours_is_never_held_while_asking() -> None:
    answers: Any = None
    store = Store(lambda: (answers.due, OTHER)[1])
    answers = asked(store)

    def elsewhere() -> Pcrs:
        done: list[bool] = []

        def take() -> None:
            done.append(answers._lock.acquire(timeout=HANG))
            answers._lock.release()

        thread = threading.Thread(target=take)
        thread.start()
        thread.join(HANG)
        assert done == [True]
        return OTHER

    store.says(elsewhere)
    assert ask(answers)


def test_something_to_await_needs_an_event_loop() -> None:
    """Where it can be told only by what was returned."""
    store = AsyncStore(OTHER)
    answers = asked(Store(store.__call__), period=0)  # a function that returns a coroutine
    with pytest.raises(PinsUnavailable, match="no event loop waits for it"):
        ask(answers)


# -- what is taken -------------------------------------------------------------------------------


async def from_afar() -> Pcrs:
    return OTHER


def from_here() -> Pcrs:
    return OTHER


class Callable_:
    async def __call__(self) -> Pcrs:
        return OTHER


ASYNC = [
    from_afar,
    functools.partial(from_afar),
    functools.partial(functools.partial(from_afar)),
    Callable_(),
    PinSource(from_afar),
    AsyncStore(OTHER),
]
BLOCKING: list[Callable[..., Any]] = [
    Client,
    Channel.connect,
    Client.connect,
    enclavia.EnclaveTransport,
    enclavia.httpx.EnclaveTransport,
    enclavia.requests.EnclaveAdapter,
    enclavia.requests.session,
]


@pytest.mark.parametrize("source", ASYNC, ids=named)
@pytest.mark.parametrize("make", BLOCKING, ids=lambda make: make.__qualname__)
def test_a_blocking_client_takes_no_async_callable(make: Callable[..., Any], source: Any) -> None:
    with pytest.raises(TypeError, match="a blocking client can call, got an async one"):
        make("ws://127.0.0.1:9", pcrs=source)


@pytest.mark.parametrize("source", [from_here, PinSource(from_here), *ASYNC[:2]], ids=named)
def test_who_has_an_event_loop_takes_both(source: Any) -> None:
    AsyncClient("wss://e.example", pcrs=source)
    enclavia.AsyncEnclaveTransport("wss://e.example", pcrs=source)
    enclavia.httpx.AsyncEnclaveTransport("wss://e.example", pcrs=source)
    enclavia.Forwarder("wss://e.example", pcrs=source)


@pytest.mark.parametrize("value", [Pcrs, 5, None, "x", [OTHER]], ids=repr)
def test_what_cannot_be_asked(value: Any) -> None:
    with pytest.raises(TypeError, match="ask: expected a function that returns Pcrs, got"):
        PinSource(value)


def test_what_takes_arguments_cannot_be_asked() -> None:
    with pytest.raises(TypeError, match=r"ask: expected a function that can be called without"):
        PinSource(lambda url: OTHER)  # type: ignore[arg-type,misc]
    PinSource(lambda url=None: OTHER)


@pytest.mark.parametrize("name", ["period", "keep"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (float("nan"), ValueError), (10**9, ValueError), ("1", TypeError)],
)
def test_the_times_of_a_source(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name}: expected"):
        PinSource(from_here, **{name: value})


def test_a_source_is_a_value() -> None:
    source = PinSource(from_here, period=5, keep=7)
    assert pickle.loads(pickle.dumps(source)) == source
    assert copy.deepcopy(source) == source
    assert source != PinSource(from_here, period=5, keep=8)
    assert repr(source) == "PinSource(from_here, period=5, keep=7)"
    with pytest.raises(AttributeError):
        source.period = 6  # type: ignore[misc]


# -- clients -------------------------------------------------------------------------------------


def stores(kind: str) -> list[Callable[..., Store]]:
    return [Store] if kind == "sync" else [Store, AsyncStore]


def each_store(test: Any) -> Any:
    cases = [(kind, store) for kind in KINDS for store in stores(kind)]
    return pytest.mark.parametrize(
        ("kind", "make"), cases, ids=[f"{kind}-{store.__name__}" for kind, store in cases]
    )(test)


@each_store
def test_a_client_asks_when_it_connects(
    kind: str, make: Callable[..., Store], enclave: LocalEnclave, workload: Workload
) -> None:
    store = make([OTHER, enclave.pcrs])

    async def case(client: Any) -> None:
        assert store.asked == 0  # not where it is made
        for _ in range(3):
            assert (await client.get("/a")).status_code == 200
        assert store.asked == 1
        assert client.client.attestation.matched == MatchedPins(1, enclave.pcrs, None)

    with_client(kind, enclave, case, pcrs=store)
    assert threading.get_ident() not in store.threads or isinstance(store, AsyncStore)


@each_store
def test_a_changed_answer_retires_channels_before_the_next_request(
    kind: str, make: Callable[..., Store], enclave: LocalEnclave, workload: Workload
) -> None:
    store = make(enclave.pcrs)

    async def case(client: Any) -> None:
        await client.get("/1")
        store.says([OTHER, enclave.pcrs])
        await client.get("/2")
        assert enclave.stats()["connections_total"] == 1  # which they match too
        store.says(OTHER)
        for _ in range(2):
            with pytest.raises(PcrMismatch) as caught:
                await client.get("/secret")
            assert caught.value.actual == enclave.pcrs.pcr0
        eventually(lambda: enclave.stats()["connections_open"] == 0)
        store.says(enclave.pcrs)
        await client.get("/3")

    with_client(kind, enclave, case, pcrs=PinSource(store, period=0), patience=0)
    assert workload.seen == [b"/1", b"/2", b"/3"]


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_answer_retires_every_channel_that_it_is_not_about(kind: str, left: int) -> None:
    """Whichever of them the next request goes over."""
    free = threading.Event()

    def slow_once(connection: Connection) -> None:
        while True:
            head, _ = connection.request()
            if head.startswith(b"GET /slow"):
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")
                assert free.wait(HANG)
                connection.send(b"ok")
            else:
                connection.send(ok())

    async def case(client: Any) -> None:
        async with client.stream("GET", "/slow") as response:
            enclave.set_identity(pcrs=OTHER)
            # Beside another request, a long body gets a channel of its own.
            await client.post("/", content=bytes(300 * 1024))
            free.set()
            assert await response.read() == b"okok"
        assert client.client.stats.channels == 2
        store.says(both[left])
        await client.get("/")
        assert client.client.stats.channels == 1
        assert enclave.stats()["connections_total"] == 2

    with byte_enclave(slow_once) as (enclave, _):
        both = [enclave.pcrs, OTHER]
        store = Store(both)
        with_client(kind, enclave, case, pcrs=PinSource(store, period=0), patience=0)


@each_store
def test_an_unavailable_store_stops_requests_when_its_answer_is_too_old(
    kind: str, make: Callable[..., Store], enclave: LocalEnclave, workload: Workload
) -> None:
    store = make(enclave.pcrs)

    async def case(client: Any) -> None:
        await client.get("/1")
        store.says(OSError("down"))
        for _ in range(2):
            with pytest.raises(PinsUnavailable, match="OSError: down") as caught:
                await client.get("/secret")
            assert caught.value.retryable
        store.says(enclave.pcrs)
        await client.get("/2")
        assert enclave.stats()["connections_total"] == 1

    with_client(kind, enclave, case, pcrs=PinSource(store, period=0, keep=0), patience=0, retries=0)
    assert workload.seen == [b"/1", b"/2"]


@each_store
def test_an_unavailable_store_is_asked_again_while_patience_lasts(
    kind: str, make: Callable[..., Store], enclave: LocalEnclave
) -> None:
    store = make(OSError("down"), OSError("down"), enclave.pcrs)

    async def case(client: Any) -> None:
        await client.get("/1")
        assert store.asked == 3

    with_client(kind, enclave, case, pcrs=PinSource(store, period=0))


@each_store
def test_an_answer_under_way_is_read_to_its_end(
    kind: str, make: Callable[..., Store], enclave: LocalEnclave
) -> None:
    """Retiring a channel is for what would be sent next."""
    store = make(enclave.pcrs)

    async def case(client: Any) -> None:
        async with client.stream("GET", "/1") as response:
            store.says(OTHER)
            with pytest.raises(PcrMismatch):
                await client.get("/secret")
            assert await response.read() == b"ok"

    with_client(kind, enclave, case, pcrs=PinSource(store, period=0), patience=0)


@pytest.mark.parametrize("kind", ["asyncio", "trio"])
def test_an_event_loop_goes_on_while_a_blocking_callable_is_asked(
    kind: str, enclave: LocalEnclave
) -> None:
    begun, free = threading.Event(), threading.Event()

    def slow() -> Pcrs:
        begun.set()
        assert free.wait(HANG), "the event loop stood still"
        return enclave.pcrs

    async def case(client: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, "/1")
            while not begun.is_set():
                await anyio.sleep(0.001)
            free.set()

    with_client(kind, enclave, case, pcrs=slow)


@pytest.mark.parametrize("kind", ["asyncio", "trio"])
@pytest.mark.parametrize("make", [Store, AsyncStore])
def test_who_asks_is_cancelled(
    kind: str, make: Callable[..., Store], enclave: LocalEnclave
) -> None:
    """Another one asks then, or gets what a thread still answers."""
    begun, free = threading.Event(), threading.Event()

    def slow() -> Pcrs:
        begun.set()
        assert free.wait(HANG)
        return enclave.pcrs

    async def slowly() -> Pcrs:
        begun.set()
        while not free.is_set():
            await anyio.sleep(0.001)
        return enclave.pcrs

    async def case(client: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, "/1")
            while not begun.is_set():
                await anyio.sleep(0.001)
            group.cancel_scope.cancel()
        free.set()
        assert (await client.get("/2")).status_code == 200

    with_client(kind, enclave, case, pcrs=slow if make is Store else slowly)


def test_a_function_that_returns_something_to_await(enclave: LocalEnclave) -> None:
    async def slowly() -> Pcrs:
        await anyio.sleep(0)
        return enclave.pcrs

    async def case(client: Any) -> None:
        assert (await client.get("/1")).status_code == 200

    with_client("asyncio", enclave, case, pcrs=lambda: slowly())


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_asks_once(kind: str, enclave: LocalEnclave) -> None:
    async def case() -> None:
        for make in stores(kind):
            store = make([OTHER, enclave.pcrs])
            options = keywords(enclave, pcrs=PinSource(store, period=0))
            if kind == "sync":
                with Channel.connect(enclave.url, **options) as channel:
                    assert channel.attestation.matched == MatchedPins(1, enclave.pcrs, None)
            else:
                async with AsyncChannel.connect(enclave.url, **options) as channel:
                    assert channel.attestation.matched == MatchedPins(1, enclave.pcrs, None)
            assert store.asked == 1
            store.says(OTHER)
            with pytest.raises(PcrMismatch):
                await connected(kind, enclave.url, options)
            store.says(OSError("down"))
            with pytest.raises(PinsUnavailable):
                await connected(kind, enclave.url, options)

    drive(kind, case)


async def connected(kind: str, url: str, options: dict[str, Any]) -> None:
    if kind == "sync":
        Channel.connect(url, **options).close()
    else:
        (await AsyncChannel.connect(url, **options)).close()


def test_copies_share_one_source(enclave: LocalEnclave) -> None:
    client = Client(enclave.url, **keywords(enclave, pcrs=PinSource(module_store, period=0)))
    module_store.says(enclave.pcrs)
    with contextlib.ExitStack() as ends:
        copies = [ends.enter_context(contextlib.closing(copy.copy(client))) for _ in range(3)]
        for each in copies:
            assert each.get("/").status_code == 200
        assert enclave.stats()["connections_total"] == 1
        module_store.says(OTHER)
        for each in copies:
            with pytest.raises(PcrMismatch):
                each.get("/secret", timeout=5)


module_store = Store(OTHER)


def test_a_forwarder_asks_too(enclave: LocalEnclave, workload: Workload, tmp_path: Any) -> None:
    store = AsyncStore(enclave.pcrs)
    tmp_path.chmod(0o700)
    pcrs: Sequence[Pcrs] = [enclave.pcrs, OTHER]
    with (
        enclavia.Forwarder(
            enclave.url,
            **keywords(enclave, pcrs=PinSource(store, period=0)),
            socket=tmp_path / "f",
            patience=0,
        ) as forwarder,
        Client(enclave.url, via=forwarder.via, **keywords(enclave, pcrs=pcrs)) as client,
    ):
        assert client.get("/1").status_code == 200
        for answer in (OTHER, []):
            store.says(answer)
            # It asks by itself, since it does not see the requests of its clients' connections.
            eventually(lambda: forwarder.stats.channels == 0)
            with pytest.raises(enclavia.EnclaviaError):
                client.get("/secret")
            assert workload.seen[-1] == b"/1"
            store.says(enclave.pcrs)
            assert client.get("/1").status_code == 200
        forwarder.reload(enclave.pcrs)
        assert client.get("/2").status_code == 200
        forwarder.reload(from_afar)
        with pytest.raises(enclavia.EnclaviaError):
            client.get("/secret")
    assert set(workload.seen) == {b"/1", b"/2"}
