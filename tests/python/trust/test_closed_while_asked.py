"""A client is closed while it waits for somebody who is asked about trust and never answers."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from support import HANG, ByteServer, Connection, answering, byte_enclave, drive, ok

import enclavia
from enclavia._trust import backend
from enclavia.testing import LocalEnclave

LOOPS = ["asyncio", "uvloop", "trio"]
WHO = ["backend", "pins", "hook"]
OTHER = enclavia.Pcrs(pcr0="1" * 96, pcr1="2" * 96, pcr2="3" * 96)


class Mute:
    """Whoever is asked: says that it was, and answers when the test is over."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.released = threading.Event()

    def __call__(self, *_: object) -> Any:
        self.asked.set()
        self.released.wait(10 * HANG)
        raise LookupError("nobody should hear this")

    async def awaited(self, *_: object) -> Any:
        self.asked.set()
        await anyio.sleep_forever()

    def serve(self, connection: Connection) -> None:
        self.asked.set()
        self.released.wait(10 * HANG)

    async def until_asked(self) -> None:
        while not self.asked.is_set():
            await anyio.sleep(0.01)


@contextlib.contextmanager
def asking(
    who: str, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch, awaited: bool
) -> Iterator[tuple[Mute, dict[str, Any]]]:
    """Keywords of a client that has no deadline at all, and who is asked by it."""
    mute = Mute()
    function = mute.awaited if awaited else mute
    options: dict[str, Any] = {"pcrs": enclave.pcrs, "root": enclave.root, "timeout": None}
    monkeypatch.setattr(backend, "_TIMEOUT", 10 * HANG)
    with ByteServer(mute.serve) as server:
        if who == "backend":
            options["pcrs"] = OTHER
            options["trust_upgrades"] = enclavia.TrustUpgrades(
                f"http://{server.address}", "00000000-0000-0000-0000-000000000005"
            )
        elif who == "pins":
            options["pcrs"] = function
        else:
            options["on_attestation"] = function
        try:
            yield mute, options
        finally:
            mute.released.set()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("who", ["backend", "pins"])  # a hook that blocks cannot be broken off
def test_closed_by_another_thread(who: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = []
    with (
        byte_enclave(answering(ok())) as (enclave, server),
        asking(who, enclave, monkeypatch, False) as (mute, options),
    ):
        original = enclavia.Client(enclave.url, **options)
        client = copy.copy(original) if shared else original

        def get() -> None:
            try:
                client.get("/")
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=get)
        thread.start()
        assert mute.asked.wait(HANG)
        client.close()
        thread.join(HANG)
        assert not mute.released.is_set()
        assert not thread.is_alive()
        original.close()
        assert not server.connections
    assert [type(error) for error in errors] == [enclavia.StateError]
    assert "closed" in str(errors[0])


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("who", WHO)
def test_closed_by_another_task(
    who: str, shared: bool, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    errors: list[Exception] = []
    with (
        byte_enclave(answering(ok())) as (enclave, server),
        asking(who, enclave, monkeypatch, True) as (mute, options),
    ):
        original = enclavia.AsyncClient(enclave.url, **options)
        client = copy.copy(original) if shared else original

        async def get() -> None:
            try:
                await client.get("/")
            except Exception as error:
                errors.append(error)

        async def case() -> None:
            with anyio.fail_after(HANG):
                async with anyio.create_task_group() as group:
                    group.start_soon(get)
                    await mute.until_asked()
                    await client.aclose()
                await original.aclose()

        drive(loop, case)
        assert not mute.released.is_set()
        assert not server.connections
    assert [type(error) for error in errors] == [enclavia.StateError]
    assert "closed" in str(errors[0])


@pytest.mark.parametrize("loop", LOOPS)
def test_of_two_copies_the_other_one_is_asked_about(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The channel that the closed one waited for is the other one's: whose document it is that
    nobody has agreed to yet."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    asked: list[enclavia.Receipt] = []

    async def hook(receipt: enclavia.Receipt) -> None:
        asked.append(receipt)
        if len(asked) == 1:
            await anyio.sleep_forever()

    with byte_enclave(answering(ok())) as (enclave, _):
        options: dict[str, Any] = {"pcrs": enclave.pcrs, "root": enclave.root, "timeout": None}
        original = enclavia.AsyncClient(enclave.url, on_attestation=hook, **options)
        first, second = copy.copy(original), copy.copy(original)

        async def refused() -> None:
            with pytest.raises(enclavia.StateError, match="closed"):
                await first.get("/")

        async def answered() -> None:
            assert (await second.get("/")).status_code == 200

        async def case() -> None:
            with anyio.fail_after(HANG):
                async with anyio.create_task_group() as group:
                    group.start_soon(refused)
                    while not asked:
                        await anyio.sleep(0.01)
                    group.start_soon(answered)
                    await anyio.sleep(0)
                    await first.aclose()
                assert len(second.receipts) == 1
                for client in (second, original):
                    await client.aclose()

        drive(loop, case)
    assert len(asked) == 2
