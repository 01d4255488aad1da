"""The edges of the arguments of ``enclavia._core``, as its direct callers meet them. What is
outside a parameter's domain is refused: the message has the parameter's name, what was expected and
what was got. Nothing wraps around and nothing is cut off.

Every function and every parameter is enumerated from ``enclavia/_core.pyi``.
"""

from __future__ import annotations

import ast
import math
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import HANG, ByteServer, Connection, keywords

import enclavia
from enclavia import _core
from enclavia.testing import LocalEnclave
from enclavia.testing._history import ControlKey, encode

STUB = Path(enclavia.__file__).parent / "_core.pyi"
# Only the build for browsers has these: tests/python/web.
OF_BROWSERS = re.compile(r"Link\b|Notifier\.on_wake$")
ABSURD = 10**5000  # which Python refuses to write in decimal
NAN = float("nan")
SURROGATE = "\ud800"
PCR = b"1" * 48
ALL_FAULTS = sum(getattr(_core, name) for name in dir(_core) if name.startswith("FAULT_"))


class Row(NamedTuple):
    value: Any
    error: type[Exception]
    got: str = ""


def types(*values: Any) -> list[Row]:
    return [Row(value, TypeError, f"got {type(value).__name__}") for value in values]


def released() -> memoryview:
    view = memoryview(bytearray(8))
    view.release()
    return view


def closed() -> _core.Notifier:
    notifier = _core.Notifier()
    notifier.close()
    return notifier


# ---- domains


def whole(least: int, most: int) -> list[Row]:
    """2**64 + 1 is 1 if it wraps around, as -2**32 - 1 is where 32 bits are kept."""
    numbers = (
        least - 1, most + 1, -1, -(2**31) - 1, -(2**32) - 1, -(2**63) - 1, 2**32 + 1, 2**63,
        2**64 + 1, 2**128, ABSURD, -ABSURD,
    )  # fmt: skip
    outside = dict.fromkeys(number for number in numbers if not least <= number <= most)
    return [
        *types(None, True, 1.0, "1", b"1", object(), [1]),
        *(Row(number, ValueError) for number in outside),
    ]


