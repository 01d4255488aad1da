"""``serve``: what another process needs is there, and is gone afterwards."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import (
    CANNOT_WRITE,
    INTERRUPTED,
    OK,
    USAGE,
    cli,
    ended,
    environment,
    interrupted,
    started,
)
from repository import ROOT
from support import eventually

APPS = """
async def web(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"asgi"})

def old(environ, start_response):
    start_response("200 OK", [("Content-Length", "4")])
    return [b"wsgi"]

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "apps.py").write_text(APPS)
    (tmp_path / "broken.py").write_text("raise RuntimeError('a\\x1b[31mb')")
    return tmp_path


@contextmanager
def serving(
    folder: Path, *arguments: str, before: tuple[str, ...] = (), pins: str = "pins"
) -> Iterator[subprocess.Popen[bytes]]:
    process = started("serve", *arguments, "--write-pins", pins, cwd=folder, before=before)
    try:
        eventually(lambda: (folder / pins / "url").exists() or process.poll() is not None)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


PINS = ["--pcrs", "pins/pcrs.json", "--root", "pins/root.pem"]


@pytest.mark.parametrize(("app", "said"), [("apps:web", b"asgi"), ("apps:old", b"wsgi")])
def test_another_process_finds_it(folder: Path, app: str, said: bytes) -> None:
    with serving(folder, app) as process:
        url = (folder / "pins" / "url").read_text().strip()
        answered = cli("get", f"{url}/", *PINS, cwd=folder).expect(OK)
        assert answered.out == said
        stopped = interrupted(process).expect(INTERRUPTED)
        assert f"url   {url}\n" in stopped.text
        assert stopped.err == ""
    assert not (folder / "pins").exists()


_TWICE = """
import os, signal, sys
from enclavia._cli import main, serving

removed, calls = serving._removed, []

def twice(written):
    calls.append(1)
    if len(calls) == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    removed(written)

serving._removed = twice
sys.exit(main.main(sys.argv[1:]))
"""


def test_a_second_signal_leaves_no_pins_behind(folder: Path) -> None:
    """They are those of an enclave that has ended."""
    (folder / "app.py").write_text("def app(environ, start_response):\n    return []\n")
    process = subprocess.Popen(
        [sys.executable, "-c", _TWICE, "serve", "app:app", "--write-pins", "pins"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    while b"pins" not in process.stdout.readline():
        pass
    assert (folder / "pins" / "url").exists()
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert not (folder / "pins").exists()


def test_no_signal_is_missed() -> None:
    """pause(2) sleeps on where the signal came between the last look and the call. That cannot be
    made to happen from outside, so this looks for the call."""
    for path in (ROOT / "enclavia" / "_cli").glob("*.py"):
        assert "pause()" not in path.read_text(), path


def test_with_tls(folder: Path) -> None:
    with serving(folder, "apps:web", "--tls") as process:
        url = (folder / "pins" / "url").read_text().strip()
        assert url.startswith("wss://localhost:")
        cli("verify", url, *PINS, "--ca-file", "pins/ca.pem", cwd=folder).expect(OK)
        interrupted(process, signal.SIGTERM).expect(OK)
    assert not (folder / "pins").exists()


@pytest.mark.parametrize("mode", ["debug", "stub"])
def test_without_a_root(folder: Path, mode: str) -> None:
    with serving(folder, "apps:web", "--mode", mode):
        assert sorted(os.listdir(folder / "pins")) == ["pcrs.json", "url"]


def test_pcrs_of_its_own(folder: Path) -> None:
    (folder / "mine").write_text("".join(f"PCR{n}: {'0a' * 48}\n" for n in range(3)))
    with serving(folder, "apps:web", "--pcrs", "mine"):
        url = (folder / "pins" / "url").read_text().strip()
        verified = cli("verify", url, "--pcrs", "mine", "--root", "pins/root.pem", cwd=folder)
        verified.expect(OK)


def test_nobody_else_may_write_the_pins(folder: Path) -> None:
    with serving(folder, "apps:web", before=("sh", "-c", 'umask 0; exec "$@"', "sh")):
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode)
            for path in (folder / "pins", *(folder / "pins").iterdir())
        }
        assert modes == {"pins": 0o755, "url": 0o644, "pcrs.json": 0o644, "root.pem": 0o644}


