"""``forward``: runs a forwarder, which shares verified channels among the processes of this machine
and user.

Decides what each signal does to the forwarder. Calls: nothing of the package but what is public.
Locks: none.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from typing import Any, Final

import click
from click.core import ParameterSource

import enclavia

from . import streams
from .exits import INTERNAL, OK, Problem
from .settings import Connection, connection_options, given, refusing

__all__ = ["command"]

_TOKEN_VARIABLE: Final = "ENCLAVIA_FORWARD_TOKEN"  # noqa: S105 - the name of one
_TOKEN_MAX: Final = 4096
_TURN: Final = 0.5
"""Seconds between two looks at whether the forwarder still runs."""
_SOON: Final = 0.1
"""Seconds between two looks at whether it has drained."""


@click.command("forward")
@connection_options
@click.argument("url", metavar="[URL]", required=False)
@click.option(
    "--socket", metavar="PATH", help="Where to listen. Default: the runtime directory, by the URL."
)
@click.option("--http", is_flag=True, help="Also a reverse proxy for HTTP, at PATH.http.")
@click.option(
    "--listen", metavar="HOST:PORT", help="Also a TCP port, which every local user can reach."
)
@click.option(
    "--way",
    type=click.Choice(["http", "stream"]),
    default="http",
    show_default=True,
    help="What is spoken at that port. http needs a token; stream has none.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help=f"The token for HTTP at that port (- is standard input). Else {_TOKEN_VARIABLE}.",
)
@click.option(
    "--max-channels", type=click.IntRange(1), default=2, show_default=True, help="As Client's."
)
@click.option(
    "--drain",
    metavar="SECONDS",
    type=float,
    default=30.0,
    show_default=True,
    help="How long connections may go on after SIGTERM.",
)
def command(
    connection: Connection,
    url: str | None,
    socket: str | None,
    http: bool,
    listen: str | None,
    way: str,
    token_file: str | None,
    max_channels: int,
    drain: float,
) -> None:
    """Share verified channels among the processes of this machine and user.

    They use it by Client(URL, via="unix:PATH"). SIGTERM drains it, SIGHUP has it read the files of
    --pcrs, or that of --policy, again.
    """
    listening = given("--listen", listen)
    _expect_listening(listening, way, token_file)
    # Here, and not when it is needed: that is at the signal that ends the forwarder.
    if not 0 <= drain <= threading.TIMEOUT_MAX:
        raise Problem(f"--drain: expected 0 to {threading.TIMEOUT_MAX:g} seconds, got {drain:g}")
    own: dict[str, Any] = {
        "socket": given("--socket", socket),
        "http": http,
        "listen": listening,
        "way": way,
        "token": _token(token_file) if listening is not None and way == "http" else None,
        "max_channels": max_channels,
    }
    with refusing():
        forwarder = enclavia.Forwarder(connection.needed_url(url), **connection.options(), **own)
    _serve(forwarder, connection, drain, open_to_all=way == "stream")


def _expect_listening(listening: str | None, way: str, token_file: str | None) -> None:
    """Refuses an option that would do nothing: who gives a token counts on its being asked for."""
    source = click.get_current_context().get_parameter_source("way")
    beside = "expected --listen HOST:PORT beside it, got none: it is about that port alone"
    if listening is None and source is not ParameterSource.DEFAULT:
        raise Problem(f"--way: {beside}")
    if listening is None and token_file is not None:
        raise Problem(f"--token-file: {beside}")
    if way == "stream" and token_file is not None:
        raise Problem(
            "--token-file: expected --way http, got stream, which has no place for a token: every "
            "local user may use that port"
        )


def _token(file: str | None) -> str:
    if file is None:
        token = given(_TOKEN_VARIABLE, os.environ.get(_TOKEN_VARIABLE))
        if token is None:
            raise Problem(
                "expected a token for HTTP at a TCP port, got none: give --token-file, or set "
                f"{_TOKEN_VARIABLE}"
            )
        return token
    content = streams.read_input(file, "a file with a token", _TOKEN_MAX)
    try:
        return content.decode("ascii").strip()
    except UnicodeDecodeError:
        raise Problem("--token-file: expected ASCII, got other bytes") from None


def _serve(
    forwarder: enclavia.Forwarder, connection: Connection, drain: float, *, open_to_all: bool
) -> None:
    # Of what Python has to wake a thread, the handler of a signal may use this alone: it may come
    # in the middle of another call of the same, as when several signals come close together.
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()

    def note(number: int, _: object) -> None:
        asked.put(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, note)
    with refusing():
        try:
            forwarder.start()
        except (enclavia.StateError, enclavia.ConnectError, ImportError) as error:
            # It has connected to nothing yet: what it was given cannot be used.
            raise Problem(str(error)) from None
    try:
        streams.say(f"via   {forwarder.via}")
        if forwarder.http_path is not None:
            streams.say(f"http  {streams.visible(forwarder.http_path)}")
        if forwarder.address is not None:
            address = "{}:{}".format(*forwarder.address)
            if open_to_all:
                streams.warn(f"warning: every user of this machine may use {address}")
            streams.say(f"tcp   {address}")
        connecting = threading.Thread(target=_connect, args=(forwarder,), daemon=True)
        connecting.start()
        reloads = threading.Event()
        reloading = threading.Thread(
            target=_reloads, args=(forwarder, connection, reloads), daemon=True
        )
        reloading.start()
        while forwarder.running:
            which = _next(asked, _TURN)
            if which == signal.SIGHUP:
                reloads.set()
            elif which is not None:
                _drain(forwarder, drain, asked)
                raise click.exceptions.Exit(OK if which == signal.SIGTERM else 128 + which)
        raise Problem("expected a forwarder that runs, got its end; please report it", INTERNAL)
    finally:
        forwarder.stop(0)


def _next(asked: queue.SimpleQueue[int], timeout: float) -> int | None:
    """The next signal; None where none comes in time."""
    try:
        return asked.get(timeout=timeout)
    except queue.Empty:
        return None


def _tell(line: str) -> None:
    """Of what goes on while it serves. Where that cannot be written, no connection suffers: whoever
    has started it may have closed the pipe, and the disk of a log may be full."""
    with contextlib.suppress(BrokenPipeError, Problem):
        streams.say(line)


def _connect(forwarder: enclavia.Forwarder) -> None:
    """At once, so that the log says early what is wrong. Clients are told by their own errors."""
    try:
        forwarder.connect()
        module_id = forwarder.attestation.module_id
    except enclavia.StateError:
        pass  # ended while it connected, as it was told to
    except enclavia.EnclaviaError as error:
        streams.warn(f"{type(error).__name__}: {error}")
    else:
        _tell(f"verified {streams.visible(module_id)}")


def _reloads(
    forwarder: enclavia.Forwarder, connection: Connection, wanted: threading.Event
) -> None:
    """In a thread of its own: reading a file may take for ever, where it has become a FIFO or its
    server is gone, and SIGTERM is heard all the same."""
    while wanted.wait():
        wanted.clear()
        _reload(forwarder, connection)


def _reload(forwarder: enclavia.Forwarder, connection: Connection) -> None:
    files = (connection.policy,) if connection.policy is not None else connection.pcrs
    if not files or "-" in files:
        streams.warn("kept the old pins: only those of files can be read again")
        return
    try:
        with refusing():
            forwarder.reload(connection.options()["pcrs"])
    except (Problem, enclavia.EnclaviaError) as error:
        streams.warn(f"kept the old pins: {error}")
    else:
        _tell("reloaded the pins")


def _drain(forwarder: enclavia.Forwarder, drain: float, asked: queue.SimpleQueue[int]) -> None:
    """A second SIGTERM or Ctrl-C ends what is left at once."""
    _tell("draining")
    stopping = threading.Thread(target=forwarder.stop, args=(drain,), daemon=True)
    stopping.start()
    while stopping.is_alive() and _next(asked, _SOON) in (None, signal.SIGHUP):
        pass
