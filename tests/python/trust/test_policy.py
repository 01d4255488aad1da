"""Clients that are made from a policy, or from the environment: which version matched, and what
becomes of them when a version ends."""

from __future__ import annotations

import json
import logging
import os
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pinned import OTHER, Workload
from support import HANG, ByteServer, drive

import enclavia
from enclavia import (
    AsyncChannel,
    AsyncClient,
    Channel,
    Client,
    DebugModeWarning,
    Forwarder,
    MatchedPins,
    PcrMismatch,
    Pcrs,
    Policy,
    PolicyExpired,
    verify_attestation,
)
from enclavia._client.configured import of_environment
from enclavia._io.threads import ThreadIo
from enclavia._trust import sources
from enclavia._trust.versions import AllowedVersion, AllowedVersions
from enclavia.testing import LocalEnclave

KINDS = ["sync", "asyncio", "trio"]


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Wall:
        time = datetime.now(UTC).timestamp()

    monkeypatch.setattr(sources, "wall", lambda: Wall.time)
    return Wall


def version(name: str, pcrs: Pcrs, after: timedelta | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "pcrs": pcrs.as_dict()}
    if after is not None:
        made["not_after"] = (datetime.now(UTC) + after).strftime("%Y-%m-%dT%H:%M:%SZ")
    return made


def written(folder: Path, enclave: LocalEnclave | None, *versions: Any, **more: Any) -> Path:
    said: dict[str, Any] = {"format": 1, "versions": list(versions), **more}
    if enclave is not None:
        assert enclave.root is not None
        said |= {"endpoint": enclave.url, "root": enclave.root.decode()}
    path = folder / "policy.json"
    path.write_text(json.dumps(said))
    return path


async def attested(kind: str, path: Path, **options: Any) -> list[Any]:
    """Of each way to be told what matched."""
    policy = Policy.load(path)
    assert policy.endpoint is not None
    said = policy.options()
    if kind == "sync":
        with Client.from_policy(path, **options) as client:
            assert client.get("/").status_code == 200
            found = [client.attestation, pickle.loads(pickle.dumps(client.attestation))]
        with Channel.connect(policy.endpoint, **said) as channel:
            return [*found, channel.attestation, channel.attest()]
    async with AsyncClient.from_policy(path, **options) as aclient:
        assert (await aclient.get("/")).status_code == 200
        found = [aclient.attestation]
    async with AsyncChannel.connect(policy.endpoint, **said) as achannel:
        return [*found, achannel.attestation, await achannel.attest()]


def test_a_token_is_checked_also_where_no_upgrades_are_followed(tmp_path: Path) -> None:
    policy = Policy.load(written(tmp_path, None, version("a", OTHER)))
    assert "trust_upgrades" not in policy.options(token="unused")
    for token in ("", "a b", "a\n"):
        with pytest.raises(ValueError, match="token: expected printable ASCII"):
            policy.options(token=token)


@pytest.mark.parametrize("kind", KINDS)
def test_what_matched_has_its_name(kind: str, enclave: LocalEnclave, tmp_path: Path) -> None:
    day = timedelta(days=1)
    path = written(
        tmp_path,
        enclave,
        version("old", Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48), -day),
        version("other", OTHER),
        version("this one", enclave.pcrs, 30 * day),
    )

    async def case() -> None:
        for each in await attested(kind, path):
            # The set's place is that among those that were in force.
            assert each.matched == MatchedPins(1, enclave.pcrs, "this one")
            assert "set 1: this one" in str(each)

    drive(kind, case)


def test_names_are_of_the_exact_set(enclave: LocalEnclave, tmp_path: Path) -> None:
    """Of one image there may be two versions, which differ in a further PCR."""
    three = enclave.pcrs
    one = Pcrs(**_three(three), pcr8=b"1" * 48)
    two = Pcrs(**_three(three), pcr8=b"2" * 48)
    enclave.set_identity(pcrs=two)
    path = written(
        tmp_path, enclave, version("one", one), version("two", two), version("any", three)
    )
    with Client.from_policy(path) as client:
        matched = client.attestation.matched
        assert matched is not None
        assert (matched.index, matched.name) == (1, "two")
        client._enclave._verify_again(HANG)
        assert [(each.reason, each.version) for each in client.receipts] == [
            ("connect", "two"),
            ("fresh", "two"),
        ]


