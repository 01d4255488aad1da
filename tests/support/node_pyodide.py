"""Pyodide under node: runs a program of Python where it has the wheel for browsers, the repository
and what packages without compiled parts this environment has."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from repository import ROOT

sys.path.insert(0, str(ROOT / "packaging"))
import browser

RELEASES = [pin["npm"] for pin in browser.PINS["pyodide"]]
PURE = "base cbor noise wire attest session ws".split()

HOST = """
import fs from "node:fs";
const task = JSON.parse(fs.readFileSync(process.argv[2]));
const { pyodide, wheels, mounts, before, program, argv } = task;
const { loadPyodide } = await import(pyodide + "/pyodide.mjs");

async function main() {
    if (before) new Function(before)();
    const python = await loadPyodide({ env: { HOME: "/home/pyodide" } });
    for (const [inside, outside] of Object.entries(mounts)) {
        python.FS.mkdirTree(inside);
        python.mountNodeFS(inside, fs.realpathSync(outside));
    }
    for (const wheel of wheels)
        python.unpackArchive(new Uint8Array(fs.readFileSync(wheel)), "wheel");
    python.globals.set("argv", python.toPy(argv));
    return (await python.runPythonAsync(program)) ?? 0;
}

// Not left to node, which shows the line where something was thrown: all of Pyodide is one line.
process.on("uncaughtException", (error) => { console.log(String(error)); process.exit(1); });
let code = 1;
try { code = await main(); } catch (error) { console.log(String(error)); }
process.exit(code);
"""

START = """
import sys
sys.dont_write_bytecode = True
sys.path[:0] = ["/home/pyodide"]
sys.path += ["/host/repository/tests/support", "/host/site"]
"""


@functools.cache
def wheel() -> Path:
    """The newest that `make test-browser` has built."""
    found = sorted((ROOT / "dist").glob("enclavia-*_wasm32.whl"), key=lambda p: p.stat().st_mtime)
    assert found, "expected a wheel for Pyodide in dist/, got none: python packaging/browser.py"
    return found[-1]


@functools.cache
def of_emscripten_alone() -> Path:
    """What httpx2 needs there, and this environment has not."""
    folder = browser.BUILD / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("httpx2_jsfetch-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version=3.14", "--platform=any"]
        subprocess.run([*command, "--dest", str(folder), "httpx2-jsfetch"], check=True)
    return max(folder.glob("httpx2_jsfetch-*.whl"))


def run(
    release: str, program: str, into: Path, *argv: str, before: str = "", packages: bool = True
) -> tuple[int, str]:
    """The exit code (what ``program`` ends with, or 0) and what it printed. ``before``: JavaScript
    that is run before Pyodide starts. ``into``: a folder, which the program sees as ``/host/data``.
    """
    mounts = {"/host/repository": str(ROOT), "/host/data": str(into)}
    if (ROOT.parent / "shared").is_dir():
        mounts["/host/shared"] = str(ROOT.parent / "shared")
    if packages:
        mounts["/host/site"] = sysconfig.get_path("purelib")
    task = {
        "pyodide": str(browser.pyodide(release)),
        "wheels": [str(wheel()), str(of_emscripten_alone())],
        "mounts": mounts,
        "before": before,
        "program": START + program,
        "argv": argv,
    }
    (into / "task.json").write_text(json.dumps(task))
    (into / "host.mjs").write_text(HOST)
    done = subprocess.run(
        ["node", "--experimental-websocket", str(into / "host.mjs"), str(into / "task.json")],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    return done.returncode, done.stdout + done.stderr


def testing_library(into: Path) -> Path:
    """What tests/c has as libencl_testing.so, for wasm32."""
    work = browser.DEBIAN / browser.WORK
    files = " ".join(f"csrc/{layer}/*.c" for layer in PURE)
    browser.inside(
        "cd tree; emcc -sSIDE_MODULE=2 -Wl,--export-dynamic -O1 -g0 -fPIC -std=gnu11 -D_GNU_SOURCE "
        f"-DENCL_TESTING -Icsrc -I../prefix/include {files} -o ../libencl_testing.so "
        "-L../prefix/lib -lsodium -lcbor -lcrypto"
    )
    made = into / "libencl_testing.so"
    made.write_bytes((work / made.name).read_bytes())
    return made


def loads(text: str) -> Any:
    """What the program has printed last, as JSON."""
    return json.loads(text.strip().splitlines()[-1])
