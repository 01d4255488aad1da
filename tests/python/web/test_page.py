"""The whole package as a browser's page runs it, in a process without a browser: the core that is
built for pages, and a WebSocket as JavaScript has it. Chromium runs the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_app import PageApp, digest_of, facts_of
from repository import ROOT
from support import HANG
from web_core import built

from enclavia.testing import Fault, LocalEnclave

CHILD = ROOT / "tests" / "support" / "page_child.py"
SIZE = 4_000_000


class Page:
    """Scenarios of tests/support/scenarios.py, in another process."""

    def __init__(self, child: subprocess.Popen[str], app: PageApp, enclave: LocalEnclave) -> None:
        self._child = child
        self.app = app
        self.enclave = enclave

    def run(self, scenario: str, **facts: Any) -> dict[str, Any]:
        self.app.requests.clear()
        self.enclave.set_faults(facts.pop("faults", Fault(0)))
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        asked = [scenario, facts_of(self.enclave, size=SIZE) | facts]
        self._child.stdin.write(json.dumps(asked) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, "the process of the page has ended"
        report: dict[str, Any] = json.loads(answer)
        assert report["proxies"] == 0, "JavaScript was left with functions that nobody destroys"
        return report


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    app = PageApp()
    command = [sys.executable, str(CHILD), str(built())]
    with (
        LocalEnclave(app) as enclave,
        subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
    ):
        app.enclave = enclave
        yield Page(child, app, enclave)
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(HANG) == 0


def test_an_enclave_is_verified_and_answers(page: Page) -> None:
    report = page.run("verified")
    assert report["result"] == {
        "status": 200,
        "text": "hello",
        "form": "nitro",
        "pcr0": page.enclave.pcrs.as_tuple()[0].hex(),
        "valid": True,
    }
    assert report["sockets"] == 1


def test_with_wrong_pins_nothing_is_sent_but_the_handshake(page: Page) -> None:
    right, wrong = page.run("verified"), page.run("wrong_pins")
    assert wrong["error"][0] == "PcrMismatch"
    assert page.app.requests == []
    # A key of 32 bytes, and the request for the document.
    assert wrong["sent"] < 100 < right["sent"]


@pytest.mark.parametrize("fault", [Fault.WRONG_NONCE, Fault.BAD_SIGNATURE, Fault.ZERO_KEY])
def test_an_enclave_that_cheats_gets_no_request(page: Page, fault: Fault) -> None:
    report = page.run("verified", faults=fault)
    assert report["error"][0] in ("NonceMismatch", "SignatureError", "ProtocolError")
    assert page.app.requests == []


def test_what_a_browser_cannot_do_is_refused_by_name_and_no_socket_is_opened(page: Page) -> None:
    report = page.run("refused")
    said = report["result"]
    for name in ("upgrade_headers", "verify", "proxy", "keepalive", "via"):
        kind, text = said[name]
        assert kind == "ValueError"
        assert text.startswith(f"{name}: expected none in a browser")
        assert "a secret" not in text
    assert said["Forwarder"][0] == "StateError"
    assert report["sockets"] == 0


def test_many_requests_share_one_channel(page: Page) -> None:
    assert page.run("many_at_once")["result"] == {"right": True, "channels": 1}


def test_bytes_go_each_way_whole(page: Page) -> None:
    report = page.run("bytes_each_way")
    assert report["result"]["down"] == digest_of(SIZE)
    assert report["result"]["up"] is True


def test_no_more_than_a_part_waits_in_a_browser_that_sends_slowly(page: Page) -> None:
    report = page.run("bytes_each_way", size=2_000_000, slow=0.001)
    assert report["result"]["up"] is True
    # What it may have taken, and one more message.
    assert report["most_buffered"] < 512 * 1024 + 256 * 1024


def test_a_file_is_downloaded_with_its_progress(page: Page, tmp_path: Path) -> None:
    result = page.run("downloaded", folder=str(tmp_path))["result"]
    assert result == {"sha256": digest_of(SIZE), "steps": True, "last": SIZE, "sorted": True}


def test_a_request_without_an_answer_times_out_and_the_channel_stays(page: Page) -> None:
    kind, _, after = page.run("timed_out")["result"]
    assert (kind, after) == ("ReadTimeout", "hello")


def test_a_cancelled_task_ends_and_leaves_nothing(page: Page) -> None:
    assert page.run("cancelled")["result"] == ["CancelledError", "hello", "CancelledError"]


def test_a_connection_that_ended_is_replaced_by_a_verified_one(page: Page) -> None:
    report = page.run("reconnects")
    assert report["result"] == {"text": "hello", "reconnects": 1}
    assert report["sockets"] == 2


def test_a_browser_that_opens_no_socket_says_what_to_look_at(page: Page) -> None:
    kind, text, retryable = page.run("nobody_there")["result"]
    assert kind == "ConnectError"
    assert "Content-Security-Policy" in text
    assert retryable


def test_a_policy_that_forbids_the_address_is_an_error_at_once(page: Page) -> None:
    report = page.run("verified", url="ws://forbidden.example", patience=0)
    assert report["error"][0] == "ConnectError"
    assert report["sockets"] == 1


def test_a_browser_that_refuses_an_address_is_asked_once(page: Page) -> None:
    report = page.run("verified", url="ws://insecure.example")
    assert report["error"][0] == "ConnectError"
    assert "SecurityError" in report["error"][1]
    assert report["sockets"] == 0


def test_a_channel_has_streams_one_shots_and_fresh_documents(page: Page) -> None:
    assert page.run("channel")["result"] == {
        "stream": True,
        "request": True,
        "fresh": "nitro",
        "receipts": 2,
    }


def test_text_instead_of_records_is_no_protocol(page: Page) -> None:
    report = page.run("verified", faults=Fault.TEXT_ONLY, timeout=0.5)
    assert report["error"][0] == "ConnectTimeout"
    assert page.app.requests == []


def test_what_nobody_reads_is_bounded(page: Page) -> None:
    report = page.run("unread", most=1_000_000)
    kind, text = report["result"]
    assert kind == "ConnectionClosed"
    assert "more than 1000000 bytes were received and not read" in text


def test_blocking_code_waits_where_the_runtime_can_set_its_stack_aside(page: Page) -> None:
    assert page.run("blocking", switching=True)["result"] == {
        "texts": ["hello"] * 3,
        "size": 3_000_000,
        "posted": True,
        "timeout": "ReadTimeout",
        "stream": 1_000_000,
    }


def test_blocking_code_says_what_it_needs_where_the_runtime_cannot(page: Page) -> None:
    report = page.run("blocking")
    kind, text = report["result"]["error"]
    assert kind == "StateError"
    assert "AsyncClient" in text
    assert report["sockets"] == 0