TOKEN = whole(0, 2**64 - 1)
FLAG = types(0, 1, None, "no", b"", [])
TEXT_OR_NONE = [
    *types(5, b"text", True, ["text"]),
    Row("a\0b", ValueError, "got one in it"),
    Row(SURROGATE, ValueError, "got a surrogate"),
]
TEXT = [*TEXT_OR_NONE, *types(None)]
LABEL = [*types(5, b"text", None), Row(SURROGATE, ValueError, "got a surrogate")]
BYTES_OR_NONE = types("text", 5, True, bytearray(b"x"), memoryview(b"x"))
BYTES = [*BYTES_OR_NONE, *types(None)]
BUFFER = [
    *types("text", 5, None, True, [1], object()),
    Row(memoryview(b"abcd")[::2], ValueError, "got one with gaps"),
    Row(released(), ValueError, "got one that is closed"),
]
WRITABLE = [
    *types("text", 5, None, b"bytes", memoryview(b"abcd"), memoryview(b"abcd")[::2]),
    Row(memoryview(bytearray(4))[::2], ValueError, "got one with gaps"),
    Row(released(), ValueError, "got one that is closed"),
]
SECONDS = [
    *types("5", b"5", True, [], 1j, object(), Decimal("sNaN")),
    Row(-1, ValueError, "got -1.0"),
    Row(-1e-9, ValueError, "got -1e-09"),
    Row(NAN, ValueError, "got nan"),
    Row(-math.inf, ValueError, "got -inf"),
    Row(ABSURD, OverflowError, "no float can hold"),
]
LONG_WAIT = [*SECONDS, *types(None), Row(1.1e9, ValueError), Row(math.inf, ValueError, "got inf")]
POLICY = types(None, 5, object(), _core.Notifier())
SLOT = types(None, 5, object(), _core.Notifier())
NOTIFIER_OR_NONE = [*types(5, object(), "n"), Row(closed(), ValueError, "got a closed one")]
NOTIFIER = [*NOTIFIER_OR_NONE, *types(None)]
PINS = [
    *types(5, True),
    Row("pins", TypeError, "got str"),
    Row([5], TypeError, "got int"),
    Row([[PCR, PCR, PCR]], TypeError, "got list"),
    Row([(PCR, PCR)], TypeError, "got tuple"),
    Row([(PCR, PCR, "1" * 48)], TypeError, "got str"),
    Row([(PCR, PCR, PCR[1:])], ValueError, "got 47"),
    Row([(PCR, PCR, b"")], ValueError, "got 0"),
    Row([(PCR, PCR, PCR)] * 1025, ValueError, "got 1025"),
    Row([(PCR, PCR, PCR, PCR)], TypeError, "got bytes"),
    Row([(PCR, PCR, PCR, 8, PCR)], TypeError, "got int"),
    Row([(PCR, PCR, PCR, (8,))], TypeError, "got tuple"),
    Row([(PCR, PCR, PCR, (8, PCR, PCR))], TypeError, "got tuple"),
    Row([(PCR, PCR, PCR, [8, PCR])], TypeError, "got list"),
    Row([(PCR, PCR, PCR, ("8", PCR))], TypeError, "got str"),
    Row([(PCR, PCR, PCR, (8.0, PCR))], TypeError, "got float"),
    *(
        Row([(PCR, PCR, PCR, (index, PCR))], ValueError, f"got {index}")
        for index in (-(1 << 80), -1, 0, 2, 32, 1 << 64, 1 << 80)
    ),
    Row([(PCR, PCR, PCR, (8, PCR), (8, PCR))], ValueError, "got it twice"),
    Row([(PCR, PCR, PCR, (8, PCR[1:]))], ValueError, "got 47"),
    Row([(PCR, PCR, PCR, (8, b""))], ValueError, "got 0"),
    Row([(PCR, PCR, PCR, (8, None))], TypeError, "got NoneType"),
]
HEADERS = [
    *types(5, None),
    Row("ab", TypeError, "got str"),
    Row([5], TypeError, "got int"),
    Row([["a", "b"]], TypeError, "got list"),
    Row([("a",)], TypeError, "got tuple"),
    Row([("a", "b", "c")], TypeError, "got tuple"),
    Row([(b"a", "b")], TypeError, "got bytes"),
    Row([("a", None)], TypeError, "got NoneType"),
    Row([("a", "b\0")], ValueError, "got one in it"),
    Row([(SURROGATE, "b")], ValueError, "got a surrogate"),
]
PORTS = whole(1, 65535)
PROXY = [
    *types(5, "h", [], ["h", 80, None]),
    Row(("h", 80), TypeError, "got tuple"),
    Row((5, 80, None), TypeError, "got int"),
    Row(("h\0", 80, None), ValueError, "got one in it"),
    Row(("h", 80, 5), TypeError, "got int"),
    Row(("h", 80, b"u:p"), TypeError, "got bytes"),
    *(row._replace(value=("h", row.value, None)) for row in PORTS),
]
MODE = [*types(5, None, b"debug"), Row("real", ValueError, "got 'real'"), Row("", ValueError)]
WORKLOAD = [
    *types(5, None, "h:80", ["h", 80]),
    Row(("h",), TypeError, "got tuple"),
    Row((b"h", 80), TypeError, "got bytes"),
    Row(("h\0", 80), ValueError, "got one in it"),
    *(row._replace(value=("h", row.value)) for row in PORTS),
]
PCRS = [
    *types(5, None, [], [(0, PCR)], "pcrs"),
    Row({0: PCR[1:]}, ValueError, "got 47"),
    Row({0: "1" * 48}, TypeError, "got str"),
    Row({0: None}, TypeError, "got NoneType"),
    *(row._replace(value={row.value: PCR}) for row in whole(0, 31) if row.value != [1]),
]
CABUNDLE = [
    *types(5, None),
    Row("ab", TypeError, "got str"),
    Row(b"ab", TypeError, "got int"),
    Row([b"", None], TypeError, "got NoneType"),
    Row([b""] * 17, ValueError, "got 17"),
]
TLS = [
    *types(5, "file", ["a", "b"]),
    Row(("a",), TypeError, "got tuple"),
    Row(("a", None), TypeError, "got NoneType"),
    Row((5, "b"), TypeError, "got int"),
    Row(("a", "b\0"), ValueError, "got one in it"),
]

