"""The error tree: what each error is, and that it survives copying and pickling."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
from typing import Any

import httpx2
import pytest

import enclavia
from enclavia import _core, _errors

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
        (enclavia.BackendError, httpx2.TransportError),
        (enclavia.SigstoreError, ValueError),
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
        (enclavia.AttestationRefused, enclavia.AttestationError),
        (enclavia.ReceiptError, enclavia.AttestationError),
        (enclavia.PolicyExpired, enclavia.AttestationError),
        (enclavia.UpgradeRejected, enclavia.ConnectError),
        (enclavia.PinsUnavailable, enclavia.ConnectError),
        (enclavia.ForkedError, enclavia.StateError),
        (enclavia.DigestMismatch, enclavia.DownloadError),
        (enclavia.FileChanged, OSError),
        (enclavia.RangesUnsupported, io.UnsupportedOperation),
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


@pytest.mark.parametrize("cls", CLASSES)
def test_a_copy_has_the_cause(cls: type[Any]) -> None:
    """Each of several requests that wait for one connection is told why it failed by a copy."""
    why = LookupError("why")
    try:
        raise cls("expected this, got that") from why
    except enclavia.EnclaviaError as error:
        assert copy.copy(error).__cause__ is why
        # Not by pickle.dumps: a program that imports dask.distributed pickles every exception with
        # its cause (tblib), and so does this one where that is installed.
        rebuild, state = error.__reduce__()
        assert rebuild(*state).__cause__ is None


def test_detail_survives_pickling() -> None:
    error = enclavia.PcrMismatch("PCR2 differs", index=2, expected=b"a" * 48, actual=b"b" * 48)
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.index, twin.expected, twin.actual) == (2, b"a" * 48, b"b" * 48)
    rejected = pickle.loads(pickle.dumps(enclavia.UpgradeRejected("no", status=503, head=b"H")))
    assert (rejected.status, rejected.head, rejected.retryable) == (503, b"H", True)
    assert pickle.loads(pickle.dumps(enclavia.ServerError("no", id=7))).id == 7
    for cls in (enclavia.CertificateError, enclavia.PcrMismatch):
        assert pickle.loads(pickle.dumps(cls("no", hint="debug enclave"))).hint == "debug enclave"


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(404, False), (403, False), (408, True), (429, True), (500, True), (599, True), (200, False)],
)
def test_upgrade_rejected_is_retryable_by_status(status: int, retryable: bool) -> None:
    assert enclavia.UpgradeRejected("no", status=status).retryable is retryable


def test_what_may_be_retried_by_default() -> None:
    retryable = {cls.__name__ for cls in CLASSES if cls("why").retryable}
    assert retryable == {
        "BackendError", "ConnectError", "ConnectionClosed", "ConnectTimeout", "IncompleteResponse",
        "ReadTimeout", "WriteTimeout", "PinsUnavailable", "PoolTimeout",
    }  # fmt: skip


def test_request_is_asked_for_before_it_is_known() -> None:
    with pytest.raises(RuntimeError, match="request"):
        _ = enclavia.ReadTimeout("late").request


OF_THE_CORE: dict[str, type[Exception]] = {
    "out of memory": MemoryError, "invalid argument": ValueError,
    "invalid URL": enclavia.InvalidURL, "wrong state": enclavia.StateError,
    "connect error": enclavia.ConnectError, "upgrade rejected": enclavia.UpgradeRejected,
    "connection closed": enclavia.ConnectionClosed, "connect timeout": enclavia.ConnectTimeout,
    "read timeout": enclavia.ReadTimeout, "write timeout": enclavia.WriteTimeout,
    "pool timeout": enclavia.PoolTimeout, "protocol error": enclavia.ProtocolError,
    "document error": enclavia.DocumentError, "certificate error": enclavia.CertificateError,
    "signature error": enclavia.SignatureError, "nonce mismatch": enclavia.NonceMismatch,
    "PCR mismatch": enclavia.PcrMismatch, "server error": enclavia.ServerError,
    "forked process": enclavia.ForkedError, "internal error": enclavia.InternalError,
    "slow reader": enclavia.SlowReader,
}  # fmt: skip


@pytest.mark.parametrize("name", [*_core.ERROR_NAMES, "an error of a later core"])
def test_errors_of_the_core(name: str) -> None:
    """Every error that the core has, by the name that the core itself gives it."""
    error = _errors.from_core(name, "why", True, {})
    assert type(error) is OF_THE_CORE.get(name, enclavia.InternalError)
    assert str(error) == "why"
    if isinstance(error, enclavia.EnclaviaError):
        assert error.retryable is True


def test_the_core_and_the_package_name_the_same_errors() -> None:
    assert list(OF_THE_CORE) == list(_core.ERROR_NAMES)
    assert list(_errors._CLASSES) == list(_core.ERROR_NAMES)
    assert len(set(_errors._CLASSES.values())) == len(_core.ERROR_NAMES)


def test_every_code_of_the_header_has_a_name(request: pytest.FixtureRequest) -> None:
    header = (request.config.rootpath / "csrc/base/error.h").read_text()
    enum = header.split("typedef enum encl_code {")[1].split("} encl_code;")[0]
    codes = re.findall(r"^\s*(ENCL_E_\w+),", enum, re.MULTILINE)
    assert len(codes) == len(set(_core.ERROR_NAMES)) == 21


def test_detail_of_the_core() -> None:
    detail: dict[str, Any] = {"index": 1, "expected": b"e", "actual": b"a"}
    pcr = _errors.from_core("PCR mismatch", "PCR1", False, detail)
    assert isinstance(pcr, enclavia.PcrMismatch)
    assert (pcr.index, pcr.expected, pcr.actual, pcr.retryable) == (1, b"e", b"a", False)
    assert pcr.hint is None
    for name in ("PCR mismatch", "document error", "certificate error"):
        error = _errors.from_core(name, "why", False, {"hint": "another root"})
        assert isinstance(error, enclavia.AttestationError)
        assert error.hint == "another root"
    server = _errors.from_core("server error", "unknown stream id", False, {"id": 9})
    assert isinstance(server, enclavia.ServerError)
    assert server.id == 9
    rejected = _errors.from_core(
        "upgrade rejected", "no", False, {"status": 404, "head": b"HTTP/1.1 404"}
    )
    assert isinstance(rejected, enclavia.UpgradeRejected)
    assert (rejected.status, rejected.head) == (404, b"HTTP/1.1 404")


def test_everything_named_is_there() -> None:
    for name in enclavia.__all__:
        assert getattr(enclavia, name) is not None
    assert set(enclavia.__all__) <= set(dir(enclavia))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = enclavia.nothing_of_the_kind
