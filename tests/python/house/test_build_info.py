"""What a build says of itself, and that a wheel carries what is pinned."""

from __future__ import annotations

import platform
import re
import tomllib
from pathlib import Path

import pytest
from repository import ROOT

import enclavia

PINS = ROOT / "packaging" / "sources.toml"
LIBRARIES = ("openssl", "libsodium", "libwebsockets", "libcbor")


def version(text: str) -> str:
    found = re.search(r"\d+\.\d+\.\d+", text)
    assert found is not None, text
    return found[0]


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_runs_is_what_was_compiled_against(library: str) -> None:
    info = enclavia.build_info()
    compiled = version(info[f"{library}_compiled"])
    # A distribution may replace a library by a later release of the same line, never by another.
    assert version(info.get(library, compiled)).split(".")[:2] == compiled.split(".")[:2]


def test_the_build_is_described() -> None:
    info = enclavia.build_info()
    assert re.match(r"(GCC|.*[Cc]lang) ", info["compiler"] + " ")
    assert (
        info["platform"] == "source" or "linux" in info["platform"] or "macos" in info["platform"]
    )


def test_the_fast_codec_runs() -> None:
    """A library that does not find out what its processor can do is right, but twice as slow."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    expected = "plain"
    if platform.machine() == "x86_64" and {"ssse3", "popcnt"} <= set(cpu.split()):
        expected = "ssse3"
    elif platform.machine() in ("aarch64", "arm64"):
        expected = "neon"
    assert enclavia.build_info()["codec"] == expected


def test_a_wheel_carries_the_pinned_versions() -> None:
    info = enclavia.build_info()
    if info["platform"] == "source":
        pytest.skip("built from source, with the libraries of the system")
    if not PINS.exists():
        pytest.skip("the pins are in the repository only")
    pins = tomllib.loads(PINS.read_text())
    assert {name: version(info[f"{name}_compiled"]) for name in LIBRARIES} == {
        name: pins[name]["version"] for name in LIBRARIES
    }
