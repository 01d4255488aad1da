"""One GET with a bound on what is read, for an event loop, and for a thread that may block.

A thread that fetches has it done by an event loop in another thread: so a deadline, Ctrl-C, and a
peer that sends one byte at a time end the waiting at once, also where the thread itself runs an
event loop (a notebook).

Decides how much is read, and that a browser follows no redirect. Calls: _core. Locks: none.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2

from .. import _core

if TYPE_CHECKING:
    import asyncio

__all__ = ["Answer", "Fetch", "fetch", "fetch_in_thread"]


class Fetch(NamedTuple):
    """What is asked for. ``most``: bytes of the answer's body that are read at most. ``timeout``:
    seconds for each of connecting, sending, and waiting for bytes. ``environment``: whether the
    environment's proxies are used."""

    url: str
    headers: tuple[tuple[str, str], ...]
    most: int
    timeout: float
    environment: bool

    def __repr__(self) -> str:
        return f"Fetch({self.url})"  # headers carry tokens


class Answer(NamedTuple):
    """``body`` is longer than ``most`` where there was more to read, and empty where ``status`` is
    not 200. ``location``: of a redirect; ``encoding``: how the body is compressed."""

    status: int
    body: bytes
    location: str | None
    encoding: str | None


async def fetch(wanted: Fetch) -> Answer:
    """Raises what httpx2 raises."""
    if _core.WEB:
        return await _fetch_in_page(wanted)
    client = httpx2.AsyncClient(
        timeout=wanted.timeout, follow_redirects=False, trust_env=wanted.environment
    )
    async with client, client.stream("GET", wanted.url, headers=list(wanted.headers)) as response:
        body = bytearray()
        if response.status_code == 200:
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > wanted.most:
                    break
        return Answer(
            response.status_code,
            bytes(body),
            response.headers.get("location"),
            response.headers.get("content-encoding"),
        )


async def _fetch_in_page(wanted: Fetch) -> Answer:
    """By the browser's own ``fetch``. What httpx2 uses there follows redirects, to wherever they
    lead, before anyone is asked; here one is an error. No cookies go along, and nothing is cached.
    A browser takes compression off by itself, so what it gives is what counts against ``most``."""
    import asyncio

    import js
    from pyodide.ffi import JsException, to_js

    controller = js.AbortController.new()
    options = {
        "method": "GET",
        "signal": controller.signal,
        # A browser decides this one itself.
        "headers": {k: v for k, v in wanted.headers if k.lower() != "accept-encoding"},
        "redirect": "error",
        "credentials": "omit",
        "cache": "no-store",
        "referrerPolicy": "no-referrer",
    }
    try:
        async with asyncio.timeout(wanted.timeout):
            response = await js.fetch(
                wanted.url, to_js(options, dict_converter=js.Object.fromEntries)
            )
            body = await _body_in_page(response, wanted.most)
    except TimeoutError:
        raise httpx2.ReadTimeout(f"no whole answer within {wanted.timeout} s") from None
    except JsException as error:
        raise httpx2.ConnectError(
            f"the browser's fetch failed ({error}); it does not say why: the address, CORS, the "
            "page's Content-Security-Policy, or a redirect, of which none is followed"
        ) from None
    finally:
        controller.abort()  # what is left of it, if anything
    return Answer(int(response.status), body, None, None)


async def _body_in_page(response: Any, most: int) -> bytes:  # noqa: ANN401 - of JavaScript's
    body = bytearray()
    if response.body is None:
        return b""
    reader = response.body.getReader()
    while response.status == 200 and len(body) <= most:
        piece = await reader.read()
        if piece.done:
            return bytes(body)
        body += piece.value.to_bytes()
    return bytes(body)


def fetch_in_thread(wanted: Fetch, waiter: threading.Event, timeout: float | None) -> Answer | None:
    """``waiter``: is set when there is an answer; who sets it before ends the fetch. None where
    there is no answer by then."""
    fetching = _Fetching(wanted)
    fetching.answer.add_done_callback(lambda _: waiter.set())
    thread = threading.Thread(target=fetching.run, name="enclavia-fetch", daemon=True)
    thread.start()
    try:
        waiter.wait(timeout)
        return fetching.answer.result() if fetching.answer.done() else None
    finally:
        fetching.cancel()


class _Fetching:
    """Runs in a thread of its own, which ends with it. The name of a host may be looked up for
    longer than anybody waits; then the thread ends after that."""

    def __init__(self, wanted: Fetch) -> None:
        self.answer: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        self._wanted = wanted
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False

    def run(self) -> None:
        import asyncio  # which costs time, and which only this needs in a thread

        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            return
        except BaseException as error:
            # No event loop could be made (no descriptors are left): who waits has to be told.
            if not self.answer.done():
                self.answer.set_exception(error)

    async def _main(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        if self._cancelled:
            return
        try:
            answer = await fetch(self._wanted)
        except BaseException as error:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(answer)

    def cancel(self) -> None:
        """Nothing where it has ended."""
        self._cancelled = True
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(task.cancel)
