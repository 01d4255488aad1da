"""A verified peer that breaks a rule of the messages of an open channel."""

from __future__ import annotations

from typing import Any

import pytest
from enclave_peer import EnclavePeer
from rule_breaker import check, failure_of, opened
from support import eventually

import enclavia

pytestmark = pytest.mark.usefixtures("warm", "nothing_left")


def test_an_attestation_nobody_asked_for() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send_bytes(enclave.attestation())

    error = failure_of(script)
    check(error, enclavia.ProtocolError, "expected an Attestation only where it was asked for")
    assert not error.retryable


@pytest.mark.parametrize("issued", [0, 2, 64, 2**32, 2**64 - 1])
@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "Data", "payload": b"x"},
        {"kind": "StreamData", "payload": b"x"},
        {"kind": "StreamClose"},
        {"kind": "Error", "message": "you broke it"},
    ],
    ids=lambda fields: str(fields["kind"]),
)
def test_an_id_that_was_never_issued(fields: dict[str, Any], issued: int) -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send(**fields, id=issued)

    error = failure_of(script)
    check(error, enclavia.ProtocolError, "expected an id between 1 and 1", f"for id {issued}")
    if fields["kind"] == "Error":
        assert "you broke it" in str(error)
    assert not error.retryable


def test_more_after_stream_close() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("StreamClose", id=1)
        enclave.send("StreamData", id=1, payload=b"x")

    server, channel = opened(script)
    with server, channel:
        stream = channel.open_stream(b"go")
        assert stream.readall() == b"", "the stream itself had ended"
        eventually(lambda: channel.closed)
        with pytest.raises(enclavia.ProtocolError, match="after its StreamClose"):
            channel.open_stream()


def test_stream_close_twice() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("StreamClose", id=1)
        enclave.send("StreamClose", id=1)

    server, channel = opened(script)
    with server, channel:
        stream = channel.open_stream(b"go")
        assert stream.readall() == b""
        eventually(lambda: channel.closed)
        with pytest.raises(enclavia.ProtocolError, match="after its StreamClose"):
            channel.open_stream()


def test_one_shot_answers_for_a_stream_and_the_other_way_round() -> None:
    def data(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("Data", id=1, payload=b"x")

    check(failure_of(data), enclavia.ProtocolError, "for id 1, a stream; got Data")

    def stream_data(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("StreamData", id=1, payload=b"x")

    server, channel = opened(stream_data)
    with server, channel, pytest.raises(enclavia.ProtocolError, match="got StreamData"):
        channel.request(b"x")


def test_an_error_for_one_stream_is_that_streams_error() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("Error", id=1, message="workload: Connection refused \u20ac")
        enclave.serve_echo()

    server, channel = opened(script)
    with server, channel:
        stream = channel.open_stream(b"go")
        with pytest.raises(enclavia.ServerError) as caught:
            stream.read(10)
        assert caught.value.id == 1
        assert "Connection refused \u20ac" in str(caught.value)
        assert not caught.value.retryable
        with pytest.raises(enclavia.ServerError):
            stream.write(b"more")
        stream.close()
        assert channel.open_stream(b"next").read(10) == b"next"


def test_late_answers_for_a_closed_stream_are_dropped() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        closing = enclave.receive()
        assert (closing["type"], closing["half"]) == ("StreamClose", "Both")
        enclave.send("StreamData", id=1, payload=b"late")
        enclave.send("Error", id=1, message="unknown stream id")
        enclave.send("StreamClose", id=1)
        enclave.serve_echo()

    server, channel = opened(script)
    with server, channel:
        channel.open_stream(b"go").close()
        assert channel.open_stream(b"next").read(10) == b"next"


def test_an_error_with_a_long_text_is_cut() -> None:
    def script(enclave: EnclavePeer) -> None:
        enclave.receive()
        enclave.send("Error", id=1, message="\u20ac" * 20_000)

    server, channel = opened(script)
    with server, channel, pytest.raises(enclavia.ServerError) as caught:
        channel.open_stream(b"go").read(10)
    assert 100 < len(str(caught.value)) < 600
