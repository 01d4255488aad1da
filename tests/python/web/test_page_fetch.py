"""What is fetched outside the tunnel in a browser: by its own fetch, which follows no redirect."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx2
import pytest
from fake_page import JsException, Uint8Array

from enclavia._io import fetching
from enclavia._io.fetching import Answer, Fetch

WANTED = Fetch(
    "https://backend.example/enclaves/1",
    (("Accept-Encoding", "identity"), ("Authorization", "Bearer secret")),
    most=1000,
    timeout=30.0,
    environment=True,
)


class Body:
    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def getReader(self) -> Body:
        return self

    async def read(self) -> Any:
        if not self.pieces:
            return SimpleNamespace(done=True)
        piece = self.pieces.pop(0)
        return SimpleNamespace(done=False, value=SimpleNamespace(to_bytes=lambda: piece))


class Page:
    """``answer``: what fetch() gives, or raises, or None where it never does."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.aborted = 0

    async def fetch(self, url: str, options: Any) -> Any:
        self.asked.append((url, options.data))
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def abort(self) -> None:
        self.aborted += 1


def fetched(monkeypatch: pytest.MonkeyPatch, page: Page, wanted: Fetch = WANTED) -> Answer:
    def to_js(value: Any, **_: Any) -> Any:
        return value if isinstance(value, Uint8Array) else SimpleNamespace(data=value)

    js, pyodide, ffi = ModuleType("js"), ModuleType("pyodide"), ModuleType("pyodide.ffi")
    controller = SimpleNamespace(signal="signal", abort=page.abort)
    vars(js).update(
        fetch=page.fetch,
        Object=SimpleNamespace(fromEntries=dict),
        AbortController=SimpleNamespace(new=lambda: controller),
    )
    vars(ffi).update(to_js=to_js, JsException=JsException)
    for name, module in {"js": js, "pyodide": pyodide, "pyodide.ffi": ffi}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(fetching, "_core", SimpleNamespace(WEB=True))
    try:
        return asyncio.run(fetching.fetch(wanted))
    finally:
        assert page.aborted == 1


def test_no_redirect_is_followed_and_no_cookie_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(SimpleNamespace(status=200, body=Body([b"a", b"b"])))
    assert fetched(monkeypatch, page) == Answer(200, b"ab", None, None)
    ((url, options),) = page.asked
    assert url == WANTED.url
    assert options["redirect"] == "error"
    assert options["credentials"] == "omit"
    assert options["cache"] == "no-store"
    assert options["headers"] == {"Authorization": "Bearer secret"}


def test_no_more_is_read_than_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    body = Body([b"x" * 400] * 100)
    answer = fetched(monkeypatch, Page(SimpleNamespace(status=200, body=body)))
    assert len(answer.body) == 1200
    assert len(body.pieces) == 97


@pytest.mark.parametrize("body", [None, Body([b"not for us"])])
def test_another_status_has_no_body(monkeypatch: pytest.MonkeyPatch, body: Body | None) -> None:
    answer = fetched(monkeypatch, Page(SimpleNamespace(status=404, body=body)))
    assert answer == Answer(404, b"", None, None)


def test_what_the_browser_refuses_is_a_connection_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = Page(JsException("TypeError: Failed to fetch"))
    with pytest.raises(httpx2.ConnectError, match="redirect") as caught:
        fetched(monkeypatch, page)
    assert "secret" not in str(caught.value)


def test_an_answer_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        fetched(monkeypatch, Page(None), WANTED._replace(timeout=0.01))
