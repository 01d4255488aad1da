"""A task that waits for its turn when its event loop is closed, and is never run again."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable, Iterator

import httpx2
import pytest
from support import answering, byte_enclave, keywords, ok

import enclavia


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # Python tells of a task that was pending when it was forgotten: that is the test.
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def here(work: Callable[[], None]) -> None:
    work()


def in_another_thread(work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("where", [here, in_another_thread])
@pytest.mark.parametrize("waits_for", ["the slot", "the connection"])
def test_its_turn_is_the_next_ones(where: Callable[..., None], waits_for: str) -> None:
    """The slot's holder gives it back as ever, and whoever comes next gets it."""
    body = bytes(4 << 20)  # so much that it is not there at once
    with byte_enclave(answering(ok(body), ok(b"fine"))) as (enclave, _):
        client = enclavia.AsyncClient(
            enclave.url,
            **keywords(enclave, max_in_flight=1, max_channels=1),
            timeout=httpx2.Timeout(60, pool=30),
        )
        closed, other = asyncio.new_event_loop(), asyncio.new_event_loop()
        kept: list[asyncio.Task[httpx2.Response]] = []

        async def wait_in_vain() -> None:
            kept.append(asyncio.ensure_future(client.get("/")))
            while client.stats.waiting == 0:
                await asyncio.sleep(0)

        async def hold() -> httpx2.Response:
            return await client.send(client.build_request("GET", "/"), stream=True)

        async def rest(response: httpx2.Response | None) -> None:
            if response is not None:
                assert await response.aread() == body
            for _ in range(3):
                assert (await client.get("/")).is_success
            assert client.stats.streams_active == client.stats.waiting == 0
            await client.aclose()

        def work() -> None:
            response = None
            if waits_for == "the slot":
                response = other.run_until_complete(hold())
            closed.run_until_complete(wait_in_vain())
            closed.close()
            other.run_until_complete(rest(response))
            other.close()

        if where is here:
            work()
        else:
            response = other.run_until_complete(hold()) if waits_for == "the slot" else None
            closed.run_until_complete(wait_in_vain())
            closed.close()
            where(lambda: other.run_until_complete(rest(response)))
            other.close()
        for task in kept:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
