"""Errors of the adapters: each row of the tables in docs/reference.md is provoked, and what a
workload does wrong ends as with requests on a socket."""

from __future__ import annotations

import contextlib
import functools
import pickle
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from raw_server import unused_port
from repository import ROOT
from support import ByteServer, Connection, byte_enclave, keywords, ok

import enclavia
from enclavia.testing import Fault, LocalEnclave

requests = pytest.importorskip("requests")
httpx = pytest.importorskip("httpx")

import enclavia.httpx as over_httpx  # noqa: E402
import enclavia.requests as over_requests  # noqa: E402

REFERENCE = (ROOT / "docs" / "reference.md").read_text()
SHORT = 0.3

# ---------------------------------------------------------------------------------------------
# Rows of the reference


class Rows:
    """A table of docs/reference.md below a heading: the names of the first column, and the others'
    classes by name. A class "that is also" another is a list of both."""

    def __init__(self, heading: str, columns: int) -> None:
        section = REFERENCE.partition(f"### `{heading}`")[2].partition("\n##")[0]
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        self.rows: list[tuple[str, list[list[str]]]] = []
        for line in lines[2:] if lines[1].startswith("| ---") else lines[1:]:
            first, *others = [cell.strip() for cell in line.strip("|").split("|")]
            if "---" in first:
                continue
            assert len(others) == columns
            suffix = " because" if "because" in first else ""
            for name in re.findall(r"`(\w+)`", first.partition(" because")[0]):
                self.rows.append((name + suffix, [re.findall(r"`(\w+)`", c) for c in others]))

    def cases(self, column: int) -> Iterator[tuple[str, list[str]]]:
        for name, others in self.rows:
            if others[column] or column == 0:
                yield name, others[column]


REQUESTS = Rows("enclavia.requests", 2)
HTTPX = Rows("enclavia.httpx", 1)


class Provoked:
    """An enclave with a workload that goes wrong, and how to ask it."""

    def __init__(
        self,
        script: Callable[[Connection], None] | None = None,
        *,
        method: str = "POST",
        path: str = "x",
        url: str | None = None,
        timeout: Any = None,
        body: bytes = b"",
        faults: Fault = Fault(0),  # noqa: B008 - an immutable flag
        before: Callable[[Any, LocalEnclave], object] | None = None,
        injected: enclavia.EnclaviaError | None = None,
        **options: Any,
    ) -> None:
        self.script = script or (lambda connection: connection.wait_closed() and None)
        self.method, self.path, self.url, self.body = method, path, url, body
        self.timeout = timeout
        self.faults = faults
        self.before = before
        self.injected = injected
        self.options = options

    @contextlib.contextmanager
    def enclave(self) -> Iterator[LocalEnclave]:
        made: list[LocalEnclave] = []

        def script(connection: Connection) -> None:
            connection.enclave = made[0]  # type: ignore[attr-defined]
            self.script(connection)

        with byte_enclave(script, faults=self.faults) as (enclave, _):
            made.append(enclave)
            yield enclave


# Set by the client that has the beginning of a body: what is dropped earlier is no body.
BEGUN = threading.Event()


def after_head(*, then: Callable[[Connection], object]) -> Callable[[Connection], None]:
    def script(connection: Connection) -> None:
        connection.request()
        BEGUN.clear()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        BEGUN.wait(5)
        then(connection)

    return script


def after_request(then: Callable[[Connection], object]) -> Callable[[Connection], None]:
    def script(connection: Connection) -> None:
        connection.request()
        then(connection)

    return script


def silent(connection: Connection) -> None:
    connection.wait_closed()


def dropped(connection: Connection) -> None:
    connection.enclave.drop_connections()  # type: ignore[attr-defined]
    connection.wait_closed()


def reset(connection: Connection) -> None:
    connection.reset()


def hung_up(connection: Connection) -> None:
    pass


def saying(answer: bytes) -> Callable[[Connection], None]:
    return after_request(lambda connection: connection.send(answer))


