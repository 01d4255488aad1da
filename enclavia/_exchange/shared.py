"""Connections that the copies of a client share in one process, and how long they are kept.

A copy is a client that was unpickled, or made by the module ``copy``. Copies that mean the same
share one :class:`enclavia._exchange.connections.Connections`: the same verified channels, and one
queue. What means the same is told by a key (:func:`key_of`). Connections of unlike keys have
nothing in common.

Who uses shared connections holds a :class:`enclavia._exchange.connections.Use`: each copy, and each
of its requests until its end. All of them hold the same one, so Python's reference count says when
the last of them is gone, whichever way it went: closed, collected, or lost where a signal's handler
raised. From then on the connections are kept for a while, because the next copy often comes soon.

Decides who shares with whom, and when unused connections end. Calls: _errors, _io. Locks:
``_lock``, around the table of what is kept; no lock of a pool is taken under it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Final

from .._errors import StateError
from .._io.face import Io, now
from .connections import Connections, Use

__all__ = ["SharedConnections", "SharedPools", "key_of", "pools"]

MOST_UNUSED: Final = 16
"""How many unused connections are kept at most. Of more, those that have been unused for longest
end first."""
# Seconds after which all is looked at again where nothing was noted before: while connections to a
# workload are kept for a next request, while there are channels at all, and otherwise.
_WITH_IDLE: Final = 5.0
_WITH_CHANNELS: Final = 15.0
_WITHOUT: Final = 60.0


# -- what means the same ----------------------------------------------------------------------


class _Only:
    """Equal to nothing but the same object. Keeps it, so that no other object gets its address."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is _Only and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


_COMPARED: Final = frozenset((type(None), bool, int, float, str, bytes))


def key_of(value: object) -> Hashable:
    """Equal for values that mean the same, of all kinds of which that can be told: None, numbers,
    text, bytes, and tuples and frozen sets of these, each with its type. Of anything else, such as
    a function, only the very same object is equal: what its ``__eq__`` says is not asked."""
    kind = type(value)
    if kind in _COMPARED:
        return kind, value
    if isinstance(value, tuple):
        return kind, tuple(map(key_of, value))
    if kind is frozenset:
        members: frozenset[object] = value  # type: ignore[assignment]
        return kind, frozenset(map(key_of, members))
    return _Only(value)


# -- of the process ---------------------------------------------------------------------------


def _nobody() -> None:
    return None


class _Kept:
    """Connections, and whether anybody uses them. Guarded by the lock of SharedPools."""

    __slots__ = ("connections", "expiry", "loop", "unused_since", "use")

    def __init__(
        self, connections: Connections, expiry: float, loop: weakref.ref[object] | None
    ) -> None:
        self.connections = connections
        self.expiry = expiry
        self.loop = loop
        self.use: Callable[[], Use | None] = _nobody
        self.unused_since: float | None = None
        """When it was noted that they are; None while they are used."""

    def ends_at(self, present: float) -> float | None:
        """None while they are used."""
        if self.use() is not None:
            self.unused_since = None
            return None
        if self.loop is not None and self.loop() is None:
            return present  # its event loop was closed: nobody will ask for them again
        if self.unused_since is None:
            self.unused_since = present
        return self.unused_since + self.expiry


