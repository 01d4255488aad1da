"""Pins that are not fixed: those that somebody is asked for, and those that a policy allows until a
time.

A source is what a caller gives: immutable, and pickled with the settings. What is known of its
answers belongs to one engine, or to one channel: :class:`Answers` and :class:`Allowed`. Neither
decides what becomes of a channel; both say which pins are in force now, or why none are.

Decides how long an answer is used, and when the next one is asked for. Calls: _arguments, _core,
_errors, _identity, _io, _public, _records, _text. Locks: ``_lock`` (of Answers), around what is
known; never held while the callable runs, nor while anything is waited for.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol, cast

from .. import _core
from .._arguments import is_async, seconds
from .._errors import EnclaviaError, PcrMismatch, PinsUnavailable, PolicyExpired
from .._identity.pcrs import Pcrs
from .._identity.pins import Pins, PinTuples, checked_pins, indexed
from .._io.face import Io, Waiter, now, time_left
from .._public import public
from .._records import fields
from .._text import text_of
from .hook import within
from .versions import AllowedVersion, AllowedVersions, pins_of

__all__ = [
    "Allowed",
    "Answers",
    "InForce",
    "PinSource",
    "PinsOrSource",
    "Source",
    "begin",
    "expect_blocking",
    "source_of",
]

logger = logging.getLogger("enclavia")

wall: Callable[[], float] = time.time
"""Unix seconds."""

Ask = Callable[[], Pcrs | Iterable[Pcrs] | Awaitable[Pcrs | Iterable[Pcrs]]]

PERIOD: Final = 60.0
KEEP: Final = 3600.0
_PERIOD_MAX: Final = 86_400.0
_KEEP_MAX: Final = 30 * 86_400.0
_PAUSE: Final = 1.0
"""Seconds for which a failure is told without asking again, where no earlier answer is kept."""
_SOON: Final = 7 * 86_400.0
"""Seconds before its end from which on a version is spoken of in the log."""


class _Fields(NamedTuple):
    ask: Ask
    period: float
    keep: float


@public
class PinSource(_Fields):
    """A callable that is asked for the pins, as ``pcrs=``; immutable.

    ``ask``: takes nothing, and returns :class:`Pcrs` or several of them; may be ``async`` where an
    event loop is there to run it (:class:`AsyncClient`, :class:`AsyncChannel`, a forwarder).
    ``period``: an answer is used for so many seconds (0 to a day, default 60) before the next one
    is asked for: when a connection is made, and before a request goes out. 0 asks for each.
    ``keep``: where asking fails, the last answer stays in force until it is so many seconds old
    (0 to 30 days, default 3600). After that, and where there never was one, requests fail with
    :class:`PinsUnavailable`. It is measured from when that answer was asked for.
    """

    __slots__ = ()

    def __new__(cls, ask: Ask, *, period: float = PERIOD, keep: float = KEEP) -> PinSource:
        _expect_askable("ask", ask)
        period = seconds("period", period, most=_PERIOD_MAX)
        keep = seconds("keep", keep, most=_KEEP_MAX)
        return super().__new__(cls, ask, period, keep)

    @property
    def is_async(self) -> bool:
        """Whether asking has to be awaited, as far as that can be told before."""
        return is_async(self.ask)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, tuple(self)

    def __repr__(self) -> str:
        name = getattr(self.ask, "__qualname__", type(self.ask).__qualname__)
        return f"PinSource({name}, period={self.period:g}, keep={self.keep:g})"


def _expect_askable(name: str, ask: object) -> None:
    if isinstance(ask, type) or not callable(ask):
        got = f"the class {ask.__name__}" if isinstance(ask, type) else type(ask).__name__
        raise TypeError(f"{name}: expected a function that returns Pcrs, got {got}")
    try:
        signature = inspect.signature(ask)
    except (TypeError, ValueError):  # one written in C may have none
        return
    try:
        signature.bind()
    except TypeError:
        raise TypeError(
            f"{name}: expected a function that can be called without arguments, got one that takes "
            f"{signature}"
        ) from None


def _restore(ask: Ask, period: float, keep: float) -> PinSource:
    return PinSource(ask, period=period, keep=keep)


Source = PinSource | AllowedVersions
PinsOrSource = Pins | Source | Ask
"""What ``pcrs=`` takes."""


def source_of(pcrs: object) -> Source | None:
    """None: these are the pins themselves, or nothing that pins can be had from."""
    if isinstance(pcrs, PinSource | AllowedVersions):
        return pcrs
    if callable(pcrs) and not isinstance(pcrs, type):
        _expect_askable("pcrs", pcrs)
        return PinSource(cast(Ask, pcrs))
    return None


def expect_blocking(source: Source | None) -> None:
    """Refuses what only an event loop can ask."""
    if isinstance(source, PinSource) and source.is_async:
        raise TypeError(
            "pcrs: expected a function that a blocking client can call, got an async one, which "
            "needs an event loop: AsyncClient, AsyncChannel and forwarders take it"
        )


def begin(source: Source, debug_mode: bool) -> InForce:
    """What one engine knows of it."""
    if isinstance(source, PinSource):
        return Answers(source, debug_mode)
    return Allowed(source)


class InForce(Protocol):
    """Which pins are in force now."""

    @property
    def due(self) -> bool:
        """Whether :meth:`pins` may say something else than before."""

    async def pins(self, io: Io[Any], deadline: float | None) -> PinTuples:
        """Raises why there are none. Equal ones are the same object as before."""

    def doubt(self) -> None:
        """An enclave is none of these: perhaps there are others by now."""

    def refusal(self, error: PcrMismatch) -> EnclaviaError | None:
        """A better word for a mismatch with these pins, where there is one."""


# -- versions with an end -------------------------------------------------------------------------


class Allowed:
    """Of a policy's versions those that are still allowed."""

    def __init__(self, source: AllowedVersions) -> None:
        self._source = source
        self._pins: PinTuples | None = None
        self._until: float | None = None
        self._warned: set[str] = set()

    @property
    def due(self) -> bool:
        return self._pins is None or (self._until is not None and wall() > self._until)

    async def pins(self, io: Io[Any], deadline: float | None) -> PinTuples:
        present = wall()
        left = self._source.in_force(present)
        if not left:
            raise self._expired(self._source.versions)
        pins = pins_of(left)
        ends = [version.not_after for version in left if version.not_after is not None]
        self._until = min(ends, default=None)
        for version in left:
            self._warn(version, present)
        if pins != self._pins:
            self._pins = pins
        return self._pins

    def doubt(self) -> None:
        return None

    def refusal(self, error: PcrMismatch) -> EnclaviaError | None:
        left = self._source.in_force(wall())
        for version in self._source.versions:
            if version not in left and (error.index, error.actual) in indexed(version.pins):
                return self._expired([version])
        return None

    def _expired(self, versions: Sequence[AllowedVersion]) -> PolicyExpired:
        last = max(versions, key=lambda version: version.not_after or 0.0)
        ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(last.not_after))
        if len(versions) == 1 and len(self._source.versions) > 1:
            said = f"got the version {last.name!r}, whose not_after was {ended}"
        else:
            said = f"got none: the last one, {last.name!r}, was allowed until {ended}"
        return PolicyExpired(
            f"expected a version that the policy still allows, {said}; upgrade the enclave, or "
            "renew the policy",
            version=last.name,
        )

    def _warn(self, version: AllowedVersion, present: float) -> None:
        if version.not_after is None or version.not_after - present > _SOON:
            return
        if version.name not in self._warned:
            self._warned.add(version.name)
            logger.warning(
                "the policy allows the version %s for %.1f more days only",
                version.name,
                (version.not_after - present) / 86_400,
                extra=fields("version_ends_soon"),
            )


