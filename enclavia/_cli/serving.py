"""``serve``: runs an app behind a local enclave, for tests of other programs.

Decides which files other processes can read its address and pins from, and who may write them.
Calls: nothing of the package but what is public. Locks: none.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

import enclavia

from . import streams
from .exits import CANNOT_WRITE, Problem
from .files import FileOutput, cannot_write
from .settings import given, load_pins, refusing
from .signals import ENDINGS, Signalled

if TYPE_CHECKING:
    from enclavia.testing import LocalEnclave

__all__ = ["serve"]

_URL: Final = "url"
_PCRS: Final = "pcrs.json"
_ROOT: Final = "root.pem"
_CA: Final = "ca.pem"
_TURN: Final = 0.5
"""Seconds for which a signal may go unnoticed."""


@click.command()
@click.argument("app", metavar="MODULE:APP")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="0, the default: a free one."
)
@click.option(
    "--mode",
    type=click.Choice(["production", "debug", "stub"]),
    default="production",
    show_default=True,
    help="What its documents are.",
)
@click.option(
    "--interface",
    type=click.Choice(["auto", "wsgi", "asgi"]),
    default="auto",
    show_default=True,
    help="What kind of app it is.",
)
@click.option("--pcrs", metavar="FILE", help="The PCRs that it attests, in place of its own.")
@click.option("--tls", is_flag=True, help="With a certificate of localhost made on the spot.")
@click.option(
    "--app-dir",
    metavar="DIR",
    default=".",
    help="Where MODULE is looked for first. Default: the current folder.",
)
@click.option(
    "--write-pins",
    metavar="DIR",
    help="Write url, pcrs.json, root.pem (and ca.pem with --tls) into DIR, made where it is not "
    "there; url is the last. They are removed at the end.",
)
def serve(
    app: str,
    port: int,
    mode: str,
    interface: str,
    pcrs: str | None,
    tls: bool,
    app_dir: str,
    write_pins: str | None,
) -> None:
    """Serve an ASGI or WSGI app behind a local enclave until it is interrupted.

    MODULE:APP is the app as it is imported, or the host:port of a server that runs already. For
    tests: no hardware protects anything of it.
    """
    pins = given("--write-pins", write_pins)
    if not app_dir or not os.path.isdir(app_dir):
        raise Problem(f"--app-dir: expected a folder, got '{streams.visible(app_dir)}'")
    sys.path.insert(0, os.path.abspath(app_dir))
    enclave = _made(app, port=port, mode=mode, interface=interface, pcrs=pcrs, tls=tls)
    with _started(enclave, app), _written(enclave, pins):
        streams.say(*_facts(enclave, pins))
        try:
            while True:
                time.sleep(_TURN)  # not pause(2), which misses a signal that comes just before it
        except Signalled as error:
            if error.number != signal.SIGTERM:
                raise


def _made(app: str, *, pcrs: str | None, **options: Any) -> LocalEnclave:  # noqa: ANN401
    with refusing():
        try:
            from enclavia.testing import LocalEnclave

            return LocalEnclave(app, pcrs=None if pcrs is None else load_pins(pcrs), **options)
        except ImportError as error:
            raise Problem(str(error)) from None


@contextmanager
def _started(enclave: LocalEnclave, app: str) -> Iterator[None]:
    """What an app says when it is imported is its own; its failure is told in one line."""
    try:
        enclave.start()
    except Problem:
        raise
    except Exception as error:
        if isinstance(error, enclavia.ConnectError) and isinstance(error.__cause__, OSError):
            raise Problem(f"--port: {error}") from None  # which is no fault of the app
        raise Problem(
            f"{app}: expected an app to serve, got {type(error).__name__}: {error}"
        ) from None
    try:
        yield
    finally:
        enclave.stop()


def _facts(enclave: LocalEnclave, folder: str | None) -> list[str]:
    facts = [f"url   {enclave.url}", f"mode  {enclave.mode}"]
    facts += [f"{name}  {value}" for name, value in enclave.pcrs.as_dict().items()]
    if folder is None:
        facts.append("note  --write-pins DIR writes what another process needs to verify it")
    else:
        facts.append(f"pins  {streams.visible(folder)}")
    return facts


@contextmanager
def _written(enclave: LocalEnclave, folder: str | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    made = _folder(folder)
    written: list[tuple[str, os.stat_result]] = []

    def remove() -> None:
        _removed(written)
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    ENDINGS.append(remove)
    try:
        for name, content in _contents(enclave).items():
            path = os.path.join(folder, name)
            # Whatever the umask is, nobody else may change what others trust.
            with FileOutput(path, 0o644) as file:
                file.write(content)
                file.commit()
            written.append((path, os.stat(path)))
        yield
    finally:
        remove()
        ENDINGS.remove(remove)


def _contents(enclave: LocalEnclave) -> dict[str, bytes]:
    contents = {_PCRS: f"{json.dumps(enclave.pcrs.as_dict(), indent=2)}\n".encode()}
    if enclave.root is not None:
        contents[_ROOT] = enclave.root
    if enclave.tls_certificate is not None:
        contents[_CA] = streams.read_input(enclave.tls_certificate, "a certificate", 1024 * 1024)
    contents[_URL] = f"{enclave.url}\n".encode()
    return contents


def _folder(name: str) -> bool:
    """Whether it was made here. Refuses one in which somebody else could replace a file."""
    made = True
    try:
        os.mkdir(name, 0o755)
    except FileExistsError:
        made = False
    except OSError as error:
        raise cannot_write(name, error) from None
    try:
        _expect_guarded_folder(name)
    except Problem:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(name)
        raise
    return made


def _expect_guarded_folder(name: str) -> None:
    try:
        found = os.lstat(name)
        above = os.path.dirname(os.path.realpath(name))
        around = os.stat(above)
    except OSError as error:
        raise cannot_write(name, error) from None
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "none"
        raise Problem(
            f"--write-pins: expected a folder, got {streams.visible(name)}, which is {kind}",
            CANNOT_WRITE,
        )
    others = _who_else_writes(found, above, around)
    if others is not None:
        raise Problem(
            f"--write-pins: expected a folder that nobody else may write to, got "
            f"{streams.visible(name)}, {others}: name another one, of your own; one that is not "
            "there is made",
            CANNOT_WRITE,
        )


def _who_else_writes(found: os.stat_result, above: str, around: os.stat_result) -> str | None:
    """Whoever may write to a folder may put other pins and another root in place of these, and
    whoever may write to the one that it stands in may put another folder in its place. Of the
    latter the group is left out: where each user has a group of one, it may write by default."""
    own = os.geteuid()
    if found.st_uid != own:
        return f"which belongs to user {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"of mode {stat.S_IMODE(found.st_mode):04o}"
    place = f"which stands in {streams.visible(above)}"
    if around.st_uid not in (own, 0):
        return f"{place}, a folder of user {around.st_uid}"
    if around.st_mode & stat.S_IWOTH and not around.st_mode & stat.S_ISVTX:
        return f"{place}, a folder of mode {stat.S_IMODE(around.st_mode):04o}"
    return None


def _removed(written: list[tuple[str, os.stat_result]]) -> None:
    """Not what somebody else has put in their place, perhaps with the same inode."""
    for path, before in written:
        with contextlib.suppress(OSError):
            now = os.stat(path, follow_symlinks=False)
            if os.path.samestat(now, before) and now.st_mtime_ns == before.st_mtime_ns:
                os.unlink(path)
