"""An extension whose libraries are gone says what to install."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import enclavia
from enclavia._libraries import PACKAGES, explained

PACKAGE = Path(enclavia.__file__).parent


@pytest.mark.parametrize(
    ("said", "library"),
    [
        ("libcbor.so.0.8: cannot open shared object file: No such file or directory", "libcbor"),
        ("Error loading shared library libsodium.so.23: No such file (needed by x)", "libsodium"),
        ("libssl.so.3: cannot open shared object file: No such file or directory", "libssl"),
        ("libwebsockets.so.17: cannot open shared object file", "libwebsockets"),
    ],
)
def test_each_library_has_its_packages(said: str, library: str) -> None:
    told = str(explained(ImportError(said, name="enclavia._core")))
    for package in PACKAGES[library]:
        assert package in told
    assert said in told


def test_other_errors_stay_as_they_are() -> None:
    for said in ("undefined symbol: PyFoo", "libfoo.so.1: cannot open shared object file"):
        error = ImportError(said)
        assert explained(error) is error


def test_every_library_that_this_build_needs_is_known() -> None:
    (extension,) = PACKAGE.glob("_core*.so")
    asked = subprocess.run(
        ["readelf", "-d", extension], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(lib\w+)\.so", asked)) - {"libc", "libm", "libpthread"}
    assert needed <= set(PACKAGES)


def test_a_library_that_is_gone(tmp_path: Path) -> None:
    """The real loader, with an extension that asks for a library that no system has."""
    copy = tmp_path / "enclavia"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (extension,) = copy.glob("_core*.so")
    code = extension.read_bytes()
    found = re.search(rb"libcbor\.so\.[\d.]+\x00", code)
    if found is None:
        pytest.skip("this build carries its libraries")
    gone = found[0].replace(b"so.", b"so.9", 1)[: len(found[0]) - 1] + b"\x00"
    extension.write_bytes(code.replace(found[0], gone))
    ended = subprocess.run(
        [sys.executable, "-c", "import enclavia"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "which this system does not have" in ended.stderr
    assert "libcbor0.8" in ended.stderr
