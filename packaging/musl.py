"""Makes a system whose C library is musl, with a Python that was built for it.

No distribution with musl is among the package archives that are used here, so it is put together:
the C library and its loader from Debian's package ``musl``, a static busybox as the shell, and a
CPython compiled by the compiler of the wheels against the libraries of the wheel for musl.
Nothing of glibc is in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import libraries
import sources

HERE = Path(__file__).resolve().parent
PREFIX = "/opt/python"
LOADER = "lib/ld-musl-x86_64.so.1"


def build_zlib(tools: libraries.Toolchain, source: Path) -> None:
    where = tools.work / "zlib"
    shutil.rmtree(where, ignore_errors=True)
    shutil.copytree(source, where)  # it is built where its source is
    tools.run("./configure", "--static", f"--prefix={tools.prefix}", cwd=where, log="configure")
    tools.run("make", f"-j{tools.jobs}", "install", cwd=where, log="make")


def build_python(tools: libraries.Toolchain, source: Path, root: Path) -> None:
    """The interpreter runs while it is built, by the loader of the Debian package musl."""
    where = libraries.fresh(tools.work / "python")
    tools.run(
        os.path.relpath(source / "configure", where),
        "CC=encl-cc -dynamic -Wno-date-time",
        "CFLAGS=-O1",
        f"CPPFLAGS=-I{tools.prefix}/include",
        f"LDFLAGS=-L{tools.prefix}/lib",
        f"--prefix={PREFIX}",
        f"--with-openssl={tools.prefix}",
        "--with-ensurepip=install",
        "--disable-test-modules",
        "--without-readline",
        cwd=where,
        log="configure",
    )
    tools.run("make", f"-j{tools.jobs}", cwd=where, log="make")
    tools.run("make", "install", f"DESTDIR={root}", cwd=where, log="install")


def copy_system(root: Path) -> None:
    for folder in ("lib", "bin", "usr/bin", "etc", "tmp", "root", "proc", "sys", "dev", "opt"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy(Path("/", LOADER).resolve(), root / LOADER)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    subprocess.run(["chroot", str(root), "/bin/busybox", "--install", "-s", "/bin"], check=True)
    (root / "usr" / "bin" / "env").symlink_to("/bin/env")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")


def make(root: Path, build: Path) -> None:
    """``root`` as a whole; ``build`` is where the wheels were built, whose libraries it uses."""
    unpacked = sources.all_unpacked(build / "sources")
    pins = HERE / "musl_sources.toml"
    own = sources.all_unpacked(build / "musl-sources", pins)
    name = "musllinux-x86_64"
    tools = libraries.build_all(
        libraries.TARGETS[name], unpacked, build / name / "prefix", build / name / "work"
    )
    build_zlib(tools, own["zlib"])
    copy_system(root)
    build_python(tools, own["python"], root)
