"""An object to await or to enter: ``await X.connect(…)``, ``async with X.connect(…) as x``.

Decides the error for a caller who forgot ``await``. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

__all__ = ["Connecting"]


class _Closeable(Protocol):
    async def aclose(self) -> None: ...


T = TypeVar("T", bound=_Closeable)


class Connecting(Generic[T]):
    def __init__(self, kind: str, start: Callable[[], Awaitable[T]], by: str = "connect") -> None:
        self._call = f"{kind}.{by}(…)"
        self._by = by
        self._start = start
        self._result: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._start().__await__()

    async def __aenter__(self) -> T:
        self._result = result = await self._start()
        return result

    async def __aexit__(self, *_: object) -> None:
        if self._result is not None:
            await self._result.aclose()

    def __repr__(self) -> str:
        return f"<{self._call}, not awaited>"

    # What follows helps whoever forgot to await; nothing may be made of it by a type checker.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(
                f"expected {self._how()}, got {name!r} of what {self._by} returned, not awaited",
                name=name,
                obj=self,
            )

        def __enter__(self) -> NoReturn:
            raise TypeError(f"expected {self._how()}, got 'with' without 'async'")

        def __exit__(self, *_: object) -> None:
            """Without which Python would not come to call ``__enter__``."""

    def _how(self) -> str:
        return f"'await {self._call}' or 'async with {self._call} as …'"
