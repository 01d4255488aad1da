"""The edges of arguments: what is outside a domain is refused where it is given.

Every public callable and every settable property is enumerated from the signatures, and each of
their parameters has rows here, or a reason why it has none.
"""

from __future__ import annotations

import contextlib
import decimal
import fractions
import functools
import inspect
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import httpx2
import pytest
import requests
import urllib3
from support import HANG, byte_enclave

import enclavia
import enclavia.httpx
import enclavia.requests
import enclavia.testing
from enclavia._exchange.timeouts import Timeouts
from enclavia._pool.kinds import PoolLimits
from enclavia.testing import Fault, LocalEnclave

PINS = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)
NOWHERE = "ws://127.0.0.1:9"
HUGE = 1 << 80
ABSURD = 10**5000  # which Python refuses to write in decimal
NAN = float("nan")
SURROGATE = "\ud800"


def hello(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


class Row(NamedTuple):
    value: Any
    error: type[Exception]
    words: str = "got "
    """A part of the message, beside the name of the parameter, "expected" and "got"."""


class Index:
    """As the integers of numpy: no int, and usable as one."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


class Number:
    """As the floats of numpy that are no float."""

    def __init__(self, number: float) -> None:
        self.number = number

    def __float__(self) -> float:
        return self.number


class Whole(int):
    pass


class Text(str):
    pass


class PathOfBytes(os.PathLike[bytes]):
    def __fspath__(self) -> bytes:
        return b"/etc/hosts"


class NoOffset(tzinfo):
    def utcoffset(self, moment: datetime | None, /) -> timedelta | None:
        return None


def released() -> memoryview:
    view = memoryview(bytearray(8))
    view.release()
    return view


def no_number(none: bool = True) -> list[Row]:
    rows = [
        Row(True, TypeError, "got bool"),
        Row("5", TypeError, "got str"),
        Row(b"5", TypeError, "got bytes"),
        Row("", TypeError, "got str"),
        Row(SURROGATE, TypeError, "got str"),
        Row([], TypeError, "got list"),
        Row(1j, TypeError, "got complex"),
        Row(object(), TypeError, "got object"),
    ]
    return rows if none else [*rows, Row(None, TypeError, "got NoneType")]


def no_whole_number(none: bool = False) -> list[Row]:
    return [
        *no_number(none),
        Row(1.0, TypeError, "got float"),
        Row(NAN, TypeError, "got float"),
        Row(fractions.Fraction(4), TypeError, "got Fraction"),
    ]


# ---- domains

WAIT = [
    *(row for row in no_number() if row.value != []),
    Row(-1, ValueError, "got -1"),
    Row(-1e-9, ValueError, "got -1e-09"),
    Row(NAN, ValueError, "got nan"),
    Row(-math.inf, ValueError, "got -inf"),
    Row(-HUGE, ValueError),
    Row(-ABSURD, ValueError, "got a value of type int"),
    Row(Index(-1), ValueError),
    Row(Number(NAN), ValueError),
    Row(decimal.Decimal("NaN"), ValueError),
    Row(decimal.Decimal("sNaN"), TypeError, "got Decimal"),
    Row(fractions.Fraction(-1, 3), ValueError),
]

# Where None is no limit, such a wait has none either; where it is not, they are refused.
ENDLESS = [math.inf, HUGE, 1e300, 10**400, ABSURD, Number(math.inf), decimal.Decimal("Infinity")]
TOO_LONG = [
    Row(math.inf, ValueError, "got inf"),
    Row(HUGE, ValueError, f"got {HUGE}"),
    Row(10**400, ValueError, "got 1000"),
    Row(ABSURD, ValueError, "got a value of type int"),
]

TIMEOUT = [
    *(row for row in WAIT if row.value is not None),
    Row((), ValueError, "got 0"),
    Row((5,), ValueError, "got 1"),
    Row((1, 2, 3, 4, 5), ValueError, "got 5"),
    Row((1, -1), ValueError, "(read): expected"),
    Row((1, 1, "1"), TypeError, "(write): expected"),
    Row({"connect": 1}, TypeError, "got dict"),
    *(
        Row(httpx2.Timeout(5.0, **{member: row.value}), row.error, f"timeout ({member}): expected")
        for member in ("connect", "read", "write", "pool")
        for row in WAIT
    ),
]

LIMITS = [
    *(Row(value, TypeError) for value in (5, True, "", {}, httpx2.Timeout(5), httpx2.Limits)),
    *(
        Row(httpx2.Limits(**{name: row.value}), row.error, f"limits ({name}): expected")
        for name in ("max_connections", "max_keepalive_connections")
        for row in [*no_whole_number(True), Row(-1, ValueError), Row(-HUGE, ValueError)]
    ),
    Row(httpx2.Limits(max_connections=0), ValueError, "got 0"),
    *(
        Row(httpx2.Limits(keepalive_expiry=row.value), row.error, "(keepalive_expiry): expected")
        for row in WAIT
    ),
]


async def decide_later(request: object, error: object) -> bool:
    return False


class Decider:
    async def __call__(self, request: object, error: object) -> bool:
        return False


RETRIES = [
    Row(True, TypeError, "got a bool"),
    Row(-1, ValueError, "got -1"),
    Row(-HUGE, ValueError),
    Row(Index(-1), ValueError),
    Row(None, TypeError, "got NoneType"),
    Row(1.0, TypeError, "got float"),
    Row(NAN, TypeError, "got float"),
    Row("POST", TypeError, "got one str"),
    Row("", TypeError, "got one str"),
    Row(b"POST", TypeError, "got bytes"),
    Row({b"POST"}, TypeError, "got bytes"),
    Row({5}, TypeError, "got int"),
    Row([None], TypeError, "got NoneType"),
    Row({""}, ValueError, "got ''"),
    Row({"PO ST"}, ValueError, "got 'PO ST'"),
    Row({"POST\0"}, ValueError),
    Row({"POST\n"}, ValueError),
    Row({SURROGATE}, ValueError),
    Row(lambda: True, TypeError, "got one that takes ()"),
    Row(lambda request: True, TypeError, "got one that takes (request)"),
    Row(lambda a, b, c: True, TypeError, "got one that takes (a, b, c)"),
    Row(lambda a, b, *, c: True, TypeError),
    Row(decide_later, TypeError, "got an async function"),
    Row(functools.partial(decide_later), TypeError, "got an async function"),
    Row(Decider(), TypeError, "got an async function"),
    Row(object(), TypeError, "got object"),
]

FLAG = [
    *(Row(value, TypeError) for value in (0, 1, None, "", "no", "False", [], NAN, SURROGATE)),
    Row(ABSURD, TypeError, "got a value of type int"),
]

PATH = [
    Row("", ValueError, "an empty text"),
    Row("a\0b", ValueError, "got one with a NUL"),
    Row(SURROGATE, ValueError),
    Row(Path("a\0b"), ValueError, "got one with a NUL"),
    Row(PathOfBytes(), TypeError, "got PathOfBytes"),
    *(Row(value, TypeError) for value in (5, 1.0, [], object())),
]

BUFFER = [
    Row("text", TypeError, "got str"),
    Row("", TypeError, "got str"),
    Row(SURROGATE, TypeError, "got str"),
    Row(None, TypeError, "got NoneType"),
    Row(5, TypeError, "got int"),
    Row(True, TypeError, "got bool"),
    Row([1, 2], TypeError, "got list"),
    Row(object(), TypeError, "got object"),
    Row(memoryview(b"abcd")[::2], ValueError, "got a strided one"),
    Row(released(), ValueError, "got one that is closed"),
]

PCR = [
    Row("", ValueError, "got 0"),
    Row(b"", ValueError, "got 0"),
    Row("1" * 95, ValueError),
    Row("g" * 96, ValueError),
    Row("1" * 98, ValueError, "got 98"),
    Row("1" * 100_000, ValueError, "got 100000"),
    Row(SURROGATE * 96, ValueError),
    Row("1" * 95 + "\0", ValueError),
    Row("\uff11" * 96, ValueError),
    Row(b"1" * 47, ValueError, "got 47"),
    Row(released(), ValueError),
    *(Row(value, TypeError) for value in (5, True, None, NAN, [1] * 48)),
]

PCRS = [
    Row([], ValueError, "an empty list"),
    Row("11" * 48, TypeError, "got str"),
    Row("", TypeError, "got str"),
    Row(b"", TypeError, "got bytes"),
    Row({0: b"1" * 48}, TypeError, "got dict"),
    Row(5, TypeError, "got int"),
    Row(0, TypeError, "got int"),
    Row(False, TypeError, "got bool"),
    Row([None], TypeError, "got NoneType"),
    Row([PINS, "x"], TypeError, "got str"),
    Row(enclavia.Pcrs, TypeError, "got type"),
]

ROOT = [
    *(row for row in PATH),
    Row(b"", ValueError, "no bytes"),
    Row(bytearray(), ValueError, "no bytes"),
    Row(False, TypeError, "got bool"),
    Row("/", ValueError, "got the directory"),
    Row("/no/such/file", FileNotFoundError, "no file"),
]

LEEWAY = [
    *no_number(none=False),
    Row(-1, ValueError, "got -1"),
    Row(301, ValueError, "got 301"),
    Row(NAN, ValueError, "got nan"),
    Row(math.inf, ValueError, "got inf"),
    Row(HUGE, ValueError),
    Row(ABSURD, ValueError),
]

UPGRADE_HEADERS = [
    Row("", TypeError, "got str"),
    Row(b"a: b", TypeError, "got bytes"),
    Row(5, TypeError, "got int"),
    Row(False, TypeError, "got bool"),
    Row([5], TypeError, "got int"),
    Row(["ab"], TypeError, "got str"),
    Row([("a",)], ValueError, "got 1 members"),
    Row([("a", "b", "c")], ValueError, "got 3 members"),
    Row({"": "x"}, ValueError, "is not a header name"),
    Row({"a\nb": "x"}, ValueError, "is not a header name"),
    Row({"a\0": "x"}, ValueError, "is not a header name"),
    Row({SURROGATE: "x"}, ValueError, "is not a header name"),
    Row({"a": "x\r\nb: c"}, ValueError, "characters not allowed"),
    Row({"a": "\0"}, ValueError, "characters not allowed"),
    Row({"a": SURROGATE}, ValueError, "characters not allowed"),
    Row({"a": "\u0100"}, ValueError, "characters not allowed"),
    Row({"a": 5}, TypeError, "as text"),
    Row({"a": None}, TypeError, "as text"),
    Row({b"a": "b"}, TypeError, "as text"),
    Row({"Host": "b"}, ValueError, "set by the WebSocket upgrade"),
]

VERIFY = [
    *PATH,
    Row(None, TypeError, "got NoneType"),
    Row(1, TypeError, "got int"),
    Row(0, TypeError, "got int"),
    Row("/", ValueError, "got the directory"),
    Row("/no/such/file", FileNotFoundError, "no file"),
    Row("/dev/null", ValueError, "no regular file"),
    Row("/no/such\udc80", ValueError, "not UTF-8"),
    Row(b"/etc/hosts", TypeError, "got bytes"),
]

PROXY = [
    Row("", ValueError, "expected http://"),
    Row("proxy", ValueError, "expected http://"),
    Row("socks5://h:1", ValueError, "'socks5'"),
    Row("https://h:1", ValueError, "'https'"),
    Row("http://", ValueError),
    Row("http://h:0", ValueError, "got 0"),
    Row("http://h:65536", ValueError),
    Row("http://h:-1", ValueError),
    Row("http://h:x", ValueError),
    Row("http://h/path", ValueError, "a path"),
    Row("http://h?q", ValueError, "a path"),
    Row("http://h\0", ValueError),
    Row("http://u%00:p@h", ValueError, "got a NUL"),
    Row(f"http://{SURROGATE}", ValueError),
    Row(f"http://secret:{SURROGATE}@h", ValueError),
    Row(b"http://h:1", TypeError, "got bytes"),
    Row(5, TypeError, "got int"),
    Row(False, TypeError, "got bool"),
    Row(httpx2.Proxy("http://h:1"), TypeError, "got httpx2.Proxy"),
]

IN_FLIGHT = [
    *no_whole_number(),
    Row(0, ValueError, "got 0"),
    Row(65, ValueError, "got 65"),
    Row(-1, ValueError, "got -1"),
    Row(HUGE, ValueError),
    Row(ABSURD, ValueError),
    Row(Index(65), ValueError),
]

CHANNELS = [
    *no_whole_number(),
    Row(0, ValueError, "got 0"),
    Row(-HUGE, ValueError),
    Row(Index(0), ValueError),
]

KEEPALIVE = [
    *WAIT,
    *TOO_LONG,
    Row(0, ValueError, "got 0"),
    Row(0.0, ValueError),
    Row(86_401, ValueError),
]

URL = [
    Row("", enclavia.InvalidURL),
    Row("wss://", enclavia.InvalidURL),
    Row("http://e.example", enclavia.InvalidURL),
    Row("e.example", enclavia.InvalidURL),
    Row("wss://e.example:0", enclavia.InvalidURL),
    Row("wss://e.example:65536", enclavia.InvalidURL),
    Row("wss://e.example\0", enclavia.InvalidURL),
    Row(f"wss://{SURROGATE}", enclavia.InvalidURL),
    Row(f"wss://e.example/{SURROGATE}", enclavia.InvalidURL),
    Row("wss://" + "a" * 100_000, enclavia.InvalidURL),
    Row("wss://u:p@e.example", enclavia.InvalidURL),
    Row("wss://e.example/#f", enclavia.InvalidURL),
    *(Row(value, TypeError) for value in (None, 5, True, b"wss://e.example", [], Path("/"))),
]

BASE_URL = [
    Row(0, TypeError, "got int"),
    Row(False, TypeError, "got bool"),
    Row(b"", TypeError, "got bytes"),
    Row([], TypeError, "got list"),
    Row(f"/{SURROGATE}", enclavia.InvalidURL),
    Row("/\0", enclavia.InvalidURL),
    Row("https://other.example/", enclavia.ForeignURL, "another host"),
    Row("ftp://e.example/", enclavia.ForeignURL, "'ftp'"),
]

VIA = [
    *(Row(value, TypeError, "'unix:PATH' or None") for value in (0, True, b"unix:/x", [], Path())),
    *(Row(value, ValueError, "'unix:PATH'") for value in ("", "/x", "unix", "tcp:/x", "http://x")),
    Row("unix:x", ValueError, "absolute"),
    Row("unix:/x\0", ValueError, "NUL"),
    Row(f"unix:/{SURROGATE}", ValueError),
    Row("unix:/" + "x" * 94, ValueError, "at most 94 bytes"),
    Row("unix:/x?owner=me", ValueError, "owner=root"),
    Row("unix:/x?", ValueError, "owner=root"),
]
CHANNEL = {
    "url": URL,
    "pcrs": PCRS,
    "root": ROOT,
    "debug_mode": FLAG,
    "clock_leeway": LEEWAY,
    "upgrade_headers": UPGRADE_HEADERS,
    "verify": VERIFY,
    "proxy": PROXY,
    "max_in_flight": IN_FLIGHT,
    "keepalive": KEEPALIVE,
}
TRANSPORT = {
    **CHANNEL,
    "timeout": TIMEOUT,
    "retries": RETRIES,
    "patience": [*WAIT, *TOO_LONG],
    "shared_expiry": [*WAIT, *TOO_LONG],
    "auto_reconnect": FLAG,
    "max_channels": CHANNELS,
    "limits": LIMITS,
    "via": VIA,
}
FORWARDER = {
    **{name: rows for name, rows in TRANSPORT.items() if name not in ("via", "shared_expiry")},
    "socket": [
        *(Row(value, TypeError, "the path of a Unix socket") for value in (0, 5, True, b"/x", [])),
        Row("", ValueError, "empty"),
        Row("x", ValueError, "absolute"),
        Row("/x\0", ValueError, "NUL"),
        Row(SURROGATE, ValueError),
        Row("/" + "x" * 94, ValueError, "at most 94 bytes"),
        Row("/" + "\u00e9" * 50, ValueError, "got 101"),
    ],
    "http": FLAG,
    "listen": [
        *(Row(value, TypeError) for value in (0, 80, True, b"h:1", [], ("h",), ("h", 1, 2))),
        *(Row(value, ValueError) for value in ("", "h", "h:", ":80", "h:x", "h:-1", "h:65536")),
        Row("h:\u0661", ValueError),
        Row("h:" + "9" * 5000, ValueError),
        Row(("h", 65536), ValueError),
        Row(("", 80), ValueError),
        Row((5, 80), TypeError),
        Row(("h", "80"), TypeError),
    ],
    "way": [
        *(Row(value, TypeError) for value in (None, 0, True, b"http", [])),
        *(Row(value, ValueError) for value in ("", "tcp", "HTTP", SURROGATE)),
    ],
    "token": [
        *(Row(value, ValueError, "token") for value in ("x" * 20, "", "short")),
        *(Row(value, TypeError) for value in (0, True, b"x" * 20, [])),
    ],
}
OPTIONS = {"url": URL, "options": []}  # the rows of TRANSPORT, through ``**options``

PLAINTEXT = [*BUFFER, Row(bytes(65_520), ValueError, "got 65520")]
LONG_WAIT = [
    *no_number(none=False),
    Row(-1, ValueError),
    Row(NAN, ValueError),
    Row(math.inf, ValueError),
    Row(1e9 + 1, ValueError),
    Row(HUGE, ValueError),
]
FAULTS = {
    "faults": [
        *(Row(value, TypeError) for value in (0, 1, True, None, "", "SPLIT", 1.5, [], HUGE)),
        Row(Fault(1 << 20), ValueError),
        Row(Fault(1 << 80), ValueError),
    ],
    "split": [
        *no_whole_number(),
        Row(-1, ValueError, "got -1"),
        Row(HUGE, ValueError),
        Row(-HUGE, ValueError),
    ],
    "record_length": [
        *no_whole_number(),
        Row(-1, ValueError, "got -1"),
        Row(2**32, ValueError, f"got {2**32}"),
        Row(HUGE, ValueError),
    ],
    "instead_of_attestation": PLAINTEXT,
    "after_attestation": PLAINTEXT,
}
ONE_PCRS = [
    *(row for row in PCRS if not isinstance(row.value, list)),
    *(Row(value, TypeError, "got list") for value in ([], [None], [PINS])),
]
ENCLAVE = {
    **FAULTS,
    "app": [
        Row("", ValueError, "got ''"),
        Row("nothing", ValueError, "got 'nothing'"),
        Row("module:", ValueError),
        Row(":attribute", ValueError),
        Row("h:0", ValueError, "got 0"),
        Row("h:65536", ValueError, "got 65536"),
        Row("h:" + "9" * 5000, ValueError),
        Row("h\0:80", ValueError),
        Row(f"{SURROGATE}:80", ValueError),
        Row("a" * 300 + ":80", ValueError),
        Row((), ValueError, "got 0 members"),
        Row(("h",), ValueError, "got 1 members"),
        Row(("h", "80"), TypeError, "got str"),
        Row(("h", True), TypeError, "got bool"),
        Row(("h", 0), ValueError, "got 0"),
        Row(("h", HUGE), ValueError),
        Row((b"h", 80), TypeError, "got bytes"),
        Row(("", 80), ValueError, "got ''"),
        Row(("h\0", 80), ValueError),
        *(Row(value, TypeError) for value in (None, 5, True, b"h:80", ["h", 80])),
    ],
    "mode": [
        *(Row(value, ValueError) for value in ("", "other", "Production", "debug\0", SURROGATE)),
        *(Row(value, TypeError) for value in (None, 5, True, b"debug")),
    ],
    "pcrs": ONE_PCRS,
    "module_id": [
        Row("", ValueError, "got ''"),
        Row(SURROGATE, ValueError),
        Row("a" * 1025, ValueError),
        *(Row(value, TypeError) for value in (None, 5, True, b"i-1")),
    ],
    "interface": [
        *(Row(value, ValueError) for value in ("", "cgi", "WSGI", SURROGATE)),
        *(Row(value, TypeError) for value in (None, 5, True, b"wsgi")),
    ],
    "in_process": FLAG,
    "port": [
        *no_whole_number(),
        Row(-1, ValueError, "got -1"),
        Row(65536, ValueError, "got 65536"),
        Row(HUGE, ValueError),
    ],
    "tls": [
        *(Row(value, TypeError) for value in (None, 0, 1, "", "cert.pem", b"", ["a", "b"])),
        Row((), ValueError, "got 0 members"),
        Row(("a",), ValueError, "got 1 members"),
        *(Row(("a", row.value), row.error, row.words) for row in PATH),
    ],
    "idle_timeout": LONG_WAIT,
    "workload_grace": LONG_WAIT,
    "one_shot_timeout": LONG_WAIT,
    "max_connections": [
        *no_whole_number(True),
        Row(0, ValueError, "got 0"),
        Row(-1, ValueError),
        Row(65_537, ValueError),
        Row(HUGE, ValueError),
    ],
}

NONCE = [
    Row(b"", ValueError, "no bytes"),
    Row(bytearray(), ValueError, "no bytes"),
    *(Row(value, TypeError) for value in ("", "11", 5, True, [1])),
    Row(released(), ValueError),
    Row(memoryview(b"abcd")[::2], ValueError, "got a strided one"),
]
AT = [
    Row(datetime(2022, 10, 13), ValueError, "naive"),
    Row(datetime(2022, 10, 13, tzinfo=NoOffset()), ValueError, "naive"),
    Row(date(2022, 10, 13), TypeError, "got date"),
    Row(timedelta(1), TypeError, "got timedelta"),
    *no_number(),
    *(Row(value, ValueError) for value in (NAN, math.inf, -math.inf, HUGE, -HUGE, 10**400)),
    Row(ABSURD, ValueError, "got a value of type int"),
    Row(Number(NAN), ValueError),
]
SIZE = [
    *(row for row in no_whole_number(True) if row.value is not None),
]
WRITABLE = [
    *(row for row in BUFFER if row.words != "got a strided one"),
    Row(b"bytes", TypeError, "read-only"),
    Row(memoryview(b"bytes"), TypeError, "read-only"),
    Row(memoryview(bytearray(8))[::2], ValueError, "got a strided one"),
]
NUMBERS_OF_REQUESTS = [
    *(Row(value, ValueError) for value in (0, -1, True, "x", [], {}, (1,), (1, 2, 3), (1, -1))),
    Row((1, "x"), ValueError),
    Row(urllib3.Timeout(connect=math.nan), ValueError),
    *(Row(value, ValueError) for value in (NAN, -math.inf, ABSURD, (1, NAN), (-math.inf, 1))),
]

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
    "enclavia.testing.LocalEnclave": ENCLAVE,
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
}

# What there are no rows for, and why. A callable alone stands for all its parameters.
OF_HTTPX2 = "httpx2's own keyword, handed on as it is and refused where httpx2 refuses it"
BY_CONNECT = "made by connect and open_stream, from objects that are not public"
BY_LIBRARY = "called by the library whose protocol it is, with what that library has made"
REASONS = {
    **{
        f"enclavia.{cls}({name})": OF_HTTPX2
        for cls in ("Client", "AsyncClient")
        for name in (
            "auth",
            "params",
            "headers",
            "cookies",
            "follow_redirects",
            "max_redirects",
            "event_hooks",
            "default_encoding",
        )
    },
    **{
        f"enclavia.{cls}{call}": reason
        for cls in ("Client", "AsyncClient")
        for call, reason in (
            ("(unsupported)", "every name is refused: test_client.py, test_unlike_httpx2.py"),
            (".connect", "makes one of the class, whose keywords have the rows"),
            (".send", OF_HTTPX2),
            (".build_request(method)", OF_HTTPX2),
            (".build_request(url)", OF_HTTPX2),
            (".cookies", OF_HTTPX2),
        )
    },
    "enclavia.Channel": BY_CONNECT,
    "enclavia.AsyncChannel": BY_CONNECT,
    "enclavia.Stream": BY_CONNECT,
    "enclavia.AsyncStream": BY_CONNECT,
    "enclavia.Attestation": "a result; nothing is decided by one that a user made",
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
    "enclavia.testing.Fault": "the constructor of Python's enum.IntFlag",
    "enclavia.testing.Mode": "the name of a type, not to be called",
    "enclavia.testing.Interface": "the name of a type, not to be called",
}


# ---- how each of them is called


def refused(call: Callable[[], object], name: str, row: Row) -> None:
    with pytest.raises((TypeError, ValueError, FileNotFoundError)) as caught:
        call()
    assert not isinstance(caught.value, UnicodeError), "which is a ValueError of Python's own"
    assert isinstance(caught.value, row.error), repr(caught.value)
    text = str(caught.value)
    text.encode()  # may be printed anywhere
    assert "expected" in text, text
    assert row.words in text, text
    assert "got" in text, text
    if row.error is not enclavia.InvalidURL:
        assert name in text, text


def cases(table: dict[str, dict[str, list[Row]]]) -> list[Any]:
    return [
        pytest.param(call, name, rows, id=f"{call}({name})")
        for call, parameters in table.items()
        for name, rows in parameters.items()
    ]


def all_refused(make: Callable[[Any], Callable[[], object]], name: str, rows: list[Row]) -> None:
    wrong: list[str] = []
    for row in rows:
        try:
            refused(make(row.value), name, row)
        except (Exception, pytest.fail.Exception) as error:
            wrong.append(f"{row.value!r:.60}: {type(error).__name__}: {error!s:.300}")
    assert not wrong, "\n".join(wrong)


def found(dotted: str) -> Any:
    module, _, rest = dotted.removeprefix("enclavia.").rpartition(".")
    value: Any = enclavia
    for part in [*module.split("."), rest] if module else [rest]:
        value = getattr(value, part)
    return value


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
    if call.startswith("enclavia.Pcrs"):
        if method in ("load", "parse"):
            return lambda: function(value)
        values = {"pcr0": "1" * 96, "pcr1": "2" * 96, "pcr2": "3" * 96, name: value}
        return lambda: function(**values)
    if method == "verify_attestation":
        given = {"document": b"x", name: value}
        return lambda: function(given.pop("document"), **given)
    if method == "EnclaveSession":
        return lambda: function(value)
    given = {"url": "wss://e.example", "pcrs": PINS, name: value}
    return lambda: function(given.pop("url"), **given)


@pytest.mark.parametrize(("call", "name", "rows"), cases(TABLE))
def test_refused_where_it_is_given(call: str, name: str, rows: list[Row]) -> None:
    about = {"options": "timeout", "value": "timeout", "text": "expected"}.get(name, name)
    all_refused(lambda value: calling(call, name, value), about, rows)


@pytest.fixture(scope="module")
def enclave() -> Iterator[LocalEnclave]:
    def echo(connection: Any) -> None:
        with contextlib.suppress(OSError):
            while data := connection.sock.recv(65536):
                connection.sock.sendall(data)

    with byte_enclave(echo) as (running, _):
        yield running


class Blocking:
    """The blocking channel and one stream of it, and how they are called."""

    def __init__(self, enclave: LocalEnclave) -> None:
        self.channel = enclavia.Channel.connect(
            enclave.url, pcrs=enclave.pcrs, root=enclave.root, timeout=HANG
        )
        self.stream = self.channel.open_stream(b"0123456789")

    def call(self, name: str, **arguments: Any) -> Any:
        owner, _, method = name.partition(".")
        bound = getattr(self.channel if owner == "Channel" else self.stream, method)
        positional = [arguments.pop(each) for each in ("n", "buffer") if each in arguments]
        positional += [arguments.pop("data")] if "data" in arguments else []
        return bound(*positional, **arguments)

    def close(self) -> None:
        self.stream.close()
        self.channel.close()


@pytest.fixture(scope="module")
def blocking(enclave: LocalEnclave) -> Iterator[Blocking]:
    both = Blocking(enclave)
    yield both
    both.close()


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


# ---- requests


def test_timeouts_of_a_request() -> None:
    with enclavia_client() as client:
        for send in (client.get, client.delete, functools.partial(client.request, "QUERY")):
            all_refused(
                lambda value, send=send: lambda: send("/", timeout=value), "timeout", TIMEOUT
            )
        assert client.stats.requests == client.stats.connects == 0


def enclavia_client() -> contextlib.closing[enclavia.Client]:
    return contextlib.closing(enclavia.Client(NOWHERE, pcrs=PINS, patience=0))


@pytest.mark.parametrize("row", WAIT, ids=range(len(WAIT)))
def test_timeouts_in_the_extensions_of_a_request(row: Row) -> None:
    """As other clients of the same transport give them."""
    with enclavia_client() as client:
        for member in ("connect", "read", "write", "pool"):
            extensions = {"timeout": {member: row.value}}
            refused(
                functools.partial(client.get, "/", extensions=extensions),
                f"timeout ({member})",
                row,
            )
        transport = enclavia.EnclaveTransport(NOWHERE, pcrs=PINS)
        plain = httpx2.Client(transport=transport, base_url=transport.base_url)
        call = functools.partial(plain.get, "/", timeout=httpx2.Timeout(5, read=row.value))
        refused(call, "timeout (read)", row)
        other = enclavia.httpx.EnclaveTransport(NOWHERE, pcrs=PINS)
        first = httpx.Client(transport=other, base_url=other.base_url)
        call = functools.partial(first.get, "/", timeout=httpx.Timeout(5, pool=row.value))
        refused(call, "timeout (pool)", row)
        assert client.stats.connects == transport.stats.connects == other.stats.connects == 0
        plain.close()
        first.close()


@pytest.mark.parametrize("value", [5, "5", [5], (1, 2)])
def test_timeouts_in_the_extensions_that_are_no_mapping(value: Any) -> None:
    with enclavia_client() as client:
        call = functools.partial(client.get, "/", extensions={"timeout": value})
        refused(call, "timeout", Row(value, TypeError, "expected a mapping"))


@pytest.mark.parametrize("value", [NAN, -math.inf, -1, "x", -HUGE])
def test_timeouts_of_a_session(value: Any) -> None:
    with enclavia.requests.session(NOWHERE, pcrs=PINS) as session:
        call = functools.partial(session.get, session.base_url, timeout=value)
        refused(call, "timeout", Row(value, ValueError))
        assert session._adapter.stats.connects == 0


# ---- what is inside a domain


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 5},
        {"timeout": None},
        {"timeout": 0},
        {"timeout": Index(5)},
        {"timeout": Number(0.5)},
        {"timeout": decimal.Decimal("0.5")},
        {"timeout": fractions.Fraction(1, 2)},
        {"timeout": threading.TIMEOUT_MAX},
        {"timeout": (1, None)},
        {"timeout": (1, 2, None, 4)},
        {"timeout": httpx.Timeout(5)},
        {"patience": 0},
        {"patience": Index(7)},
        {"keepalive": Number(0.1)},
        {"keepalive": Index(86_400)},
        {"clock_leeway": Number(2.5)},
        {"max_channels": Index(3)},
        {"max_channels": HUGE},
        {"max_in_flight": Index(64)},
        {"max_in_flight": Whole(3)},
        {"retries": Index(0)},
        {"retries": HUGE},
        {"retries": {"POST", Text("patch")}},
        {"retries": iter(["POST"])},
        {"retries": set()},
        {"retries": lambda *arguments: False},
        {"retries": lambda a, b, c=None: False},
        {"retries": max},
        {"limits": httpx2.Limits()},
        {"limits": httpx2.Limits(max_connections=Index(3), keepalive_expiry=Number(0.5))},
        {"limits": httpx2.Limits(max_keepalive_connections=0, keepalive_expiry=None)},
        {"limits": httpx.Limits(max_connections=3)},
        {"upgrade_headers": [["a", "b"]]},
        {"upgrade_headers": httpx2.Headers({"a": "b"})},
        {"verify": Path(__file__)},
    ],
)
def test_taken(options: dict[str, Any]) -> None:
    for maker in (
        enclavia.Client,
        enclavia.AsyncClient,
        enclavia.EnclaveTransport,
        enclavia.AsyncEnclaveTransport,
        enclavia.requests.EnclaveAdapter,
        enclavia.httpx.EnclaveTransport,
        enclavia.httpx.AsyncEnclaveTransport,
    ):
        maker(Text("wss://e.example"), pcrs=PINS, **options)  # type: ignore[operator]


def test_numbers_are_kept_as_plain_ones() -> None:
    settings = enclavia.EnclaveTransport(
        NOWHERE,
        pcrs=PINS,
        timeout=(Index(5), Number(0.5), None, 0),  # type: ignore[arg-type]
        patience=Index(7),  # type: ignore[arg-type]
        max_channels=Index(3),  # type: ignore[arg-type]
        max_in_flight=Index(4),  # type: ignore[arg-type]
        retries=Index(6),  # type: ignore[arg-type]
        limits=httpx2.Limits(max_connections=Index(8)),  # type: ignore[arg-type]
    )._settings
    assert settings.timeouts == (5.0, 0.5, None, 1e-6)
    assert settings.retries == 6
    assert settings.limits == PoolLimits(
        max_channels=3,
        max_in_flight=4,
        patience=7.0,
        max_connections=8,
        max_idle=None,
        keepalive_expiry=5.0,
    )
    assert all(
        type(value) in (int, float, bool, type(None))
        for value in [*settings.limits, settings.retries]
    )


def test_any_number_of_bytes_may_be_asked_for(blocking: Blocking) -> None:
    stream = blocking.channel.open_stream(b"0123456789")
    assert stream.read(Index(1)) == b"0"  # type: ignore[arg-type]
    assert stream.read(0) == b""
    assert stream.readinto(bytearray()) == 0
    assert stream.readinto(memoryview(bytearray(4)).cast("B", (2, 2))) == 4
    assert stream.read(HUGE)
    assert stream.write(memoryview(b"")) == 0
    stream.write(memoryview(bytearray(b"abcd")).cast("I"))
    assert stream.read(ABSURD)
    stream.write_eof()
    assert stream.read(-HUGE) == b""
    stream.close()
    channel = blocking.channel
    channel.open_stream(memoryview(bytearray()).cast("B"), timeout=Number(HANG)).close()  # type: ignore[arg-type]


def test_any_number_of_bytes_may_be_awaited(enclave: LocalEnclave) -> None:
    async def main() -> None:
        async with enclavia.AsyncChannel.connect(
            enclave.url, pcrs=enclave.pcrs, root=enclave.root, timeout=HANG
        ) as channel:
            stream = await channel.open_stream(b"0123456789", timeout=Index(60))  # type: ignore[arg-type]
            assert await stream.read(Index(1)) == b"0"  # type: ignore[arg-type]
            assert await stream.read(0) == b""
            assert await stream.readinto(bytearray()) == 0
            assert await stream.readinto(memoryview(bytearray(4)).cast("B", (2, 2))) == 4
            assert await stream.read(HUGE)
            assert await stream.write(memoryview(b"")) == 0
            await stream.write_eof()
            assert await stream.read(None) == b""

    anyio.run(main)


def test_a_timeout_of_zero_is_a_deadline() -> None:
    """Also where it is the transport's own, and the request has none."""
    with byte_enclave(lambda connection: connection.wait_closed()) as (silent, _):
        transport = enclavia.EnclaveTransport(
            silent.url,
            pcrs=silent.pcrs,
            root=silent.root,
            timeout=httpx2.Timeout(HANG, read=0),
        )
        with transport, pytest.raises(enclavia.ReadTimeout):
            transport.handle_request(httpx2.Request("GET", transport.base_url))


@pytest.mark.parametrize("endless", ENDLESS, ids=range(len(ENDLESS)))
def test_an_endless_wait_is_none(endless: Any) -> None:
    parts = dict.fromkeys(("connect", "read", "write", "pool"), endless)
    for timeout in (endless, (endless, endless, endless, endless), httpx2.Timeout(**parts)):
        transport = enclavia.EnclaveTransport(NOWHERE, pcrs=PINS, timeout=timeout)
        assert transport._settings.timeouts == (None, None, None, None)
    limits = httpx2.Limits(keepalive_expiry=endless)
    transport = enclavia.EnclaveTransport(NOWHERE, pcrs=PINS, limits=limits)
    assert transport._settings.limits.keepalive_expiry is None
    with enclavia_client() as client:
        client.timeout = endless
        assert client.timeout == httpx2.Timeout(None)
        assert client.build_request("GET", "/", timeout=endless).extensions["timeout"] == {
            "connect": None,
            "read": None,
            "write": None,
            "pool": None,
        }
    request = httpx2.Request("GET", "/", extensions={"timeout": parts})
    default = Timeouts(1.0, 1.0, 1.0, 1.0)
    assert Timeouts.of(request, default) == (None, None, None, None)


@pytest.mark.parametrize("endless", [None, *ENDLESS], ids=range(len(ENDLESS) + 1))
def test_no_limit(blocking: Blocking, endless: Any) -> None:
    stream = blocking.channel.open_stream(b"0123456789", timeout=endless)
    for name in ("timeout", "read_timeout", "write_timeout"):
        setattr(stream, name, endless)
        assert getattr(stream, name) is None
    assert stream.read(1) == b"0"
    stream.close()
    blocking.channel.attest(timeout=endless)


def test_no_limit_of_what_is_awaited(enclave: LocalEnclave) -> None:
    async def main() -> None:
        pins = {"pcrs": enclave.pcrs, "root": enclave.root}
        async with enclavia.AsyncChannel.connect(enclave.url, timeout=math.inf, **pins) as channel:
            stream = await channel.open_stream(b"0123456789", timeout=HUGE)
            for name in ("timeout", "read_timeout", "write_timeout"):
                setattr(stream, name, math.inf)
                assert getattr(stream, name) is None
            assert await stream.read(1) == b"0"
            await channel.attest(timeout=ABSURD)
        async with enclavia.AsyncEnclaveTransport(enclave.url, **pins) as transport:
            await transport.connect(timeout=math.inf)

    anyio.run(main)


def test_no_limit_of_a_client() -> None:
    with LocalEnclave(hello) as enclave:
        pins = {"pcrs": enclave.pcrs, "root": enclave.root}
        for endless in (None, math.inf, HUGE):
            with enclavia.Client(enclave.url, timeout=endless, **pins) as client:
                assert client.get("/").text == "hello"
                assert client.get("/", timeout=endless).text == "hello"
            with enclavia.EnclaveTransport(enclave.url, **pins) as transport:
                transport.connect(timeout=endless)
            with enclavia.Channel.connect(enclave.url, timeout=endless, **pins):
                pass
            with enclavia.requests.session(enclave.url, **pins) as session:
                assert session.get(session.base_url, timeout=endless).text == "hello"


def test_a_request_after_one_that_was_refused() -> None:
    with LocalEnclave(hello) as enclave:
        pins = {"pcrs": enclave.pcrs, "root": enclave.root}
        with enclavia.Client(enclave.url, **pins) as client:
            for value in ("5", True, -1, NAN):
                sent = client.stats.requests
                with pytest.raises((TypeError, ValueError), match=r"timeout \(read\): expected"):
                    client.get("/", timeout=httpx2.Timeout(5, read=value))
                assert client.stats.requests == sent
                assert client.get("/", timeout=5).text == "hello"


def test_requests_of_the_other_httpx_say_so(enclave: LocalEnclave) -> None:
    pins = {"pcrs": enclave.pcrs, "root": enclave.root}
    ours = enclavia.EnclaveTransport(enclave.url, **pins)
    theirs = enclavia.httpx.EnclaveTransport(enclave.url, **pins)
    with ours, pytest.raises(TypeError, match=r"of httpx2, got one of httpx: .*enclavia\.httpx"):
        httpx.Client(transport=ours, base_url=str(ours.base_url)).get("/")  # type: ignore[arg-type]
    with theirs, pytest.raises(TypeError, match=r"of httpx, got one of httpx2: .*EnclaveTransport"):
        httpx2.Client(transport=theirs, base_url=str(ours.base_url)).get("/")  # type: ignore[arg-type]


def test_errors_are_named_as_they_are_imported() -> None:
    public = [getattr(enclavia, name) for name in enclavia.__all__]
    errors = [it for it in public if isinstance(it, type) and issubclass(it, Exception)]
    assert enclavia.PcrMismatch in errors
    assert {it.__module__ for it in errors} == {"enclavia"}


# ---- every parameter of every callable


def public_calls() -> dict[str, list[str]]:
    """By callable, or property that can be set: the names of its parameters."""
    calls: dict[str, list[str]] = {}
    for module in (enclavia, enclavia.testing, enclavia.requests, enclavia.httpx):
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
