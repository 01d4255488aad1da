"""The error tree: what each error is, and that it survives copying and pickling."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import httpx2
import pytest

import enclavia
from enclavia import _errors

CLASSES = [
    cls
    for _, cls in inspect.getmembers(_errors, inspect.isclass)
    if issubclass(cls, _errors.EnclaviaError)
]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (enclavia.ConnectError, httpx2.ConnectError),
        (enclavia.UpgradeRejected, httpx2.ConnectError),
        (enclavia.ConnectionClosed, httpx2.NetworkError),
        (enclavia.ConnectTimeout, httpx2.ConnectTimeout),
        (enclavia.ReadTimeout, httpx2.ReadTimeout),
        (enclavia.WriteTimeout, httpx2.WriteTimeout),
        (enclavia.PoolTimeout, httpx2.PoolTimeout),
        (enclavia.ProtocolError, httpx2.RemoteProtocolError),
        (enclavia.AttestationError, httpx2.TransportError),
        (enclavia.ServerError, httpx2.ReadError),
        (enclavia.IncompleteResponse, enclavia.ConnectionClosed),
        (enclavia.IncompleteResponse, httpx2.RemoteProtocolError),
        (enclavia.UpgradeChainError, httpx2.TransportError),
        (enclavia.InvalidURL, httpx2.InvalidURL),
        (enclavia.InvalidURL, ValueError),
        (enclavia.ForeignURL, httpx2.UnsupportedProtocol),
        (enclavia.ForeignURL, ValueError),
        (enclavia.InvalidRequest, httpx2.LocalProtocolError),
        (enclavia.ConnectTimeout, TimeoutError),
        (enclavia.ReadTimeout, TimeoutError),
        (enclavia.WriteTimeout, TimeoutError),
        (enclavia.PoolTimeout, TimeoutError),
        (enclavia.DocumentError, enclavia.AttestationError),
        (enclavia.CertificateError, enclavia.AttestationError),
        (enclavia.SignatureError, enclavia.AttestationError),
        (enclavia.NonceMismatch, enclavia.AttestationError),
        (enclavia.PcrMismatch, enclavia.AttestationError),
        (enclavia.UpgradeRejected, enclavia.ConnectError),
        (enclavia.ForkedError, enclavia.StateError),
    ],
)
def test_is_also(ours: type[Exception], theirs: type[Exception]) -> None:
    assert issubclass(ours, enclavia.EnclaviaError)
    with pytest.raises(theirs):
        raise ours("why")


@pytest.mark.parametrize("cls", CLASSES)
def test_message_and_copies(cls: type[Any]) -> None:
    error = cls("expected this, got that", retryable=True)
    error.request = httpx2.Request("GET", "https://enclave/")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is cls
        assert str(twin) == "expected this, got that"
        assert twin.args == ("expected this, got that",)
        assert twin.retryable is True
        assert twin.request.url == "https://enclave/"
        assert {name: value for name, value in vars(twin).items() if name != "_request"} == {
            name: value for name, value in vars(error).items() if name != "_request"
        }


def test_detail_survives_pickling() -> None:
    error = enclavia.PcrMismatch("PCR2 differs", index=2, expected=b"a" * 48, actual=b"b" * 48)
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.index, twin.expected, twin.actual) == (2, b"a" * 48, b"b" * 48)
    rejected = pickle.loads(pickle.dumps(enclavia.UpgradeRejected("no", status=503, head=b"H")))
    assert (rejected.status, rejected.head, rejected.retryable) == (503, b"H", True)
    assert pickle.loads(pickle.dumps(enclavia.ServerError("no", id=7))).id == 7


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(404, False), (403, False), (408, True), (429, True), (500, True), (599, True), (200, False)],
)
def test_upgrade_rejected_is_retryable_by_status(status: int, retryable: bool) -> None:
    assert enclavia.UpgradeRejected("no", status=status).retryable is retryable


def test_what_may_be_retried_by_default() -> None:
    retryable = {cls.__name__ for cls in CLASSES if cls("why").retryable}
    assert retryable == {
        "ConnectError", "ConnectionClosed", "ConnectTimeout", "IncompleteResponse",
        "ReadTimeout", "WriteTimeout", "PoolTimeout",
    }  # fmt: skip


def test_request_is_asked_for_before_it_is_known() -> None:
    with pytest.raises(RuntimeError, match="request"):
        _ = enclavia.ReadTimeout("late").request


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (1, MemoryError), (2, ValueError), (3, enclavia.InvalidURL), (4, enclavia.StateError),
        (5, enclavia.ConnectError), (6, enclavia.UpgradeRejected), (7, enclavia.ConnectionClosed),
        (8, enclavia.ConnectTimeout), (9, enclavia.ReadTimeout), (10, enclavia.WriteTimeout),
        (11, enclavia.PoolTimeout), (12, enclavia.ProtocolError), (13, enclavia.DocumentError),
        (14, enclavia.CertificateError), (15, enclavia.SignatureError),
        (16, enclavia.NonceMismatch), (17, enclavia.PcrMismatch), (18, enclavia.ServerError),
        (19, enclavia.ForkedError), (20, enclavia.InternalError), (21, enclavia.SlowReader),
        (999, enclavia.InternalError),
    ],
)  # fmt: skip
def test_codes_of_the_core(code: int, cls: type[Exception]) -> None:
    error = _errors.from_core(code, "why", True, {})
    assert type(error) is cls
    assert str(error) == "why"
    if isinstance(error, enclavia.EnclaviaError):
        assert error.retryable is True


def test_codes_match_the_header(request: pytest.FixtureRequest) -> None:
    """The numbers above are those of csrc/base/error.h, in its order."""
    header = (request.config.rootpath / "csrc/base/error.h").read_text()
    enum = header.split("typedef enum encl_code {")[1].split("} encl_code;")[0]
    names = [line.split("=")[0].split(",")[0].strip() for line in enum.splitlines()]
    names = [name for name in names if name.startswith("ENCL_")]
    assert names[0] == "ENCL_OK"
    assert names[-1] == "ENCL_E_COUNT_"
    assert len(names) - 2 == 21
    assert names.index("ENCL_E_PCR") == 17
    assert names.index("ENCL_E_FORKED") == 19
    assert names.index("ENCL_E_SLOW_READER") == 21


def test_detail_of_the_core() -> None:
    detail: dict[str, Any] = {"index": 1, "expected": b"e", "actual": b"a"}
    pcr = _errors.from_core(17, "PCR1", False, detail)
    assert isinstance(pcr, enclavia.PcrMismatch)
    assert (pcr.index, pcr.expected, pcr.actual, pcr.retryable) == (1, b"e", b"a", False)
    server = _errors.from_core(18, "unknown stream id", False, {"id": 9})
    assert isinstance(server, enclavia.ServerError)
    assert server.id == 9
    rejected = _errors.from_core(6, "no", False, {"status": 404, "head": b"HTTP/1.1 404"})
    assert isinstance(rejected, enclavia.UpgradeRejected)
    assert (rejected.status, rejected.head) == (404, b"HTTP/1.1 404")


def test_everything_named_is_there() -> None:
    for name in enclavia.__all__:
        assert getattr(enclavia, name) is not None
    assert set(enclavia.__all__) <= set(dir(enclavia))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = enclavia.nothing_of_the_kind