def hold_the_only_slot(transport: Any, enclave: LocalEnclave) -> object:
    request = httpx2.Request("POST", transport.base_url + "held", extensions={"timeout": {}})
    thread = threading.Thread(
        target=lambda: (
            contextlib.suppress(Exception).__enter__()
            or _ignore(lambda: transport._enclave.handle_request(request))
        ),
        daemon=True,
    )
    thread.start()
    while not enclave.stats()["slots_open"]:
        pass
    return thread


def _ignore(call: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        call()


WRONG = enclavia.Pcrs(pcr0=b"\1" * 48, pcr1=b"\1" * 48, pcr2=b"\1" * 48)
LARGE = bytes(64 * 1024 * 1024)
# Raised itself in tests/python/trust; here it is looked at what the adapters make of it.
BROKEN_CHAIN = enclavia.UpgradeChainError("no chain")

BEFORE: dict[str, Provoked] = {
    "ConnectTimeout": Provoked(faults=Fault.SILENT_HANDSHAKE, timeout=(SHORT, 5)),
    "PoolTimeout": Provoked(
        timeout=(SHORT, 5), max_in_flight=1, max_channels=1, before=hold_the_only_slot
    ),
    "ReadTimeout": Provoked(after_request(silent), timeout=(5, SHORT)),
    "WriteTimeout": Provoked(body=LARGE, timeout=(5, SHORT), script=lambda c: _stalled(c)),
    "AttestationError": Provoked(pcrs=WRONG),
    "BackendError": Provoked(
        pcrs=WRONG,
        trust_upgrades=enclavia.TrustUpgrades(
            f"http://127.0.0.1:{unused_port()}", uuid.UUID(int=1)
        ),
        patience=0.0,
    ),
    "UpgradeChainError": Provoked(injected=BROKEN_CHAIN),
    "ForeignURL": Provoked(url="https://other.example/"),
    "InvalidURL": Provoked(injected=enclavia.InvalidURL("given to the constructor only")),
    "ConnectError": Provoked(before=lambda _, enclave: enclave.stop(), patience=0.0),
    "ConnectionClosed": Provoked(after_request(dropped)),
    "IncompleteResponse": Provoked(after_request(hung_up)),
    "ServerError": Provoked(after_request(reset)),
    "ProtocolError": Provoked(saying(b"garbage\r\n\r\n")),
    "ProtocolError because": Provoked(
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok")
    ),
    "InvalidRequest": Provoked(method="NO SUCH"),
    "StateError": Provoked(before=lambda transport, _: transport.close()),
    "InternalError": Provoked(injected=enclavia.InternalError("a bug")),
}
WITHIN: dict[str, Provoked] = {
    "ReadTimeout": Provoked(after_head(then=silent), timeout=(5, SHORT)),
    "WriteTimeout": Provoked(injected=enclavia.WriteTimeout("the upload beside the answer")),
    "ConnectError": Provoked(injected=enclavia.ConnectError("only while connecting")),
    "ConnectionClosed": Provoked(after_head(then=dropped)),
    "IncompleteResponse": Provoked(after_head(then=hung_up)),
    "ServerError": Provoked(after_head(then=reset)),
    "ProtocolError": Provoked(
        saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n")
    ),
    "InvalidRequest": Provoked(injected=enclavia.InvalidRequest("a body that ended early")),
    "StateError": Provoked(injected=enclavia.StateError("closed meanwhile")),
    "InternalError": Provoked(injected=enclavia.InternalError("a bug")),
}


def _stalled(connection: Connection) -> None:
    connection.head()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    threading.Event().wait(5)


class Cut(httpx2.SyncByteStream):
    def __init__(self, error: enclavia.EnclaviaError) -> None:
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        yield b"half"
        raise self._error


def inject(transport: Any, error: enclavia.EnclaviaError, within: bool) -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        if not within:
            raise error
        return httpx2.Response(
            200,
            stream=Cut(error),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": b"OK"},
        )

    transport._enclave.handle_request = handle


def fits(error: BaseException, expected: list[str], library: Any) -> None:
    for name in expected:
        assert isinstance(error, getattr(library, name))
    # and nothing more special than what the row says
    bases = [cls for cls in type(error).__mro__ if cls.__module__ == library.__name__]
    assert bases[0].__name__ in expected


def test_every_row_is_provoked() -> None:
    assert {name for name, _ in REQUESTS.cases(0)} <= BEFORE.keys()
    assert {name for name, _ in REQUESTS.cases(1)} <= WITHIN.keys()
    assert {name for name, _ in HTTPX.cases(0)} <= BEFORE.keys()
    # Every error that a request can end in has a row, itself or by a class above it.
    # A SigstoreError is the cause of a PinsUnavailable there; files are the client's own.
    no_errors_of_requests = {"EnclaviaError", "DebugModeWarning", "ForkedError", "SigstoreError"}
    no_errors_of_requests |= {"DownloadError", "DigestMismatch", "FileChanged", "RangesUnsupported"}
    for rows in (REQUESTS, HTTPX):
        named = tuple(getattr(enclavia, n.removesuffix(" because")) for n, _ in rows.cases(0))
        for name in enclavia.__all__:
            thing = getattr(enclavia, name)
            if isinstance(thing, type) and issubclass(thing, enclavia.EnclaviaError):
                assert issubclass(thing, named) or name in no_errors_of_requests, name


@pytest.mark.parametrize(
    ("within", "name", "expected"),
    [
        pytest.param(within, *case, id=f"{'within' if within else 'before'}-{case[0]}")
        for within in (False, True)
        for case in REQUESTS.cases(int(within))
    ],
)
def test_requests_rows(within: bool, name: str, expected: list[str]) -> None:
    case = (WITHIN if within else BEFORE)[name]
    with case.enclave() as enclave:
        adapter = over_requests.EnclaveAdapter(enclave.url, **{**keywords(enclave), **case.options})
        with requests.Session() as session:
            session.trust_env = False
            session.mount("https://", adapter)
            if case.before is not None:
                case.before(adapter, enclave)
            if case.injected is not None:
                inject(adapter, case.injected, within)
            url = case.url or adapter.base_url + case.path
            ask = functools.partial(session.request, case.method, url, data=case.body)
            if within:
                got = ask(timeout=case.timeout, stream=True)
                pieces = got.iter_content(2)
                assert next(pieces) in (b"ha", b"ok")
                BEGUN.set()
                ask = functools.partial(list, pieces)
            else:
                ask = functools.partial(ask, timeout=case.timeout)
            with pytest.raises(requests.exceptions.RequestException) as caught:
                ask()
        fits(caught.value, expected, requests.exceptions)
        assert isinstance(caught.value.__cause__, getattr(enclavia, name.removesuffix(" because")))
        assert caught.value.request.url == url
        copy = pickle.loads(pickle.dumps(caught.value))
        assert type(copy) is type(caught.value)


@pytest.mark.parametrize(("name", "expected"), list(HTTPX.cases(0)))
def test_httpx_rows(name: str, expected: list[str]) -> None:
    case = BEFORE[name]
    with case.enclave() as enclave:
        transport = over_httpx.EnclaveTransport(
            enclave.url, **{**keywords(enclave), **case.options}
        )
        client = httpx.Client(transport=transport)
        if case.before is not None:
            case.before(transport, enclave)
        if case.injected is not None:
            inject(transport, case.injected, within=False)
        url = case.url or transport.base_url + case.path
        timeout = httpx.Timeout(10)
        if case.timeout is not None:
            connect, read = case.timeout
            timeout = httpx.Timeout(connect=connect, pool=connect, read=read, write=read)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - looked at below
            client.request(case.method, url, content=case.body, timeout=timeout)
        transport.close()
    if not expected:
        assert type(caught.value) is getattr(enclavia, name)
        return
    fits(caught.value, expected, httpx)
    assert isinstance(caught.value.__cause__, getattr(enclavia, name.removesuffix(" because")))


@pytest.mark.parametrize("name", ["ReadTimeout", "ConnectionClosed", "IncompleteResponse",
                                  "ServerError", "ProtocolError"])  # fmt: skip
def test_httpx_within_a_body(name: str) -> None:
    case = WITHIN[name]
    expected = dict(HTTPX.cases(0))[name]
    with case.enclave() as enclave, over_httpx.EnclaveTransport(
        enclave.url, **keywords(enclave)
    ) as transport:  # fmt: skip
        client = httpx.Client(transport=transport)
        timeout = httpx.Timeout(10, read=SHORT) if case.timeout else httpx.Timeout(10)
        with client.stream("POST", transport.base_url, timeout=timeout) as got:
            BEGUN.set()
            with pytest.raises(httpx.TransportError) as caught:
                got.read()
    fits(caught.value, expected, httpx)


# ---------------------------------------------------------------------------------------------
# Beside requests on a socket

H = b"HTTP/1.1 200 OK\r\n"
CHUNKED = H + b"Transfer-Encoding: chunked\r\n\r\n"
ANSWERS: dict[str, bytes] = {
    "length": H + b"Content-Length: 10\r\nX-A: b\r\n\r\n0123456789",
    "chunks": CHUNKED + b"5\r\nhello\r\n3\r\n ok\r\n0\r\n\r\n",
}
BROKEN: dict[str, bytes] = {
    "conflicting lengths": H + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "conflicting list of lengths": H + b"Content-Length: 3, 4\r\n\r\nabc",
    "chunk size": CHUNKED + b"5\r\nhello\r\nzz\r\nx\r\n0\r\n\r\n",
    "first chunk size": CHUNKED + b"zz\r\nx\r\n0\r\n\r\n",
    "nothing": b"",
    "no status line": b"garbage\r\n\r\n",
    "status in letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 99 OK\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "a line too long": H + b"X: " + b"y" * 70_000 + b"\r\nContent-Length: 2\r\n\r\nok",
    "a body that is not gzip": H + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "a chunk's extension": CHUNKED + b"2;a=b\r\nok\r\n0\r\n\r\n",
    "no Location": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
    "no URL as Location": b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
}
# What requests takes in spite of the grammar and we do not: docs/security.md, "Which HTTP is read".
STRICTER: dict[str, tuple[bytes, str]] = {
    "a length of letters": (H + b"Content-Length: x\r\n\r\nabc", "InvalidHeader"),
    "a negative length": (H + b"Content-Length: -3\r\n\r\nabc", "InvalidHeader"),
    "a header without a colon": (
        H + b"nonsense\r\nContent-Length: 2\r\n\r\nok",
        "ConnectionError",
    ),
    "both framings": (
        H + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "ConnectionError",
    ),
    "an unknown framing": (H + b"Transfer-Encoding: gzip\r\n\r\nok", "ConnectionError"),
    "no line end after a chunk": (CHUNKED + b"2\r\nokXX0\r\n\r\n", "ChunkedEncodingError"),
    "101 to no upgrade": (
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "ConnectionError",
    ),
    "bare line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "ConnectionError"),
}


class Beside:
    """The same answers to requests on a socket and through an enclave."""

    def __init__(self, server: ByteServer, enclave: LocalEnclave) -> None:
        self.plain = requests.Session()
        self.plain.trust_env = False
        self.ours = over_requests.session(enclave.url, **keywords(enclave))
        self.sides = (
            (self.plain, f"http://{server.address}/"),
            (self.ours, self.ours.base_url),
        )


@pytest.fixture(scope="module")
def beside() -> Iterator[tuple[Beside, list[bytes]]]:
    answer = [b""]

    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer[0])
        connection.sock.shutdown(socket.SHUT_WR)
        connection.wait_closed()

    with byte_enclave(script) as (enclave, server):
        both = Beside(server, enclave)
        yield both, answer
        both.plain.close()
        both.ours.close()


