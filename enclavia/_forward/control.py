"""What is asked on a forwarder's control socket: HTTP, answered with JSON or text.

Decides nothing: it asks the forwarder. Calls: _channel, _errors. Locks: none.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from .._channel.via import CONTROL_TARGET, error_fields
from .._errors import EnclaviaError, InternalError
from .counters import exposition

__all__ = ["ControlApp", "ControlOwner", "answer"]

Send = Callable[[dict[str, Any]], Awaitable[None]]


class ControlOwner(Protocol):
    async def describe(self) -> dict[str, object]: ...
    def health(self) -> tuple[bool, dict[str, object]]: ...
    def measures(self) -> list[tuple[str, str, bool, float]]: ...


async def answer(
    send: Send,
    status: int,
    body: bytes,
    media_type: str = "application/json",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """One whole answer."""
    fields = [
        (b"content-type", media_type.encode("latin-1")),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


class ControlApp:
    """``/v1/channel``, ``/healthz`` and ``/metrics``."""

    def __init__(self, owner: ControlOwner) -> None:
        self._owner = owner

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Send,
    ) -> None:
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            await answer(send, 405, b"", headers=((b"allow", b"GET, HEAD"),))
        elif path == CONTROL_TARGET:
            await self._channel(scope, send)
        elif path == "/healthz":
            healthy, told = self._owner.health()
            await answer(send, 200 if healthy else 503, json.dumps(told).encode())
        elif path == "/metrics":
            text, media_type = exposition(self._owner.measures)
            await answer(send, 200, text, media_type)
        else:
            await answer(send, 404, json.dumps({"error": {"message": "no such path"}}).encode())

    async def _channel(self, scope: dict[str, Any], send: Send) -> None:
        try:
            told = await self._owner.describe()
        except EnclaviaError as error:
            await answer(send, 502, json.dumps({"error": error_fields(error)}).encode())
            return
        except OSError as error:
            failure = InternalError(f"the forwarder failed: {error}")
            await answer(send, 502, json.dumps({"error": error_fields(failure)}).encode())
            return
        scope["state"]["connection"].identity = told["identity"]
        await answer(send, 200, json.dumps(told).encode())
