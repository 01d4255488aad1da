"""What the pool knows of requests, channels and connections: plain state, and no decision.

A channel and a kept connection are whatever has the few properties that the protocols name.

Calls: nothing of the package. Locks: none.
"""

import enum
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

__all__ = [
    "C",
    "ChannelHandle",
    "Job",
    "L",
    "Member",
    "Phase",
    "PoolLimits",
    "PoolStats",
    "Reusable",
    "State",
    "Wakeable",
]


class ChannelHandle(Protocol):
    @property
    def alive(self) -> bool: ...
    def close(self) -> None: ...


class Reusable(Protocol):
    """A workload connection kept for another request."""

    @property
    def fresh(self) -> bool:
        """Nothing came on it since it was put away."""

    def close(self) -> None: ...


class Wakeable(Protocol):
    def set(self) -> None:
        """Raises where nobody is left who could be woken."""


C = TypeVar("C", bound=ChannelHandle)
L = TypeVar("L", bound=Reusable)


class PoolLimits(NamedTuple):
    max_channels: int = 2
    """One of several is the spare one."""
    long_body: int = 256 * 1024
    spare_backoff: float = 30.0
    """How long a spare channel that could not be had is not asked for again: the server may have
    no room for it, and it is a wish, not a need."""
    max_in_flight: int = 64
    """Per channel, connections kept for reuse included: each holds one of the server's slots."""
    max_connections: int | None = None
    """In use at once, over all channels."""
    max_idle: int | None = None
    keepalive_expiry: float | None = 4.0
    channel_expiry: float = 45.0
    """A channel unused for longer is replaced. The server closes one after 30 s."""
    careful_expiry: float = 1.0
    """A request that cannot be repeated takes only a connection used that recently: workloads
    close idle ones after two seconds or more, and a close may be on its way unseen."""
    patience: float | None = None
    """How long, in seconds, a caller has connecting repeated while it fails. None: for as long as
    the caller waits. 0: one attempt."""
    reconnect: bool = True
    """Whether a channel may be opened after all earlier ones were lost."""
    backoff_base: float = 0.05
    backoff_cap: float = 2.0


class Job(NamedTuple):
    """What is known of a request before it is sent."""

    repeatable: bool = True
    body_size: int | None = 0
    """None where it is not known."""


class State(enum.Enum):
    WAITING = enum.auto()
    CONNECT = enum.auto()
    GRANTED = enum.auto()
    FAILED = enum.auto()


# Each request compares these several times, and up to Python 3.11 to look up a member of an
# enumeration takes longer than a function call.
WAITING: Final = State.WAITING
CONNECT: Final = State.CONNECT
GRANTED: Final = State.GRANTED


class Phase(enum.Enum):
    """What a waiting request waits for, and so which of its timeouts counts."""

    CONNECT = "connect"
    POOL = "pool"


class PoolStats(NamedTuple):
    channels: int
    streams_active: int
    streams_idle: int
    waiting: int
    connects: int
    reconnects: int


class Member(Generic[C, L]):
    """One channel: on its way, open, or gone."""

    def __init__(self, spare: bool = False) -> None:
        self.handle: C | None = None
        self.spare = spare
        self.open = False
        self.gone = False
        self.in_use = 0
        self.used = 0.0
        self.idle: list[tuple[float, L]] = []
        self.connector: int | None = None
        self.not_before = 0.0

    @property
    def alive(self) -> bool:
        return self.open and self.handle is not None and self.handle.alive

    @property
    def load(self) -> int:
        return self.in_use + len(self.idle)