class SharedPools:
    """All shared connections of this process.

    A forked child begins with none. It keeps what its parent had, and leaves it as it is, because
    locks in there may be held by threads that the child does not have.

    No method of a pool that takes the pool's lock is called with the lock of this object held: a
    destructor that runs inside of a pool may close a copy, and so come by here.
    """

    def __init__(self, thread: bool = True) -> None:
        """``thread``: one thread ends what has been unused for long enough. There is one while
        anything is kept, and none otherwise. Without it the caller does, by :meth:`look`."""
        self._with_thread = thread
        self._inherited: list[object] = []
        self._begin()

    def _begin(self) -> None:
        # Reentrant, because a destructor or a signal's handler may interrupt whoever has it.
        self._lock: contextlib.AbstractContextManager[bool] = threading.RLock()
        self._kept: dict[Hashable, _Kept] = {}
        self._thread: threading.Thread | None = None
        # Weak references put a note here when a use or an event loop has ended. That happens at
        # any place of any thread, and this queue's put() neither waits nor runs Python code.
        self._notes: queue.SimpleQueue[object] = queue.SimpleQueue()

    def begin_in_child(self) -> None:
        self._inherited.append(self._kept)
        self._begin()

    def take(
        self, key: Hashable, loop: object | None, expiry: float, make: Callable[[], Connections]
    ) -> Use:
        """The connections of this key, made where there are none.

        ``loop``: what lives as long as the event loop that they are for; of another loop are other
        connections. ``expiry``: seconds for which they are kept when nobody uses them any more.
        """
        of_loop = None if loop is None else weakref.ref(loop)
        with self._lock:
            use = self._find((key, of_loop))
            if use is None:
                use = self._make((key, of_loop), loop, expiry, make)
            self._expect_thread()
        return use

    def find(self, key: Hashable, loop: object | None) -> Connections | None:
        """Those that :meth:`take` would take, only to look at; None where there are none."""
        kept = self._kept.get((key, None if loop is None else weakref.ref(loop)))
        return None if kept is None else kept.connections

    def look(self) -> float | None:
        """Ends what has been unused for long enough. Seconds until this is to be called again where
        no note comes before; None: not before something is taken.

        Of what is used, channels end in which there has been nothing for a while: a copy that is
        only kept, as schedulers do, takes no place in the enclave from others."""
        ended, left, wait = self._sort()
        for connections in ended:
            _end(connections)
        for connections in left:
            connections.pool.settle(now())
            stats = connections.pool.stats()
            if stats.streams_idle:
                wait = min(wait, _WITH_IDLE)
            elif stats.channels:
                wait = min(wait, _WITH_CHANNELS)
        return wait if left else None

    # -- in here ----------------------------------------------------------------------------

    # A destructor that interrupts one of these may call take() in the middle of it. What they
    # change is therefore changed by one step each.

    def _find(self, full: Hashable) -> Use | None:
        kept = self._kept.get(full)
        if kept is None:
            return None
        if kept.connections.pool.spent:
            # The one connection that they may have was lost: who comes now begins anew.
            self._kept.pop(full, None)
            return None
        return kept.use() or self._use(kept)

    def _use(self, kept: _Kept) -> Use:
        use = Use(kept.connections)
        kept.use = weakref.ref(use, self._notes.put)
        kept.unused_since = None
        return use

    def _make(
        self, full: Hashable, loop: object | None, expiry: float, make: Callable[[], Connections]
    ) -> Use:
        of_loop = None if loop is None else weakref.ref(loop, self._notes.put)
        kept = self._kept.setdefault(full, _Kept(make(), expiry, of_loop))
        return kept.use() or self._use(kept)

    def _sort(self) -> tuple[list[Connections], list[Connections], float]:
        """What is to be ended now, what stays, and how long until the next of it is to be ended."""
        present = now()
        with self._lock:
            unused: list[tuple[float, Hashable]] = []
            for full, kept in list(self._kept.items()):
                ends_at = kept.ends_at(present)
                if ends_at is not None:
                    unused.append((ends_at, full))
            unused.sort(key=lambda each: each[0])
            surplus = len(unused) - MOST_UNUSED
            ended: list[Connections] = []
            wait = _WITHOUT
            for number, (ends_at, full) in enumerate(unused):
                if ends_at > present and number >= surplus:
                    wait = min(wait, ends_at - present)
                    continue
                # A destructor may have taken them since they were looked at. From here on nobody
                # can find them, so now it can be told.
                kept = self._kept.pop(full)
                if kept.use() is None:
                    ended.append(kept.connections)
                else:
                    self._kept.setdefault(full, kept)
            left = [kept.connections for kept in self._kept.values()]
            if not left and self._thread is threading.current_thread():
                self._thread = None
            return ended, left, wait

    def _expect_thread(self) -> None:
        if not self._with_thread or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = thread = threading.Thread(
            target=self._run, args=(self._notes,), name="enclavia-expiry", daemon=True
        )
        # Where no thread can be started, the next call of take() tries again.
        with contextlib.suppress(RuntimeError):
            thread.start()

    def _run(self, notes: queue.SimpleQueue[object]) -> None:
        while (wait := self.look()) is not None:
            with contextlib.suppress(queue.Empty):
                notes.get(timeout=wait)


def _end(connections: Connections) -> None:
    error = StateError("the connections were unused for as long as they are kept")
    for tunnel in connections.pool.close(error):
        with contextlib.suppress(Exception):  # nobody is left who could be told
            tunnel.close(1.0)


pools: Final = SharedPools()
os.register_at_fork(after_in_child=pools.begin_in_child)


# -- of one copy ------------------------------------------------------------------------------


class SharedConnections:
    """What one copy knows of the connections that it shares. They are looked for when it first
    needs them, in an event loop for each loop anew."""

    def __init__(
        self,
        key: Callable[[], Hashable],
        expiry: float,
        io: Io[Any],
        make: Callable[[], Connections],
        shared_by: SharedPools = pools,
    ) -> None:
        self._key = key
        self._expiry = expiry
        self._io = io
        self._make = make
        self._pools = shared_by
        self._closed = False
        self._use: Use | None = None
        self._of_loops: weakref.WeakKeyDictionary[object, Use] = weakref.WeakKeyDictionary()
        self._latest: Callable[[], Use | None] = _nobody

    def take(self) -> Use:
        loop = self._io.loop()
        use = self._use if loop is None else self._of_loops.get(loop)
        return self._take(loop) if use is None else use

    def _take(self, loop: object | None) -> Use:
        while True:
            use = self._pools.take(self._key(), loop, self._expiry, self._make)
            if use.pid == os.getpid():
                break
            # The handler of a signal forked within that call.
        if loop is None:
            self._use = use
        else:
            self._of_loops[loop] = use
        self._latest = weakref.ref(use)
        if self._closed:
            self.close()
            raise StateError("the client was closed")
        return use

    def known(self) -> Connections | None:
        """To look at: those it has used last, else those it would use."""
        use = self._latest()
        if use is not None:
            return use.connections
        return self._pools.find(self._key(), self._io.loop())

    def close(self) -> None:
        self._closed = True
        self._use = None
        self._of_loops.clear()
