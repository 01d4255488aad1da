"""Every public class can be pickled, or says in a sentence of ours what to do instead."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import pickle
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from enclave_peer import PCRS

import enclavia
import enclavia.testing
from enclavia.testing import BackendFault, EnclavePki, Fault, LocalEnclave

URL = "wss://enclave.example"


def public_classes() -> set[type]:
    return {
        value
        for module in (enclavia, enclavia.testing)
        for value in (getattr(module, name) for name in module.__all__)
        if inspect.isclass(value) and not issubclass(value, BaseException)
    }


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return
    head = [(b"etag", b'"1"'), (b"content-length", b"3"), (b"accept-ranges", b"bytes")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b"abc"})


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    with LocalEnclave(app) as running:
        yield running


def pins() -> enclavia.Pcrs:
    return PCRS


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


REFUSED = {
    "AsyncChannel": r"keys must exist once\. An AsyncClient can",
    "AsyncForwarder": r"sockets must exist once\. Give its via",
    "AsyncRemoteFile": r"An AsyncClient can: give that and the path",
    "AsyncStream": r"keys must exist once\. An AsyncClient can",
    "Channel": r"keys must exist once\. A Client can",
    "Forwarder": r"sockets must exist once\. Give its via",
    "LocalEnclave": r"must exist once\. Give its url, pcrs and root",
    "RemoteFile": r"A Client can: give that and the path",
    "Stream": r"keys must exist once\. A Client can",
}
# Their instances are values, and each has a test of its own that it can be pickled or is read again
# from what it was made from.
VALUES = {
    "AsyncClient", "AsyncEnclaveTransport", "Attestation", "BackendFault", "Client", "EnclavePki",
    "EnclaveTransport", "Fault", "FleetReport", "MatchedPins", "Pcrs", "PinSource", "Policy",
    "PolicyUpgrades", "PolicyVersion", "Receipt", "Receipts", "SigstorePins", "TrustUpgrades",
    "UpgradeChain", "UpgradeLink", "WorkerReport",
}  # fmt: skip


def test_every_public_class_is_one_or_the_other() -> None:
    assert {cls.__name__ for cls in public_classes()} == VALUES | REFUSED.keys()
    assert not VALUES & REFUSED.keys()


def refuses(thing: Any) -> str:
    name = type(thing).__name__
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match=f"^an? {name} cannot be pickled: .*{REFUSED[name]}"):
            pickle.dumps(thing, protocol)
    return name


def test_what_cannot_be_pickled_says_what_to_do(enclave: LocalEnclave) -> None:
    trust: dict[str, Any] = {"pcrs": enclave.pcrs, "root": enclave.root}
    refused = {refuses(enclave), refuses(LocalEnclave(app))}
    with enclave.client() as client, client.open("/") as file:
        refused.add(refuses(file))
    with enclavia.Channel.connect(enclave.url, **trust) as channel:
        refused.add(refuses(channel))
        with channel.open_stream(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as stream:
            refused.add(refuses(stream))
    pytest.importorskip("uvicorn")
    for kind in (enclavia.Forwarder, enclavia.AsyncForwarder):
        refused.add(refuses(kind(URL, pcrs=PCRS)))

    async def awaited() -> None:
        async with enclave.async_client() as client, client.open("/") as file:
            refused.add(refuses(file))
        async with enclavia.AsyncChannel.connect(enclave.url, **trust) as channel:
            refused.add(refuses(channel))
            head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            async with await channel.open_stream(head) as stream:
                refused.add(refuses(stream))

    asyncio.run(awaited())
    assert refused == REFUSED.keys()


def bare(cls: Any) -> Any:
    """Of a record: with nothing in it. What real ones have in them is tested with each kind."""
    if issubclass(cls, tuple):
        return tuple.__new__(cls, [None] * len(cls._fields))
    empty = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(empty, field.name, None)
    return empty


def test_what_is_a_value_can_be_pickled(enclave: LocalEnclave, tmp_path: Any) -> None:
    pytest.importorskip("sigstore")
    with enclave.client() as client:
        attestation, receipts = client.attestation, client.receipts
    signed = enclavia.SigstorePins(
        pcrs="pcrs.json", bundle="bundle.json", identity="a@b.example", issuer="https://i.example"
    )
    things = [
        signed, attestation, attestation.matched, *receipts, PCRS, Fault.SLOW, BackendFault.SLOW,
        EnclavePki.mint(), enclavia.Receipts(tmp_path / "receipts"),
        enclavia.TrustUpgrades("https://backend.example", str(uuid.UUID(int=1))),
        enclavia.Client(URL, pcrs=PCRS), enclavia.AsyncClient(URL, pcrs=PCRS),
        enclavia.EnclaveTransport(URL, pcrs=PCRS), enclavia.AsyncEnclaveTransport(URL, pcrs=PCRS),
        enclavia.PinSource(pins),
    ]  # fmt: skip
    seen = {type(thing).__name__ for thing in things}
    things += [bare(cls) for cls in public_classes() if cls.__name__ in VALUES - seen]
    for thing in things:
        assert type(pickled(thing)) is type(thing)
    assert {type(thing).__name__ for thing in things} == VALUES
