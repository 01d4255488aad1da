"""The package in headless Chromium: Pyodide from the npm package, wheels and page from loopback,
and a local enclave on loopback whose URL the page's policy allows.

``ENCLAVIA_CHROMIUM`` names the browser, ``ENCLAVIA_PYODIDE`` the version of Pyodide.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import served
from page_app import PageApp, digest_of, facts_of

from enclavia.testing import LocalEnclave

playwright = pytest.importorskip("playwright.sync_api", reason="pip install --group browser")

CHROMIUM = os.environ.get("ENCLAVIA_CHROMIUM") or shutil.which("chromium") or "chromium"
SIZE = 50_000_000
PATIENCE_MS = 240_000
WHERE = ["window", "worker"]


class Tab:
    """A page in which Pyodide has loaded the package."""

    def __init__(self, page: Any, app: PageApp, enclave: LocalEnclave) -> None:
        self.page = page
        self.app = app
        self.enclave = enclave
        self._frames: list[int] = []
        self.said: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("websocket", self._count)
        page.on("console", lambda message: self.said.append(message.text))

    def _count(self, socket: Any) -> None:
        frames = self._frames  # of the scenario that opened it, also where it is told late
        socket.on("framesent", lambda frame: frames.append(len(frame)))

    @property
    def sent(self) -> int:
        """Bytes of WebSocket messages of the last scenario in the window."""
        return sum(self._frames)

    def open(self, address: str) -> None:
        self.page.goto(f"{address}/page.html")
        self.page.wait_for_selector("#state[data-over]")
        assert self.page.text_content("#state") == "ready", self.said

    def run(self, scenario: str, where: str = "window", **facts: Any) -> dict[str, Any]:
        self.app.requests.clear()
        self._frames = []
        call = "run" if where == "window" else "work"
        told = facts_of(self.enclave, size=SIZE) | facts
        report: dict[str, Any] = self.page.evaluate(
            f"([name, enclave]) => {call}(name, enclave)", [scenario, told]
        )
        self.said.append(str(report.pop("traceback", "")))
        return report

    def result(self, scenario: str, where: str = "window", **facts: Any) -> Any:
        report = self.run(scenario, where, **facts)
        assert "result" in report, self.said[-1]
        return report["result"]


@pytest.fixture(scope="module")
def app() -> PageApp:
    return PageApp()


@pytest.fixture(scope="module")
def enclave(app: PageApp) -> Iterator[LocalEnclave]:
    with LocalEnclave(app) as enclave:
        app.enclave = enclave
        yield enclave


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    served.laid_out(folder, served.own_wheel())
    return folder


@pytest.fixture(scope="module")
def tab(folder: Path, browser: Any, app: PageApp, enclave: LocalEnclave) -> Iterator[Tab]:
    with served.serving(folder) as address:
        tab = Tab(browser.new_page(), app, enclave)
        tab.open(address)
        yield tab
        tab.page.close()


@pytest.mark.parametrize("where", WHERE)
def test_a_production_enclave_is_verified_in_a_tab(tab: Tab, where: str) -> None:
    assert tab.result("verified", where) == {
        "status": 200,
        "text": "hello",
        "form": "nitro",
        "pcr0": tab.enclave.pcrs.as_tuple()[0].hex(),
        "valid": True,
    }


@pytest.mark.parametrize("where", WHERE)
def test_wrong_pins_are_refused_and_nothing_is_sent(tab: Tab, where: str) -> None:
    report = tab.run("wrong_pins", where)
    assert report["error"][0] == "PcrMismatch"
    assert tab.app.requests == []
    # A key of 32 bytes, and the request for the document.
    assert tab.sent < 100


def test_fifty_megabytes_go_each_way(tab: Tab) -> None:
    result = tab.result("bytes_each_way")
    assert result.pop("down") == digest_of(SIZE)
    assert result.pop("up") is True
    print(result)  # MB/s and ms, for docs/benchmarks.md


def test_a_file_of_fifty_megabytes_is_downloaded_with_its_progress(tab: Tab) -> None:
    result = tab.result("downloaded")
    assert result == {"sha256": digest_of(SIZE), "steps": True, "last": SIZE, "sorted": True}


@pytest.mark.parametrize("where", WHERE)
def test_the_blocking_client_waits_by_jspi(tab: Tab, where: str) -> None:
    assert tab.result("blocking", where) == {
        "texts": ["hello"] * 3,
        "size": 3_000_000,
        "posted": True,
        "timeout": "ReadTimeout",
        "stream": 1_000_000,
    }


def test_blocking_code_that_javascript_did_not_let_wait_says_so(tab: Tab) -> None:
    said = tab.page.evaluate(
        """enclave => { globalThis.facts = JSON.stringify(enclave); return pyodide.runPython(`
import json, js, scenarios
json.dumps(scenarios.blocking(json.loads(js.facts)))`); }""",
        facts_of(tab.enclave),
    )
    assert "StateError" in said
    assert "AsyncClient" in said


def test_what_a_browser_cannot_do_is_refused_by_name(tab: Tab) -> None:
    said = tab.result("refused")
    for name in ("upgrade_headers", "verify", "proxy", "keepalive", "via"):
        assert said[name][0] == "ValueError"
        assert said[name][1].startswith(f"{name}: expected none in a browser")
    assert said["Forwarder"][0] == "StateError"
    assert tab.sent == 0


def test_many_requests_share_one_channel(tab: Tab) -> None:
    assert tab.result("many_at_once") == {"right": True, "channels": 1}


def test_the_rest_of_what_is_promised(tab: Tab) -> None:
    assert tab.result("channel") == {
        "stream": True,
        "request": True,
        "fresh": "nitro",
        "receipts": 2,
    }
    assert tab.result("timed_out")[::2] == ["ReadTimeout", "hello"]
    assert tab.result("cancelled") == ["CancelledError", "hello", "CancelledError"]
    assert tab.result("reconnects") == {"text": "hello", "reconnects": 1}
    assert tab.result("unread", most=1_000_000)[0] == "ConnectionClosed"


def test_a_policy_that_forbids_the_address_is_named_in_the_error(
    folder: Path, browser: Any, app: PageApp, enclave: LocalEnclave
) -> None:
    policy = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'"
    with served.serving(folder, policy) as address:
        tab = Tab(browser.new_page(), app, enclave)
        tab.open(address)
        kind, text = tab.run("verified", patience=0)["error"]
        tab.page.close()
    assert kind == "ConnectError"
    assert "Content-Security-Policy" in text
    assert app.requests == []
