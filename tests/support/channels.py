"""Channels to a local enclave whose workload echoes, is silent, or does not read."""

from __future__ import annotations

import threading
import time
from typing import Any

from enclave_peer import EnclavePeer
from raw_server import Peer, RawServer
from support import Connection

import enclavia
from enclavia.testing import LocalEnclave


def echo(connection: Connection) -> None:
    while data := connection.sock.recv(262_144):
        connection.send(data)


def silent(connection: Connection) -> None:
    """Takes everything, and answers nothing."""
    while connection.sock.recv(262_144):
        pass


def deaf(connection: Connection) -> None:
    """Takes nothing."""
    time.sleep(30)


def connect(enclave: LocalEnclave, **options: Any) -> enclavia.Channel:
    return enclavia.Channel.connect(
        enclave.url, **{"pcrs": enclave.pcrs, "root": enclave.root, "timeout": 10.0, **options}
    )


def stuck_peer() -> tuple[RawServer, threading.Event]:
    """Opens as it should, and then reads nothing."""
    done = threading.Event()

    def script(peer: Peer) -> None:
        peer.upgrade()
        EnclavePeer(peer).open()
        done.wait(20)

    return RawServer(script), done
