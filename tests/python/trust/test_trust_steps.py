"""The three steps of trust, at the moments at which connecting waits for them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support import answering, byte_enclave, drive, ok

import enclavia
from enclavia._channel.config import ChannelConfig
from enclavia._identity.pins import PinTuples, pin_tuples
from enclavia._io.face import Io, now
from enclavia._trust.receipts import Receipt
from enclavia._trust.trust import Trust
from enclavia.testing import LocalEnclave

OTHER = enclavia.Pcrs(pcr0="1" * 96, pcr1="2" * 96, pcr2="3" * 96)
KINDS = ["Client", "AsyncClient", "Channel", "AsyncChannel"]
kinds = pytest.mark.parametrize("kind", KINDS)


class Scripted(Trust):
    """Answers from lists, and notes the steps."""

    def __init__(self, pins: PinTuples | None, /, **answers: Any) -> None:
        self.in_force = pins
        self.steps: list[str] = []
        self._answers = answers

    def _take(self, step: str) -> Any:
        self.steps.append(step)
        answers = self._answers.get(step)
        answer = answers.pop(0) if answers else None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def pins(self, io: Io[Any], deadline: float | None) -> PinTuples | None:
        assert deadline is None or deadline > now()
        self._take("pins")
        return self.in_force

    async def mismatch(self, io: Io[Any], error: Any, pins: Any, deadline: Any) -> bool:
        assert isinstance(error, enclavia.PcrMismatch)
        assert pins == self.in_force
        answer = self._take("mismatch")
        if answer is None:
            return False
        self.in_force = answer
        return True

    async def verified(self, io: Io[Any], receipt: Receipt, deadline: Any) -> None:
        assert receipt.attestation.nonce == receipt.handshake_hash
        self._take("verified")


@contextlib.contextmanager
def trusting(monkeypatch: pytest.MonkeyPatch, trust: Trust) -> Iterator[Trust]:
    monkeypatch.setattr(ChannelConfig, "trust", lambda self: trust)
    yield trust


@contextlib.asynccontextmanager
async def asked(kind: str, enclave: LocalEnclave, **options: Any) -> AsyncIterator[Any]:
    """Something that has connected."""
    given = {"pcrs": enclave.pcrs, "root": enclave.root, "timeout": 20.0, **options}
    if kind == "Client":
        with enclavia.Client(enclave.url, **given) as client:
            client.get("/")
            yield client
    elif kind == "AsyncClient":
        async with enclavia.AsyncClient(enclave.url, **given) as client:
            await client.get("/")
            yield client
    elif kind == "Channel":
        with enclavia.Channel.connect(enclave.url, **given) as channel:
            yield channel
    else:
        async with enclavia.AsyncChannel.connect(enclave.url, **given) as channel:
            yield channel


def connects(kind: str, enclave: LocalEnclave, **options: Any) -> enclavia.Attestation:
    found: list[enclavia.Attestation] = []

    async def use() -> None:
        async with asked(kind, enclave, **options) as one:
            found.append(one.attestation)

    drive("asyncio" if kind.startswith("Async") else "sync", use)
    return found[0]


@kinds
def test_pins_are_asked_before_and_the_document_is_shown_after(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        trust = Scripted(pin_tuples(enclave.pcrs))
        with trusting(monkeypatch, trust):
            connects(kind, enclave)
        assert trust.steps == ["pins", "verified"]


@kinds
def test_what_the_step_says_is_pinned_and_not_the_setting(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with byte_enclave(answering(ok())) as (enclave, server):
        trust = Scripted(pin_tuples(OTHER))
        with trusting(monkeypatch, trust), pytest.raises(enclavia.PcrMismatch):
            connects(kind, enclave)
        assert trust.steps == ["pins", "mismatch"]
        assert not server.connections


@kinds
def test_other_pins_are_tried_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        trust = Scripted(pin_tuples(OTHER), mismatch=[pin_tuples(enclave.pcrs)])
        with trusting(monkeypatch, trust):
            connects(kind, enclave, **({"patience": 0.0} if "Client" in kind else {}))
        assert trust.steps == ["pins", "mismatch", "pins", "verified"]


@kinds
def test_an_enclave_that_never_matches_is_not_followed_for_ever(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with byte_enclave(answering(ok())) as (enclave, server):
        others = [
            pin_tuples(enclavia.Pcrs(pcr0=f"{n:02}" * 48, pcr1="2" * 96, pcr2="3" * 96))
            for n in range(1, 20)
        ]
        trust = Scripted(pin_tuples(OTHER), mismatch=others)
        with trusting(monkeypatch, trust), pytest.raises(enclavia.PcrMismatch):
            connects(kind, enclave)
        assert trust.steps == [*["pins", "mismatch"] * Trust.MOST_FOLLOWED, "pins"]
        assert not server.connections


@kinds
@pytest.mark.parametrize("step", ["pins", "verified"])
def test_a_step_that_raises_refuses_the_channel(
    kind: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with byte_enclave(answering(ok())) as (enclave, server):
        refusal = enclavia.AttestationError("refused by the step")
        trust = Scripted(pin_tuples(enclave.pcrs), **{step: [refusal]})
        with trusting(monkeypatch, trust), pytest.raises(enclavia.AttestationError) as caught:
            connects(kind, enclave)
        assert caught.value.message == refusal.message
        assert not server.connections


@kinds
@pytest.mark.parametrize("step", ["pins", "mismatch", "verified"])
def test_an_error_of_the_step_itself_sends_nothing(
    kind: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in somebody's function, which is no error of ours."""
    with byte_enclave(answering(ok())) as (enclave, server):
        pins = OTHER if step == "mismatch" else enclave.pcrs
        trust = Scripted(pin_tuples(pins), **{step: [ZeroDivisionError("a bug")]})
        with trusting(monkeypatch, trust), pytest.raises(ZeroDivisionError):
            connects(kind, enclave)
        assert not server.connections


@pytest.mark.parametrize("step", ["pins", "mismatch", "verified"])
def test_a_step_that_may_be_repeated_is(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with byte_enclave(answering(ok())) as (enclave, _):
        answers: dict[str, Any] = {step: [enclavia.ConnectError("not now")]}
        pins = enclave.pcrs
        if step == "mismatch":
            answers[step].append(pin_tuples(pins))
            pins = OTHER
        trust = Scripted(pin_tuples(pins), **answers)
        with trusting(monkeypatch, trust):
            connects("Client", enclave)
        assert trust.steps[-1] == "verified"
        assert trust.steps.count(step) == 2


@pytest.mark.parametrize("step", ["pins", "mismatch", "verified"])
def test_a_step_that_has_no_time_left_says_so(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with byte_enclave(answering(ok())) as (enclave, server):
        late = enclavia.ConnectTimeout("expected the step's answer in time, got none")
        pins = OTHER if step == "mismatch" else enclave.pcrs
        trust = Scripted(pin_tuples(pins), **{step: [late]})
        with trusting(monkeypatch, trust), pytest.raises(enclavia.ConnectTimeout) as caught:
            connects("Client", enclave, patience=0.0)
        assert "the step's answer" in str(caught.value)
        assert not server.connections


def test_nothing_to_ask_is_no_trust_at_all() -> None:
    config = ChannelConfig.build("ws://localhost:1", pcrs=OTHER)
    assert config.trust() is None
