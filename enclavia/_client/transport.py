"""The blocking httpx2 transport.

Decides nothing itself: it runs the engine in the calling thread. Calls: _channel, _identity, _io,
_public. Locks: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self, Unpack

import httpx2

from .._channel.options import takes
from .._io.blocking import blocking_io
from .._io.face import run
from .._public import public
from .options import TRANSPORT_DEFAULTS, TransportOptions
from .response import Response, ResponseBody
from .settings import Settings
from .transport_base import TransportBase

if TYPE_CHECKING:
    from .._identity.attestation import Attestation

__all__ = ["EnclaveTransport"]

_PLAIN: Final = httpx2.HTTPTransport.handle_request


@public
class EnclaveTransport(TransportBase, httpx2.BaseTransport):
    """Carries the requests of an httpx2 client to one enclave, and to nothing else.

    Connects and verifies when it is first used or entered with ``with``; again, and wholly, when
    the connection was lost. Usable from any number of threads.
    """

    _make_io = staticmethod(blocking_io)
    _body = ResponseBody

    @takes(TransportOptions, TRANSPORT_DEFAULTS)
    def __init__(self, url: str | httpx2.URL, **options: Unpack[TransportOptions]) -> None:
        settings = Settings.build(url, "EnclaveTransport.__init__", **options)
        settings.config.warn_debug()
        super().__init__(settings)

    def connect(self, timeout: float | None = None) -> None:
        """Connects and verifies now, where that has not been done."""
        __tracebackhide__ = True
        run(self._connect(timeout))

    def _verify_again(self, timeout: float | None) -> list[Attestation]:
        return run(self._fresh(timeout))

    def handle_request(self, request: httpx2.Request) -> Response:
        __tracebackhide__ = True
        if httpx2.HTTPTransport.handle_request is _PLAIN:
            return self._handle(request)
        from .instrumented import instrumented  # for few programs

        return instrumented(httpx2.HTTPTransport, "handle_request", self, self._handle)(request)

    def _handle(self, request: httpx2.Request) -> Response:
        __tracebackhide__ = True
        return self._response(request, self._engine.handle_blocking(request))

    def close(self) -> None:
        """Closes all connections and channels; requests still running fail."""
        engine = self._engine
        try:
            for tunnel in engine.close():
                tunnel.close(1.0)
        except BaseException:  # Ctrl-C: without saying goodbye, but none stays open
            for tunnel in engine.close():
                tunnel.close()
            raise

    def __enter__(self) -> Self:
        __tracebackhide__ = True
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self
