"""Upgrade answers that went through a shredder: libwebsockets parses them, so they are fed to the
whole client. Seeded by hypothesis; ENCL_FUZZ_UPGRADES says how many (default 150)."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_server import Peer, RawServer, accept_value, header

import enclavia

RIGHT = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n\r\n"
)
REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Type: text/html\r\n"
    b"Content-Length: 12\r\nSet-Cookie: a=b; Path=/\r\n\r\n<p>later</p>"
)
PIECES = (
    b"\r\n",
    b"\0",
    b"HTTP/1.1 ",
    b"Transfer-Encoding: chunked\r\n",
    b"a" * 5000,
    b"\xff\xfe",
    b":",
)

edits = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 300), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, 300), st.integers(1, 40)),
        st.tuples(st.just("put"), st.integers(0, 300), st.sampled_from(range(len(PIECES)))),
        st.tuples(st.just("end"), st.integers(0, 300), st.just(0)),
    ),
    min_size=1,
    max_size=4,
)


def shred(answer: bytes, steps: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(answer)
    for kind, where, what in steps:
        at = where % (len(data) + 1)
        if kind == "flip" and at < len(data):
            data[at] ^= what
        elif kind == "cut":
            del data[at : at + what]
        elif kind == "put":
            data[at:at] = PIECES[what]
        elif kind == "end":
            del data[at:]
    return bytes(data)


@settings(
    max_examples=int(os.environ.get("ENCL_FUZZ_UPGRADES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(right=st.booleans(), steps=edits, split=st.integers(0, 300))
def test_any_answer_ends_in_a_typed_error(
    right: bool, steps: list[tuple[str, int, int]], split: int
) -> None:
    def script(peer: Peer) -> None:
        key = header(peer.read_head(), b"Sec-WebSocket-Key")
        answer = shred(RIGHT % accept_value(key) if right else REFUSED, steps)
        peer.send(answer[:split])
        peer.send(answer[split:])

    with RawServer(script) as server, pytest.raises(enclavia.EnclaviaError) as caught:
        enclavia.Channel.connect(server.url, debug_mode=True, timeout=5)
    # Closed by the server, so never left to the deadline.
    assert not isinstance(caught.value, enclavia.ConnectTimeout)
