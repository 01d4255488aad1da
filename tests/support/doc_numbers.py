"""Where the numbers of the documentation come from.

A :class:`Claim` is a piece of a page's text in which each number stands as ``{}``, and beside it
what the code says in each of these places. A test compares the two, so neither can be changed
alone.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from repository import ROOT, TESTS

Number = int | float
Source = Callable[[], Number]

KIB, MIB = 1024, 1024 * 1024
UNITS = {
    "bytes": 1,
    "B": 1,
    "KiB": KIB,
    "MiB": MIB,
    "s": 1,
    "seconds": 1,
    "hours": 3600,
    "ms": 1e-3,
    "ns": 1e-9,
}
WORDS = dict(
    zip(
        "one two three four five six seven eight nine ten twelve fifteen sixteen".split(),
        [*range(1, 11), 12, 15, 16],
        strict=True,
    )
) | {"twice": 2, "a third": 1 / 3, "a quarter": 1 / 4}

_NUMBER = r"\d{1,3}(?: \d{3})+|\d+(?:\.\d+)?"
_QUANTITY = rf"(?:{_NUMBER}|{'|'.join(WORDS)})(?:[ -](?:{'|'.join(UNITS)})\b)?"


def quantity(text: str) -> Number:
    """``"15 MiB"`` as bytes, ``"10 ms"`` as seconds, ``"65 535"``, ``"twice"``."""
    number, unit = re.fullmatch(r"(.*?)(?:[ -]([A-Za-z]+))?", text).groups()  # type: ignore[union-attr]
    if unit is not None and unit not in UNITS:
        number, unit = text, None
    value = WORDS[number] if number in WORDS else float(number.replace(" ", ""))
    return value * UNITS[unit] if unit else value


# ---------------------------------------------------------------------------------------------
# What the code says

_DEFINE = re.compile(r"^#define[ \t]+([A-Za-z_]\w*)[ \t]+([^\n]*(?:\\\n[^\n]*)*)$", re.MULTILINE)
_CAST = re.compile(r"\((?:u?int\d+_t|s?size_t|Py_ssize_t|ssize_t)\)")
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift,
}


@functools.cache
def definitions(file: str) -> dict[str, str]:
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "csrc" / file).read_text(), flags=re.DOTALL)
    return {name: value.strip() for name, value in _DEFINE.findall(text)}


@functools.cache
def all_definitions() -> dict[str, str]:
    """Of headers: what other files' constants are made of."""
    found: dict[str, str] = {}
    for header in sorted((ROOT / "csrc").glob("*/*.h")):
        found |= definitions(str(header.relative_to(ROOT / "csrc")))
    return found


def evaluate(expression: str, names: dict[str, str]) -> Number:
    """An arithmetic expression of C made of integers and other constants."""
    plain = _CAST.sub("", expression)
    plain = re.sub(r"\b(0x[0-9a-fA-F]+|\d+)[uUlL]+\b", r"\1", plain).replace("/", "//")
    return _value(ast.parse(plain, mode="eval").body, names)


def _value(node: ast.AST, names: dict[str, str]) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name):
            return evaluate(names[name], names)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
    raise ValueError(f"no arithmetic: {ast.dump(node)}")


def c(file: str, name: str, unit: Number = 1) -> Source:
    """A ``#define`` of csrc/, in the given unit (1e-9 for nanoseconds)."""

    def read() -> Number:
        own = definitions(file)
        return evaluate(own[name], all_definitions() | own) * unit

    return read


def c_text(file: str, pattern: str) -> Source:
    """An expression that stands elsewhere in a file: the pattern's only group."""

    def read() -> Number:
        found = re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)
        assert len(found) == 1, f"{file}: {pattern} stands there {len(found)} times"
        return evaluate(found[0], all_definitions())

    return read


def py(module: str, name: str) -> Source:
    """A constant, or a default of a class, of a module."""

    def read() -> Number:
        thing: Any = importlib.import_module(module)
        for part in name.split("."):
            if inspect.isclass(thing) and part in getattr(thing, "_field_defaults", {}):
                thing = thing._field_defaults[part]
            else:
                thing = getattr(thing, part)
        return thing

    return read


def default(module: str, function: str, parameter: str) -> Source:
    """A parameter's default."""

    def read() -> Number:
        thing: Any = importlib.import_module(module)
        for part in function.split("."):
            thing = getattr(thing, part)
        value: Number = inspect.signature(thing).parameters[parameter].default
        return value

    return read


