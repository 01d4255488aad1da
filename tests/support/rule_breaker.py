"""A WebSocket peer that speaks the enclave's protocol and breaks one rule of it: what a client says
to it, before the peer is verified and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from enclave_peer import EnclavePeer, connect
from raw_server import (
    BINARY,
    CLOSE,
    PONG,
    Peer,
    RawServer,
)

import enclavia

SECRET = b"application bytes, only for a verified enclave"


ASK = {"type": "RequestAttestation"}


def refused(
    script: Callable[[EnclavePeer], None], *, asked: bool, timeout: float = 10.0, **options: Any
) -> enclavia.EnclaviaError:
    """What a client says that connects and would write SECRET at once. ``asked``: whether it got
    as far as RequestAttestation, which is all that may ever be sent."""
    enclaves: list[EnclavePeer] = []

    def run(peer: Peer) -> None:
        enclave = EnclavePeer(peer)
        enclaves.append(enclave)
        peer.upgrade()
        script(enclave)
        peer.finish()

    with RawServer(run) as server:
        with pytest.raises(enclavia.EnclaviaError) as caught:
            connect(server.url, timeout=timeout, **options).open_stream(SECRET)
        server.wait_done()
        peer = server.peer
    assert SECRET not in bytes(peer.received)
    data = [payload for opcode, payload in peer.messages if opcode == BINARY]
    assert len(data[0]) == 32, "the handshake's first message"
    # A record of RequestAttestation: 4 bytes of length, its CBOR, 16 of tag.
    expected = [32, 4 + len(cbor2.dumps(ASK)) + 16] if asked else [32]
    assert [len(payload) for payload in data] == expected
    assert {opcode for opcode, _ in peer.messages} <= {BINARY, CLOSE, PONG}
    return caught.value


def check(error: enclavia.EnclaviaError, kind: type[Exception], *fragments: str) -> None:
    assert type(error) is kind, repr(error)
    for fragment in fragments:
        assert fragment in str(error), str(error)


def opened(script: Callable[[EnclavePeer], None], **options: Any) -> Any:
    """A channel to an enclave that is verified first, and a server to close."""

    def run(peer: Peer) -> None:
        peer.upgrade()
        enclave = EnclavePeer(peer)
        enclave.open()
        script(enclave)
        peer.finish()

    server = RawServer(run)
    try:
        return server, connect(server.url, **options)
    except BaseException:
        server.close()
        raise


def failure_of(script: Callable[[EnclavePeer], None]) -> enclavia.EnclaviaError:
    """What a stream's reader says; the channel must be closed by it."""
    server, channel = opened(script)
    with server, channel:
        stream = channel.open_stream(b"go")
        with pytest.raises(enclavia.EnclaviaError) as caught:
            stream.readall()
        assert channel.closed
        with pytest.raises(type(caught.value)):
            channel.open_stream()
    return caught.value