def told(error: Exception) -> tuple[object, ...]:
    """What one who handles it can see, apart from the words."""
    public = next(c for c in type(error).__mro__ if not c.__name__.startswith("_"))
    inner = error.args[0] if error.args else None
    first = inner.args[0] if isinstance(inner, Exception) and inner.args else None
    known = first if first == "Connection aborted." else str(first).partition(":")[0]
    inner_class = type(inner).__name__
    return public.__name__, inner_class, known if inner_class == "ProtocolError" else None


def whole(session: Any, url: str) -> tuple[object, ...]:
    try:
        got = session.get(url, timeout=10)
    except Exception as error:
        return told(error)
    return got.status_code, dict(got.headers), got.content, [r.status_code for r in got.history]


def streamed(session: Any, url: str) -> tuple[object, ...]:
    received = b""
    try:
        with session.get(url, timeout=10, stream=True) as got:
            for piece in got.iter_content(3):
                received += piece
    except Exception as error:
        return received, *told(error)
    return received, got.status_code


@pytest.mark.parametrize("how", [whole, streamed])
@pytest.mark.parametrize("name", BROKEN)
def test_requests_as_on_a_socket(name: str, how: Any, beside: tuple[Beside, list[bytes]]) -> None:
    both, answer = beside
    answer[0] = BROKEN[name]
    theirs, ours = (how(*side) for side in both.sides)
    assert ours == theirs


