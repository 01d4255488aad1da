"""The same calls through ``Client``, ``AsyncClient`` and httpx2's own clients: what arrives at the
workload, what comes back and what is raised must be the same, call by call.

Sequences of calls and of changes to the client between them are drawn from a seed. Each runs
through four clients against one server that records every byte of what arrived: httpx2's two reach
it directly, ours through an enclave. Of a sequence that fails, steps are left out while it still
fails; what remains is shown, with its seed.

The short form draws the same sequences each time. More of them, beginning with another seed:

    ENCLAVIA_DIFFERENTIAL=5000 python -m pytest tests/python/differential/test_differential.py

One of them again: ``ENCLAVIA_DIFFERENTIAL=1 ENCLAVIA_SEED=1234`` and the same command.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gzip
import os
import random
import re
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import h11
import httpx2
import pytest
from support import ByteServer, Connection, drive, keywords

import enclavia
from enclavia.testing import LocalEnclave

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LONG = os.environ.get("ENCLAVIA_DIFFERENTIAL")
SEQUENCES = int(LONG or 32)
SEED = int(os.environ.get("ENCLAVIA_SEED", "100000" if LONG else "1"))
STEPS = 12


# ---------------------------------------------------------------------------------------------
# The server


class Recorder:
    """Answers by the path it is asked for, and keeps what it was asked, byte by byte."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.own = ""
        """The authority under which the client that calls now knows it."""

    def __call__(self, connection: Connection) -> None:
        while True:
            head = connection.head()
            self.requests.append((head, _body(connection, head)))
            answer = _answer(head, self.own)
            connection.send(answer)
            if b"\r\nConnection: close" in answer or b"\r\nconnection: close" in head.lower():
                return


def _field(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"\r\n%b: ([^\r]*)\r\n" % name, head, re.IGNORECASE)
    return found and found[1]


def _body(connection: Connection, head: bytes) -> bytes:
    """As it is framed."""
    if _field(head, b"transfer-encoding") is None:
        return connection.read(int(_field(head, b"content-length") or 0))
    body = b""
    while True:
        size = connection.read_until(b"\r\n")
        body += size + connection.read(int(size, 16) + 2)
        if int(size, 16) == 0:
            return body


