"""Which request may be sent again."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any

import httpx2
import pytest

import enclavia
from enclavia._exchange.retry import IDEMPOTENT, Attempt, RetryPolicy

LOST = enclavia.ConnectionClosed("gone")


def attempt(method: str = "GET", **facts: Any) -> Attempt:
    values: dict[str, Any] = {"error": LOST, "sent": True, "answered": False, "replayable": True}
    return Attempt(request=httpx2.Request(method, "https://e/"), **{**values, **facts})


@pytest.mark.parametrize(
    "method",
    ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY"],
)
def test_idempotent_twice(method: str) -> None:
    policy = RetryPolicy()
    assert policy.again(attempt(method), 0, 0)
    assert policy.again(attempt(method), 1, 0)
    assert not policy.again(attempt(method), 2, 0)
    assert method in IDEMPOTENT


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "PURGE"])
def test_others_only_unsent(method: str) -> None:
    assert not RetryPolicy().again(attempt(method), 0, 0)
    assert RetryPolicy().again(attempt(method, sent=False), 0, 0)
    assert not RetryPolicy().again(attempt(method, sent=False), 0, 8)


@pytest.mark.parametrize(
    "facts",
    [
        {"answered": True},
        {"replayable": False},
        {"sent": False, "replayable": False},
        {"error": enclavia.ReadTimeout("late")},
        {"error": enclavia.WriteTimeout("late")},
        {"error": enclavia.PoolTimeout("late")},
        {"error": enclavia.ProtocolError("wrong")},
        {"error": enclavia.PcrMismatch("other")},
        {"error": enclavia.ConnectionClosed("final", retryable=False)},
        {"error": ValueError("a bug in a body iterator")},
    ],
    ids=str,
)
def test_never(facts: dict[str, Any]) -> None:
    assert not RetryPolicy().again(attempt(**facts), 0, 0)
    assert not RetryPolicy(lambda request, error: True).again(attempt("POST", **facts), 0, 0)


def test_the_workloads_connection_broke() -> None:
    error = enclavia.ServerError("reset by peer")
    assert RetryPolicy().again(attempt(error=error), 0, 0)
    assert not RetryPolicy().again(attempt("POST", error=error), 0, 0)
    assert not RetryPolicy().again(attempt(error=error, answered=True), 0, 0)


def test_off() -> None:
    assert not RetryPolicy(0).again(attempt(), 0, 0)
    assert not RetryPolicy(0).again(attempt(sent=False), 0, 0)


def test_number() -> None:
    assert RetryPolicy(5).again(attempt(), 4, 0)
    assert not RetryPolicy(5).again(attempt(), 5, 0)


@pytest.mark.parametrize("methods", [{"POST"}, ["post"], ("POST", "PATCH"), iter(["POST"])])
def test_more_methods(methods: Any) -> None:
    policy = RetryPolicy(methods)
    assert policy.again(attempt("POST"), 1, 0)
    assert not policy.again(attempt("POST"), 2, 0)
    assert policy.again(attempt("GET"), 0, 0)
    assert not policy.again(attempt("LOCK"), 0, 0)


def test_callable() -> None:
    seen = []

    def decide(request: httpx2.Request, error: Exception) -> bool:
        seen.append((request.method, error))
        return "idempotency-key" in request.headers

    policy = RetryPolicy(decide)
    assert not policy.again(attempt("POST"), 0, 0)
    keyed = attempt("POST")
    keyed.request.headers["Idempotency-Key"] = "1"
    assert policy.again(keyed, 1, 0)
    assert not policy.again(keyed, 2, 0)
    assert policy.again(attempt("GET"), 0, 0)
    assert seen == [("POST", LOST)] * 2


def test_a_decision_that_is_to_be_awaited_is_none() -> None:
    """It is true, whatever it would be: what must not be repeated would be."""

    async def later() -> bool:
        return False

    future: concurrent.futures.Future[bool] = concurrent.futures.Future()
    loop = asyncio.new_event_loop()
    try:
        for decide in (lambda *_: later(), lambda *_: asyncio.wrap_future(future, loop=loop)):
            with pytest.raises(TypeError, match=r"retries: expected .* returned an awaitable"):
                RetryPolicy(decide).again(attempt("POST"), 0, 0)  # type: ignore[arg-type]
            assert RetryPolicy(decide).again(attempt("GET"), 0, 0)  # type: ignore[arg-type]
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("retries", "error"),
    [(-1, ValueError), (True, TypeError), ("POST", TypeError), (1.5, TypeError)],
)
def test_refused(retries: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        RetryPolicy(retries)
