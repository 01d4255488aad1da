"""The same calls through httpx on ``enclavia.httpx``'s transports and through httpx itself: what
arrives at the workload, what comes back and what is raised must be the same, call by call.

The sequences of calls are those of test_differential.py, with httpx's classes for httpx2's. The
short form runs the same ones each time. More of them, beginning with another seed:

    ENCLAVIA_DIFFERENTIAL=2000 python -m pytest tests/python/differential/test_differential_httpx.py
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

import h11
import httpx2
import pytest
import test_differential as httpx2s
from support import ByteServer, keywords
from test_differential import Call, Change, Given, Made, Recorder, Side

from enclavia.testing import LocalEnclave

httpx = pytest.importorskip("httpx")

import enclavia.httpx as over_httpx  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LONG = os.environ.get("ENCLAVIA_DIFFERENTIAL")
SEQUENCES = int(LONG or 16)
SEED = int(os.environ.get("ENCLAVIA_SEED", "200000" if LONG else "1000"))

LEAKED = {h11.LocalProtocolError: httpx.LocalProtocolError}


class HttpxSide(Side):
    def plain(self, value: Any) -> Any:
        if isinstance(value, httpx.URL):
            value = str(value)
        if isinstance(value, bytes):
            value = re.sub(rb"(https?://)?" + re.escape(self.own.encode()), b"OWN", value)
        return super().plain(value)


def translated(value: Any) -> Any:
    """With httpx's classes for httpx2's."""
    match value:
        case Given():
            return Given(repr(value), lambda is_async: translated(value.make(is_async)))
        case httpx2.QueryParams():
            return httpx.QueryParams(value.multi_items())
        case httpx2.Cookies():
            return httpx.Cookies(dict(value))
        case httpx2.Timeout():
            return httpx.Timeout(**value.as_dict())
        case httpx2.URL():
            return httpx.URL(str(value))
        case httpx2.DigestAuth():
            return httpx.DigestAuth("u", "p")
        case httpx2.BasicAuth():
            return httpx.BasicAuth("u", "")
        case dict():
            return {name: translated(each) for name, each in value.items()}
    return value


def translated_step(step: Call | Change, side: Side) -> Call | Change:
    if isinstance(step, Change):
        return step
    url = translated(step.url)
    if isinstance(url, str):  # by http, which the transport takes too
        url = url.replace("{own}", f"http://{side.own}") if url.startswith("{own}") else url
    return dataclasses.replace(
        step, url=url, options=translated(step.options), sending=translated(step.sending)
    )


@contextlib.contextmanager
def four(enclave: LocalEnclave, server: ByteServer, made: Made) -> Iterator[list[Side]]:
    ours, direct = f"127.0.0.1:{enclave.port}", server.address
    made = dataclasses.replace(made, keywords=translated(made.keywords))
    with asyncio.Runner() as runner:
        sides: list[Side] = []
        for cls, transport, runs in (
            (httpx.Client, None, None),
            (httpx.Client, over_httpx.EnclaveTransport, None),
            (httpx.AsyncClient, None, runner),
            (httpx.AsyncClient, over_httpx.AsyncEnclaveTransport, runner),
        ):
            seen: list[object] = []
            options = {"timeout": 10.0, "trust_env": False, **made.options(seen, runs is not None)}
            base = f"http://{direct}/"
            if transport is not None:
                options["transport"] = transport(enclave.url, **keywords(enclave))
                base = options["transport"].base_url
            client = cls(base_url=base + made.base, **options)
            sides.append(HttpxSide(client, direct if transport is None else ours, seen, runs))
        try:
            yield sides
        finally:
            for side in sides:
                if side.runner is None:
                    side.client.close()
                else:
                    side.runner.run(side.client.aclose())


def difference(
    parties: tuple[LocalEnclave, ByteServer, Recorder], made: Made, steps: list[Call | Change]
) -> str:
    """The first one; "" where there is none."""
    enclave, server, recorder = parties
    with four(enclave, server, made) as sides:
        for step in steps:
            found = [_done(translated_step(step, side), side, recorder) for side in sides]
            for (expected, their_error), (got, our_error) in (found[:2], found[2:]):
                kind = LEAKED.get(type(their_error), type(their_error))
                if not isinstance(our_error, kind):
                    return f"{step!r}: httpx raised {their_error!r}, ours {our_error!r}"
                for name, value in expected.items():
                    if got.get(name) != value:
                        return f"{step!r}: {name}: httpx {value!r}, ours {got.get(name)!r}"
    return ""


def _done(
    step: Call | Change, side: Side, recorder: Recorder
) -> tuple[dict[str, Any], Exception | None]:
    if isinstance(step, Call):
        return httpx2s.outcome(side, recorder, step)
    try:
        step(side)
    except Exception as error:
        return {}, error
    return {}, None


def _has_coding(headers: Any) -> bool:
    return isinstance(headers, dict) and "Transfer-Encoding" in headers


def is_framed_twice(step: Call | Change) -> bool:
    """httpx adds Content-Length to a Transfer-Encoding of the caller's and sends both, which RFC
    9112, section 6.2, forbids. It is refused here: test_a_request_that_is_framed_twice."""
    if isinstance(step, Change) or not _has_coding(step.options["headers"]):
        return False
    return any(step.options.get(name) is not None for name in ("content", "data", "json", "files"))


def test_a_request_that_is_framed_twice(
    parties: tuple[LocalEnclave, ByteServer, Recorder],
) -> None:
    enclave, _, recorder = parties
    recorder.requests.clear()
    with (
        over_httpx.EnclaveTransport(enclave.url, **keywords(enclave)) as transport,
        httpx.Client(transport=transport, base_url=transport.base_url) as client,
        pytest.raises(httpx.LocalProtocolError, match="got both"),
    ):
        client.post("/", content=b"body", headers={"Transfer-Encoding": "chunked"})
    assert not recorder.requests


@pytest.mark.parametrize("part", range(4))
def test_calls(parties: tuple[LocalEnclave, ByteServer, Recorder], part: int) -> None:
    for seed in range(SEED + part, SEED + SEQUENCES, 4):
        made, steps = httpx2s.drawn(seed)
        steps = [step for step in steps if not is_framed_twice(step)]
        found = difference(parties, made, steps)
        shown = "\n".join(map(repr, [made, *steps]))
        assert not found, f"seed {seed}: {found}\n{shown}"