def times(factor: Number, source: Source) -> Source:
    return lambda: factor * source()


def per(one: Source, other: Source) -> Source:
    return lambda: one() / other()


def plus(*sources: Source) -> Source:
    return lambda: sum(source() for source in sources)


def read_timeout() -> Number:
    timeouts = importlib.import_module("enclavia._client.options").DEFAULT_TIMEOUT
    assert timeouts.connect == timeouts.read == timeouts.write == timeouts.pool
    value: float = timeouts.read
    return value


# ---------------------------------------------------------------------------------------------
# What the pages say


@dataclass(frozen=True)
class Claim:
    page: str
    text: str
    sources: tuple[Source, ...]

    @property
    def _pattern(self) -> re.Pattern[str]:
        parts = [r"\s+".join(map(re.escape, part.split(" "))) for part in self.text.split("{}")]
        pattern = rf"({_QUANTITY})".join(parts)
        return re.compile(rf"(?<![\w.]){pattern}" if self.text.startswith("{}") else pattern)

    def found(self, page: str) -> list[list[str]]:
        """The numbers, for each place where the text stands."""
        return [list(match.groups()) for match in self._pattern.finditer(page)]

    def left_out(self, page: str) -> str:
        """The page without this."""
        return self._pattern.sub(" ", page)


def claim(page: str, text: str, *sources: Source) -> Claim:
    assert text.count("{}") == len(sources), text
    return Claim(page, text, sources)


UNREAD_STREAM = c("channel/channel.h", "ENCL_STREAM_HIGH_WATER")
UNREAD_CHANNEL = c("channel/channel.h", "ENCL_CHANNEL_UNREAD_MAX")
STALL = c("channel/stall.h", "ENCL_STALL_NS", 1e-9)
OPEN = c("session/session.h", "ENCL_MAX_OPEN")
RETRIES = default("enclavia", "Client", "retries")
LONG_BODY = py("enclavia._pool.kinds", "PoolLimits.long_body")
IDLE = default("enclavia.testing", "LocalEnclave", "idle_timeout")
HEADERS = py("enclavia._http1.limits", "DEFAULT_LIMITS.header_count")
PACE = "channel/pace.h"
RULE = "reliability.md"

