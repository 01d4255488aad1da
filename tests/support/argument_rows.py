"""Values outside of the domains of arguments, with what is said of each: tables for the tests of
arguments."""

from __future__ import annotations

import decimal
import fractions
import functools
import math
import os
from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import urllib3

import enclavia
import enclavia.httpx
import enclavia.requests
import enclavia.testing
from enclavia.testing import Fault

PINS = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)


NOWHERE = "ws://127.0.0.1:9"


HUGE = 1 << 80


ABSURD = 10**5000  # which Python refuses to write in decimal


NAN = float("nan")


SURROGATE = "\ud800"


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


PCRS_OR_SOURCE = [
    *PCRS,
    Row(lambda pins: pins, TypeError, "got one that takes (pins)"),
    Row(lambda *, pins: pins, TypeError, "got one that takes (*, pins)"),
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


TRUST_UPGRADES = [
    *(Row(value, TypeError, "TrustUpgrades") for value in (5, True, "", "https://e.example", {})),
    Row(enclavia.TrustUpgrades, TypeError, "got type"),
]


BACKEND = [
    *(Row(value, TypeError) for value in (None, 5, b"https://e.example", [])),
    Row("", ValueError),
    Row("e.example", ValueError),
    Row("https://", ValueError),
    Row("http://e.example", ValueError, "http://"),
    Row("https://user:password@e.example", ValueError, "credentials"),
    Row("https://e.example?a", ValueError, "query"),
    Row("https://e.example#a", ValueError, "fragment"),
    Row("https://\0", ValueError),
    Row(SURROGATE, ValueError),
]


ENCLAVE_ID = [
    *(Row(value, TypeError) for value in (None, 5, b"x" * 16, [])),
    *(Row(value, ValueError) for value in ("", "x", "0" * 31, SURROGATE)),
]


TOKEN = [
    *(Row(value, TypeError) for value in (5, b"token", [])),
    *(Row(value, ValueError, "other") for value in ("", "a b", "a\n", "\u00e9", SURROGATE)),
]


UPGRADES = {
    "backend": BACKEND,
    "enclave_id": ENCLAVE_ID,
    "token": TOKEN,
    "allow_rollback": FLAG,
    "high_water": [*PATH],
}


JSON_TEXT = [
    *(Row(value, TypeError, "str or bytes") for value in (None, 5, [], {}, bytearray(b"{}"))),
]


def no_parameter() -> None:
    pass


ON_ATTESTATION = [
    *(Row(value, TypeError) for value in (0, 5, True, "", "f", b"", [], SURROGATE, object())),
    Row(no_parameter, TypeError, "got one that takes ()"),
    Row(decide_later, TypeError, "got one that takes (request"),
    Row(lambda receipt, other: None, TypeError, "got one that takes (receipt, other)"),
    Row(lambda *, receipt: None, TypeError, "got one that takes (*, receipt)"),
]


CHANNEL = {
    "url": URL,
    "pcrs": PCRS_OR_SOURCE,
    "root": ROOT,
    "debug_mode": FLAG,
    "clock_leeway": LEEWAY,
    "trust_upgrades": TRUST_UPGRADES,
    "upgrade_headers": UPGRADE_HEADERS,
    "verify": VERIFY,
    "proxy": PROXY,
    "max_in_flight": IN_FLIGHT,
    "keepalive": KEEPALIVE,
    "on_attestation": ON_ATTESTATION,
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
    "delay": LONG_WAIT,
    "truncated_after": [
        *no_whole_number(),
        Row(-1, ValueError, "got -1"),
        Row(HUGE, ValueError),
        Row(-HUGE, ValueError),
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
    "upgradable": FLAG,
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
