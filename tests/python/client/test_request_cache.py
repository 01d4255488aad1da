"""What a client keeps of the requests that it built, so that it need not build them again."""

from __future__ import annotations

import gc
import http.cookiejar
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from enclavia import AsyncClient, Client, Pcrs
from enclavia._client.httpx2_inside import _kept_fields, _raw_fields
from enclavia._client.request_cache import HeaderFields, RequestCache

PINS = Pcrs(pcr0="11" * 48, pcr1="22" * 48, pcr2="33" * 48)
URL = "wss://enclave.example"


def built_by(client: Client, build: Any, path: str = "/") -> httpx2.Request:
    """As the client builds one; ``build`` is called in place of what httpx2 does."""
    request = client._request_cache.build(client, client._has_cookies, build, "GET", path, {})
    assert isinstance(request, httpx2.Request)
    return request


@pytest.mark.parametrize("how", ["content", "data", "files", "json"])
def test_no_body_is_kept(how: str) -> None:
    body: Any = {"content": b"x" * 1000, "json": {"a": 1}}.get(how, {"a": b"x" * 1000})
    client = Client(URL, pcrs=PINS)
    request = client.build_request("POST", "/", **{how: body})
    stream = weakref.ref(request.stream)
    del request
    gc.collect()
    assert stream() is None


@pytest.mark.parametrize("options", [{"content": b"x"}, {}])
def test_no_header_of_one_request_is_kept(options: dict[str, Any]) -> None:
    client = Client(URL, pcrs=PINS)
    client.build_request("POST", "/", headers={"Authorization": "secret"}, **options)
    client.build_request("POST", "/", cookies={"session": "secret"}, **options)
    (known,) = client._request_cache._of[1].values()
    assert "secret" not in str(known.headers.raw)
    assert not known.fields
    plain = client.build_request("POST", "/").headers
    assert "authorization" not in plain
    assert "cookie" not in plain


def test_headers_that_change_while_a_request_is_built() -> None:
    """By another thread. What is built afterwards has the newer ones."""
    client = Client(URL, pcrs=PINS, headers={"Authorization": "old"})

    def build(method: str, url: Any, **options: Any) -> httpx2.Request:
        request = httpx2.Client.build_request(client, method, url, **options)
        client.headers["Authorization"] = "new"
        return request

    assert built_by(client, build).headers["authorization"] == "old"
    for _ in range(2):
        assert client.build_request("GET", "/").headers["authorization"] == "new"


def test_a_cookie_that_arrives_while_a_request_is_built() -> None:
    """By another thread's answer. Once it is taken away, nothing carries it."""
    client = Client(URL, pcrs=PINS)

    def build(method: str, url: Any, **options: Any) -> httpx2.Request:
        client.cookies.set("session", "secret")
        return httpx2.Client.build_request(client, method, url, **options)

    assert built_by(client, build).headers["cookie"] == "session=secret"
    client.cookies.clear()
    for _ in range(2):
        assert "cookie" not in client.build_request("GET", "/").headers


class JarElsewhere(http.cookiejar.CookieJar):
    """Has its cookies in a place of its own, and nothing where CookieJar has them."""

    def __init__(self, cookies: list[http.cookiejar.Cookie]) -> None:
        super().__init__()
        self.elsewhere = cookies

    def __iter__(self) -> Iterator[http.cookiejar.Cookie]:
        return iter(self.elsewhere)


def test_a_jar_of_another_kind_is_asked_for_its_cookies() -> None:
    cookies = httpx2.Cookies({"session": "secret"})
    client = Client(URL, pcrs=PINS)
    assert not client._has_cookies
    client.cookies = JarElsewhere(list(cookies.jar))
    assert client._has_cookies
    client.cookies = cookies
    assert client._has_cookies
    client.cookies.clear()
    assert not client._has_cookies


