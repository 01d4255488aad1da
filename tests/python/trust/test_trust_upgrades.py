"""Upgrades followed by clients and channels, and every way in which that is refused."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import os
import pickle
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ByteServer, Connection, drive, eventually, together

import enclavia
from enclavia._channel.config import ChannelConfig
from enclavia._io.face import run
from enclavia._io.loops import LoopIo
from enclavia._io.threads import ThreadIo
from enclavia.testing import BackendFault, Fault, LocalEnclave
from enclavia.testing._history import version_of

SECRET = "token-that-nobody-may-see"
KINDS = ["Client", "AsyncClient", "Channel", "AsyncChannel"]
kinds = pytest.mark.parametrize("kind", KINDS)


class App:
    """Answers with its name, and counts what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.asked += 1
        start_response("200 OK", [("Content-Length", str(len(self.name)))])
        return [self.name.encode()]


@contextlib.contextmanager
def upgradable(app: Any = None, **options: Any) -> Iterator[LocalEnclave]:
    with LocalEnclave(app or App("one"), upgradable=True, **options) as enclave:
        yield enclave


def following(enclave: LocalEnclave, **options: Any) -> enclavia.TrustUpgrades:
    return enclavia.TrustUpgrades(enclave.backend, enclave.enclave_id, **options)


def given(enclave: LocalEnclave, pcrs: Any, **options: Any) -> dict[str, Any]:
    upgrades = options.pop("trust_upgrades", None) or following(enclave)
    return {
        "pcrs": pcrs,
        "root": enclave.root,
        "trust_upgrades": upgrades,
        "timeout": 20.0,
        **options,
    }


@contextlib.asynccontextmanager
async def connected(kind: str, url: str, **options: Any) -> AsyncIterator[Any]:
    if kind == "Client":
        with enclavia.Client(url, **options) as client:
            client.get("/")
            yield client
    elif kind == "AsyncClient":
        async with enclavia.AsyncClient(url, **options) as client:
            await client.get("/")
            yield client
    elif kind == "Channel":
        with enclavia.Channel.connect(url, **options) as channel:
            yield channel
    else:
        async with enclavia.AsyncChannel.connect(url, **options) as channel:
            yield channel


def attested(kind: str, url: str, **options: Any) -> enclavia.Attestation:
    found = []

    async def use() -> None:
        async with connected(kind, url, **options) as one:
            found.append(one.attestation)

    drive("asyncio" if kind.startswith("Async") else "sync", use)
    return found[0]


def refused(
    error: type[enclavia.EnclaviaError], fragment: str, call: Callable[[], object]
) -> enclavia.EnclaviaError:
    with pytest.raises(error) as caught:
        call()
    assert fragment in str(caught.value), caught.value
    return caught.value


# -- followed ---------------------------------------------------------------------------------


@kinds
def test_an_upgrade_is_followed(kind: str) -> None:
    two = App("two")
    with upgradable() as enclave:
        pinned = enclave.pcrs
        running = enclave.upgrade(two)
        assert running != pinned
        attestation = attested(kind, enclave.url, **given(enclave, pinned))
        assert attestation.pcrs[0] == running.pcr0


def test_trio_follows_too() -> None:
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("two"))

        async def use() -> None:
            async with connected("AsyncClient", enclave.url, **options) as client:
                assert (await client.get("/")).text == "two"

        drive("trio", use)


def test_between_two_requests_of_one_client() -> None:
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        with enclavia.Client(enclave.url, **options) as client:
            assert client.get("/").text == "one"
            assert client.stats.upgrades_followed == 0
            for name in ("two", "three"):
                enclave.upgrade(App(name))
                assert client.get("/").text == name
            assert client.stats.upgrades_followed == 2
            assert client.stats.reconnects == 2


def test_a_sync_client_in_a_running_event_loop() -> None:
    """A notebook."""
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("two"))

        async def cell() -> None:
            with enclavia.Client(enclave.url, **options) as client:
                assert client.get("/").text == "two"

        asyncio.run(cell())


def test_nothing_is_asked_while_the_pins_agree() -> None:
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.set_backend_faults(BackendFault.DOWN)
        with enclavia.Client(enclave.url, **options) as client:
            assert client.get("/").text == "one"


@kinds
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.WRONG_NONCE, enclavia.NonceMismatch),
        (Fault.BAD_SIGNATURE, enclavia.SignatureError),
    ],
)
def test_every_other_failure_stays_what_it_is(kind: str, fault: Fault, error: Any) -> None:
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        asked: list[str] = enclave._runner._backend.requests  # type: ignore[union-attr]
        enclave.set_faults(fault)
        refused(error, "", lambda: attested(kind, enclave.url, **options))
        assert not asked


