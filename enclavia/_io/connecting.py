"""What is both awaited and entered: ``await X.connect(…)``, ``async with X.connect(…) as x``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Connecting"]


class _Closeable(Protocol):
    async def aclose(self) -> None: ...


T = TypeVar("T", bound=_Closeable)


class Connecting(Generic[T]):
    def __init__(self, start: Callable[[], Awaitable[T]]) -> None:
        self._start = start
        self._result: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._start().__await__()

    async def __aenter__(self) -> T:
        self._result = result = await self._start()
        return result

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if self._result is not None:
            await self._result.aclose()
