"""A deterministic scheduler: real threads, of which exactly one runs at a time, and every choice of
which one goes on is made here. So a schedule can be chosen, repeated, and all of them enumerated.

A thread gives way at *points*: before and after it takes a :class:`Lock`, when it is about to set
or to wait for an :class:`Event`, and wherever its code calls :meth:`Scheduler.point`. With
``events_in`` it also gives way at every place in the named files where CPython itself might, which
is after a call and at the start of a function. At the same places the handler of a signal may run,
and so raise: ``interrupt`` raises KeyboardInterrupt at the n-th of them.

Where nobody can go on and somebody is not done, the schedule ends in :class:`Stuck`.
"""

from __future__ import annotations

import bisect
import dis
import functools
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, Protocol

__all__ = [
    "AllSchedules",
    "Event",
    "Lock",
    "RandomSchedule",
    "Scheduler",
    "Stuck",
    "schedules",
]


class Stuck(BaseException):
    """Nobody sets what this thread waits for."""


class Choice(Protocol):
    def __call__(self, options: int, preempts: bool) -> int:
        """Which of the threads that can go on. Where ``preempts``, the first one is the running
        one, and any other takes its turn away."""


class AllSchedules:
    """One schedule after another, depth first: the choices made so far are repeated, the last one
    of which something is left is made differently. ``preemptions`` bounds how often a thread that
    could go on is not let to, which is what the number of schedules grows with."""

    def __init__(self, preemptions: int | None) -> None:
        self._bound = preemptions
        self._prefix: list[int] = []
        self._made: list[tuple[int, int]] = []
        self._preempted = 0

    def __call__(self, options: int, preempts: bool) -> int:
        if preempts and self._bound is not None and self._preempted >= self._bound:
            return 0
        if options == 1:
            return 0
        depth = len(self._made)
        chosen = self._prefix[depth] if depth < len(self._prefix) else 0
        self._made.append((chosen, options))
        self._preempted += preempts and chosen > 0
        return chosen

    def another(self) -> bool:
        made = self._made
        while made and made[-1][0] + 1 >= made[-1][1]:
            made.pop()
        self._prefix = [chosen for chosen, _ in made]
        self._made, self._preempted = [], 0
        if not self._prefix:
            return False
        self._prefix[-1] += 1
        return True


def schedules(preemptions: int | None) -> Iterator[AllSchedules]:
    """All of them, as long as the caller runs each one it gets."""
    choose = AllSchedules(preemptions)
    yield choose
    while choose.another():
        yield choose


class RandomSchedule:
    def __init__(self, seed: int, preempting: float = 0.3) -> None:
        self._random = random.Random(seed)
        self._preempting = preempting

    def __call__(self, options: int, preempts: bool) -> int:
        if preempts and (options == 1 or self._random.random() >= self._preempting):
            return 0
        return self._random.randrange(preempts, options)


def _always() -> bool:
    return True


class _Thread:
    def __init__(self, name: str, job: Callable[[], object]) -> None:
        self.name = name
        self.job = job
        self.gate = threading.Lock()
        self.gate.acquire()
        self.ready: Callable[[], bool] = _always
        self.done = False
        self.cancelled: BaseException | None = None
        self.error: BaseException | None = None
        self.result: object = None
        self.real: threading.Thread | None = None


