"""Traces and metrics by `OpenTelemetry <https://opentelemetry.io>`_'s own conventions.

Needs ``pip install 'enclavia[opentelemetry]'``, which brings OpenTelemetry's API. Where
``opentelemetry-instrumentation`` is installed, the command ``opentelemetry-instrument`` finds this.

>>> EnclaviaInstrumentor().instrument()
>>> with Client(url, pcrs=pcrs) as client:
...     client.get("/health")

docs/observability.md has the names of all spans, attributes and metrics.
"""

# Decides which attributes a span has, and that no secret is one. Calls: _exchange, _records,
# _text, _trust. Locks: ``_lock``, around the set of what is counted.

from __future__ import annotations

import logging
import os
import re
import threading
import time
import urllib.parse
import weakref
from collections.abc import Collection, Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Self

import httpx2

from ._exchange import watching
from ._exchange.watching import Note, Watched
from ._records import fields
from ._text import shown
from ._trust.receipts import Receipt

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
except ImportError as error:
    raise ImportError(
        "enclavia.opentelemetry needs opentelemetry-api, which is not installed: "
        "pip install 'enclavia[opentelemetry]'",
        name=error.name,
    ) from None

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import Tracer, TracerProvider

    class BaseInstrumentor:
        """What is used of opentelemetry-instrumentation's class."""

        @property
        def is_instrumented_by_opentelemetry(self) -> bool: ...
        def instrument(self, **options: Any) -> None: ...  # noqa: ANN401
        def uninstrument(self, **options: Any) -> None: ...  # noqa: ANN401
else:
    try:
        from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
    except ImportError:

        class BaseInstrumentor:
            """In place of opentelemetry-instrumentation's, where that is not installed."""

            _instance = None
            is_instrumented_by_opentelemetry = False

            def __new__(cls) -> Self:
                if cls._instance is None:
                    cls._instance = super().__new__(cls)
                return cls._instance

            def instrument(self, **options: object) -> None:
                if not self.is_instrumented_by_opentelemetry:
                    self._instrument(**options)
                    self.is_instrumented_by_opentelemetry = True

            def uninstrument(self, **options: object) -> None:
                if self.is_instrumented_by_opentelemetry:
                    self._uninstrument(**options)
                    self.is_instrumented_by_opentelemetry = False


__all__ = ["EnclaviaInstrumentor"]

logger = logging.getLogger("enclavia")