DOCUMENT = {
    "module_id": LABEL,
    "pcrs": PCRS,
    "certificate": BYTES,
    "cabundle": CABUNDLE,
    "leaf_key": BYTES,
}
FAULTS = {
    "faults": whole(0, ALL_FAULTS),
    "split": whole(0, sys.maxsize),
    "record_length": whole(0, 2**32 - 1),
    "delay": LONG_WAIT,
    "truncated_after": whole(0, sys.maxsize),
    "instead_of_attestation": BYTES,
    "after_attestation": BYTES,
}
TABLE: dict[str, dict[str, list[Row]]] = {
    "Policy": {
        "pins": PINS,
        "root": BYTES_OR_NONE,
        "debug": FLAG,
        "need_pins": FLAG,
        "clock_leeway": whole(0, 300),
    },
    "verify": {
        "document": BUFFER,
        "policy": POLICY,
        "nonce": BYTES_OR_NONE,
        "at": whole(-(2**63), 2**63 - 1),
    },
    "verify_recorded": {"document": BUFFER, "policy": POLICY, "cache": types(5, object())},
    "verify_es256": {"public_key": BYTES, "message": BYTES, "signature": BYTES},
    "link_payload": {"kind": whole(0, 2), "payload": BYTES},
    "Channel": {
        "host": TEXT,
        "port": PORTS,
        "tls": FLAG,
        "path": TEXT,
        "authority": TEXT,
        "headers": HEADERS,
        "policy": POLICY,
        "max_in_flight": whole(1, _core.MAX_IN_FLIGHT),
        "verify": FLAG,
        "ca_file": TEXT_OR_NONE,
        "proxy": PROXY,
        "keepalive_ms": whole(0, 86_400_000),
    },
    "Channel.wait_open": {"timeout": SECONDS},
    "Channel.notify_open": {"notifier": NOTIFIER, "token": TOKEN},
    "Channel.notify_stage": {"seen": whole(0, 6), "notifier": NOTIFIER, "token": TOKEN},
    "Channel.reserve": {"notifier": NOTIFIER_OR_NONE, "token": TOKEN},
    "Channel.open_stream": {"slot": SLOT, "payload": BUFFER},
    "Channel.start_request": {"slot": SLOT, "payload": BUFFER},
    "Channel.start_attest": {"notifier": NOTIFIER_OR_NONE, "token": TOKEN},
    "Channel.finish_attest": {"number": TOKEN, "timeout": SECONDS},
    "Channel.abandon_attest": {"number": TOKEN},
    "Channel.close": {"timeout": SECONDS},
    "Slot.wait": {"timeout": SECONDS},
    "Request.result": {"timeout": SECONDS},
    "Request.notify": {"notifier": NOTIFIER, "token": TOKEN},
    "Stream.read": {"n": whole(0, 2**63 - 1), "timeout": SECONDS},
    "Stream.readinto": {"buffer": WRITABLE, "timeout": SECONDS},
    "Stream.write": {"data": BUFFER, "timeout": SECONDS},
    "Stream.notify": {"what": whole(0, 3), "notifier": NOTIFIER, "token": TOKEN},
    "Stream.pump": {"fd": whole(0, 2**31 - 1), "notifier": NOTIFIER, "token": TOKEN},
    "Enclave": {
        "mode": MODE,
        "workload": WORKLOAD,
        **DOCUMENT,
        "idle_timeout": LONG_WAIT,
        "grace": LONG_WAIT,
        "one_shot_timeout": LONG_WAIT,
        "max_connections": whole(0, sys.maxsize),
        "port": whole(0, 65535),
        "tls": TLS,
        **FAULTS,
    },
    "Enclave.set_faults": FAULTS,
    "Enclave.set_document": DOCUMENT,
    "Enclave.drop_connections": {"reset": FLAG},
}


# ---- what they are called on


class Call(NamedTuple):
    function: Callable[..., Any]
    good: dict[str, Any]
    by_name: bool = False

    def make(self, **changed: Any) -> Any:
        arguments = self.good | changed
        return self.function(**arguments) if self.by_name else self.function(*arguments.values())


DOCUMENT_GIVEN: dict[str, Any] = {
    "module_id": "m",
    "pcrs": {0: PCR},
    "certificate": b"",
    "cabundle": [],
    "leaf_key": b"",
}
FAULTS_GIVEN: dict[str, Any] = {
    "faults": 0,
    "split": 0,
    "record_length": 0,
    "delay": 0.0,
    "truncated_after": 0,
    "instead_of_attestation": b"",
    "after_attestation": b"",
}
ENCLAVE_GIVEN: dict[str, Any] = {
    "mode": "debug",
    "workload": ("127.0.0.1", 9),
    **DOCUMENT_GIVEN,
    "idle_timeout": 1.0,
    "grace": 1.0,
    "one_shot_timeout": 1.0,
    "max_connections": 1,
    "port": 0,
    "tls": None,
    **FAULTS_GIVEN,
}