class Scheduler:
    def __init__(self, choose: Choice, events_in: frozenset[str] = frozenset()) -> None:
        self._choose = choose
        self._events_in = events_in
        self._threads: list[_Thread] = []
        self._running: _Thread | None = None
        self._over = threading.Event()
        self._aborted = False
        self._interrupt_at: int | None = None
        self._preempting = False
        self.interrupted = ""
        """At which place, or empty where there was no n-th one."""

    def spawn(self, name: str, job: Callable[[], object]) -> None:
        self._threads.append(_Thread(name, job))

    def run(self, interrupt: int | None = None, preempt_at_events: bool = False) -> None:
        """Until all threads are done. ``interrupt``: of the first one."""
        self._interrupt_at = interrupt
        self._preempting = preempt_at_events
        for thread in self._threads:
            thread.real = threading.Thread(target=self._body, args=(thread,), daemon=True)
            thread.real.start()
        self._running = first = self._next(None)
        assert first is not None
        first.gate.release()
        self._over.wait()
        for thread in self._threads:
            assert thread.real is not None
            thread.real.join()
        self._running = None

    @property
    def stuck(self) -> list[str]:
        return [thread.name for thread in self._threads if isinstance(thread.error, Stuck)]

    @property
    def errors(self) -> dict[str, BaseException]:
        return {t.name: t.error for t in self._threads if t.error is not None}

    def result(self, name: str) -> Any:
        return next(thread.result for thread in self._threads if thread.name == name)

    def cancel(self, name: str, error: BaseException) -> None:
        """Raised by the wait that the thread is in, or by the next one it begins."""
        for thread in self._threads:
            if thread.name == name:
                thread.cancelled = error

    def forget(self) -> None:
        """Lets go of the callers, who refer to this again."""
        self._threads.clear()

    # -- called by the threads ---------------------------------------------------------------

    def point(self) -> None:
        """Another thread may go on instead."""
        thread = self._running
        if thread is None or self._aborted or thread.real is not threading.current_thread():
            return  # nobody else is there: before the run, after it, or where it was broken off
        self._switch(thread)

    def block(self, ready: Callable[[], bool], cancellable: bool = False) -> None:
        """Until it is so."""
        thread = self._running
        if thread is None or self._aborted:
            if not ready():
                raise Stuck
            return
        if cancellable:
            thread.ready = lambda: ready() or thread.cancelled is not None
        else:
            thread.ready = ready
        self._switch(thread)
        thread.ready = _always
        if self._aborted:
            raise Stuck
        if cancellable and thread.cancelled is not None:
            error, thread.cancelled = thread.cancelled, None
            raise error

    # -- in here -----------------------------------------------------------------------------

    def _next(self, current: _Thread | None) -> _Thread | None:
        able = [t for t in self._threads if not t.done and t is not current and t.ready()]
        preempts = current is not None and not current.done and current.ready()
        if preempts:
            able.insert(0, current)  # type: ignore[arg-type]
        return able[self._choose(len(able), preempts)] if able else None

    def _switch(self, thread: _Thread) -> None:
        chosen = self._next(thread)
        if chosen is thread:
            return
        if chosen is None:
            self._abort()
            return
        self._running = chosen
        chosen.gate.release()
        thread.gate.acquire()

    def _abort(self) -> None:
        self._aborted = True
        for thread in self._threads:
            if not thread.done and thread is not self._running:
                thread.gate.release()

    def _body(self, thread: _Thread) -> None:
        thread.gate.acquire()
        interrupts = thread is self._threads[0] and self._interrupt_at is not None
        try:
            if not self._aborted:
                if interrupts or self._preempting:
                    sys.setprofile(functools.partial(self._event, interrupts))
                thread.result = thread.job()
        except BaseException as error:
            # Without its frames: they hold what has to come back when it is forgotten.
            error.__context__ = error.__cause__ = None
            thread.error = error.with_traceback(None)
        finally:
            sys.setprofile(None)
        thread.done = True
        if all(other.done for other in self._threads):
            self._over.set()
            return
        if self._aborted:
            return
        chosen = self._next(thread)
        if chosen is None:
            self._running = thread
            self._abort()
            return
        self._running = chosen
        chosen.gate.release()

    def _event(self, interrupts: bool, frame: types.FrameType, event: str, _: object) -> None:
        if event == "return":
            caller = frame.f_back
            # A signal's handler may run when a call has returned, not when something else has.
            if caller is None or not _is_at_a_call(caller):
                return
            if not {frame.f_code.co_filename, caller.f_code.co_filename} & self._events_in:
                return
        elif event not in ("call", "c_return") or frame.f_code.co_filename not in self._events_in:
            return
        if event == "call" and frame.f_code.co_name in _IN_DESTRUCTORS:
            return
        if interrupts and self._interrupt_at is not None:
            if self._interrupt_at == 0:
                self._interrupt_at = None
                self.interrupted = f"{event}: {_stack(frame)}"
                sys.setprofile(None)
                raise KeyboardInterrupt
            self._interrupt_at -= 1
        if self._preempting:
            self.point()


# Python swallows what is raised in a destructor. Before the first line of one nothing can be done
# about that.
_IN_DESTRUCTORS = frozenset(("__del__", "lost_lease", "lost_ticket", "_lose"))


def _stack(frame: types.FrameType | None) -> str:
    names = []
    while frame is not None and frame.f_code.co_filename != __file__:
        names.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(names)


@functools.lru_cache(maxsize=4096)
def _calls(code: types.CodeType) -> tuple[list[int], list[bool]]:
    instructions = list(dis.get_instructions(code))
    return (
        [instruction.offset for instruction in instructions],
        [instruction.opname.startswith("CALL") for instruction in instructions],
    )


def _is_at_a_call(frame: types.FrameType) -> bool:
    offsets, calls = _calls(frame.f_code)
    # Inside of a call f_lasti may be that of its cache, which follows it.
    return calls[bisect.bisect_right(offsets, frame.f_lasti) - 1]


class Lock:
    """As ``threading.Lock``, and a point before it is taken, while it is held, and after."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.taken = False

    def __enter__(self) -> None:
        self._scheduler.point()
        if self.taken:
            self._scheduler.block(lambda: not self.taken)
        self.taken = True
        self._scheduler.point()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, blocking: bool = True) -> bool:
        if blocking:
            self.__enter__()
            return True
        self._scheduler.point()
        if self.taken:
            return False
        self.taken = True
        return True

    def release(self) -> None:
        assert self.taken
        self.taken = False
        self._scheduler.point()


class Event:
    """As ``threading.Event``. ``dead``: of an event loop that was closed."""

    def __init__(self, scheduler: Scheduler, dead: bool = False) -> None:
        self._scheduler = scheduler
        self._set = False
        self.dead = dead

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._scheduler.point()
        if self.dead:
            raise RuntimeError("Event loop is closed")
        self._set = True
        self._scheduler.point()

    def wait(self) -> None:
        self._scheduler.block(self.is_set, cancellable=True)
