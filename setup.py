"""Builds the C extension. The system libraries are found by pkg-config where they have a file for
it; .ci/system-packages installs them."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
LAYERS = "base noise wire attest session ws net channel enclave python".split()
LIBRARIES = "libsodium libwebsockets libcbor openssl".split()
MINIMUM_PYTHON = 0x030B0000


def pkg_config(*args: str) -> list[str]:
    command = [os.environ.get("PKG_CONFIG", "pkg-config"), *args, *LIBRARIES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        sys.exit("pkg-config is missing; see README.md, 'From source'")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.stderr}\na library to build on is missing; see README.md, 'From source'")
    return done.stdout.split()


def version() -> str:
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        if line.startswith("version = "):
            return line.split('"')[1]
    raise SystemExit("pyproject.toml has no version")


def extension() -> Extension:
    sources = [
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in sorted((ROOT / "csrc" / layer).glob("*.c"))
    ]
    depends = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").glob("*/*.h"))]
    flags = "-std=gnu11 -O3 -g -Wall -Wextra -Wshadow -Wstrict-prototypes -fvisibility=hidden"
    extra = os.environ.get("ENCLAVIA_CFLAGS", "").split()
    return Extension(
        "enclavia._core",
        sources=sources,
        depends=depends,
        include_dirs=["csrc"],
        define_macros=[
            ("Py_LIMITED_API", hex(MINIMUM_PYTHON)),
            ("_GNU_SOURCE", None),
            ("ENCL_VERSION", f'"{version()}"'),
        ],
        extra_compile_args=[*flags.split(), *pkg_config("--cflags"), *extra],
        extra_link_args=[*pkg_config("--libs"), *extra],
        py_limited_api=True,
    )


setup(
    ext_modules=[extension()],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