def echo(connection: Connection) -> None:
    """Until it is told to end, which a one-shot request's answer needs."""
    while (data := connection.sock.recv(65536)) not in (b"", b"end"):
        connection.send(data)


def calls_of_classes() -> dict[str, Call]:
    policy = _core.Policy(None, None, True, False)
    return {
        "Policy": Call(
            _core.Policy,
            {"pins": None, "root": None, "debug": True, "need_pins": False, "clock_leeway": 0},
            by_name=True,
        ),
        "Channel": Call(
            _core.Channel,
            {
                "host": "127.0.0.1",
                "port": 1,
                "tls": False,
                "path": "/",
                "authority": "h",
                "headers": [("a", "b")],
                "policy": policy,
                "max_in_flight": 1,
                "verify": True,
                "ca_file": None,
                "proxy": None,
                "keepalive_ms": 0,
            },
            by_name=True,
        ),
        "Enclave": Call(_core.Enclave, ENCLAVE_GIVEN, by_name=True),
    }


def calls_on(channel: _core.Channel, document: bytes, fd: int) -> dict[str, Call]:
    notifier = _core.Notifier()
    slot = channel.reserve(None, 0)
    stream = channel.open_stream(channel.reserve(None, 0), b"echo")
    request = channel.start_request(channel.reserve(None, 0), b"end")
    told = {"notifier": notifier, "token": 1}
    key = ControlKey()
    revocation = encode(
        {"enclave_id": bytes(16), "revokes": bytes(16), "issued_at": "now", "nonce": b"n"}
    )
    return {
        "verify_recorded": Call(
            _core.verify_recorded,
            {
                "document": document,
                "policy": _core.Policy(None, None, True, False),
                "cache": _core.LinkCache(),
            },
            by_name=True,
        ),
        "verify_es256": Call(
            _core.verify_es256,
            {"public_key": key.public, "message": b"m", "signature": key.sign(b"m")},
            by_name=True,
        ),
        "link_payload": Call(_core.link_payload, {"kind": 2, "payload": revocation}, by_name=True),
        "verify": Call(
            _core.verify,
            {
                "document": document,
                "policy": _core.Policy(None, None, True, False),
                "nonce": None,
                "at": 0,
            },
            by_name=True,
        ),
        "Channel.wait_open": Call(channel.wait_open, {"timeout": HANG}),
        "Channel.notify_open": Call(channel.notify_open, told),
        "Channel.notify_stage": Call(channel.notify_stage, {"seen": 6, **told}),
        "Channel.reserve": Call(channel.reserve, told),
        "Channel.open_stream": Call(channel.open_stream, {"slot": slot, "payload": b""}),
        "Channel.start_request": Call(channel.start_request, {"slot": slot, "payload": b""}),
        "Channel.start_attest": Call(channel.start_attest, told),
        "Channel.finish_attest": Call(
            channel.finish_attest, {"number": channel.start_attest(None, 0), "timeout": HANG}
        ),
        "Channel.abandon_attest": Call(channel.abandon_attest, {"number": 1}),
        "Channel.close": Call(channel.close, {"timeout": HANG}, by_name=True),
        "Slot.wait": Call(slot.wait, {"timeout": HANG}),
        "Request.result": Call(request.result, {"timeout": HANG}),
        "Request.notify": Call(request.notify, told),
        "Stream.read": Call(stream.read, {"n": 1, "timeout": HANG}),
        "Stream.readinto": Call(stream.readinto, {"buffer": bytearray(1), "timeout": HANG}),
        "Stream.write": Call(stream.write, {"data": b"x", "timeout": HANG}),
        "Stream.notify": Call(stream.notify, {"what": 1, **told}),
        "Stream.pump": Call(stream.pump, {"fd": fd, **told}),
    }


@pytest.fixture(scope="module")
def calls() -> Iterator[dict[str, Call]]:
    enclave = _core.Enclave(**ENCLAVE_GIVEN)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        with (
            ours,
            theirs,
            pytest.warns(enclavia.DebugModeWarning),
            ByteServer(echo) as server,
            LocalEnclave(server.address, mode="debug") as local,
            enclavia.Channel.connect(
                local.url, **keywords(local, debug_mode=True, pcrs=None, root=None)
            ) as channel,
        ):
            yield {
                **calls_of_classes(),
                **calls_on(channel._core, channel.attestation.document, ours.fileno()),
                "Enclave.set_faults": Call(enclave.set_faults, FAULTS_GIVEN, by_name=True),
                "Enclave.set_document": Call(enclave.set_document, DOCUMENT_GIVEN, by_name=True),
                "Enclave.drop_connections": Call(
                    enclave.drop_connections, {"reset": False}, by_name=True
                ),
            }
    finally:
        enclave.stop()


