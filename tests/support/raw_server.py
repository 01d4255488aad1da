"""A TCP server on loopback whose every answer a test writes by hand, byte by byte.

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 404 Not Found\\r\\n\\r\\n")

    with RawServer(script) as server:
        connect(server.url)

A script runs in a thread of its own for each connection; the connection is closed when it ends.
Everything that arrived stays in ``peer.received``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from listening import end_listening, hang_up

LIMIT = 20.0
"""Seconds after which nothing here waits any longer."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class PeerGone(Exception):
    """The client hung up."""


def accept_value(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    mask: bytes | None = None,
    claimed_length: int | None = None,
) -> bytes:
    """One WebSocket frame; ``claimed_length`` may lie."""
    length = len(payload) if claimed_length is None else claimed_length
    head = bytes([fin << 7 | reserved << 4 | opcode])
    masked = 0x80 if mask is not None else 0
    if length < 126:
        head += bytes([masked | length])
    elif length < 65536:
        head += bytes([masked | 126]) + struct.pack(">H", length)
    else:
        head += bytes([masked | 127]) + struct.pack(">Q", length)
    if mask is not None:
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        head += mask
    return head + payload


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack(">H", code) + reason.encode()


class Peer:
    """One accepted connection, seen from the server."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.received = bytearray()
        self._unread = bytearray()
        self.messages: list[tuple[int, bytes]] = []
        """Every frame that came: opcode and unmasked payload."""

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise PeerGone(str(error)) from None

    def send_each(self, *pieces: bytes, gap: float = 0.002) -> None:
        """In segments of their own."""
        for piece in pieces:
            self.send(piece)
            time.sleep(gap)

    def _more(self) -> None:
        try:
            data = self.socket.recv(65536)
        except OSError as error:
            raise PeerGone(str(error)) from None
        if not data:
            raise PeerGone("end of file")
        self.received += data
        self._unread += data

    def read_until(self, mark: bytes) -> bytes:
        while mark not in self._unread:
            self._more()
        end = self._unread.index(mark) + len(mark)
        taken = bytes(self._unread[:end])
        del self._unread[:end]
        return taken

    def read_exactly(self, count: int) -> bytes:
        while len(self._unread) < count:
            self._more()
        taken = bytes(self._unread[:count])
        del self._unread[:count]
        return taken

    def read_to_end(self) -> None:
        """Until the client hangs up."""
        with contextlib.suppress(PeerGone):
            while True:
                self._more()

    def read_head(self) -> bytes:
        return self.read_until(b"\r\n\r\n")

    def answer_101(self, head: bytes, *extra: bytes) -> bytes:
        """What accepts the upgrade that ``head`` asks for."""
        key = header(head, b"sec-websocket-key")
        lines = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + accept_value(key),
            *extra,
        ]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def upgrade(self, *extra: bytes, behind: bytes = b"") -> bytes:
        """Accepts it; ``behind`` goes in the same segment."""
        head = self.read_head()
        self.send(self.answer_101(head, *extra) + behind)
        return head

    def read_frame(self) -> tuple[int, bytes]:
        """Opcode and unmasked payload of the client's next frame."""
        first, second = self.read_exactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self.read_exactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.read_exactly(8))
        assert second & 0x80, "a client must mask its frames"
        mask = self.read_exactly(4)
        payload = self.read_exactly(length)
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self.messages.append((first & 0x0F, payload))
        return first & 0x0F, payload

    def read_binary(self) -> bytes:
        while True:
            opcode, payload = self.read_frame()
            if opcode == BINARY:
                return payload
            if opcode == CLOSE:
                raise PeerGone("close frame")

    def read_pong(self) -> bytes:
        while True:
            opcode, payload = self.read_frame()
            if opcode == PONG:
                return payload

    def finish(self) -> None:
        """Collects frames until the client has hung up."""
        with contextlib.suppress(PeerGone):
            while True:
                if self.read_frame()[0] == CLOSE:
                    self.send(frame(CLOSE, close_payload(1000)))


Script = Callable[[Peer], None]


def header(head: bytes, name: bytes) -> bytes:
    """The value of one header line; b"" where there is none."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name.lower():
            return value.strip()
    return b""


class RawServer:
    """Listens once made. ``failures`` holds what scripts raised; leaving the block raises it."""

    def __init__(
        self,
        script: Script,
        *,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        listen: bool = True,
    ) -> None:
        self._script = script
        self._tls = tls
        self.peers: list[Peer] = []
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=64)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self._closing = False
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        if listen:
            self._acceptor.start()

    @property
    def url(self) -> str:
        return f"{'ws' if self._tls is None else 'wss'}://{self.host}:{self.port}"

    @property
    def peer(self) -> Peer:
        """The only connection."""
        assert len(self.peers) == 1, f"expected one connection, came {len(self.peers)}"
        return self.peers[0]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self._closing:
                sock.close()
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(LIMIT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(sock)
        self.peers.append(peer)
        try:
            if self._tls is not None:
                peer.socket = self._tls.wrap_socket(sock, server_side=True)
            self._script(peer)
        except (PeerGone, ssl.SSLError, ConnectionError):
            pass
        except BaseException as failure:
            self.failures.append(failure)
        finally:
            with contextlib.suppress(OSError):
                peer.socket.close()

    def wait_done(self) -> None:
        """Until the scripts of all connections so far have ended."""
        for thread in list(self._threads):
            thread.join(LIMIT)
            assert not thread.is_alive(), "a script still runs"

    def close(self) -> None:
        self._closing = True
        end_listening(self._listener, self._acceptor)
        for peer in self.peers:
            hang_up(peer.socket)
        self.wait_done()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if self.failures and kind is None:
            raise self.failures[0]


def unused_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port
