"""Makes a system whose C library is musl, with a Python that was built for it (interpreter.py).

No distribution with musl is among the package archives that are used here, so it is put together:
the C library and its loader from Debian's package ``musl``, and the shell from its
``busybox-static``. Nothing of glibc is in it. The library is that of a release with musl 1.2.5:
wheels of others have relocations (RELR) that musl reads from 1.2.4 on, and whose functions an
earlier one calls where there is nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import sources

SUITE = "trixie"


def unpacked(package: str, debian: str, cache: Path) -> Path:
    """``debian``: what Debian calls the architecture."""
    file = sources.binary_package(package, SUITE, debian, cache)
    folder = file.with_suffix("")
    subprocess.run(["dpkg-deb", "--extract", str(file), str(folder)], check=True)
    return folder


def certificates(root: Path, debian: str, cache: Path) -> None:
    """As Alpine has them: one bundle, and a link where OpenSSL looks by itself."""
    installed = unpacked("ca-certificates", debian, cache) / "usr" / "share" / "ca-certificates"
    authorities = sorted(installed.rglob("*.crt"))
    bundle = root / "etc" / "ssl" / "certs" / "ca-certificates.crt"
    bundle.parent.mkdir(parents=True)
    bundle.write_text("".join(path.read_text() for path in authorities))
    (root / "etc" / "ssl" / "cert.pem").symlink_to("certs/ca-certificates.crt")


def make(root: Path, machine: str, debian: str, cache: Path) -> None:
    """``machine``: what musl calls the architecture; ``cache``: a folder for what is downloaded."""
    for folder in ("lib", "bin", "usr/bin", "etc", "tmp", "root", "proc", "sys", "dev", "opt"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    cache.mkdir(parents=True, exist_ok=True)
    loader = f"ld-musl-{machine}.so.1"
    library = next(unpacked("musl", debian, cache).rglob(loader))
    shutil.copy(library.resolve(), root / "lib" / loader)
    shell = next(unpacked("busybox-static", debian, cache).rglob("bin/busybox"))
    shutil.copy(shell, root / "bin")
    subprocess.run(["chroot", str(root), "/bin/busybox", "--install", "-s", "/bin"], check=True)
    (root / "usr" / "bin" / "env").symlink_to("/bin/env")
    certificates(root, debian, cache)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
