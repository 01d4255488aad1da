"""Follows an enclave's authorised upgrades: asks the backend, walks the chain, remembers how far.

Decides when a chain is asked for, and that a walk is not made twice. Calls: _arguments, _errors,
_identity, _io, _public, _records. Locks: ``_lock`` of the module, around the walks that are
remembered, and that of a Follower, around the chain that it saw last.
"""

from __future__ import annotations

import collections
import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import httpx2

from .._arguments import flag
from .._errors import ConnectTimeout, EnclaviaError, PcrMismatch
from .._identity.pins import PinTuples
from .._io.face import Io, time_left
from .._public import public
from .._records import fields
from .backend import checked_backend, checked_token, fetch_chain
from .chain import Rules, UpgradeChain, checked_enclave_id, walked
from .high_water import HighWater, checked_high_water, keep, load
from .mark import Mark
from .served import failed

__all__ = ["Follower", "TrustUpgrades", "Upgrades", "checked_upgrades"]

logger = logging.getLogger("enclavia")


class Upgrades(NamedTuple):
    """What a client keeps of :class:`TrustUpgrades`, compared by value where copies share."""

    backend: str
    enclave_id: str
    token: str | None
    allow_rollback: bool
    high_water: HighWater

    def __repr__(self) -> str:
        return f"Upgrades({self.backend}, {self.enclave_id})"  # the token stays out of logs