@pytest.mark.parametrize("name", STRICTER)
def test_requests_stricter_than_on_a_socket(name: str, beside: tuple[Beside, list[bytes]]) -> None:
    both, answer = beside
    answer[0], expected = STRICTER[name]
    theirs, ours = (whole(*side) for side in both.sides)
    assert isinstance(theirs[0], int), "requests refuses it by now: move it to BROKEN"
    assert ours[0] == expected


@pytest.mark.parametrize("name", ANSWERS)
def test_requests_cut_at_every_offset(name: str, beside: tuple[Beside, list[bytes]]) -> None:
    both, answer = beside
    text = ANSWERS[name]
    head = text.index(b"\r\n\r\n") + 4
    for cut in range(len(text) + 1):
        answer[0] = text[:cut]
        theirs, ours = (whole(*side) for side in both.sides)
        if 0 < cut < head:
            # Parsers of requests take a head that ends anywhere for a whole one.
            assert ours[0] == "ConnectionError", cut
        elif name == "chunks" and b"\r\n\r\n".endswith(text[cut:]) and cut < len(text):
            assert ours[0] == "ChunkedEncodingError", (
                cut
            )  # requests does not look for the last line
        elif name == "chunks" and theirs[0] == "ChunkedEncodingError":
            assert ours[:2] == theirs[:2], cut  # urllib3 has two wordings
        else:
            assert ours == theirs, cut