_SCHEMA: Final = "https://opentelemetry.io/schemas/1.27.0"
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Of http.client.request.duration, in seconds, as the convention for HTTP metrics advises."""
_METHODS: Final = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE")
)
_SECRET_QUERY: Final = re.compile(
    # The four that the convention for url.full names, and what else is called so.
    r"awsaccesskeyid|signature|sig|x-goog-signature|x-amz-(signature|credential|security-token)"
    r"|.*(token|secret|passw(or)?d|passphrase|pwd|(api|access|private)[-_]?key|credential|session).*"
    r"|auth|authorization|code|key|jwt",
    re.IGNORECASE | re.DOTALL,
)
_REDACTED: Final = "REDACTED"
_PCR0_SHOWN: Final = 16
_ATTEMPT: Final = "enclavia.attempt"
# What else becomes a span. Events of the HTTP inside are left to the span of the attempt.
_SPANS: Final = {
    "enclavia.wait": "enclavia.wait",
    "enclavia.connect": "enclavia.connect",
    "enclavia.resolve": "enclavia.resolve",
    "connection.connect_tcp": "enclavia.connect_tcp",
    "connection.start_tls": "enclavia.start_tls",
    "enclavia.upgrade": "enclavia.upgrade",
    "enclavia.handshake": "enclavia.handshake",
    "enclavia.attest": "enclavia.attest",
}

Attributes = dict[str, str | int | bool | float]


class EnclaviaInstrumentor(BaseInstrumentor):
    """Has every client, transport and adapter of this process tell OpenTelemetry of its requests.

    There is one for the process: each call gives the same object. ``instrument()`` begins, for
    clients made before as well, and ``uninstrument()`` ends. ``tracer_provider`` and
    ``meter_provider`` are keywords of ``instrument``; default: the global ones.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing to be looked for: what is instrumented is this package."""
        return ()

    def _instrument(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        **_: object,
    ) -> None:
        release = version("enclavia")
        tracer = trace.get_tracer(__name__, release, tracer_provider, _SCHEMA)
        meter = metrics.get_meter(__name__, release, meter_provider, _SCHEMA)
        watching.watch(_Watcher(tracer, meter))

    def _uninstrument(self, **_: object) -> None:
        if isinstance(watching.current(), _Watcher):
            watching.watch(None)


def _suppressed(name: str) -> bool:
    """Whether an instrumentation further out has said that this one is to keep still."""
    key = getattr(contexts, name, None)
    return key is not None and bool(contexts.get_value(key))


class _Watcher:
    def __init__(self, tracer: Tracer, meter: Meter) -> None:
        self.tracer = tracer
        self.duration = meter.create_histogram(
            "http.client.request.duration",
            unit="s",
            description="Duration of HTTP client requests.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._pools = _Pools(self)
        self._pools.register(meter)

    def begin(self, connections: Watched, request: httpx2.Request | None) -> Note | None:
        if _suppressed("_SUPPRESS_INSTRUMENTATION_KEY"):
            return None
        self._pools.add(connections)
        # Of an instrumentation further out, such as that of requests, which makes the span.
        http = not _suppressed("_SUPPRESS_HTTP_INSTRUMENTATION_KEY")
        return _Recorder(self, connections, http)


# -- spans ------------------------------------------------------------------------------------


class _Open:
    """A span that has begun, and what its children are children of."""

    __slots__ = ("context", "metric", "name", "perf", "span")

    def __init__(self, name: str, span: Span, parent: Context, metric: Attributes | None) -> None:
        self.name = name
        self.span = span
        self.context = trace.set_span_in_context(span, parent)
        self.metric = metric
        self.perf = time.perf_counter()


class _Recorder:
    """Is told the events of one request, and makes spans of them."""

    def __init__(self, watcher: _Watcher, connections: Watched, http: bool) -> None:
        self._watcher = watcher
        url = connections.pinning.config.url
        self._server: Attributes = {"server.address": url.host, "server.port": url.port}
        self._http = http
        self._context = contexts.get_current()
        self._open: list[_Open] = []

    def __call__(self, name: str, info: dict[str, Any]) -> None:
        step, _, what = name.rpartition(".")
        try:
            if step == _ATTEMPT:
                self._attempt(what, info)
            elif step in _SPANS:
                self._step(step, what, info)
        except Exception:  # a request is not to fail because it could not be recorded
            logger.warning(
                "an event could not be recorded", exc_info=True, extra=fields("not_recorded")
            )

    @property
    def _parent(self) -> Context:
        return self._open[-1].context if self._open else self._context

    def _close(self, name: str) -> _Open | None:
        if not self._open or self._open[-1].name != name:
            return None
        return self._open.pop()

    def _attempt(self, what: str, info: dict[str, Any]) -> None:
        if not self._http:
            return
        if what == "started":
            self._begin_attempt(info["request"], info["resend_count"])
            return
        ended = self._close(_ATTEMPT)
        if ended is None or ended.metric is None:
            return
        found: Attributes = {}
        if what == "failed":
            found["error.type"] = _error_type(info["exception"])
        else:
            version, status = info["return_value"][:2]
            found["http.response.status_code"] = status
            found["network.protocol.version"] = version.decode("ascii").removeprefix("HTTP/")
            if status >= 400:
                found["error.type"] = str(status)
            ended.span.set_attributes(_attested(info["receipt"]))
        ended.span.set_attributes(found)
        if "error.type" in found:
            ended.span.set_status(Status(StatusCode.ERROR))
        ended.span.end()
        elapsed = max(0.0, time.perf_counter() - ended.perf)
        self._watcher.duration.record(elapsed, {**ended.metric, **found}, ended.context)

    def _begin_attempt(self, request: httpx2.Request, resends: int) -> None:
        method = request.method.upper()
        known = method if method in _METHODS else "_OTHER"
        metric: Attributes = {"http.request.method": known, **self._server}
        attributes = {**metric, "url.full": redacted(request.url)}
        if known != request.method:
            attributes["http.request.method_original"] = shown(request.method, 100)
        if resends:
            attributes["http.request.resend_count"] = resends
        parent = self._parent
        span = self._watcher.tracer.start_span(
            "HTTP" if known == "_OTHER" else known, parent, SpanKind.CLIENT, attributes
        )
        begun = _Open(_ATTEMPT, span, parent, metric)
        self._open.append(begun)
        # Headers of the request inside the tunnel: those of the upgrade were settled long before.
        propagate.inject(request.headers, begun.context)

    def _step(self, step: str, what: str, info: dict[str, Any]) -> None:
        at: int = info.get("time_ns") or time.time_ns()
        if what == "started":
            parent = self._parent
            attributes = dict(self._server)
            if "phase" in info:
                attributes["enclavia.wait.phase"] = info["phase"]
            if info.get("via") is not None:
                attributes["enclavia.via"] = True
            span = self._watcher.tracer.start_span(
                _SPANS[step], parent, SpanKind.INTERNAL, attributes, start_time=at
            )
            self._open.append(_Open(step, span, parent, None))
            return
        ended = self._close(step)
        if ended is None:
            return
        if what == "failed":
            ended.span.set_attribute("error.type", _error_type(info["exception"]))
            ended.span.set_status(Status(StatusCode.ERROR))
        elif isinstance(info["return_value"], Receipt):
            ended.span.set_attributes(_attested(info["return_value"]))
        ended.span.end(at)


def _error_type(error: BaseException) -> str:
    """The class alone: a message may have a part of what was sent in it."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else (
        f"{cls.__module__}.{cls.__qualname__}"
    )  # fmt: skip


