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


@pytest.mark.parametrize(
    ("said", "library"),
    [
        ("libcrypto.so.3: version `OPENSSL_3.4.0' not found (required by x)", "libcrypto"),
        ("x/_core.abi3.so: undefined symbol: lws_retry_sul_schedule", "libwebsockets"),
        ("Error relocating x/_core.abi3.so: cbor_decode: symbol not found", "libcbor"),
        ("x/_core.abi3.so: undefined symbol: crypto_aead_aegis256_encrypt", "libsodium"),
    ],
)
def test_a_library_of_another_release_is_not_called_missing(said: str, library: str) -> None:
    told = str(explained(ImportError(said, name="enclavia._core")))
    for package in PACKAGES[library]:
        assert package in told
    assert said in told
    assert "another release" in told
    assert "does not have" not in told


def test_other_errors_stay_as_they_are() -> None:
    for said in (
        "undefined symbol: PyFoo",
        "libfoo.so.1: cannot open shared object file",
        "libc.so.6: version `GLIBC_2.99' not found (required by x)",
    ):
        error = ImportError(said)
        assert explained(error) is error


def test_every_library_that_this_build_needs_is_known() -> None:
    (extension,) = PACKAGE.glob("_core*.so")
    asked = subprocess.run(
        ["readelf", "-d", extension], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(lib\w+)\.so", asked)) - {"libc", "libm", "libpthread"}
    assert needed <= set(PACKAGES)


def refused(tmp_path: Path, pattern: bytes, old: bytes, new: bytes) -> str:
    """What an import says of an extension in which the first match of pattern was changed, old into
    new. The loader is the real one."""
    copy = tmp_path / "enclavia"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (extension,) = copy.glob("_core*.so")
    code = extension.read_bytes()
    found = re.search(pattern, code)
    if found is None:
        pytest.skip("this build carries its libraries")
    changed = found[0].replace(old, new, 1)[: len(found[0]) - 1] + b"\x00"
    extension.write_bytes(code.replace(found[0], changed))
    ended = subprocess.run(
        [sys.executable, "-c", "import enclavia"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    return ended.stderr


def test_a_library_that_is_gone(tmp_path: Path) -> None:
    said = refused(tmp_path, rb"libcbor\.so\.[\d.]+\x00", b"so.", b"so.9")
    assert "which this system does not have" in said
    assert "libcbor0.8" in said


def test_a_library_that_is_too_old(tmp_path: Path) -> None:
    said = refused(tmp_path, rb"OPENSSL_3\.0\.0\x00", b"3.0.0", b"3.9.9")
    assert "of which this system has another release" in said
    assert "libssl3" in said
