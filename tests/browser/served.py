"""What pages of the tests consist of: files that were fetched before, and a server on loopback."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "browser"
PYODIDE = os.environ.get("ENCLAVIA_PYODIDE", "314.0.7")
WHEELS = BUILD / "wheels"
"""Of pure Python: what the package needs in Pyodide."""
NEEDED = ("anyio", "httpx2", "httpx2-jsfetch", "idna", "typing-extensions")
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; "
    "connect-src 'self' ws://127.0.0.1:* ws://localhost:*"
)


def pyodide() -> Path:
    """The folder of the npm package, unpacked; fetched where it is not there yet."""
    folder = BUILD / "pyodide" / PYODIDE
    if not (folder / "package" / "pyodide.mjs").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", f"pyodide@{PYODIDE}"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        with tarfile.open(folder / packed.stdout.strip()) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"


def wheels(*names: str, folder: Path = WHEELS) -> list[Path]:
    """The wheels of these packages (``name`` or ``name==version``) for Pyodide's Python; fetched
    where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in names:
        package, _, version = name.replace("-", "_").partition("==")
        pattern = f"{package}-{version}*.whl"
        if not list(folder.glob(pattern)):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--only-binary", ":all:", "--platform", "any", "--python-version", "3.14"]
            subprocess.run([*command, "--dest", str(folder), name], check=True)
        found.append(max(folder.glob(pattern)))
    return found


def own_wheel() -> Path:
    """Of this package, built for Pyodide by packaging/browser.py."""
    built = sorted((ROOT / "dist").glob("enclavia-*_wasm32.whl"))
    if not built:
        raise FileNotFoundError("expected a wheel for Pyodide in dist/: run make test-browser")
    return max(built, key=lambda path: path.stat().st_mtime)


class _Handler(http.server.SimpleHTTPRequestHandler):
    policy: str | None = None
    extensions_map = {  # noqa: RUF012 - as the base class has it
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".whl": "application/zip",
    }

    def end_headers(self) -> None:
        if self.policy is not None:
            self.send_header("Content-Security-Policy", self.policy)
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nothing: a test says what is wrong."""


@contextmanager
def serving(folder: Path, policy: str | None = POLICY) -> Iterator[str]:
    """The address of a server of this folder, on loopback."""
    made: Any = type("Handler", (_Handler,), {"policy": policy})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(made, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def laid_out(folder: Path, own: Path) -> None:
    """A page that loads Pyodide and these wheels, all from beside itself."""
    (folder / "pyodide").symlink_to(pyodide())
    (folder / "wheels").mkdir()
    for wheel in [*wheels(*NEEDED), own]:
        (folder / "wheels" / wheel.name).symlink_to(wheel)
    names = sorted(path.name for path in (folder / "wheels").iterdir())
    here = Path(__file__).parent
    for name in ("page.html", "page.mjs", "worker.mjs"):
        (folder / name).symlink_to(here / name)
    (folder / "scenarios.py").symlink_to(ROOT / "tests" / "support" / "scenarios.py")
    (folder / "wheels.json").write_text("[" + ", ".join(f'"wheels/{name}"' for name in names) + "]")