def test_the_followed_version_proves_itself_whole() -> None:
    """The nonce, too, of the version that the chain leads to."""
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("two"))
        enclave.set_faults(Fault.WRONG_NONCE)
        refused(enclavia.NonceMismatch, "", lambda: attested("Client", enclave.url, **options))


def with_key(pcrs: enclavia.Pcrs, key: bytes) -> enclavia.Pcrs:
    three = dict(zip(("pcr0", "pcr1", "pcr2"), pcrs.as_tuple(), strict=True))
    return enclavia.Pcrs(**three, pcr8=key)


@kinds
def test_a_further_pin_stays_pinned_across_an_upgrade(kind: str) -> None:
    """The signer of the image, here: who may authorise an upgrade cannot change it."""
    one, two, three = (version_of(name).pcrs for name in ("one", "two", "three"))
    ours, theirs = b"\x08" * 48, b"\x09" * 48
    app = App("three")
    with upgradable(pcrs=with_key(one, ours)) as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("two"), pcrs=with_key(two, ours))
        attestation = attested(kind, enclave.url, **options)
        assert attestation.matched.pcrs == with_key(two, ours)
        enclave.upgrade(app, pcrs=with_key(three, theirs))
        refused(
            enclavia.UpgradeChainError,
            "PCR8",
            lambda: attested(kind, enclave.url, **options),
        )
        assert app.asked == 0


def test_copies_share_and_follow() -> None:
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("two"))
        with enclavia.Client(enclave.url, **options) as client:
            first, second = pickle.loads(pickle.dumps(client)), copy.copy(client)
            with first, second:
                assert first.get("/").text == second.get("/").text == "two"
                assert second.stats.connects == 1


def test_many_callers_wait_for_one_walk() -> None:
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        asked: list[str] = enclave._runner._backend.requests  # type: ignore[union-attr]
        enclave.upgrade(App("two"))
        with enclavia.Client(enclave.url, **options) as client:
            texts: list[str] = []
            together(*[lambda: texts.append(client.get("/").text)] * 8)
            assert texts == ["two"] * 8
        assert len(asked) == 2


def test_a_forwarder_follows() -> None:
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        del options["timeout"]
        with enclavia.Forwarder(enclave.url, **options) as forwarder:
            client_options = {**options, "timeout": 20.0}
            with enclavia.Client(enclave.url, via=forwarder.via, **client_options) as client:
                assert client.get("/").text == "one"
            enclave.upgrade(App("two"))
            with enclavia.Client(enclave.url, via=forwarder.via, **client_options) as client:
                assert client.get("/").text == "two"


# -- refused ----------------------------------------------------------------------------------


def upgraded_pair() -> tuple[App, App]:
    return App("one"), App("two")


WRONG: list[tuple[BackendFault, type[enclavia.EnclaviaError], str]] = [
    (BackendFault.WITHHELD_LINK, enclavia.UpgradeChainError, "to be the last one"),
    (BackendFault.FOREIGN_ENCLAVE_ID, enclavia.UpgradeChainError, "enclave_id"),
    (BackendFault.WRONG_CONTROL_KEY, enclavia.UpgradeChainError, "signature"),
    (BackendFault.OLD_LEAF, enclavia.UpgradeChainError, "has expired"),
    (BackendFault.DOWN, enclavia.BackendError, "cannot be reached"),
    (BackendFault.TOO_LARGE, enclavia.BackendError, "4194304"),
    (BackendFault.REDIRECT, enclavia.BackendError, "redirect to another place"),
    (BackendFault.PRIVATE, enclavia.BackendError, "token="),
]


@pytest.mark.parametrize(
    ("kind", "fault", "error", "fragment"),
    # All of them by one kind, and each way of failing by the others.
    [("Client", *wrong) for wrong in WRONG]
    + [(kind, *wrong) for kind in KINDS[1:] for wrong in (WRONG[1], WRONG[4], WRONG[5])],
)
def test_a_backend_that_does_wrong(
    kind: str, fault: BackendFault, error: Any, fragment: str
) -> None:
    one, two = upgraded_pair()
    with upgradable(one) as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(two)
        enclave.set_backend_faults(fault)
        more = {"patience": 0.0} if "Client" in kind else {}
        caught = refused(error, fragment, lambda: attested(kind, enclave.url, **options, **more))
        assert caught.retryable is (fault is BackendFault.DOWN)
        # The first error is kept, whatever came of the chain.
        assert isinstance(caught.__cause__, enclavia.PcrMismatch)
        assert one.asked == two.asked == 0