# ---- the tests

EACH = [
    pytest.param(call, name, row, id=f"{call}({name})-{at}")
    for call, parameters in TABLE.items()
    for name, rows in parameters.items()
    for at, row in enumerate(rows)
]


@pytest.mark.parametrize(("call", "name", "row"), EACH)
def test_what_is_outside_a_domain_is_refused(
    calls: dict[str, Call], call: str, name: str, row: Row
) -> None:
    with pytest.raises(row.error) as caught:
        calls[call].make(**{name: row.value})
    assert type(caught.value) is row.error
    message = str(caught.value)
    assert re.match(rf"{name}( \(\w+\))?: expected .*\bgot ", message), message
    assert row.got in message


class Closing:
    """A number that closes a notifier when it is read."""

    def __init__(self, notifier: _core.Notifier) -> None:
        self._notifier = notifier

    def __index__(self) -> int:
        self._notifier.close()
        return 1


@pytest.mark.parametrize("call", [call for call, rows in TABLE.items() if "notifier" in rows])
def test_a_notifier_that_reading_another_argument_closes_is_refused(
    calls: dict[str, Call], call: str
) -> None:
    """Otherwise the core would announce to memory that has been freed."""
    for name in TABLE[call].keys() - {"notifier"}:
        notifier = _core.Notifier()
        with pytest.raises(ValueError, match="notifier: expected an open one, got a closed one"):
            calls[call].make(notifier=notifier, **{name: Closing(notifier)})


def test_what_is_inside_is_taken(calls: dict[str, Call]) -> None:
    """Of these arguments each row changes one. So it is that one for which they are refused."""
    last = {"Channel.open_stream", "Channel.start_request", "Channel.close"}
    for name in sorted(set(calls) - last, key=list(calls).index):
        calls[name].make()
    channel = calls["Channel.open_stream"].make()
    assert channel.id
    assert calls["Channel.close"].make() is None


def test_the_number_of_arguments(calls: dict[str, Call]) -> None:
    for name, call in calls.items():
        values = [*call.good.values()]
        for wrong in ([], [*values, *values]):
            if "." in name and not call.by_name and len(wrong) != len(values):
                with pytest.raises(TypeError, match=r"expected \d arguments, got|exactly one"):
                    call.function(*wrong)


def functions() -> dict[str, list[str]]:
    """By function of the stub, or class that can be made: the names of its parameters."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = names_of(node)
        elif isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    made = each.name == "__init__"
                    name = node.name if made else f"{node.name}.{each.name}"
                    found[name] = names_of(each)[1:]
    return {
        name: parameters
        for name, parameters in found.items()
        if parameters and not OF_BROWSERS.match(name)
    }


def names_of(node: ast.FunctionDef) -> list[str]:
    return [each.arg for each in (*node.args.args, *node.args.kwonlyargs)]


def test_every_parameter_of_every_function_has_rows() -> None:
    assert {call: list(rows) for call, rows in TABLE.items()} == functions()
    assert all(rows for parameters in TABLE.values() for rows in parameters.values())


@pytest.mark.parametrize("token", [0, 1, 2**63, 2**64 - 1])
def test_a_token_is_announced_as_it_was_given(token: int) -> None:
    policy = _core.Policy(None, None, True, False)
    channel = _core.Channel(
        **(calls_of_classes()["Channel"].good | {"policy": policy})  # nothing listens there
    )
    notifier = _core.Notifier()
    watch = channel.notify_open(notifier, token)
    channel.close()
    assert notifier.drain() == [token]
    watch.end()


def test_a_channel_given_up_by_one_thread_is_given_up_for_the_others() -> None:
    """The wait of the others has a later end, or none, and the reason is the end of the first."""
    with ByteServer(lambda connection: connection.wait_closed(HANG)) as server:
        host, port = server.address.rsplit(":", 1)
        given = calls_of_classes()["Channel"].good | {"host": host, "port": int(port)}
        channel = _core.Channel(**given)
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                channel.wait_open(None)
            except enclavia.ConnectTimeout as error:
                raised.append(error)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        with pytest.raises(enclavia.ConnectTimeout):
            channel.wait_open(0.1)
        thread.join(HANG)
        assert len(raised) == 1
        with pytest.raises(enclavia.ConnectTimeout):
            channel.wait_open(HANG)
