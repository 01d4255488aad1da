"""Makes a system whose C library is musl, with a Python that was built for it (interpreter.py).

No distribution with musl is among the package archives that are used here, so it is put together:
the C library and its loader from Debian's package ``musl``, and a static busybox as the shell.
Nothing of glibc is in it. The library is that of a release with musl 1.2.5: wheels of others have
relocations (RELR) that musl reads from 1.2.4 on, and whose functions an earlier one calls where
there is nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import sources

LOADER = "lib/ld-musl-x86_64.so.1"
SUITE = "trixie"


def make(root: Path, cache: Path) -> None:
    """``cache``: a folder for what is downloaded."""
    for folder in ("lib", "bin", "usr/bin", "etc", "tmp", "root", "proc", "sys", "dev", "opt"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    cache.mkdir(parents=True, exist_ok=True)
    package = sources.binary_package("musl", SUITE, cache)
    subprocess.run(["dpkg-deb", "--extract", str(package), str(cache / "musl")], check=True)
    shutil.copy(next((cache / "musl").rglob("ld-musl-x86_64.so.1")).resolve(), root / LOADER)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    subprocess.run(["chroot", str(root), "/bin/busybox", "--install", "-s", "/bin"], check=True)
    (root / "usr" / "bin" / "env").symlink_to("/bin/env")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