def test_a_relabelled_upgrade() -> None:
    one, two = upgraded_pair()
    with upgradable(one) as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("staged"), boot=False)
        enclave.revoke()
        enclave.upgrade(two)
        enclave.set_backend_faults(BackendFault.RELABELLED_ID)
        refused(
            enclavia.UpgradeChainError,
            "revokes",
            lambda: attested("Client", enclave.url, **options),
        )
        enclave.set_backend_faults()
        assert attested("Client", enclave.url, **options)


def test_a_backend_that_is_slow_does_not_hold_up_longer_than_asked() -> None:
    for kind in KINDS:
        with upgradable() as enclave:
            options = given(enclave, enclave.pcrs, timeout=1.0)
            enclave.upgrade(App("two"))
            enclave.set_backend_faults(BackendFault.SLOW)
            more = {"patience": 0.0} if "Client" in kind else {}
            with pytest.raises(enclavia.ConnectTimeout) as caught:
                attested(kind, enclave.url, **options, **more)
            assert "upgrade chain" in str(caught.value)


def test_a_backend_that_comes_back() -> None:
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("two"))
        enclave.set_backend_faults(BackendFault.DOWN)
        timer = threading.Timer(0.5, enclave.set_backend_faults)
        timer.start()
        with enclavia.Client(enclave.url, **options) as client:
            assert client.get("/").text == "two"
        timer.join()


def test_a_token_opens_a_private_enclave() -> None:
    with upgradable() as enclave:
        pinned = enclave.pcrs
        enclave.upgrade(App("two"))
        enclave.set_backend_faults(BackendFault.PRIVATE)
        upgrades = following(enclave, token=enclave.token)
        with enclavia.Client(
            enclave.url, **given(enclave, pinned, trust_upgrades=upgrades)
        ) as client:
            assert client.get("/").text == "two"
        wrong = following(enclave, token=SECRET)
        caught = refused(
            enclavia.BackendError,
            "401",
            lambda: attested("Client", enclave.url, **given(enclave, pinned, trust_upgrades=wrong)),
        )
        assert SECRET not in repr(caught) + str(caught.__cause__) + str(caught.__context__)


@pytest.mark.parametrize("how", ["sync", "asyncio"])
def test_an_error_does_not_lead_to_the_request_with_the_token(how: str) -> None:
    """httpx2's error has the request, whose headers somebody may log."""
    upgrades = enclavia.TrustUpgrades("http://127.0.0.1:9", ID, token=SECRET)
    pcrs = enclavia.Pcrs(pcr0="1" * 96, pcr1="2" * 96, pcr2="3" * 96)
    config = ChannelConfig.build("ws://127.0.0.1:9", pcrs=pcrs, trust_upgrades=upgrades)
    trust = config.trust()
    assert trust is not None
    mismatch = enclavia.PcrMismatch("another image")

    async def follow() -> None:
        io: Any = ThreadIo() if how == "sync" else LoopIo()
        with pytest.raises(enclavia.BackendError, match="cannot be reached") as caught:
            await trust.mismatch(io, mismatch, config.pins, None)
        error: BaseException | None = caught.value
        assert error.__cause__ is mismatch
        while error is not None:
            assert isinstance(error, enclavia.EnclaviaError)
            error = error.__context__

    drive(how, follow)


def test_a_rollback_is_refused_unless_allowed() -> None:
    one, two = upgraded_pair()
    with upgradable(one) as enclave:
        enclave.upgrade(App("middle"))
        pinned = enclave.pcrs
        enclave.upgrade(two)
        enclave.upgrade(App("three"))
        assert enclave.rollback() != pinned
        refused(
            enclavia.UpgradeChainError,
            "allow_rollback",
            lambda: attested("Client", enclave.url, **given(enclave, pinned)),
        )
        allowed = following(enclave, allow_rollback=True)
        with enclavia.Client(
            enclave.url, **given(enclave, pinned, trust_upgrades=allowed)
        ) as client:
            assert client.get("/").text == "two"


