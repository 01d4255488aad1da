"""The same calls through ``enclavia.requests`` and through requests: what arrives at the workload,
what comes back and what is raised must be the same, call by call.

Each sequence of calls, and of changes to the session between them, is drawn from its number. It
runs through a session of requests that reaches the recording server directly, and through one of
ours that reaches it through an enclave. The short form runs the same sequences each time.
For others:

    ENCLAVIA_DIFFERENTIAL=500 ENCLAVIA_SEED=1000 python -m pytest \
        tests/python/differential/test_differential_adapters.py
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import ByteServer, byte_enclave, keywords
from test_differential import Recorder

from enclavia.testing import LocalEnclave

requests = pytest.importorskip("requests")

import enclavia.requests as over_requests  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LONG = os.environ.get("ENCLAVIA_DIFFERENTIAL")
SEQUENCES = int(LONG or 40)
SEED = int(os.environ.get("ENCLAVIA_SEED", "1"))
STEPS = 12

MISSING: Any = object()


class Fresh:
    """A value that is used up, made anew for each side."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name, self.make = name, make

    def __repr__(self) -> str:
        return self.name


def of(value: Any) -> Any:
    return value.make() if isinstance(value, Fresh) else value


class Side:
    """A session of one kind, and the authority under which it reaches the workload."""

    def __init__(self, session: Any, base: str, recorder: Recorder) -> None:
        self.session, self.base, self.recorder = session, base, recorder
        self.authority = base.split("/")[2]
        self.seen: list[object] = []

    def plain(self, value: Any) -> Any:
        """Without what must differ: scheme and authority, and what is drawn at random."""
        if isinstance(value, tuple | list):
            return [self.plain(each) for each in value]
        if isinstance(value, dict):
            return {self.plain(key): self.plain(each) for key, each in value.items()}
        if isinstance(value, str):
            return re.sub(rf"(https?://)?{re.escape(self.authority)}", "OWN", value)
        if isinstance(value, bytes):
            value = re.sub(rb"(https?://)?" + re.escape(self.authority.encode()), b"OWN", value)
            value = re.sub(rb"\b[0-9a-f]{32}\b", b"RANDOM", value)
            return re.sub(rb'(cnonce|response)="[0-9a-f]+"', b"RANDOM", value)
        return value


def compare(
    sides: tuple[Side, Side], step: str, call: Callable[[Side], Any], history: list[str]
) -> None:
    history.append(step)
    outcomes = []
    for side in sides:
        before = len(side.recorder.requests)
        side.seen.clear()
        side.recorder.own = side.authority
        outcome = call(side)
        arrived = side.plain(side.recorder.requests[before:])
        outcomes.append((arrived, side.plain(outcome), side.plain(list(side.seen))))
    theirs, ours = outcomes
    for name, a, b in zip(("arrived", "came back", "seen by hooks"), theirs, ours, strict=True):
        assert b == a, f"{name} differs after:\n" + "\n".join(history)


# ---------------------------------------------------------------------------------------------
# requests

PARAMS = (
    *[MISSING] * 8, None, {}, [], "", {"a": "1"}, [("a", "1"), ("a", "2")], "q=x y", {"n": None},
    {"e": ""}, {"l": ["1", "2"]}, {"tenant": "8"}, b"by=tes",
)  # fmt: skip
HEADERS = (
    *[MISSING] * 12, None, {}, {"X-A": "1"}, {"Accept": "b/c"}, {"Accept": None},
    {"X-Default": None}, {"Content-Type": "text/x"}, {"Connection": None}, {b"X-Bytes": b"1"},
    {"User-Agent": "me"},
    {"Cookie": "own=1"}, {"Authorization": "Bearer t"},  {"X-Bad": "a\nb"},
    {"X-Text": "\xe9"}, {"X-Number": 1}, {"Proxy-Authorization": "Bearer mine"},
    {"Accept-Encoding": "gzip"}, {"X-Empty": ""},
)  # fmt: skip
COOKIES = (*[MISSING] * 6, None, {}, {"c": "1"}, {"d": "2", "e": "3"})
AUTH = (
    *[MISSING] * 8, None, ("u", "p"), ("u", ""), requests.auth.HTTPBasicAuth("u", "p"),
    Fresh("HTTPDigestAuth", lambda: requests.auth.HTTPDigestAuth("u", "p")),
)  # fmt: skip
TIMEOUT = (MISSING, 10, 10.5, (9, 9), (None, 9), (9, None), (1, 2, 3), "soon", 0, -1)
FILES = {"f": ("n.txt", b"some", "text/plain")}
BODY = (
    *[{}] * 12, {"data": None}, {"data": b""}, {"data": b"data"}, {"data": "t\xe9xt"},
    {"data": {}}, {"data": {"k": "v w"}}, {"data": [("k", "1"), ("k", "2")]},
    {"data": b"x" * 70_000}, {"data": bytearray(b"array")},
    {"data": Fresh("pieces", lambda: iter([b"a", b"bc"]))},
    {"data": Fresh("no pieces", lambda: iter([]))},
    {"data": Fresh("a file", lambda: io.BytesIO(b"f" * 5000))},
    {"data": Fresh("an empty file", io.BytesIO)},
    {"json": {"a": 1}}, {"json": None}, {"json": []}, {"json": "\xe9"},
    {"data": {"k": "v"}, "json": {"a": 1}}, {"files": FILES}, {"files": {}},
    {"files": FILES, "data": {"k": "v"}}, {"json": {1, 2}},
)  # fmt: skip
METHODS = ("GET", "GET", "GET", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "get", "X-Y")
LOCATIONS = (
    "/echo?x=1", "echo", "http://{own}/echo", "//{own}/cookie", "?code=302&to=/empty",
    "ftp://{own}/echo", "/redirect?code=302&to=/redirect", "/a b", "", "/x#part", "https://[",
)  # fmt: skip
URLS = (
    *["rows?tenant=7"] * 3, "rows", "", "?q=1", "a b", "%20", "\xe9?\xe9=\xe9", "x#part", "rows?",
    "a/../b", "cookie", "cookie", "auth", "gzip", "latin", "empty", "failed", "unsized", "chunked",
    "l" * 300, "v1/cookie",
    *[f"redirect?code={code}&to={urllib.parse.quote(location)}"
      for code in (301, 302, 303, 307, 308) for location in LOCATIONS],
)  # fmt: skip


