"""Builds the libraries that a wheel carries, static and position-independent, for one target.

The compiler is clang as ``zig cc`` (PyPI: ziglang), because it brings the C libraries of every
target and links against the symbols of an old glibc on a new machine. It is called through small
wrappers, for two reasons: options that name folders of this machine must not end up in a binary
(OpenSSL records how it was compiled), and OpenSSL's configuration leaves out its AVX-512 code
unless the assembler names a version.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import sources

# What OpenSSL is asked to leave out: what is needed neither for TLS 1.2 and 1.3, nor for Noise and
# attestation documents. It lists whatever it has when it looks for an algorithm of a kind for the
# first time, so what is left out is also saved by the first connection of a process.
OPENSSL_WITHOUT = (
    "shared module engine legacy docs tests apps ui-console comp autoload-config quic srp psk "
    "dtls ssl3 tls1 tls1_1 idea camellia seed aria sm2 sm3 sm4 rc2 rc4 md4 mdc2 rmd160 whirlpool "
    "bf cast des dsa cms ts ct ocsp cmp gost ml-dsa slh-dsa ocb siv scrypt argon2 cmac siphash ec2m"
).split()

LWS_OPTIONS = {
    "LWS_WITH_SHARED": "OFF",
    "LWS_STATIC_PIC": "ON",
    "LWS_WITHOUT_TESTAPPS": "ON",
    "LWS_WITHOUT_EXTENSIONS": "ON",
    "LWS_WITH_ZLIB": "OFF",
    "LWS_WITH_MINIMAL_EXAMPLES": "OFF",
    "LWS_WITH_HTTP2": "OFF",
    "LWS_WITH_LIBCAP": "OFF",
    "LWS_UNIX_SOCK": "OFF",
    "LWS_IPV6": "ON",
    "LWS_SSL_CLIENT_USE_OS_CA_CERTS": "ON",
    "LWS_WITH_SYS_SMD": "OFF",
    "LWS_CTEST_INTERNET_AVAILABLE": "OFF",
    "DISABLE_WERROR": "ON",
}

HARDENED = "-fstack-protector-strong -D_FORTIFY_SOURCE=2 -fno-plt"


class Target(NamedTuple):
    zig: str
    """What zig calls it, with the oldest glibc that must do."""
    openssl: str
    platform_tag: str
    host_platform: str
    """What Python calls such a machine; a wheel is named by it until it is tagged."""

    @property
    def machine(self) -> str:
        return self.zig.partition("-")[0]

    @property
    def is_musl(self) -> bool:
        return self.zig.endswith("musl")


TARGETS = {
    "manylinux-x86_64": Target(
        "x86_64-linux-gnu.2.17", "linux-x86_64", "manylinux_2_17_x86_64", "linux-x86_64"
    ),
    "manylinux-aarch64": Target(
        "aarch64-linux-gnu.2.17", "linux-aarch64", "manylinux_2_17_aarch64", "linux-aarch64"
    ),
    "musllinux-x86_64": Target(
        "x86_64-linux-musl", "linux-x86_64", "musllinux_1_2_x86_64", "linux-x86_64"
    ),
    "musllinux-aarch64": Target(
        "aarch64-linux-musl", "linux-aarch64", "musllinux_1_2_aarch64", "linux-aarch64"
    ),
}


class Toolchain:
    """The wrappers, and the environment in which a library's own build finds them by name."""

    def __init__(self, target: Target, prefix: Path, work: Path) -> None:
        self.target = target
        self.prefix = prefix
        self.work = work
        self.bin = prefix / "bin"
        self.jobs = os.environ.get("ENCLAVIA_JOBS") or str(os.cpu_count() or 1)
        self._write()

    def _write(self) -> None:
        self.bin.mkdir(parents=True, exist_ok=True)
        zig = f"exec '{sys.executable}' -m ziglang"
        options = (
            f"-target {self.target.zig} -g0 -fno-sanitize=undefined "
            f"-ffile-prefix-map='{self.work.parents[1]}'=."
        )
        version = 'case "$*" in *-Wa,-v*) echo "GNU assembler version 2.40"; exit 0;; esac\n'
        self._script("encl-cc", f'{version}{zig} cc {options} "$@"')
        self._script("encl-ar", f'{zig} ar "$@"')
        self._script("encl-ranlib", f'{zig} ranlib "$@"')
        exports = Path(__file__).with_name("exports.map")
        self._script(
            "encl-link",
            f"exec encl-cc -shared -Wl,--version-script='{exports}' -Wl,-s -Wl,-z,relro "
            '-Wl,-z,now -Wl,-z,noexecstack -Wl,--gc-sections "$@"',
        )
        self._script(
            "encl-pkg-config",
            f"PKG_CONFIG_LIBDIR='{self.prefix}/lib/pkgconfig' exec pkg-config --static \"$@\"",
        )

    def _script(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def env(self) -> dict[str, str]:
        tools = Path(sys.executable).parent  # cmake and ninja of the same virtualenv
        return os.environ | {
            "PATH": f"{self.bin}{os.pathsep}{tools}{os.pathsep}{os.environ['PATH']}",
            "CC": "encl-cc",
            "AR": "encl-ar",
            "RANLIB": "encl-ranlib",
            "CFLAGS": f"-O3 -fPIC -fvisibility=hidden {HARDENED}",
            "PKG_CONFIG": "encl-pkg-config",
            "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "0"),
            "ZERO_AR_DATE": "1",
            "LC_ALL": "C",
            "TZ": "UTC",
        }

    def run(self, *command: str, cwd: Path, log: str) -> None:
        where = cwd / f"{log}.log"
        with where.open("w") as out:
            done = subprocess.run(
                command, cwd=cwd, env=self.env(), stdout=out, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode != 0:
            last = "\n".join(where.read_text(errors="replace").splitlines()[-30:])
            raise SystemExit(f"{' '.join(command)} failed; the end of {where}:\n{last}")


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def build_openssl(tools: Toolchain, source: Path) -> None:
    where = fresh(tools.work / "openssl")
    options = [f"no-{what}" for what in OPENSSL_WITHOUT]
    if tools.target.machine in ("x86_64", "aarch64"):
        options.append("enable-ec_nistp_64_gcc_128")
    tools.run(
        os.path.relpath(source / "Configure", where),
        tools.target.openssl,
        # Where the library looks for things at run time; where it is installed now is DESTDIR's.
        "--prefix=/usr",
        "--libdir=lib",
        "--openssldir=/etc/ssl",
        *options,
        cwd=where,
        log="configure",
    )
    tools.run("make", f"-j{tools.jobs}", "build_libs", cwd=where, log="make")
    install = fresh(tools.work / "openssl-installed")
    tools.run("make", "install_dev", f"DESTDIR={install}", cwd=where, log="install")
    shutil.copytree(install / "usr", tools.prefix, dirs_exist_ok=True)
    for file in (tools.prefix / "lib" / "pkgconfig").glob("*.pc"):
        file.write_text(file.read_text().replace("prefix=/usr", f"prefix={tools.prefix}", 1))


def build_libsodium(tools: Toolchain, source: Path) -> None:
    where = fresh(tools.work / "libsodium")
    host = ".".join(tools.target.zig.split(".")[:1])
    tools.run(
        os.path.relpath(source / "configure", where),
        f"--host={host}",
        f"--prefix={tools.prefix}",
        f"--libdir={tools.prefix}/lib",
        "--disable-shared",
        "--enable-static",
        "--with-pic",
        "--disable-ssp",  # the stack protector comes with CFLAGS
        cwd=where,
        log="configure",
    )
    tools.run("make", f"-j{tools.jobs}", cwd=where, log="make")
    tools.run("make", "install", cwd=where, log="install")


def build_by_cmake(tools: Toolchain, source: Path, name: str, options: dict[str, str]) -> None:
    where = fresh(tools.work / name)
    toolchain = where / "toolchain.cmake"
    toolchain.write_text(
        "set(CMAKE_SYSTEM_NAME Linux)\n"
        f"set(CMAKE_SYSTEM_PROCESSOR {tools.target.machine})\n"
        f"set(CMAKE_C_COMPILER {tools.bin}/encl-cc)\n"
        f"set(CMAKE_AR {tools.bin}/encl-ar)\n"
        f"set(CMAKE_RANLIB {tools.bin}/encl-ranlib)\n"
        f"set(CMAKE_FIND_ROOT_PATH {tools.prefix})\n"
        "set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)\n"
        "set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)\n"
    )
    all_options = {
        "CMAKE_TOOLCHAIN_FILE": str(toolchain),
        "CMAKE_INSTALL_PREFIX": str(tools.prefix),
        "CMAKE_INSTALL_LIBDIR": "lib",
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_POSITION_INDEPENDENT_CODE": "ON",
        **options,
    }
    defines = [f"-D{key}={value}" for key, value in all_options.items()]
    tools.run(
        "cmake",
        "-S",
        str(source),
        "-B",
        str(where),
        "-G",
        "Ninja",
        *defines,
        cwd=where,
        log="cmake",
    )
    tools.run("ninja", f"-j{tools.jobs}", "all", cwd=where, log="ninja")
    tools.run("cmake", "--install", str(where), cwd=where, log="install")


def build_libcbor(tools: Toolchain, source: Path) -> None:
    options = {
        "WITH_EXAMPLES": "OFF",
        "CMAKE_POLICY_DEFAULT_CMP0069": "NEW",
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
    }
    build_by_cmake(tools, source, "libcbor", options)


def build_libwebsockets(tools: Toolchain, source: Path) -> None:
    lib = tools.prefix / "lib"
    options = {
        **LWS_OPTIONS,
        # It would put the commit of the repository around it, this one, into its version.
        "CMAKE_DISABLE_FIND_PACKAGE_Git": "ON",
        "LWS_OPENSSL_INCLUDE_DIRS": str(tools.prefix / "include"),
        "LWS_OPENSSL_LIBRARIES": f"{lib}/libssl.a;{lib}/libcrypto.a",
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
    }
    build_by_cmake(tools, source, "libwebsockets", options)


BUILDS = {
    "openssl": build_openssl,
    "libsodium": build_libsodium,
    "libcbor": build_libcbor,
    "libwebsockets": build_libwebsockets,  # against this OpenSSL
}


def build_all(target: Target, unpacked: dict[str, Path], prefix: Path, work: Path) -> Toolchain:
    """Leaves libraries, headers and .pc files in prefix. A library that is there is not built again
    while its source, those built before it, the compiler and this file are the same."""
    tools = Toolchain(target, prefix, work)
    work.mkdir(parents=True, exist_ok=True)
    pinned = {source.name: source for source in sources.pinned()}
    made_of = hashlib.sha256(Path(__file__).read_bytes() + version("ziglang").encode())
    for name, build in BUILDS.items():
        made_of.update(repr(pinned[name]).encode())
        stamp = prefix / f"{name}.made-of"
        if not stamp.is_file() or stamp.read_text() != made_of.hexdigest():
            print(f"{target.platform_tag}: building {name}", flush=True)
            build(tools, unpacked[name])
            stamp.write_text(made_of.hexdigest())
    return tools