def test_a_client_does_not_go_back_to_the_pinned_version() -> None:
    """Once it has followed an upgrade, the version that was pinned is an earlier one."""
    one, two = upgraded_pair()
    with upgradable(one) as enclave:
        options = given(enclave, enclave.pcrs)
        with enclavia.Client(enclave.url, **options) as client:
            client.get("/")
            enclave.upgrade(two)
            client.get("/")
            enclave.rollback()
            before = one.asked
            with pytest.raises(enclavia.UpgradeChainError, match="allow_rollback"):
                client.get("/")
            assert one.asked == before


def test_links_that_were_seen_cannot_be_withheld_from_the_same_client() -> None:
    one, two = upgraded_pair()
    with upgradable(one) as enclave:
        options = given(enclave, enclave.pcrs)
        with enclavia.Client(enclave.url, **options) as client:
            enclave.upgrade(two)
            client.get("/")
            enclave.rollback()
            enclave.set_backend_faults(BackendFault.WITHHELD_LINK)
            # The chain then ends before the rollback, and with the version that is pinned to.
            with pytest.raises(enclavia.UpgradeChainError):
                client.get("/")


def test_an_unauthorised_version() -> None:
    one = App("one")
    with upgradable(one) as enclave:
        options = given(enclave, enclave.pcrs)
        other = enclavia.Pcrs(pcr0="1" * 96, pcr1="2" * 96, pcr2="3" * 96)
        enclave.set_identity(pcrs=other)
        caught = refused(
            enclavia.UpgradeChainError,
            "running version",
            lambda: attested("Client", enclave.url, **options),
        )
        assert isinstance(caught.__cause__, enclavia.PcrMismatch)
        assert one.asked == 0


def test_another_enclaves_chain() -> None:
    with upgradable() as enclave, upgradable() as another:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("two"))
        foreign = enclavia.TrustUpgrades(another.backend, another.enclave_id)
        refused(
            enclavia.UpgradeChainError,
            "",
            lambda: attested("Client", enclave.url, **{**options, "trust_upgrades": foreign}),
        )


# -- the high-water mark ----------------------------------------------------------------------


def test_a_mark_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mark.json"
    with upgradable() as enclave:
        pinned = enclave.pcrs
        upgrades = following(enclave, high_water=path)
        options = given(enclave, pinned, trust_upgrades=upgrades)
        assert attested("Client", enclave.url, **options)
        assert not path.exists()  # nothing was followed
        enclave.upgrade(App("two"))
        assert attested("Client", enclave.url, **options)
        assert json.loads(path.read_text())["links"] == 3
        enclave.upgrade(App("three"))
        for kind in KINDS:
            assert attested(kind, enclave.url, **options)
        assert json.loads(path.read_text())["links"] == 5
        assert os.stat(path).st_mode & 0o077 == 0
        assert sorted(each.name for each in tmp_path.iterdir()) == ["mark.json", "mark.json.lock"]
        enclave.set_backend_faults(BackendFault.WITHHELD_LINK)
        refused(
            enclavia.UpgradeChainError,
            "withheld",
            lambda: attested("Client", enclave.url, **options),
        )


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"x" * 2_000_000])
def test_a_mark_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mark.json"
    path.write_bytes(content)
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs, trust_upgrades=following(enclave, high_water=path))
        enclave.upgrade(App("two"))
        refused(
            enclavia.UpgradeChainError,
            "high-water mark",
            lambda: attested("Client", enclave.url, **options),
        )
        assert path.read_bytes() == content


def test_a_place_where_no_mark_can_be_kept(tmp_path: Path) -> None:
    with upgradable() as enclave:
        path = tmp_path / "missing" / "mark.json"
        options = given(enclave, enclave.pcrs, trust_upgrades=following(enclave, high_water=path))
        enclave.upgrade(App("two"))
        refused(
            enclavia.UpgradeChainError,
            "cannot be kept",
            lambda: attested("Client", enclave.url, **options),
        )


@kinds
def test_a_mark_by_a_function(kind: str) -> None:
    kept: list[str] = []

    def keep(mark: str | None) -> str | None:
        if mark is not None:
            kept.append(mark)
        return kept[-1] if kept else None

    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs, trust_upgrades=following(enclave, high_water=keep))
        enclave.upgrade(App("two"))
        assert attested(kind, enclave.url, **options)
        assert [json.loads(each)["links"] for each in kept] == [3]
        enclave.set_backend_faults(BackendFault.WITHHELD_LINK)
        refused(
            enclavia.UpgradeChainError,
            "withheld",
            lambda: attested(kind, enclave.url, **options),
        )