@public
class TrustUpgrades:
    """Says that a client follows authorised upgrades of its enclave.

    Where the enclave's PCRs are not the pinned ones, the client asks ``backend`` for the upgrade
    chain of ``enclave_id`` (a UUID), verifies it from the pinned version to the last one, and
    connects with the PCRs of that one. Every other failure stays what it is.

    ``token``: a bearer token for a private enclave. ``allow_rollback``: take an earlier version
    that runs again. ``high_water``: the path of a file in which the client keeps how far it saw the
    chain, so that links cannot be withheld later; or a function that is called with None and gives
    the mark or None, and called with a mark (JSON text) to keep it. One for each enclave.

    Immutable. A pickle has the token in it; ``repr`` and messages have not.
    """

    __slots__ = ("_settings",)

    _settings: Upgrades

    def __init__(
        self,
        backend: str | httpx2.URL,
        enclave_id: str | uuid.UUID,
        token: str | None = None,
        allow_rollback: bool = False,
        high_water: str | os.PathLike[str] | Callable[[str | None], str | None] | None = None,
    ) -> None:
        settings = Upgrades(
            backend=checked_backend(backend),
            enclave_id=str(checked_enclave_id(enclave_id)),
            token=checked_token(token),
            allow_rollback=flag("allow_rollback", allow_rollback),
            high_water=checked_high_water(high_water),
        )
        object.__setattr__(self, "_settings", settings)

    @property
    def backend(self) -> str:
        """Its URL, without a slash at the end."""
        return self._settings.backend

    @property
    def enclave_id(self) -> uuid.UUID:
        """Whose upgrades are followed."""
        return uuid.UUID(self._settings.enclave_id)

    @property
    def allow_rollback(self) -> bool:
        """Whether an earlier version may run again."""
        return self._settings.allow_rollback

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("TrustUpgrades cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("TrustUpgrades cannot be changed")

    def __eq__(self, other: object) -> bool:
        return self._settings == other._settings if isinstance(other, TrustUpgrades) else False

    def __hash__(self) -> int:
        return hash(self._settings)

    def __reduce__(self) -> tuple[object, ...]:
        return TrustUpgrades, tuple(self._settings)

    def __repr__(self) -> str:
        token = "" if self._settings.token is None else ", token=…"
        return f"TrustUpgrades({self.backend!r}, {self._settings.enclave_id!r}{token})"


def checked_upgrades(value: object) -> Upgrades | None:
    if value is None:
        return None
    if not isinstance(value, TrustUpgrades):
        raise TypeError(
            "trust_upgrades: expected TrustUpgrades(backend, enclave_id) or None, got "
            f"{type(value).__name__}"
        )
    return value._settings


# -- walks that were made before --------------------------------------------------------------

_MOST_WALKS: Final = 8
_TRIES: Final = 3
"""How often the backend is asked where others were served more meanwhile."""
_lock = threading.RLock()  # a destructor may come by in between
_walks: collections.OrderedDict[tuple[bytes, bytes, Rules], UpgradeChain] = (
    collections.OrderedDict()
)


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def _walked(row: bytes, links: bytes, rules: Rules) -> UpgradeChain:
    """A chain that held once holds for ever, by the same rules: it cannot come to lie in the
    future. What does not hold is walked anew each time."""
    key = (hashlib.sha256(row).digest(), hashlib.sha256(links).digest(), rules)
    with _lock:
        known = _walks.get(key)
    if known is None:
        known = walked(row, links, rules, int(time.time()))
        with _lock:
            _walks[key] = known
            while len(_walks) > _MOST_WALKS:
                _walks.popitem(last=False)
    return known


# -- of one engine ----------------------------------------------------------------------------


class Follower:
    """Follows one enclave's upgrades, for one engine or one channel. Remembers the chain that it
    saw last, which the next one has to extend."""

    def __init__(
        self, upgrades: Upgrades, root: bytes | None, debug_mode: bool, clock_leeway: int
    ) -> None:
        self._upgrades = upgrades
        self._root = root
        self._debug_mode = debug_mode
        self._clock_leeway = clock_leeway
        self._reached: tuple[Mark, PinTuples] | None = None
        """How far that chain was seen, and where it leads to."""
        self._lock = threading.RLock()  # a destructor may come by in between

    async def follow(
        self, io: Io[Any], pins: PinTuples, error: PcrMismatch, deadline: float | None
    ) -> PinTuples:
        """The pins to connect with instead of ``pins``, which are the caller's own. Raises
        UpgradeChainError, BackendError or ConnectTimeout, with ``error`` as the cause."""
        try:
            return await self._follow(io, pins, deadline)
        except EnclaviaError as why:
            raise why from error

    def overtaken(self, followed: PinTuples) -> bool:
        """Whether a longer chain was seen while this result was on its way: it is not to be used
        then, since an earlier version would come into force."""
        return self._reached is None or self._reached[1] != followed

    async def _follow(self, io: Io[Any], pins: PinTuples, deadline: float | None) -> PinTuples:
        for _ in range(_TRIES):
            newest = await self._followed(io, pins, deadline)
            if newest is not None:
                return newest
        raise failed(
            "expected at least the links that others have seen meanwhile, got fewer with each of "
            f"{_TRIES} answers: links are withheld"
        )

    async def _followed(
        self, io: Io[Any], pins: PinTuples, deadline: float | None
    ) -> PinTuples | None:
        """None where the chain does not extend one that another connection, or another process,
        has seen since this one was asked for: the backend may have more to show by now. One that
        does not extend what was seen before that is refused."""
        upgrades = self._upgrades
        seen = None if self._reached is None else self._reached[0]
        kept = await self._asked(io, load, (upgrades.high_water,), deadline)
        row, links = await fetch_chain(
            io, upgrades.backend, upgrades.enclave_id, upgrades.token, deadline
        )
        rules = Rules(
            pins=pins,
            enclave_id=uuid.UUID(upgrades.enclave_id),
            root=self._root,
            debug_mode=self._debug_mode,
            clock_leeway=self._clock_leeway,
            allow_rollback=upgrades.allow_rollback,
            mark=None,
        )
        chain = await self._asked(io, _walked, (row, links, rules), deadline)
        mark = Mark.parse(chain.high_water)
        for before in (kept, seen):
            if before is not None:
                before.expect_extended_by(mark)
        # What is pinned beside the three stays pinned: a chain says nothing of it.
        versions = {link.pcrs.as_tuple() for link in chain.links}
        further = dict.fromkeys(each[3:] for each in pins if each[:3] in versions)
        newest = tuple((*chain.pcrs.as_tuple(), *more) for more in further)
        if not self._see(mark, newest):
            return None
        if not await self._asked(io, keep, (upgrades.high_water, mark), deadline):
            return None
        logger.info(
            "following the upgrade chain of %s: %d links, image %s",
            upgrades.enclave_id,
            len(chain.links),
            chain.image_digest,
            extra=fields("upgrade_followed"),
        )
        return newest

    def _see(self, mark: Mark, newest: PinTuples) -> bool:
        """Compared and remembered in one step: another connection may be following too, and may
        have been served more. False where it was."""
        with self._lock:
            if self._reached is not None and not self._reached[0].is_extended_by(mark):
                return False
            self._reached = mark, newest
            return True

    async def _asked(
        self,
        io: Io[Any],
        function: Callable[..., Any],
        arguments: tuple[object, ...],
        deadline: float | None,
    ) -> Any:  # noqa: ANN401 - what the function gives
        """What may take long, in a thread of an event loop."""
        done: list[Any] = []

        def run() -> None:
            done.append(function(*arguments))

        await io.call(run, timeout=time_left(deadline))
        if not done:
            raise ConnectTimeout(
                "expected the upgrade chain to be verified before the time to connect was over, "
                "got no end of it"
            )
        return done[0]