def test_what_was_there_stays_or_is_replaced(folder: Path) -> None:
    pins = folder / "pins"
    pins.mkdir(mode=0o755)
    (pins / "mine").write_bytes(b"mine")
    victim = folder / "victim"
    victim.write_bytes(b"victim")
    (pins / "root.pem").symlink_to(victim)
    with serving(folder, "apps:web") as process:
        assert not (pins / "root.pem").is_symlink()
        (pins / "url").unlink()
        (pins / "url").write_bytes(b"another's")
        interrupted(process).expect(INTERRUPTED)
    assert victim.read_bytes() == b"victim"
    assert sorted(os.listdir(pins)) == ["mine", "url"]


def test_folders_refused(folder: Path) -> None:
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    (folder / "file").write_bytes(b"")
    (folder / "group").mkdir()
    (folder / "group").chmod(0o770)
    (folder / "mine").mkdir(mode=0o755)
    (folder / "link").symlink_to("mine")
    (folder / "open" / "mine").mkdir(mode=0o755)
    for name, said in (
        ("open", "nobody else may write to, got open, of mode 0777"),
        ("group", "got group, of mode 0770"),
        ("link", "got link, which is a symbolic link"),
        ("open/mine", "a folder of mode 0777"),
        ("open/new", "a folder of mode 0777"),
        ("file", "which is none"),
        ("absent/x", "No such file"),
    ):
        refused = cli("serve", "apps:web", "--write-pins", name, cwd=folder)
        refused.expect(CANNOT_WRITE, said)
        assert "right away" not in refused.err  # which would break /tmp where root does it
    refused = cli("serve", "apps:web", "--write-pins", "", cwd=folder)
    refused.expect(USAGE, "--write-pins: expected a value, got an empty one")
    assert not (folder / "open" / "new").exists()
    assert os.listdir(folder / "mine") == os.listdir(folder / "group") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("given", ["theirs", "theirs/mine"])
def test_folders_of_another_user_are_refused(folder: Path, given: str) -> None:
    (folder / given).mkdir(parents=True, mode=0o755)
    os.chown(folder / "theirs", 4321, 4321)
    refused = cli("serve", "apps:web", "--write-pins", given, cwd=folder)
    refused.expect(CANNOT_WRITE, "user 4321")


def test_a_folder_among_those_of_everybody_is_taken(folder: Path) -> None:
    """As in /tmp, where nobody can replace what is another's."""
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    with serving(folder, "apps:web", pins="tmp/pins"):
        assert (folder / "tmp" / "pins" / "url").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["apps:absent"], "AttributeError"),
        (["apps:number"], "expected an app"),
        (["absent:app"], "ModuleNotFoundError"),
        (["broken:app"], r"RuntimeError: a\x1b[31mb"),
        (["apps"], "expected 'host:port'"),
        (["apps:web", "--port", "99999"], "--port"),
        (["apps:web", "--mode", "x"], "--mode"),
        (["apps:web", "--app-dir", "absent"], "--app-dir: expected a folder"),
        (["apps:web", "--pcrs", "absent"], "No such file"),
        ([], "Missing argument"),
    ],
)
def test_apps_refused(folder: Path, arguments: list[str], said: str) -> None:
    refused = cli("serve", *arguments, cwd=folder).expect(USAGE, said)
    assert "\x1b" not in refused.err
    assert refused.out == b""


def test_a_port_that_is_taken(folder: Path) -> None:
    with serving(folder, "apps:web"):
        port = (folder / "pins" / "url").read_text().strip().rpartition(":")[2]
        refused = cli("serve", "apps:web", "--port", port, cwd=folder)
        refused.expect(USAGE, f"--port: expected to listen on 127.0.0.1 port {port}, got: Address")
        assert "choose another port, or 0 for a free one" in refused.err
        assert "expected an app" not in refused.err


def test_the_app_directory(folder: Path) -> None:
    inside = folder / "inside"
    inside.mkdir()
    (inside / "more.py").write_text(APPS)
    with serving(folder, "more:web", "--app-dir", "inside") as process:
        assert (folder / "pins" / "url").exists()
        assert ended_quietly(process)


def ended_quietly(process: subprocess.Popen[bytes]) -> bool:
    process.send_signal(signal.SIGINT)
    return ended(process).err == ""