def _attested(receipt: Receipt | None) -> Attributes:
    """What was verified of the channel. None of it is secret: it is what pins are made of."""
    if receipt is None:
        return {}
    attestation = receipt.attestation
    found: Attributes = {
        "enclavia.attestation.form": attestation.form,
        "enclavia.attestation.pcr0": attestation.pcrs.get(0, b"").hex()[:_PCR0_SHOWN],
        "enclavia.attestation.module_id": shown(attestation.module_id, 200),
    }
    if attestation.matched is not None:
        name = attestation.matched.name
        found["enclavia.attestation.pins"] = (
            f"set {attestation.matched.index}" if name is None else shown(name, 200)
        )
    return found


def redacted(url: httpx2.URL) -> str:
    """For ``url.full``: without user name and password, and without the values of query parameters
    that are secrets by their name."""
    if url.userinfo:
        url = url.copy_with(userinfo=f"{_REDACTED}:{_REDACTED}".encode())
    query = url.query.decode("ascii")
    if query:
        pairs = [_pair(text) for text in query.split("&")]
        url = url.copy_with(query="&".join(pairs).encode())
    return str(url.copy_with(fragment=None))


def _pair(text: str) -> str:
    name, equals, _ = text.partition("=")
    if equals and _SECRET_QUERY.fullmatch(urllib.parse.unquote_plus(name)):
        return f"{name}={_REDACTED}"
    return text


# -- the pools --------------------------------------------------------------------------------


class _Pools:
    """The connections that requests went over since, as long as there are any."""

    def __init__(self, watcher: _Watcher) -> None:
        self._watcher = weakref.ref(watcher)
        self._lock = threading.Lock()
        self._known: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._pid = os.getpid()

    def add(self, connections: Watched) -> None:
        if connections in self._known and self._pid == os.getpid():
            return
        with self._lock:
            if self._pid != os.getpid():  # the parent's are none of a forked child's business
                self._pid, self._known = os.getpid(), weakref.WeakSet()
            self._known.add(connections)

    def register(self, meter: Meter) -> None:
        up_down = meter.create_observable_up_down_counter
        up_down(
            "http.client.open_connections",
            [self._open_connections],
            "{connection}",
            "Number of outbound HTTP connections that are currently active or idle on the client.",
        )
        up_down(
            "enclavia.client.channels",
            [self._channels],
            "{channel}",
            "Number of verified channels that are open.",
        )
        up_down(
            "enclavia.client.waiting",
            [self._waiting],
            "{request}",
            "Number of requests that wait for a connection.",
        )

    def _stats(self) -> Iterable[tuple[Attributes, Any]]:
        """Of each enclave, summed over the clients."""
        watcher = self._watcher()
        if watcher is None or watching.current() is not watcher or self._pid != os.getpid():
            return
        with self._lock:
            known = list(self._known)
        sums: dict[tuple[str, int], list[int]] = {}
        for connections in known:
            url, stats = connections.pinning.config.url, connections.pool.stats()
            counts = (stats.channels, stats.streams_active, stats.streams_idle, stats.waiting)
            total = sums.setdefault((url.host, url.port), [0, 0, 0, 0])
            total[:] = [a + b for a, b in zip(total, counts, strict=True)]
        for (host, port), total in sums.items():
            yield {"server.address": host, "server.port": port}, total

    def _open_connections(self, _: CallbackOptions) -> Iterable[Observation]:
        for server, (_channels, active, idle, _waiting) in self._stats():
            yield metrics.Observation(active, {**server, "http.connection.state": "active"})
            yield metrics.Observation(idle, {**server, "http.connection.state": "idle"})

    def _channels(self, _: CallbackOptions) -> Iterable[Observation]:
        for server, total in self._stats():
            yield metrics.Observation(total[0], server)

    def _waiting(self, _: CallbackOptions) -> Iterable[Observation]:
        for server, total in self._stats():
            yield metrics.Observation(total[3], server)
