"""``Client``: httpx2's, talking to one enclave.

Decides which requests are sent by fast_path.py; httpx2 sends the others. Calls: _channel, _public.
Locks: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, Unpack

import httpx2

from .._channel.options import takes
from .._public import public
from .configured import Configured
from .fast_path import send_simple
from .files import Files
from .httpx2_inside import OwnClient, explains_failures, is_simple
from .options import (
    CLIENT_DEFAULTS,
    ClientOptions,
    client_options,
    refuse_unsupported,
    transport_options,
)
from .settings import Settings
from .transport import EnclaveTransport

if TYPE_CHECKING:
    from .httpx2_inside import Auth, Follow

__all__ = ["Client"]


@public
@explains_failures
class Client(Configured, Files, OwnClient, httpx2.Client):
    """An :class:`httpx2.Client` whose every request goes through an attested channel to one
    enclave.

    ``url`` is the enclave's (``wss://…``); requests are made with paths. Connects and verifies
    when entered with ``with``, made with :meth:`connect`, or first used; and again whenever the
    connection was lost. Beyond httpx2's keywords:

    pcrs: the enclave's pinned :class:`Pcrs`, or several, one of which must match.
    root: the attestation root certificate (PEM, DER, or a path). Default: AWS's.
    debug_mode: talk to a debug enclave, whose identity nothing proves. Warns each time.
    clock_leeway: seconds (0 to 300) that the enclave's own certificate may be used before its
        validity begins, where this machine's clock is behind. Its end is never moved.
    trust_upgrades: a :class:`TrustUpgrades`: where the PCRs are not the pinned ones, the enclave's
        authorised upgrades are followed from those. Default: they are not.
    on_attestation: called with the :class:`Receipt` of each verified document before anything else
        may use its channel; where it raises, that is refused (:class:`AttestationRefused`).
    upgrade_headers: sent with the WebSocket upgrade, outside of the encrypted channel.
    verify, proxy: for the outer TLS connection: True, False or a CA file; ``http://host:port``.
    timeout: as httpx2's (default 30 s); ``connect`` covers DNS to attestation.
    retries: how often a request without an answer may be sent again, where that is safe.
    patience: for how many seconds connecting is tried again while it fails. Default: as long as
        the ``connect`` timeout; 0 is one attempt. More than that timeout outlasts an outage: each
        attempt is then bounded by ``connect``, and waiting for a connection by ``patience``.
    auto_reconnect: False: once connected, never connect again; a request that finds the connection
        lost raises :class:`ReconnectDisabled`.
    max_channels, max_in_flight: connections to the enclave, and requests at once on each. Of
        several one carries nothing but bodies above 256 KiB, and is opened when it is needed.
    limits: an :class:`httpx2.Limits` for the connections to the workload inside the channel.
    via: ``"unix:PATH"``: by way of a forwarder of this machine (:attr:`Forwarder.via`); the
        document is verified here all the same.
    keepalive: seconds (more than 0, at most a day) without a byte from the peer after which it is
        sent a WebSocket ping, and after which the connection is given up where still none came
        (:class:`ConnectionClosed`, retryable). None: never.
    shared_expiry: copies of this client (unpickled, or of the module ``copy``) share channels among
        them in each process; for so many seconds (0 or more, default 10) these are kept after the
        last copy there was closed or forgotten.

    As httpx2's: auth, params, headers, cookies, follow_redirects, max_redirects, event_hooks,
    default_encoding, and base_url, which is a path of the enclave's.
    """

    if TYPE_CHECKING:
        _enclave: EnclaveTransport

    @takes(ClientOptions, CLIENT_DEFAULTS, others="unsupported")
    def __init__(self, url: str | httpx2.URL, **options: Unpack[ClientOptions]) -> None:
        refuse_unsupported(type(self), options)
        settings = Settings.build(url, **transport_options(options))
        settings.config.warn_debug()
        super().__init__(
            transport=EnclaveTransport._of(settings), **client_options(settings.config.url, options)
        )
        self._prepare()

    @classmethod
    def connect(cls, url: str | httpx2.URL, **keywords: Unpack[ClientOptions]) -> Self:
        """A client that is connected, and its enclave verified, when this returns."""
        __tracebackhide__ = True
        client = cls(url, **keywords)
        try:
            client._enclave.connect()
        except BaseException:
            client.close()
            raise
        return client

    def send(
        self,
        request: httpx2.Request,
        *,
        stream: bool = False,
        auth: Auth = httpx2.USE_CLIENT_DEFAULT,
        follow_redirects: Follow = httpx2.USE_CLIENT_DEFAULT,
    ) -> httpx2.Response:
        __tracebackhide__ = True
        if isinstance(request.stream, httpx2.SyncByteStream) and is_simple(
            self, request, auth, follow_redirects
        ):
            return send_simple(self, request, stream)
        self._expect_usable()
        return super().send(request, stream=stream, auth=auth, follow_redirects=follow_redirects)

    def __enter__(self) -> Self:
        __tracebackhide__ = True
        self._expect_unopened()
        try:
            return super().__enter__()
        except BaseException:
            self.close()
            raise