@pytest.mark.parametrize("answer", [5, b"x", "no mark", ZeroDivisionError("a bug")])
def test_a_function_that_does_wrong(answer: Any) -> None:
    def keep(mark: str | None) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs, trust_upgrades=following(enclave, high_water=keep))
        enclave.upgrade(App("two"))
        refused(
            enclavia.UpgradeChainError,
            "high",
            lambda: attested("Client", enclave.url, **options),
        )


# -- the setting itself -----------------------------------------------------------------------

ID = uuid.UUID(int=5)
LOOSE = [ID.hex, f"{{{ID}}}", ID.urn, f"+{ID.hex[1:]}", "0_" * 15 + "05", "\uff10" * 31 + "5", ""]
"""What the standard library reads as a UUID, apart from the last one."""


def test_the_token_is_seen_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    upgrades = enclavia.TrustUpgrades("https://localhost:1", ID, token=SECRET)
    assert SECRET not in repr(upgrades) + str(upgrades)
    pcrs = enclavia.Pcrs(pcr0="1" * 96, pcr1="2" * 96, pcr2="3" * 96)
    client = enclavia.Client("ws://localhost:1", pcrs=pcrs, trust_upgrades=upgrades)
    engine = client._enclave._engine
    assert SECRET not in repr(client) + repr(engine.config) + repr(client._enclave._settings)
    assert SECRET not in repr(engine.config.upgrades)
    assert SECRET not in repr(tuple(engine.config))
    client.close()
    with pytest.raises(ValueError, match="token") as caught:
        enclavia.TrustUpgrades("https://localhost:1", ID, token=SECRET + " \n")
    assert SECRET not in str(caught.value)
    with upgradable() as enclave:
        options = given(
            enclave,
            enclave.pcrs,
            trust_upgrades=following(enclave, token=SECRET),
        )
        enclave.upgrade(App("two"))
        for fault in BackendFault:
            if fault is BackendFault.SLOW:
                continue
            enclave.set_backend_faults(fault)
            with contextlib.suppress(enclavia.EnclaviaError) as _:
                attested("Client", enclave.url, **options, patience=0.0)
    assert SECRET not in caplog.text


def test_it_is_a_value() -> None:
    one = enclavia.TrustUpgrades("https://example.org/", str(ID), SECRET, True, "mark")
    assert pickle.loads(pickle.dumps(one)) == one == copy.copy(one)
    assert hash(one) == hash(copy.deepcopy(one))
    assert one != enclavia.TrustUpgrades("https://example.org", ID)
    assert one.backend == "https://example.org"
    assert one.enclave_id == ID
    assert one.allow_rollback is True
    with pytest.raises(AttributeError):
        one.backend = "x"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del one.backend  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "fragment"),
    [
        (("http://example.org", ID), ValueError, "https"),
        (("ftp://example.org", ID), ValueError, "https"),
        (("https://", ID), ValueError, "backend"),
        (("https://u:p@example.org", ID), ValueError, "credentials"),
        (("https://example.org?x=1", ID), ValueError, "query"),
        ((5, ID), TypeError, "backend"),
        (("https://example.org", "x"), ValueError, "enclave_id"),
        (("https://example.org", 5), TypeError, "enclave_id"),
        *((("https://example.org", text), ValueError, "with hyphens") for text in LOOSE),
        (("https://example.org", ID, 5), TypeError, "token"),
        (("https://example.org", ID, ""), ValueError, "token"),
        (("https://example.org", ID, None, 1), TypeError, "allow_rollback"),
        (("https://example.org", ID, None, False, 5), TypeError, "high_water"),
        (("https://example.org", ID, None, False, ""), ValueError, "high_water"),
    ],
)
def test_what_it_refuses(arguments: Any, error: type[Exception], fragment: str) -> None:
    with pytest.raises(error, match=fragment):
        enclavia.TrustUpgrades(*arguments)


