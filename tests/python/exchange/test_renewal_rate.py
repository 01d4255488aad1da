"""How many documents are asked for while requests go on for hours, whatever the clocks and the
certificates do.

The enclave, its certificates and both clocks are a model's; what waits, connects and renews is the
package's. The model's enclave replaces its certificate a quarter of an hour before the end, or
never; the client's clock may be behind.
"""

from __future__ import annotations

import types
from typing import Any

import pytest
from stepped import Config, Core

import enclavia
from enclavia._exchange import connecting, connections, renewal, tunnel, waiting
from enclavia._exchange.connections import Connections
from enclavia._exchange.timeouts import Timeouts
from enclavia._io.face import run
from enclavia._pool.kinds import Job, PoolLimits

HOUR = 3600.0
LASTS = 3 * HOUR
REPLACED = LASTS - 900
LEEWAY = 60
BEGAN = 1_000_000.0


class Place:
    """An enclave, and a client whose wall clock is ``skew`` seconds ahead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.skew = options.pop("skew", 0.0)
        self.replaces = options.pop("replaces", True)
        self.now = BEGAN
        self.asked: list[float] = []
        for module in (connecting, connections, renewal, tunnel, waiting):
            monkeypatch.setattr(module, "now", lambda: self.now)
        monkeypatch.setattr(renewal, "_core", types.SimpleNamespace(Channel=Attested))
        config: Any = Told(lambda: Attested(self))
        io: Any = Io()
        limits = PoolLimits(max_channels=1, channel_expiry=1e9, patience=0.0, **options)
        self.connections = Connections(config, limits, io)

    def document(self) -> dict[str, object]:
        """Raises what the core raises where it does not verify."""
        self.asked.append(self.now)
        age = self.now - BEGAN
        begin = BEGAN + (age // REPLACED * REPLACED if self.replaces else 0.0)
        judged = int(self.now + self.skew)
        if judged > begin + LASTS:
            raise enclavia.CertificateError("certificate expired")
        if judged < begin - LEEWAY:
            raise enclavia.CertificateError("certificate not yet valid")
        return {
            "form": "nitro",
            "module_id": "",
            "pcrs": {},
            "verified_at": judged,
            "valid_until": int(begin + LASTS),
        }

    def request(self) -> None:
        lease = run(self.connections.obtain(Job(), Timeouts()))
        assert self.now <= lease.tunnel.validity.ends_at
        self.connections.pool.release(lease, None, self.now)

    def go_on(self, until: float, step: float) -> int:
        """A request at each step. Returns for how many documents they asked."""
        before = len(self.asked)
        while self.now < until:
            self.request()
            self.now += step
        return len(self.asked) - before


class Attested(Core):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        try:
            self._document = place.document()
        except enclavia.CertificateError as error:
            self.error, self.state = error, "failed"

    def attestation(self) -> dict[str, object]:
        return self._document


class Told(Config):
    def receipt(self, raw: object, handshake_hash: bytes, pins: None) -> Any:
        return types.SimpleNamespace(_fresh=lambda raw: self.receipt(raw, b"", None))


class Io:
    def waiter(self) -> None:
        return None

    async def wait(self, waiter: None, timeout: float | None) -> bool:
        raise AssertionError("nothing is waited for here")

    async def wait_open(self, core: Attested, timeout: float | None) -> bool:
        return True

    async def attest(self, core: Attested, timeout: float | None) -> dict[str, object]:
        try:
            core._document = core.place.document()
        except enclavia.CertificateError:
            core.state = "failed"
            raise
        return core._document


@pytest.mark.parametrize("reconnect", [True, False])
@pytest.mark.parametrize("skew", [0.0, -LEEWAY, LEEWAY])
def test_one_document_for_each_certificate(
    skew: float, reconnect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the client's clock is behind, and each leaf certificate begins in its future."""
    place = Place(monkeypatch, skew=skew, reconnect=reconnect)
    asked = place.go_on(BEGAN + 30 * HOUR, 5.0)
    assert asked <= 2 + 30 * HOUR / REPLACED
    assert place.connections.pool.stats().connects == 1
    pauses = [after - before for before, after in zip(place.asked, place.asked[1:], strict=False)]
    assert min(pauses) > HOUR


@pytest.mark.parametrize("reconnect", [True, False])
def test_a_certificate_that_ends_is_not_asked_about_by_each_request(
    reconnect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The times that are left become shorter and shorter, down to the last second."""
    place = Place(monkeypatch, replaces=False, reconnect=reconnect)
    ends = BEGAN + LASTS
    place.go_on(ends - 20, 5.0)
    assert len(place.asked) < 20
    asked = place.go_on(ends + 0.99, 0.01)
    assert asked < 20
    # From then on none verifies, and nothing is sent.
    place.now = ends + 2.5
    with pytest.raises(enclavia.EnclaviaError):
        place.request()