def _three(pcrs: Pcrs) -> dict[str, Any]:
    return dict(zip(("pcr0", "pcr1", "pcr2"), pcrs.as_tuple(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_ends_under_a_live_channel(
    kind: str, enclave: LocalEnclave, workload: Workload, tmp_path: Path, wall: Any
) -> None:
    hour = timedelta(hours=1)
    path = written(tmp_path, enclave, version("a", enclave.pcrs, hour), version("b", OTHER))

    async def case() -> None:
        cls: Any = Client if kind == "sync" else AsyncClient
        client = cls.from_policy(path, patience=0)

        async def get(target: str) -> Any:
            return client.get(target) if kind == "sync" else await client.get(target)

        await get("/1")
        wall.time += 3599 - 1
        await get("/2")
        wall.time += 3
        for _ in range(2):
            with pytest.raises(
                PolicyExpired, match="got the version 'a', whose not_after"
            ) as caught:
                await get("/secret")
            assert caught.value.version == "a"
            assert not caught.value.retryable
            assert isinstance(caught.value.__cause__, PcrMismatch)
        enclave.set_identity(pcrs=OTHER)
        await get("/3")
        assert client.attestation.matched == MatchedPins(0, OTHER, "b")
        if kind == "sync":
            client.close()
        else:
            await client.aclose()

    drive(kind, case)
    assert workload.seen == [b"/1", b"/2", b"/3"]


def test_a_policy_without_a_version_left_lets_nothing_pass(
    enclave: LocalEnclave, workload: Workload, tmp_path: Path, wall: Any
) -> None:
    hour = timedelta(hours=1)
    path = written(
        tmp_path, enclave, version("a", OTHER, hour), version("b", enclave.pcrs, 2 * hour)
    )
    with Client.from_policy(path) as client:
        client.get("/1")
        wall.time += 3 * 3600
        for _ in range(2):
            with pytest.raises(
                PolicyExpired, match="got none: the last one, 'b', was allowed until"
            ):
                client.get("/secret")
    with pytest.raises(PolicyExpired):
        Client.from_policy(path).get("/secret")
    policy = Policy.load(path)
    assert policy.endpoint is not None
    with pytest.raises(PolicyExpired):
        Channel.connect(policy.endpoint, **policy.options())
    assert workload.seen == [b"/1"]


A, B, C = ((bytes([n]) * 48,) * 3 for n in range(1, 4))


def test_which_of_them_are_in_force(wall: Any) -> None:
    versions = (
        AllowedVersion("a", A, 1010.0),
        AllowedVersion("b", B, 1020.0),
        AllowedVersion("c", C, None),
    )
    allowed = sources.Allowed(AllowedVersions(versions))
    assert allowed.due  # nobody has looked yet
    for now, due, pins in (
        (1000.0, True, (A, B, C)),
        (1010.0, False, (A, B, C)),
        (1010.5, True, (B, C)),
        (1020.0, False, (B, C)),
        (1020.5, True, (C,)),
        (1e9, False, (C,)),
    ):
        wall.time = now
        assert allowed.due is due, now
        with pytest.raises(StopIteration) as caught:
            allowed.pins(ThreadIo(), None).send(None)
        assert caught.value.value == pins, now
        assert not allowed.due


def test_none_is_in_force_after_the_last_end(wall: Any) -> None:
    wall.time = 1020.5
    versions = (AllowedVersion("a", A, 1020.0), AllowedVersion("b", B, 1010.0))
    with pytest.raises(PolicyExpired, match="the last one, 'a'"):
        sources.Allowed(AllowedVersions(versions)).pins(ThreadIo(), None).send(None)


def test_only_a_version_that_ended_makes_a_mismatch_its_end(wall: Any) -> None:
    wall.time = 1011.0
    versions = (AllowedVersion("a", A, 1010.0), AllowedVersion("b", B, None))
    allowed = sources.Allowed(AllowedVersions(versions))
    ended = allowed.refusal(PcrMismatch("", index=1, actual=A[1]))
    assert isinstance(ended, PolicyExpired)
    assert ended.version == "a"
    for index, actual in ((1, B[1]), (1, C[1]), (8, A[1])):
        assert allowed.refusal(PcrMismatch("", index=index, actual=actual)) is None


def test_an_enclave_that_is_no_version_at_all(enclave: LocalEnclave, tmp_path: Path) -> None:
    path = written(
        tmp_path, enclave, version("a", OTHER), version("b", _signed(OTHER), timedelta(-1))
    )
    with pytest.raises(PcrMismatch):
        Client.from_policy(path, patience=0).get("/")


def _signed(pcrs: Pcrs) -> Pcrs:
    return Pcrs(**_three(pcrs), pcr8=b"8" * 48)


def test_an_end_that_is_near_is_told_once(
    enclave: LocalEnclave, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(
        tmp_path,
        enclave,
        version("near", enclave.pcrs, timedelta(days=6, hours=12)),
        version("far", OTHER, timedelta(days=8)),
    )
    with caplog.at_level(logging.WARNING, "enclavia"), Client.from_policy(path) as client:
        client.get("/")
        enclave.drop_connections()
        client.get("/")
    said = [record.getMessage() for record in caplog.records if "policy" in record.getMessage()]
    assert said == ["the policy allows the version near for 6.5 more days only"]


def test_copies_of_one_policy_share_channels(enclave: LocalEnclave, tmp_path: Path) -> None:
    path = written(tmp_path, enclave, version("a", enclave.pcrs, timedelta(hours=1)))
    clients = [pickle.loads(pickle.dumps(Client.from_policy(path))) for _ in range(3)]
    for client in clients:
        assert client.get("/").status_code == 200
        assert client.attestation.matched.name == "a"
    assert enclave.stats()["connections_total"] == 1
    for client in clients:
        client.close()


def test_by_way_of_a_forwarder(enclave: LocalEnclave, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = written(tmp_path, enclave, version("a", enclave.pcrs))
    policy = Policy.load(path)
    with Forwarder(enclave.url, socket=tmp_path / "f", **policy.options()) as forwarder:
        with Client.from_policy(path, via=forwarder.via) as client:
            assert client.get("/").status_code == 200
            assert client.attestation.matched == MatchedPins(0, enclave.pcrs, "a")
        forwarder.connect()
        assert forwarder.attestation.matched == MatchedPins(0, enclave.pcrs, "a")


def test_a_debug_policy_is_loud(workload: Workload, tmp_path: Path) -> None:
    with ByteServer(workload) as server, LocalEnclave(server.address, mode="debug") as enclave:
        path = tmp_path / "policy.toml"
        path.write_text(f'format = 1\nmode = "debug"\nendpoint = "{enclave.url}"\n')
        with pytest.warns(DebugModeWarning):
            client = Client.from_policy(path)
        with client:
            assert client.get("/").status_code == 200
            assert client.attestation.matched is None
            assert not client.attestation.proven


def test_where_the_url_is_from(enclave: LocalEnclave, tmp_path: Path) -> None:
    path = written(tmp_path, enclave, version("a", enclave.pcrs))
    with Client.from_policy(Policy.load(path), enclave.url) as client:
        assert client.get("/").status_code == 200
    with pytest.raises(
        ValueError, match=r"url: expected ws://.*, which the policy is about, got wss"
    ):
        Client.from_policy(path, "wss://elsewhere.example")
    bare = written(tmp_path, None, version("a", enclave.pcrs))
    with pytest.raises(ValueError, match="url: expected the enclave's URL, got none"):
        Client.from_policy(bare)
    assert Client.from_policy(bare, "wss://e.example").base_url.host == "e.example"


@pytest.mark.parametrize("url", [None, "wss://e.example"])
def test_an_endpoint_that_is_no_url_of_an_enclave(
    url: str | None, enclave: LocalEnclave, tmp_path: Path
) -> None:
    path = written(tmp_path, enclave, version("a", enclave.pcrs))
    path.write_text(path.read_text().replace(enclave.url, "ftp://e.example"))
    with pytest.raises(enclavia.InvalidURL, match=r"endpoint, of the policy: .*ftp"):
        Client.from_policy(path, url)


@pytest.mark.parametrize("name", ["pcrs", "root", "debug_mode"])
def test_a_policy_says_who_is_trusted(name: str, enclave: LocalEnclave, tmp_path: Path) -> None:
    path = written(tmp_path, enclave, version("a", enclave.pcrs))
    options: Any = {name: {"pcrs": OTHER, "root": None, "debug_mode": True}[name]}
    for cls in (Client, AsyncClient):
        with pytest.raises(TypeError, match=f"from_policy\\(\\) does not take '{name}'"):
            cls.from_policy(path, **options)


@pytest.mark.parametrize("value", [None, 5, b"policy.toml", {}])
def test_what_is_no_policy(value: Any) -> None:
    with pytest.raises(TypeError, match="path: expected text or a path, got"):
        Client.from_policy(value)


def test_an_attestation_from_elsewhere_is_verified_by_a_policy(
    enclave: LocalEnclave, tmp_path: Path
) -> None:
    policy = Policy.load(
        written(tmp_path, enclave, version("a", OTHER), version("b", enclave.pcrs))
    )
    with Client.from_policy(policy) as client:
        document = client.attestation.document
    allowed = policy.allowed()
    got = verify_attestation(document, pcrs=[each.pcrs for each in allowed], root=policy.root)
    assert got.matched is not None
    assert allowed[got.matched.index].name == "b"


# -- the environment ------------------------------------------------------------------------------

HEX = {f"ENCLAVIA_PCR{index}": f"{index + 1:02x}" * 48 for index in range(3)}
URL = {"ENCLAVIA_URL": "wss://e.example"}
THREE = Pcrs(pcr0=b"\x01" * 48, pcr1=b"\x02" * 48, pcr2=b"\x03" * 48)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({**URL, **HEX}, {"pcrs": THREE}),
        ({**URL, **HEX, "ENCLAVIA_DEBUG_MODE": "false"}, {"pcrs": THREE, "debug_mode": False}),
        ({**URL, "ENCLAVIA_DEBUG_MODE": "1"}, {"debug_mode": True}),
        (
            {**URL, **HEX, "ENCLAVIA_PCR8": "08" * 48},
            {"pcrs": Pcrs(**_three(THREE), pcr8=b"\x08" * 48)},
        ),
        ({**URL, **HEX, "ENCLAVIA_BACKEND_URL": "https://b.example"}, {"pcrs": THREE}),
    ],
)
def test_what_the_environment_says(environ: dict[str, str], expected: dict[str, Any]) -> None:
    assert of_environment("Client", environ, {}) == (URL["ENCLAVIA_URL"], expected)
    more = {"pcrs": OTHER, "timeout": 5}
    assert of_environment("Client", environ, more)[1] == {**expected, **more}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "expected ENCLAVIA_URL or ENCLAVIA_POLICY in the environment, got neither"),
        (HEX, "expected ENCLAVIA_URL or ENCLAVIA_POLICY"),
        ({"ENCLAVIA_URL": " "}, "ENCLAVIA_URL: expected a value, got nothing: it is set and empty"),
        ({**URL, **HEX, "ENCLAVIA_PCR2": ""}, "ENCLAVIA_PCR2: expected a value, got nothing"),
        ({**URL, "ENCLAVIA_PCR1": "02" * 48}, "got no ENCLAVIA_PCR0 and no ENCLAVIA_PCR2"),
        ({**URL, "ENCLAVIA_PCR8": "02" * 48}, "got no ENCLAVIA_PCR0 and no ENCLAVIA_PCR1 and no"),
        ({**URL, **HEX, "ENCLAVIA_PCR5": "05" * 48}, "ENCLAVIA_PCR5: .*beside pcr0, pcr1 and pcr2"),
        ({**URL, **HEX, "ENCLAVIA_PCR08": "08" * 48}, "ENCLAVIA_PCR08.*beside pcr0, pcr1 and pcr2"),
        ({**URL, **HEX, "ENCLAVIA_PCR32": ""}, "ENCLAVIA_PCR32: expected a value, got nothing"),
        ({**URL, **HEX, "ENCLAVIA_PCR1": "zz"}, "pcr1: expected 64, 96 or 128 hex digits"),
        ({**URL, "ENCLAVIA_DEBUG_MODE": "yes please"}, "DEBUG_MODE: expected true, false, 1 or 0"),
        (URL, "pcrs: expected the PCRs of the enclave"),
    ],
)
def test_an_environment_that_is_refused(
    environ: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, environ)
    for cls in (Client, AsyncClient):
        with pytest.raises(ValueError, match=message):
            cls.from_env()


