"""Builds a CPython for a system that has none of its own, or one that is too old for the package.

It is compiled by the compiler of the wheels for the target of a wheel, with the static OpenSSL that
was built for that wheel, so it runs wherever the wheel is to run. Modules whose libraries are not
here (ctypes, sqlite3, readline and others) are left out by its own configuration.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import libraries
import sources

PREFIX = "/opt/python"

FOR_MUSL = (
    # The compiler's musl is newer than this machine's, under which the interpreter runs while it is
    # built: what came later is found by configure and missing then (musl 1.2.5, release notes).
    "ac_cv_func_preadv2=no",
    "ac_cv_func_pwritev2=no",
    # CPython knows musl by a macro of its stdarg.h, in place of which clang has its own. Without
    # it modules of others, whose names end in -x86_64-linux-musl.so, would not be found.
    "CPP=encl-cc -dynamic -E -D__DEFINED_va_list",
)
PINS = Path(__file__).with_name("interpreter_sources.toml")


def build_zlib(tools: libraries.Toolchain, source: Path) -> None:
    where = tools.work / "zlib"
    shutil.rmtree(where, ignore_errors=True)
    shutil.copytree(source, where)  # it is built where its source is
    tools.run("./configure", "--static", f"--prefix={tools.prefix}", cwd=where, log="configure")
    tools.run("make", f"-j{tools.jobs}", "install", cwd=where, log="make")


def build_python(tools: libraries.Toolchain, source: Path, root: Path) -> None:
    """The interpreter runs while it is built, so this machine has to be able to load it. One for
    another architecture runs under qemu-user, which takes the loader from ``root``."""
    where = libraries.fresh(tools.work / "python")
    emulated = ("env", f"QEMU_LD_PREFIX={root}")
    tools.run(
        *emulated,
        os.path.relpath(source / "configure", where),
        f"CC=encl-cc{' -dynamic' if tools.target.is_musl else ''} -Wno-date-time",
        "CFLAGS=-O1",
        f"CPPFLAGS=-I{tools.prefix}/include",
        f"LDFLAGS=-L{tools.prefix}/lib",
        f"--prefix={PREFIX}",
        f"--with-openssl={tools.prefix}",
        "--without-ensurepip",  # each virtual environment brings its own pip
        "--disable-test-modules",
        "--without-readline",
        *(FOR_MUSL if tools.target.is_musl else ()),
        cwd=where,
        log="configure",
    )
    tools.run(*emulated, "make", f"-j{tools.jobs}", cwd=where, log="make")
    tools.run(*emulated, "make", "install", f"DESTDIR={root}", cwd=where, log="install")


def install(target: str, root: Path, build: Path) -> None:
    """Below ``root``; ``build`` is where the wheels were built, whose libraries it uses."""
    unpacked = sources.all_unpacked(build / "sources")
    own = sources.all_unpacked(build / "interpreter-sources", PINS)
    tools = libraries.build_all(
        libraries.TARGETS[target], unpacked, build / target / "prefix", build / target / "work"
    )
    build_zlib(tools, own["zlib"])
    build_python(tools, own["python"], root)
