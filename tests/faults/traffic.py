"""The callers of the soak, in a process of their own so that what they hold can be measured.

``python -m tests.faults.traffic``: commands come as JSON lines on standard input, answers go out
the same way (soak.py asks). A round opens clients, works, proves that all of them work once the
faults are off, and closes them; what is held after that must be the same after every round.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import dataclasses
import faulthandler
import functools
import gc
import hashlib
import itertools
import json
import logging
import random
import sys
import threading
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx2
from httpx2.websockets import HTTPXWSException
from wsproto.utilities import LocalProtocolError

from enclavia import (
    AsyncChannel,
    AsyncClient,
    Channel,
    Client,
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    Pcrs,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    ServerError,
    WriteTimeout,
)
from enclavia._exchange.retry import Attempt, RetryPolicy

from .callers import body_of, check_digest, request_bytes
from .workload import LARGEST, MIB, block, content

TIMEOUT = httpx2.Timeout(connect=15, read=8, write=8, pool=15)
IMPATIENT = httpx2.Timeout(connect=15, read=0.2, write=8, pool=15)
CHANNEL_TIMEOUT = 8.0
#: With the faults off nothing but a busy machine takes time.
PATIENT = httpx2.Timeout(60)
#: Several deadlines may follow each other, and a body may take its time. This is far beyond both.
HUNG_AFTER = 120.0
SLOTS_KEPT = 4.0  # how long a client keeps a connection to the workload (PoolLimits)

#: What a fault on the way may end in; anything else is a bug.
ALLOWED: tuple[type[Exception], ...] = (
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    ReadTimeout,
    WriteTimeout,
    PoolTimeout,
    ProtocolError,
    ServerError,
)
#: httpx2's own WebSocket client wraps them, waits for messages by itself, and closes its session
#: from its reading thread, after which sending is a LocalProtocolError of wsproto.
ALLOWED_WEBSOCKET = (*ALLOWED, HTTPXWSException, TimeoutError, LocalProtocolError)


# --- accounts ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Call:
    """One request under way, and how often it was sent."""

    kind: str
    number: int
    started: float
    thread: str
    trail: list[tuple[str, bool, bool]] = dataclasses.field(default_factory=list)
    """Of each sending that failed: error, sent, answered."""
    retries: int = 0
    answering: bool = False
    """The head of an answer is here."""
    hung: bool = False

    @property
    def extensions(self) -> dict[str, Any]:
        return {"soak": self}


def watch_retries() -> None:
    """Every decision about sending again is noted with the call that it is about."""
    decide = RetryPolicy.again

    def again(self: RetryPolicy, attempt: Attempt, resent: int, unsent: int) -> bool:
        call = attempt.request.extensions.get("soak")
        if call is not None:
            call.trail.append((type(attempt.error).__name__, attempt.sent, attempt.answered))
        decided = decide(self, attempt, resent, unsent)
        if call is not None:
            call.retries += decided
        return decided

    RetryPolicy.again = again  # type: ignore[method-assign]


class Accounts:
    """Every call begins once and ends once: right, or with a typed error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self.open: dict[int, Call] = {}
        self.started: collections.Counter[str] = collections.Counter()
        self.ok: collections.Counter[str] = collections.Counter()
        self.retried: collections.Counter[str] = collections.Counter()
        self.cancelled: collections.Counter[str] = collections.Counter()
        self.failed: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        self.gets_lost: collections.Counter[str] = collections.Counter()
        self.wrong = 0
        self.hung = 0
        self.violations: list[str] = []
        self.posts_made: list[str] = []
        self.posts_succeeded: list[str] = []
        self.slowest = 0.0
        self.last_error = ""

    @contextlib.contextmanager
    def call(
        self, kind: str, allowed: tuple[type[Exception], ...] = ALLOWED, *, repeatable: bool = False
    ) -> Iterator[Call]:
        """``repeatable``: a request that the client must send again where it may."""
        call = Call(kind, next(self._numbers), time.monotonic(), threading.current_thread().name)
        with self._lock:
            self.started[kind] += 1
            self.open[call.number] = call
        try:
            yield call
        except asyncio.CancelledError:
            self._end(call, self.cancelled)
            raise
        except AssertionError as error:
            self.wrong += 1
            self._violation(call, error)
            self._end(call, self.failed[kind], "WRONG")
        except allowed as error:
            if repeatable:
                self._explain(call, error)
            self.last_error = repr(error)
            self._end(call, self.failed[kind], type(error).__name__)
        except Exception as error:
            self._violation(call, error)
            self._end(call, self.failed[kind], f"UNEXPECTED {type(error).__name__}")
        else:
            self._end(call, self.ok)

    def _end(self, call: Call, where: collections.Counter[str], what: str | None = None) -> None:
        with self._lock:
            where[what or call.kind] += 1
            if where is self.ok and call.retries:
                self.retried[call.kind] += 1
            del self.open[call.number]
            self.slowest = max(self.slowest, time.monotonic() - call.started)

    def _violation(self, call: Call, error: BaseException | str) -> None:
        told = error if isinstance(error, str) else "".join(traceback.format_exception(error))
        with self._lock:
            self.violations.append(f"{call.kind} {call.number} {call.trail}: {told[-3000:]}")

    def _explain(self, call: Call, error: Exception) -> None:
        """A GET fails only where the rule of retries says so; counts by which part of it."""
        sent = sum(sent for _, sent, _ in call.trail)
        unsent = len(call.trail) - sent
        if not isinstance(error, ConnectionClosed | ServerError):
            why = "deadline" if isinstance(error, TimeoutError) else type(error).__name__
        elif call.answering or (call.trail and call.trail[-1][2]):
            why = "its answer had begun"
        elif sent >= 3:
            why = "lost three times"
        elif unsent >= 9:
            why = "never sent in nine connections"
        elif not call.trail:
            why = "could not connect for the first time"
        elif isinstance(error, ConnectionClosed) and not error.retryable:
            why = "closed for good"
        else:
            why = "NOT RETRIED"
            self._violation(call, error)
        with self._lock:
            self.gets_lost[why] += 1

    def post_made(self, number: str) -> None:
        with self._lock:
            self.posts_made.append(number)

    def post_succeeded(self, number: str) -> None:
        with self._lock:
            self.posts_succeeded.append(number)

    def look_for_hung(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [
                call
                for call in self.open.values()
                if not call.hung and now - call.started > HUNG_AFTER
            ]
        for call in late:
            call.hung = True
            self.hung += 1
            self._violation(call, f"hung for {HUNG_AFTER} s in {call.thread}")
            faulthandler.dump_traceback(sys.stderr, all_threads=True)

    def report(self) -> dict[str, Any]:
        with self._lock:
            ended = self.ok.total() + self.cancelled.total()
            ended += sum(counter.total() for counter in self.failed.values())
            if ended + len(self.open) != self.started.total():
                self.violations.append(f"{self.started.total()} began and {ended} ended")
            if self.open:
                self.violations.append(f"never ended: {list(self.open.values())[:5]}")
            return {
                "started": self.started,
                "ok": self.ok,
                "retried": self.retried,
                "cancelled": self.cancelled,
                "failed": self.failed,
                "gets_lost": self.gets_lost,
                "wrong": self.wrong,
                "hung": self.hung,
                "violations": self.violations,
                "posts_made": self.posts_made,
                "posts_succeeded": self.posts_succeeded,
                "slowest": self.slowest,
            }


# --- what is asked -------------------------------------------------------------------------------


class Dice:
    """One caller's chance: the same for the same seed and name."""

    def __init__(self, seed: int, name: str) -> None:
        self.rng = random.Random(f"{seed}/{name}")
        self._name = name
        self._numbers = itertools.count()

    def size(self) -> int:
        """1 B to 8 MiB; most are small, or little else would happen."""
        return self.log(1, 64 * 1024 if self.rng.random() < 0.85 else LARGEST)

    def log(self, least: int, most: int) -> int:
        size: float = least * (most / least) ** self.rng.random()
        return max(least, min(most, round(size)))

    def at(self) -> int:
        return self.rng.randrange(MIB)

    def number(self) -> str:
        return f"{self._name}-{next(self._numbers)}"


class Digest:
    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._length = 0

    def add(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._length += len(chunk)

    def check(self, response: httpx2.Response, size: int, at: int) -> None:
        assert response.status_code == 200, response.status_code
        expected = hashlib.sha256(content(size, at)).digest()
        assert (self._length, self._digest.digest()) == (size, expected), (
            f"wrong body: {self._length} of {size} bytes from {at}"
        )


class Threads:
    """What a thread does with a :class:`Client`; each method is one call, or a few."""

    def __init__(self, client: Client, accounts: Accounts, dice: Dice) -> None:
        self.client = client
        self.accounts = accounts
        self.dice = dice

    def get(self, kind: str = "get") -> None:
        size, at = self.dice.size(), self.dice.at()
        with self.accounts.call(kind, repeatable=True) as call:
            digest = Digest()
            url = f"/bytes/{size}?at={at}"
            with self.client.stream("GET", url, extensions=call.extensions) as response:
                call.answering = True
                for chunk in response.iter_raw():
                    digest.add(chunk)
            digest.check(response, size, at)

    def post(self, kind: str = "post") -> None:
        size, at, number = self.dice.size(), self.dice.at(), self.dice.number()
        body = content(size, at)
        pieces = (body[start : start + 65_536] for start in range(0, size, 65_536))
        self.accounts.post_made(number)
        with self.accounts.call(kind) as call:
            response = self.client.post(
                f"/post/{number}",
                content=pieces if self.dice.rng.random() < 0.2 else body,
                extensions=call.extensions,
            )
            assert response.status_code == 200, response.status_code
            check_digest(response.json(), size, at)
            self.accounts.post_succeeded(number)

    def events(self) -> None:
        count = self.dice.rng.randint(1, 8)
        url = f"/events?count={count}&pause={self.dice.rng.uniform(0, 0.1):.3f}"
        with self.accounts.call("events", repeatable=True) as call:
            with self.client.sse(url, extensions=call.extensions) as source:
                call.answering = True
                data = [event.data for event in source]
            assert data == [str(n) for n in range(count)], data

    def websocket(self) -> None:
        with (
            self.accounts.call("websocket", ALLOWED_WEBSOCKET),
            self.client.websocket("/ws") as socket,
        ):
            for _ in range(self.dice.rng.randint(1, 6)):
                message = content(self.dice.log(1, 30_000), self.dice.at())
                socket.send_bytes(message)
                assert socket.receive_bytes(timeout=self.client.timeout.read) == message, (
                    "wrong echo"
                )

    def timeout(self) -> None:
        with self.accounts.call("timeout") as call, contextlib.suppress(ReadTimeout):
            response = self.client.get(
                "/slow?seconds=3",
                timeout=IMPATIENT,
                extensions=call.extensions,
            )
            assert response.text == "at last"

    def abandon(self) -> None:
        """Left early, or just forgotten."""
        size, at = self.dice.log(64 * 1024, 4 * MIB), self.dice.at()
        with self.accounts.call("abandon", repeatable=True) as call:
            request = self.client.build_request(
                "GET", f"/bytes/{size}?at={at}", extensions=call.extensions
            )
            response = self.client.send(request, stream=True)
            call.answering = True
            first = next(response.iter_raw(1000))
            assert first == content(len(first), at), "wrong first bytes"
            if self.dice.rng.random() < 0.5:
                response.close()

    def any(self) -> None:
        calls = [
            self.get, self.post, self.events, self.websocket, self.timeout, self.abandon
        ]  # fmt: skip
        self.dice.rng.choices(calls, [34, 34, 9, 9, 6, 8])[0]()


class Tasks:
    """The same from tasks with an :class:`AsyncClient`, and cancelling."""

    def __init__(self, client: AsyncClient, accounts: Accounts, dice: Dice) -> None:
        self.client = client
        self.accounts = accounts
        self.dice = dice

    async def get(self, kind: str = "get") -> None:
        size, at = self.dice.size(), self.dice.at()
        with self.accounts.call(kind, repeatable=True) as call:
            digest = Digest()
            url = f"/bytes/{size}?at={at}"
            async with self.client.stream("GET", url, extensions=call.extensions) as response:
                call.answering = True
                async for chunk in response.aiter_raw():
                    digest.add(chunk)
            digest.check(response, size, at)

    async def post(self, kind: str = "post") -> None:
        size, at, number = self.dice.size(), self.dice.at(), self.dice.number()
        body = content(size, at)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, size, 65_536):
                yield body[start : start + 65_536]

        self.accounts.post_made(number)
        with self.accounts.call(kind) as call:
            response = await self.client.post(
                f"/post/{number}",
                content=pieces() if self.dice.rng.random() < 0.2 else body,
                extensions=call.extensions,
            )
            assert response.status_code == 200, response.status_code
            check_digest(response.json(), size, at)
            self.accounts.post_succeeded(number)

    async def events(self) -> None:
        count = self.dice.rng.randint(1, 8)
        url = f"/events?count={count}&pause={self.dice.rng.uniform(0, 0.1):.3f}"
        with self.accounts.call("events", repeatable=True) as call:
            async with self.client.sse(url, extensions=call.extensions) as source:
                call.answering = True
                data = [event.data async for event in source]
            assert data == [str(n) for n in range(count)], data

    async def websocket(self) -> None:
        with self.accounts.call("websocket", ALLOWED_WEBSOCKET), ungrouped():
            async with self.client.websocket("/ws") as socket:
                for _ in range(self.dice.rng.randint(1, 6)):
                    message = content(self.dice.log(1, 30_000), self.dice.at())
                    await socket.send_bytes(message)
                    got = await socket.receive_bytes(timeout=self.client.timeout.read)
                    assert got == message, "wrong echo"

    async def timeout(self) -> None:
        with self.accounts.call("timeout") as call, contextlib.suppress(ReadTimeout):
            response = await self.client.get(
                "/slow?seconds=3",
                timeout=IMPATIENT,
                extensions=call.extensions,
            )
            assert response.text == "at last"

    async def abandon(self) -> None:
        size, at = self.dice.log(64 * 1024, 4 * MIB), self.dice.at()
        with self.accounts.call("abandon", repeatable=True) as call:
            request = self.client.build_request(
                "GET", f"/bytes/{size}?at={at}", extensions=call.extensions
            )
            response = await self.client.send(request, stream=True)
            call.answering = True
            first = await anext(response.aiter_raw(1000))
            assert first == content(len(first), at), "wrong first bytes"
            if self.dice.rng.random() < 0.5:
                await response.aclose()

    async def cancel(self) -> None:
        work = functools.partial(self.dice.rng.choice([self.get, self.post]), "cancel")
        task = asyncio.create_task(work())
        await asyncio.sleep(self.dice.rng.uniform(0, 0.3))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def any(self) -> None:
        calls: list[Callable[[], Awaitable[None]]] = [
            self.get, self.post, self.events, self.websocket, self.timeout, self.abandon,
            self.cancel,
        ]  # fmt: skip
        await self.dice.rng.choices(calls, [30, 30, 8, 8, 6, 8, 10])[0]()


@contextlib.contextmanager
def ungrouped() -> Iterator[None]:
    """httpx2's awaited WebSocket has a task group inside."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


class Raw:
    """HTTP by hand over a :class:`Channel`, and what else that has."""

    def __init__(self, connect: Callable[[], Channel], accounts: Accounts, dice: Dice) -> None:
        self._connect = connect
        self._channel: Channel | None = None
        self._done = False
        self.accounts = accounts
        self.dice = dice

    def any(self) -> None:
        calls = [self.get, self.post, self.one_shot, self.attest]
        self._done = False
        self.dice.rng.choices(calls, [40, 40, 10, 10])[0]()
        if self._channel is not None and (self._channel.closed or not self._done):
            self.close()

    def _ready(self) -> Channel:
        if self._channel is None:
            self._channel = self._connect()
        return self._channel

    def _ask(self, request: bytes) -> bytes:
        with self._ready().open_stream(request) as stream:
            return body_of(stream.readall())

    def get(self) -> None:
        size, at = self.dice.size(), self.dice.at()
        with self.accounts.call("raw get"):
            body = self._ask(request_bytes("GET", f"/bytes/{size}?at={at}"))
            assert body == content(size, at), f"wrong bytes: {len(body)} of {size} from {at}"
            self._done = True

    def post(self) -> None:
        size, at, number = self.dice.size(), self.dice.at(), self.dice.number()
        self.accounts.post_made(number)
        with self.accounts.call("raw post"):
            answer = self._ask(request_bytes("POST", f"/post/{number}", content(size, at)))
            check_digest(json.loads(answer), size, at)
            self.accounts.post_succeeded(number)
            self._done = True

    def one_shot(self) -> None:
        size, at = self.dice.log(1, 10_000), self.dice.at()
        with self.accounts.call("one shot"):
            answer = self._ready().request(request_bytes("GET", f"/bytes/{size}?at={at}"))
            assert body_of(answer) == content(size, at), "wrong bytes"
            self._done = True

    def attest(self) -> None:
        with self.accounts.call("attest"):
            assert self._ready().attest().module_id
            self._done = True

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


class RawTasks:
    """The same, awaited."""

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncChannel]], accounts: Accounts, dice: Dice
    ) -> None:
        self._connect = connect
        self._channel: AsyncChannel | None = None
        self.accounts = accounts
        self.dice = dice

    async def any(self) -> None:
        size, at, number = self.dice.size(), self.dice.at(), self.dice.number()
        posting = self.dice.rng.random() < 0.5
        request = request_bytes("GET", f"/bytes/{size}?at={at}")
        if posting:
            request = request_bytes("POST", f"/post/{number}", content(size, at))
            self.accounts.post_made(number)
        done = False
        with self.accounts.call("raw post" if posting else "raw get"):
            if self._channel is None:
                self._channel = await self._connect()
            async with await self._channel.open_stream(request) as stream:
                answer = await stream.read()
            if posting:
                check_digest(json.loads(body_of(answer)), size, at)
                self.accounts.post_succeeded(number)
            else:
                assert body_of(answer) == content(size, at), "wrong bytes"
            done = True
        if self._channel is not None and (self._channel.closed or not done):
            await self.close()

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


# --- a round -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    name: str
    url: str
    options: dict[str, Any]

    @classmethod
    def of(cls, name: str, url: str, facts: dict[str, Any]) -> Self:
        pins = [bytes.fromhex(value) for value in facts["pcrs"]]
        options: dict[str, Any] = {"pcrs": Pcrs(pcr0=pins[0], pcr1=pins[1], pcr2=pins[2])}
        if facts["root"] is None:
            options["debug_mode"] = True
        else:
            options["root"] = facts["root"].encode()
        return cls(name, url, options)


@dataclasses.dataclass(frozen=True)
class Load:
    threads: int
    tasks: int


class Round:
    """Clients for one target each of both kinds, worked, proven and closed."""

    def __init__(self, targets: Sequence[Target], seed: int, load: Load, idle: float) -> None:
        self.targets = targets
        self.accounts = Accounts()
        self._seed = seed
        self._load = load
        self._idle = idle
        self._stop = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=self._run_loop, name="tasks")
        self._loop_thread.start()
        self.clients = [Client(t.url, timeout=TIMEOUT, **t.options) for t in targets]
        self.idlers = [
            Client(
                t.url,
                timeout=TIMEOUT,
                limits=httpx2.Limits(max_keepalive_connections=0),
                **t.options,
            )
            for t in targets
        ]
        self.aclients = [AsyncClient(t.url, timeout=TIMEOUT, **t.options) for t in targets]

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _dice(self, name: str) -> Dice:
        return Dice(self._seed, f"{self._seed}-{name}")

    def work(self, seconds: float) -> None:
        threads = []
        for n, target in enumerate(self.targets):
            for k in range(self._load.threads):
                worker = Threads(self.clients[n], self.accounts, self._dice(f"{target.name}-t{k}"))
                threads.append(self._thread(worker.any))
            raw = Raw(
                functools.partial(
                    Channel.connect, target.url, timeout=CHANNEL_TIMEOUT, **target.options
                ),
                self.accounts,
                self._dice(f"{target.name}-raw"),
            )
            threads.append(self._thread(raw.any, raw.close))
            idler = Threads(self.idlers[n], self.accounts, self._dice(f"{target.name}-idle"))
            threads.append(self._thread(functools.partial(self._idle_step, idler)))
        tasks = asyncio.run_coroutine_threadsafe(self._tasks(), self._loop)
        ending = time.monotonic() + seconds
        while time.monotonic() < ending:
            time.sleep(0.5)
            self.accounts.look_for_hung()
        self._stop.set()
        last = time.monotonic() + HUNG_AFTER + 10
        while any(thread.is_alive() for thread in threads) or not tasks.done():
            time.sleep(0.05)
            self.accounts.look_for_hung()
            if time.monotonic() > last:
                return  # report() tells of those that never ended
        tasks.result()

    def _thread(
        self, step: Callable[[], None], finish: Callable[[], None] | None = None
    ) -> threading.Thread:
        def run() -> None:
            try:
                while not self._stop.is_set():
                    step()
            finally:
                if finish is not None:
                    finish()

        thread = threading.Thread(target=run, name=f"caller-{threading.active_count()}")
        thread.daemon = True
        thread.start()
        return thread

    def _idle_step(self, idler: Threads) -> None:
        idler.get("idle")
        self._stop.wait(self._idle)

    async def _tasks(self) -> None:
        async def again_and_again(step: Callable[[], Awaitable[None]]) -> None:
            while not self._stop.is_set():
                await step()

        raws = []
        async with asyncio.TaskGroup() as group:
            for n, target in enumerate(self.targets):
                for k in range(self._load.tasks):
                    dice = self._dice(f"{target.name}-a{k}")
                    worker = Tasks(self.aclients[n], self.accounts, dice)
                    group.create_task(again_and_again(worker.any))
                raw = RawTasks(
                    functools.partial(
                        AsyncChannel.connect, target.url, timeout=CHANNEL_TIMEOUT, **target.options
                    ),
                    self.accounts,
                    self._dice(f"{target.name}-araw"),
                )
                raws.append(raw)
                group.create_task(again_and_again(raw.any))
        for raw in raws:
            await raw.close()

    # -- with the faults off -----------------------------------------------------------------

    def prove(self) -> None:
        """Every client works, at the latest when it has noticed what was done to its channel."""
        with ThreadPoolExecutor(16) as pool:
            proofs = []
            for n, target in enumerate(self.targets):
                for name, client in (("calm", self.clients[n]), ("idle", self.idlers[n])):
                    calm = Threads(client, Accounts(), self._dice(f"{target.name}-{name}-after"))
                    calls = [calm.get, calm.post, calm.events, calm.websocket, calm.abandon]
                    proofs.append(pool.submit(self._prove, target, calm, calls))
                acalm = Tasks(
                    self.aclients[n], Accounts(), self._dice(f"{target.name}-tasks-after")
                )
                calls = [
                    functools.partial(self._await, call)
                    for call in (
                        acalm.get, acalm.post, acalm.events, acalm.websocket, acalm.abandon
                    )
                ]  # fmt: skip
                proofs.append(pool.submit(self._prove, target, acalm, calls))
            for proof in proofs:
                proof.result()

    def _prove(
        self, target: Target, who: Threads | Tasks, calls: Sequence[Callable[[], None]]
    ) -> None:
        accounts = who.accounts
        for _ in range(8):
            calls[0]()
            if accounts.ok["get"]:
                break
        else:
            self.accounts.violations.append(f"{target.name}: no answer with the faults off")
        accounts.failed.clear()
        who.client.timeout = PATIENT
        for call in calls:
            for _ in range(5):
                call()
        if accounts.failed:
            failed = {kind: dict(errors) for kind, errors in accounts.failed.items()}
            self.accounts.violations.append(
                f"{target.name}: with the faults off {failed}, {accounts.last_error}"
            )
        self.accounts.violations += accounts.violations
        self.accounts.posts_made += accounts.posts_made
        self.accounts.posts_succeeded += accounts.posts_succeeded

    def _await(self, call: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await call()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(HUNG_AFTER)

    def settle(self) -> dict[str, Any]:
        """Lets go of what is kept for reuse; the channels stay."""
        gc.collect()
        time.sleep(SLOTS_KEPT + 0.5)
        everyone: list[Client | AsyncClient] = [*self.clients, *self.idlers, *self.aclients]
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            stats = [client.stats for client in everyone]
            if not any(s.streams_active or s.streams_idle or s.waiting for s in stats):
                break
            time.sleep(0.1)
        else:
            self.accounts.violations.append(f"clients keep streams: {stats}")
        return {
            "reconnects": sum(s.reconnects for s in stats),
            "connects": sum(s.connects for s in stats),
            "retries": sum(s.retries for s in stats),
            "bytes_in": sum(s.bytes_in for s in stats),
            "bytes_out": sum(s.bytes_out for s in stats),
        }

    def close(self) -> None:
        for client in [*self.clients, *self.idlers]:
            client.close()
        for aclient in self.aclients:
            asyncio.run_coroutine_threadsafe(aclient.aclose(), self._loop).result(HUNG_AFTER)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop_thread.join(HUNG_AFTER)


class Malloc(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def held() -> dict[str, int]:
    """What the process holds with every client closed. The heap in use is what a leak would show
    in; resident memory also shows what the allocator keeps."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Malloc
    libc.malloc_trim(0)
    heap = libc.mallinfo2()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and len(list(Path("/proc/self/task").iterdir())) > 2:
        time.sleep(0.05)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "heap_kib": (heap.uordblks + heap.hblkhd) // 1024,
        "rss_kib": int(status["VmRSS"].split()[0]),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("enclavia").addHandler(logging.NullHandler())
    faulthandler.enable()
    watch_retries()
    block()
    running: Round | None = None
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        match command["do"]:
            case "open":
                running = Round(
                    [Target.of(*each) for each in command["targets"]],
                    command["seed"],
                    Load(**command["load"]),
                    command["idle"],
                )
            case "work":
                assert running is not None
                running.work(command["seconds"])
            case "prove":
                assert running is not None
                running.prove()
            case "settle":
                assert running is not None
                answer = running.settle()
            case "close":
                assert running is not None
                running.close()
                answer = running.accounts.report()
                running = None
                answer["held"] = held()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
