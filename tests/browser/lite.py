"""JupyterLite from local files: the site, Pyodide with the wheels its kernel loads, and ours."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import served

KERNEL = "@jupyterlite/pyodide-kernel-extension:kernel"
FIRST = ("micropip", "ipython", "jedi", "packaging", "anyio", "idna", "typing-extensions")
"""What the kernel and micropip load from beside Pyodide, with what they need: a package that the
lock file names is taken from there, also where the site has a wheel of its own."""
LOCAL = served.BUILD / "lite-wheels"


def _needed(packages: dict[str, Any]) -> list[str]:
    found: list[str] = []
    left = list(FIRST)
    while left:
        name = left.pop().lower()
        key = next(each for each in packages if each.replace("_", "-") == name.replace("_", "-"))
        if key not in found:
            found.append(key)
            left += packages[key]["depends"]
    return found


def _distribution(folder: Path) -> None:
    """Pyodide as it is hosted: the npm package, and the wheels that its lock file names."""
    shutil.copytree(served.pyodide(), folder)
    lock = json.loads((folder / "pyodide-lock.json").read_text())
    for key in _needed(lock["packages"]):
        entry = lock["packages"][key]
        [wheel] = served.wheels(f"{key.replace('_', '-')}=={entry['version']}", folder=LOCAL)
        shutil.copy(wheel, folder)
        entry["file_name"] = wheel.name
        entry["sha256"] = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "pyodide-lock.json").write_text(json.dumps(lock))


def built(folder: Path, own: Path, notebook: Path, facts: dict[str, Any]) -> Path:
    """The site, with this notebook and ``enclave.json`` beside it."""
    source, site = folder / "source", folder / "site"
    (source / "files").mkdir(parents=True)
    (source / "pypi").mkdir()
    shutil.copy(notebook, source / "files")
    (source / "files" / "enclave.json").write_text(json.dumps(facts))
    for wheel in [*served.wheels(*served.NEEDED), *served.wheels("comm", folder=LOCAL), own]:
        shutil.copy(wheel, source / "pypi")
    settings = {"pyodideUrl": "./pyodide/pyodide.mjs", "disablePyPIFallback": True}
    config = {
        "jupyter-lite-schema-version": 0,
        "jupyter-config-data": {"litePluginSettings": {KERNEL: settings}},
    }
    (source / "jupyter-lite.json").write_text(json.dumps(config))
    command = [str(Path(sys.executable).with_name("jupyter-lite")), "build", "--no-libarchive"]
    command += ["--lite-dir", str(source), "--output-dir", str(site)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    _distribution(site / "pyodide")
    return site