def test_what_is_changed_of_one_request_is_not_in_the_next() -> None:
    client = Client(URL, pcrs=PINS)
    for _ in range(3):
        request = client.build_request("GET", "/a")
        assert request.method == "GET"
        assert request.url.path == "/a"
        assert request.content == b""
        assert "x" not in request.headers
        assert request.extensions == {"timeout": client.timeout.as_dict()}
        request.headers["x"] = "y"
        request.method = "PUT"
        request.url = httpx2.URL("https://other.example/b")
        request.extensions["timeout"]["read"] = 1
        request.extensions["x"] = "y"
        request.stream = httpx2.ByteStream(b"x")
        request._content = b"x"


# -- whatever was built before, a request is what httpx2 makes of it ---------------------------

PATHS = ("/a", "a", "/a?x=1", "/a#f", "", "/a?", "https://enclave.example/a",
         "/%20 ü", "https://u:p@enclave.example/")  # fmt: skip
METHODS = ("GET", "get", "POST", "DELETE", "HEAD")
OPTIONS: dict[str, tuple[Any, ...]] = {
    "headers": (None, {"X-B": "1"}),
    "cookies": (None, {"c": "d"}),
    "params": (None, {}, {"p": "1"}),
    "content": (None, b"", b"x"),
    "json": (None, {}, 0),
    "data": (None, {}, {"a": "b"}),
    "timeout": (None, 5, httpx2.USE_CLIENT_DEFAULT, httpx2.Timeout(9)),
    "extensions": (None, {}, {"x": 1}, {"timeout": {"read": 1}}, {"target": b"/q"}),
    "unknown": (1,),
}
CHANGES: tuple[Callable[[Any], object], ...] = (
    lambda client: client.headers.update({"X-A": "1"}),
    lambda client: client.headers.update({"X-A": "2"}),
    lambda client: client.headers.pop("X-A", None),
    lambda client: setattr(client, "headers", {"accept-Encoding": "x"}),
    lambda client: client.cookies.set("a", "b"),
    lambda client: client.cookies.clear(),
    lambda client: setattr(client, "params", {"q": "1"}),
    lambda client: setattr(client, "params", {}),
    lambda client: setattr(client, "timeout", 1),
    lambda client: setattr(client, "timeout", httpx2.Timeout(3, connect=1)),
    lambda client: setattr(client, "base_url", "https://enclave.example/v1"),
    lambda client: setattr(client, "base_url", "https://enclave.example"),
)


def outcome(client: Any, method: str, url: str, options: dict[str, Any]) -> tuple[object, ...]:
    """All that a request says, which is changed then, as its owner may."""
    try:
        request = client.build_request(method, url, **options)
    except TypeError:
        return ("TypeError",)
    said = (request.method, str(request.url), request.headers.raw, request.read(),
            dict(request.extensions), type(request))  # fmt: skip
    request.headers["x-changed"] = "1"
    request.extensions["changed"] = 1
    request.url = httpx2.URL("https://changed.example/")
    return said


@pytest.mark.parametrize(
    ("kind", "fields_of"),
    [(Client, _kept_fields), (AsyncClient, _kept_fields), (Client, _raw_fields)],
    ids=["sync", "async", "sync, an httpx2 whose headers keep their fields elsewhere"],
)
def test_what_is_built_is_what_httpx2_builds(
    kind: type[Client] | type[AsyncClient], fields_of: Callable[[httpx2.Headers], HeaderFields]
) -> None:
    plain = httpx2.Client if kind is Client else httpx2.AsyncClient
    for seed in range(25 if fields_of is _kept_fields else 6):
        chance = random.Random(seed)
        ours = kind(URL, pcrs=PINS)
        ours._request_cache = RequestCache(fields_of)
        theirs = plain(base_url=ours.base_url, headers=ours.headers, timeout=ours.timeout)
        theirs.headers = ours.headers.copy()
        for _ in range(50):
            if chance.random() < 0.3:
                change = chance.choice(CHANGES)
                change(ours)
                change(theirs)
            names = chance.sample(sorted(OPTIONS), chance.choice((0, 0, 1, 1, 2)))
            asked = (
                chance.choice(METHODS),
                chance.choice(PATHS),
                {name: chance.choice(OPTIONS[name]) for name in names},
            )
            for _ in range(3):
                assert outcome(ours, *asked) == outcome(theirs, *asked), (seed, asked)
