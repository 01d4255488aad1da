"""What becomes of the package beside an httpx2 whose private parts are others."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from support import answering, byte_enclave, keywords, ok

import enclavia
from enclavia._client import httpx2_inside

pytestmark = pytest.mark.filterwarnings("ignore::enclavia.DebugModeWarning")

OTHERWISE = {
    "redirects": "del httpx2._client.BaseClient._redirect_url",
    "following": "del httpx2._client.BaseClient._build_redirect_request",
    "states": "del httpx2._client.ClientState",
}


def alone(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_no_client_can_do_without_is_asked_for_by_name(what: str) -> None:
    said = alone(f"import httpx2._client\n{OTHERWISE[what]}\nimport enclavia")
    assert said.returncode == 1
    last = said.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: enclavia expected an httpx2 whose client")
    assert "install a newer enclavia" in last


def test_a_client_without_what_is_needed_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx2_inside, "_NEEDED", ("_state", "_renamed"))
    for cls in (enclavia.Client, enclavia.AsyncClient):
        with pytest.raises(ImportError, match=r"a client of httpx2 to have _renamed, got .* 2\."):
            cls("wss://enclave.example", debug_mode=True)


def test_the_short_way_is_left_where_a_response_is_another() -> None:
    said = alone(
        "import httpx2\n"
        "read = httpx2.Response.read\n"
        "httpx2.Response.read = lambda self: (read(self), vars(self).pop('_content'))[0]\n"
        "from enclavia._client.httpx2_inside import SHORT_WAY_WORKS\n"
        "print(SHORT_WAY_WORKS)"
    )
    assert said.stdout == "False\n", said.stderr
    assert httpx2_inside.SHORT_WAY_WORKS is True


def test_without_the_short_way_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_of(client: Any) -> tuple[object, ...]:
        with client:
            answer = client.get("/")
        return answer.status_code, answer.content, answer.num_bytes_downloaded, answer.is_closed

    with byte_enclave(answering(*[ok(b"hello")] * 2)) as (enclave, _):
        shortly = answer_of(enclavia.Client(enclave.url, **keywords(enclave)))
        monkeypatch.setattr(httpx2_inside, "SHORT_WAY_WORKS", False)
        client = enclavia.Client(enclave.url, **keywords(enclave))
        assert not client._short_way
        assert answer_of(client) == shortly == (200, b"hello", 5, True)