CLAIMS = [
    # docs/security.md: the limits
    claim(
        "security.md",
        "one block of libwebsockets' ({}), {} in any case",
        c_text("csrc/net/service.c", r"pt_serv_buf_size = ([^,]+),"),
        c("net/internal.h", "NET_EARLY_MAX"),
    ),
    claim(
        "security.md",
        "| {}, taken as it comes and not assembled; {} |",
        c("net/internal.h", "NET_MAX_FRAME"),
        c("ws/ws.h", "ENCL_WS_MAX_CONTROL"),
    ),
    claim(
        "security.md",
        "{} a second, {} at once",
        c("base/rate.h", "ENCL_IDLE_PER_SECOND"),
        c("base/rate.h", "ENCL_IDLE_AT_ONCE"),
    ),
    claim(
        "security.md",
        "| record | {} to {} |",
        c("session/record.h", "ENCL_RECORD_MIN_CIPHERTEXT"),
        c("noise/noise.h", "ENCL_NOISE_MAX_MESSAGE"),
    ),
    claim(
        "security.md",
        "one for each question, {} kept for who asked",
        c("channel/state.h", "DOCUMENTS_ASKED_MAX"),
    ),
    claim(
        "security.md",
        "| attestation document | {}, {} certificates of {}, {} PCRs, {} in each other field |",
        c("attest/attest.h", "ENCL_DOCUMENT_MAX_BYTES"),
        c("attest/attest.h", "ENCL_CABUNDLE_MAX"),
        c("attest/attest.h", "ENCL_CERT_MAX_BYTES"),
        c("attest/attest.h", "ENCL_PCR_SLOTS"),
        c("attest/document.c", "OPTIONAL_MAX_BYTES"),
    ),
    claim("security.md", "| ids open | {}; a peer can open none |", OPEN),
    claim(
        "security.md",
        "one for each question, one record: {} of CBOR",
        c("noise/noise.h", "ENCL_NOISE_MAX_PLAIN"),
    ),
    claim(
        "security.md",
        "{} and what was read at once ({}); then nothing more is read",
        UNREAD_STREAM,
        c("net/internal.h", "NET_RX_BLOCK"),
    ),
    claim("security.md", "| {}; after {} the reader that is behind gets", UNREAD_CHANNEL, STALL),
    claim(
        "security.md",
        "| {}; callers wait above {} |",
        c("net/internal.h", "NET_TX_LIMIT"),
        c("net/net.h", "ENCL_CONN_HIGH_WATER"),
    ),
    claim(
        "security.md",
        "| response head; headers; informational heads | {}; {}; {} |",
        py("enclavia._http1.limits", "DEFAULT_LIMITS.head_bytes"),
        HEADERS,
        py("enclavia._http1.limits", "DEFAULT_LIMITS.informational"),
    ),
    claim(
        "security.md",
        "| chunk extensions (free: {} bytes a chunk and its data's length), trailers | {}, {} |",
        py("enclavia._http1.chunks", "_FREE"),
        py("enclavia._http1.limits", "DEFAULT_LIMITS.chunk_overhead"),
        HEADERS,
    ),
    claim(
        "security.md",
        "| decoded at once from a compressed body | {} |",
        py("httpx2._decoders", "MAX_DECODE_CHUNK_SIZE"),
    ),
    claim(
        "security.md",
        "| redirects; codings on top of each other | {};",
        default("enclavia", "Client", "max_redirects"),
    ),
    claim(
        "security.md",
        "| text of an error message; head of a refused upgrade | {} in all; {} |",
        plus(c("base/error.h", "ENCL_ERROR_TEXT_MAX"), lambda: -1),
        c("base/error.h", "ENCL_ERROR_HEAD_MAX"),
    ),
    claim("security.md", "at most {} an answer, until", HEADERS),
    claim(
        "security.md",
        "a hang: {} times what a C test takes without a mutant and {} of CPU time more ({} times "
        "what the Python tests take, and {})",
        c_text("tests/mutants/c_tests.py", r"^TIMES_AS_LONG = (\d+)"),
        c_text("tests/mutants/c_tests.py", r"^CPU_SECONDS = (\d+)"),
        c_text("tests/mutants/pytest_server.py", r"^TIMES_AS_LONG = (\d+)"),
        c_text("tests/mutants/pytest_server.py", r"^CPU_SECONDS = (\d+)"),
    ),
    claim(
        "security.md",
        "one session holds less than {}",
        c_text("tests/fuzz/fuzz_record.c", r"#define MEMORY_BOUND (.+)"),
    ),
    claim("security.md", "at most {} ids are open, each new", OPEN),
    claim(
        "security.md",
        "In every test run each C fuzzer runs for {} from the kept",
        lambda: int(re.findall(r'"ENCL_FUZZ_SECONDS", "(\d+)"', source("house/test_fuzz.py"))[0]),
    ),
    # docs/reference.md
    claim("reference.md", "of several one is for bodies above {},", LONG_BODY),
    claim("reference.md", "| `max_in_flight` | requests at once on each, 1 to {} |", OPEN),
    # docs/guide.md
    claim("guide.md", "As in httpx2 there are four, {} each unless", read_timeout),
    claim("guide.md", "the wait for one of the {} slots", OPEN),
    claim("guide.md", "(it does after {} without any,", IDLE),
    claim("guide.md", "DELETE, QUERY). At most {}.", RETRIES),
    claim("guide.md", "up to {} are kept for readers that are behind;", UNREAD_CHANNEL),
    claim("guide.md", "others have waited for {}, the answer", STALL),
    claim("guide.md", "An enclave's connection carries {} requests at once", OPEN),
    claim("guide.md", "the client's timeout ({} unless you set one", read_timeout),
    claim("guide.md", "enclave's server: {} slots, {} idle timeout", OPEN, IDLE),
    # docs/architecture.md
    claim(
        "architecture.md",
        "looking for signals every {}",
        c("python/wait.c", "SLICE_NS", 1e-9),
    ),
    claim("architecture.md", "the table holds at most {}, the server's limit", OPEN),
    claim(
        "architecture.md", "its {}-byte ephemeral key", c("noise/noise.h", "ENCL_NOISE_KEY_BYTES")
    ),
    claim("architecture.md", "into one block of {}, unmask", c("net/internal.h", "NET_RX_BLOCK")),
    claim("architecture.md", "first come first served among at most {}.", OPEN),
    claim(
        "architecture.md",
        "A stream buffers up to {} for its reader; above that nothing more is read from the "
        "connection until its reader is below {},",
        UNREAD_STREAM,
        c("channel/channel.h", "ENCL_STREAM_LOW_WATER"),
    ),
    claim(
        "architecture.md",
        "until {} are unread in all streams together, and who holds the others up for {} more",
        UNREAD_CHANNEL,
        STALL,
    ),
    claim(
        "architecture.md",
        "Writers wait while more than {} are queued",
        c("net/net.h", "ENCL_CONN_HIGH_WATER"),
    ),
    # docs/reliability.md
    claim(
        RULE,
        "At most {} turns in a row: a record sent is one, an answer that came is one, and each "
        "unread record is expected to bring {}.",
        c(PACE, "ENCL_PACE_TURNS"),
        c(PACE, "ENCL_PACE_ANSWERS"),
    ),
    claim(RULE, "At most {} of records are unread", c(PACE, "ENCL_PACE_BYTES")),
    claim(
        RULE,
        "({} a record, {} a byte of it on the wire, which is nearly twice the body), and {}.",
        c(PACE, "ENCL_PACE_RECORD_NS", 1e-9),
        c(PACE, "ENCL_PACE_BYTE_NS", 1e-9),
        c(PACE, "ENCL_PACE_SLACK_NS", 1e-9),
    ),
    claim(RULE, "that server is {} times slower still", c(PACE, "ENCL_PACE_CAREFUL")),
    claim(RULE, "none came for {}, records go as fast", c(PACE, "ENCL_PACE_QUIET_NS", 1e-9)),
    claim(RULE, "A body above {}, or of unknown size", LONG_BODY),
    claim(RULE, "(`max_channels`, default {})", default("enclavia", "Client", "max_channels")),
    claim(
        RULE,
        "does not take it within {} the body",
        py("enclavia._exchange.waiting", "SPARE_WAIT"),
    ),
    claim(
        RULE, "is not tried again for {}.", py("enclavia._pool.kinds", "PoolLimits.spare_backoff")
    ),
    claim(RULE, "| up to {} of a stream | read on |", UNREAD_STREAM),
    claim(RULE, "| above, up to {} of all streams together |", UNREAD_CHANNEL),
    claim(RULE, "| {} | not read | not read, for at most {};", UNREAD_CHANNEL, STALL),
    claim(RULE, "where no more than {} are behind it", UNREAD_CHANNEL),
    claim(RULE, "{} are {} of the default read timeout", STALL, per(STALL, read_timeout)),
    claim(
        RULE,
        "no record came for {} by then is given up",
        py("enclavia._exchange.tunnel", "SILENCE"),
    ),
    # docs/design.md
    claim(
        "design.md",
        "Stream records carry at most {}.",
        c("session/session.h", "ENCL_STREAM_CHUNK"),
    ),
    claim("design.md", "cuts names at {};", c("net/target.c", "HOST_MAX")),
    claim("design.md", "when one reader is {} behind", UNREAD_STREAM),
    claim("design.md", "up to {} of a channel are kept", UNREAD_CHANNEL),
    claim("design.md", "at most {}, the rest waits in order", OPEN),
    # docs/comparison.md
    claim("comparison.md", "| {} over one connection, the rest waits in order |", OPEN),
    claim("comparison.md", "connect, read, write, pool; {} by default", read_timeout),
    claim("comparison.md", "sent again, {} at most", RETRIES),
]


# Sections in which each number has a source: from a text to another.
WHOLLY_CLAIMED = [
    ("security.md", "## Limits", "**What is not bounded here.**"),
    ("architecture.md", "## The life of one request", "## Connecting"),
    ("reliability.md", "## The rule", "Turns in a row were chosen"),
]

# Digits there that are none of the code's quantities.
NO_QUANTITY = [
    r"`[^`\n]*`",  # names of files, of tests, of keywords and of the status 101
    r"^\d+\. ",
    r"rules \d\s+to \d",
    r"ChaCha20-Poly1305|HTTP/1\.1|httpx2",
    r"^\s*5 \|",  # codings: stands in the middle of a function of httpx2
]


def source(test: str) -> str:
    return (TESTS / "python" / test).read_text()