def _answer(head: bytes, own: str) -> bytes:
    method, target, _ = head.split(b"\r\n")[0].split(b" ")
    path, _, query = target.decode("latin-1").partition("?")
    path = path.removeprefix("/v1")
    asked = urllib.parse.parse_qs(query)
    if path == "/redirect":
        location = asked.get("to", ["/echo"])[0].replace("{own}", own)
        head = b"HTTP/1.1 %b Moved\r\nLocation: %b\r\nSet-Cookie: r=1\r\nContent-Length: 2\r\n\r\n"
        head %= asked.get("code", ["302"])[0].encode(), location.encode()
        return head if method == b"HEAD" else head + b"re"
    if path == "/auth" and _field(head, b"authorization") is None:
        return (
            b"HTTP/1.1 401 No\r\nWWW-Authenticate: Digest realm=a, qop=auth, nonce=00, opaque=b\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
    extra, body = b"", b"%b %b" % (method, path.encode("latin-1"))
    if path == "/cookie":
        extra = b"Set-Cookie: a=1\r\nSet-Cookie: b=2; Path=/v1\r\nSet-Cookie: gone=; Max-Age=0\r\n"
    elif path == "/gzip":
        extra, body = b"Content-Encoding: gzip\r\n", gzip.compress(body, mtime=0)
    elif path == "/latin":
        extra, body = b"Content-Type: text/plain; charset=latin-1\r\n", b"\xe9"
    elif path == "/empty":
        return b"HTTP/1.1 204 No Content\r\nX-Empty: yes\r\n\r\n"
    elif path == "/failed":
        return b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n"
    elif path == "/unsized":
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + (
            b"" if method == b"HEAD" else b"to the end"
        )
    elif path == "/chunked" and method != b"HEAD":
        return (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
        )
    if method == b"HEAD":
        return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (extra, len(body))
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (extra, len(body), body)


# ---------------------------------------------------------------------------------------------
# The clients


@dataclasses.dataclass
class Side:
    """One client, and what differs between two of them for no fault of theirs."""

    client: Any
    own: str
    seen: list[object]
    runner: asyncio.Runner | None

    @property
    def is_async(self) -> bool:
        return self.runner is not None

    def run(self, case: Callable[[], Any]) -> None:
        if self.runner is None:
            drive("sync", case)
        else:
            self.runner.run(case())

    async def value(self, result: Any) -> Any:
        return await result if self.is_async else result

    def plain(self, value: Any) -> Any:
        """Without what must differ: the authority under which the workload is reached, the scheme
        that goes with it, and what httpx2 draws at random (a multipart boundary, a digest)."""
        if isinstance(value, tuple | list):
            return [self.plain(each) for each in value]
        if isinstance(value, httpx2.URL):
            return self.plain(str(value))
        if isinstance(value, str):
            return re.sub(rf"(https?://)?{re.escape(self.own)}", "OWN", value)
        if isinstance(value, bytes):
            value = value.replace(self.own.encode(), b"OWN").replace(b"http://OWN", b"OWN")
            value = re.sub(rb"\b[0-9a-f]{32}\b", b"RANDOM", value)
            return re.sub(rb'(cnonce|response)="[0-9a-f]+"', b"RANDOM", value)
        return value


@contextlib.contextmanager
def four(enclave: LocalEnclave, server: ByteServer, made: Made) -> Iterator[list[Side]]:
    ours, direct = f"127.0.0.1:{enclave.port}", server.address
    with asyncio.Runner() as runner:
        sides = []
        for cls, url, runs in (
            (httpx2.Client, direct, None), (enclavia.Client, ours, None),
            (httpx2.AsyncClient, direct, runner), (enclavia.AsyncClient, ours, runner),
        ):  # fmt: skip
            seen: list[object] = []
            options = made.options(seen, runs is not None)
            if url is direct:
                options |= {"base_url": f"http://{direct}/{made.base}", "trust_env": False}
                client: Any = cls(timeout=10.0, **options)
            else:
                options |= {"base_url": made.base} if made.base else {}
                client = cls(enclave.url, **keywords(enclave, timeout=10.0, **options))
            sides.append(Side(client, url, seen, runs))
        try:
            yield sides
        finally:
            for side in sides:
                if side.runner is None:
                    side.client.close()
                else:
                    side.runner.run(side.client.aclose())


# ---------------------------------------------------------------------------------------------
# What is called


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()


class Given:
    """A value of an option, made anew for each client where it is used up or bound to one."""

    def __init__(self, text: str, make: Callable[[bool], Any]) -> None:
        self._text = text
        self.make = make

    def __repr__(self) -> str:
        return self._text


def _iterated(pieces: list[bytes], is_async: bool) -> Any:
    async def awaited() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return awaited() if is_async else iter(pieces)


def _signed(request: httpx2.Request) -> httpx2.Request:
    request.headers["X-Signed"] = "yes"
    return request


PARAMS = (
    *[MISSING] * 8,
    None,
    {},
    [],
    "",
    (),
    {"a": "1"},
    [("a", "1"), ("a", "2")],
    "q=x y",
    {"n": None},
    {"e": ""},
    {"l": ["1", "2"]},
    {"tenant": "8"},
    httpx2.QueryParams({"z": "9"}),
    httpx2.QueryParams(),
)
HEADERS = (
    *[MISSING] * 20, None, {}, {"X-A": "1"}, [("X-B", "1"), ("X-B", "2")], {"Accept": "b/c"},
    {"Host": "other.example"}, {"X-A": "1", "Host": "other.example"}, {"Content-Type": "text/x"},
    {"Connection": "close"}, {b"X-Bytes": b"\xe9"}, {"User-Agent": ""}, {"Cookie": "own=1"},
    {"Authorization": "Bearer t"}, {"Bad Name": "x"}, {"X-Bad": "a\nb"}, {"X-Text": "\u00e9"},
    {"Content-Length": "2"}, {"Transfer-Encoding": "chunked"}, {"Transfer-Encoding": "gzip"},
)  # fmt: skip
COOKIES = (*[MISSING] * 6, None, {}, {"c": "1"}, httpx2.Cookies({"d": "2"}))
AUTH = (
    *[MISSING] * 6, None, ("u", "p"), httpx2.BasicAuth("u", ""), _signed,
    Given("DigestAuth", lambda is_async: httpx2.DigestAuth("u", "p")),
)  # fmt: skip
TIMEOUT = (MISSING, MISSING, None, 10.0, (9, 9, 9, 9), httpx2.Timeout(10.0, read=9.0))
EXTENSIONS = (
    *[MISSING] * 6, None, {}, {"target": b"/other?t"}, {"unknown": 1},
    {"timeout": {"connect": 9.0, "read": 9.0, "write": 9.0, "pool": 9.0}},
)  # fmt: skip
FILES = {"f": ("n.txt", b"some", "text/plain")}
BODY = (
    *[{}] * 20, {"content": None}, {"content": b""}, {"content": b"data"}, {"content": "t\u00e9xt"},
    {"content": Given("iter", functools.partial(_iterated, [b"a", b"", b"bc"]))},
    {"content": Given("iter of nothing", functools.partial(_iterated, []))},
    {"content": b"x" * 70_000}, {"data": {"k": "v w"}}, {"data": {}}, {"data": {"k": ["1", "2"]}},
    {"json": {"a": 1}}, {"json": None}, {"json": []}, {"json": "\u00e9"}, {"files": FILES},
    {"files": FILES, "data": {"k": "v"}}, {"files": {}}, {"content": b"ab", "data": {"k": "v"}},
)  # fmt: skip
METHODS = ("GET", "GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "get", "QUERY", "X-Y", "A B")
LOCATIONS = [
    "/echo?x=1",
    "echo",
    "http://{own}/echo",
    "//{own}/cookie",
    "?code=302&to=/empty",
    "https://x:y/",
    "ftp://{own}/echo",
    "/redirect?code=302&to=/redirect",
    "/a b",
    "",
]
URLS = (
    "/rows?tenant=7",
    "/rows?tenant=7",
    "/rows?tenant=7",
    "/rows",
    "",
    "/",
    "rows",
    "?q=1",
    "/a b",
    "/%20",
    "/\u00e9?\u00e9=\u00e9",
    "/x#fragment",
    "/rows?",
    "/a/../b",
    "//",
    "/cookie",
    "/auth",
    "/gzip",
    "/latin",
    "/empty",
    "/failed",
    "/unsized",
    "/chunked",
    httpx2.URL("/rows?tenant=7"),
    "{own}/rows?tenant=7",
    "{own}",
    "/" + "l" * 300,
    "/a\nb",
    *["/redirect?code=307&to=http%3A//{own}/echo"] * 3,
    *[
        f"/redirect?code={code}&to={urllib.parse.quote(location)}"
        for code, location in zip([301, 302, 303, 307, 308] * 2, LOCATIONS, strict=True)
    ],
)


@dataclasses.dataclass
class Made:
    """What the clients are made with."""

    base: str
    keywords: dict[str, Any]
    hooks: bool

    def options(self, seen: list[object], is_async: bool) -> dict[str, Any]:
        options = {name: _made(value, is_async) for name, value in self.keywords.items()}
        options = {name: value for name, value in options.items() if value is not MISSING}
        if not self.hooks:
            return options

        def before(request: httpx2.Request) -> None:
            seen.append(request.method)
            request.headers["X-Hooked"] = str(len(seen))

        def after(response: httpx2.Response) -> None:
            seen.append(response.status_code)

        async def awaited_before(request: httpx2.Request) -> None:
            before(request)

        async def awaited_after(response: httpx2.Response) -> None:
            after(response)

        hooks = [awaited_before, awaited_after] if is_async else [before, after]
        return options | {"event_hooks": {"request": hooks[:1], "response": hooks[1:]}}


@dataclasses.dataclass
class Call:
    how: str
    method: str
    url: Any
    options: dict[str, Any]
    sending: dict[str, Any]


@dataclasses.dataclass
class Change:
    """Of the client, between two calls."""

    name: str
    value: Any

    def __call__(self, side: Side) -> None:
        value = self.value
        if self.name == "base_url":
            scheme = (
                "https"
                if isinstance(side.client, enclavia.Client | enclavia.AsyncClient)
                else "http"
            )
            value = f"{scheme}://{side.own}/{value}"
        if self.name == "header":
            side.client.headers["X-Changed"] = value
        elif self.name == "cookie":
            side.client.cookies.set("changed", value)
        else:
            setattr(side.client, self.name, _made(value, side.is_async))


def _made(value: Any, is_async: bool) -> Any:
    return value.make(is_async) if isinstance(value, Given) else value


def _call(draw: random.Random, methods: Sequence[str], urls: Sequence[Any]) -> Call:
    options = {
        "params": draw.choice(PARAMS), "headers": draw.choice(HEADERS),
        "cookies": draw.choice(COOKIES), "timeout": draw.choice(TIMEOUT),
        "extensions": draw.choice(EXTENSIONS),
    }  # fmt: skip
    return Call(
        how=draw.choice(("request", "request", "request", "stream", "send", "build")),
        method=draw.choice(methods),
        url=draw.choice(urls),
        options={**options, **draw.choice(BODY)},
        sending={
            "auth": draw.choice(AUTH),
            "follow_redirects": draw.choice((MISSING, MISSING, True, False)),
        },
    )


CHANGES: dict[str, tuple[Any, ...]] = {
    "base_url": ("", "v1", "v1/", "v1/rows?a=b"),
    "params": ({}, {"p": "1"}),
    "headers": ({}, {"X-C": "1"}),
    "cookies": ({}, {"cc": "1"}),
    "auth": (None, ("cu", "cp")),
    "follow_redirects": (True, False),
    "header": ("1", "2"),
    "cookie": ("1", "2"),
}


def drawn(seed: int) -> tuple[Made, list[Call | Change]]:
    """A client, and what is done with it: calls of few methods and URLs, so that they come again,
    and what one of them leaves behind in the client is seen by the next."""
    draw = random.Random(seed)
    made = Made(
        base=draw.choice(("", "", "", "v1", "v1/")),
        keywords={
            "params": draw.choice((MISSING, MISSING, MISSING, None, {}, {"cp": "1"})),
            "headers": draw.choice((MISSING, None, {"X-C": "1"})),
            "cookies": draw.choice((MISSING, MISSING, {"cc": "1"})),
            "auth": draw.choice((MISSING, MISSING, ("cu", "cp"))),
            "follow_redirects": draw.choice((MISSING, True)),
            "max_redirects": draw.choice((MISSING, 3)),
            "default_encoding": draw.choice((MISSING, "latin-1")),
        },
        hooks=draw.choice((False, False, True)),
    )
    methods, urls = draw.choices(METHODS, k=2), draw.choices(URLS, k=2)
    steps: list[Call | Change] = []
    for _ in range(STEPS):
        if draw.random() < 0.15:
            name = draw.choice(list(CHANGES))
            steps.append(Change(name, draw.choice(CHANGES[name])))
        else:
            steps.append(_call(draw, methods, urls))
    return made, steps


# ---------------------------------------------------------------------------------------------
# What comes of it

LEAKED: dict[type, type] = {
    h11.LocalProtocolError: httpx2.LocalProtocolError,
    UnicodeEncodeError: httpx2.LocalProtocolError,
}
"""What httpx2 lets pass of another library's, and the class of its own that is meant."""


def facts(side: Side, response: httpx2.Response) -> dict[str, Any]:
    following = response.next_request
    found = {
        "status": (response.status_code, response.reason_phrase, response.http_version),
        "headers": response.headers.raw,
        "content": response.content,
        "text": (response.text, response.encoding),
        "url": response.url,
        "history": [(each.status_code, each.url, each.headers.raw) for each in response.history],
        "next": following and (following.method, following.url, following.headers.raw),
        "cookies": sorted(response.cookies.items()),
        "request": (response.request.method, response.request.headers.raw),
        "closed": (response.is_closed, response.is_stream_consumed),
        "downloaded": response.num_bytes_downloaded,
        "timed": response.elapsed.total_seconds() > 0,
    }
    return {name: side.plain(value) for name, value in found.items()}


async def perform(side: Side, call: Call) -> dict[str, Any]:
    client = side.client
    url = call.url
    if isinstance(url, str) and url.startswith("{own}"):
        scheme = "http" if isinstance(client, httpx2.Client | httpx2.AsyncClient) else "https"
        if isinstance(client, enclavia.Client | enclavia.AsyncClient):
            scheme = "https"
        url = url.replace("{own}", f"{scheme}://{side.own}")
    options, sending = (
        {name: _made(value, side.is_async) for name, value in each.items() if value is not MISSING}
        for each in (call.options, call.sending)
    )
    if call.how == "request":
        response = await side.value(client.request(call.method, url, **options, **sending))
        return facts(side, response)
    if call.how == "stream":
        manager = client.stream(call.method, url, **options, **sending)
        response = await manager.__aenter__() if side.is_async else manager.__enter__()
        try:
            await side.value(response.aread() if side.is_async else response.read())
            return facts(side, response)
        finally:
            if side.is_async:
                await manager.__aexit__(None, None, None)
            else:
                manager.__exit__(None, None, None)
    request = client.build_request(call.method, url, **options)
    built = {"built": side.plain([request.method, request.url, request.headers.raw])}
    if call.how == "build":
        return built
    request.headers["X-Late"] = "1"
    response = await side.value(client.send(request, **sending))
    return built | facts(side, response)


def outcome(side: Side, recorder: Recorder, call: Call) -> tuple[dict[str, Any], Exception | None]:
    """What it did, and what it raised."""
    recorder.requests.clear()
    recorder.own = side.own
    got: dict[str, Any] = {}
    raised: Exception | None = None

    async def case() -> None:
        nonlocal raised
        try:
            got.update(await perform(side, call))
        except Exception as error:
            raised = error

    side.run(case)
    got["arrived"] = side.plain([list(each) for each in recorder.requests])
    got["jar"] = sorted((each.name, each.value, each.path) for each in side.client.cookies.jar)
    got["hooks"] = list(side.seen)
    return got, raised


def difference(
    parties: tuple[LocalEnclave, ByteServer, Recorder], made: Made, steps: list[Call | Change]
) -> str:
    """The first one; "" where there is none."""
    enclave, server, recorder = parties
    with four(enclave, server, made) as sides:
        for step in steps:
            if isinstance(step, Change):
                for side in sides:
                    step(side)
                continue
            for theirs, ours in (sides[:2], sides[2:]):
                expected, their_error = outcome(theirs, recorder, step)
                got, our_error = outcome(ours, recorder, step)
                kind = LEAKED.get(type(their_error), type(their_error))
                if not isinstance(our_error, kind):
                    return f"httpx2 raised {their_error!r}, {ours.client!r} {our_error!r}"
                for name, value in expected.items():
                    if got.get(name) != value:
                        return f"{name}: httpx2 {value!r}, {ours.client!r} {got.get(name)!r}"
    return ""


@pytest.mark.parametrize("part", range(4))
def test_calls(parties: tuple[LocalEnclave, ByteServer, Recorder], part: int) -> None:
    for seed in range(SEED + part, SEED + SEQUENCES, 4):
        made, steps = drawn(seed)
        found = difference(parties, made, steps)
        if not found:
            continue
        at = 0
        while at < len(steps):
            shorter = steps[:at] + steps[at + 1 :]
            without = difference(parties, made, shorter)
            if without:
                steps, found = shorter, without
            else:
                at += 1
        shown = "\n".join(map(repr, [made, *steps]))
        pytest.fail(f"seed {seed}: {found}\n{shown}", pytrace=False)