def _only(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("ENCLAVIA_")]:
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_of_the_environment(
    kind: str, enclave: LocalEnclave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = {f"ENCLAVIA_{name}": value for name, value in enclave.pcrs.as_dict().items()}
    path = written(tmp_path, enclave, version("a", enclave.pcrs))

    async def get(**options: Any) -> Any:
        if kind == "sync":
            with Client.from_env(**options) as client:
                client.get("/")
                return client.attestation.matched
        async with AsyncClient.from_env(**options) as aclient:
            await aclient.get("/")
            return aclient.attestation.matched

    async def case() -> None:
        _only(monkeypatch, {"ENCLAVIA_URL": enclave.url, **pins})
        assert await get(root=enclave.root) == MatchedPins(0, enclave.pcrs, None)
        _only(monkeypatch, {"ENCLAVIA_POLICY": str(path)})
        assert await get() == MatchedPins(0, enclave.pcrs, "a")
        _only(monkeypatch, {"ENCLAVIA_POLICY": str(path), "ENCLAVIA_URL": enclave.url})
        assert await get() == MatchedPins(0, enclave.pcrs, "a")
        with pytest.raises(TypeError, match="does not take 'pcrs'"):
            await get(pcrs=enclave.pcrs)
        _only(monkeypatch, {"ENCLAVIA_POLICY": str(path), **pins})
        with pytest.raises(ValueError, match="ENCLAVIA_POLICY or ENCLAVIA_PCR0, got both"):
            await get()
        _only(monkeypatch, {"ENCLAVIA_POLICY": str(path), "ENCLAVIA_PCR9": "09" * 48})
        with pytest.raises(ValueError, match="ENCLAVIA_POLICY or ENCLAVIA_PCR9, got both"):
            await get()
        _only(monkeypatch, {"ENCLAVIA_POLICY": str(path), "ENCLAVIA_DEBUG_MODE": "true"})
        with pytest.raises(ValueError, match="expected ENCLAVIA_DEBUG_MODE as the policy says"):
            await get()
        _only(monkeypatch, {"ENCLAVIA_POLICY": str(path), "ENCLAVIA_URL": "wss://x.example"})
        with pytest.raises(ValueError, match="which the policy is about"):
            await get()
        _only(monkeypatch, {"ENCLAVIA_POLICY": str(tmp_path / "none")})
        with pytest.raises(FileNotFoundError):
            await get()

    drive(kind, case)


def test_errors_are_values() -> None:
    error = pickle.loads(pickle.dumps(PolicyExpired("why", version="a")))
    assert (str(error), error.version, error.retryable) == ("why", "a", False)
    assert isinstance(error, enclavia.AttestationError)
