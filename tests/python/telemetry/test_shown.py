"""How clients, their statistics and their attestations show themselves: with their state, and with
nothing that a peer has chosen as it is."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
from support import KINDS, Face, answering, byte_enclave, keywords, ok, with_client

import enclavia
from enclavia._text import age_of, table_of
from enclavia.testing import LocalEnclave


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_a_client(kind: str) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):

        async def case(face: Face) -> None:
            client = face.client
            url = enclave.url.rstrip("/")
            assert repr(client).startswith(f"<{type(client).__name__} {url}")
            assert repr(client).endswith(", not connected yet>")
            await face.get("/")
            assert repr(client).endswith(" s ago: nitro>")
            assert ", 1 channel, verified " in repr(client)
            assert repr(client._enclave).startswith(f"<{type(client._enclave).__name__} ")
            page = client._repr_html_()
            assert enclave.pcrs.pcr0.hex() in page
            assert "<th style='text-align:left'>matched pins</th>" in page
            assert f"<code>{client.stats.connects}</code>" in client.stats._repr_html_()
            enclave.drop_connections()
            await face.close()
            assert repr(client).endswith(", closed>")

        with_client(kind, enclave, case)


def test_what_is_not_proven_says_so() -> None:
    with LocalEnclave("127.0.0.1:9", mode="debug") as enclave:
        with pytest.warns(enclavia.DebugModeWarning):
            client = enclavia.Client(enclave.url, debug_mode=True)
        with client:
            assert "NOT PROVEN" in repr(client)
            assert "NOT PROVEN" in client._repr_html_()


def test_a_copy_and_a_forked_child_look_without_connecting() -> None:
    with (
        byte_enclave(answering(ok())) as (enclave, _),
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        other = copy.copy(client)
        assert "a copy" in repr(other)
        assert repr(other).endswith("not connected yet>")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, repr(client).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 10_000).decode().endswith("not connected yet>")
        os.close(read)
        os.close(write)
        assert enclave.stats()["connections_total"] == 1
        other.close()


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a&b", "'\"><img src=x>"])
def test_everything_in_a_table_is_escaped(text: str) -> None:
    for page in (table_of(text, []), table_of("t", [(text, "v")]), table_of("t", [("n", text)])):
        assert text not in page
        assert "<script" not in page
        assert "<img" not in page


def test_a_module_id_is_escaped() -> None:
    """It is the only text of a document that its maker chooses freely."""
    with (
        LocalEnclave("127.0.0.1:9") as enclave,
        enclavia.Client(enclave.url, **keywords(enclave)) as client,
    ):
        raw: Any = client._enclave._engine.known().verified.newest
        raw["module_id"] = "<script>alert(1)</script>"
        assert "<script" not in client._repr_html_()
        assert "&lt;script&gt;" in client._repr_html_()
        assert "<script" not in client.attestation._repr_html_()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-3, "0 s ago"), (0, "0 s ago"), (59.9, "59 s ago"), (60, "1 min ago"), (3599, "59 min ago"),
     (3600, "1 h ago"), (90_000, "1 d ago")],
)  # fmt: skip
def test_ages(seconds: float, expected: str) -> None:
    assert age_of(seconds) == expected