# -- what is asked for ----------------------------------------------------------------------------


class _Question:
    """That somebody is asking, and who waits for the end of it."""

    def __init__(self, awaits: bool) -> None:
        self.awaits = awaits
        """Whether an event loop is there, to await what the callable returned."""
        self.over = False
        self.given_up = False
        """Nobody is there any more who would await it."""
        self.waiters: list[Waiter] = []
        self.awaited: Any = None
        """What the callable returned, where that is to be awaited."""


class Answers:
    """What is known of the answers of one source."""

    def __init__(self, source: PinSource, debug_mode: bool) -> None:
        self._source = source
        self._debug_mode = debug_mode
        self._lock = threading.RLock()  # a destructor may come by in between
        # The last good answer, and when it was asked for.
        self._pins: PinTuples | None = None
        self._at = 0.0
        # Of the last question, where it had no good answer, and when that was asked.
        self._failure: PinsUnavailable | None = None
        self._failed_at = 0.0
        self._doubted = False
        self._question: _Question | None = None

    @property
    def due(self) -> bool:
        return self._settled(now()) is None

    async def pins(self, io: Io[Any], deadline: float | None) -> PinTuples:
        while True:
            waiter: Waiter = io.waiter()
            with self._lock:
                present = now()
                settled = self._settled(present) or (self._question and self._kept(present))
                if settled:  # also while somebody else asks: nobody waits beside it
                    return settled
                refused = self._refused(present)
                question, mine = self._question, False
                if question is None and refused is None:
                    self._question = question = _Question(io.loop() is not None)
                    mine = True
                elif question is not None:
                    question.waiters.append(waiter)
            if question is None:
                raise _again(cast(PinsUnavailable, refused))
            if mine:
                return await self._ask(io, question, deadline)
            if not await io.wait(waiter, time_left(deadline)):
                raise self._unavailable(TimeoutError("no answer in time"))
            with self._lock:
                failure = None if self._kept(now()) is not None else self._failure
            if question.over and failure is not None:
                raise _again(failure)

    def doubt(self) -> None:
        """After a deployment the pins change before the period is over."""
        with self._lock:
            self._doubted = now() - self._at >= min(self._source.period, _PAUSE)

    def refusal(self, error: PcrMismatch) -> EnclaviaError | None:
        return None

    def _settled(self, present: float) -> PinTuples | None:
        """What needs no asking: a fresh answer, or one that is kept since asking has failed."""
        if self._doubted:
            return None
        asked_at = self._at if self._failure is None else self._failed_at
        return self._kept(present) if present - asked_at < self._source.period else None

    def _kept(self, present: float) -> PinTuples | None:
        """The last answer, where it may still be used."""
        if present - self._at > max(self._source.keep, self._source.period):
            return None
        return self._pins

    def _refused(self, present: float) -> PinsUnavailable | None:
        """What was refused just now is not asked for again for each request."""
        pause = min(self._source.period, _PAUSE)
        return self._failure if present - self._failed_at < pause else None

    # -- one question ------------------------------------------------------------------------

    async def _ask(self, io: Io[Any], question: _Question, deadline: float | None) -> PinTuples:
        at = now()
        try:
            if self._source.is_async:
                await self._await(question, self._source.ask, at, deadline)
            else:
                await self._ask_in_a_thread(io, question, at, deadline)
        except BaseException:
            self._give_up(question)
            raise
        with self._lock:
            failure, kept = self._failure, self._kept(now())
            if failure is None and self._pins is not None:
                return self._pins
        if kept is None:
            raise _again(cast(PinsUnavailable, failure))
        return kept

    async def _await(
        self, question: _Question, ask: Callable[[], Any], at: float, deadline: float | None
    ) -> None:
        from .._io.loops import bounded  # which imports anyio

        try:
            answer = await bounded(ask, time_left(deadline))
        except Exception as error:
            self._note(question, at, None, error)
        else:
            self._note(question, at, answer, None)

    async def _ask_in_a_thread(
        self, io: Io[Any], question: _Question, at: float, deadline: float | None
    ) -> None:
        """A thread that is late cannot be stopped. Until its end it is the one who asks, and its
        answer is taken whenever it comes."""
        waiter: Waiter = io.waiter()
        with self._lock:
            question.waiters.insert(0, waiter)
        context = contextvars.copy_context()
        if _core.WEB:  # which has no threads: the page stands still until the function returns
            context.run(self._call, question, at)
            if question.awaited is not None:
                coroutine = question.awaited
                await self._await(question, lambda: coroutine, at, deadline)
            return
        thread = threading.Thread(
            target=context.run, args=(self._call, question, at), name="enclavia-pins", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the process has no more threads
            self._note(question, at, None, error)
            return
        if not await io.wait(waiter, time_left(deadline)) and not question.over:
            failure = self._unavailable(TimeoutError("no answer in time"))
            with self._lock:
                if self._at < at:
                    self._failure, self._failed_at, self._doubted = failure, at, False
            self._give_up(question)
        elif question.awaited is not None:
            awaited = question.awaited
            await self._await(question, lambda: awaited, at, deadline)

    def _call(self, question: _Question, at: float) -> None:
        # Whatever is raised is told to those who wait: this thread is ours, and ends here. Reading
        # the answer may run the caller's code too, where it is a generator.
        try:
            with within(self):
                answer: Any = self._source.ask()
                if not inspect.isawaitable(answer):
                    self._note(question, at, answer, None)
                    return
        except BaseException as error:
            self._note(question, at, None, error)
            return
        with self._lock:
            taken = question.awaits and not question.given_up
            question.awaited = answer if taken else None
            waiters = question.waiters[:1] if taken else []  # who asks: the others wait on
        if not taken:
            _drop(answer)
            refused = TypeError("got something to await where no event loop waits for it")
            self._note(question, at, None, refused)
        _wake(waiters)

    def _give_up(self, question: _Question) -> None:
        """By who asked. A thread that still runs ends the question itself."""
        with self._lock:
            question.given_up = True
            ended = self._source.is_async or question.awaited is not None
        if ended and not question.over:
            _drop(question.awaited)
            self._end(question)

    def _note(
        self, question: _Question, at: float, answer: object, error: BaseException | None
    ) -> None:
        failure: PinsUnavailable | None = None
        pins: PinTuples | None = None
        answered = False
        if error is not None:
            failure = self._unavailable(error)
        else:
            try:
                pins = self._checked(answer)
            except (TypeError, ValueError) as refused:
                failure, answered = self._bad(refused), True
            except Exception as failed:
                failure = self._unavailable(failed)
        with self._lock:
            self._failure, self._doubted = failure, False
            if failure is None:
                self._at = at
                if pins != self._pins:
                    self._pins = pins
            else:
                self._failed_at = at
                if answered:
                    self._pins = None  # with others than these
        if failure is not None:
            logger.warning("%s", failure, extra=fields("pins_unavailable", error=failure))
        self._end(question)

    def _checked(self, answer: object) -> PinTuples:
        if source_of(answer) is not None:
            raise TypeError("pcrs: expected Pcrs or several of them, got another source of them")
        pins = checked_pins(cast(Any, answer), self._debug_mode)
        if pins is None:
            raise TypeError("pcrs: expected Pcrs or several of them, got None")
        _core.Policy(pins, None, self._debug_mode, not self._debug_mode)  # refuses too many
        return pins

    def _end(self, question: _Question) -> None:
        with self._lock:
            question.over = True
            if self._question is question:
                self._question = None
            waiters, question.waiters = question.waiters, []
        _wake(waiters)

    def _unavailable(self, error: BaseException) -> PinsUnavailable:
        failure = PinsUnavailable(
            f"expected the pins from {self._source!r}, got {type(error).__name__}: "
            f"{text_of(error)}",
            retryable=error.retryable if isinstance(error, EnclaviaError) else True,
        )
        failure.__cause__ = error
        return failure

    def _bad(self, error: Exception) -> PinsUnavailable:
        failure = PinsUnavailable(
            f"{self._source!r} has answered with what cannot be pinned, so no enclave is trusted: "
            f"{text_of(error)}",
            retryable=False,
        )
        failure.__cause__ = error
        return failure


def _drop(awaitable: Any) -> None:  # noqa: ANN401 - whatever a callable returned
    """Without the warning that it was never awaited."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        with contextlib.suppress(Exception):
            close()


def _wake(waiters: Sequence[Waiter]) -> None:
    for waiter in waiters:
        with contextlib.suppress(EnclaviaError):  # its event loop was closed
            waiter.set()


def _again(failure: PinsUnavailable) -> PinsUnavailable:
    """One for each who is told, since each adds its own traceback and request."""
    error = PinsUnavailable(failure.message, retryable=failure.retryable)
    error.__cause__ = failure.__cause__
    return error
