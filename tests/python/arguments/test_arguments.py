"""The edges of arguments: what is outside a domain is refused where it is given.

Every public callable and every settable property is enumerated from the signatures, and each of
their parameters has rows here, or a reason why it has none.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib
import importlib.util
import inspect
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
import requests
from argument_calls import Blocking, all_refused, cases, found, refused
from argument_rows import (
    AT,
    BASE_URL,
    BUFFER,
    CHANNEL,
    ENCLAVE,
    ENCLAVE_ID,
    FAULTS,
    FLAG,
    FORWARDER,
    HUGE,
    JSON_TEXT,
    LEEWAY,
    NONCE,
    NOWHERE,
    NUMBERS_OF_REQUESTS,
    ONE_PCRS,
    PATH,
    PCR,
    PCRS,
    PINS,
    ROOT,
    SIZE,
    SURROGATE,
    TIMEOUT,
    TRANSPORT,
    UPGRADES,
    WAIT,
    WRITABLE,
    Row,
    no_whole_number,
)
from support import HANG

import enclavia
import enclavia.httpx
import enclavia.requests
import enclavia.testing
from enclavia.testing import Fault, LocalEnclave

NO_ENCLAVE = str(uuid.UUID(int=0))

# By callable and parameter: what is refused.
TABLE: dict[str, dict[str, list[Row]]] = {
    "enclavia.Client": {**TRANSPORT, "base_url": BASE_URL},
    "enclavia.AsyncClient": {**TRANSPORT, "base_url": BASE_URL},
    "enclavia.Client.build_request": {"options": TIMEOUT},
    "enclavia.AsyncClient.build_request": {"options": TIMEOUT},
    "enclavia.Client.timeout": {"value": TIMEOUT},
    "enclavia.AsyncClient.timeout": {"value": TIMEOUT},
    "enclavia.EnclaveTransport": TRANSPORT,
    "enclavia.AsyncEnclaveTransport": TRANSPORT,
    "enclavia.EnclaveTransport.connect": {"timeout": WAIT},
    "enclavia.AsyncEnclaveTransport.connect": {"timeout": WAIT},
    "enclavia.Forwarder": FORWARDER,
    "enclavia.AsyncForwarder": FORWARDER,
    "enclavia.Channel.connect": {**CHANNEL, "timeout": WAIT},
    "enclavia.AsyncChannel.connect": {**CHANNEL, "timeout": WAIT},
    "enclavia.Pcrs": {"pcr0": PCR, "pcr1": PCR, "pcr2": PCR},
    "enclavia.Pcrs.load": {
        "path": [*PATH, Row(None, TypeError), Row(b"/etc/hosts", TypeError, "got bytes")]
    },
    "enclavia.Pcrs.parse": {
        "text": [
            Row("", ValueError, "got nothing"),
            Row(b"", ValueError, "got nothing"),
            Row("\0", ValueError),
            Row(SURROGATE, ValueError),
            Row(b"\xff", ValueError, "not UTF-8"),
            Row("PCR" * (1 << 20), ValueError, "got 3145728"),
            *(Row(value, TypeError, "str or bytes") for value in (None, 5, True, [], Path("x"))),
        ]
    },
    "enclavia.verify_attestation": {
        "document": BUFFER,
        "pcrs": PCRS,
        "nonce": NONCE,
        "root": ROOT,
        "at": AT,
        "clock_leeway": LEEWAY,
    },
    "enclavia.TrustUpgrades": UPGRADES,
    "enclavia.verify_upgrade_chain": {
        "row": JSON_TEXT,
        "links": JSON_TEXT,
        "pcrs": [*PCRS, Row(None, TypeError, "got None")],
        "enclave_id": ENCLAVE_ID,
        "at": [row for row in AT if row.value is not None],
        "root": ROOT,
        "high_water": [row for row in JSON_TEXT if row.value is not None],
        "allow_rollback": FLAG,
        "debug_mode": FLAG,
        "clock_leeway": LEEWAY,
    },
    "enclavia.Receipt.from_json": {
        "line": [Row(value, TypeError, "str or bytes") for value in (None, 5, True, [], Path("x"))]
    },
    "enclavia.Receipts": {
        "path": [*PATH, Row(None, TypeError), Row(b"/etc/hosts", TypeError, "got bytes")],
        "max_bytes": [*no_whole_number(True), Row(4095, ValueError), Row(-HUGE, ValueError)],
        "keep": [*no_whole_number(True), Row(-1, ValueError, "got -1"), Row(-HUGE, ValueError)],
    },
    "enclavia.Receipts.append": {
        "receipt": [Row(value, TypeError) for value in (None, 5, True, "", "{}", b"{}", {})]
    },
    "enclavia.testing.LocalEnclave": ENCLAVE,
    "enclavia.testing.EnclavePki": {
        **{
            name: [Row(value, TypeError) for value in (None, 5, "", bytearray(b"x"), [])]
            for name in ("root_der", "root_pem", "leaf_der", "leaf_key_der")
        },
        "cabundle": [
            *(Row(value, TypeError) for value in (None, 5, b"x", (b"x",), [None], ["x"])),
            Row([], ValueError, "got none"),
        ],
    },
    "enclavia.testing.EnclavePki.mint": {
        "now": [
            *(Row(value, TypeError) for value in (5, "now", datetime.date(2026, 1, 1))),
            Row(datetime.datetime(2026, 1, 1), ValueError, "got a naive one"),
        ],
        "leaf_lifetime": [
            *(Row(value, TypeError) for value in (None, 5, 1.5, "3h")),
            Row(datetime.timedelta(0), ValueError, "got 0 s"),
            Row(datetime.timedelta(hours=-1), ValueError, "got -3600 s"),
            Row(datetime.timedelta(days=3651), ValueError),
        ],
        "intermediates": [
            *(Row(value, TypeError) for value in (None, True, 1.0, "3", [])),
            Row(0, ValueError, "got 0"),
            Row(4, ValueError, "got 4"),
            Row(HUGE, ValueError, "got another number"),
        ],
    },
    "enclavia.requests.EnclaveAdapter": TRANSPORT,
    "enclavia.requests.session": TRANSPORT,
    "enclavia.requests.EnclaveAdapter.connect": {"timeout": WAIT},
    "enclavia.requests.EnclaveAdapter.mount_on": {
        "session": [Row(value, TypeError) for value in (None, 5, "", httpx2, requests.Session)]
    },
    "enclavia.requests.EnclaveAdapter.send": {
        "timeout": NUMBERS_OF_REQUESTS,
        "cert": [Row(value, ValueError) for value in ("", "file.pem", False, ("a", "b"))],
    },
    "enclavia.requests.EnclaveSession": {
        "adapter": [Row(value, TypeError) for value in (None, 5, NOWHERE, requests.Session())]
    },
    "enclavia.httpx.EnclaveTransport": TRANSPORT,
    "enclavia.httpx.AsyncEnclaveTransport": TRANSPORT,
    "enclavia.httpx.EnclaveTransport.connect": {"timeout": WAIT},
    "enclavia.httpx.AsyncEnclaveTransport.connect": {"timeout": WAIT},
}


# Of engines, whose imports change this process: tests/fleet/test_with_engines.py runs this with
# them. Spark's takes a context first, which has to run: tests/fleet/test_spark.py.
_PER = [Row("thread", ValueError), Row("", ValueError), Row(None, TypeError), Row(5, TypeError)]
_NAME = [Row("", ValueError, "got an empty"), Row(None, TypeError), Row(5, TypeError)]
_FLEETS = {"dask": ("distributed", "EnclavePlugin"), "ray": ("ray", "EnclaveFleet")}
ENGINES = []
for _module, (_needed, _class) in _FLEETS.items():
    if os.environ.get("WITH_ENGINES") and importlib.util.find_spec(_needed) is not None:
        ENGINES.append(importlib.import_module(f"enclavia.{_module}"))
        TABLE[f"enclavia.{_module}.{_class}"] = {
            **TRANSPORT,
            "base_url": BASE_URL,
            "per": _PER,
        }
        if _module == "dask":
            TABLE["enclavia.dask.EnclavePlugin"]["name"] = _NAME


# Of what needs a connection, by the name of the blocking one; the awaiting one is tried too.
CONNECTED: dict[str, dict[str, list[Row]]] = {
    "Channel.open_stream": {"payload": BUFFER, "timeout": WAIT},
    "Channel.request": {"data": BUFFER, "timeout": WAIT},
    "Channel.attest": {"timeout": WAIT},
    "Stream.read": {"n": SIZE},
    "Stream.readinto": {"buffer": WRITABLE},
    "Stream.write": {"data": BUFFER},
    "Stream.timeout": {"value": WAIT},
    "Stream.read_timeout": {"value": WAIT},
    "Stream.write_timeout": {"value": WAIT},
}


RUNNING: dict[str, dict[str, list[Row]]] = {
    "enclavia.testing.LocalEnclave.set_faults": FAULTS,
    "enclavia.testing.LocalEnclave.set_identity": {
        "pcrs": ONE_PCRS,
        "pki": [Row(value, TypeError) for value in (0, "", b"", object())],
    },
    "enclavia.testing.LocalEnclave.drop_connections": {"reset": FLAG},
    "enclavia.testing.LocalEnclave.upgrade": {
        "app": [row for row in ENCLAVE["app"] if row.value is not None],
        "pcrs": ONE_PCRS,
        "boot": FLAG,
    },
    "enclavia.testing.LocalEnclave.set_backend_faults": {
        "faults": [Row(value, TypeError) for value in (0, 1, True, None, "DOWN", Fault(0))]
    },
}


# What there are no rows for, and why. A callable alone stands for all its parameters.
OF_HTTPX2 = "httpx2's own keyword, handed on as it is and refused where httpx2 refuses it"


BY_CONNECT = "made by connect and open_stream, from objects that are not public"


BY_LIBRARY = "called by the library whose protocol it is, with what that library has made"


OF_HTTPX2_ALONE = (
    "auth",
    "params",
    "headers",
    "cookies",
    "follow_redirects",
    "max_redirects",
    "event_hooks",
    "default_encoding",
)


REASONS = {
    **{
        f"enclavia.{cls}({name})": OF_HTTPX2
        for cls in ("Client", "AsyncClient")
        for name in OF_HTTPX2_ALONE
    },
    **{
        f"enclavia.{cls}{call}": reason
        for cls in ("Client", "AsyncClient")
        for call, reason in (
            ("(unsupported)", "every name is refused: test_client.py, test_unlike_httpx2.py"),
            (".connect", "makes one of the class, whose keywords have the rows"),
            (".send", OF_HTTPX2),
            (".sse", OF_HTTPX2),
            (".websocket", OF_HTTPX2),
            (".build_request(method)", OF_HTTPX2),
            (".build_request(url)", OF_HTTPX2),
            (".cookies", OF_HTTPX2),
            (".headers", OF_HTTPX2),
            (".download", "tests/python/files/test_download.py"),
            (".open", "tests/python/files/test_open.py"),
            (".upload", "tests/python/files/test_upload.py"),
        )
    },
    **{
        f"enclavia.{cls}{call}": "made by open; its methods: tests/python/files/test_open.py"
        for cls in ("RemoteFile", "AsyncRemoteFile")
        for call in ("", ".peek", ".read", ".read1", ".readinto", ".readinto1", ".seek")
        if not (cls == "AsyncRemoteFile" and call in (".peek", ".readinto1"))
    },
    "enclavia.Channel": BY_CONNECT,
    "enclavia.AsyncChannel": BY_CONNECT,
    "enclavia.Stream": BY_CONNECT,
    "enclavia.AsyncStream": BY_CONNECT,
    "enclavia.Receipt.verify": "as verify_attestation: test_arguments_taken.py",
    "enclavia.Attestation": "a result; nothing is decided by one that a user made",
    "enclavia.FleetReport": "a result; nothing is decided by one that a user made",
    "enclavia.FleetReport.to_json": "json.dumps's own keyword",
    "enclavia.WorkerReport": "a result; nothing is decided by one that a user made",
    "enclavia.MatchedPins": "a result; nothing is decided by one that a user made",
    **{
        f"enclavia.Pcrs{name}": "tests/python/identity/test_pcrs.py has each of the names"
        for name in ("(further)", ".load(further)", ".parse(further)")
    },
    "enclavia.PinSource": "tests/python/trust/test_pin_sources.py",
    "enclavia.SigstorePins": "tests/python/trust/test_sigstore_pins.py",
    **{
        f"enclavia.{name}": "tests/python/trust/test_policy_file.py, where the file has it"
        for name in (
            "Policy",
            "Policy.allowed",
            "Policy.load",
            "Policy.options",
            "Policy.parse",
            "PolicyUpgrades",
            "PolicyVersion",
        )
    },
    **{
        f"enclavia.{cls}.{call}": "tests/python/trust/test_policy.py"
        for cls in ("Client", "AsyncClient")
        for call in ("from_env", "from_policy")
    },
    "enclavia.EnclaveTransport.handle_request": BY_LIBRARY,
    "enclavia.AsyncEnclaveTransport.handle_async_request": BY_LIBRARY,
    "enclavia.httpx.EnclaveTransport.handle_request": BY_LIBRARY,
    "enclavia.httpx.AsyncEnclaveTransport.handle_async_request": BY_LIBRARY,
    "enclavia.requests.EnclaveAdapter.send(request)": BY_LIBRARY,
    "enclavia.requests.EnclaveAdapter.send(stream)": BY_LIBRARY,
    "enclavia.requests.EnclaveAdapter.send(verify)": "about TLS to a host, which there is none of",
    "enclavia.requests.EnclaveAdapter.send(proxies)": BY_LIBRARY,
    "enclavia.requests.EnclaveSession.get_adapter": BY_LIBRARY,
    **{
        f"enclavia.{cls}.{method}": "needs one that runs: test_forward.py"
        for cls in ("Forwarder", "AsyncForwarder")
        for method in ("connect", "stop", "reload")
    },
    "enclavia.Forwarder.close": "another name of stop",
    "enclavia.UpgradeChain": "a result; nothing is decided by one that a user made",
    "enclavia.UpgradeLink": "a result; nothing is decided by one that a user made",
    **{
        f"enclavia.testing.LocalEnclave.{call}(options)": "the keywords of a client, which has rows"
        for call in ("client", "async_client")
    },
    "enclavia.testing.Fault": "the constructor of Python's enum.IntFlag",
    "enclavia.testing.BackendFault": "the constructor of Python's enum.IntFlag",
    "enclavia.testing.Mode": "the name of a type, not to be called",
    "enclavia.testing.Interface": "the name of a type, not to be called",
}


for _engine in ENGINES:
    _path = f"{_engine.__name__}.{_FLEETS[_engine.__name__.rpartition('.')[2]][1]}"
    REASONS |= {
        f"{_path}{call}": reason
        for call, reason in (
            *((f"({name})", OF_HTTPX2) for name in OF_HTTPX2_ALONE),
            (".setup", BY_LIBRARY),
            (".teardown", BY_LIBRARY),
            (".report", "needs no engine: test_fleet_member.py"),
            (".check", "needs an engine that runs: tests/fleet"),
            (".task", "the same"),
        )
        if call.startswith("(") or hasattr(found(_path), call[1:])
    }
    if _engine.__name__ == "enclavia.dask":
        REASONS["enclavia.dask.client"] = "needs an engine that runs: tests/fleet"


def calling(call: str, name: str, value: Any) -> Callable[[], object]:
    """With this one argument, where nothing else is wrong."""
    owner, _, method = call.rpartition(".")
    if method == "timeout":
        return lambda: setattr(found(owner)(NOWHERE, pcrs=PINS), "timeout", value)
    if method == "build_request":
        client = found(owner)(NOWHERE, pcrs=PINS)
        return lambda: client.build_request("GET", "/", timeout=value)
    if method in ("mount_on", "send") or (method == "connect" and "Channel" not in owner):
        bound = getattr(found(owner)(NOWHERE, pcrs=PINS, patience=0), method)
        if method == "send":
            request = requests.Request("GET", "https://127.0.0.1:9/").prepare()
            return lambda: bound(request, **{name: value})

        def call_it() -> object:
            result = bound(value)
            return anyio.run(lambda: result) if inspect.isawaitable(result) else result

        return call_it
    function = found(call)
    if call == "enclavia.testing.LocalEnclave":
        given = {"app": "127.0.0.1:9", name: value}
        return lambda: function(given.pop("app"), **given)
    if call == "enclavia.testing.EnclavePki":
        pki = dataclasses.asdict(enclavia.testing.EnclavePki.mint()) | {name: value}
        return lambda: function(**pki)
    if call == "enclavia.testing.EnclavePki.mint":
        return lambda: function(**{name: value})
    if call.startswith("enclavia.Pcrs"):
        if method in ("load", "parse"):
            return lambda: function(value)
        values = {"pcr0": "1" * 96, "pcr1": "2" * 96, "pcr2": "3" * 96, name: value}
        return lambda: function(**values)
    if method == "verify_attestation":
        given = {"document": b"x", name: value}
        return lambda: function(given.pop("document"), **given)
    if method == "TrustUpgrades":
        given = {"backend": "https://e.example", "enclave_id": NO_ENCLAVE, name: value}
        return lambda: function(**given)
    if method == "verify_upgrade_chain":
        given = {"row": "{}", "links": "[]", "pcrs": PINS, "enclave_id": NO_ENCLAVE, name: value}
        return lambda: function(given.pop("row"), given.pop("links"), **given)
    if call.startswith("enclavia.Receipt"):
        if method == "Receipts":
            own = {"path": "/no/such/folder/receipts", name: value}
            return lambda: function(own.pop("path"), **own)
        if method == "append":
            return lambda: enclavia.Receipts("/no/such/folder/receipts").append(value)
        return lambda: function(value)
    if method == "EnclaveSession":
        return lambda: function(value)
    given = {"url": "wss://e.example", "pcrs": PINS, name: value}
    return lambda: function(given.pop("url"), **given)


@pytest.mark.parametrize(("call", "name", "rows"), cases(TABLE))
def test_refused_where_it_is_given(call: str, name: str, rows: list[Row]) -> None:
    about = {"options": "timeout", "value": "timeout", "text": "expected"}.get(name, name)
    all_refused(lambda value: calling(call, name, value), about, rows)


def prepared(call: str, name: str, value: Any) -> dict[str, Any]:
    arguments = {name: value}
    if call == "Channel.request":
        arguments.setdefault("data", b"x")
    return arguments


@pytest.mark.parametrize(("call", "name", "rows"), cases(CONNECTED))
def test_refused_by_what_is_connected(
    blocking: Blocking, call: str, name: str, rows: list[Row]
) -> None:
    before = blocking.channel.stats
    if name == "value":
        attribute = call.partition(".")[2]
        all_refused(
            lambda value: lambda: setattr(blocking.stream, attribute, value), attribute, rows
        )
        assert blocking.stream.timeout == HANG
    else:
        all_refused(
            lambda value: lambda: blocking.call(call, **prepared(call, name, value)), name, rows
        )
    after = blocking.channel.stats
    for counter in ("records_out", "streams_total", "slots_in_use", "slots_waiting"):
        assert after[counter] == before[counter], "nothing is sent, nothing is kept"


def test_refused_by_what_is_connected_and_awaited(enclave: LocalEnclave) -> None:
    async def main() -> None:
        async with enclavia.AsyncChannel.connect(
            enclave.url, pcrs=enclave.pcrs, root=enclave.root, timeout=HANG
        ) as channel:
            stream = await channel.open_stream(b"0123456789")
            before = channel.stats
            for call, parameters in CONNECTED.items():
                owner, _, method = call.partition(".")
                target: Any = channel if owner == "Channel" else stream
                for name, rows in parameters.items():
                    for row in rows:
                        if name == "value":
                            call_it = functools.partial(setattr, target, method, row.value)
                            refused(call_it, method, row)
                            continue
                        arguments = prepared(call, name, row.value)
                        with pytest.raises((TypeError, ValueError)) as caught:
                            await getattr(target, method)(**arguments)

                        def again(error: Exception = caught.value) -> None:
                            raise error

                        refused(again, name, row)
            after = channel.stats
            for counter in ("records_out", "streams_total", "slots_in_use", "slots_waiting"):
                assert after[counter] == before[counter], "nothing is sent, nothing is kept"
            assert await stream.read(100)

    anyio.run(main)


@pytest.mark.parametrize(("call", "name", "rows"), cases(RUNNING))
def test_refused_by_a_running_enclave(
    enclave: LocalEnclave, call: str, name: str, rows: list[Row]
) -> None:
    method = getattr(enclave, call.rpartition(".")[2])
    all_refused(lambda value: lambda: method(**{name: value}), name, rows)


def test_a_running_enclave_is_what_it_was(enclave: LocalEnclave) -> None:
    with enclavia.Channel.connect(enclave.url, pcrs=enclave.pcrs, root=enclave.root, timeout=HANG):
        pass


def test_errors_are_named_as_they_are_imported() -> None:
    public = [getattr(enclavia, name) for name in enclavia.__all__]
    errors = [it for it in public if isinstance(it, type) and issubclass(it, Exception)]
    assert enclavia.PcrMismatch in errors
    assert {it.__module__ for it in errors} == {"enclavia"}


# ---- every parameter of every callable


def public_calls() -> dict[str, list[str]]:
    """By callable, or property that can be set: the names of its parameters."""
    calls: dict[str, list[str]] = {}
    for module in (enclavia, enclavia.testing, enclavia.requests, enclavia.httpx, *ENGINES):
        for name in module.__all__:
            value, path = getattr(module, name), f"{module.__name__}.{name}"
            if inspect.isclass(value) and not issubclass(value, BaseException):
                calls |= calls_of_class(path, value)
            elif callable(value) and not inspect.isclass(value):
                calls[path] = list(inspect.signature(value).parameters)
    return {call: names for call, names in calls.items() if names}


def calls_of_class(path: str, cls: type) -> dict[str, list[str]]:
    calls = {path: list(inspect.signature(cls).parameters)}
    for name in dir(cls):
        owner = next((base for base in cls.__mro__ if name in base.__dict__), object)
        if name.startswith("_") or not owner.__module__.startswith("enclavia"):
            continue
        member = inspect.getattr_static(cls, name)
        if isinstance(member, property):
            calls[f"{path}.{name}"] = [] if member.fset is None else ["value"]
        elif callable(getattr(cls, name)):
            own = list(inspect.signature(getattr(cls, name)).parameters)
            calls[f"{path}.{name}"] = own if isinstance(member, classmethod) else own[1:]
    return calls


def covered() -> set[str]:
    rows: set[str] = set()
    both = {
        f"enclavia.{kind}{call}": of for call, of in CONNECTED.items() for kind in ("", "Async")
    }
    for call, parameters in {**TABLE, **RUNNING, **both}.items():
        rows |= {f"{call}({name})" for name in parameters}
        if parameters is TRANSPORT and call.split(".")[1] in (
            "requests",
            "httpx",
        ):  # through ``**options``
            rows.add(f"{call}(options)")
    return rows


def test_every_parameter_has_rows_or_a_reason() -> None:
    there = {f"{call}({name})" for call, names in public_calls().items() for name in names}
    reasoned = {each for each in there if each in REASONS or each.partition("(")[0] in REASONS}
    rows = covered()
    assert there - rows - reasoned == set()
    assert rows & reasoned == set(), "a reason for what has rows"
    # What is named here is there.
    calls = {each.partition("(")[0] for each in there}
    named = {reason for reason in REASONS if reason not in there and reason not in calls}
    assert named <= {"enclavia.testing.Fault"}  # whose signature differs between versions of Python
    through_options = {
        f"{call}({name})" for call, of in TABLE.items() if of is TRANSPORT for name in of
    }
    assert rows - there <= through_options


def test_options_that_are_handed_on_are_the_transports() -> None:
    own = set(inspect.signature(enclavia.EnclaveTransport).parameters) - {"url"}
    assert set(TRANSPORT) - {"url"} == own
