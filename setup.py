"""Builds the C extension. The system libraries are found by pkg-config where they have a file for
it; .ci/system-packages installs them."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
# For browsers, which have no sockets: the WebSocket is Python's there (csrc/web), and there is no
# local enclave. Any machine can build it, for tests; it is installed nowhere but in Pyodide.
WEB = bool(os.environ.get("ENCLAVIA_WEB"))
LAYERS = "base platform sync cbor noise wire attest session ws net channel enclave python".split()
LIBRARIES = "libsodium libwebsockets libcbor openssl".split()
if WEB:
    LAYERS = "base platform sync cbor noise wire attest session web channel python".split()
    LIBRARIES = "libsodium libcbor libcrypto".split()
NOT_WEB = ("enclave_arguments.c", "enclave_type.c", "pump.c", "pump_type.c", "together.c")
MINIMUM_PYTHON = 0x030B0000
# One extension for all versions from the minimum on. Free-threaded builds of Python have no such
# interface before 3.15: there it is made for one version.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
MISSING = """
To build enclavia from source, install what it is built on, then run the same command again:
  Debian, Ubuntu: apt-get install gcc pkg-config
                  libsodium-dev libwebsockets-dev libcbor-dev libssl-dev libcap-dev
  Fedora:         dnf install gcc pkgconf
                  libsodium-devel libwebsockets-devel libcbor-devel openssl-devel libcap-devel
  Alpine:         apk add gcc musl-dev pkgconf
                  libsodium-dev libwebsockets-dev libcbor-dev openssl-dev libcap-dev
Wheels need none of these. CONTRIBUTING.md has more."""


def pkg_config(*args: str) -> list[str]:
    command = [os.environ.get("PKG_CONFIG", "pkg-config"), *args, *LIBRARIES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        sys.exit(f"pkg-config is missing.\n{MISSING}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.stderr}\n{MISSING}")
    return done.stdout.split()


def version() -> str:
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        if line.startswith("version = "):
            return line.split('"')[1]
    raise SystemExit("pyproject.toml has no version")


def long_description() -> str:
    """README.md as it is shown where the repository is not beside it: a link to one of its files
    leads nowhere there, so its text stands alone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^][\n]+)\]\((?![a-z]+:|#)[^()\s]+\)", r"\1", text)


def extension() -> Extension:
    sources = [
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in sorted((ROOT / "csrc" / layer).glob("*.c"))
        if not (WEB and path.name in NOT_WEB)
    ]
    depends = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").glob("*/*.h"))]
    flags = "-std=gnu11 -O3 -g -Wall -Wextra -Wshadow -Wstrict-prototypes -fvisibility=hidden"
    extra = os.environ.get("ENCLAVIA_CFLAGS", "").split()
    return Extension(
        "enclavia._core",
        sources=sources,
        depends=depends,
        # A wheel for another machine brings headers of its own (packaging/wheels.py).
        include_dirs=["csrc", *os.environ.get("ENCLAVIA_INCLUDE", "").split()],
        define_macros=[
            *([("Py_LIMITED_API", hex(MINIMUM_PYTHON))] if LIMITED else []),
            ("_GNU_SOURCE", None),
            *([("ENCL_WEB", None)] if WEB else []),
            ("ENCL_VERSION", f'"{version()}"'),
            ("ENCL_PLATFORM", f'"{os.environ.get("ENCLAVIA_PLATFORM", "source")}"'),
        ],
        extra_compile_args=[*flags.split(), *pkg_config("--cflags"), *extra],
        extra_link_args=[*pkg_config("--libs"), *extra],
        py_limited_api=LIMITED,
    )


setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    ext_modules=[extension()],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
