"""Every fuzzer builds, takes its kept inputs, and finds nothing within a few seconds. Those of the
Python parsers take their kept inputs; what guides them is not needed for that."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT, TESTS

sys.path.insert(0, str(TESTS / "fuzz"))

import fuzz_python

FUZZ = TESTS / "fuzz"
CSRC = ROOT / "csrc"
BINARIES = ROOT / "build" / "fuzz"
SECONDS = int(os.environ.get("ENCL_FUZZ_SECONDS", "3"))
NAMES = sorted(path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.c"))


@pytest.fixture(scope="module")
def built() -> None:
    clang = shutil.which(os.environ.get("CLANG", "clang"))
    if clang is None:
        pytest.skip("fuzzers need clang (libFuzzer), which is not installed")
    probe = subprocess.run(
        [clang, "-fsanitize=fuzzer,address", "-x", "c", "-", "-o", os.devnull],
        input="int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n; }",
        text=True,
        capture_output=True,
    )
    if probe.returncode != 0:
        pytest.skip("this clang has no libFuzzer runtime (Debian: libclang-rt-dev)")
    made = subprocess.run(["make", "-s", "-C", str(FUZZ)], text=True, capture_output=True)
    assert made.returncode == 0, made.stderr


def test_no_fuzzer_is_left_out() -> None:
    kept = sorted(path.name for path in (FUZZ / "corpus").iterdir())
    assert NAMES == ["attest", "payload", "record", "wire", "ws"]
    assert sorted([*NAMES, *fuzz_python.TARGETS]) == kept


def test_no_file_is_left_out_of_what_the_kept_inputs_reach() -> None:
    """docs/security.md has a row for each file of the layers that bytes from outside come to."""
    layers = ("base", "cbor", "wire", "ws", "noise", "session", "attest")
    files = {f"{layer}/{path.name}" for layer in layers for path in CSRC.glob(f"{layer}/*.c")}
    text = (ROOT / "docs" / "security.md").read_text()
    table = text.partition("### What the kept inputs reach")[2].partition("Not reached:")[0]
    assert set(re.findall(r"^\| `(\S+\.c)` \|", table, re.MULTILINE)) == files


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", NAMES)
def test_fuzzer(name: str, tmp_path: Path) -> None:
    kept = FUZZ / "corpus" / name
    found = tmp_path / "corpus"
    found.mkdir()
    result = subprocess.run(
        [
            BINARIES / f"fuzz_{name}",
            f"-max_total_time={SECONDS}",
            "-max_len=8192",
            "-timeout=20",
            f"-dict={FUZZ / 'dict' / f'{name}.dict'}",
            f"-artifact_prefix={tmp_path}/",
            found,
            kept,
        ],
        text=True,
        errors="replace",
        capture_output=True,
    )
    report = "\n".join(result.stderr.splitlines()[-40:])
    assert result.returncode == 0, f"{name}: {report}\ninputs: {list(tmp_path.glob('*-*'))}"
    assert f"{len(list(kept.iterdir()))} files found in {kept}" in result.stderr


@pytest.mark.parametrize("name", sorted(fuzz_python.TARGETS))
def test_python_parsers(name: str) -> None:
    kept = sorted((FUZZ / "corpus" / name).iterdir())
    assert kept
    for path in kept:
        fuzz_python.TARGETS[name](path.read_bytes())