@pytest.mark.parametrize("backend", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"])
def test_http_on_loopback(backend: str) -> None:
    assert enclavia.TrustUpgrades(backend, ID).backend == backend


def test_a_chain_begins_at_pins() -> None:
    upgrades = enclavia.TrustUpgrades("https://example.org", ID)
    with pytest.raises(ValueError, match="trust_upgrades"):
        enclavia.Client("ws://localhost:1", debug_mode=True, trust_upgrades=upgrades)
    pcrs = enclavia.Pcrs(pcr0="1" * 96, pcr1="2" * 96, pcr2="3" * 96)
    with pytest.raises(TypeError, match="trust_upgrades"):
        enclavia.Client("ws://localhost:1", pcrs=pcrs, trust_upgrades=str(ID))  # type: ignore[arg-type]


# -- broken off -------------------------------------------------------------------------------


def test_cancelled_in_the_middle() -> None:
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("two"))
        requests = enclave._runner._backend.requests  # type: ignore[union-attr]

        async def main() -> None:
            async with enclavia.AsyncClient(enclave.url, **options) as client:
                enclave.upgrade(App("three"))
                enclave.set_backend_faults(BackendFault.SLOW)
                requests.clear()
                task = asyncio.create_task(client.get("/"))
                while not requests:
                    await asyncio.sleep(0.01)
                other = asyncio.create_task(client.get("/"))
                await asyncio.sleep(0)
                enclave.set_backend_faults()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                # Who waited behind it goes on in its place.
                assert (await other).text == "three"
                assert client.stats.waiting == 0
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left

        asyncio.run(main())


class Interrupted(Exception):
    pass


def test_interrupted_in_the_middle() -> None:
    """By a signal's handler that raises, as Ctrl-C does."""
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("two"))
        requests = enclave._runner._backend.requests  # type: ignore[union-attr]

        def interrupt(number: int, frame: object) -> None:
            raise Interrupted

        before = signal.signal(signal.SIGUSR1, interrupt)

        def when_asked() -> None:
            eventually(lambda: bool(requests))
            os.kill(os.getpid(), signal.SIGUSR1)

        try:
            client = enclavia.Client(enclave.url, **options)
            enclave.upgrade(App("three"))
            enclave.set_backend_faults(BackendFault.SLOW)
            thread = threading.Thread(target=when_asked)
            thread.start()
            with pytest.raises(Interrupted):
                client.get("/")
            thread.join()
            enclave.set_backend_faults()
            assert client.get("/").text == "three"
            assert client.stats.waiting == 0
            eventually(lambda: not [t for t in threading.enumerate() if t.name == "enclavia-fetch"])
            client.close()
        finally:
            signal.signal(signal.SIGUSR1, before)


def test_a_peer_that_sends_a_byte_at_a_time_ends_by_the_deadline() -> None:
    """Headers that never end: no read of it ever times out by itself."""
    stopping = threading.Event()

    def drip(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nX: ")
        while not stopping.wait(0.05):
            connection.send(b"x")

    with ByteServer(drip) as server, upgradable() as enclave:
        slow = enclavia.TrustUpgrades(f"http://{server.address}", enclave.enclave_id)
        options = given(enclave, enclave.pcrs, trust_upgrades=slow, timeout=0.5)
        enclave.upgrade(App("two"))
        with pytest.raises(enclavia.ConnectTimeout, match="upgrade chain"):
            attested("Channel", enclave.url, **options)
        with pytest.raises(enclavia.ConnectTimeout, match="upgrade chain"):
            attested("AsyncChannel", enclave.url, **options)
        stopping.set()


def test_a_mismatch_of_somebody_elses_pins_is_not_followed() -> None:
    """What a forwarder says of its own pins, which were just changed."""
    upgrades = enclavia.TrustUpgrades("http://127.0.0.1:9", ID)
    pcrs = enclavia.Pcrs(pcr0="1" * 96, pcr1="2" * 96, pcr2="3" * 96)
    config = ChannelConfig.build("ws://127.0.0.1:9", pcrs=pcrs, trust_upgrades=upgrades)
    trust = config.trust()
    assert trust is not None
    theirs = enclavia.PcrMismatch("the forwarder's pins were changed", retryable=True)
    assert run(trust.mismatch(ThreadIo(), theirs, config.pins, None)) is False
    ours = enclavia.PcrMismatch("another image")
    with pytest.raises(enclavia.BackendError):
        run(trust.mismatch(ThreadIo(), ours, config.pins, None))


def test_adapters_follow() -> None:
    over_requests = pytest.importorskip("enclavia.requests")
    over_httpx = pytest.importorskip("enclavia.httpx")
    httpx = pytest.importorskip("httpx")
    with upgradable() as enclave:
        options = given(enclave, enclave.pcrs)
        enclave.upgrade(App("two"))
        with over_requests.session(enclave.url, **options) as session:
            assert session.get(session.base_url).text == "two"
            assert session.stats.upgrades_followed == 1
        transport = over_httpx.EnclaveTransport(enclave.url, **options)
        with httpx.Client(transport=transport, base_url=transport.base_url) as client:
            assert client.get("/").text == "two"