def drawn_call(draw: random.Random) -> tuple[str, str, dict[str, Any]]:
    options = {
        "params": draw.choice(PARAMS),
        "headers": draw.choice(HEADERS),
        "cookies": draw.choice(COOKIES),
        "auth": draw.choice(AUTH),
        "timeout": draw.choice([MISSING] * 12 + list(TIMEOUT)),
        "allow_redirects": draw.choice((MISSING, MISSING, True, False)),
        "stream": draw.choice((MISSING, MISSING, False, True)),
        **draw.choice(BODY),
    }
    # A few at a time: what is refused early hides the rest.
    kept = [name for name in options if options[name] is not MISSING and draw.random() < 0.6]
    return draw.choice(METHODS), draw.choice(URLS), {name: options[name] for name in kept}


def requests_call(
    method: str, path: str, options: dict[str, Any], hook: bool
) -> Callable[[Side], Any]:
    def call(side: Side) -> Any:
        given = {"timeout": 9, **{name: of(value) for name, value in options.items()}}
        if hook:
            given["hooks"] = {"response": lambda r, *_, **__: side.seen.append(r.status_code)}
        try:
            got = side.session.request(method, side.base + path, **given)
            pieces = list(got.iter_content(4)) if given.get("stream") else []
            outcome = (
                got.status_code, got.reason, got.url, got.encoding, list(got.headers.items()),
                b"".join(pieces) if pieces else got.content, got.ok, got.is_redirect,
                [(step.status_code, step.url) for step in got.history], dict(got.cookies),
                got.request.method, got.request.url, dict(got.links),
            )  # fmt: skip
        except Exception as error:
            outcome = (public(type(error)),)
        jar = sorted((c.name, c.value, c.path) for c in side.session.cookies)
        return (*outcome, jar)

    return call


def public(cls: type) -> str:
    return next(base.__name__ for base in cls.__mro__ if not base.__name__.startswith("_"))


def change(draw: random.Random) -> tuple[str, Callable[[Any], object]]:
    """Something set on the session itself."""
    return draw.choice([
        ("headers.update", lambda s: s.headers.update({"X-Default": "d"})),
        ("headers.pop", lambda s: s.headers.pop("X-Default", None)),
        ("params", lambda s: setattr(s, "params", {"p": "1"})),
        ("no params", lambda s: setattr(s, "params", {})),
        ("auth", lambda s: setattr(s, "auth", ("all", "calls"))),
        ("no auth", lambda s: setattr(s, "auth", None)),
        ("cookies.set", lambda s: s.cookies.set("own", "1", path="/")),
        ("cookies.clear", lambda s: s.cookies.clear()),
        ("max_redirects", lambda s: setattr(s, "max_redirects", 3)),
        ("stream", lambda s: setattr(s, "stream", not s.stream)),
    ])  # fmt: skip


@contextlib.contextmanager
def both() -> Iterator[tuple[ByteServer, Recorder, LocalEnclave]]:
    recorder = Recorder()
    with byte_enclave(recorder) as (enclave, server):
        yield server, recorder, enclave


@pytest.fixture(scope="module")
def reached() -> Iterator[tuple[ByteServer, Recorder, LocalEnclave]]:
    with both() as made:
        yield made


@pytest.mark.parametrize("number", range(SEED, SEED + SEQUENCES))
def test_requests(number: int, reached: tuple[ByteServer, Recorder, LocalEnclave]) -> None:
    server, recorder, enclave = reached
    draw = random.Random(number)
    with (
        requests.Session() as plain,
        over_requests.session(enclave.url, **keywords(enclave)) as ours,
    ):
        plain.trust_env = False
        sides = (
            Side(plain, f"http://{server.address}/", recorder),
            Side(ours, ours.base_url, recorder),
        )
        history: list[str] = []
        for _ in range(STEPS):
            if draw.random() < 0.2:
                name, apply = change(draw)
                history.append(f"session: {name}")
                for side in sides:
                    apply(side.session)
                continue
            method, path, options = drawn_call(draw)
            hook = draw.random() < 0.2
            step = f"{method} {path[:80]} {options!r:.200}{' hook' if hook else ''}"
            compare(sides, step, requests_call(method, path, options, hook), history)