def test_nobody_listens_as_on_a_socket() -> None:
    port = unused_port()
    with requests.Session() as plain:
        plain.trust_env = False
        theirs = whole(plain, f"http://127.0.0.1:{port}/")
    with over_requests.session(f"ws://127.0.0.1:{port}", pcrs=WRONG, patience=0.0) as ours:
        got = whole(ours, ours.base_url)
    assert got == theirs == ("ConnectionError", "MaxRetryError", None)


def test_a_body_that_is_taken_no_more_as_on_a_socket() -> None:
    with byte_enclave(lambda connection: _stalled(connection)) as (enclave, server):
        with requests.Session() as plain:
            plain.trust_env = False
            with pytest.raises(requests.exceptions.ConnectionError) as theirs:
                plain.post(f"http://{server.address}/", data=LARGE, timeout=SHORT)
        with (
            over_requests.session(enclave.url, **keywords(enclave)) as session,
            pytest.raises(requests.exceptions.ConnectionError) as ours,
        ):
            session.post(session.base_url, data=LARGE, timeout=(5, SHORT))
    for caught in (theirs.value, ours.value):
        assert caught.args[0].args[0] == "Connection aborted."
        assert isinstance(caught.args[0].args[1], TimeoutError)


def test_answers_of_a_good_workload_are_equal(beside: tuple[Beside, list[bytes]]) -> None:
    both, answer = beside
    for answer[0] in (ok(b"fine"), *ANSWERS.values()):
        theirs, ours = (whole(*side) for side in both.sides)
        assert ours == theirs


def test_requests_answers_end_with_their_session() -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        connection.wait_closed()

    with byte_enclave(script) as (enclave, _):
        with over_requests.session(enclave.url, **keywords(enclave)) as session:
            got = session.get(session.base_url, stream=True)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            got.content  # noqa: B018 - reads


def test_requests_adapter_has_no_pool() -> None:
    adapter = over_requests.EnclaveAdapter("wss://enclave.example", pcrs=WRONG)
    assert not isinstance(adapter, requests.adapters.HTTPAdapter)
    assert not hasattr(adapter, "build_response")
    assert not hasattr(adapter, "proxy_manager")
